package conformance

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/usagekit/usagekit/internal/counter"
	"github.com/usagekit/usagekit/internal/naming"
	"github.com/usagekit/usagekit/store"
	"github.com/usagekit/usagekit/store/llm"
)

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

// The usage that providers report, as the doc of llm.Call has it counted.
func llmCalls(t *testing.T, b *bench) {
	s := b.store(b.config())
	calls := llm.New(s)
	// OpenAI: {"prompt_tokens":1117,"completion_tokens":446,"total_tokens":1563,
	// "prompt_tokens_details":{"cached_tokens":1024},"completion_tokens_details":{"reasoning_tokens":320}}
	calls.Add(llm.Call{Model: "gpt-5.1", Input: 1117, Output: 446, Cached: 1024, Reasoning: 320})
	// Anthropic: {"input_tokens":21,"cache_creation_input_tokens":188,"cache_read_input_tokens":1000,"output_tokens":393}
	calls.Add(llm.Call{Model: "claude-sonnet-4.5", Input: 21 + 188 + 1000, Output: 393, Cached: 1000})
	calls.Add(llm.Call{Model: "claude-sonnet-4.5", Failed: "aborted"})                          // a stream that ended before its usage
	calls.Add(llm.Call{Model: "claude-sonnet-4.5", Input: 30, Output: 7, Failed: "max_tokens"}) // and one after
	calls.Add(llm.Call{Model: "zero"})                                                          // an explicit 0
	calls.Add(llm.Call{Failed: "api.connection.refused"})
	calls.Add(llm.Call{Model: "(other)", Input: 1})
	// Gemini: {"promptTokenCount":50000,"toolUsePromptTokenCount":5021,"candidatesTokenCount":923,"thoughtsTokenCount":785,"totalTokenCount":56729}
	calls.Add(llm.Call{Model: "gemini-2.5-pro", Input: 50000 + 5021, Output: 923 + 785, Reasoning: 785})
	// xAI: {"prompt_tokens":10120,"completion_tokens":1499,"total_tokens":14428,
	// "prompt_tokens_details":{"cached_tokens":128},"completion_tokens_details":{"reasoning_tokens":2809}}
	calls.Add(llm.Call{Model: "grok-4", Input: 10120, Output: 1499 + 2809, Cached: 128, Reasoning: 2809})
	calls.Add(llm.Call{Model: "grok-3", Input: 10120, Output: 1499, Cached: 128, Reasoning: 2809}) // as it is reported
	for _, c := range []llm.Call{
		{Input: -1}, {Output: -1, Input: 3}, {Input: 2, Cached: -1}, {Output: 5, Reasoning: -1},
		{Input: 10, Cached: 11}, {Input: -1, Output: 4, Cached: 1},
	} {
		c.Model = "bad"
		calls.Add(c)
	}
	calls.Add(llm.Call{Model: "huge", Input: counter.Max, Output: 1})
	calls.Add(llm.Call{Model: "huger", Input: 1<<63 - 1, Output: 7})
	calls.Add(llm.Call{Model: "fails", Failed: "Post \"https://api.example.com/v1/chat/completions\": context deadline exceeded (Client.Timeout exceeded)"})
	calls.Add(llm.Call{Model: "fails", Failed: "dial: timeout"})
	calls.Add(llm.Call{Model: "fails", Failed: strings.Repeat("é", 33)})
	calls.Add(llm.Call{Model: "fails", Failed: "a" + strings.Repeat("é", 33)})
	calls.Add(llm.Call{Model: "fails", Failed: strings.Repeat("\x80", 70)}) // which is no text
	calls.Add(llm.Call{Model: "fails", Failed: ": " + strings.Repeat("x.", 40)})
	calls.Add(llm.Call{Model: "fails", Failed: strings.Repeat("a", 64)})
	b.flush(s)
	want := map[string]int64{
		"llm.gpt-5.1.calls": 1, "llm.gpt-5.1.tokens": 1563, "llm.gpt-5.1.input_tokens": 1117, "llm.gpt-5.1.output_tokens": 446,
		"llm.gpt-5.1.cached_tokens": 1024, "llm.gpt-5.1.reasoning_tokens": 320,
		"llm.claude-sonnet-4.5.calls": 3, "llm.claude-sonnet-4.5.tokens": 1602 + 37, "llm.claude-sonnet-4.5.input_tokens": 1239, "llm.claude-sonnet-4.5.output_tokens": 400,
		"llm.claude-sonnet-4.5.cached_tokens": 1000, "llm.claude-sonnet-4.5.failed": 2,
		"error.llm.aborted": 1, "error.llm.max_tokens": 1, "error.llm.api_connection_refused": 1,
		"llm.zero.calls": 1, "llm.unknown.calls": 1, "llm.unknown.failed": 1,
		"llm.((other).calls": 1, "llm.((other).tokens": 1, "llm.((other).input_tokens": 1,
		"llm.gemini-2.5-pro.calls": 1, "llm.gemini-2.5-pro.tokens": 56729, "llm.gemini-2.5-pro.input_tokens": 55021, "llm.gemini-2.5-pro.output_tokens": 1708, "llm.gemini-2.5-pro.reasoning_tokens": 785,
		"llm.grok-4.calls": 1, "llm.grok-4.tokens": 14428, "llm.grok-4.input_tokens": 10120, "llm.grok-4.output_tokens": 4308, "llm.grok-4.cached_tokens": 128, "llm.grok-4.reasoning_tokens": 2809,
		"llm.grok-3.calls": 1, "llm.grok-3.tokens": 11619, "llm.grok-3.input_tokens": 10120, "llm.grok-3.output_tokens": 1499, "llm.grok-3.cached_tokens": 128,
		"llm.bad.calls": 6, "llm.bad.tokens": 3 + 2 + 5 + 10 + 4, "llm.bad.input_tokens": 3 + 2 + 10, "llm.bad.output_tokens": 5 + 4,
		"llm.huge.calls": 1, "llm.huge.tokens": counter.Max, "llm.huge.input_tokens": counter.Max, "llm.huge.output_tokens": 1,
		"llm.huger.calls": 1, "llm.huger.tokens": 7, "llm.huger.output_tokens": 7,
		"llm.fails.calls": 7, "llm.fails.failed": 7, "error.llm.Post \"https": 1, "error.llm.dial: timeout": 1,
		"error.llm." + strings.Repeat("é", 32): 1, "error.llm.a" + strings.Repeat("é", 31): 1, "error.(invalid).(invalid)": 1,
		"error.llm." + (": " + strings.Repeat("x_", 31)): 1, "error.llm." + strings.Repeat("a", 64): 1,
	}
	got := b.totals(s, store.Query{Prefix: "llm."})
	maps.Copy(got, b.totals(s, store.Query{Prefix: "error."}))
	if !maps.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	if st := s.Stats(); st.Invalid != 9 { // a part each, and a cached one that is of no input
		t.Errorf("Invalid = %d, want 9", st.Invalid)
	}
	if n := b.reported("number of tokens", 1); n != 1 {
		t.Errorf("the log says it %d times", n)
	}
}

// Ids that differ are different users, with quotas of their own, and who is erased is
// one of them: whatever cleaning makes of an id.
func differ(t *testing.T, b *bench) {
	cfg := b.config()
	s := b.store(cfg)
	long := strings.Repeat("né", 400)
	ids := []string{"jos\xe9", "jos\xe8", "jos\uFFFD", "jos\x00", "jos\x01", "jos\u202e", "jos", "\xed\xa0\x80", "\xc0\x80", long, long + "2", "a~0123456789abcdef"}
	for _, id := range ids[:len(ids):len(ids)] { // and who calls himself what another became
		for range 2 {
			_, id, _ = store.SplitName(naming.Clean("user." + id + ".requests"))
			if !slices.Contains(ids, id) {
				ids = append(ids, id)
			}
		}
	}
	for i, id := range ids {
		n := int64(i + 1)
		s.Add("user."+id+".requests", n)
		if _, err := s.AddNow(b.ctx, "user."+id+".requests", 100*n); err != nil {
			t.Fatal(err)
		}
		for want := range 2 {
			left, _, ok, err := s.Take(b.ctx, "quota."+id+".daily", 1, 2, store.Day)
			if err != nil || !ok || left != int64(1-want) {
				t.Errorf("Take for %.40q: %d, %t, %v", id, left, ok, err)
			}
		}
	}
	b.flush(s)
	users := func() map[string]int64 { return b.totals(s, store.Query{Prefix: "user.", Measure: "requests"}) }
	want := map[string]int64{"user.active.daily": int64(len(ids)), "user.active.monthly": int64(len(ids))}
	for i, id := range ids {
		want[naming.Clean("user."+id+".requests")] = int64(101 * (i + 1))
	}
	for name := range want {
		if n, err := s.Get(b.ctx, name); err != nil || n != want[name] {
			t.Errorf("Get(%.60q) = %d, %v, want %d", name, n, err, want[name])
		}
		if n := b.totals(s, store.Query{Name: name})[name]; n != want[name] {
			t.Errorf("Totals of Name %.60q: %d, want %d", name, n, want[name])
		}
	}
	if got := b.totals(s, store.Query{Names: slices.Collect(maps.Keys(want))}); !maps.Equal(got, want) {
		t.Errorf("Totals of Names: %v\nwant %v", got, want)
	}
	delete(want, "user.active.daily")
	delete(want, "user.active.monthly")
	if got := users(); !maps.Equal(got, want) {
		t.Fatalf("counted %v\nwant    %v", got, want)
	}
	for _, id := range ids {
		if err := s.Erase(b.ctx, id); err != nil {
			t.Fatal(err)
		}
		delete(want, naming.Clean("user."+id+".requests"))
		if got := users(); !maps.Equal(got, want) {
			t.Fatalf("without %.40q: %d left, want %d", id, len(got), len(want))
		}
		if n := b.number(`SELECT COUNT(*) FROM usage_history WHERE key LIKE 'quota.%' AND step = 2`); n != int64(len(want)) {
			t.Fatalf("without %.40q: %d quotas left, want %d", id, n, len(want))
		}
	}
}

// A user who is erased is in no table any more, and nothing else has changed.
func erase(t *testing.T, b *bench) {
	cfg := b.config()
	cfg.Thresholds = []store.Threshold{{Prefix: "user.", Measure: "requests", Value: 1}, {Prefix: "user.", Measure: "requests", Step: store.Day, Value: 1}}
	s := b.store(cfg)
	long := strings.Repeat("né", 400)
	ids := []string{"42", "42.7", "4", "42x", "a'b\"c", "42.", ".42", long, long + "2", "((x)", "zebra@example.com"}
	count := func(add func(name string, n int64)) {
		for i, id := range ids {
			n := int64(i + 1)
			add("user."+id+".requests", n)
			add("user."+id+".logins", 2*n)
			add("user."+id+".logins\x00", n)
			add("quota."+id+".refused", 3*n)
			add("feature.novel.written", n)
			add("api.GET /novels.requests", n)
		}
	}
	count(s.Add)
	b.flush(s)
	for _, id := range ids {
		if _, _, ok, err := s.Take(b.ctx, "quota."+id+".daily", 1, 10, store.Day); !ok || err != nil {
			t.Fatal(ok, err)
		}
		if _, _, ok, err := s.Take(b.ctx, "quota."+id+".hourly", 1, 10, store.Hour); !ok || err != nil {
			t.Fatal(ok, err)
		}
		if _, _, ok, err := s.Take(b.ctx, "quota."+id+".monthly", 1, 10, store.Month); !ok || err != nil {
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
				if group, _, measure := store.SplitName(name); (group == "user" || group == "quota") && name == naming.Of(group, strings.Replace(id, "(x", "((x", 1), measure) {
					delete(m, name)
				}
			}
			return m
		}
		// A batch that waits, one that was set aside for a name in it, and one that nobody can read.
		waiting := counter.Batch{Opened: time.Now().UnixMilli(), Counts: []counter.Count{{Name: naming.Clean("user." + strings.Replace(id, "(x", "((x", 1) + ".requests"), N: 5}}}.Encode()
		writer := fmt.Sprintf("waits%d", i)
		before := others()
		b.exec(`INSERT INTO usage_writers (writer, seq, sum, seen) VALUES (?, 0, ?, 0)`, writer, []byte{}) // not seen for long: the next sweep folds it
		b.exec(`INSERT INTO usage_inbox (writer, seq, opened, payload) VALUES (?, 1, 1, ?)`, writer, waiting)
		b.exec(`INSERT INTO usage_quarantine (writer, seq, payload) VALUES ('x', ?, ?)`, i+1, []byte("not a batch"))
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
			`SELECT COUNT(*) FROM (SELECT key FROM usage_crossings UNION ALL SELECT key FROM usage_notices) AS records WHERE key = ?`,
		} {
			for _, name := range []string{"user.%s.requests", "user.%s.logins", "user.%s.logins\x00", "quota.%s.refused", "quota.%s.daily", "quota.%s.hourly", "quota.%s.monthly"} {
				name = naming.Clean(fmt.Sprintf(name, subject))
				if n := b.number(query, name); n != 0 {
					t.Errorf("%d rows are left of %.40q: %s", n, name, query)
				}
			}
		}
		if n := b.number(`SELECT COUNT(*) FROM usage_quarantine`); n != 0 {
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
	// What usagekit counts users under that have no room is nobody's.
	s.Inc("user.(other).logins")
	b.flush(s)
	before := b.totals(s, store.Query{})
	if err := s.Erase(b.ctx, "(other)"); err != nil {
		t.Error(err)
	}
	if after := b.totals(s, store.Query{}); !maps.Equal(before, after) || after["user.(other).logins"] != 1 {
		t.Errorf("erasing (other): %v, before %v", after, before)
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
