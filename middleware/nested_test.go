package middleware

import (
	"compress/gzip"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// Writers that do not say what is inside of them.
type (
	embedding struct{ http.ResponseWriter }
	keeping   struct {
		code int
		w    http.ResponseWriter
	}
	holding   struct{ keeping }
	narrowing struct {
		inner interface{ http.ResponseWriter }
	}
	zipping struct {
		io.Writer
		http.ResponseWriter
	}
	closing struct {
		http.ResponseWriter
		next http.ResponseWriter // itself
	}
)

func (k *keeping) Header() http.Header          { return k.w.Header() }
func (k *keeping) Write(p []byte) (int, error)  { return k.w.Write(p) }
func (k *keeping) WriteHeader(code int)         { k.code = code; k.w.WriteHeader(code) }
func (n narrowing) Header() http.Header         { return n.inner.Header() }
func (n narrowing) Write(p []byte) (int, error) { return n.inner.Write(p) }
func (n narrowing) WriteHeader(code int)        { n.inner.WriteHeader(code) }
func (z zipping) Write(p []byte) (int, error)   { return z.Writer.Write(p) }

// hiders are middlewares inside of which nothing unwraps to what is outside.
func hiders() map[string]func(http.Handler) http.Handler {
	embedded := hides(func(w http.ResponseWriter) http.ResponseWriter { return embedding{w} })
	return map[string]func(http.Handler) http.Handler{
		"embedded":    embedded,
		"twice":       hides(func(w http.ResponseWriter) http.ResponseWriter { return &embedding{&keeping{w: w}} }),
		"a field":     hides(func(w http.ResponseWriter) http.ResponseWriter { return &keeping{w: w} }),
		"a struct's":  hides(func(w http.ResponseWriter) http.ResponseWriter { return &holding{keeping{w: w}} }),
		"narrowed":    hides(func(w http.ResponseWriter) http.ResponseWriter { return narrowing{w} }),
		"unwrapping":  hides(func(w http.ResponseWriter) http.ResponseWriter { return unwrapper{embedding{unwrapper{w}}} }),
		"a copy":      func(h http.Handler) http.Handler { return embedded(copying(h)) },
		"compressing": compressing,
		"timeout":     func(h http.Handler) http.Handler { return http.TimeoutHandler(h, time.Hour, "") },
	}
}

func hides(wrap func(http.ResponseWriter) http.ResponseWriter) func(http.Handler) http.Handler {
	return func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { h.ServeHTTP(wrap(w), r) })
	}
}

func copying(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), userKey{}, "copied")))
	})
}

func compressing(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		z := gzip.NewWriter(w)
		defer z.Close()
		w.Header().Set("Content-Encoding", "gzip")
		h.ServeHTTP(zipping{z, w}, r)
	})
}

// buffering keeps a response until it is whole: nothing leads from its writer to the
// one outside.
func buffering(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b := httptest.NewRecorder()
		h.ServeHTTP(b, r)
		w.WriteHeader(b.Code)
		_, _ = b.Body.WriteTo(w)
	})
}

// A request is counted once, with what the inner middleware knows of it, whatever
// stands between the two, whether they are of one New or of two.
func TestCountedOnceBehindAWriterThatHidesIt(t *testing.T) {
	outer, inner := Config{Area: is("novels")}, Config{User: is("42")}
	all := counted("GET /novels/{id}", "status_2xx latency api.requests.novels user.42.requests")
	for name, hide := range hiders() {
		test{name: name, request: "GET /novels/1", want: all, build: func(count counter) http.Handler {
			return count(outer)(hide(count(inner)(on("GET /novels/{id}", hello))))
		}}.run(t)
		test{name: name + ", of one", request: "GET /novels/1", want: all, build: func(count counter) http.Handler {
			one := count(Config{Area: is("novels"), User: is("42")})
			return one(hide(auth(one(hide(one(on("GET /novels/{id}", hello)))))))
		}, edit: login}.run(t)
	}
	for name, between := range map[string]func(http.Handler) http.Handler{
		"buffered":         buffering,
		"buffered, copied": func(h http.Handler) http.Handler { return buffering(copying(h)) },
		"buffered twice":   func(h http.Handler) http.Handler { return buffering(buffering(h)) },
	} {
		test{name: name, request: "GET /novels/1", want: all, build: func(count counter) http.Handler {
			one := count(Config{Area: is("novels"), User: is("42")})
			return one(between(one(on("GET /novels/{id}", hello))))
		}}.run(t)
	}
	// Of a request that was cloned on the way into a buffer its context knows.
	outer.Context, inner.Context = true, true
	test{name: "buffered, cloned, by context", request: "GET /novels/1", want: all, build: func(count counter) http.Handler {
		return count(outer)(buffering(cloning(count(inner)(on("GET /novels/{id}", hello)))))
	}}.run(t)
	test{name: "cloned, buffered, of one, by context", request: "GET /novels/1", want: all, build: func(count counter) http.Handler {
		one := count(Config{Context: true, Area: is("novels"), User: is("42")})
		return one(cloning(buffering(cloning(one(on("GET /novels/{id}", hello))))))
	}}.run(t)
}

// Requests that a handler makes of its own are requests.
func TestRequestsWithinARequestAreCounted(t *testing.T) {
	rec := new(counts)
	count := New(rec, Config{})
	inner := count(on("GET /part", hello))
	h := count(on("GET /whole", func(w http.ResponseWriter, r *http.Request) {
		b := httptest.NewRecorder()
		inner.ServeHTTP(b, httptest.NewRequest("GET", "/part", nil))
		sub, _ := http.NewRequest("GET", "/part", nil)
		sub.Header = r.Header // who asks
		inner.ServeHTTP(b, sub)
		_, _ = b.Body.WriteTo(w)
	}))
	for range 2 {
		r := httptest.NewRequest("GET", "/whole", nil)
		h.ServeHTTP(httptest.NewRecorder(), r)
		h.ServeHTTP(httptest.NewRecorder(), r) // it has ended
	}
	rec.check(t, map[string]int64{
		"api.GET /whole.requests": 4, "api.GET /whole.status_2xx": 4, "api.GET /whole.latency": 4,
		"api.GET /part.requests": 8, "api.GET /part.status_2xx": 8, "api.GET /part.latency": 8,
	})
}

// What a handler says of its request is known outside, whatever is between.
func TestSetUserBehindAWriterThatHidesIt(t *testing.T) {
	for name, hide := range hiders() {
		for _, innermost := range []bool{false, true} {
			test{name: name, build: func(count counter) http.Handler {
				var h http.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					SetRoute(w, "/{x}")
					SetUser(w, "nobody yet")
					SetUser(w, "(7")
					hello(w, r)
				})
				if innermost {
					h = count(Config{User: panics})(h)
				}
				return count(Config{User: is("nobody")})(hide(h))
			}, want: counted("GET /{x}", "status_2xx latency user.((7.requests")}.run(t)
		}
	}
}

// A handler that goes on after its time is up says nothing any more, and what it says
// meanwhile races with nobody.
func TestHandlerThatOutlivesItsTimeout(t *testing.T) {
	for name, by := range map[string]func(w http.ResponseWriter, r *http.Request) http.ResponseWriter{
		"its writer":  func(w http.ResponseWriter, r *http.Request) http.ResponseWriter { return w },
		"its context": func(w http.ResponseWriter, r *http.Request) http.ResponseWriter { return ResponseWriter(r.Context()) },
	} {
		for _, twice := range []bool{true, false} {
			synctest.Test(t, func(t *testing.T) {
				rec := new(counts)
				count := New(rec, Config{Context: name == "its context"})
				h := on("/x", func(w http.ResponseWriter, r *http.Request) {
					<-r.Context().Done()
					for range 100 {
						SetUser(by(w, r), "late")
						SetRoute(by(w, r), "/late")
					}
					hello(w, r)
				})
				if twice {
					h = count(h)
				}
				w := httptest.NewRecorder()
				count(http.TimeoutHandler(h, time.Second, "late")).ServeHTTP(w, httptest.NewRequest("GET", "/x", nil))
				synctest.Wait()
				if w.Code != http.StatusServiceUnavailable {
					t.Errorf("status %d", w.Code)
				}
				rec.mu.Lock()
				defer rec.mu.Unlock()
				sum := int64(0)
				for counter, n := range rec.n {
					if strings.HasSuffix(counter, ".status_5xx") {
						sum += n
					} else if strings.HasSuffix(counter, ".status_2xx") {
						t.Errorf("by %s: counted %s", name, counter)
					}
				}
				if sum != 1 {
					t.Errorf("by %s: counted %v", name, rec.n)
				}
			})
		}
	}
}

// A handler that goes on after http.TimeoutHandler answered for it says nothing of the request
// that the writers outside serve meanwhile: many are used again and again.
func TestLateHandlerSaysNothingOfAnotherRequest(t *testing.T) {
	keeps, unwraps := new(keeping), new(unwrapper)
	for name, between := range map[string]func(http.Handler) http.Handler{
		"next to it": hides(func(w http.ResponseWriter) http.ResponseWriter { keeps.w = w; return keeps }),
		"farther": func(h http.Handler) http.Handler {
			return hides(func(w http.ResponseWriter) http.ResponseWriter { unwraps.ResponseWriter = w; return unwraps })(New(new(counts), Config{})(h))
		},
	} {
		synctest.Test(t, func(t *testing.T) {
			rec := new(counts)
			another, said := make(chan bool), make(chan bool)
			h := New(rec, Config{})(between(http.TimeoutHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/late" {
					<-another
					SetUser(w, "late")
					SetRoute(w, "/late")
					close(said)
					return
				}
				close(another)
				<-said
			}), time.Second, "")))
			for _, path := range []string{"/late", "/x"} {
				h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", path, nil))
			}
			rec.mu.Lock()
			defer rec.mu.Unlock()
			if rec.n["user.late.requests"] != 0 || rec.n["api.GET /late.requests"] != 0 {
				t.Errorf("%s: counted %v", name, rec.n)
			}
		})
	}
}

// Fields that lead in a circle, or to nothing, are somebody else's mistake.
func TestHiddenWritersComeToAnEnd(t *testing.T) {
	self := new(closing)
	self.next = self
	rec := tally{}
	for _, w := range []http.ResponseWriter{self, embedding{}, &keeping{}, (*keeping)(nil), unwrapper{embedding{}}} {
		SetUser(w, "7")
		New(rec, Config{})(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})).ServeHTTP(embedding{httptest.NewRecorder()}, httptest.NewRequest("GET", "/x", nil))
	}
	if n := rec["api.(unmatched).requests"]; n != 5 {
		t.Errorf("counted %v", rec)
	}
}

// What the outermost middleware does not count nothing inside of it counts, whatever
// is left of the path.
func TestSkipHoldsForWhatIsInside(t *testing.T) {
	strip := func(prefix string) func(http.Handler) http.Handler {
		return func(h http.Handler) http.Handler { return mux(prefix+"/", http.StripPrefix(prefix, h)) }
	}
	layers := map[string]func(http.Handler) http.Handler{
		"a mux":       func(h http.Handler) http.Handler { return mux("/", h) },
		"a prefix":    strip("/app"),
		"two layers":  func(h http.Handler) http.Handler { return strip("/app")(strip("/usage")(h)) },
		"a copy":      func(h http.Handler) http.Handler { return strip("/app")(copying(h)) },
		"auth inside": func(h http.Handler) http.Handler { return strip("/app")(auth(h)) },
	}
	for name, hide := range hiders() {
		layers[name] = func(h http.Handler) http.Handler { return hide(strip("/app")(h)) }
	}
	outer := Config{Skip: []string{"/app/usage/"}}
	for name, layer := range layers {
		test{name: name, request: "GET /app/usage/x", edit: login, build: func(count counter) http.Handler {
			return count(outer)(layer(count(Config{User: is("7")})(on("/", hello))))
		}}.run(t)
		test{name: name + ", of one", request: "GET /app/usage/x", edit: login, build: func(count counter) http.Handler {
			one := count(outer)
			return one(layer(one(layerless(one(on("/", hello))))))
		}}.run(t)
	}
	test{name: "buffered", request: "GET /app/usage/x", build: func(count counter) http.Handler {
		one := count(outer)
		return one(buffering(strip("/app")(one(on("/", hello)))))
	}}.run(t)
	for name, between := range map[string]func(http.Handler) http.Handler{
		"buffered":         buffering,
		"buffered, cloned": func(h http.Handler) http.Handler { return buffering(cloning(h)) },
	} {
		test{name: name + ", of two, by context", request: "GET /app/usage/x", build: func(count counter) http.Handler {
			return count(Config{Context: true, Skip: outer.Skip})(between(strip("/app")(count(Config{Context: true})(on("/", hello)))))
		}}.run(t)
		test{name: name + ", of two, by context, with a user", request: "GET /app/usage/x", build: func(count counter) http.Handler {
			return count(Config{Context: true, Skip: outer.Skip})(between(strip("/app")(count(Config{Context: true})(on("/", rpc(func(ctx context.Context) { SetUser(ResponseWriter(ctx), "7") }))))))
		}}.run(t)
	}
	// Another Recorder's is another matter, and who is counted outside stays so.
	a, b := new(counts), new(counts)
	exchange(t, "HTTP/1.1", New(a, outer)(strip("/app")(New(b, Config{})(on("/usage/", hello)))), "GET /app/usage/x", nil)
	a.check(t, nil)
	b.check(t, counted("GET /usage/", "status_2xx latency"))
	test{name: "skipped inside only", request: "GET /app/usage/x", build: func(count counter) http.Handler {
		return count(Config{})(strip("/app")(count(Config{Skip: []string{"/usage/"}})(on("/usage/", hello))))
	}, want: counted("GET /app/", "status_2xx latency")}.run(t)
}

func cloning(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { h.ServeHTTP(w, r.Clone(r.Context())) })
}

func layerless(h http.Handler) http.Handler { return h }

// A middleware that stands at one place only remembers no request, and one that has
// ended is forgotten.
func TestRequestsAreRememberedOnlyWhereCountsAreNested(t *testing.T) {
	m := &middleware{rec: tally{}, cfg: Config{Skip: []string{"/skipped"}}}
	inFlight := func() (n int) {
		for i := range m.inside.parts {
			n += len(m.inside.parts[i].of)
		}
		return n
	}
	seen := 0
	look := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		seen += inFlight()
		if r.Method == "PUT" {
			panic("boom")
		}
	})
	for n, want := range []int{0, 3, 3} {
		h := m.handler(look)
		seen = 0
		for _, r := range []*http.Request{httptest.NewRequest("GET", "/x", nil), httptest.NewRequest("GET", "/skipped", nil), httptest.NewRequest("PUT", "/x", nil), {URL: &url.URL{}}} {
			func() {
				defer func() { _ = recover() }()
				h.ServeHTTP(httptest.NewRecorder(), r)
			}()
		}
		if seen != want || inFlight() != 0 {
			t.Errorf("with %d handlers %d requests were remembered, want %d, and %d still are", n+1, seen, want, inFlight())
		}
	}
}

// A request that no route matches has no area: what names one is a path, and anybody
// makes those up. Nor has it one inside of another middleware.
func TestUnmatchedRequestsHaveNoArea(t *testing.T) {
	cfg := Config{Area: func(r *http.Request) string { return strings.Split(r.URL.Path, "/")[1] }}
	for path, want := range map[string]map[string]int64{
		"/novels/1": counted("GET /novels/{id}", "status_2xx latency api.requests.novels"),
		"/made/up":  counted("(unmatched)", "status_4xx latency"),
	} {
		for name, build := range map[string]func(counter) http.Handler{
			"alone": around(cfg, on("GET /novels/{id}", hello)),
			"inside": func(count counter) http.Handler {
				return count(Config{})(auth(count(cfg)(on("GET /novels/{id}", hello))))
			},
			"hidden": func(count counter) http.Handler {
				return count(cfg)(compressing(copying(count(cfg)(on("GET /novels/{id}", hello)))))
			},
		} {
			test{name: path + " " + name, request: "GET " + path, build: build, want: want, edit: login}.run(t)
		}
	}
	test{name: "Route panics", build: around(Config{Area: is("a"), Route: panics}, http.HandlerFunc(hello)), want: counted("(error)", "status_2xx latency api.requests.a")}.run(t)
}
