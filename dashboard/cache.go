package dashboard

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"github.com/usagekit/usagekit/store"
)

const (
	timeout     = 5 * time.Second  // of a request, and of a read
	answerPause = 30 * time.Second // that a reader may take for a piece of an answer
	answerPiece = 64 << 10         // bytes
	patience    = time.Second      // with a read, where there is an older answer
	lastFor     = time.Hour        // is what an older answer is kept
	maxReads    = 4                // at a time
	maxAnswers  = 128              // being read, or younger than maxAge: a large one has megabytes
	maxLast     = 48               // kept for longer: of the page, with some ranges
	maxLastSize = 1 << 20          // bytes of one
)

var (
	errTimeout = errors.New("dashboard: no answer in time")
	errBusy    = errors.New("dashboard: too many different reads at a time")
	errPanic   = errors.New("dashboard: the read panicked")
)

// cache keeps answers for maxAge and reads each once, however many ask for it.
//
// A read belongs to nobody: it has a goroutine, a deadline and a recover of its
// own, so a browser that goes away fails no other, and one that waits goes by
// its own clock. A read that ignores its deadline keeps one of maxReads places
// until it returns, but its answer is given up: who asks next starts anew.
//
// Some good answers, of those that are not large, are kept for longer, as the last of their key: while the next
// read gets no answer, or is late, that one is given again, and said to be stale.
// Late is after a second, or twice what the last one took.
type cache struct {
	maxAge time.Duration
	places chan struct{}

	mu      sync.Mutex
	answers map[string]*answer // the newest
	last    map[string]*answer // the newest good ones
	heard   time.Time          // when a read last ended well
}

type answer struct {
	began, ended time.Time
	late         time.Time     // from then on nobody waits who can have the last one
	done         chan struct{} // closed when value and err are there
	value        any
	err          error
	gone         *time.Timer // takes the answer out of answers
	until        time.Time   // it is one, of a range that ends then; zero: for maxAge

	// Of one of the last.
	asked     time.Time   // for again; zero: never
	failed    bool        // the read that followed did
	refused   time.Time   // when that began, if it was no matter of time; else zero
	forgotten *time.Timer // takes it out of last
}

func newCache(maxAge time.Duration) *cache {
	return &cache{maxAge: maxAge, places: make(chan struct{}, maxReads), answers: map[string]*answer{}, last: map[string]*answer{}}
}

// standing says what an answer is.
type standing int

const (
	fresh standing = iota // read for who asks
	stale                 // the last one again: the database does not answer
	slow                  // the last one again: there is no other yet
)

// ask begins to read the answer for key if it is not there. What it returns
// waits for it, and tells how it stands.
func ask[T any](c *cache, key string, read func(context.Context) (T, error)) func(context.Context) (T, standing, error) {
	a, last := c.find(key, func(ctx context.Context) (any, error) { return read(ctx) })
	return func(ctx context.Context) (value T, how standing, err error) {
		v, how, err := c.wait(ctx, a, last)
		value, _ = v.(T)
		return value, how, err
	}
}

// wait waits for a, and when there is a last one to give instead, not for long.
func (c *cache) wait(ctx context.Context, a, last *answer) (value any, how standing, err error) {
	if last != nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, a.late)
		defer cancel()
	}
	select {
	case <-a.done:
	case <-ctx.Done():
	}
	err = errTimeout
	if a.isDone() {
		err = a.err
	}
	switch {
	case err == nil:
		return a.value, fresh, nil
	case last != nil && away(err) && c.silent(a, last):
		return last.value, stale, nil
	case last != nil && away(err):
		return last.value, slow, nil
	}
	return nil, fresh, err
}

// silent tells whether the database does not answer: a read was refused, a or the one
// before, and none has ended well since it began. One that only takes long tells nothing.
func (c *cache) silent(a, last *answer) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	since := last.refused
	if a.isDone() {
		since = a.began
		if a.timedOut() {
			return false
		}
	}
	return !since.IsZero() && !c.heard.After(since)
}

// timedOut tells whether a, which failed, did for want of time.
func (a *answer) timedOut() bool {
	return errors.Is(a.err, errTimeout) || errors.Is(a.err, errBusy) || errors.Is(a.err, context.DeadlineExceeded)
}

// away tells whether err means that there is no answer, rather than a bad one.
func away(err error) bool {
	return errors.Is(err, store.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded) ||
		errors.Is(err, errTimeout) || errors.Is(err, errBusy)
}

func (a *answer) isDone() bool {
	select {
	case <-a.done:
		return true
	default:
		return false
	}
}

// find returns the newest answer for key, perhaps yet to come, and the last
// that was good, if there is one.
func (c *cache) find(key string, read func(context.Context) (any, error)) (a, last *answer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if last = c.last[key]; last != nil {
		last.asked = now
	}
	if a := c.answers[key]; a != nil && (a.until.IsZero() || now.Before(a.until)) {
		return a, last
	}
	a = &answer{began: now, late: now.Add(patience), done: make(chan struct{})}
	if len(c.answers) >= maxAnswers && !c.dropOne() {
		a.err = errBusy
		close(a.done)
		return a, last
	}
	if last != nil && !last.failed { // it may be a slow one
		a.late = now.Add(max(patience, 2*last.ended.Sub(last.began)))
	}
	a.gone = time.AfterFunc(timeout+time.Second, func() { c.forget(c.answers, key, a) })
	c.answers[key] = a
	go c.run(key, a, read)
	return a, last
}

func (c *cache) forget(from map[string]*answer, key string, a *answer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if from[key] == a {
		delete(from, key)
	}
}

// dropOne drops any answer that is there, and reports whether there was one.
func (c *cache) dropOne() bool {
	for key, a := range c.answers {
		if a.isDone() {
			a.gone.Stop()
			delete(c.answers, key)
			return true
		}
	}
	return false
}

func (c *cache) run(key string, a *answer, read func(context.Context) (any, error)) {
	a.err = errPanic // until read returns
	defer func() {
		if p := recover(); p != nil {
			slog.Error("usage dashboard: a read panicked", "panic", p, "stack", string(debug.Stack()))
		}
		c.end(key, a)
	}()
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	select {
	case c.places <- struct{}{}:
		defer func() { <-c.places }()
	case <-ctx.Done():
		a.err = errTimeout
		return
	}
	a.value, a.err = read(ctx)
	if a.err != nil && mistake(a.err) == "" {
		slog.Warn("usage dashboard: a read failed", "err", a.err)
	}
}

// end notes that a is there, and keeps it as the last good one if it is.
func (c *cache) end(key string, a *answer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	a.ended = time.Now()
	if a.err == nil {
		c.heard = a.ended
	}
	close(a.done)
	a.gone.Reset(c.maxAge)
	if v, ok := a.value.(interface{ holds() time.Duration }); ok && v.holds() > 0 {
		a.until = a.began.Add(v.holds())
	}
	last := c.last[key]
	switch {
	case c.answers[key] != a: // it was given up
		return
	case a.err != nil:
		if last != nil {
			last.failed, last.refused = true, time.Time{}
			if !a.timedOut() {
				last.refused = a.began
			}
		}
		return
	case isLarge(a.value):
		if last != nil {
			last.forgotten.Stop()
			delete(c.last, key)
		}
		return
	case last != nil:
		last.forgotten.Stop()
		a.asked = last.asked
	case len(c.last) >= maxLast:
		c.dropLast()
	}
	a.forgotten = time.AfterFunc(c.maxAge+lastFor, func() { c.forget(c.last, key, a) })
	c.last[key] = a
}

// isLarge tells whether value says so of itself.
func isLarge(value any) bool {
	v, ok := value.(interface{ large() bool })
	return ok && v.large()
}

// dropLast drops the one of the last answers that was not asked for again for
// the longest time: one that somebody looks at outlives any number of others.
func (c *cache) dropLast() {
	var drop string
	for key, a := range c.last {
		b := c.last[drop]
		if b == nil || cmp.Or(a.asked.Compare(b.asked), a.ended.Compare(b.ended)) < 0 {
			drop = key
		}
	}
	c.last[drop].forgotten.Stop()
	delete(c.last, drop)
}
