package dashboard

import (
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/usagekit/usagekit/internal/dbtest"
	"github.com/usagekit/usagekit/store"
)

// All numbers of an answer are of one moment, which it says: it is made of one Reading,
// however many questions it asks. An export of counts has another one for each of its
// pages.
func TestAnAnswerIsOfOneMoment(t *testing.T) {
	var faults dbtest.Faults
	db, err := faults.Open("sqlite", "file:"+filepath.Join(t.TempDir(), "usage.db")+"?_pragma=busy_timeout(5000)&_pragma=journal_mode(WAL)&_txlock=immediate")
	if err != nil {
		t.Fatal(err)
	}
	st := newStore(t, sqlx.NewDb(db, "sqlite3"), store.Config{Interval: time.Hour})
	for _, name := range []string{"api.GET /a.requests", "user.42.requests", "feature.a.used", "llm.m.calls", "error.x", "quota.42.refused", "mail.sent"} {
		st.Add(name, 3)
	}
	if err := st.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	var readings, questions atomic.Int64
	faults.Set(func(op dbtest.Op) dbtest.Fault {
		if strings.Contains(op.Query, "AS waiting") { // which begins one
			readings.Add(1)
		} else if op.Kind == dbtest.Query {
			questions.Add(1)
		}
		return dbtest.Fault{}
	})
	for target, want := range map[string]int64{
		"api/stats": 1, "api/totals": 1, "api/totals?range=7d": 1, "api/rows?prefix=api.&range=7d": 1, "api/history?step=day&limit=2": 1,
		"api/series?range=24h": 1, "api/series?prefix=quota.&range=30d": 1, "tables.html": 2, // stats, and what it has besides
		"api/export?of=rows": 1, "api/export?of=totals": 2, "api/health": 0,
	} {
		readings.Store(0)
		questions.Store(0)
		if w := get(open(st), "/usage/"+target); w.Code != 200 {
			t.Errorf("%s: %d %s", target, w.Code, w.Body)
		}
		if n := readings.Load(); n != want || want > 0 && questions.Load() < want {
			t.Errorf("%s: %d readings with %d questions, want %d", target, n, questions.Load(), want)
		}
	}
}
