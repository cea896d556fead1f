package faults

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
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

		r.must(os.RemoveAll(r.spool))
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

// otherFileSystems: where a full disk would be the host's crash, counts stay in
// memory, and health says so; on tmpfs they outlive a kill.
func otherFileSystems(r *trial) {
	ram := r.mounted("ramfs", "")
	r.start(setup{spool: filepath.Join(ram, "spool"), noSpool: true})
	r.fault(func() {
		r.degraded(true)
		r.pause(r.lasts(5*time.Second, time.Second))
	})
	r.judge(exactly)
	other := newTrial(r.T, r.bench, r.row, r.mode)
	other.start(setup{spool: filepath.Join(r.mounted("tmpfs", "size=16m"), "spool"), kills: true})
	other.fault(func() {
		for range int(r.lasts(10, 3)) {
			other.pause(time.Duration(r.rng.Int64N(int64(time.Second))))
			other.restartKilled(other.programs[0])
		}
	})
	other.judge(bounded)
	r.note("tmpfs, %d kills: A %d, N %d, T %d", other.kills, other.last.answered[requestsTotal], other.last.counted[requestsTotal], other.last.attempted[requestsTotal])
}
