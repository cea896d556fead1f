package store

import (
	"context"
	"time"

	"github.com/jmoiron/sqlx"
)

// span is a part of history: buckets of one step, of the names from lo up to
// hi ("" is no bound). A range is a list of spans, and a span a list of buckets:
// an index probe each (0.7 ms where BETWEEN takes 34).
type span struct {
	step    Step
	buckets []int64
	lo, hi  string
}

// condition selects names: WHERE on h.key, or what a list v has.
type condition struct {
	list     string // "": none
	listArgs []any
	bounds   string // the list's column that a span bounds
	where    string
	args     []any
}

// from is table as h, after the list. CROSS JOIN has SQLite walk the list and
// seek in the table; left to itself it reads the list anew for every row (500
// subjects in a range took 4 s, and take 16 ms).
func (c condition) from(table string) string {
	if c.list == "" {
		return table + " AS h"
	}
	return c.list + " CROSS JOIN " + table + " AS h"
}

// table is the text of a table expression, and its parameters.
type table struct {
	text string
	args []any
}

// spansOf covers the range that q asks for; nil: all time.
func (s *Store) spansOf(ctx context.Context, tx *sqlx.Tx, q *Query) ([]span, error) {
	if !q.ranged() {
		return nil, nil
	}
	return s.spans(ctx, tx, q, false)
}

// spans covers the range that q asks for: with buckets of its step (or the next
// finer one that is kept) when each counts, else with the fewest, coarse ones
// inside and fine ones at the edges. It is never empty.
func (s *Store) spans(ctx context.Context, tx *sqlx.Tx, q *Query, each bool) ([]span, error) {
	var extent struct{ First, Last *int64 }
	if err := tx.GetContext(ctx, &extent, s.sql.text(sqlExtent)); err != nil {
		return nil, err
	}
	nothing := []span{{step: Day}}
	if extent.First == nil {
		return nothing, nil
	}
	from, to := time.Unix(*extent.First, 0), s.calendar.next(Day, time.Unix(*extent.Last, 0))
	if q.From.After(from) {
		from = q.From
	}
	if !q.To.IsZero() && q.To.Before(to) {
		to = q.To
	}
	if !from.Before(to) {
		return nothing, nil
	}
	from, to = s.calendar.start(q.Step, from), s.calendar.ceil(q.Step, to)
	coarse := func(fine, kept Step) Step {
		if each {
			return fine
		}
		return kept
	}
	var spans []span
	users, plain := q.groups()
	if users {
		fine := max(q.Step, Day)
		for _, sp := range s.cover(from, to, fine, coarse(fine, Month)) {
			spans = append(spans, span{sp.step, sp.buckets, "user.", "user/"})
		}
	}
	if plain {
		fine := min(q.Step, Day)
		for _, sp := range s.cover(from, to, fine, coarse(fine, Day)) {
			spans = append(spans, span{sp.step, sp.buckets, "", "user."}, span{sp.step, sp.buckets, "user/", ""})
		}
	}
	lo, hi := q.Prefix, after(q.Prefix)
	if q.Name != "" {
		lo, hi = q.Name, q.Name+"\x01" // no name has a control character
	}
	within := spans[:0]
	for _, sp := range spans {
		sp.lo = max(sp.lo, lo)
		if sp.hi == "" || hi != "" && hi < sp.hi {
			sp.hi = hi
		}
		if sp.hi == "" || sp.lo < sp.hi {
			within = append(within, sp)
		}
	}
	if len(within) == 0 {
		return nothing, nil
	}
	return within, nil
}

// cover lists the buckets of [from, to): coarse ones where whole ones fit.
func (s *Store) cover(from, to time.Time, fine, coarse Step) []span {
	c := s.calendar
	first, last := c.ceil(coarse, from), c.start(coarse, to)
	if fine == coarse || !first.Before(last) {
		return []span{{step: fine, buckets: c.buckets(fine, from, to)}}
	}
	edges := append(c.buckets(fine, from, first), c.buckets(fine, last, to)...)
	return []span{{step: fine, buckets: edges}, {step: coarse, buckets: c.buckets(coarse, first, last)}}
}

// selected is the table of key and n of the names that q selects. What belongs
// to the current bucket alone is in no sum, nor is what an adopted table has
// under those names.
func (s *Store) selected(q *Query, spans []span) table {
	c := s.condition(q, "h.key")
	c.where += " AND h.key NOT IN ('api.requests.today', 'user.active.daily', 'user.active.monthly')"
	return s.counts(spans, c)
}

// counts is the table of key and n of the names that c selects: their totals, or
// their sums over spans.
func (s *Store) counts(spans []span, c condition) table {
	if spans == nil {
		return table{"(SELECT h.key AS key, h.value AS n FROM " + c.from("usage_metrics") + " WHERE " + c.where + ") AS t",
			append(append([]any{}, c.listArgs...), c.args...)}
	}
	var t table
	for i, sp := range spans {
		text, args := s.span(sp, c, "h.key AS key, h.value AS value")
		if i > 0 {
			t.text += " UNION ALL "
		}
		t.text, t.args = t.text+text, append(t.args, args...)
	}
	t.text = "(SELECT key, CAST(CASE WHEN SUM(value) > 9007199254740991 THEN 9007199254740991 ELSE SUM(value) END AS BIGINT) AS n FROM (" +
		t.text + ") AS u GROUP BY key) AS t"
	return t
}

// span is the query for what of sp's rows c selects.
func (s *Store) span(sp span, c condition, columns string) (string, []any) {
	in, list := s.sql.oneOf("h.bucket", sp.buckets)
	key := "h.key"
	if s.sql.sqlite && c.list != "" {
		key = c.bounds // it seeks by one pair of bounds: the list's own are closer
	}
	text := "SELECT " + columns + " FROM " + c.from("usage_history") + " WHERE h.step = ? AND " + in + " AND " + key + " >= ?"
	args := append(append([]any{}, c.listArgs...), int(sp.step), list, sp.lo)
	if sp.hi != "" {
		text, args = text+" AND "+key+" < ?", append(args, sp.hi)
	}
	return text + " AND " + c.where, append(args, c.args...)
}

// condition selects what q does, by name. User text is data only: never part of
// the statement, nor a pattern.
func (s *Store) condition(q *Query, key string) condition {
	c := condition{where: "1 = 1"}
	and := func(text string, args ...any) {
		c.where += " AND " + text
		c.args = append(c.args, args...)
	}
	within := func(prefix string) (string, []any) {
		if hi := after(prefix); hi != "" {
			return key + " >= ? AND " + key + " < ?", []any{prefix, hi}
		}
		return key + " >= ?", []any{prefix}
	}
	if q.Name != "" {
		and(key+" = ?", q.Name)
	}
	if q.Prefix != "" {
		text, args := within(q.Prefix)
		and(text, args...)
	}
	if q.Measure != "" {
		and("substr("+key+", length("+key+") - length(CAST(? AS TEXT)) + 1) = ?", "."+q.Measure, "."+q.Measure)
	}
	if q.Contains != "" {
		and(s.sql.strpos()+"(lower("+key+"), ?) > 0", lower(q.Contains))
	}
	for _, e := range q.Except {
		text, args := within(e)
		and("NOT ("+text+")", args...)
	}
	return c
}
