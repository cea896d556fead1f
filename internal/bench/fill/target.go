package main

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/jmoiron/sqlx"

	"github.com/usagekit/usagekit/internal/dbtest"
	"github.com/usagekit/usagekit/store/postgres"
	"github.com/usagekit/usagekit/store/sqlite"
)

// A target is a database that is filled and read.
type target struct {
	name    string
	cold    string // what restart leaves as if nothing had been read
	open    func() (*sqlx.DB, error)
	settle  []string // run once the rows are there
	restart func() error
	size    string // a query for tables and their megabytes
	about   string // one for what the database says of itself
}

func onPostgreSQL(server *dbtest.Server, url string) target {
	return target{
		name:   "PostgreSQL",
		cold:   "after a restart of the server; what the kernel has read stays",
		open:   func() (*sqlx.DB, error) { return postgres.Open(url) },
		settle: []string{`VACUUM (ANALYZE)`, `CHECKPOINT`}, // the former as autovacuum does
		restart: func() error {
			if err := server.StopImmediate(); err != nil {
				return err
			}
			return server.Restart()
		},
		size: `SELECT relname || ', ' || kind AS name, CAST(round(bytes / 1e6) AS BIGINT) AS mb
FROM pg_stat_user_tables CROSS JOIN LATERAL (VALUES ('rows', pg_table_size(relid)), ('index', pg_indexes_size(relid))) AS s(kind, bytes)
WHERE relname IN ('usage_metrics', 'usage_history') ORDER BY 1 DESC`,
		about: `SELECT 'version ' || current_setting('server_version') || ', ' || string_agg(name || ' ' || current_setting(name), ', ' ORDER BY name)
FROM pg_settings WHERE name IN ('shared_buffers', 'work_mem', 'max_parallel_workers_per_gather', 'random_page_cost', 'fsync')`,
	}
}

func onSQLite(dir string) target {
	path := filepath.Join(dir, "usage.db")
	return target{
		name:    "SQLite",
		cold:    "with new connections; what the kernel has read stays",
		open:    func() (*sqlx.DB, error) { return sqlite.Open(path) },
		restart: func() error { return nil },
		size:    `SELECT name, CAST(round(SUM(pgsize) / 1e6) AS INTEGER) AS mb FROM dbstat WHERE name IN ('usage_metrics', 'usage_history') GROUP BY name ORDER BY name DESC`,
		about:   `SELECT 'version ' || sqlite_version()`,
	}
}

// private starts a server with the memory of a small one of its own.
func private(ctx context.Context) (*dbtest.Server, error) {
	server, err := dbtest.Start()
	if err != nil {
		return nil, err
	}
	db, err := postgres.Open(server.URL("postgres"))
	if err == nil {
		_, err = db.ExecContext(ctx, `ALTER SYSTEM SET shared_buffers = '1GB'`)
		_ = db.Close()
	}
	if err == nil {
		err = server.StopImmediate()
	}
	if err == nil {
		err = server.Restart()
	}
	if err != nil {
		_ = server.Close()
		return nil, fmt.Errorf("a private PostgreSQL: %w", err)
	}
	return server, nil
}
