package counter

import (
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/usagekit/usagekit/internal/naming"
	"github.com/usagekit/usagekit/internal/naming/namingtest"
)

// Names that differ never share a counter, in whichever order they come, in memory, in
// a file, in what is carried over to the next generation, and by Counter as by Add.
func TestNamesThatDifferNeverShareACounter(t *testing.T) {
	names := namingtest.Lookalikes()
	if len(names) < 200 {
		t.Fatalf("%d names", len(names))
	}
	backwards := make([]string, len(names))
	for i, name := range names {
		backwards[len(names)-1-i] = name
	}
	for _, order := range [][]string{names, backwards} {
		s := New(100_000, func(string, int64) {}, nil)
		kept := map[string]int64{}
		for generation := range 3 {
			for i, name := range order {
				if generation == 1 {
					s.Counter(name)(int64(i + 1))
				} else {
					s.Add(name, int64(i+1))
				}
			}
			for i, name := range order {
				s.Add(name, int64(1000*(i+1)))
			}
			sealed, _ := s.Seal()
			b, err := Decode(sealed.Payload)
			if err != nil || len(b.Counts) != len(order) {
				t.Fatalf("generation %d: %d counters of %d names, %v", generation, len(b.Counts), len(order), err)
			}
			for _, c := range b.Counts {
				kept[c.Name] += c.N
			}
			s.Prepare()
		}
		for i, name := range order {
			if n := kept[naming.Clean(name)]; n != int64(3*1001*(i+1)) {
				t.Errorf("%q, kept as %q: counted %d, want %d", name, naming.Clean(name), n, 3*1001*(i+1))
			}
		}
	}
}

// Nor do they beyond a cap, where it is the measures that are kept apart.
func TestMeasuresThatDifferBeyondACap(t *testing.T) {
	s := New(1, func(string, int64) {}, nil)
	s.Add("feature.a.used", 1) // takes the only place
	want := map[string]int64{"feature.a.used": 1}
	for i, name := range []string{"feature.b.m\x00", naming.Clean("feature.(other).m\x00")} {
		n := int64(10 << i)
		s.Add(name, n)
		_, _, measure := naming.Split(naming.Clean(name))
		want["feature.(other)."+measure] = n
	}
	got := map[string]int64{}
	b, _ := s.Seal()
	sum(got, b)
	if !maps.Equal(got, want) || s.Overflow() != 30 {
		t.Errorf("counted %v, %d of them beyond the cap; want %v and 30", got, s.Overflow(), want)
	}
}

// summed tells whether a name is one of those that the doc of Clean has sums for.
func summed(kept string) bool { return strings.Contains(kept, naming.Invalid) }

func FuzzNamesThatDiffer(f *testing.F) {
	names := namingtest.Lookalikes()
	for i := range names {
		f.Add(names[i], names[(i+1)%len(names)])
		f.Add(names[i], naming.Clean(names[i]))
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		x, y := naming.Clean(a), naming.Clean(b)
		if a != b && x == y && !summed(x) {
			t.Errorf("%q and %q are both %q", a, b, x)
		}
		if z := naming.Clean(x); x != a && z == x && !summed(x) {
			t.Errorf("%q and %q are both %q", a, x, x)
		}
		if naming.Known(x) != x {
			t.Errorf("%q comes back as %q", x, naming.Known(x))
		}
		s := New(10, func(string, int64) {}, nil)
		s.Add(a, 1)
		s.Add(b, 2)
		s.Add(a, 4)
		if sealed, ok := s.Seal(); ok {
			for _, c := range sealed.Counts {
				if a != b && c.N != 5 && c.N != 2 && !summed(c.Name) {
					t.Errorf("of %q and %q: %v", a, b, sealed.Counts)
				}
			}
		}
	})
}

// What a killed process leaves in its file has the names that they are kept under.
func TestNamesThatDifferOutliveTheirProcess(t *testing.T) {
	root := t.TempDir()
	s := openSpool(t, root)
	names := namingtest.Lookalikes()
	for i, name := range names {
		s.Add(name, int64(i+1))
	}
	s.die()
	next := openSpool(t, root)
	counts, _ := next.adopt(t)
	if len(counts) != len(names) || next.lost != 0 {
		t.Errorf("%d counters of %d names, %d lost: %q", len(counts), len(names), next.lost, next.said)
	}
	for i, name := range names {
		if n := counts[naming.Clean(name)]; n != int64(i+1) {
			t.Errorf("%q: %d, want %d", name, n, i+1)
		}
	}
	next.die()
}

// Areas that a generation was full of leave the next one room for the routes.
func TestRoutesAreCarriedOverBesideAreas(t *testing.T) {
	s := New(4, func(string, int64) {}, nil)
	for i := range 4 {
		s.Add(fmt.Sprintf("api.requests.area%d", i), 1)
	}
	s.Add("api.GET /a.requests", 1)
	s.Seal()
	s.Prepare()
	for i := range 4 {
		s.Add(fmt.Sprintf("api.GET /%d.requests", i), 1)
	}
	s.Add("api.GET /a.requests", 1)
	s.Seal()
	for i := range 4 { // the generation that was made ahead
		s.Add(fmt.Sprintf("api.GET /x%d.requests", i), 1)
	}
	s.Add("api.GET /a.requests", 1)
	b, _ := s.Seal()
	got := map[string]int64{}
	sum(got, b)
	if got["api.GET /a.requests"] != 1 {
		t.Errorf("counted %v", got)
	}
}
