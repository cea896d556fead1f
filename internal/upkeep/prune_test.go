package upkeep

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/usagekit/usagekit/internal/calendar"
	"github.com/usagekit/usagekit/internal/clock"
	"github.com/usagekit/usagekit/internal/crossing"
	"github.com/usagekit/usagekit/internal/database"
	"github.com/usagekit/usagekit/internal/dbtest"
	"github.com/usagekit/usagekit/store/postgres"
	"github.com/usagekit/usagekit/store/sqlite"
)

var server *dbtest.Server

func TestMain(m *testing.M) { os.Exit(dbtest.Main(m, &server)) }

const aDay = 24 * time.Hour

// host is a process that removes what is too old, when it is told to.
type host struct {
	t     *testing.T
	db    *database.DB
	clock *clock.Clock
}

// inOneClock runs test on an empty database of each kind whose clock is this process's,
// as it is where both are on one host, and in a bubble: time passes where the test sleeps.
func inOneClock(t *testing.T, test func(t *testing.T, restart func() *host)) {
	for name, open := range map[string]func(t *testing.T) (*sqlx.DB, error){
		"sqlite":   func(t *testing.T) (*sqlx.DB, error) { return sqlite.Open(filepath.Join(t.TempDir(), "usage.db")) },
		"postgres": func(t *testing.T) (*sqlx.DB, error) { return postgres.Open(server.NewDatabase(t)) },
	} {
		t.Run(name, func(t *testing.T) {
			if name == "postgres" && server == nil {
				t.Log("PostgreSQL was not tried: make test does")
				return
			}
			synctest.Test(t, func(t *testing.T) {
				pool, err := open(t)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { pool.Close() })
				test(t, func() *host { return started(t, pool) })
			})
		})
	}
}

func started(t *testing.T, pool *sqlx.DB) *host {
	t.Helper()
	h := &host{t: t, clock: clock.New(nil, clock.Kept{Hours: 35 * aDay, Days: 400 * aDay, Users: 90 * aDay})}
	var err error
	h.db, err = database.Open(pool, database.Config{
		Log:    slog.New(slog.DiscardHandler),
		Settle: func(ctx context.Context, tx *database.Tx, _ string) (func(), error) { return h.clock.Settle(ctx, tx) },
	})
	if err != nil {
		t.Fatal(err)
	}
	if says := h.db.Clock(); !h.db.OneWriter {
		h.db.Edit = func(q string) string {
			return strings.ReplaceAll(q, says, fmt.Sprintf("CAST(%d AS BIGINT)", time.Now().UnixMilli()))
		}
	}
	if _, err := h.db.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return h
}

// forgetful is a Pruner that remembers nothing of what others have removed.
func (h *host) forgetful() *Pruner {
	log := slog.New(slog.DiscardHandler)
	return NewPruner(h.t.Context(), h.db, h.clock, crossing.NewNotifier(h.t.Context(), h.db, log, h.clock.Calendar, nil, false), log)
}

// count is what a query of one number says.
func (h *host) count(t *testing.T, query string) (n int64) {
	t.Helper()
	err := h.db.Read(t.Context(), database.ReadTimeout, func(ctx context.Context, tx *database.Tx) error { return tx.Get(ctx, &n, query) })
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func (h *host) exec(t *testing.T, query string, args ...any) {
	t.Helper()
	err := h.db.Write(t.Context(), database.WriteTimeout, func(ctx context.Context, tx *database.Tx) error {
		_, err := tx.Exec(ctx, query, args...)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

const allHistory = `SELECT COUNT(*) FROM usage_history`

// put adds a count in the bucket of a step that was so many days ago.
func (h *host) put(t *testing.T, step calendar.Step, ago int) {
	t.Helper()
	at := h.clock.Calendar().Start(step, time.Now().AddDate(0, 0, -ago)).Unix()
	h.exec(t, `INSERT INTO usage_history AS h (step, bucket, key, value) VALUES (?, ?, 'feature.a.used', 1) ON CONFLICT (step, bucket, key) DO UPDATE SET value = h.value + 1`, int(step), at)
}

// fill puts an hour and a day of each of the last days.
func (h *host) fill(t *testing.T, hours, days int) {
	t.Helper()
	for ago := range hours {
		h.put(t, calendar.Hour, ago)
	}
	for ago := range days {
		h.put(t, calendar.Day, ago)
	}
}

// aged puts an hour that is too old, and returns whether it is there still.
func (h *host) aged(t *testing.T) func() bool {
	t.Helper()
	h.put(t, calendar.Hour, 60)
	return func() bool { return h.count(t, allHistory+` WHERE step = 1`) > 0 }
}

// lookedAt has the clock looked at.
func (h *host) lookedAt(t *testing.T) error {
	_, err := h.clock.Believe(t.Context(), h.db)
	return err
}

// setRemoval has the database say as of when history was removed last; none where that is r.
func (h *host) setRemoval(t *testing.T, r clock.Removal) {
	t.Helper()
	h.exec(t, `DELETE FROM usage_removal`)
	if r != (clock.Removal{}) {
		h.exec(t, `INSERT INTO usage_removal (one, last, doubted, seen, gaps) VALUES (1, ?, ?, ?, ?)`, r.Last, r.Doubted, r.Seen, r.Gaps)
	}
}

// Every clock that is asked says that it is much later than it was: nothing is removed
// on that word alone, however often it is given and by however many processes, until
// it has held for a week, in which time went on as it should. Where it is taken back,
// all is there still.
func TestRetentionWhenTheClockJumps(t *testing.T) {
	inOneClock(t, func(t *testing.T, restart func() *host) {
		s := restart()
		s.fill(t, 34, 60)
		prune := func(s *host) error { return s.forgetful().Prune(t.Context()) }
		if err := prune(s); err != nil {
			t.Fatal(err)
		}
		was := s.count(t, allHistory)
		for _, jump := range []time.Duration{40 * 24 * time.Hour, 73 * 365 * 24 * time.Hour} {
			time.Sleep(jump)
			s.clock.Asked.At = s.clock.Asked.At.Add(jump) // its own clock does not jump
			for _, again := range []*host{s, restart()} {
				for range 3 {
					if err := prune(again); err == nil || !strings.Contains(err.Error(), "nothing is removed") {
						t.Errorf("a clock that jumped by %v: %v", jump, err)
					}
					time.Sleep(time.Hour)
				}
			}
			if n := s.count(t, allHistory); n != was {
				t.Fatalf("a clock that jumped by %v: %d rows of %d are left", jump, n, was)
			}
		}
		for range 6 {
			if err := prune(s); err == nil {
				t.Fatal("it is believed too soon")
			}
			time.Sleep(24 * time.Hour)
		}
		time.Sleep(24 * time.Hour)
		if err := prune(s); err != nil {
			t.Errorf("after a week: %v", err)
		}
		if n := s.count(t, allHistory); n != 0 {
			t.Errorf("%d rows of 73 years ago are left", n)
		}
	})
}

// What a wrong clock has left of itself is no reason to wait, nor to believe it the
// next time.
func TestRetentionWhenTheClockIsRightAgain(t *testing.T) {
	const day = 24 * 60 * 60 * 1000
	inOneClock(t, func(t *testing.T, restart func() *host) {
		s := restart()
		s.fill(t, 34, 60)
		was := s.count(t, allHistory)
		now := time.Now().UnixMilli()
		for _, c := range []struct {
			name   string
			record clock.Removal // none: it was removed
			known  int64         // afterwards
		}{
			{"it was ahead, and not believed", clock.Removal{Last: now, Doubted: now + 70*365*day, Seen: now + 70*365*day, Gaps: 0}, now},
			{"it was behind", clock.Removal{Last: now, Doubted: now - 20*365*day, Seen: now - 20*365*day, Gaps: 0}, now},
			{"it is behind what was believed", clock.Removal{Last: now + 70*365*day}, now + 70*365*day},
			{"and has been for a week", clock.Removal{Last: now + 70*365*day, Doubted: now - 7*day, Seen: now - day, Gaps: 0}, now},
			{"the record is gone", clock.Removal{}, now},
		} {
			s.setRemoval(t, c.record)
			s.clock.Asked = clock.Asked{} // as of a process that has just begun
			if err := s.forgetful().Prune(t.Context()); err != nil && c.record != (clock.Removal{}) {
				t.Errorf("%s: %v", c.name, err)
			}
			if last := s.count(t, `SELECT last FROM usage_removal`); c.record != (clock.Removal{}) && last != c.known {
				t.Errorf("%s: the record is %d then, want %d", c.name, last, c.known)
			}
			if n := s.count(t, allHistory); n != was {
				t.Fatalf("%s: %d rows of %d are left", c.name, n, was)
			}
		}
		s.setRemoval(t, clock.Removal{Last: now, Doubted: now + 50*day, Seen: now + 50*day, Gaps: 0})
		time.Sleep(60 * 24 * time.Hour)
		s.clock.Asked = clock.Asked{}
		if err := s.forgetful().Prune(t.Context()); err == nil || s.count(t, allHistory) != was {
			t.Errorf("a jump to what was taken back before is believed: %v", err)
		}
	})
}

// A service that is quiet for days, or for months, has no wrong clock for that: while a
// process runs it knows how time went on. Nothing is said, and what is too old is removed
// with what is counted next, by whichever instance folds that.
func TestQuietServicesForget(t *testing.T) {
	inOneClock(t, func(t *testing.T, restart func() *host) {
		all := []*host{restart(), restart()}
		parts := []*Pruner{all[0].forgetful(), all[1].forgetful()}
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
	inOneClock(t, func(t *testing.T, restart func() *host) {
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
				s := restart()
				parts := s.forgetful()
				for end := time.Now().Add(c.run); time.Now().Before(end); time.Sleep(min(c.run, 3*time.Hour)) {
					_ = parts.Prune(t.Context())
				}
			}
			for began := time.Now(); time.Since(began) < 9*aDay; time.Sleep(aDay) { // whatever was before
				_ = restart().lookedAt(t)
			}
			for round := range 3 {
				there, starts := restart().aged(t), 0
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

// A machine that is suspended stops the clock that does not jump, and its own goes on:
// that is no reason to keep what is too old for ever.
func TestMachinesThatAreSuspendedForget(t *testing.T) {
	inOneClock(t, func(t *testing.T, restart func() *host) {
		s := restart()
		parts := s.forgetful()
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
