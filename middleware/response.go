package middleware

import (
	"net/http"
	"path"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/usagekit/usagekit/internal/naming"
)

// response counts one request. It is the ResponseWriter of what is inside: see
// wrap.go.
type response struct {
	*target        // of WriteHeader: opening until the status is known, then inner
	opening, inner target

	in      *middleware
	came    *http.Request // as it came: its context is next to the connection's
	request *http.Request // the innermost one seen
	since   time.Duration // after in.base

	told     atomic.Pointer[told]
	counted  *route // once started
	written  int64  // bytes of the body
	status   int32  // the first final one; 0: none yet
	started  atomic.Bool
	root     bool   // request.Pattern was "/" when it was seen
	stream   bool   // hijacked, or of a type that is: its duration says nothing
	gone     bool   // there was nobody to answer when it started
	notifies bool   // the handler has asked for CloseNotify
	waited   bool   // for the server to say that the client left
	nth      uint16 // of the handlers of in; after 65536 they begin anew
}

// enter notes the request of a middleware: routers set Pattern on the request
// that they are given, and code between two middlewares may have copied it.
func (c *response) enter(r *http.Request, cfg *Config) {
	c.request, c.root = r, r.Pattern == "/"
	if known := c.asks(); known != cfg {
		if asks := known.or(cfg); asks != known {
			c.tell(func(t *told) { t.asks = asks })
		}
	}
}

// asks has the functions for what nobody has set: an inner middleware fills gaps.
func (c *response) asks() *Config {
	if t := c.told.Load(); t != nil && t.asks != nil {
		return t.asks
	}
	return &c.in.cfg
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

// start counts the request, the first time it is called.
func (c *response) start() {
	if c.started.Load() || !c.started.CompareAndSwap(false, true) {
		return
	}
	defer func() { _ = recover() }() // a Recorder's: never the request's
	t := c.told.Load()
	outer := t.countsFor()
	if outer == nil && c.cancelled() && c.left() {
		c.gone, c.stream, c.status = true, true, statusGone
	}
	c.know(http.StatusOK)
	route, area, user := c.names(t)
	if outer != nil {
		outer.tell(func(t *told) { t.names = &named{route, area, user} })
		return
	}
	rec := c.in.rec
	c.counted = route
	c.stream = c.stream || isStream(c.inner.Header())
	route.count(rec, naming.Requests)
	route.count(rec, naming.Status(int(c.status)))
	if area != "" {
		rec.Add("api.requests."+area, 1)
	}
	if user != "" {
		rec.Add("user."+user+".requests", 1)
	}
}

// know remembers a final status, the first one.
func (c *response) know(status int) {
	if c.status == 0 {
		c.status = int32(status)
		c.target = &c.inner
	}
}

// named is what a request counts under.
type named struct {
	route      *route
	area, user string // "": none, nobody
}

func (c *response) names(t *told) (route *route, area, user string) {
	var pattern string
	asks := &c.in.cfg
	if t != nil {
		if n := t.names; n != nil {
			return n.route, n.area, n.user
		}
		user, pattern, asks = t.user, t.route, c.asks()
	}
	route, user = c.routeOf(pattern, asks.Route), c.userOf(user, asks.User)
	if route.prefix != "api."+naming.Unmatched+"." { // anybody makes up paths
		area = c.areaOf(asks.Area)
	}
	return route, area, user
}

// end counts a request that has not started, how long it took, and how it ended: v is
// what the handler panicked with, if it did not return.
func (c *response) end(returned bool, v any) {
	began := c.started.Load()
	if !began {
		if !returned { // net/http sends no answer, whatever is remembered
			c.status = http.StatusInternalServerError
		}
		c.start()
	}
	if c.counted == nil && c.told.Load().countsFor() != nil {
		return // it will see
	}
	defer func() { _ = recover() }()
	rec := c.in.rec
	if !c.stream && c.counted != nil {
		c.counted.count(rec, naming.Latency(time.Since(c.in.base)-c.since))
	}
	abort := v == http.ErrAbortHandler
	if abort || c.gone || began && c.cancelled() && !c.whole() && c.left() {
		rec.Add("error.aborted", 1)
	}
	if v != nil && !abort {
		rec.Add("error.panic", 1)
	}
}

// whole tells whether the client may have had all there was to have before the handler
// returned: without a length it has not.
func (c *response) whole() bool {
	if c.came.Method == http.MethodHead || c.status == http.StatusNoContent || c.status == http.StatusNotModified {
		return true
	}
	n, err := strconv.ParseInt(c.inner.Header().Get("Content-Length"), 10, 64)
	return err == nil && c.written >= n
}

// ask calls one of Config's functions, if there is one.
func (c *response) ask(f func(*http.Request) string) (answer string, ok bool) {
	if f == nil {
		return "", true
	}
	return c.call(f)
}

func (c *response) call(f func(*http.Request) string) (answer string, ok bool) {
	defer func() {
		if recover() != nil {
			answer, ok = naming.Failed, false
		}
	}()
	return f(c.request), true
}

func (c *response) userOf(user string, ask func(*http.Request) string) string {
	if user == "" {
		var ok bool
		if user, ok = c.ask(ask); !ok {
			return naming.Failed
		}
	}
	return naming.Escape(user)
}

func (c *response) areaOf(ask func(*http.Request) string) string {
	area, ok := c.ask(ask)
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

func (c *response) routeOf(route string, ask func(*http.Request) string) *route {
	known := &c.in.routes
	if route == "" {
		var ok bool
		if route, ok = c.ask(ask); !ok {
			return known.find(c.in.rec, naming.Failed, "", false)
		}
	}
	host := false
	if p := c.request.Pattern; route == "" && (p != "/" || !c.root) && !isRedirect(c.request) {
		// A root mux leaves "/" on every request for the router behind it.
		route, host = p, true
	}
	if route == "" {
		return known.find(c.in.rec, naming.Unmatched, "", false)
	}
	return known.find(c.in.rec, route, knownMethod(c.request.Method), host)
}

// isRedirect tells whether r's Pattern is no pattern: where ServeMux redirects a
// CONNECT to its path with a slash, it leaves that path there.
func isRedirect(r *http.Request) bool {
	p := r.URL.Path
	return r.Method == http.MethodConnect && !strings.HasSuffix(p, "/") && r.Pattern == path.Clean(p)+"/"
}
