package store

import (
	"context"
	"testing"
	"time"

	"github.com/usagekit/usagekit/internal/database"
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

// list reads rows of it, into a slice.
func (s *Store) list(t testing.TB, dest any, query string, args ...any) {
	t.Helper()
	err := s.db.Direct(t.Context(), database.WriteTimeout, func(ctx context.Context, tx *database.Tx) error {
		return tx.Select(ctx, dest, query, args...)
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
	return upkeep.NewPruner(s.run, s.db, s.clock, s.notifier, s.log)
}
