package main

import (
	"context"
	"fmt"
	"iter"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/lib/pq"
)

const (
	lookEvery   = 25 * time.Millisecond
	sampleEvery = 500 * time.Millisecond
)

// markers are names that are added to once, each in some instance, to see how long
// that takes to be seen.
type markers struct {
	mu      sync.Mutex
	n       int
	pending map[string]time.Time
	took    []time.Duration
}

func markerName(i int) string { return fmt.Sprintf("feature.marker%d.seen", i) }

func (m *markers) add(in instance) {
	m.mu.Lock()
	name := markerName(m.n)
	m.n++
	m.pending[name] = time.Now()
	m.mu.Unlock()
	in.Add(name, 1)
}

func (m *markers) added() iter.Seq2[string, int64] {
	return func(yield func(string, int64) bool) {
		for i := range m.n {
			if !yield(markerName(i), 1) {
				return
			}
		}
	}
}

func (m *markers) names() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Collect(maps.Keys(m.pending))
}

func (m *markers) seen(names []string, at time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, name := range names {
		m.took = append(m.took, at.Sub(m.pending[name]))
		delete(m.pending, name)
	}
}

// watch is a reader: it looks for the markers, and at what waits. One connection
// of its own does both.
type watch struct {
	db          *database
	way         way
	markers     *markers
	rows, bytes []int64 // of what waits
	unseen      int     // markers
}

// run looks until stop is closed, and on until all markers are seen, for twice patience
// at most: of those that are not, it counts how long they have waited.
func (w *watch) run(ctx context.Context, stop <-chan struct{}, patience time.Duration) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	var sampled, stopped time.Time
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		names := w.markers.names()
		if stopped.IsZero() {
			select {
			case <-stop:
				stopped = time.Now()
			default:
				if time.Since(sampled) >= sampleEvery {
					sampled = time.Now()
					if err := w.sample(ctx); err != nil {
						return err
					}
				}
			}
		} else if len(names) == 0 {
			return nil
		} else if time.Since(stopped) > 2*patience {
			w.unseen = len(names)
			w.markers.seen(names, time.Now())
			return nil
		}
		if err := w.look(ctx, names); err != nil {
			return err
		}
	}
}

func (w *watch) look(ctx context.Context, names []string) error {
	if len(names) == 0 {
		return nil
	}
	var found []string
	if err := w.db.reader.SelectContext(ctx, &found, `SELECT key FROM `+w.way.table()+` WHERE key = ANY($1)`, pq.Array(names)); err != nil {
		return fmt.Errorf("looking for the markers: %w", err)
	}
	w.markers.seen(found, time.Now())
	return nil
}

func (w *watch) sample(ctx context.Context) error {
	rows, bytes, ok, err := w.way.waiting(ctx, w.db.reader)
	if ok && err == nil {
		w.rows, w.bytes = append(w.rows, rows), append(w.bytes, bytes)
	}
	return err
}
