package store

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"
)

// nameRange is the names from lo up to hi; "" is no bound.
type nameRange struct{ lo, hi string }

// only is the range of one name: none has a control character.
func only(name string) nameRange { return nameRange{name, name + "\x01"} }

// span is what one index scan reads: a range of names, in some buckets of one
// step, or in the totals. A range of time is a list of buckets, an index probe
// each (0.7 ms where BETWEEN takes 34).
type span struct {
	nameRange
	step    Step // 0: totals
	buckets []int64
}

// condition selects names of a span further: by where, on h.key, and by a list v.
type condition struct {
	list     string // "": none
	listArgs []any
	least    int64 // of totals
	where    []string
	args     []any
}

// and adds to what c selects.
func (c *condition) and(text string, args ...any) {
	c.where = append(c.where, text)
	c.args = append(c.args, args...)
}

// table is the text of a table expression, and its parameters.
type table struct {
	text string
	args []any
}

// within lists the ranges that the names of q are in: those of Name and Prefix,
// without those of Except.
func (q *Query) within() []nameRange {
	ranges := []nameRange{{q.Prefix, after(q.Prefix)}}
	if q.Name != "" {
		ranges = overlap(ranges, only(q.Name))
	}
	for _, e := range q.Except {
		left := overlap(ranges, nameRange{"", e})
		if e == "" {
			left = nil // it has no name before it
		}
		if end := after(e); end != "" {
			left = append(left, overlap(ranges, nameRange{end, ""})...)
		}
		ranges = left
	}
	return ranges
}

// overlap lists what of the ranges lies in bounds.
func overlap(ranges []nameRange, bounds nameRange) []nameRange {
	var list []nameRange
	for _, r := range ranges {
		r.lo = max(r.lo, bounds.lo)
		if r.hi == "" || bounds.hi != "" && bounds.hi < r.hi {
			r.hi = bounds.hi
		}
		if r.hi == "" || r.lo < r.hi {
			list = append(list, r)
		}
	}
	return list
}

// totals covers all time with the totals. As spans, it is never empty.
func (q *Query) totals() []span {
	var spans []span
	for _, r := range q.within() {
		spans = append(spans, span{nameRange: r})
	}
	if len(spans) == 0 {
		return []span{{nameRange: nameRange{"x", "x"}}}
	}
	return spans
}

// spansOf covers the range that q asks for, or all time.
func (s *Store) spansOf(ctx context.Context, tx *sqlx.Tx, q *Query) ([]span, error) {
	if !q.ranged() {
		return q.totals(), nil
	}
	return s.spans(ctx, tx, q, false)
}

// spans covers the range that q asks for: with buckets of its step (or the next
// finer one that is kept) when each counts, else with the fewest, coarse ones
// inside and fine ones at the edges, where those are kept still. It is never empty.
func (s *Store) spans(ctx context.Context, tx *sqlx.Tx, q *Query, each bool) ([]span, error) {
	var extent struct {
		Prepared    string
		First, Last *int64
		FirstMonth  *int64 `db:"first_month"`
		LastMonth   *int64 `db:"last_month"`
	}
	h := s.horizon(s.databaseTime())
	if err := tx.GetContext(ctx, &extent, s.sql.text(fmt.Sprintf(sqlExtent, s.sql.setLocal("enable_seqscan", "off"))), h.days); err != nil {
		return nil, err
	}
	var end time.Time
	if extent.Last != nil {
		end = s.calendar.next(Day, time.Unix(*extent.Last, 0))
	} else if extent.LastMonth != nil { // the days are gone
		end = s.calendar.next(Month, time.Unix(*extent.LastMonth, 0))
	}
	to := end
	if !q.To.IsZero() && q.To.Before(end) {
		to = q.To
	}
	var spans []span
	// first is where the ranges begin, gone up to where buckets of the step fine are.
	add := func(ranges []nameRange, fine, kept Step, first *int64, gone int64) {
		if len(ranges) == 0 || first == nil {
			return
		}
		from, to := time.Unix(*first, 0), to
		if q.From.After(from) {
			from = q.From
		}
		if !from.Before(to) {
			return
		}
		from, to = s.calendar.start(q.Step, from), s.calendar.ceil(q.Step, to)
		since := time.Unix(gone, 0)
		switch {
		case each:
			kept = fine
			if from.Before(since) {
				from = since
			}
		case from.Before(since):
			from = s.calendar.start(kept, from)
			if to.Before(since) || to.Before(s.calendar.next(kept, from)) {
				to = s.calendar.ceil(kept, to)
			}
		}
		if !from.Before(to) {
			return
		}
		last := s.calendar.start(kept, to)
		if !to.Before(end) {
			last = s.calendar.ceil(kept, to) // nothing is after it
		}
		for _, sp := range s.cover(from, to, last, fine, kept) {
			for _, r := range ranges {
				spans = append(spans, span{r, sp.step, sp.buckets})
			}
		}
	}
	const user, next = "user.", "user/"
	ranges := q.within()
	users, plain := max(q.Step, Day), min(q.Step, Day)
	usersGone, plainGone := h.users, h.hours
	switch {
	case each && users == Month:
		usersGone = forever
	case each: // days, those of user.active.daily and the like among them
		usersGone = min(h.users, h.days)
	}
	if each && plain == Day {
		plainGone = h.days
	}
	add(overlap(ranges, nameRange{user, next}), users, Month, extent.FirstMonth, usersGone)
	add(append(overlap(ranges, nameRange{"", user}), overlap(ranges, nameRange{next, ""})...), plain, Day, extent.First, plainGone)
	if len(spans) == 0 {
		return []span{{step: Day}}, nil
	}
	return spans, nil
}

// cover lists the buckets of [from, to): coarse ones where whole ones fit before
// last, one's start.
func (s *Store) cover(from, to, last time.Time, fine, coarse Step) []span {
	c := s.calendar
	first := c.ceil(coarse, from)
	if fine == coarse || !first.Before(last) {
		return []span{{step: fine, buckets: c.buckets(fine, from, to)}}
	}
	spans := []span{{step: coarse, buckets: c.buckets(coarse, first, last)}}
	if edges := append(c.buckets(fine, from, first), c.buckets(fine, last, to)...); len(edges) > 0 {
		spans = append(spans, span{step: fine, buckets: edges})
	}
	return spans
}

// counts is the table of key and n of the names that c selects in spans: one row
// per name.
func (s *Store) counts(spans []span, c condition) table {
	var t table
	for i, sp := range spans {
		text, args := s.span(sp, c, "h.key AS key, h.value AS n")
		if i > 0 {
			t.text += " UNION ALL "
		}
		t.text, t.args = t.text+text, append(t.args, args...)
	}
	if spans[0].step != 0 {
		t.text = "SELECT key, CAST(CASE WHEN SUM(n) > 9007199254740991 THEN 9007199254740991 ELSE SUM(n) END AS BIGINT) AS n FROM (" +
			t.text + ") AS u GROUP BY key"
	}
	t.text = "(" + t.text + ") AS t"
	return t
}

// span is the query for what of sp's rows c selects.
func (s *Store) span(sp span, c condition, columns string) (string, []any) {
	var where []string
	args := slices.Clone(c.listArgs)
	and := func(text string, values ...any) {
		where, args = append(where, text), append(args, values...)
	}
	table := "usage_metrics"
	if sp.step != 0 {
		table = "usage_history"
		in, list := s.sql.oneOf("h.bucket", sp.buckets)
		and("h.step = ?", int(sp.step))
		and(in, list)
	} else if c.least > 0 {
		and("h.value >= ?", c.least) // first: it is the cheapest, and leaves the fewest
	}
	key := "h.key"
	if c.list != "" {
		key = "v.lo" // SQLite seeks by one pair of bounds: the list's own are closer
	}
	if sp.nameRange == only(sp.lo) {
		and(key+" = ?", sp.lo)
	} else if and(key+" >= ?", sp.lo); sp.hi != "" {
		and(key+" < ?", sp.hi)
	}
	where, args = append(where, c.where...), append(args, c.args...)
	from := table + " AS h WHERE " + strings.Join(where, " AND ")
	if c.list != "" {
		from = s.sql.seek(c.list, from)
	}
	return "SELECT " + columns + " FROM " + from, args
}

// condition selects what q does, of names within its ranges. User text is data
// only: never part of the statement, nor a pattern.
func (s *Store) condition(q *Query) condition {
	var c condition
	if len(q.Names) > 0 {
		c = s.oneOf(q.Names)
	}
	if q.Measure != "" {
		end := "right(h.key, length(CAST(? AS TEXT)))"
		if s.sql.sqlite {
			end = "substr(h.key, -length(?))"
		}
		c.and(end+" = ?", "."+q.Measure, "."+q.Measure)
	}
	if q.Contains != "" {
		c.and(s.sql.strpos()+"(lower(h.key), ?) > 0", lower(q.Contains))
	}
	return c
}

// oneOf selects names by a list, each of which is sought.
func (s *Store) oneOf(names []string) condition {
	list, args := s.sql.values(column{name: "lo", texts: names})
	c := condition{list: list, listArgs: args}
	c.and("h.key = v.lo")
	return c
}

// summed is condition without what belongs to the current bucket alone: it is in
// no sum, nor is what an adopted table has under those names.
func (s *Store) summed(q *Query) condition {
	c := s.condition(q)
	c.and("h.key NOT IN ('api.requests.today', 'user.active.daily', 'user.active.monthly')")
	return c
}
