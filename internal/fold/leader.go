package fold

import (
	"cmp"
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/usagekit/usagekit/internal/database"
)

const (
	lookAgain  = 5 * time.Second // of an instance that has nothing to fold; more and more seldom, up to
	maxLook    = time.Minute
	restLook   = time.Second     // of a leader that rests: does it have to?
	restBytes  = 8 << 20         // of payload: no rest while more waits
	standAside = time.Minute     // of one that met a payload of a later release
	behindTime = 3 * time.Minute // from which on a fold is late, beside two Intervals: three of the longest rests
)

// forGood is a wait that does not end.
const forGood = time.Duration(math.MaxInt64)

const (
	sqlWaits = `SELECT CAST(COALESCE(SUM(length(payload)), 0) AS BIGINT) FROM usage_inbox`
	sqlLook  = `SELECT value, {now} AS now, (SELECT COUNT(*) FROM (SELECT 1 FROM usage_inbox LIMIT 1) AS i) AS waiting,
COALESCE((SELECT f.value FROM usage_meta f WHERE f.name = 'folded'), '0') AS folded FROM usage_meta WHERE name = 'lease'`
)

// Leader has a Folder fold what waits, while this instance has the lease, or nobody has; and
// has nothing look at the database when nobody counts.
type Leader struct {
	folder   *Folder
	events   Events
	interval time.Duration // Config.Interval
	quiet    time.Duration // without a count anywhere, after which nobody looks
	kick     chan struct{} // a batch waits to be folded
	idling   time.Duration // how long it waited last with nothing to fold
	folded   lastFold

	began   time.Time
	stirred atomic.Int64 // since began, when something was last known to be counted somewhere
	asleep  atomic.Bool
}

// Events are what a Leader tells of.
type Events struct {
	Report func(error) // the outcome of each turn; nil: all is well
	Folded func()      // a fold of this instance's is done
	Sleep  func(bool)  // nothing is to look at the database any more; or, with false, all are to look again
}

// NewLeader returns one for an instance that counts every interval. quiet after the last
// count anywhere nobody looks any more; with the last look, a third later.
func NewLeader(folder *Folder, interval, quiet time.Duration, events Events) *Leader {
	return &Leader{folder: folder, events: events, interval: interval, quiet: quiet, kick: make(chan struct{}, 1), began: time.Now()}
}

// Run takes turns until the Folder's run ends.
func (l *Leader) Run() {
	run := l.folder.lease.run
	if !l.folder.db.WaitStarted(run) {
		return
	}
	for {
		wait, attentive := l.Turn()
		if !attentive {
			if wait == forGood || !database.Pause(l.folder.lease.run, wait) {
				<-run.Done()
				return
			}
			if l.interval < l.quiet || wait < l.interval {
				continue
			}
			wait = forGood // nobody waits for so long without a flush
		}
		if wait == forGood && !l.fallAsleep() {
			wait = lookAgain
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-l.kick:
		case <-run.Done():
			timer.Stop()
			return
		}
		timer.Stop()
		if l.asleep.CompareAndSwap(true, false) {
			l.idling = 0
			l.events.Sleep(false) // what others have left of that, too
		}
	}
}

// fallAsleep has nothing look at the database any more until this instance flushes, or
// reads that something waits. It returns false when that has just happened.
func (l *Leader) fallAsleep() bool {
	stirred := l.stirred.Load()
	l.asleep.Store(true)
	if l.stirred.Load() != stirred {
		l.asleep.Store(false)
		return false
	}
	l.events.Sleep(true)
	return true
}

// Asleep tells whether nothing looks at the database.
func (l *Leader) Asleep() bool { return l.asleep.Load() }

// Arrived has a batch looked after that has reached the inbox: at once, if this instance
// may fold it by what the lease was at the database's time now (Unix ms), or if nothing
// else looks. So one that counts learns of a lease that ran out without asking for it.
func (l *Leader) Arrived(lease string, now int64) {
	l.stir(0)
	if holder, until := l.folder.lease.parse(lease, now); holder == l.folder.lease.writer || until <= now || l.asleep.Load() {
		l.lookNow()
	}
}

// Wake has it look at once: something waits.
func (l *Leader) Wake() {
	l.stir(0)
	l.lookNow()
}

func (l *Leader) lookNow() {
	select {
	case l.kick <- struct{}{}:
	default:
	}
}

// Release gives the lease, if this instance has it, to whoever comes next.
func (l *Leader) Release(ctx context.Context) { l.folder.lease.release(ctx) }

// stir notes that something was counted somewhere, so long ago: for a while it is
// looked after.
func (l *Leader) stir(ago time.Duration) {
	at := int64(time.Since(l.began) - ago)
	for was := l.stirred.Load(); at > was && !l.stirred.CompareAndSwap(was, at); {
		was = l.stirred.Load()
	}
}

// quietly is when to look again where wait would do and nothing waits that can be
// folded: once more when nothing was counted for a while, and then no more. Whoever
// flushes then finds a lease that has run out, and folds; what it leaves in the inbox
// if it is killed there is the next one's that flushes, reads or starts.
func (l *Leader) quietly(wait time.Duration) time.Duration {
	left := l.quiet - (time.Since(l.began) - time.Duration(l.stirred.Load()))
	if left <= 0 || l.interval >= l.quiet {
		return forGood
	}
	return min(wait, left+rand.N(l.quiet/3))
}

// Turn looks whether there is work, and folds it if it may. It returns when
// to look again, and whether a batch of our own is a reason to look sooner. Turns are one
// after the other.
func (l *Leader) Turn() (wait time.Duration, attentive bool) {
	run := l.folder.lease.run
	seen, err := l.look(run)
	if err != nil {
		l.events.Report(err)
		return l.interval + rand.N(lookAgain), true
	}
	mine := seen.holder == l.folder.lease.writer
	if !mine && seen.left > 0 {
		l.events.Report(seen.late)
		if seen.work {
			return l.idle(), true
		}
		return l.quietly(l.idle()), true
	}
	if !seen.work {
		l.events.Report(nil)
		wait := l.interval
		if !mine || seen.left <= 0 { // who flushes, folds
			wait = l.idle()
		}
		if wait = l.quietly(wait); wait == forGood && seen.left > 0 {
			l.Release(run)
		}
		return wait, true
	}
	r, err := l.folder.Fold(run, false)
	if errors.Is(err, errConflict) {
		r, err = Result{Busy: true}, nil
	}
	if err == nil && (r.Busy || r.newer != "") {
		l.events.Report(seen.late)
	} else {
		l.events.Report(cmp.Or(err, r.refused))
	}
	switch {
	case err != nil && r.More:
		return time.Millisecond, false // the others must not wait for what this one met
	case err != nil:
		return rand.N(database.MaxBackoff) + database.MinBackoff, false
	case r.Busy:
		return max(l.interval, time.Second) + rand.N(time.Second), false
	case r.newer != "":
		l.Release(run)
		if r.Batches > 0 {
			l.stir(0)
		}
		if wait = l.quietly(standAside); wait < standAside {
			wait = forGood
		}
		return wait, wait == forGood
	}
	l.stir(0)
	l.events.Folded()
	l.idling = 0
	if r.More {
		return time.Millisecond, false
	}
	return l.rest(r.upserts), false
}

// idle is when an instance looks again that has nothing to fold. Those that count
// learn with each batch that the lease has run out; that the others look ever more
// seldom keeps a thousand of them from asking 180 times a second.
func (l *Leader) idle() time.Duration {
	l.idling = min(max(2*l.idling, lookAgain), maxLook)
	return max(l.interval, l.idling/2+rand.N(l.idling))
}

// rest keeps the upserts' share of the time at a tenth: an open snapshot
// elsewhere lets dead row versions pile up, 5 to 494 ms per fold in 17 minutes.
// The lease is kept meanwhile. It ends when much waits: then freshness is worth more.
func (l *Leader) rest(upserts time.Duration) time.Duration {
	run := l.folder.lease.run
	wait := min(max(l.interval, 10*upserts), max(time.Minute, l.interval))
	began := time.Now()
	for renewed := began; wait > restLook && time.Since(began) < time.Minute; wait -= restLook {
		if !database.Pause(l.folder.lease.run, restLook) {
			return 0
		}
		if time.Since(renewed) >= leaseTime/3 {
			l.folder.lease.renew(run)
			renewed = time.Now()
		}
		var bytes int64
		err := l.folder.db.Glance(run, func(ctx context.Context, tx *database.Tx) error {
			return tx.Get(ctx, &bytes, sqlWaits)
		})
		if err == nil && bytes > restBytes {
			return 0
		}
	}
	return wait
}

// seen is what an instance sees that may fold.
type seen struct {
	holder string        // of the lease
	left   time.Duration // of it
	work   bool          // something waits
	late   error         // it waits for too long; nil: it does not
}

// lastFold is the last fold that left nothing, and since when it is.
type lastFold struct {
	value int64
	at    time.Time
}

// look reads that, without a lock.
func (l *Leader) look(ctx context.Context) (seen, error) {
	var row struct {
		Value   string
		Now     int64
		Waiting int
		Folded  int64
	}
	err := l.folder.db.Glance(ctx, func(ctx context.Context, tx *database.Tx) error {
		return tx.Get(ctx, &row, sqlLook)
	})
	if err != nil {
		return seen{}, err
	}
	holder, until := l.folder.lease.parse(row.Value, row.Now)
	if row.Folded != l.folded.value {
		l.stir(max(time.Duration(row.Now-row.Folded)*time.Millisecond, 0))
	}
	s := seen{holder: holder, left: time.Duration(until-row.Now) * time.Millisecond, work: row.Waiting > 0}
	if !s.work || row.Folded != l.folded.value || l.folded.at.IsZero() {
		l.folded = lastFold{row.Folded, time.Now()}
	} else if lag := time.Since(l.folded.at); lag > behindTime+2*l.interval {
		s.late = database.Fault("batches wait to be folded, and for " + lag.Round(time.Second).String() + " no fold has come to an end")
	}
	return s, nil
}
