package database

import (
	"context"
	"database/sql/driver"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jmoiron/sqlx"
)

const (
	sqlCheckpoint = `PRAGMA wal_checkpoint(TRUNCATE)`
	sqlAnything   = `SELECT COUNT(*) FROM usage_meta WHERE name = 'id'` // opens what there is to open
)

// file is a SQLite file, which may be moved, replaced or deleted under the
// process: SQLite goes on with what it has open, and nobody would find that again. So
// before and after each transaction it is looked whether the path names the file that
// this process has open, and its -wal and -shm, too. Files are told apart by device,
// inode, and when they were made. None is opened for that: closing it again would take SQLite's locks along.
type file struct {
	path string
	id   string // of the database

	changing sync.Mutex // one at a time has it opened anew

	mu     sync.Mutex
	main   os.FileInfo               // what the path named last that was this database
	beside [len(besides)]os.FileInfo // its -wal and -shm; nil: not known
	former []os.FileInfo             // what it named since, and others that connections may have open
}

// besides are what SQLite appends to a file's name.
var besides = [...]string{"-wal", "-shm"}

func (f *file) wrong(what string) error {
	return &FileError{Path: f.path, What: what, Err: nil}
}

// findFile returns the file that a connection has; nil where there is none, or it is
// not where SQLite says that it is: then nothing can be known of it.
func (db *DB) findFile(ctx context.Context, tx *Tx, id string) (*file, error) {
	if db.pathOf == "" {
		return nil, nil
	}
	var path string
	if err := tx.Get(ctx, &path, db.pathOf); err != nil || !filepath.IsAbs(path) {
		return nil, err
	}
	info, err := stat(path)
	if err != nil || !info.Mode().IsRegular() {
		return nil, nil
	}
	if open, known := openFiles(); known && !holds(open, info) {
		return nil, nil
	}
	return &file{path: path, id: id, main: info}, nil
}

// openFiles are those of this process; known is false where a system does not tell.
func openFiles() (open []os.FileInfo, known bool) {
	const dir = "/dev/fd" // Linux, macOS
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, false
	}
	for _, e := range entries {
		if info, err := stat(dir + "/" + e.Name()); err == nil { // which opens nothing
			open = append(open, info)
		}
	}
	return open, true
}

// stamped is what is known of a file, and when it was made: SQLite's -wal is gone soon,
// and its inode is the next file's of this process, as likely as not.
type stamped struct {
	os.FileInfo
	born uint64
}

func stat(path string) (os.FileInfo, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	return stamped{info, born(path)}, nil
}

func sameFile(a, b os.FileInfo) bool {
	x, _ := a.(stamped)
	y, _ := b.(stamped)
	return x.FileInfo != nil && y.FileInfo != nil && os.SameFile(x.FileInfo, y.FileInfo) && x.born == y.born
}

func holds(list []os.FileInfo, f os.FileInfo) bool {
	return slices.ContainsFunc(list, func(o os.FileInfo) bool { return sameFile(o, f) })
}

// forget has a file not be taken for ours again before no connection has it open.
func (f *file) forget(info os.FileInfo) {
	if info != nil && !holds(f.former, info) {
		f.former = append(f.former, info)
	}
}

// look asks what the path names, and remembers what it should not. The caller holds mu.
func (f *file) look() (info os.FileInfo, err error) {
	info, err = stat(f.path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, f.wrong("was moved or deleted under the process: counts wait until it is there again")
	case err != nil:
		return nil, &FileError{Path: f.path, What: "cannot be looked at", Err: err}
	case sameFile(info, f.main):
		return info, nil
	case !info.Mode().IsRegular() || info.Size() == 0: // it is still being copied, or was made by mistake
		err = f.wrong("was replaced by an empty one under the process: counts wait until it is there again")
	default:
		err = f.wrong("was replaced by another under the process")
	}
	f.forget(f.main)
	f.forget(info)
	return info, err
}

// sound tells whether nothing has changed. Else there is nothing to connect to, for
// which err is, or connections to former files have to be closed first.
func (f *file) sound() (sound bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	info, err := f.look()
	if err != nil && info != nil && info.Mode().IsRegular() && info.Size() > 0 {
		return false, nil
	}
	return err == nil && len(f.former) == 0, err
}

// connect returns a connection to the file that the path names. After a change, those
// to what it named before are closed first, once what is in their -wal is in their own
// file; and another file is not used unless reopen accepts it.
func (db *DB) connect(ctx context.Context, f *file) (*sqlx.Conn, error) {
	if f == nil {
		return db.pool.Connx(ctx)
	}
	if sound, err := f.sound(); sound {
		return db.pool.Connx(ctx)
	} else if err != nil {
		return nil, err
	}
	if !f.changing.TryLock() {
		return nil, f.wrong("was changed under the process, and is opened anew")
	}
	defer f.changing.Unlock()
	inUse := f.wrong("was changed under the process, and connections to what it was are in use")
	for n := db.pool.Stats().OpenConnections; n > 0 && f.busy(db.pool); n-- {
		if db.pool.Stats().Idle == 0 {
			return nil, inUse
		}
		conn, err := db.pool.Connx(ctx)
		if err != nil {
			return nil, err
		}
		retire(ctx, conn)
	}
	if f.busy(db.pool) {
		return nil, inUse
	}
	f.mu.Lock()
	main, wal := f.main, f.beside[0]
	f.mu.Unlock()
	before, err := stat(f.path)
	if err != nil {
		return nil, &FileError{Path: f.path, What: "cannot be looked at", Err: err}
	}
	replaced := !sameFile(before, main)
	if now, err := stat(f.path + besides[0]); replaced && err == nil && wal != nil && sameFile(now, wal) && now.Size() > 0 {
		return nil, f.wrong("was replaced by another, but its " + besides[0] + " is that of the one before, and would spoil it: remove it")
	}
	conn, err := db.pool.Connx(ctx)
	if err != nil {
		return nil, err
	}
	after, err := stat(f.path)
	if err == nil && !sameFile(before, after) {
		err = f.wrong("was replaced by another under the process")
	}
	if err == nil && replaced {
		err = db.reopen(ctx, f, conn)
	}
	if err != nil {
		discard(conn)
		return nil, err
	}
	f.mu.Lock()
	f.main, f.former = after, nil
	f.beside = [len(besides)]os.FileInfo{}
	f.mu.Unlock()
	return conn, nil
}

// busy tells whether this process has a former file open still.
func (f *file) busy(db *sqlx.DB) bool {
	open, known := openFiles()
	if !known {
		return db.Stats().OpenConnections > 0
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.ContainsFunc(f.former, func(info os.FileInfo) bool { return holds(open, info) })
}

// retire brings what a connection's -wal has into the file that it belongs to, wherever
// that is now, and closes the connection. What is left of the -wal is empty then, and
// does no harm to another file of that name.
func retire(ctx context.Context, conn *sqlx.Conn) {
	ctx, cancel := context.WithTimeout(ctx, ReadTimeout)
	defer cancel()
	_, _ = cutLog(ctx, conn)
	discard(conn)
}

// cutLog brings what the -wal of a connection has into its file; busy tells that
// others keep it from that.
func cutLog(ctx context.Context, conn *sqlx.Conn) (busy bool, err error) {
	var log, moved int
	err = conn.QueryRowxContext(ctx, sqlCheckpoint).Scan(&busy, &log, &moved)
	return busy, err
}

func discard(conn *sqlx.Conn) {
	_ = conn.Raw(func(any) error { return driver.ErrBadConn })
	_ = conn.Close()
}

// check tells whether what a transaction did is where the path leads: before anything
// is answered, and while its connection is open.
func (f *file) check() error {
	if f == nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, err := f.look(); err != nil {
		return err
	}
	for i, suffix := range besides {
		info, err := stat(f.path + suffix)
		switch was := f.beside[i]; {
		case err == nil && was != nil && sameFile(info, was):
			continue
		case err != nil && was == nil:
			continue // another journal mode, or one in which nobody shares
		case err == nil:
			if open, known := openFiles(); !known || holds(open, info) {
				f.beside[i] = info
				continue
			}
		}
		for _, info := range f.beside {
			f.forget(info)
		}
		return f.wrong("has lost its " + suffix + " under the process: it is opened anew")
	}
	return nil
}

// changed tells whether any of the three is not what it was, and this process has that
// open still: without a connection, SQLite removes the other two itself.
func (f *file) changed() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, err := f.look(); err != nil || len(f.former) > 0 {
		return true
	}
	for i, suffix := range besides {
		was := f.beside[i]
		if was == nil {
			continue
		}
		if info, err := stat(f.path + suffix); err == nil && sameFile(info, was) {
			continue
		}
		if open, known := openFiles(); holds(open, was) {
			return true
		} else if known {
			f.beside[i] = nil // it is not to be looked for again
		}
	}
	return false
}

// Watch looks after a SQLite file, and has it opened anew where nobody counts or reads,
// until ctx ends: report hears what is wrong with it, and that nothing is any more.
func (db *DB) Watch(ctx context.Context, every time.Duration, report func(error)) {
	if !db.WaitStarted(ctx) {
		return
	}
	f := db.file.Load()
	if f == nil {
		return
	}
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for failed := false; ; {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		if !failed && !f.changed() {
			continue
		}
		var n int
		err := db.Read(ctx, ReadTimeout, func(ctx context.Context, tx *Tx) error { return tx.Get(ctx, &n, sqlAnything) })
		failed = err != nil
		report(err)
	}
}

// reopen accepts a file that stands where ours was: an older copy of it, or itself.
func (db *DB) reopen(ctx context.Context, f *file, conn *sqlx.Conn) error {
	tx, err := conn.BeginTxx(ctx, db.options(false))
	if err != nil {
		return &FileError{Path: f.path, What: "was replaced by what cannot be read", Err: err}
	}
	defer func() { _ = tx.Rollback() }()
	in := &Tx{tx: tx, Dialect: db.Dialect}
	var id string
	err = in.Get(ctx, &id, sqlMeta, "id") // before anything of ours is made there
	switch {
	case err != nil:
		return &FileError{Path: f.path, What: "was replaced by what cannot be read as this database: counts wait until it is there again", Err: err}
	case id != f.id:
		return f.wrong("was replaced by another database: counts wait until the one with the id " + f.id + " is there again (usage_meta has it)")
	}
	if _, _, err := db.migrate(ctx, in, true); err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		return err
	}
	db.cfg.Replaced()
	db.cfg.Log.Warn("usagekit: the SQLite file was replaced under the process, and is used as it is now", "file", f.path)
	return nil
}

// EmptyLog has a SQLite file take over what its log, -wal, holds, old copies of pages
// among it, and cuts the log. It waits for those that read from it. PostgreSQL's log is
// its own.
func (db *DB) EmptyLog(ctx context.Context) error {
	if db.pathOf == "" {
		return nil
	}
	for start := time.Now(); ; {
		busy, err := db.checkpoint(ctx)
		if err != nil {
			return err
		}
		if !busy {
			return nil
		}
		if time.Since(start) > WriteTimeout {
			return Fault("the rows are gone, but another connection that reads for long keeps copies of them in the file's -wal: call it again")
		}
		select {
		case <-time.After(MinBackoff):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// checkpoint is outside of any transaction, where SQLite wants it, and else an attempt
// like any other.
func (db *DB) checkpoint(ctx context.Context) (busy bool, err error) {
	if !db.Started() {
		return false, errNotReached
	}
	var done atomic.Bool // by an attempt that may outlast this call
	err = db.take(ctx, db.writes, WriteTimeout, func(ctx context.Context) error {
		file := db.file.Load()
		conn, err := db.connect(ctx, file)
		if err != nil {
			return err
		}
		err = Guarded(func() error {
			busy, err := cutLog(ctx, conn)
			done.Store(!busy)
			return errors.Join(err, file.check())
		})
		return errors.Join(err, conn.Close())
	})
	return !done.Load(), err
}

// explained names the file in an error that is about it.
func (f *file) explained(err error) error {
	if f == nil || errors.As(err, new(*FileError)) {
		return err
	}
	what := ""
	switch Code(err) { // https://www.sqlite.org/rescode.html
	case 8: // READONLY
		what = "cannot be written to: is its file system read-only?"
	case 10: // IOERR
		what = "cannot be read or written"
	case 11: // CORRUPT
		what = "is damaged"
	case 13: // FULL
		what = "has no room: the disk is full"
	case 14: // CANTOPEN
		what = "cannot be opened"
	case 26: // NOTADB
		what = "is no database"
	default:
		return err
	}
	return &FileError{Path: f.path, What: what, Err: err}
}
