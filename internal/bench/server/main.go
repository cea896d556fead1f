// Program server measures what usagekit costs a real server: wrk asks one for small
// JSON answers, over loopback, with and without the middleware and its store.
//
//	cd internal/bench && go run ./server
//
// Each server is a process of its own. All run at once, and wrk asks one after the
// other, round after round, so that what else the machine does meets them alike.
// The table has the medians of the rounds, and ratios to the bare server in the same
// round. There is no pass or fail by time; what is checked is that each request was
// counted, once: the database must have what the handlers themselves counted, and
// that must be what wrk got, but for what was in flight when wrk hung up.
//
// Read this file, then process.go, a server and the program's hold on it, wrk.go with
// wrk.lua, and table.go.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"time"
)

func main() {
	log.SetFlags(0)
	if len(os.Args) == 4 && os.Args[1] == serveCommand {
		if err := serve(os.Args[2], os.Args[3], os.Stdin, os.Stdout); err != nil {
			log.Fatalf("%s: %v", os.Args[2], err)
		}
		return
	}
	rounds := flag.Int("rounds", 9, "how often each server is measured, after one round to warm up")
	d := flag.Duration("time", 4*time.Second, "how long one measurement takes, in whole seconds")
	connections := flag.Int("connections", 16, "connections of wrk")
	users := flag.Int("users", 10_000, "how many users come, again and again")
	flag.Parse()
	if *rounds < 1 || *connections < 1 || *users < 1 || *d < time.Second || *d%time.Second != 0 {
		log.Fatal("want a round, a connection and a user at least, and some whole seconds")
	}
	if err := bench(*rounds, *connections, *users, *d); err != nil {
		log.Fatal(err)
	}
}

func bench(rounds, connections, users int, d time.Duration) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	root, err := os.MkdirTemp("", "usagekit-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(root)
	wrk, err := newWrk(root, connections, users, d)
	if err != nil {
		return err
	}
	fmt.Printf("%s, %s, %s/%s, %d CPUs, %d rounds of %v, %d connections, %d routes, %d users\n\n",
		time.Now().Format(time.DateOnly), runtime.Version(), runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), rounds, d, connections, routeCount, users)
	return compare(ctx, os.Stdout, root, rounds, connections, wrk)
}

// contestant is a server and what was measured of it.
type contestant struct {
	*process
	runs     []run // one of each round
	answered int64 // requests, of all runs and the warm-up
	degraded string
}

// run is one measurement.
type run struct {
	answers
	cpu float64 // microseconds of the server for each request
}

// compare writes the table to w. The servers' databases are in root.
func compare(ctx context.Context, w io.Writer, root string, rounds, connections int, ask load) error {
	var all []*contestant
	for _, kind := range []string{bare, memory, spool} {
		p, err := start(kind, filepath.Join(root, kind))
		if err != nil {
			return fmt.Errorf("%s: %w", kind, err)
		}
		defer p.kill()
		all = append(all, &contestant{process: p})
	}
	for round := range 1 + rounds {
		for i := range all {
			c := all[(i+round)%len(all)] // nobody always follows the same
			one, err := c.measure(ctx, ask)
			if err != nil {
				return fmt.Errorf("%s: %w", c.kind, err)
			}
			if round > 0 { // the first is to warm up
				c.runs = append(c.runs, one)
			}
		}
	}
	if err := table(w, all); err != nil {
		return err
	}
	counted := int64(0)
	for _, c := range all {
		if c.degraded != "" {
			fmt.Fprintf(w, "%s: the numbers are in part those of memory: %s\n", c.kind, c.degraded)
		}
		n, err := c.check(ctx, int64(connections*(1+rounds)))
		if err != nil {
			return fmt.Errorf("%s: %w", c.kind, err)
		}
		counted += n
	}
	fmt.Fprintf(w, "Each of %d requests to a wrapped server was counted, once.\n", counted)
	return nil
}

func (c *contestant) measure(ctx context.Context, ask load) (run, error) {
	before, err := c.report()
	if err != nil {
		return run{}, err
	}
	got, err := ask(ctx, c.url)
	if err != nil {
		return run{}, err
	}
	after, err := c.report()
	if err != nil {
		return run{}, err
	}
	c.answered += got.Requests
	if after.Degraded != "" {
		c.degraded = after.Degraded
	}
	cpu := float64((after.CPU - before.CPU).Nanoseconds()) / 1000 / float64(after.Served-before.Served)
	return run{got, cpu}, nil
}

// check stops the server, and returns what it counted: exactly what it served. Of
// that, some requests may have been in flight, and nobody got the answer.
func (c *contestant) check(ctx context.Context, inFlight int64) (counted int64, err error) {
	last, err := c.stop()
	if err != nil {
		return 0, err
	}
	if last.Served < c.answered || last.Served > c.answered+inFlight {
		return 0, fmt.Errorf("served %d requests, of which %d were answered and %d in flight at most", last.Served, c.answered, inFlight)
	}
	if c.kind == bare {
		return 0, nil
	}
	counted, err = c.counted(ctx)
	if err == nil && counted != last.Served {
		err = fmt.Errorf("counted %d of %d requests", counted, last.Served)
	}
	return counted, err
}
