package faults

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"time"
)

// cutter cuts COMMITs of flushes and folds off, in four ways, evenly.
type cutter struct {
	mu   sync.Mutex
	rng  *rand.Rand
	did  int
	long time.Duration // of every 20th black hole
}

const ways = 4

func (c *cutter) script(s statement) verdict {
	if !s.sends() && !s.folds() {
		return verdict{}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.rng.IntN(5) < 3 {
		return verdict{} // some must come through
	}
	c.did++
	switch c.did % ways {
	case 0:
		return verdict{cut: before, by: byFIN}
	case 1:
		return verdict{cut: after, by: byFIN}
	case 2:
		return verdict{cut: after, by: byRST}
	}
	hold := 100 * time.Millisecond
	if c.did%(20*ways) == 3 {
		hold = c.long
	}
	return verdict{cut: after, by: byBlackHole, hold: hold}
}

// cuts is how many COMMITs were cut off.
func (c *cutter) cuts() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.did
}

func cutCommits(r *trial) {
	r.start(setup{proxied: true, interval: 20 * time.Millisecond})
	c := &cutter{rng: r.rng, long: r.lasts(3*time.Second, time.Second)}
	want := ways * int(r.lasts(200, 4))
	r.fault(func() {
		for _, p := range r.proxies {
			p.set(c.script)
		}
		r.eventually(r.lasts(6*time.Minute, 45*time.Second), func() string {
			if n := c.cuts(); n < want {
				return fmt.Sprintf("%d of %d COMMITs were cut off", n, want)
			}
			return ""
		})
		for _, p := range r.proxies {
			p.set(nil)
		}
	})
	r.judge(exactly)
}

// refuseStatements: lib/pq 1.12.0 to 1.12.3 can keep a connection in its pool that
// answers nothing but errors from then on.
func refuseStatements(r *trial) {
	const interval = 500 * time.Millisecond
	r.start(setup{proxied: true, interval: interval})
	var (
		mu      sync.Mutex
		n       int
		streak  int       // refusals since a flush came through
		refused time.Time // the first of them
		flushes int       // that came through after one
		slowest time.Duration
	)
	r.fault(func() {
		r.proxies[0].set(func(s statement) verdict {
			mu.Lock()
			defer mu.Unlock()
			if n++; n%20 == 0 {
				if streak++; streak == 1 {
					refused = time.Now()
				}
				return verdict{cut: refuse}
			}
			if s.sends() && streak > 0 {
				if streak == 1 { // what is refused again backs off for longer
					slowest = max(slowest, time.Since(refused))
				}
				streak = 0
				flushes++
			}
			return verdict{}
		})
		r.pause(r.lasts(30*time.Second, 4*time.Second))
		r.eventually(hangs, func() string {
			mu.Lock()
			defer mu.Unlock()
			if flushes == 0 {
				return "no flush came through after an error"
			}
			return ""
		})
		r.proxies[0].set(nil)
	})
	r.judge(exactly)
	r.atMost(2*interval, "the next flush after", slowest)
}

func fourPrograms(r *trial) {
	r.start(setup{programs: 4, perSecond: 400})
	before := r.deadlocks()
	r.fault(func() { r.pause(r.lasts(30*time.Second, 4*time.Second)) })
	r.judge(exactly)
	if n := r.deadlocks() - before; n != 0 {
		r.Errorf("%d deadlocks", n)
	}
}

// deadlocks is how many the database had.
func (r *trial) deadlocks() (n int64) {
	r.Helper()
	r.must(r.db.QueryRowContext(r.ctx, `SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()`).Scan(&n))
	return n
}

func slowLine(r *trial) {
	r.start(setup{proxied: true})
	r.fault(func() {
		r.proxies[0].slow(200*time.Millisecond, 50_000)
		r.pause(r.lasts(30*time.Second, 5*time.Second))
		r.proxies[0].slow(0, 0)
	})
	r.judge(exactly)
}
