package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/usagekit/usagekit/internal/counter"
	"github.com/usagekit/usagekit/internal/database"
	"github.com/usagekit/usagekit/store/sqlite"
)

// replaced is a store, not started, of 11 counts in a file, and an older copy of that,
// of 1, which is not there yet: over has it take its place.
func replaced(t *testing.T, db func(path string) *sqlx.DB) (u *underfoot, over func()) {
	t.Helper()
	dir := t.TempDir()
	u = &underfoot{T: t, path: filepath.Join(dir, "usage.db")}
	u.db = db(u.path)
	var err error
	u.s, err = open(t.Context(), u.db, Config{})
	u.must(err)
	t.Cleanup(func() { u.s.life.cancel(); u.db.Close() })
	u.add(1, 1)
	u.copyTo(filepath.Join(dir, "copy.db"))
	u.add(10, 11)
	return u, func() {
		t.Helper()
		u.must(os.Rename(u.path, filepath.Join(dir, "aside.db")), os.Rename(filepath.Join(dir, "copy.db"), u.path))
	}
}

func (u *underfoot) add(n, want int64) {
	u.Helper()
	if got, err := u.s.AddNow(u.Context(), underName, n); err != nil || got != want {
		u.Errorf("AddNow: %d, %v, want %d", got, err, want)
	}
}

func (u *underfoot) refused(why string) {
	u.Helper()
	if _, err := u.s.AddNow(u.Context(), underName, 1000); err == nil || !strings.Contains(err.Error(), why) || !errors.Is(err, ErrUnavailable) {
		u.Errorf("AddNow: %v, want that it %s", err, why)
	}
}

// discard closes a connection for good.
func discard(conn *sqlx.Conn) {
	_ = conn.Raw(func(any) error { return driver.ErrBadConn })
	_ = conn.Close() // which the pool has done already
}

func sqliteOf(t *testing.T) func(path string) *sqlx.DB {
	return func(path string) *sqlx.DB {
		t.Helper()
		db, err := sqlite.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		return db
	}
}

// A file that is replaced while a transaction goes on does not have what that did, and
// nobody is told that it has; the one before does, and what stands in its place is used
// next.
func TestSQLiteFileReplacedWithinATransaction(t *testing.T) {
	for what, write := range map[string]bool{"a write": true, "a read": false} {
		t.Run(what, func(t *testing.T) {
			u, over := replaced(t, sqliteOf(t))
			u.db.SetMaxOpenConns(1) // which nobody else brings to its end
			attempt := u.s.db.Glance
			if write {
				attempt = func(ctx context.Context, f func(context.Context, *database.Tx) error) error {
					return u.s.db.Write(ctx, database.WriteTimeout, f)
				}
			}
			err := attempt(t.Context(), func(ctx context.Context, tx *database.Tx) (err error) {
				if write {
					_, err = tx.Exec(ctx, `UPDATE usage_metrics SET value = 111 WHERE key = ?`, underName)
				}
				over()
				return err
			})
			if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), u.path) {
				t.Errorf("of a file that is gone: %v", err)
			}
			asked := false
			u.s.db.Edit = func(q string) string {
				asked = asked || strings.Contains(q, "usage_meta") && strings.Contains(q, "'subjects'")
				return q
			}
			u.add(2, 3)
			if u.s.db.Edit = nil; !asked {
				t.Error("subjects of the file before are taken for known")
			}
			aside := sqliteOf(t)(filepath.Join(filepath.Dir(u.path), "aside.db"))
			defer aside.Close()
			var n int64
			u.must(aside.Get(&n, `SELECT value FROM usage_metrics WHERE key = ?`, underName))
			if want := map[bool]int64{true: 111, false: 11}[write]; n != want {
				t.Errorf("the file before has %d, want %d", n, want)
			}
		})
	}
}

// Who shares the pool may have opened what stood in the file's place for a while: that
// connection is closed, and gets no counts, when the right file is there again.
func TestConnectionsToAFormerFileAreClosed(t *testing.T) {
	for _, last := range []string{"the right file", "another"} { // is what the connection has that waited least
		t.Run(last, func(t *testing.T) { connectionsToAFormerFile(t, last == "another") })
	}
}

func connectionsToAFormerFile(t *testing.T, anotherLast bool) {
	dir := t.TempDir()
	path, aside, other := filepath.Join(dir, "usage.db"), filepath.Join(dir, "aside.db"), filepath.Join(dir, "other.db")
	u := &underfoot{T: t, path: path}
	var s *Store
	for _, at := range []string{other, path} {
		if u.db != nil {
			s.life.cancel()
			u.must(u.db.Close())
		}
		var err error
		u.db, err = sqlite.Open(at)
		u.must(err)
		s, err = open(t.Context(), u.db, Config{})
		u.must(err)
	}
	defer u.db.Close()
	defer s.life.cancel()
	u.db.SetMaxOpenConns(2)
	_, err := s.AddNow(t.Context(), underName, 1)
	u.must(err)
	first, err := u.db.Connx(t.Context())
	u.must(err)
	move := func(from, to string) { // with all that is its own
		for _, suffix := range []string{"-wal", "-shm", ""} {
			if err := os.Rename(from+suffix, to+suffix); !errors.Is(err, os.ErrNotExist) {
				u.must(err)
			}
		}
	}
	move(path, aside)
	move(other, path)
	for u.db.Stats().Idle > 0 {
		conn, err := u.db.Connx(t.Context())
		u.must(err)
		discard(conn)
	}
	second, err := u.db.Connx(t.Context())
	u.must(err)
	if _, err := s.AddNow(t.Context(), underName, 10); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("AddNow, while another file is there: %v", err)
	}
	if anotherLast {
		first, second = second, first
	}
	u.must(second.Close(), first.Close())
	move(path, other)
	move(aside, path)
	if n, err := s.AddNow(t.Context(), underName, 100); n != 101 || err != nil {
		t.Errorf("AddNow, when it is there again: %d, %v, want 101", n, err)
	}
}

// SQLite shares what it knows of a file in a process: while any pool of it has the one
// before open, the one in its place is not opened.
func TestSQLiteFileIsNotOpenedBesideTheOneBefore(t *testing.T) {
	u, over := replaced(t, sqliteOf(t))
	other := sqliteOf(t)(u.path)
	defer other.Close()
	u.must(other.Ping())
	over()
	for range 3 {
		u.refused("are in use")
	}
	u.must(other.Close())
	u.add(2, 3)
}

// A -wal that has counts of the file before would spoil the one in its place: that one is
// not opened until somebody has taken it away.
func TestSQLiteFileBesideTheWALOfTheOneBefore(t *testing.T) {
	u, over := replaced(t, sqliteOf(t))
	u.db.SetMaxOpenConns(1)
	held, err := u.db.Connx(t.Context())
	u.must(err)
	over()
	u.refused("are in use")
	discard(held) // which leaves the -wal as it is
	u.refused("remove it")
	u.must(os.Remove(u.path+"-wal"), os.Remove(u.path+"-shm"))
	u.add(2, 3)
}

// A file of another journal mode has no -wal, and has lost none.
func TestSQLiteFileInPlaceOfOneWithAWAL(t *testing.T) {
	u, over := replaced(t, func(path string) *sqlx.DB {
		db := sqlx.MustOpen("sqlite", "file:"+path+"?_pragma=busy_timeout(5000)&_txlock=immediate")
		db.MustExec(`PRAGMA journal_mode = WAL`) // which the file keeps, and its copy does not
		return db
	})
	over()
	u.must(os.Remove(u.path+"-wal"), os.Remove(u.path+"-shm")) // else counts wait: an empty one may be in somebody's use
	u.add(2, 3)
	u.add(4, 7)
}

// opening is a driver's connector, which has something happen before a connection is
// opened, and once it is.
type opening struct {
	driver      driver.Driver
	dsn         string
	first, then *func()
}

func (o opening) Driver() driver.Driver { return o.driver }

func (o opening) Connect(context.Context) (driver.Conn, error) {
	once := func(f *func()) {
		if do := *f; do != nil {
			*f = nil
			do()
		}
	}
	once(o.first)
	conn, err := o.driver.Open(o.dsn)
	once(o.then)
	return conn, err
}

// A file that is replaced again while it is opened is not the one that was opened.
func TestSQLiteFileReplacedWhileItIsOpened(t *testing.T) {
	var first, then func()
	u, over := replaced(t, func(path string) *sqlx.DB {
		plain := sqliteOf(t)(path)
		defer plain.Close()
		dsn := "file:" + path + "?_pragma=busy_timeout(5000)&_pragma=journal_mode(WAL)&_txlock=immediate"
		return sqlx.NewDb(sql.OpenDB(opening{plain.Driver(), dsn, &first, &then}), "sqlite")
	})
	again := u.path + ".again"
	u.copyTo(again) // of 11
	over()
	then = func() { u.must(os.Rename(again, u.path)) }
	u.refused("replaced")
	u.add(2, 13)
}

// One at a time opens what stands in the file's place, and decides whether it is used:
// others are told to come again.
func TestSQLiteFileIsOpenedAnewOnce(t *testing.T) {
	var first, then func()
	u, over := replaced(t, func(path string) *sqlx.DB {
		plain := sqliteOf(t)(path)
		defer plain.Close()
		dsn := "file:" + path + "?_pragma=busy_timeout(5000)&_pragma=journal_mode(WAL)&_txlock=immediate"
		return sqlx.NewDb(sql.OpenDB(opening{plain.Driver(), dsn, &first, &then}), "sqlite")
	})
	over()
	first = func() {
		if n, err := u.s.Get(t.Context(), underName); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "is opened anew") {
			t.Errorf("Get, while it is opened: %d, %v", n, err)
		}
	}
	u.add(2, 3)
	if first != nil {
		t.Error("it was not opened")
	}
}

// An empty -wal that this process does not have open is another's, made in place of its
// own: what it commits to that is at no path, and not stored, from the first time on.
func TestSQLiteFileWhoseWALIsAnotherWhenItIsOpened(t *testing.T) {
	var first, then func()
	u, over := replaced(t, func(path string) *sqlx.DB {
		plain := sqliteOf(t)(path)
		defer plain.Close()
		dsn := "file:" + path + "?_pragma=busy_timeout(5000)&_pragma=journal_mode(WAL)&_pragma=table_info(usage_metrics)&_txlock=immediate" // which opens the -wal
		return sqlx.NewDb(sql.OpenDB(opening{plain.Driver(), dsn, &first, &then}), "sqlite")
	})
	over()
	then = func() { u.must(os.Remove(u.path+"-wal"), os.WriteFile(u.path+"-wal", nil, 0o600)) }
	u.refused("has lost its -wal")
	u.add(2, 1003)               // that was brought home: an error of AddNow does not say that nothing was counted
	other := sqliteOf(t)(u.path) // as the next start sees it
	defer other.Close()
	var n int64
	if err := other.GetContext(t.Context(), &n, `SELECT value FROM usage_metrics WHERE key = ?`, underName); err != nil || n != 1003 {
		t.Errorf("the file has %d, %v, want 1003", n, err)
	}
}

// A -wal that somebody else has put there is not ours: what went into the deleted one is
// brought home, by every connection that has it.
func TestSQLiteFileWithAnotherWAL(t *testing.T) {
	u, _ := replaced(t, sqliteOf(t))
	first, err := u.db.Connx(t.Context())
	u.must(err)
	second, err := u.db.Connx(t.Context())
	u.must(err)
	for _, conn := range []*sqlx.Conn{first, second} {
		var n int64
		u.must(conn.GetContext(t.Context(), &n, `SELECT COUNT(*) FROM usage_metrics`), conn.Close())
	}
	u.must(os.Remove(u.path+"-wal"), os.Remove(u.path+"-shm"), os.WriteFile(u.path+"-wal", nil, 0o600))
	u.refused("lost its -wal")
	u.add(2, 1013)
}

// Who neither counts nor reads looks after the file, too: what is in a deleted -wal alone
// is brought home, what is moved away is said, and what waits in a copy is folded.
func TestSQLiteFileIsWatchedWhileNobodyCounts(t *testing.T) {
	for _, what := range []string{"moved away", "its -wal deleted", "replaced by a copy with a batch that waits"} {
		t.Run(what, func(t *testing.T) {
			u := &underfoot{T: t, path: filepath.Join(t.TempDir(), "usage.db")}
			u.db = sqliteOf(t)(u.path)
			defer u.db.Close()
			var err error
			u.s, err = open(t.Context(), u.db, Config{Interval: 20 * time.Millisecond})
			u.must(err)
			u.s.leader = u.s.newLeader(200 * time.Millisecond)
			u.s.begin()
			defer func() {
				ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Second)
				defer cancel()
				_ = u.s.Shutdown(ctx) // which may wait for the file, where it is not there
			}()
			u.count(5)
			u.flush()
			u.eventually("it is folded", func() bool {
				n, err := u.s.Get(t.Context(), underName)
				return n == 5 && err == nil
			})
			copied := u.path + ".copy"
			u.copyTo(copied)
			u.eventually("nothing else looks at the database", u.s.leader.Asleep)
			switch what {
			case "moved away":
				u.must(os.Rename(u.path, u.path+".aside"))
				u.eventually("it is said", func() bool { return u.s.Stats().Err != nil })
				u.must(os.Rename(u.path+".aside", u.path))
				u.eventually("all is well", func() bool { return u.s.Stats().Err == nil })
				return
			case "replaced by a copy with a batch that waits":
				b := counter.Batch{Opened: time.Now().UnixMilli(), Counts: []counter.Count{{Name: "feature.b.used", N: 7}}}
				db := sqliteOf(t)(copied)
				db.MustExec(`INSERT INTO usage_writers (writer, seq, sum, seen) VALUES ('w', 0, x'', 4000000000000)`)
				db.MustExec(`INSERT INTO usage_inbox (writer, seq, opened, payload) VALUES ('w', 1, ?, ?)`, b.Opened, b.Encode())
				u.must(db.Close(), os.Rename(copied, u.path))
				u.eventually("it is folded", func() bool { // not asked by Get, which would see that it waits
					var n int64
					return u.db.Get(&n, `SELECT value FROM usage_metrics WHERE key = 'feature.b.used'`) == nil && n == 7
				})
				return
			}
			u.must(os.Remove(u.path + "-wal"))
			alone := filepath.Join(t.TempDir(), "alone.db")
			u.eventually("the file alone has all", func() bool {
				content, err := os.ReadFile(u.path)
				u.must(err, os.WriteFile(alone, content, 0o600))
				db := sqliteOf(t)(alone)
				defer func() { _, _, _ = db.Close(), os.Remove(alone+"-wal"), os.Remove(alone+"-shm") }()
				var n int64
				return db.Get(&n, `SELECT value FROM usage_metrics WHERE key = ?`, underName) == nil && n == 5
			})
		})
	}
}

// A pool that keeps no connection has no -wal in between: nothing has changed by that.
func TestSQLiteFileOfAPoolThatKeepsNoConnection(t *testing.T) {
	u, _ := replaced(t, sqliteOf(t))
	u.db.SetMaxIdleConns(-1)
	u.add(2, 13)
	if _, err := os.Stat(u.path + "-wal"); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("there is a -wal: %v", err)
	}
	if err := u.s.Stats().Err; err != nil {
		t.Errorf("something is wrong: %v", err)
	}
}
