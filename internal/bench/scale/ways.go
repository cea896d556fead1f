package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/usagekit/usagekit/store"
	"github.com/usagekit/usagekit/store/postgres"
)

// instance is one of a service. What is added is in the tables when Shutdown
// returns nil.
type instance interface {
	Add(name string, n int64)
	Shutdown(ctx context.Context) error
}

// way is how instances bring their counts into one database.
type way interface {
	name() string
	prepare(ctx context.Context, db *sqlx.DB) error
	pool(url string) (*sqlx.DB, error)
	open(ctx context.Context, pool *sqlx.DB) (instance, error)
	// table is where the totals are, in the columns key and value.
	table() string
	// history is queries for the same sums, by what they are of.
	history() map[string]string
	batches(ctx context.Context, db *sqlx.DB) (int64, error)
	// waiting returns how many batches are in the database and not in the tables,
	// and their bytes; false where there are no such.
	waiting(ctx context.Context, db *sqlx.DB) (rows, bytes int64, ok bool, err error)
	// batchBytes is that of one on average; 0 where waiting tells.
	batchBytes() float64
	// said returns what was logged, in short.
	said() string
}

// stores is usagekit.
type stores struct {
	interval time.Duration // 0: the default
	log      lines
}

func (*stores) name() string                            { return "usagekit" }
func (*stores) prepare(context.Context, *sqlx.DB) error { return nil } // New does it
func (*stores) pool(url string) (*sqlx.DB, error)       { return postgres.Open(url) }
func (*stores) table() string                           { return "usage_metrics" }
func (*stores) batchBytes() float64                     { return 0 }
func (w *stores) said() string                          { return w.log.String() }

func (w *stores) open(ctx context.Context, pool *sqlx.DB) (instance, error) {
	log := slog.New(slog.NewTextHandler(&w.log, &slog.HandlerOptions{Level: slog.LevelWarn}))
	s, err := store.New(ctx, pool, store.Config{Interval: w.interval, Logger: log})
	if err != nil {
		return nil, err // not s, which would be an instance that is not nil
	}
	return s, nil
}

const (
	sqlFolded = `SELECT CAST(COALESCE(SUM(seq), 0) AS BIGINT) FROM usage_writers`
	sqlInbox  = `SELECT COUNT(*) AS rows, CAST(COALESCE(SUM(length(payload)), 0) AS BIGINT) AS bytes FROM usage_inbox`
	sqlHours  = `SELECT key, CAST(SUM(value) AS BIGINT) AS value FROM usage_history WHERE step = 1 GROUP BY key`
	sqlDays   = `SELECT key, CAST(SUM(value) AS BIGINT) AS value FROM usage_history WHERE step = 2 GROUP BY key`
)

func (*stores) history() map[string]string {
	return map[string]string{"usage_history, hours": sqlHours, "usage_history, days": sqlDays}
}

func (*stores) batches(ctx context.Context, db *sqlx.DB) (n int64, err error) {
	err = db.GetContext(ctx, &n, sqlFolded)
	return n, err
}

func (*stores) waiting(ctx context.Context, db *sqlx.DB) (rows, bytes int64, ok bool, err error) {
	var inbox struct{ Rows, Bytes int64 }
	err = db.GetContext(ctx, &inbox, sqlInbox)
	return inbox.Rows, inbox.Bytes, true, err
}

// lines keeps the first few lines that are logged, and how many there were.
type lines struct {
	mu    sync.Mutex
	n     int
	first []string
}

var _ io.Writer = (*lines)(nil)

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.n++; l.n <= 3 {
		l.first = append(l.first, strings.TrimSpace(string(p)))
	}
	return len(p), nil
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.n == 0 {
		return ""
	}
	return fmt.Sprintf("    %d lines of log; the first:\n    %s\n", l.n, strings.Join(l.first, "\n    "))
}
