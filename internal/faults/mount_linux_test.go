package faults

import "syscall"

// mount mounts a file system of the kernel's own at dir.
func mount(kind, dir, options string) error {
	return syscall.Mount(kind, dir, kind, 0, options)
}

func unmount(dir string) error { return syscall.Unmount(dir, syscall.MNT_DETACH) }

// readOnly makes what is mounted at dir so, or no more.
func readOnly(dir string, yes bool) error {
	flags := uintptr(syscall.MS_REMOUNT)
	if yes {
		flags |= syscall.MS_RDONLY
	}
	return syscall.Mount("", dir, "", flags, "")
}
