package routers

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gin-gonic/gin"
	"github.com/labstack/echo/v4"

	"github.com/usagekit/usagekit/dashboard"
	"github.com/usagekit/usagekit/middleware"
	"github.com/usagekit/usagekit/store/storetest"
)

// Applications are put together in ways of their own. Each of these has the shape of
// one that is in use: what is counted is each answer, once, by its route; and nothing of
// the dashboard, which counts nobody's looking at it.
func TestApplicationsAsTheyAreBuilt(t *testing.T) {
	type answer struct {
		path   string
		status int
		route  string // "": not counted
	}
	ok := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") })
	refusing := func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("X-User") == "" || strings.HasSuffix(r.URL.Path, "/secret") {
				http.Error(w, "no", http.StatusForbidden)
				return
			}
			next.ServeHTTP(w, r)
		})
	}
	for name, app := range map[string]struct {
		skip    string
		build   func(t *testing.T, count func(http.Handler) http.Handler, page http.Handler) http.Handler
		answers []answer
	}{
		"a mux in a mux, prefixes stripped": {skip: "/base/app/usage/", build: func(_ *testing.T, count func(http.Handler) http.Handler, page http.Handler) http.Handler {
			api := http.NewServeMux()
			api.Handle("GET /feeds/{id}", ok)
			app := http.NewServeMux()
			app.Handle("/v1/", http.StripPrefix("/v1", count(refusing(count(api)))))
			app.Handle("GET /usage/", count(page))
			app.Handle("GET /login", ok)
			base := http.NewServeMux()
			base.Handle("/app/", http.StripPrefix("/app", count(app)))
			root := http.NewServeMux()
			root.Handle("/base/", http.StripPrefix("/base", count(base)))
			return count(root)
		}, answers: []answer{
			{"/base/app/v1/feeds/1", 200, "GET /feeds/{id}"}, {"/base/app/v1/secret", 403, "GET /v1/"}, {"/base/app/login", 200, "GET /login"},
			{"/base/app/v1/nothing", 404, "(unmatched)"}, {"/base/app/usage/", 200, ""}, {"/base/app/usage/api/stats", 200, ""},
		}},
		"gin, the page under its wildcard": {skip: "/usage/", build: func(_ *testing.T, count func(http.Handler) http.Handler, page http.Handler) http.Handler {
			g := gin.New()
			g.Use(func(c *gin.Context) { middleware.SetRoute(c.Writer, c.FullPath()) })
			g.GET("/usage/*any", gin.WrapH(page))
			g.Use(func(c *gin.Context) {
				if strings.HasSuffix(c.Request.URL.Path, "/secret") {
					c.AbortWithStatus(http.StatusForbidden)
				}
			})
			g.GET("/messages/:id", gin.WrapH(ok))
			return count(g)
		}, answers: []answer{
			{"/messages/1", 200, "GET /messages/:id"}, {"/messages/secret", 403, "GET /messages/:id"}, {"/nothing", 404, "(unmatched)"},
			{"/usage/", 200, ""}, {"/usage/api/stats", 200, ""},
		}},
		"echo, files before the API": {skip: "/usage/", build: func(t *testing.T, count func(http.Handler) http.Handler, page http.Handler) http.Handler {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "index.html"), []byte("ok"), 0o600); err != nil {
				t.Fatal(err)
			}
			e := echo.New()
			e.Use(func(next echo.HandlerFunc) echo.HandlerFunc {
				return func(c echo.Context) error {
					middleware.SetRoute(c.Response().Writer, c.Path())
					return next(c)
				}
			})
			e.GET("/usage/*", echo.WrapHandler(page))
			e.Static("/", dir)
			e.GET("/api/v1/memos/:id", echo.WrapHandler(ok))
			return count(e)
		}, answers: []answer{
			{"/", 200, "GET /*"}, {"/index.html", 200, "GET /*"}, {"/api/v1/memos/1", 200, "GET /api/v1/memos/:id"}, {"/nothing.js", 404, "GET /*"},
			{"/usage/", 200, ""}, {"/usage/api/stats", 200, ""},
		}},
		"a catch-all, and who is refused before it": {skip: "/_/usage/", build: func(_ *testing.T, count func(http.Handler) http.Handler, page http.Handler) http.Handler {
			m := http.NewServeMux()
			m.Handle("GET /api/records/{id}", ok)
			m.Handle("GET /_/usage/", page)
			m.Handle("/{path...}", ok)
			return count(refusing(count(m)))
		}, answers: []answer{
			{"/api/records/1", 200, "GET /api/records/{id}"}, {"/any/thing", 200, "GET /{path...}"}, {"/any/secret", 403, "(unmatched)"},
			{"/_/usage/", 200, ""}, {"/_/usage/api/stats", 200, ""},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			rec := &recorder{counts: map[string]int64{}}
			page := dashboard.New(storetest.New(t), dashboard.Config{Auth: dashboard.Public})
			srv := httptest.NewServer(app.build(t, middleware.New(rec, middleware.Config{Skip: []string{app.skip}}), page))
			defer srv.Close()
			want := map[string]int64{}
			for _, a := range app.answers {
				resp := get(t, srv, a.path)
				_, _ = io.Copy(io.Discard, resp.Body)
				if resp.StatusCode != a.status {
					t.Errorf("%s: %d, want %d", a.path, resp.StatusCode, a.status)
				}
				if a.route != "" {
					want["api."+a.route+".requests"]++
					want["api."+a.route+".status_"+string('0'+rune(a.status/100))+"xx"]++
					want["api."+a.route+".latency"]++
				}
			}
			srv.Close()
			rec.check(t, want)
		})
	}
}
