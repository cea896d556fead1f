package store

import (
	"context"
	"time"

	"github.com/usagekit/usagekit/internal/calendar"
	"github.com/usagekit/usagekit/internal/clock"
	"github.com/usagekit/usagekit/internal/database"
)

type (
	removal = clock.Removal
)

const (
	maxSkew  = clock.MaxSkew
	sqlRules = clock.Rules
)

func parseRemoval(text string) removal { return clock.ParseRemoval(text) }

func (s *Store) calendar() calendar.Calendar { return s.clock.Calendar() }

func (s *Store) horizon(now time.Time) calendar.Horizon { return s.clock.Horizon(now) }

func (s *Store) follow(ctx context.Context, tx *database.Tx, which string) error {
	return s.clock.Follow(ctx, tx, which)
}

func (s *Store) now(ctx context.Context, tx *database.Tx) (time.Time, removal, error) {
	return s.clock.Now(ctx, tx)
}
