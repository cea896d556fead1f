package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/usagekit/usagekit/internal/calendar"
	"github.com/usagekit/usagekit/internal/dbtest"
	"github.com/usagekit/usagekit/internal/naming"
	"github.com/usagekit/usagekit/internal/read"
)

// Whatever is read, history is sought in by its primary key, and so is a range of
// totals: no read takes longer because there is more that it does not ask for.
func TestReadsSeek(t *testing.T) {
	if dbtest.Race() {
		t.Log("nothing here runs at once, and SQLite, in Go, would take its time")
		return
	}
	t.Run("sqlite", func(t *testing.T) {
		t.Parallel()
		path := filepath.Join(t.TempDir(), "usage.db")
		readsSeek(t, "sqlite", "file:"+path+"?_pragma=journal_mode(WAL)&_txlock=immediate")
	})
	t.Run("postgres", func(t *testing.T) {
		if Server == nil {
			t.Log("PostgreSQL was not tried: make test does")
			return
		}
		t.Parallel()
		readsSeek(t, "postgres", Server.NewDatabase(t))
	})
}

func readsSeek(t *testing.T, driverName, dsn string) {
	ctx := dbtest.Context(t)
	plain, err := sql.Open(driverName, dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	e := &explainer{driver: plain.Driver(), dsn: dsn, prefix: "EXPLAIN (FORMAT JSON) "}
	if driverName == "sqlite" {
		e.prefix = "EXPLAIN QUERY PLAN "
	}
	prefix := e.prefix
	db := sqlx.NewDb(sql.OpenDB(e), driverName)
	defer db.Close()
	db.SetMaxIdleConns(0) // each read connects by e.dsn
	s, err := open(ctx, db, Config{})
	if err != nil {
		t.Fatal(err)
	}
	today := s.clock.Calendar().Start(calendar.Day, time.Now())
	fillHistory(t, plain, s.clock.Calendar(), today)

	ago := func(days int) time.Time { return today.AddDate(0, 0, -days) }
	routes, users := Query{Prefix: "api.", Measure: "requests", Limit: 10}, Query{Prefix: "user.", Measure: "requests", Limit: 10}
	since := func(q Query, days int) Query { q.From = ago(days); return q }
	get := func(name string) func() (any, error) {
		return func() (any, error) { return s.Get(ctx, name) }
	}
	totals := func(q Query) func() (any, error) {
		return func() (any, error) { c, err := s.Totals(ctx, q); return len(c), err }
	}
	rows := func(q Query) func() (any, error) {
		return func() (any, error) { r, err := s.Rows(ctx, q); return len(r), err }
	}
	history := func(q Query) func() (any, error) {
		return func() (any, error) { c, err := s.History(ctx, q); return len(c), err }
	}
	each := func(q Query) func() (any, error) {
		return func() (any, error) {
			n := 0
			for _, err := range s.Each(ctx, q) {
				if err != nil {
					return n, err
				}
				n++
			}
			return n, nil
		}
	}
	list := []string{naming.RequestsTotal}
	for r := range filledRoutes {
		list = append(list, fmt.Sprintf("api.GET /r%d.requests", r))
	}
	reads := []struct {
		name   string
		read   func() (any, error)
		want   any // what it returns: it reads something
		tables string
	}{
		{"a total", get("feature.7.used"), int64(filledDays), "usage_metrics"},
		{"today's requests", get(naming.RequestsToday), int64(24), "usage_history"},
		{"today's users", get(naming.ActiveDaily), int64(1), "usage_history"},
		{"totals of routes", totals(routes), 10, "usage_metrics"},
		{"totals of a small group", totals(Query{Prefix: "feature."}), filledRoutes, "usage_metrics"},
		{"totals of other groups", totals(Query{Except: []string{"api.", "user."}, Limit: 100}), filledRoutes, "usage_metrics"},
		{"totals of users", totals(users), 10, ""}, // they are nearly all that there is
		{"totals of routes, 7 days", totals(since(routes, 7)), 10, "usage_history"},
		{"totals of users, 40 days", totals(since(users, 40)), 10, "usage_history"},
		{"totals of all, 40 days", totals(since(Query{}, 40)), filledUsers + 3*filledRoutes + 1, "usage_history"},
		{"rows of routes", rows(routes), 10, "usage_metrics"},
		{"rows of users", rows(users), 10, ""},
		{"rows of routes, 7 days", rows(since(routes, 7)), 10, "usage_metrics usage_history"},
		{"rows of routes, 40 days", rows(since(routes, 40)), 10, "usage_metrics usage_history"},
		{"rows of users, 7 days", rows(since(users, 7)), 10, "usage_history"},
		{"rows of users, all their measures, 7 days", rows(since(Query{Prefix: "user.", Limit: 10}, 7)), 10, "usage_history"},
		{"history of a route", history(since(Query{Name: "api.GET /r3.requests"}, 7)), 8 * 24, "usage_history"},
		{"history of a route by month", history(Query{Name: "api.GET /r3.requests", Step: Month}), nil, "usage_history"},
		{"history of a user", history(since(Query{Name: "user.7.requests"}, 40)), 8, "usage_history"},
		{"totals of one user", totals(Query{Prefix: "user.", Subject: "7"}), 1, "usage_metrics"},
		{"rows of one user, 40 days", rows(since(Query{Prefix: "user.", Subject: "7"}, 40)), 1, "usage_history"},
		{"history of one user, 40 days", history(since(Query{Prefix: "user.", Subject: "7", Limit: 10}, 40)), 8, "usage_history"},
		{"history of routes, 40 days", history(since(Query{Prefix: "api.", Measure: "requests", Step: Day, Limit: 10}, 40)), 10 * 41, "usage_history"},
		{"totals of a list", totals(Query{Names: list}), len(list), "usage_metrics"},
		{"totals of a list, 40 days", totals(since(Query{Names: list}, 40)), len(list), "usage_history"},
		{"rows of a list", rows(Query{Names: list}), len(list), "usage_metrics"},
		{"rows of all requests, 40 days", rows(since(Query{Name: naming.RequestsTotal}, 40)), 1, "usage_history"},
		{"history of a list, 40 days", history(since(Query{Names: list, Step: Day}, 40)), len(list) * 41, "usage_history"},
		{"history of a list by hour", history(since(Query{Names: list[1:]}, 7)), filledRoutes * 8 * 24, "usage_history"},
		{"history of a list with users", history(since(Query{Names: append([]string{"user.7.requests"}, list...)}, 40)), len(list)*41 + 8, "usage_history"},
		{"each user", each(Query{Prefix: "user."}), filledUsers + 2, "usage_metrics"},
		{"each user, 40 days", each(since(Query{Prefix: "user.", Measure: "requests"}, 40)), filledUsers, "usage_history"},
		{"each route by day, 40 days", each(since(Query{Prefix: "api.", Measure: "requests", Step: Day}, 40)), filledRoutes * 41, "usage_history"},
		{"each user by day, 7 days", each(since(Query{Prefix: "user.", Measure: "requests", Step: Day}, 7)), filledUsers * 8 / 5, "usage_history"},
		{"each route by month", each(Query{Prefix: "api.", Step: Month}), nil, "usage_history"},
		{"each of a list by day, 40 days", each(since(Query{Names: list, Step: Day}, 40)), len(list) * 41, "usage_history"},
		{"history of users by month", history(Query{Prefix: "user.", Measure: "requests", Step: Month, Limit: 10}), nil, "usage_history"},
	}
	check := func(wrong func(access, plan) string) {
		for _, c := range reads {
			e.plans = nil
			got, err := c.read()
			if err != nil || c.want != nil && got != c.want {
				t.Errorf("%s: %v, %v; want %v", c.name, got, err, c.want)
			}
			tables := map[string]bool{}
			for _, p := range e.plans {
				for _, a := range p.accesses(t) {
					tables[a.table] = true
					if a.table != "usage_history" && !strings.Contains(c.tables, a.table) {
						continue
					}
					if why := wrong(a, p); why != "" {
						t.Errorf("%s: %s, in\n%s\n%s", c.name, why, p.query, p.text)
					}
				}
			}
			for table := range strings.FieldsSeq(c.tables) {
				if !tables[table] {
					t.Errorf("%s: no plan reads %s: %v", c.name, table, e.plans)
				}
			}
		}
	}
	check(access.reads)
	e.prefix, e.plans = "", nil
	pagesOfEach(t, s, Query{Prefix: "user."}, filledUsers+2)
	pagesOfEach(t, s, since(Query{Prefix: "user."}, 40), filledUsers)
	pagesOfEach(t, s, since(Query{Prefix: "user.", Measure: "requests", Step: Day}, 7), filledUsers*8/5)
	e.prefix = prefix
	if driverName == "postgres" {
		u, err := url.Parse(dsn)
		if err != nil {
			t.Fatal(err)
		}
		settings := u.Query()
		settings.Set("random_page_cost", "100") // as where the planner expects far more rows than there are
		u.RawQuery = settings.Encode()
		e.dsn = u.String()
		check(func(a access, _ plan) string {
			if a.table == "usage_history" && a.kind == "Seq Scan" {
				return "a sequential scan"
			}
			return ""
		})
		return
	}

	// SQLite's plan does not show how far along an index a read goes.
	e.prefix = ""
	for tries := 1; ; tries++ { // a busy machine may make any of them slow, but not the one of them always
		all := fastest(t, 3, func() error {
			_, err := plain.ExecContext(ctx, `SELECT SUM(value) FROM usage_history`)
			return err
		})
		one := fastest(t, 10, func() error {
			_, err := s.History(ctx, Query{Name: "user.7.requests", From: ago(7)})
			return err
		})
		t.Logf("the history of one user takes %v, that of all %v", one, all)
		if one <= all/3 {
			break
		}
		if tries == 20 {
			t.Error("that is more than a third")
			break
		}
	}
}

// pagesOfEach reads n counts in pages, none of which is much larger than it should be.
// The buckets of a range are listed once; and an answer whose list failed is none.
func TestRangesAreListedOnce(t *testing.T) {
	faults := &dbtest.Faults{}
	db, err := faults.Open("sqlite", "file:"+filepath.Join(t.TempDir(), "usage.db")+"?_pragma=busy_timeout(5000)&_pragma=journal_mode(WAL)&_txlock=immediate")
	s := unstarted(t, sqlx.NewDb(db, "sqlite3"), err)
	if _, err := s.AddNow(t.Context(), "feature.a.used", 1); err != nil {
		t.Fatal(err)
	}
	from := time.Now().AddDate(0, -2, 0)
	for what, c := range map[string]struct {
		read  func() error
		lists int64
	}{
		"Totals": {func() error { _, err := s.Totals(t.Context(), Query{Prefix: "feature.", From: from}); return err }, 1},
		"Rows":   {func() error { _, err := s.Rows(t.Context(), Query{Prefix: "feature.", From: from}); return err }, 1},
		"History": {func() error {
			_, err := s.History(t.Context(), Query{Prefix: "feature.", From: from, Step: Day})
			return err
		}, 1},
	} {
		var lists, fails atomic.Int64
		refused := errors.New("the list is refused")
		faults.Set(func(op dbtest.Op) dbtest.Fault {
			if strings.Contains(op.Query, "WITH RECURSIVE") && lists.Add(1) == fails.Load() {
				return dbtest.Fault{Err: refused}
			}
			return dbtest.Fault{}
		})
		if err := c.read(); err != nil || lists.Load() != c.lists {
			t.Errorf("%s: %d lists, %v; want %d", what, lists.Load(), err, c.lists)
		}
		for n := range lists.Load() {
			lists.Store(0)
			fails.Store(n + 1)
			if err := c.read(); !errors.Is(err, refused) {
				t.Errorf("%s: list %d failed, and the answer's error is %v", what, n+1, err)
			}
		}
		faults.Set(nil)
	}
}

func pagesOfEach(t *testing.T, s *Store, q Query, n int) {
	t.Helper()
	left, err := read.All(q.asked())
	pages, seen := 0, 0
	for err == nil && !left.Empty() {
		var counts []read.Count
		counts, left, err = s.page(t.Context(), left)
		if len(counts) > 2*read.PageSize {
			t.Errorf("a page of %+v has %d counts", q, len(counts))
		}
		pages, seen = pages+1, seen+len(counts)
	}
	if err != nil || seen != n || pages > 50 {
		t.Errorf("%+v: %d counts in %d pages, %v; want %d", q, seen, pages, err, n)
	}
}

func fastest(t *testing.T, times int, f func() error) time.Duration {
	t.Helper()
	least := time.Hour
	for range times {
		start := time.Now()
		if err := f(); err != nil {
			t.Fatal(err)
		}
		least = min(least, time.Since(start))
	}
	return least
}

const (
	filledDays   = 50
	filledRoutes = 20
	filledUsers  = 12_000 // more than Rows reads at once
)

// fillHistory makes the rows of so many days, the last of them today. A user comes
// every fifth.
func fillHistory(t *testing.T, db *sql.DB, c calendar.Calendar, today time.Time) {
	t.Helper()
	exec := func(query string) {
		t.Helper()
		if _, err := db.ExecContext(t.Context(), query); err != nil {
			t.Fatalf("%v\n%s", err, query)
		}
	}
	rows := func(columns, from string) {
		t.Helper()
		const numbers = `WITH RECURSIVE days(d, start) AS (SELECT 0, %d UNION ALL SELECT d + 1, start - 86400 FROM days WHERE d < %d - 1),
hours(h) AS (SELECT 0 UNION ALL SELECT h + 1 FROM hours WHERE h < 23),
routes(r) AS (SELECT 0 UNION ALL SELECT r + 1 FROM routes WHERE r < %d - 1),
users(u) AS (SELECT 0 UNION ALL SELECT u + 1 FROM users WHERE u < %d - 1),
names(key) AS (SELECT 'api.GET /r' || r || '.requests' FROM routes UNION ALL SELECT 'api.GET /r' || r || '.status_2xx' FROM routes)
`
		exec(fmt.Sprintf(`INSERT INTO usage_history `+numbers, today.Unix(), filledDays, filledRoutes, filledUsers) + `SELECT ` + columns + ` FROM ` + from)
	}
	rows(`1, start + 3600 * h, key, 1`, `days CROSS JOIN hours CROSS JOIN names`)
	rows(`2, start, key, 24`, `days CROSS JOIN names`)
	rows(`2, start, 'user.' || u || '.requests', 1`, `days JOIN users ON u % 5 = d % 5`)
	rows(`2, start, 'feature.' || r || '.used', 1`, `days CROSS JOIN routes`)
	rows(`2, start, 'api.requests.total', 24`, `days`)
	for month := c.Start(calendar.Month, today.AddDate(0, 0, -filledDays)); !month.After(today); month = c.Next(calendar.Month, month) {
		exec(fmt.Sprintf(`INSERT INTO usage_history SELECT 3, %[1]d, key, SUM(value) FROM usage_history
WHERE step = 2 AND bucket >= %[1]d AND bucket < %[2]d AND key >= 'user.' AND key < 'user/' GROUP BY key`, month.Unix(), c.Next(calendar.Month, month).Unix()))
	}
	exec(`INSERT INTO usage_metrics SELECT key, SUM(value) FROM usage_history WHERE step = 2 GROUP BY key`)
	rows(`2, start, 'user.active.daily', 1`, `days`)
	exec(`ANALYZE`) // as autovacuum does
}

// explainer is a connector whose connections explain each query before they run it.
type explainer struct {
	driver driver.Driver
	dsn    string
	prefix string // "": no more
	plans  []plan
}

func (e *explainer) Driver() driver.Driver { return e.driver }

func (e *explainer) Connect(context.Context) (driver.Conn, error) {
	c, err := e.driver.Open(e.dsn)
	return explained{c, e}, err
}

type explained struct {
	driver.Conn
	*explainer
}

func (c explained) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	return c.Conn.(driver.ConnBeginTx).BeginTx(ctx, opts)
}

func (c explained) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	return c.Conn.(driver.ExecerContext).ExecContext(ctx, query, args)
}

func (c explained) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	q := c.Conn.(driver.QueryerContext)
	if c.prefix != "" {
		rows, err := q.QueryContext(ctx, c.prefix+query, args)
		if err != nil {
			return nil, err
		}
		text, err := lastColumn(rows)
		if err != nil {
			return nil, err
		}
		c.plans = append(c.plans, plan{query, text})
	}
	return q.QueryContext(ctx, query, args)
}

// lastColumn is that of all rows, one a line.
func lastColumn(rows driver.Rows) (text string, err error) {
	defer rows.Close()
	values := make([]driver.Value, len(rows.Columns()))
	for {
		switch err := rows.Next(values); err {
		case nil:
			text += fmt.Sprintf("%s\n", values[len(values)-1])
		case io.EOF:
			return text, nil
		default:
			return "", err
		}
	}
}

// plan is that of a query: in JSON, from PostgreSQL.
type plan struct{ query, text string }

// access is how a plan gets at a table.
type access struct{ table, kind, cond string }

func (p plan) accesses(t *testing.T) (list []access) {
	t.Helper()
	if strings.HasPrefix(p.text, "[") {
		var explained []struct{ Plan node }
		if err := json.Unmarshal([]byte(p.text), &explained); err != nil {
			t.Fatalf("%v\n%s", err, p.text)
		}
		return explained[0].Plan.accesses()
	}
	table := regexp.MustCompile(`usage_\w+`).FindString(p.query)                             // h is that
	text := strings.Replace(p.text, "SCAN h\n", "", strings.Count(p.text, "CO-ROUTINE h\n")) // a subquery of that name
	for _, m := range regexp.MustCompile(`(?m)^(SEARCH|SCAN) (h|usage_\w+)(.*)`).FindAllStringSubmatch(text, -1) {
		if m[2] != "h" {
			table = m[2]
		}
		list = append(list, access{table, m[1], m[3]})
	}
	return list
}

// node is one of PostgreSQL's plans.
type node struct {
	Type  string `json:"Node Type"`
	Table string `json:"Relation Name"`
	Cond  string `json:"Index Cond"`
	Plans []node
}

func (n node) accesses() (list []access) {
	if n.Type == "Bitmap Heap Scan" {
		for _, index := range n.Plans {
			list = append(list, access{n.Table, index.Type, index.Cond})
		}
		return list
	}
	if n.Table != "" {
		list = append(list, access{n.Table, n.Type, n.Cond})
	}
	for _, p := range n.Plans {
		list = append(list, p.accesses()...)
	}
	return list
}

// reads says in what a reads more than p's query asks for; "": in nothing.
func (a access) reads(p plan) string {
	wants := []string{`\bkey ?[<>=]`}
	if a.table == "usage_history" {
		wants = append(wants, `\bstep ?=`, `\bbucket ?=`)
	}
	if strings.Contains(p.query, "MIN(h.bucket)") {
		wants = []string{`\bstep ?=`, `\bbucket ?>`} // and one row
	}
	for _, want := range wants {
		if !regexp.MustCompile(want).MatchString(a.cond) {
			return fmt.Sprintf("%s %s by %q, where %s is missing", a.kind, a.table, a.cond, want)
		}
	}
	return ""
}
