// Package middleware names and counts the requests of an HTTP server.
//
//	count := middleware.New(usage, middleware.Config{User: userID})
//	http.ListenAndServe(addr, count(mux))
//
// Each request is counted once, when its response starts:
//
//	api.<route>.requests       the route is "GET /novels/{id}": method and pattern, never the path
//	api.<route>.status_2xx     by class, 1xx … 5xx
//	api.<route>.latency_5ms    by time until the handler returned; bounds below
//	api.requests.<area>        when Config.Area names one
//	user.<id>.requests         when the user is known
//	error.panic                of handlers
//	error.aborted              answers cut short: by http.ErrAbortHandler, or a client that left
//
// What was answered was counted, and what was counted is what was answered. WriteHeader
// alone decides nothing. A request counts, under the first final status that was set
// by then, or else 200: before the first byte of the body is handed to the inner
// ResponseWriter; before a flush; after a hijack (as 1xx where no status was set); or when
// the handler returns. Copying from a reader that fails, or is empty, hands on nothing.
// A FlushError of other writers than net/http's may answer http.ErrNotSupported, so a
// request counts after that: a process that is killed in between has flushed, and not
// counted, one.
//
// A handler that panics before that counts as 5xx, whatever status it set: net/http
// sends no answer. So does one that aborts. Later ones leave the class as it is. As
// net/http keeps up to 2 kB (HTTP/2: 4 kB) of a body until the handler returns, a panic
// after a few bytes counts as 2xx, and in error.panic, though the client got nothing.
//
// Where the client has left before anything was handed on, whatever the handler then
// answers to nobody counts as 4xx, in error.aborted, and has no latency. One that leaves
// later, before it had what Content-Length promises, or without one before the handler
// returned, only adds to error.aborted: so does whoever closes a stream of events. A
// context that the application cancelled, the server's base context among them, is
// no client that left; nor is one who closed half of the connection told from one who
// closed all of it, since net/http does not tell. Behind a writer that has neither
// Unwrap nor CloseNotify a context that is cancelled without a cause is taken for a
// client that left; else the server is given a millisecond, once in a request, to say so.
//
// Streams have no latency, however they end: they last as long as somebody listens. Those
// are hijacked connections and responses of a type that is sent in pieces:
// text/event-stream, NDJSON and JSON lines under their names, application/stream+json,
// JSON and CBOR sequences, multipart/x-mixed-replace, AWS event streams, all of gRPC,
// gRPC-Web, and Connect's streams, GraphQL's subscriptions, watches of Kubernetes. An
// early flush alone makes no stream.
//
// http.TimeoutHandler answers for a handler that is too slow, which a middleware inside of
// it cannot see: that counts what the handler said, though nobody heard. Count outside
// of it: count(http.TimeoutHandler(mux, time.Second, "")), as the example shows.
//
// It knows net/http and a Recorder, nothing of a store. A Recorder in trouble, or a
// callback that panics, never delays, fails or changes a response. The one thing
// that a wrapped ResponseWriter cannot pass on: http.MaxBytesReader closes the
// connection after a body that was too large, and does not inside of this
// middleware. http.MaxBytesHandler around it does.
//
// The route is known to a middleware around the router as long as nobody in
// between copies the request (http.TimeoutHandler, http.StripPrefix and most
// authentication does). Where somebody does, wrap the inner handler, too:
// count(auth(count(mux))) counts once, with the inner's route, and what is answered
// outside of the inner one counts as well. That works through every ResponseWriter
// that has Unwrap or keeps the inner one in a field, as http.TimeoutHandler's does.
// Through one that does neither, as httptest.ResponseRecorder in place of a buffer,
// it works where both have Config.Context, or are what one New returned and nobody in
// between copies the headers (http.Request.Clone does).
//
// What a handler serves beside its own request, as the parts of a batch, are requests
// of their own, each with its route. Only parts that it makes by copying its own request
// are taken for that, where they go to another handler that counts, or to a writer that
// unwraps to its own.
//
// A request costs two looks at the clock and two at its context, two allocations (one
// more for its area, and for each SetUser and SetRoute) and four or five Adds: the names
// of a route are made once. One New around several handlers takes a lock besides.
//
// Read this file, then response.go, names.go, left.go, stream.go, routes.go,
// nested.go and wrap.go; wrap_generated.go gives a wrapped writer the optional interfaces of the one
// inside.
package middleware

import (
	"context"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"time"
)

// Recorder counts: a *store.Store, or whatever a test wants.
//
// One that has Counter(name string) func(n int64), too, as a Store does, is asked for it
// once for each counter of a route, and what that returns counts in place of Add. So a
// type that embeds a Store to do something about its Add has to have a Counter of its
// own: the Store's passes that Add by.
type Recorder interface {
	Add(name string, n int64)
}

// Config says what the requests are to be counted under. The zero Config counts
// routes, status and latency.
type Config struct {
	// User, Route and Area are asked when the response starts. "" means nobody,
	// unknown and none. The user is an id as the application knows it, the route
	// a pattern (a method is put in front when it has none), the area a part of
	// the application. One that panics counts as "(error)".
	//
	// A request that matches no route has no area, for clients make up paths. Dots in
	// an area become "_", and one that would be named as a sum over all routes is
	// (requests, total, today, status_2xx …) gets another "_": areas that differ in
	// that alone are one.
	User, Route, Area func(*http.Request) string

	// Skip are paths that are not counted. "/usage/" covers all below it, and
	// "/usage"; "/healthz" covers itself. The outermost middleware decides: what it
	// skips none inside of it counts, whatever StripPrefix leaves of the path, and
	// what it counts none can skip.
	Skip []string

	// Context puts the ResponseWriter into the request's context, see ResponseWriter:
	// for handlers that have a context alone, as those of RPC and GraphQL. It costs
	// a copy of the request: two allocations more.
	Context bool
}

// New returns a middleware that counts what passes through it with rec. Inside
// another one of the same rec it only tells that one what it knows, so a request
// is counted once. A nil rec counts nothing.
func New(rec Recorder, cfg Config) func(http.Handler) http.Handler {
	if rec == nil {
		return func(next http.Handler) http.Handler { return next }
	}
	m := &middleware{rec: rec, cfg: cfg, comparable: reflect.ValueOf(rec).Comparable(), base: time.Now()}
	m.cfg.Skip = slices.Clone(cfg.Skip)
	return m.handler
}

// SetUser says which user the request is from; it wins over Config.User. It has
// an effect until the response starts, on every middleware around w that can be
// found from it; outside of an http.TimeoutHandler on the one around that, if it is
// next to it. Where there is no w, ResponseWriter has one.
func SetUser(w http.ResponseWriter, id string) {
	for c := range responses(w, nil, place{}, false) {
		c.tell(func(t *told) { t.user = id })
	}
}

// SetRoute says which route the request took, as SetUser does the user: for
// routers that do not set http.Request.Pattern.
func SetRoute(w http.ResponseWriter, pattern string) {
	for c := range responses(w, nil, place{}, false) {
		c.tell(func(t *told) { t.route = pattern })
	}
}

// ResponseWriter returns the writer that Config.Context put into a request's context,
// for SetUser and SetRoute; nil, with which they do nothing, when there is none.
func ResponseWriter(ctx context.Context) http.ResponseWriter {
	w, _ := ctx.Value(writerKey{}).(http.ResponseWriter)
	return w
}

type writerKey struct{}

type middleware struct {
	rec        Recorder
	cfg        Config
	comparable bool // rec may be compared
	base       time.Time
	kinds      kinds
	routes     routes
	inside     inside
}

// handler is one that the middleware stands around.
type handler struct {
	*middleware
	next http.Handler
}

func (m *middleware) handler(next http.Handler) http.Handler {
	m.inside.handlers.Add(1)
	return &handler{m, next}
}

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	skips := h.skips(r.URL.Path)
	k := h.kinds.find(w)
	outer, hidden := (*response)(nil), false
	if !k.plain {
		outer, hidden = h.outer(w, place{h, r}, false)
	}
	if outer == nil && h.cfg.Context {
		outer, hidden = h.outer(ResponseWriter(r.Context()), place{h, r}, true)
	}
	switch {
	case outer != nil && skips:
		h.next.ServeHTTP(w, r)
		return
	case outer != nil && !hidden:
		h.pass(outer, w, r)
		return
	}
	root := r.Pattern == "/"
	c := &response{output: output{inner: target{w}}, place: place{h, r}, request: r, root: root, since: time.Since(h.base)}
	c.open()
	if outer == nil && h.inside.handlers.Load() > 1 {
		var in key
		if outer, in = h.inside.enter(c); in != nil {
			defer h.inside.leave(in)
		}
	}
	if outer != nil {
		c.tells(outer)
		c.enter(r, &h.cfg)
	}
	if w = wrap(c, k.has); skips { // and so does what is inside
		c.started.Store(true)
		c.know(http.StatusOK)
		h.pass(c, w, r)
	} else {
		h.count(c, w, r)
	}
}

// count has the next one serve a request that c counts.
func (h *handler) count(c *response, w http.ResponseWriter, r *http.Request) {
	returned := false
	defer func() {
		if returned {
			c.end(true, nil)
			return
		}
		v := recover() // nil: runtime.Goexit
		c.end(false, v)
		if v != nil {
			panic(v)
		}
	}()
	if h.cfg.Context {
		h.pass(c, w, r)
	} else {
		h.next.ServeHTTP(w, r)
	}
	returned = true
}

// pass has the next one serve a request that c knows of.
func (h *handler) pass(c *response, w http.ResponseWriter, r *http.Request) {
	if h.cfg.Context {
		outside := r
		r = r.WithContext(context.WithValue(r.Context(), writerKey{}, w))
		defer func() { outside.Pattern, outside.MultipartForm = r.Pattern, r.MultipartForm }() // as if it were the same
	}
	c.enter(r, &h.cfg)
	h.next.ServeHTTP(w, r)
}

// outer returns the response around w that counts for m, too, what came to at; nil: none.
func (m *middleware) outer(w http.ResponseWriter, at place, byContext bool) (c *response, hidden bool) {
	for c, hidden := range responses(w, &m.kinds, at, byContext) {
		if m.same(c.in.middleware) {
			return c, hidden
		}
	}
	return nil, false
}

func (m *middleware) same(other *middleware) bool {
	return m == other || m.comparable && other.comparable && m.rec == other.rec
}

func (m *middleware) skips(path string) bool {
	for _, s := range m.cfg.Skip {
		if path == s || strings.HasSuffix(s, "/") && (strings.HasPrefix(path, s) || path == s[:len(s)-1]) {
			return true
		}
	}
	return false
}
