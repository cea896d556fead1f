package faults

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"
)

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

// mountNew makes a file system in a new file of size, as truncate takes it, and mounts
// it at dir.
func mountNew(kind, image, dir, size string) error {
	for _, command := range [][]string{
		{"truncate", "-s", size, image},
		{"mkfs." + kind, image},
		{"mount", "-t", kind, "-o", "loop", image, dir},
	} {
		if text, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%v: %w: %s", command, err, text)
		}
	}
	return nil
}

// freeze has whoever writes to the file system at dir wait, or no more: as the tools do
// that take snapshots.
func freeze(dir string, yes bool) error {
	const fiFreeze, fiThaw = 0xc0045877, 0xc0045878
	request := uintptr(fiThaw)
	if yes {
		request = fiFreeze
	}
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, f.Fd(), request, 0); errno != 0 {
		return errno
	}
	return nil
}
