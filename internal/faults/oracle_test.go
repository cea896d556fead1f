package faults

import (
	"database/sql"
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

// The oracle is worth something only if wrong numbers do not pass it.
func TestOracle(t *testing.T) {
	const name = "api.GET /novels/{id}.requests"
	for _, c := range []struct {
		what       string
		T, A, b, e int64 // of the name, and of all
		N, total   int64
		inFlight   int64
		want       rule
		wrong      int
	}{
		{"all agree", 9, 9, 9, 9, 9, 9, 0, exactly, 0},
		{"one too many", 9, 9, 9, 9, 10, 10, 0, exactly, 2},
		{"one lost", 9, 9, 9, 9, 8, 8, 0, exactly, 2},
		{"an answer lost", 9, 8, 9, 9, 9, 9, 0, exactly, 2},
		{"not begun", 9, 9, 8, 8, 9, 9, 0, exactly, 2},
		{"the total differs", 9, 9, 9, 9, 9, 10, 0, exactly, 2},
		{"killed in the middle", 9, 7, 9, 8, 8, 8, 8, bounded, 0},
		{"killed, counted all the same", 9, 7, 9, 8, 9, 9, 8, bounded, 0},
		{"killed, an answer lost", 9, 9, 9, 8, 8, 8, 8, bounded, 2},
		{"killed, a response lost", 9, 7, 9, 9, 8, 8, 8, bounded, 2},
		{"killed, counted twice", 9, 7, 9, 8, 10, 10, 8, bounded, 2},
		{"killed, counted before it began", 9, 7, 8, 8, 9, 9, 8, bounded, 2},
		{"more cut off than can be", 20, 7, 19, 8, 8, 8, 8, bounded, 1},
		{"ended, some found nobody", 9, 8, 8, 8, 8, 8, 0, handled, 0},
		{"ended, one lost", 9, 8, 8, 8, 7, 7, 0, handled, 2},
		{"ended, one counted that was not begun", 9, 8, 8, 8, 9, 9, 0, handled, 2},
	} {
		both := func(n int64) tally { return tally{name: n, requestsTotal: n} }
		v := evidence{attempted: both(c.T), answered: both(c.A), begun: both(c.b), responded: both(c.e), counted: tally{name: c.N, requestsTotal: c.total}, inFlight: c.inFlight}
		if wrong := v.check(c.want); len(wrong) != c.wrong {
			t.Errorf("%s: %d things are wrong, want %d:\n%s", c.what, len(wrong), c.wrong, strings.Join(wrong, "\n"))
		}
	}
}

// A name that nobody asked for is one too many, too.
func TestOracleKnowsAllNames(t *testing.T) {
	v := evidence{counted: tally{"api.(unmatched).requests": 1, requestsTotal: 1}}
	if wrong := v.check(bounded); len(wrong) != 2 {
		t.Errorf("%q", wrong)
	}
}

// What Shutdown said is lost may be missing, and no more.
func TestOracleTakesWhatWasReported(t *testing.T) {
	v := evidence{attempted: tally{"user.a.requests": 5}, counted: tally{"user.a.requests": 3}, reported: tally{"user.a.requests": 2}}
	v.answered, v.begun, v.responded = v.attempted, v.attempted, v.attempted
	if wrong := v.check(bounded); len(wrong) != 0 {
		t.Errorf("%q", wrong)
	}
	v.reported = tally{"user.a.requests": 1}
	if wrong := v.check(bounded); len(wrong) != 1 {
		t.Errorf("%q", wrong)
	}
}

// Row 11 against what most programs do: add to the counter in place, and try
// again when COMMIT fails. It must be caught counting too much, or row 11 proves
// nothing.
func TestUnguardedUpsertIsCaught(t *testing.T) {
	if shared.server == nil {
		t.Skip("PostgreSQL was not tried: make test does")
	}
	p, db := through(t)
	if _, err := db.Exec(`CREATE TABLE usage_metrics (key TEXT PRIMARY KEY, value BIGINT NOT NULL)`); err != nil {
		t.Fatal(err)
	}
	c := &cutter{rng: rand.New(rand.NewPCG(shared.seed, 11)), long: 100 * time.Millisecond}
	p.set(c.script)
	sent := tally{}
	for i := range 60 {
		user := fmt.Sprintf("u%d", i%5)
		sent.add("POST /novels", user)
		counts := tally{}
		counts.add("POST /novels", user)
		for err := upsert(db, counts); err != nil; err = upsert(db, counts) {
			if t.Context().Err() != nil {
				t.Fatal(err)
			}
		}
	}
	p.set(nil)
	counted, err := readCounts(t.Context(), db)
	if err != nil {
		t.Fatal(err)
	}
	v := evidence{attempted: sent, answered: maps.Clone(sent), begun: maps.Clone(sent), responded: maps.Clone(sent), counted: counted}
	wrong := v.check(exactly)
	t.Logf("%d COMMITs cut off: %d counted of %d", c.cuts(), counted[requestsTotal], sent[requestsTotal])
	if counted[requestsTotal] <= sent[requestsTotal] || len(wrong) == 0 {
		t.Errorf("not caught: %q", wrong)
	}
}

// upsert adds counts in one transaction. An error says nothing about whether that
// took place; trying again is the mistake.
func upsert(db *sql.DB, counts tally) error {
	tx, err := db.Begin()
	if err != nil {
		return err
	}
	defer tx.Rollback()
	for name, n := range counts {
		if _, err := tx.Exec(`INSERT INTO usage_metrics AS m VALUES ($1, $2) ON CONFLICT (key) DO UPDATE SET value = m.value + excluded.value`, name, n); err != nil {
			return err
		}
	}
	return tx.Commit()
}
