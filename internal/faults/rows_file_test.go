package faults

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/usagekit/usagekit/store"
	"github.com/usagekit/usagekit/store/sqlite"
)

// sqliteFileTaken: what the program has open is not what the path names any more.
// That is said, by its path, and nothing is lost to a file that nobody finds again.
func sqliteFileTaken(r *trial) {
	r.start(setup{interval: 100 * time.Millisecond, kills: r.mode.spools()})
	r.db.SetMaxIdleConns(0) // or this process has the former files open
	path, aside := r.url, r.url+".aside"
	long := r.lasts(5*time.Second, 300*time.Millisecond)
	r.stops = true // the copies are made while it stands still
	r.fault(func() {
		r.must(os.Rename(path, aside))
		r.fileNamed("moved away")
		r.pause(long)
		r.must(os.Rename(aside, path))
		r.well()

		other := must1(sqlite.Open(path + ".other"))(r)
		st := must1(store.New(r.ctx, other, store.Config{}))(r)
		r.must(st.Shutdown(r.ctx))
		r.must(other.Close())
		r.must(os.Rename(path, aside))
		r.must(os.Rename(path+".other", path))
		r.fileNamed("replaced by another")
		r.pause(long)
		r.must(os.Rename(aside, path))
		r.well()

		r.must(os.Remove(path + "-wal"))
		r.eventually(30*time.Second, func() string {
			if _, err := os.Stat(path + "-wal"); err != nil {
				return "there is no -wal again: " + err.Error()
			}
			return ""
		})
		r.well()
		r.pause(long)
		p := r.programs[0]
		if r.mode.spools() { // which leaves what was in a -wal that is gone to nobody
			r.restartKilled(p)
			r.pause(long)
		}

		for _, gone := range []bool{false, true} {
			r.eventually(hangs, func() string { // it may be stopped where it keeps others out
				r.must(p.signal(syscall.SIGSTOP)) // so that the copy lacks nothing
				_, err := r.db.ExecContext(r.ctx, `VACUUM INTO ?`, aside)
				if err == nil {
					return ""
				}
				r.must(p.signal(syscall.SIGCONT))
				r.pause(100*time.Millisecond + time.Duration(r.rng.Int64N(int64(time.Second)))) // to get on
				if err := os.Remove(aside); err != nil && !errors.Is(err, os.ErrNotExist) {
					r.must(err)
				}
				return "no copy: " + err.Error()
			})
			if gone {
				for _, suffix := range []string{"", "-wal", "-shm"} {
					if err := os.Remove(path + suffix); err != nil && (suffix == "" || !errors.Is(err, os.ErrNotExist)) {
						r.must(err) // the others SQLite may have removed itself
					}
				}
				r.must(p.signal(syscall.SIGCONT))
				r.fileNamed("deleted")
				r.must(os.Rename(aside, path))
			} else {
				r.must(os.Rename(aside, path))
				r.must(p.signal(syscall.SIGCONT))
			}
			r.well()
			r.pause(long)
		}
	})
	if r.mode.spools() {
		r.judge(bounded)
	} else {
		r.judge(exactly)
	}
	r.checkIntegrity()

	full := newTrial(r.T, r.bench, r.row, r.mode)
	dir := full.mountedOr("tmpfs", "size=8m")
	if dir == "" {
		r.note("not tried where nothing can be mounted: a full disk")
		return
	}
	full.start(setup{interval: 100 * time.Millisecond, database: dir})
	full.db.SetMaxIdleConns(0)
	full.fault(func() {
		ballast := filepath.Join(dir, "ballast")
		full.must(fill(ballast))
		full.fileNamed("full")
		full.pause(long)
		full.must(os.Remove(ballast))
		full.well()
		if err := readOnly(dir, true); err != nil { // files are open for writing
			full.note("not read-only: %v", err)
		} else {
			full.fileNamed("read-only")
			full.must(readOnly(dir, false))
			full.well()
		}
	})
	full.judge(exactly)
	full.checkIntegrity()
	r.notes = append(r.notes, full.notes...)
	r.note("on a full disk: %d of %d", full.last.counted[requestsTotal], full.last.attempted[requestsTotal])
}

// mountedOr is mounted, and "" where that is not permitted.
func (r *trial) mountedOr(kind, options string) string {
	r.Helper()
	probe := r.TempDir()
	if err := mount(kind, probe, options); err != nil {
		r.Logf("%s cannot be mounted: %v", kind, err)
		return ""
	}
	r.must(unmount(probe))
	return r.mounted(kind, options)
}

// fileNamed waits until health says what is wrong with which file.
func (r *trial) fileNamed(what string) {
	r.Helper()
	took := r.eventually(30*time.Second, func() string {
		h, err := r.programs[0].health()
		if said := strings.Join(h.Reasons, "\n"); err != nil || !strings.Contains(said, r.url) {
			return what + ": health does not name the file: " + said
		}
		return ""
	})
	r.note("%s: said after %d ms", what, took.Milliseconds())
}

// well waits until health has nothing to say.
func (r *trial) well() {
	r.Helper()
	r.eventually(30*time.Second, func() string {
		h, err := r.programs[0].health()
		if err != nil || len(h.Reasons) > 0 {
			return "not well: " + strings.Join(h.Reasons, "\n")
		}
		return ""
	})
}

func (r *trial) checkIntegrity() {
	r.Helper()
	var check string
	r.must(r.db.QueryRowContext(r.ctx, `PRAGMA integrity_check`).Scan(&check))
	if check != "ok" {
		r.Errorf("integrity_check: %s", check)
	}
}
