package read

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"github.com/usagekit/usagekit/internal/calendar"
	"github.com/usagekit/usagekit/internal/naming"
)

// History reads one count per name and bucket, the oldest first.
func (r *Reading) History(ctx context.Context, q Query) ([]Count, error) {
	finest := q.Step == 0
	if err := q.checkSteps(); err != nil || r.tx == nil {
		return nil, err
	}
	if err := q.checkKept(r.calendar, r.horizon, finest); err != nil {
		return nil, err
	}
	spans, err := r.spans(ctx, &q, true)
	if err != nil {
		return nil, err
	}
	c := q.condition(r.tx.Dialect)
	if q.Limit > 0 && q.Name == "" {
		names, err := r.names(ctx, &q)
		if err != nil {
			return nil, err
		}
		if len(names) == 0 {
			return []Count{}, nil
		}
		c = oneOf(r.tx.Dialect, names)
	}
	return r.history(ctx, spans, c, q.Step)
}

// history reads the counts of the buckets of step that spans cover, of the names that
// c selects, in order.
func (r *Reading) history(ctx context.Context, spans []span, c condition, step calendar.Step) ([]Count, error) {
	if err := r.seek(ctx, true); err != nil {
		return nil, err
	}
	type bucket struct {
		start int64
		name  string
	}
	sums := map[bucket]int64{}
	for _, sp := range spans {
		text, args := sp.query(r.tx.Dialect, c, "h.bucket, h.key, h.value")
		var rows []struct {
			Bucket int64
			Key    string
			Value  int64
		}
		if err := r.tx.Select(ctx, &rows, text, args...); err != nil {
			return nil, err
		}
		places := map[int64]int64{}
		for _, b := range sp.buckets {
			places[b] = r.calendar.PlaceIn(step, sp.step, b)
		}
		for _, row := range rows {
			b := bucket{places[row.Bucket], row.Key}
			sums[b] = plus(sums[b], row.Value)
		}
	}
	counts := make([]Count, 0, len(sums))
	for b, n := range sums {
		counts = append(counts, Count{Name: b.name, Start: time.Unix(b.start, 0).In(r.calendar.Zone()), N: n})
	}
	slices.SortFunc(counts, func(a, b Count) int { return cmp.Or(a.Start.Compare(b.Start), cmp.Compare(a.Name, b.Name)) })
	return counts, nil
}

// names reads the q.Limit largest names of q's range.
func (r *Reading) names(ctx context.Context, q *Query) (names []string, err error) {
	// These have no other step to be summed in: of months, quotas.
	each := q.Step == calendar.Month || q.matches(naming.ActiveDaily) || q.matches(naming.ActiveMonthly) || strings.HasPrefix(q.Prefix, "quota.")
	spans, err := r.spans(ctx, q, each)
	if err != nil {
		return nil, err
	}
	err = r.from(ctx, &names, "SELECT key", counts(r.tx.Dialect, spans, q.condition(r.tx.Dialect)), " ORDER BY n DESC, key LIMIT ?", q.Limit)
	return names, err
}
