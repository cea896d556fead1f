package store

import (
	"strings"
	"testing"

	"github.com/usagekit/usagekit/internal/dbtest"
	"github.com/usagekit/usagekit/store/postgres"
)

// What stands in the tables of an earlier release may be much: to move it takes longer than
// a transaction may, and is given the time.
func TestUpgradeOfMuchHasTheTime(t *testing.T) {
	if Server == nil {
		t.Log("PostgreSQL was not tried: make test does")
		return
	}
	ctx := dbtest.Context(t)
	db, err := postgres.Open(Server.NewDatabase(t))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.ExecContext(ctx, recorded(t, "postgres.sql")); err != nil {
		t.Fatal(err)
	}
	cfg := quietly()
	cfg.StartOffline = true
	s, err := open(ctx, db, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer s.life.cancel()
	moved := false
	s.db.Edit = func(q string) string {
		if strings.Contains(q, "CREATE TABLE usage_crossings") {
			moved = true
			q += `DO $$ BEGIN IF current_setting('statement_timeout') <> '10min' THEN RAISE EXCEPTION 'it has %', current_setting('statement_timeout'); END IF; END $$;`
		}
		return q
	}
	if err := s.start(ctx, true); err != nil || !moved {
		t.Fatalf("moved %v: %v", moved, err)
	}
}
