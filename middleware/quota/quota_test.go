package quota

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"reflect"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dunglas/httpsfv"

	"github.com/usagekit/usagekit/store"
)

// counts is what was added, to look into.
type counts struct {
	mu sync.Mutex
	n  map[string]int64
}

func (c *counts) Add(name string, n int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == nil {
		c.n = map[string]int64{}
	}
	c.n[name] += n
}

func (c *counts) check(t *testing.T, want map[string]int64) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if !maps.Equal(c.n, want) {
		t.Errorf("counted %v\nwant    %v", c.n, want)
	}
}

// bank is a Taker in memory. Its windows are those of UTC.
type bank struct {
	counts

	mu     sync.Mutex
	taken  map[account]int64
	calls  int
	before func(ctx context.Context, name string) error // of a Take
	after  func()
}

func (b *bank) Take(ctx context.Context, name string, n, limit int64, step store.Step) (int64, time.Time, bool, error) {
	b.mu.Lock()
	b.calls++
	before, after := b.before, b.after
	b.mu.Unlock()
	if before != nil {
		if err := before(ctx, name); err != nil {
			return 0, time.Time{}, false, err
		}
	}
	if after != nil {
		defer after()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.taken == nil {
		b.taken = map[account]int64{}
	}
	until := endOf(step)
	key := account{name, until.Unix()}
	ok := b.taken[key]+n <= limit
	if ok {
		b.taken[key] += n
	}
	return max(limit-b.taken[key], 0), until, ok, nil
}

// endOf is when the current hour, day or month ends.
func endOf(step store.Step) time.Time {
	now := time.Now().UTC()
	switch step {
	case store.Hour:
		return now.Truncate(time.Hour).Add(time.Hour)
	case store.Day:
		return time.Date(now.Year(), now.Month(), now.Day()+1, 0, 0, 0, 0, time.UTC)
	}
	return time.Date(now.Year(), now.Month()+1, 1, 0, 0, 0, 0, time.UTC)
}

type account struct {
	name  string
	until int64 // the end of the window
}

// took is what was taken under name in the current window.
func (b *bank) took(name string, step store.Step) int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.taken[account{name, endOf(step).Unix()}]
}

func (b *bank) hook(before func(ctx context.Context, name string) error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.before = before
}

func (b *bank) called() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.calls
}

func slow(d time.Duration) func(context.Context, string) error {
	return func(context.Context, string) error { time.Sleep(d); return nil }
}

func hang(ctx context.Context, _ string) error { <-ctx.Done(); return ctx.Err() }

func broken(context.Context, string) error { return errors.New("connection refused") }

// patient is New for tests in real time.
func patient(t Taker, cfg Config, next http.HandlerFunc) http.Handler {
	l := newLimiter(t, cfg)
	l.patience = time.Hour
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { l.serve(next, w, r) })
}

func hello(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") }

func is(s string) func(*http.Request) string { return func(*http.Request) string { return s } }

func panics(*http.Request) string { panic("callback") }

func limit(n int64) func(*http.Request) int64 { return func(*http.Request) int64 { return n } }

func xLimit(r *http.Request) int64 {
	n, _ := strconv.ParseInt(r.Header.Get("X-Limit"), 10, 64)
	return n
}

func xKey(r *http.Request) string { return r.Header.Get("X-Key") }

func daily(key string, n int64) Config {
	return Config{Name: "daily", Key: is(key), Limit: limit(n)}
}

// get has h answer one request with these header fields.
func get(h http.Handler, fields ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest("GET", "/", nil)
	for i := 0; i < len(fields); i += 2 {
		r.Header[fields[i]] = []string{fields[i+1]}
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func checkStatus(t *testing.T, h http.Handler, want int, fields ...string) *httptest.ResponseRecorder {
	t.Helper()
	w := get(h, fields...)
	if w.Code != want {
		t.Errorf("status %d, want %d", w.Code, want)
	}
	if body := w.Body.String(); (body == "hello") != (want == 200) {
		t.Errorf("status %d with %q", w.Code, body)
	}
	return w
}

// fields parses RateLimit or RateLimit-Policy: name k=v …
func fields(t *testing.T, w *httptest.ResponseRecorder, name string) string {
	t.Helper()
	lines := w.Header().Values(name)
	if len(lines) == 0 {
		return ""
	}
	list, err := httpsfv.UnmarshalList(lines)
	if err != nil {
		t.Fatalf("%s %q: %v", name, lines, err)
	}
	var out []string
	for _, m := range list {
		item := m.(httpsfv.Item)
		s := item.Value.(string)
		for _, k := range item.Params.Names() {
			v, _ := item.Params.Get(k)
			s += fmt.Sprintf(" %s=%d", k, v.(int64))
		}
		out = append(out, s)
	}
	return strings.Join(out, ", ")
}

func checkFields(t *testing.T, w *httptest.ResponseRecorder, policy, rateLimit string) {
	t.Helper()
	if got := fields(t, w, "RateLimit-Policy"); got != policy {
		t.Errorf("RateLimit-Policy %q, want %q", got, policy)
	}
	if got := fields(t, w, "RateLimit"); got != rateLimit {
		t.Errorf("RateLimit %q, want %q", got, rateLimit)
	}
}

func TestQuotaIsExact(t *testing.T) {
	for _, lease := range []int64{1, 10} {
		t.Run(fmt.Sprint("lease ", lease), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const n, instances = 737, 4
				b := &bank{before: slow(time.Millisecond)}
				var handlers []http.Handler
				for range instances {
					cfg := daily("ann", n)
					cfg.Reserve = lease
					handlers = append(handlers, New(b, cfg)(http.HandlerFunc(hello)))
				}
				var passed, refused atomic.Int64
				request := func(i int) {
					switch w := get(handlers[i%instances]); w.Code {
					case 200:
						passed.Add(1)
					case 429:
						refused.Add(1)
					}
				}
				var wg sync.WaitGroup
				for i := range 1000 {
					wg.Go(func() { request(i) })
				}
				wg.Wait()
				if p, r := passed.Load(), refused.Load(); p > n || p < n-instances*(lease-1) || p+r != 1000 {
					t.Errorf("%d of %d passed, %d were refused", p, n, r)
				}
				if calls := b.called(); calls > 40 {
					t.Errorf("%d calls", calls)
				}
				for i := range 100 {
					request(i)
				}
				if p := passed.Load(); p != n {
					t.Errorf("%d of %d passed in the end", p, n)
				}
				if took := b.took("quota.ann.daily", store.Day); took != n {
					t.Errorf("%d taken of %d", took, n)
				}
				b.check(t, map[string]int64{"quota.ann.refused": refused.Load()})
			})
		})
	}
}

// Every pass of any mix of limits and leases is counted, and no request is refused
// while there is room.
func TestQuotaOfChangingLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &bank{before: slow(time.Millisecond)}
		cfg := daily("ann", 0)
		cfg.Limit = xLimit
		h := New(b, cfg)(http.HandlerFunc(hello))
		var passed [4]atomic.Int64
		var wg sync.WaitGroup
		for i := range 400 {
			wg.Go(func() {
				if get(h, "X-Limit", strconv.Itoa(i%4*50)).Code == 200 {
					passed[i%4].Add(1)
				}
			})
		}
		wg.Wait()
		var sum int64
		for i := range passed {
			sum += passed[i].Load()
		}
		if took := b.took("quota.ann.daily", store.Day); passed[0].Load() != 0 || sum != took || sum < 100 || sum > 150 {
			t.Errorf("passed %v, %d taken", sum, took)
		}
	})
}

func TestQuotaFields(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &bank{}
		inner := func(w http.ResponseWriter, r *http.Request) {
			if w.Header().Get("RateLimit") == "" || w.Header().Get("RateLimit-Policy") == "" {
				t.Error("the handler does not see the fields")
			}
			hello(w, r)
		}
		cfg := daily("ann", 3)
		cfg.Reserve = 2
		h := New(b, cfg)(http.HandlerFunc(inner))
		time.Sleep(time.Hour - time.Millisecond)

		w := checkStatus(t, h, 200)
		checkFields(t, w, "daily q=3 w=86400", "daily r=2 t=82801")
		if got := w.Header().Get("RateLimit"); got != `"daily";r=2;t=82801` {
			t.Errorf("RateLimit: %s", got)
		}
		if got := w.Header().Get("RateLimit-Policy"); got != `"daily";q=3;w=86400` {
			t.Errorf("RateLimit-Policy: %s", got)
		}
		checkFields(t, checkStatus(t, h, 200), "daily q=3 w=86400", "daily r=1 t=82801")
		checkFields(t, checkStatus(t, h, 200), "daily q=3 w=86400", "daily r=0 t=82801")
		w = checkStatus(t, h, 429)
		checkFields(t, w, "daily q=3 w=86400", "daily r=0 t=82801")
		for name, want := range map[string]string{
			"Retry-After": "82801", "Content-Type": "application/problem+json", "Cache-Control": "no-store",
		} {
			if got := w.Header().Get(name); got != want {
				t.Errorf("%s: %s, want %s", name, got, want)
			}
		}
		const body = `{"type":"https://iana.org/assignments/http-problem-types#quota-exceeded","title":"Request cannot be satisfied as assigned quota has been exceeded","status":429,"violated-policies":["daily"]}`
		if got := w.Body.String(); got != body {
			t.Errorf("body %s\nwant %s", got, body)
		}
		b.check(t, map[string]int64{"quota.ann.refused": 1})
		time.Sleep(82800*time.Second + 500*time.Microsecond)
		if got := checkStatus(t, h, 429).Header().Get("Retry-After"); got != "1" {
			t.Errorf("Retry-After: %s at the window's end", got)
		}
	})
}

// A month's ends with it, however long it is, and what was reserved does not outlive it.
func TestQuotaOfAMonth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // from 2000-01-01 on
		b := &bank{}
		h := New(b, Config{Name: "monthly", Key: is("ann"), Limit: limit(3), Window: store.Month, Reserve: 2})(http.HandlerFunc(hello))
		const day = 24 * 3600
		time.Sleep(20*day*time.Second + 100*time.Millisecond)
		checkFields(t, checkStatus(t, h, 200), "monthly q=3 w=2678400", fmt.Sprintf("monthly r=2 t=%d", 11*day))
		for range 2 {
			checkStatus(t, h, 200)
		}
		time.Sleep(10 * day * time.Second)
		w := checkStatus(t, h, 429)
		checkFields(t, w, "monthly q=3 w=2678400", fmt.Sprintf("monthly r=0 t=%d", day))
		if got := w.Header().Get("Retry-After"); got != strconv.Itoa(day) {
			t.Errorf("Retry-After: %s, a day before the month's end", got)
		}
		time.Sleep(day * time.Second)
		checkFields(t, checkStatus(t, h, 200), "monthly q=3 w=2678400", fmt.Sprintf("monthly r=2 t=%d", 29*day)) // of February 2000
		time.Sleep(29 * day * time.Second)
		for range 3 {
			checkStatus(t, h, 200)
		}
		if got := b.took("quota.ann.monthly", store.Month); got != 3 {
			t.Errorf("%d taken in March: a reserve outlived its month", got)
		}
	})
}

func TestQuotaOfHugeLimit(t *testing.T) {
	h := patient(&bank{}, daily("ann", 1<<63-1), hello)
	w := checkStatus(t, h, 200)
	if got := fields(t, w, "RateLimit"); !strings.HasPrefix(got, "daily r=999999999999998 t=") {
		t.Errorf("RateLimit %s", got)
	}
	if got := fields(t, w, "RateLimit-Policy"); got != "daily q=999999999999999 w=86400" {
		t.Errorf("RateLimit-Policy %s", got)
	}
}

func TestQuotasNested(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &bank{}
		hourly := Config{Name: "hourly", Key: is("ann"), Limit: limit(2), Window: store.Hour}
		h := New(b, daily("ann", 3))(New(b, hourly)(http.HandlerFunc(hello)))
		const policies = "daily q=3 w=86400, hourly q=2 w=3600"
		checkFields(t, checkStatus(t, h, 200), policies, "daily r=2 t=86400, hourly r=1 t=3600")
		checkFields(t, checkStatus(t, h, 200), policies, "daily r=1 t=86400, hourly r=0 t=3600")
		w := checkStatus(t, h, 429)
		checkFields(t, w, policies, "daily r=0 t=86400, hourly r=0 t=3600")
		if got := w.Header().Get("Retry-After"); got != "3600" {
			t.Errorf("Retry-After: %s", got)
		}
		if !strings.Contains(w.Body.String(), `["hourly"]`) {
			t.Errorf("body %s", w.Body)
		}
		time.Sleep(time.Hour)
		w = checkStatus(t, h, 429)
		checkFields(t, w, "daily q=3 w=86400", "daily r=0 t=82800")
		if !strings.Contains(w.Body.String(), `["daily"]`) {
			t.Errorf("body %s", w.Body)
		}
	})
}

func TestQuotaOverHTTP(t *testing.T) {
	h := patient(&bank{}, daily("ann", 1), hello)
	var lengths []int64
	for _, protocol := range []string{"HTTP/1.1", "HTTP/2.0"} {
		srv := httptest.NewUnstartedServer(h)
		if srv.EnableHTTP2 = protocol == "HTTP/2.0"; srv.EnableHTTP2 {
			srv.StartTLS()
		} else {
			srv.Start()
		}
		t.Cleanup(srv.Close)
		exchange := func(method string) (*http.Response, string) {
			r, err := http.NewRequestWithContext(t.Context(), method, srv.URL, nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := srv.Client().Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err != nil || resp.Proto != protocol {
				t.Fatalf("%s instead of %s, %v", resp.Proto, protocol, err)
			}
			return resp, string(body)
		}
		exchange("GET")
		got, text := exchange("GET")
		head, none := exchange("HEAD")
		if got.Status != "429 Too Many Requests" || head.Status != got.Status || text == "" || none != "" {
			t.Errorf("%s: %v %q\n%v %q", protocol, got, text, head, none)
		}
		if a, b := got.Header.Get("Content-Type"), head.Header.Get("Content-Type"); a != "application/problem+json" || b != a {
			t.Errorf("%s: Content-Type %q, HEAD %q", protocol, a, b)
		}
		lengths = append(lengths, head.ContentLength)
	}
	if lengths[0] <= 0 || lengths[0] != lengths[1] {
		t.Errorf("Content-Length %d", lengths)
	}
}

func TestQuotaWithoutDatabase(t *testing.T) {
	forever := make(chan struct{})
	for _, tt := range []struct {
		name   string
		before func(context.Context, string) error
		waits  time.Duration
	}{
		{"error", broken, 0},
		{"error after 20 ms", func(context.Context, string) error { time.Sleep(20 * time.Millisecond); return io.EOF }, 20 * time.Millisecond},
		{"panic", func(context.Context, string) error { panic("boom") }, 0},
		{"goexit", func(context.Context, string) error { runtime.Goexit(); return nil }, 0},
		{"hang", hang, 50 * time.Millisecond},
		{"late", slow(60 * time.Millisecond), 50 * time.Millisecond},
		{"forever", func(context.Context, string) error { <-forever; return nil }, 50 * time.Millisecond},
	} {
		for _, failClosed := range []bool{false, true} {
			t.Run(fmt.Sprint(tt.name, " ", failClosed), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					forever = make(chan struct{})
					defer close(forever)
					b := &bank{before: tt.before}
					cfg := daily("ann", 100)
					cfg.FailClosed = failClosed
					h := New(b, cfg)(http.HandlerFunc(hello))
					var wg sync.WaitGroup
					for range 100 {
						wg.Go(func() {
							want := 200
							if failClosed {
								want = 503
							}
							start := time.Now()
							w := checkStatus(t, h, want)
							if d := time.Since(start); d != tt.waits {
								t.Errorf("waited %v, want %v", d, tt.waits)
							}
							checkFields(t, w, "daily q=100 w=86400", "")
							if failClosed {
								checkUnavailable(t, w)
							}
						})
					}
					wg.Wait()
					time.Sleep(time.Second)
					b.check(t, nil)
				})
			})
		}
	}
}

func checkUnavailable(t *testing.T, w *httptest.ResponseRecorder) {
	t.Helper()
	var p problem
	if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil {
		t.Errorf("%v: %s", err, w.Body)
	}
	if p.Detail == "" {
		t.Error("no detail")
	}
	p.Detail = ""
	if want := (problem{Type: "about:blank", Title: "Service Unavailable", Status: 503}); !reflect.DeepEqual(p, want) {
		t.Errorf("problem %+v", p)
	}
	h := w.Header()
	if h.Get("Retry-After") != "1" || h.Get("Content-Type") != "application/problem+json" || h.Get("Cache-Control") != "no-store" {
		t.Errorf("header %v", h)
	}
}

func TestQuotaOfNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &bank{}
		h := New(b, daily("ann", 0))(http.HandlerFunc(hello))
		for range 2 {
			w := checkStatus(t, h, 429)
			checkFields(t, w, "daily q=0 w=86400", "daily r=0 t=86400")
		}
		if n := b.called(); n != 1 {
			t.Errorf("%d calls", n)
		}
		time.Sleep(24 * time.Hour)
		b.hook(broken)
		w := checkStatus(t, h, 429)
		checkFields(t, w, "daily q=0 w=86400", "daily r=0")
		if got := w.Header().Get("Retry-After"); got != "1" {
			t.Errorf("Retry-After: %s", got)
		}
	})
}

func TestQuotaNotLimited(t *testing.T) {
	for name, cfg := range map[string]Config{
		"nobody":   {Name: "daily", Key: is(""), Limit: panicsInt},
		"no limit": daily("ann", -1),
	} {
		t.Run(name, func(t *testing.T) {
			b := &bank{}
			checkFields(t, checkStatus(t, patient(b, cfg, hello), 200), "", "")
			if b.calls != 0 {
				t.Errorf("%d calls", b.calls)
			}
		})
	}
}

func panicsInt(*http.Request) int64 { panic("callback") }

func TestQuotaKeys(t *testing.T) {
	for _, key := range []string{
		"ann", "a.b", "(other)", "((", `"quoted\"`, "new\r\nline\x00\x7f", "\xff\xfe not UTF-8", "ünïcödé", strings.Repeat("k", 10_000),
	} {
		t.Run(fmt.Sprintf("%.20q", key), func(t *testing.T) {
			var names []string
			b := &bank{before: func(_ context.Context, name string) error { names = append(names, name); return nil }}
			h := patient(b, daily(key, 1), hello)
			checkStatus(t, h, 200)
			w := checkStatus(t, h, 429)
			fields(t, w, "RateLimit")
			want := key
			if key[0] == '(' {
				want = "(" + key
			}
			if len(names) != 1 || names[0] != "quota."+want+".daily" {
				t.Errorf("taken under %.40q", names)
			}
			b.check(t, map[string]int64{"quota." + want + ".refused": 1})
		})
	}
}

func TestQuotaCallbacksPanic(t *testing.T) {
	for name, cfg := range map[string]Config{
		"Key":   {Name: "daily", Key: panics, Limit: limit(1)},
		"Limit": {Name: "daily", Key: is("ann"), Limit: panicsInt},
		"abort": {Name: "daily", Key: func(*http.Request) string { panic(http.ErrAbortHandler) }, Limit: limit(1)},
	} {
		t.Run(name, func(t *testing.T) {
			checkFields(t, checkStatus(t, patient(&bank{}, cfg, hello), 200), "", "")
			cfg.FailClosed = true
			checkUnavailable(t, checkStatus(t, patient(&bank{}, cfg, hello), 503))
		})
	}
}

type deaf struct{ bank }

func (*deaf) Add(string, int64) { panic("recorder") }

func TestQuotaRecorderPanics(t *testing.T) {
	checkStatus(t, patient(&deaf{}, daily("ann", 0), hello), 429)
}

func TestQuotaPassesHandlersPanicOn(t *testing.T) {
	b := &bank{}
	h := patient(b, daily("ann", 1), func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	func() {
		defer func() {
			if v := recover(); v != http.ErrAbortHandler {
				t.Errorf("panic %v", v)
			}
		}()
		get(h)
	}()
	if w := get(h); w.Code != 429 {
		t.Errorf("status %d: what a handler failed on was not counted", w.Code)
	}
}

// A context that ends need not be a client that has gone: there is an answer.
func TestQuotaClientGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &bank{before: slow(10 * time.Millisecond)}
		served := 0
		h := New(b, daily("ann", 2))(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { served++ }))
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		w := httptest.NewRecorder()
		wg.Go(func() {
			h.ServeHTTP(w, httptest.NewRequest("GET", "/", nil).WithContext(ctx))
		})
		time.Sleep(5 * time.Millisecond)
		cancel()
		start := time.Now()
		wg.Wait()
		if d := time.Since(start); d != 0 || served != 0 || w.Code != http.StatusServiceUnavailable {
			t.Errorf("returned after %v, %d served, %d", d, served, w.Code)
		}
		time.Sleep(5 * time.Millisecond)
		synctest.Wait()
		checkFields(t, get(h), "daily q=2 w=86400", "daily r=1 t=86400")
		if n := b.called(); n != 1 {
			t.Errorf("%d calls: what was taken for a client that went away is lost", n)
		}
	})
}

func TestQuotaConfig(t *testing.T) {
	good := daily("ann", 1)
	New(&bank{}, good)
	for _, tt := range []struct {
		field string
		taker Taker
		edit  func(*Config)
	}{
		{"Taker", nil, func(*Config) {}},
		{"Key", &bank{}, func(c *Config) { c.Key = nil }},
		{"Limit", &bank{}, func(c *Config) { c.Limit = nil }},
		{"Window", &bank{}, func(c *Config) { c.Window = store.Month + 1 }},
		{"Window", &bank{}, func(c *Config) { c.Window = -1 }},
		{"Name", &bank{}, func(c *Config) { c.Name = "" }},
		{"Name", &bank{}, func(c *Config) { c.Name = "refused" }},
		{"Name", &bank{}, func(c *Config) { c.Name = "a.b" }},
		{"Name", &bank{}, func(c *Config) { c.Name = `a"` }},
		{"Name", &bank{}, func(c *Config) { c.Name = "a[" }},
		{"Name", &bank{}, func(c *Config) { c.Name = "a@" }},
		{"Name", &bank{}, func(c *Config) { c.Name = "é" }},
		{"Name", &bank{}, func(c *Config) { c.Name = strings.Repeat("a", 65) }},
	} {
		func() {
			defer func() {
				if v, _ := recover().(string); !strings.Contains(v, tt.field) {
					t.Errorf("%s: panic %q", tt.field, v)
				}
			}()
			cfg := good
			tt.edit(&cfg)
			New(tt.taker, cfg)
		}()
	}
	for _, name := range []string{"a", "AZaz09-_", strings.Repeat("a", 64)} {
		good.Name = name
		New(&bank{}, good)
	}
}

func BenchmarkQuota(b *testing.B) {
	cfg := daily("ann", 1<<40)
	cfg.Reserve = 1 << 40
	nothing := http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})
	for _, bb := range []struct {
		name string
		h    http.Handler
	}{{"bare", nothing}, {"quota", New(&bank{}, cfg)(nothing)}} {
		b.Run(bb.name, func(b *testing.B) {
			r := httptest.NewRequest("GET", "/", nil)
			w := httptest.NewRecorder()
			b.ReportAllocs()
			for b.Loop() {
				clear(w.Header())
				bb.h.ServeHTTP(w, r)
			}
		})
	}
}
