package dashboard

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/usagekit/usagekit/internal/dbtest"
	"github.com/usagekit/usagekit/store"
)

// An error before the first line is answered as any other; one in the middle cuts the
// connection, so that what came does not look whole, in no protocol and no format.
func TestExportBreaksOff(t *testing.T) {
	var breaks atomic.Int64
	h := open(&yielding{each: func(_ context.Context, yield func(store.Count, error) bool) {
		for i := range int(breaks.Load()) {
			if !yield(numbered(i), nil) {
				return
			}
		}
		yield(store.Count{}, errSecret)
	}})
	for _, http2 := range []bool{false, true} {
		srv := httptest.NewUnstartedServer(h)
		if srv.EnableHTTP2 = http2; http2 {
			srv.StartTLS()
		} else {
			srv.Start()
		}
		defer srv.Close()
		for _, query := range []string{"format=csv", "format=json", "format=csv&of=history&step=day", "format=json&of=history&step=day"} {
			for _, after := range []int{0, 1, 10, exportAhead - 1, exportAhead, exportAhead + 1, 20 * exportAhead} {
				breaks.Store(int64(after))
				res, err := srv.Client().Get(srv.URL + "/usage/api/export?" + query)
				if err != nil {
					if after == 0 || after >= exportAhead {
						t.Errorf("%s after %d: %v", query, after, err)
					}
					continue // cut before the first byte
				}
				body, err := io.ReadAll(res.Body)
				res.Body.Close()
				if strings.Contains(string(body), "secret") {
					t.Errorf("%s after %d: %s", query, after, body)
				}
				if after == 0 {
					if res.StatusCode != 503 || err != nil || !strings.HasPrefix(string(body), `{"error":"the answer could not be read`) || res.Header.Get("Content-Disposition") != "" {
						t.Errorf("%s: %d %v %s", query, res.StatusCode, err, body)
					}
					continue
				}
				if res.StatusCode != 200 || err == nil || res.ProtoMajor == 2 != http2 {
					t.Errorf("%s after %d, %s: %d, and looks whole: %d bytes, …%s", query, after, res.Proto, res.StatusCode, len(body), body[max(0, len(body)-100):])
				}
				if strings.HasPrefix(query, "format=json") && json.Valid(body) {
					t.Errorf("%s after %d: valid JSON", query, after)
				}
				// A file's worth is not held back for it.
				if lines := bytes.Count(body, []byte("\n")); lines < after-exportAhead {
					t.Errorf("%s after %d: %d lines came", query, after, lines)
				}
			}
		}
	}
	for err, code := range map[error]int{errSecret: 503, store.ErrUnavailable: 503, store.QueryError("Step hour is finer than kept"): 400} {
		h := open(&fake{before: func(context.Context, string) error { return err }})
		for _, query := range []string{"", "of=rows", "of=history&step=hour", "format=json"} {
			if w := get(h, "/usage/api/export?"+query); w.Code != code || !strings.HasPrefix(w.Body.String(), `{"error":`) || w.Header().Get("Content-Type") != typeJSON || w.Header().Get("Retry-After") != "" {
				t.Errorf("%s, %v: %d %v %s", query, err, w.Code, w.Header(), w.Body)
			}
		}
	}
}

// The same of a store whose database goes away between two pages.
func TestExportWithoutDatabase(t *testing.T) {
	var faults dbtest.Faults
	db, err := faults.Open("sqlite", "file:"+filepath.Join(t.TempDir(), "usage.db")+"?_pragma=journal_mode(WAL)&_pragma=synchronous(OFF)&_txlock=immediate")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	st, err := store.New(t.Context(), sqlx.NewDb(db, "sqlite3"), store.Config{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	const many = 6_000 // more than a page
	for i := range many {
		st.Add(fmt.Sprintf("user.%d.requests", i), int64(i+1))
	}
	if err := st.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	h := open(st)
	var goes atomic.Bool
	away := func(dbtest.Op) dbtest.Fault { return dbtest.Fault{Err: errSecret} }
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if goes.Load() {
			w = &leaving{w, func() { faults.Set(away) }}
		}
		h.ServeHTTP(w, r)
	}))
	defer srv.Close()
	for _, format := range []string{"csv", "json"} {
		for _, whole := range []bool{true, false} {
			goes.Store(!whole)
			res, err := http.Get(srv.URL + "/usage/api/export?measure=requests&prefix=user.&format=" + format)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(res.Body)
			res.Body.Close()
			faults.Set(nil)
			lines := bytes.Count(body, []byte(".requests"))
			if (err == nil) != whole || whole != (lines == many) || lines == 0 || bytes.Contains(body, []byte("secret")) {
				t.Errorf("%s: %d lines, %v, want all: %v", format, lines, err, whole)
			}
		}
	}
	if err := st.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
}

// leaving does something when something is sent for the first time.
type leaving struct {
	http.ResponseWriter
	first func()
}

func (l *leaving) Unwrap() http.ResponseWriter { return l.ResponseWriter }
func (l *leaving) Flush() {
	l.first()
	_ = http.NewResponseController(l.ResponseWriter).Flush()
}

// Two at a time are made, and no more: whatever becomes of them, others follow.
func TestExportPlaces(t *testing.T) {
	for name, end := range map[string]func(yield func(store.Count, error) bool){
		"done":       func(func(store.Count, error) bool) {},
		"broken off": func(yield func(store.Count, error) bool) { yield(store.Count{}, errSecret) },
		"panic":      func(func(store.Count, error) bool) { panic("broken") },
		"the reader broke": func(yield func(store.Count, error) bool) {
			for i := 0; yield(numbered(i), nil); i++ {
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				goOn := make(chan struct{})
				h := open(&yielding{each: func(_ context.Context, yield func(store.Count, error) bool) {
					if yield(numbered(0), nil) {
						<-goOn
						end(yield)
					}
				}})
				for round := range 3 {
					for range maxExports {
						go func() {
							defer func() { _ = recover() }() // as a server does
							var w http.ResponseWriter = httptest.NewRecorder()
							if name == "the reader broke" {
								w = broken{w}
							}
							h.ServeHTTP(w, httptest.NewRequest("GET", "/usage/api/export", nil))
						}()
					}
					synctest.Wait()
					for _, query := range []string{"", "of=rows", "of=history&step=day", "format=json"} {
						w := get(h, "/usage/api/export?"+query)
						if after, err := strconv.Atoi(w.Header().Get("Retry-After")); w.Code != 503 || err != nil || after < 1 || !strings.Contains(w.Body.String(), "2 exports are being made") {
							t.Errorf("round %d, %s: %d %v %s", round, query, w.Code, w.Header(), w.Body)
						}
						checkHeaders(t, query, w)
					}
					if w := get(h, "/usage/api/export?of=nothing"); w.Code != 400 { // and takes no place
						t.Errorf("round %d: %d", round, w.Code)
					}
					if w := get(h, "/usage/api/totals"); w.Code != 200 {
						t.Errorf("round %d: totals: %d %s", round, w.Code, w.Body)
					}
					close(goOn)
					synctest.Wait()
					goOn = make(chan struct{})
				}
				close(goOn)
				for range 3 { // mistakes give theirs back, too
					get(h, "/usage/api/export?of=nothing")
					getWith(h, "HEAD", "/usage/api/export?of=rows")
				}
				if w := get(h, "/usage/api/export?of=rows"); w.Code != 200 {
					t.Errorf("at last: %d %s", w.Code, w.Body)
				}
			})
		})
	}
}

// broken is a ResponseWriter whose reader is gone.
type broken struct{ http.ResponseWriter }

func (broken) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

// A client that goes away ends its export, although there is always more.
func TestExportClientGone(t *testing.T) {
	for name, deaf := range map[string]bool{"told": false, "seen by writing": true} {
		t.Run(name, func(t *testing.T) {
			ended := make(chan error, 1)
			srv := httptest.NewServer(open(&yielding{each: func(ctx context.Context, yield func(store.Count, error) bool) {
				for i := 0; deaf || i < 5*exportAhead; i++ {
					if !yield(numbered(i), nil) {
						ended <- nil
						return
					}
				}
				<-ctx.Done()
				yield(store.Count{}, ctx.Err())
				ended <- ctx.Err()
			}}))
			defer srv.Close()
			res, err := http.Get(srv.URL + "/usage/api/export")
			if err != nil {
				t.Fatal(err)
			}
			// What was read before the rest is there has come.
			lines := bufio.NewScanner(res.Body)
			for i := range 5 * exportAhead {
				if !lines.Scan() {
					t.Fatalf("after %d lines: %v", i, lines.Err())
				}
			}
			res.Body.Close()
			select {
			case <-ended:
			case <-time.After(dbtest.Limit):
				t.Error("the export goes on for nobody")
			}
		})
	}
}

// A million counts take no more memory than a thousand, and come as they are read.
func TestExportStreams(t *testing.T) {
	for query, many := range map[string]int{"format=csv": 1_000_000, "format=json": 100_000, "of=history&step=hour&format=csv": 100_000} {
		t.Run(query, func(t *testing.T) {
			heap := func() uint64 {
				runtime.GC()
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				return m.HeapAlloc
			}
			var sink counted
			var least, most uint64
			h := open(&yielding{each: func(_ context.Context, yield func(store.Count, error) bool) {
				for i := range many {
					if i%(many/10) == 0 && i > 0 {
						now := heap()
						most = max(most, now)
						if least == 0 {
							least = now
						}
						if sink.lines < i-exportAhead {
							t.Errorf("after %d counts %d lines are written", i, sink.lines)
						}
					}
					if !yield(numbered(i), nil) {
						t.Errorf("ended after %d", i)
						return
					}
				}
			}})
			h.ServeHTTP(&sink, httptest.NewRequest("GET", "/usage/api/export?"+query, nil))
			if sink.lines < many || sink.lines > many+3 || sink.bytes < 20*many {
				t.Errorf("%d lines, %d bytes", sink.lines, sink.bytes)
			}
			t.Logf("%d bytes written with %d to %d kB of heap, flushed %d times", sink.bytes, least/1000, most/1000, sink.flushes)
			if most-least > 2<<20 {
				t.Errorf("the heap grew by %d bytes", most-least)
			}
			if sink.flushes != many/exportAhead {
				t.Errorf("flushed %d times", sink.flushes)
			}
		})
	}
}

// counted is a ResponseWriter that keeps nothing.
type counted struct {
	header                http.Header
	lines, bytes, flushes int
}

func (c *counted) Header() http.Header {
	if c.header == nil {
		c.header = http.Header{}
	}
	return c.header
}
func (c *counted) WriteHeader(int) {}
func (c *counted) Flush()          { c.flushes++ }
func (c *counted) Write(b []byte) (int, error) {
	c.lines += bytes.Count(b, []byte("\n"))
	c.bytes += len(b)
	return len(b), nil
}

// pipes is a Listener of connections in memory, without any buffer.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}
func (p *pipes) Close() error   { close(p.closed); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

// An export goes on for as long as its reader takes something every now and then, and
// is cut when that is not so.
func TestExportSlowReader(t *testing.T) {
	for pause, whole := range map[time.Duration]bool{time.Second: true, exportPause - time.Second: true, exportPause + time.Second: false} {
		synctest.Test(t, func(t *testing.T) {
			var yielded atomic.Int64
			const many = 20 * exportAhead
			srv := &http.Server{Handler: open(&yielding{each: func(_ context.Context, yield func(store.Count, error) bool) {
				for i := range many {
					if !yield(numbered(i), nil) {
						return
					}
					yielded.Add(1)
				}
			}})}
			l := &pipes{make(chan net.Conn), make(chan struct{})}
			go srv.Serve(l)
			client, server := net.Pipe()
			l.conns <- server
			fmt.Fprint(client, "GET /usage/api/export HTTP/1.1\r\nHost: usage.test\r\n\r\n")
			res, err := http.ReadResponse(bufio.NewReaderSize(client, 16), nil)
			if err != nil {
				t.Fatal(err)
			}
			lines := 0
			began := time.Now()
			for in := bufio.NewScanner(res.Body); ; {
				if lines%exportAhead == exportAhead/2 {
					if ahead := yielded.Load() - int64(lines); ahead > 2*exportAhead {
						t.Errorf("%d lines were read ahead of the reader", ahead)
					}
					time.Sleep(pause)
				}
				if !in.Scan() {
					err = in.Err()
					break
				}
				lines++
			}
			if got := err == nil && lines == many+1; got != whole {
				t.Errorf("a reader that pauses for %v has %d lines after %v, %v", pause, lines, time.Since(began), err)
			}
			client.Close()
			srv.Close()
		})
	}
	// One who takes nothing at all keeps no place.
	synctest.Test(t, func(t *testing.T) {
		h := open(&yielding{each: func(_ context.Context, yield func(store.Count, error) bool) {
			for i := 0; i < exportAhead/2 && yield(numbered(i), nil); i++ {
			}
		}})
		srv := &http.Server{Handler: h}
		l := &pipes{make(chan net.Conn), make(chan struct{})}
		go srv.Serve(l)
		client, server := net.Pipe()
		l.conns <- server
		fmt.Fprint(client, "GET /usage/api/export HTTP/1.1\r\nHost: usage.test\r\n\r\n")
		if _, err := client.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		if n := len(h.(*handler).exports); n != 1 {
			t.Errorf("%d exports are made", n)
		}
		time.Sleep(2 * exportPause)
		synctest.Wait()
		if n := len(h.(*handler).exports); n != 0 {
			t.Errorf("%d exports wait for a reader that takes nothing", n)
		}
		client.Close()
		srv.Close()
	})
}

// An export that nobody takes gives its place back, and one that is asked for by HEAD
// leaves nothing behind.
func TestExportLeavesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := open(&fake{counts: []store.Count{{Name: "a", N: 1}, {Name: "b", N: 1}}})
		before := runtime.NumGoroutine()
		for range 50 {
			h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("HEAD", "/usage/api/export", nil))
		}
		synctest.Wait()
		if n := runtime.NumGoroutine(); n > before {
			t.Errorf("%d goroutines after 50 of HEAD, %d before", n, before)
		}
	})
	s := open(&fake{counts: make([]store.Count, 10)})
	w := &deadlines{ResponseRecorder: httptest.NewRecorder()}
	s.ServeHTTP(w, httptest.NewRequest("GET", "/usage/api/export", nil))
	if w.set == 0 || !w.beforeHead {
		t.Errorf("%d write deadlines, the first before the header: %v", w.set, w.beforeHead)
	}
}

type deadlines struct {
	*httptest.ResponseRecorder
	set                     int
	headWritten, beforeHead bool
}

func (d *deadlines) SetWriteDeadline(time.Time) error {
	d.set++
	d.beforeHead = d.beforeHead || !d.headWritten
	return nil
}

func (d *deadlines) WriteHeader(code int) {
	d.headWritten = true
	d.ResponseRecorder.WriteHeader(code)
}
