package store

import (
	"log/slog"
	"testing"
	"time"

	"github.com/usagekit/usagekit/internal/calendar"
)

const aDay = 24 * time.Hour

func quietly() Config { return Config{Logger: slog.New(slog.DiscardHandler)} }

// aged puts an hour that is too old, and returns whether it is there still.
func (s *Store) aged(t *testing.T) func() bool {
	t.Helper()
	at := time.Now().AddDate(0, 0, -60)
	s.put(t, row{bucket{calendar.Hour, s.clock.Calendar().Start(calendar.Hour, at).Unix(), "feature.a.used"}, 1})
	return func() bool { return s.count(t, allHistory+` WHERE step = 1`) > 0 }
}

// A process that counts but once, and lives for minutes, looks after what is old as well,
// in whatever way it counts.
func TestShortProcessesForget(t *testing.T) {
	for name, count := range map[string]func(t *testing.T, s *Store) error{
		"Add":    func(t *testing.T, s *Store) error { s.Inc("user.7.calls"); return nil }, // of which there are no hours
		"AddNow": func(t *testing.T, s *Store) error { _, err := s.AddNow(t.Context(), "user.7.calls", 1); return err },
		"Take": func(t *testing.T, s *Store) error {
			_, _, _, err := s.Take(t.Context(), "quota.7.daily", 1, 1, Day)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			idle(t, func(t *testing.T, v *idleService) {
				s := v.instance(Config{})
				there := s.aged(t)
				if err := count(t, s); err != nil {
					t.Fatal(err)
				}
				time.Sleep(2 * time.Minute)
				if there() {
					t.Error("what is too old stays")
				}
				v.silence("a count")
			})
		})
	}
}
