package naming_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/usagekit/usagekit/internal/naming"
	"github.com/usagekit/usagekit/internal/naming/namingtest"
)

func TestClean(t *testing.T) {
	long := strings.Repeat("x", 600)
	for _, c := range []struct{ name, want string }{
		{"user.42.requests", "user.42.requests"},
		{"x", "x"},
		{"a.b", "a.b"},
		{"user.a.b.c.requests", "user.a.b.c.requests"},
		{"user.\xff.requests", "user.\uFFFD~a8100ae6aa1940d0.requests"},
		{"user.a\x00b\r\n.requests", "user.a\uFFFDb\uFFFD\uFFFD~eee4d3a83335b4ab.requests"},
		{"user.\u0085.requests", "user.\uFFFD~f7e0ef1c73a0bb19.requests"},
		{"user.\u202e.requests", "user.\u202e.requests"}, // bidi is data: the page isolates it
		{`user."; DROP TABLE%_'.requests`, `user."; DROP TABLE%_'.requests`},
		{"", "other.(invalid).(invalid)"},
		{".", "other.(invalid).(invalid)"},
		{".a.b", "other.(invalid).b"},
		{"a.", "a.(invalid).(invalid)"},
		{"a.b.", "a.(invalid).(invalid)"},
		{strings.Repeat("g", 65) + ".s.m", "other.(invalid).m"},
		{".s.\x00", "other.(invalid).\uFFFD~6e340b9cffb37a98"},
		{"\xff.s.", "\uFFFD~a8100ae6aa1940d0.(invalid).(invalid)"},
		{"g.s." + strings.Repeat("m", 65), "g.(invalid).(invalid)"},
		{strings.Repeat("m", 65), "other.(invalid).(invalid)"},
		{"api.requests." + strings.Repeat("m", 65), "api.requests.(invalid)"},
	} {
		if got := naming.Clean(c.name); got != c.want {
			t.Errorf("Clean(%.80q) = %q, want %q", c.name, got, c.want)
		}
	}
	one, two := naming.Clean("user."+long+"1.requests"), naming.Clean("user."+long+"2.requests")
	if one == two || len(one) > naming.MaxName || !strings.HasPrefix(one, "user.xxxx") || !strings.HasSuffix(one, ".requests") {
		t.Errorf("long subjects: %q and %q", one, two)
	}
	if got := naming.Clean("user." + strings.Repeat("é", 400) + ".requests"); len(got) > naming.MaxName || naming.Known(got) != got {
		t.Errorf("a long subject of two-byte letters: %q", got)
	}
}

// A name is its group, subject and measure, and they tell where its dots are.
func FuzzSplit(f *testing.F) {
	for _, s := range []string{"x", "a.b", "user.42.requests", "user.a.b.requests", "..", ".", "", "a..b", "api.GET /{a}.requests"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		group, subject, measure := naming.Split(name)
		joined := group + "." + subject + "." + measure
		switch strings.Count(name, ".") {
		case 0:
			joined = measure
		case 1:
			joined = group + "." + measure
		}
		if joined != name || strings.Contains(group, ".") || strings.Contains(measure, ".") {
			t.Errorf("Split(%q) = %q, %q, %q", name, group, subject, measure)
		}
	})
}

func FuzzClean(f *testing.F) {
	for _, s := range []string{"user.42.requests", "", ".", "..", "a.\xff\x00.b", strings.Repeat("é", 300) + ".b.c", "api.requests.total"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		clean := naming.Clean(name)
		if naming.Known(clean) != clean {
			t.Errorf("Clean(%q) = %q, which is not clean: %q", name, clean, naming.Known(clean))
		}
		group, subject, measure := naming.Split(clean)
		if group == "" || len(group) > naming.MaxPart || measure == "" || len(measure) > naming.MaxPart || len(clean) > naming.MaxName {
			t.Errorf("Clean(%q) = %q: %q, %q, %q", name, clean, group, subject, measure)
		}
	})
}

// What a name is kept under is kept as it is, from wherever it comes back.
func TestKeptNamesStay(t *testing.T) {
	for _, name := range namingtest.Lookalikes() {
		kept := naming.Clean(name)
		if naming.Known(kept) != kept || naming.Kept(kept) != kept || len(kept) > naming.MaxName {
			t.Errorf("%q is kept as %q, and that as %q, %q", name, kept, naming.Known(kept), naming.Kept(kept))
		}
		if group, subject, measure := naming.Split(kept); naming.Marked("user."+subject+".requests") && naming.Of(group, subject, measure) == kept {
			t.Errorf("the id %q is not told from what another id became", subject)
		}
	}
}

// A subject is kept under the same name by itself as within its name.
func TestOf(t *testing.T) {
	for _, id := range []string{"42", "a.b", "jos\xe9", "\x00", "a~0123456789abcdef", strings.Repeat("né", 400), strings.Repeat("\xff", 600)} {
		for _, name := range []string{"user.%s.requests", "quota.%s.refused"} {
			name = fmt.Sprintf(name, id)
			group, _, measure := naming.Split(name)
			if got := naming.Of(group, id, measure); got != naming.Clean(name) {
				t.Errorf("Of(%q) = %q, want %q", name, got, naming.Clean(name))
			}
		}
	}
}

func TestKept(t *testing.T) {
	for name, want := range map[string]string{
		"user.42.requests": "user.42.requests", "api.requests.total": "api.requests.(invalid)", "api.requests.status_2xx": "api.requests.(invalid)", "user.active.daily": "user.(invalid).daily", "a..": "a.(invalid).(invalid)",
	} {
		if got := naming.Kept(name); got != want {
			t.Errorf("naming.Kept(%q) = %q, want %q", name, got, want)
		}
	}
}
