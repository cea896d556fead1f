package counter

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// mounted mounts a new file system of this kind for the length of the test: ext4, xfs
// or btrfs on a loop device of megabytes MB, or tmpfs. Where that cannot be, the test is
// skipped.
func mounted(t *testing.T, kind string, megabytes string) (dir string) {
	t.Helper()
	top := t.TempDir()
	dir = filepath.Join(top, kind)
	mount := []string{"mount", "-t", "tmpfs", "-o", "size=" + megabytes + "m", "tmpfs", dir}
	if kind != "tmpfs" {
		image := filepath.Join(top, "image")
		run(t, "truncate", "-s", megabytes+"M", image)
		run(t, "mkfs."+kind, image)
		mount = []string{"mount", "-t", kind, "-o", "loop", image, dir}
	}
	return mountAt(t, dir, mount...)
}

// overlaid mounts an overlay file system, as the root of a container is one, whose
// upper layer is in dir.
func overlaid(t *testing.T, dir string) (root string) {
	t.Helper()
	for _, name := range []string{"lower", "upper", "work"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	root = filepath.Join(t.TempDir(), "root")
	layers := "lowerdir=" + dir + "/lower,upperdir=" + dir + "/upper,workdir=" + dir + "/work"
	return mountAt(t, root, "mount", "-t", "overlay", "-o", layers, "overlay", root)
}

func mountAt(t *testing.T, dir string, mount ...string) string {
	t.Helper()
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	run(t, mount...)
	t.Cleanup(func() {
		if text, err := exec.Command("umount", "--lazy", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, text)
		}
	})
	return dir
}

// run runs a command that makes what the test needs; without it, the test is skipped.
func run(t *testing.T, command ...string) {
	t.Helper()
	if text, err := exec.CommandContext(t.Context(), command[0], command[1:]...).CombinedOutput(); err != nil {
		t.Skipf("not run: %s: %v: %s", strings.Join(command, " "), err, text)
	}
}

// inodeOf is the number alone.
func inodeOf(t *testing.T, path string) uint64 {
	t.Helper()
	var info unix.Stat_t
	if err := unix.Lstat(path, &info); err != nil {
		t.Fatal(err)
	}
	return info.Ino
}

// A copy on another new disk may have the very number that the original has.
func TestCopyOfTheSameInodeNumber(t *testing.T) {
	root, copied := mounted(t, "ext4", "16"), mounted(t, "ext4", "16")
	s := openSpool(t, filepath.Join(root, "spool"))
	s.Add("feature.a.used", 10)
	run(t, "cp", "-a", filepath.Join(root, "spool"), copied)
	path := filepath.Join("spool", s.spool.dir.name, fileName(1))
	if a, b := inodeOf(t, filepath.Join(root, path)), inodeOf(t, filepath.Join(copied, path)); a != b {
		t.Skipf("not run: the original has inode %d, the copy %d", a, b)
	}
	got := arrived{}
	other := got.adopt(t, filepath.Join(copied, "spool"))
	if len(got) != 0 || other.spool.Aside() != 1 || other.lost != 0 {
		t.Errorf("counted %v; %d set aside, %d lost", got, other.spool.Aside(), other.lost)
	}
	s.die()
	if got.adopt(t, filepath.Join(root, "spool")); got.counts()["feature.a.used"] != 10 {
		t.Errorf("counted %v", got)
	}
}

// The same directory under another path is the same directory.
func TestBindMountOfALivingSpool(t *testing.T) {
	root := t.TempDir()
	s, got := openSpool(t, root), arrived{}
	s.Add("feature.a.used", 10)
	bound := filepath.Join(t.TempDir(), "bound")
	mountAt(t, bound, "mount", "--bind", root, bound)
	got.adopt(t, bound)
	if len(got) != 0 {
		t.Errorf("a living process was robbed of %v", got)
	}
	s.die()
	got.adopt(t, bound)
	if n := got.adopt(t, root); got.counts()["feature.a.used"] != 10 || len(n.said) != 0 {
		t.Errorf("counted %v; said %q", got, n.said)
	}
}
