package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"
)

// upserts is what one would write first: every instance adds its counts to the rows
// that all share. The sums of an interval are one statement, which is the shortest
// transaction that there is; the keys are sorted, or two of them would deadlock.
type upserts struct {
	interval time.Duration
	patience time.Duration // of Shutdown, with hundreds that wait for each other; 0: its context's
	sent     atomic.Int64
	bytes    atomic.Int64
}

// errGivenUp says that what an upserter still had would take too long.
var errGivenUp = errors.New("the upsert: the last flush was given up")

const (
	sqlPlain = `CREATE TABLE plain (key TEXT COLLATE "C" PRIMARY KEY, value BIGINT NOT NULL) WITH (fillfactor = 70)`

	sqlUpsert = `INSERT INTO plain (key, value)
SELECT key, n FROM unnest(CAST($1 AS TEXT[]), CAST($2 AS BIGINT[])) AS v(key, n)
ON CONFLICT (key) DO UPDATE SET value = plain.value + excluded.value`
)

func (*upserts) name() string               { return "upsert" }
func (*upserts) table() string              { return "plain" }
func (*upserts) history() map[string]string { return nil }
func (*upserts) said() string               { return "" }

func (*upserts) prepare(ctx context.Context, db *sqlx.DB) error {
	_, err := db.ExecContext(ctx, sqlPlain)
	return err
}

// pool is as lib/pq has it: postgres.Open's gives up after 30 s without an answer,
// which is too soon where a hundred wait for each other's locks.
func (*upserts) pool(url string) (*sqlx.DB, error) {
	cfg, err := pq.NewConfig(url)
	if err != nil {
		return nil, err
	}
	cfg.BinaryParameters = true // one round trip
	connector, err := pq.NewConnectorConfig(cfg)
	if err != nil {
		return nil, err
	}
	return sqlx.NewDb(sql.OpenDB(connector), "postgres"), nil
}

func (w *upserts) batches(context.Context, *sqlx.DB) (int64, error) { return w.sent.Load(), nil }

func (*upserts) waiting(context.Context, *sqlx.DB) (rows, bytes int64, ok bool, err error) {
	return 0, 0, false, nil
}

func (w *upserts) batchBytes() float64 {
	return float64(w.bytes.Load()) / float64(max(1, w.sent.Load()))
}

func (w *upserts) open(_ context.Context, pool *sqlx.DB) (instance, error) {
	u := &upserter{way: w, db: pool, counts: map[string]int64{}, stop: make(chan struct{}), stopped: make(chan struct{})}
	go u.run()
	return u, nil
}

// upserter is one instance. It does what a Store does of counting and flushing, and
// nothing for the case that something fails: that ends it.
type upserter struct {
	way     *upserts
	db      *sqlx.DB
	stop    chan struct{}
	stopped chan struct{}
	err     error // once stopped

	mu     sync.Mutex
	counts map[string]int64
}

func (u *upserter) Add(name string, n int64) {
	u.mu.Lock()
	u.counts[name] += n
	u.mu.Unlock()
}

func (u *upserter) run() {
	defer close(u.stopped)
	tick := time.NewTicker(u.way.interval)
	defer tick.Stop()
	for u.err == nil {
		select {
		case <-tick.C:
			u.err = u.flush()
		case <-u.stop:
			u.err = u.flush()
			return
		}
	}
}

func (u *upserter) flush() error {
	u.mu.Lock()
	counts := u.counts
	u.counts = make(map[string]int64, len(counts))
	u.mu.Unlock()
	if len(counts) == 0 {
		return nil
	}
	keys := slices.Sorted(maps.Keys(counts))
	values := make([]int64, len(keys))
	bytes := 0
	for i, k := range keys {
		values[i] = counts[k]
		bytes += len(k) + 8
	}
	if _, err := u.db.Exec(sqlUpsert, pq.Array(keys), pq.Array(values)); err != nil {
		return fmt.Errorf("the upsert: %w", err)
	}
	u.way.sent.Add(1)
	u.way.bytes.Add(int64(bytes))
	return nil
}

func (u *upserter) Shutdown(ctx context.Context) error {
	close(u.stop)
	var late <-chan time.Time
	if u.way.patience > 0 {
		late = time.After(u.way.patience)
	}
	select {
	case <-u.stopped:
		return u.err
	case <-late:
		return errGivenUp
	case <-ctx.Done():
		return ctx.Err()
	}
}
