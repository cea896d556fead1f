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
	"time"

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

// header is what does not change in a file's.
type header struct {
	inode            uint64
	seq              int64
	writer, database [16]byte
}

func (h header) put(b []byte) {
	order := binary.NativeEndian
	copy(b, fileMagic)
	order.PutUint32(b[atVersion:], fileVersion)
	order.PutUint64(b[atInode:], h.inode)
	order.PutUint64(b[atSeq:], uint64(h.seq))
	copy(b[atWriter:], h.writer[:])
	copy(b[atDatabase:], h.database[:])
	order.PutUint32(b[atCRC:], crc32.ChecksumIEEE(b[atInode:atOpened]))
}

func binaryID(id string) (b [16]byte) {
	if text, err := hex.DecodeString(id); err == nil && len(text) == len(b) { // else it is no id of ours: zeros
		copy(b[:], text)
	}
	return b
}

func recordSize(name string) int64 {
	return (recordHead + int64(len(name)) + align - 1) / align * align
}

// encode returns the sealed file of a batch.
func encode(h header, b Sealed) []byte {
	size := int64(headerSize)
	for _, c := range b.Counts {
		size += recordSize(c.Name)
	}
	p := make([]byte, size)
	h.put(p)
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
	case number(atSeq) != seqOf(name) || [16]byte(h[atWriter:]) != binaryID(writerOf(dir)):
		return Sealed{}, header{}, errors.New("it is another writer's, or has another number")
	}
	sealed := number(atSealed) == 1
	if !sealed && number(atSealed) != 0 {
		return Sealed{}, header{}, errors.New("whether it was sealed is damaged")
	}
	head := header{order.Uint64(h[atInode:]), number(atSeq), [16]byte(h[atWriter:]), [16]byte(h[atDatabase:])}
	b := Sealed{Batch: Batch{Opened: number(atOpened)}, Seq: head.seq, Spooled: true}
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
	if !sealed && b.Opened <= 0 {
		b.Opened = time.Now().UnixMilli() // the Add that would have set it was not the first to end
	}
	b.Payload = b.Encode()
	switch {
	case at != used:
		return Sealed{}, head, errors.New("its records do not end where its header says")
	case sealed && !bytes.Equal(h[atSum:atSum+SumSize], b.digest()):
		return Sealed{}, head, errors.New("its counts are not those that it was sealed with")
	case len(b.Counts) == 0:
		return Sealed{}, head, errEmpty
	case !sealed && head.inode != inode:
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
