package faults

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// tally is how many requests there were, by the name under which each is counted:
// that of its route, of its user, and of all.
type tally map[string]int64

const requestsTotal = "api.requests.total"

func (t tally) add(route, user string) {
	t["api."+route+".requests"]++
	t["user."+user+".requests"]++
	t[requestsTotal]++
}

// route is one that the example serves: how it is asked for, and its name.
type route struct{ method, path, name string } // {n} in path becomes a number

// routes are 50 of the example's.
func routes() []route {
	all := []route{
		{"POST", "/users", "POST /users"},
		{"POST", "/novels", "POST /novels"},
		{"GET", "/novels/{n}", "GET /novels/{id}"},
		{"POST", "/writer/chapters", "POST /writer/chapters"},
		{"POST", "/writer/outlines", "POST /writer/outlines"},
		{"POST", "/llm/complete", "POST /llm/complete"},
	}
	for _, section := range []string{"site", "help", "press", "forum", "shop"} {
		for _, method := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"} {
			name := method
			if method == "BREW" {
				name = "OTHER"
			}
			all = append(all, route{method, "/" + section + "/{n}", name + " /" + section + "/{path...}"})
		}
	}
	return all[:50]
}

// routeOf returns the name of the route that a ledger's line is of; "" for the
// dashboard's, which are not counted.
func routeOf(all []route, method, path string) string {
	for _, r := range all {
		prefix, open := strings.CutSuffix(r.path, "{n}")
		if r.method == method && (path == r.path || open && strings.HasPrefix(path, prefix)) {
			return r.name
		}
	}
	return ""
}

const users = 200

// load is clients that ask programs, and what they know of it.
type load struct {
	clients   int
	perSecond int  // requests of all clients together
	keepAlive bool // no: nothing asks twice by itself
	seed      uint64
	programs  []*program // client i asks program i modulo their number

	http   http.Client
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu        sync.Mutex
	attempted tally
	answered  tally
	failures  map[string]int // errors that clients saw
	took      []sample
}

// sample is how long an answer took.
type sample struct {
	at   time.Time
	took time.Duration
}

// start lets the clients ask until stop.
func (l *load) start(ctx context.Context) {
	l.attempted, l.answered, l.failures = tally{}, tally{}, map[string]int{}
	l.http = http.Client{
		Timeout:       hangs, // beyond every fault: a client that waits for a program that stands still gets its answer
		Transport:     &http.Transport{DisableKeepAlives: !l.keepAlive, MaxIdleConnsPerHost: l.clients},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	ctx, l.cancel = context.WithCancel(ctx)
	for i := range l.clients {
		l.wg.Go(func() { l.client(ctx, i) })
	}
}

// stop ends the clients, each after its last answer.
func (l *load) stop() {
	l.cancel()
	l.wg.Wait()
	l.http.CloseIdleConnections()
}

func (l *load) client(ctx context.Context, i int) {
	rng := rand.New(rand.NewPCG(l.seed, uint64(i)))
	all, target := routes(), l.programs[i%len(l.programs)]
	every := time.Second * time.Duration(l.clients) / time.Duration(l.perSecond)
	next := time.Now().Add(time.Duration(rng.Int64N(int64(every))))
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Until(next)):
		}
		next = next.Add(every)
		if late := time.Now().Add(-every); next.Before(late) {
			next = late // it stood still: nothing is made up for
		}
		if url := target.url.Load(); url != nil {
			l.ask(*url, all[rng.IntN(len(all))], rng.IntN(1000), fmt.Sprintf("u%d", rng.IntN(users)))
		}
	}
}

// ask sends one request. One whose program did not take the connection was none.
func (l *load) ask(url string, r route, n int, user string) {
	body := ""
	if r.method == "POST" {
		body = "It was a dark and stormy night."
	}
	// Not ended with the load: its answer is part of what is compared.
	req, err := http.NewRequest(r.method, url+strings.ReplaceAll(r.path, "{n}", fmt.Sprint(n)), strings.NewReader(body))
	if err != nil {
		l.failed(err)
		return
	}
	req.Header.Set("X-User", user)
	sent := time.Now()
	status, err := l.exchange(req)
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" {
		return
	}
	l.mu.Lock()
	l.attempted.add(r.name, user)
	if err == nil {
		l.answered.add(r.name, user)
		l.took = append(l.took, sample{sent, time.Since(sent)})
	}
	l.mu.Unlock()
	switch {
	case err != nil:
		l.failed(err)
	case status >= 500:
		l.failed(fmt.Errorf("status %d", status))
	}
}

// exchange returns without an error when the whole answer has come.
func (l *load) exchange(req *http.Request) (status int, err error) {
	resp, err := l.http.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, err
}

func (l *load) failed(err error) {
	for inner := errors.Unwrap(err); inner != nil; inner = errors.Unwrap(err) {
		err = inner // without what differs from case to case
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failures[err.Error()]++
}

// known is what the clients know: copies.
func (l *load) known() (attempted, answered tally, failures map[string]int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.attempted), maps.Clone(l.answered), maps.Clone(l.failures)
}

// quantile is how long the requests took at most that were sent from then on
// until then, but for the slowest 1 - q of them.
func (l *load) quantile(q float64, from, until time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	var took []time.Duration
	for _, s := range l.took {
		if !s.at.Before(from) && s.at.Before(until) {
			took = append(took, s.took)
		}
	}
	if len(took) == 0 {
		return 0
	}
	slices.Sort(took)
	return took[min(int(q*float64(len(took))), len(took)-1)]
}

// within is how many requests were sent from then on, and answered until then.
func (l *load) within(from, until time.Time) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.took {
		if !s.at.Before(from) && s.at.Add(s.took).Before(until) {
			n++
		}
	}
	return n
}
