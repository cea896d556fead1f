package conformance

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/usagekit/usagekit/internal/counter"
	"github.com/usagekit/usagekit/store"
)

func queries(t *testing.T, b *bench) {
	s := b.store(b.config())
	for i, name := range []string{
		"user.a.requests", "user.a.b.requests", "user.A.requests", "user.ab.requests", "user.a%b.requests", "user.a_b.requests", "user.axb.requests",
		`user.a\b.requests`, "user.a.logins", "api.GET /x.requests", "feature.a.requests_made", "user.\U0010FFFF.requests", "user.\U0010FFFFz.requests", "plain",
	} {
		s.Add(name, int64(100-i))
	}
	b.flush(s)
	for _, c := range []struct {
		q    store.Query
		want string // names, largest first
	}{
		{store.Query{Name: "user.a.requests"}, "user.a.requests"},
		{store.Query{Prefix: "user.a."}, "user.a.requests user.a.b.requests user.a.logins"},
		{store.Query{Prefix: "user.a", Measure: "requests"}, `user.a.requests user.a.b.requests user.ab.requests user.a%b.requests user.a_b.requests user.axb.requests user.a\b.requests`},
		{store.Query{Prefix: "user.a%"}, "user.a%b.requests"},
		{store.Query{Prefix: "user.a_"}, "user.a_b.requests"},
		{store.Query{Prefix: `user.a\`}, `user.a\b.requests`},
		{store.Query{Prefix: "user.\U0010FFFF"}, "user.\U0010FFFF.requests user.\U0010FFFFz.requests"},
		{store.Query{Contains: "%"}, "user.a%b.requests"},
		{store.Query{Contains: "_"}, "user.a_b.requests feature.a.requests_made"},
		{store.Query{Contains: "A_B"}, "user.a_b.requests"},
		{store.Query{Contains: "get /X"}, "api.GET /x.requests"},
		{store.Query{Measure: "requests", Prefix: "api."}, "api.GET /x.requests"},
		{store.Query{Measure: "requests_made"}, "feature.a.requests_made"},
		{store.Query{Measure: "quests"}, ""},
		{store.Query{Prefix: "user.", Except: []string{"user.a", "user.\U0010FFFF"}}, "user.A.requests"},
		{store.Query{Prefix: "user.a", Limit: 2}, "user.a.requests user.a.b.requests"},
		{store.Query{Prefix: "nobody."}, ""},
		{store.Query{Contains: "LAI"}, "plain"},
	} {
		if strings.HasPrefix(c.q.Prefix, "user.a") && c.q.Prefix != "user.a." && c.q.Measure == "" && c.q.Limit == 0 {
			c.q.Except = []string{"user.active."}
		}
		counts, err := s.Totals(b.ctx, c.q)
		if err != nil {
			t.Errorf("%+v: %v", c.q, err)
			continue
		}
		var names []string
		for _, n := range counts {
			names = append(names, n.Name)
		}
		if got := strings.Join(names, " "); got != c.want {
			t.Errorf("%+v:\n got %s\nwant %s", c.q, got, c.want)
		}
	}
}

func rows(t *testing.T, b *bench) {
	s := b.store(b.config())
	for i := range 20 {
		route := fmt.Sprintf("GET /r%02d", i)
		s.Add("api."+route+".requests", int64(i+1))
		s.Add("api."+route+".status_2xx", int64(i+1))
	}
	s.Add("api.GET /r19.latency_5ms", 10)
	s.Add("api.GET /r19.latency_100ms", 10)
	s.Add("api.requests.novels", 1000)
	s.Add("user.a.requests", 5)
	s.Add("error..timeouts", 6) // no subject, with two dots
	s.Add("user.a.b.requests", 7)
	s.Add("user.a.b.logins", 1)
	s.Add("user.active.requests", 3) // whose other measures are no user's
	s.Add("user.registrations", 9)
	s.Add("x", 3)
	s.Add("other.y", 4)

	type result struct {
		group, subject string
		counts         map[string]int64
	}
	cases := []struct {
		q    store.Query
		want []result
	}{
		{store.Query{Prefix: "api.", Measure: "requests", Limit: 2}, []result{
			{"api", "GET /r19", map[string]int64{"requests": 20, "status_2xx": 20, "latency_5ms": 10, "latency_100ms": 10}},
			{"api", "GET /r18", map[string]int64{"requests": 19, "status_2xx": 19}},
		}},
		{store.Query{Prefix: "user.", Measure: "requests"}, []result{
			{"user", "a.b", map[string]int64{"requests": 7, "logins": 1}},
			{"user", "a", map[string]int64{"requests": 5}},
			{"user", "active", map[string]int64{"requests": 3}},
		}},
		{store.Query{Prefix: "user."}, []result{
			{"user", "", map[string]int64{"registrations": 9}},
			{"user", "a.b", map[string]int64{"requests": 7, "logins": 1}},
			{"user", "a", map[string]int64{"requests": 5}},
			{"user", "active", map[string]int64{"requests": 3}},
		}},
		{store.Query{Except: []string{"api.", "user."}}, []result{{"error", "", map[string]int64{"timeouts": 6}}, {"other", "", map[string]int64{"x": 3, "y": 4}}}},
		{store.Query{Name: "user.a.b.logins"}, []result{{"user", "a.b", map[string]int64{"requests": 7, "logins": 1}}}},
		{store.Query{Prefix: "nobody."}, nil},
	}
	for _, crowd := range []int{0, 10_001} { // a group of many names is read in another way
		for i := range crowd {
			s.Add(fmt.Sprintf("user.c%d.visits", i), 1)
		}
		b.flush(s)
		for _, c := range cases {
			if crowd > 0 {
				c.q.Limit = len(c.want)
			}
			for _, from := range []time.Time{{}, time.Now().Add(-24 * time.Hour)} {
				c.q.From = from
				var rows []store.Row
				if err := b.patiently(func() (err error) {
					rows, err = s.Rows(b.ctx, c.q)
					return err
				}); err != nil {
					t.Errorf("%+v: %v", c.q, err)
					continue
				}
				var got []result
				for _, r := range rows {
					got = append(got, result{r.Group, r.Subject, r.Counts})
				}
				if !reflect.DeepEqual(got, c.want) {
					t.Errorf("%+v:\n got %v\nwant %v", c.q, got, c.want)
				}
			}
		}
	}
	all, err := s.Rows(b.ctx, store.Query{Name: "api.GET /r19.requests"})
	if err != nil || len(all) != 1 {
		t.Fatal(all, err)
	}
	if p50, p95 := all[0].Quantile(0.5), all[0].Quantile(0.95); p50 != 5*time.Millisecond || p95 != 97500*time.Microsecond {
		t.Errorf("p50 %v, p95 %v; want 5ms, 97.5ms", p50, p95)
	}
}

// Random counts at random times, read back as totals and histories of random
// ranges, against sums over a list.
func ranges(t *testing.T, b *bench) {
	const seed = 20
	r := rand.New(rand.NewPCG(seed, seed))
	zone, err := time.LoadLocation([]string{"UTC", "Asia/Kathmandu"}[r.IntN(2)])
	if err != nil {
		t.Fatal(err)
	}
	cfg := b.config()
	cfg.Location = zone
	s := b.store(cfg)
	type event struct {
		at   time.Time
		name string
		n    int64
	}
	names := []string{"api.GET /a.requests", "api.GET /b.requests", "user.1.requests", "user.2.requests", "feature.f.used", "x"}
	start := time.Date(2026, 1, 20, 0, 0, 0, 0, zone)
	var events []event
	for i := range 300 {
		e := event{start.Add(time.Duration(r.Int64N(int64(100 * 24 * time.Hour)))).Truncate(time.Second), names[r.IntN(len(names))], r.Int64N(50) + 1}
		events = append(events, e)
		b.batch("model", int64(i+1), e.at, counter.Count{Name: e.name, N: e.n})
		if strings.HasPrefix(e.name, "api.") {
			events = append(events, event{e.at, "api.requests.total", e.n})
		}
	}
	b.fold(s)
	for b.number(`SELECT COUNT(*) FROM usage_inbox`) > 0 {
		b.fold(s)
	}

	floor := func(step store.Step, at time.Time) time.Time {
		at = at.In(zone)
		y, m, d := at.Date()
		switch step {
		case store.Hour:
			return time.Date(y, m, d, at.Hour(), 0, 0, 0, zone)
		case store.Day:
			return time.Date(y, m, d, 0, 0, 0, 0, zone)
		}
		return time.Date(y, m, 1, 0, 0, 0, 0, zone)
	}
	next := func(step store.Step, at time.Time) time.Time {
		at = floor(step, at)
		switch step {
		case store.Hour:
			return at.Add(time.Hour)
		case store.Day:
			return at.AddDate(0, 0, 1)
		}
		return at.AddDate(0, 1, 0)
	}
	for range 80 {
		q := store.Query{Prefix: []string{"api.", "user.", "feature.", "", "user.1."}[r.IntN(5)], Except: []string{"test.", "user.active."}}
		users := q.Prefix == "" || strings.HasPrefix(q.Prefix, "user.")
		from := start.Add(time.Duration(r.Int64N(int64(110*24*time.Hour))) - 5*24*time.Hour)
		to := from.Add(time.Duration(1 + r.Int64N(int64(60*24*time.Hour))))
		if r.IntN(4) > 0 {
			q.From = from
		}
		if r.IntN(4) > 0 {
			q.To = to
		}
		step := []store.Step{store.Hour, store.Day, store.Month}[r.IntN(3)]
		if users && step == store.Hour {
			step = store.Day
		}
		q.Step = step
		lo, hi := start.AddDate(-1, 0, 0), start.AddDate(1, 0, 0)
		if !q.From.IsZero() {
			lo = floor(step, q.From)
		}
		if !q.To.IsZero() {
			if hi = floor(step, q.To); !hi.Equal(q.To) {
				hi = next(step, q.To)
			}
		}
		wantTotals, wantHistory := map[string]int64{}, map[string]int64{}
		for _, e := range events {
			if strings.HasPrefix(e.name, q.Prefix) && !e.at.Before(lo) && e.at.Before(hi) {
				wantTotals[e.name] += e.n
				wantHistory[floor(step, e.at).Format(time.RFC3339)+" "+e.name] += e.n
			}
		}
		history, err := s.History(b.ctx, q)
		if err != nil {
			t.Fatal(err)
		}
		gotHistory := map[string]int64{}
		for _, c := range history {
			gotHistory[c.Start.Format(time.RFC3339)+" "+c.Name] += c.N
		}
		if !maps.Equal(gotHistory, wantHistory) {
			t.Errorf("zone %v, History(%+v):\n got %v\nwant %v", zone, q, gotHistory, wantHistory)
		}
		if !slices.IsSortedFunc(history, func(a, b store.Count) int { return a.Start.Compare(b.Start) }) {
			t.Errorf("History(%+v) is not oldest first", q)
		}
		if q.From.IsZero() && q.To.IsZero() {
			continue // all time has what belongs to the current day, too
		}
		if got := b.totals(s, q); !maps.Equal(got, wantTotals) {
			t.Errorf("zone %v, Totals(%+v):\n got %v\nwant %v", zone, q, got, wantTotals)
		}
	}
	top, err := s.History(b.ctx, store.Query{Prefix: "api.", Step: store.Month, Limit: 1})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range top {
		if c.Name != "api.requests.total" {
			t.Errorf("Limit 1 gives %s", c.Name)
		}
	}
	if len(top) < 4 {
		t.Errorf("Limit 1 is one name, not one bucket: %v", top)
	}
}

// What is wrong with a query is said by its field; the database is not asked.
func badQueries(t *testing.T, b *bench) {
	s := b.store(b.config())
	now := time.Now()
	for _, c := range []struct {
		q    store.Query
		says string
	}{
		{store.Query{Limit: -1}, "Limit"},
		{store.Query{Step: 9}, "Step"},
		{store.Query{From: now, To: now}, "From"},
		{store.Query{Prefix: "\xff"}, "Prefix"},
		{store.Query{Contains: "a\x00"}, "Contains"},
		{store.Query{Measure: "\xff"}, "Measure"},
		{store.Query{Except: []string{"\xff"}}, "Except"},
		{store.Query{Except: prefixes(101)}, "Except are 101: want 100 at most"},
		{store.Query{Step: store.Hour, Prefix: "user."}, "hour"},
		{store.Query{Step: store.Hour}, "hour"},
		{store.Query{Step: store.Day, Name: "user.active.monthly"}, "month"},
		{store.Query{Step: store.Month, Name: "user.active.daily"}, "user.active.monthly"},
		{store.Query{From: now, Name: "user.active.daily"}, "History"},
	} {
		_, err := s.Totals(b.ctx, c.q)
		var bad store.QueryError
		if !errors.As(err, &bad) || !strings.Contains(err.Error(), c.says) || errors.Is(err, store.ErrUnavailable) {
			t.Errorf("%+v: error %v, want one about %s", c.q, err, c.says)
		}
	}
}

// prefixes are n that no name begins with.
func prefixes(n int) []string {
	list := make([]string, n)
	for i := range list {
		list[i] = fmt.Sprintf("feature.none%d.", i)
	}
	return list
}

// As many as may be left out are left out, by every read and in every kind of range.
func manyExceptions(t *testing.T, b *bench) {
	cfg := b.config()
	cfg.Retention = store.Retention{}
	s := b.store(cfg)
	for _, name := range []string{"feature.none42.used", "feature.a.used", "user.7.requests", "quota.7.refused"} {
		s.Inc(name)
	}
	b.flush(s)
	now := time.Now()
	for _, from := range []time.Time{{}, now.Add(-time.Hour), now.AddDate(0, 0, -50), now.AddDate(-2, 0, 0)} {
		q := store.Query{From: from, Except: prefixes(100)}
		totals := b.totals(s, q)
		if totals["feature.a.used"] != 1 || totals["user.7.requests"] != 1 || totals["quota.7.refused"] != 1 || totals["feature.none42.used"] != 0 {
			t.Errorf("from %v: totals %v", from, totals)
		}
		rows, err := s.Rows(b.ctx, q)
		if n := len(rows); err != nil || n < 3 || slices.ContainsFunc(rows, func(r store.Row) bool { return r.Subject == "none42" }) {
			t.Errorf("from %v: rows %v, %v", from, rows, err)
		}
		q.Step = store.Day
		history, err := s.History(b.ctx, q)
		if n := len(history); err != nil || n < 3 || slices.ContainsFunc(history, func(c store.Count) bool { return c.Name == "feature.none42.used" }) {
			t.Errorf("from %v: history %v, %v", from, history, err)
		}
		n := 0
		for c, err := range s.Each(b.ctx, q) {
			if n++; err != nil || c.Name == "feature.none42.used" {
				t.Errorf("from %v: each %v, %v", from, c, err)
			}
		}
		if n < 3 {
			t.Errorf("from %v: each has %d", from, n)
		}
	}
}

// A zone at +05:45: its hours start at a quarter to, its days at 18:15 UTC.
func kathmandu(t *testing.T, b *bench) {
	zone, err := time.LoadLocation("Asia/Kathmandu")
	if err != nil {
		t.Fatal(err)
	}
	cfg := b.config()
	cfg.Location = zone
	s := b.store(cfg)
	midnight := time.Date(2026, 3, 10, 18, 15, 0, 0, time.UTC) // the 11th, there
	b.batch("w", 1, midnight.Add(-time.Second), counter.Count{Name: "feature.a.used", N: 1}, counter.Count{Name: "user.7.requests", N: 1})
	b.batch("w", 2, midnight, counter.Count{Name: "feature.a.used", N: 10}, counter.Count{Name: "user.7.requests", N: 1})
	b.batch("w", 3, midnight.Add(time.Hour), counter.Count{Name: "feature.a.used", N: 100}, counter.Count{Name: "user.8.requests", N: 1})
	b.fold(s)
	local := func(day, hour int) time.Time { return time.Date(2026, 3, day, hour, 0, 0, 0, zone) }
	for _, c := range []struct {
		q    store.Query
		want []store.Count
	}{
		{store.Query{Name: "feature.a.used"}, []store.Count{{Start: local(10, 23), N: 1}, {Start: local(11, 0), N: 10}, {Start: local(11, 1), N: 100}}},
		{store.Query{Name: "feature.a.used", Step: store.Day}, []store.Count{{Start: local(10, 0), N: 1}, {Start: local(11, 0), N: 110}}},
		{store.Query{Name: "feature.a.used", Step: store.Month}, []store.Count{{Start: local(1, 0), N: 111}}},
		{store.Query{Name: "user.active.daily"}, []store.Count{{Start: local(10, 0), N: 1}, {Start: local(11, 0), N: 2}}},
		{store.Query{Name: "user.active.monthly"}, []store.Count{{Start: local(1, 0), N: 2}}},
		{store.Query{Name: "feature.a.used", From: local(11, 0), To: local(11, 1)}, []store.Count{{Start: local(11, 0), N: 10}}},
	} {
		got, err := s.History(b.ctx, c.q)
		if err != nil {
			t.Fatal(err)
		}
		ok := len(got) == len(c.want)
		for i := 0; ok && i < len(got); i++ {
			ok = got[i].Start.Equal(c.want[i].Start) && got[i].Start.Location().String() == zone.String() && got[i].N == c.want[i].N
		}
		if !ok {
			t.Errorf("History(%+v) = %v, want %v", c.q, got, c.want)
		}
	}
	if s.Location().String() != zone.String() {
		t.Errorf("Location() = %v", s.Location())
	}
}
