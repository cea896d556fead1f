package quota

import (
	"context"
	"sync"
	"time"

	"github.com/usagekit/usagekit/internal/naming"
)

// A quota's requests pass on what was taken in the database before: the share of
// their key. Where that is used up, they wait for a call, of which a key has one at a
// time; it takes for all that wait.

const (
	takeTimeout = time.Second
	maxCalls    = 64   // on their way at a time
	maxQueue    = 1024 // waiting for one of them: more would hardly get there in time

	maxShares    = 100_000
	maxShareKeys = 16 << 20 // bytes
	maxPolicies  = 1000
)

// limiter holds what is known of each key (shares), and the keys that wait for the
// database (calls): the ones that Take is called for, and the ones in the queue.
type limiter struct {
	taker    Taker
	cfg      Config
	patience time.Duration
	text     text

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
	share   *share // of the last answer, kept in limiter.shares or not
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

// admit decides on a request by its deadline.
func (l *limiter) admit(ctx context.Context, key string, limit int64, deadline time.Time) verdict {
	v, c, w := l.decide(key, limit, deadline)
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
	return l.leave(c, w, ctx.Err() != nil)
}

// decide decides on a request by what is known, or returns a waiter of a call.
func (l *limiter) decide(key string, limit int64, deadline time.Time) (verdict, *call, *waiter) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if s := l.known(key, now); s != nil {
		if v, ok := s.use(limit); ok {
			return v, nil, nil
		}
	}
	c := l.calls[key]
	switch {
	case c == nil && len(l.queue) >= maxQueue, c != nil && !now.Before(c.late):
		return verdict{}, nil, nil
	case c == nil:
		c = &call{key: key, late: deadline}
		l.calls[key] = c
		l.queue = append(l.queue, c)
	}
	w := &waiter{limit: limit, deadline: deadline, told: make(chan struct{})}
	c.waiters = append(c.waiters, w)
	c.waiting++
	l.dispatch()
	return verdict{}, c, w
}

// leave ends w's wait. What it was given goes back when its client is gone.
func (l *limiter) leave(c *call, w *waiter, clientGone bool) verdict {
	l.mu.Lock()
	defer l.mu.Unlock()
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
		if c := l.calls[c.key]; c != nil && l.known(c.key, time.Now()) == w.from {
			c.serve(w.from, false)
		}
	}
	return verdict{outcome: gone}
}

// known returns the share of key, or nil.
func (l *limiter) known(key string, now time.Time) *share {
	if !now.Before(l.until) && len(l.shares) > 0 {
		l.forget()
	}
	s := l.shares[key]
	if c := l.calls[key]; s == nil && c != nil {
		s = c.share
	}
	if s == nil || !now.Before(s.until) {
		return nil
	}
	return s
}

func (l *limiter) forget() {
	l.shares, l.shareBytes = map[string]*share{}, 0
}

// dispatch starts the calls that there is room for.
func (l *limiter) dispatch() {
	for l.running < maxCalls && len(l.queue) > 0 {
		c := l.queue[0]
		l.queue[0] = nil
		l.queue = l.queue[1:]
		if c.waiting == 0 {
			delete(l.calls, c.key)
			continue
		}
		l.running++
		go l.call(c)
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

func (l *limiter) call(c *call) {
	var t taking
	defer func() {
		_ = recover() // Take's
		l.settle(c, t)
	}()
	if t.n, t.limit = l.want(c); t.n == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), takeTimeout)
	defer cancel()
	start := time.Now()
	left, until, ok, err := l.taker.Take(ctx, "quota."+naming.Escape(c.key)+"."+l.cfg.Name, t.n, t.limit, l.cfg.Window)
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
func (l *limiter) want(c *call) (n, limit int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
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
	if s := l.known(c.key, time.Now()); s != nil {
		left -= s.taken
	}
	return max(1, min(left, max(n, l.cfg.Reserve))), limit
}

// settle notes what t says, and tells the waiters. Those that it does not decide
// on ask again.
func (l *limiter) settle(c *call, t taking) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.running--
	now := time.Now()
	left := t.until.Sub(now)
	switch {
	case !t.answered:
		c.fail()
	case left > 0:
		s := l.keep(c, now.Add(left), now) // with a monotonic reading, whatever Take's has
		s.note(t)
		c.serve(s, false)
	case t.ok:
		// The window has ended, but who asked before was counted in it.
		s := &share{until: t.until}
		s.note(t)
		c.serve(s, true)
	}
	if c.waiting == 0 {
		delete(l.calls, c.key)
	} else {
		for _, w := range c.waiters {
			if !w.left {
				c.late = w.deadline
				break
			}
		}
		l.queue = append(l.queue, c)
	}
	l.dispatch()
}

// keep returns c's share of the window that ends then, which is kept if there is
// room.
func (l *limiter) keep(c *call, until, now time.Time) *share {
	// The ends of one window differ by the time that a query takes, those of two
	// by half an hour at least.
	same := func(other time.Time) bool { return until.Sub(other).Abs() < longest(l.cfg.Window)/4 }
	if until.After(l.until) {
		if !same(l.until) {
			l.forget() // another one has begun
		}
		l.until = until
	}
	s := l.known(c.key, now)
	if s == nil || !same(s.until) {
		s = &share{}
	}
	s.until = until
	c.share = s
	if old := l.shares[c.key]; old != nil {
		l.shares[c.key] = s
	} else if len(l.shares) < maxShares && l.shareBytes+len(c.key) <= maxShareKeys && same(l.until) {
		l.shares[c.key] = s
		l.shareBytes += len(c.key)
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
