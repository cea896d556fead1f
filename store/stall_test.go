package store_test

import (
	"context"
	"errors"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/usagekit/usagekit/internal/dbtest"
	"github.com/usagekit/usagekit/store"
	"github.com/usagekit/usagekit/store/postgres"
	"github.com/usagekit/usagekit/store/sqlite"
)

// goroutinesReturnTo waits until there are at most n goroutines.
func goroutinesReturnTo(t *testing.T, n int) {
	t.Helper()
	for deadline := time.Now().Add(dbtest.Limit); runtime.NumGoroutine() > n; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			stacks := make([]byte, 1<<20)
			t.Fatalf("%d goroutines, there were %d\n%s", runtime.NumGoroutine(), n, stacks[:runtime.Stack(stacks, true)])
		}
	}
}

// A store needs a handful of goroutines, and leaves none.
func TestGoroutines(t *testing.T) {
	ctx := dbtest.Context(t)
	before := runtime.NumGoroutine()
	db, err := sqlite.Open(filepath.Join(t.TempDir(), "usage.db"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 100 {
		s, err := store.New(ctx, db, store.Config{})
		if err != nil {
			t.Fatal(err)
		}
		s.Inc("feature.a.used")
		if i == 50 {
			goroutinesReturnTo(t, before+10) // those of transactions before may end a moment later
		}
		if err := s.Shutdown(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	goroutinesReturnTo(t, before)
}

// A server that stands still, its connections open: no context's deadline ends
// what lib/pq waits for. Nothing that is called waits with it, few connections
// do, and what was counted meanwhile is there afterwards.
func TestServerStandsStill(t *testing.T) {
	if store.Server == nil {
		t.Log("PostgreSQL was not tried: make test does")
		return
	}
	ctx := dbtest.Context(t)
	server, err := dbtest.Start() // the other one is not this test's to stop
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	before := runtime.NumGoroutine()
	db, err := postgres.Open(server.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	s, err := store.New(ctx, db, store.Config{Interval: 10 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	within := func(limit time.Duration, what string, f func(ctx context.Context) error) error {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		start := time.Now()
		err := f(ctx)
		t.Logf("%s took %v, its context %v", what, time.Since(start).Round(time.Millisecond), limit)
		return err
	}
	s.Inc("feature.a.used")
	if err := s.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	if err := server.Pause(); err != nil {
		t.Fatal(err)
	}
	resumed := false
	defer func() {
		if !resumed {
			_ = server.Resume()
		}
	}()
	s.Add("feature.a.used", 10)
	if err := within(2*time.Second, "Flush", s.Flush); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Flush: %v", err)
	}
	for range 3 {
		err := within(time.Second, "Get", func(ctx context.Context) error { _, err := s.Get(ctx, "feature.a.used"); return err })
		if !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("Get: %v", err)
		}
	}
	if n := db.Stats().OpenConnections; n > 4 {
		t.Errorf("%d connections are held", n)
	}
	if err := server.Resume(); err != nil {
		t.Fatal(err)
	}
	resumed = true
	if err := s.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	if n, err := s.Get(ctx, "feature.a.used"); n != 11 || err != nil {
		t.Errorf("counted %d, %v; want 11", n, err)
	}

	if err := server.Pause(); err != nil {
		t.Fatal(err)
	}
	resumed = false
	s.Add("feature.b.used", 3)
	err = within(2*time.Second, "Shutdown", s.Shutdown)
	var lost *store.UndeliveredError
	if !errors.As(err, &lost) || len(lost.Counts) != 1 || lost.Counts[0].Name != "feature.b.used" || lost.Counts[0].N != 3 {
		t.Errorf("Shutdown: %v", err)
	}
	if err := server.Resume(); err != nil {
		t.Fatal(err)
	}
	resumed = true
	if err := db.Close(); err != nil {
		t.Error(err)
	}
	goroutinesReturnTo(t, before)
}

// A database that never answers keeps nobody beyond a context, and no Add at all.
func TestCallsEndWithTheirContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		faults := &dbtest.Faults{}
		s, err := store.New(t.Context(), open(t, filepath.Join(t.TempDir(), "usage.db"), faults), store.Config{Interval: 10 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		answer := make(chan struct{})
		faults.Set(func(dbtest.Op) dbtest.Fault {
			<-answer
			return dbtest.Fault{Err: errors.New("connection reset by peer")}
		})
		within := func(limit time.Duration, what string, f func(ctx context.Context) error) error {
			t.Helper()
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			start := time.Now()
			err := f(ctx)
			if took := time.Since(start); took != limit {
				t.Errorf("%s took %v, its context %v", what, took, limit)
			}
			return err
		}
		start := time.Now()
		s.Add("feature.a.used", 3)
		if took := time.Since(start); took != 0 {
			t.Errorf("Add took %v", took)
		}
		if err := within(2*time.Second, "Flush", s.Flush); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Flush: %v", err)
		}
		if err := within(time.Second, "Get", func(ctx context.Context) error { _, err := s.Get(ctx, "feature.a.used"); return err }); !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("Get: %v", err)
		}
		var lost *store.UndeliveredError
		if err := within(2*time.Second, "Shutdown", s.Shutdown); !errors.As(err, &lost) || len(lost.Counts) != 1 || lost.Counts[0].N != 3 {
			t.Errorf("Shutdown: %v", err)
		}
		close(answer)
	})
}

// A name that the database's encoding lacks would take its whole batch along.
func TestEncodingMustBeUTF8(t *testing.T) {
	if store.Server == nil {
		t.Log("PostgreSQL was not tried: make test does")
		return
	}
	ctx := dbtest.Context(t)
	db, err := postgres.Open(store.Server.NewDatabase(t, "ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := store.New(ctx, db, store.Config{}); err == nil || !strings.Contains(err.Error(), "LATIN1") {
		t.Errorf("New: %v", err)
	}
}
