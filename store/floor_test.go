package store

import (
	"strings"
	"testing"

	"github.com/jmoiron/sqlx"

	"github.com/usagekit/usagekit/internal/dbtest"
)

// Where a later release has changed what the tables mean, this one writes to none of them,
// and says so; it starts, reads, and fills the inbox, which an instance of that one folds.
func TestBelowTheFloorTheInboxFills(t *testing.T) {
	onEach(t, func(t *testing.T, db *sqlx.DB) {
		ctx := dbtest.Context(t)
		s := unstarted(t, db, nil)
		s.Add("feature.a.used", 1)
		if err := flushUnstarted(t, s); err != nil {
			t.Fatal(err)
		}
		rows := func() (n int) {
			t.Helper()
			if err := db.Get(&n, `SELECT (SELECT COUNT(*) FROM usage_metrics) + (SELECT COUNT(*) FROM usage_history) + (SELECT COUNT(*) FROM usage_crossings)`); err != nil {
				t.Fatal(err)
			}
			return n
		}
		was := rows()
		db.MustExec(`UPDATE usage_meta SET value = '1000' WHERE name = 'floor'`)
		later, err := open(ctx, db, quietly())
		if err != nil {
			t.Fatalf("an instance below the floor does not start: %v", err)
		}
		defer later.life.cancel()
		for what, err := range map[string]error{
			"AddNow": func() error { _, err := later.AddNow(ctx, "feature.a.used", 1); return err }(),
			"Take":   func() error { _, _, _, err := later.Take(ctx, "quota.1.daily", 1, 10, Day); return err }(),
			"a fold": func() error { _, err := later.folder.Fold(ctx, true); return err }(),
			"prune":  later.newPruner().Prune(ctx),
		} {
			if err == nil || !strings.Contains(err.Error(), "floor 1000") || !strings.Contains(err.Error(), "update this one") {
				t.Errorf("%s, below the floor: %v", what, err)
			}
		}
		later.Add("feature.a.used", 5)
		later.outbox.Seal()
		if waits, err := later.outbox.SendNext(); !waits || err != nil {
			t.Errorf("the inbox does not fill: %v, %v", waits, err)
		}
		if n, err := later.Get(ctx, "feature.a.used"); n != 1 || err != nil {
			t.Errorf("Get: %d, %v, want what was folded before", n, err)
		}
		if n := rows(); n != was {
			t.Errorf("%d rows, of %d before", n, was)
		}
		db.MustExec(`UPDATE usage_meta SET value = '1' WHERE name = 'floor'`)
		foldAll(t, s)
		if n, err := s.Get(ctx, "feature.a.used"); n != 6 || err != nil {
			t.Errorf("an instance that may folds %d, %v, want 6", n, err)
		}
		if left := s.count(t, `SELECT COUNT(*) FROM usage_inbox`); left != 0 {
			t.Errorf("%d batches are left", left)
		}
	})
}
