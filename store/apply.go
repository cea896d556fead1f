package store

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/usagekit/usagekit/internal/calendar"
	"github.com/usagekit/usagekit/internal/counter"
	"github.com/usagekit/usagekit/internal/crossing"
	"github.com/usagekit/usagekit/internal/database"
	"github.com/usagekit/usagekit/internal/naming"
)

const (
	// Both upserts add in key order, so that two of them never wait for each
	// other, and saturate: one overflow must not fail everybody's fold.
	sqlAddTotals = `INSERT INTO usage_metrics AS m (key, value) %s
ON CONFLICT (key) DO UPDATE SET value = CASE WHEN m.value > 9007199254740991 - excluded.value THEN 9007199254740991 ELSE m.value + excluded.value END`

	sqlAddHistory = `INSERT INTO usage_history AS h (step, bucket, key, value) %s
ON CONFLICT (step, bucket, key) DO UPDATE SET value = CASE WHEN h.value > 9007199254740991 - excluded.value THEN 9007199254740991 ELSE h.value + excluded.value END`

	sqlReturning       = ` RETURNING step, bucket, key, value`
	sqlReturningTotals = ` RETURNING 0 AS step, 0 AS bucket, key, value`
)

// bucket is one row of history.
type bucket struct {
	Step   calendar.Step
	Bucket int64 // Unix seconds
	Key    string
}

// sums is what apply writes: counts of any number of batches, merged by name, with
// what is derived from them. A name that comes again makes no string.
type sums struct {
	calendar calendar.Calendar
	now      time.Time // the database's
	sure     time.Time // the earlier of it and of the last removal: see removal
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

// newSums returns none yet, to be written at the database's time now.
func (s *Store) newSums(now time.Time, pruned removal) *sums {
	sure := pruned.Before(now)
	h := s.horizon(sure)
	if time.Since(now).Abs() > maxSkew { // who knows what is old
		h = calendar.Unknown()
	}
	return &sums{calendar: s.calendar(), now: now, sure: sure, horizon: h, names: map[string]*sum{}, routes: map[string]*sum{}, starts: map[int64][3]int64{}}
}

// add merges n of a name, counted at the time at (Unix ms). The name may be the
// memory of a payload.
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

// row is what is added to one row.
type row struct {
	bucket
	n int64
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
			starts[i] = s.calendar.Lies(step, t)
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

// apply adds sums to totals and history, in the order of their keys. It derives
// the active users, those whose first requests of a day or month these are; moves
// what is beyond a cap; and records the thresholds that are crossed, of which it
// returns how many.
func (s *Store) apply(ctx context.Context, tx *database.Tx, sums *sums) (crossings int, err error) {
	if err := s.capSubjects(ctx, tx, sums); err != nil {
		return 0, err
	}
	totals, history, users := sums.rows()
	var crossed []crossing.Crossing
	cross := func(r row, after int64) { crossed = s.watch.Crossed(crossed, r.Step, r.Bucket, r.Key, r.n, after) }
	watched := func(r row) bool { return s.watch.Of(r.Step, r.Key) }
	if err := s.addRows(ctx, tx, sqlAddTotals, totals, watched, cross); err != nil {
		return 0, err
	}
	if err := s.addRows(ctx, tx, sqlAddHistory, history, watched, cross); err != nil {
		return 0, err
	}
	active := map[bucket]int64{}
	err = s.addRows(ctx, tx, sqlAddHistory, users, func(row) bool { return true }, func(r row, after int64) {
		cross(r, after)
		if after == r.n && after < counter.Max { // a full counter may be old
			b := bucket{r.Step, r.Bucket, naming.ActiveDaily}
			if b.Step == calendar.Month {
				b.Key = naming.ActiveMonthly
			}
			active[b]++
		}
	})
	if err != nil {
		return 0, err
	}
	derived := make([]row, 0, len(active))
	for _, b := range slices.SortedFunc(maps.Keys(active), func(a, b bucket) int {
		return cmp.Or(cmp.Compare(a.Step, b.Step), cmp.Compare(a.Bucket, b.Bucket))
	}) {
		derived = append(derived, row{b, active[b]})
	}
	if err := s.addRows(ctx, tx, sqlAddHistory, derived, watched, cross); err != nil {
		return 0, err
	}
	return s.watch.Record(ctx, tx, crossed, sums.now)
}

// chunk is how many rows one upsert takes: a twentieth of a second of a small
// server, far below its statement_timeout, however large a batch is.
const chunk = 5_000

// columns are those of rows: of history the first two as well.
func columns(rows []row) (buckets [2]database.Column, keys, numbers database.Column) {
	steps, starts := make([]int64, len(rows)), make([]int64, len(rows))
	texts, n := make([]string, len(rows)), make([]int64, len(rows))
	for i, r := range rows {
		steps[i], starts[i], texts[i], n[i] = int64(r.Step), r.Bucket, r.Key, r.n
	}
	return [2]database.Column{{Name: "step", Numbers: steps}, {Name: "bucket", Numbers: starts}}, database.Column{Name: "key", Texts: texts}, database.Column{Name: "n", Numbers: n}
}

// addRows adds rows by query, sqlAddTotals or sqlAddHistory. Where one is watched,
// told hears what the rows around it have become.
func (s *Store) addRows(ctx context.Context, tx *database.Tx, query string, rows []row, watched func(row) bool, told func(r row, after int64)) error {
	for rows := range slices.Chunk(rows, chunk) {
		buckets, keys, numbers := columns(rows)
		columns := []database.Column{buckets[0], buckets[1], keys, numbers}
		returning := sqlReturning
		if query == sqlAddTotals {
			columns, returning = columns[2:], sqlReturningTotals
		}
		if !slices.ContainsFunc(rows, watched) {
			if err := tx.ExecRows(ctx, query, columns...); err != nil {
				return err
			}
			continue
		}
		added, args := s.db.Rows(columns...)
		var now []struct {
			bucket
			Value int64
		}
		if err := tx.Select(ctx, &now, strings.Replace(query, "%s", added, 1)+returning, args...); err != nil {
			return err
		}
		of := make(map[bucket]int64, len(rows))
		for _, r := range rows {
			of[r.bucket] = r.n
		}
		for _, r := range now {
			told(row{r.bucket, of[r.bucket]}, r.Value)
		}
	}
	return nil
}
