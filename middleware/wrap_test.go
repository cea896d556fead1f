package middleware

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

// full is a ResponseWriter with all the optional interfaces, which writes down what
// reaches it.
type full struct{ log []string }

var (
	errFull = errors.New("from inside")
	closed  = make(<-chan bool)
)

func (w *full) call(format string, args ...any) error {
	w.log = append(w.log, fmt.Sprintf(format, args...))
	return errFull
}

func (w *full) Header() http.Header                      { return http.Header{} }
func (w *full) WriteHeader(status int)                   { w.call("WriteHeader %d", status) }
func (w *full) Write(p []byte) (int, error)              { return 1, w.call("Write %s", p) }
func (w *full) WriteString(s string) (int, error)        { return 2, w.call("WriteString %s", s) }
func (w *full) Flush()                                   { w.call("Flush") }
func (w *full) FlushError() error                        { return w.call("FlushError") }
func (w *full) EnableFullDuplex() error                  { return w.call("EnableFullDuplex") }
func (w *full) SetReadDeadline(at time.Time) error       { return w.call("SetReadDeadline %d", at.Unix()) }
func (w *full) SetWriteDeadline(at time.Time) error      { return w.call("SetWriteDeadline %d", at.Unix()) }
func (w *full) Push(s string, o *http.PushOptions) error { return w.call("Push %s %v", s, o) }

func (w *full) ReadFrom(src io.Reader) (int64, error) {
	text, _ := io.ReadAll(src)
	return 3, w.call("ReadFrom %s", text)
}

func (w *full) CloseNotify() <-chan bool {
	w.call("CloseNotify")
	return closed
}

func (w *full) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	w.call("Hijack")
	return nil, new(bufio.ReadWriter), nil
}

// exercise calls the methods of w that has has, too, and returns their results.
func exercise(w, has http.ResponseWriter) (results []string) {
	result := func(values ...any) { results = append(results, fmt.Sprint(values...)) }
	w.WriteHeader(http.StatusTeapot)
	result(w.Write([]byte("bytes")))
	if _, ok := has.(http.Flusher); ok {
		w.(http.Flusher).Flush()
		result(w.(flushError).FlushError())
	}
	if _, ok := has.(notifier); ok {
		result(w.(notifier).CloseNotify() == closed)
	}
	if _, ok := has.(http.Hijacker); ok {
		_, rw, err := w.(http.Hijacker).Hijack()
		result(rw != nil, err)
	}
	if _, ok := has.(io.ReaderFrom); ok {
		result(w.(io.ReaderFrom).ReadFrom(strings.NewReader("source")))
	}
	if _, ok := has.(http.Pusher); ok {
		result(w.(http.Pusher).Push("/style.css", &http.PushOptions{Method: "HEAD"}))
	}
	if _, ok := has.(io.StringWriter); ok {
		result(w.(io.StringWriter).WriteString("text"))
	}
	return results
}

// writers are ResponseWriters with each combination of the optional interfaces:
// structs that embed them, made at run time. reflect gives such a struct the methods, but no bodies: type assertions
// find them, and nobody may call them. The order is that of the methods' names,
// or they are not found.
func writers(yield func(http.ResponseWriter) bool) {
	type head interface{ Header() http.Header }
	type deadliner interface {
		SetReadDeadline(time.Time) error
		SetWriteDeadline(time.Time) error
	}
	type write interface {
		Write([]byte) (int, error)
		WriteHeader(int)
	}
	parts := []reflect.Type{
		reflect.TypeFor[notifier](), reflect.TypeFor[interface{ EnableFullDuplex() error }](), reflect.TypeFor[http.Flusher](),
		reflect.TypeFor[flushError](), reflect.TypeFor[head](), reflect.TypeFor[http.Hijacker](),
		reflect.TypeFor[http.Pusher](), reflect.TypeFor[io.ReaderFrom](), reflect.TypeFor[deadliner](),
		reflect.TypeFor[write](), reflect.TypeFor[io.StringWriter](),
	}
	const required = 1<<4 | 1<<9 // head and write
	for has := range 1 << len(parts) {
		if has&required != required {
			continue
		}
		var fields []reflect.StructField
		for i, part := range parts {
			if has&(1<<i) != 0 {
				fields = append(fields, reflect.StructField{Name: fmt.Sprint("Part", i), Type: part, Anonymous: true})
			}
		}
		if w := reflect.Zero(reflect.StructOf(fields)); !yield(w.Interface().(http.ResponseWriter)) {
			return
		}
	}
}

// methods are the exported ones of w: all that a type assertion can find.
func methods(w http.ResponseWriter) []string {
	var all []string
	for m := range reflect.TypeOf(w).Methods() {
		all = append(all, m.Name)
	}
	return all
}

// wants are the methods that a writer around one with these has to have.
func wants(inner []string) []string {
	all := []string{"Unwrap"}
	for _, m := range inner {
		switch m {
		case "Flush":
			all = append(all, "Flush", "FlushError")
		case "FlushError", "EnableFullDuplex", "SetReadDeadline", "SetWriteDeadline": // by Unwrap
		default:
			all = append(all, m)
		}
	}
	slices.Sort(all)
	return all
}

func TestWriterHasExactlyTheInterfacesOfTheInnerOne(t *testing.T) {
	combinations := map[string]bool{}
	var met kinds
	for inner := range writers {
		want := wants(methods(inner))
		combinations[fmt.Sprint(want)] = true
		for range 2 { // more than are remembered
			if k := met.find(inner); k.has != optional(inner) || !k.plain {
				t.Fatalf("%v: %+v", want, k)
			}
		}
		c, r := &response{}, httptest.NewRequest("GET", "/", nil)
		w := wrap(c, optional(inner))
		if got := methods(w); !slices.Equal(got, want) {
			t.Errorf("has   %v\nneeds %v", got, want)
		}
		if n := testing.AllocsPerRun(10, func() { w = wrap(c, optional(inner)) }); n != 0 {
			t.Errorf("%v: %v allocations, want none", want, n)
		}

		// What it has it also does, on a writer that can do everything.
		direct, through := new(full), new(full)
		c.inner, c.in, c.came, c.request = target{through}, &handler{middleware: &middleware{rec: tally{}}}, r, r
		c.open()
		if met.find(w).plain {
			t.Errorf("%v: a response is none", want)
		}
		results := exercise(direct, w)
		if got := exercise(w, w); !slices.Equal(got, results) || !slices.Equal(through.log, direct.log) {
			t.Errorf("%v:\ncalls %q and returns %q,\nnot   %q and %q", want, through.log, got, direct.log, results)
		}
	}
	if len(combinations) != 64 {
		t.Errorf("saw %d combinations, want 64", len(combinations))
	}
}

// Counted first, answered then: a crash in between may count what nobody saw, but
// no answer is missing. WriteHeader, and whatever hands on nothing, answers nothing. A
// hijack counts when it has happened, and so does a flush that might be refused.
func TestAnsweredIsCounted(t *testing.T) {
	for _, tt := range []struct {
		name string
		call func(w fullWriter)
		want string
	}{
		{"WriteHeader", func(w fullWriter) { w.WriteHeader(404) }, "WriteHeader 404"},
		{"WriteHeader twice", func(w fullWriter) { w.WriteHeader(404); w.WriteHeader(500); w.Write([]byte("a")) },
			"WriteHeader 404, WriteHeader 500, status_4xx, Write a"},
		{"WriteHeader 103", func(w fullWriter) { w.WriteHeader(103); w.Write([]byte("a")) }, "WriteHeader 103, status_2xx, Write a"},
		{"WriteHeader 101", func(w fullWriter) { w.WriteHeader(101); w.Flush() }, "WriteHeader 101, status_1xx, Flush"},
		{"Write", func(w fullWriter) { w.Write([]byte("a")); w.Write([]byte("b")) }, "status_2xx, Write a, Write b"},
		{"Write nothing", func(w fullWriter) { w.Write(nil) }, "Write "},
		{"Write nothing, then WriteHeader", func(w fullWriter) { w.Write(nil); w.WriteHeader(500); w.Flush() },
			"Write , WriteHeader 500, status_2xx, Flush"},
		{"WriteString", func(w fullWriter) { w.WriteString("a") }, "status_2xx, WriteString a"},
		{"WriteString of nothing", func(w fullWriter) { w.WriteString("") }, "WriteString "},
		{"Flush", func(w fullWriter) { w.WriteHeader(500); w.Flush() }, "WriteHeader 500, status_5xx, Flush"},
		{"FlushError", func(w fullWriter) { w.FlushError() }, "FlushError, status_2xx"},
		{"Hijack", func(w fullWriter) { w.Hijack() }, "Hijack, status_1xx"},
		{"Hijack after WriteHeader", func(w fullWriter) { w.WriteHeader(200); w.Hijack() }, "WriteHeader 200, Hijack, status_2xx"},
		{"ReadFrom", func(w fullWriter) { w.WriteHeader(500); w.ReadFrom(strings.NewReader("a")) }, "WriteHeader 500, status_5xx, ReadFrom a"},
		{"ReadFrom nothing", func(w fullWriter) { w.ReadFrom(strings.NewReader("")); w.ReadFrom(iotest.ErrReader(errFull)) }, ""},
		{"CloseNotify", func(w fullWriter) { w.CloseNotify() }, "CloseNotify"},
		{"Push", func(w fullWriter) { w.Push("/", nil) }, "Push / <nil>"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inner := new(full)
			rec := recorderFunc(func(name string, n int64) {
				if i := strings.Index(name, "status_"); i > 0 {
					inner.call("%s", name[i:])
				}
			})
			var got string // before the handler returns
			New(rec, Config{})(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				tt.call(w.(fullWriter))
				got = strings.Join(inner.log, ", ")
			})).ServeHTTP(inner, httptest.NewRequest("GET", "/", nil))
			if got != tt.want {
				t.Errorf("%s, want %s", got, tt.want)
			}
		})
	}
}

type fullWriter interface {
	http.ResponseWriter
	http.Flusher
	flushError
	notifier
	http.Hijacker
	io.ReaderFrom
	http.Pusher
	io.StringWriter
}

func TestGeneratedFileIsUpToDate(t *testing.T) {
	generator, err := filepath.Abs("generate.go")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "go", "run", generator)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	want, err := os.ReadFile(filepath.Join(dir, "wrap_generated.go"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile("wrap_generated.go")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("wrap_generated.go is not what generate.go writes: run go generate")
	}
}

// What only an http.ResponseController asks for it finds through a response, and what
// it does behind an inner writer is counted all the same.
func TestResponseControllerIsServed(t *testing.T) {
	for _, tt := range []struct {
		name, want string
		inner      func(*full) http.ResponseWriter
	}{
		{"itself", "SetReadDeadline 1, SetWriteDeadline 2, EnableFullDuplex, FlushError, status_2xx, Hijack",
			func(w *full) http.ResponseWriter { return w }},
		{"by Unwrap", "SetReadDeadline 1, SetWriteDeadline 2, EnableFullDuplex, FlushError, status_2xx, Hijack",
			func(w *full) http.ResponseWriter { return unwrapper{w} }},
		{"by Unwrap twice", "SetReadDeadline 1, SetWriteDeadline 2, EnableFullDuplex, FlushError, status_2xx, Hijack",
			func(w *full) http.ResponseWriter { return unwrapper{unwrapper{w}} }},
		{"FlushError alone", "FlushError, status_2xx",
			func(w *full) http.ResponseWriter {
				return struct {
					http.ResponseWriter
					flushError
				}{w, w}
			}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inner := new(full)
			rec := recorderFunc(func(name string, n int64) {
				if i := strings.Index(name, "status_"); i > 0 {
					inner.call("%s", name[i:])
				}
			})
			New(rec, Config{})(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				found := 0
				for range responses(w, nil, place{}, false) {
					found++
				}
				if found != 1 {
					t.Errorf("found %d responses, want one", found)
				}
				c := http.NewResponseController(w)
				c.SetReadDeadline(time.Unix(1, 0))
				c.SetWriteDeadline(time.Unix(2, 0))
				c.EnableFullDuplex()
				c.Flush()
				c.Hijack()
				if got := strings.Join(inner.log, ", "); got != tt.want {
					t.Errorf("%s, want %s", got, tt.want)
				}
			})).ServeHTTP(tt.inner(inner), httptest.NewRequest("GET", "/", nil))
		})
	}
}

// Deadlines and full duplex of real servers are reached through a response.
func TestDeadlinesOfRealServers(t *testing.T) {
	for _, protocol := range protocols {
		for name, around := range map[string]func(http.ResponseWriter) http.ResponseWriter{
			"alone":     func(w http.ResponseWriter) http.ResponseWriter { return w },
			"by Unwrap": func(w http.ResponseWriter) http.ResponseWriter { return unwrapper{w} },
		} {
			t.Run(protocol+" "+name, func(t *testing.T) {
				var read, duplex, deadline error
				inside := New(tally{}, Config{})(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					c := http.NewResponseController(w)
					duplex = c.EnableFullDuplex()
					deadline = errors.Join(c.SetWriteDeadline(time.Time{}), c.SetReadDeadline(time.Now().Add(-time.Second)))
					_, read = r.Body.Read(make([]byte, 1))
				}))
				body, hold := io.Pipe() // nothing comes
				defer hold.Close()
				exchange(t, protocol, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					inside.ServeHTTP(around(w), r)
				}), "POST /", func(r *http.Request) { r.Body = body })
				if duplex != nil || deadline != nil {
					t.Errorf("full duplex: %v, deadlines: %v", duplex, deadline)
				}
				if !errors.Is(read, os.ErrDeadlineExceeded) {
					t.Errorf("read: %v, want %v", read, os.ErrDeadlineExceeded)
				}
			})
		}
	}
}
