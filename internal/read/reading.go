// Package read answers questions about what was counted: a Query becomes spans, spans
// become SQL, and rows become counts.
//
// A Reading is one transaction that reads, of one moment: it knows its time, how complete
// it is, the calendar and what of history is kept still, and its methods are the
// questions. A range of time is read in as few index probes as say what was counted in it,
// widened to what is kept of it: which those are is chosen without a database (see Query.few in span.go), of the buckets
// that are stored.
//
//	query.go    what can be asked, what is wrong with it, and which names it selects
//	span.go     which buckets are read for a range of time
//	sql.go      a span, and a selection of names, as SQL
//	reading.go  a Reading, and sums: of one counter, of many
//	rows.go     subjects, with all their measures
//	history.go  counts by bucket
//	each.go     all that there is, page by page, each a Reading of its own
package read

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/usagekit/usagekit/internal/calendar"
	"github.com/usagekit/usagekit/internal/clock"
	"github.com/usagekit/usagekit/internal/database"
	"github.com/usagekit/usagekit/internal/naming"
)

// manyNames are more than are read to choose among them here.
const manyNames = 10_000

const (
	// Read before the data. Where nothing waits, every batch that reached the
	// database before now is in it; else every one before the last fold that left
	// nothing behind. No clock but the database's is asked. It also prepares the
	// transaction: PostgreSQL expects far more rows of a range of names than there
	// are, and would compile for hundreds of milliseconds what takes one.
	sqlComplete = `SELECT {local jit off} AS prepared, {now} AS now, (SELECT COUNT(*) FROM (SELECT 1 FROM usage_inbox LIMIT 1) AS i) AS waiting,
COALESCE((SELECT value FROM usage_meta WHERE name = 'folded'), '0') AS folded, ` + clock.Rules

	sqlTotal = `SELECT COALESCE((SELECT value FROM usage_metrics WHERE key = ?), 0)`

	// The counters that are what their current bucket is.
	sqlCurrent = `SELECT h.key, h.value AS n FROM usage_history h WHERE h.step = 2 AND {in h.bucket} AND h.key IN ('` + naming.RequestsTotal + `', '` + naming.ActiveDaily + `')
UNION ALL SELECT h.key, h.value FROM usage_history h WHERE h.step = 3 AND {in h.bucket} AND h.key = '` + naming.ActiveMonthly + `'`
)

// Reading is what one transaction reads, which sees one moment: all numbers of an answer
// belong together. It is the transaction's, and one goroutine's. A zero Reading is of
// nothing: it says what is wrong with a Query, and has no counts.
type Reading struct {
	Now     time.Time // that moment, by the database's clock
	Through time.Time // every batch that reached the database before is in it; zero: a clock was wrong, and it is not known
	Waiting bool      // some batch is not

	tx       *database.Tx
	calendar calendar.Calendar
	horizon  calendar.Horizon // of Now
	current  map[string]int64 // what today has read; nil: nothing yet
	seeks    bool             // PostgreSQL is told to read no whole tables now: enable_seqscan is off
	pages    bool             // and stays so: what Each reads is a page of a table
}

// Begin begins one, by the rules of the zone that are in force.
func Begin(ctx context.Context, tx *database.Tx, by *clock.Clock) (*Reading, error) {
	var c struct {
		Prepared      string
		Now, Waiting  int64
		Folded, Rules string
	}
	if err := tx.Get(ctx, &c, sqlComplete); err != nil {
		return nil, err
	}
	if err := by.Follow(ctx, tx, c.Rules); err != nil {
		return nil, err
	}
	r := &Reading{Now: time.UnixMilli(c.Now), Waiting: c.Waiting > 0, tx: tx}
	through := c.Now
	if r.Waiting {
		through, _ = strconv.ParseInt(c.Folded, 10, 64) // 0: not yet
	}
	if 0 < through && through <= c.Now { // no fold can have been later
		r.Through = time.UnixMilli(through)
	}
	r.calendar, r.horizon = by.Calendar(), by.Horizon(r.Now)
	return r, nil
}

// seek has PostgreSQL seek what it reads, as in history, where it expects far more rows
// than there are; or again choose for itself, as in totals, of which some want all.
func (r *Reading) seek(ctx context.Context, wanted bool) error {
	if wanted = wanted || r.pages; r.seeks == wanted {
		return nil
	}
	r.seeks = wanted
	to := "on"
	if wanted {
		to = "off"
	}
	var prepared string
	return r.tx.Get(ctx, &prepared, "SELECT {local enable_seqscan "+to+"}")
}

// from runs a query that begins with text, of a table, and ends with more.
func (r *Reading) from(ctx context.Context, dest any, text string, t table, more string, args ...any) error {
	if err := r.seek(ctx, t.history); err != nil {
		return err
	}
	return r.tx.Select(ctx, dest, text+" FROM "+t.text+more, append(slices.Clip(t.args), args...)...)
}

// Get reads the total of one counter.
func (r *Reading) Get(ctx context.Context, name string) (n int64, err error) {
	if r.tx == nil {
		return 0, nil
	}
	if name = naming.Known(name); naming.Current(name) {
		today, err := r.today(ctx)
		return today[name], err
	}
	err = r.tx.Get(ctx, &n, sqlTotal, name)
	return n, err
}

// today reads the counters that are what their current bucket is.
func (r *Reading) today(ctx context.Context) (map[string]int64, error) {
	if r.current != nil {
		return r.current, nil
	}
	c := r.calendar
	stored, err := r.stored(ctx, []clock.Segment{
		clock.Between(calendar.Day, c.Start(calendar.Day, r.Now), c.Next(calendar.Day, r.Now)),
		clock.Between(calendar.Month, c.Start(calendar.Month, r.Now), c.Next(calendar.Month, r.Now)),
	})
	if err != nil {
		return nil, err
	}
	var rows []struct {
		Key string
		N   int64
	}
	if err := r.tx.Select(ctx, &rows, sqlCurrent, stored[0], stored[1]); err != nil {
		return nil, err
	}
	r.current = map[string]int64{naming.RequestsToday: 0, naming.ActiveDaily: 0, naming.ActiveMonthly: 0}
	for _, of := range rows {
		if of.Key == naming.RequestsTotal {
			of.Key = naming.RequestsToday
		}
		r.current[of.Key] = plus(r.current[of.Key], of.N)
	}
	return r.current, nil
}

// Totals reads one count per name, the largest first.
func (r *Reading) Totals(ctx context.Context, q Query) ([]Count, error) {
	if err := q.checkSums(); err != nil || r.tx == nil {
		return nil, err
	}
	spans, err := r.summed(ctx, &q)
	if err != nil {
		return nil, err
	}
	counts, err := r.largest(ctx, &q, spans, false)
	if err != nil {
		return nil, err
	}
	if !q.ranged() {
		today, err := r.today(ctx)
		if err != nil {
			return nil, err
		}
		for name, n := range today {
			if q.matches(name) {
				counts = append(counts, Count{Name: name, N: n})
			}
		}
	}
	bySize(counts)
	if q.Limit > 0 && len(counts) > q.Limit {
		counts = counts[:q.Limit]
	}
	return counts, nil
}

// largest reads the sums over spans of what q selects, of names or of stems, the
// largest first.
func (r *Reading) largest(ctx context.Context, q *Query, spans []span, stems bool) ([]Count, error) {
	c := q.summed(r.tx.Dialect)
	if q.Limit == 0 {
		return r.ordered(ctx, counts(r.tx.Dialect, spans, c), stems, "")
	}
	if !q.ranged() && len(q.Names) == 0 {
		// No index has totals by size, for then they could not be updated in
		// place. What is less than the last of the largest of some is not among the
		// largest of all: a comparison of numbers rules most of a million out.
		some := counts(r.tx.Dialect, spans, condition{})
		some.text = "(SELECT h.key AS key, h.value AS n FROM (SELECT key, n AS value FROM " + some.text + " LIMIT ?) AS h WHERE " + strings.Join(c.where, " AND ") + ") AS t"
		some.args = append(append(some.args, manyNames), c.args...)
		last, err := r.ordered(ctx, some, stems, " LIMIT 1 OFFSET ?", q.Limit-1)
		if err != nil {
			return nil, err
		}
		if len(last) > 0 {
			c.least = last[0].N
		}
	}
	return r.ordered(ctx, counts(r.tx.Dialect, spans, c), stems, " LIMIT ?", q.Limit)
}

// ordered reads from by size: the count of each name, or the largest of each stem.
func (r *Reading) ordered(ctx context.Context, from table, stems bool, limit string, args ...any) (counts []Count, err error) {
	text, group := "SELECT key AS name, n", ""
	if stems {
		text, group = "SELECT "+r.tx.Stem("key")+" AS name, MAX(n) AS n", " GROUP BY 1"
	}
	err = r.from(ctx, &counts, text, from, group+" ORDER BY n DESC, name"+limit, args...)
	return counts, err
}

// counts reads the sums over spans of the names that c selects, in no order.
func (r *Reading) counts(ctx context.Context, spans []span, c condition) (list []Count, err error) {
	err = r.from(ctx, &list, "SELECT key AS name, n", counts(r.tx.Dialect, spans, c), "")
	return list, err
}

// summed covers the range that q asks for, or all time, to sum it up.
func (r *Reading) summed(ctx context.Context, q *Query) ([]span, error) {
	if !q.ranged() {
		return q.totals(), nil
	}
	return r.spans(ctx, q, false)
}

// spans covers the range that q asks for: with buckets of its step (or the next
// finer one that is kept) when each counts, else with the fewest. It lists what is
// stored, under whatever rules of the zone it was written, and is never empty.
func (r *Reading) spans(ctx context.Context, q *Query, each bool) ([]span, error) {
	var choices []choice
	if each {
		choices = q.each(r.calendar, r.horizon)
	} else {
		stored, err := r.stored(ctx, q.extents(r.calendar, r.horizon))
		if err != nil {
			return nil, err
		}
		choices = q.few(r.calendar, r.horizon, stored)
	}
	var fine []clock.Segment
	for _, c := range choices {
		fine = append(fine, c.edges...)
	}
	stored, err := r.stored(ctx, fine)
	if err != nil {
		return nil, err
	}
	var spans []span
	for _, c := range choices {
		spans = append(spans, c.spans(c.kept, c.coarse)...)
		for range c.edges {
			spans = append(spans, c.spans(c.fine, stored[0])...)
			stored = stored[1:]
		}
	}
	if len(spans) == 0 {
		spans = []span{{step: calendar.Day}}
	}
	return spans, nil
}

// stored lists the buckets that there are of each segment.
func (r *Reading) stored(ctx context.Context, segments []clock.Segment) ([][]int64, error) {
	if len(segments) > 0 {
		r.seeks = true // clock.Stored turns enable_seqscan off by itself
	}
	return clock.Stored(ctx, r.tx, r.calendar, segments)
}
