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

// Clean returns the name that name is counted under: itself when it is valid
// UTF-8 without control characters, at most 512 bytes, its group and measure 1
// to 64 bytes. Otherwise characters that cannot be kept become U+FFFD, a group
// or measure that cannot be kept becomes "(invalid)", and a subject that is too
// long keeps its beginning and a hash of all of it, so that two long ones stay
// apart. Clean(Clean(x)) == Clean(x).
func Clean(name string) string {
	if !plain(name) && (!utf8.ValidString(name) || strings.IndexFunc(name, unicode.IsControl) >= 0) {
		name = strings.Map(func(r rune) rune {
			if unicode.IsControl(r) {
				return utf8.RuneError
			}
			return r // what is not UTF-8 arrives as RuneError
		}, name)
	}
	group, subject, measure := Split(name)
	switch {
	case group == "" || len(group) > maxPart:
		group, subject = "other", Invalid
		if !validMeasure(measure) {
			measure = Invalid
		}
	case !validMeasure(measure):
		if group != "api" || subject != "requests" { // there the measure is an area, and stays among them
			subject = Invalid
		}
		measure = Invalid
	case len(name) <= maxName:
		return name
	default:
		subject = shorten(subject, maxName-len(group)-len(measure)-2)
	}
	return group + "." + subject + "." + measure
}

// Known is Clean.
func Known(name string) string { return Clean(name) }

// Named is Clean of a subject.
func Named(group, subject, measure string) string {
	return Clean(group + "." + subject + "." + measure)
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

func validMeasure(m string) bool { return m != "" && len(m) <= maxPart }

// shorten returns s in exactly size bytes or up to three fewer: its beginning,
// "~", and 64 bits of its hash.
func shorten(s string, size int) string {
	sum := sha256.Sum256([]byte(s))
	k := size - 17
	for !utf8.RuneStart(s[k]) {
		k--
	}
	return s[:k] + "~" + hex.EncodeToString(sum[:8])
}
