package store

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/usagekit/usagekit/internal/counter"
	"github.com/usagekit/usagekit/internal/database"
	"github.com/usagekit/usagekit/internal/dbtest"
	"github.com/usagekit/usagekit/store/postgres"
	"github.com/usagekit/usagekit/store/sqlite"
)

// What refuses one name, and whether it is a rule that may be meant to stay.
var refuseOne = map[string]struct {
	on, off string
	rule    bool
}{
	"sqlite/a trigger": {`CREATE TRIGGER never BEFORE INSERT ON usage_metrics WHEN NEW.key = 'feature.bad.used' BEGIN SELECT RAISE(ABORT, 'never'); END`,
		`DROP TRIGGER never`, true},
	"sqlite/a trigger with a mistake": {`CREATE TRIGGER never BEFORE INSERT ON usage_metrics WHEN NEW.key = 'feature.bad.used' BEGIN SELECT json('{'); END`,
		`DROP TRIGGER never`, false},
	"postgres/a CHECK":                      {`ALTER TABLE usage_metrics ADD CONSTRAINT never CHECK (key <> 'feature.bad.used')`, `ALTER TABLE usage_metrics DROP CONSTRAINT never`, true},
	"postgres/a trigger":                    raisesOne("P0001", true),
	"postgres/a trigger that lacks a right": raisesOne("42501", false),
	"postgres/a trigger with a mistake":     raisesOne("XX000", false),
}

func raisesOne(code string, rule bool) struct {
	on, off string
	rule    bool
} {
	return struct {
		on, off string
		rule    bool
	}{`CREATE FUNCTION never() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'never' USING ERRCODE = '` + code + `'; END $$;
CREATE TRIGGER never BEFORE INSERT ON usage_metrics FOR EACH ROW WHEN (NEW.key = 'feature.bad.used') EXECUTE FUNCTION never()`,
		`DROP TRIGGER never ON usage_metrics; DROP FUNCTION never`, rule}
}

// pools opens a database of a kind, as often as it is called.
func pools(t *testing.T, kind string) func() *sqlx.DB {
	t.Helper()
	path, url := filepath.Join(t.TempDir(), "usage.db"), ""
	if kind != "sqlite" {
		if Server == nil {
			t.Skip("PostgreSQL was not tried: make test does")
		}
		url = Server.NewDatabase(t)
	}
	return func() *sqlx.DB {
		t.Helper()
		db, err := sqlite.Open(path)
		if url != "" {
			db, err = postgres.Open(url)
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { db.Close() })
		return db
	}
}

// metricsOf are the totals as the table has them.
func metricsOf(t *testing.T, s *Store) map[string]int64 {
	t.Helper()
	var rows []struct {
		Key   string
		Value int64
	}
	s.list(t, &rows, `SELECT key, value FROM usage_metrics WHERE value <> 0`)
	totals := map[string]int64{}
	for _, r := range rows {
		totals[r.Key] = r.Value
	}
	return totals
}

// refusedLongAgo has what was refused be tried again although others wait.
func refusedLongAgo(s *Store) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for writer, r := range s.refusals {
		r.tried = r.tried.Add(-refusedAgain)
		s.refusals[writer] = r
	}
}

// One name that the database refuses keeps its own writer's batches waiting, in their
// order; those of others are folded, and it is said what waits. Once it is undone, or
// has stood for as long as no mistake does, all are in, once.
func TestARefusedNameKeepsOnlyItsOwnWriterWaiting(t *testing.T) {
	for name, c := range refuseOne {
		for _, stays := range []bool{false, true} {
			if stays && !c.rule {
				continue // nobody means that
			}
			t.Run(name+map[bool]string{true: "/stays", false: "/is undone"}[stays], func(t *testing.T) {
				kind, _, _ := strings.Cut(name, "/")
				s := unstarted(t, pools(t, kind)(), nil)
				opened := time.Now()
				seqs := map[string]int{}
				arrives := func(writer string, names ...string) {
					t.Helper()
					seqs[writer]++
					b := counter.Batch{Opened: opened.UnixMilli()}
					for _, name := range names {
						b.Counts = append(b.Counts, counter.Count{Name: name, N: 1})
					}
					s.exec(t, `INSERT INTO usage_writers (writer, seq, sum, seen) VALUES (?, 0, ?, 4000000000000) ON CONFLICT DO NOTHING`, writer, []byte{})
					s.exec(t, `INSERT INTO usage_inbox (writer, seq, opened, payload) VALUES (?, ?, ?, ?)`, writer, seqs[writer], b.Opened, b.Encode())
				}
				waiting := func(writer string) (n int) {
					t.Helper()
					s.get(t, &n, `SELECT COUNT(*) FROM usage_inbox WHERE writer = ?`, writer)
					return n
				}
				s.exec(t, c.on)
				arrives("a", "feature.bad.used", "feature.a.used")
				arrives("a", "feature.a.used")
				for range 2 {
					arrives("b", "feature.b.used")
					arrives("c", "feature.c.used")
				}
				var err error
				for range 12 {
					if _, err = s.fold(t.Context(), true); waiting("b")+waiting("c") == 0 {
						break
					}
				}
				if n := waiting("b") + waiting("c"); n > 0 || waiting("a") != 2 {
					t.Fatalf("%d batches of others wait, and %d of 2 of its own writer, after 12 folds: %v", n, waiting("a"), err)
				}
				arrives("b", "feature.b.used") // a later one does not wait at all
				leader := false
				s.foldTurn(&leader)
				if waiting("b") > 0 {
					t.Error("one that came later waits")
				}
				if err := s.Stats().Err; err == nil || !strings.Contains(err.Error(), "refuses") {
					t.Errorf("a batch is refused, and Stats.Err is %v", err)
				}
				want := map[string]int64{"feature.b.used": 3, "feature.c.used": 2}
				if got := metricsOf(t, s); !maps.Equal(got, want) {
					t.Errorf("got %v\nwant %v", got, want)
				}
				for _, err := s.Get(t.Context(), "feature.b.used"); err != nil; _, err = s.Get(t.Context(), "feature.b.used") {
					if t.Context().Err() != nil || !errors.Is(err, ErrUnavailable) { // as it is when a server is slow
						t.Fatal(err)
					}
				}
				if through := s.Stats().FoldedThrough; through.After(opened) {
					t.Errorf("complete through %v, and a batch of %v waits", through, opened)
				}
				want["feature.a.used"], want["feature.bad.used"] = 2, 1
				if stays {
					_, _ = s.fold(t.Context(), true)
					stood(s)
					delete(want, "feature.bad.used")
					want["feature.(invalid).used"] = 1
				} else {
					s.exec(t, c.off)
					arrives("b", "feature.b.used")
					want["feature.b.used"]++
					refusedLongAgo(s)
					if _, err := s.fold(t.Context(), true); waiting("a") > 1 {
						t.Errorf("after its pause it was not tried again, for others wait: %v", err)
					}
				}
				for range 30 {
					if _, err = s.fold(t.Context(), true); waiting("a")+waiting("b") == 0 {
						break
					}
				}
				if got := metricsOf(t, s); !maps.Equal(got, want) {
					t.Errorf("in the end: got %v, %v\nwant %v", got, err, want)
				}
				if s.foldTurn(&leader); s.Stats().Err != nil {
					t.Errorf("in the end: Stats.Err is %v", s.Stats().Err)
				}
			})
		}
	}
}

// What is refused slows no fold of others: when it is tried again and refused again, they
// are folded together as before; and once one is folded, so are all others at once.
func TestWhatIsRefusedSlowsNoFold(t *testing.T) {
	for kind, which := range map[string]string{"sqlite": "a trigger with a mistake", "postgres": "a trigger that lacks a right"} {
		t.Run(kind, func(t *testing.T) {
			s := unstarted(t, pools(t, kind)(), nil)
			arrive := func(name string, writers ...string) {
				t.Helper()
				for _, writer := range writers {
					b := counter.Batch{Opened: time.Now().UnixMilli(), Counts: []counter.Count{{Name: name, N: 1}}}
					s.exec(t, `INSERT INTO usage_writers (writer, seq, sum, seen) VALUES (?, 0, ?, 4000000000000)`, writer, []byte{})
					s.exec(t, `INSERT INTO usage_inbox (writer, seq, opened, payload) VALUES (?, 1, ?, ?)`, writer, b.Opened, b.Encode())
				}
			}
			refusedAre := func() int { s.mu.Lock(); defer s.mu.Unlock(); return len(s.refusals) }
			folds := func(want int) {
				t.Helper()
				if f, err := s.fold(t.Context(), true); err != nil || f.batches != want {
					t.Errorf("a fold has %d batches, %v; want %d", f.batches, err, want)
				}
			}
			c := refuseOne[kind+"/"+which]
			s.exec(t, c.on)
			arrive("feature.bad.used", "a", "b", "c")
			for n := 0; refusedAre() < 3; n++ {
				if _, err := s.fold(t.Context(), true); err == nil || n == 20 {
					t.Fatalf("%d are refused after %d folds: %v", refusedAre(), n+1, err)
				}
			}
			s.folding.size = 0 // as it is after some more folds
			arrive("feature.d.used", "d", "e", "f")
			refusedLongAgo(s)
			if f, err := s.fold(t.Context(), true); err == nil {
				t.Fatalf("nothing that is refused was tried again: %+v", f)
			}
			folds(3)
			s.exec(t, c.off)
			folds(1)
			folds(2)
		})
	}
}

// Where even the count of what was dropped is refused beside a name, so that its batch
// can be neither counted nor set aside, the others are folded; at once, where they wait;
// and nothing is said any more when another instance has folded it.
func TestWhatCannotBeSetAsideKeepsOnlyItsOwnWriterWaiting(t *testing.T) {
	for kind, c := range map[string]struct{ on, off string }{
		"sqlite": {`CREATE TRIGGER never BEFORE INSERT ON usage_metrics WHEN NEW.key IN ('feature.bad.used', 'usagekit.counts.dropped') BEGIN SELECT RAISE(ABORT, 'never'); END`,
			`DROP TRIGGER never`},
		"postgres": {`ALTER TABLE usage_metrics ADD CONSTRAINT never CHECK (key NOT IN ('feature.bad.used', 'usagekit.counts.dropped'))`,
			`ALTER TABLE usage_metrics DROP CONSTRAINT never`},
	} {
		t.Run(kind, func(t *testing.T) {
			open := pools(t, kind)
			s, other := unstarted(t, open(), nil), unstarted(t, open(), nil)
			arrives := func(writer string, seq int, name string) {
				t.Helper()
				b := counter.Batch{Opened: time.Now().UnixMilli(), Counts: []counter.Count{{Name: name, N: 1}}}
				s.exec(t, `INSERT INTO usage_writers (writer, seq, sum, seen) VALUES (?, 0, ?, 4000000000000) ON CONFLICT DO NOTHING`, writer, []byte{})
				s.exec(t, `INSERT INTO usage_inbox (writer, seq, opened, payload) VALUES (?, ?, ?, ?)`, writer, seq, b.Opened, b.Encode())
			}
			s.exec(t, c.on)
			arrives("a", 1, "feature.bad.used")
			if _, err := s.fold(t.Context(), true); err == nil {
				t.Fatal("it is folded")
			}
			stood(s)
			for seq := range 8 {
				arrives("b", seq+1, "feature.b.used")
				leader, before := false, int64(seq)
				for n := 0; metricsOf(t, s)["feature.b.used"] == before; n++ {
					s.exec(t, `UPDATE usage_meta SET value = ' 0' WHERE name = 'lease'`)
					wait, _ := s.foldTurn(&leader)
					if folded := metricsOf(t, s)["feature.b.used"] > before; n == 4 || !folded && wait > database.MinBackoff/2 {
						t.Fatalf("batch %d of another writer waits for another %v after %d folds: %v", seq+1, wait, n+1, s.Stats().Err)
					}
				}
				if s.Stats().Err == nil {
					t.Error("a batch is refused, and Stats.Err is nil")
				}
				if seq%2 == 1 { // it is tried again although others wait
					refusedLongAgo(s)
				}
			}
			s.exec(t, c.off)
			foldAll(t, other)
			leader := false
			arrives("b", 9, "feature.b.used")
			s.exec(t, `UPDATE usage_meta SET value = ' 0' WHERE name = 'lease'`)
			s.folding.swept = 0 // sweepEvery later
			if s.foldTurn(&leader); s.Stats().Err != nil {
				t.Errorf("another instance has folded it: %v", s.Stats().Err)
			}
			if got, want := metricsOf(t, s), (map[string]int64{"feature.bad.used": 1, "feature.b.used": 9}); !maps.Equal(got, want) {
				t.Errorf("got %v\nwant %v", got, want)
			}
		})
	}
}

// Flush and Reset of other instances work beside it; and steady counts of theirs do not
// keep it from being tried again.
func TestOthersFlushBesideARefusedName(t *testing.T) {
	for name, c := range refuseOne {
		if !c.rule {
			continue
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			kind, _, _ := strings.Cut(name, "/")
			open := pools(t, kind)
			var stores [2]*Store
			for i := range stores {
				s, err := New(t.Context(), open(), Config{Interval: 50 * time.Millisecond, Logger: slog.New(slog.DiscardHandler)})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = s.Shutdown(dbtest.Context(t)) })
				stores[i] = s
			}
			a, b := stores[0], stores[1]
			a.exec(t, c.on)
			a.Inc("feature.bad.used")
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if err := a.Flush(ctx); err == nil {
				t.Error("a name was flushed that is refused")
			}
			flushed := int64(0)
			flush := func() {
				t.Helper()
				b.Inc("feature.b.used")
				flushed++
				if err := b.Flush(dbtest.Context(t)); err != nil {
					t.Fatalf("another instance's Flush: %v", err)
				}
			}
			for range 3 {
				flush()
			}
			b.Inc("feature.c.used")
			if err := b.Reset(dbtest.Context(t), "feature.c.used"); err != nil {
				t.Errorf("another instance's Reset: %v", err)
			}
			a.exec(t, c.off)
			for deadline := time.Now().Add(time.Minute); ; {
				flush()
				n := metricsOf(t, b)["feature.bad.used"]
				if n == 1 {
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("it was undone, and %d is folded", n)
				}
			}
			want := map[string]int64{"feature.b.used": flushed, "feature.bad.used": 1}
			if got := metricsOf(t, b); !maps.Equal(got, want) {
				t.Errorf("got %v\nwant %v", got, want)
			}
		})
	}
}
