package middleware

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"time"
)

//go:generate go run generate.go

// writer is the http.ResponseWriter of a response.
type writer struct{ c *response }

func (w *writer) counts() *response   { return w.c }
func (w *writer) Header() http.Header { return w.c.inner.Header() }

// Unwrap returns the inner writer, for http.ResponseController.
func (w *writer) Unwrap() http.ResponseWriter { return w.c.inner }

// WriteHeader counts a final status; an informational one (1xx, but for 101,
// which ends HTTP) passes.
func (w *writer) WriteHeader(status int) {
	if status/100 != 1 || status == http.StatusSwitchingProtocols {
		w.c.start(status)
	}
	w.c.inner.WriteHeader(status)
}

func (w *writer) Write(p []byte) (int, error) {
	w.c.start(http.StatusOK)
	return w.c.inner.Write(p)
}

// What follows are the optional interfaces of a ResponseWriter. wrap gives a
// writer those that the inner one has: each is used only where the inner one
// has it, too.

type flusher struct{ c *response }

func (f *flusher) Flush() {
	f.c.start(http.StatusOK)
	f.c.inner.(http.Flusher).Flush()
}

type flushError interface{ FlushError() error }

type errorFlusher struct{ c *response }

func (f *errorFlusher) FlushError() error {
	f.c.start(http.StatusOK)
	return f.c.inner.(flushError).FlushError()
}

type notifier interface{ CloseNotify() <-chan bool } // http.CloseNotifier, deprecated

type closeNotifier struct{ c *response }

func (n *closeNotifier) CloseNotify() <-chan bool {
	return n.c.inner.(notifier).CloseNotify()
}

type hijacker struct{ c *response }

func (h *hijacker) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := h.c.inner.(http.Hijacker).Hijack()
	if err == nil {
		h.c.stream = true
		h.c.start(http.StatusSwitchingProtocols)
	}
	return conn, rw, err
}

type readerFrom struct{ c *response }

// ReadFrom counts when there is something to send: a source that is empty, or
// fails at once, leaves the status open. With a Content-Length net/http may have
// the kernel send a file, and has to see it.
func (r *readerFrom) ReadFrom(src io.Reader) (int64, error) {
	if r.c.inner.Header().Get("Content-Length") != "" {
		r.c.start(http.StatusOK)
	}
	if !r.c.started.Load() {
		src = startingReader{src, r.c}
	}
	return r.c.inner.(io.ReaderFrom).ReadFrom(src)
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

type deadliner interface {
	SetReadDeadline(time.Time) error
	SetWriteDeadline(time.Time) error
}

type deadlines struct{ c *response }

func (d *deadlines) SetReadDeadline(t time.Time) error {
	return d.c.inner.(deadliner).SetReadDeadline(t)
}

func (d *deadlines) SetWriteDeadline(t time.Time) error {
	return d.c.inner.(deadliner).SetWriteDeadline(t)
}

type fullDuplexer interface{ EnableFullDuplex() error }

type fullDuplex struct{ c *response }

func (f *fullDuplex) EnableFullDuplex() error {
	return f.c.inner.(fullDuplexer).EnableFullDuplex()
}

type pusher struct{ c *response }

func (p *pusher) Push(target string, opts *http.PushOptions) error {
	return p.c.inner.(http.Pusher).Push(target, opts)
}

type stringWriter struct{ c *response }

func (s *stringWriter) WriteString(text string) (int, error) {
	s.c.start(http.StatusOK)
	return s.c.inner.(io.StringWriter).WriteString(text)
}
