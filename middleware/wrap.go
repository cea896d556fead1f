package middleware

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"time"
)

//go:generate go run generate.go

// Unwrap returns the inner writer, for http.ResponseController.
func (c *response) Unwrap() http.ResponseWriter { return c.ResponseWriter }

// WriteHeader counts a final status; an informational one (1xx, but for 101,
// which ends HTTP) passes.
func (c *response) WriteHeader(status int) {
	if status/100 != 1 || status == http.StatusSwitchingProtocols {
		c.start(status)
	}
	c.ResponseWriter.WriteHeader(status)
}

func (c *response) Write(p []byte) (int, error) {
	c.start(http.StatusOK)
	return c.ResponseWriter.Write(p)
}

// What follows are the optional interfaces of a ResponseWriter. wrap gives a
// writer those that the inner one has: each is used only where the inner one
// has it, too.

type flusher struct{ c *response }

func (f flusher) Flush() {
	f.c.start(http.StatusOK)
	f.c.ResponseWriter.(http.Flusher).Flush()
}

type flushError interface{ FlushError() error }

type errorFlusher struct{ c *response }

func (f errorFlusher) FlushError() error {
	f.c.start(http.StatusOK)
	return f.c.ResponseWriter.(flushError).FlushError()
}

type notifier interface{ CloseNotify() <-chan bool } // http.CloseNotifier, deprecated

type closeNotifier struct{ c *response }

func (n closeNotifier) CloseNotify() <-chan bool {
	return n.c.ResponseWriter.(notifier).CloseNotify()
}

type hijacker struct{ c *response }

func (h hijacker) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := h.c.ResponseWriter.(http.Hijacker).Hijack()
	if err == nil {
		h.c.stream = true
		h.c.start(http.StatusSwitchingProtocols)
	}
	return conn, rw, err
}

type readerFrom struct{ c *response }

func (r readerFrom) ReadFrom(src io.Reader) (int64, error) {
	r.c.start(http.StatusOK)
	return r.c.ResponseWriter.(io.ReaderFrom).ReadFrom(src)
}

type deadliner interface {
	SetReadDeadline(time.Time) error
	SetWriteDeadline(time.Time) error
}

type deadlines struct{ c *response }

func (d deadlines) SetReadDeadline(t time.Time) error {
	return d.c.ResponseWriter.(deadliner).SetReadDeadline(t)
}

func (d deadlines) SetWriteDeadline(t time.Time) error {
	return d.c.ResponseWriter.(deadliner).SetWriteDeadline(t)
}

type fullDuplexer interface{ EnableFullDuplex() error }

type fullDuplex struct{ c *response }

func (f fullDuplex) EnableFullDuplex() error {
	return f.c.ResponseWriter.(fullDuplexer).EnableFullDuplex()
}

type pusher struct{ c *response }

func (p pusher) Push(target string, opts *http.PushOptions) error {
	return p.c.ResponseWriter.(http.Pusher).Push(target, opts)
}

type stringWriter struct{ c *response }

func (s stringWriter) WriteString(text string) (int, error) {
	s.c.start(http.StatusOK)
	return s.c.ResponseWriter.(io.StringWriter).WriteString(text)
}
