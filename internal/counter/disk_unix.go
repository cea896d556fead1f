//go:build linux || darwin

package counter

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	asideSuffix = ".corrupt"
	asideKept   = 100
	newPrefix   = ".new-"      // of a directory that is not locked yet
	tmpPrefix   = ".usagekit-" // of a file that is not whole yet
	unsentFile  = "unsent"     // is in a directory that nothing was sent from
)

// sentSize is what is left of unsentFile when it is true no more, before it is removed.
const sentSize = int64(len(fileMagic)) // ours still, and says nothing

// maxFile is how large a generation's file may become, 16 MiB where addresses have
// 32 bits: names beyond it are in memory only.
const maxFile = 256 << 20 >> (4 * (1 - ^uint(0)>>63))

// OpenDisk returns the file system below root, which is made with mode 0700 if need
// be. Whether its file system can be used shows when a file is made.
func OpenDisk(root string) (Disk, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, err
	}
	d := &disk{root: root, made: map[string]uint64{}}
	if err := os.MkdirAll(root, 0o700); err != nil {
		if errors.Is(err, unix.ENOTDIR) || errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("%w: want a directory, or a path where one can be made", err)
		}
		if errors.Is(err, fs.ErrPermission) {
			return nil, fmt.Errorf("%w: the process needs the right to write there", err)
		}
		return d, nil // no space, perhaps: later
	}
	if err := unix.Access(root, unix.R_OK|unix.W_OK|unix.X_OK); errors.Is(err, unix.EACCES) {
		return nil, fmt.Errorf("%s: %w: the process needs the right to read and write there", root, err)
	}
	return d, nil
}

// disk is a directory of the real file system.
type disk struct {
	root string

	mu   sync.Mutex
	made map[string]uint64 // by its path, which file this process put there: it is ours, whatever became of what is in it
}

func (d *disk) path(names ...string) string {
	return filepath.Join(append([]string{d.root}, names...)...)
}

// Own locks the directory before it has its name: whoever sees it there and can
// lock it knows that its owner is dead.
func (d *disk) Own(dir string) (func(bool), error) {
	if err := os.MkdirAll(d.root, 0o700); err != nil {
		return nil, explain(err)
	}
	if err := suitable(d.root); err != nil {
		return nil, err
	}
	d.sweep()
	fresh := newPrefix + dir
	if err := os.Mkdir(d.path(fresh), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, explain(err)
	}
	release, err := d.Claim(fresh)
	if err != nil {
		return nil, err
	}
	unsent, err := d.place(fresh, unsentFile, func(f *os.File) error {
		_, err := fmt.Fprintf(f, "%s %016x\n", fileMagic, d.identityOf(f))
		return explain(err)
	})
	if err == nil {
		unsent.Close()
		err = explain(os.Rename(d.path(fresh), d.path(dir)))
	}
	if err != nil {
		release(true)
		return nil, err
	}
	return func(remove bool) {
		if remove {
			d.removeDir(dir)
		}
		release(false)
	}, nil
}

// removeDir removes a directory in which no file is left, but its mark.
func (d *disk) removeDir(dir string) {
	if entries, err := os.ReadDir(d.path(dir)); err == nil && len(entries) == 1 && strings.TrimPrefix(entries[0].Name(), tmpPrefix) == unsentFile {
		_ = d.discard(d.path(dir, entries[0].Name()))
	}
	_ = unix.Rmdir(d.path(dir)) // only if it is empty
}

func (d *disk) Sent(dir string) error {
	f, err := d.openOurs(d.path(dir, unsentFile), os.O_RDWR)
	if errors.Is(err, errNoDirectory) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(sentSize); err != nil { // no link to it says it any more
		return explain(err)
	}
	if err := errors.Join(f.Sync(), os.Remove(f.Name())); err != nil {
		return explain(err)
	}
	return nil
}

func (d *disk) Unsent(dir string) bool {
	f, err := d.openOurs(d.path(dir, unsentFile), os.O_RDONLY)
	if err != nil {
		return false
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, 64))
	return err == nil && string(content) == fmt.Sprintf("%s %016x\n", fileMagic, d.identityOf(f))
}

// sweep removes what a process left that died within Own: not what one that is there
// just now has not locked yet.
func (d *disk) sweep() {
	left, _ := filepath.Glob(d.path(newPrefix + "*")) // the pattern is well-formed
	for _, path := range left {
		info, err := os.Lstat(path)
		if err != nil || !info.IsDir() || !ownedBy(strings.TrimPrefix(info.Name(), newPrefix)) || time.Since(info.ModTime()) < time.Minute {
			continue
		}
		if release, err := d.Claim(info.Name()); err == nil {
			release(true)
		}
	}
}

// ownedBy tells whether a directory of this name is a spool's, and nobody else's.
func ownedBy(name string) bool { return strings.HasPrefix(name, dirPrefix) && writerOf(name) != "" }

// Claim locks the directory itself, until the process ends at the latest.
func (d *disk) Claim(dir string) (func(bool), error) {
	f, err := os.OpenFile(d.path(dir), os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, explain(err)
	}
	if err := lock(f, unix.LOCK_EX); err != nil {
		f.Close()
		return nil, err
	}
	var locked, named unix.Stat_t // another may have removed it, and its owner made it anew
	if unix.Fstat(int(f.Fd()), &locked) != nil || unix.Stat(d.path(dir), &named) != nil || locked.Ino != named.Ino || locked.Dev != named.Dev {
		f.Close()
		return nil, errNoDirectory
	}
	return func(remove bool) {
		if remove {
			d.removeDir(dir)
		}
		f.Close()
	}, nil
}

// lock takes a lock, which ends when f is closed, or with the process; ErrOwned when
// another has it.
func lock(f *os.File, how int) error {
	for {
		switch err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB); {
		case err == nil:
			return nil
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EWOULDBLOCK):
			return ErrOwned
		default:
			return fmt.Errorf("flock: %w", err)
		}
	}
}

func (d *disk) Dirs() (dirs, others []string, err error) {
	entries, err := os.ReadDir(d.root)
	if err != nil {
		return nil, nil, explain(err)
	}
	for _, e := range entries {
		name := e.Name()
		switch {
		case e.IsDir() && (ownedBy(name) || writerOf(name) != "" && d.holdsOurs(name)):
			dirs = append(dirs, name)
		case e.IsDir() && ownedBy(strings.TrimPrefix(name, newPrefix)): // Own is at it, or sweep will be
		case e.Type().IsRegular() && strings.HasSuffix(name, fileSuffix+asideSuffix):
		default:
			others = append(others, name)
		}
	}
	return dirs, others, nil
}

// holdsOurs tells whether a directory that others might have named has a file of ours.
func (d *disk) holdsOurs(dir string) bool {
	entries, _ := os.ReadDir(d.path(dir)) // as far as it can be read
	return slices.ContainsFunc(entries, func(e fs.DirEntry) bool {
		if seqOf(e.Name()) == 0 {
			return false
		}
		f, err := d.openOurs(d.path(dir, e.Name()), os.O_RDONLY)
		if err == nil {
			f.Close()
		}
		return err == nil
	})
}

func (d *disk) Files(dir string) (files, others []string, err error) {
	entries, err := os.ReadDir(d.path(dir)) // sorted
	if err != nil {
		return nil, nil, explain(err)
	}
	for _, e := range entries {
		name := e.Name()
		switch {
		case name == unsentFile:
		case seqOf(name) != 0:
			files = append(files, name)
		case seqOf(strings.TrimPrefix(name, tmpPrefix)) != 0 && d.discard(d.path(dir, name)) == nil: // what was cut off
		default:
			others = append(others, name)
		}
	}
	return files, others, nil
}

// openOurs opens a file that begins with our magic, or that this process made; it
// neither follows a link nor waits for somebody at the other end of a pipe.
func (d *disk) openOurs(path string, flag int) (*os.File, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, explain(err)
	}
	if !info.Mode().IsRegular() {
		return nil, errNotOurs
	}
	f, err := os.OpenFile(path, flag|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, explain(err)
	}
	if d.identityOf(f) != d.madeAt(path) {
		magic := make([]byte, len(fileMagic))
		n, readErr := f.ReadAt(magic, 0)
		switch {
		case readErr != nil && !errors.Is(readErr, io.EOF):
			err = explain(readErr)
		case string(magic[:n]) != fileMagic:
			err = errNotOurs
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// madeAt returns which file this process put at path; 0: none.
func (d *disk) madeAt(path string) uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.made[path]
}

// discard removes a mark, or what a file of ours was being made from. The magic may have
// still to come; and where the machine ended before what was written was on its disk,
// there are zeros in its place.
func (d *disk) discard(path string) error {
	f, err := d.openOurs(path, os.O_RDONLY)
	switch {
	case err == nil:
		f.Close()
	case !errors.Is(err, errNotOurs) || !isBlank(path):
		return err
	}
	d.mu.Lock()
	delete(d.made, path)
	d.mu.Unlock()
	return os.Remove(path)
}

// isBlank tells whether a file has nothing but zeros, and no more than a mark has bytes.
func isBlank(path string) bool {
	info, err := os.Lstat(path)
	if err != nil || !info.Mode().IsRegular() || info.Size() > 64 {
		return false
	}
	content, err := os.ReadFile(path)
	return err == nil && len(bytes.Trim(content, "\x00")) == 0
}

// place makes a file of ours by write, and gives it its name when it is whole: what
// a kill leaves is no file, or one that begins with the magic.
func (d *disk) place(dir, file string, write func(f *os.File) error) (f *os.File, err error) {
	path, tmp := d.path(dir, file), d.path(dir, tmpPrefix+file)
	_ = d.discard(tmp)
	f, err = os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, explain(err)
	}
	if err = write(f); err == nil {
		err = d.vacant(path)
	}
	if err == nil {
		err = explain(os.Rename(tmp, path))
	}
	if err != nil {
		f.Close()
		_ = os.Remove(tmp)
		return nil, err
	}
	d.mu.Lock()
	d.made[path] = d.identityOf(f)
	d.mu.Unlock()
	return f, nil
}

// vacant tells whether a file of ours may have this name.
func (d *disk) vacant(path string) error {
	f, err := d.openOurs(path, os.O_RDONLY)
	switch {
	case err == nil:
		f.Close()
	case errors.Is(err, errNotOurs):
		return fmt.Errorf("where the spool's next file belongs, %w", err)
	}
	return nil
}

func (d *disk) Create(dir, file string, size int64) (Mapping, error) {
	m := &mapping{}
	f, err := d.place(dir, file, func(f *os.File) error {
		m.file = f
		if err := lock(f, unix.LOCK_EX); err != nil {
			return err
		}
		if _, err := f.WriteString(fileMagic); err != nil {
			return explain(err)
		}
		if err := m.Grow(size); err != nil {
			return err
		}
		mem, err := unix.Mmap(int(f.Fd()), 0, int(max(size, maxFile)), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		m.mem = mem
		return explain(err)
	})
	if err != nil {
		if m.mem != nil {
			_ = unix.Munmap(m.mem)
		}
		return nil, err
	}
	m.inode = d.identityOf(f)
	return m, nil
}

// mapping is a mapped file of this process. Its memory is reserved to where the
// file may grow; what is beyond its end must not be touched.
type mapping struct {
	file  *os.File
	mem   []byte
	inode uint64
}

func (m *mapping) Bytes() []byte { return m.mem }
func (m *mapping) Inode() uint64 { return m.inode }

// Grow allocates: a mapping of a sparse file is a fault on a full disk.
func (m *mapping) Grow(size int64) error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &limit); err == nil && uint64(size) > uint64(limit.Cur) {
		return fmt.Errorf("the process may write files of %d bytes only (ulimit -f): %w", limit.Cur, unix.EFBIG)
	}
	if err := allocate(m.file, size); err != nil {
		return explain(err)
	}
	return nil
}

func (m *mapping) Close() {
	_ = unix.Flock(int(m.file.Fd()), unix.LOCK_UN) // the mapping would keep it
	m.file.Close()
}

func (m *mapping) Void() {
	if links(m.file) > 0 {
		_ = m.file.Truncate(0)
	}
	m.Close()
}

// links is how many names a file has.
func links(f *os.File) uint64 {
	var info unix.Stat_t
	if unix.Fstat(int(f.Fd()), &info) != nil {
		return 0
	}
	return uint64(info.Nlink)
}

func (m *mapping) Release() {
	if m.mem != nil {
		_ = unix.Munmap(m.mem)
	}
	m.file.Close()
}

func (d *disk) Write(dir, file string, content []byte) error {
	f, err := d.place(dir, file, func(f *os.File) error {
		_, err := f.Write(content)
		return explain(err)
	})
	if err != nil {
		return err
	}
	return f.Close()
}

func (d *disk) Open(dir, file string) (io.ReadCloser, uint64, error) {
	f, err := d.openOurs(d.path(dir, file), os.O_RDONLY)
	if err != nil {
		return nil, 0, err
	}
	for range 20 { // a process that ends gives its locks up one after the other
		if err = lock(f, unix.LOCK_SH); !errors.Is(err, ErrOwned) {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	if !ownedBy(dir) { // a release before knew less of it
		id, _ := statFile(f)
		id.born = 0
		return f, d.identity(id), nil
	}
	return f, d.identityOf(f), nil
}

// identityOf is the identity of an open file; 0 when it cannot be told.
func (d *disk) identityOf(f *os.File) uint64 {
	id, err := statFile(f)
	if err != nil {
		return 0
	}
	return d.identity(id)
}

// fileID is what tells a file from all others.
type fileID struct {
	inode, device uint64
	born          uint64 // ns; 0: not known
}

// identity is the inode, and when it was made: a copy on another disk may have the
// number, too. File systems in memory are counted by their device, which lasts as
// long as they do.
func (d *disk) identity(id fileID) uint64 {
	n := id.inode ^ id.born*0x9e3779b97f4a7c15 // odd: different times stay different
	if inMemoryOnly(d.root) {
		n ^= id.device << 32
	}
	return n
}

func (d *disk) Inode(dir, file string) uint64 {
	id, err := statPath(d.path(dir, file))
	if err != nil {
		return 0
	}
	return d.identity(id)
}

// Remove cuts the file: it may stay mapped until the garbage collector has been
// there, and would keep its space.
func (d *disk) Remove(dir, file string) error {
	path := d.path(dir, file)
	f, err := d.openOurs(path, os.O_RDWR)
	if errors.Is(err, errNoDirectory) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if err := os.Remove(path); err != nil {
		return explain(err)
	}
	d.mu.Lock()
	delete(d.made, path)
	d.mu.Unlock()
	if links(f) == 0 { // else it is somebody else's, too
		_ = f.Truncate(0)
	}
	return nil
}

func (d *disk) SetAside(dir, file string) (string, error) {
	name := dir + "-" + file + asideSuffix
	for i := 2; d.there(name); i++ {
		name = dir + "-" + strconv.Itoa(i) + "-" + file + asideSuffix
	}
	if err := os.Rename(d.path(dir, file), d.path(name)); err != nil {
		return "", explain(err)
	}
	d.trim()
	return name, nil
}

func (d *disk) there(name string) bool {
	_, err := os.Lstat(d.path(name))
	return err == nil
}

// trim removes the oldest of the files that were set aside, when they are too many. It
// does not ask how old they are: the clock may be wrong.
func (d *disk) trim() {
	type old struct {
		path string
		time int64 // when it was moved here
	}
	var files []old
	paths, _ := filepath.Glob(d.path("*" + fileSuffix + asideSuffix)) // the pattern is well-formed
	for _, path := range paths {
		f, err := d.openOurs(path, os.O_RDONLY)
		if err != nil {
			continue
		}
		var info unix.Stat_t
		if unix.Fstat(int(f.Fd()), &info) == nil {
			files = append(files, old{path, unix.TimespecToNsec(info.Ctim)})
		}
		f.Close()
	}
	slices.SortFunc(files, func(a, b old) int { return cmp.Compare(b.time, a.time) })
	for _, f := range files[min(asideKept, len(files)):] {
		_ = os.Remove(f.path)
	}
}

// explain says what to do about an error of the file system,
// without its path, which is another one at every generation.
func explain(err error) error {
	var (
		path *fs.PathError
		link *os.LinkError
	)
	switch {
	case errors.As(err, &path):
		err = path.Err
	case errors.As(err, &link):
		err = link.Err
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: %w", errNoDirectory, err)
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fmt.Errorf("the spool's disk is full: %w", err)
	case errors.Is(err, unix.EROFS):
		return fmt.Errorf("the spool is read-only: %w", err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("the spool cannot be written to: %w", err)
	case errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("the spool's file system cannot allocate files ahead; ext4, xfs and tmpfs can: %w", err)
	}
	return fmt.Errorf("the spool: %w", err)
}
