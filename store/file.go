package store

import (
	"context"
	"database/sql/driver"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/jmoiron/sqlx"

	"github.com/usagekit/usagekit/internal/counter"
	"github.com/usagekit/usagekit/internal/database"
)

const (
	sqlFiles      = `SELECT file FROM pragma_database_list WHERE name = 'main'`
	sqlCheckpoint = `PRAGMA wal_checkpoint(TRUNCATE)`
	sqlAnything   = `SELECT COUNT(*) FROM usage_meta WHERE name = 'id'` // opens what there is to open
)

// sqliteFile is a SQLite file, which may be moved, replaced or deleted under the
// process: SQLite goes on with what it has open, and nobody would find that again. So
// before and after each transaction it is looked whether the path names the file that
// this process has open, and its -wal and -shm, too. Files are told apart by device,
// inode, and when they were made. None is opened for that: closing it again would take SQLite's locks along.
type sqliteFile struct {
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

func (f *sqliteFile) wrong(what string) error {
	return &database.FileError{Path: f.path, What: what, Err: nil}
}

// findFile returns the file that a connection has; nil where there is none, or it is
// not where SQLite says that it is: then nothing can be known of it.
func findFile(ctx context.Context, tx *database.Tx, id string) (*sqliteFile, error) {
	var path string
	if err := tx.Get(ctx, &path, sqlFiles); err != nil || !filepath.IsAbs(path) {
		return nil, err
	}
	info, err := stat(path)
	if err != nil || !info.Mode().IsRegular() {
		return nil, nil
	}
	if open, known := openFiles(); known && !holds(open, info) {
		return nil, nil
	}
	return &sqliteFile{path: path, id: id, main: info}, nil
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
	return stamped{info, counter.Born(path)}, nil
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
func (f *sqliteFile) forget(info os.FileInfo) {
	if info != nil && !holds(f.former, info) {
		f.former = append(f.former, info)
	}
}

// look asks what the path names, and remembers what it should not. The caller holds mu.
func (f *sqliteFile) look() (info os.FileInfo, err error) {
	info, err = stat(f.path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, f.wrong("was moved or deleted under the process: counts wait until it is there again")
	case err != nil:
		return nil, &database.FileError{Path: f.path, What: "cannot be looked at", Err: err}
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
func (f *sqliteFile) sound() (sound bool, err error) {
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
func (f *sqliteFile) connect(ctx context.Context, db *sqlx.DB, reopen func(context.Context, *sqliteFile, *sqlx.Conn) error) (*sqlx.Conn, error) {
	if f == nil {
		return db.Connx(ctx)
	}
	if sound, err := f.sound(); sound {
		return db.Connx(ctx)
	} else if err != nil {
		return nil, err
	}
	if !f.changing.TryLock() {
		return nil, f.wrong("was changed under the process, and is opened anew")
	}
	defer f.changing.Unlock()
	inUse := f.wrong("was changed under the process, and connections to what it was are in use")
	for n := db.Stats().OpenConnections; n > 0 && f.busy(db); n-- {
		if db.Stats().Idle == 0 {
			return nil, inUse
		}
		conn, err := db.Connx(ctx)
		if err != nil {
			return nil, err
		}
		retire(ctx, conn)
	}
	if f.busy(db) {
		return nil, inUse
	}
	f.mu.Lock()
	main, wal := f.main, f.beside[0]
	f.mu.Unlock()
	before, err := stat(f.path)
	if err != nil {
		return nil, &database.FileError{Path: f.path, What: "cannot be looked at", Err: err}
	}
	replaced := !sameFile(before, main)
	if now, err := stat(f.path + besides[0]); replaced && err == nil && wal != nil && sameFile(now, wal) && now.Size() > 0 {
		return nil, f.wrong("was replaced by another, but its " + besides[0] + " is that of the one before, and would spoil it: remove it")
	}
	conn, err := db.Connx(ctx)
	if err != nil {
		return nil, err
	}
	after, err := stat(f.path)
	if err == nil && !sameFile(before, after) {
		err = f.wrong("was replaced by another under the process")
	}
	if err == nil && replaced {
		err = reopen(ctx, f, conn)
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
func (f *sqliteFile) busy(db *sqlx.DB) bool {
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
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
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
func (f *sqliteFile) check() error {
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
func (f *sqliteFile) changed() bool {
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

// watchLoop looks after the file, and has it opened anew where nobody counts or reads.
func (s *Store) watchLoop() {
	if !s.waitStarted() {
		return
	}
	f := s.file.Load()
	for failed := false; f != nil && s.pause(s.interval); {
		if !failed && !f.changed() {
			continue
		}
		var n int
		err := s.attempt(s.run, s.reads, readTimeout, func(ctx context.Context, tx *database.Tx) error { return tx.Get(ctx, &n, sqlAnything) })
		failed = err != nil
		s.report(&s.fileErr, err)
	}
}

// reopen accepts a file that stands where ours was: an older copy of it, or itself.
func (s *Store) reopen(ctx context.Context, f *sqliteFile, conn *sqlx.Conn) error {
	tx, err := conn.BeginTxx(ctx, s.sql.Options(true))
	if err != nil {
		return &database.FileError{Path: f.path, What: "was replaced by what cannot be read", Err: err}
	}
	defer func() { _ = tx.Rollback() }()
	in := database.In(tx, s.sql)
	var id string
	err = in.Get(ctx, &id, sqlMeta, "id") // before anything of ours is made there
	switch {
	case err != nil:
		return &database.FileError{Path: f.path, What: "was replaced by what cannot be read as this database: counts wait until it is there again", Err: err}
	case id != f.id:
		return f.wrong("was replaced by another database: counts wait until the one with the id " + f.id + " is there again (usage_meta has it)")
	}
	if _, err := s.migrate(ctx, in); err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		return err
	}
	s.subjects.Store(nil)
	s.sent(true) // something may wait in it
	s.log.Warn("usagekit: the SQLite file was replaced under the process, and is used as it is now", "file", f.path)
	return nil
}

// explained names the file in an error that is about it.
func (f *sqliteFile) explained(err error) error {
	if f == nil || errors.As(err, new(*database.FileError)) {
		return err
	}
	what := ""
	switch database.Code(err) { // https://www.sqlite.org/rescode.html
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
	return &database.FileError{Path: f.path, What: what, Err: err}
}
