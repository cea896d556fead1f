package store_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/jmoiron/sqlx"

	"github.com/usagekit/usagekit/internal/dbtest"
	"github.com/usagekit/usagekit/store"
	"github.com/usagekit/usagekit/store/postgres"
)

// startEnv has this program start one store on the database that it names, count
// once, stop and exit, in place of running tests.
const startEnv = "USAGEKIT_TEST_START"

func startOnce(url string) error {
	ctx, cancel := context.WithTimeout(context.Background(), dbtest.Limit)
	defer cancel()
	db, err := postgres.Open(url)
	if err != nil {
		return err
	}
	defer db.Close()
	warnings := slog.New(slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{Level: slog.LevelWarn}))
	s, err := store.New(ctx, db, store.Config{Logger: warnings})
	if err != nil {
		return err
	}
	s.Inc("feature.process.started")
	return s.Shutdown(ctx)
}

// Twenty processes meet an empty database, twenty times: each starts, counts and
// stops, and the tables are made once.
func TestManyProcessesStartAtOnce(t *testing.T) {
	if store.Server == nil {
		t.Log("PostgreSQL was not tried: make test does")
		return
	}
	const processes = 20
	rounds := 20
	if dbtest.Race() {
		rounds = 2 // the detector sees one process at a time anyway
	}
	for range rounds {
		ctx, cancel := context.WithTimeout(t.Context(), dbtest.Limit)
		defer cancel()
		url := store.Server.NewDatabase(t)
		var all sync.WaitGroup
		for range processes {
			all.Go(func() {
				cmd := exec.CommandContext(ctx, os.Args[0])
				cmd.Env = append(os.Environ(), startEnv+"="+url)
				if out, err := cmd.CombinedOutput(); err != nil || len(bytes.TrimSpace(out)) > 0 {
					t.Errorf("%v: %s", err, out)
				}
			})
		}
		all.Wait()
		db, err := sqlx.Open("postgres", url)
		if err != nil {
			t.Fatal(err)
		}
		files, err := os.ReadDir("../internal/database/migrations/postgres")
		if err != nil {
			t.Fatal(err)
		}
		var counted, migrated, ids, writers int
		err = errors.Join(
			db.GetContext(ctx, &counted, `SELECT value FROM usage_metrics WHERE key = 'feature.process.started'`),
			db.GetContext(ctx, &migrated, `SELECT value FROM usage_meta WHERE name = 'schema'`),
			db.GetContext(ctx, &ids, `SELECT COUNT(*) FROM usage_meta WHERE name = 'id'`),
			db.GetContext(ctx, &writers, `SELECT COUNT(*) FROM usage_writers`),
			db.Close())
		if err != nil || counted != processes || migrated != len(files) || ids != 1 || writers != processes {
			t.Fatalf("counted %d, schema %d, %d ids, %d writers, %v", counted, migrated, ids, writers, err)
		}
	}
}

// Once the tables are there, a start changes none, and the role needs no right to.
func TestCurrentSchemaSeesNoDDL(t *testing.T) {
	if store.Server == nil || !store.Server.Private() {
		t.Log("PostgreSQL was not tried: make test does")
		return
	}
	ctx := dbtest.Context(t)
	url := store.Server.NewDatabase(t)
	if err := startOnce(url); err != nil {
		t.Fatal(err)
	}
	admin, err := sqlx.Open("postgres", url)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	role := "reader_" + strings.TrimPrefix(url[strings.LastIndex(url, "/")+1:strings.Index(url, "?")], "test_")
	for _, q := range []string{
		`CREATE ROLE ` + role + ` LOGIN`,
		`REVOKE ALL ON SCHEMA public FROM PUBLIC`,
		`GRANT USAGE ON SCHEMA public TO ` + role,
		`GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO ` + role,
	} {
		if _, err := admin.ExecContext(ctx, q); err != nil {
			t.Fatal(err)
		}
	}
	faults := &dbtest.Faults{}
	var mu sync.Mutex
	faults.Set(func(op dbtest.Op) dbtest.Fault {
		mu.Lock()
		defer mu.Unlock()
		for _, word := range []string{"CREATE", "ALTER", "DROP", "advisory"} {
			if strings.Contains(op.Query, word) {
				t.Errorf("a start runs %s", op.Query)
			}
		}
		return dbtest.Fault{}
	})
	pool, err := faults.Open("postgres", strings.Replace(url, "postgres@", role+"@", 1))
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	s, err := store.New(ctx, sqlx.NewDb(pool, "postgres"), store.Config{})
	if err != nil {
		t.Fatal(err)
	}
	s.Inc("feature.process.started")
	if err := s.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	if n, err := s.Get(ctx, "feature.process.started"); n != 2 || err != nil {
		t.Errorf("counted %d, %v", n, err)
	}
	if err := s.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	if _, err := admin.ExecContext(ctx, fmt.Sprintf(`DROP OWNED BY %s; DROP ROLE %[1]s`, role)); err != nil {
		t.Error(err)
	}
}

// What postgres.Open opens leads through PgBouncer with the oldest lib/pq that go.mod
// allows, too: some send settings that it refuses.
func TestOpenLeadsThroughPgBouncer(t *testing.T) {
	if store.Server == nil || !store.Server.Private() {
		t.Log("PgBouncer was not tried: make test does")
		return
	}
	ctx := dbtest.Context(t)
	db, err := postgres.Open(store.Server.PgBouncer(t, store.Server.NewDatabase(t), 2))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	s, err := store.New(ctx, db, store.Config{})
	if err != nil {
		t.Fatal(err)
	}
	s.Inc("feature.a.used")
	if err := s.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	var n int
	if err := db.GetContext(ctx, &n, `SELECT value FROM usage_metrics WHERE key = 'feature.a.used'`); err != nil || n != 1 {
		t.Errorf("%d, %v, want 1", n, err)
	}
}
