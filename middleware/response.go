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

// response counts one request.
type response struct {
	inner http.ResponseWriter

	in      *middleware
	request *http.Request // the innermost one seen
	entry   string        // its Pattern when it was seen
	asks    Config        // for what nobody has set; an inner middleware fills gaps
	since   time.Time

	user, route string // set by the handler
	started     atomic.Bool
	name        string // "api.<route>." once started
	stream      bool   // hijacked, or of events: its duration says nothing
}

// responses gives the responses around w, the innermost first. It follows Unwrap
// as http.ResponseController does.
func responses(w http.ResponseWriter) iter.Seq[*response] {
	return func(yield func(*response) bool) {
		for range 100 { // a cycle is not ours to fail on
			if c, ok := w.(interface{ counts() *response }); ok && !yield(c.counts()) {
				return
			}
			u, ok := w.(interface{ Unwrap() http.ResponseWriter })
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
	if c.asks.User == nil {
		c.asks.User = cfg.User
	}
	if c.asks.Route == nil {
		c.asks.Route = cfg.Route
	}
	if c.asks.Area == nil {
		c.asks.Area = cfg.Area
	}
}

// start counts the request, the first time it is called.
func (c *response) start(status int) {
	if c.started.Load() || !c.started.CompareAndSwap(false, true) {
		return
	}
	defer func() { _ = recover() }() // a Recorder's: never the request's
	add := c.in.rec.Add
	c.name = "api." + c.routeOf() + "."
	c.stream = c.stream || strings.HasPrefix(strings.ToLower(c.inner.Header().Get("Content-Type")), "text/event-stream")
	add(c.name+"requests", 1)
	add(c.name+statusClass(status), 1)
	if area := c.areaOf(); area != "" {
		add("api.requests."+area, 1)
	}
	if user := c.userOf(); user != "" {
		add("user."+user+".requests", 1)
	}
}

// end counts a request that has not started, and how long it took.
func (c *response) end(status int) {
	c.start(status)
	if c.stream || c.name == "" {
		return
	}
	defer func() { _ = recover() }()
	c.in.rec.Add(c.name+latency(time.Since(c.since)), 1)
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
		if user, ok = c.ask(c.asks.User); !ok {
			return failed
		}
	}
	return escape(user)
}

func (c *response) areaOf() string {
	area, ok := c.ask(c.asks.Area)
	if !ok {
		return failed
	}
	switch area = strings.ReplaceAll(area, ".", "_"); area {
	case "requests", "total", "today": // the names of other counters
		return area + "_"
	}
	return escape(area)
}

func (c *response) routeOf() string {
	route := c.route
	if route == "" {
		var ok bool
		if route, ok = c.ask(c.asks.Route); !ok {
			return failed
		}
	}
	host := false
	if p := c.request.Pattern; route == "" && (p != "/" || c.entry != "/") && !isRedirect(c.request) {
		// A root mux leaves "/" on every request for the router behind it.
		route, host = p, true
	}
	if route == "" {
		return unmatched
	}
	method, pattern := knownMethod(c.request.Method), route
	if i := strings.IndexAny(route, " \t"); i > 0 && strings.Trim(route[:i], "ABCDEFGHIJKLMNOPQRSTUVWXYZ") == "" {
		method, pattern = route[:i], strings.TrimLeft(route[i:], " \t")
	}
	if i := strings.IndexByte(pattern, '/'); host && i > 0 {
		pattern = pattern[i:] // ServeMux has patterns of a host: [METHOD ][HOST]/[PATH]
	}
	return method + " " + pattern
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

// knownMethod is "OTHER" for a method that a client made up.
func knownMethod(method string) string {
	switch method {
	case "":
		return http.MethodGet
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch,
		http.MethodDelete, http.MethodConnect, http.MethodOptions, http.MethodTrace:
		return method
	}
	return "OTHER"
}

// statusClass is the measure of a status; one that is none is the server's fault.
func statusClass(status int) string {
	switch status / 100 {
	case 1:
		return "status_1xx"
	case 2:
		return "status_2xx"
	case 3:
		return "status_3xx"
	case 4:
		return "status_4xx"
	}
	return "status_5xx"
}

// latency is the measure of a duration: the bounds of OpenTelemetry's
// http.server.request.duration, not cumulative.
func latency(d time.Duration) string {
	for _, b := range [...]struct {
		bound   time.Duration
		measure string
	}{
		{5, "latency_5ms"}, {10, "latency_10ms"}, {25, "latency_25ms"}, {50, "latency_50ms"}, {75, "latency_75ms"},
		{100, "latency_100ms"}, {250, "latency_250ms"}, {500, "latency_500ms"}, {750, "latency_750ms"},
		{1000, "latency_1000ms"}, {2500, "latency_2500ms"}, {5000, "latency_5000ms"}, {7500, "latency_7500ms"},
		{10000, "latency_10000ms"},
	} {
		if d <= b.bound*time.Millisecond {
			return b.measure
		}
	}
	return "latency_inf"
}
