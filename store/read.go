package store

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/usagekit/usagekit/internal/counter"
)

const readTimeout = 5 * time.Second

const (
	// Read before the data. Where nothing waits, every batch that reached the
	// database before now is in it; else every one before the last fold that left
	// nothing behind. No clock but the database's is asked.
	sqlComplete = `SELECT %s AS now, (SELECT COUNT(*) FROM (SELECT 1 FROM usage_inbox LIMIT 1) AS i) AS waiting,
COALESCE((SELECT value FROM usage_meta WHERE name = 'folded'), '0') AS folded`

	sqlExtent = `SELECT MIN(bucket) AS first, MAX(bucket) AS last FROM usage_history WHERE step = 2`

	sqlTotal = `SELECT COALESCE((SELECT value FROM usage_metrics WHERE key = ?), 0)`

	// The counters that are what their current bucket is.
	sqlCurrent = `SELECT key, value AS n FROM usage_history WHERE step = 2 AND bucket = ? AND key IN ('api.requests.total', 'user.active.daily')
UNION ALL SELECT key, value FROM usage_history WHERE step = 3 AND bucket = ? AND key = 'user.active.monthly'`

	// A name without its measure. (rtrim takes off what follows the last dot:
	// it stops at the first character that is not in the set, and only the dot
	// is not.)
	sqlSubject = `rtrim(key, replace(key, '.', ''))`
)

// read runs f in a transaction, after it has noted how complete the answer is.
func (s *Store) read(ctx context.Context, f func(tx *sqlx.Tx, now time.Time) error) error {
	ctx, cancel := context.WithTimeout(ctx, readTimeout) // with the wait for the lane
	defer cancel()
	err := s.attempt(ctx, s.reads, readTimeout, func(tx *sqlx.Tx) error {
		var c struct {
			Now, Waiting int64
			Folded       string
		}
		if err := tx.GetContext(ctx, &c, s.sql.text(strings.Replace(sqlComplete, "%s", s.sql.clock(), 1))); err != nil {
			return err
		}
		if err := f(tx, time.UnixMilli(c.Now)); err != nil {
			return err
		}
		through := c.Now
		if c.Waiting > 0 {
			through, _ = strconv.ParseInt(c.Folded, 10, 64) // 0: not yet
		}
		for {
			before := s.foldedThrough.Load()
			if before >= through || s.foldedThrough.CompareAndSwap(before, through) {
				return nil
			}
		}
	})
	if err != nil {
		return fmt.Errorf("store: read: %w", err)
	}
	return nil
}

// Get returns the total of one counter; 0 when nothing was counted under name.
// "api.requests.today", "user.active.daily" and "user.active.monthly" are the
// numbers of the current day or month.
func (s *Store) Get(ctx context.Context, name string) (int64, error) {
	var n int64
	name = counter.Clean(name)
	err := s.read(ctx, func(tx *sqlx.Tx, now time.Time) error {
		switch name {
		case requestsToday, activeDaily, activeMonthly:
			current, err := s.current(ctx, tx, now)
			n = current[name]
			return err
		}
		return tx.GetContext(ctx, &n, s.sql.text(sqlTotal), name)
	})
	if err != nil {
		return 0, err
	}
	return n, nil
}

// current reads the counters that are what their current bucket is.
func (s *Store) current(ctx context.Context, tx *sqlx.Tx, now time.Time) (map[string]int64, error) {
	var rows []struct {
		Key string
		N   int64
	}
	err := tx.SelectContext(ctx, &rows, s.sql.text(sqlCurrent), s.calendar.start(Day, now).Unix(), s.calendar.start(Month, now).Unix())
	current := map[string]int64{requestsToday: 0, activeDaily: 0, activeMonthly: 0}
	for _, r := range rows {
		if r.Key == requestsTotal {
			r.Key = requestsToday
		}
		current[r.Key] = r.N
	}
	return current, err
}

// Totals returns one count per name, largest first: of all time, or of the
// range [From, To). "api.requests.today", "user.active.daily" and
// "user.active.monthly" belong to the current day or month, and to no range.
func (s *Store) Totals(ctx context.Context, q Query) ([]Count, error) {
	if err := q.check(); err != nil {
		return nil, err
	}
	if q.ranged() && (q.Name == activeDaily || q.Name == activeMonthly) {
		return nil, queryError(q.Name + " is the number of one day or month, and cannot be summed: read its History")
	}
	var counts []Count
	err := s.read(ctx, func(tx *sqlx.Tx, now time.Time) error {
		spans, err := s.spansOf(ctx, tx, &q)
		if err != nil {
			return err
		}
		from := s.selected(&q, spans)
		text, args := from.text, from.args
		if text += " ORDER BY n DESC, name"; q.Limit > 0 {
			text, args = text+" LIMIT ?", append(args, q.Limit)
		}
		if err := tx.SelectContext(ctx, &counts, s.sql.text("SELECT key AS name, n FROM "+text), args...); err != nil || q.ranged() {
			return err
		}
		current, err := s.current(ctx, tx, now)
		for name, n := range current {
			if q.matches(name) {
				counts = append(counts, Count{Name: name, N: n})
			}
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	sortCounts(counts)
	if q.Limit > 0 && len(counts) > q.Limit {
		counts = counts[:q.Limit]
	}
	return counts, nil
}

// Rows returns one row per subject that q selects, with all its measures: the
// largest in q.Measure first, or in its largest measure when that is "".
func (s *Store) Rows(ctx context.Context, q Query) ([]Row, error) {
	if err := q.check(); err != nil {
		return nil, err
	}
	var rows []Row
	err := s.read(ctx, func(tx *sqlx.Tx, _ time.Time) error {
		spans, err := s.spansOf(ctx, tx, &q)
		if err != nil {
			return err
		}
		from := s.selected(&q, spans)
		text, args := "SELECT "+sqlSubject+" AS p FROM "+from.text+" GROUP BY p ORDER BY MAX(n) DESC, p", from.args
		if q.Limit > 0 {
			text, args = text+" LIMIT ?", append(args, q.Limit)
		}
		var subjects []string
		if err := tx.SelectContext(ctx, &subjects, s.sql.text(text), args...); err != nil {
			return err
		}
		rows, err = s.measures(ctx, tx, q, subjects)
		return err
	})
	if err != nil {
		return nil, err
	}
	return rows, nil
}

// measures reads all counts of subjects, names without their measure, with the
// dot, in the range that q asks for. It keeps their order.
func (s *Store) measures(ctx context.Context, tx *sqlx.Tx, q Query, subjects []string) ([]Row, error) {
	// All the measures of a subject, also those that q does not select.
	group, _, dotted := strings.Cut(cmp.Or(q.Name, q.Prefix), ".")
	q.Name, q.Prefix, q.Measure, q.Contains = "", "", "", ""
	if dotted {
		q.Prefix = group + "."
	}
	spans, err := s.spansOf(ctx, tx, &q)
	if err != nil {
		return nil, err
	}
	var lows, highs []string
	var rows []Row
	at := map[[2]string]int{} // group and subject: "x" and "other.x" share theirs
	bare := false
	for _, p := range subjects {
		group, subject, _ := counter.Split(p)
		key := [2]string{group, subject}
		if p == "" {
			key[0] = "other"
		}
		if _, ok := at[key]; !ok {
			at[key] = len(rows)
			rows = append(rows, Row{Group: key[0], Subject: subject, Counts: map[string]int64{}})
		}
		if strings.Count(p, ".") < 2 {
			bare = true // its range would be its whole group's
			continue
		}
		lows, highs = append(lows, p), append(highs, after(p))
	}
	var counts, alone []Count
	if len(lows) > 0 {
		list, args := s.sql.values(column{name: "lo", texts: lows}, column{name: "hi", texts: highs})
		from := s.counts(spans, condition{list: list, listArgs: args, bounds: "v.lo",
			where: "h.key >= v.lo AND h.key < v.hi AND rtrim(h.key, replace(h.key, '.', '')) = v.lo"})
		if err := tx.SelectContext(ctx, &counts, s.sql.text("SELECT key AS name, n FROM "+from.text), from.args...); err != nil {
			return nil, err
		}
	}
	if bare {
		where := s.condition(&q, "h.key")
		where.where += " AND length(h.key) - length(replace(h.key, '.', '')) < 2"
		from := s.counts(spans, where)
		if err := tx.SelectContext(ctx, &alone, s.sql.text("SELECT key AS name, n FROM "+from.text), from.args...); err != nil {
			return nil, err
		}
	}
	for _, c := range append(counts, alone...) {
		group, subject, measure := counter.Split(c.Name)
		if i, ok := at[[2]string{group, subject}]; ok {
			rows[i].Counts[measure] = addCapped(rows[i].Counts[measure], c.N)
		}
	}
	return rows, nil
}

// History returns one count per name and bucket, the oldest first. Buckets
// without a count are left out.
func (s *Store) History(ctx context.Context, q Query) ([]Count, error) {
	if err := q.check(); err != nil {
		return nil, err
	}
	sums := map[bucket]int64{}
	err := s.read(ctx, func(tx *sqlx.Tx, _ time.Time) error {
		spans, err := s.spans(ctx, tx, &q, true)
		if err != nil {
			return err
		}
		where := s.condition(&q, "h.key")
		if q.Limit > 0 {
			from := s.counts(spans, where)
			var names []string
			err := tx.SelectContext(ctx, &names, s.sql.text("SELECT key FROM "+from.text+" ORDER BY n DESC, key LIMIT ?"), append(from.args, q.Limit)...)
			if err != nil || len(names) == 0 {
				return err
			}
			list, args := s.sql.values(column{name: "name", texts: names})
			where = condition{list: list, listArgs: args, bounds: "v.name", where: "h.key = v.name"}
		}
		for _, sp := range spans {
			text, args := s.span(sp, where, "h.bucket, h.key, h.value")
			var rows []struct {
				Bucket int64
				Key    string
				Value  int64
			}
			if err := tx.SelectContext(ctx, &rows, s.sql.text(text), args...); err != nil {
				return err
			}
			for _, r := range rows {
				if sp.step < q.Step {
					r.Bucket = s.calendar.start(q.Step, time.Unix(r.Bucket, 0)).Unix()
				}
				b := bucket{q.Step, r.Bucket, r.Key}
				sums[b] = addCapped(sums[b], r.Value)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	counts := make([]Count, 0, len(sums))
	for b, n := range sums {
		counts = append(counts, Count{Name: b.Key, Start: time.Unix(b.Bucket, 0).In(s.calendar.loc), N: n})
	}
	slices.SortFunc(counts, func(a, b Count) int { return cmp.Or(a.Start.Compare(b.Start), cmp.Compare(a.Name, b.Name)) })
	return counts, nil
}
