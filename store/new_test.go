package store_test

import (
	"context"
	"database/sql"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/usagekit/usagekit/internal/dbtest"
	"github.com/usagekit/usagekit/store"
	"github.com/usagekit/usagekit/store/postgres"
	"github.com/usagekit/usagekit/store/sqlite"
)

const password = "hunter2-hunter2"

func TestConfigNamesTheField(t *testing.T) {
	ctx := dbtest.Context(t)
	db, err := sqlite.Open(filepath.Join(t.TempDir(), "usage.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for field, cfg := range map[string]store.Config{
		"Interval":             {Interval: -1},
		"MaxNames":             {MaxNames: -1},
		"Schema":               {Schema: `a"b`},
		"SQLite has no schema": {Schema: "app"},
		"Location":             {Location: time.Local},
		"Location \"here\"":    {Location: time.FixedZone("here", 3600)},
	} {
		s, err := store.New(ctx, db, cfg)
		if err == nil || s != nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%+v: %v, want an error about %s", cfg, err, field)
		}
	}
	if _, err := store.New(ctx, nil, store.Config{}); err == nil || !strings.Contains(err.Error(), "sqlite.Open") {
		t.Errorf("no database: %v", err)
	}
	if _, err := store.New(ctx, sqlx.NewDb(&sql.DB{}, "mysql"), store.Config{}); err == nil || !strings.Contains(err.Error(), "mysql") {
		t.Errorf("another database: %v", err)
	}
}

func TestSQLiteErrorsGiveAdvice(t *testing.T) {
	ctx := dbtest.Context(t)
	dir := t.TempDir()
	garbage := filepath.Join(dir, "garbage")
	if err := os.WriteFile(garbage, []byte(strings.Repeat("no database ", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	readOnly := filepath.Join(dir, "read-only.db")
	ready, err := sqlx.Open("sqlite", readOnly)
	if err != nil {
		t.Fatal(err)
	}
	if s, err := store.New(ctx, ready, store.Config{}); err != nil {
		t.Fatal(err)
	} else if err := errors.Join(s.Shutdown(ctx), ready.Close()); err != nil {
		t.Fatal(err)
	}
	// Not by its mode, which root may ignore.
	db, err := sqlx.Open("sqlite", "file:"+readOnly+"?mode=ro")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := store.New(ctx, db, store.Config{}); err == nil || !strings.Contains(err.Error(), "must exist and be writable") {
		t.Errorf("read-only: %v", err)
	}
	for path, want := range map[string]string{
		filepath.Join(dir, "missing", "usage.db"): "must exist and be writable",
		dir:     "must exist and be writable",
		garbage: "not a SQLite database",
	} {
		db, err := sqlite.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		if _, err := store.New(ctx, db, store.Config{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
	for _, path := range []string{"", ":memory:", "file:usage.db", "a\x00b"} {
		if db, err := sqlite.Open(path); err == nil {
			db.Close()
			t.Errorf("sqlite.Open(%q) took it", path)
		}
	}
}

// A file's name is a name, whatever characters it has.
func TestSQLitePathsAreNoURLs(t *testing.T) {
	ctx := dbtest.Context(t)
	for _, name := range []string{"a b?c#d%41&.db", "ü.db"} {
		path := filepath.Join(t.TempDir(), name)
		db, err := sqlite.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		s, err := store.New(ctx, db, store.Config{})
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(s.Shutdown(ctx), db.Close()); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(path); err != nil {
			t.Error(err)
		}
	}
}

func TestPostgresURLErrorsKeepThePassword(t *testing.T) {
	for _, url := range []string{"", "postgres://app:" + password + "@[::1/x", "postgres://app:" + password + "%zz@localhost/x", "host=localhost password=" + password + " sslmode=sometimes"} {
		db, err := postgres.Open(url)
		if err == nil {
			db.Close()
			t.Errorf("%q was taken", url)
		} else if strings.Contains(err.Error(), password) {
			t.Errorf("the password stands in %q", err)
		}
	}
}

func TestPostgresErrorsGiveAdvice(t *testing.T) {
	closed := "postgres://app:" + password + "@127.0.0.1:1/usage?sslmode=disable"
	cases := []struct {
		url  string
		cfg  store.Config
		want string
	}{{closed, store.Config{}, "does its address lead to it?"}}
	if store.Server != nil && store.Server.Private() {
		ours := store.Server.NewDatabase(t)
		admin, err := postgres.Open(ours)
		if err != nil {
			t.Fatal(err)
		}
		defer admin.Close()
		for _, q := range []string{
			`DROP ROLE IF EXISTS with_password`,
			`CREATE ROLE with_password LOGIN PASSWORD '` + password + `'`, // dbtest's server asks this one for it
			`REVOKE CREATE ON SCHEMA public FROM PUBLIC`,
		} {
			if _, err := admin.ExecContext(t.Context(), q); err != nil {
				t.Fatal(err)
			}
		}
		as := func(user *url.Userinfo, database string) string {
			u, err := url.Parse(ours)
			if err != nil {
				t.Fatal(err)
			}
			u.User = user
			if database != "" {
				u.Path = "/" + database
			}
			return u.String()
		}
		cases = append(cases, []struct {
			url  string
			cfg  store.Config
			want string
		}{
			{as(url.UserPassword("with_password", password+"-wrong"), ""), store.Config{}, "check the user and the password"},
			{as(url.UserPassword("with_password", password), ""), store.Config{}, "needs CREATE"},
			{as(url.User("postgres"), "no_such_database"), store.Config{}, "CREATE DATABASE"},
			{ours, store.Config{Schema: "no_such_schema"}, "CREATE SCHEMA"},
		}...)
	}
	for _, c := range cases {
		db, err := postgres.Open(c.url)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		ctx, cancel := context.WithTimeout(t.Context(), dbtest.Limit)
		defer cancel()
		s, err := store.New(ctx, db, c.cfg)
		if err == nil {
			_ = s.Shutdown(ctx)
			t.Errorf("no error, want one with %q", c.want)
		} else if !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), password) {
			t.Errorf("%v, want %q, and no password", err, c.want)
		}
	}
}

// What hosts write into the addresses that they give out is no setting of the server.
func TestPostgresURLsOfHosts(t *testing.T) {
	if store.Server == nil {
		t.Skip("PostgreSQL was not tried: make test does")
	}
	address := store.Server.NewDatabase(t)
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	for _, dsn := range []string{
		address + "&channel_binding=prefer&gssencmode=disable&keepalives=1&keepalives_idle=30&default_query_exec_mode=exec&target_session_attrs=read-write&load_balance_hosts=disable&client_encoding=UTF8",
		"host=" + u.Hostname() + " port=" + u.Port() + " user=" + u.User.Username() + " dbname='" + strings.TrimPrefix(u.Path, "/") + "' sslmode=disable gssencmode = prefer channel_binding='disable' keepalives_count=3 client_encoding='utf-8'",
	} {
		db, err := postgres.Open(dsn)
		if err != nil {
			t.Fatal(err)
		}
		if err := refusal(t, db, store.Config{}); err != nil {
			t.Errorf("New: %v", err)
		}
		_ = db.Close()
	}
	db, err := postgres.Open(address + "&no_such_setting=1")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := refusal(t, db, store.Config{}); err == nil || !strings.Contains(err.Error(), "no_such_setting") || !strings.Contains(err.Error(), "remove it") || strings.Contains(err.Error(), "password") {
		t.Errorf("New: %v, want what to do about the setting", err)
	}
}
