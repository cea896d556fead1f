package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestMain is a server's main, too: the program starts itself.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == serveCommand {
		main()
		return
	}
	os.Exit(m.Run())
}

// few is a load of some requests.
func few(ctx context.Context, url string) (a answers, err error) {
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	start := time.Now()
	for i := range 200 {
		r, err := http.NewRequestWithContext(ctx, "GET", fmt.Sprintf("%s/r%d/17", url, i%routeCount), nil)
		if err != nil {
			return a, err
		}
		r.Header.Set(userHeader, fmt.Sprint("u", i))
		resp, err := client.Do(r)
		if err != nil {
			return a, err
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || string(body) != `{"ok":true}` {
			return a, fmt.Errorf("%s: %s: %w", resp.Status, body, err)
		}
		a.Requests++
	}
	a.Microseconds = time.Since(start).Microseconds()
	return a, nil
}

func TestEachRequestIsCounted(t *testing.T) {
	var out strings.Builder
	if err := compare(t.Context(), &out, t.TempDir(), 2, 1, few); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	for _, want := range []string{bare, memory, spool, "Each of 1200 requests"} { // two servers, three rounds
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in\n%s", want, out.String())
		}
	}
}

// A server must have served what was answered, and no more than may have been in flight:
// one request at the end of either run.
func TestServedIsWhatWasAnswered(t *testing.T) {
	for _, wrong := range []int64{-2, +1} {
		ask := func(ctx context.Context, url string) (answers, error) {
			a, err := few(ctx, url)
			a.Requests += wrong
			return a, err
		}
		err := compare(t.Context(), io.Discard, t.TempDir(), 1, 1, ask)
		if want := fmt.Sprintf("bare server: served 400 requests, of which %d were answered and 2 in flight at most", 400+2*wrong); err == nil || err.Error() != want {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

// What the database has and nobody served is an error.
func TestCountedIsWhatWasServed(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "server")
	p, err := start(memory, dir)
	if err != nil {
		t.Fatal(err)
	}
	defer p.kill()
	c := &contestant{process: p}
	if _, err := c.measure(t.Context(), few); err != nil {
		t.Fatal(err)
	}
	usage, closeStore, err := openStore(t.Context(), memory, dir)
	if err != nil {
		t.Fatal(err)
	}
	usage.Inc("api.GET /r1/{id}.requests")
	if err := closeStore(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.check(t.Context(), 0); err == nil || err.Error() != "counted 201 of 200 requests" {
		t.Error(err)
	}
}

const sample = `Running 1s test @ http://127.0.0.1:39411
  1 threads and 16 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     0.95ms  720.64us   8.06ms   86.31%
    Req/Sec    10.24k     1.26k   12.69k    80.00%
  10264 requests in 1.01s, 1.16MB read
  Non-2xx or 3xx responses: 103
Requests/sec:  10155.10
Transfer/sec:      1.14MB
{"requests":10264,"microseconds":1010724,"p50":771,"p99":3792,"errors":103}
`

func TestParseWrk(t *testing.T) {
	if _, err := parseWrk([]byte(sample)); err == nil || !strings.HasPrefix(err.Error(), "wrk: 10264 requests, 103 errors\n") {
		t.Error(err)
	}
	a, err := parseWrk([]byte(strings.Replace(sample, `"errors":103`, `"errors":0`, 1)))
	if want := (answers{Requests: 10264, Microseconds: 1010724, P50: 771, P99: 3792}); err != nil || a != want {
		t.Errorf("%+v, %v; want %+v", a, err, want)
	}
	if _, err := parseWrk([]byte("unable to connect to 127.0.0.1:39411 Connection refused\n")); err == nil {
		t.Error("no answers, and no error")
	}
}

func TestTable(t *testing.T) {
	of := func(kind string, runs ...run) *contestant {
		return &contestant{process: &process{kind: kind}, runs: runs}
	}
	second := func(n int64, cpu float64) run {
		return run{answers{Requests: n, Microseconds: 1e6, P50: 500, P99: 4000}, cpu}
	}
	var out strings.Builder
	if err := table(&out, []*contestant{
		of(bare, second(1000, 20), second(2000, 10), second(1500, 30)),
		of(memory, second(900, 25), second(1900, 11), second(1500, 33)),
	}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"1500 1000–2000 1.000 1.000–1.000 20.0 10.0–30.0 1.000 1.000–1.000 500 4000 " + bare,
		"1500 900–1900 0.950 0.900–1.000 25.0 11.0–33.0 1.100 1.100–1.250 500 4000 " + memory,
	} {
		if !strings.Contains(strings.Join(strings.Fields(out.String()), " "), want) {
			t.Errorf("%q is not in\n%s", want, out.String())
		}
	}
}
