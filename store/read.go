package store

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/usagekit/usagekit/internal/calendar"
	"github.com/usagekit/usagekit/internal/clock"
	"github.com/usagekit/usagekit/internal/database"
	"github.com/usagekit/usagekit/internal/naming"
)

// manyNames are more than are read to choose among them here.
const manyNames = 10_000

const (
	// Read before the data. Where nothing waits, every batch that reached the
	// database before now is in it; else every one before the last fold that left
	// nothing behind. No clock but the database's is asked. It also prepares the
	// transaction: PostgreSQL expects far more rows of a range of names than there
	// are, and would compile for hundreds of milliseconds what takes one.
	sqlComplete = `SELECT %s AS prepared, %s AS now, (SELECT COUNT(*) FROM (SELECT 1 FROM usage_inbox LIMIT 1) AS i) AS waiting,
COALESCE((SELECT value FROM usage_meta WHERE name = 'folded'), '0') AS folded, ` + sqlRules

	sqlTotal = `SELECT COALESCE((SELECT value FROM usage_metrics WHERE key = ?), 0)`

	// The counters that are what their current bucket is.
	sqlCurrent = `SELECT h.key, h.value AS n FROM usage_history h WHERE h.step = 2 AND %s AND h.key IN ('` + naming.RequestsTotal + `', '` + naming.ActiveDaily + `')
UNION ALL SELECT h.key, h.value FROM usage_history h WHERE h.step = 3 AND %s AND h.key = '` + naming.ActiveMonthly + `'`
)

// read runs f in a transaction, after it has noted how complete the answer is.
func (s *Store) read(ctx context.Context, f func(ctx context.Context, tx *database.Tx, now time.Time) error) error {
	ctx, cancel := context.WithTimeout(ctx, database.ReadTimeout) // with the wait for the lane
	defer cancel()
	err := s.db.Read(ctx, database.ReadTimeout, func(ctx context.Context, tx *database.Tx) error {
		var c struct {
			Prepared     string
			Now, Waiting int64
			Folded       string
			Rules        string
		}
		if err := tx.Get(ctx, &c, fmt.Sprintf(sqlComplete, s.db.SetLocal("jit", "off"), s.db.Clock())); err != nil {
			return err
		}
		s.skew.Store(c.Now - time.Now().UnixMilli())
		if err := s.follow(ctx, tx, c.Rules); err != nil {
			return err
		}
		if err := f(ctx, tx, time.UnixMilli(c.Now)); err != nil {
			return err
		}
		through := c.Now
		if c.Waiting > 0 {
			if s.asleep.Load() {
				s.sent(true)
			}
			through, _ = strconv.ParseInt(c.Folded, 10, 64) // 0: not yet
			through = possible(through, c.Now, 0)
		}
		for {
			before := s.foldedThrough.Load()
			// What was read before is later than this only where both were read at once.
			if before >= through && before-c.Now <= database.ReadTimeout.Milliseconds() || s.foldedThrough.CompareAndSwap(before, through) {
				return nil
			}
		}
	})
	if err != nil {
		return fmt.Errorf("store: read: %w", err)
	}
	return nil
}

// databaseTime is what the database's clock says, as of the last read: before the
// first, what ours does.
func (s *Store) databaseTime() time.Time {
	return time.Now().Add(time.Duration(s.skew.Load()) * time.Millisecond)
}

// Get returns the total of one counter; 0 when nothing was counted under name.
// "api.requests.today", "user.active.daily" and "user.active.monthly" are the
// numbers of the current day or month.
func (s *Store) Get(ctx context.Context, name string) (int64, error) {
	if s == nil {
		return 0, nil
	}
	var n int64
	name = naming.Known(name)
	err := s.read(ctx, func(ctx context.Context, tx *database.Tx, now time.Time) error {
		switch name {
		case naming.RequestsToday, naming.ActiveDaily, naming.ActiveMonthly:
			current, err := s.current(ctx, tx, now)
			n = current[name]
			return err
		}
		return tx.Get(ctx, &n, sqlTotal, name)
	})
	if err != nil {
		return 0, err
	}
	return n, nil
}

// current reads the counters that are what their current bucket is.
func (s *Store) current(ctx context.Context, tx *database.Tx, now time.Time) (map[string]int64, error) {
	current := map[string]int64{naming.RequestsToday: 0, naming.ActiveDaily: 0, naming.ActiveMonthly: 0}
	parts := []segment{clock.Between(calendar.Day, s.calendar().Start(calendar.Day, now), s.calendar().Next(calendar.Day, now)), clock.Between(calendar.Month, s.calendar().Start(calendar.Month, now), s.calendar().Next(calendar.Month, now))}
	stored, err := s.stored(ctx, tx, parts)
	if err != nil {
		return nil, err
	}
	days, ofDay := s.db.OneOf("h.bucket", stored[0])
	months, ofMonth := s.db.OneOf("h.bucket", stored[1])
	var rows []struct {
		Key string
		N   int64
	}
	err = tx.Select(ctx, &rows, fmt.Sprintf(sqlCurrent, days, months), ofDay, ofMonth)
	for _, r := range rows {
		if r.Key == naming.RequestsTotal {
			r.Key = naming.RequestsToday
		}
		current[r.Key] = addCapped(current[r.Key], r.N)
	}
	return current, err
}

// Totals returns one count per name, largest first: of all time, or of the
// range [From, To). "api.requests.today", "user.active.daily" and
// "user.active.monthly" belong to the current day or month, and to no range.
func (s *Store) Totals(ctx context.Context, q Query) ([]Count, error) {
	if err := q.check(); err != nil || s == nil {
		return nil, err
	}
	if err := q.checkSums(); err != nil {
		return nil, err
	}
	var counts []Count
	err := s.read(ctx, func(ctx context.Context, tx *database.Tx, now time.Time) error {
		spans, err := s.spansOf(ctx, tx, &q)
		if err != nil {
			return err
		}
		if counts, err = s.largest(ctx, tx, &q, spans, false); err != nil || q.ranged() {
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

// largest reads the sums over spans of what q selects, of names or of stems, the
// largest first.
func (s *Store) largest(ctx context.Context, tx *database.Tx, q *Query, spans []span, stems bool) ([]Count, error) {
	c := s.summed(q)
	if q.Limit == 0 {
		return s.ordered(ctx, tx, s.counts(spans, c), stems, "")
	}
	if !q.ranged() && len(q.Names) == 0 {
		// No index has totals by size, for then they could not be updated in
		// place. What is less than the last of the largest of some is not among the
		// largest of all: a comparison of numbers rules most of a million out.
		some := s.counts(spans, condition{})
		some.text = "(SELECT h.key AS key, h.value AS n FROM (SELECT key, n AS value FROM " + some.text + " LIMIT ?) AS h WHERE " + strings.Join(c.where, " AND ") + ") AS t"
		some.args = append(append(some.args, manyNames), c.args...)
		last, err := s.ordered(ctx, tx, some, stems, " LIMIT 1 OFFSET ?", q.Limit-1)
		if err != nil {
			return nil, err
		}
		if len(last) > 0 {
			c.least = last[0].N
		}
	}
	counts, err := s.ordered(ctx, tx, s.counts(spans, c), stems, " LIMIT ?", q.Limit)
	if err == nil && c.least > 0 && len(counts) < q.Limit { // a Reset came between
		c.least = 0
		counts, err = s.ordered(ctx, tx, s.counts(spans, c), stems, " LIMIT ?", q.Limit)
	}
	return counts, err
}

// ordered reads from by size: the count of each name, or the largest of each stem.
func (s *Store) ordered(ctx context.Context, tx *database.Tx, from table, stems bool, limit string, args ...any) ([]Count, error) {
	text := "SELECT key AS name, n FROM " + from.text
	if stems {
		text = "SELECT " + s.db.Stem("key") + " AS name, MAX(n) AS n FROM " + from.text + " GROUP BY 1"
	}
	var counts []Count
	err := tx.Select(ctx, &counts, text+" ORDER BY n DESC, name"+limit, append(from.args, args...)...)
	return counts, err
}

// Rows returns one row per subject that q selects, with all its measures: the
// largest in q.Measure first, or in its largest measure when that is "".
func (s *Store) Rows(ctx context.Context, q Query) ([]Row, error) {
	if err := q.check(); err != nil || s == nil {
		return nil, err
	}
	var rows []Row
	err := s.read(ctx, func(ctx context.Context, tx *database.Tx, _ time.Time) error {
		whole := q.whole()
		few := q.Name != "" || len(q.Names) > 0 || q.tears()
		if !few {
			many, err := s.many(ctx, tx, &whole)
			if err != nil {
				return err
			}
			few = many
		}
		var stems, counts []Count
		if few {
			spans, err := s.spansOf(ctx, tx, &q)
			if err != nil {
				return err
			}
			if stems, err = s.largest(ctx, tx, &q, spans, true); err != nil {
				return err
			}
			if counts, err = s.measures(ctx, tx, &whole, stems); err != nil {
				return err
			}
		} else { // one look at all is less than two at a part
			var err error
			if counts, err = s.sums(ctx, tx, &whole, condition{}); err != nil {
				return err
			}
			stems = q.stems(counts)
		}
		rows = rowsOf(stems, counts)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return rows, nil
}

// many tells whether more than manyNames lie in q's ranges.
func (s *Store) many(ctx context.Context, tx *database.Tx, q *Query) (bool, error) {
	var n int
	names := s.counts(q.totals(), condition{})
	err := tx.Get(ctx, &n, "SELECT COUNT(*) FROM (SELECT key FROM "+names.text+" LIMIT ?) AS f", append(names.args, manyNames+1)...)
	return n > manyNames, err
}

// sums reads the sums of the names in q's ranges that c selects, in no order.
func (s *Store) sums(ctx context.Context, tx *database.Tx, q *Query, c condition) ([]Count, error) {
	spans, err := s.spansOf(ctx, tx, q)
	if err != nil {
		return nil, err
	}
	return s.sumsOver(ctx, tx, spans, c)
}

// sumsOver reads the sums over spans of the names that c selects, in no order.
func (s *Store) sumsOver(ctx context.Context, tx *database.Tx, spans []span, c condition) (counts []Count, err error) {
	from := s.counts(spans, c)
	err = tx.Select(ctx, &counts, "SELECT key AS name, n FROM "+from.text, from.args...)
	return counts, err
}

// measures reads all counts of the subjects with these stems, in the range that
// whole asks for.
func (s *Store) measures(ctx context.Context, tx *database.Tx, whole *Query, stems []Count) ([]Count, error) {
	var lows, highs []string
	for _, p := range stems {
		if !naming.Bare(p.Name) {
			lows, highs = append(lows, p.Name), append(highs, after(p.Name))
		}
	}
	var counts, alone []Count
	var err error
	if len(lows) > 0 {
		// A condition that stem(key) is lo would have PostgreSQL compute the stems
		// of a whole table, to join by them.
		list, args := s.db.Values(database.Column{Name: "lo", Texts: lows}, database.Column{Name: "hi", Texts: highs})
		c := condition{list: list, listArgs: args}
		c.and("h.key >= v.lo AND h.key < v.hi AND " + s.db.Strpos + "(substr(h.key, length(v.lo) + 1), '.') = 0")
		q := *whole
		q.Except = nil // they do not tear a subject apart
		if counts, err = s.sums(ctx, tx, &q, c); err != nil {
			return nil, err
		}
	}
	if len(lows) < len(stems) {
		var c condition
		c.and("length(h.key) - length(replace(h.key, '.', '')) < 2")
		if alone, err = s.sums(ctx, tx, whole, c); err != nil {
			return nil, err
		}
	}
	return append(counts, alone...), nil
}

// rowsOf makes the rows of the subjects with these stems, in their order, of counts
// that may be of others, too.
func rowsOf(stems, counts []Count) []Row {
	type subject struct{ group, subject string } // "x" and "other.x" share theirs
	var rows []Row
	at := map[subject]int{}
	wanted, alone := map[string]bool{}, false
	for _, p := range stems {
		wanted[p.Name], alone = true, alone || naming.Bare(p.Name)
		group, of, _ := naming.Split(p.Name)
		if p.Name == "" {
			group = "other"
		}
		key := subject{group, of}
		if _, ok := at[key]; !ok {
			at[key] = len(rows)
			rows = append(rows, Row{Group: group, Subject: of, Counts: map[string]int64{}})
		}
	}
	for _, c := range counts {
		if p := naming.Stem(c.Name); naming.Current(c.Name) || !wanted[p] && !(alone && naming.Bare(p)) {
			continue
		}
		group, of, measure := naming.Split(c.Name)
		if i, ok := at[subject{group, of}]; ok {
			rows[i].Counts[measure] = addCapped(rows[i].Counts[measure], c.N)
		}
	}
	return rows
}

// checkSums refuses what cannot be summed over a range.
func (q *Query) checkSums() error {
	for _, name := range []string{naming.ActiveDaily, naming.ActiveMonthly} {
		if q.ranged() && q.named(name) {
			return QueryError(name + " is the number of one day or month, and cannot be summed: read its History")
		}
	}
	return nil
}

// History returns one count per name and bucket, the oldest first. Buckets
// without a count are left out (see Buckets). Among several Names,
// "user.active.monthly" wants Step Month, and "user.active.daily" does not go with it.
func (s *Store) History(ctx context.Context, q Query) ([]Count, error) {
	finest := q.Step == 0
	if err := q.check(); err != nil || s == nil {
		return nil, err
	}
	if err := s.checkKept(&q, finest); err != nil {
		return nil, err
	}
	counts := []Count{}
	err := s.read(ctx, func(ctx context.Context, tx *database.Tx, _ time.Time) error {
		spans, err := s.spans(ctx, tx, &q, true)
		if err != nil {
			return err
		}
		c := s.condition(&q)
		if q.Limit > 0 && q.Name == "" {
			names, err := s.names(ctx, tx, &q)
			if err != nil || len(names) == 0 {
				return err
			}
			c = s.oneOf(names)
		}
		counts, err = s.history(ctx, tx, spans, c, q.step())
		return err
	})
	if err != nil {
		return nil, err
	}
	return counts, nil
}

// history reads the counts of the buckets of step that spans cover, of the names that
// c selects, in order.
func (s *Store) history(ctx context.Context, tx *database.Tx, spans []span, c condition, step calendar.Step) ([]Count, error) {
	sums := map[bucket]int64{}
	for _, sp := range spans {
		text, args := s.span(sp, c, "h.bucket, h.key, h.value")
		var rows []struct {
			Bucket int64
			Key    string
			Value  int64
		}
		if err := tx.Select(ctx, &rows, text, args...); err != nil {
			return nil, err
		}
		places := map[int64]int64{}
		for _, b := range sp.buckets {
			places[b] = s.calendar().PlaceIn(step, sp.step, b)
		}
		for _, r := range rows {
			b := bucket{step, places[r.Bucket], r.Key}
			sums[b] = addCapped(sums[b], r.Value)
		}
	}
	counts := make([]Count, 0, len(sums))
	for b, n := range sums {
		counts = append(counts, Count{Name: b.Key, Start: time.Unix(b.Bucket, 0).In(s.calendar().Zone()), N: n})
	}
	slices.SortFunc(counts, func(a, b Count) int { return cmp.Or(a.Start.Compare(b.Start), cmp.Compare(a.Name, b.Name)) })
	return counts, nil
}

// checkKept has a History that begins before the horizon of its buckets be one of
// coarser buckets, or an error when others were asked for.
func (s *Store) checkKept(q *Query, finest bool) error {
	if q.Step != Month && q.named(naming.ActiveMonthly) {
		return QueryError(naming.ActiveMonthly + " is kept by month: want Step Month, or a query of its own")
	}
	if q.From.IsZero() || !s.db.Started() {
		return nil
	}
	h := s.horizon(s.databaseTime())
	gone := func(name string) bool { return q.From.Before(time.Unix(h.Of(q.step(), naming.Personal(name)), 0)) }
	names := q.Names
	if len(names) == 0 || q.Name != "" {
		names = []string{cmp.Or(q.Name, "user.x.requests")}
	}
	old := slices.IndexFunc(names, gone)
	coarser := q.Step
	switch users, plain := q.groups(); {
	case q.Step == Hour && gone(""):
		coarser = Day
	case q.Step == Day && users && !plain && old >= 0 && !q.named(naming.ActiveDaily):
		coarser = Month
	}
	if coarser == q.Step {
		return nil
	}
	if !finest {
		since := time.Unix(h.Of(q.step(), naming.Personal(names[max(old, 0)])), 0).In(s.calendar().Zone())
		return QueryError(fmt.Sprintf("Step %v is finer than kept before %s (Config.Retention): want %v", q.Step, since.Format(time.DateOnly), coarser))
	}
	q.Step = coarser
	return nil
}

// names reads the q.Limit largest names of q's range.
func (s *Store) names(ctx context.Context, tx *database.Tx, q *Query) ([]string, error) {
	// These have no other step to be summed in.
	each := q.matches(naming.ActiveDaily) || q.matches(naming.ActiveMonthly) || strings.HasPrefix(q.Prefix, "quota.")
	spans, err := s.spans(ctx, tx, q, each)
	if err != nil {
		return nil, err
	}
	var names []string
	from := s.counts(spans, s.condition(q))
	err = tx.Select(ctx, &names, "SELECT key FROM "+from.text+" ORDER BY n DESC, key LIMIT ?", append(from.args, q.Limit)...)
	return names, err
}
