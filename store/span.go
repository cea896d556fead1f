package store

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"github.com/usagekit/usagekit/internal/calendar"
	"github.com/usagekit/usagekit/internal/clock"
	"github.com/usagekit/usagekit/internal/database"
	"github.com/usagekit/usagekit/internal/naming"
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
	step    calendar.Step // 0: totals
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
func (s *Store) spansOf(ctx context.Context, tx *database.Tx, q *Query) ([]span, error) {
	if !q.ranged() {
		return q.totals(), nil
	}
	return s.spans(ctx, tx, q, false)
}

// part is what spans covers of one kind of names.
type part struct {
	ranges     []nameRange
	fine, kept calendar.Step // the steps that may cover it
	gone       int64         // before it, buckets of fine are not kept
	since      int64         // before it, those of kept are not
	from, to   time.Time
	first, end time.Time // of what kept covers; before and after that, fine does
	coarse     []int64   // what is stored of that
}

// spans covers the range that q asks for: with buckets of its step (or the next
// finer one that is kept) when each counts, else with the fewest, coarse ones
// inside and fine ones at the edges, where those are kept still. It lists what is
// stored, under whatever rules of the zone it was written, and is never empty.
func (s *Store) spans(ctx context.Context, tx *database.Tx, q *Query, each bool) ([]span, error) {
	h := s.horizon(s.databaseTime())
	const user, next = "user.", "user/"
	ranges := q.within()
	users := part{ranges: overlap(ranges, nameRange{user, next}), fine: max(q.step(), calendar.Day), kept: calendar.Month, gone: h.Users, since: calendar.Forever}
	plain := part{ranges: append(overlap(ranges, nameRange{"", user}), overlap(ranges, nameRange{next, ""})...), fine: min(q.step(), calendar.Day), kept: calendar.Day, gone: h.Hours, since: h.Days}
	switch {
	case each && users.fine == calendar.Month:
		users.gone = calendar.Forever
	case each: // days, those of user.active.daily and the like among them
		users.gone = min(h.Users, h.Days)
	}
	if each && plain.fine == calendar.Day {
		plain.gone = h.Days
	}
	// What is taken of quotas by the month has no days that it could be summed from.
	quotas := part{fine: calendar.Month, kept: calendar.Month, gone: calendar.Forever, since: calendar.Forever}
	if each && q.step() == calendar.Month {
		quotas.ranges = overlap(ranges, nameRange{"quota.", "quota/"})
	}
	var parts []*part
	for _, p := range []*part{&users, &plain, &quotas} {
		if len(p.ranges) > 0 {
			parts = append(parts, p)
		}
	}
	cover := s.fewSpans
	if each {
		cover = s.fineSpans
	}
	spans, err := cover(ctx, tx, q, parts)
	if len(spans) == 0 {
		spans = []span{{step: calendar.Day}}
	}
	return spans, err
}

// fineSpans covers the range of q with buckets of each part's fine step.
func (s *Store) fineSpans(ctx context.Context, tx *database.Tx, q *Query, parts []*part) ([]span, error) {
	var segments []segment
	for _, p := range parts {
		from, to := time.Unix(p.gone, 0), time.Unix(calendar.Endless, 0)
		if !q.From.IsZero() && s.calendar().Start(q.step(), q.From).After(from) {
			from = s.calendar().Start(q.step(), q.From)
		}
		if !q.To.IsZero() {
			to = s.calendar().Ceil(q.step(), q.To)
		}
		segments = append(segments, clock.Between(p.fine, from, to))
	}
	stored, err := s.stored(ctx, tx, segments)
	var spans []span
	for i, list := range stored {
		spans = append(spans, parts[i].spans(parts[i].fine, list)...)
	}
	return spans, err
}

// spans reads these buckets of p, if there are any.
func (p *part) spans(step calendar.Step, buckets []int64) (spans []span) {
	if len(buckets) == 0 {
		return nil
	}
	for _, r := range p.ranges {
		spans = append(spans, span{r, step, buckets})
	}
	return spans
}

// fewSpans covers the range of q with each part's coarse step, and fine ones at the edges.
func (s *Store) fewSpans(ctx context.Context, tx *database.Tx, q *Query, parts []*part) ([]span, error) {
	var segments []segment
	for _, p := range parts {
		whole := clock.Between(p.kept, time.Unix(p.since, 0), time.Unix(calendar.Endless, 0)) // and what is beside it
		if from := s.calendar().Start(p.kept, s.calendar().Start(max(p.kept, q.step()), q.From).Add(-1)); !q.From.IsZero() && from.After(whole.From) {
			whole.From = from
		}
		if !q.To.IsZero() {
			whole.To = s.calendar().Next(p.kept, s.calendar().Ceil(p.kept, s.calendar().Ceil(q.step(), q.To)))
		}
		segments = append(segments, whole)
	}
	stored, err := s.stored(ctx, tx, segments)
	if err != nil {
		return nil, err
	}
	segments = nil
	var edged []*part
	var spans []span
	for i, p := range parts {
		p.coarse = stored[i]
		if len(p.coarse) == 0 || !s.cut(q, p) {
			continue
		}
		from, _ := slices.BinarySearchFunc(p.coarse, p.first.Unix(), s.byPlace(p.kept))
		to, _ := slices.BinarySearchFunc(p.coarse, p.end.Unix(), s.byPlace(p.kept))
		spans = append(spans, p.spans(p.kept, p.coarse[from:max(from, to)])...)
		for _, edge := range []segment{clock.Between(p.fine, p.from, p.first), clock.Between(p.fine, p.end, p.to)} {
			if edge.From.Before(edge.To) {
				edged, segments = append(edged, p), append(segments, edge)
			}
		}
	}
	if stored, err = s.stored(ctx, tx, segments); err != nil {
		return nil, err
	}
	for i, list := range stored {
		spans = append(spans, edged[i].spans(edged[i].fine, list)...)
	}
	return spans, nil
}

// cut decides which of p's range the coarse buckets cover; false: the range is empty.
// No bucket lies across a cut, under whatever rules it was written: fine ones beside
// it would count some of it twice.
func (s *Store) cut(q *Query, p *part) bool {
	c := s.calendar()
	at := func(i int) time.Time { return time.Unix(c.Place(p.kept, p.coarse[i]), 0) }
	p.from, p.end = at(0), c.Next(p.kept, at(len(p.coarse)-1))
	p.to = p.end
	if from := c.Start(q.step(), q.From); from.After(p.from) {
		p.from = from
	}
	to := c.Ceil(q.step(), q.To)
	last := q.To.IsZero() || !to.Before(p.to) // nothing is after it
	if !last {
		p.to = to
	}
	if !p.from.Before(p.to) {
		return false
	}
	since := time.Unix(p.gone, 0)
	if p.from.Before(since) {
		p.from = c.Start(p.kept, p.from)
		if p.to.Before(since) || p.to.Before(c.Next(p.kept, p.from)) {
			p.to = c.Ceil(p.kept, p.to)
		}
	}
	if last {
		p.to = c.Ceil(p.kept, p.to)
	}
	p.first, p.end = c.Ceil(p.kept, p.from), c.Start(p.kept, p.to)
	if p.fine == p.kept {
		return true
	}
	across := map[int64]bool{} // where a bucket may lie
	for i, b := range p.coarse {
		if !at(i).Equal(time.Unix(b, 0)) {
			across[at(i).Unix()], across[c.Next(p.kept, at(i)).Unix()] = true, true
		}
	}
	for !q.From.IsZero() && !p.from.Before(since) && across[p.first.Unix()] && p.first.Before(p.end) {
		p.first = c.Next(p.kept, p.first)
	}
	for !q.To.IsZero() && across[p.end.Unix()] && p.first.Before(p.end) {
		p.end = c.Start(p.kept, p.end.Add(-1))
	}
	if p.from.Before(since) && p.end.Before(since) && p.end.Before(p.to) { // where no fine ones are left
		p.to = c.Ceil(p.kept, p.to)
		p.end = p.to
	}
	if !p.first.Before(p.end) {
		p.first, p.end = p.to, p.to // all fine
	}
	return true
}

// byPlace finds where those begin, of stored buckets in order, that belong to places
// from one on.
func (s *Store) byPlace(step calendar.Step) func(stored, place int64) int {
	return func(stored, place int64) int { return cmp.Compare(s.calendar().Place(step, stored), place) }
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
		in, list := s.db.OneOf("h.bucket", sp.buckets)
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
		from = s.db.Seek(c.list, from)
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
		end, args := s.db.EndsWith("h.key", "."+q.Measure)
		c.and(end, args...)
	}
	if q.Contains != "" {
		c.and(s.db.Strpos+"(lower(h.key), ?) > 0", lower(q.Contains))
	}
	return c
}

// oneOf selects names by a list, each of which is sought.
func (s *Store) oneOf(names []string) condition {
	list, args := s.db.Values(database.Column{Name: "lo", Texts: names})
	c := condition{list: list, listArgs: args}
	c.and("h.key = v.lo")
	return c
}

// summed is condition without what belongs to the current bucket alone: it is in
// no sum, nor is what an adopted table has under those names.
func (s *Store) summed(q *Query) condition {
	c := s.condition(q)
	c.and("h.key NOT IN ('" + naming.RequestsToday + "', '" + naming.ActiveDaily + "', '" + naming.ActiveMonthly + "')")
	return c
}
