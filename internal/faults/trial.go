package faults

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/usagekit/usagekit/internal/dbtest"
	"github.com/usagekit/usagekit/store"
	"github.com/usagekit/usagekit/store/postgres"
	"github.com/usagekit/usagekit/store/sqlite"
)

// mode is where the counts go.
type mode string

const (
	inSpool     mode = "S"  // PostgreSQL, with a spool
	inMemory    mode = "M"  // PostgreSQL, waiting counts in memory
	onSQLite    mode = "Q"  // a SQLite file, waiting counts in memory
	sqliteSpool mode = "QS" // a SQLite file, with a spool
	twice       mode = "2x" // two programs on one PostgreSQL
)

func (m mode) spools() bool { return m == inSpool || m == sqliteSpool }
func (m mode) sqlite() bool { return m == onSQLite || m == sqliteSpool }

// bench is what all trials share.
type bench struct {
	binary string         // the example program
	server *dbtest.Server // nil: PostgreSQL is not tried
	full   bool           // the long form
	all    bool           // all rows
	seed   uint64
}

// trial is one row of the matrix in one mode.
type trial struct {
	*testing.T
	bench
	row  int
	mode mode
	ctx  context.Context
	rng  *rand.Rand // of the row's function alone

	server   *dbtest.Server
	url      string  // of the database, straight; of SQLite, the file's path
	db       *sql.DB // straight to the database: what the oracle reads
	proxies  []*proxy
	programs []*program
	load     *load
	ledger   string            // path
	spool    string            // path; "": none
	others   map[string]string // what somebody else has in the spool, by path
	kills    int
	stops    bool  // programs stand still for a while
	kept     int   // batches that stay in the inbox, by intent
	reported tally // what Shutdown said was not stored

	began, broke, healed time.Time // of the load, the fault, its end
	drained              time.Duration
	last                 evidence
	notes                []string
	skipped              string // why it was not run
}

// setup is what a row wants to begin with. The zero setup is one program (two in
// mode 2x), 8 clients, 200 requests a second, 200 ms between flushes.
type setup struct {
	ownServer bool          // a PostgreSQL that the row may stop
	proxied   bool          // each program reaches PostgreSQL through a proxy
	programs  int           // 0: one, in mode 2x two
	perSecond int           // requests of all clients; 0: 200
	interval  time.Duration // between flushes; 0: 200 ms
	kills     bool          // programs end under load, so no connection is kept
	role      string        // as whom the programs log in, with password; "": the owner
	password  string
	pgBouncer int    // connections of the PgBouncer in between; 0: there is none
	spool     string // directory; "": a new one
	database  string // directory of the SQLite file; "": a new one
	noSpool   bool   // the spool cannot be used, and counts are in memory
	limit     int    // on the size of the program's files, in KiB; 0: none
}

// The clients of every load.
const clients = 8

const (
	// What takes longer hangs: a machine may have more to do than this.
	hangs = 3 * time.Minute
	slow  = 10 * time.Second // a wait that is worth a line in the log

	// How much longer a request may take during a fault, by the median and by the
	// 99th percentile. The machine is shared with the database and other trials.
	medianSlack = 50 * time.Millisecond
	p99Slack    = 250 * time.Millisecond
)

func newTrial(t *testing.T, b bench, row int, m mode) *trial {
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	t.Cleanup(cancel)
	return &trial{T: t, bench: b, row: row, mode: m, ctx: ctx, rng: rand.New(rand.NewPCG(b.seed, uint64(row)))}
}

// lasts is how long something goes on, in the long form and in the short one.
func (r *trial) lasts(long, short time.Duration) time.Duration {
	if r.full {
		return long
	}
	return short
}

// must ends the trial on an error that is not its subject.
func (r *trial) must(err error) {
	r.Helper()
	if err != nil {
		r.Fatal(err)
	}
}

// must1 is must for a function that returns a value, too.
func must1[V any](v V, err error) func(*trial) V {
	return func(r *trial) V {
		r.Helper()
		r.must(err)
		return v
	}
}

// notRun ends the trial: it cannot be tried on this machine.
func (r *trial) notRun(why string) {
	r.Helper()
	r.skipped = why
	if r.full {
		r.Fatalf("not run: %s", why)
	}
	r.Skipf("not run: %s", why)
}

// note adds a measurement to the trial's line.
func (r *trial) note(format string, args ...any) {
	r.notes = append(r.notes, fmt.Sprintf(format, args...))
}

// atMost notes how long something took. That it was not longer than promised is
// asserted in the long form, whose machine has nothing else to do.
func (r *trial) atMost(promised time.Duration, what string, took time.Duration) {
	r.Helper()
	r.note("%s %.1f s", what, took.Seconds())
	if r.full && took > promised {
		r.Errorf("%s %v, want %v at most", what, took, promised)
	}
}

// pause waits while the load goes on.
func (r *trial) pause(d time.Duration) {
	r.Helper()
	select {
	case <-time.After(d):
	case <-r.ctx.Done():
		r.Fatal("the trial takes too long")
	}
}

// eventually asks until nothing is missing, and returns how long it took.
func (r *trial) eventually(limit time.Duration, missing func() string) time.Duration {
	r.Helper()
	start, last := time.Now(), ""
	for {
		what := missing()
		if what == "" {
			if took := time.Since(start); took > slow {
				r.Logf("after %v no more: %s", took, last)
			}
			return time.Since(start)
		}
		last = what
		if time.Since(start) > limit {
			r.Errorf("after %v: %s", limit, what)
			return time.Since(start)
		}
		r.pause(10 * time.Millisecond)
	}
}

// exec changes the database. A busy machine's SQLite may be locked for longer than a
// connection waits.
func (r *trial) exec(query string, args ...any) {
	r.Helper()
	bind := sqlx.DOLLAR
	if r.mode.sqlite() {
		bind = sqlx.QUESTION
	}
	r.eventually(hangs, func() string {
		if _, err := r.db.ExecContext(r.ctx, sqlx.Rebind(bind, query), args...); err != nil {
			return err.Error()
		}
		return ""
	})
}

// start sets up the database, the programs and the load, and lets that go on for
// a moment, with which the time under the fault is compared.
func (r *trial) start(s setup) {
	r.Helper()
	dir := r.TempDir()
	database := r.database(s, dir)
	if s.role != "" {
		database = r.asRole(database, s)
	}
	if s.pgBouncer > 0 {
		database = r.server.PgBouncer(r, database, s.pgBouncer)
	}
	if r.mode.spools() {
		r.spool = cmp.Or(s.spool, filepath.Join(dir, "spool"))
	}
	r.ledger = filepath.Join(dir, "ledger")
	n := max(s.programs, 1)
	if r.mode == twice {
		n = max(s.programs, 2)
	}
	for i := range n {
		dsn := database
		if s.proxied {
			p := must1(newProxy(database))(r)
			r.Cleanup(p.close)
			r.proxies = append(r.proxies, p)
			dsn = must1(p.url(database))(r)
		}
		r.launch(dir, i, dsn, s)
	}
	r.load = &load{clients: clients, perSecond: 200, keepAlive: !s.kills, seed: r.seed + uint64(r.row), programs: r.programs}
	if s.perSecond > 0 {
		r.load.perSecond = s.perSecond
	}
	r.load.start(r.ctx)
	r.Cleanup(func() {
		for _, p := range r.programs { // one that a test left standing still answers nobody
			_ = p.signal(syscall.SIGCONT)
		}
		r.load.stop()
	})
	r.began = time.Now()
	r.pause(r.lasts(5*time.Second, time.Second))
	r.eventually(hangs, func() string { // a program with a spool serves before its tables are there
		var folded int
		err := r.db.QueryRowContext(r.ctx, `SELECT COUNT(*) FROM usage_writers WHERE seq > 0`).Scan(&folded)
		if err != nil || folded < n {
			return fmt.Sprintf("of %d of %d programs something is counted, %v", folded, n, err)
		}
		return ""
	})
	if r.spool != "" && !s.noSpool {
		r.spoolUsed()
	}
}

// spoolUsed ends the trial where the spool cannot be used.
func (r *trial) spoolUsed() {
	r.Helper()
	for until := time.Now().Add(time.Minute); len(r.spooled()) == 0; r.pause(10 * time.Millisecond) {
		if time.Now().After(until) {
			r.notRun("the spool is not used: is the temporary directory on ext4, xfs or tmpfs?")
		}
	}
}

// database makes an empty database, and returns what the program's -db takes.
func (r *trial) database(s setup, dir string) string {
	r.Helper()
	if r.mode.sqlite() {
		path := filepath.Join(cmp.Or(s.database, dir), "usage.db")
		r.url = path
		r.db = must1(sqlite.Open(path))(r).DB
		r.Cleanup(func() { _ = r.db.Close() })
		return path
	}
	r.server = r.bench.server
	if s.ownServer {
		if !r.server.Private() {
			r.notRun("the server is not the tests' own, and may not be stopped")
		}
		r.server = must1(dbtest.Start())(r)
		r.Cleanup(func() { _ = r.server.Close() })
	}
	r.url = r.server.NewDatabase(r)
	r.db = must1(postgres.Open(r.url))(r).DB
	r.Cleanup(func() { _ = r.db.Close() })
	return r.url
}

// asRole makes a role that owns nothing, and returns url with it.
func (r *trial) asRole(databaseURL string, s setup) string {
	r.Helper()
	u := must1(url.Parse(databaseURL))(r)
	u.User = url.UserPassword(s.role, s.password)
	// The tables are the owner's: a role may not revoke its own rights for good.
	owner := must1(postgres.Open(databaseURL))(r)
	defer owner.Close()
	first := must1(store.New(r.ctx, owner, store.Config{}))(r)
	r.must(first.Shutdown(r.ctx))
	for _, query := range []string{
		`CREATE ROLE ` + s.role + ` LOGIN PASSWORD '` + s.password + `'`,
		`GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO ` + s.role,
	} {
		r.exec(query)
	}
	return u.String()
}

// launch starts the program number i.
func (r *trial) launch(dir string, i int, dsn string, s setup) {
	r.Helper()
	interval := s.interval
	if interval == 0 {
		interval = 200 * time.Millisecond
	}
	p := &program{binary: r.binary, limit: s.limit, dir: filepath.Join(dir, fmt.Sprintf("program-%d", i))}
	r.must(os.Mkdir(p.dir, 0o700))
	p.args = []string{"-addr", "127.0.0.1:0", "-db", dsn, "-flush", interval.String(), "-ledger", r.ledger}
	if r.spool != "" {
		p.args = append(p.args, "-spool", r.spool)
	}
	r.Cleanup(func() {
		if p.running() {
			_ = p.kill()
		}
		if r.Failed() {
			text, err := p.output()
			r.Logf("program %d, %v\n%s", i, err, text[max(0, len(text)-20_000):])
		}
	})
	r.must(p.start())
	r.programs = append(r.programs, p)
}

// fault breaks something, in f, which returns when it is healed.
func (r *trial) fault(f func()) {
	r.Helper()
	r.broke = time.Now()
	f()
	r.healed = time.Now()
}

// drain waits until everything that was counted is in the tables, and returns how
// long that took.
func (r *trial) drain() time.Duration {
	r.Helper()
	return r.eventually(hangs, func() string {
		for i, p := range r.programs {
			if !p.running() {
				continue
			}
			if h, err := p.health(); err != nil || h.Pending > 0 {
				return fmt.Sprintf("program %d has counts that wait: %d names, %v", i, h.Pending, err)
			}
		}
		n, err := waiting(r.ctx, r.db)
		if err != nil || n > r.kept {
			return fmt.Sprintf("%d batches are in the inbox, %v", n, err)
		}
		if r.mode.spools() {
			return r.fewerThanAnswered()
		}
		return ""
	})
}

// fewerThanAnswered tells whether a dead program's counts wait in the spool.
func (r *trial) fewerThanAnswered() string {
	counted, err := readCounts(r.ctx, r.db)
	if err != nil {
		return err.Error()
	}
	_, responded, err := readLedger(r.ledger)
	if err != nil {
		return err.Error()
	}
	if n, e := counted[requestsTotal], responded[requestsTotal]; n < e {
		return fmt.Sprintf("%d requests are counted, %d were responded to", n, e)
	}
	return ""
}

// judge ends the load, drains, and compares; then ends the programs, and compares
// again: nothing may come late.
func (r *trial) judge(want rule) {
	r.Helper()
	if r.healed.IsZero() {
		r.broke, r.healed = time.Now(), time.Now()
	}
	r.load.stop()
	r.drained = r.drain()
	if r.full && r.drained > time.Minute {
		r.Errorf("drained %v after the load, want a minute at most", r.drained)
	}
	r.compare(want)
	for i, p := range r.programs {
		if !p.running() {
			continue
		}
		if status, err := p.stop(); status != 0 || err != nil {
			r.Errorf("program %d: exit status %d, %v", i, status, err)
		}
	}
	r.compare(want)
	r.checkOutputs()
	r.checkSpool()
	r.latency()
}

// gather reads the evidence.
func (r *trial) gather() (v evidence, failures map[string]int) {
	r.Helper()
	v = evidence{inFlight: int64(clients * r.kills), reported: r.reported}
	v.attempted, v.answered, failures = r.load.known()
	var err error
	v.begun, v.responded, err = readLedger(r.ledger)
	r.must(err)
	v.counted = must1(readCounts(r.ctx, r.db))(r)
	r.last = v
	return v, failures
}

// compare gathers the evidence and checks it.
func (r *trial) compare(want rule) {
	r.Helper()
	v, failures := r.gather()
	if r.Failed() {
		return // it was said
	}
	wrong := v.check(want)
	if want == exactly {
		for err, n := range failures {
			wrong = append(wrong, fmt.Sprintf("%d clients saw: %s", n, err))
		}
	}
	if len(wrong) > 0 {
		shown := wrong[:min(len(wrong), 50)]
		r.Errorf("%d things differ, the first of them:\n%s\n%s", len(wrong), strings.Join(shown, "\n"), writersTable(r.ctx, r.db))
	}
}

// checkOutputs looks for what no program may say.
func (r *trial) checkOutputs() {
	r.Helper()
	for i, p := range r.programs {
		text := must1(p.output())(r)
		for _, bad := range []string{"panic", "DATA RACE", "fatal error", "SIGBUS"} {
			if strings.Contains(text, bad) {
				r.Errorf("program %d says %q", i, bad)
			}
		}
	}
}

// checkSpool looks for counts that were left in the spool.
func (r *trial) checkSpool() {
	r.Helper()
	if r.spool == "" {
		return
	}
	if left := r.spooled(); len(left) > 0 {
		r.Errorf("in the spool there are still %q", left)
	}
}

// spooled are the files in the spool.
func (r *trial) spooled() (files []string) {
	r.Helper()
	err := filepath.WalkDir(r.spool, func(path string, d fs.DirEntry, err error) error {
		if _, foreign := r.others[path]; err == nil && d.Type().IsRegular() && !foreign {
			files = append(files, path)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil // a program removed it meanwhile
		}
		return err
	})
	r.must(err)
	return files
}

// latency measures whether clients noticed the fault: that they got answers, and in
// the long form that they did not wait longer for them.
func (r *trial) latency() {
	if !r.broke.Before(r.healed) {
		return
	}
	at := func(q float64) (was, is time.Duration) {
		return r.load.quantile(q, r.began, r.broke), r.load.quantile(q, r.broke, r.healed)
	}
	was50, is50 := at(0.5)
	was99, is99 := at(0.99)
	r.note("p50 %.1f→%.1f ms, p99 %.1f→%.1f ms", ms(was50), ms(is50), ms(was99), ms(is99))
	if r.kills > 0 || r.stops {
		return // a program that is down or stopped does not answer
	}
	if r.full && (is50 > was50+medianSlack || is99 > was99+p99Slack) {
		r.Errorf("requests took longer during the fault: %v", r.notes)
	}
	if n := r.load.within(r.broke, r.healed); n <= clients && r.healed.Sub(r.broke) > time.Second {
		r.Errorf("%d requests were answered during the fault: they wait for its end", n)
	}
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// line is the trial's line in the table.
func (r *trial) line() string {
	verdict := "ok"
	notes := slices.Clone(r.notes)
	switch {
	case r.skipped != "":
		verdict = "NOT RUN: " + r.skipped
	case r.Failed():
		verdict = "FAILED"
	}
	if r.drained > 0 {
		notes = append(notes, fmt.Sprintf("drained %.1f s", r.drained.Seconds()))
	}
	for _, p := range r.proxies {
		did := p.done()
		for _, what := range slices.Sorted(maps.Keys(did)) {
			if what != "statements" && what != "commits" {
				notes = append(notes, fmt.Sprintf("%s ×%d", what, did[what]))
			}
		}
	}
	v := r.last
	return fmt.Sprintf("%3d  %-3s %7d %7d %7d %7d %7d  %s  %s", r.row, r.mode,
		v.attempted[requestsTotal], v.answered[requestsTotal], v.begun[requestsTotal], v.responded[requestsTotal], v.counted[requestsTotal],
		verdict, strings.Join(notes, ", "))
}
