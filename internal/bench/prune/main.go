// Program prune measures what must not be felt: that old history is removed beside
// what counts, and that names without end stop at their caps. It starts a PostgreSQL
// of its own, on this machine.
//
//	go run ./prune
//	go run ./prune -rows=200000 -baseline=10s -names=50000 -capsfor=5s
//
// The removal begins by itself, 30 to 90 s after the instance that folds was started.
// There is no pass or fail by time; what is checked is every sum, that nothing is left
// of what is too old, and that nothing else is gone.
//
// Read this file, then retention.go and caps.go.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"log/slog"
	"math"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/usagekit/usagekit/internal/dbtest"
	"github.com/usagekit/usagekit/store/postgres"
)

type settings struct {
	rows, names              int
	baseline, capsFor, limit time.Duration
}

func main() {
	log.SetFlags(0)
	var s settings
	flag.IntVar(&s.rows, "rows", 10_000_000, "rows of history that are too old; 0: no retention")
	flag.DurationVar(&s.baseline, "baseline", time.Minute, "how long is measured before the removal, and after it")
	flag.DurationVar(&s.limit, "limit", time.Hour, "how long the removal may take")
	flag.IntVar(&s.names, "names", 1_000_000, "random names that are added; 0: no caps")
	flag.DurationVar(&s.capsFor, "capsfor", time.Minute, "how long they take to be added")
	flag.Parse()
	if s.rows != 0 && s.rows < 1_000 || s.names < 0 || s.baseline <= 0 || s.capsFor <= 0 || s.limit <= 0 {
		log.Fatal("want 1,000 rows at least, or none, and some time")
	}
	slog.SetLogLoggerLevel(slog.LevelWarn)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := s.run(ctx, os.Stdout); err != nil {
		log.Fatal(err)
	}
}

func (s settings) run(ctx context.Context, w io.Writer) (err error) {
	server, err := private(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Close()) }()
	fmt.Fprintf(w, "%s, %s, %s/%s, %d CPUs\n", time.Now().Format(time.DateOnly), runtime.Version(), runtime.GOOS, runtime.GOARCH, runtime.NumCPU())
	if s.rows > 0 {
		if err := s.retention(ctx, w, server); err != nil {
			return fmt.Errorf("retention: %w", err)
		}
	}
	if s.names > 0 {
		if err := s.caps(ctx, w, server); err != nil {
			return fmt.Errorf("caps: %w", err)
		}
	}
	return nil
}

// private starts a server with the memory of a small one of its own, that knows when
// a transaction was committed.
func private(ctx context.Context) (*dbtest.Server, error) {
	server, err := dbtest.Start()
	if err != nil {
		return nil, err
	}
	db, err := postgres.Open(server.URL("postgres"))
	if err == nil {
		for _, query := range []string{
			`ALTER SYSTEM SET shared_buffers = '1GB'`, `ALTER SYSTEM SET track_commit_timestamp = on`,
			`CREATE DATABASE retention`, `CREATE DATABASE caps`, `CHECKPOINT`,
		} {
			if _, e := db.ExecContext(ctx, query); e != nil {
				err = fmt.Errorf("%s: %w", query, e)
				break
			}
		}
		_ = db.Close()
	}
	if err = cmp.Or(err, server.StopImmediate()); err == nil {
		err = server.Restart()
	}
	if err != nil {
		_ = server.Close()
		return nil, fmt.Errorf("a private PostgreSQL: %w", err)
	}
	return server, nil
}

// meter keeps what was measured, and when.
type meter struct {
	mu      sync.Mutex
	samples map[string][]sample
}

type sample struct {
	at   time.Time
	took time.Duration
}

func (m *meter) note(what string, at time.Time, took time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.samples[what] = append(m.samples[what], sample{at, took})
}

// in returns what was measured in a span of time, the shortest first.
func (m *meter) in(what string, s span) (all []time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, sample := range m.samples[what] {
		if !sample.at.Before(s.from) && sample.at.Before(s.to) {
			all = append(all, sample.took)
		}
	}
	slices.Sort(all)
	return all
}

type span struct{ from, to time.Time }

func (s span) took() time.Duration { return s.to.Sub(s.from) }

const (
	lookEvery = 50 * time.Millisecond

	// A fold notes the time at which it took the lease, and commits.
	sqlFolded = `SELECT CAST(value AS BIGINT) AS began, COALESCE(CAST(EXTRACT(EPOCH FROM pg_xact_commit_timestamp(xmin)) * 1000 AS BIGINT), 0) AS ended
FROM usage_meta WHERE name = 'folded'`
)

// watchFolds notes how long each fold takes that leaves nothing behind, and the time
// from the end of one to the end of the next, until ctx ends.
func (m *meter) watchFolds(ctx context.Context, db *sqlx.DB) error {
	type fold struct{ Began, Ended int64 }
	var last fold
	for sleep(ctx, lookEvery) == nil {
		var all []fold
		if err := db.SelectContext(ctx, &all, sqlFolded); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		if len(all) == 0 || all[0] == last || all[0].Ended == 0 {
			continue
		}
		f := all[0]
		m.note("fold", time.UnixMilli(f.Ended), time.Duration(f.Ended-f.Began)*time.Millisecond)
		if last.Ended > 0 {
			m.note("between folds", time.UnixMilli(f.Ended), time.Duration(f.Ended-last.Ended)*time.Millisecond)
		}
		last = f
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func newTable(w io.Writer) *tabwriter.Writer {
	return tabwriter.NewWriter(w, 8, 0, 2, ' ', tabwriter.AlignRight)
}

// quantile returns that of sorted values; NaN of none.
func quantile(sorted []time.Duration, q float64) float64 {
	if len(sorted) == 0 {
		return math.NaN()
	}
	return float64(sorted[max(0, int(math.Ceil(q*float64(len(sorted))))-1)]) / float64(time.Millisecond)
}

// digits writes a number as exactly as it is worth reading; – for one that there is not.
func digits(v float64) string {
	switch {
	case math.IsNaN(v) || math.IsInf(v, 0):
		return "–"
	case v == math.Trunc(v) || v >= 99.95:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case v >= 9.995:
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	return strconv.FormatFloat(v, 'f', 2, 64)
}
