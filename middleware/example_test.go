package middleware_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/usagekit/usagekit/middleware"
)

// A service counts with a *store.Store. Whatever has Add will do.
type tally map[string]int64

func (t tally) Add(name string, n int64) { t[name] += n }

func ExampleNew() {
	usage := tally{}
	count := middleware.New(usage, middleware.Config{
		User: func(r *http.Request) string { return r.Header.Get("X-User") },
		Skip: []string{"/healthz"},
	})

	mux := http.NewServeMux()
	mux.HandleFunc("GET /novels/{id}", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, "novel", r.PathValue("id"))
	})
	handler := count(mux)

	for _, path := range []string{"/novels/1", "/novels/2", "/poems/1", "/healthz"} {
		r := httptest.NewRequest("GET", path, nil)
		r.Header.Set("X-User", "42")
		handler.ServeHTTP(httptest.NewRecorder(), r)
	}

	for _, name := range []string{
		"api.GET /novels/{id}.requests",
		"api.GET /novels/{id}.status_2xx",
		"api.(unmatched).requests",
		"api.(unmatched).status_4xx",
		"user.42.requests",
	} {
		fmt.Println(name, usage[name])
	}
	// Output:
	// api.GET /novels/{id}.requests 2
	// api.GET /novels/{id}.status_2xx 2
	// api.(unmatched).requests 1
	// api.(unmatched).status_4xx 1
	// user.42.requests 3
}

// What http.TimeoutHandler answers is seen outside of it alone. It hides the request
// that the router sees, so the route is asked of the router.
func ExampleNew_timeout() {
	usage := tally{}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /report", func(w http.ResponseWriter, r *http.Request) {
		<-r.Context().Done() // too slow
	})
	count := middleware.New(usage, middleware.Config{
		Route: func(r *http.Request) string { _, pattern := mux.Handler(r); return pattern },
	})
	handler := count(http.TimeoutHandler(mux, time.Millisecond, "too slow"))

	handler.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/report", nil))
	fmt.Println(usage["api.GET /report.status_5xx"])
	// Output: 1
}

// A handler of an RPC or GraphQL framework has a context and no ResponseWriter.
func ExampleResponseWriter() {
	usage := tally{}
	count := middleware.New(usage, middleware.Config{Context: true})

	greet := func(ctx context.Context) string {
		middleware.SetUser(middleware.ResponseWriter(ctx), "42")
		middleware.SetRoute(middleware.ResponseWriter(ctx), "/greet.v1.Greeter/Greet")
		return "hello"
	}
	rpc := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, greet(r.Context())) })

	count(rpc).ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("POST", "/greet.v1.Greeter/Greet", nil))
	fmt.Println(usage["api.POST /greet.v1.Greeter/Greet.requests"], usage["user.42.requests"])
	// Output: 1 1
}

// Requests that are refused before they reach the mux have the route that they would
// have taken, when the mux is asked.
func ExampleConfig_route() {
	usage := tally{}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /novels/{id}", func(w http.ResponseWriter, r *http.Request) {})
	members := func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			http.Error(w, "who are you?", http.StatusUnauthorized)
		})
	}
	count := middleware.New(usage, middleware.Config{Route: func(r *http.Request) string {
		_, pattern := mux.Handler(r)
		return pattern
	}})

	for _, path := range []string{"/novels/1", "/poems/1"} {
		count(members(mux)).ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", path, nil))
	}
	fmt.Println(usage["api.GET /novels/{id}.status_4xx"], usage["api.(unmatched).status_4xx"])
	// Output: 1 1
}
