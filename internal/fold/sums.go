package fold

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/usagekit/usagekit/internal/calendar"
	"github.com/usagekit/usagekit/internal/counter"
	"github.com/usagekit/usagekit/internal/naming"
)

// bucket is one row of history; of totals, where Step is 0.
type bucket struct {
	Step   calendar.Step
	Bucket int64 // Unix seconds
	Key    string
}

// row is what is added to one row.
type row struct {
	bucket
	n int64
}

// sums is what is added to the tables: counts of any number of batches, merged by name,
// with what is derived from them. A name that comes again makes no string.
type sums struct {
	calendar calendar.Calendar
	now      time.Time // the database's
	sure     time.Time // the earlier of it and of the last removal: see clock.Removal
	horizon  calendar.Horizon
	subjects *subjects // what they will be when this is in the database; nil: as before
	names    map[string]*sum
	routes   map[string]*sum    // derived: of all routes, by measure
	made     []sum              // the next ones
	starts   map[int64][3]int64 // of the hour, day and month, by quarter hour
}

// sum is what was counted under a name.
type sum struct {
	name  string
	total int64
	dated []dated // by quarter hour, most often of one
	one   [1]dated
	whole *sum // of which it is a part; nil: of none
}

type dated struct{ quarter, n int64 } // Unix ms

// add merges n of a name, counted at the time at (Unix ms). The name may be the memory of
// a payload.
func (s *sums) add(at int64, name string, n int64) {
	m := s.names[name]
	if m == nil {
		m = s.sum(naming.Kept(name))
	}
	quarter := calendar.Quarter(at)
	for ; m != nil; m = m.whole {
		m.add(quarter, n)
	}
}

// sum returns the sum of a name that may be counted under.
func (s *sums) sum(name string) *sum {
	if m := s.names[name]; m != nil {
		return m
	}
	m := s.next(strings.Clone(name))
	s.names[m.name] = m
	if group, subject, measure := naming.Split(m.name); group == "api" && subject != "" && subject != "requests" && naming.Summed(measure) {
		m.whole = s.routes[measure]
		if m.whole == nil {
			m.whole = s.next(naming.TotalOf(measure))
			s.routes[measure] = m.whole
		}
	}
	return m
}

// next returns a new sum.
func (s *sums) next(name string) *sum {
	if len(s.made) == 0 {
		s.made = make([]sum, 256)
	}
	m := &s.made[0]
	s.made = s.made[1:]
	m.name, m.dated = name, m.one[:0]
	return m
}

func (m *sum) add(quarter, n int64) {
	m.total = addCapped(m.total, n)
	for i := len(m.dated) - 1; i >= 0; i-- {
		if m.dated[i].quarter == quarter {
			m.dated[i].n = addCapped(m.dated[i].n, n)
			return
		}
	}
	m.dated = append(m.dated, dated{quarter, n})
}

// addCapped adds two counts; it saturates as every count does.
func addCapped(a, b int64) int64 { return min(a+b, counter.Max) }

// move has what was counted under a name count under another one.
func (s *sums) move(name, to string) {
	from := s.names[name]
	delete(s.names, name)
	m := s.sum(to)
	for _, d := range from.dated {
		m.add(d.quarter, d.n)
		if m.whole != nil && from.whole == nil { // "api.requests" is no route, (other) is one
			m.whole.add(d.quarter, d.n)
		}
	}
}

// rows returns what is added to totals, to history, and to the history of users'
// requests, each in the order of its primary key.
func (s *sums) rows() (totals, history, users []row) {
	type start struct {
		step   calendar.Step
		bucket int64
	}
	of := map[start]*[2][]row{} // history and users
	all := slices.AppendSeq(make([]*sum, 0, len(s.names)+len(s.routes)), maps.Values(s.names))
	all = slices.AppendSeq(all, maps.Values(s.routes))
	slices.SortFunc(all, func(a, b *sum) int { return strings.Compare(a.name, b.name) })
	for _, m := range all {
		name := m.name
		totals = append(totals, row{bucket{Key: name}, m.total})
		group, subject, measure := naming.Split(name)
		list := 0
		if group == "user" && measure == "requests" && subject != "" && !naming.Reserved(subject) {
			list = 1
		}
		for _, d := range m.dated {
			starts := s.startsOf(d.quarter)
			for _, step := range kept(group) {
				at := start{step, starts[step-calendar.Hour]}
				if at.bucket < s.horizon.Of(step, naming.Personal(name)) {
					continue // too old for history: it counts in the total alone
				}
				lists := of[at]
				if lists == nil {
					lists = new([2][]row)
					of[at] = lists
				}
				rows := lists[list]
				if last := len(rows) - 1; last >= 0 && rows[last].Key == name { // another quarter of the same hour
					rows[last].n = addCapped(rows[last].n, d.n)
					continue
				}
				lists[list] = append(rows, row{bucket{step, at.bucket, name}, d.n})
			}
		}
	}
	for _, at := range slices.SortedFunc(maps.Keys(of), func(a, b start) int {
		return cmp.Or(cmp.Compare(a.step, b.step), cmp.Compare(a.bucket, b.bucket))
	}) {
		history, users = append(history, of[at][0]...), append(users, of[at][1]...)
	}
	return totals, history, users
}

func (s *sums) startsOf(quarter int64) [3]int64 {
	starts, ok := s.starts[quarter]
	if !ok {
		t := time.UnixMilli(quarter)
		for i, step := range []calendar.Step{calendar.Hour, calendar.Day, calendar.Month} {
			starts[i] = s.calendar.Bucket(step, t)
		}
		s.starts[quarter] = starts
	}
	return starts
}

// kept is which steps of history a group has: the finest first.
func kept(group string) [2]calendar.Step {
	if naming.ByMonth(group) {
		return [2]calendar.Step{calendar.Day, calendar.Month}
	}
	return [2]calendar.Step{calendar.Hour, calendar.Day}
}
