package conformance

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/usagekit/usagekit/internal/counter"
	"github.com/usagekit/usagekit/internal/naming"
	"github.com/usagekit/usagekit/store"
)

// invalid tells whether an error is a Query's, and says so.
func invalid(err error, says string) bool {
	var bad store.QueryError
	return errors.As(err, &bad) && strings.Contains(string(bad), says) && !errors.Is(err, store.ErrUnavailable)
}

// A list of names selects what they would one by one.
func names(t *testing.T, b *bench) {
	s := b.store(b.config())
	all := map[string]int64{}
	for i := range 1200 {
		all[fmt.Sprintf("feature.f%04d.used", i)] = int64(i + 1)
	}
	const dirty = "a\x01b.c"
	cleaned := naming.Clean(dirty)
	for i, name := range []string{"api.GET /a.requests", "api.GET /a.status_2xx", "api.GET /b.requests", "api.requests.novels", "user.1.requests", "user.2.requests", "user.registrations", "x", "other.x", cleaned} {
		all[name] = int64(2000 + i)
	}
	for name, n := range all {
		s.Add(strings.Replace(name, cleaned, dirty, 1), n)
	}
	b.flush(s)
	day := time.Now().Add(-24 * time.Hour)

	list := []string{"user.1.requests", dirty, "x", "never.counted", "api.GET /a.requests", "x", "feature.f0007.used", "other.x"}
	given := slices.Clone(list)
	for _, c := range []struct {
		q    store.Query
		want string // in the order of size
	}{
		{store.Query{Names: list}, cleaned + " other.x x user.1.requests api.GET /a.requests feature.f0007.used"},
		{store.Query{Names: list, Limit: 2}, cleaned + " other.x"},
		{store.Query{Names: list, Prefix: "user."}, "user.1.requests"},
		{store.Query{Names: list, Prefix: "api.", Measure: "requests"}, "api.GET /a.requests"},
		{store.Query{Names: list, Contains: "F000"}, "feature.f0007.used"},
		{store.Query{Names: list, Except: []string{"feature.", "x", "a"}}, "other.x user.1.requests"},
		{store.Query{Names: list, Name: "x"}, "x"},
		{store.Query{Names: list, Name: "user.2.requests"}, ""},
		{store.Query{Names: []string{"never.counted"}}, ""},
		{store.Query{Names: []string{"user.2.requests"}}, "user.2.requests"},
		{store.Query{Names: []string{"user.2.requests", "user.registrations"}}, "user.registrations user.2.requests"},
		{store.Query{Names: []string{}, Prefix: "user.", Measure: "requests"}, "user.2.requests user.1.requests"},
	} {
		for _, from := range []time.Time{{}, day} {
			c.q.From = from
			var got []string
			counts, err := s.Totals(b.ctx, c.q)
			for _, n := range counts {
				got = append(got, n.Name)
				if n.N != all[n.Name] {
					t.Errorf("%+v: %v", c.q, n)
				}
			}
			if err != nil || strings.Join(got, " ") != c.want {
				t.Errorf("Totals(%+v): %v, %v\nwant %s", c.q, got, err, c.want)
			}
			var history []string
			counts, err = s.History(b.ctx, c.q)
			for _, n := range counts {
				history = append(history, n.Name)
				if n.Start.IsZero() || n.N != all[n.Name] {
					t.Errorf("%+v: %v", c.q, n)
				}
			}
			slices.Sort(got)
			slices.Sort(history)
			if err != nil || !slices.Equal(got, history) {
				t.Errorf("History(%+v): %v, %v\nwant %v", c.q, history, err, got)
			}
		}
	}
	if !slices.Equal(list, given) {
		t.Errorf("the caller's list is %v", list)
	}
	for _, from := range []time.Time{{}, day} {
		rows, err := s.Rows(b.ctx, store.Query{Names: []string{"api.requests.total", "api.GET /a.status_2xx", "user.registrations", "x"}, From: from})
		var got []string
		for _, r := range rows {
			got = append(got, fmt.Sprint(r.Group, "|", r.Subject, slices.Sorted(maps.Keys(r.Counts))))
		}
		want := "api|requests[novels status_2xx total], other|[x], user|[registrations], api|GET /a[requests status_2xx]"
		if err != nil || strings.Join(got, ", ") != want {
			t.Errorf("Rows: %s, %v\nwant %s", strings.Join(got, ", "), err, want)
		}
	}
	most := slices.Collect(maps.Keys(all))[:1000]
	got := b.totals(s, store.Query{Names: most})
	if len(got) != len(most) {
		t.Errorf("%d of %d names", len(got), len(most))
	}
	if _, err := s.Totals(b.ctx, store.Query{Names: append(most, "one.more")}); !invalid(err, "1001") {
		t.Errorf("too many names: %v", err)
	}

	// Steps are those of the names.
	starts := func(q store.Query) (string, error) {
		counts, err := s.History(b.ctx, q)
		hour, day, month := 0, 0, 0
		for _, c := range counts {
			now := time.Now().UTC()
			switch y, m, d := now.Date(); {
			case c.Start.Equal(time.Date(y, m, 1, 0, 0, 0, 0, time.UTC)) && c.Start.Day() != now.Day():
				month++
			case c.Start.Equal(time.Date(y, m, d, 0, 0, 0, 0, time.UTC)):
				day++
			default:
				hour++
			}
		}
		return fmt.Sprint(hour > 0, day, month), err
	}
	now := time.Now().UTC()
	if now.Day() > 1 && now.Hour() > 0 && now.Minute() < 59 { // else two of them are one
		for _, c := range []struct {
			names []string
			step  store.Step
			want  string // hours, days, months; else what is wrong
		}{
			{[]string{"api.requests.total", "feature.f0007.used"}, 0, "true 0 0"},
			{[]string{"api.requests.total", "feature.f0007.used"}, store.Day, "false 2 0"},
			{[]string{"user.1.requests", "user.2.requests"}, 0, "false 2 0"},
			{[]string{"user.1.requests", "user.2.requests"}, store.Month, "false 0 2"},
			{[]string{"user.1.requests", "user.2.requests"}, store.Hour, "hour"},
			{[]string{"user.1.requests", "api.requests.total"}, 0, "false 2 0"},
			{[]string{"user.1.requests", "api.requests.total"}, store.Month, "false 0 2"},
			{[]string{"user.1.requests", "api.requests.total"}, store.Hour, "hour"},
			{[]string{"user.active.daily", "api.requests.total"}, 0, "false 2 0"},
			{[]string{"user.active.daily", "api.requests.total"}, store.Month, "user.active.daily"},
			{[]string{"user.active.monthly", "api.requests.total"}, 0, "user.active.monthly"},
			{[]string{"user.active.monthly", "user.1.requests"}, store.Day, "user.active.monthly"},
			{[]string{"user.active.monthly", "api.requests.total"}, store.Month, "false 0 2"},
			{[]string{"user.active.monthly", "user.active.monthly"}, 0, "false 0 1"},
		} {
			if got, err := starts(store.Query{Names: c.names, Step: c.step}); got != c.want && !invalid(err, c.want) {
				t.Errorf("History of %v by %v: %s, %v; want %s", c.names, c.step, got, err, c.want)
			}
		}
	}
	gauges := store.Query{Names: []string{"user.active.monthly", "user.active.daily", "api.requests.today", "api.requests.total"}}
	if got := b.totals(s, gauges); !maps.Equal(got, map[string]int64{"user.active.monthly": 2, "user.active.daily": 2, "api.requests.today": 4002, "api.requests.total": 4002}) {
		t.Errorf("Totals: %v", got)
	}
	gauges.From = day
	if _, err := s.Totals(b.ctx, gauges); !invalid(err, "History") {
		t.Errorf("sums of distinct users: %v", err)
	}
	if _, err := s.Totals(b.ctx, store.Query{Names: []string{"\xff"}}); !invalid(err, "Names") {
		t.Errorf("a name that is no UTF-8: %v", err)
	}
}

// collect is all that a sequence has.
func collect(each iter.Seq2[store.Count, error]) (counts []store.Count, err error) {
	for c, e := range each {
		if err != nil {
			return nil, fmt.Errorf("it goes on after %w", err)
		}
		if err = e; err == nil {
			counts = append(counts, c)
		} else if c != (store.Count{}) {
			return nil, fmt.Errorf("%v comes with %w", c, err)
		}
	}
	return counts, err
}

// Each has what Totals and History have, in order, from more names than a page takes.
func each(t *testing.T, b *bench) {
	zone, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	cfg := b.config()
	cfg.Location = zone
	db := b.pool(nil)
	db.SetMaxOpenConns(1) // none is held between pages
	s := b.storeOn(db, cfg)
	many := 12_000
	if b.d.Again {
		many = 2_600 // users and features: still more than a page
	}
	spring, autumn := time.Date(2026, 3, 29, 0, 0, 0, 0, zone), time.Date(2026, 10, 25, 0, 0, 0, 0, zone)
	var batch []counter.Count
	for i := range many {
		batch = append(batch, one(fmt.Sprintf("user.%d.requests", i)), one(fmt.Sprintf("feature.%x.used", i)))
	}
	b.batch("many", 1, spring.Add(10*time.Hour), batch...)
	b.batch("many", 2, autumn.Add(-24*time.Hour), batch[many/2:]...)
	seq := int64(0)
	for _, day := range []time.Time{spring, autumn} {
		for at := day.Add(-2 * time.Hour); at.Before(day.Add(27 * time.Hour)); at = at.Add(30 * time.Minute) {
			seq++
			b.batch("clock", seq, at, counter.Count{Name: "api.GET /a.requests", N: seq}, counter.Count{Name: fmt.Sprintf("api.GET /%d.status_2xx", seq), N: 1}, one("user.1.requests"), one("x"))
		}
	}
	s.Add("api.GET /a.requests", 7)
	s.Inc("user.now.requests")
	b.flush(s)
	for b.number(`SELECT COUNT(*) FROM usage_inbox`) > 0 {
		b.fold(s)
	}

	less := []string{"user.1", "feature."}
	for _, q := range []store.Query{
		{}, {Prefix: "api."}, {Prefix: "user."}, {Measure: "requests"}, {Contains: "77"}, {Except: less}, {Prefix: "nobody."}, {Contains: "nobody"},
		{Name: "x"}, {Name: "user.active.daily"}, {Names: []string{"x", "user.5.requests", "api.requests.total", "api.requests.today"}},
		{From: spring}, {To: autumn}, {From: spring, To: autumn.Add(3 * time.Hour), Except: []string{"user."}}, {From: spring, To: spring.Add(30 * time.Hour), Contains: "77"},
		{Names: []string{"x", "user.5.requests", "api.requests.total"}, From: spring},
		{From: autumn, To: autumn.Add(5 * time.Hour), Prefix: "api."}, {From: time.Now().AddDate(50, 0, 0)},
	} {
		want, err := s.Totals(b.ctx, q)
		if err != nil {
			t.Fatalf("Totals(%+v): %v", q, err)
		}
		slices.SortFunc(want, func(a, b store.Count) int { return strings.Compare(a.Name, b.Name) })
		if got, err := collect(s.Each(b.ctx, q)); err != nil || !slices.Equal(got, want) {
			t.Errorf("Each(%+v): %d counts, %v; Totals has %d\n%.300v\n%.300v", q, len(got), err, len(want), got, want)
		}
		q.Limit = 7
		if got, err := collect(s.Each(b.ctx, q)); err != nil || !slices.Equal(got, want[:min(7, len(want))]) {
			t.Errorf("Each(%+v): %v, %v; Totals begins %v", q, got, err, want[:min(7, len(want))])
		}
	}
	for _, q := range []store.Query{
		{Step: store.Hour, Except: []string{"user."}}, {Step: store.Day}, {Step: store.Month}, {Step: store.Month, Prefix: "user."}, {Step: store.Month, Prefix: "api."},
		{Step: store.Day, From: spring, To: spring.Add(23 * time.Hour)}, {Step: store.Day, From: spring, Contains: "77"}, {Step: store.Month, To: autumn},
		{Step: store.Hour, Name: "x"}, {Step: store.Hour, Prefix: "api.", From: autumn.Add(time.Hour), To: autumn.Add(5 * time.Hour)},
		{Step: store.Day, Name: "user.active.daily"}, {Step: store.Month, Name: "user.active.monthly"},
		{Step: store.Day, Names: []string{"x", "user.active.daily", "user.1.requests"}}, {Step: store.Month, Names: []string{"x", "user.active.monthly"}},
		{Step: store.Day, Prefix: "nobody."}, {Step: store.Day, From: time.Now().AddDate(50, 0, 0)},
	} {
		want, err := s.History(b.ctx, q)
		if err != nil {
			t.Fatalf("History(%+v): %v", q, err)
		}
		got, err := collect(s.Each(b.ctx, q))
		if err != nil || !reflect.DeepEqual(got, want) && len(got)+len(want) > 0 {
			t.Errorf("Each(%+v): %d counts, %v; History has %d\n%.300v\n%.300v", q, len(got), err, len(want), got, want)
		}
	}

	// Whoever stops leaves nothing behind; who reads may do so meanwhile.
	seen := 0
	all := s.Each(b.ctx, store.Query{Prefix: "user.", Measure: "requests"})
	for range 2 { // it may be read again
		for c, err := range all {
			if err != nil {
				t.Fatal(err)
			}
			if seen++; seen%1000 == 0 {
				if n, err := s.Get(b.ctx, c.Name); err != nil || n != c.N {
					t.Errorf("%s is %d, %v, within Each; want %d", c.Name, n, err, c.N)
				}
			}
			if seen%(many-500) == 0 {
				break
			}
		}
	}
	if seen != 2*(many-500) {
		t.Errorf("%d were seen", seen)
	}

	// What ends in the middle ends with one error.
	ctx, cancel := context.WithCancel(b.ctx)
	defer cancel()
	seen = 0
	var failed error
	for c, err := range s.Each(ctx, store.Query{}) {
		if failed != nil {
			t.Fatalf("%v, %v after %v", c, err, failed)
		}
		if failed = err; err != nil {
			if c != (store.Count{}) {
				t.Errorf("%v comes with %v", c, err)
			}
			continue
		}
		seen++
		cancel()
	}
	if seen == 0 || seen >= 2*many || !errors.Is(failed, context.Canceled) || !errors.Is(failed, store.ErrUnavailable) {
		t.Errorf("%d were seen before %v", seen, failed)
	}

	// What is wrong with a query is said before the first.
	gone := b.config()
	gone.Location, gone.Retention = zone, store.Retention{}
	other := b.store(gone)
	for says, q := range map[string]store.Query{
		"Limit":               {Limit: -1},
		"hour is finer":       {Step: store.Hour},
		"History":             {Name: "user.active.daily", From: spring},
		"user.active.monthly": {Names: []string{"user.active.monthly", "x"}, Step: store.Day},
		"Config.Retention":    {Prefix: "api.", Step: store.Hour, From: time.Now().AddDate(0, -3, 0)},
	} {
		if counts, err := collect(other.Each(b.ctx, q)); len(counts) > 0 || !invalid(err, says) {
			t.Errorf("Each(%+v): %d counts, %v", q, len(counts), err)
		}
	}
}
