package middleware

import (
	"net/http"
	"path"
	"strings"

	"github.com/usagekit/usagekit/internal/naming"
)

// named is what a request counts under.
type named struct {
	route      *route
	area, user string // "": none, nobody
}

// names asks Config for what t, which may be nil, does not say.
func (c *response) names(t *told) (route *route, area, user string) {
	var pattern string
	asks := &c.in.cfg
	if t != nil {
		if n := t.names; n != nil {
			return n.route, n.area, n.user
		}
		user, pattern, asks = t.user, t.route, c.asks()
	}
	route, user = c.in.routeOf(pattern, asks.Route, c.request, c.root), userOf(user, asks.User, c.request)
	if route.prefix != "api."+naming.Unmatched+"." { // anybody makes up paths
		area = areaOf(asks.Area, c.request)
	}
	return route, area, user
}

// or returns cfg, or if it lacks functions that another one has, one with those.
func (cfg *Config) or(other *Config) *Config {
	if (cfg.User != nil || other.User == nil) && (cfg.Route != nil || other.Route == nil) && (cfg.Area != nil || other.Area == nil) {
		return cfg
	}
	all := *cfg
	if all.User == nil {
		all.User = other.User
	}
	if all.Route == nil {
		all.Route = other.Route
	}
	if all.Area == nil {
		all.Area = other.Area
	}
	return &all
}

// ask calls one of Config's functions, if there is one.
func ask(f func(*http.Request) string, r *http.Request) (answer string, ok bool) {
	if f == nil {
		return "", true
	}
	return call(f, r)
}

func call(f func(*http.Request) string, r *http.Request) (answer string, ok bool) {
	defer func() {
		if recover() != nil {
			answer, ok = naming.Failed, false
		}
	}()
	return f(r), true
}

func userOf(user string, f func(*http.Request) string, r *http.Request) string {
	if user == "" {
		var ok bool
		if user, ok = ask(f, r); !ok {
			return naming.Failed
		}
	}
	return naming.Escape(user)
}

func areaOf(f func(*http.Request) string, r *http.Request) string {
	area, ok := ask(f, r)
	switch {
	case !ok:
		return naming.Failed
	case area == "":
		return ""
	}
	if area = strings.ReplaceAll(area, ".", "_"); area == "requests" || naming.Derived("api.requests."+area) {
		return area + "_"
	}
	return naming.Escape(area)
}

// routeOf returns what r, whose Pattern was "/" when it was seen if root says so, counts
// under.
func (m *middleware) routeOf(route string, f func(*http.Request) string, r *http.Request, root bool) *route {
	if route == "" {
		var ok bool
		if route, ok = ask(f, r); !ok {
			return m.routes.find(m.rec, naming.Failed, "", false)
		}
	}
	host := false
	if p := r.Pattern; route == "" && (p != "/" || !root) && !isRedirect(r) {
		// A root mux leaves "/" on every request for the router behind it.
		route, host = p, true
	}
	if route == "" {
		return m.routes.find(m.rec, naming.Unmatched, "", false)
	}
	return m.routes.find(m.rec, route, knownMethod(r.Method), host)
}

// isRedirect tells whether r's Pattern is no pattern: where ServeMux redirects a
// CONNECT to its path with a slash, it leaves that path there.
func isRedirect(r *http.Request) bool {
	p := r.URL.Path
	return r.Method == http.MethodConnect && !strings.HasSuffix(p, "/") && r.Pattern == path.Clean(p)+"/"
}
