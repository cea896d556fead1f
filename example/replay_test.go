package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/usagekit/usagekit/internal/dbtest"
	"github.com/usagekit/usagekit/store"
)

// oddities are what testdata/access.log, real as it is, lacks.
const oddities = `
10.0.0.1 - - [01/Jan/2026:00:00:00 +0000] "GET /a/../b HTTP/1.1" 200 -
10.0.0.1 - - [01/Jan/2026:00:00:00 +0000] "PUT /a/./b?q=/../ HTTP/1.1" 200 -
10.0.0.2 - - [01/Jan/2026:00:00:00 +0000] "GET /%2e%2e/b HTTP/1.1" 200 -
10.0.0.2 - - [01/Jan/2026:00:00:00 +0000] "PATCH //b HTTP/1.1" 200 -
10.0.0.2 - - [01/Jan/2026:00:00:00 +0000] "OPTIONS /caf%C3%A9%2Fmenu HTTP/1.1" 200 -
10.0.0.3 - - [01/Jan/2026:00:00:00 +0000] "DELETE /v1.2.3/b HTTP/1.1" 200 -
10.0.0.3 - - [01/Jan/2026:00:00:00 +0000] "GET /total HTTP/1.1" 200 -
10.0.0.3 - - [01/Jan/2026:00:00:00 +0000] "GET /today/b HTTP/1.1" 200 -
10.0.0.3 - - [01/Jan/2026:00:00:00 +0000] "GET /requests/ HTTP/1.1" 200 -
(other) - - [01/Jan/2026:00:00:00 +0000] "GET /(other)/b HTTP/1.1" 200 -
`

type request struct{ user, method, path string }

// logged returns the requests of 500 lines of a real server's log, and the
// oddities.
func logged(t *testing.T) []request {
	t.Helper()
	log, err := os.ReadFile(filepath.Join("testdata", "access.log"))
	if err != nil {
		t.Fatal(err)
	}
	line := regexp.MustCompile(`(?m)^(\S+) \S+ \S+ \[[^\]]+\] "([A-Z]+) (/\S*) HTTP/[\d.]+" \d{3}`)
	var requests []request
	for _, m := range line.FindAllStringSubmatch(string(log)+oddities, -1) {
		requests = append(requests, request{m[1], m[2], m[3]})
	}
	if len(requests) != 510 {
		t.Fatalf("%d lines are requests, want 510", len(requests))
	}
	return requests
}

// tally is what was counted, or should be, by name.
type tally map[string]int64

// shown stands for total_requests of api/stats.
const shown = "total_requests"

// add counts r, which the program gets as /site<path>.
func (c tally) add(r request) {
	c[shown]++
	c["api.requests.total"]++
	c["api."+r.method+" /site/{path...}.requests"]++
	c["user."+strings.Replace(r.user, "(", "((", 1)+".requests"]++
	path, _, _ := strings.Cut(r.path, "?")
	path, err := url.PathUnescape(path)
	if err != nil {
		panic(err) // the server would refuse it, too
	}
	switch area := strings.ReplaceAll(strings.Split(path, "/")[1], ".", "_"); area {
	case "":
	case "requests", "total", "today":
		c["api.requests."+area+"_"]++
	default:
		if area[0] == '(' {
			area = "(" + area
		}
		c["api.requests."+area]++
	}
}

// replay sends requests, and knows what must have been counted.
type replay struct {
	t              *testing.T
	mu             sync.Mutex
	sent, answered tally
}

func newReplay(t *testing.T) *replay { return &replay{t: t, sent: tally{}, answered: tally{}} }

// send sends all requests, eight at a time, to the programs in turn; with stop
// again and again until that is closed. Who gets no answer sends no more.
func (p *replay) send(requests []request, stop <-chan struct{}, to ...*example) error {
	var next atomic.Int64
	var clients sync.WaitGroup
	errs := make([]error, 8)
	for i := range errs {
		clients.Go(func() {
			for errs[i] == nil {
				n := int(next.Add(1)) - 1
				select {
				case <-stop:
					return
				default:
					if stop == nil && n >= len(requests) {
						return
					}
				}
				errs[i] = p.sendOne(requests[n%len(requests)], to[i%len(to)])
			}
		})
	}
	clients.Wait()
	return errors.Join(errs...)
}

func (p *replay) sendOne(r request, e *example) error {
	p.count(p.sent, r)
	resp, err := client.Do(&http.Request{
		Method: r.method,
		URL:    &url.URL{Scheme: "http", Host: strings.TrimPrefix(e.url, "http://"), Opaque: "/site" + r.path}, // goes out as it is
		Header: http.Header{"X-User": {r.user}},
	})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusTemporaryRedirect { // to the path without // and ..
		p.t.Errorf("%s /site%s: %s", r.method, r.path, resp.Status)
	}
	p.count(p.answered, r)
	return nil
}

func (p *replay) count(c tally, r request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c.add(r)
}

func (p *replay) mustSend(requests []request, to ...*example) {
	p.t.Helper()
	if err := p.send(requests, nil, to...); err != nil {
		p.t.Fatal(err)
	}
}

// during sends requests as long as f runs.
func (p *replay) during(f func(), requests []request, to ...*example) error {
	stop, sent := make(chan struct{}), make(chan error, 1)
	go func() { sent <- p.send(requests, stop, to...) }()
	func() {
		defer close(stop) // also when f fails the test
		f()
	}()
	return <-sent
}

// total is how many requests were answered.
func (p *replay) total() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.answered[shown]
}

// check waits until e's dashboard shows what was answered, and nothing else but,
// at most once, what was sent and not answered.
func (p *replay) check(e *example) {
	p.t.Helper()
	eventually(p.t, limit, func() string {
		got := shownBy(e)
		if got == nil {
			return "the dashboard does not answer"
		}
		for name := range p.answered {
			got[name] += 0
		}
		var wrong []string
		for name, n := range got {
			if n < p.answered[name] || n > p.sent[name] {
				wrong = append(wrong, fmt.Sprintf("%s: counted %d, answered %d, sent %d", name, n, p.answered[name], p.sent[name]))
			}
		}
		slices.Sort(wrong)
		return strings.Join(wrong[:min(len(wrong), 20)], "\n")
	})
}

// current are the counters of today and this month, which midnight changes.
var current = map[string]bool{"api.requests.today": true, "user.active.daily": true, "user.active.monthly": true}

// ofAllRoutes tells whether name is the status or latency of all routes, which the
// fold sums.
func ofAllRoutes(name string) bool {
	return strings.HasPrefix(name, "api.requests.status_") || strings.HasPrefix(name, "api.requests.latency_")
}

// shownBy reads what a replay counts; nil: the database does not answer.
func shownBy(e *example) tally {
	e.t.Helper()
	var stats struct {
		Total int64 `json:"total_requests"`
	}
	err := e.read("stats", &stats)
	all := tally{shown: stats.Total}
	for _, query := range []string{"prefix=api.&measure=requests", "prefix=api.requests.", "prefix=user."} {
		var totals struct{ Counts []store.Count }
		err = errors.Join(err, e.read("totals?limit=10000&"+query, &totals))
		for _, c := range totals.Counts {
			if !current[c.Name] && !ofAllRoutes(c.Name) {
				all[c.Name] = c.N
			}
		}
	}
	if err != nil {
		e.t.Log(err)
		return nil
	}
	return all
}

func TestReplayOnSQLite(t *testing.T) {
	e, p := start(t), newReplay(t)
	p.mustSend(logged(t), e)
	p.check(e)
	if n := e.stop(syscall.SIGTERM); n != p.total() {
		t.Errorf("%d requests counted, %d answered", n, p.total())
	}
}

func TestRestartOnSQLite(t *testing.T) {
	db := filepath.Join(t.TempDir(), "usage.db")
	requests, p := logged(t), newReplay(t)

	// What is stored of this one is stored on the way out.
	first := start(t, "-db", db, "-flush", "1h")
	p.mustSend(requests[:250], first)
	if n := first.stop(syscall.SIGTERM); n != 250 {
		t.Errorf("%d requests counted, 250 answered", n)
	}

	second := start(t, "-db", db)
	p.mustSend(requests[250:], second)
	p.check(second)
	if n := second.stop(syscall.SIGTERM); n != p.total() {
		t.Errorf("%d requests counted, %d answered by both", n, p.total())
	}
}

func TestSignalsUnderLoad(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		t.Run(sig.String(), func(t *testing.T) {
			db := filepath.Join(t.TempDir(), "usage.db")
			e, p := start(t, "-db", db), newReplay(t)
			var n int64
			err := p.during(func() {
				eventually(t, limit, func() string {
					if p.total() < 1000 {
						return fmt.Sprintf("only %d requests were answered", p.total())
					}
					return ""
				})
				n = e.stop(sig)
			}, logged(t), e)
			t.Logf("%d requests counted, %d answered, %d sent", n, p.total(), p.sent[shown])
			if n < p.total() || n > p.sent[shown] || err == nil {
				t.Errorf("every answered request should be counted, and the load outlast the program: %v", err)
			}
			p.check(start(t, "-db", db))
		})
	}
}

// A request that is at work when the signal comes is answered and counted.
func TestSignalWaitsForRequests(t *testing.T) {
	e := start(t)
	conn, err := net.Dial("tcp", strings.TrimPrefix(e.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(limit))
	answers := bufio.NewReader(conn)
	fmt.Fprint(conn, "POST /llm/complete HTTP/1.1\r\nHost: example\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
	if resp, err := http.ReadResponse(answers, nil); err != nil || resp.StatusCode != http.StatusContinue {
		t.Fatalf("the prompt is not awaited: %v, %v", resp, err)
	}
	if err := e.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	eventually(t, limit, func() string {
		if another, err := net.Dial("tcp", conn.RemoteAddr().String()); err == nil {
			_ = another.Close()
			return "new connections are accepted"
		}
		return ""
	})
	fmt.Fprint(conn, "hello")
	if resp, err := http.ReadResponse(answers, nil); err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("%v, %v", resp, err)
	}
	if n := e.counted(); n != 1 {
		t.Errorf("%d requests counted, 1 answered", n)
	}
}

// Two programs share a database that goes away in the middle, and nobody who
// asks them notices.
func TestOutageOfPostgreSQL(t *testing.T) {
	if server == nil {
		t.Log("PostgreSQL was not tried: make test does")
		return
	}
	pg, db := server, ""
	if server.Private() {
		var err error
		if pg, err = dbtest.Start(); err != nil { // the other one is not this test's to stop
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = pg.Close() })
		db = pg.URL("postgres")
	} else {
		db = server.NewDatabase(t)
	}
	a, b := start(t, "-db", db), start(t, "-db", db)
	requests, p := logged(t), newReplay(t)
	p.mustSend(requests, a, b)
	if pg.Private() {
		before := p.total()
		err := p.during(func() {
			if err := pg.StopImmediate(); err != nil {
				t.Fatal(err)
			}
			awaitHealth(http.StatusServiceUnavailable, a, b)
			if err := pg.Restart(); err != nil {
				t.Fatal(err)
			}
			awaitHealth(http.StatusOK, a, b)
		}, requests, a, b)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%d requests were answered meanwhile", p.total()-before)
	} else {
		t.Log("the outage was not tried: this server is not the tests' own")
	}
	p.mustSend(requests, a, b)
	p.check(a)
	p.check(b)
	a.stop(syscall.SIGTERM)
	if n := b.stop(syscall.SIGTERM); n != p.total() {
		t.Errorf("%d requests counted, %d answered", n, p.total())
	}
	p.check(start(t, "-db", db)) // nothing comes late
}

func awaitHealth(want int, of ...*example) {
	for _, e := range of {
		eventually(e.t, limit, func() string {
			if got, body := e.get("", "/usage/api/health"); got != want {
				return fmt.Sprintf("health is %d, want %d: %s", got, want, body)
			}
			return ""
		})
	}
}
