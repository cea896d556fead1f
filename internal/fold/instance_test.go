package fold

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/usagekit/usagekit/internal/clock"
	"github.com/usagekit/usagekit/internal/counter"
	"github.com/usagekit/usagekit/internal/crossing"
	"github.com/usagekit/usagekit/internal/database"
	"github.com/usagekit/usagekit/internal/dbtest"
	"github.com/usagekit/usagekit/store/postgres"
	"github.com/usagekit/usagekit/store/sqlite"
)

var server *dbtest.Server

func TestMain(m *testing.M) { os.Exit(dbtest.Main(m, &server)) }

// instance is one of a service: it folds when it is told to.
type instance struct {
	*Folder
	leader *Leader
	pool   *sqlx.DB
	err    error // what its last turn reported
}

// kept is how long the tests' history is.
func kept400() clock.Kept {
	const day = 24 * time.Hour
	return clock.Kept{Hours: 35 * day, Days: 400 * day, Users: 90 * day}
}

// instanceOn starts one on a database, whose tables it makes.
func instanceOn(t testing.TB, pool *sqlx.DB) *instance { return instanceOf(t, pool, kept400(), nil) }

func instanceOf(t testing.TB, pool *sqlx.DB, kept clock.Kept, caps map[string]int) *instance {
	t.Helper()
	c := clock.New(nil, kept)
	i := &instance{pool: pool}
	db, err := database.Open(pool, database.Config{
		Log: slog.New(slog.DiscardHandler),
		Settle: func(ctx context.Context, tx *database.Tx, _ string) (func(), error) {
			if err := i.Settle(ctx, tx); err != nil {
				return nil, err
			}
			return c.Settle(ctx, tx)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	tables := NewTables(c, caps, crossing.Watch{}, func() {})
	i.Folder = NewFolder(t.Context(), db, c, tables, database.NewID(), slog.New(slog.DiscardHandler))
	if _, err := db.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	i.leader = i.leads(time.Second, time.Hour)
	return i
}

// leads returns a Leader of it that notes what it reports.
func (i *instance) leads(interval, quiet time.Duration) *Leader {
	return NewLeader(i.Folder, interval, quiet, Events{Report: func(err error) { i.err = err }, Folded: func() {}, Sleep: func(bool) {}})
}

// kinds are those of databases: each opens an empty one of its own, as often as it is called.
func kinds() map[string]func(t testing.TB) *sqlx.DB {
	return map[string]func(t testing.TB) *sqlx.DB{
		"sqlite":   func(t testing.TB) *sqlx.DB { return pools(t, "sqlite")() },
		"postgres": func(t testing.TB) *sqlx.DB { return pools(t, "postgres")() },
	}
}

// onEach runs test on an empty database of each kind.
func onEach(t *testing.T, test func(t *testing.T, i *instance)) {
	for kind, open := range kinds() {
		t.Run(kind, func(t *testing.T) { test(t, instanceOn(t, open(t))) })
	}
}

// pools opens a database of a kind, as often as it is called.
func pools(t testing.TB, kind string) func() *sqlx.DB {
	t.Helper()
	path, url := filepath.Join(t.TempDir(), "usage.db"), ""
	if kind != "sqlite" {
		if server == nil {
			t.Skip("PostgreSQL was not tried: make test does")
		}
		url = server.NewDatabase(t)
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

func (i *instance) execute(t testing.TB, query string, args ...any) {
	t.Helper()
	if _, err := i.pool.ExecContext(t.Context(), i.pool.Rebind(query), args...); err != nil {
		t.Fatal(err)
	}
}

// arrives has a batch of a writer in the inbox, that counts 1 under each name.
func (i *instance) arrives(t testing.TB, writer string, seq int, names ...string) {
	t.Helper()
	b := counter.Batch{Opened: time.Now().UnixMilli()}
	for _, name := range names {
		b.Counts = append(b.Counts, counter.Count{Name: name, N: 1})
	}
	i.execute(t, `INSERT INTO usage_writers (writer, seq, sum, seen) VALUES (?, 0, ?, 4000000000000) ON CONFLICT DO NOTHING`, writer, []byte{})
	i.execute(t, `INSERT INTO usage_inbox (writer, seq, opened, payload) VALUES (?, ?, ?, ?)`, writer, seq, b.Opened, b.Encode())
}

// waits is how many batches of a writer are in the inbox; "": of all.
func (i *instance) waits(t testing.TB, writer string) (n int) {
	t.Helper()
	if err := i.pool.GetContext(t.Context(), &n, i.pool.Rebind(`SELECT COUNT(*) FROM usage_inbox WHERE ? IN ('', writer)`), writer); err != nil {
		t.Fatal(err)
	}
	return n
}

// totals are the counters, and how many batches were set aside.
func (i *instance) totals(t testing.TB) map[string]int64 {
	t.Helper()
	var rows []struct {
		Key   string
		Value int64
	}
	if err := i.pool.SelectContext(t.Context(), &rows, `SELECT key, value FROM usage_metrics WHERE value <> 0`); err != nil {
		t.Fatal(err)
	}
	totals := map[string]int64{}
	for _, r := range rows {
		totals[r.Key] = r.Value
	}
	var bad int64
	if err := i.pool.GetContext(t.Context(), &bad, `SELECT COUNT(*) FROM usage_quarantine`); err != nil {
		t.Fatal(err)
	}
	if bad > 0 {
		totals["bad"] = bad
	}
	return totals
}

// foldAll folds until nothing waits.
func (i *instance) foldAll(t testing.TB) {
	t.Helper()
	for range 30 {
		r, err := i.Fold(t.Context(), true)
		if err == nil && r.Batches == 0 {
			return
		}
	}
	t.Error("30 folds were not enough")
}

// stood makes what refuses counts a rule that has stood for longer than anybody leaves
// a mistake.
func (i *instance) stood() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.memory.rule.since = i.memory.rule.since.Add(-refusalPause)
}

// refusedLongAgo has what was refused be tried again although others wait.
func (i *instance) refusedLongAgo() {
	i.refused.mu.Lock()
	defer i.refused.mu.Unlock()
	for writer, r := range i.refused.of {
		r.tried = r.tried.Add(-refusedAgain)
		i.refused.of[writer] = r
	}
}

// until waits for something that goes on in the background.
func until(ctx context.Context, t testing.TB, what string, done func() bool) {
	t.Helper()
	for !done() {
		select {
		case <-ctx.Done():
			t.Fatal(what + " does not happen")
		case <-time.After(5 * time.Millisecond):
		}
	}
}
