package middleware

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// A stream of whatever type is no slow request.
func TestStreamsOfAnyTypeLeaveNoLatency(t *testing.T) {
	for contentType, stream := range map[string]bool{
		"text/event-stream":                                 true,
		"Text/Event-Stream; charset=utf-8":                  true,
		"application/x-ndjson":                              true,
		"application/ndjson;charset=utf-8":                  true,
		"application/jsonl":                                 true,
		"application/x-jsonlines":                           true,
		"application/jsonlines ; charset=utf-8":             true,
		"application/json-lines":                            true,
		"application/stream+json":                           true,
		"application/json-seq":                              true,
		"application/geo+json-seq":                          true,
		"multipart/x-mixed-replace; boundary=frame":         true,
		"application/vnd.amazon.eventstream":                true,
		"application/grpc":                                  true,
		"application/grpc+proto":                            true,
		"application/gRPC-Web":                              true,
		"application/grpc-web+proto":                        true,
		"application/grpc-web-text":                         true,
		"application/grpc-web-text+proto":                   true,
		"application/connect+proto":                         true,
		"application/connect+json":                          true,
		"multipart/mixed; boundary=-; subscriptionSpec=1.0": true,
		"application/json;stream=watch":                     true,
		"application/vnd.docker.raw-stream":                 true,

		"":                                          false,
		"text/plain; charset=utf-8":                 false,
		"text/html":                                 false,
		"text/event-streams":                        false,
		"application/json":                          false,
		"application/json; charset=utf-8":           false,
		"application/octet-stream":                  false,
		"application/proto":                         false, // Connect, of a single message
		"application/connected+json":                false,
		"application/grpcish":                       false,
		"application/grpc-webs":                     false,
		"application/jsonlogic":                     false,
		"multipart/mixed; boundary=batch":           false,
		"application/x-" + strings.Repeat("x", 100): false,
	} {
		rec := new(counts)
		New(rec, Config{})(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", contentType)
			w.Write([]byte("piece"))
			w.Header().Set("Content-Type", "text/plain") // too late
		})).ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil))
		want := "status_2xx"
		if !stream {
			want += " latency"
		}
		rec.mu.Lock()
		if got := rec.n["api.(unmatched).latency"]; (got == 0) != stream || rec.n["api.(unmatched).status_2xx"] != 1 {
			t.Errorf("%q: counted %v, want %s", contentType, rec.n, want)
		}
		rec.mu.Unlock()
	}
}

func BenchmarkIsStream(b *testing.B) {
	for _, contentType := range []string{"application/json; charset=utf-8", "text/html; charset=utf-8", "image/png"} {
		h := http.Header{"Content-Type": {contentType}}
		b.Run(contentType, func(b *testing.B) {
			for b.Loop() {
				if isStream(h) {
					b.Fatal("a stream")
				}
			}
		})
	}
}
