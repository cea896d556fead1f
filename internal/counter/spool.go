package counter

import (
	"errors"
	"sync"
	"sync/atomic"
)

const (
	firstSize = 1 << 20  // of a writer's first file
	minSize   = 64 << 10 // of the others; they have room for twice what the last one used
)

// Spool keeps the counts of one writer in files, so that they outlive the process.
// A nil Spool keeps none.
type Spool struct {
	disk   Disk
	writer string       // 32 hexadecimal digits
	mapped atomic.Int64 // files in memory, those included that the garbage collector has still to find
	found  findings     // in what others left

	mu       sync.Mutex
	dir      directory
	database [16]byte
	next     int64 // size of the next file
}

// directory is a writer's, as long as it lives.
type directory struct {
	disk    Disk
	name    string
	release func(remove bool) // nil: not made yet
	sent    bool              // something of ours may be in the database
	lost    []func(bool)      // of those that were ours: what is in them is, still
}

// NewSpool returns the spool of writer, 32 hexadecimal digits, on disk. Its
// directory is made with its first file. report is told what happens to files,
// and whether counts were lost by it.
func NewSpool(disk Disk, writer string, report func(lost bool, message string, args ...any)) *Spool {
	return &Spool{
		disk: disk, writer: writer, next: firstSize,
		dir:   directory{disk: disk, name: dirPrefix + writer},
		found: findings{report: report, told: map[string]bool{}},
	}
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

// Release removes our directory, if nothing is in it any more, and gives it up.
func (s *Spool) Release() {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dir.giveUp()
}

// Remove removes the file of batch seq: the database has it.
func (s *Spool) Remove(seq int64) {
	if s != nil {
		_ = s.disk.Remove(s.dir.name, fileName(seq)) // it may be in memory only; and sending it again does no harm
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
	return !s.dir.sent
}

// Sent notes that batches may be in the database from now on, which knows their writer.
func (s *Spool) Sent() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dir.sent = true
	if s.dir.release != nil {
		s.dir.noteSent()
	}
}

// Has tells whether there is a file of batch seq.
func (s *Spool) Has(seq int64) bool { return s.disk.Inode(s.dir.name, fileName(seq)) != 0 }

// create makes the file of generation seq.
func (s *Spool) create(seq int64) (*file, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m, err := s.dir.create(fileName(seq), s.next)
	if err != nil {
		return nil, err
	}
	f := &file{mapping: m, mem: m.Bytes(), used: headerSize, spool: s, seq: seq}
	f.size.Store(s.next)
	err = touching(func() {
		s.header(seq, m.Inode()).put(f.mem)
		touchPages(f.mem[headerSize:s.next])
		f.at(atUsed).Store(headerSize)
	})
	if err != nil {
		m.Release()
		return nil, err
	}
	return f, nil
}

// header is that of the file of generation seq; mu is held.
func (s *Spool) header(seq int64, inode uint64) header {
	return header{inode: inode, seq: seq, writer: binaryID(s.writer), database: s.database}
}

// keep makes a sealed batch durable: in its mapped file if that is whole and in its
// place, else in a file of its own. It tells whether that is certain. A mapped file
// that says something else is emptied: there may be links to it.
func (s *Spool) keep(f *file, b Sealed, whole bool) bool {
	if f != nil && whole {
		if f.seal(b) {
			return true
		}
	} else if f != nil {
		defer f.mapping.Void()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dir.release != nil && s.disk.Write(s.dir.name, fileName(b.Seq), encode(s.header(b.Seq, 0), b)) == nil {
		return true
	}
	if !whole {
		s.Remove(b.Seq) // it says less, or more, than memory
	}
	return false
}

// own makes the directory.
func (d *directory) own() (err error) {
	d.release, err = d.disk.Own(d.name)
	if err == nil && d.sent {
		d.noteSent()
	}
	return err
}

func (d *directory) noteSent() {
	_ = d.disk.Sent(d.name) // where it cannot be noted, nor can a file be removed
}

// create makes a file, and the directory where need be.
func (d *directory) create(file string, size int64) (Mapping, error) {
	if d.release == nil {
		if err := d.own(); err != nil {
			return nil, err
		}
	}
	m, err := d.disk.Create(d.name, file, size)
	if errors.Is(err, errNoDirectory) { // it was removed under us
		d.lost = append(d.lost, d.release)
		if err = d.own(); err == nil {
			m, err = d.disk.Create(d.name, file, size)
		}
	}
	return m, err
}

// giveUp removes the directory, if nothing is in it any more, and ends its lock.
func (d *directory) giveUp() {
	if d.release != nil {
		d.release(true)
		d.release = nil
	}
	for _, release := range d.lost {
		release(false)
	}
	d.lost = nil
}
