package store

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"reflect"
	"sync/atomic"
	"time"

	"github.com/jmoiron/sqlx"
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

// panicError is a panic in a transaction of ours. It carries no stack of the
// caller's: the value says what went wrong.
type panicError struct{ value any }

func (e panicError) Error() string { return fmt.Sprintf("panic: %v", e.value) }

var errNotReached = fmt.Errorf("%w: it was not reached since the start", ErrUnavailable)

// attempt is try once the database was reached; ErrUnavailable before.
func (s *Store) attempt(ctx context.Context, l lane, limit time.Duration, f func(*sqlx.Tx) error) error {
	if !s.isStarted() {
		return errNotReached
	}
	return s.try(ctx, l, l != s.reads, limit, f)
}

// glance is an attempt of the loops', which reads what they have to know. It goes by
// the connection of writes: that of reads may be kept for seconds by what somebody
// asks, and counts are to be as fresh meanwhile.
func (s *Store) glance(ctx context.Context, f func(*sqlx.Tx) error) error {
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
func (s *Store) try(ctx context.Context, l lane, write bool, limit time.Duration, f func(*sqlx.Tx) error) error {
	return s.take(ctx, l, limit, func(ctx context.Context) error { return s.transact(ctx, write, f) })
}

// take runs f, which uses one connection, in its turn.
func (s *Store) take(ctx context.Context, l lane, limit time.Duration, f func(context.Context) error) error {
	select {
	case <-l:
	case <-ctx.Done():
		return unavailable(ctx.Err())
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
		return unavailable(err)
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
		return unavailable(err)
	default:
		return unavailable(ctx.Err())
	}
}

func (s *Store) transact(ctx context.Context, write bool, f func(*sqlx.Tx) error) (err error) {
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
		if v != nil || errors.As(err, new(panicError)) {
			go guarded(end) // a driver that panics leaves locks of database/sql taken: this may wait for ever
		} else {
			_ = guarded(end)
		}
	}()
	file := s.file.Load()
	for waited := s.db.Stats().Idle; ; waited-- {
		if conn, err = file.connect(ctx, s.db, s.reopen); err != nil {
			return err
		}
		if tx, err = conn.BeginTxx(ctx, s.sql.txOptions(write)); err == nil {
			break
		}
		if waited <= 0 || ctx.Err() != nil || s.sql.sqlite || !sessionEnded(err) {
			return err
		}
		_ = conn.Raw(func(any) error { return driver.ErrBadConn })
		_ = conn.Close()
		conn = nil
	}
	if err = guarded(func() error { return f(tx) }); err != nil {
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

// sessionEnded tells whether a connection that had waited in the pool may have failed to
// begin because its session had ended meanwhile: as idle_session_timeout does, a proxy,
// a server that was started again. Nothing was done on it, so another one may be tried.
func sessionEnded(err error) bool {
	var state sqlState
	return !errors.As(err, &state) || class(state) == "57" || class(state) == "08"
}

// guarded makes a panic in f an error.
func guarded(f func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = panicError{v}
		}
	}()
	return f()
}

// fault is an error of our own making: trying again does not help.
type fault string

func (f fault) Error() string { return string(f) }

// Reason is what everybody may be told: unlike a driver's, our words hold no address
// or name of an account.
func (f fault) Reason() string { return string(f) }

// sqlState is how lib/pq and pgx give the SQLSTATE of an error.
type sqlState interface{ SQLState() string }

// resultCode returns the primary result code of SQLite (https://www.sqlite.org/rescode.html)
// that err is due to, 0 where it is no error of SQLite's. modernc.org/sqlite has a method
// for it; mattn/go-sqlite3 has but a field, and to import that driver takes a C compiler.
func resultCode(err error) int {
	var withCode interface {
		error
		Code() int
	}
	if errors.As(err, &withCode) {
		return withCode.Code() & 0xff
	}
	switch v := err.(type) {
	case nil:
		return 0
	case interface{ Unwrap() error }:
		return resultCode(v.Unwrap())
	case interface{ Unwrap() []error }:
		for _, e := range v.Unwrap() {
			if code := resultCode(e); code != 0 {
				return code
			}
		}
		return 0
	}
	if v := reflect.Indirect(reflect.ValueOf(err)); v.Kind() == reflect.Struct && v.Type().PkgPath() == "github.com/mattn/go-sqlite3" {
		if code := v.FieldByName("Code"); code.IsValid() && code.CanInt() {
			return int(code.Int()) & 0xff
		}
	}
	return 0
}

// unavailable marks the errors that mean "not now": all but those that a server
// gives for what was asked of it, and panics.
func unavailable(err error) error {
	if err == nil {
		return nil
	}
	var state sqlState
	if errors.As(err, &state) {
		switch class(state) {
		case "08", "40", "53", "55", "57", "58", "25":
		default:
			return err
		}
	}
	switch resultCode(err) {
	case 1, 18, 19, 20: // ERROR, TOOBIG, CONSTRAINT, MISMATCH
		if !errors.As(err, new(*fileError)) {
			return err
		}
	}
	var (
		p    panicError
		ours fault
	)
	if errors.As(err, &p) || errors.As(err, &ours) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// class returns the first two characters of the SQLSTATE: its class.
func class(s sqlState) string {
	code := s.SQLState()
	return code[:min(2, len(code))]
}
