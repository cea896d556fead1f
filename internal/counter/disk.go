package counter

import (
	"errors"
	"io"
	"strconv"
	"strings"
)

// Disk is a file system as a Spool uses it: a directory of directories of files.
// There is one for real, and one in memory for tests, which loses at a crash what
// a real one may. Names have no slashes. Where others keep things of theirs there,
// it neither changes nor removes them: a directory is ours by its name, or because
// a file of ours is in it, and a file by its name and the magic that it begins with.
type Disk interface {
	// Own makes dir, if need be, and locks it; ErrOwned when another has it. Nothing
	// was sent from it yet.
	Own(dir string) (release func(remove bool), err error)
	// Claim is Own of a directory that is there.
	Claim(dir string) (release func(remove bool), err error)
	// Sent notes that something may be sent from dir from now on, for as long as it is
	// there: a power loss does not undo it.
	Sent(dir string) error
	// Unsent tells whether Sent was certainly not called for dir, which is not a copy.
	Unsent(dir string) bool
	// Dirs lists the directories that Own made, but for those that are gone, and
	// what else is there.
	Dirs() (dirs, others []string, err error)
	// Files lists by name what has a generation's name in a directory, and what
	// has not.
	Files(dir string) (files, others []string, err error)
	// Create makes a file of size bytes, all of them allocated, and maps it. Its
	// magic is in it before it has its name. It is locked until it is closed: links
	// may lead to it from elsewhere.
	Create(dir, file string, size int64) (Mapping, error)
	// Write makes a file with this content, whole or not at all, in place of
	// one of ours that may be there.
	Write(dir, file string, content []byte) error
	// Open reads a file; errNotOurs when it is none of ours, ErrOwned when it is
	// locked.
	Open(dir, file string) (r io.ReadCloser, inode uint64, err error)
	// Inode tells a file from its copies; 0 when there is none.
	Inode(dir, file string) uint64
	// Remove frees the memory of a file's mapping, too.
	Remove(dir, file string) error
	// SetAside moves a file where no Dirs or Files finds it, and returns its new
	// name. The oldest of them may go.
	SetAside(dir, file string) (name string, err error)
}

// Mapping is a mapped file.
type Mapping interface {
	Bytes() []byte // as long as the file may become
	Inode() uint64
	Grow(size int64) error
	Close()   // whoever finds the file may read it: it does not change any more; the memory stays
	Void()    // is Close, where another file has the counts: whoever finds it finds nothing
	Release() // the memory is touched no more
}

// ErrOwned says that a directory is a living process's.
var ErrOwned = errors.New("counter: another process has it")

// errNotOurs says that somebody else put there what has the name of a file of ours,
// or that a power loss left nothing of it.
var errNotOurs = errors.New("it is no file of usagekit's")

// errNoDirectory says that a directory is gone.
var errNoDirectory = errors.New("the spool's directory is gone")

// A directory is named by its writer, a file by its generation's number.
const (
	dirPrefix  = "usagekit-" // releases before 0.1 had the id alone
	fileSuffix = ".counts"
	seqDigits  = 19
)

// writerOf returns the id of the writer that a directory is named by; "" for a name
// that is none.
func writerOf(dir string) string {
	id := strings.TrimPrefix(dir, dirPrefix)
	if len(id) != 32 || strings.Trim(id, "0123456789abcdef") != "" {
		return ""
	}
	return id
}

func fileName(seq int64) string {
	digits := strconv.FormatInt(seq, 10)
	return strings.Repeat("0", seqDigits-len(digits)) + digits + fileSuffix
}

// seqOf returns the number that a file is named by; 0 for a name that is none.
func seqOf(file string) int64 {
	digits, ok := strings.CutSuffix(file, fileSuffix)
	seq, err := strconv.ParseInt(digits, 10, 64)
	if !ok || err != nil || seq < 1 || len(digits) != seqDigits || digits[0] < '0' {
		return 0
	}
	return seq
}
