// Package counter keeps live counts and hands them over in batches, exactly:
// no Add is lost or counted twice, whatever batch it ends up in.
//
// A generation is a set of live counters, found by name. Add loads the current
// generation, looks its counter up and counts with a compare-and-swap, without a
// lock: two fifths of what a Prometheus CounterVec lookup takes (make bench). Sealing
// closes a generation while others count:
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
// With a Spool, the words are in a mapped file, and what was counted survives the
// process: format.go has the file, disk.go what it needs of a file system.
//
// Read this file, table.go (how a counter is found), batch.go (the encoding), then
// spool.go, format.go and file.go (what is in its files, and how they are counted in),
// adopt.go (what dead processes left) and disk.go.
package counter

import (
	"hash/maphash"
	"iter"
	"math"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/usagekit/usagekit/internal/naming"
)

// Max is the largest count: every number up to it is exact in JSON and
// JavaScript (RFC 8259, section 6). Counters saturate here.
const Max = naming.Max

const (
	closed    = math.MinInt64                   // the sign bit of a word
	maxGroups = 64                              // groups in one generation; the rest count in group "other"
	maxMapped = 256 >> (4 * (1 - ^uint(0)>>63)) // files of one Set that may be in memory; where addresses have 32 bits, 16
)

// Set is the live counters of one process.
type Set struct {
	maxNames int
	refused  func(name string, n int64)
	spool    *Spool // nil: memory only
	seed     maphash.Seed
	current  atomic.Pointer[generation] // nil: closed for good

	sealing sync.Mutex                 // Seal, Prepare, Close: one at a time
	spare   *generation                // the next one, made ahead; nil: none
	carry   []string                   // the names that it begins with
	leaving atomic.Pointer[generation] // sealed, or about to be, and not Taken yet

	lost, overflow, invalid atomic.Int64
}

// New returns an empty Set that keeps maxNames new names per group in one
// generation, in spool's files unless that is nil. refused is told of every Add of
// a derived name, and of a number that is none.
func New(maxNames int, refused func(name string, n int64), spool *Spool) *Set {
	s := &Set{maxNames: maxNames, refused: refused, spool: spool, seed: maphash.MakeSeed()}
	s.current.Store(newGeneration(s.seed, 1, nil, spool))
	return s
}

// Add counts n, 1 … Max, under name. It never blocks for long, fails or panics.
func (s *Set) Add(name string, n int64) {
	if n < 1 || n > Max {
		s.invalid.Add(1)
		s.refused(name, n)
		return
	}
	for !s.add(name, n) {
		g := s.current.Load()
		if s.add(name, n) {
			return
		}
		if g != nil && s.current.Load() == g { // closed, although it has not ended
			g.lose(errTampered)
		}
	}
}

// add counts in the current generation; false when that has ended meanwhile.
func (s *Set) add(name string, n int64) bool {
	g := s.current.Load()
	if g == nil {
		s.lost.Add(n)
		return true
	}
	if c := g.table.Load().find(hashOf(g.seed, name), name); c != nil {
		return g.count(c, n)
	}
	clean := naming.Clean(name)
	if naming.Derived(clean) {
		s.invalid.Add(1)
		s.refused(clean, n)
		return true
	}
	c, over := g.counter(clean, s.maxNames)
	if c == nil || !g.count(c, n) {
		return false
	}
	if over {
		s.overflow.Add(n)
	}
	return true
}

// Counter returns Add for one name. It keeps where the counter is, within a
// generation, and so takes half the time. It keeps no generation.
func (s *Set) Counter(name string) func(n int64) {
	name = strings.Clone(name)
	clean := naming.Clean(name)
	hash := hashOfKept(s.seed, clean)
	var last atomic.Uint64 // a generation's number, and that of the counter in it from 1 on; 32 bits each
	return func(n int64) {
		if g := s.current.Load(); g != nil && n > 0 && n <= Max {
			v := last.Load()
			if uint32(v>>32) != uint32(g.seq) || uint32(v) == 0 {
				v = uint64(g.seq)<<32 | uint64(g.table.Load().number(hash, clean))
				last.Store(v)
			}
			if i := uint32(v); i != 0 && g.count(g.table.Load().at(int(i)-1), n) {
				return
			}
		}
		s.Add(name, n)
	}
}

// Lost, Overflow and Invalid return what was added after Close, the sum of what
// was counted under (other), and how many Adds were refused.
func (s *Set) Lost() int64     { return s.lost.Load() }
func (s *Set) Overflow() int64 { return s.overflow.Load() }
func (s *Set) Invalid() int64  { return s.invalid.Load() }

// Degraded says why what is counted now would not survive the process although
// there is a spool; "" when it would.
func (s *Set) Degraded() string {
	if g := s.current.Load(); g != nil {
		if why := g.why.Load(); why != nil {
			return *why
		}
	}
	return ""
}

// Opened returns when the first count that is not sealed yet was made; zero when
// there is none.
func (s *Set) Opened() time.Time {
	if g := s.current.Load(); g != nil && g.opened.Load() != 0 {
		return time.UnixMilli(g.opened.Load())
	}
	return time.Time{}
}

// Waiting returns how many names have counts that were not Taken yet, and when the
// first of these was made; zero when there are none. The caller excludes Taken.
func (s *Set) Waiting() (names int, since time.Time) {
	current := s.current.Load()
	leaving := s.leaving.Load() // after current, which it was until then
	if leaving == current {
		leaving = nil
	}
	for _, g := range []*generation{current, leaving} {
		if g == nil {
			continue
		}
		if ms := g.opened.Load(); ms != 0 {
			since = time.UnixMilli(ms)
		}
		for _, c := range g.snapshot() {
			if c.own.Load()&Max != 0 {
				names++
			}
		}
	}
	return names, since
}

// Taken says that the caller has what Seal or Close returned last.
func (s *Set) Taken() { s.leaving.Store(nil) }

// Seal ends the current generation and returns its counts; false when nothing
// was counted in it, and the generation stays.
func (s *Set) Seal() (Sealed, bool) {
	s.sealing.Lock()
	defer s.sealing.Unlock()
	g := s.current.Load()
	if g == nil || !g.counted() {
		return Sealed{}, false
	}
	s.prepare(g)
	s.leaving.Store(g)
	s.current.Store(s.spare)
	s.spare = nil
	return s.seal(g), true
}

// Prepare makes the next generation ahead, off the request path: with the names
// that had counts in the last one, at most half of maxNames per group. (First
// touches are the cost otherwise: 200-260 ns, 147 ms worst at a million names.)
// better tells that counts would be safer there than where they go now.
func (s *Set) Prepare() (better bool) {
	if s.spool != nil && s.spool.mapped.Load() > maxMapped {
		runtime.GC() // it does not run by itself where GOGC is off, and finds what is not used any more
	}
	s.sealing.Lock()
	defer s.sealing.Unlock()
	g := s.current.Load()
	if g == nil {
		return false
	}
	g.look()
	s.prepare(g)
	return g.why.Load() != nil && s.spare.why.Load() == nil
}

func (s *Set) prepare(g *generation) {
	if s.spare != nil {
		if s.spare.look(); s.spare.why.Load() == nil {
			return
		}
		if s.spare.file != nil { // it could not be used: another one, perhaps
			s.spare.file.stop()
			s.spare.file.mapping.Void()
		}
	}
	s.spare = newGeneration(s.seed, g.seq+1, s.carry, s.spool)
}

// Close ends counting for good and returns the last counts. An Add after it is
// lost, and counted as such.
func (s *Set) Close() (Sealed, bool) {
	s.sealing.Lock()
	defer s.sealing.Unlock()
	if s.spare != nil {
		if s.spare.file != nil {
			s.spare.file.stop()
			s.spare.file.mapping.Void()
		}
		s.spool.Remove(s.spare.seq)
		s.spare = nil
	}
	g := s.current.Load()
	if g == nil {
		return Sealed{}, false
	}
	s.leaving.Store(g)
	s.current.Store(nil)
	b := s.seal(g)
	if len(b.Counts) == 0 {
		s.Taken()
		s.spool.Remove(g.seq)
		return Sealed{}, false
	}
	return b, true
}

func (s *Set) seal(g *generation) Sealed {
	b := g.seal()
	names := map[string]int{}
	s.carry = s.carry[:0:0]
	for _, c := range b.Counts {
		group, subject, _ := naming.Split(c.Name)
		if naming.Area(group, subject) { // areas, which take no place of routes
			group = "api.requests"
		}
		if _, known := names[group]; names[group] < s.maxNames/2 && (known || len(names) < maxGroups) {
			names[group]++
			s.carry = append(s.carry, c.Name)
		}
	}
	slices.Sort(s.carry) // so that the next batch has names together that begin alike
	return b
}

// generation is a set of counters that is sealed as one batch, and is one file
// when there is a spool.
type generation struct {
	seq    int64
	seed   maphash.Seed
	table  atomic.Pointer[table] // replaced when it is full
	opened atomic.Int64          // Unix ms, set before the first count; 0: empty
	spool  *Spool
	file   *file                  // nil: memory only
	why    atomic.Pointer[string] // memory only, although there is a spool
	truth  atomic.Int32           // where the counts are right: undecided, inWords, inMemory

	mu     sync.Mutex // new names, and the mark that ends them
	groups map[string]*group
	closed bool
}

// A mapped file may be cut under us, and a touch of it then is a fault that takes
// the words with it. So each count is in memory too, added after it is in the word
// (a few ns). The word counts, and is what a process that was killed leaves; memory
// counts from the first fault on. Sealing closes what counts, and decides once:
const (
	undecided int32 = iota
	inWords         // sealed: what the file says
	inMemory        // after a fault
)

// counter is one name's count. Counters are 64 bytes (56 where addresses have 32
// bits), so that two busy ones never share a cache line.
type counter struct {
	name string
	own  atomic.Int64  // the count in memory
	word *atomic.Int64 // the count in the mapped file; nil: in memory only
	_    [32]byte
}

type group struct {
	names    int             // created here, not carried over
	areas    int             // of "api", which take no place of routes
	measures map[string]bool // of its (other)
}

func newGeneration(seed maphash.Seed, seq int64, carry []string, spool *Spool) *generation {
	g := &generation{seq: seq, seed: seed, groups: map[string]*group{}, spool: spool}
	g.table.Store(newTable(len(carry)))
	if spool != nil {
		var err error
		if g.file, err = spool.create(seq); err != nil {
			g.degrade(err)
		} else {
			spool.mapped.Add(1)
			runtime.AddCleanup(g, func(m Mapping) {
				m.Release()
				spool.mapped.Add(-1)
			}, g.file.mapping)
		}
	}
	for _, name := range carry {
		g.create(name, hashOfKept(seed, name))
	}
	return g
}

// degrade notes why counts are in memory only.
func (g *generation) degrade(err error) {
	why := err.Error()
	g.why.CompareAndSwap(nil, &why)
}

// look finds out whether g's file is still where a start would look for it.
func (g *generation) look() {
	if g.file != nil && g.why.Load() == nil && !g.file.inPlace() {
		g.degrade(errRemoved)
	}
}

// lose takes note of a fault: what memory has counts from now on, unless the
// generation was sealed before.
func (g *generation) lose(err error) {
	if g.truth.CompareAndSwap(undecided, inMemory) {
		g.degrade(err)
	}
}

// count adds n to c, up to Max; false when c is closed.
func (g *generation) count(c *counter, n int64) bool {
	if c.word != nil {
		return g.countMapped(c, n)
	}
	if v := c.own.Load(); v > 0 && v <= Max-n && c.own.CompareAndSwap(v, v+n) {
		return true
	}
	_, ok := g.countIn(&c.own, n)
	return ok
}

// countMapped is count where c is in a mapped file: a fault there leaves the counts
// to memory, and n uncounted yet.
func (g *generation) countMapped(c *counter, n int64) (ok bool) {
	if g.truth.Load() == inMemory {
		_, ok := g.countIn(&c.own, n)
		return ok
	}
	faulted := true
	old := debug.SetPanicOnFault(true)
	defer func() {
		debug.SetPanicOnFault(old)
		if faulted {
			g.lose(fault(recover()))
		}
		runtime.KeepAlive(g) // its file stays mapped until now
	}()
	n, ok = g.countIn(c.word, n)
	ok = ok && c.own.Add(n) >= 0 // else a fault closed c.own: n counts nowhere yet
	faulted = false
	return ok
}

// countIn adds n to w, and returns how much of it there was room for.
func (g *generation) countIn(w *atomic.Int64, n int64) (int64, bool) {
	for {
		v := w.Load()
		if v < 0 {
			return 0, false
		}
		if v == 0 && g.opened.Load() == 0 {
			g.open()
		}
		if sum := min(v+n, Max); w.CompareAndSwap(v, sum) {
			return sum - v, true
		}
	}
}

// open notes when the first count of g is made: before it is.
func (g *generation) open() {
	if now := time.Now().UnixMilli(); g.opened.CompareAndSwap(0, now) && g.file != nil && g.truth.Load() == undecided {
		if err := touching(func() { g.file.at(atOpened).Store(now) }); err != nil {
			g.lose(err)
		}
	}
}

// counter returns the counter of a clean name, made if need be; of the group's
// (other) when maxNames are there, which over tells; nil when g is closed.
func (g *generation) counter(name string, maxNames int) (c *counter, over bool) {
	hash := hashOfKept(g.seed, name)
	if c := g.table.Load().find(hash, name); c != nil {
		return c, false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil, false
	}
	if c := g.table.Load().find(hash, name); c != nil {
		return c, false
	}
	groupName, subject, measure := naming.Split(name)
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
	if subject == naming.Other {
		over = true // added as such; room for it is kept
	}
	names := &gr.names
	if naming.Area(groupName, subject) {
		names = &gr.areas
	}
	if !over && *names < maxNames {
		*names++
		return g.create(strings.Clone(name), hash), false
	}
	switch {
	case naming.Area(groupName, subject):
		name = "api.requests." + naming.Other
	case naming.Summed(measure) || gr.measures[measure]: // what sums are derived from always has its place
		name = groupName + "." + naming.Other + "." + measure
	case len(gr.measures) < naming.OtherMeasures:
		gr.measures[strings.Clone(measure)] = true
		name = groupName + "." + naming.Other + "." + measure
	default:
		name = groupName + "." + naming.Other + "." + naming.Other
	}
	hash = hashOfKept(g.seed, name)
	if c := g.table.Load().find(hash, name); c != nil {
		return c, true
	}
	return g.create(name, hash), true
}

func (g *generation) create(name string, hash uint32) *counter {
	t, c := g.table.Load().add(name)
	if g.file != nil && g.truth.Load() == undecided {
		var full error
		if err := touching(func() { c.word, full = g.file.append(name) }); err != nil {
			g.lose(err)
		} else if full != nil {
			g.degrade(full)
		}
	}
	g.table.Store(t)
	t.publish(hash)
	return c
}

// snapshot returns the counters that there are now, in order of creation.
func (g *generation) snapshot() iter.Seq2[int, *counter] {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.table.Load().all()
}

// counted tells whether a batch of g would have counts.
func (g *generation) counted() bool {
	if g.opened.Load() == 0 {
		return false
	}
	for _, c := range g.snapshot() {
		if c.own.Load() > 0 {
			return true
		}
	}
	return false
}

func (g *generation) seal() Sealed {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	t := g.table.Load()
	values := make([]int64, t.used)
	if g.file != nil {
		g.file.stop()
		if g.truth.Load() == undecided {
			if err := touching(func() { g.closeWords(values) }); err != nil {
				g.lose(err)
			}
		}
	}
	words := g.file != nil && g.truth.CompareAndSwap(undecided, inWords)
	b := Batch{Counts: make([]Count, 0, t.used)}
	whole := words
	for i, c := range t.all() {
		v := values[i]
		if !words || c.word == nil {
			v = c.own.Or(closed)
			whole = whole && v == 0
		}
		if v != 0 {
			b.Counts = append(b.Counts, Count{c.name, v})
		}
	}
	b.Opened = g.opened.Load() // after the words: set before the first of them counted
	sealed := Sealed{Batch: b, Seq: g.seq, Payload: b.Encode()}
	if g.spool != nil && len(b.Counts) > 0 {
		sealed.Spooled = g.spool.keep(g.file, sealed, whole)
	} else if g.file != nil {
		g.file.mapping.Close()
	}
	runtime.KeepAlive(g)
	return sealed
}

// closeWords closes the words of the mapped file. A word that says less than
// memory is not what was counted: somebody wrote to the file.
func (g *generation) closeWords(values []int64) {
	for i, c := range g.table.Load().all() {
		if c.word == nil {
			continue
		}
		if values[i] = c.word.Or(closed); values[i] < c.own.Load() {
			g.lose(errTampered)
		}
	}
}
