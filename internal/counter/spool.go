package counter

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"math"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/usagekit/usagekit/internal/naming"
)

// A spool is a directory. Each writer has a directory in it, named by its id and
// locked as long as it lives, with a file per generation, named by its number:
//
//	spool/usagekit-6fe9…c1/0000000000000000007.counts
//	spool/usagekit-6fe9…c1-0000000000000000005.counts.corrupt    set aside, see adopt.go
//
// What does not begin with the magic is somebody else's, and stays as it is.
//
// A file is a header of 128 bytes and records, in the machine's byte order:
//
//	  0  magic      "usagekit"
//	  8  version    uint32, 1
//	 12  crc        uint32: CRC-32 (IEEE) of bytes 16 to 64
//	 16  inode      uint64: which file this is (see Disk.Inode); another one's is a copy's
//	 24  seq        int64
//	 32  writer     16 bytes
//	 48  database   16 bytes; zeros: not known when the file was made
//	 64  opened     int64: Unix ms of the first count; 0: none yet
//	 72  used       int64: where the published records end; 0: nor is the header
//	 80  sealed     int64: 1 when the file will not change any more
//	 88  sum        16 bytes: of the sealed batch's counts (see Batch.digest)
//	128  records, each at a multiple of 64:
//	       word     int64: the count; its sign bit says that it is closed
//	       length   uint32: of the name
//	       name     and zeros up to a multiple of 64
//
// A record is published by advancing used after it is written; a length of 0 is
// an end, too (of what a power loss left). The words are counted in where they
// stand, in the mapped file: after a kill the kernel has them, and writes them
// when it likes. Nothing is synced: what a power loss takes is lost, and never
// doubled. A later version keeps magic and version in their places.
const (
	fileMagic   = "usagekit"
	fileVersion = 1

	atVersion  = 8
	atCRC      = 12
	atInode    = 16
	atSeq      = 24
	atWriter   = 32
	atDatabase = 48
	atOpened   = 64
	atUsed     = 72
	atSealed   = 80
	atSum      = 88
	headerSize = 128
	recordHead = 12
	align      = 64
)

const (
	firstSize = 1 << 20  // of a writer's first file
	minSize   = 64 << 10 // of the others; they have room for twice what the last one used
)

var (
	errTampered = errors.New("the words in the file are not those that were written: somebody else writes to the spool")
	errRemoved  = errors.New("the spool's files were removed under the process")
	errFull     = errors.New("names came faster than their file grows; they are in memory until the next batch")
)

// Spool keeps the counts of one writer in files, so that they outlive the process.
// A nil Spool keeps none.
type Spool struct {
	disk   Disk
	writer string // 32 hexadecimal digits
	dir    string // its directory
	report func(lost bool, message string, args ...any)
	aside  atomic.Int64           // files set aside
	mapped atomic.Int64           // files in memory, those included that the garbage collector has still to find
	stuck  atomic.Pointer[string] // why files of dead writers stay where they are

	mu       sync.Mutex
	owned    func(remove bool) // releases our directory; nil: not made yet
	sent     bool
	lost     []func(bool) // of those that were ours: what is in them is, still
	database [16]byte
	next     int64           // size of the next file
	told     map[string]bool // what was reported already
}

// NewSpool returns the spool of writer, 32 hexadecimal digits, on disk. Its
// directory is made with its first file. report is told what happens to files,
// and whether counts were lost by it.
func NewSpool(disk Disk, writer string, report func(lost bool, message string, args ...any)) *Spool {
	return &Spool{disk: disk, writer: writer, dir: dirPrefix + writer, report: report, next: firstSize, told: map[string]bool{}}
}

// SetDatabase says which database the counts are for: 32 hexadecimal digits. Files
// that are made from now on are for no other.
func (s *Spool) SetDatabase(id string) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.database = binaryID(id)
}

func binaryID(id string) (b [16]byte) {
	if text, err := hex.DecodeString(id); err == nil && len(text) == len(b) { // else it is no id of ours: zeros
		copy(b[:], text)
	}
	return b
}

// Release removes our directory, if nothing is in it any more, and gives it up.
func (s *Spool) Release() {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.owned != nil {
		s.owned(true)
		s.owned = nil
	}
	for _, release := range s.lost {
		release(false)
	}
	s.lost = nil
}

// Remove removes the file of batch seq: the database has it.
func (s *Spool) Remove(seq int64) {
	if s != nil {
		_ = s.disk.Remove(s.dir, fileName(seq)) // it may be in memory only; and sending it again does no harm
	}
}

// Unsent tells whether nothing of ours is in the database for certain. Whoever sends
// something has the writer registered first, and then says so with Sent.
func (s *Spool) Unsent() bool {
	if s == nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.sent
}

// Sent notes that batches may be in the database from now on, which knows their writer.
func (s *Spool) Sent() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sent = true
	if s.owned != nil {
		_ = s.disk.Sent(s.dir) // where it cannot be noted, nor can a file be removed
	}
}

// Has tells whether there is a file of batch seq.
func (s *Spool) Has(seq int64) bool { return s.disk.Inode(s.dir, fileName(seq)) != 0 }

// file is the mapped file of a generation.
type file struct {
	mapping Mapping
	mem     []byte       // reserved for all that the file may become
	size    atomic.Int64 // of what is allocated
	used    int64        // where the next record goes; under the generation's mutex
	spool   *Spool
	seq     int64

	growing sync.Mutex
	stopped bool
	asked   atomic.Bool           // a goroutine grows it
	why     atomic.Pointer[error] // it did not grow
}

// create makes the file of generation seq.
func (s *Spool) create(seq int64) (f *file, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.owned == nil {
		if err := s.own(); err != nil {
			return nil, err
		}
	}
	m, err := s.disk.Create(s.dir, fileName(seq), s.next)
	if errors.Is(err, errNoDirectory) { // it was removed under us
		s.lost = append(s.lost, s.owned)
		if err = s.own(); err == nil {
			m, err = s.disk.Create(s.dir, fileName(seq), s.next)
		}
	}
	if err != nil {
		return nil, err
	}
	f = &file{mapping: m, mem: m.Bytes(), used: headerSize, spool: s, seq: seq}
	f.size.Store(s.next)
	err = touching(func() {
		s.putHeader(f.mem, seq, m.Inode())
		touchPages(f.mem[headerSize:s.next])
		f.at(atUsed).Store(headerSize)
	})
	if err != nil {
		m.Release()
		return nil, err
	}
	return f, nil
}

// own makes our directory.
func (s *Spool) own() (err error) {
	s.owned, err = s.disk.Own(s.dir)
	if err == nil && s.sent {
		_ = s.disk.Sent(s.dir)
	}
	return err
}

// touchPages has the kernel give the pages of new memory, of zeros: on the request
// path, each would cost as much as ten counts.
func touchPages(mem []byte) {
	for at := 0; at < len(mem); at += 4096 {
		mem[at] = 0
	}
}

// putHeader writes what does not change in a header.
func (s *Spool) putHeader(b []byte, seq int64, inode uint64) {
	order := binary.NativeEndian
	copy(b, fileMagic)
	order.PutUint32(b[atVersion:], fileVersion)
	order.PutUint64(b[atInode:], inode)
	order.PutUint64(b[atSeq:], uint64(seq))
	writer := binaryID(s.writer)
	copy(b[atWriter:], writer[:])
	copy(b[atDatabase:], s.database[:])
	order.PutUint32(b[atCRC:], crc32.ChecksumIEEE(b[atInode:atOpened]))
}

// at is the word of the mapped file that stands at an offset, a multiple of 8.
func (f *file) at(offset int64) *atomic.Int64 {
	return (*atomic.Int64)(unsafe.Pointer(&f.mem[offset]))
}

func recordSize(name string) int64 {
	return (recordHead + int64(len(name)) + align - 1) / align * align
}

// append publishes a record for name, and returns its word; errFull when there is
// no room. It has the file grow in time.
func (f *file) append(name string) (*atomic.Int64, error) {
	at, size := f.used, f.size.Load()
	end := at + recordSize(name)
	if end > size/2 && f.asked.CompareAndSwap(false, true) {
		go f.grow(min(2*size, int64(len(f.mem))))
	}
	if end > size {
		if why := f.why.Load(); why != nil {
			return nil, *why
		}
		return nil, errFull
	}
	binary.NativeEndian.PutUint32(f.mem[at+8:], uint32(len(name)))
	copy(f.mem[at+recordHead:], name)
	f.used = end
	f.at(atUsed).Store(end)
	return f.at(at), nil
}

// grow makes room. A stopped file does not: where it was cut meanwhile, there
// must not be zeros, which would be open words.
func (f *file) grow(size int64) {
	f.growing.Lock()
	defer f.growing.Unlock()
	defer func() { _ = recover() }() // of a Disk: the file stays as it is
	if f.stopped || size <= f.size.Load() {
		return
	}
	if err := f.mapping.Grow(size); err != nil {
		f.why.Store(&err)
		return
	}
	_ = touching(func() { touchPages(f.mem[f.size.Load():size]) })
	f.size.Store(size)
	f.asked.Store(false)
}

// stop keeps the file from growing, and remembers how large the next one should be.
func (f *file) stop() {
	f.growing.Lock()
	f.stopped = true
	f.growing.Unlock()
	f.spool.mu.Lock()
	f.spool.next = min(max(minSize, (2*f.used+4095)&^4095), int64(len(f.mem)))
	f.spool.mu.Unlock()
}

// inPlace tells whether the file is where a start would look for it.
func (f *file) inPlace() bool {
	return f.spool.disk.Inode(f.spool.dir, fileName(f.seq)) == f.mapping.Inode()
}

// keep makes a sealed batch durable: in its mapped file if that is whole and in its
// place, else in a file of its own. It tells whether that is certain. A mapped file
// that says something else is emptied: there may be links to it.
func (s *Spool) keep(f *file, b Sealed, whole bool) bool {
	if f != nil && whole {
		err := touching(func() {
			f.at(atOpened).Store(b.Opened) // the first Add may not have come to it
			copy(f.mem[atSum:], b.digest())
			f.at(atSealed).Store(1)
		})
		f.mapping.Close()
		if err == nil && f.inPlace() {
			return true
		}
	} else if f != nil {
		defer f.mapping.Void()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.owned != nil && s.disk.Write(s.dir, fileName(b.Seq), s.encode(b)) == nil {
		return true
	}
	if !whole {
		s.Remove(b.Seq) // it says less, or more, than memory
	}
	return false
}

// encode returns the sealed file of a batch.
func (s *Spool) encode(b Sealed) []byte {
	size := int64(headerSize)
	for _, c := range b.Counts {
		size += recordSize(c.Name)
	}
	p := make([]byte, size)
	s.putHeader(p, b.Seq, 0)
	order := binary.NativeEndian
	order.PutUint64(p[atOpened:], uint64(b.Opened))
	order.PutUint64(p[atUsed:], uint64(size))
	order.PutUint64(p[atSealed:], 1)
	copy(p[atSum:], b.digest())
	at := int64(headerSize)
	for _, c := range b.Counts {
		order.PutUint64(p[at:], uint64(c.N|closed))
		order.PutUint32(p[at+8:], uint32(len(c.Name)))
		copy(p[at+recordHead:], c.Name)
		at += recordSize(c.Name)
	}
	return p
}

// What a file may be besides a batch.
var (
	errEmpty   = errors.New("nothing was counted in it")
	errNewer   = errors.New("it was written by a later release")
	errCopy    = errors.New("it is a copy of a file that was not sealed: the original counts")
	errForeign = errors.New("it is for another database")

	errUnreadable = errors.New("it cannot be read")
)

// header is a file's, but for what is checked only.
type header struct {
	database [16]byte
	sealed   bool
}

// read reads a file as it was left: name and dir are where it stands, inode which
// file it is.
func read(r io.Reader, dir, name string, inode uint64) (Sealed, header, error) {
	h := make([]byte, headerSize)
	if err := readFull(r, h); errors.Is(err, errUnreadable) {
		return Sealed{}, header{}, err
	} else if string(h[:len(fileMagic)]) != fileMagic {
		return Sealed{}, header{}, errNotOurs
	} else if err != nil {
		return Sealed{}, header{}, err
	}
	order := binary.NativeEndian
	number := func(at int) int64 { return int64(order.Uint64(h[at:])) }
	writer, seq := binaryID(writerOf(dir)), seqOf(name)
	version := order.Uint32(h[atVersion:])
	switch {
	case version > fileVersion:
		return Sealed{}, header{}, errNewer
	case number(atUsed) == 0 && number(atOpened) == 0 && number(atSealed) == 0:
		return Sealed{}, header{}, errEmpty // it was never published
	case version != fileVersion:
		return Sealed{}, header{}, errors.New("its version is 0")
	case order.Uint32(h[atCRC:]) != crc32.ChecksumIEEE(h[atInode:atOpened]):
		return Sealed{}, header{}, errors.New("its header's checksum is wrong")
	case number(atSeq) != seq || !bytes.Equal(h[atWriter:atDatabase], writer[:]):
		return Sealed{}, header{}, errors.New("it is another writer's, or has another number")
	}
	if sealed := number(atSealed); sealed != 0 && sealed != 1 {
		return Sealed{}, header{}, errors.New("whether it was sealed is damaged")
	}
	head := header{sealed: number(atSealed) == 1}
	copy(head.database[:], h[atDatabase:])
	b := Sealed{Batch: Batch{Opened: number(atOpened)}, Seq: seq, Spooled: true}
	seen := map[string]bool{}
	record := make([]byte, align, recordHead+naming.MaxName+align)
	at, used := int64(headerSize), number(atUsed)
	for at < used {
		record = record[:align]
		if err := readFull(r, record); err != nil {
			return Sealed{}, head, err
		}
		length := int64(order.Uint32(record[8:]))
		if length == 0 {
			used = at // nothing was written from here on
			break
		}
		if length > naming.MaxName {
			return Sealed{}, head, fmt.Errorf("the record at %d has a name of %d bytes", at, length)
		}
		size := (recordHead + length + align - 1) / align * align
		record = record[:size]
		if err := readFull(r, record[align:]); err != nil {
			return Sealed{}, head, err
		}
		n, name := int64(order.Uint64(record))&math.MaxInt64, string(record[recordHead:recordHead+length])
		if n > Max || naming.Known(name) != name || naming.Derived(name) || seen[name] {
			return Sealed{}, head, fmt.Errorf("the record at %d is damaged", at)
		}
		seen[name] = true
		if n > 0 {
			b.Counts = append(b.Counts, Count{name, n})
		}
		at += size
	}
	if !head.sealed && b.Opened <= 0 {
		b.Opened = time.Now().UnixMilli() // the Add that would have set it was not the first to end
	}
	b.Payload = b.Encode()
	switch {
	case at != used:
		return Sealed{}, head, errors.New("its records do not end where its header says")
	case head.sealed && !bytes.Equal(h[atSum:atSum+SumSize], b.digest()):
		return Sealed{}, head, errors.New("its counts are not those that it was sealed with")
	case len(b.Counts) == 0:
		return Sealed{}, head, errEmpty
	case !head.sealed && order.Uint64(h[atInode:]) != inode:
		return Sealed{}, head, errCopy
	}
	return b, head, nil
}

// readFull fills b. What ends before is damaged, what cannot be read may be later.
func readFull(r io.Reader, b []byte) error {
	switch _, err := io.ReadFull(r, b); {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("it is cut short")
	case err != nil:
		if in := (*fs.PathError)(nil); errors.As(err, &in) {
			err = in.Err // for whoever may read health, but not where the file is
		}
		return fmt.Errorf("%w: %w", errUnreadable, err)
	}
	return nil
}

// fault returns the error of a recovered panic that a touch of a mapped file ended
// in. All other panics go on.
func fault(v any) error {
	var re runtime.Error
	if err, ok := v.(error); ok && errors.As(err, &re) {
		if _, ok := re.(interface{ Addr() uintptr }); ok {
			return errors.New("the spool's file was cut or cannot be written under us; counts are in memory until the next batch")
		}
	}
	panic(v)
}

// touching runs f, which touches a mapped file, and makes a fault an error.
func touching(f func()) (err error) {
	old := debug.SetPanicOnFault(true)
	defer func() {
		debug.SetPanicOnFault(old)
		if v := recover(); v != nil {
			err = fault(v)
		}
	}()
	f()
	return nil
}
