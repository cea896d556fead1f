package store

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/usagekit/usagekit/internal/calendar"
	"github.com/usagekit/usagekit/internal/database"
	"github.com/usagekit/usagekit/internal/naming"
	"github.com/usagekit/usagekit/internal/upkeep"
)

// get reads a row of the store's database.
func (s *Store) get(t testing.TB, dest any, query string, args ...any) {
	t.Helper()
	err := s.db.Direct(t.Context(), database.WriteTimeout, func(ctx context.Context, tx *database.Tx) error {
		return tx.Get(ctx, dest, query, args...)
	})
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
}

// held has an attempt take its connection, until release is called.
func held(t testing.TB, attempt func(context.Context, time.Duration, func(context.Context, *database.Tx) error) error) (release func()) {
	t.Helper()
	holds, done, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- attempt(t.Context(), time.Hour, func(context.Context, *database.Tx) error {
			close(holds)
			<-done
			return nil
		})
	}()
	select {
	case <-holds:
	case err := <-ended:
		t.Fatal(err)
	}
	return func() {
		close(done)
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

// exec changes something in the store's database.
func (s *Store) exec(t testing.TB, query string, args ...any) {
	t.Helper()
	err := s.db.Direct(t.Context(), database.WriteTimeout, func(ctx context.Context, tx *database.Tx) error {
		_, err := tx.Exec(ctx, query, args...)
		return err
	})
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
}

// newPruner removes what is too old, and remembers nothing of what the store's own has.
func (s *Store) newPruner() *upkeep.Pruner {
	return upkeep.NewPruner(s.life.run, s.db, s.clock, s.notifier, s.cfg.Logger)
}

// bucket is one row of history.
type bucket struct {
	Step   calendar.Step
	Bucket int64 // Unix seconds
	Key    string
}

type row struct {
	bucket
	n int64
}

// put adds rows to history.
func (s *Store) put(t *testing.T, rows ...row) {
	t.Helper()
	steps, starts, keys, n := make([]int64, len(rows)), make([]int64, len(rows)), make([]string, len(rows)), make([]int64, len(rows))
	for i, r := range rows {
		steps[i], starts[i], keys[i], n[i] = int64(r.Step), r.Bucket, r.Key, r.n
	}
	err := s.db.Write(t.Context(), database.WriteTimeout, func(ctx context.Context, tx *database.Tx) error {
		return tx.ExecRows(ctx, `INSERT INTO usage_history AS h (step, bucket, key, value) {rows} ON CONFLICT (step, bucket, key) DO UPDATE SET value = h.value + excluded.value`,
			database.List{{Name: "step", Numbers: steps}, {Name: "bucket", Numbers: starts}, {Name: "key", Texts: keys}, {Name: "n", Numbers: n}})
	})
	if err != nil {
		t.Fatal(err)
	}
}

// stepsOf is which steps of history a group has: the finest first.
func stepsOf(group string) [2]calendar.Step {
	if naming.ByMonth(group) {
		return [2]calendar.Step{calendar.Day, calendar.Month}
	}
	return [2]calendar.Step{calendar.Hour, calendar.Day}
}

// unstarted is a store whose loops do not run.
func unstarted(t *testing.T, db *sqlx.DB, err error) *Store {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	s, err := open(t.Context(), db, Config{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// foldAll folds until nothing waits.
func foldAll(t *testing.T, s *Store) {
	t.Helper()
	for range 30 {
		f, err := s.folder.Fold(context.WithoutCancel(t.Context()), true)
		if err == nil && f.Batches == 0 {
			return
		}
	}
	t.Error("30 folds were not enough")
}
