package conformance

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/usagekit/usagekit/internal/dbtest"
	"github.com/usagekit/usagekit/store"
)

// down makes every operation fail.
func down(dbtest.Op) dbtest.Fault {
	return dbtest.Fault{Err: errors.New("connection refused")}
}

// A database that goes away costs freshness, and nothing else.
func databaseAway(t *testing.T, b *bench) {
	faults := &dbtest.Faults{}
	cfg := b.config()
	cfg.Interval = time.Millisecond
	s := b.storeOn(b.pool(faults), cfg)
	s.Inc("feature.a.used")
	b.flush(s)

	faults.Set(down)
	s.Add("feature.a.used", 10)
	b.until(func() bool { return s.Stats().Err != nil })
	ctx, cancel := context.WithTimeout(b.ctx, time.Second)
	defer cancel()
	if err := s.Flush(ctx); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("Flush: %v, want the deadline and ErrUnavailable", err)
	}
	if _, err := s.Get(b.ctx, "feature.a.used"); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("Get: %v, want ErrUnavailable", err)
	}
	if st := s.Stats(); st.Err == nil || st.Pending != 1 || st.Oldest.IsZero() {
		t.Errorf("Stats while it is away: %+v", st)
	}
	s.Add("feature.a.used", 100)
	if n := b.reported("level=WARN", 1); n != 1 {
		t.Errorf("%d warnings while it was away, want 1", n)
	}
	faults.Set(nil)
	b.flush(s)
	b.want(s, map[string]int64{"feature.a.used": 111})
	if st := s.Stats(); st.Pending != 0 || !st.Oldest.IsZero() {
		t.Errorf("Stats after its return: %+v", st)
	}
}

// Shutdown keeps to its context, and says by name what is lost.
func shutdownUndelivered(t *testing.T, b *bench) {
	faults := &dbtest.Faults{}
	s, err := store.New(b.ctx, b.pool(faults), b.config())
	if err != nil {
		t.Fatal(err)
	}
	faults.Set(down)
	s.Add("feature.a.used", 3)
	flushing, cancelFlush := context.WithTimeout(b.ctx, 50*time.Millisecond)
	defer cancelFlush()
	if err := s.Flush(flushing); err == nil {
		t.Error("Flush: no error")
	}
	b.until(func() bool { return s.Stats().Err != nil })
	s.Add("feature.a.used", 4) // another generation
	s.Inc("feature.b.used")
	ctx, cancel := context.WithTimeout(b.ctx, 200*time.Millisecond)
	defer cancel()
	err = s.Shutdown(ctx)
	var lost *store.UndeliveredError
	if !errors.As(err, &lost) || len(lost.Counts) != 2 || lost.Counts[0].Name != "feature.a.used" || lost.Counts[0].N != 7 || lost.Counts[1].N != 1 {
		t.Fatalf("Shutdown: %v, %+v", err, lost)
	}
	if !errors.Is(err, store.ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the error does not say why: %v", err)
	}
	if again := s.Shutdown(b.ctx); !errors.Is(again, err) {
		t.Errorf("the second Shutdown: %v", again)
	}
	s.Inc("feature.c.used")
	if st := s.Stats(); st.Lost != 1 {
		t.Errorf("Lost = %d, want 1", st.Lost)
	}
}

// A pool of one connection is enough, and two are the most that a store takes.
func poolOfOne(t *testing.T, b *bench) {
	for _, limit := range []int{1, 0} {
		db := b.pool(nil)
		db.SetMaxOpenConns(limit)
		db.SetMaxIdleConns(100) // so that none is closed that was ever open
		cfg := b.config()
		cfg.Interval = time.Millisecond
		s := b.storeOn(db, cfg)
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for range 20 {
					s.Inc("feature.a.used")
					if err := b.patiently(func() error {
						_, err := s.Totals(b.ctx, store.Query{})
						return err
					}); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		b.flush(s)
		if open := db.Stats().OpenConnections; open > 2 {
			t.Errorf("%d connections", open)
		}
	}
}

// A Flush that comes too late says so, and does not try for ever.
func flushAfterShutdown(t *testing.T, b *bench) {
	db := b.pool(nil)
	s := b.storeOn(db, b.config())
	s.Inc("feature.a.used")
	if err := s.Shutdown(b.ctx); err != nil {
		t.Fatal(err)
	}
	if err := s.Flush(b.ctx); err != nil {
		t.Errorf("with nothing left to do: %v", err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Flush(b.ctx); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("without a database: %v", err)
	}
}

// What is counted while the store stops is in the database, or counted as lost;
// and a store leaves nothing behind.
func startAndStop(t *testing.T, b *bench) {
	db := b.pool(nil)
	var added, lost int64
	for range 50 {
		s, err := store.New(b.ctx, db, b.config())
		if err != nil {
			t.Fatal(err)
		}
		var half, all sync.WaitGroup
		half.Add(3)
		for range 3 {
			all.Go(func() {
				for i := range 200 {
					s.Inc("feature.a.used")
					if i == 50 {
						half.Done()
						half.Wait()
					}
				}
			})
		}
		half.Wait()
		for range 2 {
			all.Go(func() {
				if err := s.Shutdown(b.ctx); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		added, lost = added+600, lost+s.Stats().Lost
	}
	if open := db.Stats().InUse; open != 0 {
		t.Errorf("%d connections are kept", open)
	}
	b.want(b.store(b.config()), map[string]int64{"feature.a.used": added - lost})
	t.Logf("%d of %d came after the end", lost, added)
}

// Every statement stands between BEGIN and its end: a connection pooler may give
// one outside to another client's session.
func everythingInTransactions(t *testing.T, b *bench) {
	faults := &dbtest.Faults{}
	db := b.pool(faults)
	db.SetMaxOpenConns(1)
	var mu sync.Mutex
	inside, statements := false, 0
	faults.Set(func(op dbtest.Op) dbtest.Fault {
		mu.Lock()
		defer mu.Unlock()
		switch op.Kind {
		case dbtest.Begin:
			inside = true
		case dbtest.Commit, dbtest.Rollback:
			inside = false
		case dbtest.Exec, dbtest.Query:
			statements++
			if !inside {
				t.Errorf("outside of a transaction: %s", op.Query)
			}
		}
		return dbtest.Fault{}
	})
	s, err := store.New(b.ctx, db, b.config())
	if err != nil {
		t.Fatal(err)
	}
	s.Inc("user.1.requests")
	b.flush(s)
	q := store.Query{Prefix: "user.", Limit: 5}
	_, err1 := s.Totals(b.ctx, q)
	_, err2 := s.Rows(b.ctx, q)
	_, err3 := s.History(b.ctx, q)
	_, err4 := s.Get(b.ctx, "user.active.daily")
	if err := errors.Join(err1, err2, err3, err4, s.Shutdown(b.ctx)); err != nil {
		t.Error(err)
	}
	if statements < 20 {
		t.Errorf("only %d statements were seen", statements)
	}
}

// A connection that gave an error is not used again: a driver may take it for
// sound although it is not.
func noConnectionAfterAnError(t *testing.T, b *bench) {
	faults := &dbtest.Faults{}
	db := b.pool(faults)
	db.SetMaxOpenConns(1) // no other one stands by
	s := b.storeOn(db, b.config())
	if _, err := s.Get(b.ctx, "a.b"); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	failed, connected := false, false
	faults.Set(func(op dbtest.Op) dbtest.Fault {
		mu.Lock()
		defer mu.Unlock()
		connected = connected || failed && op.Kind == dbtest.Connect
		if op.Kind == dbtest.Query && !failed {
			failed = true
			return dbtest.Fault{Err: errors.New("something odd")}
		}
		return dbtest.Fault{}
	})
	_, _ = s.Get(b.ctx, "a.b") // it may be another's query that failed
	_, err := s.Get(b.ctx, "a.b")
	faults.Set(nil)
	if err != nil || !connected {
		t.Errorf("Get: %v; a new connection: %v", err, connected)
	}
}

func manyStarts(t *testing.T, b *bench) {
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			db, err := b.open(nil)
			if err != nil {
				t.Error(err)
				return
			}
			defer db.Close()
			s, err := store.New(b.ctx, db, b.config())
			if err != nil {
				t.Error(err)
				return
			}
			s.Inc("feature.a.used")
			if err := s.Shutdown(b.ctx); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	b.want(b.store(b.config()), map[string]int64{"feature.a.used": 8})
	if n := b.number(`SELECT COUNT(*) FROM usage_meta WHERE name = 'id'`); n != 1 {
		t.Errorf("%d database ids", n)
	}
}

// The table that usagekit descends from is taken over with its rows.
func adopts(t *testing.T, b *bench) {
	b.exec(`CREATE TABLE usage_metrics (key VARCHAR(64) PRIMARY KEY, value INTEGER DEFAULT 0)`)
	b.exec(`INSERT INTO usage_metrics (key, value) VALUES ('api.requests..novels.1', 7), ('api.requests.total', 40), ('feature.a.used', 5), ('user.active.daily', 3)`)
	s := b.store(b.config())
	long := "user." + strings.Repeat("x", 100) + ".requests"
	s.Inc(long)
	s.Add("feature.a.used", 1<<40)
	s.Add("api.GET /novels/{id}.requests", 2)
	b.flush(s)
	b.want(s, map[string]int64{
		"api.requests..novels.1": 7, "api.requests.total": 42, "feature.a.used": 1<<40 + 5, "feature.b.used": 0, long: 1,
		"user.active.daily": 1, "api.requests.today": 2,
	})
	again := b.store(b.config()) // finds it current
	b.want(again, map[string]int64{"feature.a.used": 1<<40 + 5})
}

func otherZone(t *testing.T, b *bench) {
	kathmandu, err := time.LoadLocation("Asia/Kathmandu")
	if err != nil {
		t.Fatal(err)
	}
	cfg := b.config()
	cfg.Location = kathmandu
	first := b.store(cfg)
	first.Inc("feature.a.used")
	b.flush(first)
	second := b.store(b.config())
	if got := second.Location().String(); got != "Asia/Kathmandu" {
		t.Errorf("a store without Location uses %s", got)
	}
	cfg.Location = time.UTC
	_, err = store.New(b.ctx, b.pool(nil), cfg)
	if err == nil || !strings.Contains(err.Error(), "Config.Location") || !strings.Contains(err.Error(), "Asia/Kathmandu") || errors.Is(err, store.ErrUnavailable) {
		t.Errorf("another zone: %v", err)
	}
	// As README says that it is changed: with every instance stopped, as one might
	// fold what the next one sends.
	if err := errors.Join(first.Shutdown(b.ctx), second.Shutdown(b.ctx)); err != nil {
		t.Fatal(err)
	}
	b.exec(`UPDATE usage_meta SET value = 'UTC' WHERE name = 'zone'`)
	s := b.store(cfg)
	s.Inc("feature.a.used")
	b.flush(s)
	b.want(s, map[string]int64{"feature.a.used": 2})
	h, err := s.History(b.ctx, store.Query{Name: "feature.a.used", Step: store.Day})
	sum := int64(0)
	for _, c := range h {
		sum += c.N
		if c.Start.Unix()%86400 != 0 {
			t.Errorf("a day begins at %v", c.Start)
		}
	}
	if err != nil || sum != 2 { // of one day or two
		t.Errorf("History: %v, %v", h, err)
	}
}

// The log says once where the counts go and for how long they are kept, and once how
// it ended. Neither line holds an address or a password.
func oneLine(t *testing.T, b *bench) {
	cfg := b.config()
	cfg.Spool = t.TempDir()
	cfg.Retention = store.Retention{UserDaily: -1}
	db := b.pool(nil)
	s, err := store.New(b.ctx, db, cfg)
	if err != nil {
		t.Fatal(err)
	}
	s.Inc("feature.a.used")
	if err := s.Shutdown(b.ctx); err != nil {
		t.Fatal(err)
	}
	if err := s.Shutdown(b.ctx); err != nil {
		t.Fatal(err)
	}
	logged := b.logs.String()
	if n := strings.Count(logged, "usagekit: counting"); n != 1 || strings.Count(logged, "usagekit: stopped") != 1 || strings.Count(logged, "\n") != 2 {
		t.Errorf("it logged %q", logged)
	}
	product := "PostgreSQL "
	if b.d.Name == "sqlite" {
		product = "SQLite "
	}
	for _, want := range []string{"level=INFO", "version=", `database="` + product, "zone=UTC", "spool=" + cfg.Spool, `hours="35 days"`, `days="400 days"`, `users="for ever"`, "undelivered=0"} {
		if !strings.Contains(logged, want) {
			t.Errorf("no %s in %q", want, logged)
		}
	}
	if strings.Contains(logged, "postgres@") || strings.Contains(logged, "://") {
		t.Errorf("an address in %q", logged)
	}
}
