package middleware

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// abandon has a client leave as soon as the handler runs. What build makes may wait for
// that with left.
func abandon(t *testing.T, protocol string, build func(left func()) http.Handler) {
	t.Helper()
	ctx, leave := context.WithCancel(t.Context())
	srv, serving := serve(t, protocol, io.Discard, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		leave()
		build(func() {
			<-r.Context().Done()
			awaitLeft(w)
		}).ServeHTTP(w, r)
	}))
	defer srv.Close()
	defer serving.Wait()
	r, err := http.NewRequestWithContext(ctx, "GET", srv.URL+"/x", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := srv.Client().Do(r)
	if err == nil {
		resp.Body.Close()
	} else if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// awaitLeft waits until a server, whose writer w is, has said to all who ask that the client
// left: it cancels the context a moment before.
func awaitLeft(w http.ResponseWriter) {
	for closing := w.(notifier).CloseNotify(); len(closing) == 0; {
		await(closing)
	}
}

// hesitant is a writer that waits before it answers.
type hesitant struct {
	http.ResponseWriter
	wait func()
}

func (p hesitant) WriteHeader(status int) {
	p.wait()
	p.ResponseWriter.WriteHeader(status)
}

// A client that left before anything was handed on was answered by nobody, whatever the
// handler says then; one that left later was answered, and the answer aborted.
func TestClientThatLeft(t *testing.T) {
	const nobody = "status_4xx error.aborted"
	for _, tt := range []struct {
		name, want string
		h          http.HandlerFunc
	}{
		{"no word", nobody, func(w http.ResponseWriter, r *http.Request) {}},
		{"WriteHeader", nobody, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(500) }},
		{"an error to nobody", nobody, func(w http.ResponseWriter, r *http.Request) { http.Error(w, "too slow", 500) }},
		{"hello to nobody", nobody, hello},
		{"flush to nobody", nobody, func(w http.ResponseWriter, r *http.Request) { flush(w) }},
		{"copy to nobody", nobody, func(w http.ResponseWriter, r *http.Request) { io.Copy(w, strings.NewReader("a")) }},
		{"ErrAbortHandler", nobody, func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) }},
		{"panic", nobody + " error.panic", explode},
		{"Goexit", nobody, func(http.ResponseWriter, *http.Request) { runtime.Goexit() }},
		{"asked for CloseNotify", nobody, func(w http.ResponseWriter, r *http.Request) {
			<-w.(notifier).CloseNotify()
		}},
		{"a deadline of the handler's own", nobody, func(w http.ResponseWriter, r *http.Request) {
			ctx, cancel := context.WithTimeout(r.Context(), time.Hour)
			defer cancel()
			mux("/x", http.HandlerFunc(hello)).ServeHTTP(w, r.WithContext(ctx))
		}},
	} {
		for _, protocol := range protocols {
			t.Run(tt.name+" "+protocol, func(t *testing.T) {
				rec := new(counts)
				abandon(t, protocol, func(left func()) http.Handler {
					return New(rec, Config{})(on("/x", func(w http.ResponseWriter, r *http.Request) {
						left()
						tt.h(w, r)
					}))
				})
				rec.check(t, counted("GET /x", tt.want))
			})
		}
	}
	for _, protocol := range protocols {
		t.Run("after the first byte "+protocol, func(t *testing.T) {
			rec := new(counts)
			abandon(t, protocol, func(left func()) http.Handler {
				return New(rec, Config{})(on("/x", func(w http.ResponseWriter, r *http.Request) {
					w.WriteHeader(404)
					io.WriteString(w, "a") // the client may have left by now, or not
					rec.mu.Lock()
					clear(rec.n)
					rec.mu.Unlock()
					left()
				}))
			})
			rec.mu.Lock()
			defer rec.mu.Unlock()
			if rec.n["error.aborted"] != 1 || rec.n["error.panic"] != 0 {
				t.Errorf("counted %v, want error.aborted", rec.n)
			}
		})
		t.Run("after the last byte "+protocol, func(t *testing.T) {
			rec := new(counts)
			srv, serving := serve(t, protocol, io.Discard, New(rec, Config{})(on("/x", func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Length", "5")
				hello(w, r)
				flush(w)
				<-r.Context().Done() // an answer of this length is whole
			})))
			ctx, leave := context.WithCancel(t.Context())
			defer leave()
			r, err := http.NewRequestWithContext(ctx, "GET", srv.URL+"/x", nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := srv.Client().Do(r)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(resp.Body, make([]byte, 5)); err != nil {
				t.Error(err)
			}
			leave()
			resp.Body.Close()
			srv.CloseClientConnections()
			serving.Wait()
			rec.check(t, counted("GET /x", "status_2xx latency"))
		})
		t.Run("behind other writers "+protocol, func(t *testing.T) {
			rec, other := new(counts), new(counts)
			abandon(t, protocol, func(left func()) http.Handler {
				inside := New(rec, Config{})(on("/x", func(w http.ResponseWriter, r *http.Request) { left() }))
				return New(other, Config{})(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					inside.ServeHTTP(unwrapper{unwrapper{w}}, r)
				}))
			})
			rec.check(t, counted("GET /x", nobody))
			other.check(t, counted("GET /x", nobody))
		})
		t.Run("TimeoutHandler outside "+protocol, func(t *testing.T) {
			rec := new(counts)
			inside := New(rec, Config{})(on("/x", func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
			var returned sync.WaitGroup
			returned.Add(1)
			abandon(t, protocol, func(func()) http.Handler {
				return http.TimeoutHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					defer returned.Done()
					inside.ServeHTTP(w, r)
				}), time.Hour, "")
			})
			returned.Wait()
			rec.check(t, counted("GET /x", nobody))
		})
		t.Run("TimeoutHandler inside "+protocol, func(t *testing.T) {
			rec := new(counts)
			abandon(t, protocol, func(left func()) http.Handler {
				return New(rec, Config{})(hides(func(w http.ResponseWriter) http.ResponseWriter { return hesitant{w, left} })(http.TimeoutHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					<-r.Context().Done()
				}), time.Hour, "")))
			})
			rec.check(t, counted("(unmatched)", nobody))
		})
	}
}

// A context that the application cancels itself, or that ends in time, is no client that
// left: the client is there, and gets its answer.
func TestCancelledByTheApplicationIsNoClientThatLeft(t *testing.T) {
	for _, protocol := range protocols {
		for name, derive := range map[string]func(context.Context) (context.Context, context.CancelFunc){
			"cancelled": context.WithCancel,
			"with a cause": func(ctx context.Context) (context.Context, context.CancelFunc) {
				ctx, cancel := context.WithCancelCause(ctx)
				return ctx, func() { cancel(errors.New("enough")) }
			},
			"a deadline": func(ctx context.Context) (context.Context, context.CancelFunc) {
				ctx, stop := context.WithTimeout(ctx, time.Nanosecond)
				return ctx, func() { <-ctx.Done(); stop() }
			},
		} {
			for _, when := range []string{"before", "within"} {
				t.Run(strings.Join([]string{protocol, name, when}, " "), func(t *testing.T) {
					rec := new(counts)
					var cancel context.CancelFunc
					h := func(w http.ResponseWriter, r *http.Request) {
						cancel()
						<-r.Context().Done()
						w.WriteHeader(503)
					}
					with := func(next http.Handler) http.Handler {
						return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
							var ctx context.Context
							ctx, cancel = derive(r.Context())
							defer cancel()
							if when == "before" {
								cancel()
							}
							next.ServeHTTP(w, r.WithContext(ctx))
						})
					}
					a := exchange(t, protocol, with(New(rec, Config{})(on("/x", h))), "GET /x", nil)
					if a.Err != "" || !strings.HasPrefix(a.Status, "503") {
						t.Errorf("the client got %+v", a)
					}
					rec.check(t, counted("GET /x", "status_5xx latency"))
				})
			}
		}

		t.Run(protocol+" inside", func(t *testing.T) {
			rec := new(counts)
			exchange(t, protocol, New(rec, Config{})(on("/x", func(w http.ResponseWriter, r *http.Request) {
				ctx, cancel := context.WithCancel(r.Context())
				cancel()
				New(rec, Config{})(on("/x", http.NotFound)).ServeHTTP(w, r.WithContext(ctx))
			})), "GET /x", nil)
			rec.check(t, counted("GET /x", "status_4xx latency"))
		})

		t.Run(protocol+" the server's base context", func(t *testing.T) {
			rec := new(counts)
			base, cancel := context.WithCancel(t.Context())
			defer cancel()
			srv := httptest.NewUnstartedServer(New(rec, Config{})(on("/x", func(w http.ResponseWriter, r *http.Request) {
				cancel()
				<-r.Context().Done()
			})))
			srv.Config.BaseContext = func(net.Listener) context.Context { return base }
			srv.Config.ErrorLog = log.New(io.Discard, "", 0)
			if srv.EnableHTTP2 = protocol == "HTTP/2.0"; srv.EnableHTTP2 {
				srv.StartTLS()
			} else {
				srv.Start()
			}
			resp, err := srv.Client().Get(srv.URL + "/x")
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			srv.Close()
			rec.check(t, counted("GET /x", "status_2xx latency"))
		})
	}
}

// net/http says in its log who calls WriteHeader when it is too late. That is the
// handler, not this package.
func TestLateWriteHeaderIsBlamedOnTheHandler(t *testing.T) {
	for name, tt := range map[string]struct {
		h    http.HandlerFunc
		want string
	}{
		"superfluous":   {func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(200); lateWriteHeader(w) }, "superfluous"},
		"after a byte":  {func(w http.ResponseWriter, r *http.Request) { hello(w, r); lateWriteHeader(w) }, "superfluous"},
		"after no byte": {func(w http.ResponseWriter, r *http.Request) { w.Write(nil); lateWriteHeader(w) }, "superfluous"},
		"after a flush": {func(w http.ResponseWriter, r *http.Request) { flush(w); lateWriteHeader(w) }, "superfluous"},
		"after a hijack": {func(w http.ResponseWriter, r *http.Request) {
			if conn, _, err := w.(http.Hijacker).Hijack(); err == nil {
				conn.Close()
			}
			lateWriteHeader(w)
		}, "hijacked"},
	} {
		for _, cfg := range []Config{{}, {Skip: []string{"/"}}} {
			var logged bytes.Buffer
			rec := new(counts)
			srv, serving := serve(t, "HTTP/1.1", &logged, New(rec, cfg)(New(new(counts), Config{})(tt.h)))
			if resp, err := srv.Client().Get(srv.URL); err == nil {
				resp.Body.Close()
			}
			serving.Wait()
			srv.Close()
			if text := logged.String(); !strings.Contains(text, tt.want) || !strings.Contains(text, "middleware.lateWriteHeader (left_test.go:") {
				t.Errorf("%s, skipping %q: the log says %q", name, cfg.Skip, text)
			}
		}
	}
}

//go:noinline
func lateWriteHeader(w http.ResponseWriter) { w.WriteHeader(500) }

// waiting is the writer of a server whose client is there: it has nothing to say of that.
type waiting struct {
	*httptest.ResponseRecorder
	closing chan bool
}

func (w waiting) CloseNotify() <-chan bool { return w.closing }

// Where the application has cancelled a context, its answer is not held back for a word of
// the server's that will not come: a millisecond at most, once for a request, and not at all
// where that word would change nothing.
func TestCancelledContextHoldsNoAnswerBack(t *testing.T) {
	for name, tt := range map[string]struct {
		h    func(cancel func()) http.HandlerFunc
		want time.Duration
	}{
		"no word": {func(cancel func()) http.HandlerFunc {
			return func(http.ResponseWriter, *http.Request) { cancel() }
		}, time.Millisecond},
		"an answer": {func(cancel func()) http.HandlerFunc {
			return func(w http.ResponseWriter, r *http.Request) { cancel(); hello(w, r) }
		}, time.Millisecond},
		"cancelled between": {func(cancel func()) http.HandlerFunc {
			return func(w http.ResponseWriter, r *http.Request) { hello(w, r); cancel(); hello(w, r) }
		}, time.Millisecond},
		"a whole answer": {func(cancel func()) http.HandlerFunc {
			return func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Length", "5")
				hello(w, r)
				cancel()
			}
		}, 0},
		"an abort": {func(cancel func()) http.HandlerFunc {
			return func(w http.ResponseWriter, r *http.Request) { hello(w, r); cancel(); panic(http.ErrAbortHandler) }
		}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				h := New(new(counts), Config{})(tt.h(cancel))
				start := time.Now()
				func() {
					defer func() { _ = recover() }()
					h.ServeHTTP(waiting{httptest.NewRecorder(), make(chan bool, 1)}, httptest.NewRequestWithContext(ctx, "GET", "/x", nil))
				}()
				if d := time.Since(start); d > tt.want {
					t.Errorf("the answer was held back for %v, want %v at most", d, tt.want)
				}
			})
		})
	}
}
