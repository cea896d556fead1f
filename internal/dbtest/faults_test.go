package dbtest

import (
	"errors"
	"testing"
)

// ends counts how often a driver's transaction is ended.
type ends int

func (n *ends) Commit() error   { *n++; return nil }
func (n *ends) Rollback() error { *n++; return nil }

// database/sql ends a transaction once, and no driver need bear more.
func TestATransactionEndsOnce(t *testing.T) {
	gone := errors.New("the network is gone")
	for _, fault := range []Fault{{}, {Err: gone}, {Err: gone, After: true}} {
		var faults Faults
		faults.Set(func(Op) Fault { return fault })
		var n ends
		if err := (tx{&n, &conn{faults: &faults}}).Commit(); !errors.Is(err, fault.Err) || n != 1 {
			t.Errorf("%+v: Commit gives %v, and ends the transaction %d times", fault, err, n)
		}
	}
}
