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

func (s *Store) calendar() calendar.Calendar { return s.clock.Calendar() }

func (s *Store) horizon(now time.Time) calendar.Horizon { return s.clock.Horizon(now) }

func (s *Store) now(ctx context.Context, tx *database.Tx) (time.Time, removal, error) {
	return s.clock.Now(ctx, tx)
}
