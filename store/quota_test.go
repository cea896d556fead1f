package store_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/usagekit/usagekit/internal/dbtest"
	"github.com/usagekit/usagekit/middleware/quota"
	"github.com/usagekit/usagekit/store"
	"github.com/usagekit/usagekit/store/postgres"
	"github.com/usagekit/usagekit/store/sqlite"
)

// A thousand requests at once, over four instances: as many pass as may, and not one
// more. With a lease, no more, and none stays unused but what is reserved.
func TestQuotaOverInstances(t *testing.T) {
	path := filepath.Join(t.TempDir(), "usage.db")
	quotaOverInstances(t, "sqlite", func() (*sqlx.DB, error) { return sqlite.Open(path) })
	if store.Server == nil {
		t.Log("PostgreSQL was not tried: make test does")
		return
	}
	url := store.Server.NewDatabase(t)
	quotaOverInstances(t, "postgres", func() (*sqlx.DB, error) { return postgres.Open(url) })
}

// taker notes what may be taken although its answer was lost: on a busy machine, one
// that took more than a second.
type taker struct {
	*store.Store
	lost *atomic.Int64
}

func (t taker) Take(ctx context.Context, name string, n, limit int64, step store.Step) (int64, time.Time, bool, error) {
	left, until, ok, err := t.Store.Take(ctx, name, n, limit, step)
	if err != nil {
		t.lost.Add(n)
	}
	return left, until, ok, err
}

func quotaOverInstances(t *testing.T, name string, open func() (*sqlx.DB, error)) {
	const limit, instances, requests = 100, 4, 1000
	for _, lease := range []int64{1, 10} {
		t.Run(fmt.Sprintf("%s/%d", name, lease), func(t *testing.T) {
			ctx := dbtest.Context(t)
			var handlers []http.Handler
			var stores []*store.Store
			var passed, lost atomic.Int64
			for range instances {
				db, err := open()
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { db.Close() })
				s, err := store.New(ctx, db, store.Config{})
				if err != nil {
					t.Fatal(err)
				}
				stores = append(stores, s)
				// Shut, so that a slow answer on a busy machine is asked for again and not let through.
				limited := quota.New(taker{s, &lost}, quota.Config{
					Name: fmt.Sprintf("of%d", lease), Key: func(*http.Request) string { return "42" }, Limit: func(*http.Request) int64 { return limit },
					Reserve: lease, FailClosed: true,
				})
				handlers = append(handlers, limited(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { passed.Add(1) })))
			}
			var refused, unknown atomic.Int64
			var wg sync.WaitGroup
			for i := range requests {
				wg.Go(func() {
					for ctx.Err() == nil {
						w := httptest.NewRecorder()
						handlers[i%instances].ServeHTTP(w, httptest.NewRequest("GET", "/", nil).WithContext(ctx))
						switch w.Code {
						case http.StatusServiceUnavailable:
							unknown.Add(1)
							time.Sleep(10 * time.Millisecond)
							continue
						case http.StatusTooManyRequests:
							refused.Add(1)
						}
						return
					}
				})
			}
			wg.Wait()
			unused := lost.Load() // at most
			if lease > 1 {
				unused += instances * (lease - 1)
			}
			if p, r := passed.Load(), refused.Load(); p > limit || p < limit-unused || p+r != requests {
				t.Errorf("%d passed, %d were refused, want %d", p, r, limit)
			}
			t.Logf("%d passed, %d refused, %d asked again, %d may be lost", passed.Load(), refused.Load(), unknown.Load(), lost.Load())
			for _, s := range stores {
				if err := s.Shutdown(ctx); err != nil {
					t.Error(err)
				}
			}
			if n, err := stores[0].Get(ctx, "quota.42.refused"); err != nil || n < refused.Load() {
				t.Errorf("quota.42.refused = %d, %v, want %d", n, err, refused.Load())
			}
		})
	}
}

// A database that stands still: each request has its answer, the one that was chosen,
// and never 429.
func TestQuotaWhileTheServerStandsStill(t *testing.T) {
	if store.Server == nil || !store.Server.Private() {
		t.Log("PostgreSQL was not tried: make test does")
		return
	}
	server, err := dbtest.Start() // the other one is not this test's to stop
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Close() })
	ctx := dbtest.Context(t)
	db, err := postgres.Open(server.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	s, err := store.New(ctx, db, store.Config{})
	if err != nil {
		t.Fatal(err)
	}
	handler := func(shut bool) http.Handler {
		return quota.New(s, quota.Config{
			Name: "daily", Key: func(r *http.Request) string { return r.URL.Path }, Limit: func(*http.Request) int64 { return 2 }, FailClosed: shut,
		})(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	}
	ask := func(h http.Handler, path string) (int, time.Duration) {
		w, start := httptest.NewRecorder(), time.Now()
		h.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		return w.Code, time.Since(start)
	}
	open, shut := handler(false), handler(true)
	for code := 0; code != 429 && ctx.Err() == nil; { // on a busy machine, an answer may take more than 50 ms
		code, _ = ask(open, "/before")
	}
	if err := server.Pause(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = server.Resume() }() // so that it can be closed
	slowest := time.Duration(0)
	for i := range 20 {
		for want, h := range map[int]http.Handler{200: open, 503: shut} {
			code, took := ask(h, fmt.Sprintf("/%d", i/5))
			if code != want {
				t.Errorf("%d, want %d", code, want)
			}
			slowest = max(slowest, took)
		}
	}
	if code, _ := ask(open, "/before"); code != 429 {
		t.Errorf("what was used up before passes: %d", code)
	}
	t.Logf("the slowest answer took %v", slowest) // 50 ms, on a machine that has the time
}

// What is given up goes on in the database, and touches nothing of ours: for the race
// detector.
func TestGivenUp(t *testing.T) {
	open := map[string]func() (*sqlx.DB, error){
		"sqlite": func() (*sqlx.DB, error) { return sqlite.Open(filepath.Join(t.TempDir(), "usage.db")) },
	}
	if store.Server == nil {
		t.Log("PostgreSQL was not tried: make test does")
	} else {
		open["postgres"] = func() (*sqlx.DB, error) { return postgres.Open(store.Server.NewDatabase(t)) }
	}
	for name, open := range open {
		t.Run(name, func(t *testing.T) {
			db, err := open()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { db.Close() })
			ctx := dbtest.Context(t)
			s, err := store.New(ctx, db, store.Config{})
			if err != nil {
				t.Fatal(err)
			}
			var wg sync.WaitGroup
			for range 8 {
				wg.Go(func() {
					for i := range 40 {
						soon, cancel := context.WithTimeout(ctx, time.Duration(i%10)*300*time.Microsecond)
						_, _, _, _ = s.Take(soon, "quota.42.daily", 1, 1000, store.Day)
						_, _ = s.AddNow(soon, "feature.a.used", 1)
						if i%20 == 0 {
							_ = s.Erase(soon, "42")
						}
						cancel()
					}
				})
			}
			wg.Wait()
			if err := s.Shutdown(ctx); err != nil {
				t.Error(err)
			}
			if n, err := s.Get(ctx, "feature.a.used"); err != nil || n > 320 {
				t.Errorf("%d counted, %v, of 320", n, err)
			}
		})
	}
}
