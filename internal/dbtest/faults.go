package dbtest

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"io"
	"sync"
)

// Kind is what an operation on a database does.
type Kind string

// The operations that Faults sees.
const (
	Connect  Kind = "connect"
	Begin    Kind = "begin"
	Exec     Kind = "exec"
	Query    Kind = "query"
	Commit   Kind = "commit"
	Rollback Kind = "rollback"
)

// Op is an operation that is about to take place.
type Op struct {
	Kind  Kind
	N     int    // its number since Set: the first is 1
	Query string // of Exec and Query
}

// Fault is what becomes of an operation. The zero Fault lets it pass.
type Fault struct {
	Err   error // what the caller gets
	After bool  // the operation takes effect, and only its answer is lost
	Break bool  // the connection is closed under the caller
}

// Faults lets the operations of a database fail. The zero Faults lets all pass.
type Faults struct {
	mu   sync.Mutex
	hook func(Op) Fault
	n    int // operations since Set
}

// Set asks hook about every operation from now on; nil lets all pass. hook may
// block. The next operation is number 1.
func (f *Faults) Set(hook func(Op) Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hook, f.n = hook, 0
}

func (f *Faults) next(kind Kind, query string) Fault {
	f.mu.Lock()
	f.n++
	op := Op{kind, f.n, query}
	hook := f.hook
	f.mu.Unlock()
	if hook == nil {
		return Fault{}
	}
	return hook(op)
}

// Open returns a pool of the registered driver, "postgres", "pgx" or "sqlite", with
// its operations going through f.
func (f *Faults) Open(driverName, dsn string) (*sql.DB, error) {
	db, err := sql.Open(driverName, dsn)
	if err != nil {
		return nil, err
	}
	d := db.Driver()
	if err := db.Close(); err != nil {
		return nil, err
	}
	var c driver.Connector = named{d, dsn}
	if dc, ok := d.(driver.DriverContext); ok {
		if c, err = dc.OpenConnector(dsn); err != nil {
			return nil, err
		}
	}
	return sql.OpenDB(connector{c, f}), nil
}

type named struct {
	driver driver.Driver
	dsn    string
}

func (n named) Connect(context.Context) (driver.Conn, error) { return n.driver.Open(n.dsn) }
func (n named) Driver() driver.Driver                        { return n.driver }

type connector struct {
	driver.Connector
	faults *Faults
}

func (c connector) Connect(ctx context.Context) (driver.Conn, error) {
	fault := c.faults.next(Connect, "")
	if fault.Err != nil {
		return nil, fault.Err
	}
	inner, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return &conn{Conn: inner, faults: c.faults}, nil
}

// conn has the optional interfaces that lib/pq, pgx and modernc.org/sqlite have, but
// for Pinger: nothing here pings.
type conn struct {
	driver.Conn
	faults *Faults
	broken bool // closed by a fault: the driver must not see it again
}

func (c *conn) Close() error {
	if c.broken {
		return nil
	}
	return c.Conn.Close()
}

// through performs an operation, unless it is to fail.
func through[T any](c *conn, kind Kind, query string, do func() (T, error)) (T, error) {
	var none T
	if c.broken {
		return none, driver.ErrBadConn
	}
	fault := c.faults.next(kind, query)
	if fault.Err == nil {
		return do()
	}
	if fault.After {
		if v, err := do(); err != nil {
			return none, err
		} else if c, ok := any(v).(io.Closer); ok { // rows, or a statement
			_ = c.Close()
		}
	}
	if fault.Break && !c.broken {
		c.broken = true
		_ = c.Conn.Close()
	}
	return none, fault.Err
}

func (c *conn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	var begun driver.Tx
	inner, err := through(c, Begin, "", func() (driver.Tx, error) {
		var err error
		begun, err = c.Conn.(driver.ConnBeginTx).BeginTx(ctx, opts)
		return begun, err
	})
	if err != nil {
		if begun != nil && !c.broken { // nobody else knows of it
			_ = begun.Rollback()
		}
		return nil, err
	}
	return tx{inner, c}, nil
}

func (c *conn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	e, ok := c.Conn.(driver.ExecerContext)
	if !ok {
		return nil, driver.ErrSkip
	}
	return through(c, Exec, query, func() (driver.Result, error) { return e.ExecContext(ctx, query, args) })
}

func (c *conn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	q, ok := c.Conn.(driver.QueryerContext)
	if !ok {
		return nil, driver.ErrSkip
	}
	return through(c, Query, query, func() (driver.Rows, error) { return q.QueryContext(ctx, query, args) })
}

// PrepareContext is one operation, an Exec: how often a statement runs depends on
// how much there is to write.
func (c *conn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	inner, err := through(c, Exec, query, func() (driver.Stmt, error) {
		return c.Conn.(driver.ConnPrepareContext).PrepareContext(ctx, query)
	})
	if err != nil {
		return nil, err
	}
	return stmt{inner, c}, nil
}

type stmt struct {
	driver.Stmt
	c *conn
}

func (s stmt) ExecContext(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	return s.Stmt.(driver.StmtExecContext).ExecContext(ctx, args)
}

func (s stmt) QueryContext(context.Context, []driver.NamedValue) (driver.Rows, error) {
	return nil, errors.New("dbtest: a query by a prepared statement would escape the faults")
}

func (s stmt) Close() error {
	if s.c.broken {
		return nil
	}
	return s.Stmt.Close()
}

func (c *conn) CheckNamedValue(v *driver.NamedValue) error {
	if n, ok := c.Conn.(driver.NamedValueChecker); ok {
		return n.CheckNamedValue(v)
	}
	return driver.ErrSkip
}

func (c *conn) ResetSession(ctx context.Context) error {
	if c.broken {
		return driver.ErrBadConn
	}
	if r, ok := c.Conn.(driver.SessionResetter); ok {
		return r.ResetSession(ctx)
	}
	return nil
}

func (c *conn) IsValid() bool {
	v, ok := c.Conn.(driver.Validator)
	return !c.broken && (!ok || v.IsValid())
}

type tx struct {
	driver.Tx
	c *conn
}

func (t tx) Commit() error {
	ended := false // lib/pq may panic in a second end, under locks of database/sql
	_, err := through(t.c, Commit, "", func() (struct{}, error) { ended = true; return struct{}{}, t.Tx.Commit() })
	if !ended && !t.c.broken {
		_ = t.Tx.Rollback()
	}
	return err
}

func (t tx) Rollback() error {
	_, err := through(t.c, Rollback, "", func() (struct{}, error) { return struct{}{}, t.Tx.Rollback() })
	return err
}
