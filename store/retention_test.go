package store

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/usagekit/usagekit/internal/calendar"
	"github.com/usagekit/usagekit/internal/counter"
	"github.com/usagekit/usagekit/internal/dbtest"
	"github.com/usagekit/usagekit/internal/naming"
	"github.com/usagekit/usagekit/internal/upkeep"
	"github.com/usagekit/usagekit/store/postgres"
	"github.com/usagekit/usagekit/store/sqlite"
)

// onEachKind runs test for each kind of database; open makes an empty one.
func onEachKind(t *testing.T, test func(t *testing.T, open func(t *testing.T) *sqlx.DB)) {
	for name, open := range map[string]func(t *testing.T) (*sqlx.DB, error){
		"sqlite":   func(t *testing.T) (*sqlx.DB, error) { return sqlite.Open(filepath.Join(t.TempDir(), "usage.db")) },
		"postgres": func(t *testing.T) (*sqlx.DB, error) { return postgres.Open(Server.NewDatabase(t)) },
	} {
		t.Run(name, func(t *testing.T) {
			if name == "postgres" && Server == nil {
				t.Log("PostgreSQL was not tried: make test does")
				return
			}
			test(t, func(t *testing.T) *sqlx.DB {
				db, err := open(t)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { db.Close() })
				return db
			})
		})
	}
}

// onEach runs test on an empty database of each kind.
func onEach(t *testing.T, test func(t *testing.T, db *sqlx.DB)) {
	onEachKind(t, func(t *testing.T, open func(t *testing.T) *sqlx.DB) {
		t.Parallel()
		test(t, open(t))
	})
}

// Retention removes the hours and days that are too old, of each kind by its own
// measure, and nothing else.
func TestRetention(t *testing.T) {
	onEach(t, func(t *testing.T, db *sqlx.DB) {
		ctx := dbtest.Context(t)
		loc, err := time.LoadLocation("Asia/Kathmandu")
		if err != nil {
			t.Fatal(err)
		}
		const day = 24 * time.Hour
		s, err := open(ctx, db, Config{Location: loc, Retention: Retention{Hourly: 10 * day, Daily: 200 * day}})
		if err != nil {
			t.Fatal(err)
		}
		defer s.life.cancel()
		now := time.Now()
		var rows []row
		want := map[bucket]bool{}
		put := func(step calendar.Step, ago int, keep bool, names ...string) {
			for _, name := range names {
				b := bucket{step, s.clock.Calendar().Start(step, now.AddDate(0, 0, -ago)).Unix(), name}
				if _, ok := want[b]; !ok { // another day of the same month
					rows = append(rows, row{b, 1})
				}
				want[b] = keep
			}
		}
		for _, ago := range []int{0, 9, 12, 30} {
			put(calendar.Hour, ago, ago <= 10, "api.GET /a.requests", "zzz", "quota.1.hourly")
		}
		for _, ago := range []int{0, 89, 92, 199, 202, 2000} {
			put(calendar.Day, ago, ago <= 200, "api.GET /a.requests", "a", "user.active.daily", "user.registrations", "usera.b.c", "zzz.a.b", "r.a.b")
			put(calendar.Day, ago, ago <= 90, "user.active.requests", "user.42.requests", "user.a.b.logins", "quota.1.daily", "quota.1.refused", "user..requests")
			put(calendar.Month, ago, true, "user.42.requests", "quota.1.monthly")
		}
		for i := range 2*upkeep.Piece + 100 {
			put(calendar.Day, 92, false, fmt.Sprintf("user.%d.requests", 100+i))
		}
		s.put(t, rows...)
		db.MustExec(`INSERT INTO usage_metrics VALUES ('user.42.requests', 5)`)
		old := s.clock.Calendar().Start(calendar.Day, now.AddDate(0, 0, -2000)).Unix()
		young := s.clock.Calendar().Start(calendar.Day, now.AddDate(0, 0, -3)).Unix()
		for _, at := range [][2]int64{{0, 0}, {2, old}, {2, young}} {
			db.MustExec(db.Rebind(`INSERT INTO usage_crossings VALUES (?, ?, 5, 'user.42.requests', 5, 1)`), at[0], at[1])
		}
		for _, days := range []time.Duration{6, 8} { // of which nobody has told a receiver that this instance lacks
			db.MustExec(db.Rebind(`INSERT INTO usage_notices VALUES ('mail', ?, 0, 0, 5, 'user.42.requests', 5, 0, 0)`), now.Add(-days*day).UnixMilli())
		}
		for writer, ago := range map[string]time.Duration{"gone": 91 * day, "waits": 91 * day, "here": 80 * day} {
			db.MustExec(db.Rebind(`INSERT INTO usage_writers (writer, seq, sum, seen) VALUES (?, 1, ?, ?)`), writer, []byte{}, now.Add(-ago).UnixMilli())
		}
		db.MustExec(db.Rebind(`INSERT INTO usage_inbox (writer, seq, opened, payload) VALUES ('waits', 2, 0, ?)`), []byte{})

		parts := s.newPruner()
		for range 2 { // the second time finds nothing
			if err := parts.Prune(ctx); err != nil {
				t.Fatal(err)
			}
		}
		var left []struct {
			bucket
			Value int64
		}
		if err := db.Select(&left, `SELECT step, bucket, key, value FROM usage_history`); err != nil {
			t.Fatal(err)
		}
		for _, r := range left {
			if !want[r.bucket] {
				t.Errorf("%v is there still, %v old", r.bucket, now.Sub(time.Unix(r.Bucket, 0)))
			}
			delete(want, r.bucket)
		}
		for b, keep := range want {
			if keep {
				t.Errorf("%v is gone, only %v old", b, now.Sub(time.Unix(b.Bucket, 0)))
			}
		}
		for query, want := range map[string]int{
			`SELECT value FROM usage_metrics WHERE key = 'user.42.requests'`:       5,
			`SELECT COUNT(*) FROM usage_crossings`:                                 2,
			`SELECT COUNT(*) FROM usage_notices`:                                   1,
			`SELECT COUNT(*) FROM usage_writers WHERE writer IN ('gone')`:          0,
			`SELECT COUNT(*) FROM usage_writers WHERE writer IN ('waits', 'here')`: 2,
		} {
			var n int
			if err := db.Get(&n, query); err != nil || n != want {
				t.Errorf("%s: %d, %v, want %d", query, n, err, want)
			}
		}
	})
}

// Where the clocks differ, nothing is removed: one of them is wrong, and it may be
// the one that would say what is old.
func TestRetentionWithAWrongClock(t *testing.T) {
	onEach(t, func(t *testing.T, db *sqlx.DB) {
		ctx := dbtest.Context(t)
		s, err := open(ctx, db, Config{})
		if err != nil {
			t.Fatal(err)
		}
		defer s.life.cancel()
		b := bucket{calendar.Hour, s.clock.Calendar().Start(calendar.Hour, time.Now().AddDate(0, 0, -40)).Unix(), "a"}
		s.put(t, row{b, 1})
		clock := regexp.MustCompile(`AS bounded, .* AS now`)
		for _, wrong := range []time.Duration{-2 * time.Hour, 2 * time.Hour, 10_000 * time.Hour} {
			s.db.Edit = func(q string) string {
				return clock.ReplaceAllString(q, fmt.Sprintf("AS bounded, CAST(%d AS BIGINT) AS now", time.Now().Add(wrong).UnixMilli()))
			}
			if err := s.newPruner().Prune(ctx); err == nil || !strings.Contains(err.Error(), "clock") {
				t.Errorf("a clock %v off: %v", wrong, err)
			}
		}
		var n int
		if err := db.Get(&n, `SELECT COUNT(*) FROM usage_history`); err != nil || n != 1 {
			t.Errorf("%d rows are left, %v", n, err)
		}
		s.db.Edit = nil
		if err := s.newPruner().Prune(ctx); err != nil {
			t.Error(err)
		}
		if err := db.Get(&n, `SELECT COUNT(*) FROM usage_history`); err != nil || n != 0 {
			t.Errorf("%d rows are left with the right clock, %v", n, err)
		}
	})
}

// A batch that comes after its history is gone counts in the totals, and brings no
// row back, of which nothing would be summed right.
func TestRetentionOfLateBatches(t *testing.T) {
	onEach(t, func(t *testing.T, db *sqlx.DB) {
		ctx := dbtest.Context(t)
		s, err := open(ctx, db, Config{})
		if err != nil {
			t.Fatal(err)
		}
		defer s.life.cancel()
		for i, days := range []int{40, 100, 500} {
			batch := counter.Batch{Opened: time.Now().AddDate(0, 0, -days).UnixMilli(), Counts: []counter.Count{{Name: "api.GET /a.requests", N: 2}, {Name: "user.1.requests", N: 3}}}
			db.MustExec(db.Rebind(`INSERT INTO usage_writers (writer, seq, sum, seen) VALUES (?, 0, ?, ?)`), fmt.Sprint(i), []byte{}, time.Now().UnixMilli())
			db.MustExec(db.Rebind(`INSERT INTO usage_inbox (writer, seq, opened, payload) VALUES (?, 1, ?, ?)`), fmt.Sprint(i), batch.Opened, batch.Encode())
		}
		if f, err := s.folder.Fold(ctx, true); err != nil || f.Batches != 3 {
			t.Fatal(f, err)
		}
		for name, want := range map[string]int64{"api.GET /a.requests": 6, "api.requests.total": 6, "user.1.requests": 9} {
			if n, err := s.Get(ctx, name); n != want || err != nil {
				t.Errorf("%s = %d, %v, want %d", name, n, err, want)
			}
		}
		var rows []struct {
			Step int
			Key  string
			N    int
		}
		if err := db.Select(&rows, `SELECT step, key, COUNT(*) AS n FROM usage_history GROUP BY step, key ORDER BY step, key`); err != nil {
			t.Fatal(err)
		}
		want := "[{2 api.GET /a.requests 2} {2 api.requests.total 2} {2 user.1.requests 1} {2 user.active.daily 1} {3 user.1.requests 3} {3 user.active.monthly 3}]"
		if got := fmt.Sprint(rows); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	})
}

// A range that reaches back to where only days are kept, or months of users, is
// widened to those; a step that is gone there is an error, or another one when none
// was asked for.
func TestReadsBeforeTheHorizon(t *testing.T) {
	onEach(t, func(t *testing.T, db *sqlx.DB) {
		ctx := dbtest.Context(t)
		s, err := open(ctx, db, Config{})
		if err != nil {
			t.Fatal(err)
		}
		defer s.life.cancel()
		now := time.Now()
		var rows []row
		days := map[int64]int64{} // what was counted each day
		for ago := range 200 * 24 / 17 {
			at := now.Add(-time.Duration(ago) * 17 * time.Hour)
			n := int64(ago%5 + 1)
			for _, step := range []calendar.Step{calendar.Hour, calendar.Day, calendar.Month} {
				for _, name := range []string{"feature.a.used", "user.1.requests"} {
					group, _, _ := naming.Split(name)
					b := bucket{step, s.clock.Calendar().Start(step, at).Unix(), name}
					if k := stepsOf(group); k[0] != step && k[1] != step {
						continue
					}
					rows = append(rows, row{b, n})
				}
			}
			days[s.clock.Calendar().Start(calendar.Day, at).Unix()] += n
		}
		for _, r := range rows { // several are of one bucket
			s.put(t, r)
		}
		if err := s.newPruner().Prune(ctx); err != nil {
			t.Fatal(err)
		}
		sum := func(from, to time.Time) (n int64) {
			for at, d := range days {
				if !time.Unix(at, 0).Before(from) && time.Unix(at, 0).Before(to) {
					n += d
				}
			}
			return n
		}
		ago := func(days int) time.Time { return now.AddDate(0, 0, -days) }
		for _, r := range [][2]int{{199, 0}, {150, 60}, {150, 89}, {91, 89}, {120, 119}, {100, 3}, {36, 35}, {60, 34}} {
			from, to := ago(r[0]).Add(90*time.Minute), ago(r[1])
			got, err := s.Totals(ctx, Query{Name: "feature.a.used", From: from, To: to})
			if err != nil {
				t.Fatal(err)
			}
			want := sum(s.clock.Calendar().Start(calendar.Day, from), s.clock.Calendar().Ceil(calendar.Day, to))
			exact := !to.Before(time.Unix(s.clock.Horizon(now).Hours, 0)) // its end is in hours
			if len(got) != 1 || got[0].N != want && !exact || exact && (got[0].N > want || got[0].N < want-60) {
				t.Errorf("feature.a.used from %d to %d days ago: %v, want %d", r[0], r[1], got, want)
			}
			got, err = s.Totals(ctx, Query{Name: "user.1.requests", From: from, To: to})
			if err != nil {
				t.Fatal(err)
			}
			if r[0] > 90 {
				from = s.clock.Calendar().Start(calendar.Month, from)
			}
			if r[0] > 90 && s.clock.Calendar().Start(calendar.Month, to).Before(time.Unix(s.clock.Horizon(now).Users, 0)) { // some of its days are gone
				to = s.clock.Calendar().Ceil(calendar.Month, to)
			}
			if want := sum(s.clock.Calendar().Start(calendar.Day, from), s.clock.Calendar().Ceil(calendar.Day, to)); len(got) != 1 || got[0].N != want {
				t.Errorf("user.1.requests from %d to %d days ago: %v, want %d", r[0], r[1], got, want)
			}
		}
		// Months of users are there when no day is any more.
		long := now.AddDate(-2, 0, 0)
		s.put(t, row{bucket{calendar.Month, s.clock.Calendar().Start(calendar.Month, long).Unix(), "user.2.requests"}, 7})
		if h, err := s.History(ctx, Query{Name: "user.2.requests", Step: Month}); err != nil || len(h) != 1 || h[0].N != 7 {
			t.Errorf("History of two years ago: %v, %v", h, err)
		}
		if c, err := s.Totals(ctx, Query{Name: "user.2.requests", From: long.AddDate(0, 0, -1)}); err != nil || len(c) != 1 || c[0].N != 7 {
			t.Errorf("Totals of two years ago: %v, %v", c, err)
		}
		// A list is as old as the oldest of its names. Distinct users of days are no
		// months: there are as many of them as are kept.
		users := Query{Names: []string{"user.1.requests", "user.2.requests"}, From: ago(100)}
		if h, err := s.History(ctx, users); err != nil || len(h) < 3 || h[0].Start.Day() != 1 || h[1].Start.Day() != 1 {
			t.Errorf("History of users: %v, %v", h, err)
		}
		users.Step = Day
		var old QueryError
		if h, err := s.History(ctx, users); !errors.As(err, &old) || !strings.Contains(err.Error(), "Config.Retention") {
			t.Errorf("History of users by day: %v, %v", h, err)
		}
		s.put(t, row{bucket{calendar.Day, s.clock.Calendar().Start(calendar.Day, ago(300)).Unix(), naming.ActiveDaily}, 5})
		for _, q := range []Query{{Name: naming.ActiveDaily}, {Names: []string{naming.ActiveDaily, "user.registrations"}}} {
			q.From = ago(500)
			if h, err := s.History(ctx, q); err != nil || len(h) != 1 || h[0].N != 5 || !h[0].Start.Equal(s.clock.Calendar().Start(calendar.Day, ago(300))) {
				t.Errorf("History(%+v): %v, %v", q, h, err)
			}
		}
		// What is too old, and was not removed yet, is in no answer.
		s.put(t,
			row{bucket{calendar.Day, s.clock.Calendar().Start(calendar.Day, ago(450)).Unix(), "feature.old.used"}, 9},
			row{bucket{calendar.Day, s.clock.Calendar().Start(calendar.Day, ago(300)).Unix(), "feature.old.used"}, 2})
		for _, q := range []Query{{From: ago(500)}, {From: ago(500), To: now}, {To: now}, {From: ago(500), Step: Month}} {
			q.Name = "feature.old.used"
			if c, err := s.Totals(ctx, q); err != nil || len(c) != 1 || c[0].N != 2 {
				t.Errorf("Totals(%+v): %v, %v", q, c, err)
			}
			q.Step = max(q.Step, Day)
			if h, err := s.History(ctx, q); err != nil || len(h) != 1 || h[0].N != 2 {
				t.Errorf("History(%+v): %v, %v", q, h, err)
			}
		}
		for _, c := range []struct {
			name string
			days int
			step Step
			bad  bool
		}{
			{"feature.a.used", 60, Hour, true}, {"feature.a.used", 60, 0, false}, {"feature.a.used", 30, Hour, false},
			{"user.1.requests", 100, Day, true}, {"user.1.requests", 100, 0, false}, {"user.1.requests", 80, Day, false},
			{"user.active.daily", 150, Day, false}, {"user.registrations", 150, Day, false},
		} {
			counts, err := s.History(ctx, Query{Name: c.name, From: ago(c.days), Step: c.step})
			var bad QueryError
			if errors.As(err, &bad) != c.bad || !c.bad && err != nil {
				t.Errorf("History of %s, %d days, by %v: %v", c.name, c.days, c.step, err)
			}
			if !c.bad && c.name[:5] != "user." && len(counts) > 0 && c.days == 60 && counts[0].Start.After(ago(59)) {
				t.Errorf("History of %s begins %v", c.name, counts[0].Start)
			}
		}
	})
}

// Days of users alone that are left: they are read, as are months when nothing else is.
func TestReadsOfOtherRetentions(t *testing.T) {
	onEach(t, func(t *testing.T, db *sqlx.DB) {
		ctx := dbtest.Context(t)
		const day = 24 * time.Hour
		s, err := open(ctx, db, Config{Retention: Retention{Hourly: 20 * day, Daily: 30 * day}})
		if err != nil {
			t.Fatal(err)
		}
		defer s.life.cancel()
		at := time.Now().AddDate(0, 0, -60)
		s.put(t,
			row{bucket{calendar.Day, s.clock.Calendar().Start(calendar.Day, at).Unix(), "user.1.requests"}, 3},
			row{bucket{calendar.Month, s.clock.Calendar().Start(calendar.Month, at).Unix(), "user.1.requests"}, 3},
			row{bucket{calendar.Month, s.clock.Calendar().Start(calendar.Month, at.AddDate(-3, 0, 0)).Unix(), "user.1.requests"}, 4})
		for _, c := range []struct {
			q    Query
			want string
		}{
			{Query{Step: Day}, "[3]"}, {Query{Step: Month}, "[4 3]"}, {Query{Step: Day, From: at.AddDate(0, 0, -1)}, "[3]"},
		} {
			c.q.Name = "user.1.requests"
			h, err := s.History(ctx, c.q)
			got := []int64{}
			for _, n := range h {
				got = append(got, n.N)
			}
			if err != nil || fmt.Sprint(got) != c.want {
				t.Errorf("%+v: %v, %v, want %s", c.q, got, err, c.want)
			}
		}
		if c, err := s.Totals(ctx, Query{Prefix: "user.", From: at.AddDate(-4, 0, 0)}); err != nil || len(c) != 1 || c[0].N != 7 {
			t.Errorf("Totals: %v, %v", c, err)
		}
		if c, err := s.Totals(ctx, Query{Prefix: "user.", From: at.AddDate(0, 0, -1), To: at.AddDate(0, 0, 1)}); err != nil || len(c) != 1 || c[0].N != 3 {
			t.Errorf("Totals of days: %v, %v", c, err)
		}
	})
}

// A range is widened to whole buckets of its step, where it begins after all that was
// counted, or ends before, too.
func TestRangesBesideAllCountsAreWidened(t *testing.T) {
	onEach(t, func(t *testing.T, db *sqlx.DB) {
		ctx := dbtest.Context(t)
		s, err := open(ctx, db, Config{})
		if err != nil {
			t.Fatal(err)
		}
		defer s.life.cancel()
		for _, name := range []string{"feature.a.used", "user.1.requests"} {
			month := s.clock.Calendar().Start(calendar.Month, time.Now().AddDate(0, 0, -60))
			day := func(n int) time.Time { return month.AddDate(0, 0, n-1) }
			s.put(t, row{bucket{calendar.Day, day(10).Unix(), name}, 3})
			if name != "feature.a.used" {
				s.put(t, row{bucket{calendar.Month, month.Unix(), name}, 3})
			}
			for _, q := range []Query{{From: day(15)}, {To: day(5)}, {From: day(15), To: day(16)}, {From: day(3), To: day(5)}} {
				q.Name = name
				for _, step := range []Step{Month, Day} {
					q.Step = step
					var want int64
					if step == Month {
						want = 3
					}
					var got [2]int64
					totals, err := s.Totals(ctx, q)
					for _, c := range totals {
						got[0] += c.N
					}
					history, err2 := s.History(ctx, q)
					for _, c := range history {
						got[1] += c.N
					}
					if err := errors.Join(err, err2); err != nil || got != [2]int64{want, want} {
						t.Errorf("%s of the 10th, from %v to %v by %v: %d in totals and %d in history, %v; want %d", name, q.From, q.To, step, got[0], got[1], err, want)
					}
				}
			}
		}
	})
}

// What is read goes by the database's clock: a host whose own is years ahead sees
// what there is.
func TestReadsWithAWrongClock(t *testing.T) {
	onEach(t, func(t *testing.T, db *sqlx.DB) {
		ctx := dbtest.Context(t)
		s, err := open(ctx, db, Config{})
		if err != nil {
			t.Fatal(err)
		}
		defer s.life.cancel()
		now := time.Now().AddDate(-3, 0, 0) // of the database
		clock := regexp.MustCompile(`AS prepared, .* AS now, \(SELECT COUNT`)
		s.db.Edit = func(q string) string {
			return clock.ReplaceAllString(q, fmt.Sprintf("AS prepared, CAST(%d AS BIGINT) AS now, (SELECT COUNT", now.UnixMilli()))
		}
		for _, step := range []calendar.Step{calendar.Hour, calendar.Day} {
			s.put(t, row{bucket{step, s.clock.Calendar().Start(step, now).Unix(), "feature.a.used"}, 3})
		}
		q := Query{Name: "feature.a.used", From: now.Add(-24 * time.Hour)}
		if c, err := s.Totals(ctx, q); err != nil || len(c) != 1 || c[0].N != 3 {
			t.Errorf("Totals: %v, %v", c, err)
		}
		q.Step = Hour
		if h, err := s.History(ctx, q); err != nil || len(h) != 1 || h[0].N != 3 {
			t.Errorf("History: %v, %v", h, err)
		}
		err = s.Read(ctx, func(_ context.Context, r *Reading) error {
			if r.Now.UnixMilli() != now.UnixMilli() {
				t.Errorf("Now is %v, want %v", r.Now, now)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
}
