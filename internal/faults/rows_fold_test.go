package faults

import (
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/usagekit/usagekit/internal/counter"
)

// twoLeaders: both programs may always fold, and without taking turns. Only the
// guard is left.
func twoLeaders(r *trial) {
	r.start(setup{programs: 2, proxied: true, interval: 20 * time.Millisecond})
	r.foldAtOnce(r.lasts(20*time.Second, 4*time.Second), true)
	r.judge(exactly)
}

// A fold that trusts its lease must be caught counting twice, or row 32 proves
// nothing.
func TestTrustedLeaseIsCaught(t *testing.T) {
	if shared.server == nil {
		t.Skip("PostgreSQL was not tried: make test does")
	}
	t.Parallel()
	r := newTrial(t, shared, 32, inMemory)
	r.start(setup{programs: 2, proxied: true, interval: 20 * time.Millisecond})
	r.foldAtOnce(3*time.Second, false)
	r.load.stop()
	r.drain()
	v, _ := r.gather()
	t.Logf("%d counted of %d", v.counted[requestsTotal], v.attempted[requestsTotal])
	if wrong := v.check(exactly); len(wrong) == 0 || v.counted[requestsTotal] <= v.attempted[requestsTotal] {
		t.Errorf("not caught: %q", wrong)
	}
}

// foldAtOnce changes the programs' SQL for as long, and until it mattered: nobody
// ever has the lease, and folds do not take turns; unless guarded, the second of two
// that met does not see that they did. Folds that have merged batches wait for each
// other before they write.
func (r *trial) foldAtOnce(d time.Duration, guarded bool) {
	r.Helper()
	edit := []string{
		"SELECT value, CAST(", "SELECT ' 0' AS value, CAST(", // what an instance looks at before,
		" WHERE name = 'lease' FOR UPDATE SKIP LOCKED", " WHERE false UNION ALL SELECT ' 0'", // and what it takes
	}
	if !guarded {
		edit = append(edit, " AND w.seq = v.guard", "")
	}
	var undone, ended atomic.Int64
	met := &meeting{waits: make(chan struct{})}
	for _, p := range r.proxies {
		p.rewrite(edit...)
		p.set(func(s statement) verdict {
			advances := strings.Contains(s.before, "UPDATE usage_writers AS w")
			switch {
			case strings.HasPrefix(s.text, "UPDATE usage_writers AS w"):
				met.wait(500 * time.Millisecond)
			case s.text == "ROLLBACK" && advances && !strings.Contains(s.before, "INSERT INTO usage_metrics"):
				undone.Add(1)
			case s.isCommit() && advances && met.times.Load() > 0:
				ended.Add(1)
			}
			return verdict{}
		})
	}
	r.fault(func() {
		r.pause(d)
		r.eventually(hangs, func() string { // who saw a lease before looks again after seconds
			switch {
			case met.times.Load() == 0:
				return "no two folds met"
			case guarded && undone.Load() == 0:
				return "two folds met, and none of them was undone"
			case !guarded && ended.Load() < 2:
				return "two folds met, and have not ended"
			}
			return ""
		})
	})
	for _, p := range r.proxies {
		p.rewrite()
		p.set(nil)
	}
	r.note("%d folds undone by the guard", undone.Load())
}

// meeting lets two that come within a moment of each other go on together.
type meeting struct {
	waits chan struct{}
	times atomic.Int64
}

func (m *meeting) wait(limit time.Duration) {
	select {
	case m.waits <- struct{}{}:
	case <-m.waits:
		m.times.Add(1)
	case <-time.After(limit):
	}
}

// badBatches puts batches into the inbox that are damaged, of another time, and of
// a later release. The others are folded all the same.
func badBatches(r *trial) {
	r.start(setup{})
	now := time.Now()
	batch := func(opened time.Time) []byte {
		return counter.Batch{Opened: opened.UnixMilli(), Counts: []counter.Count{{Name: "feature.late.used", N: 1}}}.Encode()
	}
	damaged := batch(now)
	damaged[len(damaged)-1] ^= 1
	r.fault(func() {
		r.insert("damaged", 1, damaged)
		r.insert("damaged", 2, batch(now))
		r.insert("dated", 1, batch(time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC)))
		r.pause(r.lasts(10*time.Second, 3*time.Second))
	})
	r.eventually(hangs, func() string {
		if n := r.one(`SELECT COALESCE(SUM(value), 0) FROM usage_metrics WHERE key = 'feature.late.used'`); n != 2 {
			return "the good batches are not folded"
		}
		return ""
	})
	for query, want := range map[string]int64{
		`SELECT COUNT(*) FROM usage_quarantine WHERE writer = 'damaged' AND seq = 1`:                              1,
		`SELECT COALESCE(SUM(value), 0) FROM usage_metrics WHERE key = 'usagekit.counts.dropped'`:                 1,
		`SELECT COUNT(*) FROM usage_history WHERE bucket > EXTRACT(EPOCH FROM now()) + 86400`:                     0,
		`SELECT COALESCE(SUM(value), 0) FROM usage_history WHERE step = 1 AND key = 'feature.late.used'`:          2,
		`SELECT COUNT(*) FROM usage_writers WHERE writer = 'damaged' AND seq = 2 OR writer = 'dated' AND seq = 1`: 2,
	} {
		if got := r.one(query); got != want {
			r.Errorf("%s: %d, want %d", query, got, want)
		}
	}

	// A later release's: whoever meets it leaves the lease alone for a minute, so
	// the rest is folded on the way out.
	later := laterRelease(batch(now))
	r.insert("later", 1, later)
	r.insert("later", 2, batch(now))
	r.eventually(hangs, func() string {
		if text := must1(r.programs[0].output())(r); !strings.Contains(text, "written by a later release") {
			return "nobody met the batches of a later release"
		}
		return ""
	})
	r.load.stop()
	r.kept = 2
	if status, err := r.programs[0].stop(); status != 0 || err != nil {
		r.Errorf("exit status %d, %v", status, err)
	}
	r.judge(exactly)
	if n := r.one(`SELECT COUNT(*) FROM usage_inbox WHERE writer = 'later'`); n != 2 {
		r.Errorf("%d batches of the later release wait, want 2", n)
	}
	text := must1(r.programs[0].output())(r)
	for _, said := range []string{"damaged/1", "dated more than a day ahead", "written by a later release"} {
		if !strings.Contains(text, said) {
			r.Errorf("it does not say %q", said)
		}
	}
}

// insert puts a batch into the inbox.
func (r *trial) insert(writer string, seq int64, payload []byte) {
	r.Helper()
	r.exec(`INSERT INTO usage_writers (writer, seq, sum, seen) VALUES (?, 0, ?, 4000000000000) ON CONFLICT DO NOTHING`, writer, []byte{})
	r.exec(`INSERT INTO usage_inbox (writer, seq, opened, payload) VALUES (?, ?, ?, ?)`, writer, seq, time.Now().UnixMilli(), payload)
}

// one reads a number.
func (r *trial) one(query string) (n int64) {
	r.Helper()
	r.must(r.db.QueryRowContext(r.ctx, query).Scan(&n))
	return n
}

// openSnapshot: dead row versions cannot be removed while a transaction may see
// them. The fold must stay fresh, and take no more than a tenth of the time.
func openSnapshot(r *trial) {
	r.start(setup{proxied: true})
	tx := must1(r.db.BeginTx(r.ctx, nil))(r)
	defer tx.Rollback()
	for _, query := range []string{`SET TRANSACTION ISOLATION LEVEL REPEATABLE READ`, `SELECT COUNT(*) FROM usage_metrics`} {
		_, err := tx.ExecContext(r.ctx, query)
		r.must(err)
	}
	duty := &duty{}
	for _, p := range r.proxies {
		p.set(duty.script)
	}
	var stalest time.Duration
	d := r.lasts(60*time.Second, 5*time.Second)
	r.fault(func() {
		for until := time.Now().Add(d); time.Now().Before(until); r.pause(200 * time.Millisecond) {
			folded := time.UnixMilli(r.one(`SELECT CAST(value AS BIGINT) FROM usage_meta WHERE name = 'folded'`))
			stalest = max(stalest, time.Since(folded))
		}
	})
	r.judge(exactly)
	share := duty.share()
	r.note("upserts %.1f %% of the time", 100*share)
	if r.full && share > 0.1 {
		r.Errorf("upserts took %.1f %% of the time, want 10 %% at most", 100*share)
	}
	r.atMost(10*time.Second, "behind by", stalest)
}

// duty measures the time that folds spend in upserts, of the time from one fold to
// the next.
type duty struct {
	mu            sync.Mutex
	began         time.Time // of the last fold's upserts
	upserts       time.Duration
	spent, passed time.Duration // of all folds that were followed by another
}

func (d *duty) script(s statement) verdict {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch now := time.Now(); {
	case strings.HasPrefix(s.text, "INSERT INTO usage_metrics"):
		if !d.began.IsZero() {
			d.spent += d.upserts
			d.passed += now.Sub(d.began)
		}
		d.began, d.upserts = now, 0
	case strings.HasPrefix(s.text, "DELETE FROM usage_inbox"):
		d.upserts = now.Sub(d.began)
	}
	return verdict{}
}

func (d *duty) share() float64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return float64(d.spent) / float64(max(d.passed, 1))
}
