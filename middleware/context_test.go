package middleware

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
)

// rpc is a handler as frameworks have them that give a context and no ResponseWriter.
func rpc(call func(ctx context.Context)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		call(context.WithValue(r.Context(), userKey{}, "framework"))
		_, _ = io.WriteString(w, "hello")
	}
}

func name(ctx context.Context) {
	SetUser(ResponseWriter(ctx), "7")
	SetRoute(ResponseWriter(ctx), "/novels.v1.Novels/Write")
}

// Who has only a context says user and route by it, where that was asked for; else
// nothing happens.
func TestUserAndRouteByContext(t *testing.T) {
	all := counted("GET /novels.v1.Novels/Write", "status_2xx latency user.7.requests")
	context := Config{Context: true}
	for _, tt := range []test{
		{name: "asked for", build: around(context, rpc(name)), want: all},
		{name: "not asked for", build: around(Config{}, on("/x", rpc(name))), want: counted("GET /x", "status_2xx latency")},
		{name: "the route is seen as without", build: around(context, on("/x", hello)), want: counted("GET /x", "status_2xx latency")},
		{name: "asked for outside", build: func(count counter) http.Handler { return count(context)(auth(count(Config{})(rpc(name)))) }, edit: login, want: all},
		{name: "asked for inside", build: func(count counter) http.Handler { return count(Config{})(auth(count(context)(rpc(name)))) }, edit: login, want: all},
		{name: "behind a writer that hides it", build: func(count counter) http.Handler {
			return count(context)(compressing(count(context)(rpc(name))))
		}, want: all},
		{name: "behind a buffer", build: func(count counter) http.Handler {
			return count(context)(buffering(rpc(name)))
		}, want: all},
		{name: "behind a buffer, of two", build: func(count counter) http.Handler {
			return count(context)(buffering(count(context)(rpc(name))))
		}, want: all},
		{name: "skipped", build: func(count counter) http.Handler {
			return count(Config{Context: true, Skip: []string{"/x"}})(rpc(name))
		}},
	} {
		tt.run(t)
	}
	if w := ResponseWriter(t.Context()); w != nil {
		t.Errorf("a context of nobody's has %v", w)
	}
}

// Code outside of the middleware finds in its request what the router left there, as
// it does without the middleware.
func TestContextLeavesThePatternOutside(t *testing.T) {
	for _, asked := range []bool{false, true} {
		for path, want := range map[string]string{"/x/1": "GET /x/{id}", "/panic": "/panic"} {
			m := http.NewServeMux()
			m.HandleFunc("GET /x/{id}", hello)
			m.HandleFunc("/panic", explode)
			h := New(tally{}, Config{Context: asked})(m)
			r := httptest.NewRequest("GET", path, nil)
			func() {
				defer func() { _ = recover() }()
				h.ServeHTTP(httptest.NewRecorder(), r)
			}()
			if r.Pattern != want {
				t.Errorf("Context %t: the pattern outside is %q, want %q", asked, r.Pattern, want)
			}
		}
	}
}
