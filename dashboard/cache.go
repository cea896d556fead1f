package dashboard

import (
	"context"
	"errors"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"
)

const (
	timeout    = 5 * time.Second // of a request, and of a read
	maxReads   = 4               // at a time
	maxAnswers = 64              // kept or being read: a large one has megabytes
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
type cache struct {
	maxAge time.Duration
	places chan struct{}

	mu      sync.Mutex
	answers map[string]*answer
}

type answer struct {
	done  chan struct{} // closed when value and err are there
	value any
	err   error
	gone  *time.Timer // takes the answer out of the cache
}

func newCache(maxAge time.Duration) *cache {
	return &cache{maxAge: maxAge, places: make(chan struct{}, maxReads), answers: map[string]*answer{}}
}

// ask returns the answer for key, by read if it is not there.
func ask[T any](ctx context.Context, c *cache, key string, read func(context.Context) (T, error)) (T, error) {
	a, err := c.find(key, func(ctx context.Context) (any, error) { return read(ctx) })
	if err == nil {
		select {
		case <-a.done:
			value, _ := a.value.(T)
			return value, a.err
		case <-ctx.Done():
			err = errTimeout
		}
	}
	var none T
	return none, err
}

func (c *cache) find(key string, read func(context.Context) (any, error)) (*answer, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if a := c.answers[key]; a != nil {
		return a, nil
	}
	if len(c.answers) >= maxAnswers && !c.dropOne() {
		return nil, errBusy
	}
	a := &answer{done: make(chan struct{})}
	a.gone = time.AfterFunc(timeout, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.answers[key] == a {
			delete(c.answers, key)
		}
	})
	c.answers[key] = a
	go c.run(a, read)
	return a, nil
}

// dropOne drops any answer that is there, and reports whether there was one.
func (c *cache) dropOne() bool {
	for key, a := range c.answers {
		select {
		case <-a.done:
			a.gone.Stop()
			delete(c.answers, key)
			return true
		default:
		}
	}
	return false
}

func (c *cache) run(a *answer, read func(context.Context) (any, error)) {
	a.err = errPanic // until read returns
	defer func() {
		if p := recover(); p != nil {
			slog.Error("usage dashboard: a read panicked", "panic", p, "stack", string(debug.Stack()))
		}
		close(a.done)
		a.gone.Reset(c.maxAge)
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
	if bad := badRequest(nil); a.err != nil && !errors.As(a.err, &bad) {
		slog.Warn("usage dashboard: a read failed", "err", a.err)
	}
}
