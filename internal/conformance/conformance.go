// Package conformance is what a store promises, as one list of cases that is run
// on every database: SQLite, a private PostgreSQL, any server that
// USAGEKIT_TEST_DSN names. Each case has a database of its own.
package conformance

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"github.com/usagekit/usagekit/internal/counter"
	"github.com/usagekit/usagekit/internal/dbtest"
	"github.com/usagekit/usagekit/store"
	"github.com/usagekit/usagekit/store/postgres"
	"github.com/usagekit/usagekit/store/sqlite"
)

// Database makes empty databases of one kind.
type Database struct {
	Name   string
	Schema string // of the stores' Config, and their tables'; "": none
	// Again is set where another Database of the same kind is tried as well, and this
	// one differs in the way there: cases that vary much else vary less of it.
	Again bool
	Turns bool // reads and writes take turns: nothing is written while something is read
	// New makes one, and returns how a pool on it is opened. With faults, its
	// operations go through them.
	New func(t testing.TB) func(faults *dbtest.Faults) (*sqlx.DB, error)
}

// SQLite is a file in a temporary directory.
func SQLite() Database {
	return Database{Name: "sqlite", New: func(t testing.TB) func(*dbtest.Faults) (*sqlx.DB, error) {
		path := filepath.Join(t.TempDir(), "usage.db")
		return func(faults *dbtest.Faults) (*sqlx.DB, error) {
			if faults == nil {
				return sqlite.Open(path)
			}
			db, err := faults.Open("sqlite", "file:"+path+"?_pragma=busy_timeout(5000)&_pragma=journal_mode(WAL)&_txlock=immediate")
			return wrapped(db, err, "sqlite3")
		}
	}}
}

// Elsewhere is PostgreSQL as others have it: its collation is a language's, and
// usagekit's tables stand in a schema of their own, which has a difficult name.
func Elsewhere(server *dbtest.Server) Database {
	d := PostgreSQL(server, "ENCODING 'UTF8' LOCALE_PROVIDER icu ICU_LOCALE 'en-US' LOCALE 'C.UTF-8' TEMPLATE template0")
	d.Schema, d.Again = `App's usage.v1`, true
	return d
}

// PostgreSQL is a database on server, with options of CREATE DATABASE.
func PostgreSQL(server *dbtest.Server, options ...string) Database {
	return Database{Name: "postgres", New: func(t testing.TB) func(*dbtest.Faults) (*sqlx.DB, error) {
		url := server.NewDatabase(t, options...)
		return func(faults *dbtest.Faults) (*sqlx.DB, error) {
			if faults == nil {
				return postgres.Open(url)
			}
			db, err := faults.Open("postgres", url)
			return wrapped(db, err, "postgres")
		}
	}}
}

func wrapped(db *sql.DB, err error, name string) (*sqlx.DB, error) {
	if err != nil {
		return nil, err
	}
	return sqlx.NewDb(db, name), nil
}

// Run runs all cases on d.
func Run(t *testing.T, d Database) {
	// Where nothing is done at once; PostgreSQL has them under the race detector, too.
	alone := []string{"LargeBatch", "Names", "Each", "RangesAgreeWithAModel", "ManyExceptions", "Zones", "HistoryUnderOtherRules", "ZoneByAnotherName", "InstancesOfOtherRules", "Caps", "CapsOfAreas", "CapsGiveRoomBack", "Erase", "NamesThatDiffer", "Rows", "Subjects"}
	for _, c := range []struct {
		name string
		test func(*testing.T, *bench)
	}{
		{"ConcurrentAddsAreExact", concurrentAdds},
		{"TwoStoresShareADatabase", twoStores},
		{"DerivedCounters", derived},
		{"SumsOfRoutes", sumsOfRoutes},
		{"HostileNames", hostileNames},
		{"Saturation", saturation},
		{"LargeBatch", largeBatch},
		{"Queries", queries},
		{"Rows", rows},
		{"Names", names},
		{"Subjects", subjects},
		{"Readings", readings},
		{"Each", each},
		{"RangesAgreeWithAModel", ranges},
		{"BadQueries", badQueries},
		{"ManyExceptions", manyExceptions},
		{"BucketsOfKathmandu", kathmandu},
		{"Zones", zones},
		{"RepeatedBatches", repeatedBatches},
		{"LateBatches", lateBatches},
		{"MissingBatchesAreReported", missingBatches},
		{"ForgottenWriter", forgottenWriter},
		{"UndecodableBatch", undecodable},
		{"PoisonousBatch", poisonous},
		{"BatchOfALaterRelease", laterRelease},
		{"BatchFromTheFuture", future},
		{"CompleteThrough", completeThrough},
		{"LostBatch", lostBatch},
		{"QuietWriters", quietWriters},
		{"LeaseOfADeadHolder", deadHolder},
		{"EveryOperationFails", everyOperationFails},
		{"RandomOperations", randomOperations},
		{"DatabaseAway", databaseAway},
		{"ShutdownWithoutDatabase", shutdownUndelivered},
		{"PoolOfOne", poolOfOne},
		{"FlushAfterShutdown", flushAfterShutdown},
		{"StartAndStop", startAndStop},
		{"OneLineAtStartAndEnd", oneLine},
		{"EverythingInTransactions", everythingInTransactions},
		{"NoConnectionAfterAnError", noConnectionAfterAnError},
		{"ManyStartsAtOnce", manyStarts},
		{"AdoptsTheOriginalTable", adopts},
		{"OtherZone", otherZone},
		{"ZoneByAnotherName", zoneByAnotherName},
		{"HistoryUnderOtherRules", otherRules},
		{"InstancesOfOtherRules", instancesOfOtherRules},
		{"OtherRulesAreFollowedAtOnce", otherRulesAreFollowedAtOnce},
		{"AddNow", addNow},
		{"Reset", reset},
		{"LLMCalls", llmCalls},
		{"Caps", caps},
		{"CapsOfSeveralInstances", capsOfSeveral},
		{"CapsOfNoRoutes", capsOfNoRoutes},
		{"CapsGiveRoomBack", capsGiveRoom},
		{"CapsOfAreas", capsOfAreas},
		{"Thresholds", thresholds},
		{"Takes", takes},
		{"Erase", erase},
		{"NamesThatDiffer", differ},
		{"Views", views},
	} {
		t.Run(c.name, func(t *testing.T) {
			if dbtest.Race() && d.Name == "sqlite" && slices.Contains(alone, c.name) {
				t.Skip("tried without the race detector, under which SQLite, in Go, takes minutes")
			}
			t.Parallel() // most of their time is waiting
			c.test(t, newBench(t, d))
		})
	}
}

// bench is what a case works with: one database, and what stores on it log.
type bench struct {
	t    *testing.T
	d    Database
	open func(*dbtest.Faults) (*sqlx.DB, error)
	db   *sqlx.DB // without faults, beside the stores
	logs *logBuffer
	ctx  context.Context // of all that a case waits for
}

func newBench(t *testing.T, d Database) *bench {
	b := &bench{t: t, d: d, open: d.New(t), logs: &logBuffer{}, ctx: dbtest.Context(t)}
	b.db = b.pool(nil)
	if d.Schema != "" {
		b.db.SetMaxOpenConns(1) // so that the path stays
		b.exec(`CREATE SCHEMA ` + pq.QuoteIdentifier(d.Schema))
		b.exec(`SET search_path TO ` + pq.QuoteIdentifier(d.Schema))
	}
	return b
}

func (b *bench) pool(faults *dbtest.Faults) *sqlx.DB {
	b.t.Helper()
	db, err := b.open(faults)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { db.Close() })
	return db
}

// config has an Interval so long that nothing happens but what a case asks for, and
// keeps what cases date years ago.
func (b *bench) config() store.Config {
	forever := store.Retention{Hourly: -1, Daily: -1, UserDaily: -1}
	return store.Config{Interval: time.Hour, Retention: forever, Schema: b.d.Schema, Logger: slog.New(slog.NewTextHandler(b.logs, nil))}
}

// store starts one on a pool of its own, shut down with the case.
func (b *bench) store(cfg store.Config) *store.Store {
	b.t.Helper()
	return b.storeOn(b.pool(nil), cfg)
}

func (b *bench) storeOn(db *sqlx.DB, cfg store.Config) *store.Store {
	b.t.Helper()
	s, err := store.New(b.ctx, db, cfg)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), dbtest.Limit)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			b.t.Errorf("Shutdown: %v", err)
		}
	})
	return s
}

// patiently repeats a read that a busy machine has no time for.
func (b *bench) patiently(read func() error) error {
	for {
		err := read()
		if !errors.Is(err, store.ErrUnavailable) || b.ctx.Err() != nil {
			return err
		}
	}
}

func (b *bench) flush(s *store.Store) {
	b.t.Helper()
	if err := s.Flush(b.ctx); err != nil {
		b.t.Fatal(err)
	}
}

// fold makes s fold what lies in the inbox.
func (b *bench) fold(s *store.Store) {
	b.t.Helper()
	s.Inc("test.fold.asked")
	b.flush(s)
}

// want compares totals with what they should be.
func (b *bench) want(s *store.Store, want map[string]int64) {
	b.t.Helper()
	for name, n := range want {
		got, err := s.Get(b.ctx, name)
		if err != nil {
			b.t.Fatal(err)
		}
		if got != n {
			b.t.Errorf("%s = %d, want %d", name, got, n)
		}
	}
}

func (b *bench) totals(s *store.Store, q store.Query) map[string]int64 {
	b.t.Helper()
	counts, err := s.Totals(b.ctx, q)
	if err != nil {
		b.t.Fatalf("Totals(%+v): %v", q, err)
	}
	m := map[string]int64{}
	for _, c := range counts {
		m[c.Name] = c.N
	}
	return m
}

// batch puts one into the inbox, as a writer would.
func (b *bench) batch(writer string, seq int64, opened time.Time, counts ...counter.Count) {
	b.t.Helper()
	b.payload(writer, seq, opened, counter.Batch{Opened: opened.UnixMilli(), Counts: counts}.Encode())
}

func (b *bench) payload(writer string, seq int64, opened time.Time, payload []byte) {
	b.t.Helper()
	b.exec(`INSERT INTO usage_writers (writer, seq, sum, seen) VALUES (?, 0, ?, 4000000000000) ON CONFLICT DO NOTHING`, writer, []byte{})
	b.exec(`INSERT INTO usage_inbox (writer, seq, opened, payload) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING`, writer, seq, opened.UnixMilli(), payload)
}

func (b *bench) exec(query string, args ...any) {
	b.t.Helper()
	if _, err := b.db.ExecContext(b.ctx, b.db.Rebind(query), args...); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) number(query string, args ...any) (n int64) {
	b.t.Helper()
	if err := b.db.GetContext(b.ctx, &n, b.db.Rebind(query), args...); err != nil {
		b.t.Fatal(err)
	}
	return n
}

// reported is how often text was logged, or will be in a moment: what a fold did is
// seen before what it says of it.
func (b *bench) reported(text string, want int) int {
	b.until(func() bool { return b.logs.count(text) >= want })
	return b.logs.count(text)
}

// until waits until it is so, or for as long as a test may wait.
func (b *bench) until(so func() bool) {
	for end := time.Now().Add(dbtest.Limit); !so() && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
}

// logBuffer keeps what was logged.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logBuffer) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Count(l.buf.Bytes(), []byte(text))
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}
