package store

import (
	"context"

	"github.com/usagekit/usagekit/internal/database"
	"github.com/usagekit/usagekit/internal/outbox"
)

// startLoop reaches the database for a store that started offline.
func (s *Store) startLoop() {
	for backoff := (database.Backoff{}); ; {
		err := s.start(s.life.run, true)
		s.report(toSend, err)
		if err == nil || !database.Pause(s.life.run, backoff.After(err)) {
			return
		}
	}
}

// start brings the tables up to date, and learns the database's zone and id. A
// Config.Location with other rules is an error, unless the store has to live with it.
func (s *Store) start(ctx context.Context, anyZone bool) error {
	name, err := s.db.Start(ctx)
	if err != nil {
		return err
	}
	if clash := s.clock.Clash(); clash != nil {
		if !anyZone {
			return clash
		}
		s.cfg.Logger.Warn("usagekit: counts are kept in the database's zone", "error", clash)
	}
	s.logStart(name)
	return nil
}

// settle is the Store's part of a start: the database's time, and that this one is there.
func (s *Store) settle(ctx context.Context, tx *database.Tx, id string) (settled func(), err error) {
	timed, err := s.clock.Settle(ctx, tx)
	if err != nil {
		return nil, err
	}
	if err := s.folder.Settle(ctx, tx); err != nil {
		return nil, err
	}
	// A file or server that cannot be written to shows it now.
	if err := outbox.Register(ctx, tx, s.life.writer); err != nil {
		return nil, err
	}
	return func() {
		timed()
		s.spool.SetDatabase(id)
	}, nil
}

// replaced has what is known of the tables asked for again: another file stands there.
func (s *Store) replaced() {
	s.folder.Tables.Forget()
	s.leader.Wake() // something may wait in it
}
