package database

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/jmoiron/sqlx"

	sqlitefile "github.com/usagekit/usagekit/store/sqlite"
)

// opened returns a DB on a pool, started.
func opened(t *testing.T, pool *sqlx.DB, err error) *DB {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pool.Close() })
	db, err := Open(pool, Config{
		Log:      slog.New(slog.DiscardHandler),
		Settle:   func(context.Context, *Tx, string) (func(), error) { return func() {}, nil },
		Replaced: func() {},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return db
}

// add writes something.
func (db *DB) add(t *testing.T) {
	t.Helper()
	err := db.Write(t.Context(), WriteTimeout, func(ctx context.Context, tx *Tx) error {
		_, err := tx.Exec(ctx, `INSERT INTO usage_metrics (key, value) VALUES ('a', 1) ON CONFLICT (key) DO UPDATE SET value = usage_metrics.value + 1`)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// What there is to look after is a file that the path names.
func TestWhichFileIsWatched(t *testing.T) {
	for dsn, want := range map[string]bool{"file:" + filepath.Join(t.TempDir(), "usage.db") + "?_txlock=immediate": true, ":memory:": false} {
		pool, err := sqlx.Open("sqlite", dsn)
		if err == nil {
			pool.SetMaxOpenConns(1)
		}
		if watched := opened(t, pool, err).file.Load() != nil; watched != want {
			t.Errorf("%s: a file is watched: %v", dsn, watched)
		}
	}
}

// What was replaced is remembered once, however often it is looked at, and not when all
// is well again.
func TestFormerFilesAreRememberedUntilTheyAreClosed(t *testing.T) {
	dir := t.TempDir()
	path, copied := filepath.Join(dir, "usage.db"), filepath.Join(dir, "copy.db")
	pool, err := sqlitefile.Open(path)
	db := opened(t, pool, err)
	db.add(t)
	if _, err := pool.Exec(`VACUUM INTO ?`, copied); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path, filepath.Join(dir, "aside.db")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(copied, path); err != nil {
		t.Fatal(err)
	}
	f := db.file.Load()
	for range 3 {
		if !f.changed() {
			t.Error("a file that was replaced has not changed")
		}
	}
	if n := len(f.former); n != 2 {
		t.Errorf("%d former files are remembered, want each of 2 once", n)
	}
	db.add(t)
	if sound, err := f.sound(); !sound || err != nil || f.changed() {
		t.Errorf("all is as it was: %v, %v", sound, err)
	}
}

// A pool that keeps no connection has no -wal in between: nothing has changed by that.
func TestAPoolThatKeepsNoConnectionChangesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "usage.db")
	pool, err := sqlitefile.Open(path)
	db := opened(t, pool, err)
	pool.SetMaxIdleConns(-1)
	db.add(t)
	if _, err := os.Stat(path + "-wal"); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("there is a -wal: %v", err)
	}
	if db.file.Load().changed() {
		t.Error("the file has changed")
	}
}

// Where the pool has let all connections go, SQLite removes what it appends, and there
// is nothing of it to look for among what this process has open: an idle service with
// ten thousand sockets would do that each Interval.
func TestASQLiteFileThatNobodyHasOpenIsLookedAtAlone(t *testing.T) {
	pool, err := sqlitefile.Open(filepath.Join(t.TempDir(), "usage.db"))
	db := opened(t, pool, err)
	add := func() { db.add(t) }
	add()
	f := db.file.Load()
	if f == nil || f.beside[0] == nil {
		t.Skip("this system does not tell what a process has open")
	}
	pool.SetMaxIdleConns(0)
	add() // on the last connection
	for range 2 {
		if f.changed() {
			t.Error("the file is not what it was")
		}
		for i, suffix := range besides {
			if f.beside[i] != nil {
				t.Errorf("its %s is gone, and looked for", suffix)
			}
		}
	}
	add()
	if f.changed() || f.check() != nil {
		t.Error("afterwards, the file is not what it was")
	}
}

// SQLite's -wal is gone with its last connection, and the next file that this process
// makes may have its inode: that is no connection to what the file was.
func TestAnInodeThatIsUsedAgainIsAnotherFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "usage.db-wal")
	reused := false
	for range 100 {
		if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		was, err := stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		other, err := os.Create(filepath.Join(dir, "other"))
		if err != nil {
			t.Fatal(err)
		}
		now, err := stat(other.Name())
		if err != nil {
			t.Fatal(err)
		}
		if os.SameFile(was.(stamped).FileInfo, now.(stamped).FileInfo) {
			reused = true
			if open, known := openFiles(); known && holds(open, was) {
				t.Error("a file that was made later is taken for the one before")
			}
		}
		if open, known := openFiles(); known && !holds(open, now) {
			t.Error("an open file is not found")
		}
		other.Close()
		os.Remove(other.Name())
	}
	t.Logf("inodes are used again: %v", reused)
}
