package pools

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"
)

// application shares a PgBouncer with stores. It writes rows of the types of
// their batches, and counts them, without transactions and by lib/pq as it is:
// each statement is prepared in one round trip and performed in a second, which
// PgBouncer may lead to another connection, and so to whatever statement was
// prepared there last.
type application struct {
	direct  *sqlx.DB // to look at what came of it
	db      *sqlx.DB
	writers [3]writer
	counts  atomic.Int64
	refused atomic.Int64
	odd     atomic.Pointer[error] // the first answer that was none to what was asked
}

type writer struct {
	name    string
	written atomic.Int64 // rows acknowledged
}

func newApplication(t *testing.T, direct, pooled string) *application {
	a := &application{direct: open(t, plain, direct), db: open(t, plain, pooled)}
	a.direct.SetMaxOpenConns(1)
	a.direct.MustExec(`CREATE TABLE application_rows (writer TEXT, seq BIGINT, opened BIGINT, payload BYTEA)`)
	for i := range a.writers {
		a.writers[i].name = fmt.Sprintf("application %d", i)
	}
	return a
}

// run writes and counts until ctx ends.
func (a *application) run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for i := range a.writers {
		w := &a.writers[i]
		wg.Go(func() {
			for ctx.Err() == nil {
				seq := w.written.Load() + 1
				_, err := a.db.Exec(`INSERT INTO application_rows (writer, seq, opened, payload) VALUES ($1, $2, $3, $4)`, w.name, seq, time.Now().UnixMilli(), []byte(w.name))
				if a.answered(err) {
					w.written.Store(seq)
				}
			}
		})
	}
	wg.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			w := &a.writers[i%len(a.writers)]
			least := w.written.Load()
			var n int64
			err := a.db.Get(&n, `SELECT COUNT(*) FROM application_rows WHERE writer = $1`, w.name)
			if !a.answered(err) {
				continue
			}
			a.counts.Add(1)
			if most := w.written.Load() + 1; n < least || n > most {
				a.note(fmt.Errorf("the application counted %d rows of its own, want %d to %d", n, least, most))
			}
		}
	})
}

// answered tells whether a statement was performed, as the application sees it.
// One that PostgreSQL refused, since its two halves did not fit, was not, and is
// tried again: that is the application's own doing.
func (a *application) answered(err error) bool {
	var state interface{ SQLState() string }
	switch {
	case err == nil:
		return true
	case errors.As(err, &state) && (state.SQLState() == "26000" || state.SQLState() == "08P01"): // no statement is prepared, or one of other parameters
		a.refused.Add(1)
	default:
		a.note(err)
	}
	return false
}

func (a *application) note(err error) { a.odd.CompareAndSwap(nil, &err) }

// check compares what the application was told with what is in its table.
func (a *application) check(t *testing.T) {
	t.Helper()
	if odd := a.odd.Load(); odd != nil {
		t.Error(*odd)
	}
	total := int64(0)
	for i := range a.writers {
		w := &a.writers[i]
		written := w.written.Load()
		var got struct{ Rows, Seqs, Last int64 }
		err := a.direct.Get(&got, `SELECT COUNT(*) AS rows, COUNT(DISTINCT seq) AS seqs, COALESCE(MAX(seq), 0) AS last FROM application_rows WHERE writer = $1 AND payload = $2`, w.name, []byte(w.name))
		if err != nil {
			t.Fatal(err)
		}
		if got.Rows != written || got.Seqs != written || got.Last != written {
			t.Errorf("of %d rows of %s there are %d, %d of them different, up to %d", written, w.name, got.Rows, got.Seqs, got.Last)
		}
		total += written
	}
	if total == 0 || a.counts.Load() == 0 {
		t.Error("the application did nothing")
	}
	t.Logf("the application wrote %d rows, counted them %d times, and was refused %d times", total, a.counts.Load(), a.refused.Load())
}

// misplaced counts the rows that are in a table of the other's.
func (a *application) misplaced(t *testing.T) (theirs, ours int64) {
	t.Helper()
	return a.number(t, `SELECT (SELECT COUNT(*) FROM usage_inbox WHERE writer LIKE 'application%') + (SELECT COUNT(*) FROM usage_writers WHERE writer LIKE 'application%')`),
		a.number(t, `SELECT COUNT(*) FROM application_rows WHERE writer NOT LIKE 'application%'`)
}

func (a *application) number(t *testing.T, query string) (n int64) {
	t.Helper()
	if err := a.direct.Get(&n, query); err != nil {
		t.Fatal(err)
	}
	return n
}
