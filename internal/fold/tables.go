package fold

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"time"

	"github.com/usagekit/usagekit/internal/calendar"
	"github.com/usagekit/usagekit/internal/clock"
	"github.com/usagekit/usagekit/internal/counter"
	"github.com/usagekit/usagekit/internal/crossing"
	"github.com/usagekit/usagekit/internal/database"
	"github.com/usagekit/usagekit/internal/naming"
)

const (
	// Both upserts add in key order, so that two of them never wait for each
	// other, and saturate: one overflow must not fail everybody's fold.
	sqlAddTotals = `INSERT INTO usage_metrics AS m (key, value) {rows}
ON CONFLICT (key) DO UPDATE SET value = CASE WHEN m.value > 9007199254740991 - excluded.value THEN 9007199254740991 ELSE m.value + excluded.value END`

	sqlAddHistory = `INSERT INTO usage_history AS h (step, bucket, key, value) {rows}
ON CONFLICT (step, bucket, key) DO UPDATE SET value = CASE WHEN h.value > 9007199254740991 - excluded.value THEN 9007199254740991 ELSE h.value + excluded.value END`

	sqlReturning       = ` RETURNING step, bucket, key, value`
	sqlReturningTotals = ` RETURNING 0 AS step, 0 AS bucket, key, value`

	sqlTotal = `SELECT value FROM usage_metrics WHERE key = ?`
)

// chunk is how many rows one upsert takes: a twentieth of a second of a small
// server, far below its statement_timeout, however large a batch is.
const chunk = 5_000

// Tables is how counts get into totals and history: from batches, and at once.
type Tables struct {
	clock   *clock.Clock
	watch   crossing.Watch
	caps    caps
	crossed func()
}

// NewTables returns one; caps are how many subjects a group may have (0: any number), and
// crossed is called when a threshold was.
func NewTables(c *clock.Clock, limits map[string]int, watch crossing.Watch, crossed func()) *Tables {
	t := &Tables{clock: c, watch: watch, crossed: crossed}
	t.caps.of = maps.Clone(limits)
	maps.DeleteFunc(t.caps.of, func(_ string, n int) bool { return n == 0 })
	return t
}

// newSums returns none yet, to be added at the database's time now.
func (t *Tables) newSums(now time.Time, pruned clock.Removal) *sums {
	sure := pruned.Before(now)
	h := t.clock.Horizon(sure)
	if time.Since(now).Abs() > clock.MaxSkew { // who knows what is old
		h = calendar.Unknown()
	}
	return &sums{calendar: t.clock.Calendar(), now: now, sure: sure, horizon: h, names: map[string]*sum{}, routes: map[string]*sum{}, starts: map[int64][3]int64{}}
}

// Written is what a transaction has changed that this process knows of, once it is certain.
type Written struct {
	subjects *subjects
	crossed  int
}

// apply adds sums to totals and history, in the order of their keys. It derives the active
// users, those whose first requests of a day or month these are; moves what is beyond a
// cap; and records the thresholds that are crossed.
func (t *Tables) apply(ctx context.Context, tx *database.Tx, sums *sums) (Written, error) {
	if err := t.caps.move(ctx, tx, sums); err != nil {
		return Written{}, err
	}
	totals, history, users := sums.rows()
	a := adding{watch: t.watch}
	if err := a.rows(ctx, tx, sqlAddTotals, totals, nil); err != nil {
		return Written{}, err
	}
	if err := a.rows(ctx, tx, sqlAddHistory, history, nil); err != nil {
		return Written{}, err
	}
	active := map[bucket]int64{}
	err := a.rows(ctx, tx, sqlAddHistory, users, func(r row, after int64) {
		if after == r.n && after < counter.Max { // a full counter may be old
			b := bucket{r.Step, r.Bucket, naming.ActiveDaily}
			if b.Step == calendar.Month {
				b.Key = naming.ActiveMonthly
			}
			active[b]++
		}
	})
	if err != nil {
		return Written{}, err
	}
	derived := make([]row, 0, len(active))
	for _, b := range slices.SortedFunc(maps.Keys(active), func(a, b bucket) int {
		return cmp.Or(cmp.Compare(a.Step, b.Step), cmp.Compare(a.Bucket, b.Bucket))
	}) {
		derived = append(derived, row{b, active[b]})
	}
	if err := a.rows(ctx, tx, sqlAddHistory, derived, nil); err != nil {
		return Written{}, err
	}
	n, err := t.watch.Record(ctx, tx, a.crossed, sums.now)
	return Written{sums.subjects, n}, err
}

// Applied takes note of what was written, once that is certain.
func (t *Tables) Applied(w Written) {
	if w.subjects != nil {
		t.caps.known.Store(w.subjects)
	}
	if w.crossed > 0 {
		t.crossed()
	}
}

// Add is the whole of one count, made now; it returns the total as well.
func (t *Tables) Add(ctx context.Context, tx *database.Tx, name string, n int64) (total int64, w Written, err error) {
	now, pruned, err := t.clock.Now(ctx, tx)
	if err != nil {
		return 0, w, err
	}
	sums := t.newSums(now, pruned)
	sums.add(now.UnixMilli(), name, n)
	if w, err = t.apply(ctx, tx, sums); err != nil {
		return 0, w, err
	}
	counted := ""
	for counted = range sums.names { // one, which a cap may have moved
	}
	err = tx.Get(ctx, &total, sqlTotal, counted)
	return total, w, err
}

// Forget has what is known of the tables be asked for again: they are others.
func (t *Tables) Forget() { t.caps.known.Store(nil) }

// adding is what is learned while rows are added.
type adding struct {
	watch   crossing.Watch
	crossed []crossing.Crossing
}

// rows adds rows by query, sqlAddTotals or sqlAddHistory. told, unless it is nil, hears
// what each has become.
func (a *adding) rows(ctx context.Context, tx *database.Tx, query string, rows []row, told func(r row, after int64)) error {
	watched := func(r row) bool { return told != nil || a.watch.Of(r.Step, r.Key) }
	for rows := range slices.Chunk(rows, chunk) {
		columns, returning := columns(rows), sqlReturning
		if query == sqlAddTotals {
			columns, returning = columns[2:], sqlReturningTotals
		}
		if !slices.ContainsFunc(rows, watched) {
			if err := tx.ExecRows(ctx, query, columns); err != nil {
				return err
			}
			continue
		}
		var now []struct {
			bucket
			Value int64
		}
		if err := tx.Select(ctx, &now, query+returning, columns); err != nil {
			return err
		}
		of := make(map[bucket]int64, len(rows))
		for _, r := range rows {
			of[r.bucket] = r.n
		}
		for _, r := range now {
			n := of[r.bucket]
			a.crossed = a.watch.Crossed(a.crossed, r.Step, r.Bucket, r.Key, n, r.Value)
			if told != nil {
				told(row{r.bucket, n}, r.Value)
			}
		}
	}
	return nil
}

// columns are those of rows of history; of totals, the last two.
func columns(rows []row) database.List {
	steps, starts := make([]int64, len(rows)), make([]int64, len(rows))
	keys, n := make([]string, len(rows)), make([]int64, len(rows))
	for i, r := range rows {
		steps[i], starts[i], keys[i], n[i] = int64(r.Step), r.Bucket, r.Key, r.n
	}
	return database.List{{Name: "step", Numbers: steps}, {Name: "bucket", Numbers: starts}, {Name: "key", Texts: keys}, {Name: "n", Numbers: n}}
}
