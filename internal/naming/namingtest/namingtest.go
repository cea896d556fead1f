// Package namingtest has the names that tests of the grammar, and of what keeps names
// apart, are tried with.
package namingtest

import (
	"strings"

	"github.com/usagekit/usagekit/internal/naming"
)

// Lookalikes are names that something might take for one another: what cannot be kept,
// what it becomes, and what that would become.
func Lookalikes() []string {
	long := strings.Repeat("x", 600)
	parts := []string{
		"jos\xe9", "jos\xe8", "jos\uFFFD", "jos\xed\xa0\x80", "jos\xed\xa0\x81", "jos\xc0\x80", "jos\x00", "jos\x01", "jos\x7f", "jos\u0085", "jos\u202e", "jos\u202d", "jos",
		"a\r\nb", "a\n\rb", "a\uFFFD\uFFFDb", "\x00", "\x01", "\uFFFD", "~0123456789abcdef", "a~0123456789abcdef", "a~0123456789abcdeF",
	}
	var names []string
	for _, p := range parts {
		names = append(names, "user."+p+".requests", "user.."+p+".requests", "quota."+p+".refused", "error."+p, p, "api.requests."+p, "feature.a."+p, "feature."+p+"."+p)
	}
	for _, p := range parts[:6] { // a generation has 64 groups
		names = append(names, p+".a.b", p+".b")
	}
	for _, p := range []string{long + "1", long + "2", strings.Repeat("é", 300) + "1", strings.Repeat("é", 300) + "2", strings.Repeat("\xff", 600), strings.Repeat("\xfe", 600), strings.Repeat("\uFFFD", 300)} {
		names = append(names, "user."+p+".requests", "user."+p+".logins", "feature."+p+".used")
	}
	for range 3 { // an id may be what another's was cut to, and so on
		for _, name := range names[:len(names):len(names)] {
			names = append(names, naming.Clean(name))
		}
		names = distinct(names)
	}
	return names
}

func distinct(list []string) (once []string) {
	seen := map[string]bool{}
	for _, s := range list {
		if !seen[s] {
			once, seen[s] = append(once, s), true
		}
	}
	return once
}
