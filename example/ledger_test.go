package main

import (
	"bufio"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// Every request leaves its two marks, those of a second process in the same file.
func TestLedger(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger")
	requests := logged(t)
	marks := map[string]int{}
	for range 2 {
		e, p := start(t, "-ledger", path), newReplay(t)
		p.mustSend(requests, e)
		e.stop(syscall.SIGTERM)
		for _, r := range requests {
			where, _, _ := strings.Cut(r.path, "?")
			for _, mark := range []string{"b ", "e "} {
				marks[mark+r.method+" /site"+where+" "+r.user]++
			}
		}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		marks[strings.TrimSuffix(line, "\n")]--
	}
	for mark, n := range marks {
		if n != 0 {
			t.Errorf("%q: %d are missing", mark, n)
		}
	}
}

// The first mark stands there before the handler runs, the second as soon as
// the response has begun, however it begins.
func TestLedgerMarks(t *testing.T) {
	for _, c := range []struct {
		name   string
		answer func(http.ResponseWriter)
		marks  string // while the handler is still at work
	}{
		{"nothing", func(http.ResponseWriter) {}, "b"},
		{"write", func(w http.ResponseWriter) { _, _ = io.WriteString(w, "x") }, "be"},
		{"header", func(w http.ResponseWriter) { w.WriteHeader(http.StatusNoContent) }, "b"}, // net/http keeps it until there is more
		{"early hints", func(w http.ResponseWriter) { w.WriteHeader(http.StatusEarlyHints) }, "b"},
		{"flusher", func(w http.ResponseWriter) { w.(http.Flusher).Flush() }, "be"},
		{"flush", func(w http.ResponseWriter) { _ = http.NewResponseController(w).Flush() }, "be"},
		{"twice", func(w http.ResponseWriter) { w.WriteHeader(http.StatusOK); _, _ = io.WriteString(w, "x") }, "be"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "ledger")
			l, err := openLedger(path)
			if err != nil {
				t.Fatal(err)
			}
			defer l.file.Close()
			srv := httptest.NewServer(l.wrap(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				c.answer(w)
				if got := marks(t, path); got != c.marks {
					t.Errorf("the handler sees %q, want %q", got, c.marks)
				}
			})))
			resp, err := client.Get(srv.URL + "/a")
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			srv.Close()
			if got := marks(t, path); got != "be" {
				t.Errorf("afterwards there is %q, want both marks", got)
			}
		})
	}
}

// marks are the first letters of a ledger's lines.
func marks(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Error(err)
		return ""
	}
	defer f.Close()
	var letters []byte
	for lines := bufio.NewScanner(f); lines.Scan(); {
		letters = append(letters, lines.Text()[0])
	}
	return string(letters)
}

// What net/http can do is found through Unwrap.
func TestLedgerUnwraps(t *testing.T) {
	w := httptest.NewRecorder()
	m := &marked{ResponseWriter: w, begun: func() {}}
	if m.Unwrap() != http.ResponseWriter(w) {
		t.Error("Unwrap leads elsewhere")
	}
	if err := http.NewResponseController(m).Flush(); err != nil || !w.Flushed {
		t.Errorf("not flushed: %v", err)
	}
}
