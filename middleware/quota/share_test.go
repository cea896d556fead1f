package quota

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/usagekit/usagekit/store"
)

// While the database is late nobody waits for it again, and what it took in the
// end is used.
func TestQuotaUsesWhatCameLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &bank{before: slow(200 * time.Millisecond)}
		cfg := daily("ann", 12)
		cfg.Reserve = 10
		h := New(b, cfg)(http.HandlerFunc(hello))
		checkFields(t, checkStatus(t, h, 200), "daily q=12 w=86400", "")
		start := time.Now()
		checkFields(t, checkStatus(t, h, 200), "daily q=12 w=86400", "")
		if d := time.Since(start); d != 0 {
			t.Errorf("waited %v for a call that is late", d)
		}
		time.Sleep(151 * time.Millisecond)
		b.hook(nil)
		for i := range 12 {
			checkFields(t, checkStatus(t, h, 200), "daily q=12 w=86400", fmt.Sprintf("daily r=%d t=86400", 11-i))
		}
		checkStatus(t, h, 429)
		if n := b.called(); n != 2 {
			t.Errorf("%d calls", n)
		}
	})
}

// A request that waited for a call before its own one waits no longer for it.
func TestQuotaWaitsFromArrival(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &bank{before: slow(30 * time.Millisecond)}
		h := New(b, daily("ann", 12))(http.HandlerFunc(hello))
		var wg sync.WaitGroup
		wg.Go(func() { get(h) })
		time.Sleep(5 * time.Millisecond)
		start := time.Now()
		checkFields(t, checkStatus(t, h, 200), "daily q=12 w=86400", "")
		if d := time.Since(start); d != 50*time.Millisecond {
			t.Errorf("waited %v", d)
		}
		wg.Wait()
		time.Sleep(time.Second)
		checkFields(t, checkStatus(t, h, 200), "daily q=12 w=86400", "daily r=10 t=86399")

		cfg := daily("bob", 12)
		cfg.Key = func(*http.Request) string { time.Sleep(40 * time.Millisecond); return "bob" }
		start = time.Now()
		checkStatus(t, New(b, cfg)(http.HandlerFunc(hello)), 200)
		if d := time.Since(start); d != 50*time.Millisecond {
			t.Errorf("waited %v after a slow Key", d)
		}
		time.Sleep(time.Second)
	})
}

func TestQuotaAfterAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &bank{before: broken}
		h := New(b, daily("ann", 1))(http.HandlerFunc(hello))
		checkStatus(t, h, 200)
		b.hook(nil)
		checkFields(t, checkStatus(t, h, 200), "daily q=1 w=86400", "daily r=0 t=86400")
		b.hook(broken)
		checkStatus(t, h, 429) // known
	})
}

func TestQuotaOfTheNextWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &bank{}
		cfg := Config{Name: "hourly", Key: is("ann"), Limit: limit(4), Reserve: 3, Window: store.Hour}
		q := newLimiter(b, cfg)
		h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { q.serve(http.HandlerFunc(hello), w, r) })
		for range 4 {
			checkStatus(t, h, 200)
		}
		checkStatus(t, h, 429)
		calls := b.called()
		time.Sleep(time.Hour - 1)
		checkStatus(t, h, 429)
		if n := b.called(); n != calls {
			t.Errorf("%d calls after a refusal", n-calls)
		}
		time.Sleep(time.Nanosecond)
		checkFields(t, checkStatus(t, h, 200), "hourly q=4 w=3600", "hourly r=3 t=3600") // 2 in reserve
		time.Sleep(time.Hour)
		checkFields(t, checkStatus(t, h, 200), "hourly q=4 w=3600", "hourly r=3 t=3600")
		if got := b.took("quota.ann.hourly", store.Hour); got != 3 {
			t.Errorf("%d taken: a reserve outlived its window", got)
		}
		time.Sleep(time.Hour)
		q.cfg.Key = is("bob")
		checkStatus(t, h, 200)
		if len(q.shares) != 1 {
			t.Errorf("%d shares, one of a window that has ended", len(q.shares))
		}
	})
}

// An answer may come when its window has ended. Whoever was counted in it passes;
// who came later is counted in the new one; a refusal says nothing any more.
func TestQuotaAtTheEndOfTheWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &bank{after: func() { time.Sleep(20 * time.Millisecond) }}
		h := New(b, Config{Name: "hourly", Key: is("ann"), Limit: limit(1), Window: store.Hour})(http.HandlerFunc(hello))
		time.Sleep(time.Hour - 10*time.Millisecond)
		var wg sync.WaitGroup
		wg.Go(func() { checkFields(t, checkStatus(t, h, 200), "hourly q=1 w=3600", "hourly r=0 t=0") })
		time.Sleep(15 * time.Millisecond)
		checkFields(t, checkStatus(t, h, 200), "hourly q=1 w=3600", "hourly r=0 t=3600")
		wg.Wait()

		time.Sleep(time.Hour - 50*time.Millisecond)
		checkStatus(t, h, 429)
		h = New(b, Config{Name: "hourly", Key: is("ann"), Limit: limit(1), Window: store.Hour})(http.HandlerFunc(hello))
		time.Sleep(time.Until(time.Now().Truncate(time.Hour).Add(time.Hour - 10*time.Millisecond)))
		checkFields(t, checkStatus(t, h, 200), "hourly q=1 w=3600", "hourly r=0 t=3600")
	})
}

func TestQuotaOfHigherLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &bank{}
		cfg := daily("ann", 0)
		cfg.Limit = xLimit
		h := New(b, cfg)(http.HandlerFunc(hello))
		checkStatus(t, h, 200, "X-Limit", "2")
		checkStatus(t, h, 200, "X-Limit", "2")
		checkStatus(t, h, 429, "X-Limit", "2")
		checkStatus(t, h, 429, "X-Limit", "1")
		n := b.called()
		checkStatus(t, h, 200, "X-Limit", "3")
		checkStatus(t, h, 429, "X-Limit", "3")
		if n = b.called() - n; n != 1 {
			t.Errorf("%d calls after a higher limit", n)
		}
	})
}

// A reserve that a higher limit allowed is none of a lower one's.
func TestQuotaReserveOfHigherLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &bank{}
		cfg := daily("ann", 0)
		cfg.Limit, cfg.Reserve = xLimit, 5
		h := New(b, cfg)(http.HandlerFunc(hello))
		checkStatus(t, h, 200, "X-Limit", "10")
		checkStatus(t, h, 429, "X-Limit", "1")
		checkFields(t, checkStatus(t, h, 200, "X-Limit", "2"), "daily q=2 w=86400", "daily r=0 t=86400")
		checkStatus(t, h, 429, "X-Limit", "2")
		checkStatus(t, h, 200, "X-Limit", "10")
	})
}

// Of those that wait together, only who stays gets something.
func TestQuotaSomeClientsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &bank{before: slow(10 * time.Millisecond)}
		h := New(b, daily("ann", 2))(http.HandlerFunc(hello))
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil).WithContext(ctx))
		})
		synctest.Wait()
		wg.Go(func() { checkFields(t, checkStatus(t, h, 200), "daily q=2 w=86400", "daily r=1 t=86400") })
		synctest.Wait()
		cancel()
		wg.Wait()
		synctest.Wait()
		if took := b.took("quota.ann.daily", store.Day); took != 1 {
			t.Errorf("%d taken", took)
		}
	})
}

func TestQuotaShares(t *testing.T) {
	q := newLimiter(&bank{}, daily("ann", 9))
	now := time.Now()
	at := func(c *call, d time.Duration) *share { return q.keep(c, now.Add(d), now) }
	c := &call{key: "ann"}
	s := at(c, time.Hour)
	s.note(taking{n: 3, limit: 9, left: 5, ok: true})
	s.note(taking{n: 1, limit: 9, left: 7, ok: true}) // a database that forgot
	if s.taken != 4 || s.reserve != 4 {
		t.Errorf("%+v", s)
	}
	if at(c, time.Hour+time.Second) != s || q.shares["ann"] != s {
		t.Error("forgotten within its window")
	}
	next := at(c, 25*time.Hour)
	if next == s || q.shares["ann"] != next || next.reserve != 0 {
		t.Error("not forgotten when the next window has begun")
	}
	bob := &call{key: "bob"}
	q.calls["bob"] = bob
	if s := at(bob, time.Hour); q.shares["bob"] != nil || q.known("bob", now) != s {
		t.Error("a share of the window before is not of its call only")
	}
	if at(&call{key: "eve"}, 49*time.Hour); len(q.shares) != 1 {
		t.Errorf("%d shares after the next window has begun", len(q.shares))
	}
	if q.known("nobody", now.Add(50*time.Hour)); len(q.shares) != 0 {
		t.Errorf("%d shares after the end", len(q.shares))
	}
}

// Nothing is taken when all are gone before Take is called.
func TestQuotaTakesNothingForNobody(t *testing.T) {
	b := &bank{}
	q := newLimiter(b, daily("ann", 2))
	c := &call{key: "ann", waiters: []*waiter{{limit: 2, told: make(chan struct{}), left: true}}}
	q.calls["ann"], q.running = c, 1
	q.call(c)
	if b.calls != 0 || q.running != 0 || len(q.calls) != 0 {
		t.Errorf("%d calls of Take, %d running, %d there", b.calls, q.running, len(q.calls))
	}
}

// One that goes away at the moment of the answer gives back what it was given, to
// one that waits if there is.
func TestQuotaGivesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &bank{}
		q := newLimiter(b, daily("ann", 2))
		s := &share{taken: 2, until: time.Now().Add(time.Hour)}
		q.shares["ann"], q.until = s, s.until
		told := make(chan struct{})
		close(told)
		c := &call{key: "ann"}
		given := func() *waiter { return &waiter{told: told, from: s, verdict: verdict{outcome: passed}} }
		if v := q.leave(c, given(), true); v.outcome != gone || s.reserve != 1 {
			t.Errorf("%v, reserve %d", v, s.reserve)
		}
		if v := q.leave(c, given(), false); v.outcome != passed || s.reserve != 1 {
			t.Errorf("%v, reserve %d", v, s.reserve)
		}
		w := &waiter{limit: 2, told: make(chan struct{})}
		c.waiters, c.waiting = []*waiter{w}, 1
		q.calls["ann"] = c
		s.reserve = 0
		q.leave(c, given(), true)
		<-w.told
		if w.verdict.outcome != passed || s.reserve != 0 || c.waiting != 0 {
			t.Errorf("%+v, reserve %d", w.verdict, s.reserve)
		}
	})
}

func TestQuotaMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &bank{}
		cfg := Config{Name: "hourly", Key: xKey, Limit: limit(2), Window: store.Hour}
		q := newLimiter(b, cfg)
		h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { q.serve(http.HandlerFunc(hello), w, r) })
		for i := range 101_000 {
			if v := q.admit(t.Context(), strconv.Itoa(i), 2, time.Now().Add(q.patience)); v.outcome != passed || v.left != 1 {
				t.Fatal(i, v)
			}
		}
		synctest.Wait()
		if len(q.shares) != maxShares || len(q.calls) != 0 || len(q.queue) != 0 {
			t.Errorf("%d shares, %d calls, %d in the queue", len(q.shares), len(q.calls), len(q.queue))
		}
		for _, key := range []string{"0", "100999"} { // kept or not
			checkStatus(t, h, 200, "X-Key", key)
			checkStatus(t, h, 429, "X-Key", key)
		}
		time.Sleep(time.Hour)
		checkStatus(t, h, 200, "X-Key", "100999")
		if len(q.shares) != 1 || q.shareBytes != len("100999") {
			t.Errorf("%d shares, %d bytes", len(q.shares), q.shareBytes)
		}
		for i := range 2000 {
			checkStatus(t, h, 200, "X-Key", strconv.Itoa(i)+strings.Repeat("k", 10_000))
		}
		if len(q.shares) > maxShareKeys/10_000+1 {
			t.Errorf("%d shares with long keys", len(q.shares))
		}
		q.cfg.Limit = xLimit
		for i := range 2 * maxPolicies {
			get(h, "X-Key", "1", "X-Limit", strconv.Itoa(i))
		}
		if len(q.policies) > maxPolicies {
			t.Errorf("%d policies", len(q.policies))
		}
	})
}

// More keys at once than calls: they wait for their turn.
func TestQuotaOfManyKeysAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &bank{before: slow(2 * time.Millisecond)}
		cfg := daily("", 2)
		cfg.Key = xKey
		h := New(b, cfg)(http.HandlerFunc(hello))
		codes := map[int]int{}
		var wg sync.WaitGroup
		var mu sync.Mutex
		for i := range 4 * 500 {
			wg.Go(func() {
				w := get(h, "X-Key", strconv.Itoa(i%500))
				if w.Header().Get("RateLimit") == "" {
					t.Error("not counted")
				}
				mu.Lock()
				defer mu.Unlock()
				codes[w.Code]++
			})
		}
		wg.Wait()
		if codes[200] != 1000 || codes[429] != 1000 {
			t.Errorf("status %v", codes)
		}
	})
}

func TestQuotaGoroutines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		forever := make(chan struct{})
		b := &bank{before: func(context.Context, string) error { <-forever; return nil }}
		cfg := daily("", 1)
		cfg.Key = xKey
		q := newLimiter(b, cfg)
		h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { q.serve(http.HandlerFunc(hello), w, r) })
		before := runtime.NumGoroutine()
		for round := range 2 {
			var wg sync.WaitGroup
			for i := range 10_000 {
				wg.Go(func() {
					start := time.Now()
					w := checkStatus(t, h, 200, "X-Key", strconv.Itoa(i))
					if d := time.Since(start); d > 50*time.Millisecond || round > 0 && d > 0 {
						t.Errorf("waited %v in round %d", d, round)
					}
					checkFields(t, w, "daily q=1 w=86400", "")
				})
			}
			wg.Wait()
			synctest.Wait()
			if n := runtime.NumGoroutine() - before; n > maxCalls+10 { // the runtime has some
				t.Errorf("%d goroutines", n)
			}
			if len(q.calls) > maxCalls+maxQueue {
				t.Errorf("%d calls", len(q.calls))
			}
			time.Sleep(time.Minute)
		}
		if n := b.called(); n != maxCalls {
			t.Errorf("%d calls", n)
		}
		close(forever)
		synctest.Wait()
		if len(q.calls) != 0 || len(q.queue) != 0 || q.running != 0 {
			t.Errorf("%d calls, %d in the queue, %d running", len(q.calls), len(q.queue), q.running)
		}
		checkFields(t, checkStatus(t, h, 200, "X-Key", "9999"), "daily q=1 w=86400", "daily r=0 t=86280")
	})
}

func TestQuotaTakeHasItsOwnContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var took time.Duration
		b := &bank{before: func(ctx context.Context, _ string) error {
			start := time.Now()
			<-ctx.Done()
			took = time.Since(start)
			return ctx.Err()
		}}
		checkStatus(t, New(b, daily("ann", 1))(http.HandlerFunc(hello)), 200)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if took != time.Second {
			t.Errorf("Take's context ended after %v", took)
		}
	})
}

// taker answers as no Taker should.
type taker func(n, limit int64) (int64, time.Time, bool)

func (taker) Add(string, int64) {}

func (f taker) Take(_ context.Context, _ string, n, limit int64, _ store.Step) (int64, time.Time, bool, error) {
	left, until, ok := f(n, limit)
	return left, until, ok, nil
}

func TestQuotaDoesNotBelieveEverything(t *testing.T) {
	for name, take := range map[string]taker{
		"refused with enough left": func(n, limit int64) (int64, time.Time, bool) { return n, time.Now().Add(time.Hour), false },
		"ended before":             func(n, limit int64) (int64, time.Time, bool) { return 0, time.Time{}, false },
		"ended before, passed":     func(n, limit int64) (int64, time.Time, bool) { return 0, time.Time{}, true },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				checkFields(t, checkStatus(t, New(take, daily("ann", 9))(http.HandlerFunc(hello)), 200), "daily q=9 w=86400", "")
			})
		})
	}
	t.Run("less than nothing left", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			take := taker(func(n, limit int64) (int64, time.Time, bool) { return -1 << 63, time.Now().Add(time.Hour), false })
			checkFields(t, checkStatus(t, New(take, daily("ann", 9))(http.HandlerFunc(hello)), 429), "daily q=9 w=86400", "daily r=0 t=3600")
		})
	})
}
