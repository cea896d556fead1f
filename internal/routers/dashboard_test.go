package routers

import (
	"cmp"
	"html"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"github.com/gin-gonic/gin"
	"github.com/go-chi/chi/v5"
	"github.com/gorilla/mux"
	echo4 "github.com/labstack/echo/v4"
	"github.com/labstack/echo/v5"

	"github.com/usagekit/usagekit/dashboard"
	"github.com/usagekit/usagekit/middleware"
	"github.com/usagekit/usagekit/store/storetest"
)

// The dashboard, wherever it is mounted, as a browser comes to it: through the
// slash it lacks, the page, and every link in the page.
func TestMounts(t *testing.T) {
	usage := storetest.New(t)
	usage.Inc("api.GET /novels/{id}.requests")
	usage.Inc("user.42.requests")
	usage.Inc("feature.outline.generated")
	if err := usage.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	dash := dashboard.New(usage, dashboard.Config{Auth: dashboard.Public})

	on := func(h http.Handler, patterns ...string) http.Handler {
		m := http.NewServeMux()
		for _, p := range patterns {
			m.Handle(p, h)
		}
		return m
	}
	withChi := func(mount func(r chi.Router)) http.Handler {
		r := chi.NewRouter()
		mount(r)
		return r
	}
	withGin := func(mount func(g *gin.Engine)) http.Handler {
		g := gin.New()
		mount(g)
		return g
	}
	withEcho := func(mount func(e *echo.Echo)) http.Handler {
		e := echo.New()
		mount(e)
		return e
	}
	e4 := echo4.New()
	e4.Any("/usage", echo4.WrapHandler(dash))
	e4.Any("/usage/*", echo4.WrapHandler(dash))
	withGorilla := func(mount func(r *mux.Router)) http.Handler {
		r := mux.NewRouter()
		mount(r)
		return r
	}
	// behind is a proxy that takes prefix off the path.
	behind := func(prefix string, h http.Handler) http.Handler {
		srv := httptest.NewServer(h)
		t.Cleanup(srv.Close)
		to, err := url.Parse(srv.URL)
		if err != nil {
			t.Fatal(err)
		}
		return on(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Path, r.Out.URL.RawPath = strings.TrimPrefix(r.In.URL.Path, prefix), ""
			r.SetURL(to)
		}}, prefix+"/")
	}

	for name, m := range map[string]struct {
		at string
		h  http.Handler
	}{
		"ServeMux, root":              {"/", on(dash, "/")},
		"ServeMux, GET root":          {"/", on(dash, "GET /")},
		"ServeMux":                    {"/usage/", on(dash, "/usage/")},
		"ServeMux, GET":               {"/usage/", on(dash, "GET /usage/")},
		"ServeMux, nested":            {"/admin/usage/", on(on(dash, "/admin/usage/"), "/admin/")},
		"ServeMux, StripPrefix":       {"/usage/", on(http.StripPrefix("/usage", dash), "/usage/")},
		"ServeMux behind StripPrefix": {"/admin/usage/", on(http.StripPrefix("/admin", on(dash, "/usage", "/usage/")), "/admin/")},
		"chi":                         {"/usage/", withChi(func(r chi.Router) { r.Mount("/usage", dash) })},
		"chi, root":                   {"/", withChi(func(r chi.Router) { r.Mount("/", dash) })},
		"chi, StripPrefix":            {"/usage/", withChi(func(r chi.Router) { r.Mount("/usage", http.StripPrefix("/usage", dash)) })},
		"chi, Handle":                 {"/usage/", withChi(func(r chi.Router) { r.Handle("/usage", dash); r.Handle("/usage/*", dash) })},
		"chi, nested": {"/admin/usage/", withChi(func(r chi.Router) {
			r.Route("/admin", func(r chi.Router) { r.Mount("/usage", dash) })
		})},
		"gin":            {"/usage/", withGin(func(g *gin.Engine) { g.Any("/usage/*path", gin.WrapH(dash)) })},
		"gin, both":      {"/usage/", withGin(func(g *gin.Engine) { g.Any("/usage", gin.WrapH(dash)); g.Any("/usage/*path", gin.WrapH(dash)) })},
		"gin, group":     {"/admin/usage/", withGin(func(g *gin.Engine) { g.Group("/admin").Any("/usage/*path", gin.WrapH(dash)) })},
		"echo":           {"/usage/", withEcho(func(e *echo.Echo) { e.Any("/usage", echo.WrapHandler(dash)); e.Any("/usage/*", echo.WrapHandler(dash)) })},
		"echo, group":    {"/admin/usage/", withEcho(func(e *echo.Echo) { e.Group("/admin").Any("/usage*", echo.WrapHandler(dash)) })},
		"echo 4":         {"/usage/", e4},
		"gorilla":        {"/usage/", withGorilla(func(r *mux.Router) { r.PathPrefix("/usage").Handler(dash) })},
		"gorilla, root":  {"/", withGorilla(func(r *mux.Router) { r.PathPrefix("/").Handler(dash) })},
		"gorilla, below": {"/admin/usage/", withGorilla(func(r *mux.Router) { r.PathPrefix("/admin").Subrouter().PathPrefix("/usage").Handler(dash) })},
		"proxy":          {"/tools/usage/", behind("/tools", on(dash, "/usage", "/usage/"))},
		"proxy to root":  {"/tools/usage/", behind("/tools/usage", on(dash, "/"))},
		"proxy to chi":   {"/tools/usage/", behind("/tools", withChi(func(r chi.Router) { r.Mount("/usage", dash) }))},
		"two proxies":    {"/a/b/usage/", behind("/a", behind("/b", on(dash, "/usage", "/usage/")))},
	} {
		t.Run(name, func(t *testing.T) {
			srv := httptest.NewServer(middleware.New(usage, middleware.Config{})(m.h))
			defer srv.Close()
			browse := func(method, target string) (status int, at *url.URL, body string) {
				t.Helper()
				req, err := http.NewRequestWithContext(t.Context(), method, target, nil)
				if err != nil {
					t.Fatal(err)
				}
				resp, err := srv.Client().Do(req)
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				b, err := io.ReadAll(resp.Body)
				if err != nil {
					t.Error(err)
				}
				return resp.StatusCode, resp.Request.URL, string(b)
			}

			bare := srv.URL + strings.TrimSuffix(m.at, "/") + "?refresh=10"
			if status, at, body := browse("GET", bare); status != 200 || cmp.Or(at.Path, "/") != m.at || at.RawQuery != "refresh=10" || !strings.Contains(body, "data-card=") {
				t.Errorf("without the slash: %d at %s", status, at)
			}
			status, at, body := browse("GET", srv.URL+m.at)
			if status != 200 || at.Path != m.at || !strings.Contains(body, "data-card=") {
				t.Fatalf("%d at %s: %.500s", status, at, body)
			}
			status, _, tables := browse("GET", srv.URL+m.at+"tables.html")
			if status != 200 || !strings.Contains(tables, "GET /novels/{id}") {
				t.Fatalf("%d: %.500s", status, tables)
			}
			targets := []string{"api/stats", "api/totals", "api/rows", "api/history", "api/series?range=24h", "api/export", "api/openapi.json", "api/health"}
			links := regexp.MustCompile(` (?:href|src)="([^"#]+)"`).FindAllStringSubmatch(body+tables, -1)
			for _, link := range links {
				targets = append(targets, html.UnescapeString(link[1]))
			}
			if len(links) < 25 {
				t.Errorf("few links: %v", links)
			}
			for _, target := range targets {
				to, err := at.Parse(target)
				if err != nil || !strings.HasPrefix(to.Path, m.at) {
					t.Fatalf("%s leads to %v, %v", target, to, err)
				}
				for _, method := range []string{"GET", "HEAD"} {
					if status, end, body := browse(method, to.String()); status != 200 || end.String() != to.String() {
						t.Errorf("%s %s: %d at %s: %.200s", method, to, status, end, body)
					}
				}
			}
			if status, _, body := browse("GET", srv.URL+m.at+"api/nope"); status != 404 || !strings.HasPrefix(body, `{"error":`) {
				t.Errorf("api/nope: %d %s", status, body)
			}
		})
	}
}
