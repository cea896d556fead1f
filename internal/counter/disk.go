package counter

import (
	"errors"
	"io"
)

// Disk is a file system as a Spool uses it: a directory of directories of files.
// There is one for real, and one in memory for tests, which loses at a crash what
// a real one may. Names have no slashes.
type Disk interface {
	// Own makes dir, if need be, and locks it; ErrOwned when another has it.
	Own(dir string) (release func(remove bool), err error)
	// Claim is Own of a directory that is there.
	Claim(dir string) (release func(remove bool), err error)
	// Dirs lists the directories that Own made, but for those that are gone.
	Dirs() ([]string, error)
	// Files lists a directory by name.
	Files(dir string) ([]string, error)
	// Create makes a file of size bytes, all of them allocated, and maps it.
	Create(dir, file string, size int64) (Mapping, error)
	// Write makes a file with this content, whole or not at all, in place of
	// one that may be there.
	Write(dir, file string, content []byte) error
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
	Close()   // it does not grow any more; the memory stays
	Release() // the memory is touched no more
}

// ErrOwned says that a directory is a living process's.
var ErrOwned = errors.New("counter: another process has it")

// errIrregular says that what has a file's name is none.
var errIrregular = errors.New("it is no regular file")

// errNoDirectory says that a directory is gone.
var errNoDirectory = errors.New("the spool's directory is gone")
