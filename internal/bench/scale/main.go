// Program scale measures what many instances cost the database that they count
// into, and how soon a count is seen there: through usagekit, and beside it with
// the shared-row upsert that one would write first. It starts a PostgreSQL of its
// own, on this machine.
//
//	make scale
//	make scale ARGS='-n=100 -time=10s -only=instances/100/usagekit -cpuprofile=cpu.out'
//
// It has three parts. Instances that count at an everyday pace: each adds to 500
// names that all share, and to 50 of its own, every second. Writers that send what
// they can. And the fold of one large batch on SQLite. There is no pass or fail by
// time; what is checked is that every table has, under every name, what was added. All
// of it takes about a quarter of an hour.
//
// Read this file, then ways.go and upsert.go (what is compared), load.go and
// watch.go, instances.go, writers.go and lite.go (the parts), exact.go, server.go
// and table.go.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"regexp"
	"runtime"
	"runtime/pprof"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/usagekit/usagekit/internal/dbtest"
)

type settings struct {
	instances []int // how many of them, a row each
	time      time.Duration
	writers   int
	names     int // of the batch on SQLite
	only      *regexp.Regexp
}

func main() {
	log.SetFlags(0)
	var s settings
	n := flag.String("n", "10,100,1000", "numbers of instances, with commas between them")
	flag.DurationVar(&s.time, "time", 30*time.Second, "how long one row is measured, once it is warm")
	flag.IntVar(&s.writers, "writers", 32, "how many send what they can")
	flag.IntVar(&s.names, "names", 100_000, "names of the batch on SQLite")
	only := flag.String("only", "", "regular expression: measure only these: instances/10/usagekit, writers/upsert, sqlite …")
	profile := flag.String("cpuprofile", "", "write a CPU profile of this process to this `file`")
	flag.Parse()
	var err error
	if s.instances, err = numbers(*n); err != nil {
		log.Fatal(err)
	}
	if s.only, err = regexp.Compile(*only); err != nil {
		log.Fatal(err)
	}
	if s.time <= 0 || s.writers < 1 || s.names < 1 {
		log.Fatal("want some time, a writer and a name at least")
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := profiled(*profile, func() error { return s.onServer(ctx, os.Stdout) }); err != nil {
		log.Fatal(err)
	}
}

func numbers(list string) (all []int, _ error) {
	for word := range strings.SplitSeq(list, ",") {
		n, err := strconv.Atoi(word)
		if err != nil || n < 1 {
			return nil, fmt.Errorf("-n=%s: want numbers of instances, as in 10,100", list)
		}
		all = append(all, n)
	}
	return all, nil
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

// onServer runs everything on a PostgreSQL of its own.
func (s settings) onServer(ctx context.Context, w io.Writer) error {
	server, err := dbtest.Start()
	if err != nil {
		return err
	}
	return errors.Join(s.run(ctx, w, server), server.Close())
}

const legend = `
instances   of the service; a pool: how many of them share a pool of two connections, where
            the server does not take two for each
adds/s      calls of Add; batches/s: flushes whose counts are in the tables
p50 … max   seconds from Add of a name that is new until a reader finds it in the table,
            looked for every 25 ms
waiting     rows in the inbox, every half second: their median and most, and their KiB
B/batch     of the encoded batch; of the upsert, its parameters
db, own     cores busy: of all the server's processes, and of this one, which is all instances;
others      of whatever else the machine did; ms/batch: of CPU, db and own, which depends least on others
tx/s        transactions of the database, with about 40 reads a second of this program;
undone      of those, the ones rolled back in all: folds that met, and errors
deadlocks   as the server counts them
The upsert writes one row a name, sorted, so that it does not deadlock; usagekit writes three:
the total, and those of the hour and the day. A batch of usagekit is in the tables once it is
folded; a writers' row ends when everything is. On SQLite a fold is from when the batch is
stored until it is folded; Flush also seals, encodes and stores it.
`

// run writes the tables to w. Only SQLite needs no server.
func (s settings) run(ctx context.Context, w io.Writer, server *dbtest.Server) error {
	fmt.Fprintf(w, "%s, %s, %s/%s, %d CPUs%s, %v a row\n", time.Now().Format(time.DateOnly), runtime.Version(), runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), cpuModel(), s.time)
	if server != nil {
		if err := describe(ctx, w, server); err != nil {
			return err
		}
	}
	for _, part := range []func(context.Context, io.Writer, *dbtest.Server) error{s.allInstances, s.allWriters, s.lite} {
		if err := part(ctx, w, server); err != nil {
			return err
		}
	}
	fmt.Fprint(w, legend)
	fmt.Fprintln(w, "Each table has, under every name, what was added, unless its row says that it was not checked.")
	return nil
}

func (s settings) wants(format string, args ...any) bool {
	return s.only.MatchString(fmt.Sprintf(format, args...))
}
