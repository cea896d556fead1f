package main

import (
	"context"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/usagekit/usagekit/internal/dbtest"
	"github.com/usagekit/usagekit/store"
)

var server *dbtest.Server

func TestMain(m *testing.M) { os.Exit(dbtest.Main(m, &server)) }

const small = 0.001

func TestSQLite(t *testing.T) { filled(t, onSQLite(t.TempDir())) }

func TestPostgreSQL(t *testing.T) {
	if server == nil || !server.Private() {
		t.Log("PostgreSQL was not tried: make test does")
		return
	}
	filled(t, onPostgreSQL(server, server.NewDatabase(t)))
}

// A database is filled, agrees with itself and with what was to be filled in, and
// every query is answered and in the table.
func filled(t *testing.T, on target) {
	ctx := dbtest.Context(t)
	u := newUsage(small, time.Now())
	written, err := on.fill(ctx, u)
	if err != nil {
		t.Fatal(err)
	}
	agrees(ctx, t, on, u, written)
	all := queries(u.last)
	results, starts, err := on.measure(ctx, all, 2)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if err := writeTable(&out, on, results, starts); err != nil {
		t.Fatal(err)
	}
	if err := (settings{small, 2}).writeLegend(ctx, &out, on, written, time.Second); err != nil {
		t.Fatal(err)
	}
	for _, q := range all {
		if !strings.Contains(out.String(), q.title+"\n") {
			t.Errorf("%q is not in the table", q.title)
		}
	}
	for _, r := range results {
		if r.returned == 0 && r.title != "totals that contain 4711" {
			t.Errorf("%q finds nothing", r.title)
		}
	}
	if t.Failed() {
		t.Log(out.String())
	}
}

func agrees(ctx context.Context, t *testing.T, on target, u *usage, written map[store.Step]int) {
	db, err := on.open()
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	number := func(query string) (n int64) {
		t.Helper()
		if err := db.GetContext(ctx, &n, query); err != nil {
			t.Fatal(err)
		}
		return n
	}
	for step, rows := range written {
		query := `SELECT COUNT(*) FROM usage_metrics`
		if step != 0 {
			query = `SELECT COUNT(*) FROM usage_history WHERE step = ` + string('0'+rune(step))
		}
		if n := number(query); rows == 0 || n != int64(rows) {
			t.Errorf("%s: %d, want %d", query, n, rows)
		}
	}
	differ := func(step, where string) int64 {
		t.Helper()
		return number(`SELECT COUNT(*) FROM usage_metrics AS m LEFT JOIN (SELECT key, SUM(value) AS n FROM usage_history WHERE step = ` + step + ` GROUP BY key) AS h ON h.key = m.key
WHERE m.value <> COALESCE(h.n, 0) AND ` + where)
	}
	const users, others = `(m.key >= 'user.' AND m.key < 'user/')`, `(m.key < 'user.' OR m.key >= 'user/')`
	for what, n := range map[string]int64{
		"totals are not the sums of days":   differ("2", "1 = 1"),
		"totals are not the sums of hours":  differ("1", others),
		"totals are not the sums of months": differ("3", users),
		"requests are not all requests": number(`SELECT value - (SELECT SUM(value) FROM usage_metrics WHERE key LIKE 'api.GET %.requests')
FROM usage_metrics WHERE key = 'api.requests.total'`),
		"status and latency are not those of all routes": number(`SELECT SUM(CASE WHEN key LIKE 'api.requests.%' THEN value ELSE -value END) FROM usage_metrics
WHERE key LIKE 'api.%.status_%' OR key LIKE 'api.%.latency_%'`),
		"sums of routes that are not there": number(`SELECT 8 - COUNT(*) FROM usage_metrics WHERE key LIKE 'api.requests.status_%' OR key LIKE 'api.requests.latency_%'`),
		"days and their active users": number(`SELECT COUNT(*) FROM usage_history AS a JOIN (SELECT bucket, COUNT(*) AS n FROM usage_history
WHERE step = 2 AND key LIKE 'user.%.requests' GROUP BY bucket) AS h ON h.bucket = a.bucket WHERE a.key = 'user.active.daily' AND a.value <> h.n`),
		"months and their active users": number(`SELECT COUNT(*) FROM usage_history AS a JOIN (SELECT bucket, COUNT(*) AS n FROM usage_history
WHERE step = 3 AND key LIKE 'user.%.requests' GROUP BY bucket) AS h ON h.bucket = a.bucket WHERE a.key = 'user.active.monthly' AND a.value <> h.n`),
	} {
		if n != 0 {
			t.Errorf("%s: %d", what, n)
		}
	}

	st, err := store.New(ctx, db, store.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Shutdown(ctx)
	for _, s := range []series{u.series[0], u.series[len(u.series)-1], {key: u.users[7].key, total: u.users[7].total}} {
		if n, err := st.Get(ctx, s.key); err != nil || n != s.total || n == 0 {
			t.Errorf("%s: %d, %v; want %d", s.key, n, err, s.total)
		}
	}
	rows, err := st.Rows(ctx, store.Query{Prefix: "api.", Measure: "requests", Limit: 3})
	if err != nil || len(rows) != 3 || rows[0].Counts["status_2xx"] != u.series[1].total {
		t.Errorf("the largest routes: %v, %v", rows, err)
	}
	top := slices.MaxFunc(u.users, func(a, b user) int { return int(a.total - b.total) })
	largest, err := st.Totals(ctx, store.Query{Prefix: "user.", Measure: "requests", Limit: 1})
	if err != nil || len(largest) != 1 || largest[0].N != top.total {
		t.Errorf("the largest user: %v, %v; want %d", largest, err, top.total)
	}
}

func TestShare(t *testing.T) {
	var sorted []time.Duration
	for i := range 20 {
		sorted = append(sorted, time.Duration(i+1))
	}
	for p, want := range map[float64]time.Duration{0.5: 10, 0.95: 19, 1: 20} {
		if got := share(sorted, p); got != want {
			t.Errorf("%v of 1 … 20 is %d, want %d", p, got, want)
		}
	}
}
