package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/usagekit/usagekit/internal/calendar"
	"github.com/usagekit/usagekit/internal/counter"
	"github.com/usagekit/usagekit/internal/crossing"
	"github.com/usagekit/usagekit/internal/database"
	"github.com/usagekit/usagekit/internal/fold"
	"github.com/usagekit/usagekit/internal/naming"
)

const (
	// A quota's count, unless it would pass the limit.
	sqlTake = `INSERT INTO usage_history AS h (step, bucket, key, value) SELECT CAST(? AS BIGINT), CAST(? AS BIGINT), CAST(? AS TEXT), CAST(? AS BIGINT) WHERE CAST(? AS BIGINT) <= ?
ON CONFLICT (step, bucket, key) DO UPDATE SET value = h.value + excluded.value WHERE h.value + excluded.value <= ? RETURNING value`
	sqlTaken = `SELECT value FROM usage_history WHERE step = ? AND bucket = ? AND key = ?`

	sqlReset = `UPDATE usage_metrics SET value = 0 WHERE key = ?`
)

// AddNow counts n, 1 … 2^53−1, under name, in the database when it returns, and
// returns the new total over all instances: that of the name it counts under, which
// beyond a cap is (other)'s. What is derived follows. It takes some milliseconds,
// and waits for a fold that counts the same name, or while both have new subjects of
// capped groups: Add is for what need not be known at once. An error that is
// ErrUnavailable says nothing about whether it counted.
func (s *Store) AddNow(ctx context.Context, name string, n int64) (total int64, err error) {
	name = naming.Clean(name)
	switch {
	case n < 1 || n > counter.Max:
		return 0, fmt.Errorf("store: AddNow: n is %d: want 1 … 2^53−1", n)
	case naming.Derived(name):
		return 0, fmt.Errorf("store: AddNow: %s is derived, or taken by Take, and cannot be added to", name)
	case s == nil:
		return 0, nil
	}
	var done struct { // by an attempt that may outlast this call
		total   int64
		written fold.Written
	}
	err = s.db.Direct(ctx, database.WriteTimeout, func(ctx context.Context, tx *database.Tx) error {
		if err := s.clock.Clash(); err != nil {
			return err
		}
		total, written, err := s.folder.Tables.Add(ctx, tx, name, n)
		done.total, done.written = total, written
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("store: AddNow: %w", err)
	}
	s.folder.Tables.Applied(done.written)
	s.counted()
	return done.total, nil
}

// counted is for what counts without a batch: whoever counts is there, and has what is
// too old removed.
func (s *Store) counted() {
	s.pruner.Counted()
	if s.clock.Due() {
		s.outbox.Wake()
	}
}

// Reset sets totals to 0, after a Flush; their history stays, and what other
// instances still hold comes later. A sum over all routes, as api.requests.total is,
// counts on from where it is when a route is reset, and when it is reset itself: from
// then on it is not the sum of the routes. A Threshold of all time may be crossed again. The counters of the
// current day or month, and quotas, have no total to reset.
func (s *Store) Reset(ctx context.Context, names ...string) error {
	names = slices.Clone(names)
	for i, name := range names {
		names[i] = naming.Known(name)
		if naming.Current(names[i]) || naming.Derived(names[i]) && strings.HasPrefix(names[i], "quota.") {
			return fmt.Errorf("store: Reset: %s is a number of the current hour, day or month, and has no total", names[i])
		}
	}
	if s == nil {
		return nil
	}
	slices.Sort(names) // as every other transaction does
	if err := s.Flush(ctx); err != nil {
		return fmt.Errorf("store: Reset: %w", err)
	}
	_, err := database.Again(ctx, s.life.run, s.db, func(ctx context.Context, tx *database.Tx) (none struct{}, err error) {
		for _, name := range names {
			if _, err := tx.Exec(ctx, sqlReset, name); err != nil {
				return none, err
			}
		}
		return none, crossing.Reset(ctx, tx, names)
	})
	if err != nil {
		return fmt.Errorf("store: Reset: %w", err)
	}
	return nil
}

// Take adds n to what was taken under name in the current hour, day or month of the
// store's zone, as step says, unless that would pass limit: ok tells which. It is one
// statement, so the limit holds over all instances. left is what is left of limit after
// it, until when the next hour, day or month begins, by this process's clock. An error
// says nothing about whether it was taken: ErrUnavailable is in it when the database
// does not answer, or another transaction holds the count for 200 ms.
//
// With n = 0 it asks, and writes nothing: left is what could be taken, and ok is false
// only where more than limit was, under a higher one.
//
// A name is "quota.<whose>.<which>". Its counts are in History alone, in hours, days or
// months as taken: no total, and nothing but Take adds to them. (Months are summed from
// days, too. "quota.<whose>.refused" is an ordinary counter, for what was not allowed.)
// See middleware/quota.
func (s *Store) Take(ctx context.Context, name string, n, limit int64, step Step) (left int64, until time.Time, ok bool, err error) {
	name = naming.Clean(name)
	switch group, subject, _ := naming.Split(name); {
	case group != "quota" || subject == "" || subject == naming.Invalid || !naming.Derived(name):
		err = fmt.Errorf("store: Take: the name is %q: want quota.<whose>.<which>, the last of them not \"refused\" nor longer than 64 bytes", name)
	case n < 0 || n > counter.Max:
		err = fmt.Errorf("store: Take: n is %d: want 1 … 2^53−1, or 0 to ask what is left", n)
	case limit < 0 || limit > counter.Max:
		err = fmt.Errorf("store: Take: limit is %d: want 0 … 2^53−1", limit)
	case step < Hour || step > Month:
		err = fmt.Errorf("store: Take: step is %d: want Hour, Day or Month", step)
	}
	if err != nil {
		return 0, time.Time{}, false, err
	}
	of := calendar.Step(step)
	if s == nil {
		return limit, calendar.In(time.UTC).Next(of, time.Now()), true, nil
	}
	var done struct { // by an attempt that may outlast this call
		left  int64
		until time.Time
		ok    bool
	}
	err = s.db.Quick(ctx, func(ctx context.Context, tx *database.Tx) error {
		if err := s.clock.Clash(); err != nil {
			return err
		}
		asked := time.Now()
		now, _, err := s.clock.Now(ctx, tx)
		if err != nil {
			return err
		}
		done.until = asked.Add(s.clock.Calendar().Next(of, now).Sub(now))
		bucket := s.clock.Calendar().Bucket(of, now)
		var taken int64
		if n > 0 {
			err := tx.Get(ctx, &taken, sqlTake, int(of), bucket, name, n, n, limit, limit)
			if done.ok = err == nil; !errors.Is(err, sql.ErrNoRows) {
				done.left = limit - taken
				return err
			}
		}
		if err := tx.Get(ctx, &taken, sqlTaken, int(of), bucket, name); err != nil && !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		done.ok = n == 0 && taken <= limit
		done.left = max(limit-taken, 0)
		return nil
	})
	if err != nil {
		return 0, time.Time{}, false, fmt.Errorf("store: Take: %w", err)
	}
	if n > 0 {
		s.counted()
	}
	return done.left, done.until, done.ok, nil
}
