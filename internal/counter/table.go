package counter

import (
	"hash/maphash"
	"iter"
	"sync/atomic"

	"github.com/usagekit/usagekit/internal/naming"
)

// table finds counters by name. Reading takes no lock; counters are added under
// the generation's mutex, and none is ever removed. So it can be what a concurrent
// map for everything cannot: a word per slot, and a third of the cache lines, which
// are all that a count costs once there are many names (100,000 of them in turn:
// 270 ns, where a general map took 595).
//
// It is a hash table with open addressing, at most half full. A slot is the name's
// hash and the number of its counter from 1 on; 0 is empty.
type table struct {
	slots  []atomic.Uint64 // a power of two of them
	blocks []*block        // of counters; one is there before a slot says so
	used   int             // counters; under the generation's mutex
}

const blockSize = 256

type block [blockSize]counter

// newTable returns a table with room for names, at least.
func newTable(names int) *table {
	size := blockSize
	for size < 2*names {
		size *= 2
	}
	return &table{slots: make([]atomic.Uint64, size), blocks: make([]*block, size/2/blockSize+1)}
}

func hashOf(seed maphash.Seed, name string) uint32 { return uint32(maphash.String(seed, name)) }

// hashOfKept is the hash of a name that is kept. An input that is equal to one with a
// mark is another name, and has another hash: Add looks up what it is given before it
// cleans it.
func hashOfKept(seed maphash.Seed, name string) uint32 {
	if naming.Marked(name) {
		return ^hashOf(seed, name)
	}
	return hashOf(seed, name)
}

// find returns the counter of name, nil when there is none.
func (t *table) find(hash uint32, name string) *counter {
	if n := t.number(hash, name); n > 0 {
		return t.at(int(n) - 1)
	}
	return nil
}

// number returns the number of name's counter from 1 on, 0 when there is none.
func (t *table) number(hash uint32, name string) uint32 {
	for i := hash; ; i++ {
		slot := t.slots[i&uint32(len(t.slots)-1)].Load()
		if slot == 0 {
			return 0
		}
		if uint32(slot>>32) == hash && t.at(int(uint32(slot))-1).name == name {
			return uint32(slot)
		}
	}
}

// at returns the i-th counter.
func (t *table) at(i int) *counter { return &t.blocks[i/blockSize][i%blockSize] }

// add makes the counter of a name that is not there. It returns the table that has
// it: t, or a larger one when t is full.
func (t *table) add(name string) (*table, *counter) {
	if 2*t.used >= len(t.slots) {
		t = t.grown()
	}
	if t.used%blockSize == 0 {
		t.blocks[t.used/blockSize] = new(block)
	}
	c := t.at(t.used)
	c.name = name
	t.used++
	return t, c
}

// all returns the counters that there are now, in order of creation.
func (t *table) all() iter.Seq2[int, *counter] {
	used := t.used
	return func(yield func(int, *counter) bool) {
		for i := range used {
			if !yield(i, t.at(i)) {
				return
			}
		}
	}
}

// publish lets readers find the counter that add returned last.
func (t *table) publish(hash uint32) { t.put(uint64(hash)<<32 | uint64(t.used)) }

func (t *table) put(slot uint64) {
	for i := uint32(slot >> 32); ; i++ {
		if at := &t.slots[i&uint32(len(t.slots)-1)]; at.Load() == 0 {
			at.Store(slot)
			return
		}
	}
}

// grown returns a table of twice the size, with the same counters.
func (t *table) grown() *table {
	g := newTable(len(t.slots))
	copy(g.blocks, t.blocks)
	g.used = t.used
	for i := range t.slots {
		if slot := t.slots[i].Load(); slot != 0 {
			g.put(slot)
		}
	}
	return g
}
