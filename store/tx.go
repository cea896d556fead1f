package store

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/usagekit/usagekit/internal/database"
)

// lane lets one transaction through at a time, with its one token: a Store has a
// lane for reads and one for writes, hence two connections. An attempt that
// outlives its timer cannot be stopped (a context does not bound lib/pq on a
// server that stands still); it is abandoned, and as long as the Store's reserve
// of two has a token, that one makes room for the next.
type lane chan struct{}

// tokens returns a channel that holds n.
func tokens(n int) chan struct{} {
	c := make(chan struct{}, n)
	for range n {
		c <- struct{}{}
	}
	return c
}

var errNotReached = fmt.Errorf("%w: it was not reached since the start", ErrUnavailable)

// attempt is try once the database was reached; ErrUnavailable before.
func (s *Store) attempt(ctx context.Context, l lane, limit time.Duration, f func(context.Context, *database.Tx) error) error {
	if !s.isStarted() {
		return errNotReached
	}
	return s.try(ctx, l, l != s.reads, limit, f)
}

// glance is an attempt of the loops', which reads what they have to know. It goes by
// the connection of writes: that of reads may be kept for seconds by what somebody
// asks, and counts are to be as fresh meanwhile.
func (s *Store) glance(ctx context.Context, f func(context.Context, *database.Tx) error) error {
	if !s.isStarted() {
		return errNotReached
	}
	return s.try(ctx, s.writes, false, readTimeout, f)
}

// try runs f in one explicit transaction on a connection of its own, and
// returns after limit, from when it has its lane, or when ctx ends, whatever the
// server does. An error says nothing about whether the transaction took place.
// Nothing else in this package touches the pool, but for the checkpoint of a SQLite file:
// through PgBouncer, a statement outside a transaction may reach another client's session.
func (s *Store) try(ctx context.Context, l lane, write bool, limit time.Duration, f func(context.Context, *database.Tx) error) error {
	return s.take(ctx, l, limit, func(ctx context.Context) error { return s.transact(ctx, write, f) })
}

// take runs f, which uses one connection, in its turn.
func (s *Store) take(ctx context.Context, l lane, limit time.Duration, f func(context.Context) error) error {
	select {
	case <-l:
	case <-ctx.Done():
		return database.Unavailable(ctx.Err())
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	done := make(chan error, 1)
	var left atomic.Bool // by whoever comes first: the end of f, or the timer
	go func() {
		err := s.file.Load().explained(f(ctx))
		if left.CompareAndSwap(false, true) {
			l <- struct{}{}
		} else {
			s.reserve <- struct{}{}
		}
		done <- err
	}()
	select {
	case err := <-done:
		return database.Unavailable(err)
	case <-ctx.Done():
	}
	reserve := s.reserve
	if l == s.direct && l != s.writes {
		reserve = nil // flushes and reads must not run out of it for what may fail
	}
	select {
	case <-reserve:
		if left.CompareAndSwap(false, true) {
			l <- struct{}{}
		} else {
			s.reserve <- struct{}{}
		}
	default: // the lane stays closed until one of the abandoned returns
	}
	select {
	case err := <-done:
		return database.Unavailable(err)
	default:
		return database.Unavailable(ctx.Err())
	}
}

func (s *Store) transact(ctx context.Context, write bool, f func(context.Context, *database.Tx) error) (err error) {
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
		if v != nil || errors.As(err, new(database.Panic)) {
			go database.Guarded(end) // a driver that panics leaves locks of database/sql taken: this may wait for ever
		} else {
			_ = database.Guarded(end)
		}
	}()
	file := s.file.Load()
	for waited := s.db.Stats().Idle; ; waited-- {
		if conn, err = file.connect(ctx, s.db, s.reopen); err != nil {
			return err
		}
		if tx, err = conn.BeginTxx(ctx, s.sql.Options(write)); err == nil {
			break
		}
		if waited <= 0 || ctx.Err() != nil || s.sql.SQLite || !database.SessionEnded(err) {
			return err
		}
		_ = conn.Raw(func(any) error { return driver.ErrBadConn })
		_ = conn.Close()
		conn = nil
	}
	if err = database.Guarded(func() error { return f(ctx, database.In(tx, s.sql)) }); err != nil {
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
