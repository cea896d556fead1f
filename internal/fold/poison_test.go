package fold

import (
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/usagekit/usagekit/store/postgres"
)

// refusing is something by which an operator has a table refuse what is counted.
type refusing struct{ name, on, off string }

func trigger(code string) refusing {
	return refusing{"a trigger that raises " + code,
		`CREATE FUNCTION never() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'never' USING ERRCODE = '` + code + `'; END $$;
CREATE TRIGGER never BEFORE INSERT ON usage_history FOR EACH ROW EXECUTE FUNCTION never()`,
		`DROP TRIGGER never ON usage_history; DROP FUNCTION never`}
}

var rulesOfPostgres = []refusing{
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

var rulesOfSQLite = []refusing{
	{"a trigger", `CREATE TRIGGER never BEFORE INSERT ON usage_history BEGIN SELECT RAISE(ABORT, 'never'); END`, `DROP TRIGGER never`},
	{"a trigger for some", `CREATE TRIGGER never BEFORE INSERT ON usage_metrics WHEN NEW.key LIKE 'user.%' BEGIN SELECT RAISE(FAIL, 'never'); END`, `DROP TRIGGER never`},
	{"a trigger that rolls back", `CREATE TRIGGER never BEFORE INSERT ON usage_metrics BEGIN SELECT RAISE(ROLLBACK, 'never'); END`, `DROP TRIGGER never`},
	{"a trigger of a missing table", `CREATE TRIGGER never BEFORE INSERT ON usage_metrics BEGIN INSERT INTO nowhere VALUES (1); END`, `DROP TRIGGER never`},
	{"a unique value", `CREATE UNIQUE INDEX once ON usage_metrics (value)`, `DROP INDEX once`},
	{"a trigger that wants a number", `CREATE TABLE numbers (n INTEGER CHECK (typeof(n) = 'integer')) STRICT; CREATE TRIGGER never BEFORE INSERT ON usage_metrics BEGIN INSERT INTO numbers VALUES (NEW.key); END`, `DROP TRIGGER never; DROP TABLE numbers`},
}

// each database, with its rules; a test folds by itself.
func withRules(t *testing.T, test func(t *testing.T, s *instance, r refusing)) {
	t.Helper()
	for _, r := range rulesOfSQLite {
		t.Run("sqlite/"+r.name, func(t *testing.T) {
			test(t, instanceOn(t, pools(t, "sqlite")()), r)
		})
	}
	if server == nil {
		t.Log("PostgreSQL was not tried: make test does")
		return
	}
	url := server.NewDatabase(t)
	for i, r := range rulesOfPostgres {
		t.Run("postgres/"+r.name, func(t *testing.T) {
			schema := fmt.Sprintf("s%d", i)
			db, err := postgres.Open(url + "&search_path=" + schema) // a schema is made sooner than a database
			if err == nil {
				_, err = db.ExecContext(t.Context(), "CREATE SCHEMA "+schema)
			}
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { db.Close() })
			test(t, instanceOn(t, db), r)
		})
	}
}

// inbox puts three batches of two writers there.
func inbox(t *testing.T, s *instance) {
	t.Helper()
	names := []string{"feature.a.used", "feature.b.used", "user.1.requests"}
	s.arrives(t, "v", 1, names...)
	s.arrives(t, "w", 1, names...)
	s.arrives(t, "w", 2, names...)
}

// What an operator's mistake keeps out waits, whole, until the mistake is undone.
func TestCountsOutlastAnOperatorsMistake(t *testing.T) {
	withRules(t, func(t *testing.T, s *instance, r refusing) {
		inbox(t, s)
		s.execute(t, r.on)
		var last error
		defer func() {
			if t.Failed() {
				t.Logf("the last error: %v", last)
			}
		}()
		for range 8 { // three are enough to try one batch alone, again and again
			f, err := s.Fold(t.Context(), true)
			if last = err; err == nil {
				t.Fatalf("a fold against %s: %+v", r.name, f)
			}
		}
		s.execute(t, r.off)
		s.foldAll(t)
		want := map[string]int64{"feature.a.used": 3, "feature.b.used": 3, "user.1.requests": 3}
		if got := s.totals(t); !maps.Equal(got, want) {
			t.Errorf("got %v\nwant %v", got, want)
		}
	})
}

// A rule that stays for some names is the operator's will: they count under (invalid),
// where that is allowed, and from then on without a pause.
func TestRulesThatStayKeepOnlyTheirNamesOut(t *testing.T) {
	checks := func(condition string) refusing {
		return refusing{on: `ALTER TABLE usage_metrics ADD CONSTRAINT none CHECK (NOT (` + condition + `))`}
	}
	raises := func(condition string) refusing {
		return refusing{on: `CREATE TRIGGER never BEFORE INSERT ON usage_metrics WHEN ` + condition + ` BEGIN SELECT RAISE(ABORT, 'never'); END`}
	}
	onlyUser := map[string]int64{"feature.a.used": 3, "feature.b.used": 3, "user.(invalid).requests": 3}
	kept := map[string]int64{"bad": 3, "usagekit.counts.dropped": 9}
	for _, c := range []struct {
		name string
		rule refusing
		want map[string]int64
	}{
		{"sqlite/a name", raises(`NEW.key = 'user.1.requests'`), onlyUser},
		{"sqlite/a group", raises(`NEW.key LIKE 'user.%'`), kept},
		{"postgres/a name", checks(`key = 'user.1.requests'`), onlyUser},
		{"postgres/a group", checks(`key LIKE 'user.%'`), kept},
	} {
		t.Run(c.name, func(t *testing.T) {
			kind, _, _ := strings.Cut(c.name, "/")
			s := instanceOn(t, pools(t, kind)())
			s.execute(t, c.rule.on)
			inbox(t, s)
			for range 4 {
				if _, err := s.Fold(t.Context(), true); err == nil {
					t.Fatal("a fold against the rule")
				}
			}
			s.stood()
			s.foldAll(t)
			if got := s.totals(t); !maps.Equal(got, c.want) {
				t.Errorf("got %v\nwant %v", got, c.want)
			}
		})
	}
}

// A database that refuses everything says nothing about a batch, however long.
func TestNothingIsSetAsideWhileEverythingIsRefused(t *testing.T) {
	withRules(t, func(t *testing.T, s *instance, r refusing) {
		switch r.name {
		case "a missing partition", "a column that must be given", "a trigger", "a trigger that raises P0001":
		default:
			t.Skip("it refuses some")
		}
		inbox(t, s)
		s.execute(t, r.on)
		for range 4 {
			_, _ = s.Fold(t.Context(), true)
		}
		s.stood()
		for range 8 {
			if f, err := s.Fold(t.Context(), true); err == nil {
				t.Fatalf("a fold against %s: %+v", r.name, f)
			}
		}
		s.execute(t, r.off)
		s.foldAll(t)
		want := map[string]int64{"feature.a.used": 3, "feature.b.used": 3, "user.1.requests": 3}
		if got := s.totals(t); !maps.Equal(got, want) {
			t.Errorf("got %v\nwant %v", got, want)
		}
	})
}

// Where everything is refused no names are looked for: that would take seconds, at each
// fold, of a batch of thousands.
func TestNoNamesAreLookedForWhileEverythingIsRefused(t *testing.T) {
	s := instanceOn(t, pools(t, "sqlite")())
	var names []string
	for i := range 64 {
		names = append(names, fmt.Sprintf("feature.f%d.used", i))
	}
	s.arrives(t, "v", 1, names...)
	s.execute(t, rulesOfSQLite[0].on)
	for range 4 {
		_, _ = s.Fold(t.Context(), true)
	}
	s.stood()
	_, _ = s.Fold(t.Context(), true) // which batch it is
	tries := 0
	s.db.Edit = func(q string) string {
		if strings.HasPrefix(q, "SAVEPOINT usage_try") {
			tries++
		}
		return q
	}
	if f, err := s.Fold(t.Context(), true); err == nil {
		t.Errorf("a fold against a rule for all: %+v", f)
	}
	if tries != 1 {
		t.Errorf("%d tries, want 1", tries)
	}
}
