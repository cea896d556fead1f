package faults

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/usagekit/usagekit/store"
	"github.com/usagekit/usagekit/store/postgres"
)

func noFault(r *trial) {
	r.start(setup{})
	r.fault(func() { r.pause(r.lasts(30*time.Second, 4*time.Second)) })
	r.judge(exactly)
}

func restart(r *trial) {
	r.start(setup{ownServer: true})
	r.fault(func() {
		r.must(r.server.StopImmediate())
		r.pause(r.lasts(30*time.Second, 3*time.Second))
		r.must(r.server.Restart())
	})
	r.judge(exactly)
	r.atMost(10*time.Second, "after the server's return", r.drained)
}

func killServer(r *trial) {
	r.start(setup{ownServer: true})
	r.killServers()
	r.judge(exactly)
}

// killUnsynchronous: a server that acknowledges what it has not written loses it
// when it is killed, unless it is told better.
func killUnsynchronous(r *trial) {
	r.start(setup{ownServer: true})
	r.exec(`ALTER SYSTEM SET synchronous_commit = off`)
	r.exec(`SELECT pg_reload_conf()`)
	r.killServers()
	r.judge(exactly)
	var off string
	r.must(r.db.QueryRowContext(r.ctx, `SHOW synchronous_commit`).Scan(&off))
	if off != "off" {
		r.Errorf("synchronous_commit was %s", off)
	}
}

func (r *trial) killServers() {
	r.Helper()
	r.fault(func() {
		for range 5 {
			r.pause(r.lasts(4*time.Second, time.Second))
			r.must(r.server.Kill())
			r.pause(r.lasts(time.Second, 100*time.Millisecond))
			r.must(r.server.Restart())
		}
	})
}

func pauseServer(r *trial) {
	r.start(setup{ownServer: true})
	db := must1(postgres.Open(r.url))(r)
	defer db.Close()
	other := must1(store.New(r.ctx, db, store.Config{Logger: slog.New(slog.NewTextHandler(io.Discard, nil))}))(r)
	r.fault(func() {
		r.must(r.server.Pause())
		defer r.server.Resume()
		other.Inc("feature.other.used")
		r.pause(time.Second) // it is being sent
		r.shutdown(other, 2*time.Second)
		r.pause(r.lasts(25*time.Second, 2*time.Second))
	})
	r.judge(exactly)
}

// shutdown ends a store of this process within limit, which must say what it could not store.
func (r *trial) shutdown(s *store.Store, limit time.Duration) {
	r.Helper()
	ctx, cancel := context.WithTimeout(r.ctx, limit)
	defer cancel()
	start := time.Now()
	err := s.Shutdown(ctx)
	took := time.Since(start)
	r.atMost(limit+500*time.Millisecond, fmt.Sprintf("Shutdown(%v) took", limit), took)
	if lost := (*store.UndeliveredError)(nil); !errors.As(err, &lost) {
		r.Errorf("Shutdown without the server: %v", err)
	}
}

// pauseLeader stops whoever folds in the middle of its transaction: first the
// program, then the server's process that works for it.
func pauseLeader(r *trial) {
	r.start(setup{ownServer: true, proxied: true})
	r.stops = true
	r.fault(func() {
		leader := r.inMidFold(func(i, _ int) { r.must(r.programs[i].signal(syscall.SIGSTOP)) })
		r.atMost(30*time.Second, "another folded after", r.untilFolded())
		r.must(r.programs[leader.program].signal(syscall.SIGCONT))

		leader = r.inMidFold(func(_, backend int) { r.must(r.server.PauseBackend(backend)) })
		defer r.server.ResumeBackend(leader.backend)
		r.insertsGoOn(r.lasts(22*time.Second, 3*time.Second))
		r.must(r.server.ResumeBackend(leader.backend))
		r.atMost(5*time.Second, "the backend went on, and folded after", r.untilFolded())
	})
	r.judge(exactly)
}

// folding is a fold that is about to write the totals.
type folding struct{ program, backend int }

// inMidFold calls stop when a program has begun a fold, and returns which.
func (r *trial) inMidFold(stop func(program, backend int)) folding {
	r.Helper()
	var once sync.Once
	caught := make(chan folding, 1)
	for i, p := range r.proxies {
		p.set(func(s statement) verdict {
			if strings.HasPrefix(s.text, "INSERT INTO usage_metrics") {
				once.Do(func() {
					stop(i, s.backend)
					caught <- folding{i, s.backend}
				})
			}
			return verdict{}
		})
	}
	defer func() {
		for _, p := range r.proxies {
			p.set(nil)
		}
	}()
	select {
	case f := <-caught:
		return f
	case <-time.After(hangs):
		r.Fatal("nobody folds")
		return folding{}
	}
}

// total is how many requests are folded.
func (r *trial) total() int64 {
	r.Helper()
	return must1(readCounts(r.ctx, r.db))(r)[requestsTotal]
}

// untilFolded waits until the total grows, and returns how long that took.
func (r *trial) untilFolded() time.Duration {
	r.Helper()
	was := r.total()
	return r.eventually(hangs, func() string {
		if r.total() == was {
			return "nobody folded"
		}
		return ""
	})
}

// insertsGoOn checks that the inbox fills, and is not folded, for as long.
func (r *trial) insertsGoOn(d time.Duration) {
	r.Helper()
	total, before := r.total(), must1(waiting(r.ctx, r.db))(r)
	r.pause(d)
	r.eventually(hangs, func() string {
		if now := must1(waiting(r.ctx, r.db))(r); now <= before {
			return fmt.Sprintf("the inbox has %d batches, %d before: inserts do not go on", now, before)
		}
		return ""
	})
	if now := r.total(); now != total {
		r.Errorf("%d requests were folded, although the fold stands still", now-total)
	}
}

func terminate(r *trial) {
	r.start(setup{})
	r.fault(func() {
		n := 0
		for until := time.Now().Add(r.lasts(20*time.Second, 4*time.Second)); time.Now().Before(until); {
			res, err := r.db.ExecContext(r.ctx, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() ORDER BY random() LIMIT 1`)
			r.must(err)
			if ended, err := res.RowsAffected(); err == nil {
				n += int(ended)
			}
			r.pause(50 * time.Millisecond)
		}
		r.note("%d connections terminated", n)
	})
	r.judge(exactly)
}

// refusedByDatabase: rights, a password, a disk that is full. The role is the one
// that dbtest's server asks for a password.
func refusedByDatabase(r *trial) {
	const role = "with_password"
	r.start(setup{ownServer: true, proxied: true, role: role, password: "right"})
	long := r.lasts(12*time.Second, 2*time.Second)
	end := `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '` + role + `'`
	r.fault(func() {
		r.exec(`REVOKE INSERT ON ALL TABLES IN SCHEMA public FROM ` + role)
		r.pause(long)
		r.exec(`GRANT INSERT ON ALL TABLES IN SCHEMA public TO ` + role)

		r.exec(`ALTER ROLE ` + role + ` PASSWORD 'other'`)
		r.exec(end)
		r.pause(long)
		r.exec(`ALTER ROLE ` + role + ` PASSWORD 'right'`)

		r.exec(`ALTER ROLE ` + role + ` NOLOGIN`)
		r.exec(end)
		r.pause(long)
		r.exec(`ALTER ROLE ` + role + ` LOGIN`)

		for _, p := range r.proxies { // as a full disk does
			p.set(func(s statement) verdict {
				if strings.HasPrefix(s.text, "INSERT") {
					return verdict{cut: fail, code: "53100"}
				}
				return verdict{}
			})
		}
		r.pause(long)
		for _, p := range r.proxies {
			p.set(nil)
		}
	})
	r.judge(exactly)
}
