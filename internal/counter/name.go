package counter

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Subjects that only usagekit itself counts under. A subject taken from input
// that begins with "(" gets a second one in front, so nobody can pretend them.
const (
	Other   = "(other)"   // beyond a cap
	Invalid = "(invalid)" // a group or measure that cannot be kept
)

const (
	maxName = 512 // bytes of a name
	maxPart = 64  // bytes of a group, and of a measure
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

// Derived tells whether name is computed by usagekit from other counters, so
// that counting it directly would count twice, or is a quota, which only what knows
// its limit adds to.
func Derived(name string) bool {
	switch name {
	case "api.requests.total", "api.requests.today", "user.active.daily", "user.active.monthly":
		return true
	}
	if measure, ok := strings.CutPrefix(name, "api.requests."); ok {
		return measure != "requests" && Summed(measure)
	}
	if !strings.HasPrefix(name, "quota.") {
		return false
	}
	_, subject, measure := Split(name)
	return subject != "" && subject != Other && subject != Invalid && measure != "refused"
}

// Summed tells whether a measure of the routes is summed over all of them: requests as
// api.requests.total, the others, which are those that the middleware counts, as
// api.requests.<measure>.
func Summed(measure string) bool {
	switch measure {
	case "requests", "status_1xx", "status_2xx", "status_3xx", "status_4xx", "status_5xx",
		"latency_5ms", "latency_10ms", "latency_25ms", "latency_50ms", "latency_75ms", "latency_100ms", "latency_250ms", "latency_500ms",
		"latency_750ms", "latency_1000ms", "latency_2500ms", "latency_5000ms", "latency_7500ms", "latency_10000ms", "latency_inf":
		return true
	}
	return false
}

// Reserved tells whether subject is one that only usagekit counts under:
// "(unmatched)", "(other)", "(invalid)" or "(error)".
func Reserved(subject string) bool {
	switch subject {
	case "(unmatched)", Other, Invalid, "(error)":
		return true
	}
	return false
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

// Named is Clean for a subject of which the group and the measure are kept already.
func Named(group, subject, measure string) string {
	return group + "." + keep(subject, maxName-len(group)-len(measure)-2, false) + "." + measure
}

func clean(name string, known bool) string {
	first, last := strings.IndexByte(name, '.'), strings.LastIndexByte(name, '.')
	group, subject, measure := Split(name)
	switch {
	case group == "" || len(group) > maxPart:
		group, subject = "other", Invalid
		if measure == "" || len(measure) > maxPart {
			measure = Invalid
		}
		return group + "." + subject + "." + keep(measure, maxPart, known)
	case measure == "" || len(measure) > maxPart:
		if group != "api" || subject != "requests" { // there the measure is an area, and stays among them
			subject = Invalid
		}
		return keep(group, maxPart, known) + "." + subject + "." + Invalid
	}
	g, m := keep(group, maxPart, known), keep(measure, maxPart, known)
	sub := keep(subject, maxName-len(g)-len(m)-2, known)
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

// isMarked tells whether a part of a kept name is marked: then no input is it.
func isMarked(name string) bool {
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
