package pools

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/usagekit/usagekit/internal/dbtest"
	"github.com/usagekit/usagekit/store"
)

// Stores and another application send statements with the same types of
// parameters over the same three connections. Not one row lands in a table of
// the other's, and all counts are exact.
func TestSharedPgBouncer(t *testing.T) {
	if !canPool(t) {
		return
	}
	t.Run("Stores", func(t *testing.T) {
		url := server.NewDatabase(t)
		pgBouncer := pooled(t, url)
		app := newApplication(t, url, pgBouncer)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		counted := map[string]*atomic.Int64{}
		for i := range 30 {
			counted[fmt.Sprintf("user.%d.requests", i)] = new(atomic.Int64)
			counted[fmt.Sprintf("feature.store%d.used", i%3)] = new(atomic.Int64)
		}
		var stores sync.WaitGroup
		for i, p := range []pool{opened, plain, pgxExec} {
			s, err := store.New(t.Context(), open(t, p, pgBouncer), store.Config{Interval: 5 * time.Millisecond})
			if err != nil {
				t.Fatal(err)
			}
			stores.Go(func() { use(ctx, t, s, fmt.Sprintf("feature.store%d.used", i), counted) })
		}
		app.run(ctx)
		stores.Wait()

		app.check(t)
		if theirs, ours := app.misplaced(t); theirs+ours != 0 {
			t.Errorf("%d rows of the application's are in the stores' tables, %d of the stores' in the application's", theirs, ours)
		}
		want := map[string]int64{}
		for name, n := range counted {
			want[name] = n.Load()
		}
		var totals []struct {
			Key   string
			Value int64
		}
		if err := app.direct.Select(&totals, `SELECT key, value FROM usage_metrics`); err != nil {
			t.Fatal(err)
		}
		got := map[string]int64{}
		for _, row := range totals {
			got[row.Key] = row.Value
		}
		if !maps.Equal(got, want) {
			t.Errorf("totals:\n got %v\nwant %v", got, want)
		}
		if n := app.number(t, `SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()`); n != 3 {
			t.Errorf("PgBouncer has %d connections, want 3", n)
		}
	})

	// The same application beside one that sends what a store sends, but not in a
	// transaction. Rows must go astray, or this test could not see them do so.
	t.Run("OutsideOfTransactions", func(t *testing.T) {
		for _, c := range []struct {
			pool
			ours bool // the second half of our statement may meet the first of theirs
		}{{opened, false}, {plain, true}} {
			url := server.NewDatabase(t)
			pgBouncer := pooled(t, url)
			app := newApplication(t, url, pgBouncer)
			s, err := store.New(t.Context(), app.direct, store.Config{}) // makes the tables
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Shutdown(t.Context()); err != nil {
				t.Fatal(err)
			}
			db := open(t, c.pool, pgBouncer)
			ctx, cancel := context.WithTimeout(t.Context(), dbtest.Limit)
			var running sync.WaitGroup
			running.Go(func() { app.run(ctx) })
			var theirs, ours int64
			for seq := 0; ctx.Err() == nil && (theirs == 0 || ours == 0 && c.ours); seq++ {
				// An error is one more proof, but rows are what is looked for.
				_, _ = db.ExecContext(ctx, `INSERT INTO usage_inbox (writer, seq, opened, payload) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING`, "ours", seq, seq, []byte("ours"))
				if seq%50 == 0 {
					theirs, ours = app.misplaced(t)
				}
			}
			cancel()
			running.Wait()
			if theirs == 0 || ours == 0 && c.ours {
				t.Errorf("%+v: %d rows of the application's went astray, and %d of ours: this test cannot see it", c, theirs, ours)
			}
		}
	})
}

func open(t *testing.T, p pool, url string) *sqlx.DB {
	t.Helper()
	db, err := p.open(url, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// use counts, flushes and reads until ctx ends; own is counted by s alone.
func use(ctx context.Context, t *testing.T, s *store.Store, own string, counted map[string]*atomic.Int64) {
	limit := dbtest.Context(t)
	defer func() {
		if err := s.Shutdown(limit); err != nil {
			t.Error(err)
		}
	}()
	for ctx.Err() == nil {
		for name, n := range counted {
			if name == own || strings.HasPrefix(name, "user.") {
				s.Inc(name)
				n.Add(1)
			}
		}
		if err := s.Flush(limit); err != nil {
			t.Error(err)
			return
		}
		n, err := s.Get(limit, own)
		if want := counted[own].Load(); err == nil && n != want {
			t.Errorf("%s = %d, want %d", own, n, want)
		}
		q := store.Query{Prefix: "user.", Limit: 10}
		_, err1 := s.Totals(limit, q)
		_, err2 := s.Rows(limit, q)
		_, err3 := s.History(limit, q)
		if err := errors.Join(err, err1, err2, err3); err != nil {
			t.Error(err)
			return
		}
	}
}
