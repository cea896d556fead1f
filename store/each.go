package store

import (
	"context"
	"iter"

	"github.com/usagekit/usagekit/internal/read"
)

// Each returns every counter that q selects, however many there are: of all time, or
// summed over the range [From, To), in the order of names (by bytes). With q.Step it
// returns one count per name and bucket of that step, as History does: the oldest
// bucket first, within it by name. Of the current day and month it has what Totals
// has. Limit is how many counts it returns, the first ones.
//
// They are read in pages as they are asked for, each in a short transaction of its
// own: between two, no connection is held, and whoever reads may take their time. A
// page is exact as of its own moment, and no name comes twice (in a bucket); but what
// is counted meanwhile is in a later page and not in an earlier one. Without To, the
// last bucket is that of when Each began. An error comes once, with a zero Count, and
// is the end.
func (s *Store) Each(ctx context.Context, q Query) iter.Seq2[Count, error] {
	return func(yield func(Count, error) bool) {
		n := 0
		left, err := read.All(q.asked())
		for err = asQueryError(err); err == nil && s != nil && !left.Empty(); {
			var counts []read.Count
			if counts, left, err = s.page(ctx, left); err != nil {
				break
			}
			for _, c := range counts {
				if n++; !yield(Count(c), nil) || n == q.Limit {
					return
				}
			}
		}
		if err != nil {
			yield(Count{}, err)
		}
	}
}

// page reads some of what is left to read, and returns the rest.
func (s *Store) page(ctx context.Context, left read.Rest) ([]read.Count, read.Rest, error) {
	type page struct {
		counts []read.Count
		left   read.Rest
	}
	p, err := one(ctx, s, func(ctx context.Context, r *Reading) (p page, err error) {
		p.counts, p.left, err = r.of.Page(ctx, left)
		return p, r.told(err)
	})
	return p.counts, p.left, err
}
