package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/usagekit/usagekit/internal/upkeep"
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
		err = upkeep.NewEraser(s.life.run, s.db, s.clock).Erase(ctx, user)
	}
	if err != nil {
		return fmt.Errorf("store: Erase: %w", err)
	}
	return nil
}
