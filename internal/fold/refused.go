package fold

import (
	"fmt"
	"sync"
	"time"

	"github.com/usagekit/usagekit/internal/database"
)

const (
	refusalPause = 15 * time.Minute // for which what somebody's rule refuses waits for that to be undone
	refusedAgain = 5 * time.Second  // after which one that was refused is tried again although others wait
)

// rule is one of somebody's that refuses batches: since when, and when it did so last.
type rule struct{ since, last time.Time }

// stands takes note that a rule refuses batches now, and tells whether rules have done
// so for refusalPause, never resting for as long: nobody leaves a mistake in place
// for that long, so it is meant. Counts wait, whole, until it stands.
func (r *rule) stands(now time.Time) bool {
	if now.Sub(r.last) >= refusalPause {
		r.since = now
	}
	r.last = now
	return now.Sub(r.since) >= refusalPause
}

// refusal is what a writer's next batch met when it was folded alone. For the sake of
// their order that writer's wait; those of others do not.
type refusal struct {
	batch string
	err   error
	tried time.Time
}

// refusedError says that some batches wait, and that the others are folded.
type refusedError struct {
	writers int
	err     error // that of the one that was tried last
}

func (e *refusedError) Error() string { return e.what() + ": " + e.err.Error() }

// Reason is what everybody may be told who sees the store's health: nothing that a
// driver says.
func (e *refusedError) Reason() string {
	code := ""
	if state := database.SQLState(e.err); state != "" {
		code = " (SQLSTATE " + state + ")"
	}
	return e.what() + code + "; the application's log says why"
}

func (e *refusedError) what() string {
	return fmt.Sprintf("the database refuses batches, which are tried again (of %d writers, whose later ones wait as well); those of others are folded", e.writers)
}

func (e *refusedError) Unwrap() error { return e.err }

// refusals are by writer. Transactions that were given up may still ask for them.
type refusals struct {
	mu sync.Mutex
	of map[string]refusal
}

// putBehind has the batches of a writer wait behind those of others: its next one is
// refused.
func (r *refusals) putBehind(w waiting, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.of == nil {
		r.of = map[string]refusal{}
	}
	r.of[w.Writer] = refusal{w.name(), err, time.Now()}
}

// folded takes note that c was folded, and returns why others wait. Where one was
// refused before, whatever refused it may be undone: then all are taken again.
func (r *refusals) folded(c *choice) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c != nil && len(c.list) > 0 {
		if _, refused := r.of[c.list[0].Writer]; refused {
			clear(r.of)
		}
	}
	var last refusal
	for _, one := range r.of {
		if last.err == nil || one.tried.After(last.tried) {
			last = one
		}
	}
	if last.err == nil {
		return nil
	}
	return &refusedError{len(r.of), last.err}
}

// turn is whose turn it is of those that wait, by writer and in order: all of a writer's
// but of those whose next batch was refused; or one of these, alone, where nothing else
// waits, and every refusedAgain. That of a suspect comes first. all tells that no other
// writer has anything in the inbox.
func (r *refusals) turn(list []waiting, all bool, suspect string, now time.Time) (c choice) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.of) == 0 && suspect == "" {
		return choice{list: list}
	}
	first := map[string]int{} // of each writer
	for i, w := range list {
		if _, ok := first[w.Writer]; !ok {
			first[w.Writer] = i
		}
	}
	last, next := time.Time{}, -1
	for writer, one := range r.of {
		i, waits := first[writer]
		if waits && list[i].name() != one.batch || !waits && all { // another instance has folded it
			delete(r.of, writer)
			continue
		}
		if one.tried.After(last) {
			last = one.tried
		}
		if waits && (next < 0 || one.tried.Before(r.of[list[next].Writer].tried)) {
			next = i
		}
	}
	for _, w := range list {
		if _, refused := r.of[w.Writer]; !refused {
			c.list = append(c.list, w)
		}
	}
	c.others = len(c.list) > 0
	due := next >= 0 && (!c.others || now.Sub(last) >= refusedAgain || now.Before(last))
	for _, i := range first {
		if suspect != "" && list[i].name() == suspect {
			due, next = true, i
		}
	}
	c.left = len(r.of) > 0
	if due {
		_, refused := r.of[list[next].Writer]
		c.list, c.again, c.more = list[next:next+1], true, len(list) > 1
		c.left = len(r.of) > 1 || !refused && c.left
	}
	return c
}
