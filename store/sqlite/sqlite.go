// Package sqlite opens a SQLite file for a store. The file is the store's own:
// an application that shares it would see SQLITE_BUSY. A pool of mattn/go-sqlite3
// serves as well, for a program that has that driver already: see README.
package sqlite

import (
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"

	"github.com/jmoiron/sqlx"
	_ "modernc.org/sqlite" // the driver "sqlite", in Go: no cgo
)

// Open returns a pool on the SQLite file at path, which store.New makes when it
// is not there. Nothing is read yet: an unwritable file is an error of New.
//
// Every commit is on disk before it is acknowledged (journal_mode=WAL,
// synchronous=FULL), a writer waits up to 5 s for another, and writing
// transactions begin as such. What is deleted is overwritten (secure_delete=ON).
//
// A store sees it, within an Interval, when the file is moved, deleted or replaced under
// it, or its -wal is: nothing is answered as stored that the file at path does not have
// (Store.Flush, AddNow, Take and reads give an error that names it, as Stats.Err does),
// counts wait in the spool or in memory, and all goes on when the database with the same
// id stands there again, be it an older copy: what that one lacks is reported as missing
// batches. A file that is overwritten in place is not seen: put another in its place by
// renaming it, without a -wal of the one before. What stands there is not used before this
// process has closed what it had open of the other: a second pool on the file, of the
// application's own, has to let its connections go (SetConnMaxIdleTime), for SQLite's
// locks are the process's. The same holds for a pool of one's own.
func Open(path string) (*sqlx.DB, error) {
	if path == "" || strings.HasPrefix(path, ":memory:") || strings.ContainsRune(path, 0) {
		return nil, fmt.Errorf("sqlite: %q is no file: want the path of the database", path)
	}
	if strings.HasPrefix(path, "file:") {
		return nil, errors.New("sqlite: want the path of the database, not a URL")
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("sqlite: %w", err)
	}
	abs = filepath.ToSlash(abs)
	if !strings.HasPrefix(abs, "/") {
		abs = "/" + abs // a drive letter: https://www.sqlite.org/uri.html
	}
	dsn := "file:" + (&url.URL{Path: abs}).EscapedPath() +
		"?_pragma=busy_timeout(5000)&_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)&_pragma=secure_delete(1)&_txlock=immediate"
	db, err := sql.Open("sqlite", dsn)
	if err != nil {
		return nil, fmt.Errorf("sqlite: %w", err)
	}
	return sqlx.NewDb(db, "sqlite3"), nil // the name by which sqlx knows its parameters
}
