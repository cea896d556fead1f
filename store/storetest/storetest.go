// Package storetest gives an application's tests a store.
package storetest

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/usagekit/usagekit/store"
	"github.com/usagekit/usagekit/store/sqlite"
)

// New returns a store on a SQLite file of its own, shut down when the test ends.
// Call its Flush before reading what the test counted.
func New(t testing.TB) *store.Store {
	t.Helper()
	db, err := sqlite.Open(filepath.Join(t.TempDir(), "usage.db"))
	if err != nil {
		t.Fatal(err)
	}
	s, err := store.New(t.Context(), db, store.Config{})
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
