package postgres

import (
	"context"
	"database/sql/driver"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// fake is a server; open is how many connections it has.
type fake struct{ open atomic.Int64 }

func (f *fake) Connect(context.Context) (driver.Conn, error) { f.open.Add(1); return f, nil }
func (f *fake) Driver() driver.Driver                        { return nil }
func (f *fake) Close() error                                 { f.open.Add(-1); return nil }
func (f *fake) Begin() (driver.Tx, error)                    { return nil, errors.New("unused") }
func (f *fake) Prepare(string) (driver.Stmt, error)          { return nil, errors.New("unused") }

// A connection that nobody uses keeps no database awake.
func TestConnectionsThatWaitAreLetGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{}
		db := pool(f)
		defer db.Close()
		if err := db.PingContext(t.Context()); err != nil || f.open.Load() != 1 {
			t.Fatalf("%d connections, %v", f.open.Load(), err)
		}
		time.Sleep(2 * time.Minute)
		if n := f.open.Load(); n != 0 {
			t.Errorf("%d connections two minutes later", n)
		}
	})
}
