package middleware

import (
	"bufio"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/http"
	"reflect"
	"strings"
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

func (k *kinds) find(w http.ResponseWriter) *kind {
	of := reflect.TypeOf(w)
	var seen []kind
	if p := k.seen.Load(); p != nil {
		seen = *p
	}
	for i := range seen {
		if seen[i].of == of {
			return &seen[i]
		}
	}
	_, response := w.(ours)
	_, around := w.(wrapper)
	one := &kind{of, optional(w), !response && !around && !k.hides(of)}
	if len(seen) < maxKinds {
		all := append(seen[:len(seen):len(seen)], *one)
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

// maxWrapped is how deep writers are looked into: a cycle is not ours to fail on.
const maxWrapped = 100

type wrapper interface{ Unwrap() http.ResponseWriter }

// What follows are the methods of a response as an http.ResponseWriter.

func (c *response) counts() *response { return c }

// Unwrap returns the inner writer, for http.ResponseController. Where that can be
// flushed or hijacked by a controller only, a controller comes by here.
func (c *response) Unwrap() http.ResponseWriter {
	w := c.inner.ResponseWriter
	_, flusher := w.(http.Flusher)
	_, hijacker := w.(http.Hijacker)
	_, around := w.(wrapper)
	_, flushes := w.(flushError)
	if flushes && !flusher || around && !(flusher && hijacker) {
		return controlled{c}
	}
	return w
}

// target is where WriteHeader goes: with the methods of a struct that is embedded there
// is no frame of ours in the way, so net/http names the caller in its log.
type target struct{ http.ResponseWriter }

// opening is the target until the status is known.
type opening struct{ *response }

func (c *response) open() {
	c.opening.ResponseWriter = opening{c}
	c.target = &c.opening
}

// WriteHeader remembers a final status, once the inner writer has taken it. An
// informational one (1xx, but for 101, which ends HTTP/1) passes.
func (o opening) WriteHeader(status int) {
	o.inner.WriteHeader(status)
	if status/100 != 1 || status == http.StatusSwitchingProtocols && o.came.ProtoMajor < 2 {
		o.know(status)
	}
}

func (c *response) Write(p []byte) (int, error) {
	c.write(len(p))
	n, err := c.inner.Write(p)
	c.written += int64(n)
	return n, err
}

// write tells that n bytes are going to be handed on. None do not answer anything, but
// decide that the status is 200, if there is none.
func (c *response) write(n int) {
	switch {
	case c.started.Load():
	case n > 0:
		c.start()
	default:
		c.know(http.StatusOK)
	}
}

// And the optional ones: wrap gives a writer those that the inner one has, and
// each is used only where the inner one has it, too.

func (c *response) flush() {
	c.start()
	c.inner.ResponseWriter.(http.Flusher).Flush()
}

type flushError interface{ FlushError() error }

// flushError counts before the bytes go on, or where that may answer that there is no
// flush, and so nothing has gone on, after it.
func (c *response) flushError() error {
	if !c.started.Load() && flushes(c.inner.ResponseWriter) {
		c.start()
	}
	err := http.NewResponseController(c.inner.ResponseWriter).Flush()
	if !errors.Is(err, http.ErrNotSupported) {
		c.start()
	}
	return err
}

// flushes tells whether a ResponseController of w surely flushes: http.Flusher cannot
// say no, and the FlushError of net/http's own writers does not.
func flushes(w http.ResponseWriter) bool {
	for range maxWrapped {
		switch t := w.(type) {
		case ours:
			w = t.counts().inner.ResponseWriter
		case flushError:
			of := reflect.TypeOf(w)
			if of.Kind() == reflect.Pointer {
				of = of.Elem()
			}
			return of.PkgPath() == "net/http" || strings.HasPrefix(of.PkgPath(), "net/http/internal/")
		case http.Flusher:
			return true
		case wrapper:
			w = t.Unwrap()
		default:
			return false
		}
	}
	return false
}

func (c *response) hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(c.inner.ResponseWriter).Hijack()
	if err == nil {
		c.stream = true
		c.know(http.StatusSwitchingProtocols)
		c.start()
	}
	return conn, rw, err
}

func (c *response) readFrom(src io.Reader) (int64, error) {
	if !c.started.Load() {
		first, err := peek(src)
		if first == nil {
			return 0, err
		}
		src = first
		c.start()
	}
	n, err := c.inner.ResponseWriter.(io.ReaderFrom).ReadFrom(src)
	c.written += n
	return n, err
}

// peek reads the first bytes of src. It returns what is to be read instead of src, or
// nil where src has ended (then err is nil), or failed, without any.
//
// A plain file it puts back to where it was: the kernel can send it as long as it is
// seen to be one, alone or in an io.LimitedReader.
func peek(src io.Reader) (first io.Reader, err error) {
	p := make([]byte, 512) // as many as net/http reads first
	n := 0
	for n == 0 && err == nil {
		n, err = src.Read(p)
	}
	if n == 0 {
		if err == io.EOF {
			err = nil
		}
		return nil, err
	}
	file := src
	limited, ok := src.(*io.LimitedReader)
	if ok {
		file = limited.R
	}
	if f := plainFile(file); f != nil {
		if _, err := f.Seek(int64(-n), io.SeekCurrent); err == nil {
			if limited != nil {
				limited.N += int64(n)
			}
			return src, nil
		}
	}
	return &peeked{p[:n], err, src}, nil
}

// plainFile returns src if it is a file that can be read again: not what embeds one,
// whose Read may do more (decrypt, count), nor a device or what else has no size, whose Seek may do nothing.
func plainFile(src io.Reader) io.Seeker {
	f, ok := src.(interface {
		fs.File
		io.Seeker
	})
	if !ok {
		return nil
	}
	of := reflect.TypeOf(src) // *os.File, or what its WriteTo makes of it
	if of.Kind() == reflect.Pointer {
		of = of.Elem()
	}
	if of.PkgPath() != "os" {
		return nil
	}
	if info, err := f.Stat(); err != nil || info.Size() == 0 {
		return nil
	}
	return f
}

// peeked reads what was read before, and then on.
type peeked struct {
	first []byte
	err   error // of reading them
	rest  io.Reader
}

func (r *peeked) Read(p []byte) (n int, err error) {
	if len(r.first) > 0 {
		n = copy(p, r.first)
		r.first = r.first[n:]
		return n, nil
	}
	if r.err != nil {
		return 0, r.err
	}
	return r.rest.Read(p)
}

type notifier interface{ CloseNotify() <-chan bool } // http.CloseNotifier, deprecated

func (c *response) closeNotify() <-chan bool {
	c.client.asked = true
	return c.inner.ResponseWriter.(notifier).CloseNotify()
}

func (o *output) push(target string, opts *http.PushOptions) error {
	return o.inner.ResponseWriter.(http.Pusher).Push(target, opts)
}

func (c *response) writeString(s string) (int, error) {
	c.write(len(s))
	n, err := c.inner.ResponseWriter.(io.StringWriter).WriteString(s)
	c.written += int64(n)
	return n, err
}

// controlled is an inner writer for http.ResponseController, which finds by it what
// the inner one has no method for. Nothing is flushed or hijacked without being
// counted.
type controlled struct{ *response }

func (c controlled) FlushError() error                            { return c.flushError() }
func (c controlled) Hijack() (net.Conn, *bufio.ReadWriter, error) { return c.hijack() }
func (c controlled) Unwrap() http.ResponseWriter                  { return c.inner.ResponseWriter }
