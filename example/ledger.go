package main

import (
	"fmt"
	"log/slog"
	"net/http"
	"os"
)

// ledger writes down what a test compares the counts with, whatever becomes of
// this process: for each request a line "b METHOD PATH USER" before anything
// else, and a line "e METHOD PATH USER" after the response has begun. Each is one
// write to a file opened with O_APPEND, so lines of several processes do not mix.
type ledger struct{ file *os.File }

func openLedger(path string) (ledger, error) {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return ledger{}, fmt.Errorf("-ledger: %w", err)
	}
	return ledger{f}, nil
}

func (l ledger) wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		line := fmt.Sprintf(" %s %s %s\n", r.Method, r.URL.EscapedPath(), r.Header.Get("X-User"))
		l.write("b" + line)
		m := &marked{ResponseWriter: w, begun: func() { l.write("e" + line) }}
		next.ServeHTTP(m, r)
		m.mark() // net/http answers for a handler that did not
	})
}

func (l ledger) write(line string) {
	if _, err := l.file.WriteString(line); err != nil {
		slog.Error("the ledger is not complete", "error", err)
	}
}

// marked calls begun once, after the response has begun: WriteHeader alone sends nothing.
type marked struct {
	http.ResponseWriter
	begun func() // nil: it was called
}

func (m *marked) mark() {
	if m.begun != nil {
		m.begun()
		m.begun = nil
	}
}

func (m *marked) Write(p []byte) (int, error) {
	defer m.mark()
	return m.ResponseWriter.Write(p)
}

func (m *marked) Flush() { _ = m.FlushError() }

func (m *marked) FlushError() error {
	defer m.mark()
	return http.NewResponseController(m.ResponseWriter).Flush()
}

// Unwrap is for http.ResponseController, which finds there what is missing here.
func (m *marked) Unwrap() http.ResponseWriter { return m.ResponseWriter }
