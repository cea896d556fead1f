// Program bench compares usagekit with what a user would pick instead, in one
// process and on the same inner handler. It is a module of its own, so that the
// others stay out of usagekit's.
//
//	make bench
//	make bench ARGS='-only=middleware/usagekit -cpuprofile=cpu.out'
//
// All candidates of a group are measured in turn, round after round, so that what
// else the machine does meets them alike. The table has the medians of the rounds,
// and ratios of two measurements of the same round. There is no pass or fail by
// time; what is checked is that everybody counted every call.
//
// Each library is used as its own documentation has it, and where that says to
// resolve a metric ahead, once per route, that is done. So most do less than
// usagekit: only the hand-written vectors count users, and none survives the process.
//
// Read this file, then measure.go, counters.go and traffic.go, handlers.go, and
// table.go.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"regexp"
	"runtime"
	"runtime/pprof"
	"time"
)

type settings struct {
	rounds int
	cell   time.Duration
	names  int // of the largest group
	only   *regexp.Regexp
}

func main() {
	log.SetFlags(0)
	var s settings
	flag.IntVar(&s.rounds, "rounds", 7, "how often everything is measured")
	flag.DurationVar(&s.cell, "time", 100*time.Millisecond, "how long one measurement takes; of a middleware, four times that")
	flag.IntVar(&s.names, "names", 1_000_000, "names of the largest group")
	only := flag.String("only", "", "regular expression: measure only these `group/candidate`s")
	profile := flag.String("cpuprofile", "", "write a CPU profile to this `file`")
	flag.Parse()
	var err error
	if s.rounds < 1 || s.cell <= 0 || s.names < 1000 {
		log.Fatal("want a round, some time and 1,000 names at least")
	}
	if s.only, err = regexp.Compile(*only); err != nil {
		log.Fatal(err)
	}
	if err := profiled(*profile, func() error { return s.run(os.Stdout) }); err != nil {
		log.Fatal(err)
	}
}

func profiled(file string, run func() error) error {
	if file == "" {
		return run()
	}
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := pprof.StartCPUProfile(f); err != nil {
		return err
	}
	defer pprof.StopCPUProfile()
	return run()
}

const legend = `
ns/op is of one core: on two cores that never wait for each other, it is what it is on
one. Times are medians of the rounds with the least and the greatest; ratios are those
to "usagekit, memory" in the same round, of middlewares net of the bare handler, as are
bytes and allocations. Across seals, a generation ends every 100 ms, ten times as often
as in a Store, and of a hundred requests one is the first of a new user.
`

// run writes the table to w.
func (s settings) run(w io.Writer) error {
	root, err := os.MkdirTemp("", "usagekit-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(root)
	fmt.Fprintf(w, "%s, %s, %s/%s, %d CPUs, %d rounds\n\n", time.Now().Format(time.DateOnly), runtime.Version(), runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), s.rounds)
	out := newTable(w)
	calls := int64(0)
	for _, part := range []func() ([]*group, error){
		func() ([]*group, error) { return known(s, root, 100, false) },
		func() ([]*group, error) { return known(s, root, s.names/10, false) },
		func() ([]*group, error) { return known(s, root, s.names, true) },
		func() ([]*group, error) { return firstTouches(s, root, s.names/10) },
		func() ([]*group, error) { return nil, live(s, root, s.names/10, out) },
		func() ([]*group, error) { return middlewares(s, root) },
	} {
		var n int64
		if n, err = s.measure(part, out); err != nil {
			break // after the table of what there is
		}
		calls += n
		runtime.GC() // what one part leaves is not the next one's
	}
	if err := errors.Join(err, out.Flush()); err != nil {
		return err
	}
	fmt.Fprint(w, legend)
	fmt.Fprintf(w, "Each of %s calls was counted, once, by every candidate.\n", thousands(calls))
	return nil
}

// measure adds the groups of one part to the table, and returns how many calls were
// measured and counted.
func (s settings) measure(part func() ([]*group, error), out table) (calls int64, err error) {
	groups, err := part()
	if err != nil {
		return 0, err
	}
	for _, g := range groups {
		all, err := g.compete(s.rounds)
		if err != nil {
			return 0, err
		}
		out.add(g, all)
	}
	for _, g := range groups {
		n, err := g.close()
		if err != nil {
			return 0, err
		}
		calls += n
	}
	return calls, nil
}

// wants tells whether a candidate is to be measured.
func (s settings) wants(group, candidate string) bool {
	return s.only.MatchString(group + "/" + candidate)
}
