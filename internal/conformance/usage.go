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
	"github.com/usagekit/usagekit/store"
)

// What is added now is there, with all that is derived from it, whatever else counts
// under the same name meanwhile.
func addNow(t *testing.T, b *bench) {
	stores := []*store.Store{b.store(b.config()), b.store(b.config())}
	const each, rounds = 4, 25
	var largest atomic.Int64
	var wg sync.WaitGroup
	for _, s := range stores {
		for range each {
			wg.Go(func() {
				for range rounds {
					s.Inc("api.GET /a.requests")
					n, err := s.AddNow(b.ctx, "api.GET /a.requests", 2)
					if err != nil {
						t.Error(err)
						return
					}
					for old := largest.Load(); n > old && !largest.CompareAndSwap(old, n); old = largest.Load() {
					}
				}
			})
		}
		wg.Go(func() {
			for range 10 {
				if err := s.Flush(b.ctx); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for _, s := range stores {
		b.flush(s)
	}
	const want = 2 * each * rounds * 3
	b.want(stores[0], map[string]int64{"api.GET /a.requests": want, "api.requests.total": want, "api.requests.today": want})
	if n := largest.Load(); n > want || n < 2*2*each*rounds {
		t.Errorf("the largest total was %d, of %d", n, want)
	}
	if n, err := stores[1].AddNow(b.ctx, "user.7.requests", 1); n != 1 || err != nil {
		t.Errorf("AddNow = %d, %v", n, err)
	}
	b.want(stores[0], map[string]int64{"user.active.daily": 1, "user.active.monthly": 1})

	if n, err := stores[0].AddNow(b.ctx, "feature.full.used", counter.Max); n != counter.Max || err != nil {
		t.Errorf("AddNow = %d, %v", n, err)
	}
	if n, err := stores[0].AddNow(b.ctx, "feature.full.used", 1); n != counter.Max || err != nil {
		t.Errorf("AddNow beyond the largest number = %d, %v", n, err)
	}
	for name, n := range map[string]int64{"feature.a.used": 0, "feature.b.used": -1, "feature.c.used": counter.Max + 1, "api.requests.total": 1, "user.active.daily": 1, "quota.1.daily": 1} {
		if total, err := stores[0].AddNow(b.ctx, name, n); err == nil || errors.Is(err, store.ErrUnavailable) || total != 0 {
			t.Errorf("AddNow(%s, %d) = %d, %v", name, n, total, err)
		}
	}
	ctx, cancel := context.WithCancel(b.ctx)
	cancel()
	if _, err := stores[0].AddNow(ctx, "feature.a.used", 1); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("AddNow with a context that has ended: %v", err)
	}
}

// A reset sets totals to 0, of all that was added before; history stays, and what is
// derived counts on.
func reset(t *testing.T, b *bench) {
	s := b.store(b.config())
	s.Add("api.GET /a.requests", 3)
	s.Add("api.GET /b.requests", 4)
	s.Add("feature.a.used", 5)
	if err := s.Reset(b.ctx, "api.GET /a.requests", "feature.a.used", "never.was.counted"); err != nil {
		t.Fatal(err)
	}
	b.want(s, map[string]int64{"api.GET /a.requests": 0, "feature.a.used": 0, "api.GET /b.requests": 4, "api.requests.total": 7, "api.requests.today": 7})
	if h, err := s.History(b.ctx, store.Query{Name: "feature.a.used"}); err != nil || len(h) != 1 || h[0].N != 5 {
		t.Errorf("History after a Reset: %v, %v", h, err)
	}
	s.Add("api.GET /a.requests", 10)
	b.flush(s)
	b.want(s, map[string]int64{"api.GET /a.requests": 10, "api.requests.total": 17})
	if err := s.Reset(b.ctx, "api.requests.total"); err != nil {
		t.Error(err)
	}
	s.Add("api.GET /b.requests", 1)
	b.flush(s)
	b.want(s, map[string]int64{"api.requests.total": 1, "api.requests.today": 18, "api.GET /b.requests": 5})
	for _, name := range []string{"user.active.daily", "user.active.monthly", "api.requests.today", "quota.a.daily"} {
		if err := s.Reset(b.ctx, name); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("Reset(%s): %v", name, err)
		}
	}
	if err := s.Reset(b.ctx); err != nil {
		t.Errorf("Reset of nothing: %v", err)
	}
}

// The usage that providers report, as the doc of LLMCall has it counted.
func llmCalls(t *testing.T, b *bench) {
	s := b.store(b.config())
	// OpenAI: {"prompt_tokens":1117,"completion_tokens":446,"total_tokens":1563,
	// "prompt_tokens_details":{"cached_tokens":1024},"completion_tokens_details":{"reasoning_tokens":320}}
	s.AddLLM(store.LLMCall{Model: "gpt-5.1", Input: 1117, Output: 446, Cached: 1024, Reasoning: 320})
	// Anthropic: {"input_tokens":21,"cache_creation_input_tokens":188,"cache_read_input_tokens":1000,"output_tokens":393}
	s.AddLLM(store.LLMCall{Model: "claude-sonnet-4.5", Input: 21 + 188 + 1000, Output: 393, Cached: 1000})
	s.AddLLM(store.LLMCall{Model: "claude-sonnet-4.5", Failed: "aborted"})                          // a stream that ended before its usage
	s.AddLLM(store.LLMCall{Model: "claude-sonnet-4.5", Input: 30, Output: 7, Failed: "max_tokens"}) // and one after
	s.AddLLM(store.LLMCall{Model: "zero"})                                                          // an explicit 0
	s.AddLLM(store.LLMCall{Failed: "api.connection.refused"})
	s.AddLLM(store.LLMCall{Model: "(other)", Input: 1})
	for _, c := range []store.LLMCall{
		{Input: -1}, {Output: -1}, {Cached: -1}, {Reasoning: -1},
		{Input: 10, Cached: 11}, {Output: 10, Reasoning: 11},
		{Input: counter.Max, Output: 1}, {Input: 1<<63 - 1, Output: 1<<63 - 1},
	} {
		c.Model = "bad"
		s.AddLLM(c)
	}
	b.flush(s)
	want := map[string]int64{
		"llm.gpt-5.1.calls": 1, "llm.gpt-5.1.tokens": 1563, "llm.gpt-5.1.input_tokens": 1117, "llm.gpt-5.1.output_tokens": 446,
		"llm.gpt-5.1.cached_tokens": 1024, "llm.gpt-5.1.reasoning_tokens": 320,
		"llm.claude-sonnet-4.5.calls": 3, "llm.claude-sonnet-4.5.tokens": 1602 + 37, "llm.claude-sonnet-4.5.input_tokens": 1239, "llm.claude-sonnet-4.5.output_tokens": 400,
		"llm.claude-sonnet-4.5.cached_tokens": 1000, "llm.claude-sonnet-4.5.failed": 2,
		"error.llm.aborted": 1, "error.llm.max_tokens": 1, "error.llm.api_connection_refused": 1,
		"llm.zero.calls": 1, "llm.unknown.calls": 1, "llm.unknown.failed": 1,
		"llm.((other).calls": 1, "llm.((other).tokens": 1, "llm.((other).input_tokens": 1,
		"llm.bad.calls": 8,
	}
	got := b.totals(s, store.Query{Prefix: "llm."})
	maps.Copy(got, b.totals(s, store.Query{Prefix: "error."}))
	if !maps.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	if st := s.Stats(); st.Invalid != 8 {
		t.Errorf("Invalid = %d, want 8", st.Invalid)
	}
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
		if name == "api.requests.total" || name == "api.requests.today" {
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
		if group == "feature" && subject == counter.Other {
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
	b.want(s, map[string]int64{"api.requests.total": adds + 10 + 1})
	if n := len(subjects["feature"]); n != 10+1 {
		t.Errorf("%d subjects of feature, want 10 and (other): %v", n, subjects["feature"])
	}
	if n := len(subjects["api"]) + len(subjects["api/"]); n > 7+3 { // and (unmatched), (other) of both
		t.Errorf("%d subjects of api: %v, %v", n, subjects["api"], subjects["api/"])
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
		{Prefix: "feature.", Measure: "used", At: 100},
		{Prefix: "feature.", Measure: "used", At: 200},
		{Prefix: "feature.a", At: 100}, // the same for one
		{Prefix: "user.", Measure: "requests", Step: store.Day, At: 3},
		{Prefix: "user.active.", Measure: "monthly", Step: store.Month, At: 2},
		{Prefix: "api.requests.total", Step: store.Hour, At: 5},
	}
	cfg.Notify = func(ctx context.Context, c store.Crossing) error {
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
		if c.N < c.At || c.Time.IsZero() || (c.Step == 0) != c.Start.IsZero() {
			t.Errorf("told of %+v", c)
		}
		told[fmt.Sprintf("%s %v %d", c.Name, c.Step, c.At)]++
		return nil
	}
	s := b.store(cfg)
	s.Add("feature.a.used", 99)
	s.Add("user.1.requests", 2)
	b.flush(s)
	if n := b.number(`SELECT COUNT(*) FROM usage_meta WHERE name LIKE 'crossing/%'`); n != 0 {
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
	if n := b.number(`SELECT COUNT(*) FROM usage_meta WHERE name LIKE 'crossing/%'`); n != int64(len(want)) {
		t.Errorf("%d crossings recorded, want %d", n, len(want))
	}
	for range 2000 {
		if b.number(`SELECT COUNT(*) FROM usage_meta WHERE name LIKE 'notify/%'`) == 0 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	mu.Lock()
	if !maps.Equal(told, want) {
		t.Errorf("told %v\nwant %v", told, want)
	}
	mu.Unlock()

	// A reset counter may cross again; a user's day may not.
	var first string
	if err := b.db.GetContext(b.ctx, &first, `SELECT value FROM usage_meta WHERE name = 'crossing/0/0/100/feature.a.used'`); err != nil {
		t.Fatal(err)
	}
	if err := s.Reset(b.ctx, "feature.a.used"); err != nil {
		t.Fatal(err)
	}
	s.Add("feature.a.used", 100)
	s.Add("user.1.requests", 3)
	b.flush(s)
	if n := b.number(`SELECT COUNT(*) FROM usage_meta WHERE name = 'crossing/0/0/100/feature.a.used' AND value <> ?`, first); n != 1 {
		t.Error("the second crossing is not recorded")
	}
	if n := b.number(`SELECT COUNT(*) FROM usage_meta WHERE name LIKE 'crossing/%'`); n != int64(len(want)) {
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
				left, until, ok, err := stores[i%len(stores)].Take(b.ctx, "quota.42.daily", 1, 100, 24*time.Hour)
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
	for _, c := range []struct {
		name     string
		n, limit int64
		window   time.Duration
		left     int64
		ok       bool
	}{
		{"quota.42.daily", 1, 100, time.Hour, 99, true}, // another count
		{"quota.42.daily", 1, 101, 24 * time.Hour, 0, true},
		{"quota.42.daily", 1, 50, 24 * time.Hour, 0, false},
		{"quota.43.daily", 5, 4, 24 * time.Hour, 4, false},
		{"quota.43.daily", 0 + 3, 4, 24 * time.Hour, 1, true},
		{"quota.43.daily", 2, 4, 24 * time.Hour, 1, false},
		{"quota.43.daily", 1, 4, 24 * time.Hour, 0, true},
		{"quota.44.daily", 1, 0, 24 * time.Hour, 0, false},
		{"quota.45.daily", counter.Max, counter.Max, 24 * time.Hour, 0, true},
		{"quota.45.daily", counter.Max, counter.Max, 24 * time.Hour, 0, false},
		{"quota.\x00'; DROP TABLE usage_history; --" + strings.Repeat("x", 10_000) + ".daily", 1, 1, time.Hour, 0, true},
	} {
		left, until, ok, err := s.Take(b.ctx, c.name, c.n, c.limit, c.window)
		if err != nil || left != c.left || ok != c.ok || time.Until(until) > c.window+time.Hour {
			t.Errorf("Take(%.30s, %d, %d, %v) = %d, %v, %t, %v", c.name, c.n, c.limit, c.window, left, until, ok, err)
		}
	}
	for _, c := range []struct {
		name     string
		n, limit int64
		window   time.Duration
	}{
		{"user.42.requests", 1, 1, time.Hour}, {"quota.daily", 1, 1, time.Hour}, {"quota.42.refused", 1, 1, time.Hour}, {"quota.(other).daily", 1, 1, time.Hour},
		{"quota.42." + strings.Repeat("x", 65), 1, 1, time.Hour}, {"", 1, 1, time.Hour},
		{"quota.42.daily", 0, 1, time.Hour}, {"quota.42.daily", -1, 1, time.Hour}, {"quota.42.daily", 1, -1, time.Hour},
		{"quota.42.daily", 1, 1, time.Minute}, {"quota.42.daily", 1, 1, 0},
	} {
		if _, _, ok, err := s.Take(b.ctx, c.name, c.n, c.limit, c.window); err == nil || ok || errors.Is(err, store.ErrUnavailable) {
			t.Errorf("Take(%.30s, %d, %d, %v) = %t, %v", c.name, c.n, c.limit, c.window, ok, err)
		}
	}
	s.Add("quota.42.daily", 1)
	if st := s.Stats(); st.Invalid != 1 {
		t.Error("a quota can be added to")
	}
	s.Inc("quota.42.refused")
	b.flush(s)
	b.want(s, map[string]int64{"quota.42.refused": 1})
	h, err := s.History(b.ctx, store.Query{Name: "quota.42.daily", Step: store.Day})
	if err != nil || len(h) != 1 || h[0].N != 101 {
		t.Errorf("History of a quota: %v, %v", h, err)
	}
}

// A user who is erased is in no table any more, and nothing else has changed.
func erase(t *testing.T, b *bench) {
	cfg := b.config()
	cfg.Thresholds = []store.Threshold{{Prefix: "user.", Measure: "requests", At: 1}, {Prefix: "user.", Measure: "requests", Step: store.Day, At: 1}}
	s := b.store(cfg)
	long := strings.Repeat("né", 400)
	ids := []string{"42", "42.7", "4", "42x", "a'b\"c", "42.", ".42", long, long + "2", "((x)", "zebra@example.com"}
	count := func(add func(name string, n int64)) {
		for i, id := range ids {
			n := int64(i + 1)
			add("user."+id+".requests", n)
			add("user."+id+".logins", 2*n)
			add("quota."+id+".refused", 3*n)
			add("feature.novel.written", n)
			add("api.GET /novels.requests", n)
		}
	}
	count(s.Add)
	b.flush(s)
	for _, id := range ids {
		if _, _, ok, err := s.Take(b.ctx, "quota."+id+".daily", 1, 10, 24*time.Hour); !ok || err != nil {
			t.Fatal(ok, err)
		}
		if _, _, ok, err := s.Take(b.ctx, "quota."+id+".hourly", 1, 10, time.Hour); !ok || err != nil {
			t.Fatal(ok, err)
		}
	}
	// One whom usagekit's own counters look like, and one that the application counts itself.
	for _, id := range []string{"active", "(zebra)"} {
		before := b.totals(s, store.Query{})
		s.Inc("user." + id + ".logins")
		s.Inc("quota." + id + ".refused")
		if err := s.Erase(b.ctx, id); err != nil {
			t.Fatal(err)
		}
		if after := b.totals(s, store.Query{}); !maps.Equal(before, after) {
			t.Errorf("erasing %s: %v, before %v", id, after, before)
		}
		if h, err := s.History(b.ctx, store.Query{Name: "user.active.daily"}); err != nil || len(h) == 0 {
			t.Errorf("erasing %s: the days of active users are %v, %v", id, h, err)
		}
	}
	for i, id := range []string{"42", long, "(x)", "zebra@example.com"} {
		others := func() map[string]int64 {
			m := b.totals(s, store.Query{})
			for name := range m {
				if group, _, measure := store.SplitName(name); (group == "user" || group == "quota") && name == counter.Clean(group+"."+strings.Replace(id, "(x", "((x", 1)+"."+measure) {
					delete(m, name)
				}
			}
			return m
		}
		// A batch that waits, one that was set aside for a name in it, and one that nobody can read.
		waiting := counter.Batch{Opened: time.Now().UnixMilli(), Counts: []counter.Count{{Name: counter.Clean("user." + strings.Replace(id, "(x", "((x", 1) + ".requests"), N: 5}}}.Encode()
		writer := fmt.Sprintf("waits%d", i)
		before := others()
		b.exec(`INSERT INTO usage_writers (writer, seq, sum, seen) VALUES (?, 0, ?, 0)`, writer, []byte{}) // not seen for long: the next sweep folds it
		b.exec(`INSERT INTO usage_inbox (writer, seq, opened, payload) VALUES (?, 1, 1, ?)`, writer, waiting)
		b.exec(`INSERT INTO usage_meta (name, value) VALUES (?, 'bm90IGEgYmF0Y2g=')`, fmt.Sprintf("bad/x/%d", i))
		if i == 0 {
			b.exec(`INSERT INTO usage_inbox (writer, seq, opened, payload) VALUES (?, 2, 1, ?)`, writer, []byte("user.42.requests, damaged"))
		}
		if err := s.Erase(b.ctx, id); err != nil {
			t.Fatal(err)
		}
		if after := others(); !maps.Equal(before, after) {
			t.Errorf("erasing %.10q changed others:\n%v\n%v", id, before, after)
		}
		subject := strings.Replace(id, "(x", "((x", 1)
		for _, query := range []string{
			`SELECT COUNT(*) FROM usage_metrics WHERE key = ?`, `SELECT COUNT(*) FROM usage_history WHERE key = ?`,
			`SELECT COUNT(*) FROM usage_meta WHERE name LIKE '%/' || ?`,
		} {
			for _, name := range []string{"user.%s.requests", "user.%s.logins", "quota.%s.refused", "quota.%s.daily", "quota.%s.hourly"} {
				name = counter.Clean(fmt.Sprintf(name, subject))
				if n := b.number(query, name); n != 0 {
					t.Errorf("%d rows are left of %.40q: %s", n, name, query)
				}
			}
		}
		if n := b.number(`SELECT COUNT(*) FROM usage_meta WHERE name LIKE 'bad/%'`); n != 0 {
			t.Errorf("%d batches are left that may hold anybody", n)
		}
		var payloads [][]byte
		if err := b.db.SelectContext(b.ctx, &payloads, `SELECT payload FROM usage_inbox`); err != nil {
			t.Fatal(err)
		}
		for _, p := range payloads {
			batch, err := counter.Decode(p)
			if err != nil || len(batch.Counts) > 1 || len(batch.Counts) == 1 && batch.Counts[0].Name != "usagekit.counts.dropped" {
				t.Errorf("what waits: %v, %v", batch, err)
			}
		}
	}
	for _, table := range []string{"usage_metrics", "usage_history", "usage_inbox", "usage_writers", "usage_meta"} {
		rows, err := b.db.QueryxContext(b.ctx, `SELECT * FROM `+table)
		if err != nil {
			t.Fatal(err)
		}
		for rows.Next() {
			row, err := rows.SliceScan()
			if err != nil {
				t.Fatal(err)
			}
			if text := fmt.Sprintf("%s", row); strings.Contains(text, "zebra") {
				t.Errorf("%s has %s", table, text)
			}
		}
		if err := rows.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := s.Erase(b.ctx, ""); err == nil {
		t.Error("everybody without a name was erased")
	}
	if err := s.Erase(b.ctx, "never seen"); err != nil {
		t.Error(err)
	}
	count(s.Add)
	b.flush(s)
	b.want(s, map[string]int64{"user.42.requests": 1, "user.42.7.requests": 4, "user.4.requests": 6})
}

// People read the views, with times that their tools know.
func views(t *testing.T, b *bench) {
	s := b.store(b.config())
	s.Add("feature.a.used", 3)
	s.Add("user.1.requests", 2)
	b.flush(s)
	if n := b.number(`SELECT SUM(value) FROM usage_hourly WHERE key = 'feature.a.used'`); n != 3 {
		t.Errorf("usage_hourly has %d", n)
	}
	if n := b.number(`SELECT SUM(value) FROM usage_daily`); n != 3+2+1 {
		t.Errorf("usage_daily has %d", n)
	}
	var at string
	if err := b.db.GetContext(b.ctx, &at, `SELECT CAST(MIN(time) AS TEXT) FROM usage_daily`); err != nil {
		t.Fatal(err)
	}
	if want := time.Now().UTC().Format(time.DateOnly); !strings.HasPrefix(at, want) && !strings.HasPrefix(at, time.Now().Add(-time.Minute).UTC().Format(time.DateOnly)) {
		t.Errorf("usage_daily begins at %s, want %s", at, want)
	}
}
