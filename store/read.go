package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/usagekit/usagekit/internal/database"
	"github.com/usagekit/usagekit/internal/read"
)

// Reading is what several questions are asked of at once: all its numbers are of one
// moment, so that they agree with each other. See Store.Read.
type Reading struct {
	Now           time.Time // that moment, by the database's clock
	FoldedThrough time.Time // every batch that reached the database before is in it; zero: a clock was wrong, and it is not known

	of     *read.Reading
	failed error // the last one of the database's
}

// Read calls f with a Reading, which is of no use after f has returned. It reads in one
// transaction, on one connection, which together with the wait for it lasts 5 s at most.
// Until f returns no other read of s begins: f asks r, never s, and does nothing else that
// takes time.
//
// An error of f's is returned as it is, and one of the database's as that of any other
// read. On a server that stands still f may not have returned when Read does, with an
// error: what f writes to is not to be looked at then.
func (s *Store) Read(ctx context.Context, f func(ctx context.Context, r *Reading) error) error {
	if s == nil {
		return f(ctx, nothing())
	}
	var own error
	err := s.db.Snapshot(ctx, func(ctx context.Context, tx *database.Tx) error {
		of, err := read.Begin(ctx, tx, s.clock)
		if err != nil {
			return err
		}
		if of.Waiting && s.leader.Asleep() {
			s.leader.Wake()
		}
		r := &Reading{Now: of.Now.In(s.Location()), of: of}
		if !of.Through.IsZero() {
			r.FoldedThrough = of.Through.In(s.Location())
		}
		if err = f(ctx, r); err != nil && r.failed == nil {
			own, err = err, nil
		}
		if err == nil {
			s.noteThrough(r)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("store: read: %w", err)
	}
	return own
}

// noteThrough keeps for Stats how complete the last Reading is.
func (s *Store) noteThrough(r *Reading) {
	through := int64(0)
	if !r.FoldedThrough.IsZero() {
		through = r.FoldedThrough.UnixMilli()
	}
	for {
		before := s.health.through.Load()
		// What was read before is later than this only where both were read at once.
		if before >= through && before-r.Now.UnixMilli() <= database.ReadTimeout.Milliseconds() || s.health.through.CompareAndSwap(before, through) {
			return
		}
	}
}

// nothing is a Reading of a store that is off.
func nothing() *Reading { return &Reading{Now: time.Now(), of: &read.Reading{}} }

// one is a Reading of one answer. What is wrong with the question is told whether the
// database answers or not.
func one[T any](ctx context.Context, s *Store, f func(ctx context.Context, r *Reading) (T, error)) (T, error) {
	answer, err := f(ctx, nothing())
	if s == nil || err != nil {
		return answer, err
	}
	var none, done T // done by an attempt that may outlast this call
	err = s.Read(ctx, func(ctx context.Context, r *Reading) (err error) {
		done, err = f(ctx, r)
		return err
	})
	if err != nil {
		return none, err
	}
	return done, nil
}

// told keeps in mind what is not the caller's mistake.
func (r *Reading) told(err error) error {
	if err = asQueryError(err); err != nil && !errors.As(err, new(QueryError)) {
		r.failed = err
	}
	return err
}

// Get is Store.Get, of r's moment.
func (r *Reading) Get(ctx context.Context, name string) (int64, error) {
	n, err := r.of.Get(ctx, name)
	return n, r.told(err)
}

// Totals is Store.Totals, of r's moment.
func (r *Reading) Totals(ctx context.Context, q Query) ([]Count, error) {
	counts, err := r.of.Totals(ctx, q.asked())
	return countsOf(counts), r.told(err)
}

// Rows is Store.Rows, of r's moment.
func (r *Reading) Rows(ctx context.Context, q Query) ([]Row, error) {
	found, err := r.of.Rows(ctx, q.asked())
	var rows []Row
	for _, of := range found {
		rows = append(rows, Row(of))
	}
	return rows, r.told(err)
}

// History is Store.History, of r's moment.
func (r *Reading) History(ctx context.Context, q Query) ([]Count, error) {
	counts, err := r.of.History(ctx, q.asked())
	return countsOf(counts), r.told(err)
}

// Get returns the total of one counter; 0 when nothing was counted under name.
// "api.requests.today", "user.active.daily" and "user.active.monthly" are the
// numbers of the current day or month.
func (s *Store) Get(ctx context.Context, name string) (int64, error) {
	return one(ctx, s, func(ctx context.Context, r *Reading) (int64, error) { return r.Get(ctx, name) })
}

// Totals returns one count per name, largest first: of all time, or of the
// range [From, To). "api.requests.today", "user.active.daily" and
// "user.active.monthly" belong to the current day or month, and to no range.
func (s *Store) Totals(ctx context.Context, q Query) ([]Count, error) {
	return one(ctx, s, func(ctx context.Context, r *Reading) ([]Count, error) { return r.Totals(ctx, q) })
}

// Rows returns one row per subject that q selects, with all its measures: the
// largest in q.Measure first, or in its largest measure when that is "".
func (s *Store) Rows(ctx context.Context, q Query) ([]Row, error) {
	return one(ctx, s, func(ctx context.Context, r *Reading) ([]Row, error) { return r.Rows(ctx, q) })
}

// History returns one count per name and bucket, the oldest first. Buckets
// without a count are left out (see Buckets). Among several Names,
// "user.active.monthly" wants Step Month, and "user.active.daily" does not go with it.
func (s *Store) History(ctx context.Context, q Query) ([]Count, error) {
	return one(ctx, s, func(ctx context.Context, r *Reading) ([]Count, error) { return r.History(ctx, q) })
}
