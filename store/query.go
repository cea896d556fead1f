package store

import (
	"cmp"
	"errors"
	"math"
	"slices"
	"time"

	"github.com/usagekit/usagekit/internal/calendar"
	"github.com/usagekit/usagekit/internal/naming"
	"github.com/usagekit/usagekit/internal/read"
)

// Query selects counters, and for ranges, buckets. The zero Query selects
// everything, of all time. Conditions are joined by "and".
type Query struct {
	Name   string   // exactly this name
	Names  []string // exactly one of these, 1,000 at most; none: any. With Name, both hold
	Prefix string   // names that begin so

	// Exactly one subject, as its names were counted: the id that the middleware was
	// given, which it escapes and cuts if need be, so not what a Row has of it. Prefix
	// says of which group, unless Name or Names do: with Prefix "user.", Subject "42" is
	// what user 42 used, and nothing of user 42.7. "": any.
	Subject string

	Measure  string   // names that end in "."+Measure; of a status_ or latency_ that is the sum of all routes, too, of subject "requests" (of requests itself: api.requests.total)
	Contains string   // names that contain this; ASCII letters match in either case
	Except   []string // names that begin with one of these are left out; 100 at most

	// The half-open range [From, To), widened to whole buckets; of what is no longer kept (Config.Retention) nothing is in it. A zero From or
	// To leaves that end open; both zero mean all time.
	From, To time.Time

	Step  Step // of the buckets; 0: the finest that is kept of all that is selected
	Limit int  // names (Totals, History) or subjects (Rows), the largest; the first counts (Each); 0: all
}

// Step is the length of a history bucket. Buckets start at the local hour, day
// or month of the store's zone.
type Step int

// Hours are kept for every group but "user", days for every group, months for
// "user"; what is taken of a quota in the step that it is taken in (Take). A coarser
// step is summed from a finer one, but for hours of quotas.
const (
	Hour  = Step(calendar.Hour)
	Day   = Step(calendar.Day)
	Month = Step(calendar.Month)
)

// Count is one counter's number: of all time, of a range, or of one bucket.
type Count struct {
	Name  string
	Start time.Time // of its bucket, in the store's zone; zero in totals
	N     int64     // 0 … 2^53−1, exact in JSON and JavaScript
}

// Row is one subject with all its measures: for group "api" and subject
// "GET /novels/{id}", the counts of requests, status_2xx, latency_5ms and so on.
type Row struct {
	Group, Subject string
	Counts         map[string]int64 // by measure
}

// Quantile returns the duration that a share p of the requests, 0 … 1, took at
// most: interpolated within its latency_ bucket, 10 s when it lies beyond the
// last bound, 0 when no latency was measured.
func (r Row) Quantile(p float64) time.Duration {
	var counts [naming.Latencies]int64
	total := 0.0
	for i := range counts {
		counts[i] = r.Counts[naming.Measure(naming.FirstLatency+i)]
		total += float64(counts[i])
	}
	if total == 0 || math.IsNaN(p) {
		return 0
	}
	rank := min(max(p, 0), 1) * total
	low, below := 0.0, 0.0 // in ms, as the page computes it
	for i, bound := range naming.Bounds() {
		n, high := float64(counts[i]), float64(bound.Milliseconds())
		if n > 0 && below+n >= rank {
			return time.Duration((low + (high-low)*(rank-below)/n) * float64(time.Millisecond))
		}
		low, below = high, below+n
	}
	return time.Duration(low) * time.Millisecond
}

// QueryError says what is wrong with a Query: [errors.As] tells it from what is
// wrong with the database. Error puts a prefix before it.
type QueryError string

func (e QueryError) Error() string { return "store: Query: " + string(e) }

// String returns "hour", "day" or "month".
func (s Step) String() string { return calendar.Step(s).String() }

// asked is q as it is read.
func (q Query) asked() read.Query {
	return read.Query{
		Name: q.Name, Names: q.Names, Prefix: q.Prefix, Subject: q.Subject, Measure: q.Measure, Contains: q.Contains, Except: q.Except,
		From: q.From, To: q.To, Step: calendar.Step(q.Step), Limit: q.Limit,
	}
}

// asQueryError is an error of a read, as a QueryError where it is that.
func asQueryError(err error) error {
	if m, ok := errors.AsType[read.Mistake](err); ok {
		return QueryError(m)
	}
	return err
}

// countsOf are counts as they were read.
func countsOf(read []read.Count) []Count {
	if read == nil {
		return nil
	}
	counts := make([]Count, len(read))
	for i, c := range read {
		counts[i] = Count(c)
	}
	return counts
}

// sortCounts puts the largest first.
func sortCounts(counts []Count) {
	slices.SortFunc(counts, func(a, b Count) int {
		return cmp.Or(cmp.Compare(b.N, a.N), cmp.Compare(a.Name, b.Name))
	})
}
