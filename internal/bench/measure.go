package main

import (
	"fmt"
	"runtime"
	"sync"
	"time"
)

// A group is what is compared with each other.
type group struct {
	title       string
	cell        time.Duration // how long one measurement takes; 0: until there is nothing left to do
	contestants []*contestant
}

// The names of the contestants that others are compared with.
const (
	ours = "usagekit, memory"
	bare = "bare handler" // what a handler costs without any middleware
)

// A contestant is measured beside the others of its group.
type contestant struct {
	name string
	// workers returns what each of n goroutines repeats: some operations, and
	// how many those were; 0 when there is nothing left to do.
	workers func(n int) ([]func() int, error)
	// pause comes between two such steps, and is not measured. It may be nil.
	pause func()
	// beside runs something else during a measurement, until stop. It may be nil.
	beside func() (stop func())
	// close returns how many operations were counted, once all is measured.
	close func() (int64, error)

	calls int64 // that it was to count
}

// cost is that of one operation.
type cost struct {
	ns            float64 // of one core
	bytes, allocs float64 // of the whole process
}

// costs has those of the rounds by cores and contestant.
type costs map[int]map[string][]cost

var coreCounts = []int{1, 2}

// compete measures everybody in turn, on one core and on two. Each round begins
// with another one, so that nobody always follows the same.
func (g *group) compete(rounds int) (costs, error) {
	all := costs{}
	for round := range rounds {
		for _, cores := range coreCounts {
			if all[cores] == nil {
				all[cores] = map[string][]cost{}
			}
			for i := range g.contestants {
				c := g.contestants[(i+round)%len(g.contestants)]
				one, err := c.measure(cores, g.cell)
				if err != nil {
					return nil, fmt.Errorf("%s: %s: %w", g.title, c.name, err)
				}
				all[cores][c.name] = append(all[cores][c.name], one)
			}
		}
	}
	return all, nil
}

// close checks that everybody counted everything.
func (g *group) close() (calls int64, err error) {
	for _, c := range g.contestants {
		counted, err := c.close()
		if err != nil {
			return 0, fmt.Errorf("%s: %s: %w", g.title, c.name, err)
		}
		if counted != c.calls {
			return 0, fmt.Errorf("%s: %s counted %d of %d calls", g.title, c.name, counted, c.calls)
		}
		calls += c.calls
	}
	return calls, nil
}

// measure runs c on so many cores for so long.
func (c *contestant) measure(cores int, d time.Duration) (cost, error) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(cores))
	steps, err := c.workers(cores)
	if err != nil {
		return cost{}, err
	}
	stop := func() {}
	if c.beside != nil {
		stop = c.beside()
	}
	var before, after runtime.MemStats
	var running sync.WaitGroup
	spent, ops := make([]time.Duration, cores), make([]int64, cores)
	runtime.ReadMemStats(&before)
	for w, step := range steps {
		running.Go(func() { spent[w], ops[w] = repeat(step, c.pause, d) })
	}
	running.Wait()
	runtime.ReadMemStats(&after)
	stop()
	total, sum := int64(0), time.Duration(0)
	for w := range steps {
		total += ops[w]
		sum += spent[w]
	}
	c.calls += total
	if after.TotalAlloc-before.TotalAlloc > 1<<20 {
		runtime.GC() // its garbage is not the next one's
	}
	n := float64(total)
	return cost{
		ns:     float64(sum) / n,
		bytes:  float64(after.TotalAlloc-before.TotalAlloc) / n,
		allocs: float64(after.Mallocs-before.Mallocs) / n,
	}, nil
}

// repeat takes steps for d, and returns how long they took and how many operations
// they were.
func repeat(step func() int, pause func(), d time.Duration) (spent time.Duration, ops int64) {
	for d == 0 || spent < d {
		start := time.Now()
		n := step()
		spent += time.Since(start)
		if n == 0 {
			break
		}
		ops += int64(n)
		if pause != nil {
			pause()
		}
	}
	return spent, ops
}
