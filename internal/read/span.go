package read

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/usagekit/usagekit/internal/calendar"
	"github.com/usagekit/usagekit/internal/clock"
	"github.com/usagekit/usagekit/internal/naming"
)

// nameRange is the names from lo up to hi; "" is no bound.
type nameRange struct{ lo, hi string }

// only is the range of one name: none has a control character.
func only(name string) nameRange { return nameRange{name, name + "\x01"} }

// begin is the range of the names that begin with prefix.
func begin(prefix string) nameRange { return nameRange{prefix, naming.After(prefix)} }

// within lists the ranges that the names of q are in: those of Name, Prefix and Subject,
// without those of Except.
func (q *Query) within() []nameRange {
	ranges := []nameRange{begin(q.Prefix)}
	switch {
	case q.Name != "":
		ranges = overlap(ranges, only(q.Name))
	case q.Subject != "" && len(q.Names) == 0: // which are sought one by one
		ranges = overlap(ranges, begin(common(q.stems)))
	}
	for _, e := range q.Except {
		left := overlap(ranges, nameRange{"", e})
		if e == "" {
			left = nil // it has no name before it
		}
		if end := naming.After(e); end != "" {
			left = append(left, overlap(ranges, nameRange{end, ""})...)
		}
		ranges = left
	}
	return ranges
}

// common is what all of a sorted list begin with.
func common(texts []string) string {
	first, last, n := texts[0], texts[len(texts)-1], 0
	for n < min(len(first), len(last)) && first[n] == last[n] {
		n++
	}
	return strings.ToValidUTF8(first[:n], "")
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

// span is what one index scan reads: a range of names, in some buckets of one
// step, or in the totals. A range of time is a list of buckets, an index probe
// each (0.7 ms where BETWEEN takes 34).
type span struct {
	nameRange
	step    calendar.Step // 0: totals
	buckets []int64
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

// kind is names whose history is kept in the same steps: users' in days and months, all
// others' in hours and days, and what is taken of a quota in one of these three.
type kind struct {
	names      []nameRange
	fine, kept calendar.Step // the steps that may be read
	gone       int64         // before it, buckets of fine are not kept
	since      int64         // before it, those of kept are not
}

// kinds lists those that q asks for. each: a count is asked for in every bucket.
func (q *Query) kinds(h calendar.Horizon, each bool) (kinds []kind) {
	const user, next = "user.", "user/"
	names := q.within()
	users := kind{names: overlap(names, nameRange{user, next}), fine: max(q.Step, calendar.Day), kept: calendar.Month, gone: h.Users, since: calendar.Forever}
	plain := kind{names: append(overlap(names, nameRange{"", user}), overlap(names, nameRange{next, ""})...), fine: min(q.Step, calendar.Day), kept: calendar.Day, gone: h.Hours, since: h.Days}
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
	quotas := kind{fine: calendar.Month, kept: calendar.Month, gone: calendar.Forever, since: calendar.Forever}
	if each && q.Step == calendar.Month {
		quotas.names = overlap(names, nameRange{"quota.", "quota/"})
	}
	for _, k := range []kind{users, plain, quotas} {
		if len(k.names) > 0 {
			kinds = append(kinds, k)
		}
	}
	return kinds
}

// spans reads these buckets of k, if there are any.
func (k kind) spans(step calendar.Step, buckets []int64) (spans []span) {
	if len(buckets) == 0 {
		return nil
	}
	for _, r := range k.names {
		spans = append(spans, span{r, step, buckets})
	}
	return spans
}

// choice is how the range of a query is read for one kind of names: coarse buckets,
// which are there, and fine ones in segments on either side of them.
type choice struct {
	kind
	coarse []int64
	edges  []clock.Segment
}

// each chooses, for the range of q, buckets of each kind's fine step alone.
func (q *Query) each(c calendar.Calendar, h calendar.Horizon) (choices []choice) {
	for _, k := range q.kinds(h, true) {
		from, to := time.Unix(k.gone, 0), time.Unix(calendar.Endless, 0)
		if !q.From.IsZero() && c.Start(q.Step, q.From).After(from) {
			from = c.Start(q.Step, q.From)
		}
		if !q.To.IsZero() {
			to = c.Ceil(q.Step, q.To)
		}
		choices = append(choices, choice{kind: k, edges: []clock.Segment{clock.Between(k.fine, from, to)}})
	}
	return choices
}

// extents are what few has to know the stored buckets of: those of each kind's coarse step
// in the range of q, and one on either side.
func (q *Query) extents(c calendar.Calendar, h calendar.Horizon) (segments []clock.Segment) {
	for _, k := range q.kinds(h, false) {
		whole := clock.Between(k.kept, time.Unix(k.since, 0), time.Unix(calendar.Endless, 0))
		if from := c.Start(k.kept, c.Start(max(k.kept, q.Step), q.From).Add(-1)); !q.From.IsZero() && from.After(whole.From) {
			whole.From = from
		}
		if !q.To.IsZero() {
			whole.To = c.Next(k.kept, c.Ceil(k.kept, c.Ceil(q.Step, q.To)))
		}
		segments = append(segments, whole)
	}
	return segments
}

// few chooses, for the range of q, as few buckets as say what was counted in it: coarse
// ones inside, fine ones at its edges, as long as those are kept. Where they are not, and at
// an end that is open, the range is widened to coarse ones; and where not even those are
// kept, nothing is read. It takes what is
// stored of its extents, and asks no database.
//
// On 30 June at 12:20, where hours are kept for 35 days, since 26 May, days for 400, and
// the days of users for 90, since 1 April, of names that were counted every day
//
//	From               To                of      is read as
//	10 June 15:30      –                 routes  hours 15 to 23 of 10 June, days 11 to 30 June
//	10 June 15:30      12 June 02:00     routes  hours 15 to 23 of 10 June, day 11 June, hours 0 and 1 of 12 June
//	10 June 15:30      10 June 16:30     routes  hours 15 and 16
//	10 May 15:30       12 June 02:00     routes  days 10 May to 11 June, hours 0 and 1 of 12 June
//	10 May             –                 users   days 10 to 31 May, month June
//	10 March           12 June           users   months March to May, days 1 to 11 June
//
// A bucket that was begun under other rules of the zone may lie across the start of a day
// that it does not belong to. Then fine buckets beside it would have some of what is in it
// a second time, so it is cut elsewhere, or all is read as fine ones.
func (q *Query) few(c calendar.Calendar, h calendar.Horizon, stored [][]int64) (choices []choice) {
	for i, k := range q.kinds(h, false) {
		if len(stored[i]) == 0 {
			continue
		}
		cut, ok := q.cut(c, k, stored[i])
		if !ok {
			continue
		}
		place := func(stored int64, at time.Time) int { return cmp.Compare(c.Place(k.kept, stored), at.Unix()) }
		from, _ := slices.BinarySearchFunc(stored[i], cut.first, place)
		to, _ := slices.BinarySearchFunc(stored[i], cut.end, place)
		chosen := choice{kind: k, coarse: stored[i][from:max(from, to)]}
		for _, edge := range []clock.Segment{clock.Between(k.fine, cut.from, cut.first), clock.Between(k.fine, cut.end, cut.to)} {
			if edge.From.Before(edge.To) {
				chosen.edges = append(chosen.edges, edge)
			}
		}
		choices = append(choices, chosen)
	}
	return choices
}

// cut is where a range is cut: coarse buckets cover it from first up to end, fine ones
// before and after that.
type cut struct{ from, first, end, to time.Time }

// cut cuts the range of q for a kind of which these coarse buckets are stored; false:
// there is nothing in it. No bucket lies across a cut, under whatever rules it was
// written.
func (q *Query) cut(c calendar.Calendar, k kind, coarse []int64) (p cut, some bool) {
	at := func(i int) time.Time { return time.Unix(c.Place(k.kept, coarse[i]), 0) }
	p.from, p.end = at(0), c.Next(k.kept, at(len(coarse)-1))
	p.to = p.end
	if from := c.Start(q.Step, q.From); from.After(p.from) {
		p.from = from
	}
	to := c.Ceil(q.Step, q.To)
	if !q.To.IsZero() && to.Before(p.to) { // else nothing is after it
		p.to = to
	}
	if !p.from.Before(p.to) {
		return cut{}, false
	}
	gone := time.Unix(k.gone, 0)
	if p.from.Before(gone) {
		p.from = c.Start(k.kept, p.from)
		if p.to.Before(gone) || p.to.Before(c.Next(k.kept, p.from)) {
			p.to = c.Ceil(k.kept, p.to)
		}
	}
	p.first, p.end = c.Ceil(k.kept, p.from), c.Start(k.kept, p.to)
	if k.fine == k.kept {
		return p, true
	}
	across := map[int64]bool{} // where a bucket may lie
	for i, b := range coarse {
		if !at(i).Equal(time.Unix(b, 0)) {
			across[at(i).Unix()], across[c.Next(k.kept, at(i)).Unix()] = true, true
		}
	}
	for !q.From.IsZero() && !p.from.Before(gone) && across[p.first.Unix()] && p.first.Before(p.end) {
		p.first = c.Next(k.kept, p.first)
	}
	for !q.To.IsZero() && across[p.end.Unix()] && p.first.Before(p.end) {
		p.end = c.Start(k.kept, p.end.Add(-1))
	}
	if p.from.Before(gone) && p.end.Before(gone) && p.end.Before(p.to) { // where no fine ones are left
		p.to = c.Ceil(k.kept, p.to)
		p.end = p.to
	}
	if !p.first.Before(p.end) {
		p.first, p.end = p.to, p.to // all fine
	}
	return p, true
}

// during returns what of spans is in buckets of step from start up to end.
func during(c calendar.Calendar, step calendar.Step, spans []span, start, end int64) []span {
	var list []span
	for _, sp := range spans {
		place := func(stored, at int64) int { return cmp.Compare(c.PlaceIn(step, sp.step, stored), at) }
		i, _ := slices.BinarySearchFunc(sp.buckets, start, place)
		j, _ := slices.BinarySearchFunc(sp.buckets, end, place)
		if i < j {
			list = append(list, span{sp.nameRange, sp.step, sp.buckets[i:j]})
		}
	}
	return list
}
