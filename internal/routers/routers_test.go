// Package routers proves what README says about other routers. It is a module of
// its own, so that they stay out of usagekit's.
package routers

import (
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/gin-gonic/gin"
	"github.com/go-chi/chi/v5"
	"github.com/gorilla/mux"
	"github.com/labstack/echo/v5"

	"github.com/usagekit/usagekit/middleware"
)

func withChi(count func(http.Handler) http.Handler) http.Handler {
	r := chi.NewRouter()
	r.Use(count)
	r.Get("/novels/{id}", novel)
	return r
}

func withGin(count func(http.Handler) http.Handler) http.Handler {
	g := gin.New()
	g.Use(func(c *gin.Context) { middleware.SetRoute(c.Writer, c.FullPath()) })
	g.GET("/novels/:id", func(c *gin.Context) { novel(c.Writer, c.Request) })
	return count(g)
}

func withEcho(count func(http.Handler) http.Handler) http.Handler {
	e := echo.New()
	e.Use(func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c *echo.Context) error {
			middleware.SetRoute(c.Response(), c.Path())
			return next(c)
		}
	})
	e.GET("/novels/:id", func(c *echo.Context) error { novel(c.Response(), c.Request()); return nil })
	return count(e)
}

func withGorilla(count func(http.Handler) http.Handler) http.Handler {
	r := mux.NewRouter()
	r.Use(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if route, err := mux.CurrentRoute(req).GetPathTemplate(); err == nil {
				middleware.SetRoute(w, route)
			}
			next.ServeHTTP(w, req)
		})
	})
	r.HandleFunc("/novels/{id}", novel).Methods("GET")
	return count(r)
}

func novel(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "a novel") }

// recorder keeps what was counted, latency apart.
type recorder struct {
	mu     sync.Mutex
	counts map[string]int64
}

func (r *recorder) Add(name string, n int64) {
	if strings.Contains(name, ".latency_") {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.counts[name] += n
}

func TestRouters(t *testing.T) {
	gin.SetMode(gin.ReleaseMode)
	for name, c := range map[string]struct {
		wrapped func(func(http.Handler) http.Handler) http.Handler
		route   string
	}{
		"chi":     {withChi, "GET /novels/{id}"},
		"gin":     {withGin, "GET /novels/:id"},
		"echo":    {withEcho, "GET /novels/:id"},
		"gorilla": {withGorilla, "GET /novels/{id}"},
	} {
		t.Run(name, func(t *testing.T) {
			rec := &recorder{counts: map[string]int64{}}
			srv := httptest.NewServer(c.wrapped(middleware.New(rec, middleware.Config{User: func(r *http.Request) string { return r.Header.Get("X-User") }})))
			for _, path := range []string{"/novels/1", "/novels/2", "/nothing"} {
				req, err := http.NewRequestWithContext(t.Context(), "GET", srv.URL+path, nil)
				if err != nil {
					t.Fatal(err)
				}
				req.Header.Set("X-User", "7")
				resp, err := srv.Client().Do(req)
				if err != nil {
					t.Fatal(err)
				}
				resp.Body.Close()
			}
			srv.Close() // every handler has returned
			want := map[string]int64{
				"api." + c.route + ".requests": 2, "api." + c.route + ".status_2xx": 2,
				"api.(unmatched).requests": 1, "api.(unmatched).status_4xx": 1, "user.7.requests": 3,
			}
			if !maps.Equal(rec.counts, want) {
				t.Errorf("counted %v, want %v", rec.counts, want)
			}
		})
	}
}
