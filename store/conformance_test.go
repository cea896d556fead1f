package store_test

import (
	"os"
	"testing"

	"github.com/usagekit/usagekit/internal/conformance"
	"github.com/usagekit/usagekit/internal/dbtest"
	"github.com/usagekit/usagekit/store"
)

func TestMain(m *testing.M) { os.Exit(dbtest.Main(m, &store.Server)) }

func TestSQLite(t *testing.T) { conformance.Run(t, conformance.SQLite()) }

func TestPostgreSQL(t *testing.T) {
	if store.Server == nil {
		t.Log("PostgreSQL was not tried: make test does")
		return
	}
	conformance.Run(t, conformance.PostgreSQL(store.Server))
}
