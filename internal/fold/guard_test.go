package fold

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/usagekit/usagekit/internal/counter"
	"github.com/usagekit/usagekit/internal/database"
	"github.com/usagekit/usagekit/internal/dbtest"
)

// Two leaders at once, each certain of its lease: both have merged the same
// batches before either writes. The guard alone must keep one of them out; and
// without the guard this very test must see the counts doubled, or it proves
// nothing.
func TestGuard(t *testing.T) {
	if server == nil {
		t.Log("PostgreSQL was not tried; SQLite cannot have two folds at once")
		return
	}
	t.Run("alone", func(t *testing.T) {
		total, conflicts := twoLeaders(t, func(q string) string { return q })
		if total != 3 || conflicts != 1 {
			t.Errorf("counted %d, want 3, with %d conflicts, want 1", total, conflicts)
		}
	})
	t.Run("removed", func(t *testing.T) {
		total, conflicts := twoLeaders(t, func(q string) string {
			return strings.ReplaceAll(q, " AND w.seq = v.guard", "")
		})
		if total != 6 || conflicts != 0 {
			t.Errorf("without the guard: counted %d with %d conflicts; two folds did not meet, so this test cannot see double counting", total, conflicts)
		}
	})
}

// twoLeaders lets two instances fold the same batches at once, without a lease, and
// with every statement changed by edit.
func twoLeaders(t *testing.T, edit func(string) string) (total int64, conflicts int) {
	ctx := dbtest.Context(t)
	open := pools(t, "postgres")
	var met sync.WaitGroup // both are about to advance the guards
	met.Add(2)
	two := [2]*instance{instanceOn(t, open()), instanceOn(t, open())}
	for seq := range 3 {
		two[0].arrives(t, "w", seq+1, "feature.a.used")
	}
	var folds sync.WaitGroup
	var errs [2]error
	for i, s := range two {
		var once sync.Once
		s.db.Edit = func(q string) string {
			if strings.HasPrefix(q, "UPDATE usage_writers") {
				once.Do(func() { met.Done(); met.Wait() })
			}
			return edit(strings.ReplaceAll(q, " FOR UPDATE SKIP LOCKED", ""))
		}
		folds.Go(func() { _, errs[i] = s.Fold(ctx, true) })
	}
	folds.Wait()
	for _, err := range errs {
		if errors.Is(err, errConflict) {
			conflicts++
		} else if err != nil {
			t.Error(err)
		}
	}
	return two[0].totals(t)["feature.a.used"], conflicts
}

// The guard's UPDATE reaches fewer rows than there are writers: another fold was first, and
// this one is rolled back before it has written anything, for all of them.
func TestAGuardThatMovedRollsTheFoldBack(t *testing.T) {
	onEach(t, func(t *testing.T, s *instance) {
		s.arrives(t, "v", 1, "feature.a.used")
		s.arrives(t, "w", 1, "feature.a.used")
		var wrote []string
		s.db.Edit = func(q string) string {
			if strings.HasPrefix(q, "INSERT INTO usage_metrics") || strings.HasPrefix(q, "INSERT INTO usage_history") || strings.HasPrefix(q, "DELETE") {
				wrote = append(wrote, q)
			}
			return strings.Replace(q, "w.seq = v.guard", "w.seq = v.guard AND w.writer <> 'w'", 1)
		}
		if _, err := s.Fold(t.Context(), true); !errors.Is(err, errConflict) {
			t.Errorf("fold: %v, want errConflict", err)
		}
		if s.waits(t, "") != 2 || len(s.totals(t)) != 0 || len(wrote) != 0 {
			t.Errorf("%d of 2 batches wait, the tables have %v, and it asked for %q", s.waits(t, ""), s.totals(t), wrote)
		}
		s.db.Edit = nil
		s.foldAll(t)
		if got, want := s.totals(t), (map[string]int64{"feature.a.used": 2}); !maps.Equal(got, want) {
			t.Errorf("afterwards: %v, want %v", got, want)
		}
	})
}

// A lease saves the others work: while it lasts, they leave the fold to its
// holder, but for what they are asked to.
func TestLeaseIsLeftToItsHolder(t *testing.T) {
	if server == nil {
		t.Log("PostgreSQL was not tried; on SQLite the lease is everybody's")
		return
	}
	s := instanceOn(t, pools(t, "postgres")())
	for _, c := range []struct {
		holder string
		left   time.Duration
		force  bool
		busy   bool
	}{
		{"another", leaseTime, false, true},
		{"another", leaseTime, true, false},
		{"another", -time.Second, false, false},
		{s.lease.writer, leaseTime, false, false},
		{"dead", 6 * time.Hour, false, false}, // whose clock was ahead: nobody takes it for so long
		{"dead", 2 * leaseTime, false, false},
	} {
		now := time.Now()
		value := fmt.Sprintf("%s %d", c.holder, now.Add(c.left).UnixMilli())
		s.execute(t, `UPDATE usage_meta SET value = ? WHERE name = 'lease'`, value)
		s.leader.Arrived(value, now.UnixMilli())
		if looks, want := len(s.leader.kick) > 0, c.holder != "another" || c.left < 0; looks != want {
			t.Errorf("%+v: whether it looks at once is %v, want %v", c, looks, want)
		}
		for len(s.leader.kick) > 0 {
			<-s.leader.kick
		}
		before, err := s.leader.look(t.Context())
		if held := c.holder != "dead" && c.left > 0; err != nil || (before.left > 0) != held {
			t.Errorf("%+v: the lease is %s's for %v, %v", c, before.holder, before.left, err)
		}
		learned := memory{size: 1000, limit: time.Minute, suspect: "w/1", newer: "w/2"}
		s.memory = learned
		r, err := s.Fold(t.Context(), c.force)
		if err != nil || r.Busy != c.busy {
			t.Errorf("%+v: busy is %v, %v", c, r.Busy, err)
		}
		if (s.memory == learned) != c.busy { // a turn that was another's teaches nothing
			t.Errorf("%+v: afterwards it remembers %+v", c, s.memory)
		}
		seen, err := s.leader.look(t.Context())
		if want := c.holder == "another" && c.left > 0; err != nil || (seen.holder == "another") != want {
			t.Errorf("%+v: afterwards the lease is %s's, %v", c, seen.holder, err)
		}
	}
}

// A batch that makes its fold panic is set aside, alone, and the others count.
func TestABatchThatPanicsIsSetAside(t *testing.T) {
	s := instanceOn(t, pools(t, "sqlite")())
	for seq := range 3 {
		s.arrives(t, "w", seq+1, "feature.a.used")
	}
	s.db.Edit = func(q string) string {
		var guard int64
		if strings.Contains(q, "usage_history AS h") { // in the fold's own transaction: what it is about to count
			if err := s.pool.Get(&guard, `SELECT seq FROM usage_writers WHERE writer = 'w'`); err != nil || guard == 0 && s.memory.size == 0 || guard == 1 && s.memory.suspect == "" {
				panic("a batch that cannot be folded")
			}
		}
		return q
	}
	for range 10 {
		if _, err := s.Fold(t.Context(), true); err != nil && !strings.Contains(err.Error(), "cannot be folded") && !errors.Is(err, database.ErrUnavailable) {
			t.Fatal(err)
		}
	}
	var aside []string
	if err := s.pool.Select(&aside, `SELECT writer || '/' || seq FROM usage_quarantine`); err != nil || len(aside) != 1 || aside[0] != "w/2" {
		t.Errorf("set aside: %v, %v", aside, err)
	}
	if got, want := s.totals(t), (map[string]int64{"feature.a.used": 2, "usagekit.counts.dropped": 1, "bad": 1}); !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// What waits although another has the lease is reported, when that takes too long.
func TestLateFoldIsReported(t *testing.T) {
	if server == nil {
		t.Log("PostgreSQL was not tried; on SQLite the lease is everybody's")
		return
	}
	s := instanceOn(t, pools(t, "postgres")())
	held := func() {
		s.execute(t, `UPDATE usage_meta SET value = ? WHERE name = 'lease'`, fmt.Sprintf("another %d", time.Now().Add(leaseTime).UnixMilli()))
	}
	s.execute(t, `INSERT INTO usage_meta VALUES ('folded', '1')`)
	for _, c := range []struct {
		waits bool
		ago   time.Duration // that this instance saw the last fold end
		late  bool
	}{{true, 0, false}, {true, time.Minute, false}, {true, time.Hour, true}, {false, time.Hour, false}, {true, 0, false}} {
		s.execute(t, `DELETE FROM usage_inbox`)
		if c.waits {
			s.execute(t, `INSERT INTO usage_inbox VALUES ('w', 1, 1, '')`)
		}
		if c.ago > 0 {
			s.leader.folded.at = time.Now().Add(-c.ago)
		}
		held()
		s.leader.Turn()
		if (s.err != nil) != c.late {
			t.Errorf("%+v: it reports %v", c, s.err)
		}
	}
	s.leader.folded.at = time.Now().Add(-time.Hour)
	s.execute(t, `UPDATE usage_meta SET value = '2' WHERE name = 'folded'`)
	held()
	if s.leader.Turn(); s.err != nil {
		t.Errorf("after a fold: %v", s.err)
	}
}

// A batch that takes longer to fold than a fold may gets more time: it must not
// keep everybody's from being folded.
func TestASlowBatchGetsMoreTime(t *testing.T) {
	s := instanceOn(t, pools(t, "sqlite")())
	s.arrives(t, "w", 1, "feature.a.used")
	s.arrives(t, "w", 2, "feature.a.used")
	size := len(counter.Batch{Opened: time.Now().UnixMilli(), Counts: []counter.Count{{Name: "feature.a.used", N: 1}}}.Encode())
	s.memory.limit = 200 * time.Millisecond
	s.db.Edit = func(q string) string {
		if strings.Contains(q, "usage_history AS h") {
			time.Sleep(500 * time.Millisecond) // a slow server
		}
		return q
	}
	for range 20 {
		r, err := s.Fold(t.Context(), true)
		if err == nil && r.Batches == 1 && !r.More {
			break
		}
		if err != nil && !errors.Is(err, database.ErrUnavailable) {
			t.Fatal(err)
		}
	}
	if n := s.totals(t)["feature.a.used"]; n != 2 {
		t.Errorf("%d of 2 counts folded", n)
	}
	if s.memory.limit != 0 || s.memory.size != 2*size && s.memory.size > 4*size {
		t.Errorf("afterwards: %+v", s.memory)
	}
}

// All writers are asked for again, although the clock has gone back since they were.
func TestSweepWhenTheClockWentBack(t *testing.T) {
	onEach(t, func(t *testing.T, s *instance) {
		s.memory.swept = time.Now().Add(6 * time.Hour).UnixMilli()
		s.arrives(t, "w", 1, "feature.a.used")
		s.execute(t, `UPDATE usage_writers SET seen = ?`, time.Now().AddDate(0, 0, -10).UnixMilli())
		if r, err := s.Fold(t.Context(), true); err != nil || r.Batches != 1 {
			t.Errorf("%+v, %v", r, err)
		}
	})
}

// Who was asleep looks after what it sends, also where another has the lease: that one may
// have been killed, and nobody else would look before somebody counts or reads again.
func TestABatchIsLookedAfterWhereAnotherHasTheLease(t *testing.T) {
	if server == nil {
		t.Log("PostgreSQL was not tried: make test does")
		return
	}
	s := instanceOn(t, pools(t, "postgres")())
	run, cancel := context.WithCancel(t.Context())
	s.lease.run = run
	leader := s.leads(10*time.Millisecond, 100*time.Millisecond)
	var loop sync.WaitGroup
	loop.Go(leader.Run)
	defer loop.Wait()
	defer cancel()
	ctx := dbtest.Context(t)
	until(ctx, t, "sleep", leader.Asleep)
	lease := fmt.Sprintf("killed %d", time.Now().Add(5*time.Second).UnixMilli())
	s.execute(t, `UPDATE usage_meta SET value = ? WHERE name = 'lease'`, lease)
	s.arrives(t, "w", 1, "feature.a.used")
	leader.Arrived(lease, time.Now().UnixMilli())
	until(ctx, t, "a fold", func() bool { return s.totals(t)["feature.a.used"] == 1 })
}
