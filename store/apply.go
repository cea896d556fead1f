package store

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/usagekit/usagekit/internal/counter"
)

// The names that apply derives, and the prefix that they are derived from.
const (
	requestsTotal = "api.requests.total"
	requestsToday = "api.requests.today" // the current day's bucket of requestsTotal
	activeDaily   = "user.active.daily"
	activeMonthly = "user.active.monthly"
)

const (
	// Both upserts add in key order, so that two of them never wait for each
	// other, and saturate: one overflow must not fail everybody's fold.
	sqlAddTotals = `INSERT INTO usage_metrics AS m (key, value) %s
ON CONFLICT (key) DO UPDATE SET value = CASE WHEN m.value > 9007199254740991 - excluded.value THEN 9007199254740991 ELSE m.value + excluded.value END`

	sqlAddHistory = `INSERT INTO usage_history AS h (step, bucket, key, value) %s
ON CONFLICT (step, bucket, key) DO UPDATE SET value = CASE WHEN h.value > 9007199254740991 - excluded.value THEN 9007199254740991 ELSE h.value + excluded.value END`

	sqlReturning = ` RETURNING step, bucket, key, value`
)

// bucket is one row of history.
type bucket struct {
	Step   Step
	Bucket int64 // Unix seconds
	Key    string
}

// sums is what apply writes: counts of any number of batches, merged by name, with
// what is derived from them. A name that comes again makes no string.
type sums struct {
	calendar calendar
	names    map[string]*sum
	requests sum                // derived: all requests
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

func newSums(c calendar) *sums {
	return &sums{calendar: c, names: map[string]*sum{}, starts: map[int64][3]int64{}}
}

// add merges n of a name, counted at the time at (Unix ms). The name may be the
// memory of a payload.
func (s *sums) add(at int64, name string, n int64) {
	m := s.names[name]
	if m == nil {
		m = s.sum(counter.Kept(name))
	}
	quarter := at - mod(at, quarterHour.Milliseconds())
	for ; m != nil; m = m.whole {
		m.add(quarter, n)
	}
}

// sum returns the sum of a name that may be counted under.
func (s *sums) sum(name string) *sum {
	if m := s.names[name]; m != nil {
		return m
	}
	name = strings.Clone(name)
	if len(s.made) == 0 {
		s.made = make([]sum, 256)
	}
	m := &s.made[0]
	s.made = s.made[1:]
	m.name, m.dated = name, m.one[:0]
	s.names[name] = m
	if group, subject, measure := counter.Split(name); group == "api" && subject != "" && subject != "requests" && measure == "requests" {
		m.whole = &s.requests
	}
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
		step   Step
		bucket int64
	}
	of := map[start]*[2][]row{} // history and users
	all := slices.AppendSeq(make([]*sum, 0, len(s.names)+1), maps.Values(s.names))
	if s.requests.total > 0 {
		s.requests.name = requestsTotal
		all = append(all, &s.requests)
	}
	slices.SortFunc(all, func(a, b *sum) int { return strings.Compare(a.name, b.name) })
	for _, m := range all {
		name := m.name
		totals = append(totals, row{bucket{Key: name}, m.total})
		group, subject, measure := counter.Split(name)
		list := 0
		if group == "user" && measure == "requests" && subject != "" && !counter.Reserved(subject) {
			list = 1
		}
		for _, d := range m.dated {
			starts := s.startsOf(d.quarter)
			for _, step := range kept(group) {
				at := start{step, starts[step-Hour]}
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
		for i, step := range []Step{Hour, Day, Month} {
			starts[i] = s.calendar.start(step, t).Unix()
		}
		s.starts[quarter] = starts
	}
	return starts
}

// kept is which steps of history a group has: the finest first.
func kept(group string) [2]Step {
	if group == "user" {
		return [2]Step{Day, Month}
	}
	return [2]Step{Hour, Day}
}

// apply adds sums to totals and history, in the order of their keys, and derives
// the active users: those whose first requests of a day or month these are.
func (s *Store) apply(tx *sqlx.Tx, sums *sums) error {
	totals, history, users := sums.rows()
	for rows := range slices.Chunk(totals, chunk) {
		_, keys, numbers := columns(rows)
		if err := s.upsert(tx, sqlAddTotals, keys, numbers); err != nil {
			return err
		}
	}
	if err := s.addHistory(tx, history, nil); err != nil {
		return err
	}
	active := map[bucket]int64{}
	err := s.addHistory(tx, users, func(b bucket) {
		b.Key = activeDaily
		if b.Step == Month {
			b.Key = activeMonthly
		}
		active[b]++
	})
	if err != nil {
		return err
	}
	derived := make([]row, 0, len(active))
	for _, b := range slices.SortedFunc(maps.Keys(active), func(a, b bucket) int {
		return cmp.Or(cmp.Compare(a.Step, b.Step), cmp.Compare(a.Bucket, b.Bucket))
	}) {
		derived = append(derived, row{b, active[b]})
	}
	return s.addHistory(tx, derived, nil)
}

// chunk is how many rows one upsert takes: a twentieth of a second of a small
// server, far below its statement_timeout, however large a batch is.
const chunk = 5_000

// columns are those of rows: of history the first two as well.
func columns(rows []row) (buckets [2]column, keys, numbers column) {
	steps, starts := make([]int64, len(rows)), make([]int64, len(rows))
	texts, n := make([]string, len(rows)), make([]int64, len(rows))
	for i, r := range rows {
		steps[i], starts[i], texts[i], n[i] = int64(r.Step), r.Bucket, r.Key, r.n
	}
	return [2]column{{name: "step", numbers: steps}, {name: "bucket", numbers: starts}}, column{name: "key", texts: texts}, column{name: "n", numbers: n}
}

// upsert runs query for rows. On SQLite, a statement for each row takes half the
// time of one for all, which has to take JSON apart.
func (s *Store) upsert(tx *sqlx.Tx, query string, columns ...column) error {
	if !s.sql.sqlite {
		rows, args := s.sql.rows(columns...)
		_, err := tx.Exec(s.sql.text(strings.Replace(query, "%s", rows, 1)), args...)
		return err
	}
	row := "VALUES (?" + strings.Repeat(", ?", len(columns)-1) + ")"
	stmt, err := tx.Prepare(s.sql.text(strings.Replace(query, "%s", row, 1)))
	if err != nil {
		return err
	}
	defer stmt.Close()
	args := make([]any, len(columns))
	for i := range columns[0].len() {
		for j, c := range columns {
			args[j] = c.at(i)
		}
		if _, err := stmt.Exec(args...); err != nil {
			return err
		}
	}
	return nil
}

// addHistory adds rows to history; first is told of those that were new.
func (s *Store) addHistory(tx *sqlx.Tx, rows []row, first func(bucket)) error {
	for rows := range slices.Chunk(rows, chunk) {
		buckets, keys, numbers := columns(rows)
		if first == nil {
			if err := s.upsert(tx, sqlAddHistory, buckets[0], buckets[1], keys, numbers); err != nil {
				return err
			}
			continue
		}
		added, args := s.sql.rows(buckets[0], buckets[1], keys, numbers)
		query := strings.Replace(sqlAddHistory, "%s", added, 1)
		var now []struct {
			bucket
			Value int64
		}
		if err := tx.Select(&now, s.sql.text(query+sqlReturning), args...); err != nil {
			return err
		}
		of := make(map[bucket]int64, len(rows))
		for _, r := range rows {
			of[r.bucket] = r.n
		}
		for _, r := range now {
			if r.Value == of[r.bucket] && r.Value < counter.Max { // a full counter may be old
				first(r.bucket)
			}
		}
	}
	return nil
}
