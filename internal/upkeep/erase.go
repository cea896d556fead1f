package upkeep

import (
	"context"
	"database/sql"
	"errors"
	"slices"
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
	Batches = 64 // that one transaction searches

	sqlHoldLease = `UPDATE usage_meta SET value = value WHERE name = 'lease'`
	sqlInbox     = `SELECT writer, seq, opened, payload FROM usage_inbox WHERE (writer, seq) > (?, ?) ORDER BY writer, seq LIMIT ?`
	sqlRewrite   = `UPDATE usage_inbox SET payload = ? WHERE writer = ? AND seq = ?`
	sqlKept      = `SELECT writer, seq, payload FROM usage_quarantine WHERE (writer, seq) > (?, ?) ORDER BY writer, seq LIMIT 1`
	sqlSetKept   = `UPDATE usage_quarantine SET payload = ? WHERE writer = ? AND seq = ?`
	sqlDropKept  = `DELETE FROM usage_quarantine WHERE writer = ? AND seq = ?`
)

// Eraser removes what the database holds of a user.
type Eraser struct {
	run   context.Context // ends each try
	db    *database.DB
	clock *clock.Clock
}

// NewEraser returns an Eraser.
func NewEraser(run context.Context, db *database.DB, by *clock.Clock) *Eraser {
	return &Eraser{run, db, by}
}

// Erase removes a user's rows, records, and part of each batch that waits or could not be counted.
// What is repeated of it finds nothing any more.
func (e *Eraser) Erase(ctx context.Context, user string) error {
	err := e.waiting(ctx, user)
	if err == nil {
		_, err = database.Again(ctx, e.run, e.db, func(ctx context.Context, tx *database.Tx) (none struct{}, err error) {
			return none, e.rows(ctx, tx, user)
		})
	}
	if err == nil {
		err = e.records(ctx, user)
	}
	if err == nil {
		err = e.quarantine(ctx, user)
	}
	if err == nil {
		err = e.db.EmptyLog(ctx)
	}
	return err
}

// batch is one that waits in the inbox.
type batch struct {
	Writer  string
	Seq     int64
	Opened  int64
	Payload []byte
}

// subjectsOf are those that a user is counted under: the id, unless it is one of
// usagekit's own, and what the middleware makes of one that begins like those.
func subjectsOf(user string) []string {
	var subjects []string
	if !naming.Reserved(user) {
		subjects = append(subjects, user)
	}
	if escaped := naming.Escape(user); escaped != user {
		subjects = append(subjects, escaped)
	}
	return subjects
}

// isOf tells whether a kept name is a user's.
func isOf(name, user string) bool {
	group, _, measure := naming.Split(name)
	return (group == "user" || group == "quota") && name != naming.ActiveDaily && name != naming.ActiveMonthly &&
		slices.ContainsFunc(subjectsOf(user), func(subject string) bool { return name == naming.Of(group, subject, measure) })
}

// waiting takes a user out of the batches that wait, while no fold has them. A
// batch keeps its place, even an empty one.
func (e *Eraser) waiting(ctx context.Context, user string) error {
	var last batch
	for {
		batches, err := database.Again(ctx, e.run, e.db, func(ctx context.Context, tx *database.Tx) ([]batch, error) {
			if err := holdLease(ctx, tx); err != nil {
				return nil, err
			}
			var batches []batch
			if err := tx.Select(ctx, &batches, sqlInbox, last.Writer, last.Seq, Batches); err != nil {
				return nil, err
			}
			for _, w := range batches {
				payload, changed, err := without(w.Payload, user)
				switch {
				case errors.Is(err, counter.ErrVersion):
					return nil, database.Fault("a batch was written by a later release, and cannot be searched: let an instance of that one erase")
				case err != nil:
					payload = counter.Batch{Opened: w.Opened, Counts: []counter.Count{{Name: "usagekit.counts.dropped", N: 1}}}.Encode()
				case !changed:
					continue
				}
				if _, err := tx.Exec(ctx, sqlRewrite, payload, w.Writer, w.Seq); err != nil {
					return nil, err
				}
			}
			return batches, nil
		})
		if err != nil || len(batches) < Batches {
			return err
		}
		last = batches[len(batches)-1]
	}
}

// holdLease keeps every fold out until the transaction ends.
func holdLease(ctx context.Context, tx *database.Tx) error {
	_, err := tx.Exec(ctx, sqlHoldLease)
	return err
}

// without returns a payload without a user's counts.
func without(payload []byte, user string) (_ []byte, changed bool, err error) {
	b, err := counter.Decode(payload)
	if err != nil {
		return nil, false, err
	}
	n := len(b.Counts)
	b.Counts = slices.DeleteFunc(b.Counts, func(c counter.Count) bool { return isOf(c.Name, user) })
	return b.Encode(), len(b.Counts) < n, nil
}

// rows removes a user's totals and history.
func (e *Eraser) rows(ctx context.Context, tx *database.Tx, user string) error {
	if err := holdLease(ctx, tx); err != nil {
		return err
	}
	var segments []clock.Segment
	for _, step := range []calendar.Step{calendar.Hour, calendar.Day, calendar.Month} {
		segments = append(segments, clock.Between(step, time.Unix(calendar.Forever, 0), time.Unix(calendar.Endless, 0)))
	}
	stored, err := clock.Stored(ctx, tx, e.clock.Calendar(), segments)
	if err != nil {
		return err
	}
	for _, group := range []string{"quota", "user"} {
		for _, subject := range subjectsOf(user) {
			// A long id is cut, and its hash depends on the measure: what they begin with does not.
			begin := naming.Stem(naming.Of(group, subject, "x"))
			if len(begin) > 300 {
				begin = strings.ToValidUTF8(begin[:300], "")
			}
			if err := eraseKeys(ctx, tx, user, begin, "usage_metrics", "true"); err != nil {
				return err
			}
			for i, buckets := range stored {
				in, list := tx.OneOf("bucket", buckets)
				if err := eraseKeys(ctx, tx, user, begin, "usage_history", "step = ? AND "+in, int(segments[i].Step), list); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// eraseKeys removes a user's rows of a table among those whose key begins so.
func eraseKeys(ctx context.Context, tx *database.Tx, user, begin, table, where string, args ...any) error {
	var keys []string
	if err := tx.Select(ctx, &keys, "SELECT DISTINCT key FROM "+table+" WHERE "+where+" AND key >= ? AND key < ?", append(slices.Clip(args), begin, naming.After(begin))...); err != nil {
		return err
	}
	keys = slices.DeleteFunc(keys, func(key string) bool { return !isOf(key, user) })
	slices.Sort(keys)
	for _, key := range keys {
		if _, err := tx.Exec(ctx, "DELETE FROM "+table+" WHERE "+where+" AND key = ?", append(slices.Clip(args), key)...); err != nil {
			return err
		}
	}
	return nil
}

// records removes a user's crossings. They are found by looking at everybody's, of
// which there may be a million: in pages, while folds go on.
func (e *Eraser) records(ctx context.Context, user string) error {
	type page struct {
		end  crossing.Cursor
		more bool
	}
	for at := (page{more: true}); at.more; {
		next, err := database.Again(ctx, e.run, e.db, func(ctx context.Context, tx *database.Tx) (p page, err error) {
			p.end, p.more, err = crossing.Erase(ctx, tx, at.end, func(name string) bool { return isOf(name, user) })
			return p, err
		})
		if err != nil {
			return err
		}
		at = next
	}
	return nil
}

// quarantine takes a user out of the batches that could not be counted, one after the other.
func (e *Eraser) quarantine(ctx context.Context, user string) error {
	for last, more := (batch{}), true; more; {
		b, err := database.Again(ctx, e.run, e.db, func(ctx context.Context, tx *database.Tx) (b batch, err error) {
			err = tx.Get(ctx, &b, sqlKept, last.Writer, last.Seq)
			if errors.Is(err, sql.ErrNoRows) {
				return batch{}, nil
			} else if err != nil {
				return b, err
			}
			switch payload, changed, err := without(b.Payload, user); {
			case err != nil:
				_, err = tx.Exec(ctx, sqlDropKept, b.Writer, b.Seq)
				return b, err
			case changed:
				_, err = tx.Exec(ctx, sqlSetKept, payload, b.Writer, b.Seq)
				return b, err
			}
			return b, nil
		})
		if err != nil {
			return err
		}
		last, more = b, b.Writer != ""
	}
	return nil
}
