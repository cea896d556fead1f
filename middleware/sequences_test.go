package middleware

import (
	"bufio"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"
)

// Whatever a handler does with its ResponseWriter, the request counts as what was handed
// on: nothing is decided by WriteHeader alone, and everything that decides is counted
// before the bytes go on. What a client has read to its end is of the class that was
// counted.
//
// USAGEKIT_SEQUENCES is how many sequences there are of each protocol and order of
// handlers; the default is for a second or two.
func TestRandomSequencesOfCalls(t *testing.T) {
	sequences := 40
	if s := os.Getenv("USAGEKIT_SEQUENCES"); s != "" {
		var err error
		if sequences, err = strconv.Atoi(s); err != nil {
			t.Fatalf("USAGEKIT_SEQUENCES: %v", err)
		}
	}
	alone := func(h http.Handler) http.Handler { return h }
	timeout := func(h http.Handler) http.Handler { return http.TimeoutHandler(h, time.Hour, "too slow") }
	maxBytes := func(h http.Handler) http.Handler { return http.MaxBytesHandler(h, 1) }
	for name, order := range map[string]struct {
		outside, inside func(http.Handler) http.Handler
	}{
		"alone":                      {alone, alone},
		"inside of TimeoutHandler":   {timeout, alone},
		"outside of TimeoutHandler":  {alone, timeout},
		"inside of MaxBytesHandler":  {maxBytes, alone},
		"outside of MaxBytesHandler": {alone, maxBytes},
		"inside of gzip":             {compressed, alone},
		"outside of gzip":            {alone, compressed},
	} {
		for _, protocol := range protocols {
			t.Run(name+" "+protocol, func(t *testing.T) {
				t.Parallel()
				var plays sync.Map
				srv, _ := serve(t, protocol, io.Discard, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					p, _ := plays.Load(r.Header.Get("Play"))
					p.(*play).serve(w, r, order.outside, order.inside)
				}))
				client := srv.Client()
				client.Transport.(*http.Transport).DisableKeepAlives = protocol == "HTTP/1.1" // nobody asks twice
				for i := range sequences {
					p := newPlay(rand.Uint64())
					p.timeout = strings.HasSuffix(name, "TimeoutHandler")
					p.waits = name == "outside of TimeoutHandler"
					p.hints = name != "inside of TimeoutHandler" // which takes 103 for the status, and answers 200
					plays.Store(fmt.Sprint(i), p)
					class, whole := p.ask(t, client, srv.URL, fmt.Sprint(i))
					for _, e := range p.judge(class, whole) {
						t.Errorf("%s\nafter %s", e, strings.Join(p.done, ", "))
					}
				}
			})
		}
	}
}

// play is one sequence of calls: what is done, what was seen of it at the inner writer,
// and what was counted.
type play struct {
	random  *rand.Rand
	done    []string
	leave   context.CancelFunc
	refuses bool           // FlushError finds nothing to flush
	over    sync.WaitGroup // the middleware, and the handler
	hints   bool           // 103 is no status
	timeout bool           // the server may be done before the handler is
	waits   bool           // for the server to say that the client left, before it answers
	rec     counts
	server  http.ResponseWriter
	ctx     context.Context // of the connection
	header  func() http.Header

	status   int // the first final one that reached the inner writer
	decided  int // what it was when something was handed on
	nobody   bool
	hijacked bool
	events   bool
	bytes    int64
	length   string
	panicked any
	errs     []string
}

func newPlay(seed uint64) *play {
	p := &play{random: rand.New(rand.NewPCG(seed, seed))}
	p.over.Add(2)
	return p
}

func (p *play) ask(t *testing.T, client *http.Client, url, name string) (class int, whole bool) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	p.leave = cancel
	p.refuses = p.random.IntN(4) == 0
	r, err := http.NewRequestWithContext(ctx, "POST", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Play", name)
	resp, err := client.Do(r)
	if err == nil {
		_, err = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		class = resp.StatusCode / 100
	}
	p.over.Wait()
	return class, err == nil
}

// await waits for what a server says of a client that left.
func (p *play) await() {
	if p.ctx.Err() != nil {
		awaitLeft(p.server)
	}
}

func (p *play) serve(w http.ResponseWriter, r *http.Request, outside, inside func(http.Handler) http.Handler) {
	p.server, p.ctx = w, r.Context()
	handler := inside(http.HandlerFunc(p.handle))
	counting := New(&p.rec, Config{})(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p.waits { // it ends with the context, perhaps before the server has said so
			defer p.await()
			w = hesitant{w, p.await}
		}
		handler.ServeHTTP(w, r)
	}))
	outside(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer p.over.Done()
		defer func() {
			p.length = p.header().Get("Content-Length")
			if p.decided == 0 {
				p.events = p.header().Get("Content-Type") == "text/event-stream"
			}
			if p.panicked = recover(); p.panicked != nil {
				panic(p.panicked)
			}
		}()
		p.header = w.Header
		counting.ServeHTTP(p.spy(w), r)
	})).ServeHTTP(w, r)
}

var errReader = errors.New("the reader's")

// handle makes up to six calls of its ResponseWriter, as long as it has it.
func (p *play) handle(w http.ResponseWriter, r *http.Request) {
	defer p.over.Done()
	pick := func(of ...int) int { return of[p.random.IntN(len(of))] }
	do := func(format string, args ...any) { p.done = append(p.done, fmt.Sprintf(format, args...)) }
	gone := false
	for range p.random.IntN(7) {
		switch p.random.IntN(13) {
		case 0:
			w.Header().Set("Content-Type", []string{"text/plain", "text/event-stream"}[pick(0, 1)])
			do("Content-Type %s", w.Header().Get("Content-Type"))
		case 1:
			if slices.ContainsFunc(p.done, func(d string) bool { return !strings.HasPrefix(d, "Content-") }) {
				continue // too late, perhaps
			}
			n := pick(0, 1, 700, 5000)
			w.Header().Set("Content-Length", fmt.Sprint(n))
			do("Content-Length %d", n)
		case 2:
			code := pick(200, 200, 204, 304, 404, 500)
			do("WriteHeader %d", code)
			w.WriteHeader(code)
		case 3:
			if !p.hints {
				continue
			}
			do("WriteHeader 103")
			w.WriteHeader(103)
		case 4, 5:
			n := pick(0, 1, 700, 5000)
			do("Write %d", n)
			w.Write(make([]byte, n))
		case 6:
			n := pick(0, 1, 5000)
			do("WriteString %d", n)
			io.WriteString(w, strings.Repeat("s", n))
		case 7, 8:
			n := pick(0, 0, 1, 700, 5000)
			src := io.Reader(io.LimitReader(rand.NewChaCha8([32]byte{}), int64(n)))
			if p.random.IntN(2) == 0 {
				src = io.MultiReader(src, iotest.ErrReader(errReader))
			}
			do("ReadFrom %d of %T", n, src)
			io.Copy(w, src)
		case 9:
			if f, ok := w.(http.Flusher); ok && p.random.IntN(2) == 0 {
				do("Flush")
				f.Flush()
			} else {
				do("FlushError: %v", http.NewResponseController(w).Flush())
			}
		case 10:
			if p.random.IntN(3) > 0 || gone {
				continue
			}
			conn, rw, err := http.NewResponseController(w).Hijack()
			do("Hijack: %v", err)
			if err == nil {
				io.WriteString(rw, "HTTP/1.1 299 Mine\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
				rw.Flush()
				conn.Close()
				return
			}
		case 11:
			if p.random.IntN(2) == 0 {
				do("panic")
				panic("a play's")
			}
			do("abort")
			panic(http.ErrAbortHandler)
		case 12:
			gone = true
			do("client leaves")
			p.leave()
			<-r.Context().Done()
			if !p.timeout {
				awaitLeft(p.server)
			}
		}
	}
	do("return")
}

// decide is called when something is about to be handed on: it is counted by now, unless
// the writer may refuse it yet.
func (p *play) decide(how string, counted int64) {
	if p.decided != 0 {
		return
	}
	p.nobody = p.ctx.Err() != nil
	if p.decided = p.status; p.decided == 0 {
		p.decided = 200
	}
	p.events = p.header().Get("Content-Type") == "text/event-stream"
	p.counted(how, counted)
}

func (p *play) counted(how string, want int64) {
	p.rec.mu.Lock()
	defer p.rec.mu.Unlock()
	if got := p.rec.n["api.(unmatched).requests"]; got != want {
		p.errs = append(p.errs, fmt.Sprintf("at %s %d requests are counted, want %d", how, got, want))
	}
}

// judge says what is wrong with what was counted, and with what the client read.
func (p *play) judge(class int, whole bool) []string {
	left := p.ctx.Err() != nil && p.nobody || p.ctxLeft()
	status, latency := p.decided, !p.hijacked && !p.events
	switch {
	case status != 0 && p.nobody, status == 0 && left:
		status, latency = 499, false
	case status == 0 && p.panicked != nil:
		status = 500
	case status == 0 && p.status != 0:
		status = p.status
	case status == 0:
		status = 200
	}
	want := map[string]int64{"api.(unmatched).requests": 1, fmt.Sprintf("api.(unmatched).status_%dxx", status/100): 1}
	if latency {
		want["api.(unmatched).latency"] = 1
	}
	n, err := strconv.ParseInt(p.length, 10, 64)
	had := p.decided != 0 && !p.nobody && (p.status == 204 || p.status == 304 || err == nil && p.bytes >= n)
	if left && !had || p.panicked == http.ErrAbortHandler {
		want["error.aborted"] = 1
	}
	if p.panicked != nil && p.panicked != http.ErrAbortHandler {
		want["error.panic"] = 1
	}
	p.rec.mu.Lock()
	defer p.rec.mu.Unlock()
	if !maps.Equal(p.rec.n, want) {
		p.errs = append(p.errs, fmt.Sprintf("counted %v\nwant    %v", p.rec.n, want))
	}
	if whole && !left && !p.hijacked && p.rec.n[fmt.Sprintf("api.(unmatched).status_%dxx", class)] != 1 {
		p.errs = append(p.errs, fmt.Sprintf("the client read %dxx, counted %v", class, p.rec.n))
	}
	return p.errs
}

func (p *play) ctxLeft() bool {
	for _, d := range p.done {
		if d == "client leaves" {
			return true
		}
	}
	return false
}

// spy returns a writer around the inner one of the middleware with its optional
// interfaces, which sees what is handed on.
func (p *play) spy(w http.ResponseWriter) http.ResponseWriter {
	if _, ok := w.(http.Hijacker); ok {
		return spyHTTP1{spyHTTP2{spyFlusher{spy{w, p}}}}
	}
	if _, ok := w.(notifier); ok {
		return spyHTTP2{spyFlusher{spy{w, p}}}
	}
	if _, ok := w.(http.Flusher); ok {
		return spyFlusher{spy{w, p}}
	}
	return spy{w, p}
}

type (
	spy struct {
		http.ResponseWriter
		p *play
	}
	spyFlusher struct{ spy }
	spyHTTP2   struct{ spyFlusher }
	spyHTTP1   struct{ spyHTTP2 }
)

func (s spy) WriteHeader(code int) {
	if s.p.decided == 0 {
		s.p.counted("WriteHeader", 0)
	}
	s.ResponseWriter.WriteHeader(code)
	s.know(code)
}

func (s spy) know(code int) {
	if s.p.status == 0 && code >= 200 {
		s.p.status = code
	}
}

func (s spy) bytes(how string, n int) {
	if n > 0 {
		s.p.decide(how, 1)
	} else if s.p.decided == 0 {
		s.p.counted("empty "+how, 0)
	}
	s.know(200)
}

func (s spy) sent(n int64) { s.p.bytes += n }

func (s spy) Write(b []byte) (int, error) {
	s.bytes("Write", len(b))
	n, err := s.ResponseWriter.Write(b)
	s.sent(int64(n))
	return n, err
}

func (s spyHTTP2) WriteString(b string) (int, error) {
	s.bytes("WriteString", len(b))
	n, err := io.WriteString(s.ResponseWriter, b)
	s.sent(int64(n))
	return n, err
}

func (s spyHTTP1) ReadFrom(src io.Reader) (int64, error) {
	n, err := s.ResponseWriter.(io.ReaderFrom).ReadFrom(readerFunc(func(b []byte) (int, error) {
		n, err := src.Read(b)
		if n > 0 {
			s.bytes("ReadFrom", n)
		}
		return n, err
	}))
	s.sent(n)
	return n, err
}

func (s spyFlusher) Flush() {
	s.p.decide("Flush", 1)
	s.know(200)
	s.ResponseWriter.(http.Flusher).Flush()
}

func (s spyFlusher) FlushError() error {
	if s.p.refuses {
		return http.ErrNotSupported
	}
	s.p.decide("FlushError", 0) // it might have refused
	s.know(200)
	return http.NewResponseController(s.ResponseWriter).Flush()
}

func (s spyHTTP1) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := s.ResponseWriter.(http.Hijacker).Hijack()
	if err == nil {
		s.p.hijacked = true
		if s.p.status == 0 {
			s.p.status = 101
		}
		s.p.decide("Hijack", 0)
	}
	return conn, rw, err
}

func (s spyHTTP2) CloseNotify() <-chan bool { return s.ResponseWriter.(notifier).CloseNotify() }

// compressed is a small middleware as there are many, which compresses all it is given.
func compressed(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		z := &gzipped{ResponseWriter: w}
		h.ServeHTTP(z, r)
		if z.gz != nil {
			z.gz.Close()
		}
	})
}

type gzipped struct {
	http.ResponseWriter
	gz    *gzip.Writer
	final bool
}

func (z *gzipped) Unwrap() http.ResponseWriter { return z.ResponseWriter }

func (z *gzipped) WriteHeader(code int) {
	if code >= 200 && !z.final {
		z.final = true
		if code != http.StatusNoContent && code != http.StatusNotModified {
			z.Header().Del("Content-Length")
			z.Header().Set("Content-Encoding", "gzip")
			z.gz = gzip.NewWriter(z.ResponseWriter)
		}
	}
	z.ResponseWriter.WriteHeader(code)
}

func (z *gzipped) Write(p []byte) (int, error) {
	if !z.final {
		z.WriteHeader(http.StatusOK)
	}
	if z.gz == nil {
		return 0, http.ErrBodyNotAllowed
	}
	return z.gz.Write(p)
}

func (z *gzipped) Flush() {
	if !z.final {
		z.WriteHeader(http.StatusOK)
	}
	if z.gz != nil {
		z.gz.Flush()
	}
	z.ResponseWriter.(http.Flusher).Flush()
}
