package faults

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// mounted mounts a file system for the length of the trial.
func (r *trial) mounted(kind, options string) string {
	r.Helper()
	dir := filepath.Join(r.TempDir(), kind)
	r.must(os.Mkdir(dir, 0o700))
	if err := mount(kind, dir, options); err != nil {
		r.notRun(fmt.Sprintf("%s cannot be mounted: %v", kind, err))
	}
	r.Cleanup(func() {
		if err := unmount(dir); err != nil {
			r.Errorf("unmount: %v", err)
		}
	})
	return dir
}

// degraded waits until the first program says that its spool is not used, or that
// it is.
func (r *trial) degraded(want bool) {
	r.Helper()
	took := r.eventually(hangs, func() string {
		h, err := r.programs[0].health()
		said := strings.Contains(strings.Join(h.Reasons, "\n"), "in memory only")
		if err != nil || said != want {
			return fmt.Sprintf("health is %q, %v; want a degraded spool: %v", h.Reasons, err, want)
		}
		return ""
	})
	r.note("degraded %v after %.1f s", want, took.Seconds())
}

// fill writes into a file until there is no space left.
func fill(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for block := make([]byte, 4096); ; {
		if _, err := f.Write(block); err != nil {
			if errors.Is(err, syscall.ENOSPC) {
				return nil
			}
			return err
		}
	}
}

// fullSpool: the disk is full from the start, then free, then filled again.
func fullSpool(r *trial) {
	dir := r.mounted("tmpfs", "size=2m")
	ballast := filepath.Join(dir, "ballast")
	r.must(fill(ballast))
	r.start(setup{spool: filepath.Join(dir, "spool"), noSpool: true})
	r.fault(func() {
		r.degraded(true)
		r.pause(r.lasts(10*time.Second, time.Second))
		r.must(os.Remove(ballast))
		r.degraded(false)
		r.must(fill(ballast)) // with files there, which may do
		r.pause(r.lasts(5*time.Second, time.Second))
		r.must(os.Remove(ballast))
		r.degraded(false)
	})
	r.judge(exactly)
}

// spoolTakenAway: what is in the way of the spool costs safety, never a count
// while the process lives.
func spoolTakenAway(r *trial) {
	mounted := r.mounted("tmpfs", "size=16m")
	r.start(setup{spool: filepath.Join(mounted, "spool")})
	long := r.lasts(8*time.Second, 2*time.Second)
	r.fault(func() {
		r.must(os.Chmod(r.spool, 0)) // which root does not notice
		r.pause(long)
		r.must(os.Chmod(r.spool, 0o700))

		if err := readOnly(mounted, true); err != nil { // files are open for writing
			r.note("not read-only: %v", err)
		} else {
			r.pause(long)
			r.must(readOnly(mounted, false))
		}

		for _, file := range r.spooled() {
			if err := os.Truncate(file, 0); err != nil && !errors.Is(err, os.ErrNotExist) {
				r.must(err)
			}
		}
		r.pause(long)

		for r.ctx.Err() == nil && os.RemoveAll(r.spool) != nil { // a file may be made in it meanwhile
		}
		r.pause(long)
	})
	r.judge(exactly)
	small := newTrial(r.T, r.bench, r.row, r.mode)
	small.start(setup{limit: 512, noSpool: true}) // less than the spool's first file takes
	small.fault(func() { small.pause(long) })
	small.judge(exactly)
	r.note("with ulimit -f: %d of %d", small.last.counted[requestsTotal], small.last.attempted[requestsTotal])
}

// copiedSpool: a second program on the same directory, one on a copy of it, made
// while it lives and when it is dead, and one of another database on what a dead
// program left.
func copiedSpool(r *trial) {
	r.start(setup{programs: 2, kills: true})
	first := r.programs[0]
	r.fault(func() {
		for range 3 {
			r.beside(r.copied(), r.url, "")
		}
		r.must(first.kill())
		r.kills++
		r.beside(r.copied(), r.url, "")
		r.beside(r.spool, r.server.NewDatabase(r), "for the database with the id")
		r.must(first.start())
		r.pause(time.Second)
	})
	r.judge(bounded)
}

// copied copies the spool as it is: files come and go meanwhile.
func (r *trial) copied() (dir string) {
	r.Helper()
	for range 100 {
		dir = r.TempDir()
		err := os.CopyFS(dir, os.DirFS(r.spool))
		if err == nil {
			return dir
		}
		if !errors.Is(err, os.ErrNotExist) {
			r.must(err)
		}
	}
	return dir // in part
}

// beside runs a program that is asked nothing, on a spool and a database, until it
// has said that.
func (r *trial) beside(spool, databaseURL, that string) {
	r.Helper()
	p := &program{binary: r.binary, dir: r.TempDir()}
	p.args = []string{"-addr", "127.0.0.1:0", "-db", databaseURL, "-flush", "50ms", "-spool", spool}
	r.must(p.start())
	r.pause(2 * time.Second)
	r.eventually(hangs, func() string {
		if text := must1(p.output())(r); !strings.Contains(text, that) {
			return fmt.Sprintf("the program beside does not say %q:\n%s", that, text)
		}
		return ""
	})
	if status, err := p.stop(); status != 0 || err != nil {
		r.Errorf("the program beside: exit status %d, %v", status, err)
	}
}

// mountedNew mounts a new file system on a loop device for the length of the trial.
func (r *trial) mountedNew(kind, size string) string {
	r.Helper()
	top := r.TempDir()
	dir := filepath.Join(top, kind)
	r.must(os.Mkdir(dir, 0o700))
	if err := mountNew(kind, filepath.Join(top, "image"), dir, size); err != nil {
		r.notRun(fmt.Sprintf("%s cannot be mounted: %v", kind, err))
	}
	r.Cleanup(func() {
		if err := unmount(dir); err != nil {
			r.Errorf("unmount: %v", err)
		}
	})
	return dir
}

// overlaid mounts a file system as the root of a container is one, over dir.
func (r *trial) overlaid(dir string) string {
	r.Helper()
	for _, name := range []string{"lower", "upper", "work"} {
		r.must(os.Mkdir(filepath.Join(dir, name), 0o700))
	}
	return r.mounted("overlay", fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work", dir))
}

// otherFileSystems: where a full disk would be the host's crash, counts stay in
// memory, and health says so; on a tmpfs and on an overlay, as a container's root is
// one, they outlive a kill.
func otherFileSystems(r *trial) {
	untrusted := map[string]func() string{
		"ramfs":            func() string { return r.mounted("ramfs", "") },
		"overlay on btrfs": func() string { return r.overlaid(r.mountedNew("btrfs", "128M")) },
	}
	trusted := map[string]func() string{
		"tmpfs":           func() string { return r.mounted("tmpfs", "size=16m") },
		"overlay on ext4": func() string { return r.overlaid(r.mountedNew("ext4", "64M")) },
	}
	if r.full { // else TestFileSystems has them, without a database
		untrusted["btrfs"] = func() string { return r.mountedNew("btrfs", "128M") }
		trusted["overlay on tmpfs"] = func() string { return r.overlaid(r.mounted("tmpfs", "size=16m")) }
		trusted["overlay on xfs"] = func() string { return r.overlaid(r.mountedNew("xfs", "320M")) }
	}
	part := r
	for _, name := range slices.Sorted(maps.Keys(untrusted)) {
		part.start(setup{spool: filepath.Join(untrusted[name](), "spool"), noSpool: true})
		part.fault(func() {
			part.degraded(true)
			part.pause(r.lasts(5*time.Second, time.Second))
		})
		part.judge(exactly)
		part = newTrial(r.T, r.bench, r.row, r.mode)
	}
	for _, name := range slices.Sorted(maps.Keys(trusted)) {
		part := newTrial(r.T, r.bench, r.row, r.mode)
		part.start(setup{spool: filepath.Join(trusted[name](), "spool"), kills: true})
		part.fault(func() {
			for range int(r.lasts(10, 3)) {
				part.pause(time.Duration(r.rng.Int64N(int64(time.Second))))
				part.restartKilled(part.programs[0])
			}
		})
		part.judge(bounded)
		r.note("%s, %d kills: A %d, N %d, T %d", name, part.kills, part.last.answered[requestsTotal], part.last.counted[requestsTotal], part.last.attempted[requestsTotal])
	}
}

// frozenSpool: what counts in files waits for as long as their file system is frozen,
// all of the process with it; nothing is lost. On a tmpfs nobody waits for the disk.
func frozenSpool(r *trial) {
	disk := r.mountedNew("ext4", "64M")
	for i, c := range []struct{ name, spool string }{{"on the disk", disk}, {"on a tmpfs", r.mounted("tmpfs", "size=16m")}} {
		part := r
		if i > 0 {
			part = newTrial(r.T, r.bench, r.row, r.mode)
		}
		part.stops = true // what it costs is said, and not held against it
		part.start(setup{spool: filepath.Join(c.spool, "spool")})
		part.fault(func() {
			for range int(r.lasts(3, 1)) {
				r.must(freeze(disk, true))
				thawed := false
				defer func() {
					if !thawed {
						_ = freeze(disk, false)
					}
				}()
				part.pause(r.lasts(5*time.Second, 2*time.Second))
				r.must(freeze(disk, false))
				thawed = true
				part.pause(time.Second)
			}
		})
		worst := part.load.quantile(1, part.broke, part.healed)
		part.judge(exactly)
		r.note("frozen, the spool %s: p99 %.1f ms, worst %.1f ms", c.name, ms(part.load.quantile(0.99, part.broke, part.healed)), ms(worst))
	}
}

// foreignInSpool: others have files, directories and links in the spool, and a copy of
// it by hard links is adopted by somebody else, while the program is killed.
func foreignInSpool(r *trial) {
	r.start(setup{kills: true, interval: 2 * time.Second})
	photo := []byte("\xff\xd8\xff photo")
	r.others = map[string]string{}
	r.fault(func() {
		for i := range 50 {
			album := filepath.Join(r.spool, fmt.Sprintf("%032x", i))
			r.foreign(filepath.Join(album, "photo.jpg"), photo)
			r.foreign(filepath.Join(album, fmt.Sprintf("%019d.counts", i+1)), make([]byte, 4096))
			r.foreign(filepath.Join(r.spool, fmt.Sprintf("photo-%d.corrupt", i)), photo)
		}
		r.must(os.Mkdir(filepath.Join(r.spool, strings.Repeat("e", 32)), 0o700))
		for range int(r.lasts(10, 3)) {
			r.pause(time.Duration(r.rng.Int64N(int64(time.Second))))
			for _, dir := range must1(filepath.Glob(filepath.Join(r.spool, "usagekit-*")))(r) {
				if err := os.WriteFile(filepath.Join(dir, "photo.jpg"), photo, 0o600); err == nil { // else it has just gone
					r.others[filepath.Join(dir, "photo.jpg")] = string(photo)
				}
			}
			r.beside(r.linked(), r.url, "") // with what is counted in still, and what is sealed meanwhile
			r.restartKilled(r.programs[0])
		}
	})
	r.judge(bounded)
	for path, was := range r.others {
		if now, err := os.ReadFile(path); err != nil || string(now) != was {
			r.Errorf("%s is not what it was: %d bytes, %v", path, len(now), err)
		}
	}
	if info, err := os.Stat(filepath.Join(r.spool, strings.Repeat("e", 32))); err != nil || !info.IsDir() {
		r.Errorf("an empty directory of somebody else's: %v", err)
	}
	said := strings.Count(must1(r.programs[0].output())(r), "directory=. ")
	if starts := r.kills + 1; said < 1 || said > starts {
		r.Errorf("in %d starts it was said %d times that the spool has others' files", starts, said)
	}
	r.note("%d kills, %d files of others", r.kills, len(r.others))
}

// foreign puts a file of somebody else's into the spool.
func (r *trial) foreign(path string, content []byte) {
	r.Helper()
	r.must(os.MkdirAll(filepath.Dir(path), 0o700))
	r.must(os.WriteFile(path, content, 0o600))
	r.others[path] = string(content)
}

// linked copies the writers' directories by hard links, as they are.
func (r *trial) linked() (dir string) {
	r.Helper()
	dir = must1(os.MkdirTemp(filepath.Dir(r.spool), "linked"))(r)
	for _, from := range must1(filepath.Glob(filepath.Join(r.spool, "usagekit-*", "*.counts")))(r) {
		to := filepath.Join(dir, strings.TrimPrefix(from, r.spool))
		r.must(os.MkdirAll(filepath.Dir(to), 0o700))
		if err := os.Link(from, to); err != nil && !errors.Is(err, os.ErrNotExist) {
			r.must(err)
		}
	}
	return dir
}
