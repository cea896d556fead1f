package faults

import (
	"database/sql"
	"errors"
	"testing"
	"time"

	"github.com/usagekit/usagekit/store/postgres"
)

// A verdict does what it says: the client sees an error each time, and what it
// committed is there only when the COMMIT was forwarded.
func TestVerdicts(t *testing.T) {
	if shared.server == nil {
		t.Skip("PostgreSQL was not tried: make test does")
	}
	for _, c := range []struct {
		name    string
		of      string // the statement that it is of
		verdict verdict
		there   int // rows afterwards
		state   string
		least   time.Duration
	}{
		{"before", "COMMIT", verdict{cut: before, by: byFIN}, 0, "", 0},
		{"after, FIN", "COMMIT", verdict{cut: after, by: byFIN}, 1, "", 0},
		{"after, RST", "COMMIT", verdict{cut: after, by: byRST}, 1, "", 0},
		{"after, black hole", "COMMIT", verdict{cut: after, by: byBlackHole, hold: 100 * time.Millisecond}, 1, "", 100 * time.Millisecond},
		{"refused", "COMMIT", verdict{cut: refuse}, 0, "", 0},
		{"failed", "INSERT INTO a VALUES ($1)", verdict{cut: fail, code: "53100"}, 0, "53100", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, db := through(t)
			p.set(func(s statement) verdict {
				if s.text == c.of && s.backend != 0 {
					return c.verdict
				}
				return verdict{}
			})
			start := time.Now()
			err := insertOne(db)
			took := time.Since(start)
			p.set(nil)
			var state interface{ SQLState() string }
			if err == nil || errors.As(err, &state) != (c.state != "") || state != nil && state.SQLState() != c.state || took < c.least {
				t.Errorf("the client sees %v after %v", err, took)
			}
			var n int
			if err := db.QueryRow(`SELECT COUNT(*) FROM a`).Scan(&n); err != nil || n != c.there {
				t.Errorf("%d rows are there, %v; want %d", n, err, c.there)
			}
			if did := p.done(); did[c.verdict.String()] != 1 {
				t.Errorf("the proxy did %v", did)
			}
		})
	}
}

func TestProxyRewrites(t *testing.T) {
	if shared.server == nil {
		t.Skip("PostgreSQL was not tried: make test does")
	}
	p, db := through(t)
	p.rewrite("VALUES ($1)", "VALUES ($1), (7)")
	if err := insertOne(db); err != nil {
		t.Fatal(err)
	}
	p.slow(20*time.Millisecond, 0)
	start := time.Now()
	var n int
	if err := db.QueryRow(`SELECT COUNT(*) FROM a`).Scan(&n); err != nil || n != 2 {
		t.Errorf("%d rows are there, %v; want 2", n, err)
	}
	if took := time.Since(start); took < 40*time.Millisecond {
		t.Errorf("a round trip of 40 ms took %v", took)
	}
}

// through returns a proxy, and a pool that leads through it to a database with an
// empty table.
func through(t *testing.T) (*proxy, *sql.DB) {
	t.Helper()
	databaseURL := shared.server.NewDatabase(t)
	p, err := newProxy(databaseURL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.close)
	proxied, err := p.url(databaseURL)
	if err != nil {
		t.Fatal(err)
	}
	db, err := postgres.Open(proxied)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	db.MustExec(`CREATE TABLE a (n BIGINT)`)
	return p, db.DB
}

func insertOne(db *sql.DB) error {
	tx, err := db.Begin()
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if _, err := tx.Exec(`INSERT INTO a VALUES ($1)`, 1); err != nil {
		return err
	}
	return tx.Commit()
}
