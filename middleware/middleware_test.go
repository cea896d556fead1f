package middleware

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/http/httputil"
	"net/textproto"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/usagekit/usagekit/internal/naming"
)

// counts is a Recorder to look into. A latency counts without its bucket: how
// long a test takes is not for the test to say.
type counts struct {
	mu sync.Mutex
	n  map[string]int64
}

func (c *counts) Add(name string, n int64) {
	if i := strings.LastIndex(name, ".latency_"); i >= 0 {
		name = name[:i] + ".latency"
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == nil {
		c.n = map[string]int64{}
	}
	c.n[name] += n
}

func (c *counts) check(t *testing.T, want map[string]int64) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if !maps.Equal(c.n, want) {
		t.Errorf("counted %v\nwant    %v", c.n, want)
	}
}

// counted is what one request leaves behind: measures of its route, and names of
// other counters, which have dots.
func counted(route, names string) map[string]int64 {
	want := map[string]int64{"api." + route + ".requests": 1}
	for _, name := range strings.Fields(names) {
		if !strings.Contains(name, ".") {
			name = "api." + route + "." + name
		}
		want[name] = 1
	}
	return want
}

// Two Recorders that cannot be compared.
type (
	recorderFunc func(name string, n int64)
	tally        map[string]int64
)

func (f recorderFunc) Add(name string, n int64) { f(name, n) }
func (t tally) Add(name string, n int64)        { t[name] += n }

var protocols = []string{"HTTP/1.1", "HTTP/2.0"}

// serve starts a server of one protocol, whose log goes to w, and waits with the
// WaitGroup for its handlers.
func serve(t *testing.T, protocol string, w io.Writer, h http.Handler) (*httptest.Server, *running) {
	var serving running
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		serving.handlers.Add(1)
		serving.seen.Add(1)
		defer serving.handlers.Done()
		h.ServeHTTP(w, r)
	}))
	srv.Config.ErrorLog = log.New(w, "", 0)
	if protocol == "HTTP/2.0" {
		srv.EnableHTTP2 = true
		srv.StartTLS()
	} else {
		srv.Start()
	}
	t.Cleanup(srv.Close)
	srv.Client().CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	srv.Client().Transport.(*http.Transport).ExpectContinueTimeout = time.Hour
	return srv, &serving
}

// running are handlers that a client has heard from, of which the race detector knows
// nothing: what it hears comes through a socket.
type running struct {
	handlers sync.WaitGroup
	seen     atomic.Int64
}

func (r *running) Wait() {
	_ = r.seen.Load()
	r.handlers.Wait()
}

// answer is all that a client sees of a response, but for its date.
type answer struct {
	Protocol, Status string
	Informational    []int
	Header, Trailer  http.Header
	Encoding         []string
	Length           int64
	Close            bool
	Body, Err        string
}

// exchange has h serve one request, and returns when h has, too.
func exchange(t *testing.T, protocol string, h http.Handler, request string, edit func(*http.Request)) (a answer) {
	t.Helper()
	srv, serving := serve(t, protocol, io.Discard, h)
	defer srv.Close()
	defer serving.Wait()
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
		Got1xxResponse: func(status int, _ textproto.MIMEHeader) error {
			a.Informational = append(a.Informational, status)
			return nil
		},
	})
	method, path, _ := strings.Cut(request, " ")
	r, err := http.NewRequestWithContext(ctx, method, srv.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if edit != nil {
		edit(r)
	}
	resp, err := srv.Client().Do(r)
	if err != nil {
		a.Err = errors.Unwrap(err).Error() // without the port
		return a
	}
	defer resp.Body.Close()
	if resp.Proto != protocol {
		t.Fatalf("%s instead of %s", resp.Proto, protocol)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		a.Err = err.Error()
	}
	resp.Header.Del("Date")
	a.Protocol, a.Status, a.Header, a.Trailer = resp.Proto, resp.Status, resp.Header, resp.Trailer
	a.Encoding, a.Length, a.Close, a.Body = resp.TransferEncoding, resp.ContentLength, resp.Close, string(body)
	return a
}

// A counter makes the middleware under test, or one that does nothing.
type counter func(Config) func(http.Handler) http.Handler

func with(rec Recorder) counter {
	return func(cfg Config) func(http.Handler) http.Handler { return New(rec, cfg) }
}

func without(Config) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler { return next }
}

// skipping is with, where every path is skipped.
func skipping(rec Recorder) counter {
	return func(cfg Config) func(http.Handler) http.Handler {
		cfg.Skip = []string{"/"}
		return New(rec, cfg)
	}
}

// test is served over real connections, with the middleware, without, and where that
// skips all: the client must see the same.
type test struct {
	name    string
	request string // "": GET /x
	edit    func(*http.Request)
	build   func(count counter) http.Handler
	want    map[string]int64
	only    string // protocol
}

func (tt test) run(t *testing.T) {
	for _, protocol := range protocols {
		if tt.only != "" && tt.only != protocol {
			continue
		}
		t.Run(tt.name+" "+protocol, func(t *testing.T) {
			rec, request := new(counts), cmp.Or(tt.request, "GET /x")
			want := exchange(t, protocol, tt.build(without), request, tt.edit)
			got := exchange(t, protocol, tt.build(with(rec)), request, tt.edit)
			if !reflect.DeepEqual(got, want) {
				t.Errorf("answers     %+v\nwithout it: %+v", got, want)
			}
			rec.check(t, tt.want)

			none := new(counts)
			got = exchange(t, protocol, tt.build(skipping(none)), request, tt.edit)
			if !reflect.DeepEqual(got, want) {
				t.Errorf("answers where it is skipped %+v\nwithout it:                %+v", got, want)
			}
			none.check(t, nil)
		})
	}
}

// around is the plain form, count(next).
func around(cfg Config, next http.Handler) func(counter) http.Handler {
	return func(count counter) http.Handler { return count(cfg)(next) }
}

func mux(pattern string, h http.Handler) http.Handler {
	m := http.NewServeMux()
	m.Handle(pattern, h)
	return m
}

func on(pattern string, h http.HandlerFunc) http.Handler { return mux(pattern, h) }

func hello(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello") }

func explode(http.ResponseWriter, *http.Request) { panic("boom") }

func flush(w http.ResponseWriter) { w.(http.Flusher).Flush() }

func TestEveryKindOfResponse(t *testing.T) {
	for _, tt := range []struct {
		name, want string
		h          http.HandlerFunc
	}{
		{"nothing written", "status_2xx latency", func(http.ResponseWriter, *http.Request) {}},
		{"204", "status_2xx latency", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(204) }},
		{"204 and flush", "status_2xx latency", func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(204)
			flush(w)
		}},
		{"early hints", "status_4xx latency", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Link", "</style.css>; rel=preload")
			w.WriteHeader(103)
			w.WriteHeader(103)
			http.NotFound(w, r)
		}},
		{"superfluous WriteHeader", "status_4xx latency", func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(404)
			w.WriteHeader(500)
			hello(w, r)
		}},
		{"status 42", "status_5xx latency error.panic", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(42) }},
		{"status 1000", "status_5xx latency error.panic", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(1000) }},
		{"status 999", "status_5xx latency", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(999) }},
		{"trailers", "status_2xx latency", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Trailer", "Sum")
			hello(w, r)
			w.Header().Set("Sum", "5")
			w.Header().Set(http.TrailerPrefix+"Late", "yes")
		}},

		{"panic", "status_5xx latency error.panic", explode},
		{"panic after the first byte", "status_2xx latency error.panic", func(w http.ResponseWriter, r *http.Request) {
			hello(w, r)
			flush(w)
			explode(w, r)
		}},
		{"panic answered on its way out", "status_5xx latency error.panic", func(w http.ResponseWriter, r *http.Request) {
			defer flush(w)
			defer w.WriteHeader(502)
			explode(w, r)
		}},
		{"panic recovered inside", "status_5xx latency", func(w http.ResponseWriter, r *http.Request) {
			defer func() { http.Error(w, fmt.Sprint(recover()), 500) }()
			explode(w, r)
		}},
		{"panic in an event stream", "status_5xx error.panic", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "Text/Event-Stream; charset=utf-8")
			explode(w, r)
		}},
		{"panic after WriteHeader", "status_5xx latency error.panic", func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(200)
			explode(w, r)
		}},
		{"panic after an empty Write", "status_5xx latency error.panic", func(w http.ResponseWriter, r *http.Request) {
			w.Write(nil)
			io.WriteString(w, "")
			explode(w, r)
		}},
		{"panic after a few bytes", "status_2xx latency error.panic", func(w http.ResponseWriter, r *http.Request) {
			hello(w, r) // into net/http's buffer: nobody gets it
			explode(w, r)
		}},
		{"Goexit after WriteHeader", "status_5xx latency", func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(200)
			runtime.Goexit()
		}},
		{"empty Write, then WriteHeader", "status_2xx latency", func(w http.ResponseWriter, r *http.Request) {
			w.Write(nil)
			w.WriteHeader(500)
			hello(w, r)
		}},
		{"recovered from a status that is none", "status_4xx latency", func(w http.ResponseWriter, r *http.Request) {
			func() {
				defer func() { _ = recover() }()
				w.WriteHeader(42)
			}()
			http.NotFound(w, r)
		}},
		{"ErrAbortHandler", "status_5xx latency error.aborted", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }},
		{"ErrAbortHandler after WriteHeader", "status_5xx latency error.aborted", func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(200)
			panic(http.ErrAbortHandler)
		}},
		{"ErrAbortHandler after the first byte", "status_2xx latency error.aborted", func(w http.ResponseWriter, r *http.Request) {
			hello(w, r)
			flush(w)
			panic(http.ErrAbortHandler)
		}},
		{"upstream that breaks", "status_2xx latency error.aborted", brokenUpstream(true)},
		{"upstream that is down", "status_5xx latency", brokenUpstream(false)},
		{"Goexit", "status_5xx latency", func(http.ResponseWriter, *http.Request) { runtime.Goexit() }},

		{"TimeoutHandler", "status_2xx latency", http.TimeoutHandler(http.HandlerFunc(hello), time.Hour, "").ServeHTTP},
		{"TimeoutHandler, panic", "status_5xx latency error.panic", http.TimeoutHandler(http.HandlerFunc(explode), time.Hour, "").ServeHTTP},
		{"TimeoutHandler, too late", "status_5xx latency", tooLate(http.HandlerFunc(hello)).ServeHTTP},

		{"copy", "status_2xx latency", func(w http.ResponseWriter, r *http.Request) {
			io.Copy(w, iotest.HalfReader(strings.NewReader(strings.Repeat("copied ", 1000))))
		}},
		{"copy that fails at once", "status_5xx latency", func(w http.ResponseWriter, r *http.Request) {
			if n, err := io.Copy(w, iotest.ErrReader(io.ErrUnexpectedEOF)); n == 0 && err != nil {
				http.Error(w, "upstream", http.StatusBadGateway)
			}
		}},
		{"copy that fails at once, of a known length", "status_5xx latency", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "1000")
			if _, err := io.CopyN(w, iotest.ErrReader(io.ErrUnexpectedEOF), 1000); err != nil {
				w.Header().Del("Content-Length")
				http.Error(w, "upstream", http.StatusBadGateway)
			}
		}},
		{"copy that fails later", "status_2xx latency", func(w http.ResponseWriter, r *http.Request) {
			_, err := io.Copy(w, io.MultiReader(strings.NewReader("a"), iotest.ErrReader(io.ErrUnexpectedEOF)))
			http.Error(w, err.Error(), http.StatusBadGateway) // too late
		}},
		{"copy with the last bytes and an error at once", "status_2xx latency", func(w http.ResponseWriter, r *http.Request) {
			io.Copy(w, iotest.DataErrReader(strings.NewReader(strings.Repeat("copied ", 100))))
		}},
		{"copy of a file that cannot be read", "status_5xx latency", func(w http.ResponseWriter, r *http.Request) {
			directory, err := os.Open(".")
			if err != nil {
				panic(err)
			}
			defer directory.Close()
			w.Header().Set("Content-Length", "3")
			if _, err := io.Copy(w, directory); err != nil {
				w.Header().Del("Content-Length")
				http.Error(w, "no file", http.StatusInternalServerError)
			}
		}},
		{"copy that panics", "status_5xx latency error.panic", func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(200)
			io.Copy(w, readerFunc(func([]byte) (int, error) { panic("boom") }))
		}},
		{"copy of nothing", "status_4xx latency", func(w http.ResponseWriter, r *http.Request) {
			if n, _ := io.Copy(w, io.LimitReader(r.Body, 9)); n == 0 {
				http.NotFound(w, r)
			}
		}},
	} {
		test{name: tt.name, build: around(Config{}, on("/x", tt.h)), want: counted("GET /x", tt.want)}.run(t)
	}

	header := func(name, value string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set(name, value) }
	}
	content := on("/x", func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "a.txt", time.Unix(1e9, 0), strings.NewReader(strings.Repeat("content\n", 1e4)))
	})
	hijacked := on("/x", func(w http.ResponseWriter, r *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			http.Error(w, "no", http.StatusNotImplemented)
			return
		}
		defer conn.Close()
		io.WriteString(conn, "HTTP/1.1 299 Mine\r\nContent-Length: 4\r\nConnection: close\r\n\r\nmine")
		w.WriteHeader(500) // too late
	})
	switching := on("/x", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "close")
		w.WriteHeader(101)
	})
	for _, tt := range []test{
		{name: "switching protocols", build: around(Config{}, switching), only: "HTTP/1.1", want: counted("GET /x", "status_1xx latency")},
		{name: "hijack after WriteHeader", build: around(Config{}, on("/x", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "4")
			w.WriteHeader(200)
			conn, rw, err := http.NewResponseController(w).Hijack()
			if err != nil {
				panic(err)
			}
			defer conn.Close()
			rw.WriteString("mine")
			rw.Flush()
		})), only: "HTTP/1.1", want: counted("GET /x", "status_2xx")},
		{name: "switching protocols, which HTTP/2 cannot", build: around(Config{}, on("/x", func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(101)
			http.NotFound(w, r)
		})), only: "HTTP/2.0", want: counted("GET /x", "status_4xx latency")},
		{name: "flush, impossible", build: func(count counter) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				count(Config{})(on("/x", func(w http.ResponseWriter, r *http.Request) {
					if err := http.NewResponseController(w).Flush(); err != nil {
						http.Error(w, "no", http.StatusNotImplemented)
					}
				})).ServeHTTP(unflushable{w}, r)
			})
		}, want: counted("GET /x", "status_5xx latency")},
		{name: "hijack", build: around(Config{}, hijacked), only: "HTTP/1.1", want: counted("GET /x", "status_1xx")},
		{name: "hijack, impossible", build: around(Config{}, hijacked), only: "HTTP/2.0", want: counted("GET /x", "status_5xx latency")},
		{name: "hijack, refused", build: func(count counter) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				count(Config{})(hijacked).ServeHTTP(refusing{w}, r)
			})
		}, want: counted("GET /x", "status_5xx latency")},
		{name: "TimeoutHandler outside", build: func(count counter) http.Handler {
			return http.TimeoutHandler(count(Config{})(on("/x", hello)), time.Hour, "")
		}, want: counted("GET /x", "status_2xx latency")},
		{name: "TimeoutHandler outside, too late", build: func(count counter) http.Handler {
			return tooLate(count(Config{})(on("/x", hello)))
		}, want: counted("GET /x", "status_2xx latency")}, // what the handler said, though nobody heard
		{name: "MaxBytesHandler outside", request: "POST /x", edit: post, build: func(count counter) http.Handler {
			return http.MaxBytesHandler(count(Config{})(on("/x", echo)), 4)
		}, want: counted("POST /x", "status_4xx latency")},
		{name: "continued", request: "POST /x", edit: expect, build: around(Config{}, on("/x", echo)),
			want: counted("POST /x", "status_2xx latency")},
		{name: "not continued", request: "POST /x", edit: expect, build: around(Config{}, on("/x", http.NotFound)),
			want: counted("POST /x", "status_4xx latency")},
		{name: "content", build: around(Config{}, content), want: counted("GET /x", "status_2xx latency")},
		{name: "head", request: "HEAD /x", build: around(Config{}, content), want: counted("HEAD /x", "status_2xx latency")},
		{name: "range", edit: header("Range", "bytes=70000-"), build: around(Config{}, content),
			want: counted("GET /x", "status_2xx latency")},
		{name: "no such range", edit: header("Range", "bytes=99999-"), build: around(Config{}, content),
			want: counted("GET /x", "status_4xx latency")},
		{name: "not modified", edit: header("If-Modified-Since", "Wed, 18 May 2033 03:33:20 GMT"), build: around(Config{}, content),
			want: counted("GET /x", "status_3xx latency")},
	} {
		tt.run(t)
	}
}

// brokenUpstream is a proxy of a server that closes the connection, in the middle of its
// answer or before it.
func brokenUpstream(answers bool) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		proxy := httputil.ReverseProxy{
			Rewrite:  func(*httputil.ProxyRequest) {},
			ErrorLog: log.New(io.Discard, "", 0),
			Transport: roundTripper(func(*http.Request) (*http.Response, error) {
				if !answers {
					return nil, io.ErrUnexpectedEOF
				}
				body := io.MultiReader(strings.NewReader("a"), iotest.ErrReader(io.ErrUnexpectedEOF))
				return &http.Response{StatusCode: 200, Header: http.Header{"Content-Type": {"text/plain"}}, ContentLength: -1, Body: io.NopCloser(body)}, nil
			}),
		}
		proxy.ServeHTTP(w, r)
	}
}

type (
	roundTripper func(*http.Request) (*http.Response, error)
	readerFunc   func([]byte) (int, error)
)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
func (f readerFunc) Read(p []byte) (int, error)                          { return f(p) }

// unflushable has FlushError, which finds nothing to flush.
type unflushable struct{ http.ResponseWriter }

func (unflushable) Flush()            {}
func (unflushable) FlushError() error { return http.ErrNotSupported }

type refusing struct{ http.ResponseWriter }

func (refusing) Hijack() (net.Conn, *bufio.ReadWriter, error) { return nil, nil, http.ErrNotSupported }

func post(r *http.Request) {
	r.Body, r.ContentLength = io.NopCloser(strings.NewReader("long text")), 9
}

func expect(r *http.Request) {
	post(r)
	r.Header.Set("Expect", "100-continue")
}

func echo(w http.ResponseWriter, r *http.Request) {
	b, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusRequestEntityTooLarge)
		return
	}
	w.Write(b)
}

// tooLate has an http.TimeoutHandler give up on h before h begins.
func tooLate(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answered, returned := make(chan struct{}), make(chan struct{})
		http.TimeoutHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			defer close(returned)
			<-answered
			h.ServeHTTP(w, r)
		}), time.Nanosecond, "too late").ServeHTTP(w, r)
		close(answered)
		<-returned
	})
}

func TestRoutes(t *testing.T) {
	for _, tt := range []struct{ pattern, request, route, status string }{
		{"GET /novels/{id}", "GET /novels/42?a=b", "GET /novels/{id}", "2xx"},
		{"/x", "DELETE /x", "DELETE /x", "2xx"},
		{"GET /x", "HEAD /x", "GET /x", "2xx"},
		{"GET\t /x", "HEAD /x", "GET /x", "2xx"},
		{"GET /a b", "GET /a%20b", "GET /a b", "2xx"},
		{"/x", "FOO~BAR /x", "OTHER /x", "2xx"},
		{"/x", "FOOBAR /x", "OTHER /x", "2xx"},
		{"PROPFIND /x", "PROPFIND /x", "PROPFIND /x", "2xx"},
		{"VERSION-CONTROL /x", "VERSION-CONTROL /x", "VERSION-CONTROL /x", "2xx"},
		{"BASELINE-CONTROL\t/{x}", "BASELINE-CONTROL /x", "BASELINE-CONTROL /{x}", "2xx"},
		{"M-SEARCH 127.0.0.1/x", "M-SEARCH /x", "M-SEARCH /x", "2xx"},
		{"purge /x", "purge /x", "purge /x", "2xx"},
		{"X.Y_1~!#$%&'*+^`|a /x", "X.Y_1~!#$%&'*+^`|a /x", "X.Y_1~!#$%&'*+^`|a /x", "2xx"},
		{"127.0.0.1/x", "GET /x", "GET /x", "2xx"},
		{"GET 127.0.0.1/x", "GET /x", "GET /x", "2xx"},
		{"/", "GET /x", "GET /", "2xx"},
		{"/x", "GET /y", "(unmatched)", "4xx"},
		{"GET /x", "POST /x", "(unmatched)", "4xx"},
		{"GET /x/", "GET /x", "GET /x/", "3xx"},
		{"GET /x/{id}", "GET //x/../x/42", "GET /x/{id}", "3xx"},
		{"/x/", "CONNECT /x/", "CONNECT /x/", "2xx"},
		{"/x/", "CONNECT /x/42", "CONNECT /x/", "2xx"},
		{"/x/{id}/", "CONNECT /x/42", "(unmatched)", "3xx"}, // ServeMux leaves "/x/42/" in Pattern
	} {
		only := ""
		if strings.HasPrefix(tt.request, "CONNECT") {
			only = "HTTP/1.1" // in HTTP/2 it has no path
		}
		test{name: tt.request + " on " + tt.pattern, request: tt.request, only: only,
			build: around(Config{}, on(tt.pattern, hello)), want: counted(tt.route, "status_"+tt.status+" latency")}.run(t)
	}

	const ok = "status_2xx latency"
	novels, all := on("GET /novels/{id}", hello), on("/", hello)
	router := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { // knows no Pattern
		if strings.HasPrefix(r.URL.Path, "/novels/") {
			SetRoute(w, "/novels/:id")
		}
		hello(w, r)
		SetRoute(w, "/late")
	})
	behindRoot := func(next http.Handler) func(counter) http.Handler {
		return func(count counter) http.Handler { return mux("/", count(Config{})(next)) }
	}
	for _, tt := range []test{
		{name: "mux in a mux", request: "GET /novels/42", build: around(Config{}, mux("/novels/", novels)), want: counted("GET /novels/{id}", ok)},
		{name: "a route without a slash is whole", request: "POST /x",
			build: around(Config{Route: func(*http.Request) string { return "pkg.Service/Method" }}, all), want: counted("POST pkg.Service/Method", ok)},
		{name: "mux in a mux, 404", request: "GET /novels/", build: around(Config{}, mux("/novels/", novels)),
			want: counted("(unmatched)", "status_4xx latency")},
		{name: "StripPrefix hides the inner mux", request: "GET /api/novels/42",
			build: around(Config{}, mux("/api/", http.StripPrefix("/api", novels))), want: counted("GET /api/", ok)},
		{name: "StripPrefix, counted inside, too", request: "GET /api/novels/42", build: func(count counter) http.Handler {
			return count(Config{})(mux("/api/", http.StripPrefix("/api", count(Config{})(novels))))
		}, want: counted("GET /novels/{id}", ok)},
		{name: "router behind a root", build: behindRoot(router), want: counted("(unmatched)", ok)},
		{name: "router behind a root, counted twice", build: func(count counter) http.Handler {
			return count(Config{})(behindRoot(router)(count))
		}, want: counted("(unmatched)", ok)},
		{name: "router behind a root that tells", request: "GET /novels/42", build: behindRoot(router), want: counted("GET /novels/:id", ok)},
		{name: "mux behind a root", request: "GET /novels/42", build: behindRoot(novels), want: counted("GET /novels/{id}", ok)},

		{name: "Config.Route", build: around(Config{Route: is("/{x}")}, all), want: counted("GET /{x}", ok)},
		{name: "Config.Route with a method", build: around(Config{Route: is("ANY /{x}")}, all), want: counted("ANY /{x}", ok)},
		{name: "Config.Route does not know", build: around(Config{Route: is("")}, all), want: counted("GET /", ok)},
		{name: "Config.Route panics", build: around(Config{Route: panics}, all), want: counted("(error)", ok)},
		{name: "SetRoute wins", request: "GET /novels/42", build: around(Config{Route: panics}, router), want: counted("GET /novels/:id", ok)},
	} {
		tt.run(t)
	}
}

func is(s string) func(*http.Request) string { return func(*http.Request) string { return s } }

func panics(*http.Request) string { panic("callback") }

type userKey struct{}

func userID(r *http.Request) string {
	id, _ := r.Context().Value(userKey{}).(string)
	return id
}

// auth knows the user of a request, and says so in a copy of it.
func auth(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := r.Header.Get("Authorization")
		if id == "" {
			http.Error(w, "who are you?", http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), userKey{}, id)))
	})
}

func login(r *http.Request) { r.Header.Set("Authorization", "42.7") }

func setUser(id string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		SetUser(w, "nobody yet")
		SetUser(w, id)
		hello(w, r)
		SetUser(w, "too late")
	}
}

func TestUsersAndAreas(t *testing.T) {
	for _, tt := range []struct {
		name string
		cfg  Config
		h    http.HandlerFunc
		want string
	}{
		{"nobody", Config{User: is("")}, hello, ""},
		{"user", Config{User: is("42.7")}, hello, "user.42.7.requests"},
		{"user with a parenthesis", Config{User: is("(error)")}, hello, "user.((error).requests"},
		{"User panics", Config{User: panics}, hello, "user.(error).requests"},
		{"SetUser", Config{}, setUser("7"), "user.7.requests"},
		{"SetUser wins", Config{User: panics}, setUser("7"), "user.7.requests"},
		{"SetUser with a parenthesis", Config{}, setUser("(7"), "user.((7.requests"},
		{"no area", Config{Area: is("")}, hello, ""},
		{"area", Config{Area: is("novels")}, hello, "api.requests.novels"},
		{"area with dots", Config{Area: is("a.b.")}, hello, "api.requests.a_b_"},
		{"area with a parenthesis", Config{Area: is("(other)")}, hello, "api.requests.((other)"},
		{"area requests", Config{Area: is("requests")}, hello, "api.requests.requests_"},
		{"area total", Config{Area: is("total")}, hello, "api.requests.total_"},
		{"area today", Config{Area: is("today")}, hello, "api.requests.today_"},
		{"area status_2xx", Config{Area: is("status_2xx")}, hello, "api.requests.status_2xx_"},
		{"Area panics", Config{Area: panics}, hello, "api.requests.(error)"},
	} {
		test{name: tt.name, build: around(tt.cfg, on("/x", tt.h)), want: counted("GET /x", "status_2xx latency "+tt.want)}.run(t)
	}
}

// names is a Recorder of names as they are.
type names map[string]int64

func (n names) Add(name string, i int64) { n[name] += i }

// No area takes the name of a sum over all routes, which the store keeps of whatever
// is counted of one.
func TestAreasOfSums(t *testing.T) {
	for i := range naming.Measures {
		m := naming.Measure(i)
		if !naming.Summed(m) || i > 0 && !naming.Derived("api.requests."+m) {
			t.Errorf("%s is not summed over all routes", m)
		}
		for area, want := range map[string]string{m: m + "_", strings.Replace(m, "_", ".", 1): m + "_", m + "_": m + "_", m + "s": m + "s", "x" + m: "x" + m} {
			rec := names{}
			New(rec, Config{Area: is(area), Route: is("/")})(http.HandlerFunc(hello)).ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil))
			if rec["api.requests."+want] != 1 {
				t.Errorf("area %s: %v", area, rec)
			}
		}
	}
}

type unwrapper struct{ http.ResponseWriter }

func (u unwrapper) Unwrap() http.ResponseWriter { return u.ResponseWriter }

func TestWrappedTwiceCountsOnce(t *testing.T) {
	const ok = "status_2xx latency "
	twice := func(outer, inner Config) func(counter) http.Handler {
		return func(count counter) http.Handler { return count(outer)(auth(count(inner)(on("/x", hello)))) }
	}
	for _, tt := range []test{
		{name: "around auth alone", edit: login, build: func(count counter) http.Handler {
			return count(Config{User: userID})(auth(on("/x", hello)))
		}, want: counted("(unmatched)", ok)}, // auth copied the request
		{name: "around auth and inside", edit: login, build: twice(Config{User: userID}, Config{}),
			want: counted("GET /x", ok+"user.42.7.requests")},
		{name: "around auth and inside, 401", build: twice(Config{User: userID, Area: is("a")}, Config{Area: is("b")}),
			want: counted("(unmatched)", "status_4xx latency")},
		{name: "the inner fills gaps", edit: login, build: twice(Config{}, Config{User: userID, Route: is("/{x}"), Area: is("b")}),
			want: counted("GET /{x}", ok+"user.42.7.requests api.requests.b")},
		{name: "the outer is asked first", edit: login, build: twice(
			Config{User: is("1"), Route: is("/1"), Area: is("a")}, Config{User: is("2"), Route: is("/2"), Area: is("b")}),
			want: counted("GET /1", ok+"user.1.requests api.requests.a")},
		{name: "through Unwrap", build: func(count counter) http.Handler {
			inside := count(Config{})(on("/x", setUser("7")))
			return count(Config{})(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				inside.ServeHTTP(unwrapper{w}, r)
			}))
		}, want: counted("GET /x", ok+"user.7.requests")},
	} {
		tt.run(t)
	}
}

func TestSkip(t *testing.T) {
	skip := []string{"/usage/", "/healthz"}
	for path, counts := range map[string]bool{
		"/usage": false, "/usage/": false, "/usage/api/stats": false, "/usagex": true, "/a/usage/": true,
		"/healthz": false, "/healthz/": true, "/healthzx": true, "/": true,
	} {
		tt := test{name: path, request: "GET " + path, build: around(Config{Skip: skip}, on("/", hello))}
		if counts {
			tt.want = counted("GET /", "status_2xx latency")
		}
		tt.run(t)
	}

	rec := tally{}
	h := New(rec, Config{Skip: skip})(http.HandlerFunc(hello))
	skip[0] = "/other/" // the caller's, by now
	h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/usage/", nil))
	if len(rec) > 0 {
		t.Errorf("counted %v", rec)
	}
}

// Whoever looks while a response is still open finds it counted. Its duration
// comes later, and not at all for events.
func TestOpenStreamIsCounted(t *testing.T) {
	for contentType, atEnd := range map[string]string{"text/plain": "status_2xx latency", "text/event-stream": "status_2xx"} {
		for _, protocol := range protocols {
			t.Run(contentType+" "+protocol, func(t *testing.T) {
				rec := new(counts)
				closing := make(chan struct{})
				h := New(rec, Config{User: is("7")})(on("/x", func(w http.ResponseWriter, r *http.Request) {
					w.Header().Set("Content-Type", contentType)
					for range 3 {
						fmt.Fprint(w, "data: 1\n\n")
						flush(w)
					}
					<-closing
				}))
				srv, serving := serve(t, protocol, io.Discard, h)
				resp, err := srv.Client().Get(srv.URL + "/x")
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				if _, err := io.ReadFull(resp.Body, make([]byte, 9)); err != nil {
					t.Error(err)
				}
				rec.check(t, counted("GET /x", "status_2xx user.7.requests"))
				close(closing)
				serving.Wait()
				rec.check(t, counted("GET /x", atEnd+" user.7.requests"))
			})
		}
	}
}

// A panic is not raised again from somewhere else: its stack is still there.
func TestPanicKeepsItsStack(t *testing.T) {
	var logged bytes.Buffer
	h := New(new(counts), Config{})(http.HandlerFunc(explode))
	srv, _ := serve(t, "HTTP/1.1", &logged, h)
	if _, err := srv.Client().Get(srv.URL); err == nil {
		t.Error("got an answer")
	}
	srv.Close() // waits for the log
	if text := logged.String(); !strings.Contains(text, "boom") || !strings.Contains(text, "middleware.explode(") {
		t.Errorf("the log says\n%s", text)
	}
}

// spied notes what the inner writer is given to read from.
type spied struct {
	http.ResponseWriter
	sources *[]io.Reader
}

func (s spied) ReadFrom(src io.Reader) (int64, error) {
	*s.sources = append(*s.sources, src)
	return s.ResponseWriter.(io.ReaderFrom).ReadFrom(src)
}

// net/http can have the kernel send a file as long as it sees that it is one.
func TestFilesCanBeSentByTheKernel(t *testing.T) {
	name := filepath.Join(t.TempDir(), "file")
	text := strings.Repeat("0123456789abcdef", 1<<14)
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for how, send := range map[string]http.HandlerFunc{
		"ServeFile": func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, name) },
		"Copy": func(w http.ResponseWriter, r *http.Request) {
			f, err := os.Open(name)
			if err != nil {
				panic(err)
			}
			defer f.Close()
			w.Header().Set("Content-Length", fmt.Sprint(len(text)))
			io.Copy(w, f)
		},
	} {
		t.Run(how, func(t *testing.T) {
			rec, sources := new(counts), []io.Reader{}
			build := func(count counter) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					count(Config{})(on("/x", send)).ServeHTTP(spied{w, &sources}, r)
				})
			}
			want := exchange(t, "HTTP/1.1", build(without), "GET /x", nil)
			got := exchange(t, "HTTP/1.1", build(with(rec)), "GET /x", nil)
			if got.Body != text || !reflect.DeepEqual(got, want) {
				t.Error("the answer differs")
			}
			if len(sources) != 2 {
				t.Fatalf("ReadFrom was called %d times, want once with the middleware and once without", len(sources))
			}
			for _, src := range sources {
				if limited, ok := src.(*io.LimitedReader); ok {
					src = limited.R
				}
				if _, ok := src.(syscall.Conn); !ok {
					t.Errorf("the file became a %T", src)
				}
			}
			rec.check(t, counted("GET /x", "status_2xx latency"))
		})
	}
}

// connections are a listener whose connections note what they are given to send.
type connections struct {
	net.Listener
	sent chan io.Reader
}

type connection struct {
	*net.TCPConn
	sent chan io.Reader
}

func (l connections) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return connection{c.(*net.TCPConn), l.sent}, nil
}

func (c connection) ReadFrom(src io.Reader) (int64, error) {
	c.sent <- src
	return c.TCPConn.ReadFrom(src)
}

// Through the middleware a connection of net/http is given the file itself, where it was
// without: first bytes that were looked at do not keep the kernel from sending the rest.
func TestConnectionsAreGivenFiles(t *testing.T) {
	const size = 1 << 20
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, bytes.Repeat([]byte("0123456789abcdef"), size/16), 0o600); err != nil {
		t.Fatal(err)
	}
	open := func() *os.File {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	for how, send := range map[string]http.HandlerFunc{
		"ServeFile": func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, name) },
		"range": func(w http.ResponseWriter, r *http.Request) {
			r.Header.Set("Range", "bytes=1000-")
			http.ServeFile(w, r, name)
		},
		"Copy": func(w http.ResponseWriter, r *http.Request) {
			f := open()
			defer f.Close()
			w.Header().Set("Content-Length", fmt.Sprint(size))
			io.Copy(w, f)
		},
		"CopyN": func(w http.ResponseWriter, r *http.Request) {
			f := open()
			defer f.Close()
			f.Seek(7, io.SeekStart)
			w.Header().Set("Content-Length", "5000")
			io.CopyN(w, f, 5000)
			if at, err := f.Seek(0, io.SeekCurrent); at != 5007 || err != nil {
				t.Errorf("the file is at %d, %v, want 5007", at, err)
			}
		},
		"after a byte": func(w http.ResponseWriter, r *http.Request) {
			f := open()
			defer f.Close()
			w.Header().Set("Content-Length", fmt.Sprint(size+1))
			io.WriteString(w, ">")
			io.Copy(w, f)
		},
	} {
		t.Run(how, func(t *testing.T) {
			rec := new(counts)
			var bodies [2]string
			for i, h := range []http.Handler{on("/x", send), New(rec, Config{})(on("/x", send))} {
				sent := make(chan io.Reader, 10)
				srv := httptest.NewUnstartedServer(h)
				srv.Listener = connections{srv.Listener, sent}
				srv.Start()
				resp, err := srv.Client().Get(srv.URL + "/x")
				if err != nil {
					t.Fatal(err)
				}
				body, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				srv.Close()
				if err != nil {
					t.Error(err)
				}
				bodies[i] = string(body)
				if len(sent) != 1 {
					t.Fatalf("with the middleware %t: the connection was given %d things to send, want one", i == 1, len(sent))
				}
				src := <-sent
				if limited, ok := src.(*io.LimitedReader); ok {
					src = limited.R
				}
				if _, ok := src.(syscall.Conn); !ok {
					t.Errorf("with the middleware %t: the file became a %T", i == 1, src)
				}
			}
			if bodies[0] != bodies[1] {
				t.Error("the answer differs")
			}
			rec.check(t, counted("GET /x", "status_2xx latency"))
		})
	}
}

// The one response that is not quite the same: http.MaxBytesReader looks for a
// method of net/http's own writer, which nobody else can have, to close the
// connection after a body that is too large.
func TestMaxBytesHandlerInside(t *testing.T) {
	rec, h := new(counts), http.MaxBytesHandler(on("/x", echo), 4)
	want := exchange(t, "HTTP/1.1", h, "POST /x", post)
	got := exchange(t, "HTTP/1.1", New(rec, Config{})(h), "POST /x", post)
	want.Close = false
	want.Header.Del("Connection")
	if !reflect.DeepEqual(got, want) {
		t.Errorf("answers     %+v\nwithout it: %+v", got, want)
	}
	rec.check(t, counted("(unmatched)", "status_4xx latency")) // it copies the request
}

func TestRecorderInTroubleChangesNothing(t *testing.T) {
	want := exchange(t, "HTTP/1.1", http.HandlerFunc(hello), "GET /x", nil)
	for name, rec := range map[string]Recorder{
		"nil":         nil,
		"nil pointer": (*counts)(nil),
		"panics":      recorderFunc(func(string, int64) { panic("recorder") }),
		"embeds none": louder{},
	} {
		if got := exchange(t, "HTTP/1.1", New(rec, Config{})(http.HandlerFunc(hello)), "GET /x", nil); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: answers     %+v\nwithout it: %+v", name, got, want)
		}
		explodes := New(rec, Config{})(http.HandlerFunc(explode))
		func() {
			defer func() {
				if v := recover(); v != "boom" {
					t.Errorf("%s: panic %v", name, v)
				}
			}()
			explodes.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/x", nil))
		}()
	}
}

func TestTwoRecordersCountEach(t *testing.T) {
	a, b := new(counts), new(counts)
	both := func(h http.Handler) http.Handler { return New(a, Config{})(New(b, Config{})(h)) }
	h := both(auth(both(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		SetRoute(w, "/{x}")
		setUser("7")(w, r)
	}))))
	exchange(t, "HTTP/1.1", h, "GET /x", login)
	a.check(t, counted("GET /{x}", "status_2xx latency user.7.requests"))
	b.check(t, counted("GET /{x}", "status_2xx latency user.7.requests"))
}

// Values that cannot be compared are no reason to panic. One middleware still
// knows itself.
func TestUncomparableRecorders(t *testing.T) {
	counted := tally{}
	for name, rec := range map[string]Recorder{
		"func": recorderFunc(counted.Add), "map": counted, "struct": struct{ tally }{counted},
	} {
		clear(counted)
		count := New(rec, Config{})
		h := count(count(http.HandlerFunc(hello)))
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/x", nil))
		if n := counted["api.(unmatched).requests"]; n != 1 {
			t.Errorf("%s: counted %d times, want once", name, n)
		}
		h = New(rec, Config{})(New(rec, Config{})(http.HandlerFunc(hello))) // nobody can tell
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/x", nil))
	}
}

// Writers that unwrap to nil, or for ever, are somebody else's mistake.
func TestUnwrapComesToAnEnd(t *testing.T) {
	type cycle struct{ unwrapper }
	self := new(cycle)
	self.ResponseWriter = self
	for range responses(self, nil, place{}, false) {
		t.Error("found a response")
	}
	for range responses(unwrapper{nil}, nil, place{}, false) {
		t.Error("found a response")
	}
	SetUser(httptest.NewRecorder(), "7")
	SetRoute(httptest.NewRecorder(), "/x")
}

// A request allocates its response and the names of its user and area: the names
// of a route are made once, and no copy of the request.
func TestAllocations(t *testing.T) {
	constant := func(s string) func(*http.Request) string { return func(*http.Request) string { return s } }
	for want, cfg := range map[float64]Config{
		1: {},
		2: {User: constant("42")},
		3: {User: constant("42"), Area: constant("novels")},
		4: {User: constant("42"), Context: true},
	} {
		h := New(recorderFunc(func(string, int64) {}), cfg)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(204) }))
		w, r := httptest.NewRecorder(), httptest.NewRequest("GET", "/x", nil)
		r.Pattern = "GET /{what}"
		if got := testing.AllocsPerRun(100, func() { h.ServeHTTP(w, r) }); got != want {
			t.Errorf("a request takes %v allocations, want %v", got, want)
		}
	}
	h := New(recorderFunc(func(string, int64) {}), Config{})(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { SetUser(w, "42"); w.WriteHeader(204) }))
	w, r := httptest.NewRecorder(), httptest.NewRequest("GET", "/x", nil)
	if got := testing.AllocsPerRun(100, func() { h.ServeHTTP(w, r) }); got != 3 {
		t.Errorf("a request with SetUser takes %v allocations, want 3", got)
	}
}

// counting is a Recorder with counters to keep.
type counting struct{ tally }

func (c *counting) Add(name string, n int64) { c.tally["Add "+name] += n }
func (c *counting) Counter(name string) func(int64) {
	return func(n int64) { c.tally["Counter "+name] += n }
}

// louder embeds another one, and does something about its Add; loudest about both.
type (
	louder  struct{ *counting }
	loudest struct{ louder }
)

func (l louder) Add(name string, n int64) { l.counting.Add(name, 10*n) }
func (l loudest) Counter(name string) func(int64) {
	return func(n int64) { l.Add(name, n) }
}

// The counters of a route are kept, where the Recorder has that: also one that it has
// from what it embeds, which passes by an Add of its own.
func TestRecorderWithCounters(t *testing.T) {
	for _, tt := range []struct {
		rec  func(*counting) Recorder
		want tally
	}{
		{func(c *counting) Recorder { return c }, tally{
			"Counter api.GET /x.requests": 1, "Counter api.GET /x.status_2xx": 1, "Counter api.GET /x.latency_5ms": 1, "Add user.42.requests": 1}},
		{func(c *counting) Recorder { return louder{c} }, tally{
			"Counter api.GET /x.requests": 1, "Counter api.GET /x.status_2xx": 1, "Counter api.GET /x.latency_5ms": 1, "Add user.42.requests": 10}},
		{func(c *counting) Recorder { return &louder{c} }, tally{
			"Counter api.GET /x.requests": 1, "Counter api.GET /x.status_2xx": 1, "Counter api.GET /x.latency_5ms": 1, "Add user.42.requests": 10}},
		{func(c *counting) Recorder { return loudest{louder{c}} }, tally{
			"Add api.GET /x.requests": 10, "Add api.GET /x.status_2xx": 10, "Add api.GET /x.latency_5ms": 10, "Add user.42.requests": 10}},
	} {
		c := &counting{tally{}}
		r := httptest.NewRequest("GET", "/x", nil)
		r.Pattern = "GET /x"
		count := New(tt.rec(c), Config{User: func(*http.Request) string { return "42" }})
		count(http.HandlerFunc(hello)).ServeHTTP(httptest.NewRecorder(), r)
		if !maps.Equal(c.tally, tt.want) {
			t.Errorf("%T: %v, want %v", tt.rec(c), c.tally, tt.want)
		}
	}
}

// Whatever Config.Route answers, the names that are kept for it have a limit, and
// what is beyond counts as well.
func TestNamesOfManyRoutes(t *testing.T) {
	rec := tally{}
	count := New(rec, Config{Route: func(r *http.Request) string { return r.URL.Path }})
	h := count(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(204) }))
	for i := range maxRoutes + 100 {
		for range 2 {
			h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", fmt.Sprint("/", i), nil))
		}
	}
	for i := range maxRoutes + 100 {
		if n := rec[fmt.Sprintf("api.GET /%d.requests", i)]; n != 2 {
			t.Fatalf("route %d: %d requests, want 2", i, n)
		}
	}
	var r routes
	for i := range maxRoutes + 100 {
		r.find(rec, fmt.Sprint("/", i), "GET", false)
	}
	if n := len(*r.known.Load()); n != maxRoutes {
		t.Errorf("%d routes are kept, want %d", n, maxRoutes)
	}
}

func TestLatencyLastsUntilTheHandlerReturns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // its clock, so nobody waits
		rec := tally{}
		New(rec, Config{})(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(40 * time.Millisecond)
			hello(w, r)
			time.Sleep(40 * time.Millisecond)
		})).ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/x", nil))
		want := tally{"api.(unmatched).requests": 1, "api.(unmatched).status_2xx": 1, "api.(unmatched).latency_100ms": 1}
		if !maps.Equal(rec, want) {
			t.Errorf("counted %v, want %v", rec, want)
		}
	})
}
