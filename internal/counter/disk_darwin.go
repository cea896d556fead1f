package counter

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// suitable tells whether a file that was allocated stays so on this file system.
func suitable(path string) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return explain(err)
	}
	if name := unix.ByteSliceToString(fs.Fstypename[:]); name != "apfs" && name != "hfs" {
		return fmt.Errorf("the spool's file system (%s) is not one that keeps what it allocated: apfs and hfs are", name)
	}
	return nil
}

func allocate(f *os.File, size int64) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	more := unix.Fstore_t{Flags: unix.F_ALLOCATEALL, Posmode: unix.F_PEOFPOSMODE, Length: size - info.Size()}
	if err := unix.FcntlFstore(f.Fd(), unix.F_PREALLOCATE, &more); err != nil {
		return err
	}
	return f.Truncate(size)
}

// inMemoryOnly tells whether the file system is gone when the machine restarts.
func inMemoryOnly(string) bool { return false }

func statFile(f *os.File) (fileID, error) {
	var info unix.Stat_t
	err := unix.Fstat(int(f.Fd()), &info)
	return idOf(info), err
}

func statPath(path string) (fileID, error) {
	var info unix.Stat_t
	err := unix.Lstat(path, &info)
	return idOf(info), err
}

func idOf(info unix.Stat_t) fileID {
	return fileID{inode: info.Ino, device: uint64(info.Dev), born: uint64(unix.TimespecToNsec(info.Btim))}
}
