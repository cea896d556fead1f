package database

import (
	"context"
	"database/sql/driver"
	"errors"
	"testing"

	"github.com/lib/pq"
)

// resultError is an error of SQLite's, as modernc.org/sqlite gives it.
type resultError int

func (e resultError) Error() string { return "SQLite: refused" }

func (e resultError) Code() int { return int(e) }

// What an error means decides whether a batch waits or is set aside.
func TestErrorsAreToldApart(t *testing.T) {
	for _, c := range []struct {
		err         error
		unavailable bool // the same call may work later
		poison      bool // this batch never will
		ruledOut    bool // it will when somebody's rule is undone
	}{
		{errors.New("EOF"), true, false, false},
		{driver.ErrBadConn, true, false, false},
		{context.DeadlineExceeded, true, false, false},
		{&pq.Error{Code: "08006"}, true, false, false},
		{&pq.Error{Code: "25006"}, true, false, false}, // read-only
		{&pq.Error{Code: "40001"}, true, false, false},
		{&pq.Error{Code: "40P01"}, true, false, false},
		{&pq.Error{Code: "53300"}, true, false, false},
		{&pq.Error{Code: "55P03"}, true, false, false},
		{&pq.Error{Code: "57014"}, true, false, false},
		{&pq.Error{Code: "58030"}, true, false, false},
		{&pq.Error{Code: "28P01"}, false, false, false},
		{&pq.Error{Code: "42501"}, false, false, false},
		{&pq.Error{Code: "42P01"}, false, false, false},
		{&pq.Error{Code: "22021"}, false, true, false},
		{&pq.Error{Code: "23514"}, false, false, true},
		{&pq.Error{Code: "23502"}, false, false, true},
		{&pq.Error{Code: "P0001"}, false, false, true}, // raised by a trigger
		{&pq.Error{Code: "38000"}, false, false, true},
		{&pq.Error{Code: "44000"}, false, false, true},
		{&pq.Error{Code: "XX001"}, false, false, false}, // data_corrupted
		{&pq.Error{Code: "42703"}, false, false, false},
		{&pq.Error{Code: "54000"}, false, true, false},
		{resultError(1), false, false, false},         // no such table, of a trigger's
		{resultError(5), true, false, false},          // BUSY
		{resultError(10 | 12<<8), true, false, false}, // IOERR
		{resultError(13), true, false, false},         // FULL
		{resultError(18), false, true, false},         // TOOBIG
		{resultError(19 | 7<<8), false, false, true},  // CONSTRAINT, of a trigger
		{resultError(20), false, true, false},         // MISMATCH
		{&FileError{"/usage.db", "was replaced", resultError(1)}, true, false, false},
		{Panic{"index out of range"}, false, true, false},
		{Fault("two folds met"), false, false, false},
	} {
		if got := errors.Is(Unavailable(c.err), ErrUnavailable); got != c.unavailable {
			t.Errorf("%v: unavailable is %v", c.err, got)
		}
		if got := Poison(Unavailable(c.err)); got != c.poison {
			t.Errorf("%v: poison is %v", c.err, got)
		}
		if got := RuledOut(Unavailable(c.err)); got != c.ruledOut {
			t.Errorf("%v: ruledOut is %v", c.err, got)
		}
		if !errors.Is(Unavailable(c.err), c.err) {
			t.Errorf("%v is lost", c.err)
		}
	}
}
