package middleware

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	live "github.com/usagekit/usagekit/internal/counter"
)

// quiet is the writer of a server that sends nothing.
type quiet struct{ header http.Header }

func (q *quiet) Header() http.Header               { return q.header }
func (q *quiet) Write(p []byte) (int, error)       { return len(p), nil }
func (q *quiet) WriteString(s string) (int, error) { return len(s), nil }
func (q *quiet) WriteHeader(int)                   {}
func (q *quiet) Flush()                            {}

// BenchmarkRequest is what a request costs beyond what "bare" says, where nothing is
// sent: its context is one that a server cancels.
func BenchmarkRequest(b *testing.B) {
	body := []byte("hello, hello, hello")
	write := func(w http.ResponseWriter, r *http.Request) { _, _ = w.Write(body) }
	header := func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusOK)
		_, _ = w.Write(body)
	}
	user := Config{User: func(*http.Request) string { return "42" }}
	for _, bb := range []struct {
		name  string
		h     http.HandlerFunc
		count func() func(http.Handler) http.Handler
	}{
		{"bare", header, func() func(http.Handler) http.Handler { return func(h http.Handler) http.Handler { return h } }},
		{"nothing", func(http.ResponseWriter, *http.Request) {}, func() func(http.Handler) http.Handler { return New(nowhere{}, Config{}) }},
		{"Write", write, func() func(http.Handler) http.Handler { return New(nowhere{}, Config{}) }},
		{"WriteHeader", header, func() func(http.Handler) http.Handler { return New(nowhere{}, user) }},
		{"SetUser", func(w http.ResponseWriter, r *http.Request) { SetUser(w, "42"); header(w, r) }, func() func(http.Handler) http.Handler { return New(nowhere{}, Config{}) }},
		{"pieces", func(w http.ResponseWriter, r *http.Request) {
			for range 100 {
				_, _ = io.WriteString(w, "piece")
			}
		}, func() func(http.Handler) http.Handler { return New(nowhere{}, Config{}) }},
		{"a Set", header, func() func(http.Handler) http.Handler {
			return New(live.New(100_000, func(string, int64) {}, nil), user)
		}},
	} {
		b.Run(bb.name, func(b *testing.B) {
			ctx, cancel := context.WithCancel(b.Context())
			defer cancel()
			r := httptest.NewRequestWithContext(ctx, "GET", "/novels/7", nil)
			r.Pattern = "GET /novels/{id}"
			w := &quiet{http.Header{"Content-Type": {"application/json; charset=utf-8"}}}
			h := bb.count()(bb.h)
			b.ReportAllocs()
			for b.Loop() {
				h.ServeHTTP(w, r)
			}
		})
	}
}

// nowhere counts nothing, in no time.
type nowhere struct{}

func (nowhere) Add(string, int64)          {}
func (nowhere) Counter(string) func(int64) { return func(int64) {} }
