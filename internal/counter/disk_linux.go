package counter

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// suitable tells whether a file that was allocated stays so on this file system. On
// btrfs, a write to allocated space may fail, and then a touch of the mapping is a
// fault that has taken whole hosts down, although fallocate had said yes.
func suitable(path string) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return explain(err)
	}
	switch uint32(fs.Type) {
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.TMPFS_MAGIC:
		return nil
	}
	return fmt.Errorf("the spool's file system (type %#x) is not one that keeps what it allocated: ext4, xfs and tmpfs are; mount one of them there", uint32(fs.Type))
}

func allocate(f *os.File, size int64) error {
	for {
		if err := unix.Fallocate(int(f.Fd()), 0, 0, size); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// inMemoryOnly tells whether the file system is gone when the machine restarts.
func inMemoryOnly(path string) bool {
	var fs unix.Statfs_t
	return unix.Statfs(path, &fs) == nil && uint32(fs.Type) == unix.TMPFS_MAGIC
}

func statFile(f *os.File) (fileID, error) {
	id, err := statx(int(f.Fd()), "", unix.AT_EMPTY_PATH)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) { // as some sandboxes have it
		var info unix.Stat_t
		err = unix.Fstat(int(f.Fd()), &info)
		id = fileID{inode: info.Ino, device: uint64(info.Dev)}
	}
	return id, err
}

func statPath(path string) (fileID, error) {
	id, err := statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
		var info unix.Stat_t
		err = unix.Lstat(path, &info)
		id = fileID{inode: info.Ino, device: uint64(info.Dev)}
	}
	return id, err
}

func statx(fd int, path string, flags int) (fileID, error) {
	var info unix.Statx_t
	if err := unix.Statx(fd, path, flags, unix.STATX_INO|unix.STATX_BTIME, &info); err != nil {
		return fileID{}, err
	}
	id := fileID{inode: info.Ino, device: unix.Mkdev(info.Dev_major, info.Dev_minor)}
	if info.Mask&unix.STATX_BTIME != 0 {
		id.born = uint64(info.Btime.Sec)*1e9 + uint64(info.Btime.Nsec)
	}
	return id, nil
}
