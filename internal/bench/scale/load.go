package main

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"sync/atomic"
	"time"
)

const (
	sharedNames = 500 // of all instances
	ownNames    = 50  // of each
	ticks       = 50  // a second
	perTick     = (sharedNames + ownNames) / ticks
	tick        = time.Second / ticks
)

// load adds to every name of every instance once a second, a few names of each
// instance at a time. It is one goroutine: what it added is exact, and it costs
// little beside what it measures.
type load struct {
	instances []instance
	names     []string   // that all share
	own       [][]string // of each instance
	sums      []int64    // of names
	ownSums   [][]int64
	markers   *markers
	marking   atomic.Bool // adds markers, too
	adds      atomic.Int64
	late      time.Duration // at most, behind its own clock
	stop      chan struct{}
	stopped   chan struct{}
}

func newLoad(instances []instance, m *markers) *load {
	l := &load{
		instances: instances, names: shared(), sums: make([]int64, sharedNames), markers: m,
		stop: make(chan struct{}), stopped: make(chan struct{}),
	}
	for i := range instances {
		own := make([]string, ownNames)
		for j := range own {
			own[j] = fmt.Sprintf("feature.own%d_%d.used", i, j)
		}
		l.own, l.ownSums = append(l.own, own), append(l.ownSums, make([]int64, ownNames))
	}
	return l
}

func shared() []string {
	names := make([]string, sharedNames)
	for i := range names {
		names[i] = fmt.Sprintf("feature.shared%d.used", i)
	}
	return names
}

func (l *load) run() {
	defer close(l.stopped)
	start := time.Now()
	for at := 0; ; at++ {
		due := start.Add(time.Duration(at) * tick)
		if wait := time.Until(due); wait > 0 { // else no timer, which on a busy machine is late again
			time.Sleep(wait)
		}
		select {
		case <-l.stop:
			return
		default:
		}
		late := time.Since(due)
		if l.late = max(l.late, late); late > time.Second {
			start = start.Add(late) // it cannot keep up: adds/s tells
		}
		l.add(at)
	}
}

// add makes the calls of one tick. Each instance is somewhere else in its names.
func (l *load) add(at int) {
	n := int64(1 + at%100)
	for i, in := range l.instances {
		for k := range perTick {
			j := ((at+7*i)*perTick + k) % (sharedNames + ownNames)
			if j < sharedNames {
				in.Add(l.names[j], n)
				l.sums[j] += n
			} else {
				in.Add(l.own[i][j-sharedNames], n)
				l.ownSums[i][j-sharedNames] += n
			}
		}
	}
	l.adds.Add(int64(len(l.instances) * perTick))
	if l.marking.Load() && at%2 == 0 {
		l.markers.add(l.instances[rand.N(len(l.instances))])
	}
}

// end stops it, and returns what was added.
func (l *load) end() map[string]int64 {
	close(l.stop)
	<-l.stopped
	all := maps.Collect(l.markers.added())
	for i, name := range l.names {
		all[name] = l.sums[i]
	}
	for i, own := range l.own {
		for j, name := range own {
			all[name] = l.ownSums[i][j]
		}
	}
	maps.DeleteFunc(all, func(_ string, n int64) bool { return n == 0 })
	return all
}
