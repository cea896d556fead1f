package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/usagekit/usagekit/internal/dbtest"
)

const (
	maxWarm  = 5 * time.Second
	endLimit = 5 * time.Minute // for all that is left to come into the tables
)

// allInstances measures instances that count at an everyday pace.
func (s settings) allInstances(ctx context.Context, out io.Writer, server *dbtest.Server) error {
	t := newInstancesTable(out)
	for _, n := range s.instances {
		for _, w := range []way{&stores{}, &upserts{interval: time.Second, patience: max(4*s.time, time.Minute)}} {
			if server == nil || !s.wants("instances/%d/%s", n, w.name()) {
				continue
			}
			r, err := s.fleet(ctx, server, w, n)
			if r.way != "" { // what is wrong has its row, too
				err = errors.Join(err, t.add(r))
			}
			if err != nil {
				return fmt.Errorf("%d instances, %s: %w", n, w.name(), err)
			}
		}
	}
	return nil
}

// fleet measures n instances on a database of their own, and checks what they
// counted.
func (s settings) fleet(ctx context.Context, server *dbtest.Server, w way, n int) (r instancesRow, err error) {
	db, err := newDatabase(ctx, server)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, db.drop()) }()
	if err := w.prepare(ctx, db.reader); err != nil {
		return r, err
	}
	instances, share, closePools, err := open(ctx, db, w, n, min(s.time, time.Second))
	defer func() { err = errors.Join(err, closePools()) }()
	if err != nil {
		return r, err
	}
	m := &markers{pending: map[string]time.Time{}}
	l := newLoad(instances, m)
	go l.run()
	r, err = s.observe(ctx, db, w, l)
	want := l.end()
	r.instances, r.share, r.late = n, share, l.late
	start := time.Now()
	givenUp, ended := shutdown(ctx, instances)
	r.end, r.givenUp, r.said = time.Since(start), givenUp, w.said()
	if err = errors.Join(err, ended); err != nil || givenUp {
		return r, err
	}
	return r, check(ctx, db, w, want)
}

// observe measures what goes on for a while, once it is warm.
func (s settings) observe(ctx context.Context, db *database, w way, l *load) (r instancesRow, err error) {
	if err := sleep(ctx, min(s.time, maxWarm)); err != nil {
		return r, err
	}
	stop, done := make(chan struct{}), make(chan error, 1)
	eye := &watch{db: db, way: w, markers: l.markers}
	before, err := db.read(ctx, w)
	if err != nil {
		return r, err
	}
	adds := l.adds.Load()
	l.marking.Store(true)
	go func() { done <- eye.run(ctx, stop, s.time) }()
	err = sleep(ctx, s.time)
	l.marking.Store(false)
	adds = l.adds.Load() - adds
	after, readErr := db.read(ctx, w)
	close(stop)
	if err = errors.Join(err, <-done, readErr); err != nil {
		return r, err
	}
	return instancesRow{
		way: w.name(), used: after.since(before), adds: adds,
		took: l.markers.took, unseen: eye.unseen, rows: eye.rows, bytes: eye.bytes, batchBytes: w.batchBytes(),
	}, nil
}

// open opens n instances in the course of a time, so that they do not all flush at
// once, on as many pools of two connections as the server takes.
func open(ctx context.Context, db *database, w way, n int, over time.Duration) (instances []instance, share int, closePools func() error, err error) {
	var pools []*sqlx.DB
	closePools = func() (err error) {
		for _, p := range pools {
			err = errors.Join(err, p.Close())
		}
		return err
	}
	most := max(1, db.room/2)
	share = (n + most - 1) / most
	start := time.Now()
	for i := range n {
		if i%share == 0 {
			p, err := w.pool(db.url)
			if err != nil {
				return nil, 0, closePools, err
			}
			p.SetMaxOpenConns(2)
			pools = append(pools, p)
		}
		if err := sleep(ctx, time.Until(start.Add(over*time.Duration(i)/time.Duration(n)))); err != nil {
			return nil, 0, closePools, err
		}
		in, err := w.open(ctx, pools[len(pools)-1])
		if err != nil {
			_, ended := shutdown(ctx, instances)
			return nil, 0, closePools, errors.Join(err, ended)
		}
		instances = append(instances, in)
	}
	return instances, share, closePools, nil
}

// shutdown ends all instances, at once, as a new release does; givenUp is that of one
// or more.
func shutdown(ctx context.Context, instances []instance) (givenUp bool, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endLimit)
	defer cancel()
	var wg sync.WaitGroup
	errs := make([]error, len(instances))
	for i, in := range instances {
		wg.Go(func() { errs[i] = in.Shutdown(ctx) })
	}
	wg.Wait()
	for i, err := range errs {
		if errors.Is(err, errGivenUp) {
			errs[i], givenUp = nil, true
		}
	}
	return givenUp, errors.Join(errs...)
}

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
