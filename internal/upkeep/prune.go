// Package upkeep removes: what is too old (Pruner), in small pieces and never on the word of
// a clock alone (package clock), and what the database holds of a user (Eraser).
package upkeep

import (
	"context"
	"errors"
	"log/slog"
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

const (
	every       = time.Hour
	Piece       = 2_000                            // rows in one transaction
	share       = 5                                // the part of the time that they take
	writersKept = counter.MaxAge + 30*24*time.Hour // from when it was seen last, a writer is remembered
)

const (
	sqlOldest   = `SELECT COALESCE(MIN(bucket), ?) FROM usage_history WHERE step = ? AND bucket >= ? AND bucket < ?` // beyond it is what was removed before
	sqlPruneEnd = `SELECT COALESCE((SELECT key FROM usage_history WHERE step = ? AND bucket = ? AND key >= ?%s ORDER BY key LIMIT 1 OFFSET ?), '')`
	sqlPrune    = `DELETE FROM usage_history WHERE step = ? AND bucket = ? AND key >= ?%s`

	sqlSeenAhead  = `UPDATE usage_writers SET seen = ? WHERE seen > ?` // a clock was wrong: they would stay for ever
	sqlOldWriters = `DELETE FROM usage_writers WHERE seen < ? AND NOT EXISTS (SELECT 1 FROM usage_inbox i WHERE i.writer = usage_writers.writer)`
)

// Pruner removes history that is older than it is kept for, records of thresholds that were
// crossed then, and writers that nobody has seen for long.
type Pruner struct {
	run      context.Context // ends Loop
	db       *database.DB
	clock    *clock.Clock
	notifier *crossing.Notifier
	log      *slog.Logger
	counted  chan struct{}
	parts    []*part
}

// NewPruner returns a Pruner whose Loop does not run yet.
func NewPruner(run context.Context, db *database.DB, by *clock.Clock, notifier *crossing.Notifier, log *slog.Logger) *Pruner {
	return &Pruner{run: run, db: db, clock: by, notifier: notifier, log: log, counted: make(chan struct{}, 1), parts: all()}
}

// Counted tells that this instance has written to the tables: whoever does removes, too.
func (p *Pruner) Counted() {
	select {
	case p.counted <- struct{}{}:
	default:
	}
}

// part is a part of history, and how far it was removed.
type part struct {
	step   calendar.Step
	lo, hi string // names; "": no bound
	where  string // of them
	until  func(calendar.Horizon) int64
	end    int64 // of the last time
	done   int64 // buckets before this one are gone, since end is what it is
}

// all are the parts of history.
func all() []*part {
	hours := func(h calendar.Horizon) int64 { return h.Hours }
	days := func(h calendar.Horizon) int64 { return h.Days }
	users := func(h calendar.Horizon) int64 { return h.Users }
	const dots = "length(key) - length(replace(key, '.', ''))"
	return []*part{
		{step: calendar.Hour, until: hours},
		{step: calendar.Day, hi: "quota.", until: days},
		{step: calendar.Day, lo: "quota.", hi: "quota/", until: users},
		{step: calendar.Day, lo: "quota/", hi: "user.", until: days},
		{step: calendar.Day, lo: "user.", hi: "user/", where: " AND " + dots + " > 1 AND key <> '" + naming.ActiveDaily + "'", until: users},
		{step: calendar.Day, lo: "user.", hi: "user/", where: " AND (" + dots + " < 2 OR key = '" + naming.ActiveDaily + "')", until: days},
		{step: calendar.Day, lo: "user/", until: days},
	}
}

// Loop removes what is too old, within two minutes of what is first Counted, and then once
// an hour.
func (p *Pruner) Loop() {
	if !p.db.WaitStarted(p.run) {
		return
	}
	failed := false
	for wait, first := time.Minute, true; database.Pause(p.run, wait/2+rand.N(wait)); first = false {
		wait = every
		if !first { // a process may not live to see a second one
			select {
			case <-p.counted: // of before
			default:
			}
		}
		select {
		case <-p.counted:
		case <-p.run.Done():
			return
		}
		err := p.Prune(p.run)
		switch {
		case p.run.Err() != nil:
			return
		case err == nil:
			failed = false
			continue
		case !failed:
			p.log.Warn("usagekit: old history could not be removed; it is tried again", "error", err)
		}
		if failed = true; !errors.As(err, new(database.Fault)) { // which is about days
			wait = 2 * time.Minute
		}
	}
}

// Prune removes what is too old, in short transactions with pauses between them, by
// the database's clock.
func (p *Pruner) Prune(ctx context.Context) error {
	now, err := p.clock.Believe(ctx, p.db)
	if err != nil {
		return err
	}
	h := p.clock.Horizon(now)
	for _, of := range p.parts {
		end := of.until(h)
		if end != of.end { // a fold of yesterday may have ended since
			of.end, of.done = end, 0
		}
		for of.done < end {
			bucket := end
			err := p.db.Read(ctx, database.ReadTimeout, func(ctx context.Context, tx *database.Tx) error {
				return tx.Get(ctx, &bucket, sqlOldest, end, int(of.step), of.done, end)
			})
			if err != nil {
				return err
			}
			if bucket < end {
				if err := p.bucket(ctx, of, bucket); err != nil {
					return err
				}
			}
			of.done = min(bucket+1, end)
		}
	}
	return p.records(ctx, now, h)
}

// bucket removes a part's rows of one bucket.
func (p *Pruner) bucket(ctx context.Context, of *part, bucket int64) error {
	for lo := of.lo; ; {
		var end string
		start := time.Now()
		err := p.db.Write(ctx, database.WriteTimeout, func(ctx context.Context, tx *database.Tx) error {
			args := []any{int(of.step), bucket, lo}
			below := ""
			if of.hi != "" {
				below, args = " AND key < ?", append(args, of.hi)
			}
			err := tx.Get(ctx, &end, strings.Replace(sqlPruneEnd, "%s", below, 1), append(args, Piece)...)
			if err != nil {
				return err
			}
			if end != "" {
				below, args = " AND key < ?", append(args[:3], end)
			}
			_, err = tx.Exec(ctx, strings.Replace(sqlPrune, "%s", below, 1)+of.where, args...)
			return err
		})
		if err != nil {
			return err
		}
		if !database.Pause(p.run, min(max((share-1)*time.Since(start), time.Millisecond), time.Minute)) {
			return p.run.Err()
		}
		if lo = end; end == "" {
			return nil
		}
	}
}

// records forgets crossings of buckets that are gone, and writers that are.
func (p *Pruner) records(ctx context.Context, now time.Time, h calendar.Horizon) error {
	gone := func(c crossing.Crossing) bool {
		return c.Start.Unix() < max(h.Of(c.Step, naming.Personal(c.Name)), h.Days)
	}
	for after, more := (crossing.Cursor{}), true; more; {
		var done struct { // by an attempt that may outlast this call
			end  crossing.Cursor
			more bool
		}
		err := p.db.Write(ctx, database.WriteTimeout, func(ctx context.Context, tx *database.Tx) (err error) {
			done.end, done.more, err = crossing.Prune(ctx, tx, p.clock.Calendar(), after, gone)
			return err
		})
		if err != nil {
			return err
		}
		after, more = done.end, done.more
	}
	if err := p.notifier.DropUnclaimed(ctx, now); err != nil {
		return err
	}
	return p.db.Write(ctx, database.WriteTimeout, func(ctx context.Context, tx *database.Tx) error {
		if _, err := tx.Exec(ctx, sqlSeenAhead, now.UnixMilli(), now.Add(clock.SeenAnew).UnixMilli()); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, sqlOldWriters, now.Add(-writersKept).UnixMilli()); err != nil {
			return err
		}
		return p.clock.Keep(ctx, tx)
	})
}
