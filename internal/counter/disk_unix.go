//go:build linux || darwin

package counter

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	asideSuffix = ".corrupt"
	asideKept   = 100
	asideAge    = 30 * 24 * time.Hour
	newPrefix   = ".new-"
	tmpSuffix   = ".tmp"
)

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
	d := disk{root}
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
type disk struct{ root string }

func (d disk) path(names ...string) string {
	return filepath.Join(append([]string{d.root}, names...)...)
}

// Own locks the directory before it has its name: whoever sees it there and can
// lock it knows that its owner is dead.
func (d disk) Own(dir string) (func(bool), error) {
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
	if err := os.Rename(d.path(fresh), d.path(dir)); err != nil {
		release(true)
		return nil, explain(err)
	}
	return func(remove bool) {
		if remove {
			_ = os.Remove(d.path(dir))
		}
		release(false)
	}, nil
}

// sweep removes what a process left that died within Own: not what one that is there
// just now has not locked yet.
func (d disk) sweep() {
	left, _ := filepath.Glob(d.path(newPrefix + "*")) // the pattern is well-formed
	for _, path := range left {
		if info, err := os.Lstat(path); err != nil || time.Since(info.ModTime()) < time.Minute {
			continue
		}
		if release, err := d.Claim(filepath.Base(path)); err == nil {
			release(true)
		}
	}
}

// Claim locks the directory itself, until the process ends at the latest.
func (d disk) Claim(dir string) (func(bool), error) {
	f, err := os.Open(d.path(dir))
	if err != nil {
		return nil, explain(err)
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, ErrOwned
		}
		return nil, fmt.Errorf("flock: %w", err)
	}
	var locked, named unix.Stat_t // another may have removed it, and its owner made it anew
	if unix.Fstat(int(f.Fd()), &locked) != nil || unix.Stat(d.path(dir), &named) != nil || locked.Ino != named.Ino || locked.Dev != named.Dev {
		f.Close()
		return nil, errNoDirectory
	}
	return func(remove bool) {
		if remove {
			_ = os.Remove(d.path(dir)) // only if it is empty
		}
		f.Close()
	}, nil
}

func (d disk) Dirs() ([]string, error) {
	entries, err := os.ReadDir(d.root)
	if err != nil {
		return nil, err
	}
	var dirs []string
	for _, e := range entries {
		if e.IsDir() && len(e.Name()) == 32 && strings.Trim(e.Name(), "0123456789abcdef") == "" {
			dirs = append(dirs, e.Name())
		}
	}
	return dirs, nil
}

func (d disk) Files(dir string) ([]string, error) {
	entries, err := os.ReadDir(d.path(dir)) // sorted
	if err != nil {
		return nil, explain(err)
	}
	var files []string
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), tmpSuffix) {
			_ = os.Remove(d.path(dir, e.Name())) // of what was cut off
			continue
		}
		files = append(files, e.Name())
	}
	return files, nil
}

// Create gives the file its name when it has its size: what a kill leaves is no file,
// or one of zeros.
func (d disk) Create(dir, file string, size int64) (Mapping, error) {
	path, tmp := d.path(dir, file), d.path(dir, file+tmpSuffix)
	f, err := os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, explain(err)
	}
	m := &mapping{file: f}
	if err = m.Grow(size); err == nil {
		m.mem, err = unix.Mmap(int(f.Fd()), 0, int(max(size, maxFile)), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	}
	if err == nil {
		var info unix.Stat_t
		if err = unix.Fstat(int(f.Fd()), &info); err == nil {
			m.inode = d.identity(info)
			err = os.Rename(tmp, path)
		}
	}
	if err != nil {
		_ = os.Remove(tmp)
		m.Release()
		return nil, explain(err)
	}
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

func (m *mapping) Close() { m.file.Close() }

func (m *mapping) Release() {
	if m.mem != nil {
		_ = unix.Munmap(m.mem)
	}
	m.file.Close()
}

func (d disk) Write(dir, file string, content []byte) error {
	tmp := d.path(dir, file+tmpSuffix)
	err := os.WriteFile(tmp, content, 0o600)
	if err == nil {
		err = os.Rename(tmp, d.path(dir, file))
	}
	if err != nil {
		_ = os.Remove(tmp)
		return explain(err)
	}
	return nil
}

func (d disk) Open(dir, file string) (io.ReadCloser, uint64, error) {
	f, err := os.OpenFile(d.path(dir, file), os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENXIO) {
		return nil, 0, errIrregular
	}
	if err != nil {
		return nil, 0, explain(err)
	}
	var info unix.Stat_t
	if err = unix.Fstat(int(f.Fd()), &info); err == nil && info.Mode&unix.S_IFMT != unix.S_IFREG {
		err = errIrregular
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, d.identity(info), nil
}

// identity is the inode. File systems in memory count theirs from 1, so there the
// device, which lasts as long as they do, belongs to it.
func (d disk) identity(info unix.Stat_t) uint64 {
	id := uint64(info.Ino)
	if inMemoryOnly(d.root) {
		id ^= uint64(info.Dev) << 32
	}
	return id
}

func (d disk) Inode(dir, file string) uint64 {
	var info unix.Stat_t
	if unix.Lstat(d.path(dir, file), &info) != nil {
		return 0
	}
	return d.identity(info)
}

// Remove cuts the file, under a name that nobody reads any more: it may stay mapped
// until the garbage collector has been there, and would keep its space.
func (d disk) Remove(dir, file string) error {
	tmp := d.path(dir, file+tmpSuffix)
	if err := os.Rename(d.path(dir, file), tmp); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return explain(err)
	}
	_ = os.Truncate(tmp, 0)
	_ = os.Remove(tmp) // or the next Files does
	return nil
}

func (d disk) SetAside(dir, file string) (string, error) {
	name := dir + "-" + file + asideSuffix
	if err := os.Rename(d.path(dir, file), d.path(name)); err != nil {
		return "", err
	}
	now := time.Now()
	_ = os.Chtimes(d.path(name), now, now) // it is kept from now on
	d.trim()
	return name, nil
}

// trim removes files that were set aside, where they are too old or too many.
func (d disk) trim() {
	type old struct {
		path string
		time time.Time
	}
	var files []old
	paths, _ := filepath.Glob(d.path("*" + asideSuffix)) // the pattern is well-formed
	for _, path := range paths {
		if info, err := os.Lstat(path); err == nil {
			files = append(files, old{path, info.ModTime()})
		}
	}
	slices.SortFunc(files, func(a, b old) int { return cmp.Compare(b.time.UnixNano(), a.time.UnixNano()) })
	for i, f := range files {
		if i >= asideKept || time.Since(f.time) > asideAge {
			_ = os.RemoveAll(f.path)
		}
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
