package counter

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"unsafe"
)

// Batch is a sealed generation.
type Batch struct {
	Opened int64 // when the first of it was counted: Unix time in milliseconds
	Counts []Count
}

// Sealed is a batch on its way: it never changes.
type Sealed struct {
	Batch
	Seq     int64  // of its writer: 1, 2, 3 …
	Payload []byte // the batch, encoded
	Spooled bool   // it is in a file of the spool
}

// Count is one counter of a batch.
type Count struct {
	Name string
	N    int64
}

// ErrVersion says that a payload was written by a later version of usagekit.
// It is complete, and waits for a reader that knows it.
var ErrVersion = errors.New("counter: a payload version this release does not know")

// SumSize is the size of the checksum that ends a payload.
const SumSize = 16

// version of the payload:
//
//	version   1 byte
//	opened    uvarint
//	count     uvarint
//	counts    count × (uvarint length, name, uvarint value)
//	checksum  the first 16 bytes of SHA-256 of all before
//
// Every later version keeps its first byte and its checksum in place.
const version = 1

// Encode returns the payload of b: names with a zero count left out.
func (b Batch) Encode() []byte {
	size, count := 32+SumSize, 0
	for _, c := range b.Counts {
		size += len(c.Name) + 4
		if c.N > 0 {
			count++
		}
	}
	p := append(make([]byte, 0, size), version)
	p = binary.AppendUvarint(p, uint64(b.Opened))
	p = binary.AppendUvarint(p, uint64(count))
	for _, c := range b.Counts {
		if c.N > 0 {
			p = binary.AppendUvarint(p, uint64(len(c.Name)))
			p = append(p, c.Name...)
			p = binary.AppendUvarint(p, uint64(c.N))
		}
	}
	sum := sha256.Sum256(p)
	return append(p, sum[:SumSize]...)
}

// Sum returns the checksum that payload p ends with, nil when it is too short
// to have one.
func Sum(p []byte) []byte {
	if len(p) <= SumSize {
		return nil
	}
	return p[len(p)-SumSize:]
}

// Kept returns the name that what a payload has under name is kept under: name
// itself, or (invalid) for one that Add would not have counted under.
func Kept(name string) string {
	if name = Clean(name); Derived(name) {
		group, _, measure := Split(name)
		name = group + "." + Invalid + "." + measure
	}
	return name
}

// Decode reads a payload. Its numbers are 1 … Max, its names whatever it has: see
// Kept. They are p's memory, and Counts is appended to into.
func Decode(p []byte, into []Count) (Batch, error) {
	if len(p) <= SumSize {
		return Batch{}, fmt.Errorf("counter: a payload of %d bytes is cut short", len(p))
	}
	body := p[:len(p)-SumSize]
	if sum := sha256.Sum256(body); !bytes.Equal(sum[:SumSize], Sum(p)) {
		return Batch{}, errors.New("counter: the payload's checksum is wrong")
	}
	if body[0] != version {
		return Batch{}, ErrVersion
	}
	d := decoder{text: unsafe.String(unsafe.SliceData(body), len(body))[1:]}
	b := Batch{Opened: d.number(1<<62 - 1)}
	count := d.number(uint64(len(d.text)) / 3) // a record has three bytes at least
	if d.bad {
		return Batch{}, errors.New("counter: the payload's header is damaged")
	}
	b.Counts = slices.Grow(into, int(count))
	for i := range count {
		name := d.take(d.number(maxName))
		n := d.number(Max)
		if d.bad || n == 0 {
			return Batch{}, fmt.Errorf("counter: record %d of %d is damaged", i, count)
		}
		b.Counts = append(b.Counts, Count{name, n})
	}
	if d.text != "" {
		return Batch{}, fmt.Errorf("counter: %d bytes follow the last record", len(d.text))
	}
	return b, nil
}

type decoder struct {
	text string
	bad  bool
}

// number reads a uvarint of at most limit; 0 and bad when there is none.
func (d *decoder) number(limit uint64) int64 {
	var v uint64
	for i := 0; i < len(d.text) && i < binary.MaxVarintLen64; i++ {
		c := d.text[i]
		v |= uint64(c&0x7f) << (7 * i)
		if c < 0x80 {
			if v > limit {
				break
			}
			d.text = d.text[i+1:]
			return int64(v)
		}
	}
	d.bad = true
	return 0
}

// take reads n bytes; "" and bad when there are fewer.
func (d *decoder) take(n int64) string {
	if n > int64(len(d.text)) {
		d.bad = true
		return ""
	}
	s := d.text[:n]
	d.text = d.text[n:]
	return s
}
