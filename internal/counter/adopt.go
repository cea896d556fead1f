package counter

import (
	"bufio"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// MaxAge is how old a batch may be, by the clock of the host that counted and that of
// the one that finds it, to be sent without asking. The database forgets a writer some
// time after it, and could not tell then that it has the batch already. What is older
// goes to a database that knows its writer: either clock may be wrong.
const MaxAge = 60 * 24 * time.Hour

// ErrForgotten says that the database does not know the writer of an old batch.
var ErrForgotten = errors.New("the database does not know its writer any more, so whether it was counted before cannot be told")

var errShared = errors.New("another process counts in it, through a hard link or another path: remove the copy")

// Adopt sends what dead writers left: each one's files in order, under its own id,
// so that a batch that had arrived already does not count again. register returns when
// the database knows a writer of which it has nothing, send when it has the batch for
// certain, or ErrForgotten; any other error ends the adoption. What is not sent stays for
// the next one. One file is in memory at a time.
//
// What cannot be sent is set aside as *.corrupt, or stays where it is when another
// may be able to: files of a later release, or for another database. What is not
// usagekit's stays in any case, and is said once.
func (s *Spool) Adopt(register func(writer string) error, send func(writer string, b Sealed) error) error {
	dirs, others, err := s.disk.Dirs()
	s.found.stuck.Store(nil)
	if err != nil {
		if !errors.Is(err, errNoDirectory) { // else nobody left anything
			s.found.stays("the spool cannot be read", ".", err)
		}
		return nil
	}
	s.found.notOurs(".", others)
	for _, dir := range dirs {
		if dir == s.dir.name {
			continue
		}
		release, err := s.disk.Claim(dir)
		if err != nil {
			if !errors.Is(err, ErrOwned) && !errors.Is(err, errNoDirectory) {
				s.found.stays("a directory of the spool cannot be read", dir, err)
			}
			continue
		}
		if err := s.adopt(dir, release, register, send); err != nil {
			return err
		}
	}
	return nil
}

// adopt sends the files of one dead writer.
func (s *Spool) adopt(dir string, release func(remove bool), register func(writer string) error, send func(writer string, b Sealed) error) error {
	done := false
	defer func() { release(done) }()
	files, others, err := s.disk.Files(dir)
	if err != nil {
		return nil
	}
	defer func() { s.found.notOurs(dir, others) }()
	done = true
	copied := false
	for _, name := range files {
		b, why := s.load(dir, name)
		switch {
		case why == nil && copied: // the original may have sent what the copy lacks
			s.setAside(dir, name, errCopy)
			continue
		case why == nil:
			err := s.sendFrom(dir, b, register, send)
			if errors.Is(err, ErrForgotten) {
				s.setAside(dir, name, ErrForgotten)
				continue
			}
			if err != nil {
				done = false
				return err
			}
		case errors.Is(why, errNotOurs):
			others = append(others, name)
			continue
		case errors.Is(why, errEmpty):
		case errors.Is(why, errNewer), errors.Is(why, errForeign), errors.Is(why, errUnreadable), errors.Is(why, errShared):
			s.found.stays("a file of the spool stays where it is, and those after it", dir+"/"+name, why)
			done = false
			return nil
		default:
			copied = copied || errors.Is(why, errCopy)
			s.setAside(dir, name, why)
			continue
		}
		if err := s.disk.Remove(dir, name); err != nil {
			s.found.stays("a file of the spool cannot be removed; its counts are delivered", dir+"/"+name, err)
			done = false
		}
	}
	return nil
}

// sendFrom sends a batch of a dead writer. One that had sent nothing has the database
// know it first, whatever becomes of us meanwhile: so no batch of it is ever too old.
func (s *Spool) sendFrom(dir string, b Sealed, register func(writer string) error, send func(writer string, b Sealed) error) error {
	if s.disk.Unsent(dir) {
		if err := register(writerOf(dir)); err != nil {
			return err
		}
		if err := s.disk.Sent(dir); err != nil {
			s.found.stays("the spool cannot be written to", dir, err)
			return err
		}
	}
	b.Old = time.Since(time.UnixMilli(b.Opened)) > MaxAge
	return send(writerOf(dir), b)
}

func (s *Spool) load(dir, name string) (Sealed, error) {
	f, inode, err := s.disk.Open(dir, name)
	if errors.Is(err, ErrOwned) {
		return Sealed{}, errShared
	}
	if errors.Is(err, errNotOurs) {
		return Sealed{}, err
	}
	if err != nil {
		return Sealed{}, fmt.Errorf("%w: %w", errUnreadable, err)
	}
	defer f.Close()
	b, h, err := read(bufio.NewReaderSize(f, 64<<10), dir, name, inode)
	s.mu.Lock()
	ours := s.database
	s.mu.Unlock()
	if none := ([16]byte{}); h.database != none && h.database != ours {
		return Sealed{}, foreignError{hex.EncodeToString(h.database[:]), hex.EncodeToString(ours[:])}
	}
	return b, err
}

type foreignError struct{ theirs, ours string }

func (e foreignError) Error() string {
	return "it is for the database with the id " + e.theirs + ", and this one's is " + e.ours + " (usage_meta has it): give each database a spool of its own"
}

func (foreignError) Is(target error) bool { return target == errForeign }

func (s *Spool) setAside(dir, name string, why error) {
	to, err := s.disk.SetAside(dir, name)
	if err != nil {
		s.found.stays("a file of the spool cannot be used, nor set aside", dir+"/"+name, fmt.Errorf("%w; %w", why, err))
		return
	}
	s.found.aside.Add(1)
	s.found.report(!errors.Is(why, errCopy), "a file of the spool cannot be used, and was set aside", "file", to, "error", why)
}

// Stuck says why files that dead processes left stay where they are; "": none does.
func (s *Spool) Stuck() string {
	if s != nil {
		if why := s.found.stuck.Load(); why != nil {
			return *why
		}
	}
	return ""
}

// Aside returns how many files were set aside.
func (s *Spool) Aside() int {
	if s == nil {
		return 0
	}
	return int(s.found.aside.Load())
}

// findings is what was found in what dead processes, and others, left.
type findings struct {
	report func(lost bool, message string, args ...any)
	aside  atomic.Int64           // files set aside
	stuck  atomic.Pointer[string] // why files stay where they are

	mu   sync.Mutex
	told map[string]bool // what was reported already
}

// stays notes that a file, or a directory, waits for somebody to do something.
func (f *findings) stays(message, name string, why error) {
	text := message + ": " + name + ": " + why.Error()
	f.stuck.Store(&text)
	f.once(text, message, "file", name, "error", why)
}

// notOurs says that there are others' files in a directory.
func (f *findings) notOurs(dir string, others []string) {
	if len(others) > 0 {
		f.once("others in "+dir, "in the spool is what is not usagekit's; it stays as it is", "directory", dir, "entries", len(others), "one of them", others[0])
	}
}

// once reports what every adoption would meet again, known by key.
func (f *findings) once(key, message string, args ...any) {
	f.mu.Lock()
	told := f.told[key]
	f.told[key] = true
	f.mu.Unlock()
	if !told {
		f.report(false, message, args...)
	}
}
