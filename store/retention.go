package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/usagekit/usagekit/internal/calendar"
	"github.com/usagekit/usagekit/internal/counter"
	"github.com/usagekit/usagekit/internal/crossing"
	"github.com/usagekit/usagekit/internal/database"
	"github.com/usagekit/usagekit/internal/naming"
)

// Retention is how long history is kept. Totals and months stay for ever. What is
// older than that is removed by the instance that folds, or counts at once: within two
// minutes of its first count, and then once an hour. A batch that comes so late counts in
// the totals alone. Each is four days at least.
//
// Nothing is removed on the word of a clock alone, for it may be wrong. A time that is
// within two days of the last removal is believed; and, however quiet the service is, one
// up to which a process has seen it go on as time does, since it was believed or for a
// week. Where there is no such process, as after a start that follows a longer pause, it
// is when it was said for a week, in which somebody looked every eight days; and where
// processes come more seldom, by the fourth after a pause. Until then the log has a line,
// and everything stays. What was counted under a clock that was ahead stays where that
// put it, in every range that covers that time, until it is old.
type Retention struct {
	Hourly    time.Duration // hours; 0: 35 days, negative: for ever
	Daily     time.Duration // days, no shorter than Hourly; 0: 400 days, negative: for ever
	UserDaily time.Duration // days of a user, and of quotas by the day; 0: 90 days, negative: for ever
}

// minRetention keeps a batch that waited over a weekend.
const minRetention = 4 * 24 * time.Hour

const (
	pruneEvery  = time.Hour
	pruneChunk  = 2_000                            // rows in one transaction
	pruneShare  = 5                                // the part of the time that they take
	maxSkew     = time.Hour                        // between the database's clock and ours, beyond which nothing is removed
	maxGap      = 2 * 24 * time.Hour               // between two removals, beyond which the clock is doubted, unless somebody saw it go on
	doubtTime   = 7 * 24 * time.Hour               // after which it is believed
	doubtGap    = doubtTime + 24*time.Hour         // between two looks at it meanwhile;
	doubtGaps   = 3                                // longer ones, after which it is believed as well
	writersKept = counter.MaxAge + 30*24*time.Hour // from when it was seen last, a writer is remembered
)

const (
	sqlOldest   = `SELECT COALESCE(MIN(bucket), ?) FROM usage_history WHERE step = ? AND bucket >= ? AND bucket < ?` // beyond it is what was removed before
	sqlPruneEnd = `SELECT COALESCE((SELECT key FROM usage_history WHERE step = ? AND bucket = ? AND key >= ?%s ORDER BY key LIMIT 1 OFFSET ?), '')`
	sqlPrune    = `DELETE FROM usage_history WHERE step = ? AND bucket = ? AND key >= ?%s`

	sqlSeenAhead  = `UPDATE usage_writers SET seen = ? WHERE seen > ?` // a clock was wrong: they would stay for ever
	sqlOldWriters = `DELETE FROM usage_writers WHERE seen < ? AND NOT EXISTS (SELECT 1 FROM usage_inbox i WHERE i.writer = usage_writers.writer)`
)

func (s *Store) horizon(now time.Time) calendar.Horizon {
	return s.calendar().Horizon(now, s.retention.Hourly, s.retention.Daily, s.retention.UserDaily)
}

// defaults fills in what is 0.
func (r Retention) defaults() Retention {
	const day = 24 * time.Hour
	for _, d := range []struct {
		field *time.Duration
		days  time.Duration
	}{{&r.Hourly, 35}, {&r.Daily, 400}, {&r.UserDaily, 90}} {
		if *d.field == 0 {
			*d.field = d.days * day
		}
	}
	return r
}

// pruned is a part of history, and how far it was removed.
type pruned struct {
	step   calendar.Step
	lo, hi string // names; "": no bound
	where  string // of them
	until  func(calendar.Horizon) int64
	end    int64 // of the last time
	done   int64 // buckets before this one are gone, since end is what it is
}

// prunings are all parts.
func (s *Store) prunings() []*pruned {
	hours := func(h calendar.Horizon) int64 { return h.Hours }
	days := func(h calendar.Horizon) int64 { return h.Days }
	users := func(h calendar.Horizon) int64 { return h.Users }
	const dots = "length(key) - length(replace(key, '.', ''))"
	return []*pruned{
		{step: calendar.Hour, until: hours},
		{step: calendar.Day, hi: "quota.", until: days},
		{step: calendar.Day, lo: "quota.", hi: "quota/", until: users},
		{step: calendar.Day, lo: "quota/", hi: "user.", until: days},
		{step: calendar.Day, lo: "user.", hi: "user/", where: " AND " + dots + " > 1 AND key <> '" + naming.ActiveDaily + "'", until: users},
		{step: calendar.Day, lo: "user.", hi: "user/", where: " AND (" + dots + " < 2 OR key = '" + naming.ActiveDaily + "')", until: days},
		{step: calendar.Day, lo: "user/", until: days},
	}
}

// pruneLoop removes what is too old, with a fold of this instance's, an AddNow or a Take,
// once an hour.
func (s *Store) pruneLoop() {
	if !s.db.WaitStarted(s.run) {
		return
	}
	parts, failed := s.prunings(), false
	for wait, first := time.Minute, true; s.pause(wait/2 + rand.N(wait)); first = false {
		wait = pruneEvery
		if !first { // a process may not live to see a second one
			select {
			case <-s.folds: // of before
			default:
			}
		}
		select {
		case <-s.folds:
		case <-s.run.Done():
			return
		}
		err := s.prune(s.run, parts)
		switch {
		case s.run.Err() != nil:
			return
		case err == nil:
			failed = false
			continue
		case !failed:
			s.log.Warn("usagekit: old history could not be removed; it is tried again", "error", err)
		}
		if failed = true; !errors.As(err, new(database.Fault)) { // which is about days
			wait = 2 * time.Minute
		}
	}
}

// removal is as of when history was removed last; and of a clock that is far from it,
// from what time on it has said so, and until, and how often it had gone on before that
// without being looked at. Unix milliseconds; 0: never, none.
//
// It stands in usage_meta. A clock that jumps takes what is stored along only where
// that was written after the jump: this is what was written before.
type removal struct{ last, doubted, seen, gaps int64 }

// parseRemoval returns none of what cannot be read, which doubts every clock. A release
// of before writes no gaps.
func parseRemoval(text string) (r removal) {
	if n, _ := fmt.Sscan(text, &r.last, &r.doubted, &r.seen, &r.gaps); n < 3 {
		return removal{}
	}
	return r
}

func (r removal) String() string {
	return fmt.Sprintf("%d %d %d %d", r.last, r.doubted, r.seen, r.gaps)
}

// at returns what r becomes when a clock says now. steady tells that somebody has seen
// it go on until then as time did, jumped that it has not.
func (r removal) at(now int64, steady, jumped bool) removal {
	near := func(a, b int64, gap time.Duration) bool { return max(a-b, b-a) <= gap.Milliseconds() }
	switch {
	case steady, near(r.last, now, maxGap):
		return removal{last: now}
	case r.doubted == 0 || now < r.seen:
		return removal{r.last, now, now, 0}
	case jumped || !near(r.seen, now, doubtGap):
		if r.gaps+1 >= doubtGaps {
			return removal{last: now}
		}
		return removal{r.last, now, now, r.gaps + 1}
	case now-r.doubted >= doubtTime.Milliseconds():
		return removal{last: now}
	}
	return removal{r.last, r.doubted, now, r.gaps}
}

// before is the earlier of now and of when history was removed last: what is too old by
// that is gone, and must not come back; what is not may be there still.
func (r removal) before(now time.Time) time.Time { return time.UnixMilli(min(now.UnixMilli(), r.last)) }

// since is the later of both: what must be kept for some time is kept from then on.
func (r removal) since(now int64) int64 { return max(now, r.last) }

// asked is what the database's clock said, when that was by ours, which does not jump,
// and since when, by the former, both have gone on alike; the zero time where it was
// believed then. Since the start, and of pruneLoop.
type asked struct{ said, at, since time.Time }

// next returns what comes of it when the clock says now, and by how much it has jumped.
func (was asked) next(now time.Time) (asked, time.Duration) {
	is := asked{now, time.Now(), was.since}
	jump := now.Sub(was.said) - is.at.Sub(was.at)
	if was == (asked{}) {
		is.since, jump = now, 0
	} else if jump.Abs() > maxSkew {
		is.since = now
	}
	return is, jump
}

// steady tells whether it went on for so long that it is right.
func (a asked) steady() bool { return a.since.IsZero() || a.said.Sub(a.since) >= doubtTime }

// lookAtClock asks the database's, and notes that as a removal that is about to be made,
// unless the clock is doubted.
func (s *Store) lookAtClock(ctx context.Context) (time.Time, error) {
	var done struct { // by an attempt that may outlast this call
		asked asked
		r     removal
	}
	was := s.asked
	err := s.db.Write(ctx, database.WriteTimeout, func(ctx context.Context, tx *database.Tx) error {
		if err := tx.Begin(ctx); err != nil {
			return err
		}
		var ms int64
		var pruned string
		if err := tx.Get(ctx, &ms, "SELECT "+s.db.Clock()); err != nil {
			return err
		}
		if err := tx.Get(ctx, &pruned, sqlMeta, "pruned"); err != nil && !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		now := time.UnixMilli(ms)
		if skew := time.Since(now); skew.Abs() > maxSkew {
			return database.Fault("the database's clock differs from this host's by " + skew.Round(time.Second).String() + ": nothing is removed until one of them is set right")
		}
		is, jump := was.next(now)
		r := parseRemoval(pruned).at(ms, is.steady(), jump.Abs() > maxGap) // less is what a suspended host makes
		_, err := tx.Exec(ctx, sqlSetMeta, "pruned", r.String())
		if r.doubted == 0 {
			is.since = time.Time{}
		}
		done.asked, done.r = is, r
		return err
	})
	if err != nil {
		return time.Time{}, err
	}
	s.asked = done.asked
	now := s.asked.said
	if last := time.UnixMilli(done.r.last); last.Before(now) && done.r.doubted != 0 {
		return time.Time{}, database.Fault(fmt.Sprintf("the clocks say %s, and history was removed last as of %s, so there was a long pause, or they are wrong: nothing is removed until they have said so for %d days; set them right if they are wrong",
			now.UTC().Format(time.DateTime), last.UTC().Format(time.DateTime), doubtTime/(24*time.Hour)))
	}
	return now, nil
}

// prune removes what is too old, in short transactions with pauses between them, by
// the database's clock.
func (s *Store) prune(ctx context.Context, parts []*pruned) error {
	now, err := s.lookAtClock(ctx)
	if err != nil {
		return err
	}
	h := s.horizon(now)
	for _, p := range parts {
		end := p.until(h)
		if end != p.end { // a fold of yesterday may have ended since
			p.end, p.done = end, 0
		}
		for p.done < end {
			bucket := end
			err := s.db.Read(ctx, database.ReadTimeout, func(ctx context.Context, tx *database.Tx) error {
				return tx.Get(ctx, &bucket, sqlOldest, end, int(p.step), p.done, end)
			})
			if err != nil {
				return err
			}
			if bucket < end {
				if err := s.pruneBucket(ctx, p, bucket); err != nil {
					return err
				}
			}
			p.done = min(bucket+1, end)
		}
	}
	return s.pruneMeta(ctx, now, h)
}

// pruneBucket removes p's rows of one bucket.
func (s *Store) pruneBucket(ctx context.Context, p *pruned, bucket int64) error {
	for lo := p.lo; ; {
		var end string
		start := time.Now()
		err := s.db.Write(ctx, database.WriteTimeout, func(ctx context.Context, tx *database.Tx) error {
			if err := tx.Begin(ctx); err != nil {
				return err
			}
			args := []any{int(p.step), bucket, lo}
			below := ""
			if p.hi != "" {
				below, args = " AND key < ?", append(args, p.hi)
			}
			err := tx.Get(ctx, &end, strings.Replace(sqlPruneEnd, "%s", below, 1), append(args, pruneChunk)...)
			if err != nil {
				return err
			}
			if end != "" {
				below, args = " AND key < ?", append(args[:3], end)
			}
			_, err = tx.Exec(ctx, strings.Replace(sqlPrune, "%s", below, 1)+p.where, args...)
			return err
		})
		if err != nil {
			return err
		}
		if !s.pause(min(max((pruneShare-1)*time.Since(start), time.Millisecond), time.Minute)) {
			return s.run.Err()
		}
		if lo = end; end == "" {
			return nil
		}
	}
}

// pruneMeta forgets crossings of buckets that are gone, and writers that are.
func (s *Store) pruneMeta(ctx context.Context, now time.Time, h calendar.Horizon) error {
	gone := func(c crossing.Crossing) bool {
		return c.Start.Unix() < max(h.Of(c.Step, naming.Personal(c.Name)), h.Days)
	}
	for after, more := "", true; more; more = after != "" {
		err := s.db.Write(ctx, database.WriteTimeout, func(ctx context.Context, tx *database.Tx) error {
			if err := tx.Begin(ctx); err != nil {
				return err
			}
			next, err := crossing.Prune(ctx, tx, s.calendar(), after, gone)
			after = next
			return err
		})
		if err != nil {
			return err
		}
	}
	if err := s.notifier.DropUnclaimed(ctx, now); err != nil {
		return err
	}
	return s.db.Write(ctx, database.WriteTimeout, func(ctx context.Context, tx *database.Tx) error {
		if err := tx.Begin(ctx); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, sqlSeenAhead, now.UnixMilli(), now.Add(seenAnew).UnixMilli()); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, sqlOldWriters, now.Add(-writersKept).UnixMilli()); err != nil {
			return err
		}
		return s.keepRules(ctx, tx, now.UnixMilli())
	})
}
