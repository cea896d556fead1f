package middleware

import (
	"cmp"
	"net/http"
	"path"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// Subjects that stand for something else than what a request said. One of its
// own that begins with "(" gets a second one in front.
const (
	unmatched = "(unmatched)"
	failed    = "(error)" // a callback panicked
)

// response counts one request. It is the ResponseWriter of what is inside: see
// wrap.go.
type response struct {
	*target        // of WriteHeader: opening until the status is known, then inner
	opening, inner target

	in      *middleware
	came    *http.Request // as it came: its context is next to the connection's
	request *http.Request // the innermost one seen
	asks    struct {      // for what nobody has set; an inner middleware fills gaps
		user, route, area func(*http.Request) string
	}
	since time.Duration // after in.base
	outer *response     // hidden, which counts what this one tells; nil: this one counts

	user, route string // set by the handler
	told        atomic.Pointer[told]
	status      int32 // the first final one; 0: none yet
	started     atomic.Bool
	root        bool   // request.Pattern was "/" when it was seen
	stream      bool   // hijacked, or of a type that is: its duration says nothing
	late        bool   // the context of came was cancelled when it came
	gone        bool   // there was nobody to answer when it started
	notifies    bool   // the handler has asked for CloseNotify
	written     int64  // bytes of the body
	counted     *route // once started
}

// enter notes the request of a middleware: routers set Pattern on the request
// that they are given, and code between two middlewares may have copied it.
func (c *response) enter(r *http.Request, cfg Config) {
	c.request, c.root = r, r.Pattern == "/"
	if c.asks.user == nil {
		c.asks.user = cfg.User
	}
	if c.asks.route == nil {
		c.asks.route = cfg.Route
	}
	if c.asks.area == nil {
		c.asks.area = cfg.Area
	}
}

// start counts the request, the first time it is called.
func (c *response) start() {
	if c.started.Load() || !c.started.CompareAndSwap(false, true) {
		return
	}
	defer func() { _ = recover() }() // a Recorder's: never the request's
	if c.outer == nil && c.left() {
		c.gone, c.stream, c.status = true, true, statusGone
	}
	c.know(http.StatusOK)
	n := c.names()
	if c.outer != nil {
		c.outer.tell(func(t *told) { t.names = &named{n.route, n.area, n.user} })
		return
	}
	rec := c.in.rec
	c.counted = n.route
	c.stream = c.stream || isStream(c.inner.Header())
	c.counted.count(rec, requests)
	c.counted.count(rec, status(int(c.status)))
	if n.area != "" {
		rec.Add("api.requests."+n.area, 1)
	}
	if n.user != "" {
		rec.Add("user."+n.user+".requests", 1)
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

func (c *response) names() named {
	t := c.told.Load()
	if t != nil && t.names != nil {
		return *t.names
	}
	user, pattern := c.set(t)
	n := named{route: c.routeOf(pattern), user: c.userOf(user)}
	if n.route.prefix != "api."+unmatched+"." { // anybody makes up paths
		n.area = c.areaOf()
	}
	return n
}

// set returns the user and the route that were set.
func (c *response) set(t *told) (user, route string) {
	if t == nil {
		return c.user, c.route
	}
	return cmp.Or(t.user, c.user), cmp.Or(t.route, c.route)
}

// end counts a request that has not started, how long it took, and how it ended: v is
// what the handler panicked with, if it did not return.
func (c *response) end(returned bool, v any) {
	if !c.started.Load() {
		if !returned { // net/http sends no answer, whatever is remembered
			c.status = http.StatusInternalServerError
		}
		c.start()
	}
	if c.outer != nil {
		return // it will see
	}
	defer func() { _ = recover() }()
	gone := c.gone || c.left() && !c.whole()
	rec := c.in.rec
	if !c.stream && c.counted != nil {
		c.counted.count(rec, latency(time.Since(c.in.base)-c.since))
	}
	if gone || v == http.ErrAbortHandler {
		rec.Add("error.aborted", 1)
	}
	if v != nil && v != http.ErrAbortHandler {
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

// ask calls one of Config's functions.
func (c *response) ask(f func(*http.Request) string) (answer string, ok bool) {
	if f == nil {
		return "", true
	}
	defer func() {
		if recover() != nil {
			answer, ok = failed, false
		}
	}()
	return f(c.request), true
}

func (c *response) userOf(user string) string {
	if user == "" {
		var ok bool
		if user, ok = c.ask(c.asks.user); !ok {
			return failed
		}
	}
	return escape(user)
}

func (c *response) areaOf() string {
	area, ok := c.ask(c.asks.area)
	switch {
	case !ok:
		return failed
	case area == "":
		return ""
	}
	if area = strings.ReplaceAll(area, ".", "_"); isTaken(area) {
		return area + "_"
	}
	return escape(area)
}

// isTaken tells whether an area has the name of another counter: of one that a store
// derives from all routes.
func isTaken(area string) bool {
	for i := range measures {
		if area == measure(i) {
			return true
		}
	}
	return area == "total" || area == "today"
}

func (c *response) routeOf(route string) *route {
	known := &c.in.routes
	if route == "" {
		var ok bool
		if route, ok = c.ask(c.asks.route); !ok {
			return known.find(c.in.rec, failed, "", false)
		}
	}
	host := false
	if p := c.request.Pattern; route == "" && (p != "/" || !c.root) && !isRedirect(c.request) {
		// A root mux leaves "/" on every request for the router behind it.
		route, host = p, true
	}
	if route == "" {
		return known.find(c.in.rec, unmatched, "", false)
	}
	return known.find(c.in.rec, route, knownMethod(c.request.Method), host)
}

// isRedirect tells whether r's Pattern is no pattern: where ServeMux redirects a
// CONNECT to its path with a slash, it leaves that path there.
func isRedirect(r *http.Request) bool {
	p := r.URL.Path
	return r.Method == http.MethodConnect && !strings.HasSuffix(p, "/") && r.Pattern == path.Clean(p)+"/"
}

func escape(subject string) string {
	if strings.HasPrefix(subject, "(") {
		return "(" + subject
	}
	return subject
}
