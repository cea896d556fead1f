package store

import (
	"context"
	"fmt"
)

// Shutdown brings what is left into the database and stops the store. It never
// outlasts ctx, but by the moment for which a disk may hang: counts that could not be delivered by then come back as an
// *UndeliveredError, but for those that the spool has for the next start. Later
// calls return what the first one did.
func (s *Store) Shutdown(ctx context.Context) error {
	if s == nil {
		return nil
	}
	first := false
	s.life.stopOnce.Do(func() { first = true })
	if first {
		s.life.stopErr = s.stop(ctx)
		s.logStop(s.life.stopErr)
		close(s.life.stopped)
		return s.life.stopErr
	}
	select {
	case <-s.life.stopped:
		return s.life.stopErr
	case <-ctx.Done():
		return fmt.Errorf("store: another Shutdown is still at work: %w", ctx.Err())
	}
}

func (s *Store) stop(ctx context.Context) error {
	seq, err := s.outbox.Close(ctx)
	closed := err == nil
	if err == nil {
		err = s.outbox.Acknowledged(ctx, seq)
	}
	if err == nil {
		// What is in the inbox is stored: a fold that does not get its turn
		// now is the next one's.
		if s.folder.Through(ctx, seq) == nil {
			s.leader.Release(ctx)
		}
	}
	s.life.cancel()
	counts, hung := s.outbox.Undelivered(ctx, closed, s.life.wg.Wait)
	s.db.Drain(ctx)
	if err == nil || len(counts) == 0 && !hung {
		return nil
	}
	if hung {
		err = fmt.Errorf("%w; the spool's disk does not answer: what is not sealed yet is in the spool's files", err)
	}
	u := &UndeliveredError{Err: err}
	for name, n := range counts {
		u.Counts = append(u.Counts, Count{Name: name, N: n})
	}
	sortCounts(u.Counts)
	return u
}
