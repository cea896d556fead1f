package database

import (
	"context"
	"errors"
	"fmt"
	"reflect"
)

// ErrUnavailable is in every error that means "the database does not answer now": the
// same attempt may work later, and it says nothing about whether this one did.
var ErrUnavailable = errors.New("store: the database is not available")

// Fault is an error of our own making: trying again does not help.
type Fault string

func (f Fault) Error() string { return string(f) }

// Reason is what everybody may be told: unlike a driver's, our words hold no address
// or name of an account.
func (f Fault) Reason() string { return string(f) }

// state is how lib/pq and pgx give the SQLSTATE of an error.
type state interface{ SQLState() string }

// Code returns the primary result code of SQLite (https://www.sqlite.org/rescode.html)
// that err is due to, 0 where it is no error of SQLite's. modernc.org/sqlite has a method
// for it; mattn/go-sqlite3 has but a field, and to import that driver takes a C compiler.
func Code(err error) int {
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
		return Code(v.Unwrap())
	case interface{ Unwrap() []error }:
		for _, e := range v.Unwrap() {
			if code := Code(e); code != 0 {
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

// Unavailable marks the errors that mean "not now": all but those that a server
// gives for what was asked of it, and panics.
func Unavailable(err error) error {
	if err == nil {
		return nil
	}
	var state state
	if errors.As(err, &state) {
		switch class(state) {
		case "08", "40", "53", "55", "57", "58", "25":
		default:
			return err
		}
	}
	switch Code(err) {
	case 1, 18, 19, 20: // ERROR, TOOBIG, CONSTRAINT, MISMATCH
		if !errors.As(err, new(*FileError)) {
			return err
		}
	}
	var (
		p    Panic
		ours Fault
	)
	if errors.As(err, &p) || errors.As(err, &ours) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// SQLState returns the SQLSTATE that err is due to; "" where it is none of a server's.
func SQLState(err error) string {
	var state state
	if errors.As(err, &state) {
		return state.SQLState()
	}
	return ""
}

// class returns the first two characters of the SQLSTATE: its class.
func class(s state) string {
	code := s.SQLState()
	return code[:min(2, len(code))]
}

// FileError is what is wrong with a SQLite file: it can be right again.
type FileError struct {
	Path, What string
	Err        error // nil: that is all
}

func (e *FileError) Error() string {
	if e.Err != nil {
		return e.Reason() + ": " + e.Err.Error()
	}
	return e.Reason()
}

// Reason is what everybody may be told who sees the store's health: which file it is
// about, and nothing that a driver says.
func (e *FileError) Reason() string { return "the SQLite file " + e.Path + " " + e.What }

func (e *FileError) Unwrap() error { return e.Err }

// Panic is a panic that was caught by Guarded. It carries no stack: the value says what
// went wrong.
type Panic struct{ Value any }

func (e Panic) Error() string { return fmt.Sprintf("panic: %v", e.Value) }

// Guarded makes a panic in f an error.
func Guarded(f func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = Panic{v}
		}
	}()
	return f()
}

// Poison tells whether err is due to what was folded, so that trying the same
// again cannot help.
func Poison(err error) bool {
	var (
		p     Panic
		state state
	)
	if errors.As(err, &state) {
		c := class(state) // data exception, limit exceeded
		return c == "22" || c == "54"
	}
	switch Code(err) {
	case 18, 20: // TOOBIG, MISMATCH
		return true
	}
	return errors.As(err, &p)
}

// RuledOut tells whether err is due to a rule that somebody made for the tables, which
// have none that a batch could break: a constraint, a missing partition, a trigger
// that raises an error. It may be a mistake, and be undone.
func RuledOut(err error) bool {
	var state state
	if errors.As(err, &state) {
		switch class(state) {
		case "09", "23", "27", "2F", "38", "39", "44", "P0":
			return true
		}
		return false
	}
	return Code(err) == 19 // CONSTRAINT, which RAISE gives, too
}

// TimedOut tells whether err says that something took too long.
func TimedOut(err error) bool {
	var state state
	return errors.Is(err, context.DeadlineExceeded) ||
		errors.As(err, &state) && state.SQLState() == "57014" || // query_canceled
		Code(err) == 9 // INTERRUPT
}

// SessionEnded tells whether a connection that had waited in the pool may have failed to
// begin because its session had ended meanwhile: as idle_session_timeout does, a proxy,
// a server that was started again. Nothing was done on it, so another one may be tried.
func SessionEnded(err error) bool {
	var state state
	return !errors.As(err, &state) || class(state) == "57" || class(state) == "08"
}

// Locked tells whether something else stands in the way for a moment, as a start does in
// that of another one.
func Locked(err error) bool {
	var state state
	switch {
	case errors.As(err, &state):
		return state.SQLState() == "55P03" // lock_not_available
	case Code(err) == 5: // BUSY: at once, while another one turns the WAL on
		return true
	}
	return false
}

// NeedsSomebody tells whether somebody has to do something before the same attempt
// can work: about a password, a right, a database, a table or a rule.
func NeedsSomebody(err error) bool {
	if RuledOut(err) {
		return true
	}
	var state state
	if !errors.As(err, &state) {
		return false
	}
	switch c := state.SQLState(); c {
	case "42501", "42P01", "25006":
		return true
	default:
		return class(state) == "28" || class(state) == "3D" || class(state) == "3F"
	}
}

// Advice says what to do about an error, where that is known: to be put behind it.
func Advice(err error) string {
	var (
		ours  Fault
		state state
	)
	code := Code(err)
	switch {
	case errors.As(err, &ours):
		return ""
	case RuledOut(err):
		return ": a constraint, a trigger or a missing partition refuses counts: undo it; after 15 minutes, names that are refused count under (invalid)"
	case code != 0:
		switch code {
		case 8, 14: // READONLY, CANTOPEN
			return ": the file and its directory must exist and be writable"
		case 26: // NOTADB
			return ": the file is not a SQLite database"
		}
		return ""
	case !errors.As(err, &state):
		return ": is the database there, and does its address lead to it?"
	case class(state) == "28":
		return ": check the user and the password of the database's address"
	case state.SQLState() == "42704":
		return ": if it is a setting in the database's address, the server does not know it: remove it"
	case state.SQLState() == "3D000":
		return ": make the database (CREATE DATABASE), or correct its name"
	case state.SQLState() == "3F000":
		return ": make the schema (CREATE SCHEMA), or correct Config.Schema"
	case state.SQLState() == "42P01":
		return ": a usage_ table is missing: restore it, or Config.Schema"
	case state.SQLState() == "25006":
		return ": the server is read-only: is it a standby?"
	case state.SQLState() == "0A000":
		return ": is the server a standby, which cannot be written to?"
	case state.SQLState() == "42501":
		return ": the user needs CREATE on the schema at a release's first start, and SELECT, INSERT, UPDATE, DELETE on the usage_ tables (GRANT)"
	}
	return ""
}
