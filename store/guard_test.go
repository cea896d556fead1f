package store

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/usagekit/usagekit/internal/counter"
	"github.com/usagekit/usagekit/internal/database"
	"github.com/usagekit/usagekit/internal/dbtest"
	"github.com/usagekit/usagekit/store/postgres"
	"github.com/usagekit/usagekit/store/sqlite"
)

// Server is the tests' PostgreSQL; nil: there is none. TestMain of the external
// tests, in the same program, starts it.
var Server *dbtest.Server

// Two leaders at once, each certain of its lease: both have merged the same
// batches before either writes. The guard alone must keep one of them out; and
// without the guard this very test must see the counts doubled, or it proves
// nothing.
func TestGuard(t *testing.T) {
	if Server == nil {
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

// twoLeaders lets two stores fold the same batches at once, without a lease, and
// with every statement changed by edit.
func twoLeaders(t *testing.T, edit func(string) string) (total, conflicts int64) {
	ctx := dbtest.Context(t)
	url := Server.NewDatabase(t)
	var met sync.WaitGroup // both are about to advance the guards
	met.Add(2)
	var stores [2]*Store
	for i := range stores {
		db, err := postgres.Open(url)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		s, err := open(ctx, db, Config{}) // nothing folds but what is told to
		if err != nil {
			t.Fatal(err)
		}
		stores[i] = s
	}
	stores[0].exec(t, `INSERT INTO usage_writers VALUES ('w', 0, '', 0)`)
	payload := counter.Batch{Opened: time.Now().UnixMilli(), Counts: []counter.Count{{Name: "feature.a.used", N: 1}}}.Encode()
	for seq := range 3 {
		stores[0].exec(t, `INSERT INTO usage_inbox VALUES ('w', ?, 1, ?)`, seq+1, payload)
	}
	var folds sync.WaitGroup
	for _, s := range stores {
		var once sync.Once
		s.db.Edit = func(q string) string {
			if strings.HasPrefix(q, "UPDATE usage_writers") {
				once.Do(func() { met.Done(); met.Wait() })
			}
			return edit(strings.ReplaceAll(q, " FOR UPDATE SKIP LOCKED", ""))
		}
		folds.Go(func() {
			if _, err := s.fold(ctx, true); err != nil && !errors.Is(err, errConflict) {
				t.Error(err)
			}
		})
	}
	folds.Wait()
	total, err := stores[0].Get(ctx, "feature.a.used")
	if err != nil {
		t.Fatal(err)
	}
	return total, stores[0].conflicts.Load() + stores[1].conflicts.Load()
}

// A lease saves the others work: while it lasts, they leave the fold to its
// holder, but for what they are asked to.
func TestLeaseIsLeftToItsHolder(t *testing.T) {
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
	for _, c := range []struct {
		holder string
		left   time.Duration
		force  bool
		busy   bool
	}{
		{"another", leaseTime, false, true},
		{"another", leaseTime, true, false},
		{"another", -time.Second, false, false},
		{s.writer, leaseTime, false, false},
	} {
		db.MustExec(`UPDATE usage_meta SET value = $1 WHERE name = 'lease'`, fmt.Sprintf("%s %d", c.holder, time.Now().Add(c.left).UnixMilli()))
		learned := foldMemory{size: 1000, limit: time.Minute, suspect: "w/1", newer: "w/2"}
		s.folding = learned
		f, err := s.fold(ctx, c.force)
		if err != nil || f.busy != c.busy {
			t.Errorf("%+v: busy is %v, %v", c, f.busy, err)
		}
		if (s.folding == learned) != c.busy { // a turn that was another's teaches nothing
			t.Errorf("%+v: afterwards the store remembers %+v", c, s.folding)
		}
		l, err := s.look(ctx)
		if want := c.holder == "another" && c.left > 0; err != nil || (l.holder == "another") != want {
			t.Errorf("%+v: afterwards the lease is %s's, %v", c, l.holder, err)
		}
	}
}

// A batch that makes its fold panic is set aside, alone, and the others count.
func TestABatchThatPanicsIsSetAside(t *testing.T) {
	db, err := sqlite.Open(filepath.Join(t.TempDir(), "usage.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	s, err := open(dbtest.Context(t), db, Config{})
	if err != nil {
		t.Fatal(err)
	}
	for seq := range 3 {
		payload := counter.Batch{Opened: time.Now().UnixMilli(), Counts: []counter.Count{{Name: "feature.a.used", N: 1}}}.Encode()
		db.MustExec(`INSERT INTO usage_writers VALUES ('w', 0, x'', 0) ON CONFLICT DO NOTHING`)
		db.MustExec(`INSERT INTO usage_inbox VALUES ('w', ?, 1, ?)`, seq+1, payload)
	}
	s.db.Edit = func(q string) string {
		var guard int64
		if strings.Contains(q, "usage_history AS h") { // in the fold's own transaction: what it is about to count
			if err := db.Get(&guard, `SELECT seq FROM usage_writers WHERE writer = 'w'`); err != nil || guard == 0 && s.folding.size == 0 || guard == 1 && s.folding.suspect == "" {
				panic("a batch that cannot be folded")
			}
		}
		return q
	}
	for range 10 {
		if _, err := s.fold(dbtest.Context(t), true); err != nil && !strings.Contains(err.Error(), "cannot be folded") && !errors.Is(err, ErrUnavailable) {
			t.Fatal(err)
		}
	}
	var kept []string
	if err := db.Select(&kept, `SELECT name FROM usage_meta WHERE name LIKE 'bad/%'`); err != nil || len(kept) != 1 || kept[0] != "bad/w/2" {
		t.Errorf("set aside: %v, %v", kept, err)
	}
	for name, want := range map[string]int64{"feature.a.used": 2, "usagekit.counts.dropped": 1} {
		if n, err := s.Get(dbtest.Context(t), name); n != want || err != nil {
			t.Errorf("%s = %d, %v; want %d", name, n, err, want)
		}
	}
}

// stuckDisk is one that hangs when a file is made, from when it is told to.
type stuckDisk struct {
	counter.Disk
	hangs *atomic.Bool
	until chan struct{}
}

func (d stuckDisk) Create(dir, file string, size int64) (counter.Mapping, error) {
	if d.hangs.Load() {
		<-d.until
	}
	return d.Disk.Create(dir, file, size)
}

// A disk that hangs keeps neither Flush nor Shutdown beyond its context, nor an Add;
// and Shutdown does not say that all is well.
func TestSpoolOnADiskThatHangs(t *testing.T) {
	dir := t.TempDir()
	db, err := sqlite.Open(filepath.Join(dir, "usage.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var hangs atomic.Bool
	until := make(chan struct{})
	s, err := openOn(dbtest.Context(t), db, Config{Spool: filepath.Join(dir, "spool")}, func(root string) (counter.Disk, error) {
		real, err := counter.OpenDisk(root)
		return stuckDisk{real, &hangs, until}, err
	})
	if err != nil {
		t.Fatal(err)
	}
	hangs.Store(true)
	s.Inc("feature.a.used")
	for _, f := range []func(context.Context) error{s.Flush, s.Shutdown} {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		if err := f(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v, want the deadline", err)
		}
		s.Inc("feature.a.used") // does not wait either
		cancel()
	}
	close(until)
}

// stuckFile is one that hangs when it is given up, from when it is told to.
type stuckFile struct {
	counter.Mapping
	hangs  *atomic.Bool
	hanged chan struct{}
	until  chan struct{}
}

func (f stuckFile) Close() {
	if f.hangs.Load() {
		f.hanged <- struct{}{}
		<-f.until
	}
	f.Mapping.Close()
}

type stuckFiles struct {
	counter.Disk
	file stuckFile
}

func (d stuckFiles) Create(dir, file string, size int64) (counter.Mapping, error) {
	m, err := d.Disk.Create(dir, file, size)
	if err == nil {
		d.file.Mapping = m
		m = d.file
	}
	return m, err
}

// What is between being counted and the queue waits, too: somebody who asks just then
// is not told that all is stored.
func TestWhatIsBeingSealedIsPending(t *testing.T) {
	for name, seal := range map[string]func(*Store, context.Context) error{"Flush": (*Store).Flush, "Shutdown": (*Store).Shutdown} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			db, err := sqlite.Open(filepath.Join(dir, "usage.db"))
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			var hangs atomic.Bool
			file := stuckFile{hangs: &hangs, hanged: make(chan struct{}), until: make(chan struct{})}
			s, err := openOn(dbtest.Context(t), db, Config{Spool: filepath.Join(dir, "spool"), Interval: time.Hour}, func(root string) (counter.Disk, error) {
				real, err := counter.OpenDisk(root)
				return stuckFiles{real, file}, err
			})
			if err != nil {
				t.Fatal(err)
			}
			s.begin()
			s.Inc("feature.a.used")
			s.Inc("feature.b.used")
			hangs.Store(true)
			sealed := make(chan error, 1)
			go func() { sealed <- seal(s, dbtest.Context(t)) }()
			<-file.hanged
			if st := s.Stats(); st.Pending != 2 || st.Oldest.IsZero() {
				t.Errorf("%d are pending, since %v: 2 are being sealed", st.Pending, st.Oldest)
			}
			if s.Inc("feature.a.used"); name != "Shutdown" && s.Stats().Pending != 3 {
				t.Errorf("%d are pending, want 2 that are being sealed and one more", s.Stats().Pending)
			}
			hangs.Store(false)
			close(file.until)
			if err := <-sealed; err != nil {
				t.Error(err)
			}
			if st := s.Stats(); name == "Shutdown" && (st.Pending != 0 || !st.Oldest.IsZero()) {
				t.Errorf("after all %d are pending, since %v", st.Pending, st.Oldest)
			}
			if err := s.Shutdown(dbtest.Context(t)); err != nil {
				t.Error(err)
			}
		})
	}
}

// What waits although another has the lease is reported, when that takes too long.
func TestLateFoldIsReported(t *testing.T) {
	if Server == nil {
		t.Log("PostgreSQL was not tried; on SQLite the lease is everybody's")
		return
	}
	db, err := postgres.Open(Server.NewDatabase(t))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	s, err := open(t.Context(), db, Config{})
	if err != nil {
		t.Fatal(err)
	}
	held := func() {
		db.MustExec(`UPDATE usage_meta SET value = $1 WHERE name = 'lease'`, fmt.Sprintf("another %d", time.Now().Add(leaseTime).UnixMilli()))
	}
	db.MustExec(`INSERT INTO usage_meta VALUES ('folded', '1')`)
	for _, c := range []struct {
		waits bool
		ago   time.Duration // that this instance saw the last fold end
		late  bool
	}{{true, 0, false}, {true, time.Minute, false}, {true, time.Hour, true}, {false, time.Hour, false}, {true, 0, false}} {
		db.MustExec(`DELETE FROM usage_inbox`)
		if c.waits {
			db.MustExec(`INSERT INTO usage_inbox VALUES ('w', 1, 1, '')`)
		}
		if c.ago > 0 {
			s.seenFold.at = time.Now().Add(-c.ago)
		}
		leader := false
		held()
		s.foldTurn(&leader)
		if err := s.Stats().Err; (err != nil) != c.late {
			t.Errorf("%+v: Stats.Err is %v", c, err)
		}
	}
	s.seenFold.at = time.Now().Add(-time.Hour)
	db.MustExec(`UPDATE usage_meta SET value = '2' WHERE name = 'folded'`)
	leader := false
	held()
	if s.foldTurn(&leader); s.Stats().Err != nil {
		t.Errorf("after a fold: %v", s.Stats().Err)
	}
}

// A batch that takes longer to fold than a fold may gets more time: it must not
// keep everybody's from being folded.
func TestASlowBatchGetsMoreTime(t *testing.T) {
	ctx := dbtest.Context(t)
	db, err := sqlite.Open(filepath.Join(t.TempDir(), "usage.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	s, err := open(ctx, db, Config{})
	if err != nil {
		t.Fatal(err)
	}
	payload := counter.Batch{Opened: time.Now().UnixMilli(), Counts: []counter.Count{{Name: "feature.a.used", N: 1}}}.Encode()
	for seq := range 2 {
		db.MustExec(`INSERT INTO usage_writers VALUES ('w', 0, x'', 0) ON CONFLICT DO NOTHING`)
		db.MustExec(`INSERT INTO usage_inbox VALUES ('w', ?, 1, ?)`, seq+1, payload)
	}
	s.folding.limit = 200 * time.Millisecond
	s.db.Edit = func(q string) string {
		if strings.Contains(q, "usage_history AS h") {
			time.Sleep(500 * time.Millisecond) // a slow server
		}
		return q
	}
	for range 20 {
		f, err := s.fold(ctx, true)
		if err == nil && f.batches == 1 && !f.more {
			break
		}
		if err != nil && !errors.Is(err, ErrUnavailable) {
			t.Fatal(err)
		}
	}
	if n, err := s.Get(ctx, "feature.a.used"); n != 2 || err != nil {
		t.Errorf("%d of 2 counts folded, %v", n, err)
	}
	if s.folding.limit != 0 || s.folding.size != 2*len(payload) && s.folding.size > 4*len(payload) {
		t.Errorf("afterwards: %+v", s.folding)
	}
}

// An attempt that the server never answers is abandoned; two of them at most
// make room for another, and what they held comes back with them.
func TestLaneOfAbandonedAttempts(t *testing.T) {
	ctx := dbtest.Context(t)
	db, err := sqlite.Open(filepath.Join(t.TempDir(), "usage.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	s, err := New(ctx, db, Config{Interval: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Shutdown(ctx)
	hang, ended := make(chan struct{}), make(chan struct{}, 5)
	var hanging atomic.Int32
	for range 5 {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond) // with the wait for the lane
		defer cancel()
		err := s.db.Read(ctx, 20*time.Millisecond, func(context.Context, *database.Tx) error {
			hanging.Add(1)
			<-hang
			ended <- struct{}{}
			return nil
		})
		if !errors.Is(err, ErrUnavailable) {
			t.Errorf("attempt: %v, want ErrUnavailable", err)
		}
	}
	if open := db.Stats().InUse; open > 3 {
		t.Errorf("%d connections hang, want 3 at most", open)
	}
	close(hang)
	for range hanging.Load() {
		<-ended
	}
	for range 3 {
		if _, err := s.Get(ctx, "a.b"); err != nil {
			t.Errorf("after they returned: %v", err)
		}
	}
}

// A driver that panics leaves locks of database/sql taken, which costs a
// connection. It must not cost the lane.
func TestLaneOfADriverThatPanics(t *testing.T) {
	ctx := dbtest.Context(t)
	for _, kind := range []dbtest.Kind{dbtest.Connect, dbtest.Begin, dbtest.Query, dbtest.Commit} {
		faults := &dbtest.Faults{}
		pool, err := faults.Open("sqlite", "file:"+filepath.Join(t.TempDir(), "usage.db")+"?_pragma=journal_mode(WAL)")
		if err != nil {
			t.Fatal(err)
		}
		defer pool.Close()
		s, err := open(ctx, sqlx.NewDb(pool, "sqlite3"), Config{})
		if err != nil {
			t.Fatal(err)
		}
		pool.SetMaxIdleConns(0) // each attempt connects
		faults.Set(func(op dbtest.Op) dbtest.Fault {
			if op.Kind == kind {
				panic("the driver's mistake")
			}
			return dbtest.Fault{}
		})
		for range 4 { // more than may be abandoned
			if _, err := s.Get(ctx, "a.b"); err == nil || !strings.Contains(err.Error(), "the driver's mistake") {
				t.Errorf("Get, %s panics: %v", kind, err)
			}
		}
		faults.Set(nil)
		if _, err := s.Get(ctx, "a.b"); err != nil {
			t.Errorf("Get, after %s panicked: %v", kind, err)
		}
		if err := s.Shutdown(ctx); err != nil {
			t.Error(err)
		}
	}
}

// Whoever asks for much keeps the connection of reads for seconds. Flushes, folds and
// what they look at do not wait for it: counts are as fresh as without.
func TestALongReadDelaysNoFold(t *testing.T) {
	ctx := dbtest.Context(t)
	db, err := sqlite.Open(filepath.Join(t.TempDir(), "usage.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	told := make(chan Crossing, 3)
	s, err := New(ctx, db, Config{
		Interval:   time.Hour,
		Thresholds: []Threshold{{Prefix: "feature.", Value: 1}, {Prefix: "feature.", Value: 2}, {Prefix: "feature.", Value: 3}},
		Notify:     map[string]func(context.Context, Crossing) error{"test": func(_ context.Context, c Crossing) error { told <- c; return nil }},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Shutdown(ctx)
	defer held(t, s.db.Read)() // as such a read does, for as long as the test takes
	for range 3 {
		s.Inc("feature.a.used")
		if err := s.Flush(ctx); err != nil {
			t.Fatal(err)
		}
		for name, look := range map[string]func(context.Context) error{
			"look": func(ctx context.Context) error { _, err := s.look(ctx); return err },
			"tell": func(context.Context) error { <-told; return nil },
		} {
			ended := make(chan error, 1)
			go func() { ended <- look(ctx) }()
			select {
			case err := <-ended:
				if err != nil {
					t.Errorf("%s: %v", name, err)
				}
			case <-ctx.Done():
				t.Fatalf("%s waits for the read", name)
			}
		}
	}
}
