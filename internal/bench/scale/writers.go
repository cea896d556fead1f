package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/usagekit/usagekit/internal/dbtest"
)

// How often writers that send what they can add to all names, and seal, unless a
// batch of theirs waits to be sent. It is how long one may rest between two batches,
// and far less than a batch takes where 32 wait for two cores; more often would cost
// what is to be measured.
const (
	storeEvery  = 5 * time.Millisecond
	upsertEvery = 50 * time.Millisecond
)

// allWriters measures writers that send what they can, all the same names.
func (s settings) allWriters(ctx context.Context, out io.Writer, server *dbtest.Server) error {
	t := newWritersTable(out)
	for _, c := range []struct {
		way   way
		every time.Duration
	}{
		{&stores{interval: storeEvery}, storeEvery},
		{&upserts{interval: upsertEvery}, upsertEvery},
	} {
		if server == nil || !s.wants("writers/%s", c.way.name()) {
			continue
		}
		r, err := s.race(ctx, server, c.way, c.every)
		if err != nil {
			return fmt.Errorf("%d writers, %s: %w", s.writers, c.way.name(), err)
		}
		if err := t.add(r); err != nil {
			return err
		}
	}
	return nil
}

// race has every writer add to all names again and again, every so often, and measures until all
// that was added is in the tables.
func (s settings) race(ctx context.Context, server *dbtest.Server, w way, every time.Duration) (r writersRow, err error) {
	db, err := newDatabase(ctx, server)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, db.drop()) }()
	if err := w.prepare(ctx, db.reader); err != nil {
		return r, err
	}
	writers, _, closePools, err := open(ctx, db, w, s.writers, 0)
	defer func() { err = errors.Join(err, closePools()) }()
	if err != nil {
		return r, err
	}
	before, err := db.read(ctx, w)
	if err != nil {
		return r, err
	}
	names := shared()
	rounds := make([]int64, len(writers))
	var wg sync.WaitGroup
	for i, in := range writers {
		wg.Go(func() {
			for time.Since(before.at) < s.time && sleep(ctx, every) == nil {
				for _, name := range names {
					in.Add(name, 1)
				}
				rounds[i]++
			}
		})
	}
	wg.Wait()
	stopped := time.Since(before.at)
	if _, err := shutdown(ctx, writers); err != nil || ctx.Err() != nil {
		return r, errors.Join(err, ctx.Err())
	}
	after, err := db.read(ctx, w)
	if err != nil {
		return r, err
	}
	want := map[string]int64{}
	for _, n := range rounds {
		for _, name := range names {
			want[name] += n
		}
	}
	r = writersRow{way: w.name(), writers: s.writers, used: after.since(before), rest: after.at.Sub(before.at) - stopped, said: w.said()}
	return r, check(ctx, db, w, want)
}
