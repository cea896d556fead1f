// Package counter keeps live counts and hands them over in batches, exactly:
// no Add is lost or counted twice, whatever batch it ends up in.
//
// A generation is a set of live counters: a map from name to a counter word.
// Add loads the current generation, looks its word up and counts with a
// compare-and-swap, without a lock (12-14 ns; a Prometheus CounterVec lookup
// takes 45-55). Sealing closes a generation while others count:
//
//  1. publish a fresh generation;
//  2. under the old one's mutex, mark it closed to new names;
//  3. close every word by setting its sign bit. The value that this returns is
//     final: a closed word is never written again, and an Add that meets one
//     starts over in the current generation.
//
// Swapping the value out in place of closing it would do for memory alone. It
// would not for a word in a mapped file, which is the durable count itself:
// there the low 63 bits must stay what they were.
//
// Read name.go (the grammar of names), this file, then batch.go (the encoding).
package counter

import (
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/puzpuzpuz/xsync/v4"
)

// Max is the largest count: every number up to it is exact in JSON and
// JavaScript (RFC 8259, section 6). Counters saturate here.
const Max = 1<<53 - 1

const (
	closed        = math.MinInt64 // the sign bit of a word
	maxGroups     = 64            // groups in one generation; the rest count in group "other"
	otherMeasures = 64            // measures of a group's (other)
)

// Set is the live counters of one process.
type Set struct {
	maxNames int
	refused  func(name string)
	current  atomic.Pointer[generation] // nil: closed for good
	spare    *generation                // the next one, made ahead; nil: none ready
	sealing  sync.Mutex                 // Seal, Prepare, Close: one at a time

	lost, overflow, invalid atomic.Int64
}

// New returns an empty Set that keeps maxNames new names per group in one
// generation. refused is told of every Add of a derived name.
func New(maxNames int, refused func(name string)) *Set {
	s := &Set{maxNames: maxNames, refused: refused}
	s.current.Store(newGeneration(0))
	return s
}

// Add counts n, 1 … Max, under name. It never blocks for long, fails or panics.
func (s *Set) Add(name string, n int64) {
	if n < 1 || n > Max {
		s.invalid.Add(1)
		return
	}
	for {
		g := s.current.Load()
		if g == nil {
			s.lost.Add(n)
			return
		}
		w, ok := g.words.Load(name)
		if !ok {
			clean := Clean(name)
			if Derived(clean) {
				s.invalid.Add(1)
				s.refused(clean)
				return
			}
			var over bool
			if w, over = g.word(clean, s.maxNames); w == nil {
				continue // closed meanwhile
			}
			if over && g.count(w, n) {
				s.overflow.Add(n)
				return
			}
		}
		if g.count(w, n) {
			return
		}
	}
}

// Lost, Overflow and Invalid return what was added after Close, the sum of what
// was counted under (other), and how many Adds were refused.
func (s *Set) Lost() int64     { return s.lost.Load() }
func (s *Set) Overflow() int64 { return s.overflow.Load() }
func (s *Set) Invalid() int64  { return s.invalid.Load() }

// Opened returns when the first count that is not sealed yet was made; zero when
// there is none.
func (s *Set) Opened() time.Time {
	if g := s.current.Load(); g != nil && g.opened.Load() != 0 {
		return time.UnixMilli(g.opened.Load())
	}
	return time.Time{}
}

// Live returns how many names have counts that are not sealed yet.
func (s *Set) Live() (names int) {
	g := s.current.Load()
	if g == nil {
		return 0
	}
	for _, e := range g.snapshot() {
		if e.word.Load()&Max != 0 {
			names++
		}
	}
	return names
}

// Seal ends the current generation and returns its counts; false when nothing
// was counted in it.
func (s *Set) Seal() (Batch, bool) {
	s.sealing.Lock()
	defer s.sealing.Unlock()
	if g := s.current.Load(); g == nil || g.opened.Load() == 0 {
		return Batch{}, false
	}
	next := s.spare
	s.spare = nil
	if next == nil {
		next = newGeneration(0)
	}
	b := s.current.Swap(next).seal()
	return b, len(b.Counts) > 0 // none, if the first Add is on its way still
}

// Prepare makes the next generation ahead, off the request path: with the names
// that had counts in b, at most half of maxNames per group. (First touches are
// the cost otherwise: 200-260 ns, 147 ms worst at a million names.)
func (s *Set) Prepare(b Batch) {
	s.sealing.Lock()
	defer s.sealing.Unlock()
	if s.spare != nil || s.current.Load() == nil {
		return
	}
	g := newGeneration(len(b.Counts))
	filled := map[string]int{}
	for _, c := range b.Counts {
		group, _, _ := Split(c.Name)
		if c.N > 0 && filled[group] < s.maxNames/2 && len(filled) < maxGroups {
			filled[group]++
			g.create(c.Name)
		}
	}
	s.spare = g
}

// Close ends counting for good and returns the last counts. An Add after it is
// lost, and counted as such.
func (s *Set) Close() (Batch, bool) {
	s.sealing.Lock()
	defer s.sealing.Unlock()
	s.spare = nil
	g := s.current.Swap(nil)
	if g == nil {
		return Batch{}, false
	}
	b := g.seal()
	return b, len(b.Counts) > 0
}

// generation is a set of counters that is sealed as one batch.
type generation struct {
	words  *xsync.Map[string, *atomic.Int64] // reads take no lock
	opened atomic.Int64                      // Unix ms, set before the first count; 0: empty

	mu      sync.Mutex // new names, and the mark that ends them
	arena   heap
	entries []entry // of words, in order of creation; grows only
	groups  map[string]*group
	closed  bool
}

type entry struct {
	name string
	word *atomic.Int64
}

type group struct {
	names    int             // created here, not carried over
	measures map[string]bool // of its (other)
}

func newGeneration(names int) *generation {
	return &generation{
		words:  xsync.NewMap[string, *atomic.Int64](xsync.WithPresize(names)),
		groups: map[string]*group{},
	}
}

// count adds n to w, up to Max; false when w is closed.
func (g *generation) count(w *atomic.Int64, n int64) bool {
	for {
		v := w.Load()
		if v < 0 {
			return false
		}
		if v == 0 && g.opened.Load() == 0 {
			g.opened.CompareAndSwap(0, time.Now().UnixMilli())
		}
		if w.CompareAndSwap(v, min(v+n, Max)) {
			return true
		}
	}
}

// word returns the word of a clean name, made if need be; of the group's
// (other) when maxNames are there, which over tells; nil when g is closed.
func (g *generation) word(name string, maxNames int) (w *atomic.Int64, over bool) {
	if w, ok := g.words.Load(name); ok {
		return w, false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil, false
	}
	if w, ok := g.words.Load(name); ok {
		return w, false
	}
	groupName, subject, measure := Split(name)
	gr := g.groups[groupName]
	if gr == nil && len(g.groups) >= maxGroups {
		groupName = "other"
		over = true
		gr = g.groups[groupName]
	}
	if gr == nil {
		gr = &group{measures: map[string]bool{}}
		g.groups[strings.Clone(groupName)] = gr
	}
	if subject == Other {
		over = true // added as such; room for it is kept
	}
	if !over && gr.names < maxNames {
		gr.names++
		return g.create(strings.Clone(name)), false
	}
	switch {
	case groupName == "api" && subject == "requests":
		name = "api.requests." + Other
	case measure == "requests" || gr.measures[measure]: // what totals are derived from always has its place
		name = groupName + "." + Other + "." + measure
	case len(gr.measures) < otherMeasures:
		gr.measures[strings.Clone(measure)] = true
		name = groupName + "." + Other + "." + measure
	default:
		name = groupName + "." + Other + "." + Other
	}
	if w, ok := g.words.Load(name); ok {
		return w, true
	}
	return g.create(name), true
}

func (g *generation) create(name string) *atomic.Int64 {
	w := g.arena.alloc()
	g.entries = append(g.entries, entry{name, w})
	g.words.Store(name, w)
	return w
}

func (g *generation) snapshot() []entry {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.entries
}

func (g *generation) seal() Batch {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	b := Batch{Counts: make([]Count, 0, len(g.entries))}
	for _, e := range g.entries {
		if v := e.word.Or(closed); v != 0 {
			b.Counts = append(b.Counts, Count{e.name, v})
		}
	}
	b.Opened = g.opened.Load() // after the words: set before the first of them counted
	return b
}

// heap is an arena in memory. Its words stand 64 bytes apart, so that two busy
// counters never share a cache line.
type heap struct{ free []slot }

type slot struct {
	word atomic.Int64
	_    [56]byte
}

func (h *heap) alloc() *atomic.Int64 {
	if len(h.free) == 0 {
		h.free = make([]slot, 64)
	}
	w := &h.free[0].word
	h.free = h.free[1:]
	return w
}
