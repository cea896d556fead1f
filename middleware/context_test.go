package middleware

import (
	"bytes"
	"context"
	"io"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"os"
	"testing"
)

// rpc is a handler as frameworks have them that give a context and no ResponseWriter.
func rpc(call func(ctx context.Context)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		call(context.WithValue(r.Context(), userKey{}, "framework"))
		_, _ = io.WriteString(w, "hello")
	}
}

func name(ctx context.Context) {
	SetUser(ResponseWriter(ctx), "7")
	SetRoute(ResponseWriter(ctx), "/novels.v1.Novels/Write")
}

// Who has only a context says user and route by it, where that was asked for; else
// nothing happens.
func TestUserAndRouteByContext(t *testing.T) {
	all := counted("GET /novels.v1.Novels/Write", "status_2xx latency user.7.requests")
	context := Config{Context: true}
	for _, tt := range []test{
		{name: "asked for", build: around(context, rpc(name)), want: all},
		{name: "not asked for", build: around(Config{}, on("/x", rpc(name))), want: counted("GET /x", "status_2xx latency")},
		{name: "the route is seen as without", build: around(context, on("/x", hello)), want: counted("GET /x", "status_2xx latency")},
		{name: "asked for outside", build: func(count counter) http.Handler { return count(context)(auth(count(Config{})(rpc(name)))) }, edit: login, want: all},
		{name: "asked for inside", build: func(count counter) http.Handler { return count(Config{})(auth(count(context)(rpc(name)))) }, edit: login, want: all},
		{name: "behind a writer that hides it", build: func(count counter) http.Handler {
			return count(context)(compressing(count(context)(rpc(name))))
		}, want: all},
		{name: "behind a buffer", build: func(count counter) http.Handler {
			return count(context)(buffering(rpc(name)))
		}, want: all},
		{name: "behind a buffer, of two", build: func(count counter) http.Handler {
			return count(context)(buffering(count(context)(rpc(name))))
		}, want: all},
		{name: "skipped", build: func(count counter) http.Handler {
			return count(Config{Context: true, Skip: []string{"/x"}})(rpc(name))
		}},
	} {
		tt.run(t)
	}
	if w := ResponseWriter(t.Context()); w != nil {
		t.Errorf("a context of nobody's has %v", w)
	}
}

// Code outside of the middleware finds in its request what the router left there, as
// it does without the middleware.
func TestContextLeavesThePatternOutside(t *testing.T) {
	for _, asked := range []bool{false, true} {
		for path, want := range map[string]string{"/x/1": "GET /x/{id}", "/panic": "/panic"} {
			m := http.NewServeMux()
			m.HandleFunc("GET /x/{id}", hello)
			m.HandleFunc("/panic", explode)
			h := New(tally{}, Config{Context: asked})(m)
			r := httptest.NewRequest("GET", path, nil)
			func() {
				defer func() { _ = recover() }()
				h.ServeHTTP(httptest.NewRecorder(), r)
			}()
			if r.Pattern != want {
				t.Errorf("Context %t: the pattern outside is %q, want %q", asked, r.Pattern, want)
			}
		}
	}
}

// The files that a large form was kept in go with their request, as they do without the
// middleware: the server looks for them in the request that it made.
func TestContextLeavesNoFilesOfForms(t *testing.T) {
	for _, asked := range []bool{false, true} {
		dir := t.TempDir()
		t.Setenv("TMPDIR", dir)
		during := make(chan int, 1)
		kept := func() int {
			entries, err := os.ReadDir(dir)
			if err != nil {
				t.Error(err)
			}
			return len(entries)
		}
		srv := httptest.NewServer(New(nowhere{}, Config{Context: asked})(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			if err := r.ParseMultipartForm(1); err != nil {
				t.Error(err)
			}
			during <- kept()
		})))
		var body bytes.Buffer
		form := multipart.NewWriter(&body)
		file, err := form.CreateFormFile("novel", "novel.txt")
		if err != nil {
			t.Fatal(err)
		}
		_, _ = file.Write(bytes.Repeat([]byte("all work and no play "), 1<<16))
		form.Close()
		resp, err := http.Post(srv.URL, form.FormDataContentType(), &body)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		srv.Close() // waits for the request's end
		if n := <-during; n == 0 {
			t.Fatal("the form was kept in no file: this test cannot see any")
		}
		if n := kept(); n > 0 {
			t.Errorf("asked for: %v: %d files are left", asked, n)
		}
	}
}
