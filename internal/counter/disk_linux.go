package counter

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// overlayfs is the type of what is mostly a container's root, over another file system.
const overlayfs = 0x794c7630

// suitable tells whether a file that was allocated stays so on this file system. On
// btrfs, a write to allocated space may fail, and then a touch of the mapping is a
// fault that has taken whole hosts down, although fallocate had said yes.
//
// An overlay file system has the layer below it allocate and map the files, so it keeps
// what that keeps, and tells all about it but what it is: btrfs is known by having no
// number of inodes, ZFS by what it says yes to and does not do (see allocate). What
// goes through a server, NFS, 9p, virtiofs and FUSE, may lose what it allocated, and a
// page that the server does not bring is a wait, or a fault.
func suitable(path string) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return explain(err)
	}
	switch kind := uint32(fs.Type); {
	case kind == unix.EXT4_SUPER_MAGIC, kind == unix.XFS_SUPER_MAGIC, kind == unix.TMPFS_MAGIC:
		return nil
	case kind == overlayfs && fs.Files > 0:
		return nil
	}
	return fmt.Errorf("the spool's file system (type %#x) is not one that keeps what it allocated: ext4, xfs, tmpfs, and overlays on them are; mount one of them there", uint32(fs.Type))
}

// allocate allocates size bytes, for certain.
func allocate(f *os.File, size int64) error {
	for {
		err := unix.Fallocate(int(f.Fd()), 0, 0, size)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		var info unix.Stat_t
		if err == nil {
			err = unix.Fstat(int(f.Fd()), &info)
		}
		if err == nil && info.Blocks*512 < size { // ZFS only looks whether there is space
			return fmt.Errorf("%d bytes were allocated of %d: %w", info.Blocks*512, size, unix.EOPNOTSUPP)
		}
		return err
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
