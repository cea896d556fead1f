package dashboard

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/usagekit/usagekit/internal/dbtest"
	"github.com/usagekit/usagekit/middleware"
	"github.com/usagekit/usagekit/store"
	"github.com/usagekit/usagekit/store/postgres"
)

// newStore returns a store on db; both end with the test.
func newStore(t *testing.T, db *sqlx.DB, cfg store.Config) *store.Store {
	t.Helper()
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	st, err := store.New(t.Context(), db, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), dbtest.Limit)
		defer cancel()
		if err := st.Shutdown(ctx); err != nil {
			t.Error(err)
		}
	})
	return st
}

// eventually asks until nothing is missing.
func eventually(t *testing.T, missing func() string) {
	t.Helper()
	for deadline := time.Now().Add(dbtest.Limit); ; time.Sleep(10 * time.Millisecond) {
		what := missing()
		if what == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(what)
		}
	}
}

// PostgreSQL stands still, and a thousand look: each is told so, the
// application does not notice, and when it goes on, so does everything.
func TestPostgreSQLStandsStill(t *testing.T) {
	if server == nil || !server.Private() {
		t.Log("PostgreSQL was not stopped: make test does")
		return
	}
	db, err := postgres.Open(server.NewDatabase(t))
	if err != nil {
		t.Fatal(err)
	}
	st := newStore(t, db, store.Config{Interval: 50 * time.Millisecond})
	mux := http.NewServeMux()
	mux.HandleFunc("GET /hello", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello") })
	mux.Handle("GET /usage/", New(st, Config{Auth: Public}))
	h := middleware.New(st, middleware.Config{User: func(r *http.Request) string { return "7" }})(mux)
	app := httptest.NewServer(h)
	t.Cleanup(app.Close)

	var mu sync.Mutex
	sent := map[string]int64{} // what there is to count
	look := func(target string) int {
		code := get(h, target).Code
		mu.Lock()
		defer mu.Unlock()
		sent["api.GET /usage/.requests"]++
		sent[fmt.Sprintf("api.GET /usage/.status_%dxx", code/100)]++
		return code
	}
	hello := func() time.Duration {
		began := time.Now()
		resp, err := app.Client().Get(app.URL + "/hello")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if body, err := io.ReadAll(resp.Body); resp.StatusCode != 200 || string(body) != "hello" || err != nil {
			t.Errorf("the application answers %d %s, %v", resp.StatusCode, body, err)
		}
		mu.Lock()
		defer mu.Unlock()
		sent["api.GET /hello.requests"]++
		sent["api.GET /hello.status_2xx"]++
		return time.Since(began)
	}
	hello()
	if err := st.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	before := runtime.NumGoroutine() // at rest, that is: the least of some
	for range 20 {
		hello()
		before = min(before, runtime.NumGoroutine())
	}

	defer func() { _ = server.Resume() }()
	if err := server.Pause(); err != nil {
		t.Fatal(err)
	}
	const lookers = 1000
	targets := []string{"tables.html", "api/stats", "api/totals?limit=%d", "api/rows?contains=%d", "api/history?name=a.%d"}
	var all sync.WaitGroup
	for i := range lookers {
		all.Go(func() {
			target := "/usage/" + targets[i%len(targets)]
			if i%len(targets) > 1 {
				target = fmt.Sprintf(target, i+1)
			}
			if code := look(target); code != 503 {
				t.Errorf("%s: %d", target, code)
			}
		})
	}
	answered := make(chan struct{})
	go func() { all.Wait(); close(answered) }()
	var slowest time.Duration
	most, hellos := 0, 0
	for standing := true; standing; hellos++ {
		slowest, most = max(slowest, hello()), max(most, runtime.NumGoroutine())
		select {
		case <-answered:
			standing = false
		case <-time.After(time.Millisecond):
		}
	}
	t.Logf("%d requests of the application meanwhile, the slowest took %v; %d goroutines, %d before", hellos, slowest, most, before)
	if hellos < 10 { // those that waited for the database would take seconds each
		t.Errorf("%d requests of the application were answered while %d looked", hellos, lookers)
	}
	const few = 50 // of the store, its connections, and the application
	if most > before+lookers+maxAnswers+few {
		t.Errorf("%d goroutines, %d before", most, before)
	}
	eventually(t, func() string {
		if n := runtime.NumGoroutine(); n > before+few {
			return fmt.Sprintf("%d goroutines after all were answered, %d before", n, before)
		}
		return ""
	})
	eventually(t, func() string {
		hello()
		if code := look("/usage/api/health"); code != 503 {
			return fmt.Sprintf("health is %d", code)
		}
		return ""
	})

	if err := server.Resume(); err != nil {
		t.Fatal(err)
	}
	for _, target := range append(targets[:2], "api/totals", "api/rows", "api/history", "api/health") {
		eventually(t, func() string {
			if code := look("/usage/" + target); code != 200 {
				return fmt.Sprintf("after it went on: %s: %d", target, code)
			}
			return ""
		})
	}
	if err := st.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	var a totals
	w := get(h, "/usage/api/totals?limit=10000&prefix=api.")
	if err := json.Unmarshal(w.Body.Bytes(), &a); err != nil || w.Code != 200 {
		t.Fatalf("%d %s, %v", w.Code, w.Body, err)
	}
	got := map[string]int64{}
	for _, c := range a.Counts {
		if _, ok := sent[c.Name]; ok {
			got[c.Name] = c.N
		}
	}
	if !maps.Equal(got, sent) {
		t.Errorf("counted %v\nsent    %v", got, sent)
	}
	if n, err := st.Get(t.Context(), "user.7.requests"); n != sent["api.GET /hello.requests"]+sent["api.GET /usage/.requests"] || err != nil {
		t.Errorf("%d requests of the user, %v", n, err)
	}
	eventually(t, func() string {
		if n := runtime.NumGoroutine(); n > before {
			return fmt.Sprintf("%d goroutines are left, %d before", n, before)
		}
		return ""
	})
}
