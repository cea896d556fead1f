package store

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/usagekit/usagekit/internal/counter"
)

// Shutdown brings what is left into the database and stops the store. It never
// outlasts ctx: counts that could not be delivered by then come back as an
// *UndeliveredError, but for those that the spool has for the next start. Later
// calls return what the first one did.
func (s *Store) Shutdown(ctx context.Context) error {
	if s == nil {
		return nil
	}
	first := false
	s.stopOnce.Do(func() { first = true })
	if first {
		s.stopErr = s.stop(ctx)
		s.logStop(s.stopErr)
		close(s.stopped)
		return s.stopErr
	}
	select {
	case <-s.stopped:
		return s.stopErr
	case <-ctx.Done():
		return fmt.Errorf("store: another Shutdown is still at work: %w", ctx.Err())
	}
}

func (s *Store) stop(ctx context.Context) error {
	var seq int64
	err := within(ctx, func() {
		s.sealing.Lock()
		defer s.sealing.Unlock()
		if b, ok := s.live.Close(); ok {
			s.enqueue(b)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		seq = s.seq
	})
	hung := err != nil // the spool's disk: what is not sealed is in its files, still locked
	if err == nil {
		err = s.acknowledged(ctx, seq)
	}
	if err == nil {
		// What is in the inbox is stored: a fold that does not get its turn
		// now is the next one's.
		if s.foldThrough(ctx, seq) == nil {
			s.release(ctx)
		}
	}
	s.cancel()
	missing := map[int64]bool{}
	looked := within(ctx, func() {
		s.wg.Wait() // what the loops do ends with s.run, but for what a disk keeps them from
		s.mu.Lock()
		queue := slices.Clone(s.queue)
		s.mu.Unlock()
		for _, b := range queue {
			missing[b.seq] = !b.spooled || !s.spool.Has(b.seq)
		}
		if !hung {
			s.spool.Release()
		}
	}) == nil
	s.db.Drain(ctx)
	if err == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	sums := map[string]int64{}
	for _, b := range s.queue {
		if looked && !missing[b.seq] || !looked && b.spooled {
			continue
		}
		batch, err := counter.Decode(b.payload)
		if err != nil {
			continue // it was encoded by us a moment ago
		}
		for _, c := range batch.Counts {
			sums[c.Name] = addCapped(sums[c.Name], c.N)
		}
	}
	hung = hung || !looked
	if len(sums) == 0 && !hung {
		return nil
	}
	if hung {
		err = fmt.Errorf("%w; the spool's disk does not answer: what is not sealed yet is in the spool's files", err)
	}
	u := &UndeliveredError{Err: err}
	for name, n := range sums {
		u.Counts = append(u.Counts, Count{Name: name, N: n})
	}
	sortCounts(u.Counts)
	return u
}

// diskGrace is how long a disk may still take when a context has ended.
const diskGrace = 300 * time.Millisecond

// within runs f, which writes to the spool, and returns when it has ended, or a moment
// after ctx has. What f would still do then, it does for nobody.
func within(ctx context.Context, f func()) error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
	}
	select {
	case <-done:
		return nil
	case <-time.After(diskGrace):
		return ctx.Err()
	}
}
