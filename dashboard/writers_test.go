package dashboard

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/usagekit/usagekit/store"
)

// plainWriter is what a middleware makes that knows no optional interface and has no Unwrap.
type plainWriter struct{ http.ResponseWriter }

func plainly(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { h.ServeHTTP(plainWriter{w}, r) })
}

// unwrapped is one whose inner writer can be reached, and cannot flush.
type unwrapped struct{ plainWriter }

func (u unwrapped) Unwrap() http.ResponseWriter { return u.plainWriter }

// Whoever cannot flush gets all the same lines, only later.
func TestExportBehindAWriterThatCannotFlushIsWhole(t *testing.T) {
	const many = 5*exportAhead + 7
	h := open(&yielding{each: func(_ context.Context, yield func(store.Count, error) bool) {
		for i := 0; i < many && yield(numbered(i), nil); i++ {
		}
	}})
	for name, wrapped := range map[string]http.Handler{
		"a writer without Flush": plainly(h),
		"one inside of another": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			h.ServeHTTP(unwrapped{plainWriter{w}}, r)
		}),
		"TimeoutHandler": http.TimeoutHandler(h, time.Hour, "too late"),
	} {
		srv := httptest.NewServer(wrapped)
		for _, format := range []string{"csv", "json"} {
			for _, of := range []string{"totals", "history&step=day"} {
				res, err := http.Get(srv.URL + "/usage/api/export?format=" + format + "&of=" + of)
				if err != nil {
					t.Fatal(err)
				}
				body, err := io.ReadAll(res.Body)
				res.Body.Close()
				if n := bytes.Count(body, []byte("feature.")); err != nil || n < many || !bytes.Contains(body, []byte(fmt.Sprintf("feature.%d.used", many-1))) {
					t.Errorf("%s, %s of %s: %d bytes, %d names, %v", name, format, of, len(body), n, err)
				}
			}
		}
		srv.Close()
	}
}

// A connection on which somebody flushes and fails is another matter: that export is
// cut, and looks so.
func TestExportWhoseFlushFailsIsCut(t *testing.T) {
	h := open(&yielding{each: func(_ context.Context, yield func(store.Count, error) bool) {
		for i := 0; i < 3*exportAhead && yield(numbered(i), nil); i++ {
		}
	}})
	defer func() {
		if v := recover(); v != http.ErrAbortHandler {
			t.Errorf("it ended with %v", v)
		}
	}()
	h.ServeHTTP(failingFlush{httptest.NewRecorder()}, httptest.NewRequest("GET", "/usage/api/export", nil))
}

type failingFlush struct{ http.ResponseWriter }

func (failingFlush) FlushError() error { return errors.New("broken pipe") }

// stuck is a writer on which nobody reads, and that takes no deadline.
type stuck struct {
	http.ResponseWriter
	forever chan struct{}
}

func (s stuck) Write(p []byte) (int, error) { <-s.forever; return len(p), nil }

// Exports that nobody reads keep no place from others, although their writers cannot
// be given a deadline. When they wake up, they are cut.
func TestUnreadExportsKeepNoPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := open(&yielding{each: func(_ context.Context, yield func(store.Count, error) bool) {
			for i := 0; i < 3*exportAhead && yield(numbered(i), nil); i++ {
			}
		}})
		forever, cut := make(chan struct{}), make(chan any, maxExports)
		for range maxExports {
			go func() {
				defer func() { cut <- recover() }()
				h.ServeHTTP(stuck{httptest.NewRecorder(), forever}, httptest.NewRequest("GET", "/usage/api/export", nil))
			}()
		}
		synctest.Wait()
		if w := get(h, "/usage/api/export"); w.Code != 503 {
			t.Errorf("beside two that have just begun: %d", w.Code)
		}
		time.Sleep(exportPause + time.Second)
		if w := get(h, "/usage/api/export"); w.Code != 200 || strings.Count(w.Body.String(), "\n") != 3*exportAhead+1 {
			t.Errorf("after two that nobody reads: %d, %d bytes", w.Code, w.Body.Len())
		}
		close(forever)
		for range maxExports {
			if v := <-cut; v != http.ErrAbortHandler {
				t.Errorf("an export that nobody read ended with %v", v)
			}
		}
		if n := len(h.(*handler).exports); n != 0 {
			t.Errorf("%d places are taken", n)
		}
	})
}

// An answer that nobody takes is given up, whatever it is of.
func TestUnreadAnswersAreGivenUp(t *testing.T) {
	for _, timeout := range []time.Duration{0, 10 * time.Second, time.Hour} { // of the server
		for _, path := range []string{"api/totals?limit=10000", "api/stats", "api/health", "api/openapi.json", "tables.html", ""} {
			synctest.Test(t, func(t *testing.T) {
				ended := make(chan time.Duration, 1)
				h := open(&many{})
				srv := &http.Server{WriteTimeout: timeout, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					began := time.Now()
					defer func() { ended <- time.Since(began) }()
					h.ServeHTTP(w, r)
				})}
				l := &pipes{make(chan net.Conn), make(chan struct{})}
				go srv.Serve(l)
				client, server := net.Pipe()
				l.conns <- server
				fmt.Fprintf(client, "GET /usage/%s HTTP/1.1\r\nHost: usage.test\r\n\r\n", path)
				time.Sleep(2 * answerPause)
				synctest.Wait()
				select {
				case took := <-ended:
					if limit := min(answerPause, max(timeout, time.Second)); timeout > 0 && took > limit+time.Second {
						t.Errorf("%s, with a server's timeout of %v: it took %v", path, timeout, took)
					}
				default:
					t.Errorf("%s, with a server's timeout of %v: still written after %v", path, timeout, 2*answerPause)
				}
				client.Close()
				srv.Close()
			})
		}
	}
}

// Who takes an answer slowly, and all the time, has all of it.
func TestSlowReadersAreAnsweredWhole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := &http.Server{Handler: open(&many{})}
		l := &pipes{make(chan net.Conn), make(chan struct{})}
		go srv.Serve(l)
		client, server := net.Pipe()
		l.conns <- server
		defer srv.Close()
		defer client.Close()
		fmt.Fprint(client, "GET /usage/api/totals?limit=10000 HTTP/1.1\r\nHost: usage.test\r\n\r\n")
		res, err := http.ReadResponse(bufio.NewReader(client), nil)
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		for n := int64(0); n < res.ContentLength; {
			m, err := io.CopyN(io.Discard, res.Body, min(res.ContentLength-n, 10_000))
			if n += m; err != nil {
				t.Fatalf("%d of %d bytes after %v: %v", n, res.ContentLength, time.Since(began), err)
			}
			time.Sleep(answerPause / 10)
		}
		if took := time.Since(began); took < 2*answerPause {
			t.Fatalf("it took %v: too little to tell", took)
		}
	})
}

// The next answer on a connection has all its time again.
func TestADeadlineEndsWithItsAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := &http.Server{Handler: open(&many{})}
		l := &pipes{make(chan net.Conn), make(chan struct{})}
		go srv.Serve(l)
		client, server := net.Pipe()
		l.conns <- server
		in := bufio.NewReader(client)
		for range 3 {
			fmt.Fprint(client, "GET /usage/api/totals?limit=10000 HTTP/1.1\r\nHost: usage.test\r\n\r\n")
			res, err := http.ReadResponse(in, nil)
			if err != nil {
				t.Fatal(err)
			}
			if body, err := io.ReadAll(res.Body); err != nil || len(body) < 100_000 {
				t.Fatalf("%d bytes, %v", len(body), err)
			}
			time.Sleep(3 * answerPause)
		}
		client.Close()
		srv.Close()
	})
}

// many has more to say than a connection holds.
type many struct{ fake }

func (*many) Totals(_ context.Context, q store.Query) ([]store.Count, error) {
	counts := make([]store.Count, min(q.Limit, 10_000))
	for i := range counts {
		counts[i] = numbered(i)
	}
	return counts, nil
}
