package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/usagekit/usagekit/internal/dbtest"
	"github.com/usagekit/usagekit/store"
	"github.com/usagekit/usagekit/store/sqlite"
)

const liteRounds = 3

// lite measures the fold of one large batch into a SQLite file.
func (s settings) lite(ctx context.Context, out io.Writer, _ *dbtest.Server) (err error) {
	if !s.wants("sqlite") {
		return nil
	}
	dir, err := os.MkdirTemp("", "usagekit-scale-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	pool, err := sqlite.Open(filepath.Join(dir, "usage.db"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, pool.Close()) }()
	u, err := store.New(ctx, pool, store.Config{Interval: time.Hour, MaxNames: s.names})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, u.Shutdown(context.WithoutCancel(ctx))) }()
	names := make([]string, s.names)
	want := map[string]int64{}
	for i := range names {
		names[i] = fmt.Sprintf("feature.f%d.used", i)
		want[names[i]] = 1 + liteRounds
	}
	t := newLiteTable(out)
	first, err := flush(ctx, u, names)
	if err != nil {
		return fmt.Errorf("sqlite: %w", err)
	}
	t.add("new names", s.names, first)
	var again []flushed
	for range liteRounds {
		f, err := flush(ctx, u, names)
		if err != nil {
			return fmt.Errorf("sqlite: %w", err)
		}
		again = append(again, f)
	}
	slices.SortFunc(again, func(a, b flushed) int { return int(a.fold - b.fold) })
	t.add(fmt.Sprintf("the same again, median of %d", liteRounds), s.names, again[liteRounds/2])
	if err := t.Flush(); err != nil {
		return err
	}
	return check(ctx, &database{reader: pool}, &stores{}, want)
}

// flushed is how long a batch took: all of it, and from when it was stored.
type flushed struct{ all, fold time.Duration }

// flush adds to all names, and brings that into the tables.
func flush(ctx context.Context, u *store.Store, names []string) (f flushed, err error) {
	for _, name := range names {
		u.Add(name, 1)
	}
	start := time.Now()
	stop, stored := make(chan struct{}), make(chan time.Time)
	go func() {
		for u.Stats().Pending > 0 {
			select {
			case <-time.After(time.Millisecond):
			case <-stop:
			}
		}
		stored <- time.Now()
	}()
	err = u.Flush(ctx)
	end := time.Now()
	close(stop)
	if err != nil {
		return f, err
	}
	return flushed{end.Sub(start), end.Sub(<-stored)}, nil
}
