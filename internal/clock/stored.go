package clock

import (
	"context"
	"time"

	"github.com/usagekit/usagekit/internal/calendar"
	"github.com/usagekit/usagekit/internal/database"
)

// Segment is a range of buckets of a step, by their places.
type Segment struct {
	Step     calendar.Step
	From, To time.Time
}

// Between is the segment of buckets of a step from one place up to another.
func Between(step calendar.Step, from, to time.Time) Segment { return Segment{step, from, to} }

// From one bucket to the next that there is, each an index probe: what lists the ones
// that should be there misses those of other rules, and does not end where a clock
// was in a far year. What reads history begins with this, so it also prepares the
// transaction: PostgreSQL takes step, bucket and key for independent, expects ten
// times the rows that there are, and would sooner read the whole table.
const sqlStored = `WITH RECURSIVE b(part, step, hi, bucket) AS (
SELECT v.part, v.step, v.hi, (SELECT MIN(h.bucket) FROM usage_history h WHERE h.step = v.step AND h.bucket >= v.lo AND h.bucket < v.hi) FROM {v}
UNION ALL
SELECT b.part, b.step, b.hi, (SELECT MIN(h.bucket) FROM usage_history h WHERE h.step = b.step AND h.bucket > b.bucket AND h.bucket < b.hi) FROM b WHERE b.bucket IS NOT NULL)
SELECT -1 AS part, 0 AS bucket, {local enable_seqscan off} AS prepared UNION ALL SELECT part, bucket, '' FROM b WHERE bucket IS NOT NULL ORDER BY 1, 2`

// Stored lists the buckets that there are of each segment, by a calendar.
func Stored(ctx context.Context, tx *database.Tx, c calendar.Calendar, segments []Segment) ([][]int64, error) {
	if len(segments) == 0 {
		return nil, nil
	}
	half := [...]int64{calendar.Hour: 1800, calendar.Day: 12 * 3600, calendar.Month: 16 * 24 * 3600} // at least: one begun under other rules may lie so much before its place
	parts, steps, lows, highs := database.Column{Name: "part"}, database.Column{Name: "step"}, database.Column{Name: "lo"}, database.Column{Name: "hi"}
	for i, g := range segments {
		parts.Numbers, steps.Numbers = append(parts.Numbers, int64(i)), append(steps.Numbers, int64(g.Step))
		lows.Numbers, highs.Numbers = append(lows.Numbers, g.From.Unix()-half[g.Step]), append(highs.Numbers, g.To.Unix())
	}
	var rows []struct {
		Part     int
		Bucket   int64
		Prepared string
	}
	if err := tx.Select(ctx, &rows, sqlStored, database.List{parts, steps, lows, highs}); err != nil {
		return nil, err
	}
	lists := make([][]int64, len(segments))
	for _, r := range rows[1:] {
		if g := segments[r.Part]; c.Place(g.Step, r.Bucket) >= g.From.Unix() && c.Place(g.Step, r.Bucket) < g.To.Unix() {
			lists[r.Part] = append(lists[r.Part], r.Bucket)
		}
	}
	return lists, nil
}
