package store

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"
	_ "github.com/lib/pq"

	"github.com/usagekit/usagekit/internal/dbtest"
)

// A server that ends sessions which wait (idle_session_timeout), or something between,
// costs nothing: neither an error nor a line in the log, of whatever is asked next.
func TestSessionsThatEndedWhileTheyWaited(t *testing.T) {
	if Server == nil {
		t.Log("PostgreSQL was not tried: make test does")
		return
	}
	ctx := dbtest.Context(t)
	dsn := Server.NewDatabase(t)
	admin, err := sqlx.Open("postgres", dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	db, err := sqlx.Open("postgres", dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	db.SetMaxIdleConns(8)
	var logs syncBuffer
	s, err := New(ctx, db, Config{Interval: time.Hour, Logger: slog.New(slog.NewTextHandler(&logs, nil))})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	// end has several sessions wait, and the server end them.
	end := func() {
		t.Helper()
		var held []*sqlx.Conn
		for len(held) < 6 {
			c, err := db.Connx(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if c.PingContext(ctx) != nil { // of before
				c.Close()
				continue
			}
			held = append(held, c)
		}
		for _, c := range held {
			c.Close()
		}
		for left := 1; left > 0; {
			if err := admin.GetContext(ctx, &left, `SELECT COUNT(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()`); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, ask := range map[string]func() error{
		"Flush":  func() error { s.Inc("feature.a.used"); return s.Flush(ctx) },
		"Get":    func() error { _, err := s.Get(ctx, "feature.a.used"); return err },
		"AddNow": func() error { _, err := s.AddNow(ctx, "feature.b.used", 1); return err },
		"Take": func() error {
			_, _, ok, err := s.Take(ctx, "quota.1.daily", 1, 10, Day)
			if !ok && err == nil {
				err = errors.New("refused")
			}
			return err
		},
		"Reset": func() error { return s.Reset(ctx, "feature.c.used") },
	} {
		end()
		if err := ask(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := s.Stats().Err; err != nil {
			t.Errorf("after %s: %v", name, err)
		}
	}
	if log := logs.String(); strings.Contains(log, "WARN") || strings.Contains(log, "ERROR") {
		t.Errorf("the log says\n%s", log)
	}
}
