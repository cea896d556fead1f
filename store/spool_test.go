package store_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/usagekit/usagekit/internal/counter"
	"github.com/usagekit/usagekit/internal/dbtest"
	"github.com/usagekit/usagekit/store"
	"github.com/usagekit/usagekit/store/postgres"
	"github.com/usagekit/usagekit/store/sqlite"
)

// A flush must not wait for a fold: here one stands still, with the writer's row
// updated and not committed.
func TestFlushDoesNotWaitForAFold(t *testing.T) {
	if store.Server == nil {
		t.Log("PostgreSQL was not tried: make test does")
		return
	}
	db, err := postgres.Open(store.Server.NewDatabase(t))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	ctx := dbtest.Context(t)
	s, err := store.New(ctx, db, store.Config{Interval: 10 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	s.Inc("feature.a.used")
	if err := s.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	fold, err := db.BeginTxx(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range []string{`SELECT 1 FROM usage_meta WHERE name = 'lease' FOR UPDATE`, `UPDATE usage_writers SET seen = seen + 1`} {
		if _, err := fold.ExecContext(ctx, q); err != nil {
			t.Fatal(err)
		}
	}
	s.Inc("feature.a.used")
	for s.Stats().Pending > 0 && ctx.Err() == nil { // for ever, if it waited
		time.Sleep(time.Millisecond)
	}
	if err := errors.Join(fold.Rollback(), s.Shutdown(ctx)); err != nil {
		t.Error(err)
	}
}

func open(t *testing.T, path string, faults *dbtest.Faults) *sqlx.DB {
	t.Helper()
	pool, err := faults.Open("sqlite", "file:"+path+"?_pragma=busy_timeout(5000)&_pragma=journal_mode(WAL)&_txlock=immediate")
	if err != nil {
		t.Fatal(err)
	}
	db := sqlx.NewDb(pool, "sqlite3")
	t.Cleanup(func() { db.Close() })
	return db
}

// With a spool, Shutdown has nothing to hand over although the database is away, and
// the next start sends what waits there.
func TestSpoolWaitsForTheNextStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // in which a busy machine takes no time
		dir := t.TempDir()
		path, cfg := filepath.Join(dir, "usage.db"), store.Config{Spool: filepath.Join(dir, "spool"), StartOffline: true, Interval: 5 * time.Millisecond}
		ctx := dbtest.Context(t)
		faults := &dbtest.Faults{}
		faults.Set(func(dbtest.Op) dbtest.Fault { return dbtest.Fault{Err: errors.New("connection refused")} })
		for i := range 3 {
			s, err := store.New(ctx, open(t, path, faults), cfg)
			if err != nil {
				t.Fatal(err)
			}
			s.Add("feature.a.used", 10)
			if i == 1 { // one batch on its way, another one begun
				for s.Stats().Err == nil && ctx.Err() == nil {
					time.Sleep(time.Millisecond)
				}
				s.Add("feature.a.used", 5)
			}
			if _, err := s.Get(ctx, "feature.a.used"); !errors.Is(err, store.ErrUnavailable) {
				t.Errorf("Get before the database was reached: %v", err)
			}
			short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
			if err := s.Shutdown(short); err != nil {
				t.Errorf("Shutdown: %v", err)
			}
			cancel()
		}
		faults.Set(nil)
		s, err := store.New(ctx, open(t, path, faults), cfg)
		if err != nil {
			t.Fatal(err)
		}
		s.Inc("feature.a.used")
		for n := int64(0); n != 36; time.Sleep(5 * time.Millisecond) {
			if n, err = s.Get(ctx, "feature.a.used"); n > 36 || ctx.Err() != nil {
				t.Fatalf("counted %d, %v, want 36", n, err)
			}
		}
		if err := s.Shutdown(ctx); err != nil {
			t.Fatal(err)
		}
		if left, err := os.ReadDir(cfg.Spool); len(left) != 0 || err != nil {
			t.Errorf("the spool holds %v, %v", left, err)
		}
	})
}

// A store that started offline in another zone than the database's counts by the
// database's, and says so. What tells windows by a zone at once is refused.
func TestStartOfflineInAnotherZone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // in which a busy machine takes no time
		ctx := dbtest.Context(t)
		kathmandu, err := time.LoadLocation("Asia/Kathmandu")
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "usage.db")
		db, err := sqlite.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		first, err := store.New(ctx, db, store.Config{Interval: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		other, err := store.New(ctx, db, store.Config{Location: kathmandu, StartOffline: true, Interval: 5 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		other.Inc("feature.a.used")
		for sent := 0; (sent == 0 || other.Stats().Err == nil) && ctx.Err() == nil; time.Sleep(time.Millisecond) {
			// and folded, perhaps, by the first
			if err := db.GetContext(ctx, &sent, `SELECT (SELECT COUNT(*) FROM usage_inbox) + (SELECT COUNT(*) FROM usage_metrics)`); err != nil || sent > 1 {
				t.Fatalf("%d batches were sent, %v", sent, err)
			}
		}
		if err := other.Stats().Err; err == nil || !strings.Contains(err.Error(), "Asia/Kathmandu") {
			t.Errorf("Stats.Err: %v", err)
		}
		if zone := other.Location().String(); zone != "UTC" {
			t.Errorf("Location: %s", zone)
		}
		if err := other.Flush(ctx); err != nil {
			t.Errorf("Flush: %v", err)
		}
		hours, err := other.History(ctx, store.Query{Name: "feature.a.used", Step: store.Hour})
		if err != nil || len(hours) != 1 || hours[0].Start.UTC().Minute() != 0 {
			t.Errorf("folded by itself: %v, %v; want one of the database's hours", hours, err)
		}
		if _, err := other.AddNow(ctx, "feature.a.used", 1); err == nil || !strings.Contains(err.Error(), "Asia/Kathmandu") {
			t.Errorf("AddNow: %v", err)
		}
		if _, _, _, err := other.Take(ctx, "quota.7.daily", 1, 1, store.Day); err == nil || !strings.Contains(err.Error(), "Asia/Kathmandu") {
			t.Errorf("Take: %v", err)
		}
		first.Inc("feature.b.used")
		if err := first.Flush(ctx); err != nil {
			t.Fatal(err)
		}
		if n, err := other.Get(ctx, "feature.a.used"); n != 1 || err != nil {
			t.Errorf("Get: %d, %v", n, err)
		}
		start := time.Now()
		if err := errors.Join(other.Shutdown(ctx), first.Shutdown(ctx)); err != nil || time.Since(start) > 20*time.Second {
			t.Errorf("Shutdown: %v, after %v", err, time.Since(start))
		}
	})
}

// A spool that was removed keeps nothing: Shutdown says what is lost.
func TestShutdownAfterTheSpoolWasRemoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // in which a busy machine takes no time
		ctx := dbtest.Context(t)
		dir := t.TempDir()
		faults := &dbtest.Faults{}
		faults.Set(func(dbtest.Op) dbtest.Fault { return dbtest.Fault{Err: errors.New("connection refused")} })
		cfg := store.Config{Spool: filepath.Join(dir, "spool"), StartOffline: true, Interval: 5 * time.Millisecond}
		s, err := store.New(ctx, open(t, filepath.Join(dir, "usage.db"), faults), cfg)
		if err != nil {
			t.Fatal(err)
		}
		s.Add("feature.a.used", 3)
		flush, cancelFlush := context.WithTimeout(ctx, 50*time.Millisecond)
		defer cancelFlush()
		if err := s.Flush(flush); err == nil { // it is sealed now
			t.Error("Flush: no error")
		}
		synctest.Wait() // for the next file, which may be being made
		if err := os.RemoveAll(cfg.Spool); err != nil {
			t.Fatal(err)
		}
		short, cancelShort := context.WithTimeout(ctx, 50*time.Millisecond)
		defer cancelShort()
		var lost *store.UndeliveredError
		if err := s.Shutdown(short); !errors.As(err, &lost) || len(lost.Counts) != 1 || lost.Counts[0].N != 3 {
			t.Errorf("Shutdown: %v", err)
		}
	})
}

// What is wrong with a spool is said by New, if somebody has to put it right, or is
// a reason to count in memory.
func TestSpoolThatCannotBe(t *testing.T) {
	dir := t.TempDir()
	db, err := sqlite.Open(filepath.Join(dir, "usage.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := store.New(t.Context(), db, store.Config{Spool: file}); err == nil || !strings.Contains(err.Error(), "Config.Spool") || !strings.Contains(err.Error(), "want a directory") {
		t.Errorf("New: %v", err)
	}
	if _, err := os.Stat("/proc/version"); err != nil {
		return // no file system at hand that cannot be used
	}
	s, err := store.New(t.Context(), db, store.Config{Spool: "/proc/usagekit"})
	if err != nil {
		t.Fatal(err)
	}
	s.Inc("feature.a.used")
	if why := s.Stats().Degraded; why == "" {
		t.Error("a spool below /proc is not reported")
	} else {
		t.Log(why)
	}
	ctx, cancel := context.WithTimeout(t.Context(), dbtest.Limit)
	defer cancel()
	if err := s.Flush(ctx); err != nil {
		t.Error(err)
	}
	if n, err := s.Get(ctx, "feature.a.used"); n != 1 || err != nil {
		t.Errorf("counted %d, %v", n, err)
	}
	if err := s.Shutdown(ctx); err != nil {
		t.Error(err)
	}
}

// A host whose clock was years behind, killed before it could send anything: its
// counts are in the database in the end, and once.
func TestCountsOfAClockThatWasBehind(t *testing.T) {
	databases := map[string]func(t *testing.T) (*sqlx.DB, error){
		"SQLite": func(t *testing.T) (*sqlx.DB, error) { return sqlite.Open(filepath.Join(t.TempDir(), "usage.db")) },
	}
	if store.Server != nil {
		databases["PostgreSQL"] = func(t *testing.T) (*sqlx.DB, error) { return postgres.Open(store.Server.NewDatabase(t)) }
	}
	for name, openDatabase := range databases {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "spool")
			synctest.Test(t, func(t *testing.T) { // in the year 2000
				disk, err := counter.OpenDisk(dir)
				if err != nil {
					t.Fatal(err)
				}
				spool := counter.NewSpool(disk, strings.Repeat("5", 32), func(bool, string, ...any) {})
				set := counter.New(100, func(string, int64) {}, spool)
				set.Add("feature.a.used", 1000)
				if b, ok := set.Close(); !ok || !b.Spooled {
					t.Fatalf("%+v", b)
				}
				spool.Release()
			})
			db, err := openDatabase(t)
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			ctx, cancel := context.WithTimeout(t.Context(), dbtest.Limit)
			defer cancel()
			for range 2 {
				s, err := store.New(ctx, db, store.Config{Spool: dir, Interval: 5 * time.Millisecond})
				if err != nil {
					t.Fatal(err)
				}
				n := int64(0)
				for ; n == 0 && ctx.Err() == nil; time.Sleep(5 * time.Millisecond) {
					if n, err = s.Get(ctx, "feature.a.used"); err != nil {
						t.Fatal(err)
					}
				}
				if st := s.Stats(); n != 1000 || st.Corrupt != 0 {
					t.Errorf("counted %d; %d files set aside", n, st.Corrupt)
				}
				if err := s.Shutdown(ctx); err != nil {
					t.Error(err)
				}
			}
			if left, err := os.ReadDir(dir); len(left) != 0 || err != nil {
				t.Errorf("the spool holds %v, %v", left, err)
			}
		})
	}
}
