package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/usagekit/usagekit/internal/calendar"
	"github.com/usagekit/usagekit/internal/counter"
	"github.com/usagekit/usagekit/internal/database"
)

// sealed is a batch on its way: it never changes, and is sent until the
// database has it for certain.
type sealed struct {
	seq     int64
	opened  int64 // Unix ms
	names   int
	payload []byte
	spooled bool
	old     bool // see counter.MaxAge
}

const (
	wakeTimeout = time.Minute // see patience
	adoptEvery  = time.Minute
	seenAnew    = 24 * time.Hour // after which a writer that sends says so
)

const (
	// When a writer was seen last, if ever, and who has the lease.
	sqlKnown = `SELECT COALESCE((SELECT seen FROM usage_writers WHERE writer = ?), -1) AS seen, COALESCE((SELECT value FROM usage_meta WHERE name = 'lease'), '') AS value`
	// Only when it is needed: it waits for a fold that moves this writer's guard.
	sqlRegister = `INSERT INTO usage_writers AS w (writer, seq, sum, seen) VALUES (?, 0, ?, ?) ON CONFLICT (writer) DO UPDATE SET seen = excluded.seen`
	sqlSeen     = `UPDATE usage_writers SET seen = ? WHERE writer = ?`
	sqlSend     = `INSERT INTO usage_inbox (writer, seq, opened, payload) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING`
)

// sealLoop ends a generation every Interval, and at every quarter hour.
func (s *Store) sealLoop() {
	for s.pause(min(s.interval, time.Until(time.Now().Truncate(calendar.QuarterHour).Add(calendar.QuarterHour)))) {
		s.sealDue()
		if s.live.Prepare() { // what is counted now should not stay in memory
			s.seal()
		}
		s.reportDegraded()
	}
}

// sealDue seals, except that while a batch waits for the database, what comes
// later stays in one generation until the quarter hour ends: a backlog is bounded
// by names and quarter hours, not by traffic.
func (s *Store) sealDue() {
	s.mu.Lock()
	waits := len(s.queue) > 0
	s.mu.Unlock()
	if waits && s.live.Opened().Truncate(calendar.QuarterHour).Equal(time.Now().Truncate(calendar.QuarterHour)) {
		return
	}
	s.seal()
}

// seal queues the current generation, if anything was counted in it.
func (s *Store) seal() {
	s.sealing.Lock()
	defer s.sealing.Unlock()
	if b, ok := s.live.Seal(); ok {
		s.enqueue(b)
	}
}

// enqueue appends a batch to the queue. The caller holds sealing, so that batches
// come in the order of their numbers.
func (s *Store) enqueue(b counter.Sealed) {
	s.mu.Lock()
	s.seq = b.Seq
	s.queue = append(s.queue, sealed{b.Seq, b.Opened, len(b.Counts), b.Payload, b.Spooled, false})
	s.live.Taken()
	s.mu.Unlock()
	signal(s.wake)
}

// deliver waits until all that was added before is in the inbox, and returns the
// number of the last batch of it.
func (s *Store) deliver(ctx context.Context) (int64, error) {
	for {
		var wait int64
		var done bool
		if err := within(ctx, func() { wait, done = s.sealAll() }); err != nil {
			return 0, err
		}
		if err := s.acknowledged(ctx, wait); err != nil || done {
			return wait, err
		}
		if ctx.Err() != nil { // an Add has begun, and does not end
			return wait, ctx.Err()
		}
	}
}

// sealAll seals what was added, unless a batch waits already: then all that was added
// before is behind it only once that is gone. It returns the number of the last
// batch, and whether nothing is left.
func (s *Store) sealAll() (seq int64, done bool) {
	s.sealing.Lock()
	defer s.sealing.Unlock()
	done = s.live.Opened().IsZero()
	s.mu.Lock()
	waits := len(s.queue) > 0
	s.mu.Unlock()
	if !done && !waits {
		if b, ok := s.live.Seal(); ok {
			s.enqueue(b)
			done = true
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seq, done
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
	if !s.db.WaitStarted(s.run) {
		return
	}
	for backoff := (database.Backoff{}); ; {
		waits, err := s.sendNext()
		wait := backoff.After(err)
		switch {
		case err != nil:
			if !s.pause(wait) {
				return
			}
		case !waits:
			s.clock.Note(s.run, s.db)
			select {
			case <-s.wake:
			case <-s.run.Done():
				return
			}
		}
	}
}

// sendNext sends the first batch of the queue; waits is false when there is none.
func (s *Store) sendNext() (waits bool, err error) {
	s.mu.Lock()
	var head sealed
	if waits = len(s.queue) > 0; waits {
		head = s.queue[0]
	}
	s.mu.Unlock()
	if !waits {
		return false, nil
	}
	if s.spool.Unsent() {
		if err := s.register(s.writer); err != nil {
			s.report(&s.sendErr, err)
			return true, err
		}
		s.spool.Sent()
	}
	mine := false
	err = s.db.Fill(s.run, s.patience(), func(ctx context.Context, tx *database.Tx) (err error) {
		mine, err = s.send(ctx, tx, s.writer, head)
		return err
	})
	s.report(&s.sendErr, err)
	if err != nil {
		return true, err
	}
	s.spool.Remove(head.seq)
	s.mu.Lock()
	s.acked = head.seq
	s.queue[0] = sealed{}
	s.queue = s.queue[1:]
	close(s.changed)
	s.changed = make(chan struct{})
	s.mu.Unlock()
	s.sent(mine)
	return true, nil
}

// send writes a batch, and tells whether this store may fold it: so an instance that
// counts learns of a lease that ran out without asking for it.
func (s *Store) send(ctx context.Context, tx *database.Tx, writer string, b sealed) (mayFold bool, err error) {
	// With every batch: a database that was restored, or failed over to a replica
	// that was behind, may have forgotten this writer, and folds what it knows.
	var known struct {
		Seen  int64
		Value string // the lease
	}
	err = tx.Get(ctx, &known, sqlKnown, writer)
	switch {
	case err != nil:
		return false, err
	case b.old: // the database must not forget the writer while an old batch of it is on its way
		n := int64(0)
		if n, err = tx.Exec(ctx, sqlSeen, seenNow(tx), writer); err == nil && n == 0 {
			err = counter.ErrForgotten
		}
	case max(known.Seen-tx.Now, tx.Now-known.Seen) > seenAnew.Milliseconds(): // a clock may have been ahead
		_, err = tx.Exec(ctx, sqlRegister, writer, []byte{}, seenNow(tx))
	}
	if err != nil {
		return false, err
	}
	holder, until := s.parseLease(known.Value, tx.Now)
	_, err = tx.Exec(ctx, sqlSend, writer, b.seq, b.opened, b.payload)
	return holder == s.writer || until <= tx.Now, err
}

// seenNow is when a writer that is seen now was seen.
func seenNow(tx *database.Tx) int64 { return parseRemoval(tx.Pruned).Since(tx.Now) }

// register makes the database know a writer, of which it has nothing yet.
func (s *Store) register(writer string) error {
	return s.db.Fill(s.run, s.patience(), func(ctx context.Context, tx *database.Tx) error {
		_, err := tx.Exec(ctx, sqlRegister, writer, []byte{}, seenNow(tx))
		return err
	})
}

// adoptLoop sends what dead processes left in the spool, at the start and every
// minute.
func (s *Store) adoptLoop() {
	if !s.db.WaitStarted(s.run) {
		return
	}
	for {
		var backoff database.Backoff
		until := func(done func() error) error {
			for {
				err := done()
				if wait := backoff.After(err); err == nil || errors.Is(err, counter.ErrForgotten) || !s.pause(wait) {
					return err
				}
			}
		}
		_ = s.spool.Adopt(func(writer string) error {
			return until(func() error { return s.registerAdopted(writer) })
		}, func(writer string, b counter.Sealed) error {
			return until(func() error { return s.sendAdopted(writer, b) })
		})
		if !s.pause(adoptEvery) {
			return
		}
	}
}

// sendAdopted sends a batch that a dead writer left, once.
func (s *Store) sendAdopted(writer string, b counter.Sealed) error {
	mine := false
	err := s.db.Fill(s.run, s.patience(), func(ctx context.Context, tx *database.Tx) (err error) {
		mine, err = s.send(ctx, tx, writer, sealed{b.Seq, b.Opened, len(b.Counts), b.Payload, true, b.Old})
		return err
	})
	if errors.Is(err, counter.ErrForgotten) {
		s.report(&s.adoptErr, nil)
		return err
	}
	s.report(&s.adoptErr, err)
	if err == nil {
		s.sent(mine)
	}
	return err
}

// registerAdopted is register for a dead writer, tried once.
func (s *Store) registerAdopted(writer string) error {
	err := s.register(writer)
	s.report(&s.adoptErr, err)
	return err
}

// patience is how long an attempt to send may take: longer after a pause, for the
// database may be asleep, too.
func (s *Store) patience() time.Duration {
	if s.asleep.Load() {
		return wakeTimeout
	}
	return database.WriteTimeout
}

// sent has a batch looked after that has reached the inbox: at once, if this store may
// fold it, or if nothing else looks.
func (s *Store) sent(mine bool) {
	s.stir(0)
	if mine || s.asleep.Load() {
		signal(s.kick)
	}
}

// report keeps the outcome of the last attempt, and logs when it changed from
// working to failing or back, or when somebody has to do something else about it.
func (s *Store) report(last *error, err error) {
	if s.run.Err() != nil {
		return // it is the end that made the attempt fail
	}
	what := ""
	if database.NeedsSomebody(err) {
		what = database.Advice(err)
	}
	s.mu.Lock()
	*last = err
	now := s.sendErr != nil || s.foldErr != nil || s.adoptErr != nil || s.fileErr != nil
	since := s.failing
	news := now && since.IsZero() || what != "" && what != s.advised
	switch {
	case now && since.IsZero():
		s.failing = time.Now()
	case !now:
		s.failing, s.advised = time.Time{}, ""
	}
	if what != "" {
		s.advised = what
	}
	s.mu.Unlock()
	switch {
	case news:
		safe := "they wait, and nothing is lost while this process lives"
		if s.spool != nil && s.live.Degraded() == "" {
			safe = "they wait in the spool"
		}
		s.log.Warn("usagekit: counts do not reach the tables; "+safe+what, "error", err)
	case !now && !since.IsZero():
		s.log.Info("usagekit: counts reach the tables again", "after", time.Since(since).Round(time.Millisecond))
	}
}

// reportDegraded logs when counts began to be kept in memory although there is a
// spool, and when that ended.
func (s *Store) reportDegraded() {
	why := s.live.Degraded()
	s.mu.Lock()
	was := s.degraded
	s.degraded = why
	s.mu.Unlock()
	switch {
	case why != "" && why != was:
		s.log.Warn("usagekit: counts are in memory only, and would not survive this process", "reason", why)
	case why == "" && was != "":
		s.log.Info("usagekit: counts are in the spool again")
	}
}

// spoolReport logs what happened to a file of the spool. A file that cannot be read
// is at least one count that was dropped.
func (s *Store) spoolReport(lost bool, message string, args ...any) {
	s.log.Error("usagekit: "+message, args...)
	if lost {
		s.live.Add("usagekit.counts.dropped", 1)
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
