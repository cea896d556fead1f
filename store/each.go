package store

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/usagekit/usagekit/internal/calendar"
	"github.com/usagekit/usagekit/internal/database"
)

const (
	eachPage     = 5_000       // counts after which a page is full, and about as many rows as a query reads
	eachLeast    = 100         // rows of each bucket that one may read, however many buckets are summed
	eachPatience = time.Second // after which a page ends, whatever it has
)

const (
	sqlPrepareEach = `SELECT %s` // see sqlStored
	sqlFew         = `SELECT COUNT(*) FROM (SELECT 1 FROM (%s) AS u LIMIT ?) AS f`

	// The first name that there is no room for, in the fullest of some buckets. What
	// else q asks of names is not looked at: nothing looks through a million for a few.
	sqlNoRoom = `SELECT COALESCE(MIN((SELECT h.key FROM %s AS h WHERE %s ORDER BY h.key LIMIT 1 OFFSET ?)), '') FROM %s`
)

// Each returns every counter that q selects, however many there are: of all time, or
// summed over the range [From, To), in the order of names (by bytes). With q.Step it
// returns one count per name and bucket of that step, as History does: the oldest
// bucket first, within it by name. Of the current day and month it has what Totals
// has. Limit is how many counts it returns, the first ones.
//
// They are read in pages as they are asked for, each in a short transaction of its
// own: between two, no connection is held, and whoever reads may take their time. A
// page is exact as of its own moment, and no name comes twice (in a bucket); but what
// is counted meanwhile is in a later page and not in an earlier one. Without To, the
// last bucket is that of when Each began. An error comes once, with a zero Count, and
// is the end.
func (s *Store) Each(ctx context.Context, q Query) iter.Seq2[Count, error] {
	return func(yield func(Count, error) bool) {
		q, n := q, 0
		left, err := s.all(ctx, &q)
		for err == nil && len(left.starts) > 0 {
			var counts []Count
			if counts, left, err = s.page(ctx, &q, left); err != nil {
				break
			}
			for _, c := range counts {
				if n++; !yield(c, nil) || n == q.Limit {
					return
				}
			}
		}
		if err != nil {
			yield(Count{}, err)
		}
	}
}

// rest is what Each has still to read.
type rest struct {
	spans  []span
	each   bool    // one count per name and bucket
	starts []int64 // of the buckets that are left; else one, for all
	run    int     // how many of them to read at once, if that is not too much
	lo     string  // from which name on, in the first of them
}

// all checks q, and returns all that there is to read for it.
func (s *Store) all(ctx context.Context, q *Query) (rest, error) {
	r := rest{each: q.step() != 0, starts: []int64{0}, run: 1}
	err := q.check()
	switch {
	case err != nil || s == nil:
		return rest{}, err
	case r.each:
		err = s.checkKept(q, false)
	default:
		err = q.checkSums()
	}
	if err != nil {
		return rest{}, err
	}
	if !r.each && !q.ranged() {
		r.spans = q.totals()
		return r, nil
	}
	var spans []span // of an attempt that may outlast this call
	err = s.read(ctx, func(ctx context.Context, tx *database.Tx, _ time.Time) (err error) {
		spans, err = s.spans(ctx, tx, q, r.each)
		return err
	})
	if err != nil {
		return rest{}, err
	}
	r.spans = spans
	if r.each {
		r.starts = nil
		for _, sp := range spans {
			for _, b := range sp.buckets {
				r.starts = append(r.starts, s.calendar().PlaceIn(q.step(), sp.step, b))
			}
		}
		slices.Sort(r.starts)
		r.starts = slices.Compact(r.starts)
	}
	return r, nil
}

// page reads some of r, and returns what is left then.
func (s *Store) page(ctx context.Context, q *Query, r rest) ([]Count, rest, error) {
	var done struct { // by an attempt that may outlast this call
		counts []Count
		left   rest
	}
	err := s.read(ctx, func(ctx context.Context, tx *database.Tx, now time.Time) error {
		var prepared string
		if err := tx.Get(ctx, &prepared, fmt.Sprintf(sqlPrepareEach, s.db.SetLocal("enable_seqscan", "off"))); err != nil {
			return err
		}
		var counts []Count
		left := r
		for began := time.Now(); len(left.starts) > 0 && len(counts) < eachPage && time.Since(began) < eachPatience; {
			piece, err := s.piece(ctx, tx, q, &left, now)
			if err != nil {
				return err
			}
			counts = append(counts, piece...)
		}
		done.counts, done.left = counts, left
		return nil
	})
	if err != nil {
		return nil, rest{}, err
	}
	return done.counts, done.left, nil
}

// piece reads about eachPage rows of r, and takes them off it: those of several
// buckets where there are few in each; else a range of names.
func (s *Store) piece(ctx context.Context, tx *database.Tx, q *Query, r *rest, now time.Time) (counts []Count, err error) {
	spans, run, few := r.spans, min(r.run, len(r.starts)), false
	if r.each {
		end := int64(math.MaxInt64)
		if run < len(r.starts) {
			end = r.starts[run]
		}
		spans = s.during(q.step(), spans, r.starts[0], end)
		if r.lo == "" {
			if few, err = s.few(ctx, tx, q, spans); err != nil {
				return nil, err
			}
			if !few && run > 1 {
				r.run = 1
				return nil, nil
			}
		}
	}
	end := ""
	if !few && q.Name == "" && len(q.Names) == 0 { // few are named
		if end, err = s.noRoom(ctx, tx, spans, r.lo); err != nil {
			return nil, err
		}
	}
	within := nameRange{r.lo, end}
	var parts []span
	for _, sp := range spans {
		for _, names := range overlap([]nameRange{sp.nameRange}, within) {
			parts = append(parts, span{names, sp.step, sp.buckets})
		}
	}
	switch {
	case r.each:
		counts, err = s.history(ctx, tx, parts, s.condition(q), q.step())
	case len(parts) > 0:
		counts, err = s.sumsOver(ctx, tx, parts, s.summed(q))
	}
	if err == nil && !r.each && !q.ranged() {
		var current map[string]int64
		current, err = s.current(ctx, tx, now)
		for name, n := range current {
			if q.matches(name) && len(overlap([]nameRange{within}, only(name))) > 0 {
				counts = append(counts, Count{Name: name, N: n})
			}
		}
	}
	if err != nil {
		return nil, err
	}
	if !r.each {
		slices.SortFunc(counts, func(a, b Count) int { return strings.Compare(a.Name, b.Name) })
	}
	if r.lo = end; end == "" {
		r.starts = r.starts[run:]
	}
	if few {
		r.run = 2 * run
	}
	return counts, nil
}

// during returns what of spans is in buckets of step from start up to end.
func (s *Store) during(step calendar.Step, spans []span, start, end int64) []span {
	var list []span
	for _, sp := range spans {
		place := func(stored, at int64) int { return cmp.Compare(s.calendar().PlaceIn(step, sp.step, stored), at) }
		i, _ := slices.BinarySearchFunc(sp.buckets, start, place)
		j, _ := slices.BinarySearchFunc(sp.buckets, end, place)
		if i < j {
			list = append(list, span{sp.nameRange, sp.step, sp.buckets[i:j]})
		}
	}
	return list
}

// few tells whether spans of history have no more rows than one piece takes.
func (s *Store) few(ctx context.Context, tx *database.Tx, q *Query, spans []span) (bool, error) {
	var c condition
	if len(q.Names) > 0 {
		c = s.oneOf(q.Names)
	}
	var texts []string
	var args []any
	for _, sp := range spans {
		text, of := s.span(sp, c, "h.key")
		texts, args = append(texts, text), append(args, of...)
	}
	if len(texts) == 0 {
		return true, nil
	}
	var n int
	err := tx.Get(ctx, &n, fmt.Sprintf(sqlFew, strings.Join(texts, " UNION ALL ")), append(args, eachPage+1)...)
	return n <= eachPage, err
}

// noRoom finds the name up to which a piece of spans goes that begins at lo; "": all.
func (s *Store) noRoom(ctx context.Context, tx *database.Tx, spans []span, lo string) (end string, err error) {
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
				list, of = s.db.Values(database.Column{Name: "bucket", Numbers: sp.buckets})
				args = append(args, int(sp.step))
			}
			args = append(append(args, max(eachPage/buckets, eachLeast)), of...)
			var first string
			if err := tx.Get(ctx, &first, fmt.Sprintf(sqlNoRoom, table, where, list), args...); err != nil {
				return "", err
			}
			if first != "" {
				end = first
			}
		}
	}
	return end, nil
}
