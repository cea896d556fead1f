package dashboard

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/usagekit/usagekit/internal/dbtest"
	"github.com/usagekit/usagekit/store"
	"github.com/usagekit/usagekit/store/postgres"
)

// moody is a reader whose database may go away. It counts what began, and what
// ran at a time.
type moody struct {
	fake
	mood                 atomic.Pointer[func(context.Context) error] // each read; nil: all is well
	began, running, most atomic.Int64
}

func newMoody() *moody {
	m := &moody{}
	m.counts = []store.Count{{Name: "user.42.requests", N: 9}}
	m.rows = []store.Row{{Group: "api", Subject: "GET /a", Counts: map[string]int64{"requests": 9}}}
	m.before = func(ctx context.Context, what string) error {
		if what == "Read" {
			m.began.Add(1) // begins every answer
		}
		now := m.running.Add(1)
		for most := m.most.Load(); now > most && !m.most.CompareAndSwap(most, now); most = m.most.Load() {
		}
		defer m.running.Add(-1)
		time.Sleep(10 * time.Millisecond)
		if mood := m.mood.Load(); mood != nil {
			return (*mood)(ctx)
		}
		return nil
	}
	return m
}

func (m *moody) becomes(mood func(context.Context) error) {
	if mood == nil {
		m.mood.Store(nil)
		return
	}
	m.mood.Store(&mood)
}

// answered is what somebody saw of an answer.
type answered struct {
	code  int
	took  time.Duration
	stale bool
	asOf  string
	body  string // without whether it is stale
}

func look(t *testing.T, h http.Handler, target string) answered {
	t.Helper()
	began := time.Now()
	w := get(h, target)
	a := answered{code: w.Code, took: time.Since(began), body: w.Body.String()}
	if w.Code != 200 {
		return a
	}
	if !strings.Contains(target, "/api/") {
		_, a.asOf, _ = strings.Cut(a.body, "As of <time datetime=\"")
		a.asOf, _, _ = strings.Cut(a.asOf, "\"")
		parts := regexp.MustCompile(`(?s)^(.*)<p class="stale" role="status">The database (?:does not answer|takes long to answer): these are the numbers of <time datetime="(.*?)">[^<]+</time>\.</p>(.*)$`).FindStringSubmatch(a.body)
		if a.stale = parts != nil; a.stale {
			if a.body = parts[1] + parts[3]; parts[2] != a.asOf {
				t.Errorf("%s says as of %s, and of %s", target, a.asOf, parts[2])
			}
		}
		a.body = text(a.body)
		return a
	}
	var v map[string]any
	if err := json.Unmarshal(w.Body.Bytes(), &v); err != nil {
		t.Errorf("%s: %v", target, err)
	}
	var ok bool
	if a.stale, ok = v["stale"].(bool); !ok {
		t.Errorf("%s does not say whether it is stale: %s", target, a.body)
	}
	a.asOf, _ = v["as_of"].(string)
	a.body = strings.Replace(strings.Replace(a.body, `,"slow":true`, "", 1), `"stale":true`, `"stale":false`, 1)
	return a
}

var numbers = []string{"/usage/tables.html", "/usage/api/stats", "/usage/api/totals", "/usage/api/rows?limit=5", "/usage/api/history"}

// The database goes away, however it does: everybody has the last answer, which
// says so, a second later at most. No more is read than on a good day, and when
// the database is back so are its numbers, at most MaxAge after the last failure.
func TestStale(t *testing.T) {
	long := 30 * time.Second
	if dbtest.Race() { // which sees in the first of them what it would see in all
		long /= 6
	}
	back := make(chan struct{})
	for name, mood := range map[string]func(context.Context) error{
		"refuses": func(context.Context) error { return fmt.Errorf("store: read: %w", store.ErrUnavailable) },
		"hangs": func(ctx context.Context) error {
			<-ctx.Done()
			return fmt.Errorf("%w: %w", store.ErrUnavailable, ctx.Err())
		},
		"hangs, unmarked": func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
		"deaf":            func(context.Context) error { <-back; return nil },
		"slow to refuse":  func(context.Context) error { time.Sleep(2 * time.Second); return store.ErrUnavailable },
	} {
		for _, target := range numbers {
			t.Run(name+" "+target, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					back = make(chan struct{})
					m := newMoody()
					h := open(m)
					good := look(t, h, target)
					perAnswer := m.began.Load()
					if good.code != 200 || good.stale {
						t.Fatalf("on a good day: %+v", good)
					}
					time.Sleep(2 * time.Second)
					m.becomes(mood)
					m.began.Store(0)
					away := time.Now()
					var all sync.WaitGroup
					for time.Since(away) < long {
						for range 2 {
							all.Go(func() {
								a := look(t, h, target)
								if a.code != 200 || !a.stale || a.took > time.Second || a.body != good.body || a.asOf != good.asOf {
									t.Errorf("%v after it went away: %+v, want %+v", time.Since(away), a, good)
								}
							})
						}
						time.Sleep(270 * time.Millisecond)
					}
					if n := m.most.Load(); n > maxReads || name != "deaf" && n > perAnswer {
						t.Errorf("%d reads at a time", n)
					}
					if n := m.began.Load(); n > 30*perAnswer {
						t.Errorf("%d reads began in %v", n, long)
					}
					all.Wait()

					m.becomes(nil)
					close(back)
					synctest.Wait()
					if m.running.Load() > 0 { // a read that began while it was away fails yet
						time.Sleep(timeout)
					}
					time.Sleep(time.Second + 1)
					for range 3 {
						if a := look(t, h, target); a.code != 200 || a.stale || a.asOf <= good.asOf {
							t.Errorf("after it came back: %+v", a)
						}
						time.Sleep(time.Minute) // nobody looks, and it stays well
					}
				})
			})
		}
	}
}

// An answer that is merely old is waited for, as long as its reads always take.
func TestOldIsNotStale(t *testing.T) {
	for _, c := range []struct{ first, then time.Duration }{
		{0, 900 * time.Millisecond},
		{900 * time.Millisecond, 1700 * time.Millisecond},
		{2 * time.Second, 3900 * time.Millisecond},
		{4 * time.Second, 4900 * time.Millisecond},
	} {
		synctest.Test(t, func(t *testing.T) {
			m := gauged(sleep(c.first))
			h := open(m)
			first := look(t, h, "/usage/api/totals")
			m.before = gauged(sleep(c.then)).before
			for range 3 {
				time.Sleep(time.Minute)
				a := look(t, h, "/usage/api/totals")
				if a.code != 200 || a.stale || a.took != c.then || a.asOf <= first.asOf {
					t.Errorf("%v, then %v: %+v", c.first, c.then, a)
				}
			}
		})
	}
}

// Once a slow read failed, nobody waits as long for the next; and more questions
// than are read at a time keep nobody from the last answer.
func TestStaleWhereMuchIsSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMoody()
		m.becomes(func(context.Context) error { time.Sleep(time.Second); return nil })
		h := open(m)
		look(t, h, "/usage/api/totals") // in two reads
		m.becomes(func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
		time.Sleep(2 * time.Second)
		if a := look(t, h, "/usage/api/totals"); !a.stale || a.took > timeout {
			t.Errorf("%+v", a)
		}
		time.Sleep(2 * time.Second)
		if a := look(t, h, "/usage/api/totals"); !a.stale || a.took > time.Second {
			t.Errorf("after the first failed: %+v", a)
		}
		time.Sleep(10 * time.Second)
		var all sync.WaitGroup
		for i := range 2 * maxAnswers {
			all.Go(func() {
				if a := look(t, h, fmt.Sprintf("/usage/api/rows?limit=%d", i+1)); a.code != 503 {
					t.Errorf("%+v", a)
				}
			})
		}
		synctest.Wait()
		if a := look(t, h, "/usage/api/totals"); !a.stale || a.took > time.Second {
			t.Errorf("beside many others: %+v", a)
		}
		all.Wait()
		time.Sleep(time.Second) // the reads end, too
	})
}

// Only silence is filled with old numbers: not a mistake of the caller's, nor
// what a server says about what it was asked, nor a bug.
func TestNotStale(t *testing.T) {
	for name, c := range map[string]struct {
		read func(context.Context) error
		code int
	}{
		"the caller's": {func(context.Context) error { return paramError("from must lie before to") }, 400},
		"the server's": {func(context.Context) error { return fmt.Errorf("store: read: %w", stateError("42501")) }, 503},
		"a bug":        {func(context.Context) error { panic("broken") }, 503},
		"unknown":      {func(context.Context) error { return errors.New("wrong") }, 503},
	} {
		for _, target := range numbers {
			synctest.Test(t, func(t *testing.T) {
				m := newMoody()
				h := open(m)
				look(t, h, target)
				time.Sleep(2 * time.Second)
				m.becomes(c.read)
				if a := look(t, h, target); a.code != c.code || a.took > time.Second {
					t.Errorf("%s, %s: %+v", name, target, a)
				}
				m.becomes(nil)
				time.Sleep(2 * time.Second)
				if a := look(t, h, target); a.code != 200 || a.stale {
					t.Errorf("%s, %s, afterwards: %+v", name, target, a)
				}
			})
		}
	}
}

// Without a last answer there is none, and what never was is not kept for long.
func TestNothingToRepeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMoody()
		h := open(m)
		look(t, h, "/usage/api/totals")
		time.Sleep(2 * time.Second)
		m.becomes(func(ctx context.Context) error { <-ctx.Done(); return store.ErrUnavailable })
		if a := look(t, h, "/usage/api/totals?prefix=api."); a.code != 503 || a.took != timeout {
			t.Errorf("another question: %+v", a)
		}
		if a := look(t, h, "/usage/api/totals?prefix="); a.code != 200 || !a.stale {
			t.Errorf("the same: %+v", a)
		}
		time.Sleep(lastFor)
		if a := look(t, h, "/usage/api/totals"); a.code != 503 {
			t.Errorf("%v later: %+v", lastFor, a)
		}
		time.Sleep(time.Second) // the reads end, too
	})
}

// The page is as old as the oldest of its answers.
func TestPartOfThePageIsStale(t *testing.T) {
	for _, part := range []string{"Rows", "Totals"} {
		synctest.Test(t, func(t *testing.T) {
			m := newMoody()
			h := open(m)
			first := look(t, h, "/usage/tables.html")
			time.Sleep(time.Minute)
			m.before = func(_ context.Context, what string) error {
				if what == part {
					return store.ErrUnavailable
				}
				return nil
			}
			for range 2 {
				if a := look(t, h, "/usage/tables.html"); a.code != 200 || !a.stale || a.asOf != first.asOf {
					t.Errorf("without %s: %d, stale %v, as of %s, first %s", part, a.code, a.stale, a.asOf, first.asOf)
				}
				if a := look(t, h, "/usage/api/stats"); a.stale != (part == "Totals") {
					t.Errorf("without %s: stats: %+v", part, a)
				}
			}
		})
	}
}

// The names of users that the application does not give in time are those it
// gave last.
func TestUsersStale(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMoody()
		var hang atomic.Bool
		h := newHandler(from(m), Config{Auth: Public, Users: func(ctx context.Context, _ []string) (map[string]string, error) {
			if hang.Load() {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return map[string]string{"42": "Ada"}, nil
		}})
		for range 20 {
			if a := look(t, h, "/usage/tables.html"); a.took > time.Second+100*time.Millisecond || !strings.Contains(text(a.body), "Ada 42 9") {
				t.Errorf("%v: %s", a.took, text(a.body))
			}
			hang.Store(true)
			time.Sleep(1500 * time.Millisecond)
		}
		time.Sleep(timeout) // the last call ends, too
	})
}

// Of the last answers few are kept, and of those first what is looked at again:
// a program that asks ever new questions takes none from the page. None is kept
// for ever.
func TestLastIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMoody()
		h := open(m)
		for i := range 200 {
			if i%50 < 2 {
				look(t, h, "/usage/tables.html")
			}
			look(t, h, fmt.Sprintf("/usage/api/totals?limit=%d", i+1))
			time.Sleep(2 * time.Second)
		}
		c := h.(*handler).answers
		kept := func() int {
			c.mu.Lock()
			defer c.mu.Unlock()
			return len(c.last)
		}
		if n := kept(); n != maxLast {
			t.Errorf("%d kept", n)
		}
		m.becomes(func(context.Context) error { return store.ErrUnavailable })
		for target, want := range map[string]int{"/usage/tables.html": 200, "/usage/api/stats": 200, "/usage/api/totals?limit=200": 200, "/usage/api/totals?limit=1": 503} {
			if a := look(t, h, target); a.code != want {
				t.Errorf("%s: %d, want %d", target, a.code, want)
			}
		}
		time.Sleep(lastFor)
		synctest.Wait()
		if n := kept(); n != 0 {
			t.Errorf("%d kept for ever", n)
		}
	})
}

// One last answer is kept for a question: the newest, and no other.
func TestLastIsTheNewest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCache(time.Second)
		asks := func(read func() ([]byte, error)) func(context.Context) ([]byte, standing, error) {
			return ask(c, "", func(context.Context) ([]byte, error) { return read() })
		}
		back := make(chan struct{})
		asks(func() ([]byte, error) { <-back; return []byte("old"), nil })
		time.Sleep(10 * time.Second) // it is given up
		for range 100 {
			if _, how, err := asks(func() ([]byte, error) { return make([]byte, 1<<20), nil })(t.Context()); how != fresh || err != nil {
				t.Fatal(how, err)
			}
			time.Sleep(time.Second)
		}
		close(back)
		synctest.Wait()
		v, how, err := asks(func() ([]byte, error) { return nil, store.ErrUnavailable })(t.Context())
		if len(v) != 1<<20 || how == fresh || err != nil {
			t.Errorf("%d bytes, %v, %v", len(v), how, err)
		}
		runtime.GC()
		var m runtime.MemStats
		if runtime.ReadMemStats(&m); m.HeapAlloc > 50<<20 {
			t.Errorf("%d MB are held", m.HeapAlloc>>20)
		}
	})
}

// PostgreSQL is stopped, or stands still: the last numbers, said to be so; it
// goes on: the new ones.
func TestStaleOnPostgreSQL(t *testing.T) {
	if server == nil || !server.Private() {
		t.Log("PostgreSQL was not stopped: make test does")
		return
	}
	for _, c := range []struct {
		name       string
		away, back func() error
		lasts      time.Duration
	}{
		{"stopped", server.StopImmediate, server.Restart, 2 * time.Second},
		{"standing still", server.Pause, server.Resume, 7 * time.Second}, // a read's 5 s, and what follows
	} {
		t.Run(c.name, func(t *testing.T) {
			db, err := postgres.Open(server.NewDatabase(t))
			if err != nil {
				t.Fatal(err)
			}
			st := newStore(t, db, store.Config{Interval: 50 * time.Millisecond})
			h := New(st, Config{Auth: Public})
			targets := []string{"/usage/tables.html", "/usage/api/stats", "/usage/api/totals", "/usage/api/rows", "/usage/api/history"}
			st.Add("mail.sent", 1234567)
			if err := st.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			good := map[string]answered{}
			for _, target := range targets {
				a := look(t, h, target)
				if a.code != 200 || a.stale {
					t.Fatalf("%s: %+v", target, a)
				}
				good[target] = a
			}
			gone := true
			defer func() {
				if gone {
					_ = c.back()
				}
			}()
			if err := c.away(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(1100 * time.Millisecond) // MaxAge, and a little
			began, slowest := time.Now(), time.Duration(0)
			for time.Since(began) < c.lasts {
				for _, target := range targets {
					a := look(t, h, target)
					want := good[target]
					if i := strings.Index(a.body, "Needs attention"); i >= 0 { // of the store, that cannot write
						a.body = want.body
					}
					if a.code != 200 || !a.stale || a.asOf != want.asOf || a.body != want.body {
						t.Fatalf("%s, %v after it went away: %+v, want %+v", target, time.Since(began), a, want)
					}
					slowest = max(slowest, a.took)
				}
				time.Sleep(100 * time.Millisecond)
			}
			t.Logf("the slowest answer took %v", slowest.Round(time.Millisecond)) // TestStale has what is promised
			st.Add("mail.sent", 1)
			if err := c.back(); err != nil {
				t.Fatal(err)
			}
			gone = false
			if err := st.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			for _, target := range targets {
				eventually(t, func() string {
					if a := look(t, h, target); a.code != 200 || a.stale || !strings.Contains(strings.ReplaceAll(a.body, ",", ""), "1234568") {
						return fmt.Sprintf("%s, after it came back: %+v", target, a)
					}
					return ""
				})
			}
		})
	}
}

// What has megabytes is not kept for longer than MaxAge, nor what it replaces.
func TestLargeIsNotKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var failing atomic.Bool
		f := &fake{counts: []store.Count{{Name: "a", N: 1}}, before: func(context.Context, string) error {
			if failing.Load() {
				return store.ErrUnavailable
			}
			return nil
		}}
		h := open(f)
		for _, size := range []int{1, maxLastSize} {
			time.Sleep(2 * time.Second)
			failing.Store(false)
			f.counts[0].Name = strings.Repeat("a", size)
			if w := get(h, "/usage/api/totals"); w.Code != 200 {
				t.Fatal(w.Code)
			}
			time.Sleep(2 * time.Second)
			failing.Store(true)
			want := 200 // the last one again
			if size == maxLastSize {
				want = 503
			}
			if w := get(h, "/usage/api/totals"); w.Code != want {
				t.Errorf("%d bytes: %d, want %d", size, w.Code, want)
			}
		}
	})
}
