// Package database is the only way to the application's database: everything that
// usagekit asks of it is a transaction of a DB, on a connection slot of its own and within
// a time limit. It also brings the tables up to date (migrate.go), leaves what other people
// have there alone (adopt.go), notices when a SQLite file is moved or replaced under the
// process (file.go), knows in what PostgreSQL and SQLite differ (dialect.go, postgres.go,
// sqlite.go), and what an error means (errors.go).
//
// A DB is asked in seven ways. Two slots are the rule, one for reads and one for writes:
//
//	Read        reads, with the slot of reads
//	Snapshot    the same, of one moment: for answers
//	Glance      reads, with the slot of writes: for loops, which must not wait for an answer
//	Write       writes, with the slot of writes
//	Fill        the same, to the inbox alone: an instance below the floor may
//	Direct      writes, with up to four slots of its own where the database has room for
//	            several writers: for what must not wait for a fold
//	Quick       the same, and gives up sooner: a request waits for it
//
// A statement is written once: see Tx.
package database

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/jmoiron/sqlx"
)

// The time that an attempt may take.
const (
	ReadTimeout  = 5 * time.Second
	WriteTimeout = 15 * time.Second // the server gives up after 10
	startTimeout = 30 * time.Second // for which a start waits for others
	moveTimeout  = 10 * time.Minute // for tables to be brought up to date in which something stands: a million crossings took 27 s
)

// directSlots is how many connections Direct may use at a time.
const directSlots = 4

// Config is what a DB needs to know of who uses it.
type Config struct {
	Schema string // see Dialect
	Log    *slog.Logger

	// Settle runs in the transaction of a start, once the tables are there, and in that
	// in which a SQLite file is accepted that was replaced. id is the database's. What it
	// returns is called when a start is certain.
	Settle func(ctx context.Context, tx *Tx, id string) (settled func(), err error)

	// Replaced is called when a SQLite file was replaced by an older copy of itself.
	Replaced func()
}

// DB is a pool of the application's, of which it takes two connections, one for reads and
// one for writes, and returns them after each transaction. A server that stands still may
// hold two more, and Direct up to four on PostgreSQL.
type DB struct {
	*Dialect
	pool    *sqlx.DB
	cfg     Config
	version int // of the tables, as this release makes them

	started chan struct{}        // closed when Start has been successful
	file    atomic.Pointer[file] // nil: PostgreSQL, or not known yet

	reads, writes, direct slots
	reserve               slots // for those that take the place of an abandoned attempt
}

// slots lets as many transactions through at a time as it has tokens. An attempt that
// outlives its timer cannot be stopped (a context does not bound lib/pq on a server that
// stands still); it is abandoned, and as long as the reserve of two has a token, that one
// makes room for the next.
type slots chan struct{}

func newSlots(n int) slots {
	c := make(slots, n)
	for range n {
		c <- struct{}{}
	}
	return c
}

// Open returns a DB on a pool, and asks the database for nothing: see Start.
func Open(pool *sqlx.DB, cfg Config) (*DB, error) {
	d, err := dialectOf(pool.DriverName(), cfg.Schema)
	if err != nil {
		return nil, err
	}
	texts, err := migrationsOf(d.Name)
	if err != nil {
		return nil, err
	}
	db := &DB{Dialect: d, pool: pool, version: len(texts), cfg: cfg, started: make(chan struct{}), reads: newSlots(1), writes: newSlots(1), reserve: newSlots(2)}
	if db.direct = db.writes; !d.OneWriter { // whose queue is fair
		db.direct = newSlots(directSlots)
	}
	return db, nil
}

// Start brings the tables up to date, and returns what the log calls the database. It
// waits for others that are about it.
func (db *DB) Start(ctx context.Context) (name string, err error) {
	limit := WriteTimeout
	for start := time.Now(); ; {
		var found struct { // by this attempt
			migrated
			settled func()
			file    *file
			name    string
		}
		err := db.transaction(ctx, db.writes, db.options(false), limit, func(ctx context.Context, tx *Tx) (err error) {
			if found.migrated, found.settled, err = db.migrate(ctx, tx, limit == moveTimeout); err != nil {
				return err
			}
			if found.file, err = db.findFile(ctx, tx, found.id); err != nil {
				return err
			}
			return tx.Get(ctx, &found.name, db.describe)
		})
		if err == nil {
			db.file.Store(found.file)
			db.Schema = found.schema
			if found.altered != "" {
				db.cfg.Log.Warn("usagekit: " + found.altered)
			}
			found.settled()
			close(db.started)
			return found.name, nil
		}
		if errors.Is(err, errMoves) {
			limit = moveTimeout
			continue
		}
		if !Locked(err) || time.Since(start) > startTimeout || ctx.Err() != nil {
			return "", err
		}
		time.Sleep(rand.N(100 * time.Millisecond))
	}
}

// Started tells whether Start has been successful.
func (db *DB) Started() bool {
	select {
	case <-db.started:
		return true
	default:
		return false
	}
}

// WaitStarted waits for that, and returns false when ctx ends first.
func (db *DB) WaitStarted(ctx context.Context) bool {
	select {
	case <-db.started:
		return true
	case <-ctx.Done():
		return false
	}
}

// Read runs f in a transaction that only reads. Like each of the others it returns after
// limit, from when it has its slot, or when ctx ends, whatever the server does. An
// error that is ErrUnavailable says nothing about whether a transaction took place, and an
// abandoned one may still be at work: what f writes to must be its own.
func (db *DB) Read(ctx context.Context, limit time.Duration, f func(context.Context, *Tx) error) error {
	return db.attempt(ctx, db.reads, db.options(true), limit, f)
}

// Snapshot is a Read of one moment, of ReadTimeout at most, with the wait for the connection.
func (db *DB) Snapshot(ctx context.Context, f func(context.Context, *Tx) error) error {
	ctx, cancel := context.WithTimeout(ctx, ReadTimeout)
	defer cancel()
	return db.attempt(ctx, db.reads, &sql.TxOptions{Isolation: db.snapshot, ReadOnly: true}, ReadTimeout, f)
}

// Glance is a Read of the loops', which read what they have to know. It goes by the
// connection of writes: that of reads may be kept for seconds by what somebody asks, and
// counts are to be as fresh meanwhile.
func (db *DB) Glance(ctx context.Context, f func(context.Context, *Tx) error) error {
	return db.attempt(ctx, db.writes, db.options(true), ReadTimeout, f)
}

// Write runs f in a transaction that writes to the tables.
func (db *DB) Write(ctx context.Context, limit time.Duration, f func(context.Context, *Tx) error) error {
	return db.attempt(ctx, db.writes, db.options(false), limit, db.opened(db.bounds, true, f))
}

// Fill is a Write to the inbox, which an instance below the floor may fill, too: one that
// is not will fold it.
func (db *DB) Fill(ctx context.Context, limit time.Duration, f func(context.Context, *Tx) error) error {
	return db.attempt(ctx, db.writes, db.options(false), limit, db.opened(db.bounds, false, f))
}

// Direct is Write for what must not wait for a fold.
func (db *DB) Direct(ctx context.Context, limit time.Duration, f func(context.Context, *Tx) error) error {
	return db.attempt(ctx, db.direct, db.options(false), limit, db.opened(db.bounds, true, f))
}

// Quick is Direct for what a request waits for: it gives up sooner.
func (db *DB) Quick(ctx context.Context, f func(context.Context, *Tx) error) error {
	return db.attempt(ctx, db.direct, db.options(false), ReadTimeout, db.opened(db.quickBounds, true, f))
}

// opened is f behind the statement that a writing transaction begins with. An instance that
// is below the floor is not told what the tables mean, and may not write to them.
func (db *DB) opened(bounds string, floor bool, f func(context.Context, *Tx) error) func(context.Context, *Tx) error {
	return func(ctx context.Context, tx *Tx) error {
		if err := tx.open(ctx, bounds); err != nil {
			return err
		}
		if floor && tx.Floor > db.version {
			return Fault(fmt.Sprintf("the tables are those of a later release (floor %d), and this one, of version %d, may not write to them: counts wait in the inbox for an instance of that release; update this one", tx.Floor, db.version))
		}
		return f(ctx, tx)
	}
}

var errNotReached = fmt.Errorf("%w: it was not reached since the start", ErrUnavailable)

// attempt is transaction once the database was reached; ErrUnavailable before.
func (db *DB) attempt(ctx context.Context, s slots, o *sql.TxOptions, limit time.Duration, f func(context.Context, *Tx) error) error {
	if !db.Started() {
		return errNotReached
	}
	return db.transaction(ctx, s, o, limit, f)
}

// transaction runs f in one explicit transaction on a connection of its own. Nothing
// else touches the pool, but for the checkpoint of a SQLite file: through PgBouncer, a
// statement outside a transaction may reach another client's session.
func (db *DB) transaction(ctx context.Context, s slots, o *sql.TxOptions, limit time.Duration, f func(context.Context, *Tx) error) error {
	return db.take(ctx, s, limit, func(ctx context.Context) error { return db.transact(ctx, o, f) })
}

// take runs f, which uses one connection, in its turn.
func (db *DB) take(ctx context.Context, s slots, limit time.Duration, f func(context.Context) error) error {
	select {
	case <-s:
	case <-ctx.Done():
		return Unavailable(ctx.Err())
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	done := make(chan error, 1)
	var left atomic.Bool // by whoever comes first: the end of f, or the timer
	go func() {
		var err error = Fault("what is done in the transaction ended its goroutine (runtime.Goexit)") // unless f returns
		defer func() {
			if left.CompareAndSwap(false, true) {
				s <- struct{}{}
			} else {
				db.reserve <- struct{}{}
			}
			done <- err
		}()
		err = db.file.Load().explained(f(ctx))
	}()
	select {
	case err := <-done:
		return Unavailable(err)
	case <-ctx.Done():
	}
	reserve := db.reserve
	if s == db.direct && s != db.writes {
		reserve = nil // flushes and reads must not run out of it for what may fail
	}
	select {
	case <-reserve:
		if left.CompareAndSwap(false, true) {
			s <- struct{}{}
		} else {
			db.reserve <- struct{}{}
		}
	default: // the slot stays taken until one of the abandoned returns
	}
	select {
	case err := <-done:
		return Unavailable(err)
	default:
		return Unavailable(ctx.Err())
	}
}

func (db *DB) transact(ctx context.Context, o *sql.TxOptions, f func(context.Context, *Tx) error) (err error) {
	var conn *sqlx.Conn
	var tx *sqlx.Tx
	end := func() error {
		if tx != nil {
			_ = tx.Rollback() // nothing, after Commit
		}
		if conn == nil {
			return nil
		}
		if err != nil {
			// lib/pq 1.12.0-1.12.3 can keep a connection that is broken for good.
			_ = conn.Raw(func(any) error { return driver.ErrBadConn })
		}
		return conn.Close()
	}
	defer func() {
		v := recover()
		if v != nil { // the driver's, and nothing to do with what f does
			err = fmt.Errorf("the database's driver panicked: %v", v)
		}
		if v != nil || errors.As(err, new(Panic)) {
			go Guarded(end) // a driver that panics leaves locks of database/sql taken: this may wait for ever
		} else {
			_ = Guarded(end)
		}
	}()
	file := db.file.Load()
	for waited := db.pool.Stats().Idle; ; waited-- {
		if conn, err = db.connect(ctx, file); err != nil {
			return err
		}
		if tx, err = conn.BeginTxx(ctx, o); err == nil {
			break
		}
		if waited <= 0 || ctx.Err() != nil || !db.sessions || !SessionEnded(err) {
			return err
		}
		discard(conn)
		conn = nil
	}
	if err = Guarded(func() error { return f(ctx, &Tx{tx: tx, Dialect: db.Dialect}) }); err != nil {
		return err
	}
	if err = tx.Commit(); err != nil {
		return err
	}
	if err = file.check(); err != nil {
		retire(ctx, conn)
	}
	return err
}

// Drain waits until nothing has a connection of the pool, unless a server that stands
// still keeps it for longer than ctx. Nothing gets one afterwards while f runs.
func (db *DB) Drain(ctx context.Context) {
	all := []slots{db.reads, db.writes, db.reserve, db.reserve}
	if db.direct != db.writes {
		for range cap(db.direct) {
			all = append(all, db.direct)
		}
	}
	for _, s := range all {
		select {
		case <-s:
			defer func() { s <- struct{}{} }()
		case <-ctx.Done():
			return
		}
	}
}

// Again is Direct, until it works, the error is no matter of time, or ctx or run ends: for
// what waits for a fold and may be repeated. Each attempt has a result of its own: an
// abandoned one may still be at work.
func Again[T any](ctx, run context.Context, db *DB, f func(context.Context, *Tx) (T, error)) (T, error) {
	for wait := MinBackoff; ; {
		var result, none T
		err := db.Direct(ctx, WriteTimeout, func(ctx context.Context, tx *Tx) (err error) {
			result, err = f(ctx, tx)
			return err
		})
		if err == nil {
			return result, nil
		}
		if !errors.Is(err, ErrUnavailable) || !db.Started() || ctx.Err() != nil || run.Err() != nil {
			return none, err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return none, err
		}
		wait = min(2*wait, MaxBackoff)
	}
}

const (
	MinBackoff  = 200 * time.Millisecond
	MaxBackoff  = 5 * time.Second
	slowBackoff = 10 * time.Second // where somebody has to do something first
)

// Backoff is how long to wait before an attempt is made again. The zero Backoff begins
// with the shortest wait.
type Backoff struct{ most time.Duration }

// After returns how long to wait after an error, longer each time; and does so anew after
// none.
func (b *Backoff) After(err error) time.Duration {
	if err == nil {
		b.most = 0
		return 0
	}
	b.most = max(b.most, MinBackoff)
	wait := rand.N(b.most) + time.Millisecond
	if NeedsSomebody(err) {
		wait = slowBackoff/2 + rand.N(slowBackoff/2)
	}
	b.most = min(2*b.most, MaxBackoff)
	return wait
}

// Pause waits for d, and returns false when ctx ends first.
func Pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
