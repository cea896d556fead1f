package store_test

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/usagekit/usagekit/dashboard"
	"github.com/usagekit/usagekit/middleware"
	"github.com/usagekit/usagekit/middleware/quota"
	"github.com/usagekit/usagekit/store"
	"github.com/usagekit/usagekit/store/llm"
	"github.com/usagekit/usagekit/store/sqlite"
	"github.com/usagekit/usagekit/store/storetest"
)

// A whole program.
func Example() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	db, err := sqlite.Open("usage.db") // or postgres.Open(os.Getenv("DATABASE_URL")), or your own pool
	if err != nil {
		log.Fatal(err)
	}
	usage, err := store.New(ctx, db, store.Config{}) // makes its tables, starts counting
	if err != nil {
		log.Fatal(err)
	}

	mux := http.NewServeMux() // the application's routes
	mux.HandleFunc("POST /outlines", func(w http.ResponseWriter, r *http.Request) {
		usage.Inc("feature.outline.generated")
	})
	mux.Handle("GET /usage/", dashboard.New(usage, dashboard.Config{
		Auth: dashboard.BasicAuth("admin", os.Getenv("USAGE_PASSWORD")),
	}))

	count := middleware.New(usage, middleware.Config{
		User: func(r *http.Request) string { return r.Header.Get("X-User") }, // however you know who it is
		Skip: []string{"/usage/"},
	})
	srv := &http.Server{Addr: ":8080", Handler: count(mux)}
	go func() {
		log.Print(srv.ListenAndServe())
		stop()
	}()

	<-ctx.Done() // on the way out: the requests, then the counts, then the database
	soon, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := srv.Shutdown(soon); err != nil {
		srv.Close() // a stream, perhaps
	}
	soon, cancel = context.WithTimeout(context.Background(), 10*time.Second) // of their own
	defer cancel()
	if err := errors.Join(usage.Shutdown(soon), db.Close()); err != nil {
		log.Fatal(err)
	}
}

// All routes with their requests, errors and p95.
func ExampleStore_Rows() {
	ctx, usage, done := exampleStore()
	defer done()
	usage.Add("api.GET /novels/{id}.requests", 100)
	usage.Add("api.GET /novels/{id}.status_5xx", 1)
	usage.Add("api.GET /novels/{id}.latency_25ms", 100)
	usage.Add("api.POST /novels.requests", 20)
	usage.Add("api.POST /novels.latency_5ms", 20)
	if err := usage.Flush(ctx); err != nil {
		log.Fatal(err)
	}

	rows, err := usage.Rows(ctx, store.Query{Prefix: "api.", Measure: "requests", From: time.Now().AddDate(0, 0, -7)})
	if err != nil {
		log.Fatal(err)
	}
	for _, r := range rows {
		fmt.Println(r.Subject, r.Counts["requests"], r.Counts["status_5xx"], r.Quantile(0.95))
	}
	// Output:
	// GET /novels/{id} 100 1 24.25ms
	// POST /novels 20 0 4.75ms
}

// A user's days, the users of a range, a feature by hour.
func ExampleStore_History() {
	ctx, usage, done := exampleStore()
	defer done()
	usage.Add("user.42.requests", 3)
	usage.Add("feature.chapter.written", 2)
	if err := usage.Flush(ctx); err != nil {
		log.Fatal(err)
	}

	week := time.Now().AddDate(0, 0, -7)
	days, err := usage.History(ctx, store.Query{Name: "user.42.requests", From: week})
	if err != nil {
		log.Fatal(err)
	}
	top, err := usage.Totals(ctx, store.Query{Prefix: "user.", Measure: "requests", From: week, Limit: 10})
	if err != nil {
		log.Fatal(err)
	}
	hours, err := usage.History(ctx, store.Query{Prefix: "feature.", Step: store.Hour, From: week})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(days[0].N, top[0].Name, hours[0].N)
	// Output: 3 user.42.requests 2
}

// A number that has to be right at once, over all instances: here, a thousandth
// customer.
func ExampleStore_AddNow() {
	ctx, usage, done := exampleStore()
	defer done()
	usage.Add("user.registrations", 999)
	if err := usage.Flush(ctx); err != nil {
		log.Fatal(err)
	}

	n, err := usage.AddNow(ctx, "user.registrations", 1)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(n)
	// Output: 1000
}

// A counter that begins anew; its history stays.
func ExampleStore_Reset() {
	ctx, usage, done := exampleStore()
	defer done()
	usage.Add("feature.beta.used", 5)
	if err := usage.Reset(ctx, "feature.beta.used"); err != nil {
		log.Fatal(err)
	}

	total, err := usage.Get(ctx, "feature.beta.used")
	if err != nil {
		log.Fatal(err)
	}
	days, err := usage.History(ctx, store.Query{Name: "feature.beta.used", Step: store.Day})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(total, days[0].N)
	// Output: 0 5
}

// Two exports a day for each user, over all instances: see middleware/quota for
// requests.
func ExampleStore_Take() {
	ctx, usage, done := exampleStore()
	defer done()
	for range 3 {
		left, _, ok, err := usage.Take(ctx, "quota.42.exports", 1, 2, store.Day)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(ok, left)
	}
	// Output:
	// true 1
	// true 0
	// false 0
}

// Word, once, when a model has used up a million tokens in a day.
func ExampleConfig_thresholds() {
	told := make(chan store.Crossing, 1)
	_, usage, done := exampleStoreOf(store.Config{
		Thresholds: []store.Threshold{{Prefix: "llm.", Measure: "tokens", Step: store.Day, Value: 1_000_000}},
		Notify: map[string]func(context.Context, store.Crossing) error{
			"mail": func(ctx context.Context, c store.Crossing) error {
				told <- c // send one; an error would have it called again
				return nil
			},
		},
	})
	defer done()
	llm.New(usage).Add(llm.Call{Model: "gpt-5.1", Input: 999_000, Output: 2_000})

	c := <-told
	fmt.Println(c.Name, c.Value, c.N)
	// Output: llm.gpt-5.1.tokens 1000000 1001000
}

// A thousand requests a day for each user, over all instances.
func Example_quota() {
	_, usage, done := exampleStore()
	defer done()
	mux := http.NewServeMux()
	complete := http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})

	daily := quota.New(usage, quota.Config{
		Name:    "daily",
		Key:     func(r *http.Request) string { return r.Header.Get("X-User") },
		Limit:   func(r *http.Request) int64 { return 1000 },
		Reserve: 10, // requests that are reserved with one query
	})
	mux.Handle("POST /llm/complete", daily(complete))

	r := httptest.NewRequest("POST", "/llm/complete", nil)
	r.Header.Set("X-User", "42")
	w := httptest.NewRecorder()
	mux.ServeHTTP(w, r)
	fmt.Println(w.Code, w.Header().Get("RateLimit-Policy"))
	// Output: 200 "daily";q=1000;w=86400
}

// Users by a keyed hash of their ids: the database alone does not tell who they are.
func Example_hashedUsers() {
	ctx, usage, done := exampleStore()
	defer done()
	key := []byte("from the application's secrets")
	count := middleware.New(usage, middleware.Config{
		User: func(r *http.Request) string {
			id := r.Header.Get("X-User")
			if id == "" {
				return "" // nobody
			}
			mac := hmac.New(sha256.New, key) // kept apart from the database
			mac.Write([]byte(id))
			return hex.EncodeToString(mac.Sum(nil)[:16])
		},
	})

	r := httptest.NewRequest("GET", "/", nil)
	r.Header.Set("X-User", "ann@example.com")
	count(http.NotFoundHandler()).ServeHTTP(httptest.NewRecorder(), r)
	if err := usage.Flush(ctx); err != nil {
		log.Fatal(err)
	}
	users, err := usage.Totals(ctx, store.Query{Prefix: "user.", Measure: "requests"})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(users[0].Name, users[0].N)
	// Output: user.78b8a4bfe349aa272bce1b6fd8ad0cb2.requests 1
}

// A user who asks to be forgotten. Totals of routes and features stay.
func ExampleStore_Erase() {
	ctx, usage, done := exampleStore()
	defer done()
	usage.Add("user.42.requests", 3)
	usage.Add("user.42.7.requests", 1)
	if err := usage.Erase(ctx, "42"); err != nil {
		log.Fatal(err)
	}

	users, err := usage.Totals(ctx, store.Query{Prefix: "user.", Measure: "requests"})
	if err != nil {
		log.Fatal(err)
	}
	for _, u := range users {
		fmt.Println(u.Name, u.N)
	}
	// Output: user.42.7.requests 1
}

// The users of a day, a user's first and last day, and how many there were.
func ExampleStore_Totals() {
	ctx, usage, done := exampleStore()
	defer done()
	usage.Add("user.42.requests", 3)
	usage.Add("user.7.requests", 9)
	if err := usage.Flush(ctx); err != nil {
		log.Fatal(err)
	}

	now := time.Now().In(usage.Location())
	day := time.Date(now.Year(), now.Month(), now.Day(), 0, 0, 0, 0, now.Location())
	users, err := usage.Totals(ctx, store.Query{Prefix: "user.", Measure: "requests", From: day, To: day.AddDate(0, 0, 1), Limit: 100})
	if err != nil {
		log.Fatal(err)
	}
	days, err := usage.History(ctx, store.Query{Name: "user.42.requests", Step: store.Day}) // of the last 90 days; Month: of all
	if err != nil {
		log.Fatal(err)
	}
	first, last := days[0].Start, days[len(days)-1].Start
	active, err := usage.Get(ctx, "user.active.daily")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(users[0].Name, users[0].N, first.Equal(last), active)
	// Output: user.7.requests 9 true 2
}

// A customer's own usage, on a page that is theirs: by the id that the middleware has,
// which may look like anything.
func ExampleQuery_subject() {
	ctx, usage, done := exampleStore()
	defer done()
	user := func(r *http.Request) string { return r.Header.Get("X-User") }
	app := middleware.New(usage, middleware.Config{User: user})(http.NotFoundHandler())
	for _, id := range []string{"42", "42", "42.7", "(other)"} {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("X-User", id)
		app.ServeHTTP(httptest.NewRecorder(), r)
		usage.Add("user.42.exports", 5)
	}
	if err := usage.Flush(ctx); err != nil {
		log.Fatal(err)
	}

	for _, id := range []string{"42", "42.7", "(other)", "4"} {
		own, err := usage.Totals(ctx, store.Query{Prefix: "user.", Subject: id, From: time.Now().AddDate(0, 0, -30)})
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(id, own)
	}
	// Output:
	// 42 [{user.42.exports 0001-01-01 00:00:00 +0000 UTC 20} {user.42.requests 0001-01-01 00:00:00 +0000 UTC 2}]
	// 42.7 [{user.42.7.requests 0001-01-01 00:00:00 +0000 UTC 1}]
	// (other) [{user.((other).requests 0001-01-01 00:00:00 +0000 UTC 1}]
	// 4 []
}

// Numbers that belong together: a share of the same requests of which there is the sum.
func ExampleStore_Read() {
	ctx, usage, done := exampleStore()
	defer done()
	usage.Add("api.GET /novels.requests", 200)
	usage.Add("api.GET /novels.status_5xx", 3)
	if err := usage.Flush(ctx); err != nil {
		log.Fatal(err)
	}

	var all, failed int64
	err := usage.Read(ctx, func(ctx context.Context, r *store.Reading) (err error) {
		if all, err = r.Get(ctx, "api.requests.total"); err != nil {
			return err
		}
		failed, err = r.Get(ctx, "api.requests.status_5xx")
		return err
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%.1f %%\n", 100*float64(failed)/float64(all))
	// Output: 1.5 %
}

func exampleStore() (context.Context, *store.Store, func()) { return exampleStoreOf(store.Config{}) }

func exampleStoreOf(cfg store.Config) (context.Context, *store.Store, func()) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	dir, err := os.MkdirTemp("", "usagekit-example-")
	if err != nil {
		log.Fatal(err)
	}
	db, err := sqlite.Open(filepath.Join(dir, "usage.db"))
	if err != nil {
		log.Fatal(err)
	}
	usage, err := store.New(ctx, db, cfg)
	if err != nil {
		log.Fatal(err)
	}
	return ctx, usage, func() {
		defer cancel()
		if err := errors.Join(usage.Shutdown(ctx), db.Close(), os.RemoveAll(dir)); err != nil {
			log.Fatal(err)
		}
	}
}

// An application's own test, as README shows it.
func TestOutline(t *testing.T) {
	usage := storetest.New(t) // a SQLite file in t.TempDir
	usage.Inc("feature.outline.generated")
	if err := usage.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n, err := usage.Get(t.Context(), "feature.outline.generated"); n != 1 || err != nil {
		t.Error(n, err)
	}
}
