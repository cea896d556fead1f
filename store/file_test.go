package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/usagekit/usagekit/internal/dbtest"
	"github.com/usagekit/usagekit/internal/fold"
	"github.com/usagekit/usagekit/store/sqlite"
)

// logged is what a store said.
type logged struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logged) has(text string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.buf.String(), text)
}

// underfoot is a store on a SQLite file that something is done to.
type underfoot struct {
	*testing.T
	path string
	db   *sqlx.DB
	s    *Store
	logs logged
}

const underName = "feature.a.used"

func (u *underfoot) count(n int) {
	for range n {
		u.s.Inc(underName)
	}
}

func (u *underfoot) flush() {
	u.Helper()
	if err := u.s.Flush(dbtest.Context(u.T)); err != nil {
		u.Fatal(err)
	}
}

func (u *underfoot) must(errs ...error) {
	u.Helper()
	if err := errors.Join(errs...); err != nil {
		u.Fatal(err)
	}
}

// eventually waits for a condition.
func (u *underfoot) eventually(what string, is func() bool) {
	u.Helper()
	for deadline := time.Now().Add(20 * time.Second); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			u.Fatalf("never: %s; Stats.Err is %v", what, u.s.Stats().Err)
		}
	}
}

// copyTo makes a whole copy of the file as it is.
func (u *underfoot) copyTo(path string) {
	u.Helper()
	_, err := u.db.Exec(`VACUUM INTO ?`, path)
	u.must(err)
}

// noticed waits until the store says that its file is not what it was, and sees that
// nothing that needs it works, and says why.
func (u *underfoot) noticed(what string) {
	u.Helper()
	u.eventually("the file is named in Stats.Err, and what is wrong with it: "+what, func() bool {
		var told interface{ Reason() string }
		err := u.s.Stats().Err
		return errors.As(err, &told) && strings.Contains(told.Reason(), u.path) && strings.Contains(told.Reason(), what) && errors.Is(err, ErrUnavailable)
	})
	ctx, cancel := context.WithTimeout(u.Context(), time.Second)
	defer cancel()
	u.s.Inc(underName)
	_, added := u.s.AddNow(ctx, underName, 1)
	_, got := u.s.Get(ctx, underName)
	_, _, _, taken := u.s.Take(ctx, "quota.1.daily", 1, 10, Day)
	for what, err := range map[string]error{"AddNow": added, "Get": got, "Take": taken, "Flush": u.s.Flush(ctx)} {
		if err == nil || !strings.Contains(err.Error(), u.path) {
			u.Errorf("%s: %v", what, err)
		}
	}
	for what, err := range map[string]error{"AddNow": added, "Get": got, "Take": taken} {
		if !errors.Is(err, ErrUnavailable) {
			u.Errorf("%s: %v, want ErrUnavailable", what, err)
		}
	}
}

// flushed brings all into the file that is there now. What the one before had is gone
// with it, which a Flush that waits for it says.
func (u *underfoot) flushed(gap bool) {
	u.Helper()
	for {
		err := u.s.Flush(dbtest.Context(u.T))
		if err == nil {
			return
		}
		if !gap || !errors.Is(err, fold.ErrGone) {
			u.Fatal(err)
		}
	}
}

// works waits until the store is well again, and compares what the file has that the
// path names.
func (u *underfoot) works(want int64) {
	u.Helper()
	u.eventually("the store is well", func() bool { return u.s.Stats().Err == nil })
	u.flush()
	if n, err := u.s.Get(dbtest.Context(u.T), underName); err != nil || n != want {
		u.Errorf("Get: %d, %v, want %d", n, err, want)
	}
	u.must(u.s.Shutdown(dbtest.Context(u.T)), u.db.Close())
	db, err := sqlite.Open(u.path)
	u.must(err)
	defer db.Close()
	var n int64
	var check string
	u.must(db.Get(&n, `SELECT COALESCE(SUM(value), 0) FROM usage_metrics WHERE key = ?`, underName), db.Get(&check, `PRAGMA integrity_check`))
	if n != want || check != "ok" {
		u.Errorf("the file has %d counts, want %d; integrity_check: %s", n, want, check)
	}
}

// A SQLite file that is taken away under the process, or is not what it was: that is
// noticed, and said, nothing is answered as stored that the path's file does not have,
// and all goes on when it is there again.
func TestSQLiteFileUnderTheProcess(t *testing.T) {
	for name, c := range map[string]struct {
		fault, heal func(u *underfoot, aside string)
		what        string // is wrong with it
		lost        int64  // of 100 that were stored before: what the file that is there then does not have
		quiet       bool   // it heals by itself
		gap         bool
	}{
		"moved away and back": {
			what:  "moved or deleted",
			fault: func(u *underfoot, aside string) { u.must(os.Rename(u.path, aside)) },
			heal:  func(u *underfoot, aside string) { u.must(os.Rename(aside, u.path)) },
		},
		"another one, then the right one": {
			what: "another database",
			fault: func(u *underfoot, aside string) {
				other, err := sqlite.Open(aside + ".other")
				u.must(err)
				s, err := New(u.Context(), other, Config{})
				u.must(err)
				u.must(s.Shutdown(u.Context()), other.Close(), os.Rename(u.path, aside), os.Rename(aside+".other", u.path))
			},
			heal: func(u *underfoot, aside string) { u.must(os.Rename(aside, u.path)) },
		},
		"somebody else's": {
			what: "no database",
			fault: func(u *underfoot, aside string) {
				u.must(os.Rename(u.path, aside), os.WriteFile(u.path, []byte("not a database, and long enough to be seen as none by whoever reads its head, which is of a hundred bytes"), 0o600))
			},
			heal: func(u *underfoot, aside string) { u.must(os.Rename(aside, u.path)) },
		},
		"an empty one": {
			what: "an empty one",
			fault: func(u *underfoot, aside string) {
				u.must(os.Rename(u.path, aside), os.WriteFile(u.path, nil, 0o600))
			},
			heal: func(u *underfoot, aside string) {
				if info, err := os.Stat(u.path); err != nil || info.Size() > 0 { // somebody may be writing it
					u.Errorf("the empty file is %v, %v", info, err)
				}
				u.must(os.Rename(aside, u.path))
			},
		},
		"an older copy": {
			fault: func(u *underfoot, aside string) { u.must(os.Rename(aside+".copy", u.path)) },
			quiet: true, lost: 40, gap: true,
		},
		"deleted, and an older copy": {
			what:  "moved or deleted",
			fault: func(u *underfoot, _ string) { u.must(os.Remove(u.path)) },
			heal: func(u *underfoot, aside string) {
				_ = os.Remove(u.path + "-wal")
				_ = os.Remove(u.path + "-shm")
				u.must(os.Rename(aside+".copy", u.path))
			},
			lost: 40, gap: true,
		},
		"all three deleted, and an older copy": {
			what: "moved or deleted",
			fault: func(u *underfoot, _ string) {
				u.must(os.Remove(u.path), os.Remove(u.path+"-wal"), os.Remove(u.path+"-shm"))
			},
			heal: func(u *underfoot, aside string) { u.must(os.Rename(aside+".copy", u.path)) },
			lost: 40, gap: true,
		},
		"its -wal deleted":          {fault: func(u *underfoot, _ string) { u.must(os.Remove(u.path + "-wal")) }, quiet: true},
		"its -shm deleted":          {fault: func(u *underfoot, _ string) { u.must(os.Remove(u.path + "-shm")) }, quiet: true},
		"its -wal and -shm deleted": {fault: func(u *underfoot, _ string) { u.must(os.Remove(u.path+"-wal"), os.Remove(u.path+"-shm")) }, quiet: true},
	} {
		for _, spool := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/spool=%v", name, spool), func(t *testing.T) {
				t.Parallel()
				dir := t.TempDir()
				u := &underfoot{T: t, path: filepath.Join(dir, "usage.db")}
				aside := filepath.Join(dir, "aside.db")
				cfg := Config{Interval: 20 * time.Millisecond, Logger: slog.New(slog.NewTextHandler(&u.logs, nil))}
				if spool {
					cfg.Spool = filepath.Join(dir, "spool")
				}
				var err error
				u.db, err = sqlite.Open(u.path)
				u.must(err)
				u.s, err = New(t.Context(), u.db, cfg)
				u.must(err)
				u.count(60)
				u.flush()
				u.copyTo(aside + ".copy")
				for range 40 { // batches, of which the copy knows nothing
					u.count(1)
					u.flush()
				}
				c.fault(u, aside)
				u.count(5)
				want := 105 - c.lost
				if !c.quiet {
					u.noticed(c.what)
					want++
					u.count(5)
					want += 5
					c.heal(u, aside)
				}
				u.flushed(c.gap)
				u.works(want)
				if c.gap && !u.logs.has("batches are missing") {
					t.Error("nobody says that batches are missing")
				}
			})
		}
	}
}

// What SQLite says of its file names the file: the caller, and whoever looks at the
// health of the store, learn which one it is about.
func TestErrorsOfASQLiteFileNameIt(t *testing.T) {
	for what, pragma := range map[string]string{"cannot be written to": `PRAGMA query_only = 1`, "has no room": `PRAGMA max_page_count = 1`} {
		path := filepath.Join(t.TempDir(), "usage.db")
		db, err := sqlite.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		db.SetMaxOpenConns(1) // which the next statement is of
		s, err := open(t.Context(), db, Config{})
		if err != nil {
			t.Fatal(err)
		}
		defer s.life.cancel()
		db.MustExec(pragma)
		name := strings.Repeat("x", 400)
		for i := range 100 { // until a page more is needed
			if _, err = s.AddNow(t.Context(), fmt.Sprintf("feature.%d%s.used", i, name), 1); err != nil {
				break
			}
		}
		var told interface{ Reason() string }
		if !errors.As(err, &told) || !strings.Contains(told.Reason(), path) || !strings.Contains(told.Reason(), what) || !errors.Is(err, ErrUnavailable) {
			t.Errorf("%s: %v", pragma, err)
		}
		if _, err := s.AddNow(t.Context(), "feature.a.used", 1); err != nil { // on another connection
			t.Errorf("afterwards: %v", err)
		}
	}
}

// Pools of the application's own: of one connection, without a -wal, and without a file.
func TestSQLiteFileOfOtherPools(t *testing.T) {
	for name, dsn := range map[string]string{"without a -wal": "file:%s?_pragma=busy_timeout(5000)&_txlock=immediate", "without a file": ":memory:"} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "usage.db")
			file := strings.Contains(dsn, "%s")
			db, err := sqlx.Open("sqlite", strings.ReplaceAll(dsn, "%s", path))
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			db.SetMaxOpenConns(1)
			s, err := New(t.Context(), db, Config{Interval: 20 * time.Millisecond})
			if err != nil {
				t.Fatal(err)
			}
			u := &underfoot{T: t, path: path, db: db, s: s}
			u.count(5)
			u.flush()
			if !file {
				u.must(s.Shutdown(dbtest.Context(t)))
				return
			}
			u.must(os.Rename(path, path+".aside"))
			u.count(5)
			u.noticed("moved or deleted")
			u.must(os.Rename(path+".aside", path))
			u.works(11)
		})
	}
}
