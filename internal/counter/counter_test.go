package counter

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/usagekit/usagekit/internal/naming"
)

func newSet(t *testing.T, maxNames int) *Set {
	t.Helper()
	return New(maxNames, func(string, int64) {}, nil)
}

// sum adds up a batch by name.
func sum(into map[string]int64, b Sealed) {
	for _, c := range b.Counts {
		into[c.Name] += c.N
	}
}

// Adds from many goroutines, while others seal all the time: each count is in
// exactly one batch. Sealing by reading a word and then setting it to zero, or
// by a swap, would fail here now and then, and under the race detector always.
func TestSealingIsExact(t *testing.T) {
	const adders, each, names, least = 4, 50_000, 40, 10 // or more adds, until there were so many seals
	s := newSet(t, 1000)
	got := map[string]int64{}
	var adding sync.WaitGroup
	var added, seals atomic.Int64
	for a := range adders {
		adding.Go(func() {
			r := rand.New(rand.NewPCG(1, uint64(a)))
			kept := make([]func(int64), names) // half of them count by what Counter gave
			i := int64(0)
			for ; i < each || seals.Load() < least; i++ {
				name := r.IntN(names)
				if i%2 == 0 {
					s.Add(fmt.Sprintf("feature.f%d.used", name), 1)
					continue
				}
				if kept[name] == nil {
					kept[name] = s.Counter(fmt.Sprintf("feature.f%d.used", name))
				}
				kept[name](1)
			}
			added.Add(i)
		})
	}
	done := make(chan struct{})
	go func() { adding.Wait(); close(done) }()
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		if b, ok := s.Seal(); ok {
			seals.Add(1)
			sum(got, b)
			s.Prepare()
		}
	}
	if b, ok := s.Close(); ok {
		sum(got, b)
	}
	total := int64(0)
	for _, n := range got {
		total += n
	}
	if total != added.Load() {
		t.Errorf("%d of %d adds are in %d batches", total, added.Load(), seals.Load())
	}
}

func TestSealGivesEachCountOnce(t *testing.T) {
	s := newSet(t, 10)
	if _, ok := s.Seal(); ok {
		t.Error("an empty generation was sealed")
	}
	s.Add("feature.a.used", 2)
	b, ok := s.Seal()
	if !ok || len(b.Counts) != 1 || b.Counts[0] != (Count{"feature.a.used", 2}) || b.Opened == 0 {
		t.Fatalf("Seal() = %+v, %v", b, ok)
	}
	s.Prepare() // carries the name over, with no count
	if b, ok := s.Seal(); ok {
		t.Errorf("sealed again without an Add: %+v", b)
	}
	s.Add("feature.b.used", 3)
	s.Add("feature.a.used", 1)
	b, _ = s.Seal()
	got := map[string]int64{}
	sum(got, b)
	if len(got) != 2 || got["feature.a.used"] != 1 || got["feature.b.used"] != 3 {
		t.Errorf("second batch: %v", got)
	}
}

// What Counter returns is Add, whatever the name, the number and the generation.
func TestCounter(t *testing.T) {
	var refused []int64
	s := New(3, func(_ string, n int64) { refused = append(refused, n) }, nil)
	buffer := []byte("feature.a.used")
	add := s.Counter(unsafe.String(&buffer[0], len(buffer)))
	copy(buffer, "feature.b.used") // a caller's string may be its buffer
	add(1)
	add(2)
	b, _ := s.Seal()
	got := map[string]int64{}
	sum(got, b)
	if len(got) != 1 || got["feature.a.used"] != 3 {
		t.Errorf("first batch: %v", got)
	}
	add(4)
	s.Counter("feature.\x00.used")(5)
	s.Counter("feature.c.used")(6)
	s.Counter("feature.d.used")(7) // one too many
	for _, n := range []int64{0, -1, Max + 1} {
		add(n)
	}
	s.Counter("api.requests.total")(1)
	clear(got)
	b, _ = s.Close()
	sum(got, b)
	want := map[string]int64{"feature.a.used": 4, "feature.\uFFFD~6e340b9cffb37a98.used": 5, "feature.c.used": 6, "feature.(other).used": 7}
	if !maps.Equal(got, want) {
		t.Errorf("second batch: %v, want %v", got, want)
	}
	if s.Invalid() != 4 || !slices.Equal(refused, []int64{0, -1, Max + 1, 1}) || s.Overflow() != 7 {
		t.Errorf("%d invalid, %d refused, %d overflowed; want 4, three that cannot be and 1, 7", s.Invalid(), refused, s.Overflow())
	}
	if add(8); s.Lost() != 8 {
		t.Errorf("%d lost after Close, want 8", s.Lost())
	}
}

// What Counter returns cleans its name once, and not with each count.
func TestCounterOfACleanedName(t *testing.T) {
	s := newSet(t, 10)
	add := s.Counter("feature.\x00.used")
	add(1)
	if n := testing.AllocsPerRun(100, func() { add(1) }); n != 0 {
		t.Errorf("%v allocations of a count, want none", n)
	}
}

// Names are found by others while the table grows under them.
func TestTableGrows(t *testing.T) {
	const names = 20_000
	s := New(names, func(string, int64) {}, nil)
	var adding sync.WaitGroup
	for w := range 4 {
		adding.Go(func() {
			for i := range names {
				s.Add(fmt.Sprintf("feature.f%d.used", (i+w*names/4)%names), 1)
			}
		})
	}
	adding.Wait()
	b, _ := s.Close()
	for _, c := range b.Counts {
		if c.N != 4 {
			t.Fatalf("%s: %d, want 4", c.Name, c.N)
		}
	}
	if len(b.Counts) != names {
		t.Errorf("%d names, want %d", len(b.Counts), names)
	}
}

func TestAddAfterCloseIsLostAndCounted(t *testing.T) {
	s := newSet(t, 10)
	s.Add("a.b.c", 1)
	if b, ok := s.Close(); !ok || len(b.Counts) != 1 {
		t.Errorf("Close() = %+v, %v", b, ok)
	}
	s.Add("a.b.c", 5)
	if got := s.Lost(); got != 5 {
		t.Errorf("Lost() = %d, want 5", got)
	}
	if _, ok := s.Close(); ok {
		t.Error("Close gave counts twice")
	}
}

func TestNumbersOutOfRangeAreRefused(t *testing.T) {
	s := newSet(t, 10)
	for _, n := range []int64{0, -1, -1 << 63, Max + 1, 1<<63 - 1} {
		s.Add("a.b.c", n)
	}
	if got := s.Invalid(); got != 5 {
		t.Errorf("Invalid() = %d, want 5", got)
	}
	s.Add("a.b.c", Max)
	s.Add("a.b.c", Max)
	b, _ := s.Seal()
	if len(b.Counts) != 1 || b.Counts[0].N != Max {
		t.Errorf("a full counter does not stay full: %+v", b.Counts)
	}
}

func TestDerivedNamesAreRefused(t *testing.T) {
	var told []string
	s := New(10, func(name string, _ int64) { told = append(told, name) }, nil)
	names := []string{
		"api.requests.total", "api.requests.today", "user.active.daily", "user.active.monthly",
		"api.requests.status_1xx", "api.requests.status_5xx", "api.requests.latency_5ms", "api.requests.latency_10000ms", "api.requests.latency_inf",
	}
	for _, name := range names {
		s.Add(name, 1)
	}
	if _, ok := s.Seal(); ok || s.Invalid() != int64(len(names)) || len(told) != len(names) {
		t.Errorf("sealed %v, Invalid %d, told %q", ok, s.Invalid(), told)
	}
	for _, name := range []string{"api.requests.requests", "api.requests.status_6xx", "api.requests.latency_6ms", "api.requests.x.status_2xx", "api.x.status_2xx", "llm.requests.latency_inf"} {
		if naming.Derived(name) {
			t.Errorf("%s is derived", name)
		}
	}
}

// Past a cap, sums stay right under (other), measure by measure.
func TestCap(t *testing.T) {
	s := newSet(t, 3)
	for i := range 10 {
		s.Add(fmt.Sprintf("user.%d.requests", i), 1)
		s.Add(fmt.Sprintf("api.requests.area%d", i), 1)
		s.Add(fmt.Sprintf("api.GET /%d.requests", i), 1)
	}
	for i := range 100 {
		s.Add(fmt.Sprintf("feature.f.m%d", i), 1)
	}
	b, _ := s.Seal()
	got := map[string]int64{}
	sum(got, b)
	perGroup := map[string]int64{}
	measures := 0
	for name, n := range got {
		group, subject, _ := naming.Split(name)
		perGroup[group] += n
		if group == "feature" && subject == naming.Other {
			measures++
		}
	}
	if perGroup["user"] != 10 || perGroup["api"] != 20 || perGroup["feature"] != 100 {
		t.Errorf("sums do not reconcile: %v", perGroup)
	}
	if got["user.(other).requests"] != 7 {
		t.Errorf("user.(other).requests = %d, want 7", got["user.(other).requests"])
	}
	if got["api.requests.(other)"] == 0 || got["api.(other).requests"] == 0 {
		t.Errorf("areas and routes beyond the cap: %v", got)
	}
	if measures != naming.OtherMeasures+1 || got["feature.(other).(other)"] != 100-3-naming.OtherMeasures {
		t.Errorf("%d measures of (other), %d beyond them", measures, got["feature.(other).(other)"])
	}
	if s.Overflow() != 7+7+7+97 { // users, areas, routes, features
		t.Errorf("Overflow() = %d", s.Overflow())
	}
}

// A hostile client that names groups cannot make their number grow.
func TestGroupsAreBounded(t *testing.T) {
	s := newSet(t, 1000)
	for i := range 500 {
		s.Add(fmt.Sprintf("g%d.s.requests", i), 1)
	}
	b, _ := s.Seal()
	groups, total := map[string]bool{}, int64(0)
	for _, c := range b.Counts {
		group, _, _ := naming.Split(c.Name)
		groups[group] = true
		total += c.N
	}
	if len(groups) > maxGroups+1 || total != 500 {
		t.Errorf("%d groups, sum %d", len(groups), total)
	}
}

func TestNamesAreCloned(t *testing.T) {
	s := newSet(t, 10)
	buf := []byte("user.42.requests")
	s.Add(unsafe.String(&buf[0], len(buf)), 1)
	copy(buf, "user.43.requests")
	b, _ := s.Seal()
	if b.Counts[0].Name != "user.42.requests" {
		t.Errorf("the name changed to %q", b.Counts[0].Name)
	}
}

func benchmarkAdd(b *testing.B, s *Set) {
	names := make([]string, 100)
	for i := range names {
		names[i] = fmt.Sprintf("api.GET /r%d.requests", i)
		s.Add(names[i], 1)
	}
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(p *testing.PB) {
		for i := 0; p.Next(); i++ {
			s.Add(names[i%len(names)], 1)
		}
	})
}

func BenchmarkAdd(b *testing.B) { benchmarkAdd(b, New(100_000, func(string, int64) {}, nil)) }

func BenchmarkCounter(b *testing.B) {
	s := New(100_000, func(string, int64) {}, nil)
	counters := make([]func(int64), 100)
	for i := range counters {
		counters[i] = s.Counter(fmt.Sprintf("feature.f%d.used", i))
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		counters[i%len(counters)](1)
	}
}

// What was sealed waits until it is Taken: once, and since its first count.
func TestWhatIsSealedWaitsUntilItIsTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSet(t, 10)
		want := func(when string, names int, since time.Time) {
			t.Helper()
			if n, at := s.Waiting(); n != names || !at.Equal(since) {
				t.Errorf("%s, %d names wait since %v, want %d since %v", when, n, at, names, since)
			}
		}
		want("at first", 0, time.Time{})
		first := time.Now()
		s.Add("feature.a.used", 1)
		want("counted", 1, first)
		s.leaving.Store(s.current.Load()) // where Seal is, before the next generation is current
		want("about to be sealed", 1, first)
		if _, ok := s.Seal(); !ok {
			t.Fatal("nothing was sealed")
		}
		want("sealed", 1, first)
		time.Sleep(time.Second)
		second := time.Now()
		s.Add("feature.b.used", 1)
		want("sealed, and counted again", 2, first)
		s.Taken()
		want("taken", 1, second)
		if _, ok := s.Seal(); !ok {
			t.Fatal("nothing was sealed")
		}
		s.Taken()
		s.current.Load().open() // by an Add that finds it closed, and counts nowhere
		if _, ok := s.Close(); ok {
			t.Fatal("a batch of nothing")
		}
		want("closed", 0, time.Time{})
	})
}
