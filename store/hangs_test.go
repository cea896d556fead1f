package store

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/usagekit/usagekit/internal/counter"
	"github.com/usagekit/usagekit/internal/database"
	"github.com/usagekit/usagekit/internal/dbtest"
	"github.com/usagekit/usagekit/store/sqlite"
)

// Server is the tests' PostgreSQL; nil: there is none. TestMain of the external
// tests, in the same program, starts it.
var Server *dbtest.Server

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
		select {
		case <-told:
		case <-ctx.Done():
			t.Fatal("word of a crossing waits for the read")
		}
	}
}
