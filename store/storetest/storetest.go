// Package storetest gives an application's tests a store.
package storetest

import (
	"context"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/usagekit/usagekit/store"
	"github.com/usagekit/usagekit/store/sqlite"
)

// New returns a store on a SQLite file of its own, shut down when the test ends. It
// logs to the test's output.
// Call its Flush before reading what the test counted.
func New(t testing.TB) *store.Store {
	t.Helper()
	db, err := sqlite.Open(filepath.Join(t.TempDir(), "usage.db"))
	if err != nil {
		t.Fatal(err)
	}
	s, err := store.New(t.Context(), db, store.Config{Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		db.Close()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}
