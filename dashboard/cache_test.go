package dashboard

import (
	"context"
	"fmt"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// counting counts the reads that begin, and those that run.
type counting struct {
	fake
	began, running, most atomic.Int64
}

func gauged(wait func(ctx context.Context) error) *counting {
	c := &counting{}
	c.before = func(ctx context.Context, what string) error {
		if what == "Read" {
			return nil // begins every answer
		}
		c.began.Add(1)
		now := c.running.Add(1)
		for most := c.most.Load(); now > most && !c.most.CompareAndSwap(most, now); most = c.most.Load() {
		}
		defer c.running.Add(-1)
		return wait(ctx)
	}
	return c
}

func sleep(d time.Duration) func(context.Context) error {
	return func(context.Context) error { time.Sleep(d); return nil }
}

func TestOneReadForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := gauged(sleep(100 * time.Millisecond))
		h := newHandler(from(c), Config{Auth: Public, MaxAge: 10 * time.Second})
		var all sync.WaitGroup
		for range 500 {
			all.Go(func() {
				if w := get(h, "/usage/api/totals?prefix=api."); w.Code != 200 {
					t.Errorf("%d %s", w.Code, w.Body)
				}
			})
		}
		all.Wait()
		if n := c.began.Load(); n != 1 {
			t.Errorf("%d reads for 500 at once", n)
		}
		get(h, "/usage/api/totals?limit=1000&prefix=api.&name=") // the same, said otherwise
		if n := c.began.Load(); n != 1 {
			t.Errorf("%d reads within MaxAge", n)
		}
		get(h, "/usage/api/totals?prefix=api")
		if n := c.began.Load(); n != 2 {
			t.Errorf("%d reads, want another for another question", n)
		}
		time.Sleep(10 * time.Second)
		get(h, "/usage/api/totals?prefix=api.")
		if n := c.began.Load(); n != 3 {
			t.Errorf("%d reads, want another after MaxAge", n)
		}
	})
}

// The page and its JSON show the same answer: one read per MaxAge for both,
// however many look, all the time.
func TestOneReadPerMaxAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const maxAge, rounds = 5 * time.Second, 10
		var stats, rows atomic.Int64
		f := &fake{before: func(_ context.Context, what string) error {
			switch what {
			case "Get " + nameDropped:
			case "Read": // begins either
				time.Sleep(100 * time.Millisecond)
			case "Rows":
				rows.Add(1)
			default:
				stats.Add(1)
			}
			return nil
		}}
		h := newHandler(from(f), Config{Auth: Public, MaxAge: maxAge})
		var all sync.WaitGroup
		for range 10 {
			for _, target := range []string{"/usage/tables.html", "/usage/api/stats"} {
				all.Go(func() {
					for began := time.Now(); time.Since(began) < rounds*maxAge; time.Sleep(time.Second) {
						if a := look(t, h, target); a.code != 200 || a.stale {
							t.Errorf("%s: %+v", target, a)
						}
					}
				})
			}
		}
		all.Wait()
		const ofStats, ofRows = 3, 2 // reads of one answer
		if n := stats.Load(); n%ofStats != 0 || n > rounds*ofStats {
			t.Errorf("%d reads for stats in %d times MaxAge, %d each", n, rounds, ofStats)
		}
		if n := rows.Load(); n%ofRows != 0 || n > rounds*ofRows {
			t.Errorf("%d reads for rows in %d times MaxAge, %d each", n, rounds, ofRows)
		}
	})
}

func TestDefaultMaxAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := gauged(sleep(0))
		h := open(c)
		for range 31 { // at 0 s, 0.1 s … 3 s
			get(h, "/usage/api/rows")
			time.Sleep(100 * time.Millisecond)
		}
		if n := c.began.Load(); n < 3 || n > 4 {
			t.Errorf("%d reads in 3 s", n)
		}
	})
}

// A database that hangs: every request gets its 503 after 5 s, few reads begin,
// and when the database is back so is the dashboard, at most MaxAge later.
func TestHang(t *testing.T) {
	for name, target := range map[string]func(i int) string{
		"one question":    func(int) string { return "/usage/api/totals" },
		"many questions":  func(i int) string { return fmt.Sprintf("/usage/api/totals?limit=%d", i+1) },
		"the page":        func(int) string { return "/usage/tables.html" },
		"every parameter": func(i int) string { return fmt.Sprintf("/usage/api/history?name=a.%d", i) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				back := make(chan struct{})
				c := gauged(func(context.Context) error { <-back; return nil }) // deaf to its deadline
				h := open(c)
				for range 3 {
					start := time.Now()
					var all sync.WaitGroup
					for i := range 1000 {
						all.Go(func() {
							w := get(h, target(i))
							if w.Code != 503 || time.Since(start) > 5*time.Second {
								t.Errorf("%d after %v: %s", w.Code, time.Since(start), w.Body)
							}
						})
					}
					synctest.Wait()
					if n := runtime.NumGoroutine(); n > 1000+maxAnswers+maxReads+20 {
						t.Errorf("%d goroutines", n)
					}
					all.Wait()
				}
				if n := c.most.Load(); n > maxReads {
					t.Errorf("%d reads at a time", n)
				}
				synctest.Wait()
				if n := c.began.Load(); n > maxReads {
					t.Errorf("%d reads began", n)
				}
				close(back)
				time.Sleep(time.Second + 1) // an answer that was given up a moment ago is kept for MaxAge
				if w := get(h, target(0)); w.Code != 200 {
					t.Errorf("after it came back: %d %s", w.Code, w.Body)
				}
			})
		})
	}
}

// A read is told its deadline, and one that obeys is over in time.
func TestDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := gauged(func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
		h := open(c)
		start := time.Now()
		if w := get(h, "/usage/api/stats"); w.Code != 503 || time.Since(start) != 5*time.Second {
			t.Errorf("%d after %v", w.Code, time.Since(start))
		}
		synctest.Wait()
		if n := c.running.Load(); n != 0 {
			t.Errorf("%d still run", n)
		}
	})
}

// Who goes away does not take the others' answer along.
func TestFirstGoesAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := gauged(sleep(time.Second))
		h := open(c)
		ctx, cancel := context.WithCancel(t.Context())
		go h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/usage/api/rows", nil).WithContext(ctx))
		synctest.Wait()
		cancel()
		if w := get(h, "/usage/api/rows"); w.Code != 200 || c.began.Load() != 1 {
			t.Errorf("%d after %d reads: %s", w.Code, c.began.Load(), w.Body)
		}
	})
}

// More different questions than are kept: all are answered, few are kept, and
// none is kept for long.
func TestBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCache(time.Minute)
		for i := range 10 * maxAnswers {
			n, _, err := ask(c, fmt.Sprint(i), func(context.Context) (int, error) { return i, nil })(t.Context())
			if n != i || err != nil {
				t.Fatal(n, err)
			}
		}
		kept := func() int {
			c.mu.Lock()
			defer c.mu.Unlock()
			return len(c.answers)
		}
		if n := kept(); n > maxAnswers {
			t.Errorf("%d kept", n)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := kept(); n != 0 {
			t.Errorf("%d kept for ever", n)
		}
	})
}

// A panic in a read is that read's, not the process's; so is a goroutine's end.
func TestPanic(t *testing.T) {
	for name, read := range map[string]func(context.Context, string) error{
		"panic":  func(context.Context, string) error { panic("broken") },
		"Goexit": func(context.Context, string) error { runtime.Goexit(); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			h := open(&fake{before: read})
			for range maxReads + 1 {
				if w := get(h, "/usage/api/stats"); w.Code != 503 {
					t.Errorf("%d %s", w.Code, w.Body)
				}
			}
		})
	}
}

// What an answer says it is complete through was so before its data was read,
// although other reads go on.
func TestCompleteThrough(t *testing.T) {
	for path, reads := range map[string]int{"stats": 3, "totals": 1, "rows": 1, "history": 1} {
		f := &fake{}
		read := 0
		f.before = func(_ context.Context, what string) error {
			if what == "Read" {
				f.state.FoldedThrough = time.Unix(1000, 0)
			} else {
				read++
				f.state.FoldedThrough = time.Unix(2000, 0)
			}
			return nil
		}
		w := get(open(f), "/usage/api/"+path)
		if !strings.Contains(w.Body.String(), `"complete_through":"1970-01-01T00:16:40Z"`) || read < reads {
			t.Errorf("%s after %d reads: %s", path, read, w.Body)
		}
	}
	if w := get(open(&fake{}), "/usage/api/health"); !strings.Contains(w.Body.String(), `"complete_through":null`) {
		t.Errorf("unknown: %s", w.Body)
	}
}
