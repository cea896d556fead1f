package routers

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"testing"

	"github.com/felixge/httpsnoop"

	"github.com/usagekit/usagekit/middleware"
)

// methods are the exported ones of w, with their signatures: all that a type
// assertion can find.
func methods(w http.ResponseWriter) []string {
	v := reflect.ValueOf(w)
	var all []string
	for i := range v.NumMethod() {
		all = append(all, v.Type().Method(i).Name+v.Method(i).Type().String())
	}
	return all
}

// A library that many middlewares wrap with finds the same optional interfaces, around
// the writers of real servers, too.
func TestWriterHasTheInterfacesThatHTTPSnoopGives(t *testing.T) {
	check := func(t *testing.T, inner http.ResponseWriter) {
		t.Helper()
		want := methods(httpsnoop.Wrap(inner, httpsnoop.Hooks{}))
		want = slices.DeleteFunc(want, func(m string) bool { // an http.ResponseController finds these by Unwrap
			return slices.Contains([]string{
				"EnableFullDuplexfunc() error", "SetReadDeadlinefunc(time.Time) error", "SetWriteDeadlinefunc(time.Time) error",
			}, m)
		})
		middleware.New(new(recorder), middleware.Config{})(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if got := methods(w); !slices.Equal(got, want) {
				t.Errorf("around %T: has %q\nneeds %q", inner, got, want)
			}
		})).ServeHTTP(inner, httptest.NewRequest("GET", "/", nil))
	}
	for has := range 1 << 6 {
		check(t, combination(has))
	}
	for _, http2 := range []bool{false, true} {
		srv, _, serving := serve(t, http2, func(func(http.Handler) http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { check(t, w) })
		})
		get(t, srv, "/")
		serving.Wait()
	}
}

// combination is a ResponseWriter with some of the optional interfaces: a struct that
// embeds them, made at run time. The order is that of the methods' names.
func combination(has int) http.ResponseWriter {
	type flusher interface {
		Flush()
		FlushError() error
	}
	parts := []struct {
		bit int
		of  reflect.Type
	}{
		{1 << 0, reflect.TypeFor[interface{ CloseNotify() <-chan bool }]()},
		{1 << 1, reflect.TypeFor[flusher]()},
		{0, reflect.TypeFor[interface{ Header() http.Header }]()},
		{1 << 2, reflect.TypeFor[http.Hijacker]()},
		{1 << 3, reflect.TypeFor[http.Pusher]()},
		{1 << 4, reflect.TypeFor[io.ReaderFrom]()},
		{0, reflect.TypeFor[interface {
			Write([]byte) (int, error)
			WriteHeader(int)
		}]()},
		{1 << 5, reflect.TypeFor[io.StringWriter]()},
	}
	var fields []reflect.StructField
	for i, p := range parts {
		if has&p.bit == p.bit {
			fields = append(fields, reflect.StructField{Name: fmt.Sprint("Part", i), Type: p.of, Anonymous: true})
		}
	}
	return reflect.Zero(reflect.StructOf(fields)).Interface().(http.ResponseWriter)
}
