package middleware

import (
	"iter"
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
	entry   string        // its Pattern when it was seen
	asks    struct {      // for what nobody has set; an inner middleware fills gaps
		user, route, area func(*http.Request) string
	}
	since time.Duration // after in.base

	user, route string // set by the handler
	started     atomic.Bool
	stream      bool   // hijacked, or of events: its duration says nothing
	counted     *route // once started
}

// responses gives the responses around w, the innermost first. It follows Unwrap
// as http.ResponseController does.
func responses(w http.ResponseWriter) iter.Seq[*response] {
	return func(yield func(*response) bool) {
		for range 100 { // a cycle is not ours to fail on
			if c, ok := w.(interface{ counts() *response }); ok {
				if !yield(c.counts()) {
					return
				}
				w = c.counts().inner
				continue
			}
			u, ok := w.(wrapper)
			if !ok {
				return
			}
			w = u.Unwrap()
		}
	}
}

// enter notes the request of a middleware: routers set Pattern on the request
// that they are given, and code between two middlewares may have copied it.
func (c *response) enter(r *http.Request, cfg Config) {
	c.request, c.entry = r, r.Pattern
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
	rec := c.in.rec
	c.counted = c.routeOf()
	c.stream = c.stream || ofEvents(c.inner.Header())
	c.counted.count(rec, requests)
	c.counted.count(rec, status(code))
	if area := c.areaOf(); area != "" {
		rec.Add("api.requests."+area, 1)
	}
	if user := c.userOf(); user != "" {
		rec.Add("user."+user+".requests", 1)
	}
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

func (c *response) userOf() string {
	user := c.user
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

func (c *response) routeOf() *route {
	known := &c.in.routes
	route := c.route
	if route == "" {
		var ok bool
		if route, ok = c.ask(c.asks.route); !ok {
			return known.find(c.in.rec, failed, "", false)
		}
	}
	host := false
	if p := c.request.Pattern; route == "" && (p != "/" || c.entry != "/") && !isRedirect(c.request) {
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
