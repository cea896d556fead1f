package store

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/usagekit/usagekit/internal/calendar"
	"github.com/usagekit/usagekit/internal/clock"
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

const (
	pruneEvery  = time.Hour
	pruneChunk  = 2_000                            // rows in one transaction
	pruneShare  = 5                                // the part of the time that they take
	writersKept = counter.MaxAge + 30*24*time.Hour // from when it was seen last, a writer is remembered
)

const (
	sqlOldest   = `SELECT COALESCE(MIN(bucket), ?) FROM usage_history WHERE step = ? AND bucket >= ? AND bucket < ?` // beyond it is what was removed before
	sqlPruneEnd = `SELECT COALESCE((SELECT key FROM usage_history WHERE step = ? AND bucket = ? AND key >= ?%s ORDER BY key LIMIT 1 OFFSET ?), '')`
	sqlPrune    = `DELETE FROM usage_history WHERE step = ? AND bucket = ? AND key >= ?%s`

	sqlSeenAhead  = `UPDATE usage_writers SET seen = ? WHERE seen > ?` // a clock was wrong: they would stay for ever
	sqlOldWriters = `DELETE FROM usage_writers WHERE seen < ? AND NOT EXISTS (SELECT 1 FROM usage_inbox i WHERE i.writer = usage_writers.writer)`
)

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

// kept is r as the clock has it.
func (r Retention) kept() clock.Kept {
	r = r.defaults()
	return clock.Kept{Hours: r.Hourly, Days: r.Daily, Users: r.UserDaily}
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

// prune removes what is too old, in short transactions with pauses between them, by
// the database's clock.
func (s *Store) prune(ctx context.Context, parts []*pruned) error {
	now, err := s.clock.Believe(ctx, s.db)
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
		if _, err := tx.Exec(ctx, sqlSeenAhead, now.UnixMilli(), now.Add(clock.SeenAnew).UnixMilli()); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, sqlOldWriters, now.Add(-writersKept).UnixMilli()); err != nil {
			return err
		}
		return s.clock.Keep(ctx, tx)
	})
}
