package store

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/usagekit/usagekit/internal/counter"
	"github.com/usagekit/usagekit/internal/database"
	"github.com/usagekit/usagekit/internal/naming"
)

// stands takes note that a rule refuses batches now, and tells whether rules have done
// so for refusalPause, never resting for as long: nobody leaves a mistake in place
// for that long, so it is meant. Counts wait, whole, until it stands.
func (m *foldMemory) stands(now time.Time) bool {
	if now.Sub(m.refusedLast) >= refusalPause {
		m.refusedSince = now
	}
	m.refusedLast = now
	return now.Sub(m.refusedSince) >= refusalPause
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

// putBehind has the batches of a writer wait behind those of others: its next one is
// refused.
func (s *Store) putBehind(w waiting, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refusals == nil {
		s.refusals = map[string]refusal{}
	}
	s.refusals[w.Writer] = refusal{w.name(), err, time.Now()}
}

// foldedAfter takes note that c was folded, and returns why others wait. Where one was
// refused before, whatever refused it may be undone: then all are taken again.
func (s *Store) foldedAfter(c *choice) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c != nil && len(c.list) > 0 {
		if _, refused := s.refusals[c.list[0].Writer]; refused {
			clear(s.refusals)
		}
	}
	var last refusal
	for _, r := range s.refusals {
		if last.err == nil || r.tried.After(last.tried) {
			last = r
		}
	}
	if last.err == nil {
		return nil
	}
	return &refusedError{len(s.refusals), last.err}
}

// turn is whose turn it is of those that wait, by writer and in order: all of a writer's
// but of those whose next batch was refused; or one of these, alone, where nothing else
// waits, and every refusedAgain. That of a suspect comes first. all tells that no other
// writer has anything in the inbox.
func (s *Store) turn(list []waiting, all bool, suspect string, now time.Time) (c choice) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.refusals) == 0 && suspect == "" {
		return choice{list: list}
	}
	first := map[string]int{} // of each writer
	for i, w := range list {
		if _, ok := first[w.Writer]; !ok {
			first[w.Writer] = i
		}
	}
	last, next := time.Time{}, -1
	for writer, r := range s.refusals {
		i, waits := first[writer]
		if waits && list[i].name() != r.batch || !waits && all { // another instance has folded it
			delete(s.refusals, writer)
			continue
		}
		if r.tried.After(last) {
			last = r.tried
		}
		if waits && (next < 0 || r.tried.Before(s.refusals[list[next].Writer].tried)) {
			next = i
		}
	}
	for _, w := range list {
		if _, refused := s.refusals[w.Writer]; !refused {
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
	c.left = len(s.refusals) > 0
	if due {
		_, refused := s.refusals[list[next].Writer]
		c.list, c.again, c.more = list[next:next+1], true, len(list) > 1
		c.left = len(s.refusals) > 1 || !refused && c.left
	}
	return c
}

// siftOut finds the names of a batch that the database refuses. They count under
// (invalid), so that the others of their batch count. why is not nil when that is
// refused as well, and the batch cannot be counted. Where nothing at all can be
// counted it is no matter of a batch, and an error.
func (s *Store) siftOut(ctx context.Context, tx *database.Tx, m *merging, w waiting) (refused map[string]error, why, err error) {
	b, err := counter.Decode(w.Payload)
	if err != nil {
		return nil, err, nil
	}
	if why, err := s.tryOut(ctx, tx, m, counter.Batch{Opened: m.now, Counts: []counter.Count{{Name: "usagekit.counts.dropped", N: 1}}}); why != nil || err != nil {
		return nil, nil, errors.Join(why, err)
	}
	tries := maxTries
	refused, err = s.refusedOf(ctx, tx, m, b, &tries)
	if len(refused) > 0 && err == nil {
		for i := range b.Counts {
			b.Counts[i].Name = instead(b.Counts[i].Name, refused)
		}
		why, err = s.tryOut(ctx, tx, m, b)
	}
	if errors.Is(err, errTooMany) {
		return nil, err, nil
	}
	if err != nil || why != nil {
		return nil, why, err
	}
	for name, why := range refused {
		m.report("the database refuses a name, which counts as (invalid)", "batch", w.name(), "name", name, "error", why)
	}
	return refused, nil, nil
}

// instead is the name under which one is counted: its own, unless it is refused.
func instead(name string, refused map[string]error) string {
	if len(refused) == 0 || refused[naming.Kept(name)] == nil {
		return name
	}
	group, _, measure := naming.Split(name)
	return group + "." + naming.Invalid + "." + measure
}

// tryOut counts a batch, and undoes it: why tells what the database has against it.
func (s *Store) tryOut(ctx context.Context, tx *database.Tx, m *merging, b counter.Batch) (why, err error) {
	if _, err := tx.Exec(ctx, `SAVEPOINT usage_try`); err != nil {
		return nil, err
	}
	sums := s.newSums(time.UnixMilli(m.now), m.pruned)
	for _, c := range b.Counts {
		sums.add(b.Opened, c.Name, c.N)
	}
	_, why = s.apply(ctx, tx, sums)
	if _, err := tx.Exec(ctx, `ROLLBACK TO SAVEPOINT usage_try`); err != nil {
		return nil, errors.Join(why, err)
	}
	if why != nil && !database.Poison(why) && !database.RuledOut(why) {
		return nil, why
	}
	return why, nil
}

// refusedOf finds those names by halves, each tried and undone.
func (s *Store) refusedOf(ctx context.Context, tx *database.Tx, m *merging, b counter.Batch, tries *int) (map[string]error, error) {
	if *tries--; *tries < 0 {
		return nil, errTooMany
	}
	counts := b.Counts
	why, err := s.tryOut(ctx, tx, m, b)
	switch {
	case err != nil || why == nil:
		return nil, err
	case len(counts) == 1:
		return map[string]error{counts[0].Name: why}, nil
	}
	refused := map[string]error{}
	for _, half := range [][]counter.Count{counts[:len(counts)/2], counts[len(counts)/2:]} {
		some, err := s.refusedOf(ctx, tx, m, counter.Batch{Opened: b.Opened, Counts: half}, tries)
		if err != nil {
			return nil, err
		}
		maps.Copy(refused, some)
	}
	return refused, nil
}

// setAside keeps a batch that cannot be counted where somebody can look at it.
func (s *Store) setAside(ctx context.Context, tx *database.Tx, m *merging, w waiting, why error) error {
	var kept int
	if err := tx.Get(ctx, &kept, sqlBadCount); err != nil {
		return err
	}
	if kept >= badKept {
		m.report("a batch cannot be counted, and is dropped: usage_meta has as many as are kept", "batch", w.name(), "error", why)
		return nil
	}
	m.report("a batch cannot be counted; it is kept in usage_meta", "name", "bad/"+w.name(), "error", why)
	_, err := tx.Exec(ctx, sqlNewMeta, "bad/"+w.name(), base64.StdEncoding.EncodeToString(w.Payload))
	return err
}
