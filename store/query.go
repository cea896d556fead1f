package store

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/usagekit/usagekit/internal/calendar"
	"github.com/usagekit/usagekit/internal/naming"
)

// Query selects counters, and for ranges, buckets. The zero Query selects
// everything, of all time. Conditions are joined by "and".
type Query struct {
	Name     string   // exactly this name
	Names    []string // exactly one of these, 1,000 at most; none: any. With Name, both hold
	Prefix   string   // names that begin so
	Measure  string   // names that end in "."+Measure; among those of "api." is the sum of all routes, of subject "requests"
	Contains string   // names that contain this; ASCII letters match in either case
	Except   []string // names that begin with one of these are left out; 100 at most

	// The half-open range [From, To), widened to whole buckets. A zero From or
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

const (
	maxNames  = 1_000 // that a Query may have
	maxExcept = 100   // each cuts a range of names in two, and SQLite reads at most 500 of them at once
)

// QueryError says what is wrong with a Query: [errors.As] tells it from what is
// wrong with the database. Error puts a prefix before it.
type QueryError string

func (e QueryError) Error() string { return "store: Query: " + string(e) }

// check validates q and resolves its step.
func (q *Query) check() error {
	for field, text := range map[string]string{
		"Name": q.Name, "Names": strings.Join(q.Names, ""), "Prefix": q.Prefix, "Measure": q.Measure, "Contains": q.Contains, "Except": strings.Join(q.Except, ""),
	} {
		if !utf8.ValidString(text) || strings.ContainsRune(text, 0) {
			return QueryError(field + " is no valid UTF-8, or holds a NUL")
		}
	}
	switch {
	case len(q.Names) > maxNames:
		return QueryError(fmt.Sprintf("Names are %d: want %d at most", len(q.Names), maxNames))
	case len(q.Except) > maxExcept:
		return QueryError(fmt.Sprintf("Except are %d: want %d at most", len(q.Except), maxExcept))
	case q.Limit < 0:
		return QueryError(fmt.Sprintf("Limit is %d: want a positive number, or 0 for all", q.Limit))
	case q.Step < 0 || q.Step > Month:
		return QueryError(fmt.Sprintf("Step is %d: want Hour, Day or Month, or 0 for the finest kept", q.Step))
	case !q.From.IsZero() && !q.To.IsZero() && !q.From.Before(q.To):
		return QueryError("From must be before To")
	}
	if q.Name != "" {
		q.Name = naming.Known(q.Name)
	}
	q.Names = slices.Clone(q.Names)
	for i, name := range q.Names {
		q.Names[i] = naming.Known(name)
	}
	slices.Sort(q.Names)
	if q.Names = slices.Compact(q.Names); len(q.Names) == 1 && q.Name == "" {
		q.Name, q.Names = q.Names[0], nil
	}
	users, plain := q.groups()
	switch {
	case q.Name == naming.ActiveMonthly && q.Step == 0:
		q.Step = Month
	case q.Name == naming.ActiveMonthly && q.Step != Month:
		return QueryError(fmt.Sprintf("Step %v is finer than kept: %s is kept by month", q.Step, naming.ActiveMonthly))
	case q.named(naming.ActiveDaily) && q.Step == Month:
		return QueryError(fmt.Sprintf("Step month: %s cannot be summed over days; the users of a month are %s", naming.ActiveDaily, naming.ActiveMonthly))
	case q.Step == Hour && users:
		return QueryError("Step hour is finer than kept: users are kept by day; choose other names, or leave them out with Except")
	case q.Step == 0 && plain && !users:
		q.Step = Hour
	case q.Step == 0:
		q.Step = Day
	}
	return nil
}

// named tells whether q asks for name itself.
func (q *Query) named(name string) bool { return q.Name == name || slices.Contains(q.Names, name) }

// step is that of the buckets which q asks for.
func (q *Query) step() calendar.Step { return calendar.Step(q.Step) }

// ranged tells whether q asks for a part of time.
func (q *Query) ranged() bool { return !q.From.IsZero() || !q.To.IsZero() }

// groups tells whether q may select users, and whether others: their history is
// kept in different steps.
func (q *Query) groups() (users, plain bool) {
	const user = "user."
	switch {
	case q.Name != "":
		users = strings.HasPrefix(q.Name, user)
		plain = !users
	case len(q.Names) > 0:
		is := func(name string) bool { return strings.HasPrefix(name, user) }
		users = slices.ContainsFunc(q.Names, is)
		plain = slices.ContainsFunc(q.Names, func(name string) bool { return !is(name) })
	case strings.HasPrefix(q.Prefix, user):
		users = true
	default:
		plain = true
		users = strings.HasPrefix(user, q.Prefix) && !slices.ContainsFunc(q.Except, func(e string) bool { return strings.HasPrefix(user, e) })
	}
	return users, plain
}

// matches tells whether q selects name, as the SQL of condition does.
func (q *Query) matches(name string) bool {
	if _, listed := slices.BinarySearch(q.Names, name); len(q.Names) > 0 && !listed {
		return false
	}
	return (q.Name == "" || name == q.Name) && strings.HasPrefix(name, q.Prefix) &&
		(q.Measure == "" || strings.HasSuffix(name, "."+q.Measure)) &&
		strings.Contains(lower(name), lower(q.Contains)) &&
		!slices.ContainsFunc(q.Except, func(e string) bool { return strings.HasPrefix(name, e) })
}

// whole is q for all measures of the subjects that q selects, whose group may have
// others, too.
func (q *Query) whole() Query {
	group, _, dotted := strings.Cut(cmp.Or(q.Name, q.Prefix), ".")
	if n := len(q.Names); q.Name == "" && n > 0 { // in order: between two of a group are no others
		group, _, dotted = strings.Cut(q.Names[0], ".")
		dotted = dotted && strings.HasPrefix(q.Names[n-1], group+".")
	}
	w := *q
	w.Name, w.Names, w.Prefix, w.Measure, w.Contains = "", nil, "", "", ""
	if dotted {
		w.Prefix = group + "."
	}
	return w
}

// stems returns the stems of the subjects that q selects among counts, each with
// its largest count.
func (q *Query) stems(counts []Count) []Count {
	largest := map[string]int64{}
	for _, c := range counts {
		if q.matches(c.Name) && !naming.Current(c.Name) {
			p := naming.Stem(c.Name)
			largest[p] = max(largest[p], c.N)
		}
	}
	stems := make([]Count, 0, len(largest))
	for p, n := range largest {
		stems = append(stems, Count{Name: p, N: n})
	}
	sortCounts(stems)
	if q.Limit > 0 && len(stems) > q.Limit {
		stems = stems[:q.Limit]
	}
	return stems
}

// tears tells whether Except may take some of a subject's measures away: only from
// what selects it.
func (q *Query) tears() bool {
	return slices.ContainsFunc(q.Except, func(e string) bool { return !naming.Bare(e) })
}

// lower folds ASCII letters, as SQLite's lower does, and PostgreSQL's in "C".
func lower(s string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			r += 'a' - 'A'
		}
		return r
	}, s)
}

// after returns the least string that is greater than every string that begins
// with prefix; "" when there is none.
func after(prefix string) string {
	for prefix != "" {
		r, size := utf8.DecodeLastRuneInString(prefix)
		prefix = prefix[:len(prefix)-size]
		switch r {
		case utf8.MaxRune: // the rune before it moves
		case 0xD7FF: // surrogates are no characters
			return prefix + "\uE000"
		default:
			return prefix + string(r+1)
		}
	}
	return ""
}

// String returns "hour", "day" or "month".
func (s Step) String() string { return calendar.Step(s).String() }

// sortCounts puts the largest first.
func sortCounts(counts []Count) {
	slices.SortFunc(counts, func(a, b Count) int {
		return cmp.Or(cmp.Compare(b.N, a.N), cmp.Compare(a.Name, b.Name))
	})
}
