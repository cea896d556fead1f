package read

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/usagekit/usagekit/internal/database"
)

const (
	PageSize     = 5_000       // counts after which a page is full, and about as many rows as a query reads
	eachLeast    = 100         // rows of each bucket that one may read, however many buckets are summed
	eachPatience = time.Second // after which a page ends, whatever it has
)

const (
	sqlFew = `SELECT COUNT(*) FROM (SELECT 1 FROM (%s) AS u LIMIT ?) AS f`

	// The first name that there is no room for, in the fullest of some buckets. What
	// else q asks of names is not looked at: nothing looks through a million for a few.
	sqlNoRoom = `SELECT COALESCE(MIN((SELECT h.key FROM %s AS h WHERE %s ORDER BY h.key LIMIT 1 OFFSET ?)), '') FROM %s`
)

// Rest is what is left to read of all that a query selects, page by page: each of a
// Reading of its own.
type Rest struct {
	q      Query
	each   bool // one count per name and bucket
	listed bool // spans and starts are known
	spans  []span
	starts []int64 // of the buckets that are left; else one, for all
	run    int     // how many of them to read at once, if that is not too much
	lo     string  // from which name on, in the first of them
}

// All is all that q selects: by bucket where it says of which step, else summed.
func All(q Query) (left Rest, err error) {
	each := q.Step != 0
	if each {
		err = q.checkSteps()
	} else {
		err = q.checkSums()
	}
	return Rest{q: q, each: each, starts: []int64{0}, run: 1}, err
}

// Empty tells whether nothing is left.
func (left Rest) Empty() bool { return len(left.starts) == 0 }

// list finds the buckets to read.
func (r *Reading) list(ctx context.Context, left *Rest) (err error) {
	q := &left.q
	if left.listed = true; !left.each {
		left.spans, err = r.summed(ctx, q)
		return err
	}
	if err := q.checkKept(r.calendar, r.horizon, false); err != nil {
		return err
	}
	if left.spans, err = r.spans(ctx, q, true); err != nil {
		return err
	}
	left.starts = nil
	for _, sp := range left.spans {
		for _, b := range sp.buckets {
			left.starts = append(left.starts, r.calendar.PlaceIn(q.Step, sp.step, b))
		}
	}
	slices.Sort(left.starts)
	left.starts = slices.Compact(left.starts)
	return nil
}

// Page reads some of what is left, and returns the rest.
func (r *Reading) Page(ctx context.Context, left Rest) (counts []Count, _ Rest, err error) {
	if r.tx == nil {
		return nil, Rest{}, nil
	}
	r.pages = true
	if err := r.seek(ctx, true); err != nil {
		return nil, Rest{}, err
	}
	if !left.listed {
		if err := r.list(ctx, &left); err != nil {
			return nil, Rest{}, err
		}
	}
	for began := time.Now(); !left.Empty() && len(counts) < PageSize && time.Since(began) < eachPatience; {
		piece, err := r.piece(ctx, &left)
		if err != nil {
			return nil, Rest{}, err
		}
		counts = append(counts, piece...)
	}
	return counts, left, nil
}

// piece reads about PageSize rows of what is left, and takes them off it: those of
// several buckets where there are few in each; else a range of names.
func (r *Reading) piece(ctx context.Context, left *Rest) (list []Count, err error) {
	q, spans, run, fits := &left.q, left.spans, min(left.run, len(left.starts)), false
	if left.each {
		end := int64(math.MaxInt64)
		if run < len(left.starts) {
			end = left.starts[run]
		}
		spans = during(r.calendar, q.Step, spans, left.starts[0], end)
		if left.lo == "" {
			if fits, err = r.fitIn(ctx, q, spans); err != nil {
				return nil, err
			}
			if !fits && run > 1 {
				left.run = 1
				return nil, nil
			}
		}
	}
	end := ""
	if !fits && q.Name == "" && len(q.Names) == 0 { // few are named
		if end, err = r.noRoom(ctx, spans, left.lo); err != nil {
			return nil, err
		}
	}
	within := nameRange{left.lo, end}
	var parts []span
	for _, sp := range spans {
		for _, names := range overlap([]nameRange{sp.nameRange}, within) {
			parts = append(parts, span{names, sp.step, sp.buckets})
		}
	}
	switch {
	case left.each:
		list, err = r.history(ctx, parts, q.condition(r.tx.Dialect), q.Step)
	case len(parts) > 0:
		list, err = r.counts(ctx, parts, q.summed(r.tx.Dialect))
	}
	if err != nil {
		return nil, err
	}
	if !left.each && !q.ranged() {
		today, err := r.today(ctx)
		if err != nil {
			return nil, err
		}
		for name, n := range today {
			if q.matches(name) && len(overlap([]nameRange{within}, only(name))) > 0 {
				list = append(list, Count{Name: name, N: n})
			}
		}
	}
	if !left.each {
		slices.SortFunc(list, func(a, b Count) int { return strings.Compare(a.Name, b.Name) })
	}
	if left.lo = end; end == "" {
		left.starts = left.starts[run:]
	}
	if fits {
		left.run = 2 * run
	}
	return list, nil
}

// fitIn tells whether spans of history have no more rows than one piece takes.
func (r *Reading) fitIn(ctx context.Context, q *Query, spans []span) (bool, error) {
	var c condition
	if len(q.Names) > 0 {
		c = oneOf(r.tx.Dialect, q.Names)
	}
	var texts []string
	var args []any
	for _, sp := range spans {
		text, of := sp.query(r.tx.Dialect, c, "h.key")
		texts, args = append(texts, text), append(args, of...)
	}
	if len(texts) == 0 {
		return true, nil
	}
	var n int
	err := r.tx.Get(ctx, &n, fmt.Sprintf(sqlFew, strings.Join(texts, " UNION ALL ")), append(args, PageSize+1)...)
	return n <= PageSize, err
}

// noRoom finds the name up to which a piece of spans goes that begins at lo; "": all.
func (r *Reading) noRoom(ctx context.Context, spans []span, lo string) (end string, err error) {
	buckets := 0
	for _, sp := range spans {
		buckets += max(len(sp.buckets), 1)
	}
	for _, sp := range spans {
		for _, names := range overlap([]nameRange{sp.nameRange}, nameRange{lo, end}) {
			table, list, where := "usage_metrics", "(SELECT 1) AS v", "h.key >= ?"
			args, of := []any{names.lo}, []any(nil)
			if names.hi != "" {
				where, args = where+" AND h.key < ?", append(args, names.hi)
			}
			if sp.step != 0 {
				table, where = "usage_history", where+" AND h.step = ? AND h.bucket = v.bucket"
				list, of = "{v}", []any{database.List{{Name: "bucket", Numbers: sp.buckets}}}
				args = append(args, int(sp.step))
			}
			args = append(append(args, max(PageSize/buckets, eachLeast)), of...)
			var first string
			if err := r.tx.Get(ctx, &first, fmt.Sprintf(sqlNoRoom, table, where, list), args...); err != nil {
				return "", err
			}
			if first != "" {
				end = first
			}
		}
	}
	return end, nil
}
