package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/usagekit/usagekit/internal/counter"
	"github.com/usagekit/usagekit/internal/dbtest"
)

// idleService is instances on one SQLite file, in virtual time, and all that they ask.
type idleService struct {
	t      *testing.T
	path   string
	db     *sqlx.DB // beside them
	faults *dbtest.Faults
	asked  atomic.Int64 // operations, connecting among them
	slow   atomic.Int64 // how long the next one takes
	logs   syncBuffer
}

type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// idle runs f in virtual time.
func idle(t *testing.T, f func(t *testing.T, v *idleService)) {
	path := filepath.Join(t.TempDir(), "usage.db")
	synctest.Test(t, func(t *testing.T) {
		v := &idleService{t: t, path: path, faults: &dbtest.Faults{}}
		v.faults.Set(func(dbtest.Op) dbtest.Fault {
			v.asked.Add(1)
			time.Sleep(time.Duration(v.slow.Swap(0)))
			return dbtest.Fault{}
		})
		v.db = v.pool(&dbtest.Faults{})
		f(t, v)
	})
}

func (v *idleService) pool(faults *dbtest.Faults) *sqlx.DB {
	v.t.Helper()
	db, err := faults.Open("sqlite", "file:"+v.path+"?_pragma=busy_timeout(5000)&_pragma=journal_mode(WAL)&_txlock=immediate")
	if err != nil {
		v.t.Fatal(err)
	}
	v.t.Cleanup(func() { _ = db.Close() })
	return sqlx.NewDb(db, "sqlite3")
}

// instance starts one, which is shut down in the end.
func (v *idleService) instance(cfg Config) *Store {
	v.t.Helper()
	cfg.Logger = slog.New(slog.NewTextHandler(&v.logs, nil))
	s, err := New(v.t.Context(), v.pool(v.faults), cfg)
	if err != nil {
		v.t.Fatal(err)
	}
	v.t.Cleanup(func() {
		if err := s.Shutdown(context.Background()); err != nil {
			v.t.Error(err)
		}
	})
	return s
}

// silence fails when anything is asked, from two minutes after the last count on.
func (v *idleService) silence(after string) {
	v.t.Helper()
	time.Sleep(2*time.Minute + time.Second) // what comes at two minutes is within them
	before := v.asked.Load()
	time.Sleep(3 * time.Hour)
	if n := v.asked.Load() - before; n > 0 {
		v.t.Errorf("%s: %d operations in three hours, from two minutes on", after, n)
	}
}

// folded is what a counter has in the tables.
func (v *idleService) folded(name string) (n int64) {
	v.t.Helper()
	if err := v.db.Get(&n, `SELECT COALESCE((SELECT value FROM usage_metrics WHERE key = ?), 0)`, name); err != nil {
		v.t.Fatal(err)
	}
	return n
}

// left puts a batch in the inbox, as an instance does that is killed then.
func (v *idleService) left(name string, payload []byte) {
	v.t.Helper()
	if payload == nil {
		payload = counter.Batch{Opened: time.Now().UnixMilli(), Counts: []counter.Count{{Name: name, N: 1}}}.Encode()
	}
	v.db.MustExec(`INSERT INTO usage_writers (writer, seq, sum, seen) VALUES (?, 0, ?, ?)`, name, []byte{}, time.Now().UnixMilli())
	v.db.MustExec(`INSERT INTO usage_inbox (writer, seq, opened, payload) VALUES (?, 1, ?, ?)`, name, time.Now().UnixMilli(), payload)
}

// Two minutes after the last count anywhere nothing is asked of the database; the
// next count, in whatever instance, is folded within an Interval and a moment.
func TestAnIdleServiceAsksNothing(t *testing.T) {
	idle(t, func(t *testing.T, v *idleService) {
		notify := map[string]func(context.Context, Crossing) error{"a": func(context.Context, Crossing) error { return nil }, "b": func(context.Context, Crossing) error { return nil }}
		a := v.instance(Config{Notify: notify, Thresholds: []Threshold{{Prefix: "feature.", Value: 2}}})
		b := v.instance(Config{Notify: notify})
		v.silence("a start")
		for i, s := range []*Store{a, b, b, a} {
			s.Inc("feature.a.used")
			time.Sleep(1100 * time.Millisecond) // an Interval, and the fold
			if got, want := v.folded("feature.a.used"), int64(i+1); got != want {
				t.Errorf("%d are folded after an Interval, want %d", got, want)
			}
			v.silence("a count")
		}
		for range 600 { // counts once a second are not the end of it
			a.Inc("feature.b.used")
			time.Sleep(time.Second)
		}
		v.silence("ten minutes of counts")
		if got := v.folded("feature.b.used"); got != 600 {
			t.Errorf("%d were folded of 600", got)
		}
	})
}

// What an instance left in the inbox that was killed there is folded by the others if
// they are awake, and else when somebody counts, looks or starts.
func TestABatchLeftBehindIsFolded(t *testing.T) {
	idle(t, func(t *testing.T, v *idleService) {
		a := v.instance(Config{})
		a.Inc("feature.a.used")
		time.Sleep(30 * time.Second)
		v.left("feature.awake.used", nil)
		time.Sleep(2 * time.Minute)
		if v.folded("feature.awake.used") != 1 {
			t.Error("it was not folded by one that had counted a moment before")
		}
		v.silence("a batch that was left")
		v.left("feature.next.used", nil)
		a.Inc("feature.a.used")
		time.Sleep(1100 * time.Millisecond)
		if v.folded("feature.next.used") != 1 {
			t.Error("it was not folded with the next flush")
		}
		v.silence("a flush")
		v.left("feature.read.used", nil)
		if n, err := a.Get(t.Context(), "feature.a.used"); n != 2 || err != nil {
			t.Errorf("Get: %d, %v", n, err)
		}
		time.Sleep(time.Second)
		if v.folded("feature.read.used") != 1 {
			t.Error("it was not folded when somebody looked")
		}
		v.silence("a look")
		v.left("feature.start.used", nil)
		v.instance(Config{})
		time.Sleep(time.Second)
		if v.folded("feature.start.used") != 1 {
			t.Error("it was not folded by a start")
		}
		v.silence("a second instance")
	})
}

// An instance whose Config.Location is not the database's zone is no exception: while all
// others sleep, and when there are none, what it counts is in the tables after an
// Interval, in buckets of the database's; then there is silence.
func TestCountsOfAnotherZoneWhileOthersSleep(t *testing.T) {
	idle(t, func(t *testing.T, v *idleService) {
		a := v.instance(Config{})
		a.Inc("feature.a.used")
		v.silence("a count")
		zone, err := time.LoadLocation("Asia/Kathmandu")
		if err != nil {
			t.Fatal(err)
		}
		b := v.instance(Config{StartOffline: true, Location: zone})
		time.Sleep(time.Second)
		for i := range int64(4) {
			if i == 2 { // and it is alone from then on
				if err := a.Shutdown(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			b.Inc("feature.b.used")
			time.Sleep(2100 * time.Millisecond)
			if got := v.folded("feature.b.used"); got != i+1 {
				t.Errorf("%d are folded after an Interval, want %d", got, i+1)
			}
			if err := b.Stats().Err; err == nil || !strings.Contains(err.Error(), "Config.Location") {
				t.Errorf("Stats.Err: %v", err)
			}
			v.silence("a count of another zone")
		}
		var odd int
		if err := v.db.Get(&odd, `SELECT COUNT(*) FROM usage_history WHERE step = 1 AND bucket % 3600 <> 0`); err != nil || odd > 0 {
			t.Errorf("%d hours begin as that zone's do, %v", odd, err)
		}
		if n := strings.Count(v.logs.String(), "Config.Location is"); n != 1 {
			t.Errorf("the log says so %d times", n)
		}
	})
}

// A batch that only a later release can read is no reason to ask for ever.
func TestABatchOfALaterReleaseKeepsNobodyAwake(t *testing.T) {
	idle(t, func(t *testing.T, v *idleService) {
		a := v.instance(Config{})
		payload := counter.Batch{Opened: time.Now().UnixMilli(), Counts: []counter.Count{{Name: "feature.a.used", N: 1}}}.Encode()
		payload = append([]byte{99}, payload[1:len(payload)-counter.SumSize]...)
		sum := sha256.Sum256(payload)
		v.left("w", append(payload, sum[:counter.SumSize]...))
		a.Inc("feature.b.used")
		v.silence("a batch of a later release")
		if v.folded("feature.b.used") != 1 {
			t.Error("what could be read was not folded")
		}
		a.Inc("feature.b.used")
		time.Sleep(2 * time.Minute)
		if v.folded("feature.b.used") != 2 {
			t.Error("the next count was not folded")
		}
		var waits int
		if err := v.db.Get(&waits, `SELECT COUNT(*) FROM usage_inbox WHERE writer = 'w'`); err != nil || waits != 1 {
			t.Errorf("%d batches wait for the later release, %v", waits, err)
		}
	})
}

// Word of a crossing is sent again until it arrives, though nobody counts; then there
// is silence.
func TestWordIsSentAlthoughNobodyCounts(t *testing.T) {
	idle(t, func(t *testing.T, v *idleService) {
		var tries atomic.Int64
		a := v.instance(Config{Thresholds: []Threshold{{Prefix: "feature.", Value: 1}}, Notify: map[string]func(context.Context, Crossing) error{"mail": func(context.Context, Crossing) error {
			if tries.Add(1) < 8 { // four minutes
				return errors.New("not now")
			}
			return nil
		}}})
		a.Inc("feature.a.used")
		time.Sleep(20 * time.Minute)
		if n := tries.Load(); n != 8 {
			t.Errorf("it was sent %d times, want 8", n)
		}
		v.silence("word was sent")
	})
}

// An instance that counts now and then removes what is too old, then, and at most as
// often as one that counts always.
func TestAnIdleServiceForgets(t *testing.T) {
	idle(t, func(t *testing.T, v *idleService) {
		a := v.instance(Config{})
		old := time.Now().AddDate(0, 0, -60).Unix()
		old -= old % 3600
		v.db.MustExec(`INSERT INTO usage_history (step, bucket, key, value) VALUES (1, ?, 'feature.a.used', 1)`, old)
		rows := func() (n int) {
			if err := v.db.Get(&n, `SELECT COUNT(*) FROM usage_history WHERE bucket = ?`, old); err != nil {
				t.Fatal(err)
			}
			return n
		}
		for day := 0; rows() > 0; day++ {
			if day > 40 {
				t.Fatal("it is there after 40 days of a count each")
			}
			a.Inc("feature.a.used")
			v.silence(fmt.Sprintf("the count of day %d", day))
			time.Sleep(23 * time.Hour)
		}
	})
}

// A database that takes seconds to wake is not called dead, and loses nothing.
func TestADatabaseThatWakesSlowly(t *testing.T) {
	idle(t, func(t *testing.T, v *idleService) {
		a := v.instance(Config{})
		v.silence("a start")
		for i, wakes := range []time.Duration{3 * time.Second, 12 * time.Second, 40 * time.Second} {
			v.slow.Store(int64(wakes))
			a.Inc("feature.a.used")
			for range 45 {
				time.Sleep(time.Second)
				if err := a.Stats().Err; err != nil {
					t.Fatalf("while it wakes for %v: %v", wakes, err)
				}
			}
			if got := v.folded("feature.a.used"); got != int64(i+1) {
				t.Errorf("%d are folded, want %d", got, i+1)
			}
			v.silence("it woke")
		}
		if log := v.logs.String(); strings.Contains(log, "do not reach") {
			t.Errorf("the log says\n%s", log)
		}
	})
}

// Two instances on a real server, which lets sessions that wait go: no statement, and
// no connection, until somebody counts; then that is folded, by whoever it was.
func TestIdleInstancesOnPostgreSQL(t *testing.T) {
	if Server == nil {
		t.Log("PostgreSQL was not tried: make test does")
		return
	}
	dsn := Server.NewDatabase(t)
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int64
		faults := &dbtest.Faults{}
		faults.Set(func(dbtest.Op) dbtest.Fault { asked.Add(1); return dbtest.Fault{} })
		var all []*Store
		var pools []*sqlx.DB
		for range 2 {
			pool, err := faults.Open("postgres", dsn)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = pool.Close() })
			pool.SetConnMaxIdleTime(time.Minute)
			db := sqlx.NewDb(pool, "postgres")
			s := inBubble(t, db, Config{Logger: slog.New(slog.DiscardHandler), Thresholds: []Threshold{{Prefix: "feature.", Value: 2}}})
			s.begin()
			t.Cleanup(func() {
				if err := s.Shutdown(context.Background()); err != nil {
					t.Error(err)
				}
			})
			all, pools = append(all, s), append(pools, db)
		}
		for i := range int64(6) {
			all[i%2].Inc("feature.a.used")
			time.Sleep(1100 * time.Millisecond) // an Interval, and the fold
			if n, err := all[1-i%2].Get(t.Context(), "feature.a.used"); n != i+1 || err != nil {
				t.Errorf("the other one has %d of %d counts, %v", n, i+1, err)
			}
			time.Sleep(2*time.Minute + time.Second)
			before := asked.Load()
			time.Sleep(3 * time.Hour)
			if n, open := asked.Load()-before, pools[0].Stats().OpenConnections+pools[1].Stats().OpenConnections; n > 0 || open > 0 {
				t.Errorf("%d operations, and %d connections, of two that are asleep", n, open)
			}
		}
	})
}
