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
	sqlAddTotals = `INSERT INTO usage_metrics AS m (key, value)
SELECT key, n FROM %s WHERE true
ON CONFLICT (key) DO UPDATE SET value = CASE WHEN m.value > 9007199254740991 - excluded.value THEN 9007199254740991 ELSE m.value + excluded.value END`

	sqlAddHistory = `INSERT INTO usage_history AS h (step, bucket, key, value)
SELECT step, bucket, key, n FROM %s WHERE true
ON CONFLICT (step, bucket, key) DO UPDATE SET value = CASE WHEN h.value > 9007199254740991 - excluded.value THEN 9007199254740991 ELSE h.value + excluded.value END`

	sqlReturning = ` RETURNING step, bucket, key, value`
)

// bucket is one row of history.
type bucket struct {
	Step   Step
	Bucket int64 // Unix seconds
	Key    string
}

// sums is what apply writes: counts of any number of batches, merged.
type sums struct {
	calendar calendar
	totals   map[string]int64
	history  map[bucket]int64
	starts   map[int64][3]int64 // of the hour, day and month, by quarter hour
}

func newSums(c calendar) *sums {
	return &sums{c, map[string]int64{}, map[bucket]int64{}, map[int64][3]int64{}}
}

// add merges n of a clean name, counted at the time at (Unix milliseconds), with
// what is derived from it.
func (s *sums) add(at int64, name string, n int64) {
	group, subject, measure := counter.Split(name)
	s.count(at, group, name, n)
	if group == "api" && subject != "" && subject != "requests" && measure == "requests" {
		s.count(at, group, requestsTotal, n)
	}
}

func (s *sums) count(at int64, group, name string, n int64) {
	s.totals[name] = addCapped(s.totals[name], n)
	quarter := at - mod(at, quarterHour.Milliseconds())
	starts, ok := s.starts[quarter]
	if !ok {
		t := time.UnixMilli(quarter)
		for i, step := range []Step{Hour, Day, Month} {
			starts[i] = s.calendar.start(step, t).Unix()
		}
		s.starts[quarter] = starts
	}
	for _, step := range kept(group) {
		b := bucket{step, starts[step-Hour], name}
		s.history[b] = addCapped(s.history[b], n)
	}
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
	if err := s.addTotals(tx, sums.totals); err != nil {
		return err
	}
	var plain, users []bucket
	for b := range sums.history {
		if group, subject, measure := counter.Split(b.Key); group == "user" && measure == "requests" && subject != "" && !counter.Reserved(subject) {
			users = append(users, b)
		} else {
			plain = append(plain, b)
		}
	}
	if err := s.addHistory(tx, plain, sums.history, nil); err != nil {
		return err
	}
	active := map[bucket]int64{}
	err := s.addHistory(tx, users, sums.history, func(b bucket) {
		name := activeDaily
		if b.Step == Month {
			name = activeMonthly
		}
		active[bucket{b.Step, b.Bucket, name}]++
	})
	if err != nil {
		return err
	}
	return s.addHistory(tx, slices.Collect(maps.Keys(active)), active, nil)
}

// chunk is how many rows one upsert takes: a twentieth of a second of a small
// server, far below its statement_timeout, however large a batch is.
const chunk = 5_000

func (s *Store) addTotals(tx *sqlx.Tx, totals map[string]int64) error {
	for keys := range slices.Chunk(slices.Sorted(maps.Keys(totals)), chunk) {
		numbers := make([]int64, len(keys))
		for i, k := range keys {
			numbers[i] = totals[k]
		}
		rows, args := s.sql.values(column{name: "key", texts: keys}, column{name: "n", numbers: numbers})
		if _, err := tx.Exec(s.sql.text(strings.Replace(sqlAddTotals, "%s", rows, 1)), args...); err != nil {
			return err
		}
	}
	return nil
}

// addHistory adds n[b] to each row b; first is told of the rows that were new.
func (s *Store) addHistory(tx *sqlx.Tx, rows []bucket, n map[bucket]int64, first func(bucket)) error {
	slices.SortFunc(rows, func(a, b bucket) int {
		return cmp.Or(cmp.Compare(a.Step, b.Step), cmp.Compare(a.Bucket, b.Bucket), cmp.Compare(a.Key, b.Key))
	})
	for rows := range slices.Chunk(rows, chunk) {
		steps, buckets, numbers := make([]int64, len(rows)), make([]int64, len(rows)), make([]int64, len(rows))
		keys := make([]string, len(rows))
		for i, b := range rows {
			steps[i], buckets[i], keys[i], numbers[i] = int64(b.Step), b.Bucket, b.Key, n[b]
		}
		from, args := s.sql.values(column{name: "step", numbers: steps}, column{name: "bucket", numbers: buckets},
			column{name: "key", texts: keys}, column{name: "n", numbers: numbers})
		query := strings.Replace(sqlAddHistory, "%s", from, 1)
		if first == nil {
			if _, err := tx.Exec(s.sql.text(query), args...); err != nil {
				return err
			}
			continue
		}
		var now []struct {
			bucket
			Value int64
		}
		if err := tx.Select(&now, s.sql.text(query+sqlReturning), args...); err != nil {
			return err
		}
		for _, r := range now {
			if r.Value == n[r.bucket] && r.Value < counter.Max { // a full counter may be old
				first(r.bucket)
			}
		}
	}
	return nil
}
