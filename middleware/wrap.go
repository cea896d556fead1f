package middleware

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"reflect"
	"sync/atomic"
)

//go:generate go run generate.go

// kind is what is known of a type of ResponseWriter.
type kind struct {
	of    reflect.Type
	has   int  // its optional interfaces, as wrap wants them
	plain bool // it is no response, nor may it be around one
}

// kinds are those that were met: finding out takes a dozen type assertions. A
// server has one or two.
type kinds struct {
	seen   atomic.Pointer[[]kind]
	fields atomic.Pointer[map[reflect.Type][]int] // of structs: which are writers
}

const maxKinds = 16

func (k *kinds) find(w http.ResponseWriter) kind {
	of := reflect.TypeOf(w)
	var seen []kind
	if p := k.seen.Load(); p != nil {
		seen = *p
	}
	for i := range seen {
		if seen[i].of == of {
			return seen[i]
		}
	}
	_, response := w.(interface{ counts() *response })
	_, around := w.(wrapper)
	one := kind{of, optional(w), !response && !around && !k.hides(of)}
	if len(seen) < maxKinds {
		all := append(seen[:len(seen):len(seen)], one)
		k.seen.Store(&all) // one that another goroutine stored just now comes again
	}
	return one
}

// hides tells whether a writer of a type may be around one that it does not unwrap to.
func (k *kinds) hides(of reflect.Type) bool {
	if of.Kind() == reflect.Pointer {
		of = of.Elem()
	}
	return of.Kind() == reflect.Struct && len(k.writersIn(of)) > 0
}

type wrapper interface{ Unwrap() http.ResponseWriter }

// What follows are the methods of a response as an http.ResponseWriter.

func (c *response) counts() *response   { return c }
func (c *response) Header() http.Header { return c.inner.Header() }

// Unwrap returns the inner writer, for http.ResponseController. Where that can be
// flushed or hijacked by a controller only, a controller comes by here.
func (c *response) Unwrap() http.ResponseWriter {
	_, flusher := c.inner.(http.Flusher)
	_, hijacker := c.inner.(http.Hijacker)
	_, around := c.inner.(wrapper)
	_, flushes := c.inner.(flushError)
	if flushes && !flusher || around && !(flusher && hijacker) {
		return controlled{c}
	}
	return c.inner
}

// WriteHeader counts a final status; an informational one (1xx, but for 101,
// which ends HTTP) passes.
func (c *response) WriteHeader(status int) {
	if status/100 != 1 || status == http.StatusSwitchingProtocols {
		c.start(status)
	}
	c.inner.WriteHeader(status)
}

func (c *response) Write(p []byte) (int, error) {
	c.start(http.StatusOK)
	return c.inner.Write(p)
}

// And the optional ones: wrap gives a writer those that the inner one has, and
// each is used only where the inner one has it, too.

func (c *response) flush() {
	c.start(http.StatusOK)
	c.inner.(http.Flusher).Flush()
}

type flushError interface{ FlushError() error }

func (c *response) flushError() error {
	c.start(http.StatusOK)
	return http.NewResponseController(c.inner).Flush()
}

type notifier interface{ CloseNotify() <-chan bool } // http.CloseNotifier, deprecated

func (c *response) closeNotify() <-chan bool { return c.inner.(notifier).CloseNotify() }

func (c *response) hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(c.inner).Hijack()
	if err == nil {
		c.stream = true
		c.start(http.StatusSwitchingProtocols)
	}
	return conn, rw, err
}

// readFrom counts when there is something to send: a source that is empty, or
// fails at once, leaves the status open. With a Content-Length net/http may have
// the kernel send a file, and has to see it.
func (c *response) readFrom(src io.Reader) (int64, error) {
	if c.inner.Header().Get("Content-Length") != "" {
		c.start(http.StatusOK)
	}
	if !c.started.Load() {
		src = startingReader{src, c}
	}
	return c.inner.(io.ReaderFrom).ReadFrom(src)
}

// startingReader starts a response with its first byte.
type startingReader struct {
	io.Reader
	c *response
}

func (s startingReader) Read(p []byte) (int, error) {
	n, err := s.Reader.Read(p)
	if n > 0 {
		s.c.start(http.StatusOK)
	}
	return n, err
}

func (c *response) push(target string, opts *http.PushOptions) error {
	return c.inner.(http.Pusher).Push(target, opts)
}

func (c *response) writeString(s string) (int, error) {
	c.start(http.StatusOK)
	return c.inner.(io.StringWriter).WriteString(s)
}

// controlled is an inner writer for http.ResponseController, which finds by it what
// the inner one has no method for. Nothing is flushed or hijacked without being
// counted.
type controlled struct{ *response }

func (c controlled) FlushError() error                            { return c.flushError() }
func (c controlled) Hijack() (net.Conn, *bufio.ReadWriter, error) { return c.hijack() }
func (c controlled) Unwrap() http.ResponseWriter                  { return c.inner }
