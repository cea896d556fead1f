package read

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/usagekit/usagekit/internal/calendar"
	"github.com/usagekit/usagekit/internal/naming"
)

// Query selects counters and buckets, as package store says of its own.
type Query struct {
	Name     string
	Names    []string
	Prefix   string
	Subject  string
	Measure  string
	Contains string
	Except   []string
	From, To time.Time
	Step     calendar.Step
	Limit    int

	stems []string // what names of Subject begin with, up to their measure; sorted
}

// Count is one counter's number.
type Count struct {
	Name  string
	Start time.Time // of its bucket; zero in totals
	N     int64
}

// Row is one subject with all its measures.
type Row struct {
	Group, Subject string
	Counts         map[string]int64 // by measure
}

// Mistake is what is wrong with a Query.
type Mistake string

func (m Mistake) Error() string { return "Query: " + string(m) }

const (
	maxNames  = 1_000 // that a Query may have
	maxExcept = 100   // each cuts a range of names in two, and SQLite reads at most 500 of them at once
)

// check validates q, resolves its step, and has its names as they are kept.
func (q *Query) check() error {
	for field, text := range map[string]string{
		"Name": q.Name, "Names": strings.Join(q.Names, ""), "Prefix": q.Prefix, "Subject": q.Subject, "Measure": q.Measure, "Contains": q.Contains, "Except": strings.Join(q.Except, ""),
	} {
		if field != "Subject" && (!utf8.ValidString(text) || strings.ContainsRune(text, 0)) { // which is cleaned
			return Mistake(field + " is no valid UTF-8, or holds a NUL")
		}
	}
	switch {
	case len(q.Names) > maxNames:
		return Mistake(fmt.Sprintf("Names are %d: want %d at most", len(q.Names), maxNames))
	case len(q.Except) > maxExcept:
		return Mistake(fmt.Sprintf("Except are %d: want %d at most", len(q.Except), maxExcept))
	case q.Limit < 0:
		return Mistake(fmt.Sprintf("Limit is %d: want a positive number, or 0 for all", q.Limit))
	case q.Step < 0 || q.Step > calendar.Month:
		return Mistake(fmt.Sprintf("Step is %d: want Hour, Day or Month, or 0 for the finest kept", int(q.Step)))
	case !q.From.IsZero() && !q.To.IsZero() && !q.From.Before(q.To):
		return Mistake("From must be before To")
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
	if q.Subject != "" {
		if q.stems = q.stemsOf(); q.stems == nil {
			return Mistake(`Subject without its group: want that in Prefix, as in "user."`)
		}
	}
	users, plain := q.groups()
	switch {
	case q.Name == naming.ActiveMonthly && q.Step == 0:
		q.Step = calendar.Month
	case q.Name == naming.ActiveMonthly && q.Step != calendar.Month:
		return Mistake(fmt.Sprintf("Step %v is finer than kept: %s is kept by month", q.Step, naming.ActiveMonthly))
	case q.named(naming.ActiveDaily) && q.Step == calendar.Month:
		return Mistake(fmt.Sprintf("Step month: %s cannot be summed over days; the users of a month are %s", naming.ActiveDaily, naming.ActiveMonthly))
	case q.Step == calendar.Hour && users:
		return Mistake("Step hour is finer than kept: users are kept by day; choose other names, or leave them out with Except")
	case q.Step == 0 && plain && !users:
		q.Step = calendar.Hour
	case q.Step == 0:
		q.Step = calendar.Day
	}
	return nil
}

// checkSums is check of what is summed.
func (q *Query) checkSums() error {
	if err := q.check(); err != nil {
		return err
	}
	for _, name := range []string{naming.ActiveDaily, naming.ActiveMonthly} {
		if q.ranged() && q.named(name) {
			return Mistake(name + " is the number of one day or month, and cannot be summed: read its History")
		}
	}
	return nil
}

// checkSteps is check of what is read by bucket.
func (q *Query) checkSteps() error {
	if err := q.check(); err != nil {
		return err
	}
	if q.Step != calendar.Month && q.named(naming.ActiveMonthly) {
		return Mistake(naming.ActiveMonthly + " is kept by month: want Step Month, or a query of its own")
	}
	return nil
}

// checkKept has buckets that begin before the horizon be coarser ones; it is an error
// where others were asked for.
func (q *Query) checkKept(c calendar.Calendar, h calendar.Horizon, finest bool) error {
	if q.From.IsZero() {
		return nil
	}
	gone := func(name string) bool { return q.From.Before(time.Unix(h.Of(q.Step, naming.Personal(name)), 0)) }
	names := q.Names
	if len(names) == 0 || q.Name != "" {
		names = []string{cmp.Or(q.Name, "user.x.requests")}
	}
	old := slices.IndexFunc(names, gone)
	coarser := q.Step
	switch users, plain := q.groups(); {
	case q.Step == calendar.Hour && gone(""):
		coarser = calendar.Day
	case q.Step == calendar.Day && users && !plain && old >= 0 && !q.named(naming.ActiveDaily):
		coarser = calendar.Month
	}
	if coarser != q.Step && !finest {
		since := time.Unix(h.Of(q.Step, naming.Personal(names[max(old, 0)])), 0).In(c.Zone())
		return Mistake(fmt.Sprintf("Step %v is finer than kept before %s (Config.Retention): want %v", q.Step, since.Format(time.DateOnly), coarser))
	}
	q.Step = coarser
	return nil
}

// named tells whether q asks for name itself.
func (q *Query) named(name string) bool { return q.Name == name || slices.Contains(q.Names, name) }

// ranged tells whether q asks for a part of time.
func (q *Query) ranged() bool { return !q.From.IsZero() || !q.To.IsZero() }

// stemsOf returns what the names of q's Subject begin with: nil where q does not say of
// which group. A long one is cut where its measure leaves no room, so it has several.
func (q *Query) stemsOf() (stems []string) {
	groups := map[string]bool{}
	for _, name := range q.Names {
		group, _, _ := strings.Cut(name, ".")
		groups[group] = true
	}
	if group, _, dotted := strings.Cut(cmp.Or(q.Name, q.Prefix), "."); dotted || q.Name != "" {
		groups[group] = true
	}
	stem := func(group string, size int) string {
		return naming.Stem(naming.Of(group, naming.Escape(q.Subject), strings.Repeat("x", size)))
	}
	for group := range groups {
		stems = append(stems, stem(group, 1))
		if stem(group, naming.MaxPart) != stem(group, 1) {
			for size := 2; size <= naming.MaxPart; size++ {
				stems = append(stems, stem(group, size))
			}
		}
	}
	slices.Sort(stems)
	return slices.Compact(stems)
}

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
	if _, of := slices.BinarySearch(q.stems, naming.Stem(name)); q.Subject != "" && (!of || ofNobody(name)) {
		return false
	}
	return (q.Name == "" || name == q.Name) && strings.HasPrefix(name, q.Prefix) &&
		(q.Measure == "" || strings.HasSuffix(name, "."+q.Measure)) &&
		strings.Contains(lower(name), lower(q.Contains)) &&
		!slices.ContainsFunc(q.Except, func(e string) bool { return strings.HasPrefix(name, e) })
}

// ofNobody tells whether name is no subject's, though it looks so: not that of a user
// whose id is "active".
func ofNobody(name string) bool { return name == naming.ActiveDaily || name == naming.ActiveMonthly }

// lower folds ASCII letters, as SQLite's lower does, and PostgreSQL's in "C".
func lower(s string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			r += 'a' - 'A'
		}
		return r
	}, s)
}

// bySize puts the largest first.
func bySize(counts []Count) {
	slices.SortFunc(counts, func(a, b Count) int {
		return cmp.Or(cmp.Compare(b.N, a.N), cmp.Compare(a.Name, b.Name))
	})
}

// plus adds two counts; it saturates as every count does.
func plus(a, b int64) int64 { return min(a+b, naming.Max) }
