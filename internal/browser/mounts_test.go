package browser

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/usagekit/usagekit/dashboard"
)

// The page finds its files and its numbers wherever it is mounted.
func TestMounts(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.add(map[string]int64{"api.GET /novels/{id}.requests": 7, "api.GET /novels/{id}.status_2xx": 7})
	dash := dashboard.New(s.store, dashboard.Config{Auth: dashboard.Public})
	on := func(h http.Handler, patterns ...string) http.Handler {
		mux := http.NewServeMux()
		for _, p := range patterns {
			mux.Handle(p, h)
		}
		return mux
	}
	for name, m := range map[string]struct {
		h        http.Handler
		ask, end string // the path that is asked for, and where that ends
	}{
		"root":             {dash, "/", "/"},
		"usage":            {on(dash, "/usage/"), "/usage/", "/usage/"},
		"without slash":    {on(dash, "/usage", "/usage/"), "/usage?range=7d", "/usage/?range=7d"},
		"StripPrefix":      {on(http.StripPrefix("/usage", dash), "/usage/"), "/usage/", "/usage/"},
		"StripPrefix bare": {on(http.StripPrefix("/usage", dash), "/usage", "/usage/"), "/usage", "/usage/"},
		"deep":             {on(dash, "/a/b/c/usage/"), "/a/b/c/usage/", "/a/b/c/usage/"},
		"below api":        {on(dash, "/api/"), "/api/", "/api/"},
		"odd":              {on(dash, "/a%20b/ü/"), "/a%20b/%C3%BC/", "/a%20b/%C3%BC/"},
		"with a password": {on(dashboard.New(s.store, dashboard.Config{Auth: func(h http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if c, err := r.Cookie("session"); err == nil && c.Value == "good" {
					h.ServeHTTP(w, r)
					return
				}
				http.SetCookie(w, &http.Cookie{Name: "session", Value: "good", Path: "/", HttpOnly: true, SameSite: http.SameSiteStrictMode})
				http.Redirect(w, r, r.URL.Path, http.StatusSeeOther)
			})
		}}), "/usage/"), "/usage/", "/usage/"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			srv := httptest.NewServer(m.h)
			t.Cleanup(srv.Close)
			p := open(t)
			p.show(srv.URL + m.ask)
			if at := eval[string](p, `location.href`); at != srv.URL+m.end {
				t.Errorf("at %s, want %s", at, srv.URL+m.end)
			}
			if got := p.card("requests"); got != 7 {
				t.Errorf("%v requests, want 7", got)
			}
		})
	}
}
