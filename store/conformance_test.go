package store_test

import (
	"fmt"
	"os"
	"testing"

	"github.com/usagekit/usagekit/internal/conformance"
	"github.com/usagekit/usagekit/internal/dbtest"
	"github.com/usagekit/usagekit/store"
)

func TestMain(m *testing.M) {
	if url := os.Getenv(startEnv); url != "" {
		if err := startOnce(url); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		return
	}
	os.Exit(dbtest.Main(m, &store.Server))
}

func TestSQLite(t *testing.T) { conformance.Run(t, conformance.SQLite()) }

func TestPostgreSQL(t *testing.T) {
	if store.Server == nil {
		t.Log("PostgreSQL was not tried: make test does")
		return
	}
	conformance.Run(t, conformance.PostgreSQL(store.Server))
}

func TestPostgreSQLElsewhere(t *testing.T) {
	if dbtest.Race() {
		t.Log("the SQL differs, and not what runs at once")
		return
	}
	if store.Server == nil {
		t.Log("PostgreSQL was not tried: make test does")
		return
	}
	conformance.Run(t, conformance.Elsewhere(store.Server))
}
