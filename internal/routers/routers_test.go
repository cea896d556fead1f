// Package routers proves what README says about other routers. It is a module of
// its own, so that they stay out of usagekit's.
package routers

import (
	"context"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/gin-gonic/gin"
	"github.com/go-chi/chi/v5"
	chimiddleware "github.com/go-chi/chi/v5/middleware"
	"github.com/gorilla/mux"
	echo4 "github.com/labstack/echo/v4"
	"github.com/labstack/echo/v5"
	echomiddleware "github.com/labstack/echo/v5/middleware"

	"github.com/usagekit/usagekit/internal/dbtest"
	"github.com/usagekit/usagekit/middleware"
)

func TestMain(m *testing.M) {
	gin.SetMode(gin.ReleaseMode)
	os.Exit(dbtest.Main(m, &server))
}

// A router serves h at /novels/{id}, and says which route that is, as README
// has it.
type router func(count func(http.Handler) http.Handler, h http.HandlerFunc) http.Handler

var routers = map[string]struct {
	with  router
	route string
}{
	"ServeMux":             {withServeMux, "GET /novels/{id}"},
	"chi":                  {withChi, "GET /novels/{id}"},
	"gin":                  {withGin, "GET /novels/:id"},
	"echo":                 {withEcho, "GET /novels/:id"},
	"echo 4":               {withEcho4, "GET /novels/:id"},
	"gorilla":              {withGorilla, "GET /novels/{id}"},
	"gorilla, Config":      {withGorillaTwice, "GET /novels/{id}"},
	"chi, twice":           {twice(withChi), "GET /novels/{id}"},
	"gorilla, twice":       {twice(withGorilla), "GET /novels/{id}"},
	"chi, compressing":     {withChiCompressing, "GET /novels/{id}"},
	"echo, compressing":    {withEchoCompressing, "GET /novels/:id"},
	"chi, request copied":  {copied(withChi), "GET /novels/{id}"},
	"echo, request copied": {copied(withEcho), "GET /novels/:id"},
}

func withServeMux(count func(http.Handler) http.Handler, h http.HandlerFunc) http.Handler {
	m := http.NewServeMux()
	m.HandleFunc("GET /novels/{id}", h)
	return count(m)
}

func withChi(count func(http.Handler) http.Handler, h http.HandlerFunc) http.Handler {
	r := chi.NewRouter()
	r.Use(count)
	r.Get("/novels/{id}", h)
	return r
}

func withChiCompressing(count func(http.Handler) http.Handler, h http.HandlerFunc) http.Handler {
	return count(chimiddleware.Compress(5)(withChi(count, h)))
}

func withGin(count func(http.Handler) http.Handler, h http.HandlerFunc) http.Handler {
	g := gin.New()
	g.Use(func(c *gin.Context) { middleware.SetRoute(c.Writer, c.FullPath()) })
	g.GET("/novels/:id", func(c *gin.Context) { h(c.Writer, c.Request) })
	return count(g)
}

func withEcho(count func(http.Handler) http.Handler, h http.HandlerFunc) http.Handler {
	return count(newEcho(h))
}

func withEchoCompressing(count func(http.Handler) http.Handler, h http.HandlerFunc) http.Handler {
	return count(newEcho(h, echomiddleware.Gzip()))
}

func newEcho(h http.HandlerFunc, use ...echo.MiddlewareFunc) http.Handler {
	e := echo.New()
	e.Use(use...)
	e.Use(func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c *echo.Context) error {
			middleware.SetRoute(c.Response(), c.Path())
			return next(c)
		}
	})
	e.GET("/novels/:id", func(c *echo.Context) error { h(c.Response(), c.Request()); return nil })
	return e
}

func withEcho4(count func(http.Handler) http.Handler, h http.HandlerFunc) http.Handler {
	e := echo4.New()
	e.Use(func(next echo4.HandlerFunc) echo4.HandlerFunc {
		return func(c echo4.Context) error {
			middleware.SetRoute(c.Response().Writer, c.Path())
			return next(c)
		}
	})
	e.GET("/novels/:id", func(c echo4.Context) error { h(c.Response(), c.Request()); return nil })
	return count(e)
}

func withGorilla(count func(http.Handler) http.Handler, h http.HandlerFunc) http.Handler {
	r := mux.NewRouter()
	r.Use(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if route, err := mux.CurrentRoute(req).GetPathTemplate(); err == nil {
				middleware.SetRoute(w, route)
			}
			next.ServeHTTP(w, req)
		})
	})
	r.HandleFunc("/novels/{id}", h).Methods("GET")
	return count(r)
}

// withGorillaTwice leaves the route to gorillaRoute, which has to see the request
// that gorilla made.
func withGorillaTwice(count func(http.Handler) http.Handler, h http.HandlerFunc) http.Handler {
	r := mux.NewRouter()
	r.Use(count)
	r.HandleFunc("/novels/{id}", h).Methods("GET")
	return count(r)
}

func gorillaRoute(r *http.Request) string {
	if route := mux.CurrentRoute(r); route != nil {
		if template, err := route.GetPathTemplate(); err == nil {
			return template
		}
	}
	return ""
}

func twice(with router) router {
	return func(count func(http.Handler) http.Handler, h http.HandlerFunc) http.Handler {
		return count(with(count, h))
	}
}

type key struct{}

// copied has somebody copy the request on its way to the router.
func copied(with router) router {
	return func(count func(http.Handler) http.Handler, h http.HandlerFunc) http.Handler {
		inner := with(count, h)
		return count(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			inner.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), key{}, "ann")))
		}))
	}
}

// recorder keeps what was counted; a latency without its bucket.
type recorder struct {
	mu     sync.Mutex
	counts map[string]int64
}

func (r *recorder) Add(name string, n int64) {
	if i := strings.Index(name, ".latency_"); i >= 0 {
		name = name[:i] + ".latency"
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.counts[name] += n
}

func (r *recorder) check(t *testing.T, want map[string]int64) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if !maps.Equal(r.counts, want) {
		t.Errorf("counted %v\nwant    %v", r.counts, want)
	}
}

// once is what one request leaves behind.
func once(route string, measures ...string) map[string]int64 {
	want := map[string]int64{"user.7.requests": 1, "api." + route + ".requests": 1}
	for _, m := range measures {
		want["api."+route+"."+m] = 1
	}
	return want
}

// serve starts a server of what build makes of the middleware, and waits with
// the WaitGroup for its handlers.
func serve(t *testing.T, http2 bool, build func(count func(http.Handler) http.Handler) http.Handler) (*httptest.Server, *recorder, *sync.WaitGroup) {
	rec, serving := &recorder{counts: map[string]int64{}}, new(sync.WaitGroup)
	h := build(middleware.New(rec, middleware.Config{
		User:  func(r *http.Request) string { return r.Header.Get("X-User") },
		Route: gorillaRoute,
	}))
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		serving.Add(1)
		defer serving.Done()
		h.ServeHTTP(w, r)
	}))
	if srv.EnableHTTP2 = http2; http2 {
		srv.StartTLS()
	} else {
		srv.Start()
	}
	t.Cleanup(srv.Close)
	return srv, rec, serving
}

func get(t *testing.T, srv *httptest.Server, path string) *http.Response {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, "GET", srv.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-User", "7")
	resp, err := srv.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return resp
}

func TestRouters(t *testing.T) {
	text := strings.Repeat("a novel ", 1000)
	novel := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = io.WriteString(w, text)
	}
	for name, r := range routers {
		t.Run(name, func(t *testing.T) {
			srv, rec, serving := serve(t, false, func(count func(http.Handler) http.Handler) http.Handler { return r.with(count, novel) })
			for _, path := range []string{"/novels/1", "/novels/2", "/nothing"} {
				resp := get(t, srv, path)
				body, err := io.ReadAll(resp.Body)
				if err != nil {
					t.Error(err)
				}
				if path == "/nothing" {
					continue
				}
				if resp.StatusCode != 200 || string(body) != text || resp.Uncompressed != strings.Contains(name, "compressing") {
					t.Errorf("%s: %d %.50s, was compressed: %t", path, resp.StatusCode, body, resp.Uncompressed)
				}
			}
			serving.Wait()
			rec.check(t, map[string]int64{
				"api." + r.route + ".requests": 2, "api." + r.route + ".status_2xx": 2, "api." + r.route + ".latency": 2,
				"api.(unmatched).requests": 1, "api.(unmatched).status_4xx": 1, "api.(unmatched).latency": 1, "user.7.requests": 3,
			})
		})
	}
}
