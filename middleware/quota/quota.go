// Package quota limits how often somebody may do something.
//
//	daily := quota.New(usage, quota.Config{
//		Name:  "daily",
//		Key:   func(r *http.Request) string { return r.Header.Get("X-User") },
//		Limit: func(r *http.Request) int64 { return 1000 },
//	})
//	mux.Handle("POST /llm/complete", daily(complete))
//
// It counts exactly over all instances: in each window at most Limit requests pass
// that were counted.
//
// A request passes on what was taken for it in the database before. To make that
// cheap, up to Reserve requests are taken at once and kept in reserve, and requests
// of one key that come while a query is on its way wait for it, and for the next,
// which takes for all of them: a busy key costs one query at a time, whatever its
// load. A key whose quota is used up costs none until its window ends.
//
// What is reserved and not used by the end of the window, or of the process,
// stays counted and unused. So does what a handler failed on. The reserves of
// 100,000 keys (16 MiB of them) are kept; of further ones each query's surplus
// stays unused until the window ends.
//
// A request waits 50 ms at most, from its arrival here. Without an answer by then,
// after an error, with too many queries on their way, or when Key or Limit
// panics, it passes uncounted, or gets 503 with FailClosed; never 429, unless its
// limit is 0. While a query is late, others of that key do not wait. What it took
// is used by later requests. A client that goes away while it waits uses nothing;
// one whose context ends for another reason gets 503.
//
// Responses carry RateLimit-Policy and RateLimit, one more of each per quota
// passed (draft-ietf-httpapi-ratelimit-headers-10); the window w of a month is that of
// 31 days. A refusal is a 429 with
// Retry-After and a problem (RFC 9457) that names the policy, and is counted in
// quota.<key>.refused. Without an answer from the database there is no RateLimit.
//
// Read this file, then share.go (what is known of a key, and who waits).
package quota

import (
	"cmp"
	"context"
	"encoding/json"
	"net/http"
	"strconv"
	"time"

	"github.com/dunglas/httpsfv"

	"github.com/usagekit/usagekit/internal/naming"
	"github.com/usagekit/usagekit/store"
)

// Taker keeps quotas: a *store.Store.
type Taker interface {
	Add(name string, n int64) // counts what was refused

	// Take adds n to what was taken under name in the current local hour, day or
	// month, unless that would pass limit.
	//
	// ok: it did. left: what is left of limit after it. until: when the hour, day or
	// month ends, by this process's clock. With an error nothing is known.
	Take(ctx context.Context, name string, n, limit int64, step store.Step) (left int64, until time.Time, ok bool, err error)
}

// Config says who may do how much. Name, Key and Limit are required.
type Config struct {
	// Name of the policy, e.g. "daily": up to 64 ASCII letters, digits, '-' and
	// '_', but not "refused". It is the measure of the counter quota.<key>.<name>.
	Name string

	// Key says whose quota a request is counted in; "": it is not limited. One
	// that begins with "(" gets a second one in front.
	Key func(*http.Request) string

	// Limit is the number of requests per window; negative: not limited, 0:
	// nothing is allowed. For requests of one key with different limits, each
	// passes while no more than its own was taken.
	Limit func(*http.Request) int64

	// Window is store.Hour, store.Day or store.Month; 0: a day. Each is local, and
	// begins when the hour, the day or the month does.
	Window store.Step

	// Reserve is the number of requests that are reserved with one query; 0 or
	// less: 1. At most instances × (Reserve−1) stay unused per key and window.
	Reserve int64

	// FailClosed answers 503 when the database does not answer; else the request
	// passes.
	FailClosed bool
}

// New returns a middleware that has requests pass as long as t has something left for
// their key. A configuration that makes no sense panics.
func New(t Taker, cfg Config) func(http.Handler) http.Handler {
	l := newLimiter(t, cfg)
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { l.serve(next, w, r) })
	}
}

func newLimiter(t Taker, cfg Config) *limiter {
	cfg.Window = cmp.Or(cfg.Window, store.Day)
	cfg.Reserve = max(cfg.Reserve, 1)
	switch {
	case t == nil:
		panic("quota: New without a Taker")
	case !isPolicy(cfg.Name):
		panic("quota: Config.Name " + strconv.Quote(cfg.Name) + ` is not 1 to 64 ASCII letters, digits, '-' and '_', or is "refused"`)
	case cfg.Key == nil:
		panic("quota: Config.Key is nil")
	case cfg.Limit == nil:
		panic("quota: Config.Limit is nil")
	case cfg.Window < store.Hour || cfg.Window > store.Month:
		panic("quota: Config.Window is " + cfg.Window.String() + ": want store.Hour, Day or Month")
	}
	return &limiter{
		taker:    t,
		cfg:      cfg,
		patience: 50 * time.Millisecond,
		text:     textOf(cfg.Name),
		policies: map[int64]string{},
		shares:   map[string]*share{},
		calls:    map[string]*call{},
	}
}

func isPolicy(name string) bool {
	for i := range len(name) {
		c := name[i]
		if (c|0x20 < 'a' || 'z' < c|0x20) && (c < '0' || '9' < c) && c != '-' && c != '_' {
			return false
		}
	}
	return 0 < len(name) && len(name) <= 64 && name != "refused"
}

func (l *limiter) serve(next http.Handler, w http.ResponseWriter, r *http.Request) {
	deadline := time.Now().Add(l.patience)
	key, limit, ok := l.ask(r)
	if ok && (key == "" || limit < 0) {
		next.ServeHTTP(w, r)
		return
	}
	limit = min(limit, maxInteger)
	var v verdict
	if ok {
		w.Header().Add(policyField, l.policy(limit))
		v = l.admit(r.Context(), key, limit, deadline)
		if v.outcome == away && limit == 0 {
			v.outcome = refused // whatever the database would say
		}
	}
	switch v.outcome {
	case passed:
		w.Header().Add(limitField, l.rateLimit(v))
		next.ServeHTTP(w, r)
	case refused:
		l.count(key)
		w.Header().Add(limitField, l.rateLimit(v))
		respond(w, http.StatusTooManyRequests, max(seconds(v.until), 1), l.text.exceeded)
	case gone: // or the server is about to stop
		respond(w, http.StatusServiceUnavailable, 1, l.text.unavailable)
	case away:
		if l.cfg.FailClosed {
			respond(w, http.StatusServiceUnavailable, 1, l.text.unavailable)
			return
		}
		next.ServeHTTP(w, r)
	}
}

// ask calls the functions of the configuration; ok is false when one panicked.
func (l *limiter) ask(r *http.Request) (key string, limit int64, ok bool) {
	defer func() { _ = recover() }()
	if key = l.cfg.Key(r); key != "" {
		limit = l.cfg.Limit(r)
	}
	return key, limit, true
}

func (l *limiter) count(key string) {
	defer func() { _ = recover() }()
	l.taker.Add("quota."+naming.Escape(key)+".refused", 1)
}

// The fields as http.Header has them.
const (
	policyField = "Ratelimit-Policy"
	limitField  = "Ratelimit"
)

// maxInteger is the greatest of structured fields (RFC 9651, 3.3.1).
const maxInteger = 999_999_999_999_999

func (l *limiter) policy(limit int64) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	p, ok := l.policies[limit]
	if !ok {
		if len(l.policies) == maxPolicies {
			clear(l.policies)
		}
		item := httpsfv.NewItem(l.cfg.Name)
		item.Params.Add("q", limit)
		item.Params.Add("w", int64(longest(l.cfg.Window)/time.Second))
		p = field(item)
		l.policies[limit] = p
	}
	return p
}

// longest is how long an hour or a month is at most, and a day but for a change of clocks.
func longest(window store.Step) time.Duration {
	switch window {
	case store.Hour:
		return time.Hour
	case store.Day:
		return 24 * time.Hour
	}
	return 31 * 24 * time.Hour
}

// rateLimit makes RateLimit. Integers are the same in structured fields as here,
// and this is on every request's way.
func (l *limiter) rateLimit(v verdict) string {
	var room [128]byte
	b := append(room[:0], l.text.name...)
	b = strconv.AppendInt(append(b, ";r="...), v.left, 10)
	if !v.until.IsZero() {
		b = strconv.AppendInt(append(b, ";t="...), seconds(v.until), 10)
	}
	return string(b)
}

func field(item httpsfv.Item) string {
	s, err := httpsfv.Marshal(item)
	if err != nil {
		panic(err) // not with a name and numbers like these
	}
	return s
}

// seconds are the whole ones until then, rounded up.
func seconds(until time.Time) int64 {
	return max(0, int64((time.Until(until)+time.Second-1)/time.Second))
}

// text is what answers say that is the same for all of a policy's.
type text struct {
	name                  string // as a structured field
	exceeded, unavailable []byte // problems
}

func textOf(name string) text {
	return text{
		name: field(httpsfv.NewItem(name)),
		exceeded: problem{
			Type:     "https://iana.org/assignments/http-problem-types#quota-exceeded",
			Title:    "Request cannot be satisfied as assigned quota has been exceeded",
			Status:   http.StatusTooManyRequests,
			Violated: []string{name},
		}.json(),
		unavailable: problem{
			Type:   "about:blank",
			Title:  http.StatusText(http.StatusServiceUnavailable),
			Status: http.StatusServiceUnavailable,
			Detail: "The quota cannot be checked at the moment.",
		}.json(),
	}
}

// problem is one of RFC 9457.
type problem struct {
	Type     string   `json:"type"`
	Title    string   `json:"title"`
	Status   int      `json:"status"`
	Detail   string   `json:"detail,omitempty"`
	Violated []string `json:"violated-policies,omitempty"`
}

func (p problem) json() []byte {
	b, err := json.Marshal(p)
	if err != nil {
		panic(err) // not with strings
	}
	return b
}

func respond(w http.ResponseWriter, status int, retry int64, problem []byte) {
	h := w.Header()
	h.Set("Content-Type", "application/problem+json")
	h.Set("Cache-Control", "no-store")
	h.Set("Retry-After", strconv.FormatInt(retry, 10))
	w.WriteHeader(status)
	_, _ = w.Write(problem) // to a client that may be gone
}
