package store

import (
	"cmp"
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"github.com/usagekit/usagekit/internal/database"
)

const (
	leaseTime  = 15 * time.Second
	lookAgain  = 5 * time.Second // of an instance that has nothing to fold; more and more seldom, up to
	maxLook    = time.Minute
	quietAfter = 75 * time.Second // without a count anywhere, after which nobody looks; with the last look, 100 s
	restLook   = time.Second      // of a leader that rests: does it have to?
	restBytes  = 8 << 20          // of payload: no rest while more waits
	standAside = time.Minute      // of one that met a payload of a later release
	behindTime = 3 * time.Minute  // from which on a fold is late, beside two Intervals: three of the longest rests
)

// forGood is a wait that does not end.
const forGood = time.Duration(math.MaxInt64)

const (
	sqlLease      = `SELECT value, %s AS now, COALESCE((SELECT p.value FROM usage_meta p WHERE p.name = 'pruned'), '') AS pruned, ` + sqlRules + ` FROM usage_meta WHERE name = 'lease'`
	sqlSetLease   = `UPDATE usage_meta SET value = ? WHERE name = 'lease'`
	sqlClearLease = `UPDATE usage_meta SET value = ' 0' WHERE name = 'lease' AND value LIKE ?`
	sqlWaits      = `SELECT CAST(COALESCE(SUM(length(payload)), 0) AS BIGINT) FROM usage_inbox`
	sqlLook       = `SELECT value, %s AS now, (SELECT COUNT(*) FROM (SELECT 1 FROM usage_inbox LIMIT 1) AS i) AS waiting,
COALESCE((SELECT f.value FROM usage_meta f WHERE f.name = 'folded'), '0') AS folded FROM usage_meta WHERE name = 'lease'`
)

// foldLoop folds what waits while this instance has the lease, or nobody has.
func (s *Store) foldLoop() {
	if !s.db.WaitStarted(s.run) {
		return
	}
	for leader := false; ; {
		wait, attentive := s.foldTurn(&leader)
		if !attentive {
			if wait == forGood || !s.pause(wait) {
				<-s.run.Done()
				return
			}
			if s.interval < s.quiet || wait < s.interval {
				continue
			}
			wait = forGood // nobody waits for so long without a flush
		}
		if wait == forGood && s.fallAsleep() {
			leader = false
		} else if wait == forGood {
			wait = lookAgain
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-s.kick:
		case <-s.run.Done():
			timer.Stop()
			return
		}
		timer.Stop()
		if s.asleep.CompareAndSwap(true, false) {
			s.idling = 0
			s.notifier.Sleep(false) // what others have left of that, too
		}
	}
}

// fallAsleep has nothing look at the database any more until this instance flushes, or
// reads that something waits. It returns false when that has just happened.
func (s *Store) fallAsleep() bool {
	stirred := s.stirred.Load()
	s.asleep.Store(true)
	if s.stirred.Load() != stirred {
		s.asleep.Store(false)
		return false
	}
	s.notifier.Sleep(true)
	return true
}

// stir notes that something was counted somewhere, so long ago: for a while it is
// looked after.
func (s *Store) stir(ago time.Duration) {
	at := int64(time.Since(s.began) - ago)
	for was := s.stirred.Load(); at > was && !s.stirred.CompareAndSwap(was, at); {
		was = s.stirred.Load()
	}
}

// quietly is when to look again where wait would do and nothing waits that can be
// folded: once more when nothing was counted for a while, and then no more. Whoever
// flushes then finds a lease that has run out, and folds; what it leaves in the inbox
// if it is killed there is the next one's that flushes, reads or starts.
func (s *Store) quietly(wait time.Duration) time.Duration {
	left := s.quiet - (time.Since(s.began) - time.Duration(s.stirred.Load()))
	if left <= 0 || s.interval >= s.quiet {
		return forGood
	}
	return min(wait, left+rand.N(s.quiet/3))
}

// foldTurn looks whether there is work, and folds it if it may. It returns when
// to look again, and whether a batch of our own is a reason to look sooner.
func (s *Store) foldTurn(leader *bool) (wait time.Duration, attentive bool) {
	l, err := s.look(s.run)
	if err != nil {
		s.report(toFold, err)
		*leader = false
		return s.interval + rand.N(lookAgain), true
	}
	if l.holder != s.writer && l.left > 0 {
		s.report(toFold, l.late)
		*leader = false
		if l.work {
			return s.idle(), true
		}
		return s.quietly(s.idle()), true
	}
	if !l.work {
		s.report(toFold, nil)
		wait := s.interval
		if l.holder != s.writer || l.left <= 0 { // who flushes, folds
			wait = s.idle()
		}
		if wait = s.quietly(wait); wait == forGood && l.left > 0 {
			s.release(s.run)
		}
		return wait, true
	}
	f, err := s.fold(s.run, false)
	if errors.Is(err, errConflict) {
		f, err = foldResult{busy: true}, nil
	}
	if err == nil && (f.busy || f.newer != "") {
		s.report(toFold, l.late)
	} else {
		s.report(toFold, cmp.Or(err, f.refused))
	}
	switch {
	case err != nil && f.more:
		return time.Millisecond, false // the others must not wait for what this one met
	case err != nil:
		return rand.N(database.MaxBackoff) + database.MinBackoff, false
	case f.busy:
		*leader = false
		return max(s.interval, time.Second) + rand.N(time.Second), false
	case f.newer != "":
		s.release(s.run)
		*leader = false
		if f.batches > 0 {
			s.stir(0)
		}
		if wait = s.quietly(standAside); wait < standAside {
			wait = forGood
		}
		return wait, wait == forGood
	}
	*leader = true
	s.stir(0)
	s.pruner.Counted()
	s.idling = 0
	if f.more {
		return time.Millisecond, false
	}
	return s.rest(f.upserts), false
}

// idle is when an instance looks again that has nothing to fold. Those that count
// learn with each batch that the lease has run out; that the others look ever more
// seldom keeps a thousand of them from asking 180 times a second.
func (s *Store) idle() time.Duration {
	s.idling = min(max(2*s.idling, lookAgain), maxLook)
	return max(s.interval, s.idling/2+rand.N(s.idling))
}

// rest keeps the upserts' share of the time at a tenth: an open snapshot
// elsewhere lets dead row versions pile up, 5 to 494 ms per fold in 17 minutes.
// The lease is kept meanwhile. It ends when much waits: then freshness is worth more.
func (s *Store) rest(upserts time.Duration) time.Duration {
	wait := min(max(s.interval, 10*upserts), max(time.Minute, s.interval))
	began := time.Now()
	for renewed := began; wait > restLook && time.Since(began) < time.Minute; wait -= restLook {
		if !s.pause(restLook) {
			return 0
		}
		if time.Since(renewed) >= leaseTime/3 {
			s.renew(s.run)
			renewed = time.Now()
		}
		var bytes int64
		err := s.db.Glance(s.run, func(ctx context.Context, tx *database.Tx) error {
			return tx.Get(ctx, &bytes, sqlWaits)
		})
		if err == nil && bytes > restBytes {
			return 0
		}
	}
	return wait
}

// turn is what an instance sees that may fold.
type turn struct {
	holder string        // of the lease
	left   time.Duration // of it
	work   bool          // something waits
	late   error         // it waits for too long; nil: it does not
}

// seenFold is the last fold that left nothing, and since when it is.
type seenFold struct {
	value int64
	at    time.Time
}

// look reads that, without a lock. Only foldLoop calls it.
func (s *Store) look(ctx context.Context) (turn, error) {
	var row struct {
		Value   string
		Now     int64
		Waiting int
		Folded  int64
	}
	err := s.db.Glance(ctx, func(ctx context.Context, tx *database.Tx) error {
		return tx.Get(ctx, &row, strings.Replace(sqlLook, "%s", s.db.Clock(), 1))
	})
	if err != nil {
		return turn{}, err
	}
	holder, until := s.parseLease(row.Value, row.Now)
	if row.Folded != s.seenFold.value {
		s.stir(max(time.Duration(row.Now-row.Folded)*time.Millisecond, 0))
	}
	l := turn{holder: holder, left: time.Duration(until-row.Now) * time.Millisecond, work: row.Waiting > 0}
	if !l.work || row.Folded != s.seenFold.value || s.seenFold.at.IsZero() {
		s.seenFold = seenFold{row.Folded, time.Now()}
	} else if lag := time.Since(s.seenFold.at); lag > behindTime+2*s.interval {
		l.late = database.Fault("batches wait to be folded, and for " + lag.Round(time.Second).String() + " no fold has come to an end")
	}
	return l, nil
}

// A lease is its holder, a space, and when it ends: Unix milliseconds. A SQLite
// file has its instances on one host, most often one, and locks as a whole: there
// it is everybody's, and what a killed process left is folded at once.
func (s *Store) parseLease(value string, now int64) (holder string, until int64) {
	if s.db.SQLite {
		return s.writer, 0
	}
	holder, end, _ := strings.Cut(value, " ")
	until, _ = strconv.ParseInt(end, 10, 64)
	return holder, possible(until, now, leaseTime+time.Second)
}

// possible is a stored time that something lasts until, and 0 where that cannot be,
// because nothing lasts for that long: the clock was ahead when it was stored.
func possible(until, now int64, longest time.Duration) int64 {
	if until-now > longest.Milliseconds() {
		return 0
	}
	return until
}

func (s *Store) leaseUntil(now int64) string {
	return s.writer + " " + strconv.FormatInt(now+leaseTime.Milliseconds(), 10)
}

// renew keeps the lease over a long rest. It saves work and is never trusted,
// so an error does not matter.
func (s *Store) renew(ctx context.Context) {
	_ = s.db.Write(ctx, database.WriteTimeout, func(ctx context.Context, tx *database.Tx) error {
		l, err := s.lockLease(ctx, tx)
		if err != nil || l.holder != s.writer {
			return err
		}
		_, err = tx.Exec(ctx, sqlSetLease, s.leaseUntil(l.now))
		return err
	})
}

// release gives the lease to whoever comes next.
func (s *Store) release(ctx context.Context) {
	_ = s.db.Write(ctx, database.WriteTimeout, func(ctx context.Context, tx *database.Tx) error {
		_, err := tx.Exec(ctx, sqlClearLease, s.writer+"%")
		return err
	})
}

// lease is what a fold reads first.
type lease struct {
	holder string // "busy": another one folds
	until  int64  // Unix ms
	now    int64  // the database's time, Unix ms
	pruned removal
}

// lockLease takes the lease's row.
func (s *Store) lockLease(ctx context.Context, tx *database.Tx) (lease, error) {
	if err := s.run.Err(); err != nil { // nobody would give it back
		return lease{}, err
	}
	if err := tx.Begin(ctx); err != nil {
		return lease{}, err
	}
	var rows []struct {
		Value, Pruned, Rules string
		Now                  int64
	}
	if err := tx.Select(ctx, &rows, strings.Replace(sqlLease, "%s", s.db.Clock(), 1)+s.db.LockLease); err != nil {
		return lease{}, err
	}
	if len(rows) == 0 {
		return lease{holder: "busy", until: 1 << 62}, nil
	}
	l := lease{now: rows[0].Now, pruned: parseRemoval(rows[0].Pruned)}
	l.holder, l.until = s.parseLease(rows[0].Value, l.now)
	return l, s.follow(ctx, tx, rows[0].Rules)
}
