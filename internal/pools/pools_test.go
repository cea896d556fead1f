// Package pools proves the store on pools that it did not open itself, of pgx,
// and behind PgBouncer. It is a module of its own, so that pgx stays out of
// usagekit's.
package pools

import (
	"database/sql"
	"os"
	"strings"
	"testing"

	_ "github.com/jackc/pgx/v5/stdlib"
	"github.com/jmoiron/sqlx"

	"github.com/usagekit/usagekit/internal/conformance"
	"github.com/usagekit/usagekit/internal/dbtest"
	"github.com/usagekit/usagekit/store/postgres"
)

var server *dbtest.Server

func TestMain(m *testing.M) { os.Exit(dbtest.Main(m, &server)) }

// pool is how an application opens one: its driver, and what is added to the
// database's URL.
type pool struct{ driver, setting string }

var (
	opened    = pool{"postgres", "binary_parameters=yes"} // by postgres.Open
	plain     = pool{"postgres", ""}
	pgx       = pool{"pgx", ""} // keeps prepared statements in its sessions
	pgxExec   = pool{"pgx", "default_query_exec_mode=exec"}
	pgxSimple = pool{"pgx", "default_query_exec_mode=simple_protocol"}
)

func (p pool) open(url string, faults *dbtest.Faults) (*sqlx.DB, error) {
	if p == opened && faults == nil {
		return postgres.Open(url)
	}
	if p.setting != "" {
		separator := "?"
		if strings.Contains(url, "?") {
			separator = "&"
		}
		url += separator + p.setting
	}
	open := sql.Open
	if faults != nil {
		open = faults.Open
	}
	db, err := open(p.driver, url)
	if err != nil {
		return nil, err
	}
	return sqlx.NewDb(db, p.driver), nil
}

// on makes databases that are reached by such a pool, through what makes their
// URL another one.
func (p pool) on(name string, through func(url string) string) conformance.Database {
	return conformance.Database{Name: name, New: func(t testing.TB) func(*dbtest.Faults) (*sqlx.DB, error) {
		url := through(server.NewDatabase(t))
		return func(faults *dbtest.Faults) (*sqlx.DB, error) { return p.open(url, faults) }
	}}
}

func TestPgx(t *testing.T) {
	if server == nil {
		t.Log("pgx was not tried: make test does")
		return
	}
	direct := func(url string) string { return url }
	t.Run("Default", func(t *testing.T) { conformance.Run(t, pgx.on("pgx", direct)) })
	t.Run("SimpleProtocol", func(t *testing.T) { conformance.Run(t, pgxSimple.on("pgx", direct)) })
}

func TestPgBouncer(t *testing.T) {
	through := pgBouncer(t)
	if through == nil {
		return
	}
	t.Run("Open", func(t *testing.T) { conformance.Run(t, opened.on("pgbouncer", through)) })
	t.Run("PgxExec", func(t *testing.T) { conformance.Run(t, pgxExec.on("pgbouncer", through)) })
}

// pgBouncer starts one with three connections to each database, or returns nil.
func pgBouncer(t *testing.T) (through func(url string) string) {
	t.Helper()
	if server == nil || !server.Private() {
		t.Log("PgBouncer was not tried: it needs a PostgreSQL of the test's own; make test does")
		return nil
	}
	return server.PgBouncer(t, 3)
}
