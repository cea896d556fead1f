package middleware

import (
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/usagekit/usagekit/internal/naming"
)

// response counts one request. It is the ResponseWriter of what is inside: see
// wrap.go.
type response struct {
	output
	place                 // that the request came to
	request *http.Request // the innermost one seen
	since   time.Duration // after in.base
	told    atomic.Pointer[told]
	counted *route // once started
	client  client
	root    bool // request.Pattern was "/" when it was seen
	stream  bool // hijacked, or of a type that is: its duration says nothing
}

// output is what was handed on, and the writer that it was handed to.
type output struct {
	*target        // of WriteHeader: opening until the status is known, then inner
	opening, inner target

	written int64 // bytes of the body
	status  int32 // the first final one; 0: none yet
	started atomic.Bool
}

func (o *output) Header() http.Header { return o.inner.Header() }

// know remembers a final status, the first one.
func (o *output) know(status int) {
	if o.status == 0 {
		o.status = int32(status)
		o.target = &o.inner
	}
}

// whole tells whether the client may have had all there was to have before the handler
// returned: without a length it has not.
func (o *output) whole(method string) bool {
	if method == http.MethodHead || o.status == http.StatusNoContent || o.status == http.StatusNotModified {
		return true
	}
	n, err := strconv.ParseInt(o.inner.Header().Get("Content-Length"), 10, 64)
	return err == nil && o.written >= n
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

// start counts the request, the first time it is called.
func (c *response) start() {
	if c.started.Load() || !c.started.CompareAndSwap(false, true) {
		return
	}
	defer func() { _ = recover() }() // a Recorder's: never the request's
	t := c.told.Load()
	outer := t.countsFor()
	if outer == nil && c.cancelled() && c.client.left(c.came.Context(), c.inner.ResponseWriter) {
		c.client.gone, c.stream, c.status = true, true, statusGone
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
	if abort || c.client.gone || began && c.cancelled() && !c.whole(c.came.Method) && c.client.left(c.came.Context(), c.inner.ResponseWriter) {
		rec.Add("error.aborted", 1)
	}
	if v != nil && !abort {
		rec.Add("error.panic", 1)
	}
}
