package dashboard

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/usagekit/usagekit/internal/counter"
	"github.com/usagekit/usagekit/store"
	"github.com/usagekit/usagekit/store/sqlite"
)

// past is a store that was there before this test.
type past struct {
	*store.Store
	db      *sqlx.DB
	batches int
}

// remembering returns a store of a zone that forgets nothing.
func remembering(t *testing.T, zone string) *past {
	return newPast(t, zone, store.Retention{Hourly: -1, Daily: -1, UserDaily: -1})
}

func newPast(t *testing.T, zone string, retention store.Retention) *past {
	t.Helper()
	location, err := time.LoadLocation(zone)
	if err != nil {
		t.Fatal(err)
	}
	db, err := sqlite.Open(filepath.Join(t.TempDir(), "usage.db"))
	if err != nil {
		t.Fatal(err)
	}
	st, err := store.New(t.Context(), db, store.Config{Location: location, Retention: retention})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		db.Close()
	})
	return &past{Store: st, db: db}
}

type batch struct {
	at     time.Time
	counts map[string]int64
}

// add adds batches of other instances, long gone, as those would have.
func (p *past) add(t *testing.T, batches ...batch) {
	t.Helper()
	tx, err := p.db.BeginTxx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback() // nothing, after Commit
	for _, b := range batches {
		one := counter.Batch{Opened: b.at.UnixMilli()}
		for name, n := range b.counts {
			one.Counts = append(one.Counts, counter.Count{Name: name, N: n})
		}
		// One fold takes so many of a writer.
		writer, seq := fmt.Sprintf("past-%d", p.batches/50), p.batches%50+1
		p.batches++
		if _, err := tx.Exec(`INSERT INTO usage_writers (writer, seq, sum, seen) VALUES (?, 0, x'', ?) ON CONFLICT DO NOTHING`, writer, time.Now().UnixMilli()); err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec(`INSERT INTO usage_inbox (writer, seq, opened, payload) VALUES (?, ?, ?, ?)`, writer, seq, one.Opened, one.Encode()); err != nil {
			t.Fatal(err)
		}
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	for waiting := 1; waiting > 0; {
		p.Inc("usagekit.flushed")
		if err := p.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := p.db.Get(&waiting, `SELECT COUNT(*) FROM usage_inbox`); err != nil {
			t.Fatal(err)
		}
	}
}

// at is an instant of RFC 3339.
func at(s string) time.Time {
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		panic(err)
	}
	return t
}

// askSeries asks h for the series of a query.
func askSeries(t *testing.T, h http.Handler, query string) (a series) {
	t.Helper()
	w := get(h, "/usage/api/series?"+query)
	if err := json.Unmarshal(w.Body.Bytes(), &a); err != nil || w.Code != 200 {
		t.Fatalf("%s: %d %v %.300s", query, w.Code, err, w.Body)
	}
	return a
}

func TestSeries(t *testing.T) {
	p := remembering(t, "UTC")
	p.add(t,
		batch{at("2025-03-01T10:15:00Z"), map[string]int64{"feature.a": 3, "feature.b": 5, "user.42.requests": 2, "user.7.requests": 1}},
		batch{at("2025-03-01T12:45:00Z"), map[string]int64{"feature.a": 4, "api.GET /x.requests": 3}},
		batch{at("2025-03-02T00:00:00Z"), map[string]int64{"feature.b": 1, "feature.c": 1, "feature.d": 1, "user.42.requests": 5}},
		batch{at("2025-03-03T00:00:00Z"), map[string]int64{"feature.a": 1 << 20, "feature.big": 1<<53 - 1}}, // beyond most ranges here
		batch{at("2025-04-03T00:00:00Z"), map[string]int64{"feature.big": 1<<53 - 1, "user.42.requests": 1}},
	)
	h := open(p)
	const (
		days  = `"zone":"UTC","stale":false,"step":"day","from":"2025-03-01T00:00:00Z","to":"2025-03-03T00:00:00Z","starts":["2025-03-01T00:00:00Z","2025-03-02T00:00:00Z"],`
		hours = `"zone":"UTC","stale":false,"step":"hour","from":"2025-03-01T10:30:00Z","to":"2025-03-01T12:00:01Z","starts":["2025-03-01T10:00:00Z","2025-03-01T11:00:00Z","2025-03-01T12:00:00Z"],`
	)
	for target, want := range map[string]string{
		// In the order asked for, with what was never counted, and zeros.
		"name=feature.b&name=nothing.x&name=feature.a&name=user.42.requests&from=2025-03-01&to=2025-03-02": `{` + days + `"more":false,"series":[
			{"name":"feature.b","total":6,"n":[5,1]},{"name":"nothing.x","total":0,"n":[0,0]},{"name":"feature.a","total":7,"n":[7,0]},{"name":"user.42.requests","total":7,"n":[2,5]}]}`,
		"name=feature.c&name=feature.a&name=feature.c&limit=1&step=day&from=2025-03-01&to=2025-03-02": `{` + days + `"more":false,"series":[
			{"name":"feature.c","total":1,"n":[0,1]},{"name":"feature.a","total":7,"n":[7,0]}]}`,
		// The largest, and whether there are more.
		"prefix=feature.&limit=2&step=day&from=2025-03-01&to=2025-03-02": `{` + days + `"more":true,"series":[{"name":"feature.a","total":7,"n":[7,0]},{"name":"feature.b","total":6,"n":[5,1]}]}`,
		"prefix=feature.&limit=3&step=day&from=2025-03-01&to=2025-03-02": `{` + days + `"more":true,"series":[{"name":"feature.a","total":7,"n":[7,0]},{"name":"feature.b","total":6,"n":[5,1]},{"name":"feature.c","total":1,"n":[0,1]}]}`,
		"prefix=feature.&limit=4&step=day&from=2025-03-01&to=2025-03-02": `{` + days + `"more":false,"series":[
			{"name":"feature.a","total":7,"n":[7,0]},{"name":"feature.b","total":6,"n":[5,1]},{"name":"feature.c","total":1,"n":[0,1]},{"name":"feature.d","total":1,"n":[0,1]}]}`,
		"prefix=feature.&except=feature.a&except=feature.c&step=day&from=2025-03-01&to=2025-03-02": `{` + days + `"more":false,"series":[{"name":"feature.b","total":6,"n":[5,1]},{"name":"feature.d","total":1,"n":[0,1]}]}`,
		"measure=requests&contains=GET&step=day&from=2025-03-01&to=2025-03-02":                     `{` + days + `"more":false,"series":[{"name":"api.GET /x.requests","total":3,"n":[3,0]}]}`,
		"prefix=nothing.&step=day&from=2025-03-01&to=2025-03-02":                                   `{` + days + `"more":false,"series":[]}`,
		// Whole hours, though the range begins and ends within some.
		"name=feature.a&from=2025-03-01T10:30:00Z&to=2025-03-01T12:00:01Z": `{` + hours + `"more":false,"series":[{"name":"feature.a","total":7,"n":[3,0,4]}]}`,
		// Active users are of their day or month, and no sum.
		"name=user.active.daily&name=feature.a&from=2025-03-01&to=2025-03-02": `{` + days + `"more":false,"series":[{"name":"user.active.daily","total":null,"n":[2,1]},{"name":"feature.a","total":7,"n":[7,0]}]}`,
		"name=user.active.monthly&from=2025-03-01&to=2025-04-30": `{"zone":"UTC","stale":false,"step":"month","from":"2025-03-01T00:00:00Z","to":"2025-05-01T00:00:00Z","starts":["2025-03-01T00:00:00Z","2025-04-01T00:00:00Z"],
			"more":false,"series":[{"name":"user.active.monthly","total":null,"n":[2,1]}]}`,
		// As far as every number goes.
		"name=feature.big&step=month&from=2025-03-01&to=2025-04-30": `{"zone":"UTC","stale":false,"step":"month","from":"2025-03-01T00:00:00Z","to":"2025-05-01T00:00:00Z","starts":["2025-03-01T00:00:00Z","2025-04-01T00:00:00Z"],
			"more":false,"series":[{"name":"feature.big","total":9007199254740991,"n":[9007199254740991,9007199254740991]}]}`,
	} {
		t.Run(target, func(t *testing.T) { same(t, decode(t, h, "/usage/api/series?"+target), want) })
	}
}

// answering is a fake with a history of its own.
type answering struct {
	fake
	history func(q store.Query) ([]store.Count, error)
}

func (a *answering) History(_ context.Context, q store.Query) ([]store.Count, error) {
	return a.history(q)
}

// The step goes by the length of the range; where that is not kept it is the next
// that is, unless one was asked for.
func TestSeriesStep(t *testing.T) {
	const day = 24 * time.Hour
	start := at("2020-01-01T00:00:00Z")
	kept := store.Hour // from here up
	broken := errors.New("the read failed")
	var fails error
	var reads []store.Step
	h := open(&answering{history: func(q store.Query) ([]store.Count, error) {
		reads = append(reads, q.Step)
		if q.Step < kept {
			return nil, store.QueryError("Step is finer than kept")
		}
		return []store.Count{{Name: "a.b", Start: start, N: 1}}, fails
	}})
	for _, c := range []struct {
		long  time.Duration
		step  string
		kept  store.Step
		fails error
		want  string // "": an error
		reads []store.Step
	}{
		{time.Second, "", store.Hour, nil, "hour", []store.Step{store.Hour}},
		{16 * day, "", store.Hour, nil, "hour", []store.Step{store.Hour}},
		{16*day + time.Second, "", store.Hour, nil, "day", []store.Step{store.Day}},
		{800 * day, "", store.Hour, nil, "day", []store.Step{store.Day}},
		{800*day + time.Second, "", store.Hour, nil, "month", []store.Step{store.Month}},
		{17 * day, "hour", store.Hour, nil, "hour", []store.Step{store.Hour}},
		{time.Hour, "month", store.Hour, nil, "month", []store.Step{store.Month}},
		{801 * day, "day", store.Hour, nil, "day", []store.Step{store.Day}},
		{time.Hour, "", store.Day, nil, "day", []store.Step{store.Hour, store.Day}},
		{time.Hour, "", store.Month, nil, "month", []store.Step{store.Hour, store.Day, store.Month}},
		{30 * day, "", store.Month, nil, "month", []store.Step{store.Day, store.Month}},
		{time.Hour, "", store.Month + 1, nil, "", []store.Step{store.Hour, store.Day, store.Month}},
		{time.Hour, "hour", store.Day, nil, "", []store.Step{store.Hour}},
		{time.Hour, "", store.Hour, broken, "", []store.Step{store.Hour}}, // no coarser one would help
		{time.Hour, "", store.Day, broken, "", []store.Step{store.Hour, store.Day}},
	} {
		kept, fails, reads = c.kept, c.fails, nil
		h.(*handler).answers = newCache(time.Second)
		// The name keeps the keys of the cache apart.
		target := "/usage/api/series?name=a.b&from=2020-01-01&to=" + start.Add(c.long).Format(time.RFC3339) + "&step=" + c.step
		w := get(h, target)
		var a series
		err := json.Unmarshal(w.Body.Bytes(), &a)
		code := 200
		if c.want == "" {
			code = 400
		}
		if c.fails != nil {
			code = 503
		}
		if err != nil || w.Code != code || a.Step != c.want || !slices.Equal(reads, c.reads) {
			t.Errorf("%v, %q, kept from %v, %v: %d %s after %v, want %q after %v", c.long, c.step, c.kept, c.fails, w.Code, w.Body, reads, c.want, c.reads)
		}
	}
}

// What a real store does not keep: hours of users, and what Retention lets go.
func TestSeriesKept(t *testing.T) {
	p := newPast(t, "UTC", store.Retention{})
	day := func(ago int) string { return time.Now().UTC().AddDate(0, 0, -ago).Format(time.DateOnly) }
	midday := func(ago int) time.Time { return at(day(ago) + "T12:00:00Z") }
	p.add(t,
		batch{midday(2), map[string]int64{"feature.a": 2, "user.42.requests": 20}},
		batch{midday(50), map[string]int64{"feature.a": 50, "user.42.requests": 500}},
		batch{midday(120), map[string]int64{"feature.a": 120, "user.42.requests": 1200}},
	)
	h := open(p)
	for _, c := range []struct {
		names string
		ago   int
		step  string
		want  int64
	}{
		{"name=feature.a", 2, "hour", 2},
		{"name=user.42.requests", 2, "day", 20},
		{"name=feature.a&name=user.42.requests", 2, "day", 22},
		{"prefix=feature.", 2, "hour", 2},
		{"prefix=user.&measure=requests&contains=42", 2, "day", 20},
		{"measure=requests&contains=user", 2, "day", 20}, // which may be anybody's
		{"name=feature.a", 50, "day", 50},
		{"name=user.42.requests", 50, "day", 500},
		{"name=feature.a", 120, "day", 120},
		{"name=user.42.requests", 120, "month", 1200},
	} {
		target := "/usage/api/series?" + c.names + "&from=" + day(c.ago+1) + "&to=" + day(c.ago-1)
		var a series
		w := get(h, target)
		if err := json.Unmarshal(w.Body.Bytes(), &a); err != nil {
			t.Errorf("%s: %v", target, err)
		}
		total := int64(0)
		for _, s := range a.Series {
			total += *s.Total
		}
		if a.Step != c.step || total != c.want {
			t.Errorf("%s: %d, of %s %d, want of %s %d", target, w.Code, a.Step, total, c.step, c.want)
		}
		if c.step == "hour" {
			continue
		}
		if w := get(h, target+"&step=hour"); w.Code != 400 || !strings.Contains(w.Body.String(), "finer than kept") {
			t.Errorf("%s by hour: %d %s", target, w.Code, w.Body)
		}
	}
}

// Whatever the clocks of a zone do: every bucket is there, and has what was counted in
// it. The buckets here are not computed, but seen: one begins whenever the date, the
// hour or the zone's offset is another one than a quarter of an hour ago.
func TestSeriesZones(t *testing.T) {
	for _, c := range []struct {
		zone, first, last string
		hours             int
	}{
		{"UTC", "2025-03-29", "2025-03-31", 72},
		{"Europe/Paris", "2025-03-29", "2025-03-31", 71},
		{"Europe/Paris", "2025-10-25", "2025-10-27", 73},
		{"America/St_Johns", "2025-11-01", "2025-11-03", 73},    // -3:30, then -2:30
		{"Asia/Kolkata", "2025-03-30", "2025-03-30", 24},        // +5:30
		{"Asia/Kathmandu", "2025-03-30", "2025-03-30", 24},      // +5:45
		{"Australia/Lord_Howe", "2025-04-05", "2025-04-07", 73}, // by half an hour
		{"Australia/Lord_Howe", "2025-10-04", "2025-10-06", 72},
		{"America/Santiago", "2025-09-06", "2025-09-08", 71},   // a day without a midnight
		{"Pacific/Kiritimati", "2025-03-30", "2025-03-30", 24}, // +14
	} {
		t.Run(c.zone+" "+c.first, func(t *testing.T) {
			p := remembering(t, c.zone)
			zone := p.Location()
			from := startOfDay(at(c.first+"T00:00:00Z"), zone)
			to := startOfDay(at(c.last+"T00:00:00Z").AddDate(0, 0, 1), zone)
			var batches []batch
			for q := from.Add(-time.Hour); q.Before(to.Add(time.Hour)); q = q.Add(15 * time.Minute) {
				batches = append(batches, batch{q, map[string]int64{"feature.a": 1}})
			}
			p.add(t, batches...)
			h := open(p)
			for step, of := range map[string]string{"hour": "2006-01-02 15 -0700", "day": "2006-01-02"} {
				var starts []time.Time
				var n []int64
				for q, last := from, ""; q.Before(to); q = q.Add(15 * time.Minute) {
					if bucket := q.In(zone).Format(of); bucket != last {
						starts, n, last = append(starts, q), append(n, 0), bucket
					}
					n[len(n)-1]++
				}
				a := askSeries(t, h, "name=feature.a&name=never.counted&step="+step+"&from="+c.first+"&to="+c.last)
				if !slices.EqualFunc(a.Starts, starts, time.Time.Equal) || !slices.Equal(a.Series[0].N, n) {
					t.Errorf("by %s: %v\n%v, want %v\n%v", step, a.Starts, a.Series[0].N, starts, n)
				}
				if step == "hour" && len(starts) != c.hours {
					t.Errorf("%d hours, want %d", len(starts), c.hours)
				}
				if !a.From.Equal(from) || !a.To.Equal(to) || *a.Series[0].Total != int64(to.Sub(from)/(15*time.Minute)) || len(a.Series[1].N) != len(starts) || *a.Series[1].Total != 0 {
					t.Errorf("by %s: %v … %v, in all %d; never %v", step, a.From, a.To, *a.Series[0].Total, a.Series[1].N)
				}
				for i, s := range a.Starts {
					_, got := s.Zone()
					if _, want := starts[i].In(zone).Zone(); got != want {
						t.Errorf("by %s: %v is not written in the store's zone", step, s)
					}
				}
			}
		})
	}
	t.Run("months", func(t *testing.T) {
		for _, zone := range []string{"UTC", "Europe/Paris", "Asia/Kolkata", "Pacific/Kiritimati"} {
			p := remembering(t, zone)
			var batches []batch
			for date := at("2023-12-31T00:00:00Z"); date.Before(at("2025-03-03T00:00:00Z")); date = date.AddDate(0, 0, 1) {
				batches = append(batches, batch{startOfDay(date, p.Location()), map[string]int64{"feature.a": 1, "user.42.requests": 1}})
			}
			p.add(t, batches...)
			for _, name := range []string{"feature.a", "user.42.requests"} {
				a := askSeries(t, open(p), "name="+name+"&step=month&from=2024-01-01&to=2025-02-28")
				if got, want := a.Series[0].N, []int64{31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31, 31, 28}; !slices.Equal(got, want) {
					t.Errorf("%s: of %s %v, want %v", zone, name, got, want)
				}
			}
		}
	})
}

// Without to a series ends with the hour that runs, so that it is the same question
// for an hour.
func TestSeriesToNow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var reads atomic.Int64
		f := &fake{before: func(_ context.Context, what string) error {
			if what == "History" {
				reads.Add(1)
			}
			return nil
		}}
		f.skew = 10 * time.Minute // the database is ahead of us
		h := newHandler(from(f), Config{Auth: Public, MaxAge: 24 * time.Hour})
		for _, c := range []struct {
			wait  time.Duration
			to    string
			reads int64
		}{
			{0, "2000-01-01T01:00:00Z", 1},
			{49*time.Minute + 59*time.Second, "2000-01-01T01:00:00Z", 1},
			{time.Second, "2000-01-01T02:00:00Z", 2},
			{59 * time.Minute, "2000-01-01T02:00:00Z", 2},
		} {
			time.Sleep(c.wait)
			a := askSeries(t, h, "name=a.b&from=1999-12-31")
			if got := a.To.Format(time.RFC3339); got != c.to || reads.Load() != c.reads {
				t.Errorf("at %v to %s after %d reads, want %s after %d", time.Now(), got, reads.Load(), c.to, c.reads)
			}
		}
		for _, from := range []string{"2000-01-01T03:00:00Z", "2000-01-02", "2100-01-01"} {
			if w := get(h, "/usage/api/series?name=a.b&from="+from); w.Code != 400 || !strings.Contains(w.Body.String(), "from must lie before to, or before now") {
				t.Errorf("from %s: %d %s", from, w.Code, w.Body)
			}
		}
	})
}

func TestSeriesTooLong(t *testing.T) {
	names, hours := 1_000, 100
	h := open(&answering{history: func(q store.Query) (counts []store.Count, err error) {
		for i := range names {
			counts = append(counts, store.Count{Name: fmt.Sprintf("a.%d", i), Start: q.From, N: 1})
		}
		return counts, nil
	}})
	ask := func() (int, string) {
		h.(*handler).answers = newCache(time.Second)
		w := get(h, "/usage/api/series?prefix=a.&limit=1000&step=hour&from=2020-01-01&to="+url.QueryEscape(at("2020-01-01T00:00:00Z").Add(time.Duration(hours)*time.Hour).Format(time.RFC3339)))
		return w.Code, w.Body.String()
	}
	if code, body := ask(); code != 200 {
		t.Errorf("%d × %d points: %d %.100s", names, hours, code, body)
	}
	hours++
	if code, body := ask(); code != 400 || !strings.Contains(body, "at most 100000 are answered") {
		t.Errorf("%d × %d points: %d %.200s", names, hours, code, body)
	}
}

// Users are shown by the names that the application has for them, and by no others.
func TestSeriesLabels(t *testing.T) {
	of := func(counts []store.Count) *answering {
		return &answering{history: func(q store.Query) ([]store.Count, error) {
			now := slices.Clone(counts)
			for i := range now {
				now[i].Start = q.From
			}
			return now, nil
		}}
	}
	counts := []store.Count{
		{Name: "user.42.requests", N: 9}, {Name: "user.42.7.requests", N: 8}, {Name: "user.nobody.requests", N: 7}, {Name: "user.(other).requests", N: 6}, {Name: "user.((odd.requests", N: 5},
		{Name: "user.42.tokens", N: 4}, {Name: "user.registrations", N: 3}, {Name: "feature.42.requests", N: 2}, {Name: "user.active.daily", N: 1},
	}
	labels := func(a series) map[string]string {
		got := map[string]string{}
		for _, s := range a.Series {
			if s.Label != "" {
				got[s.Name] = s.Label
			}
		}
		return got
	}
	var asked []string
	everybody := func(_ context.Context, ids []string) (map[string]string, error) {
		asked = append(asked, ids...)
		return map[string]string{"42": "Ada", "42.7": "=Grace", "((odd": "\u202eodd", "registrations": "wrong", "daily": "wrong"}, nil
	}
	for name, c := range map[string]struct {
		users func(context.Context, []string) (map[string]string, error)
		want  map[string]string
	}{
		"all":    {everybody, map[string]string{"user.42.requests": "Ada", "user.42.7.requests": "=Grace", "user.((odd.requests": "\u202eodd"}},
		"none":   {nil, nil},
		"no map": {func(context.Context, []string) (map[string]string, error) { return nil, nil }, nil},
		"error": {func(context.Context, []string) (map[string]string, error) {
			return map[string]string{"42": "Ada"}, errors.New("broken")
		}, nil},
		"panic":   {func(context.Context, []string) (map[string]string, error) { panic("broken") }, nil},
		"silence": {func(ctx context.Context, _ []string) (map[string]string, error) { <-ctx.Done(); return nil, ctx.Err() }, nil},
		"deaf":    {func(context.Context, []string) (map[string]string, error) { time.Sleep(time.Minute); return nil, nil }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				asked = nil
				h := newHandler(from(of(counts)), Config{Auth: Public, Users: c.users})
				began := time.Now()
				a := askSeries(t, h, "range=24h")
				if got := labels(a); len(a.Series) != len(counts) || fmt.Sprint(got) != fmt.Sprint(c.want) && len(got)+len(c.want) > 0 {
					t.Errorf("%d series, labels %q, want %q", len(a.Series), got, c.want)
				}
				if took := time.Since(began); took > namesTimeout {
					t.Errorf("it took %v", took)
				}
				if want := []string{"42", "42.7", "nobody", "((odd"}; name == "all" && !slices.Equal(asked, want) {
					t.Errorf("asked for %q, want %q", asked, want)
				}
				time.Sleep(time.Minute) // who is deaf ends, too
			})
		})
	}
	// Without users nobody is asked for names.
	synctest.Test(t, func(t *testing.T) {
		asked = nil
		h := newHandler(from(of(counts[5:])), Config{Auth: Public, Users: everybody})
		if a := askSeries(t, h, "range=24h"); len(labels(a)) > 0 || asked != nil {
			t.Errorf("asked for %q", asked)
		}
	})
	// Those given last are shown while the application does not answer.
	synctest.Test(t, func(t *testing.T) {
		var broken atomic.Bool
		h := newHandler(from(of(counts)), Config{Auth: Public, Users: func(ctx context.Context, ids []string) (map[string]string, error) {
			if broken.Load() {
				return nil, context.DeadlineExceeded
			}
			return everybody(ctx, ids)
		}})
		first := labels(askSeries(t, h, "range=24h"))
		time.Sleep(time.Minute)
		broken.Store(true)
		if again := labels(askSeries(t, h, "range=24h")); len(first) != 3 || len(again) != 3 {
			t.Errorf("first %q, then %q", first, again)
		}
	})
}

// Quotas are kept in the step of their window, and are in every range: of those by the
// hour a day is the sum, however few are asked for, and those by the month are in one day.
func TestQuotasAreInEverySeries(t *testing.T) {
	st := filled(t, map[string]int64{"quota.42.refused": 3})
	for name, step := range map[string]store.Step{"quota.42.daily": store.Day, "quota.42.hourly": store.Hour, "quota.42.monthly": store.Month} {
		for range 2 {
			if _, _, ok, err := st.Take(t.Context(), name, 5, 100, step); err != nil || !ok {
				t.Fatal(ok, err)
			}
		}
	}
	h := open(st)
	for _, query := range []string{"prefix=quota.", "prefix=quota.42.&limit=4", "name=quota.42.daily&name=quota.42.hourly&name=quota.42.monthly&name=quota.42.refused"} {
		for _, r := range []string{"today", "24h", "7d", "30d", "90d", "13mo", "7d&step=month"} {
			var a series
			if err := json.Unmarshal(get(h, "/usage/api/series?"+query+"&range="+r).Body.Bytes(), &a); err != nil {
				t.Fatal(err)
			}
			got := map[string]int64{}
			for _, s := range a.Series {
				for _, n := range s.N {
					got[s.Name] += n
				}
			}
			if want := map[string]int64{"quota.42.daily": 10, "quota.42.hourly": 10, "quota.42.monthly": 10, "quota.42.refused": 3}; !maps.Equal(got, want) {
				t.Errorf("%s in %s: %v", query, r, got)
			}
		}
	}
}

// A quota by the month is in the day on which the month begins, or in the first day of
// the range; one by the day whose days are outside of the range is in none of it.
func TestMonthsOfQuotasAmongDays(t *testing.T) {
	january, february := at("2025-01-01T00:00:00Z"), at("2025-02-01T00:00:00Z")
	all := map[store.Step][]store.Count{
		store.Day: {{Name: "quota.1.daily", Start: at("2025-01-20T00:00:00Z"), N: 3}, {Name: "quota.2.daily", Start: at("2025-01-31T00:00:00Z"), N: 4}},
		store.Month: {
			{Name: "quota.1.daily", Start: january, N: 3}, {Name: "quota.2.daily", Start: january, N: 4}, {Name: "quota.3.monthly", Start: january, N: 5},
			{Name: "quota.3.monthly", Start: february, N: 6}, {Name: "quota.4.monthly", Start: february, N: 7},
		},
	}
	h := open(&answering{history: func(q store.Query) (counts []store.Count, err error) {
		from := q.From
		if q.Step == store.Month { // which is widened to whole ones
			from = from.AddDate(0, 0, 1-from.Day())
		}
		for _, c := range all[q.Step] {
			if !c.Start.Before(from) && (q.To.IsZero() || c.Start.Before(q.To)) && (len(q.Names) == 0 || slices.Contains(q.Names, c.Name)) {
				counts = append(counts, c)
			}
		}
		return counts, nil
	}})
	var a series
	if err := json.Unmarshal(get(h, "/usage/api/series?prefix=quota.&step=day&from=2025-01-30&to=2025-02-02").Body.Bytes(), &a); err != nil {
		t.Fatal(err)
	}
	got := ""
	for _, s := range a.Series {
		got += fmt.Sprintln(s.Name, *s.Total, s.N)
	}
	if want := "quota.3.monthly 11 [5 0 6 0]\nquota.4.monthly 7 [0 0 7 0]\nquota.2.daily 4 [0 4 0 0]\n"; len(a.Starts) != 4 || !a.Starts[2].Equal(february) || got != want {
		t.Errorf("in %v:\n%swant\n%s", a.Starts, got, want)
	}
}
