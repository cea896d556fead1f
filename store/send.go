package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/usagekit/usagekit/internal/counter"
)

// sealed is a batch on its way: it never changes, and is sent until the
// database has it for certain.
type sealed struct {
	seq     int64
	opened  int64 // Unix ms
	names   int
	payload []byte
}

const (
	quarterHour = 15 * time.Minute // every zone's hours, days and months begin on one
	sendTimeout = 15 * time.Second // of an attempt; the server gives up after 10
	minBackoff  = 200 * time.Millisecond
	maxBackoff  = 5 * time.Second
)

const (
	sqlRegister = `INSERT INTO usage_writers (writer, seq, sum, seen) VALUES (?, 0, ?, ?) ON CONFLICT DO NOTHING`
	sqlSend     = `INSERT INTO usage_inbox (writer, seq, opened, payload) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING`
)

// sealLoop ends a generation every Interval, and at every quarter hour.
func (s *Store) sealLoop() {
	for s.pause(min(s.interval, time.Until(time.Now().Truncate(quarterHour).Add(quarterHour)))) {
		if batch, ok := s.sealDue(); ok {
			s.live.Prepare(batch)
		}
	}
}

// sealDue seals, except that while a batch waits for the database, what comes
// later stays in one generation until the quarter hour ends: a backlog is bounded
// by names and quarter hours, not by traffic.
func (s *Store) sealDue() (counter.Batch, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.queue) > 0 && s.live.Opened().Truncate(quarterHour).Equal(time.Now().Truncate(quarterHour)) {
		return counter.Batch{}, false
	}
	return s.seal()
}

// seal queues the current generation, if anything was counted in it. The caller
// holds mu, so that numbers are given in the order of sealing.
func (s *Store) seal() (counter.Batch, bool) {
	b, ok := s.live.Seal()
	if ok {
		s.enqueue(b)
	}
	return b, ok
}

func (s *Store) enqueue(b counter.Batch) {
	s.seq++
	s.queue = append(s.queue, sealed{s.seq, b.Opened, len(b.Counts), b.Encode()})
	signal(s.wake)
}

// deliver waits until all that was added before is in the inbox, and returns the
// number of the last batch of it.
func (s *Store) deliver(ctx context.Context) (int64, error) {
	for {
		s.mu.Lock()
		wait, done := s.seq, s.live.Opened().IsZero()
		if !done && len(s.queue) == 0 {
			_, done = s.seal()
			wait = s.seq
		}
		s.mu.Unlock()
		if err := s.acknowledged(ctx, wait); err != nil || done {
			return wait, err
		}
	}
}

// acknowledged waits until the database has batch seq.
func (s *Store) acknowledged(ctx context.Context, seq int64) error {
	for {
		s.mu.Lock()
		done, changed := s.acked >= seq, s.changed
		s.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			s.mu.Lock()
			cause := s.sendErr
			s.mu.Unlock()
			if cause != nil {
				return fmt.Errorf("%w; the last attempt: %w", ctx.Err(), cause)
			}
			return ctx.Err()
		case <-s.run.Done():
			return errors.New("the store was shut down")
		}
	}
}

// sendLoop brings the queue into the inbox, one batch after the other: the next
// one is not sent before a certain answer for the last.
func (s *Store) sendLoop() {
	backoff := minBackoff
	for {
		s.mu.Lock()
		var head sealed
		waiting := len(s.queue) > 0
		if waiting {
			head = s.queue[0]
		}
		s.mu.Unlock()
		if !waiting {
			select {
			case <-s.wake:
				continue
			case <-s.run.Done():
				return
			}
		}
		err := s.attempt(s.run, s.writes, sendTimeout, func(tx *sqlx.Tx) error { return s.send(tx, head) })
		s.report(&s.sendErr, err)
		if err != nil {
			if !s.pause(rand.N(backoff) + time.Millisecond) {
				return
			}
			backoff = min(2*backoff, maxBackoff)
			continue
		}
		backoff = minBackoff
		s.mu.Lock()
		s.acked = head.seq
		s.queue[0] = sealed{}
		s.queue = s.queue[1:]
		close(s.changed)
		s.changed = make(chan struct{})
		s.mu.Unlock()
		signal(s.kick)
	}
}

func (s *Store) send(tx *sqlx.Tx, b sealed) error {
	if err := s.sql.begin(s.run, tx); err != nil {
		return err
	}
	// With every batch: a database that was restored, or failed over to a replica
	// that was behind, may have forgotten this writer, and folds what it knows.
	if _, err := tx.Exec(s.sql.text(sqlRegister), s.writer, []byte{}, b.opened); err != nil {
		return err
	}
	_, err := tx.Exec(s.sql.text(sqlSend), s.writer, b.seq, b.opened, b.payload)
	return err
}

// report keeps the outcome of the last attempt, and logs when it changed from
// working to failing or back.
func (s *Store) report(last *error, err error) {
	if s.run.Err() != nil {
		return // it is the end that made the attempt fail
	}
	s.mu.Lock()
	*last = err
	now := s.sendErr != nil || s.foldErr != nil
	since := s.failing
	switch {
	case now && since.IsZero():
		s.failing = time.Now()
	case !now:
		s.failing = time.Time{}
	}
	s.mu.Unlock()
	switch {
	case now && since.IsZero():
		s.log.Warn("usagekit: the database does not take counts; they wait, and nothing is lost while this process lives", "error", err)
	case !now && !since.IsZero():
		s.log.Info("usagekit: the database takes counts again", "after", time.Since(since).Round(time.Millisecond))
	}
}

// pause waits for d, and returns false when the store stops.
func (s *Store) pause(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-s.run.Done():
		return false
	}
}

// signal leaves a mark in a channel of one.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
