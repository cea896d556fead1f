package store

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/usagekit/usagekit/internal/calendar"
)

// Rules do not take turns: those of an older image do not come back beside an instance
// of the newer ones that counts, in whatever way and whoever folds, nor after a weekend
// in which nobody counted; and they do a week after the last of those was seen.
func TestRulesOfALivingInstance(t *testing.T) {
	old, young := time.FixedZone("Asia/Almaty", 6*3600), time.FixedZone("Asia/Almaty", 5*3600)
	instance := func(restart func(Config) *Store, zone *time.Location) *Store {
		cfg := quietly()
		cfg.Location = zone
		return restart(cfg)
	}
	inForce := func(t *testing.T, s *Store) (which string) {
		t.Helper()
		if s.get(t, &which, `SELECT which FROM usage_rules WHERE in_force = 1`); which == "" {
			t.Fatal("none is")
		}
		return which
	}
	for _, c := range []struct {
		name  string
		count func(t *testing.T, s *Store) error // of the newer instance; nil: it folds what the older one counts
	}{
		{"it counts", func(t *testing.T, s *Store) error {
			s.Inc("feature.a.used")
			s.outbox.Seal()
			_, err := s.outbox.Deliver(t.Context())
			return err
		}},
		{"it counts at once", func(t *testing.T, s *Store) error {
			_, err := s.AddNow(t.Context(), "feature.a.used", 1)
			return err
		}},
		{"it takes", func(t *testing.T, s *Store) error {
			_, _, _, err := s.Take(t.Context(), "quota.7.daily", 1, 1000, Day)
			return err
		}},
		{"it folds", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			inOneClock(t, func(t *testing.T, restart func(Config) *Store) {
				o, y := instance(restart, old), instance(restart, young)
				ended := make(chan struct{})
				go func() { defer close(ended); y.outbox.SendLoop() }()
				defer func() { y.life.cancel(); <-ended }()
				count, folds := c.count, o // it is the older one that folds
				if count == nil {
					folds = y
					count = func(*testing.T, *Store) error {
						o.Inc("feature.a.used")
						o.outbox.Seal()
						_, err := o.outbox.SendNext()
						return err
					}
				}
				parts := folds.newPruner()
				week := func(pauses ...time.Duration) {
					for _, pause := range pauses {
						if err := count(t, y); err != nil {
							t.Fatal(err)
						}
						synctest.Wait()
						if _, err := folds.folder.Fold(t.Context(), true); err != nil {
							t.Fatal(err)
						}
						if err := parts.Prune(t.Context()); err != nil {
							t.Fatal(err)
						}
						time.Sleep(pause)
					}
				}
				for range 3 {
					week(5*time.Hour, 19*time.Hour, 24*time.Hour, 24*time.Hour, 10*time.Hour, 62*time.Hour)
					instance(restart, old)
					if got := inForce(t, y); got != calendar.Which(calendar.Rules(young)) {
						t.Fatal("the older rules are back beside an instance of the newer ones")
					}
				}
				time.Sleep(9 * aDay)
				instance(restart, old)
				if got := inForce(t, y); got != calendar.Which(calendar.Rules(old)) {
					t.Error("the older rules are not back after nine days without an instance of the newer ones")
				}
			})
		})
	}
}
