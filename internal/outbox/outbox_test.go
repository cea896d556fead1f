package outbox

import (
	"context"
	"database/sql/driver"
	"errors"
	"io"
	"log/slog"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/DATA-DOG/go-sqlmock"
	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"github.com/usagekit/usagekit/internal/clock"
	"github.com/usagekit/usagekit/internal/counter"
	"github.com/usagekit/usagekit/internal/database"
)

// scripted returns an Outbox, without its loops, on a server that does what the
// script says and nothing else. stop ends what runs of it.
func scripted(t *testing.T) (o *Outbox, script sqlmock.Sqlmock, stop func()) {
	t.Helper()
	db, script, err := sqlmock.New()
	if err != nil {
		t.Fatal(err)
	}
	keep, err := db.Conn(t.Context()) // sqlmock forgets a database whose last connection is closed
	if err != nil {
		t.Fatal(err)
	}
	pool, err := database.Open(sqlx.NewDb(db, "postgres"), database.Config{
		Log:    slog.New(slog.DiscardHandler),
		Settle: func(context.Context, *database.Tx, string) (func(), error) { return func() {}, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	script.ExpectBegin()
	script.ExpectQuery(`statement_timeout.*server_encoding`).WillReturnRows(sqlmock.NewRows([]string{"encoding", "schema"}).AddRow("UTF8", "public"))
	script.ExpectQuery(`pg_catalog`).WillReturnRows(sqlmock.NewRows([]string{"schema", "name", "kind", "plain"}).AddRow("", "usage_meta", "a table", true))
	script.ExpectQuery(`SELECT value FROM usage_meta`).WithArgs("schema").WillReturnRows(sqlmock.NewRows([]string{"value"}).AddRow("99"))
	script.ExpectExec(`INSERT INTO usage_meta`).WillReturnResult(driver.RowsAffected(0))
	script.ExpectQuery(`SELECT value FROM usage_meta`).WithArgs("id").WillReturnRows(sqlmock.NewRows([]string{"value"}).AddRow("id"))
	opens(script, 0)
	script.ExpectQuery(`server_version`).WillReturnRows(sqlmock.NewRows([]string{"name"}).AddRow("PostgreSQL"))
	script.ExpectCommit()
	if _, err := pool.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	run, stop := context.WithCancel(context.Background())
	o = New(run, Config{
		DB: pool, Clock: clock.New(nil, clock.Kept{}), Live: counter.New(100, func(string, int64) {}, nil), Writer: "w", Interval: time.Second, Log: slog.New(slog.DiscardHandler),
		Sent: func(string, int64) {}, Asleep: func() bool { return false }, Sending: func(error) {}, Adopting: func(error) {},
	})
	t.Cleanup(func() {
		stop()
		if err := script.ExpectationsWereMet(); err != nil {
			t.Error(err)
		}
		_ = keep.Close()
		_ = db.Close()
	})
	return o, script, stop
}

// opens scripts the statement that a writing transaction begins with.
func opens(script sqlmock.Sqlmock, now int64) {
	script.ExpectQuery(`statement_timeout`).WillReturnRows(sqlmock.NewRows([]string{"bounded", "now", "floor", "rules", "removed", "doubted", "seen", "gaps"}).AddRow("", now, 0, "", 0, 0, 0, 0))
}

// A flush is one transaction that touches no row of anybody else. Whatever its
// COMMIT says but "done", the same batch follows under the same number, and
// later ones wait.
func TestTheSameBatchUntilItsCommitIsCertain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, script, stop := scripted(t)
		var payloads []any
		flush := func(seq int64, commit error) {
			payload := captured{&payloads}
			script.ExpectBegin()
			opens(script, int64(1e12)+1)
			script.ExpectQuery(`SELECT .* FROM usage_writers WHERE writer = `).WithArgs("w").WillReturnRows(sqlmock.NewRows([]string{"seen", "lease"}).AddRow(int64(1e12), " 0"))
			script.ExpectExec(`INSERT INTO usage_inbox .* ON CONFLICT DO NOTHING`).WithArgs("w", seq, sqlmock.AnyArg(), payload).WillReturnResult(driver.RowsAffected(1))
			c := script.ExpectCommit()
			if commit != nil {
				c.WillReturnError(commit)
			}
		}
		failures := []error{
			driver.ErrBadConn, io.EOF, net.ErrClosed, context.DeadlineExceeded, &pq.Error{Code: "08006"}, &pq.Error{Code: "40001"},
			&pq.Error{Code: "57P01"}, &pq.Error{Code: "53100"}, &pq.Error{Code: "42501"}, errors.New("nobody knows"),
		}
		for _, err := range failures {
			flush(1, err)
		}
		flush(1, nil)
		flush(2, nil)

		o.Live.Add("feature.a.used", 5)
		o.Seal()
		o.Live.Add("feature.a.used", 7)
		o.Seal()
		start := time.Now()
		go o.SendLoop()
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		if err := o.Acknowledged(ctx, 2); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took > time.Duration(len(failures))*database.MaxBackoff {
			t.Errorf("took %v", took)
		}
		if names, oldest := o.Waiting(); names != 0 || !oldest.IsZero() {
			t.Errorf("%d names wait, the oldest since %v", names, oldest)
		}
		stop()
		synctest.Wait()
		for i, p := range payloads {
			b, err := counter.Decode(p.([]byte))
			want := int64(5)
			if i > len(failures) {
				want = 7
			}
			if err != nil || len(b.Counts) != 1 || b.Counts[0].N != want {
				t.Errorf("flush %d carries %+v, %v", i, b, err)
			}
		}
		if len(payloads) != len(failures)+2 {
			t.Errorf("%d flushes, want %d", len(payloads), len(failures)+2)
		}
	})
}

// captured is a matcher that keeps what it is given.
type captured struct{ into *[]any }

func (c captured) Match(v driver.Value) bool { *c.into = append(*c.into, v); return true }
