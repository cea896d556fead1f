package middleware

import (
	"bufio"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
)

// fragment is a writer for one part of a response: what is written to it is its own, and all
// else the whole's.
type fragment struct {
	http.ResponseWriter
	header http.Header
	body   []byte
}

func (p *fragment) Header() http.Header { return p.header }
func (p *fragment) WriteHeader(int)     {}
func (p *fragment) Write(b []byte) (int, error) {
	p.body = append(p.body, b...)
	return len(b), nil
}

// Requests that a handler serves while it is at work on another one are requests: each
// counts, once, under its own route, whatever it is written to, and however it was made.
func TestEachPartOfABatchIsCounted(t *testing.T) {
	writers := map[string]func(http.ResponseWriter) http.ResponseWriter{
		"a recorder": func(http.ResponseWriter) http.ResponseWriter { return httptest.NewRecorder() },
		"embedding":  func(w http.ResponseWriter) http.ResponseWriter { return &fragment{w, http.Header{}, nil} },
		"in a field": func(w http.ResponseWriter) http.ResponseWriter {
			return &keeping{w: &fragment{w, http.Header{}, nil}}
		},
		"unwrapping": func(w http.ResponseWriter) http.ResponseWriter { return unwrapper{&fragment{w, http.Header{}, nil}} },
		"unwrapping, embedding": func(w http.ResponseWriter) http.ResponseWriter {
			return &fragment{unwrapper{w}, http.Header{}, nil}
		},
	}
	read := func(r *http.Request) *http.Request {
		sub, err := http.ReadRequest(bufio.NewReader(strings.NewReader("GET /x HTTP/1.1\r\nHost: example.com\r\n\r\n")))
		if err != nil {
			panic(err)
		}
		return sub.WithContext(r.Context())
	}
	made := func(r *http.Request) *http.Request {
		sub, err := http.NewRequestWithContext(r.Context(), "GET", "/x", nil)
		if err != nil {
			panic(err)
		}
		return sub
	}
	requests := map[string]func(*http.Request) *http.Request{
		"made": made,
		"read": read, // with the very URI of the whole
		"made, with its headers": func(r *http.Request) *http.Request {
			sub := made(r)
			sub.Header = r.Header
			return sub
		},
		"copied": func(r *http.Request) *http.Request {
			sub := r.WithContext(r.Context())
			sub.Method = "GET"
			return sub
		},
		"cloned": func(r *http.Request) *http.Request {
			sub := r.Clone(r.Context())
			sub.Method = "GET"
			return sub
		},
	}
	for _, cfg := range []Config{{}, {Context: true}} {
		for writer, write := range writers {
			for request, ask := range requests {
				for _, by := range []string{"the same handler", "another handler", "another middleware"} {
					if (request == "copied" || request == "cloned") && (by != "the same handler" || strings.HasPrefix(writer, "unwrapping")) {
						continue // it cannot be told from one that was handed on
					}
					rec := new(counts)
					name := writer + ", " + request + ", by " + by
					if cfg.Context {
						name += ", with a context"
					}
					m := http.NewServeMux()
					count := New(rec, cfg)
					root := count(m)
					parts := root
					switch by {
					case "another handler":
						parts = count(m)
					case "another middleware":
						parts = New(rec, cfg)(m)
					}
					m.HandleFunc("GET /x", func(w http.ResponseWriter, r *http.Request) {
						if cfg.Context {
							w = ResponseWriter(r.Context())
						}
						SetRoute(w, "/part")
						SetUser(w, "7")
						_, _ = io.WriteString(w, "hello")
					})
					m.HandleFunc("POST /x", func(w http.ResponseWriter, r *http.Request) {
						for range 3 {
							parts.ServeHTTP(write(w), ask(r))
						}
						hello(w, r)
					})
					t.Run(name, func(t *testing.T) {
						exchange(t, "HTTP/1.1", root, "POST /x", nil)
						rec.check(t, map[string]int64{
							"api.POST /x.requests": 1, "api.POST /x.status_2xx": 1, "api.POST /x.latency": 1,
							"api.GET /part.requests": 3, "api.GET /part.status_2xx": 3, "api.GET /part.latency": 3,
							"user.7.requests": 3,
						})
					})
				}
			}
		}
	}
}

// A copy of a request is no other, whoever copied what of it.
func TestCopyOfARequestIsCountedOnce(t *testing.T) {
	copies := map[string]func(*http.Request) *http.Request{
		"WithContext": func(r *http.Request) *http.Request { return r.WithContext(r.Context()) },
		"Clone":       func(r *http.Request) *http.Request { return r.Clone(r.Context()) },
		"rewritten": func(r *http.Request) *http.Request {
			r = r.WithContext(r.Context())
			r.RequestURI = "/app/x?"
			return r
		},
		"itself, rewritten": func(r *http.Request) *http.Request {
			r.Header, r.RequestURI = r.Header.Clone(), "/app/x?"
			return r
		},
		"itself, rewritten and copied": func(r *http.Request) *http.Request {
			r.Header, r.RequestURI = r.Header.Clone(), "/app/x?"
			return r.Clone(r.Context())
		},
	}
	betweens := hiders()
	betweens["nothing"] = layerless
	betweens["an unwrapping writer"] = hides(func(w http.ResponseWriter) http.ResponseWriter { return unwrapper{w} })
	for between, layer := range betweens {
		for name, copied := range copies {
			if strings.HasPrefix(name, "itself") && (between == "timeout" || between == "a copy") {
				continue // it is a copy that is
			}
			test{name: between + ", " + name, request: "GET /app/x", want: counted("GET /x", "status_2xx latency"), build: func(count counter) http.Handler {
				inner := http.StripPrefix("/app", count(Config{})(on("/x", hello)))
				return count(Config{})(layer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					inner.ServeHTTP(w, copied(r))
				})))
			}}.run(t)
		}
	}
	// Nor is one that is handed to the root again.
	test{name: "again", want: counted("GET /y", "status_2xx latency"), build: func(count counter) http.Handler {
		m := http.NewServeMux()
		root := count(Config{})(m)
		m.HandleFunc("/y", hello)
		m.HandleFunc("/x", func(w http.ResponseWriter, r *http.Request) {
			http.StripPrefix("/x", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				r.URL.Path = "/y"
				root.ServeHTTP(unwrapper{w}, r)
			})).ServeHTTP(w, r)
		})
		return root
	}}.run(t)
	// Nor one that has nothing to be known by, where it is not copied.
	rec := new(counts)
	count := New(rec, Config{})
	count(count(on("/x", hello))).ServeHTTP(httptest.NewRecorder(), &http.Request{URL: &url.URL{Path: "/x"}})
	rec.check(t, counted("GET /x", "status_2xx latency"))
}
