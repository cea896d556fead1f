package counter

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"strings"
	"unsafe"

	"github.com/usagekit/usagekit/internal/naming"
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
	Old     bool   // see MaxAge: only for a database that knows its writer
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
//	counts    count × (uvarint shared, uvarint length, rest, uvarint value)
//	checksum  the first 16 bytes of SHA-256 of all before
//
// A name is the first shared bytes of the one before it, and the rest: 500 names
// take 9 kB in place of 21, in 12 µs. Deflate takes 4.8 and 100 µs, and as long
// again to undo it in the fold, to let the database take a tenth more inserts; zstd
// is another module in everybody's go.mod. Every later version keeps its first byte
// and its checksum in place.
const version = 1

// Encode returns the payload of b: names with a zero count left out.
func (b Batch) Encode() []byte {
	size, count := 32+SumSize, 0
	for _, c := range b.Counts {
		size += len(c.Name) + 5
		if c.N > 0 {
			count++
		}
	}
	p := append(make([]byte, 0, size), version)
	p = binary.AppendUvarint(p, uint64(b.Opened))
	p = binary.AppendUvarint(p, uint64(count))
	last := ""
	for _, c := range b.Counts {
		if c.N > 0 {
			same := 0
			for same < min(len(last), len(c.Name)) && last[same] == c.Name[same] {
				same++
			}
			p = binary.AppendUvarint(p, uint64(same))
			p = binary.AppendUvarint(p, uint64(len(c.Name)-same))
			p = append(p, c.Name[same:]...)
			p = binary.AppendUvarint(p, uint64(c.N))
			last = c.Name
		}
	}
	sum := sha256.Sum256(p)
	return append(p, sum[:SumSize]...)
}

// digest identifies the counts of b, whatever the version of its payload: what a
// sealed file of the spool has is checked by it.
func (b Batch) digest() []byte {
	p := binary.AppendUvarint([]byte{1}, uint64(b.Opened))
	p = binary.AppendUvarint(p, uint64(len(b.Counts)))
	for _, c := range b.Counts {
		p = binary.AppendUvarint(p, uint64(len(c.Name)))
		p = append(p, c.Name...)
		p = binary.AppendUvarint(p, uint64(c.N))
	}
	sum := sha256.Sum256(p)
	return sum[:SumSize]
}

// Sum returns the checksum that payload p ends with, nil when it is too short
// to have one.
func Sum(p []byte) []byte {
	if len(p) <= SumSize {
		return nil
	}
	return p[len(p)-SumSize:]
}

// Payload is an encoded batch that is sound.
type Payload struct {
	Opened int64 // see Batch

	count   int64
	records []byte
}

// Open reads a payload, all of it.
func Open(p []byte) (Payload, error) {
	if len(p) <= SumSize {
		return Payload{}, fmt.Errorf("counter: a payload of %d bytes is cut short", len(p))
	}
	body := p[:len(p)-SumSize]
	if sum := sha256.Sum256(body); !bytes.Equal(sum[:SumSize], Sum(p)) {
		return Payload{}, errors.New("counter: the payload's checksum is wrong")
	}
	if body[0] != version {
		return Payload{}, ErrVersion
	}
	d := decoder{rest: body[1:]}
	opened := d.number(1<<62 - 1)
	count := d.number(uint64(len(d.rest)) / 3) // a record has three bytes at least
	if d.bad {
		return Payload{}, errors.New("counter: the payload's header is damaged")
	}
	payload := Payload{opened, count, d.rest}
	for i := range count {
		if d.record(); d.bad {
			return Payload{}, fmt.Errorf("counter: record %d of %d is damaged", i, count)
		}
	}
	if len(d.rest) > 0 {
		return Payload{}, fmt.Errorf("counter: %d bytes follow the last record", len(d.rest))
	}
	return payload, nil
}

// Counts gives the counts of p, 1 … Max each. A name is whatever the payload has (see
// Kept), in memory that the next one has again.
func (p Payload) Counts() iter.Seq2[string, int64] {
	return func(yield func(string, int64) bool) {
		d := decoder{rest: p.records}
		for range p.count {
			n := d.record()
			if !yield(unsafe.String(&d.name[0], d.length), n) {
				return
			}
		}
	}
}

// Decode returns the batch of a payload, its names as they are kept.
func Decode(p []byte) (Batch, error) {
	payload, err := Open(p)
	if err != nil {
		return Batch{}, err
	}
	b := Batch{Opened: payload.Opened}
	for name, n := range payload.Counts() {
		b.Counts = append(b.Counts, Count{strings.Clone(naming.Kept(name)), n})
	}
	return b, nil
}

type decoder struct {
	rest   []byte
	bad    bool
	name   [naming.MaxName]byte // of the last record
	length int64
}

// record reads the next record: its name into d, and its number.
func (d *decoder) record() int64 {
	shared := d.number(uint64(d.length))
	suffix := d.take(d.number(uint64(naming.MaxName - shared)))
	d.length = shared + int64(copy(d.name[shared:], suffix))
	n := d.number(Max)
	d.bad = d.bad || n == 0
	return n
}

// number reads a uvarint of at most limit; 0 and bad when there is none.
func (d *decoder) number(limit uint64) int64 {
	v, size := binary.Uvarint(d.rest)
	if size <= 0 || v > limit {
		d.bad = true
		return 0
	}
	d.rest = d.rest[size:]
	return int64(v)
}

// take reads n bytes; none and bad when there are fewer.
func (d *decoder) take(n int64) []byte {
	if n > int64(len(d.rest)) {
		d.bad = true
		return nil
	}
	b := d.rest[:n]
	d.rest = d.rest[n:]
	return b
}
