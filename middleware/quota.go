package middleware

import (
	"context"
	"encoding/json"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/dunglas/httpsfv"
)

// Taker keeps quotas: a *store.Store.
type Taker interface {
	Recorder

	// Take adds n to what was taken under name in the current local hour (window
	// time.Hour) or day (24*time.Hour), unless that would pass limit.
	//
	// ok: it did. left: what is left of limit after it. until: when the window
	// ends, by this process's clock. With an error nothing is known.
	Take(ctx context.Context, name string, n, limit int64, window time.Duration) (left int64, until time.Time, ok bool, err error)
}

// QuotaConfig says who may do how much. Name, Key and Limit are required.
type QuotaConfig struct {
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

	// Window is time.Hour or 24*time.Hour; 0: a day. Both are local, and begin
	// when the hour or the day does.
	Window time.Duration

	// Lease is the number of requests that are reserved with one query; 0 or
	// less: 1. At most instances × (Lease−1) stay unused per key and window.
	Lease int64

	// FailShut answers 503 when the database does not answer; else the request
	// passes.
	FailShut bool
}

// Quota returns a middleware that limits how often somebody may do something,
// counted exactly over all instances: in each window at most Limit requests pass
// that were counted. A configuration that makes no sense panics.
//
// A request passes on what was taken for it in the database before. To make that
// cheap, up to Lease requests are taken at once and kept in reserve, and requests
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
// panics, it passes uncounted, or gets 503 with FailShut; never 429, unless its
// limit is 0. While a query is late, others of that key do not wait. What it took
// is used by later requests. A client that goes away while it waits uses nothing;
// one whose context ends for another reason gets 503.
//
// Responses carry RateLimit-Policy and RateLimit, one more of each per Quota
// passed (draft-ietf-httpapi-ratelimit-headers-10). A refusal is a 429 with
// Retry-After and a problem (RFC 9457) that names the policy, and is counted in
// quota.<key>.refused. Without an answer from the database there is no RateLimit.
func Quota(t Taker, cfg QuotaConfig) func(http.Handler) http.Handler {
	q := newQuota(t, cfg)
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { q.serve(next, w, r) })
	}
}

func newQuota(t Taker, cfg QuotaConfig) *quota {
	if cfg.Window == 0 {
		cfg.Window = 24 * time.Hour
	}
	cfg.Lease = max(cfg.Lease, 1)
	switch {
	case t == nil:
		panic("middleware: Quota without a Taker")
	case !isPolicy(cfg.Name):
		panic("middleware: QuotaConfig.Name " + strconv.Quote(cfg.Name) + ` is not 1 to 64 ASCII letters, digits, '-' and '_', or is "refused"`)
	case cfg.Key == nil:
		panic("middleware: QuotaConfig.Key is nil")
	case cfg.Limit == nil:
		panic("middleware: QuotaConfig.Limit is nil")
	case cfg.Window != time.Hour && cfg.Window != 24*time.Hour:
		panic("middleware: QuotaConfig.Window is " + cfg.Window.String() + ", neither an hour nor a day")
	}
	return &quota{
		taker:    t,
		cfg:      cfg,
		patience: 50 * time.Millisecond,
		name:     field(httpsfv.NewItem(cfg.Name)),
		exceeded: problem{
			Type:     "https://iana.org/assignments/http-problem-types#quota-exceeded",
			Title:    "Request cannot be satisfied as assigned quota has been exceeded",
			Status:   http.StatusTooManyRequests,
			Violated: []string{cfg.Name},
		}.json(),
		unavailable: problem{
			Type:   "about:blank",
			Title:  http.StatusText(http.StatusServiceUnavailable),
			Status: http.StatusServiceUnavailable,
			Detail: "The quota cannot be checked at the moment.",
		}.json(),
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

const (
	takeTimeout = time.Second
	maxCalls    = 64   // on their way at a time
	maxQueue    = 1024 // waiting for one of them: more would hardly get there in time

	maxShares    = 100_000
	maxShareKeys = 16 << 20 // bytes
	maxPolicies  = 1000
)

// quota holds what is known of each key (shares), and the keys that wait for the
// database (calls): the ones that Take is called for, and the ones in the queue.
type quota struct {
	taker                 Taker
	cfg                   QuotaConfig
	patience              time.Duration
	name                  string // as a structured field
	exceeded, unavailable []byte

	mu         sync.Mutex
	policies   map[int64]string // RateLimit-Policy by limit
	shares     map[string]*share
	shareBytes int       // of its keys
	until      time.Time // the last share's
	calls      map[string]*call
	queue      []*call
	running    int
}

// share is what is known of one key in one window.
type share struct {
	taken   int64 // by all instances, at least
	reserve int64 // of that, not used yet
	until   time.Time
}

// call is a key that waits for the database.
type call struct {
	key     string
	share   *share // of the last answer, kept in quota.shares or not
	waiters []*waiter
	waiting int       // waiters that have not left
	late    time.Time // when the first waiter leaves
}

type waiter struct {
	limit    int64
	deadline time.Time
	asked    bool // before Take was called
	left     bool
	told     chan struct{} // closed once verdict holds
	verdict  verdict
	from     *share // for one that passed
}

type outcome int

const (
	away outcome = iota // the database is
	passed
	refused
	gone // the client is, or its context has ended
)

type verdict struct {
	outcome outcome
	left    int64
	until   time.Time // zero: not known
}

func (q *quota) serve(next http.Handler, w http.ResponseWriter, r *http.Request) {
	deadline := time.Now().Add(q.patience)
	key, limit, ok := q.ask(r)
	if ok && (key == "" || limit < 0) {
		next.ServeHTTP(w, r)
		return
	}
	limit = min(limit, maxInteger)
	var v verdict
	if ok {
		w.Header().Add(policyField, q.policy(limit))
		v = q.admit(r.Context(), key, limit, deadline)
		if v.outcome == away && limit == 0 {
			v.outcome = refused // whatever the database would say
		}
	}
	switch v.outcome {
	case passed:
		w.Header().Add(limitField, q.rateLimit(v))
		next.ServeHTTP(w, r)
	case refused:
		q.count(key)
		w.Header().Add(limitField, q.rateLimit(v))
		respond(w, http.StatusTooManyRequests, max(seconds(v.until), 1), q.exceeded)
	case gone: // or the server is about to stop
		respond(w, http.StatusServiceUnavailable, 1, q.unavailable)
	case away:
		if q.cfg.FailShut {
			respond(w, http.StatusServiceUnavailable, 1, q.unavailable)
			return
		}
		next.ServeHTTP(w, r)
	}
}

// ask calls the functions of the configuration; ok is false when one panicked.
func (q *quota) ask(r *http.Request) (key string, limit int64, ok bool) {
	defer func() { _ = recover() }()
	if key = q.cfg.Key(r); key != "" {
		limit = q.cfg.Limit(r)
	}
	return key, limit, true
}

func (q *quota) count(key string) {
	defer func() { _ = recover() }()
	q.taker.Add("quota."+escape(key)+".refused", 1)
}

// admit decides on a request by its deadline.
func (q *quota) admit(ctx context.Context, key string, limit int64, deadline time.Time) verdict {
	v, c, w := q.decide(key, limit, deadline)
	if w == nil {
		return v
	}
	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	select {
	case <-w.told:
	case <-timer.C:
	case <-ctx.Done():
	}
	return q.leave(c, w, ctx.Err() != nil)
}

// decide decides on a request by what is known, or returns a waiter of a call.
func (q *quota) decide(key string, limit int64, deadline time.Time) (verdict, *call, *waiter) {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := time.Now()
	if s := q.known(key, now); s != nil {
		if v, ok := s.use(limit); ok {
			return v, nil, nil
		}
	}
	c := q.calls[key]
	switch {
	case c == nil && len(q.queue) >= maxQueue, c != nil && !now.Before(c.late):
		return verdict{}, nil, nil
	case c == nil:
		c = &call{key: key, late: deadline}
		q.calls[key] = c
		q.queue = append(q.queue, c)
	}
	w := &waiter{limit: limit, deadline: deadline, told: make(chan struct{})}
	c.waiters = append(c.waiters, w)
	c.waiting++
	q.dispatch()
	return verdict{}, c, w
}

// leave ends w's wait. What it was given goes back when its client is gone.
func (q *quota) leave(c *call, w *waiter, clientGone bool) verdict {
	q.mu.Lock()
	defer q.mu.Unlock()
	select {
	case <-w.told:
	default:
		w.left = true
		c.waiting--
		if c.waiting == 0 {
			c.waiters = nil
		}
	}
	if !clientGone {
		return w.verdict
	}
	if w.verdict.outcome == passed {
		w.from.reserve++
		if c := q.calls[c.key]; c != nil && q.known(c.key, time.Now()) == w.from {
			c.serve(w.from, false)
		}
	}
	return verdict{outcome: gone}
}

// known returns the share of key, or nil.
func (q *quota) known(key string, now time.Time) *share {
	if !now.Before(q.until) && len(q.shares) > 0 {
		q.forget()
	}
	s := q.shares[key]
	if c := q.calls[key]; s == nil && c != nil {
		s = c.share
	}
	if s == nil || !now.Before(s.until) {
		return nil
	}
	return s
}

func (q *quota) forget() {
	q.shares, q.shareBytes = map[string]*share{}, 0
}

// dispatch starts the calls that there is room for.
func (q *quota) dispatch() {
	for q.running < maxCalls && len(q.queue) > 0 {
		c := q.queue[0]
		q.queue[0] = nil
		q.queue = q.queue[1:]
		if c.waiting == 0 {
			delete(q.calls, c.key)
			continue
		}
		q.running++
		go q.call(c)
	}
}

// taking is a Take and its answer.
type taking struct {
	n, limit int64
	left     int64
	until    time.Time
	ok       bool
	answered bool
}

func (q *quota) call(c *call) {
	var t taking
	defer func() {
		_ = recover() // Take's
		q.settle(c, t)
	}()
	if t.n, t.limit = q.want(c); t.n == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), takeTimeout)
	defer cancel()
	start := time.Now()
	left, until, ok, err := q.taker.Take(ctx, "quota."+escape(c.key)+"."+q.cfg.Name, t.n, t.limit, q.cfg.Window)
	// An answer that contradicts itself is none, lest we ask for ever.
	if err != nil || !until.After(start) || !ok && left >= t.n {
		return
	}
	t.left, t.until, t.ok, t.answered = max(left, 0), until, ok, true
	if ok {
		t.left = min(t.left, t.limit-t.n)
	}
}

// want returns what to take for the waiters of c with the limit of the first one.
func (q *quota) want(c *call) (n, limit int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, w := range c.waiters {
		if w.left {
			continue
		}
		if n == 0 {
			limit = w.limit
		}
		if w.asked = true; w.limit == limit {
			n++
		}
	}
	if n == 0 {
		return 0, 0
	}
	left := limit
	if s := q.known(c.key, time.Now()); s != nil {
		left -= s.taken
	}
	return max(1, min(left, max(n, q.cfg.Lease))), limit
}

// settle notes what t says, and tells the waiters. Those that it does not decide
// on ask again.
func (q *quota) settle(c *call, t taking) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.running--
	now := time.Now()
	left := t.until.Sub(now)
	switch {
	case !t.answered:
		c.fail()
	case left > 0:
		s := q.keep(c, now.Add(left), now) // with a monotonic reading, whatever Take's has
		s.note(t)
		c.serve(s, false)
	case t.ok:
		// The window has ended, but who asked before was counted in it.
		s := &share{until: t.until}
		s.note(t)
		c.serve(s, true)
	}
	if c.waiting == 0 {
		delete(q.calls, c.key)
	} else {
		for _, w := range c.waiters {
			if !w.left {
				c.late = w.deadline
				break
			}
		}
		q.queue = append(q.queue, c)
	}
	q.dispatch()
}

// keep returns c's share of the window that ends then, which is kept if there is
// room.
func (q *quota) keep(c *call, until, now time.Time) *share {
	// The ends of one window differ by the time that a query takes, those of two
	// by half an hour at least.
	same := func(other time.Time) bool { return until.Sub(other).Abs() < q.cfg.Window/4 }
	if until.After(q.until) {
		if !same(q.until) {
			q.forget() // another one has begun
		}
		q.until = until
	}
	s := q.known(c.key, now)
	if s == nil || !same(s.until) {
		s = &share{}
	}
	s.until = until
	c.share = s
	if old := q.shares[c.key]; old != nil {
		q.shares[c.key] = s
	} else if len(q.shares) < maxShares && q.shareBytes+len(c.key) <= maxShareKeys && same(q.until) {
		q.shares[c.key] = s
		q.shareBytes += len(c.key)
	}
	return s
}

func (s *share) note(t taking) {
	s.taken = max(s.taken, t.limit-t.left)
	if t.ok {
		s.reserve += t.n
	}
}

// use decides on a request; ok is false when that takes the database.
func (s *share) use(limit int64) (v verdict, ok bool) {
	used := s.taken - s.reserve
	switch {
	case s.reserve > 0 && used < limit:
		s.reserve--
		return verdict{passed, limit - used - 1, s.until}, true
	case s.taken >= limit:
		return verdict{refused, 0, s.until}, true
	}
	return verdict{}, false
}

// serve tells the waiters that s decides on, the first ones first; with asked only
// those.
func (c *call) serve(s *share, asked bool) {
	c.settle(func(w *waiter) bool {
		if asked && !w.asked {
			return false
		}
		v, ok := s.use(w.limit)
		w.verdict, w.from = v, s
		return ok
	})
}

func (c *call) fail() {
	c.settle(func(*waiter) bool { return true })
}

// settle tells those waiters that decided returns true for.
func (c *call) settle(decided func(*waiter) bool) {
	rest := c.waiters[:0]
	for _, w := range c.waiters {
		switch {
		case w.left:
		case decided(w):
			close(w.told)
		default:
			rest = append(rest, w)
		}
	}
	clear(c.waiters[len(rest):])
	c.waiters, c.waiting = rest, len(rest)
}

// The fields as http.Header has them.
const (
	policyField = "Ratelimit-Policy"
	limitField  = "Ratelimit"
)

// maxInteger is the greatest of structured fields (RFC 9651, 3.3.1).
const maxInteger = 999_999_999_999_999

func (q *quota) policy(limit int64) string {
	q.mu.Lock()
	defer q.mu.Unlock()
	p, ok := q.policies[limit]
	if !ok {
		if len(q.policies) == maxPolicies {
			clear(q.policies)
		}
		item := httpsfv.NewItem(q.cfg.Name)
		item.Params.Add("q", limit)
		item.Params.Add("w", int64(q.cfg.Window/time.Second))
		p = field(item)
		q.policies[limit] = p
	}
	return p
}

// rateLimit makes RateLimit. Integers are the same in structured fields as here,
// and this is on every request's way.
func (q *quota) rateLimit(v verdict) string {
	var room [128]byte
	b := append(room[:0], q.name...)
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
