package middleware

import (
	"bytes"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"testing"
)

// reading is a file whose bytes are others, by where they stand, and are counted.
type reading struct {
	*os.File
	n int
}

func (f *reading) Read(p []byte) (int, error) {
	n, err := f.File.Read(p)
	for i := range p[:n] {
		p[i] ^= byte(f.n + i)
	}
	f.n += n
	return n, err
}

// What is copied is answered as it is read: once, and by nobody else's Read, whatever
// can be done with it beside.
func TestWhatIsCopiedIsReadOnce(t *testing.T) {
	const size = 10_000
	plain := bytes.Repeat([]byte("0123456789"), size/10)
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, plain, 0o600); err != nil {
		t.Fatal(err)
	}
	other := bytes.Clone(plain)
	for i := range other {
		other[i] ^= byte(i)
	}
	open := func(t *testing.T) *os.File {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		return f
	}
	for what, tt := range map[string]struct {
		open func(t *testing.T) io.Reader
		want []byte
	}{
		"a file":         {func(t *testing.T) io.Reader { return open(t) }, plain},
		"one's own file": {func(t *testing.T) io.Reader { return &reading{open(t), 0} }, other},
		"a section":      {func(t *testing.T) io.Reader { return io.NewSectionReader(open(t), 0, size) }, plain},
		"a buffer":       {func(t *testing.T) io.Reader { return struct{ io.ReadSeeker }{bytes.NewReader(plain)} }, plain},
		"a pipe": {func(t *testing.T) io.Reader {
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = r.Close() })
			go func() {
				_, _ = w.Write(plain)
				_ = w.Close()
			}()
			return r
		}, plain},
	} {
		for how, send := range map[string]func(w io.Writer, src io.Reader) (int64, error){
			"by ReadFrom": func(w io.Writer, src io.Reader) (int64, error) { return w.(io.ReaderFrom).ReadFrom(src) },
			"of a length": func(w io.Writer, src io.Reader) (int64, error) { return io.CopyN(w, src, size) },
			"limited twice": func(w io.Writer, src io.Reader) (int64, error) {
				return io.CopyN(w, io.LimitReader(src, size), size)
			},
		} {
			for _, protocol := range protocols {
				if how == "by ReadFrom" && protocol == "HTTP/2.0" {
					continue // it has none
				}
				t.Run(what+" "+how+" "+protocol, func(t *testing.T) {
					rec := new(counts)
					src := tt.open(t)
					var n int64
					var err error
					got := exchange(t, protocol, New(rec, Config{})(on("/x", func(w http.ResponseWriter, r *http.Request) {
						w.Header().Set("Content-Type", "application/octet-stream")
						n, err = send(w, src)
					})), "GET /x", nil)
					if got.Err != "" || got.Body != string(tt.want) || n != size || err != nil {
						t.Errorf("%d bytes are answered (%s), %d copied, %v; as they are read: %t", len(got.Body), got.Err, n, err, got.Body == string(tt.want))
					}
					if own, ok := src.(*reading); ok && own.n != size {
						t.Errorf("%d bytes were read, want %d", own.n, size)
					}
					rec.check(t, counted("GET /x", "status_2xx latency"))
				})
			}
		}
	}
}
