package middleware

import (
	"cmp"
	"net/http"
	"path"
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
	inner http.ResponseWriter

	in      *middleware
	request *http.Request // the innermost one seen
	asks    struct {      // for what nobody has set; an inner middleware fills gaps
		user, route, area func(*http.Request) string
	}
	since time.Duration // after in.base
	outer *response     // hidden, which counts what this one tells; nil: this one counts

	user, route string // set by the handler
	told        atomic.Pointer[told]
	started     atomic.Bool
	root        bool   // request.Pattern was "/" when it was seen
	stream      bool   // hijacked, or of events: its duration says nothing
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
func (c *response) start(code int) {
	if c.started.Load() || !c.started.CompareAndSwap(false, true) {
		return
	}
	defer func() { _ = recover() }() // a Recorder's: never the request's
	n := c.names()
	if c.outer != nil {
		c.outer.tell(func(t *told) { t.names = &named{n.route, n.area, n.user} })
		return
	}
	rec := c.in.rec
	c.counted = n.route
	c.stream = c.stream || ofEvents(c.inner.Header())
	c.counted.count(rec, requests)
	c.counted.count(rec, status(code))
	if n.area != "" {
		rec.Add("api.requests."+n.area, 1)
	}
	if n.user != "" {
		rec.Add("user."+n.user+".requests", 1)
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
	user, route := c.set(t)
	return named{c.routeOf(route), c.areaOf(), c.userOf(user)}
}

// set returns the user and the route that were set.
func (c *response) set(t *told) (user, route string) {
	if t == nil {
		return c.user, c.route
	}
	return cmp.Or(t.user, c.user), cmp.Or(t.route, c.route)
}

// ofEvents tells whether a response of these headers is a stream of events.
func ofEvents(h http.Header) bool {
	const events = "text/event-stream"
	types := h["Content-Type"]
	return len(types) > 0 && len(types[0]) >= len(events) && strings.EqualFold(types[0][:len(events)], events)
}

// end counts a request that has not started, and how long it took.
func (c *response) end(code int) {
	c.start(code)
	if c.stream || c.counted == nil {
		return
	}
	defer func() { _ = recover() }()
	c.counted.count(c.in.rec, latency(time.Since(c.in.base)-c.since))
}

func (c *response) panicked() {
	if c.outer != nil {
		return // it will see
	}
	defer func() { _ = recover() }()
	c.in.rec.Add("error.panic", 1)
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
