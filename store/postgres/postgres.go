// Package postgres opens a PostgreSQL pool for a store, on lib/pq. A pool of
// one's own serves as well, of lib/pq or pgx: sqlx.NewDb(db, "pgx"). What Open
// adds is that a server which stops answering cannot hold a connection for ever, and
// that one which nobody uses is closed.
package postgres

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"net"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"
)

const (
	dialTimeout = 5 * time.Second
	// answerTimeout ends a read or write on a connection whose server stands
	// still: a context's deadline does not bound lib/pq. The store's own
	// statements end on the server after 10 s.
	answerTimeout = 30 * time.Second
	writePiece    = 64 << 10 // bytes that one deadline is for
	// idleTime is less than what proxies and NATs let a silent connection live, and so
	// short that a database which sleeps when nobody is connected soon does.
	idleTime = time.Minute
)

// Open returns a pool on the database at url:
// postgres://user:password@host:port/database?sslmode=verify-full, or a
// connection string of libpq (key=value, or the service of a service file), beside
// the PG… variables of the environment. It dials nothing yet; what is wrong with the
// address or the password is an error of store.New. Its own error never holds
// the url, as that may hold a password.
//
// A setting of libpq, or of another driver, that lib/pq does not know is honoured
// where it asks for what is so (channel_binding=prefer, gssencmode=disable,
// default_query_exec_mode=exec, keepalives…); else it is an error that names it and
// says what to do. Other settings are the server's, as search_path is.
//
// A connection that nobody used for a minute is closed.
//
// An application may use the pool, too; a statement of its own during which the
// server says nothing for 30 s fails.
func Open(url string) (*sqlx.DB, error) {
	if url == "" {
		return nil, errors.New("postgres: the database's URL is empty: want postgres://user:password@host:port/database")
	}
	cfg, dialer, err := parse(url)
	if err != nil {
		return nil, err
	}
	cfg.BinaryParameters = true // one round trip per statement, and no named ones: PgBouncer
	connector, err := pq.NewConnectorConfig(cfg)
	if err != nil {
		return nil, errors.New("postgres: the database's URL has settings that do not go together (it is not shown here, as it may hold a password)")
	}
	connector.Dialer(dialer)
	return sqlx.NewDb(pool(connector), "postgres"), nil
}

func pool(c driver.Connector) *sql.DB {
	db := sql.OpenDB(c)
	db.SetConnMaxIdleTime(idleTime)
	return db
}

// dialer makes connections whose reads and writes end.
type dialer struct{ keepalive net.KeepAliveConfig }

func (d dialer) Dial(network, address string) (net.Conn, error) {
	return d.DialContext(context.Background(), network, address)
}

func (d dialer) DialTimeout(network, address string, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return d.DialContext(ctx, network, address)
}

func (d dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	nd := net.Dialer{Timeout: dialTimeout, KeepAliveConfig: d.keepalive}
	c, err := nd.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return &conn{c}, nil
}

// conn gives every read, and every piece of a write, a deadline of its own.
type conn struct{ net.Conn }

func (c *conn) Read(p []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(answerTimeout)); err != nil {
		return 0, err
	}
	return c.Conn.Read(p)
}

func (c *conn) Write(p []byte) (n int, err error) {
	for err == nil && n < len(p) {
		if err = c.SetWriteDeadline(time.Now().Add(answerTimeout)); err != nil {
			break
		}
		var m int
		m, err = c.Conn.Write(p[n:min(n+writePiece, len(p))])
		n += m
	}
	return n, err
}
