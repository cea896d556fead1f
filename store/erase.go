package store

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
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
	erasePiece = 64 // batches of one transaction

	sqlHoldLease = `UPDATE usage_meta SET value = value WHERE name = 'lease'`
	sqlInbox     = `SELECT writer, seq, opened, payload FROM usage_inbox WHERE (writer, seq) > (?, ?) ORDER BY writer, seq LIMIT ?`
	sqlRewrite   = `UPDATE usage_inbox SET payload = ? WHERE writer = ? AND seq = ?`
	sqlBad       = `SELECT name, value FROM usage_meta WHERE name > ? AND name < 'bad0' ORDER BY name LIMIT 1`
)

// Erase removes what the database holds under the id of a user: every row of
// user.<id>.… and quota.<id>.…, their records of thresholds, and their part of each
// batch that waits. No other total changes: requests stay requests, and the user
// stays in the numbers of active users. A batch that cannot be read may hold anybody,
// and is removed whole; it counts as dropped.
//
// Counts that other instances, or files of a spool, still hold come later: call it
// again after their Interval, when no request names the user any more.
//
// A file of sqlite.Open keeps no copy in pages that are free or in its -wal; one that an
// earlier release wrote may, until VACUUM, and a pool of one's own wants
// secure_delete=ON for that. The id may stand for longer where the database does not
// reach: in PostgreSQL's dead rows, until VACUUM, and in its log and backups; with no
// count, in the live file of a spool, until two more batches with counts were sealed;
// in a dashboard that gets no answer, which shows its last ones for an hour; and in the
// application's log, where a Threshold on users and an empty Config.Notify put it.
func (s *Store) Erase(ctx context.Context, user string) error {
	if user == "" {
		return errors.New("store: Erase: the user is \"\": want the id that requests were counted under")
	}
	if s == nil {
		return nil
	}
	err := s.Flush(ctx)
	if err == nil {
		err = s.eraseWaiting(ctx, user)
	}
	if err == nil {
		_, err = database.Again(ctx, s.run, s.db, func(ctx context.Context, tx *database.Tx) (none struct{}, err error) {
			return none, s.eraseRows(ctx, tx, user)
		})
	}
	if err == nil {
		err = s.eraseRecords(ctx, user)
	}
	if err == nil {
		err = s.eraseBad(ctx, user)
	}
	if err == nil {
		err = s.db.EmptyLog(ctx)
	}
	if err != nil {
		return fmt.Errorf("store: Erase: %w", err)
	}
	return nil
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

// eraseWaiting takes a user out of the batches that wait, while no fold has them. A
// batch keeps its place, even an empty one.
func (s *Store) eraseWaiting(ctx context.Context, user string) error {
	var last waiting
	for {
		batches, err := database.Again(ctx, s.run, s.db, func(ctx context.Context, tx *database.Tx) ([]waiting, error) {
			if err := s.holdLease(ctx, tx); err != nil {
				return nil, err
			}
			var batches []waiting
			if err := tx.Select(ctx, &batches, sqlInbox, last.Writer, last.Seq, erasePiece); err != nil {
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
		if err != nil || len(batches) < erasePiece {
			return err
		}
		last = batches[len(batches)-1]
	}
}

// holdLease keeps every fold out until the transaction ends.
func (s *Store) holdLease(ctx context.Context, tx *database.Tx) error {
	if err := tx.Begin(ctx); err != nil {
		return err
	}
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

// eraseRows removes a user's totals and history.
func (s *Store) eraseRows(ctx context.Context, tx *database.Tx, user string) error {
	if err := s.holdLease(ctx, tx); err != nil {
		return err
	}
	var segments []clock.Segment
	for _, step := range []calendar.Step{calendar.Hour, calendar.Day, calendar.Month} {
		segments = append(segments, clock.Between(step, time.Unix(calendar.Forever, 0), time.Unix(calendar.Endless, 0)))
	}
	stored, err := clock.Stored(ctx, tx, s.clock.Calendar(), segments)
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
			if err := s.eraseKeys(ctx, tx, user, begin, "usage_metrics", "true"); err != nil {
				return err
			}
			for i, buckets := range stored {
				in, list := s.db.OneOf("bucket", buckets)
				if err := s.eraseKeys(ctx, tx, user, begin, "usage_history", "step = ? AND "+in, int(segments[i].Step), list); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// eraseKeys removes a user's rows of a table among those whose key begins so.
func (s *Store) eraseKeys(ctx context.Context, tx *database.Tx, user, begin, table, where string, args ...any) error {
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

// eraseRecords removes a user's crossings. They are found by looking at everybody's, of
// which there may be a million: in pages, while folds go on.
func (s *Store) eraseRecords(ctx context.Context, user string) error {
	for after := ""; ; {
		next, err := database.Again(ctx, s.run, s.db, func(ctx context.Context, tx *database.Tx) (string, error) {
			if err := tx.Begin(ctx); err != nil {
				return "", err
			}
			return crossing.Erase(ctx, tx, after, func(name string) bool { return isOf(name, user) })
		})
		if err != nil || next == "" {
			return err
		}
		after = next
	}
}

// eraseBad takes a user out of the batches that were set aside, one after the other.
func (s *Store) eraseBad(ctx context.Context, user string) error {
	for last := "bad/"; last != ""; {
		name, err := database.Again(ctx, s.run, s.db, func(ctx context.Context, tx *database.Tx) (string, error) {
			if err := tx.Begin(ctx); err != nil {
				return "", err
			}
			var bad []struct{ Name, Value string }
			if err := tx.Select(ctx, &bad, sqlBad, last); err != nil || len(bad) == 0 {
				return "", err
			}
			b := bad[0]
			payload, err := base64.StdEncoding.DecodeString(b.Value)
			var changed bool
			if err == nil {
				payload, changed, err = without(payload, user)
			}
			switch {
			case err != nil:
				_, err = tx.Exec(ctx, `DELETE FROM usage_meta WHERE name = ?`, b.Name)
				return b.Name, err
			case changed:
				_, err = tx.Exec(ctx, sqlSetMeta, b.Name, base64.StdEncoding.EncodeToString(payload))
			}
			return b.Name, err
		})
		if err != nil {
			return err
		}
		last = name
	}
	return nil
}
