package conformance

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/usagekit/usagekit/internal/counter"
	"github.com/usagekit/usagekit/store"
)

// Adds from many goroutines, sealed, sent and folded all the while.
func concurrentAdds(t *testing.T, b *bench) {
	cfg := b.config()
	cfg.Interval = time.Millisecond
	s := b.store(cfg)
	const adders, each = 4, 5_000
	var wg sync.WaitGroup
	for range adders {
		wg.Go(func() {
			for i := range each {
				s.Inc(fmt.Sprintf("feature.f%d.used", i%50))
			}
		})
	}
	wg.Wait()
	b.flush(s)
	want := map[string]int64{}
	for i := range 50 {
		want[fmt.Sprintf("feature.f%d.used", i)] = adders * each / 50
	}
	if got := b.totals(s, store.Query{Prefix: "feature."}); !maps.Equal(got, want) {
		t.Errorf("totals %v, want %v", got, want)
	}
	if st := s.Stats(); st.Pending != 0 || st.Lost+st.Invalid+st.Overflow != 0 || st.Err != nil || st.FoldedThrough.IsZero() {
		t.Errorf("Stats: %+v", st)
	}
}

// Two stores count the same names, flush and fold at once.
func twoStores(t *testing.T, b *bench) {
	const rounds, each = 20, 50
	cfg := b.config()
	cfg.Interval = 5 * time.Millisecond
	stores := []*store.Store{b.store(cfg), b.store(cfg), b.store(cfg)}
	var wg sync.WaitGroup
	for _, s := range stores {
		wg.Go(func() {
			for range rounds {
				for i := range each {
					s.Inc(fmt.Sprintf("user.%d.requests", i))
				}
				if err := s.Flush(b.ctx); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	got := b.totals(stores[0], store.Query{Prefix: "user.", Measure: "requests"})
	for i := range each {
		if name := fmt.Sprintf("user.%d.requests", i); got[name] != rounds*int64(len(stores)) {
			t.Errorf("%s = %d, want %d", name, got[name], rounds*len(stores))
		}
	}
	b.want(stores[0], map[string]int64{"user.active.daily": each})
	if n := b.number(`SELECT COUNT(*) FROM usage_inbox`); n != 0 {
		t.Errorf("%d rows left in the inbox", n)
	}
}

func derived(t *testing.T, b *bench) {
	s := b.store(b.config())
	for _, name := range []string{"api.requests.total", "api.requests.today", "user.active.daily", "user.active.monthly"} {
		s.Add(name, 100)
	}
	if st := s.Stats(); st.Invalid != 4 {
		t.Errorf("Invalid = %d, want 4", st.Invalid)
	}
	for range 2 { // the second time, nobody is new
		s.Add("api.GET /novels/{id}.requests", 3)
		s.Add("api.(unmatched).requests", 2)
		s.Add("api.requests.novels", 5)   // an area: in no sum
		s.Add("api.requests.requests", 5) // nor is this one
		s.Add("api.GET /novels/{id}.status_2xx", 3)
		for _, user := range []string{"1", "2", "a.b", "active", "registrations", "((error)", "(error)", "(unmatched)", "(other)", "(invalid)"} {
			s.Inc("user." + user + ".requests")
		}
		s.Inc("user.registrations")
		s.Inc("user.requests") // nobody's
		s.Inc("user.1.logins") // not a request
		b.flush(s)
	}
	b.want(s, map[string]int64{
		"api.requests.total": 10, "api.requests.today": 10, "api.requests.novels": 10,
		"user.active.daily": 6, "user.active.monthly": 6,
		"user.a.b.requests": 2, "user.registrations": 2, "never.counted": 0,
	})
	for name, want := range map[string]int64{"user.active.daily": 6, "user.active.monthly": 6} {
		for _, limit := range []int{0, 1} {
			if h, err := s.History(b.ctx, store.Query{Name: name, Limit: limit}); err != nil || len(h) != 1 || h[0].N != want {
				t.Errorf("History of %s, Limit %d: %v, %v", name, limit, h, err)
			}
		}
	}
	if n := b.reported("derived counter", 1); n != 1 {
		t.Errorf("%d log lines about derived counters, want 1", n)
	}
	all := b.totals(s, store.Query{})
	if all["api.requests.today"] != 10 || all["user.active.daily"] != 6 || all["user.active.monthly"] != 6 {
		t.Errorf("Totals leave out the current ones: %v", all)
	}
	if n := b.number(`SELECT COUNT(*) FROM usage_metrics WHERE key LIKE 'user.active.%' AND key NOT LIKE '%.requests'`); n != 0 {
		t.Errorf("%d gauges stand in usage_metrics", n)
	}
}

// statusAndLatency are the measures of a route beside its requests.
func statusAndLatency() []string {
	measures := []string{"latency_inf"}
	for class := 1; class <= 5; class++ {
		measures = append(measures, fmt.Sprintf("status_%dxx", class))
	}
	for _, ms := range []int{5, 10, 25, 50, 75, 100, 250, 500, 750, 1000, 2500, 5000, 7500, 10000} {
		measures = append(measures, fmt.Sprintf("latency_%dms", ms))
	}
	return measures
}

// Status and latency of all routes are summed as their requests are: in totals and
// history, through both ways in, whatever a cap does, and up to the largest number.
func sumsOfRoutes(t *testing.T, b *bench) {
	cfg := b.config()
	cfg.Caps = map[string]int{"api": 2} // two routes; what is derived takes no place
	cfg.Thresholds = []store.Threshold{{Prefix: "api.requests.status_5xx", Step: store.Hour, Value: 3}}
	told := make(chan store.Crossing, 10)
	cfg.Notify = map[string]func(context.Context, store.Crossing) error{"test": func(_ context.Context, c store.Crossing) error {
		told <- c
		return nil
	}}
	s := b.store(cfg)
	want := map[string]int64{}
	for i, m := range append(statusAndLatency(), "requests") {
		n := int64(i + 1)
		s.Add("api.GET /a."+m, n)
		s.Add("api.(unmatched)."+m, 1)
		want["api.requests."+m] = n + 1
	}
	want["api.requests.total"], want["api.requests.requests"] = want["api.requests.requests"], 0
	s.Add("api.GET /b.seen", 1)
	b.flush(s) // so that both routes are known
	for _, name := range []string{
		"api.status_2xx", "x.a.status_2xx", "user.1.latency_5ms", "api.GET /a.status_6xx", "api.GET /a.latency_6ms", "api.GET /a.latency_",
		"api.requests.llm", "api.requests.lore", "api.requests.novels", // areas, of which two have a place
	} {
		s.Add(name, 100)
	}
	b.flush(s)
	want["api.requests.status_2xx"] += 100 // of no route: it came under (other)
	for i, m := range statusAndLatency() {
		refused := "api.requests." + m
		s.Add(refused, 1000)
		if _, err := s.AddNow(b.ctx, refused, 1000); err == nil || !strings.Contains(err.Error(), refused) || errors.Is(err, store.ErrUnavailable) {
			t.Errorf("AddNow(%s): %v", refused, err)
		}
		if st := s.Stats(); st.Invalid != int64(i+1) {
			t.Errorf("%s: %d are invalid, want %d", refused, st.Invalid, i+1)
		}
	}
	if n, err := s.AddNow(b.ctx, "api.GET /b.status_5xx", 2); n != 2 || err != nil {
		t.Errorf("AddNow = %d, %v", n, err)
	}
	for i := range 70 { // the third route, and its many measures, are beyond the cap
		s.Inc(fmt.Sprintf("api.GET /c.m%d", i))
	}
	b.flush(s)
	for i, m := range statusAndLatency() {
		s.Add("api.GET /c."+m, int64(i+1))
		want["api.requests."+m] += int64(i + 1)
	}
	b.flush(s)
	want["api.requests.status_5xx"] += 2
	b.want(s, want)
	b.want(s, map[string]int64{"api.GET /b.status_5xx": 2, "api.GET /c.status_5xx": 0})
	sums := map[string]int64{}
	for name, n := range b.totals(s, store.Query{Prefix: "api."}) {
		if group, subject, measure := store.SplitName(name); group == "api" && subject != "requests" && subject != "" && want["api.requests."+measure] > 0 {
			sums["api.requests."+measure] += n
		}
	}
	for name, n := range want {
		if name != "api.requests.total" && sums[name] != n {
			t.Errorf("the routes have %d together, %s is %d", sums[name], name, n)
		}
		if n == 0 {
			continue
		}
		for _, step := range []store.Step{store.Hour, store.Day} {
			h, err := s.History(b.ctx, store.Query{Name: name, Step: step})
			total := int64(0)
			for _, c := range h {
				total += c.N
			}
			if err != nil || total != n {
				t.Errorf("History of %s by %v: %v, %v; want %d", name, step, h, err, n)
			}
		}
	}
	rows, err := s.Rows(b.ctx, store.Query{Prefix: "api.", Measure: "status_5xx", Limit: 1})
	if err != nil || len(rows) != 1 || rows[0].Group != "api" || rows[0].Subject != "requests" {
		t.Fatalf("Rows: %v, %v", rows, err)
	}
	for name, n := range want {
		if got := rows[0].Counts[strings.TrimPrefix(name, "api.requests.")]; got != n {
			t.Errorf("%s is %d in its row, want %d", name, got, n)
		}
	}
	if p := rows[0].Quantile(0.5); p <= 0 {
		t.Errorf("the median of all is %v", p)
	}
	if c := <-told; c.Name != "api.requests.status_5xx" || c.N < 3 || c.Step != store.Hour {
		t.Errorf("told of %+v", c)
	}

	// It counts on from where it is, whatever is reset.
	if err := s.Reset(b.ctx, "api.GET /a.status_2xx", "api.requests.status_3xx"); err != nil {
		t.Error(err)
	}
	s.Add("api.GET /a.status_2xx", 1)
	s.Add("api.GET /a.status_3xx", 1)
	s.Add("api.GET /a.latency_10ms", counter.Max)
	s.Add("api.GET /b.latency_10ms", counter.Max)
	b.flush(s)
	b.want(s, map[string]int64{
		"api.GET /a.status_2xx": 1, "api.requests.status_2xx": want["api.requests.status_2xx"] + 1, "api.requests.status_3xx": 1, "api.requests.latency_10ms": counter.Max,
	})

	// Nor are they what an earlier release sent as an area, which is beyond the cap.
	b.batch("earlier", 1, time.Now(), counter.Count{Name: "api.requests.status_4xx", N: 7})
	b.fold(s)
	b.want(s, map[string]int64{"api.requests.status_4xx": want["api.requests.status_4xx"], "api.requests.(other)": 100 + 7})
}

// Whatever a client sends, every count is kept under some name, and no batch
// sticks.
func hostileNames(t *testing.T, b *bench) {
	s := b.store(b.config())
	long := strings.Repeat("x", 60_000)
	users := []string{
		"", ".", "..", "a\x00b", "\xff\xfe", "\u202egnp.exe", "a\r\nSet-Cookie: x", `'; DROP TABLE usage_metrics; --`, `"`, `\`, "%", "_", "?", "$1",
		long + "1", long + "2", "(other)", "requests", "=cmd|' /C calc'!A0", "<script>alert(1)</script>", "\U0010FFFF", strings.Repeat("é", 500), "{}", `{"a":1}`, "NULL", "😀",
	}
	for _, u := range users {
		s.Inc("user." + u + ".requests")
	}
	b.flush(s)
	got := b.totals(s, store.Query{Prefix: "user.", Measure: "requests"})
	sum := int64(0)
	for _, n := range got {
		sum += n
	}
	if sum != int64(len(users)) {
		t.Errorf("%d of %d requests are in %d counters", sum, len(users), len(got))
	}
	for _, u := range []string{`'; DROP TABLE usage_metrics; --`, `\`, "%", "?", "<script>alert(1)</script>", "\U0010FFFF", "😀", long + "1", long + "2", "a\x00b"} {
		b.want(s, map[string]int64{"user." + u + ".requests": 1}) // Get cleans as Add does
	}
}

// Totals stay at 2^53−1, and fold on.
func saturation(t *testing.T, b *bench) {
	s := b.store(b.config())
	for range 2 {
		s.Add("feature.a.used", counter.Max)
		s.Add("api.GET /a.requests", counter.Max)
		s.Add("api.GET /b.requests", counter.Max)
		s.Add("user.1.requests", counter.Max)
		s.Inc("user.2.requests")
		s.Inc("feature.b.used")
		b.flush(s)
	}
	if daily, err := s.Get(b.ctx, "user.active.daily"); err != nil || daily != 1 { // not the full one
		t.Errorf("user.active.daily = %d, %v: a full counter was news again", daily, err)
	}
	b.want(s, map[string]int64{"feature.a.used": counter.Max, "api.requests.total": counter.Max, "feature.b.used": 2})
	for seq := range int64(2) { // both in one fold
		b.batch("w", seq+1, time.Now(), counter.Count{Name: "feature.c.used", N: counter.Max}, one("feature.b.used"))
	}
	b.fold(s)
	b.want(s, map[string]int64{"feature.c.used": counter.Max, "feature.b.used": 4})
	ranged := b.totals(s, store.Query{From: time.Now().Add(-48 * time.Hour)})
	if ranged["feature.a.used"] != counter.Max || ranged["feature.c.used"] != counter.Max || ranged["feature.b.used"] != 4 {
		t.Errorf("in a range: %v", ranged)
	}
}

// More names than one statement takes.
func largeBatch(t *testing.T, b *bench) {
	s := b.store(b.config())
	const users = 6_000
	for i := range users {
		s.Inc(fmt.Sprintf("user.%d.requests", i))
	}
	b.flush(s)
	b.want(s, map[string]int64{"user.active.daily": users, "user.active.monthly": users, "user.5999.requests": 1})
	if n := b.number(`SELECT COUNT(*) FROM usage_history WHERE value = 1`); n != 2*users {
		t.Errorf("%d rows of history, want %d", n, 2*users)
	}
}
