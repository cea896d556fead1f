package main

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestRefusesToStart(t *testing.T) {
	dir := t.TempDir()
	text := filepath.Join(dir, "novel.txt")
	if err := os.WriteFile(text, []byte(strings.Repeat("It was a dark and stormy night. ", 100)), 0o600); err != nil {
		t.Fatal(err)
	}
	type refusal struct{ flag, value, says string }
	cases := []refusal{
		{"-addr", ":0", "give the dashboard a -password"},
		{"-addr", "0.0.0.0:0", "give the dashboard a -password"},
		{"-addr", "[::]:0", "give the dashboard a -password"},
		{"-addr", "novels.example:0", "give the dashboard a -password"},
		{"-addr", "127.0.0.1", `-addr "127.0.0.1": address 127.0.0.1: missing port`},
		{"-addr", "127.0.0.1:99999", "invalid port"},
		{"-paswort", "s3cret", "flag provided but not defined: -paswort\nUsage of example:"},
		{"-flush", "soon", `invalid value "soon" for flag -flush`},
		{"-flush", "-1s", "want a positive duration"},
		{"-demo", "true", "see -help"}, // it takes no value
		{"-demo", "postgres://ann:s3cret@127.0.0.1/usage", "see -help"},
		{"-db", filepath.Join(dir, "none", "usage.db"), "the file and its directory must exist and be writable"},
		{"-db", dir, "the file and its directory must exist and be writable"},
		{"-db", text, "the file is not a SQLite database"},
		{"-db", "", "want the path of the database"},
		{"-ledger", filepath.Join(dir, "none", "ledger"), "-ledger: open"},
		{"-db", "postgres://ann:s3cret@127.0.0.1:1/usage?sslmode=disable", "127.0.0.1:1: connect: connection refused: is the database there"},
		{"-db", "postgres://ann:s3cret%@127.0.0.1/usage", "want postgres://user:password@host:port/database"},
	}
	if server != nil && server.Private() { // it takes any password
		db := strings.Replace(server.URL("there_is_none"), "@", ":s3cret@", 1)
		cases = append(cases, refusal{"-db", db, "there_is_none"})
	}
	for _, c := range cases {
		t.Run(c.flag+" "+c.value, func(t *testing.T) {
			e := launch(t, "-addr", "127.0.0.1:0", c.flag, c.value)
			if status := e.wait(); status == 0 {
				t.Error("exit status 0")
			}
			said := e.output()
			if !strings.Contains(said, c.says) || strings.Contains(said, "s3cret") || strings.Contains(said, "serving") {
				t.Errorf("it says %q, want %q", said, c.says)
			}
		})
	}
}

func TestHelp(t *testing.T) {
	e := launch(t, "-help")
	if status := e.wait(); status != 0 || !strings.Contains(e.output(), "-password") {
		t.Errorf("exit status %d", status)
	}
}

func TestPassword(t *testing.T) {
	for _, addr := range []string{":0", "0.0.0.0:0", "127.0.0.1:0"} {
		t.Run(addr, func(t *testing.T) {
			e := start(t, "-addr", addr, "-password", "s3cret")
			for _, c := range []struct {
				who, path string
				want      int
			}{
				{"", "/usage/", http.StatusUnauthorized},
				{"", "/usage/api/stats", http.StatusUnauthorized},
				{"admin:secret@", "/usage/", http.StatusUnauthorized},
				{"ann:s3cret@", "/usage/", http.StatusUnauthorized},
				{"admin:s3cret@", "/usage/", http.StatusOK},
				{"admin:s3cret@", "/usage/api/stats", http.StatusOK},
				{"", "/site/", http.StatusOK}, // the application stays open
			} {
				if got, _ := e.get(c.who, c.path); got != c.want {
					t.Errorf("GET %s%s: %d, want %d", c.who, c.path, got, c.want)
				}
			}
			e.stop(syscall.SIGINT)
			if strings.Contains(e.output(), "s3cret") {
				t.Error("it says the password")
			}
		})
	}
}
