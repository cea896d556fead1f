// Package naming is the grammar of counters' names, once: how a name is cut into its
// parts, what an input is kept under, which names usagekit computes or keeps for
// itself, and the measures of a route. What else has to know these takes them from here;
// the page's scripts are held to it by a test (internal/rooms).
//
//	api.GET /novels/{id}.latency_5ms
//	group    subject       measure
package naming

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Subjects that only usagekit itself counts under. A subject taken from input
// that begins with "(" gets a second one in front (see Escape), so nobody can
// pretend them.
const (
	Other     = "(other)"     // beyond a cap
	Invalid   = "(invalid)"   // a group or measure that cannot be kept
	Unmatched = "(unmatched)" // requests of no route
	Failed    = "(error)"     // requests about which a callback panicked
)

// Names that are computed from other counters.
const (
	RequestsTotal = "api.requests.total" // the sum of every api.<route>.requests
	RequestsToday = "api.requests.today" // the current day of it
	ActiveDaily   = "user.active.daily"
	ActiveMonthly = "user.active.monthly"
)

const (
	MaxName = 512       // bytes of a name
	MaxPart = 64        // bytes of a group, and of a measure
	Max     = 1<<53 - 1 // the largest count, exact in JSON and JavaScript (RFC 8259, section 6); every sum ends there

	// OtherMeasures is how many measures the (other) of a group keeps apart, beside
	// those that are summed.
	OtherMeasures = 64
)

// Split cuts a name into its group (before the first dot), measure (after the
// last dot) and subject (between them, dots included). A name without a dot is
// a measure of group "other"; with one dot it has no subject.
func Split(name string) (group, subject, measure string) {
	i := strings.IndexByte(name, '.')
	if i < 0 {
		return "other", "", name
	}
	j := strings.LastIndexByte(name, '.')
	if i == j {
		return name[:i], "", name[i+1:]
	}
	return name[:i], name[i+1 : j], name[j+1:]
}

// Stem returns name without its measure, with the dot.
func Stem(name string) string { return name[:strings.LastIndexByte(name, '.')+1] }

// After returns the least string that is greater than every string that begins with
// prefix, so the names that do are those from prefix up to it; "" when there is none.
func After(prefix string) string {
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

// Bare tells whether a stem has no subject: its range would be its whole group's.
func Bare(stem string) bool { return strings.Count(stem, ".") < 2 }

// Current tells whether name belongs to the current bucket alone: it is in no sum.
func Current(name string) bool {
	return name == RequestsToday || name == ActiveDaily || name == ActiveMonthly
}

// Derived tells whether name is computed by usagekit from other counters, so
// that counting it directly would count twice, or is a quota, which only what knows
// its limit adds to.
func Derived(name string) bool {
	if name == RequestsTotal || Current(name) || SumOfRoutes(name) {
		return true
	}
	if !strings.HasPrefix(name, "quota.") {
		return false
	}
	_, subject, measure := Split(name)
	return subject != "" && subject != Other && subject != Invalid && measure != "refused"
}

// SumOfRoutes tells whether name is what all routes have of a measure, but for their
// requests: see TotalOf.
func SumOfRoutes(name string) bool {
	measure, ok := strings.CutPrefix(name, "api.requests.")
	return ok && measure != Measure(Requests) && Summed(measure)
}

// TotalOf is the name of what all routes have of a measure that is summed.
func TotalOf(measure string) string {
	if measure == Measure(Requests) {
		return RequestsTotal
	}
	return "api.requests." + measure
}

// Area tells whether the measure of a name is an area of routes: "api.requests.<area>".
func Area(group, subject string) bool { return group == "api" && subject == "requests" }

// ByMonth tells whether a group's history is kept by day and month, as that of users
// is; the others' is kept by hour and day. (What is taken of a quota is in the step alone
// that it is taken in.)
func ByMonth(group string) bool { return group == "user" }

// Personal tells whether a name is a user's, or a quota's: its days are kept for less long.
func Personal(name string) bool {
	group, _, _ := Split(name)
	return group == "quota" || group == "user" && !Bare(Stem(name)) && name != ActiveDaily && name != ActiveMonthly
}

// Reserved tells whether subject is one that only usagekit counts under:
// "(unmatched)", "(other)", "(invalid)" or "(error)".
func Reserved(subject string) bool {
	switch subject {
	case Unmatched, Other, Invalid, Failed:
		return true
	}
	return false
}

// Escape returns the subject that an input counts under: itself, unless it begins as
// those do that only usagekit counts under.
func Escape(subject string) string {
	if strings.HasPrefix(subject, "(") {
		return "(" + subject
	}
	return subject
}

// Own tells whether a subject is usagekit's own: an input's that begins so has two.
func Own(subject string) bool {
	return strings.HasPrefix(subject, "(") && !strings.HasPrefix(subject, "((")
}

// Clean returns the name that an input is counted under: itself when it is valid
// UTF-8 without control characters, at most 512 bytes, its group and measure 1 to 64
// bytes. A part that holds what cannot be kept has U+FFFD in its place, and a subject
// that is too long keeps its beginning; both end in a mark, "~" and 64 bits of the
// hash of what they were. So does a part that looks so itself. Hence names that differ
// are kept under names that differ, except those whose group or measure is empty or
// too long, which becomes "(invalid)".
//
// A name is cleaned once: what it is kept under is an input of its own, and another
// one's if it has a mark. See Known.
func Clean(name string) string { return clean(name, false) }

// Known is Clean for a name that may come back from where Clean's are kept: those stay
// as they are.
func Known(name string) string { return clean(name, true) }

// Of is Clean for a subject of which the group and the measure are kept already.
func Of(group, subject, measure string) string {
	return group + "." + keep(subject, MaxName-len(group)-len(measure)-2, false) + "." + measure
}

// Kept returns the name that what a payload has under name is kept under: name
// itself, or (invalid) for one that Add would not have counted under.
func Kept(name string) string {
	if name = Known(name); Derived(name) {
		group, subject, measure := Split(name)
		if Area(group, subject) { // no route of which sums are made
			return group + "." + subject + "." + Invalid
		}
		name = group + "." + Invalid + "." + measure
	}
	return name
}

func clean(name string, known bool) string {
	first, last := strings.IndexByte(name, '.'), strings.LastIndexByte(name, '.')
	group, subject, measure := Split(name)
	switch {
	case group == "" || len(group) > MaxPart:
		group, subject = "other", Invalid
		if measure == "" || len(measure) > MaxPart {
			measure = Invalid
		}
		return group + "." + subject + "." + keep(measure, MaxPart, known)
	case measure == "" || len(measure) > MaxPart:
		if !Area(group, subject) { // there the measure is an area, and stays among them
			subject = Invalid
		}
		return keep(group, MaxPart, known) + "." + subject + "." + Invalid
	}
	g, m := keep(group, MaxPart, known), keep(measure, MaxPart, known)
	sub := keep(subject, MaxName-len(g)-len(m)-2, known)
	switch {
	case g == group && sub == subject && m == measure:
		return name
	case first < 0:
		return m
	case first == last:
		return g + "." + m
	}
	return g + "." + sub + "." + m
}

// keep returns what a part of a name is kept as, in size bytes at most.
func keep(s string, size int, known bool) string {
	dirty := !plain(s) && (!utf8.ValidString(s) || strings.IndexFunc(s, unicode.IsControl) >= 0)
	if !dirty && len(s) <= size && (known || !marked(s)) {
		return s
	}
	sum := sha256.Sum256([]byte(s))
	if dirty {
		s = strings.Map(func(r rune) rune {
			if unicode.IsControl(r) {
				return utf8.RuneError
			}
			return r // what is not UTF-8 arrives as RuneError
		}, s)
	}
	if k := size - markSize; len(s) > k {
		for !utf8.RuneStart(s[k]) {
			k--
		}
		s = s[:k]
	}
	return s + "~" + hex.EncodeToString(sum[:8])
}

const markSize = 17

// marked tells whether a part of a name ends as those that keep has changed do.
func marked(s string) bool {
	if len(s) < markSize || s[len(s)-markSize] != '~' {
		return false
	}
	for _, c := range []byte(s[len(s)-markSize+1:]) {
		if (c < '0' || '9' < c) && (c < 'a' || 'f' < c) {
			return false
		}
	}
	return true
}

// Marked tells whether a part of a kept name is marked: then no input is it.
func Marked(name string) bool {
	group, subject, measure := Split(name)
	return marked(measure) || marked(subject) || marked(group)
}

// plain tells whether s is printable ASCII, as nearly every name is.
func plain(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}
