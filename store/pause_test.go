package store

import (
	"log/slog"
	"testing"
	"time"

	"github.com/usagekit/usagekit/internal/calendar"
	"github.com/usagekit/usagekit/internal/upkeep"
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

// A service that is quiet for days, or for months, has no wrong clock for that: while a
// process runs it knows how time went on. Nothing is said, and what is too old is removed
// with what is counted next, by whichever instance folds that.
func TestQuietServicesForget(t *testing.T) {
	inOneClock(t, func(t *testing.T, restart func(Config) *Store) {
		all := []*Store{restart(quietly()), restart(quietly())}
		parts := []*upkeep.Pruner{all[0].newPruner(), all[1].newPruner()}
		for n, quiet := range []time.Duration{0, 62 * time.Hour, 9 * aDay, 9 * aDay, 31 * aDay, 31 * aDay, 200 * aDay} {
			time.Sleep(quiet)
			there := all[0].aged(t)
			i := min(n, 3) % 2 // the second one never was asked before it had been quiet
			if err := parts[i].Prune(t.Context()); err != nil {
				t.Errorf("quiet for %v: %v", quiet, err)
			}
			if there() {
				t.Errorf("quiet for %v: what is too old stays", quiet)
			}
		}
		// Set right by some hours, which is little, it was believed; and so is what follows.
		s := all[1]
		time.Sleep(3 * time.Hour)
		s.clock.Asked.At = s.clock.Asked.At.Add(3 * time.Hour)
		for _, quiet := range []time.Duration{time.Hour, 62 * time.Hour} {
			time.Sleep(quiet)
			if err := parts[1].Prune(t.Context()); err != nil {
				t.Errorf("%v after it was set: %v", quiet, err)
			}
		}
	})
}

// A process that starts after a pause cannot know how time went on. While it runs, or
// others come within eight days, what is too old is removed after a week; where they come
// more seldom, by the fourth.
func TestServicesThatStartNowAndThenForget(t *testing.T) {
	inOneClock(t, func(t *testing.T, restart func(Config) *Store) {
		for _, c := range []struct {
			name       string
			run, pause time.Duration
			within     int // starts after a pause
		}{
			{"closed at night", 14 * time.Hour, 10 * time.Hour, 1},
			{"closed at weekends", 4*aDay + 10*time.Hour, 2*aDay + 14*time.Hour, 2},
			{"a minute every five days", time.Minute, 5 * aDay, 3},
			{"a minute every nine days", time.Minute, 9 * aDay, 4},
			{"a minute a month", time.Minute, 31 * aDay, 4},
			{"a year between", time.Minute, 365 * aDay, 4},
			{"a pause, then it stays", 8 * aDay, 20 * aDay, 1},
		} {
			run := func() {
				s := restart(quietly())
				parts := s.newPruner()
				for end := time.Now().Add(c.run); time.Now().Before(end); time.Sleep(min(c.run, 3*time.Hour)) {
					_ = parts.Prune(t.Context())
				}
			}
			for began := time.Now(); time.Since(began) < 9*aDay; time.Sleep(aDay) { // whatever was before
				_ = restart(quietly()).lookedAt(t)
			}
			for round := range 3 {
				there, starts := restart(quietly()).aged(t), 0
				for there() && starts < 10 {
					time.Sleep(c.pause)
					run()
					starts++
				}
				if starts > c.within {
					t.Errorf("%s, round %d: what is too old is removed by start %d, want %d at most", c.name, round, starts, c.within)
				}
			}
		}
	})
}

// lookedAt has the clock looked at.
func (s *Store) lookedAt(t *testing.T) error {
	_, err := s.clock.Believe(t.Context(), s.db)
	return err
}

// A machine that is suspended stops the clock that does not jump, and its own goes on:
// that is no reason to keep what is too old for ever.
func TestMachinesThatAreSuspendedForget(t *testing.T) {
	inOneClock(t, func(t *testing.T, restart func(Config) *Store) {
		s := restart(quietly())
		parts := s.newPruner()
		suspend := func(d time.Duration) {
			time.Sleep(d)
			s.clock.Asked.At = s.clock.Asked.At.Add(d)
		}
		for _, c := range []struct {
			name                 string
			first, night, weekly time.Duration
			weeks                int // of five days
		}{
			{"at night", 0, 14 * time.Hour, 0, 1},
			{"at night, after the holidays", 12 * aDay, 14 * time.Hour, 0, 2},
			{"half of the time", 12 * aDay, 14 * time.Hour, 12 * aDay, 4},
		} {
			suspend(c.first)
			there, weeks := s.aged(t), 0
			for ; there() && weeks < 10; weeks++ {
				for range 5 {
					for range 10 {
						_ = parts.Prune(t.Context())
						time.Sleep(time.Hour)
					}
					suspend(c.night)
				}
				suspend(c.weekly)
			}
			if weeks != c.weeks {
				t.Errorf("suspended %s: what is too old is removed in week %d, want %d", c.name, weeks, c.weeks)
			}
		}
	})
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
