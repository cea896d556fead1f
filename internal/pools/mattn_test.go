//go:build cgo

package pools

import (
	"database/sql"
	"path/filepath"
	"testing"

	"github.com/jmoiron/sqlx"
	_ "github.com/mattn/go-sqlite3"

	"github.com/usagekit/usagekit/internal/conformance"
	"github.com/usagekit/usagekit/internal/dbtest"
)

// SQLite by way of the C library, for a program that has it already.
func TestMattn(t *testing.T) {
	conformance.Run(t, conformance.Database{Name: "sqlite", Again: true, Turns: true, New: func(t testing.TB) func(*dbtest.Faults) (*sqlx.DB, error) {
		dsn := "file:" + filepath.Join(t.TempDir(), "usage.db") + "?_busy_timeout=5000&_journal_mode=WAL&_synchronous=FULL&_txlock=immediate"
		return func(faults *dbtest.Faults) (*sqlx.DB, error) {
			open := sql.Open
			if faults != nil {
				open = faults.Open
			}
			db, err := open("sqlite3", dsn)
			if err != nil {
				return nil, err
			}
			return sqlx.NewDb(db, "sqlite3"), nil
		}
	}})
}
