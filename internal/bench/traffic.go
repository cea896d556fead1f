package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"time"
)

const (
	routeCount = 100
	userCount  = 10_000
	everUsers  = 200_000 // that ever come, where new ones do
	userHeader = "X-User"
	burst      = 100 // requests between two looks at the clock; after each, a new user may come
)

func pattern(i int) string { return fmt.Sprintf("GET /r%d/{id}", i) }

// answer is the inner handler of everybody: 200 and a small body.
func answer(w http.ResponseWriter, _ *http.Request) {
	w.Header()["Content-Type"] = contentType
	_, _ = w.Write(body)
}

var (
	contentType = []string{"application/json"}
	body        = []byte(`{"ok":true}`)
)

// routes returns a ServeMux with all routes, each wrapped by with, unless that is nil.
func routes(with func(route string, next http.Handler) http.Handler) *http.ServeMux {
	mux := http.NewServeMux()
	for i := range routeCount {
		h := http.Handler(http.HandlerFunc(answer))
		if with != nil {
			h = with(pattern(i), h)
		}
		mux.Handle(pattern(i), h)
	}
	return mux
}

// client sends requests for all routes in turn, from all users in another order.
type client struct {
	requests []*http.Request // one of each route
	users    []string
	w        *response
	first    int  // of the users that come now
	user     int  // the next one of them
	moving   bool // of a hundred requests, one is the first of a new user, in whose place another one stays away
}

func newClient(users []string, moving bool) *client {
	c := &client{users: users, moving: moving, w: &response{header: http.Header{}}}
	for i := range routeCount {
		r := httptest.NewRequest(http.MethodGet, fmt.Sprintf("/r%d/17", i), nil)
		r.Header.Set(userHeader, "")
		c.requests = append(c.requests, r)
	}
	return c
}

// send sends a burst.
func (c *client) send(h http.Handler) int {
	for _, r := range c.requests {
		r.Pattern = "" // as a server's request is
		r.Header[userHeader][0] = c.users[(c.first+c.user)%len(c.users)]
		h.ServeHTTP(c.w, r)
		c.user = (c.user + 7919) % userCount
	}
	if c.moving {
		c.first++
	}
	return burst
}

// response is a cheap ResponseWriter, with the optional interfaces of net/http's for
// HTTP/1: middlewares take pains to pass these on.
type response struct {
	header http.Header
	status int
	size   int
}

var errNone = errors.New("there is no connection")

func (w *response) Header() http.Header                          { return w.header }
func (w *response) WriteHeader(status int)                       { w.status = status }
func (w *response) Write(p []byte) (int, error)                  { w.size += len(p); return len(p), nil }
func (w *response) WriteString(s string) (int, error)            { w.size += len(s); return len(s), nil }
func (w *response) ReadFrom(r io.Reader) (int64, error)          { return io.Copy(io.Discard, r) }
func (w *response) Flush()                                       {}
func (w *response) FlushError() error                            { return nil }
func (w *response) Hijack() (net.Conn, *bufio.ReadWriter, error) { return nil, nil, errNone }
func (w *response) CloseNotify() <-chan bool                     { return nil }
func (w *response) SetReadDeadline(time.Time) error              { return nil }
func (w *response) SetWriteDeadline(time.Time) error             { return nil }
func (w *response) EnableFullDuplex() error                      { return nil }
