package store

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/usagekit/usagekit/internal/clock"
	"github.com/usagekit/usagekit/internal/counter"
	"github.com/usagekit/usagekit/internal/dbtest"
	"github.com/usagekit/usagekit/internal/naming"
	"github.com/usagekit/usagekit/internal/outbox"
	"github.com/usagekit/usagekit/internal/upkeep"
	"github.com/usagekit/usagekit/store/postgres"
)

// inOneClock runs test on an empty database of each kind whose clock is this
// process's, as it is where both are on one host, and in a bubble: time passes where
// the test sleeps.
func inOneClock(t *testing.T, test func(t *testing.T, restart func(Config) *Store)) {
	onEachKind(t, func(t *testing.T, open func(t *testing.T) *sqlx.DB) {
		synctest.Test(t, func(t *testing.T) {
			db := open(t)
			test(t, func(cfg Config) *Store { return inBubble(t, db, cfg) })
		})
	})
}

// inBubble opens a store without its loops, in a bubble's time.
func inBubble(t *testing.T, db *sqlx.DB, cfg Config) *Store {
	t.Helper()
	cfg.StartOffline = true // so that its clock is set before it asks
	s, err := open(t.Context(), db, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.life.cancel)
	if clock := s.db.Clock(); !s.db.OneWriter {
		s.db.Edit = func(q string) string {
			return strings.ReplaceAll(q, clock, fmt.Sprintf("CAST(%d AS BIGINT)", time.Now().UnixMilli()))
		}
	}
	if err := s.start(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	return s
}

// count is what a query of one number says.
func (s *Store) count(t *testing.T, query string) (n int64) {
	t.Helper()
	s.get(t, &n, query)
	return n
}

const allHistory = `SELECT COUNT(*) FROM usage_history`

// What was counted within a month keeps its place under a cap, whatever a clock says
// that is ahead, and however many days before have counts; what was not gives it up,
// when the clock is right, and after a pause.
func TestPlacesUnderACapWhenTheClockJumps(t *testing.T) {
	inOneClock(t, func(t *testing.T, restart func(Config) *Store) {
		cfg := quietly()
		cfg.Caps = map[string]int{"feature": 2}
		s := restart(cfg)
		parts := s.newPruner()
		count := func(s *Store, name string, want int64) {
			t.Helper()
			if n, err := s.AddNow(t.Context(), name, 1); n != want || err != nil {
				t.Errorf("%s is %d, %v; want %d", name, n, err, want)
			}
		}
		count(s, "feature.old.used", 1)
		for n := range int64(20) { // the last 20 days have counts
			count(s, "feature.busy.used", n+1)
			if err := parts.Prune(t.Context()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(aDay)
		}
		time.Sleep(20 * aDay) // ahead: it is the 20th day
		for i, s := range []*Store{s, restart(cfg)} {
			s.clock.Asked = clock.Asked{}
			_ = parts.Prune(t.Context())
			count(s, "feature.new.used", int64(i+1)) // is (other)
		}
		count(s, "feature.old.used", 2)
		for n := range int64(33) { // time goes on, and the clock is believed in the end
			time.Sleep(aDay)
			_ = parts.Prune(t.Context())
			count(s, "feature.busy.used", 21+n)
		}
		count(s, "feature.new.used", 1)
	})
}

// A batch of the right time keeps its history although the clock by which it is
// folded says that it is too old; and so does a count that AddNow makes then.
func TestHistoryOfBatchesWhenTheClockJumps(t *testing.T) {
	inOneClock(t, func(t *testing.T, restart func(Config) *Store) {
		s := restart(Config{})
		batch := counter.Batch{Opened: time.Now().UnixMilli(), Counts: []counter.Count{{Name: "feature.a.used", N: 2}}}
		s.exec(t, `INSERT INTO usage_writers (writer, seq, sum, seen) VALUES ('w', 0, ?, ?)`, []byte{}, time.Now().UnixMilli())
		s.exec(t, `INSERT INTO usage_inbox (writer, seq, opened, payload) VALUES ('w', 1, ?, ?)`, batch.Opened, batch.Encode())
		time.Sleep(30 * 365 * 24 * time.Hour)
		if f, err := s.folder.Fold(t.Context(), true); err != nil || f.Batches != 1 {
			t.Fatal(f, err)
		}
		if n := s.count(t, allHistory); n != 2 {
			t.Errorf("%d rows of history, want the hour and the day", n)
		}
	})
}

// A writer is remembered from the latest time that was certain, not from what a clock
// said that was behind: its guard is what keeps a repeat from counting twice.
func TestWritersWhenTheClockIsBehind(t *testing.T) {
	inOneClock(t, func(t *testing.T, restart func(Config) *Store) {
		time.Sleep(200 * 24 * time.Hour)
		s := restart(Config{})
		now := time.Now()
		s.setRemoval(t, clock.Removal{Last: now.UnixMilli()})
		batch := counter.Batch{Opened: now.UnixMilli(), Counts: []counter.Count{{Name: "feature.a.used", N: 2}}}
		for _, w := range []string{"folds", "sends"} {
			s.exec(t, `INSERT INTO usage_writers (writer, seq, sum, seen) VALUES (?, 0, ?, 1)`, w, []byte{})
		}
		s.exec(t, `INSERT INTO usage_inbox (writer, seq, opened, payload) VALUES ('folds', 1, ?, ?)`, batch.Opened, batch.Encode())
		edit := s.db.Edit
		s.db.Edit = func(q string) string {
			if edit != nil {
				q = edit(q)
			}
			return strings.ReplaceAll(q, fmt.Sprint(time.Now().UnixMilli()), fmt.Sprint(time.Now().AddDate(0, 0, -150).UnixMilli()))
		}
		if f, err := s.folder.Fold(t.Context(), true); err != nil || f.Batches != 1 {
			t.Fatal(f, err)
		}
		s.sendAs(t, "sends")
		s.db.Edit = edit
		if err := s.newPruner().Prune(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := s.count(t, `SELECT COUNT(*) FROM usage_writers WHERE writer IN ('folds', 'sends')`); n != 2 {
			t.Errorf("%d of 2 writers are remembered", n)
		}
	})
}

// setRemoval has the database say as of when history was removed last; none where that is r.
func (s *Store) setRemoval(t *testing.T, r clock.Removal) {
	t.Helper()
	s.exec(t, `DELETE FROM usage_removal`)
	if r != (clock.Removal{}) {
		s.exec(t, `INSERT INTO usage_removal (one, last, doubted, seen, gaps) VALUES (1, ?, ?, ?, ?)`, r.Last, r.Doubted, r.Seen, r.Gaps)
	}
}

// sendAs sends a batch as another writer.
func (s *Store) sendAs(t *testing.T, writer string) {
	t.Helper()
	live := counter.New(10, func(string, int64) {}, nil)
	o := outbox.New(t.Context(), outbox.Config{
		DB: s.db, Clock: s.clock, Live: live, Writer: writer, Log: s.cfg.Logger,
		Sent: func(string, int64) {}, Asleep: func() bool { return false }, Sending: func(error) {}, Adopting: func(error) {},
	})
	live.Add("feature.a.used", 2)
	o.Seal()
	if waits, err := o.SendNext(); err != nil || !waits {
		t.Fatal(waits, err)
	}
}

// A writer whose time lies in the future is seen anew, and forgotten in its time.
func TestWritersOfTheFuture(t *testing.T) {
	onEach(t, func(t *testing.T, db *sqlx.DB) {
		ctx := dbtest.Context(t)
		s, err := open(ctx, db, Config{})
		if err != nil {
			t.Fatal(err)
		}
		defer s.life.cancel()
		ahead := time.Now().AddDate(70, 0, 0).UnixMilli()
		for _, w := range []string{"lives", "gone"} {
			db.MustExec(db.Rebind(`INSERT INTO usage_writers (writer, seq, sum, seen) VALUES (?, 0, ?, ?)`), w, []byte{}, ahead)
		}
		s.sendAs(t, "lives")
		const future = `SELECT COUNT(*) FROM usage_writers WHERE seen > %d`
		if n := s.count(t, fmt.Sprintf(future, time.Now().Add(time.Hour).UnixMilli())); n != 1 {
			t.Errorf("after one of two has sent, %d are of the future", n)
		}
		if err := s.newPruner().Prune(ctx); err != nil {
			t.Fatal(err)
		}
		if n := s.count(t, fmt.Sprintf(future, time.Now().Add(time.Hour).UnixMilli())); n != 0 {
			t.Errorf("%d are of the future, and would never be forgotten", n)
		}
	})
}

// ahead is by how much a clock was that is right again.
const ahead = 3 * time.Hour

// A lease that ends later than any holder can have set it is nobody's: the clock was
// ahead when it was set.
func TestALeaseOfTheFutureIsNone(t *testing.T) {
	if Server == nil {
		t.Log("PostgreSQL was not tried; on SQLite the lease is everybody's")
		return
	}
	ctx := dbtest.Context(t)
	db, err := postgres.Open(Server.NewDatabase(t))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	s, err := open(ctx, db, Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.life.cancel()
	for _, until := range []time.Duration{ahead, 10 * time.Minute, 70 * 365 * 24 * time.Hour} {
		db.MustExec(`UPDATE usage_meta SET value = $1 WHERE name = 'lease'`, fmt.Sprintf("dead %d", time.Now().Add(until).UnixMilli()))
		s.Add("feature.a.used", 2)
		s.outbox.Seal()
		if _, err := s.outbox.SendNext(); err != nil {
			t.Fatal(err)
		}
		if f, err := s.folder.Fold(ctx, false); err != nil || f.Busy || f.Batches != 1 {
			t.Errorf("%v ahead: %+v, %v", until, f, err)
		}
	}
}

// What is complete through a time in the future is not: no clock has been there.
func TestCompleteThroughIsNotInTheFuture(t *testing.T) {
	onEach(t, func(t *testing.T, db *sqlx.DB) {
		ctx := dbtest.Context(t)
		s, err := open(ctx, db, Config{})
		if err != nil {
			t.Fatal(err)
		}
		defer s.life.cancel()
		if _, err := s.folder.Fold(ctx, true); err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			waits, read bool // a batch; and it was read before, by the wrong clock
		}{{false, true}, {true, true}, {true, false}} {
			db.MustExec(`DELETE FROM usage_inbox`)
			if c.waits {
				db.MustExec(db.Rebind(`INSERT INTO usage_inbox (writer, seq, opened, payload) VALUES ('w', 1, 1, ?)`), []byte{})
			}
			db.MustExec(db.Rebind(`UPDATE usage_meta SET value = ? WHERE name = 'folded'`), fmt.Sprint(time.Now().Add(ahead).UnixMilli()))
			s.health.through.Store(0)
			if c.read {
				s.health.through.Store(time.Now().Add(ahead).UnixMilli())
			}
			if _, err := s.Get(ctx, "feature.a.used"); err != nil {
				t.Fatal(err)
			}
			if through := s.Stats().FoldedThrough; time.Until(through) > time.Minute || !c.waits && time.Since(through) > time.Hour {
				t.Errorf("%+v: complete through %v", c, through)
			}
		}
	})
}

// A row that lies far ahead, or long ago, because a clock did: it stays in every range
// that covers it, and does not make an open range one of all the time between.
func TestReadsOfRowsThatLieFarAhead(t *testing.T) {
	onEach(t, func(t *testing.T, db *sqlx.DB) {
		ctx := dbtest.Context(t)
		s, err := open(ctx, db, Config{Retention: Retention{Hourly: -1, Daily: -1, UserDaily: -1}})
		if err != nil {
			t.Fatal(err)
		}
		defer s.life.cancel()
		now := time.Now()
		for n, at := range map[int64]time.Time{1: now, 10: time.Date(2099, 5, 5, 5, 5, 0, 0, time.UTC), 100: time.Date(1970, 5, 5, 5, 5, 0, 0, time.UTC)} {
			for _, name := range []string{"feature.a.used", "user.7.requests"} {
				group, _, _ := naming.Split(name)
				for _, step := range stepsOf(group) {
					s.put(t, row{bucket{step, s.clock.Calendar().Start(step, at).Unix(), name}, n})
				}
			}
		}
		week := now.AddDate(0, 0, -7)
		for _, c := range []struct {
			q    Query
			want int64
		}{
			{Query{From: week}, 11}, {Query{To: now.AddDate(0, 0, 7)}, 101}, {Query{From: week, To: now.AddDate(0, 0, 7)}, 1},
			{Query{From: week, To: time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)}, 11}, {Query{From: time.Date(1960, 1, 1, 0, 0, 0, 0, time.UTC)}, 111},
		} {
			for _, name := range []string{"feature.a.used", "user.7.requests"} {
				for _, step := range []Step{0, Hour, Day} {
					q := c.q
					q.Name, q.Step = name, step
					if step == Hour && name[0] == 'u' {
						continue
					}
					sum := func(counts []Count, err error) (n int64) {
						if err != nil {
							t.Errorf("%+v: %v", q, err)
						}
						for _, c := range counts {
							n += c.N
						}
						return n
					}
					var each int64
					for c, err := range s.Each(ctx, q) {
						each += sum([]Count{c}, err)
					}
					if h, total := sum(s.History(ctx, q)), sum(s.Totals(ctx, q)); h != c.want || total != c.want || each != c.want {
						t.Errorf("%+v: History %d, Totals %d, Each %d, want %d", q, h, total, each, c.want)
					}
				}
			}
		}
		if err := s.eraseNow(ctx, "7"); err != nil {
			t.Errorf("Erase: %v", err)
		}
		if n := s.count(t, `SELECT COUNT(*) FROM usage_history WHERE key = 'user.7.requests'`); n != 0 {
			t.Errorf("Erase leaves %d rows", n)
		}
	})
}

// eraseNow is Erase of what is in the tables.
func (s *Store) eraseNow(ctx context.Context, user string) error {
	return upkeep.NewEraser(s.life.run, s.db, s.clock).Erase(ctx, user)
}
