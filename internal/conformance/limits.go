package conformance

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/usagekit/usagekit/internal/counter"
	"github.com/usagekit/usagekit/internal/naming"
	"github.com/usagekit/usagekit/store"
)

// What one instance finds new is known to the next one that asks: together they keep no
// more subjects, and measures of (other), than one does.
func capsOfSeveral(t *testing.T, b *bench) {
	cfg := b.config()
	cfg.Caps = map[string]int{"feature": 2}
	one, two := b.store(cfg), b.store(cfg)
	now := func(s *store.Store, name string) {
		t.Helper()
		if _, err := s.AddNow(b.ctx, name, 1); err != nil {
			t.Error(err)
		}
	}
	now(one, "feature.a.used")
	now(two, "feature.b.used")
	now(one, "feature.c.used")
	b.want(one, map[string]int64{"feature.c.used": 0, "feature.(other).used": 1})
	now(two, "feature.c.seen")
	for n := range 62 { // of 64, "used" and "seen" among them
		one.Inc(fmt.Sprintf("feature.c.m%d", n))
	}
	b.flush(one)
	now(two, "feature.c.shared")
	b.want(one, map[string]int64{"feature.(other).shared": 0, "feature.(other).(other)": 1, "feature.(other).m61": 1})
}

// A group has no more subjects than its cap, whoever brings them and when, and its
// sums stay what was counted.
func caps(t *testing.T, b *bench) {
	cfg := b.config()
	cfg.Caps = map[string]int{"feature": 10, "api": 7, "other": 3, "quota": 1}
	stores := []*store.Store{b.store(cfg), b.store(cfg)}
	for round := range 5 {
		var wg sync.WaitGroup
		for i, s := range stores {
			wg.Go(func() {
				for n := range 20 {
					s.Inc(fmt.Sprintf("feature.f%d.used", n+round))
					s.Inc(fmt.Sprintf("feature.f%d.seen", n))
					s.Inc(fmt.Sprintf("api.GET /%d.requests", n+round))
					s.Inc(fmt.Sprintf("api.GET /%d.status_2xx", n+round))
					s.Inc(fmt.Sprintf("api.requests.area%d", n))
					s.Inc(fmt.Sprintf("llm.m%d-%d-%d.calls", i, n, round)) // no cap
					s.Inc(fmt.Sprintf("x%d", n+10*round))
				}
				for n := range 100 {
					s.Inc(fmt.Sprintf("feature.g%d.m%d", n, n))
				}
				s.Inc("api.(unmatched).requests")
				if _, err := s.AddNow(b.ctx, fmt.Sprintf("feature.now%d.used", round), 1); err != nil {
					t.Error(err)
				}
				b.flush(s)
			})
		}
		wg.Wait()
	}
	s := b.store(cfg) // which knows nothing yet
	s.Inc("feature.new.used")
	s.Inc("api.GET /0.requests")
	b.flush(s)
	// What is usagekit's own took no one's place, also not of one that reads them.
	small := b.config()
	small.Caps = map[string]int{"novel": 2}
	for i, name := range []string{"novel.(error).read", "novel.(unmatched).read", "novel.(other).read", "novel.1.read", "novel.2.read", "novel.3.read"} {
		one := b.store(small)
		one.Inc(name)
		b.flush(one)
		want := int64(1)
		if i == 5 {
			want = 0
		}
		b.want(one, map[string]int64{name: want})
	}
	b.want(s, map[string]int64{"novel.(other).read": 2})
	// Nor do those lose their places that have no subject.
	small.Caps = map[string]int{"film": 2, "other": 1000, "book": 0}
	for i := range 4 {
		one := b.store(small)
		for _, name := range []string{"film.a", "film..b", fmt.Sprintf("film.0%d", i), fmt.Sprintf("film..a%d", i), "book.a.read"} {
			if i > 0 || name == "film.a" || name == "film..b" {
				one.Inc(name)
			}
		}
		b.flush(one)
	}
	b.want(s, map[string]int64{"film.a": 4, "film..b": 4, "film.(other).01": 1, "film.(other).a3": 1, "book.a.read": 3})
	if n := b.number(`SELECT COUNT(*) FROM usage_metrics WHERE key LIKE 'film.%' AND key NOT LIKE 'film.(other).%'`); n != 2 {
		t.Errorf("%d names of two", n)
	}
	sums, subjects, others := map[string]int64{}, map[string]map[string]bool{}, 0
	for name, n := range b.totals(s, store.Query{}) {
		group, subject, measure := store.SplitName(name)
		if naming.Derived(name) {
			continue
		}
		key := subject
		if subject == "requests" || subject == "" {
			group, key = group+"/", name
		}
		sums[group+"."+measure] += n
		if group == "api/" {
			sums["areas"] += n
		}
		if subjects[group] == nil {
			subjects[group] = map[string]bool{}
		}
		subjects[group][key] = true
		if group == "feature" && subject == naming.Other {
			others++
		}
	}
	const adds = 2 * 5 * 20
	for name, want := range map[string]int64{
		"feature.seen": adds, "api.requests": adds + 10 + 1, "api.status_2xx": adds, "areas": adds,
	} {
		if sums[name] != want {
			t.Errorf("the sum of %s is %d, want %d", name, sums[name], want)
		}
	}
	b.want(s, map[string]int64{"api.requests.total": adds + 10 + 1, "api.requests.status_2xx": adds})
	if n := len(subjects["feature"]); n != 10+1 {
		t.Errorf("%d subjects of feature, want 10 and (other): %v", n, subjects["feature"])
	}
	if routes, areas := len(subjects["api"]), len(subjects["api/"]); routes > 7+2 || areas > 7+1 { // and (unmatched), (other) of both
		t.Errorf("%d subjects of api, %d areas: %v, %v", routes, areas, subjects["api"], subjects["api/"])
	}
	if n := len(subjects["other/"]); n > 3+1 {
		t.Errorf("%d names without a dot: %v", n, subjects["other/"])
	}
	if n := len(subjects["llm"]); n != adds {
		t.Errorf("%d models, want all %d", n, adds)
	}
	if others > 64+2 {
		t.Errorf("%d measures of (other)", others)
	}
}

// What is no route, and comes under (other), which is one, is in the sum of routes.
func capsOfNoRoutes(t *testing.T, b *bench) {
	cfg := b.config()
	cfg.Caps = map[string]int{"api": 1}
	s := b.store(cfg)
	s.Add("api.GET /a.requests", 2)
	b.flush(s)
	s.Add("api.requests", 3)
	s.Add("api..requests", 4)
	s.Add("api.GET /b.requests", 5)
	b.flush(s)
	b.want(s, map[string]int64{"api.GET /a.requests": 2, "api.(other).requests": 12, "api.requests": 0, "api.requests.total": 14, "api.requests.today": 14})
}

// Each crossing of a threshold is recorded once, and told until that has worked.
func thresholds(t *testing.T, b *bench) {
	var mu sync.Mutex
	told := map[string]int{}
	failures := 2
	cfg := b.config()
	cfg.Thresholds = []store.Threshold{
		{Prefix: "feature.", Measure: "used", Value: 100},
		{Prefix: "feature.", Measure: "used", Value: 200},
		{Prefix: "feature.a", Value: 100}, // the same for one
		{Prefix: "user.", Measure: "requests", Step: store.Day, Value: 3},
		{Prefix: "user.active.", Measure: "monthly", Step: store.Month, Value: 2},
		{Prefix: "api.requests.total", Step: store.Hour, Value: 5},
	}
	mail := func(ctx context.Context, c store.Crossing) error {
		mu.Lock()
		defer mu.Unlock()
		if _, ok := ctx.Deadline(); !ok {
			t.Error("Notify has no deadline")
		}
		if failures--; failures >= 0 {
			if failures == 0 {
				panic("a mistake of the application")
			}
			return errors.New("the mail server is away")
		}
		if c.N < c.Value || c.Time.IsZero() || (c.Step == 0) != c.Start.IsZero() {
			t.Errorf("told of %+v", c)
		}
		told[fmt.Sprintf("%s %v %d", c.Name, c.Step, c.Value)]++
		return nil
	}
	paged := map[string]int{} // by another receiver, which never fails
	page := func(_ context.Context, c store.Crossing) error {
		mu.Lock()
		defer mu.Unlock()
		paged[fmt.Sprintf("%s %v %d", c.Name, c.Step, c.Value)]++
		return nil
	}
	cfg.Notify = map[string]func(context.Context, store.Crossing) error{"mail": mail, "page": page}
	s := b.store(cfg)
	s.Add("feature.a.used", 99)
	s.Add("user.1.requests", 2)
	b.flush(s)
	if n := b.number(`SELECT COUNT(*) FROM usage_crossings`); n != 0 {
		t.Errorf("%d crossings before any", n)
	}
	s.Add("feature.a.used", 1)
	s.Add("feature.b.used", 500) // past two at once
	s.Add("feature.b.seen", 500)
	s.Inc("user.1.requests")
	s.Inc("user.2.requests")
	s.Add("api.GET /a.requests", 2)
	s.Add("api.GET /b.requests", 3)
	b.flush(s)
	s.Add("feature.a.used", 1)
	b.flush(s)
	if n, err := s.AddNow(b.ctx, "feature.c.used", 100); n != 100 || err != nil {
		t.Errorf("AddNow = %d, %v", n, err)
	}
	want := map[string]int{
		"feature.a.used Step(0) 100": 1, "feature.b.used Step(0) 100": 1, "feature.b.used Step(0) 200": 1, "feature.c.used Step(0) 100": 1,
		"user.1.requests day 3": 1, "user.active.monthly month 2": 1, "api.requests.total hour 5": 1,
	}
	if n := b.number(`SELECT COUNT(*) FROM usage_crossings`); n != int64(len(want)) {
		t.Errorf("%d crossings recorded, want %d", n, len(want))
	}
	b.until(func() bool {
		return b.number(`SELECT COUNT(*) FROM usage_notices`) == 0
	})
	mu.Lock()
	if !maps.Equal(told, want) || !maps.Equal(paged, want) {
		t.Errorf("told %v and %v\nwant %v", told, paged, want)
	}
	mu.Unlock()

	// A reset counter may cross again; a user's day may not.
	var first string
	if err := b.db.GetContext(b.ctx, &first, `SELECT CAST(n AS TEXT) || ' ' || CAST(time AS TEXT) FROM usage_crossings WHERE step = 0 AND value = 100 AND key = 'feature.a.used'`); err != nil {
		t.Fatal(err)
	}
	if err := s.Reset(b.ctx, "feature.a.used"); err != nil {
		t.Fatal(err)
	}
	s.Add("feature.a.used", 100)
	s.Add("user.1.requests", 3)
	b.flush(s)
	if n := b.number(`SELECT COUNT(*) FROM usage_crossings WHERE step = 0 AND value = 100 AND key = 'feature.a.used' AND CAST(n AS TEXT) || ' ' || CAST(time AS TEXT) <> ?`, first); n != 1 {
		t.Error("the second crossing is not recorded")
	}
	if n := b.number(`SELECT COUNT(*) FROM usage_crossings`); n != int64(len(want)) {
		t.Errorf("%d crossings recorded after a Reset, want %d", n, len(want))
	}
}

// However many ask at once, wherever, no more is taken than the limit.
func takes(t *testing.T, b *bench) {
	stores := make([]*store.Store, 4)
	for i := range stores {
		stores[i] = b.store(b.config())
	}
	var passed, failed atomic.Int64
	var wg sync.WaitGroup
	for i := range 1000 {
		wg.Go(func() {
			for {
				left, until, ok, err := stores[i%len(stores)].Take(b.ctx, "quota.42.daily", 1, 100, store.Day)
				if errors.Is(err, store.ErrUnavailable) && b.ctx.Err() == nil { // it waited for 200 ms, or SQLite was busy
					failed.Add(1)
					continue
				}
				if err != nil || left < 0 || left > 99 || time.Until(until) > 25*time.Hour || time.Until(until) <= 0 || !ok && left != 0 {
					t.Errorf("Take = %d, %v, %t, %v", left, until, ok, err)
				}
				if ok {
					passed.Add(1)
				}
				return
			}
		})
	}
	wg.Wait()
	taken := b.number(`SELECT value FROM usage_history WHERE key = 'quota.42.daily' AND step = 2`)
	if p := passed.Load(); p > 100 || taken != 100 || p < 100 && failed.Load() == 0 {
		t.Errorf("%d passed, %d taken, %d unknown; want 100", p, taken, failed.Load())
	}
	s := stores[0]
	rows := b.number(`SELECT COUNT(*) FROM usage_history`)
	if left, until, ok, err := s.Take(b.ctx, "quota.7.monthly", 0, 3, store.Month); left != 3 || !ok || err != nil || !until.After(time.Now()) {
		t.Errorf("what is left of a quota that nobody used: %d until %v, %t, %v", left, until, ok, err)
	}
	if n := b.number(`SELECT COUNT(*) FROM usage_history`); n != rows {
		t.Errorf("asking has written %d rows", n-rows)
	}
	for _, c := range []struct {
		name     string
		n, limit int64
		step     store.Step
		left     int64
		ok       bool
	}{
		{"quota.42.daily", 1, 100, store.Hour, 99, true}, // another count
		{"quota.42.daily", 1, 100, store.Month, 99, true},
		{"quota.42.daily", 1, 101, store.Day, 0, true},
		{"quota.42.daily", 1, 50, store.Day, 0, false},
		{"quota.42.daily", 0, 101, store.Day, 0, true},
		{"quota.42.daily", 0, 50, store.Day, 0, false},
		{"quota.42.daily", 0, 101, store.Month, 100, true},
		{"quota.43.daily", 5, 4, store.Day, 4, false},
		{"quota.43.daily", 0, 4, store.Day, 4, true},
		{"quota.43.daily", 0 + 3, 4, store.Day, 1, true},
		{"quota.43.daily", 0, 4, store.Day, 1, true},
		{"quota.43.daily", 2, 4, store.Day, 1, false},
		{"quota.43.daily", 1, 4, store.Day, 0, true},
		{"quota.43.daily", 0, counter.Max, store.Day, counter.Max - 4, true},
		{"quota.44.daily", 1, 0, store.Day, 0, false},
		{"quota.44.daily", 0, 0, store.Day, 0, true},
		{"quota.45.daily", counter.Max, counter.Max, store.Day, 0, true},
		{"quota.45.daily", counter.Max, counter.Max, store.Day, 0, false},
		{"quota.46.monthly", 5, 7, store.Month, 2, true},
		{"quota.46.monthly", 3, 7, store.Month, 2, false},
		{"quota.\x00'; DROP TABLE usage_history; --" + strings.Repeat("x", 10_000) + ".daily", 1, 1, store.Hour, 0, true},
	} {
		left, until, ok, err := s.Take(b.ctx, c.name, c.n, c.limit, c.step)
		most := map[store.Step]time.Duration{store.Hour: time.Hour, store.Day: 25 * time.Hour, store.Month: 32 * 24 * time.Hour}[c.step]
		if err != nil || left != c.left || ok != c.ok || time.Until(until) > most {
			t.Errorf("Take(%.30s, %d, %d, %v) = %d, %v, %t, %v", c.name, c.n, c.limit, c.step, left, until, ok, err)
		}
	}
	for _, c := range []struct {
		name     string
		n, limit int64
		step     store.Step
	}{
		{"user.42.requests", 1, 1, store.Hour}, {"quota.daily", 1, 1, store.Hour}, {"quota.42.refused", 1, 1, store.Hour}, {"quota.(other).daily", 1, 1, store.Hour},
		{"quota.42." + strings.Repeat("x", 65), 1, 1, store.Hour}, {"", 1, 1, store.Hour}, {"quota.42.refused", 0, 1, store.Hour},
		{"quota.42.daily", -1, 1, store.Hour}, {"quota.42.daily", counter.Max + 1, 1, store.Hour}, {"quota.42.daily", 1, -1, store.Hour}, {"quota.42.daily", 0, -1, store.Hour},
		{"quota.42.daily", 1, 1, 0}, {"quota.42.daily", 1, 1, store.Month + 1}, {"quota.42.daily", 0, 1, -1},
	} {
		if _, _, ok, err := s.Take(b.ctx, c.name, c.n, c.limit, c.step); err == nil || ok || errors.Is(err, store.ErrUnavailable) {
			t.Errorf("Take(%.30s, %d, %d, %v) = %t, %v", c.name, c.n, c.limit, c.step, ok, err)
		}
	}
	s.Add("quota.42.daily", 1)
	if st := s.Stats(); st.Invalid != 1 {
		t.Error("a quota can be added to")
	}
	s.Inc("quota.42.refused")
	b.flush(s)
	b.want(s, map[string]int64{"quota.42.refused": 1})
	for _, c := range []struct {
		q    store.Query
		want map[string]int64
	}{
		{store.Query{Name: "quota.42.daily", Step: store.Hour}, map[string]int64{"quota.42.daily": 1}},
		{store.Query{Name: "quota.42.daily", Step: store.Day}, map[string]int64{"quota.42.daily": 101}},
		{store.Query{Name: "quota.42.daily", Step: store.Month}, map[string]int64{"quota.42.daily": 102}}, // of the days, and of the month
		{store.Query{Names: []string{"quota.46.monthly", "quota.43.daily"}, Step: store.Month}, map[string]int64{"quota.46.monthly": 5, "quota.43.daily": 4}},
		{store.Query{Prefix: "quota.4", Except: []string{"quota.42.", "quota.45."}, Step: store.Month}, map[string]int64{"quota.46.monthly": 5, "quota.43.daily": 4}},
		{store.Query{Prefix: "quota.", Measure: "monthly", Step: store.Month, Limit: 1}, map[string]int64{"quota.46.monthly": 5}},
		{store.Query{Names: []string{"quota.46.monthly", "quota.43.daily"}, Step: store.Month, Limit: 1}, map[string]int64{"quota.46.monthly": 5}},
		{store.Query{Measure: "monthly", Step: store.Month, Limit: 1}, map[string]int64{"quota.46.monthly": 5}},
		{store.Query{Name: "quota.46.monthly", Step: store.Day}, map[string]int64{}},
		{store.Query{Name: "quota.42.refused", Step: store.Month}, map[string]int64{"quota.42.refused": 1}},
		{store.Query{Measure: "monthly", Step: store.Month}, map[string]int64{"quota.46.monthly": 5}},
	} {
		h, err := s.History(b.ctx, c.q)
		got := map[string]int64{}
		for _, n := range h {
			got[n.Name] += n.N
		}
		if err != nil || !maps.Equal(got, c.want) {
			t.Errorf("History(%+v): %v, %v; want %v", c.q, h, err, c.want)
		}
		if c.q.Limit > 0 {
			continue
		}
		clear(got)
		for n, err := range s.Each(b.ctx, c.q) {
			if err != nil {
				t.Fatal(err)
			}
			got[n.Name] += n.N
		}
		if !maps.Equal(got, c.want) {
			t.Errorf("Each(%+v): %v; want %v", c.q, got, c.want)
		}
	}
}

// What has not been counted for a month makes place for what is new, where history has
// a month to show; what has been stays, and no sum changes.
func capsGiveRoom(t *testing.T, b *bench) {
	cfg := b.config()
	cfg.Caps = map[string]int{"feature": 10, "api": 5}
	s := b.store(cfg)
	for n := range 12 {
		s.Inc(fmt.Sprintf("feature.s%02d.used", n))
		s.Inc(fmt.Sprintf("api.requests.area%02d", n))
	}
	b.flush(s)
	b.want(s, map[string]int64{"feature.(other).used": 2, "api.requests.(other)": 7})
	// All of history is 40 days old: so it is, too, to a clock that went wrong.
	const day = 24 * 60 * 60
	b.exec(`UPDATE usage_history SET bucket = bucket - ?`, 40*day)
	s.Inc("feature.new1.used")
	b.flush(s)
	b.want(s, map[string]int64{"feature.new1.used": 0, "feature.(other).used": 3})
	// The days since then have counts, and one of the ten has some of them.
	today := time.Now().UTC().Truncate(24 * time.Hour).Unix()
	for ago := range int64(5) {
		b.exec(`INSERT INTO usage_history (step, bucket, key, value) VALUES (2, ?, 'user.registrations', 1)`, today-(ago+1)*day)
	}
	b.exec(`INSERT INTO usage_history (step, bucket, key, value) VALUES (2, ?, 's03', 1)`, today-29*day) // of no group here
	b.exec(`INSERT INTO usage_history (step, bucket, key, value) VALUES (2, ?, 'feature.s03.used', 1)`, today-29*day)
	b.exec(`INSERT INTO usage_history (step, bucket, key, value) VALUES (2, ?, 'api.requests.area01', 1)`, today-2*day)
	s = b.store(cfg) // another one, which knows nothing yet
	for n := range 12 {
		s.Inc(fmt.Sprintf("feature.new%d.used", n))
		s.Inc(fmt.Sprintf("api.requests.new%d", n))
	}
	for _, name := range []string{"feature.s03.used", "feature.s05.used", "api.requests.area01"} { // s05 comes in time
		s.Inc(name)
	}
	b.flush(s)
	b.want(s, map[string]int64{"feature.s03.used": 2, "feature.s05.used": 2, "feature.s00.used": 1, "feature.(other).used": 3 + 4, "api.requests.area01": 2, "api.requests.(other)": 7 + 8})
	kept := 0
	for name, n := range b.totals(s, store.Query{Prefix: "feature.new"}) {
		if n != 1 {
			t.Errorf("%s is %d", name, n)
		}
		kept++
	}
	if kept != 8 {
		t.Errorf("%d newcomers of 8 places", kept)
	}
	s.Inc("feature.s00.used") // too late, and its total is not lost
	b.flush(s)
	b.want(s, map[string]int64{"feature.s00.used": 1, "feature.(other).used": 3 + 4 + 1})
}

// Areas, which a client may invent, take no place of routes, which the application
// names: neither in the database nor in one generation.
func capsOfAreas(t *testing.T, b *bench) {
	cfg := b.config()
	cfg.Caps, cfg.MaxNames = map[string]int{"api": 5}, 8
	s := b.store(cfg)
	for n := range 50 {
		s.Inc(fmt.Sprintf("api.requests.area%02d", n))
	}
	for n := range 5 {
		s.Inc(fmt.Sprintf("api.GET /%d.requests", n))
	}
	b.flush(s)
	for n := range 5 {
		b.want(s, map[string]int64{fmt.Sprintf("api.GET /%d.requests", n): 1})
	}
	b.want(s, map[string]int64{"api.requests.(other)": 45, "api.(other).requests": 0, "api.requests.total": 5})
}
