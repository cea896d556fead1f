package store

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
	"github.com/usagekit/usagekit/internal/fold"
	"github.com/usagekit/usagekit/internal/outbox"
)

// scripted returns a Store, without its loops, on a server that does what the
// script says and nothing else.
func scripted(t *testing.T) (*Store, sqlmock.Sqlmock) {
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
	s := &Store{
		db: pool, cfg: Config{Logger: slog.New(slog.DiscardHandler), Interval: time.Second}, clock: clock.New(nil, Retention{}.kept()),
		live: counter.New(100, func(string, int64) {}, nil),
	}
	s.life.writer, s.life.stopped = "w", make(chan struct{})
	s.life.run, s.life.cancel = context.WithCancel(context.Background())
	s.health = health{log: s.cfg.Logger, safe: s.safe}
	s.folder = fold.NewFolder(s.life.run, s.db, s.clock, nil, s.life.writer, s.cfg.Logger)
	s.leader = fold.NewLeader(s.folder, s.cfg.Interval, quietAfter, fold.Events{})
	s.outbox = outbox.New(s.life.run, outbox.Config{
		DB: pool, Clock: s.clock, Live: s.live, Writer: "w", Interval: time.Second, Log: s.cfg.Logger, Sent: s.leader.Arrived, Asleep: s.leader.Asleep,
		Sending: func(err error) { s.report(toSend, err) }, Adopting: func(err error) { s.report(toAdopt, err) },
	})
	t.Cleanup(func() {
		s.life.cancel()
		if err := script.ExpectationsWereMet(); err != nil {
			t.Error(err)
		}
		_ = keep.Close()
		_ = db.Close()
	})
	return s, script
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
		s, script := scripted(t)
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

		s.live.Add("feature.a.used", 5)
		s.outbox.Seal()
		s.live.Add("feature.a.used", 7)
		s.outbox.Seal()
		start := time.Now()
		go s.outbox.SendLoop()
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		if err := s.outbox.Acknowledged(ctx, 2); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took > time.Duration(len(failures))*database.MaxBackoff {
			t.Errorf("took %v", took)
		}
		if s.Stats().Err != nil || s.Stats().Pending != 0 {
			t.Errorf("Stats: %+v", s.Stats())
		}
		s.life.cancel()
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
