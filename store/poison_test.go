package store

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/usagekit/usagekit/internal/counter"
	"github.com/usagekit/usagekit/internal/dbtest"
	"github.com/usagekit/usagekit/internal/naming"
	"github.com/usagekit/usagekit/store/postgres"
	"github.com/usagekit/usagekit/store/sqlite"
)

// rule is something by which an operator has a table refuse what is counted.
type rule struct{ name, on, off string }

func trigger(code string) rule {
	return rule{"a trigger that raises " + code,
		`CREATE FUNCTION never() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'never' USING ERRCODE = '` + code + `'; END $$;
CREATE TRIGGER never BEFORE INSERT ON usage_history FOR EACH ROW EXECUTE FUNCTION never()`,
		`DROP TRIGGER never ON usage_history; DROP FUNCTION never`}
}

var rulesOfPostgres = []rule{
	{"a CHECK", `ALTER TABLE usage_metrics ADD CONSTRAINT none CHECK (key NOT LIKE 'user.%') NOT VALID`, `ALTER TABLE usage_metrics DROP CONSTRAINT none`},
	{"a missing partition", `ALTER TABLE usage_history RENAME TO whole; CREATE TABLE usage_history (LIKE whole INCLUDING ALL) PARTITION BY RANGE (bucket)`, `CREATE TABLE part PARTITION OF usage_history DEFAULT`},
	{"a column that must be given", `ALTER TABLE usage_history ADD tenant TEXT NOT NULL`, `ALTER TABLE usage_history DROP tenant`},
	{"a domain", `CREATE DOMAIN short AS TEXT COLLATE "C" CHECK (value NOT LIKE 'user.%'); ALTER TABLE usage_metrics ALTER key TYPE short`, `ALTER TABLE usage_metrics ALTER key TYPE TEXT COLLATE "C"; DROP DOMAIN short`},
	{"a unique value", `CREATE UNIQUE INDEX once ON usage_metrics (value)`, `DROP INDEX once`},
	{"a foreign key", `CREATE TABLE names (key TEXT COLLATE "C" PRIMARY KEY); ALTER TABLE usage_metrics ADD CONSTRAINT named FOREIGN KEY (key) REFERENCES names`, `ALTER TABLE usage_metrics DROP CONSTRAINT named; DROP TABLE names`},
	{"an exclusion", `ALTER TABLE usage_history ADD CONSTRAINT once EXCLUDE (bucket WITH =)`, `ALTER TABLE usage_history DROP CONSTRAINT once`},
	trigger("23514"), trigger("P0001"), trigger("P0004"), trigger("38000"), trigger("09000"), trigger("44000"), trigger("42501"), trigger("XX000"), trigger("XX001"), trigger("55000"),
	{"a trigger of a missing table", `CREATE FUNCTION never() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO nowhere VALUES (1); RETURN NEW; END $$;
CREATE TRIGGER never BEFORE INSERT ON usage_metrics FOR EACH ROW EXECUTE FUNCTION never()`, `DROP TRIGGER never ON usage_metrics; DROP FUNCTION never`},
}

var rulesOfSQLite = []rule{
	{"a trigger", `CREATE TRIGGER never BEFORE INSERT ON usage_history BEGIN SELECT RAISE(ABORT, 'never'); END`, `DROP TRIGGER never`},
	{"a trigger for some", `CREATE TRIGGER never BEFORE INSERT ON usage_metrics WHEN NEW.key LIKE 'user.%' BEGIN SELECT RAISE(FAIL, 'never'); END`, `DROP TRIGGER never`},
	{"a trigger that rolls back", `CREATE TRIGGER never BEFORE INSERT ON usage_metrics BEGIN SELECT RAISE(ROLLBACK, 'never'); END`, `DROP TRIGGER never`},
	{"a trigger of a missing table", `CREATE TRIGGER never BEFORE INSERT ON usage_metrics BEGIN INSERT INTO nowhere VALUES (1); END`, `DROP TRIGGER never`},
	{"a unique value", `CREATE UNIQUE INDEX once ON usage_metrics (value)`, `DROP INDEX once`},
	{"a trigger that wants a number", `CREATE TABLE numbers (n INTEGER CHECK (typeof(n) = 'integer')) STRICT; CREATE TRIGGER never BEFORE INSERT ON usage_metrics BEGIN INSERT INTO numbers VALUES (NEW.key); END`, `DROP TRIGGER never; DROP TABLE numbers`},
}

// each database, with its rules; New's loops do not run: a test folds by itself.
func withRules(t *testing.T, test func(t *testing.T, s *Store, r rule)) {
	t.Helper()
	for _, r := range rulesOfSQLite {
		t.Run("sqlite/"+r.name, func(t *testing.T) {
			db, err := sqlite.Open(filepath.Join(t.TempDir(), "usage.db"))
			test(t, unstarted(t, db, err), r)
		})
	}
	if Server == nil {
		t.Log("PostgreSQL was not tried: make test does")
		return
	}
	url := Server.NewDatabase(t)
	for i, r := range rulesOfPostgres {
		t.Run("postgres/"+r.name, func(t *testing.T) {
			schema := fmt.Sprintf("s%d", i)
			db, err := postgres.Open(url + "&search_path=" + schema) // a schema is made sooner than a database
			if err == nil {
				_, err = db.ExecContext(t.Context(), "CREATE SCHEMA "+schema)
			}
			test(t, unstarted(t, db, err), r)
		})
	}
}

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

// inbox puts three batches of two writers there.
func inbox(t *testing.T, s *Store) {
	t.Helper()
	b := counter.Batch{Opened: time.Now().UnixMilli(), Counts: []counter.Count{{Name: "feature.a.used", N: 1}, {Name: "feature.b.used", N: 1}, {Name: "user.1.requests", N: 1}}}
	for _, w := range []struct {
		writer string
		seq    int
	}{{"v", 1}, {"w", 1}, {"w", 2}} {
		s.exec(t, `INSERT INTO usage_writers (writer, seq, sum, seen) VALUES (?, 0, ?, 4000000000000) ON CONFLICT DO NOTHING`, w.writer, []byte{})
		s.exec(t, `INSERT INTO usage_inbox (writer, seq, opened, payload) VALUES (?, ?, ?, ?)`, w.writer, w.seq, b.Opened, b.Encode())
	}
}

// foldAll folds until nothing waits.
func foldAll(t *testing.T, s *Store) {
	t.Helper()
	for range 30 {
		f, err := s.fold(context.WithoutCancel(t.Context()), true)
		if err == nil && f.batches == 0 {
			return
		}
	}
	t.Error("30 folds were not enough")
}

func totalsWithout(t *testing.T, s *Store, group string) map[string]int64 {
	t.Helper()
	counts, err := s.Totals(t.Context(), Query{Except: []string{group, naming.RequestsToday}})
	if err != nil {
		t.Fatal(err)
	}
	totals := map[string]int64{}
	for _, c := range counts {
		totals[c.Name] = c.N
	}
	var bad int
	if s.get(t, &bad, `SELECT COUNT(*) FROM usage_meta WHERE name LIKE 'bad/%'`); bad > 0 {
		totals["bad"] = int64(bad)
	}
	return totals
}

// What an operator's mistake keeps out waits, whole, until the mistake is undone.
func TestCountsOutlastAnOperatorsMistake(t *testing.T) {
	withRules(t, func(t *testing.T, s *Store, r rule) {
		inbox(t, s)
		s.exec(t, r.on)
		var last error
		defer func() {
			if t.Failed() {
				t.Logf("the last error: %v", last)
			}
		}()
		for range 8 { // three are enough to try one batch alone, again and again
			f, err := s.fold(t.Context(), true)
			if last = err; err == nil {
				t.Fatalf("a fold against %s: %+v", r.name, f)
			}
		}
		s.exec(t, r.off)
		foldAll(t, s)
		want := map[string]int64{"feature.a.used": 3, "feature.b.used": 3, "user.1.requests": 3}
		if got := totalsWithout(t, s, "user.active."); !maps.Equal(got, want) {
			t.Errorf("got %v\nwant %v", got, want)
		}
	})
}

// stood makes what refuses counts a rule that has stood for longer than anybody leaves
// a mistake.
func stood(s *Store) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.folding.refusedSince = s.folding.refusedSince.Add(-refusalPause)
}

// A rule that stays for some names is the operator's will: they count under (invalid),
// where that is allowed, and from then on without a pause.
func TestRulesThatStayKeepOnlyTheirNamesOut(t *testing.T) {
	checks := func(condition string) rule {
		return rule{on: `ALTER TABLE usage_metrics ADD CONSTRAINT none CHECK (NOT (` + condition + `))`}
	}
	raises := func(condition string) rule {
		return rule{on: `CREATE TRIGGER never BEFORE INSERT ON usage_metrics WHEN ` + condition + ` BEGIN SELECT RAISE(ABORT, 'never'); END`}
	}
	onlyUser := map[string]int64{"feature.a.used": 3, "feature.b.used": 3, "user.(invalid).requests": 3}
	kept := map[string]int64{"bad": 3, "usagekit.counts.dropped": 9}
	for _, c := range []struct {
		name string
		rule rule
		want map[string]int64
	}{
		{"sqlite/a name", raises(`NEW.key = 'user.1.requests'`), onlyUser},
		{"sqlite/a group", raises(`NEW.key LIKE 'user.%'`), kept},
		{"postgres/a name", checks(`key = 'user.1.requests'`), onlyUser},
		{"postgres/a group", checks(`key LIKE 'user.%'`), kept},
	} {
		t.Run(c.name, func(t *testing.T) {
			var db *sqlx.DB
			var err error
			if strings.HasPrefix(c.name, "sqlite") {
				db, err = sqlite.Open(filepath.Join(t.TempDir(), "usage.db"))
			} else if Server == nil {
				t.Skip("PostgreSQL was not tried: make test does")
			} else {
				db, err = postgres.Open(Server.NewDatabase(t))
			}
			s := unstarted(t, db, err)
			s.exec(t, c.rule.on)
			inbox(t, s)
			for range 4 {
				if _, err := s.fold(t.Context(), true); err == nil {
					t.Fatal("a fold against the rule")
				}
			}
			stood(s)
			foldAll(t, s)
			if got := totalsWithout(t, s, "user.active."); !maps.Equal(got, c.want) {
				t.Errorf("got %v\nwant %v", got, c.want)
			}
		})
	}
}

// A database that refuses everything says nothing about a batch, however long.
func TestNothingIsSetAsideWhileEverythingIsRefused(t *testing.T) {
	withRules(t, func(t *testing.T, s *Store, r rule) {
		switch r.name {
		case "a missing partition", "a column that must be given", "a trigger", "a trigger that raises P0001":
		default:
			t.Skip("it refuses some")
		}
		inbox(t, s)
		s.exec(t, r.on)
		for range 4 {
			_, _ = s.fold(t.Context(), true)
		}
		stood(s)
		for range 8 {
			if f, err := s.fold(t.Context(), true); err == nil {
				t.Fatalf("a fold against %s: %+v", r.name, f)
			}
		}
		s.exec(t, r.off)
		foldAll(t, s)
		want := map[string]int64{"feature.a.used": 3, "feature.b.used": 3, "user.1.requests": 3}
		if got := totalsWithout(t, s, "user.active."); !maps.Equal(got, want) {
			t.Errorf("got %v\nwant %v", got, want)
		}
	})
}

// Where everything is refused no names are looked for: that would take seconds, at each
// fold, of a batch of thousands.
func TestNoNamesAreLookedForWhileEverythingIsRefused(t *testing.T) {
	faults := &dbtest.Faults{}
	plain, err := faults.Open("sqlite", "file:"+filepath.Join(t.TempDir(), "usage.db")+"?_txlock=immediate")
	s := unstarted(t, sqlx.NewDb(plain, "sqlite"), err)
	b := counter.Batch{Opened: time.Now().UnixMilli()}
	for i := range 64 {
		b.Counts = append(b.Counts, counter.Count{Name: fmt.Sprintf("feature.f%d.used", i), N: 1})
	}
	s.exec(t, `INSERT INTO usage_writers (writer, seq, sum, seen) VALUES ('v', 0, ?, 4000000000000)`, []byte{})
	s.exec(t, `INSERT INTO usage_inbox (writer, seq, opened, payload) VALUES ('v', 1, ?, ?)`, b.Opened, b.Encode())
	s.exec(t, rulesOfSQLite[0].on)
	for range 4 {
		_, _ = s.fold(t.Context(), true)
	}
	stood(s)
	_, _ = s.fold(t.Context(), true) // which batch it is
	var tries atomic.Int64
	faults.Set(func(op dbtest.Op) dbtest.Fault {
		if strings.HasPrefix(op.Query, "SAVEPOINT usage_try") {
			tries.Add(1)
		}
		return dbtest.Fault{}
	})
	if f, err := s.fold(t.Context(), true); err == nil {
		t.Errorf("a fold against a rule for all: %+v", f)
	}
	if n := tries.Load(); n != 1 {
		t.Errorf("%d tries, want 1", n)
	}
}
