package store

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/usagekit/usagekit/internal/counter"
	"github.com/usagekit/usagekit/internal/dbtest"
	"github.com/usagekit/usagekit/store/postgres"
	"github.com/usagekit/usagekit/store/sqlite"
)

// testdata/12f957b is of that commit: a database of each kind that it filled, what it
// answered (before.txt), and what it answered and told after it had folded what waits there
// (after.txt, told.txt). In it are counts of every group and step, two batches set aside,
// three that wait and a repeat, crossings that are recorded and told, and others that are
// still to be told, one of them claimed. It is what it was: it is not to be made anew.
const filled = "testdata/12f957b"

func TestUpgradeSQLite(t *testing.T) {
	create := func(t *testing.T) (*sqlx.DB, error) { return sqlite.Open(filepath.Join(t.TempDir(), "usage.db")) }
	t.Run("as it was filled", func(t *testing.T) { testUpgrade(t, "sqlite", create) })
	t.Run("with what came since", func(t *testing.T) { testUpgradeSince(t, "sqlite", create) })
}

func TestUpgradePostgreSQL(t *testing.T) {
	if Server == nil {
		t.Log("PostgreSQL was not tried: make test does")
		return
	}
	create := func(t *testing.T) (*sqlx.DB, error) { return postgres.Open(Server.NewDatabase(t)) }
	t.Run("as it was filled", func(t *testing.T) { testUpgrade(t, "postgres", create) })
	t.Run("with what came since", func(t *testing.T) { testUpgradeSince(t, "postgres", create) })
}

func recorded(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(filled, file))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// A database that an earlier release filled opens and answers as before, and goes on from
// where it was: no count is lost or counted again, and nothing is told twice.
func testUpgrade(t *testing.T, kind string, create func(t *testing.T) (*sqlx.DB, error)) {
	ctx := dbtest.Context(t)
	db, err := create(t)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.ExecContext(ctx, recorded(t, kind+".sql")); err != nil {
		t.Fatal(err)
	}
	told := map[string]chan Crossing{"mail": nil, "pager": nil}
	cfg := Config{
		Interval: time.Second / 10, Retention: Retention{-1, -1, -1}, Caps: map[string]int{"feature": 3, "llm": 1},
		Logger: slog.New(slog.DiscardHandler),
		Thresholds: []Threshold{ // those of then, and one more
			{Prefix: "feature.outline.", Measure: "generated", Value: 10},
			{Prefix: "feature.outline.", Measure: "generated", Value: 100},
			{Prefix: "feature.outline.", Measure: "generated", Value: 1000},
			{Prefix: "api.GET ", Measure: "requests", Value: 100},
			{Prefix: "api.requests.status_5xx", Step: Hour, Value: 2},
			{Prefix: "api.requests.total", Step: Day, Value: 50},
			{Prefix: "user.", Measure: "requests", Step: Day, Value: 20},
			{Prefix: "user.", Measure: "requests", Step: Month, Value: 30},
			{Prefix: "user.active.monthly", Step: Month, Value: 3},
		},
		Notify: map[string]func(context.Context, Crossing) error{},
	}
	for receiver := range told {
		heard := make(chan Crossing, 100)
		told[receiver], cfg.Notify[receiver] = heard, func(_ context.Context, c Crossing) error {
			heard <- c
			return nil
		}
	}

	var before map[string]string
	for _, start := range []string{"the first start", "the second start"} {
		s, err := open(ctx, db, cfg) // nothing is folded yet
		if err != nil {
			t.Fatalf("%s: %v", start, err)
		}
		differ(t, start, recorded(t, "before.txt"), answersOf(t, s))
		tables := tablesOf(t, db)
		if before != nil && !maps.Equal(before, tables) {
			t.Errorf("%s changed what is stored:\n%v\n%v", start, before, tables)
		}
		before = tables
		s.life.cancel()
	}

	elsewhere := cfg
	elsewhere.Location = time.UTC
	if s, err := New(ctx, db, elsewhere); err == nil || !strings.Contains(err.Error(), "Europe/Berlin") {
		if err == nil {
			_ = s.Shutdown(ctx)
		}
		t.Errorf("in another zone than the database's: %v", err)
	}

	s, err := New(ctx, db, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Shutdown(ctx); err != nil {
			t.Error(err)
		}
	}()
	foldAll(t, s)
	differ(t, "what waited is folded", recorded(t, "after.txt"), answersOf(t, s))

	// Counters that reach a threshold once more have crossed it already: all of those that
	// have are set back, and pass it anew, before one that is told.
	for _, table := range []string{"usage_metrics", "usage_history"} {
		s.exec(t, `UPDATE `+table+` SET value = 1 WHERE key IN ('feature.outline.generated', 'api.GET /novels/{id}.requests', 'api.requests.status_5xx', 'api.requests.total', 'user.42.requests', 'user.7.requests', 'user.active.monthly')`)
	}
	w := &deadWriter{s: s}
	w.leave(t, "2024-02-28T21:20:00Z", "user.42.requests 40, user.x.requests 1, user.y.requests 1, user.z.requests 1, api.GET /novels/{id}.status_5xx 5")
	w.leave(t, "2024-03-30T22:40:00Z", "user.42.requests 40, user.7.requests 25, api.GET /novels/{id}.requests 200, api.GET /novels/{id}.status_5xx 5")
	w.leave(t, "2024-10-27T00:20:00Z", "user.x.requests 1, user.y.requests 1, user.z.requests 1, feature.outline.generated 200")
	foldAll(t, s)
	w.leave(t, "2024-10-27T00:20:00Z", "feature.outline.generated 2000")
	foldAll(t, s)
	last := "feature.outline.generated\tvalue 1000\tn 2201"
	want := append(strings.Split(strings.TrimSpace(recorded(t, "told.txt")), "\n"), last)
	for receiver, heard := range told {
		differ(t, receiver+" is told", lines(want), lines(listen(t, heard, func(line string) bool { return line == last })))
	}

	// Quotas go on from what was taken.
	now, berlin := time.Now(), s.Location()
	for d := range 2 { // that the next day or hour may begin meanwhile
		day := time.Date(now.In(berlin).Year(), now.In(berlin).Month(), now.In(berlin).Day()+d, 0, 0, 0, 0, berlin).Unix()
		hour := now.Add(time.Duration(d) * time.Hour).Truncate(time.Hour).Unix()
		s.exec(t, `INSERT INTO usage_history (step, bucket, key, value) SELECT step, CASE step WHEN 1 THEN `+fmt.Sprint(hour)+` ELSE `+fmt.Sprint(day)+` END, key, value FROM usage_history WHERE key IN ('quota.42.daily', 'quota.42.hourly') AND bucket < 1740000000`)
	}
	for _, q := range []struct {
		name    string
		step    Step
		n, left int64
		ok      bool
	}{
		{"quota.42.daily", Day, 0, 3, true}, {"quota.42.daily", Day, 4, 3, false}, {"quota.42.daily", Day, 3, 0, true}, {"quota.42.daily", Day, 1, 0, false},
		{"quota.42.hourly", Hour, 5, 1, true}, {"quota.42.hourly", Hour, 2, 1, false},
	} {
		if left, _, ok, err := s.Take(ctx, q.name, q.n, 10, q.step); left != q.left || ok != q.ok || err != nil {
			t.Errorf("taking %d of 10 of %s: %d are left, %v, %v; want %d, %v", q.n, q.name, left, ok, err, q.left, q.ok)
		}
	}

	// What was set aside is there for somebody who looks, and no place to hide a user.
	const good, damaged = "d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4/1", "c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3/3"
	differ(t, "set aside", lines([]string{
		damaged + ": no batch",
		good + ": feature.chapter.written 50, quota.42.refused 1, user.42.requests 6, user.7.requests 5",
	}), lines(setAside(t, db)))
	if err := s.Erase(ctx, "42"); err != nil {
		t.Fatal(err)
	}
	differ(t, "set aside, after 42 was erased", lines([]string{good + ": feature.chapter.written 50, user.7.requests 5"}), lines(setAside(t, db)))
	for c, err := range s.Each(ctx, Query{Contains: ".42."}) {
		if err != nil || c.Name != "user.42.7.requests" { // who is another
			t.Errorf("after 42 was erased there is %v, %v", c, err)
		}
	}

	// A record of a user is gone, too: whoever has that id now crosses for the first time.
	w.leave(t, "2024-03-30T22:40:00Z", "user.42.requests 40, user.7.requests 40")
	foldAll(t, s)
	want = []string{
		"user.42.requests\tvalue 20\tn 40\tday 2024-03-30T00:00:00+01:00",
		"user.42.requests\tvalue 30\tn 40\tmonth 2024-03-01T00:00:00+01:00",
	}
	for receiver, heard := range told {
		n := 0
		differ(t, receiver+" is told after 42 was erased", lines(want), lines(listen(t, heard, func(string) bool { n++; return n == len(want) })))
	}
}

// listen returns what a receiver is told, in order, until last tells that this was all.
func listen(t *testing.T, heard <-chan Crossing, last func(line string) bool) (list []string) {
	t.Helper()
	late := time.After(dbtest.Limit / 5)
	for {
		select {
		case c := <-heard:
			line := fmt.Sprintf("%s\tvalue %d\tn %d", c.Name, c.Value, c.N)
			if c.Step != 0 {
				line += "\t" + c.Step.String() + " " + c.Start.Format(time.RFC3339)
			}
			if c.Time.Year() == 2024 { // else it is of today
				line += "\tat " + c.Time.Format(time.RFC3339)
			}
			if list = append(list, line); last(line) {
				return list
			}
		case <-late:
			t.Errorf("after %d crossings the last one is not told", len(list))
			return list
		}
	}
}

// deadWriter is a process that has left batches in the inbox.
type deadWriter struct {
	s   *Store
	seq int64
}

// leave leaves one, opened at that time, with counts: "name n, …".
func (w *deadWriter) leave(t *testing.T, opened, counts string) {
	t.Helper()
	at, err := time.Parse(time.RFC3339, opened)
	if err != nil {
		t.Fatal(err)
	}
	b := counter.Batch{Opened: at.UnixMilli()}
	for part := range strings.SplitSeq(counts, ", ") {
		i := strings.LastIndexByte(part, ' ')
		c := counter.Count{Name: part[:i]}
		if _, err := fmt.Sscan(part[i:], &c.N); err != nil {
			t.Fatal(err)
		}
		b.Counts = append(b.Counts, c)
	}
	w.seq++
	w.s.exec(t, `INSERT INTO usage_writers (writer, seq, sum, seen) VALUES ('f6f6', 0, ?, ?) ON CONFLICT DO NOTHING`, []byte{}, time.Now().UnixMilli())
	w.s.exec(t, `INSERT INTO usage_inbox (writer, seq, opened, payload) VALUES ('f6f6', ?, ?, ?)`, w.seq, b.Opened, b.Encode())
}

// differ reports the lines that are in one of two texts alone.
func differ(t *testing.T, of, want, got string) {
	t.Helper()
	wanted, have := strings.Split(want, "\n"), strings.Split(got, "\n")
	only := func(list, others []string) string {
		others = slices.Clone(others)
		return strings.Join(slices.DeleteFunc(slices.Clone(list), func(line string) bool {
			i := slices.Index(others, line)
			if i >= 0 {
				others = slices.Delete(others, i, i+1)
			}
			return i >= 0
		}), "\n")
	}
	if want != got {
		t.Errorf("%s: missing\n%s\nand there is\n%s\n(where both are empty, the order differs)", of, only(wanted, have), only(have, wanted))
	}
}

// lines are sorted lines of text.
func lines(list []string) string { return strings.Join(slices.Sorted(slices.Values(list)), "\n") }

// tablesOf is what the tables and views are, and how many rows they have; but for what each
// start does, which is to register a writer.
func tablesOf(t *testing.T, db *sqlx.DB) map[string]string {
	t.Helper()
	var names []string
	query := `SELECT name FROM sqlite_master WHERE type IN ('table', 'view')`
	if db.DriverName() == "postgres" {
		query = `SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'`
	}
	if err := db.Select(&names, query); err != nil {
		t.Fatal(err)
	}
	tables := map[string]string{}
	for _, name := range names {
		rows, err := db.Queryx(`SELECT * FROM ` + name)
		if err != nil {
			t.Fatal(err)
		}
		columns, err := rows.Columns()
		n := 0
		for rows.Next() {
			n++
		}
		if name == "usage_writers" {
			n = 0
		}
		if tables[name] = fmt.Sprint(columns, n); err != nil || rows.Err() != nil {
			t.Fatal(err, rows.Err())
		}
	}
	return tables
}

// setAside is what somebody finds who looks for batches that could not be counted.
func setAside(t *testing.T, db *sqlx.DB) (list []string) {
	t.Helper()
	var rows []struct {
		Name    string
		Payload []byte
	}
	if err := db.Select(&rows, `SELECT writer || '/' || seq AS name, payload FROM usage_quarantine`); err != nil {
		t.Fatal(err)
	}
	for _, r := range rows {
		text := "no batch"
		if b, err := counter.Decode(r.Payload); err == nil {
			var counts []string
			for _, c := range b.Counts {
				counts = append(counts, fmt.Sprintf("%s %d", c.Name, c.N))
			}
			text = strings.Join(counts, ", ")
		}
		list = append(list, r.Name+": "+text)
	}
	return list
}
