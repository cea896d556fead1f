package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/usagekit/usagekit/internal/counter"
	"github.com/usagekit/usagekit/internal/database"
	"github.com/usagekit/usagekit/internal/dbtest"
	"github.com/usagekit/usagekit/internal/memdisk"
	"github.com/usagekit/usagekit/internal/naming"
)

// The model: counter, spool, inbox and fold as one state machine. The code is the
// real one, its loops replaced by turns; the file system and the database are in
// memory. Every operation on either is a step, at which a process may die, the
// power fail, or an error come back. A process may also die between any two of the
// words that it writes to a mapped file.
//
// At the end a new process recovers what is left, and then e ≤ N ≤ b for every name:
// e is the sum of the Adds that returned, b of those that began, N is what the
// database has. A power loss may take what the database did not have by then.

// chances are what may happen, each with a chance of one in so many; 0: never.
type chances struct {
	baseFails  int // at a step
	diskFails  int // at a step
	meets      int // at a step of the disk: another process has a turn, in the middle of this one's
	dies       int // in a turn
	tears      int // in a turn that writes to a mapped file
	powerFails int // with a death
	writesBack int // at a step, and before a turn
}

// event is what happens at a step.
type event int

const (
	dies       event = iota // whoever takes the step, before it
	diesAfter               // or after
	powerFails              // before
	fails                   // the step has no effect
	unanswered              // it has, but looks as if it had not; on a disk: fails
)

// mistake is what is done wrong on purpose: the model must see it.
type mistake struct {
	edit     func(string) string
	early    bool // a file goes before the answer is certain
	renamed  bool // an adopted batch gets another writer's id
	unlocked bool // living writers are adopted, too
}

// model is one schedule and what it works on.
type model struct {
	chances
	mistake
	rand   *rand.Rand
	fs     *memdisk.FS
	dsn    string
	base   *sqlx.DB // keeps the database, and reads it without faults
	living []*process

	begun, returned map[string]int64 // b and e
	lossy           bool             // the power or a disk failed: files and messages may be odd
	diskFailed      bool             // counts may be in memory only
	wrong           []string         // what must not be
	schedule        []string

	started, steps int
	meeting        bool  // a turn is within another one
	at             int   // the step at which it happens
	what           event // what does
	tearables      int   // turns that can be torn, so far
	tearAt         int   // the one of them that is
	tearKeep       int   // how many of its words remain
	torn           int   // how many it wrote
}

var databases atomic.Int64

// newModel returns a model on an empty database. Of one seed, chances and script
// comes one schedule.
func newModel(tb testing.TB, seed uint64, c chances, wrong mistake) *model {
	m := &model{
		chances: c, mistake: wrong, rand: rand.New(rand.NewPCG(seed, 0)),
		dsn:   fmt.Sprintf("file:/model%d?vfs=memdb&_pragma=busy_timeout(5000)&_txlock=immediate", databases.Add(1)),
		begun: map[string]int64{}, returned: map[string]int64{},
	}
	m.fs = memdisk.New(m.rand)
	m.fs.Unlocked = wrong.unlocked
	base, err := new(dbtest.Faults).Open("sqlite", m.dsn)
	if err != nil {
		tb.Fatal(err)
	}
	m.base = sqlx.NewDb(base, "sqlite3")
	m.base.SetMaxOpenConns(1)
	if err := m.base.Get(new(int), `SELECT 1`); err != nil {
		tb.Fatal(err)
	}
	return m
}

func (m *model) oneIn(n int) bool { return n > 0 && m.rand.IntN(n) == 0 }

func (m *model) note(format string, args ...any) {
	m.schedule = append(m.schedule, fmt.Sprintf(format, args...))
}

func (m *model) violation(format string, args ...any) {
	m.wrong = append(m.wrong, fmt.Sprintf(format, args...))
}

// step takes a step, and returns what happens at it, if anything does.
func (m *model) step(failsOneIn int) (what event, happens bool) {
	m.steps++
	if m.oneIn(m.writesBack) {
		m.fs.WriteBack()
	}
	switch {
	case m.steps == m.at:
		return m.what, true
	case m.oneIn(failsOneIn):
		return fails + event(m.rand.IntN(2)), true
	}
	return 0, false
}

// process is one of the processes, with a Store.
type process struct {
	m      *model
	id     int
	disk   *memdisk.Process
	faults dbtest.Faults
	db     *sqlx.DB
	store  *Store
	gone   bool
	failed bool             // an operation did, since a Shutdown began
	busy   bool             // in a turn
	atRisk map[string]int64 // counted in memory only
}

var errStep = errors.New("model: the operation failed")

// onDisk is the fate of a step on the file system. Another process may have a turn
// just before.
func (p *process) onDisk(step string) memdisk.Fate {
	m := p.m
	if m.oneIn(m.meets) && !m.meeting {
		m.meeting = true
		m.note("%d: is at: %s", p.id, step)
		m.someTurn()
		m.meeting = false
		if p.gone {
			return memdisk.Pass
		}
	}
	what, happens := m.step(m.diskFails)
	switch {
	case !happens:
		return memdisk.Pass
	case what == dies, what == powerFails:
		p.gone = true
		return memdisk.DieBefore
	case what == diesAfter:
		p.gone = true
		return memdisk.DieAfter
	case step == memdisk.Unlock, step == memdisk.Stat:
		return memdisk.Pass
	}
	m.lossy, m.diskFailed = true, true
	return memdisk.Fail
}

// onBase is the fate of an operation of the database.
func (p *process) onBase(dbtest.Op) dbtest.Fault {
	if p.gone {
		return dbtest.Fault{Err: errStep, Break: true}
	}
	what, happens := p.m.step(p.m.baseFails)
	switch {
	case !happens:
		return dbtest.Fault{}
	case what < fails:
		p.gone = true
		p.disk.Kill()
	}
	p.failed = true
	return dbtest.Fault{Err: errStep, After: what == diesAfter || what == unanswered, Break: true}
}

// start starts a process. It may be gone at once.
func (m *model) start(offline bool) *process {
	m.started++
	p := &process{m: m, id: m.started, atRisk: map[string]int64{}}
	p.disk = m.fs.NewProcess(p.onDisk)
	p.faults.Set(p.onBase)
	db, err := p.faults.Open("sqlite", m.dsn)
	if err != nil {
		m.violation("open: %v", err)
		return nil
	}
	p.db = sqlx.NewDb(db, "sqlite3")
	m.living = append(m.living, p)
	p.turn("start", func() {
		cfg := Config{Spool: "memory", StartOffline: offline, Logger: slog.New(errorLog{p})}
		s, err := openOn(context.Background(), p.db, cfg, func(string) (counter.Disk, error) { return p.disk, nil })
		if err != nil {
			p.gone = true
			return
		}
		s.db.Edit = m.edit
		p.store = s
	})
	return p
}

// errorLog is a Logger that takes an error for a violation, where nothing can have
// been lost.
type errorLog struct{ p *process }

func (l errorLog) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelError }
func (l errorLog) WithAttrs([]slog.Attr) slog.Handler               { return l }
func (l errorLog) WithGroup(string) slog.Handler                    { return l }
func (l errorLog) Handle(_ context.Context, r slog.Record) error {
	m := l.p.m
	text, raced := r.Message, false
	r.Attrs(func(a slog.Attr) bool {
		text += " " + a.String()
		err, _ := a.Value.Any().(error)
		raced = raced || errors.Is(err, memdisk.ErrMissing) // for adoption, which keeps silent of the real disk's
		return true
	})
	m.note("   logged: %s", text)
	if !l.p.gone && !m.lossy && !raced || strings.Contains(text, "panic") {
		m.violation("logged: %s", text)
	}
	return nil
}

// turn lets a process that lives do something. It may die of it.
func (p *process) turn(what string, do func()) {
	m := p.m
	if p.gone {
		return
	}
	if m.oneIn(m.dies) {
		m.at, m.what = m.steps+1+m.rand.IntN(16), dies+event(m.rand.IntN(2))
	}
	if m.oneIn(m.writesBack) {
		m.fs.WriteBack()
	}
	first := m.steps + 1
	func() {
		defer func() {
			if v := recover(); v != nil {
				m.violation("panic in %s: %v\n%s", what, v, debug.Stack())
			}
		}()
		p.busy = true
		do()
		p.busy = false
	}()
	m.note("%d: %s (steps %d to %d); gone: %t", p.id, what, first, m.steps, p.gone)
	if p.gone {
		p.bury()
		if m.oneIn(m.powerFails) || m.steps == m.at && m.what == powerFails {
			m.powerLoss()
		}
	}
}

// writing is turn for what writes to mapped files: it may be torn in the middle.
func (p *process) writing(what string, do func()) {
	m := p.m
	if p.gone {
		return
	}
	m.tearables++
	if m.oneIn(m.tears) {
		m.tearAt, m.tearKeep = m.tearables, m.rand.IntN(len(names)+20)
	}
	if m.tearables != m.tearAt {
		p.turn(what, do)
		return
	}
	p.turn(what, func() {
		p.disk.Mark()
		do()
		if !p.gone {
			m.torn = p.disk.Tear(m.tearKeep, written)
			m.note("%d: torn after %d of %d words", p.id, m.tearKeep, m.torn)
			p.gone = true
		}
	})
}

// written is the rank of a word among those that one Add, or the end of a
// generation, writes (see format.go of internal/counter): a name, the end of the records, the time of the
// first count, each count, the checksum, the mark of a sealed file. Words of one
// rank are written as one.
func written(content []byte, at int) int {
	const header, opened, used, sealed, sum, records, count = 64, 64, 72, 80, 88, 128, 4
	switch {
	case at < header:
		return 0
	case at == used:
		return 2
	case at == opened:
		return 3
	case at == sealed:
		return 1<<30 + 1
	case at >= sum && at < records:
		return 1 << 30
	}
	for record := records; record <= at; {
		if record == at {
			return count + at
		}
		length := int(content[record+8]) | int(content[record+9])<<8
		record += (12 + length + 63) &^ 63
	}
	return 1
}

// kill ends a process between its turns.
func (p *process) kill() {
	p.turn("killed", func() { p.disk.Kill(); p.gone = true })
}

// bury takes a process that is gone out of the model.
func (p *process) bury() {
	if p.store != nil {
		p.store.life.cancel()
	}
	_ = p.db.Close()
	p.m.living = slices.DeleteFunc(p.m.living, func(q *process) bool { return q == p })
}

// powerLoss ends all processes. What the database has by now is what must be there.
func (m *model) powerLoss() {
	for _, p := range slices.Clone(m.living) {
		p.disk.Kill()
		p.gone = true
		p.bury()
	}
	m.fs.PowerLoss()
	m.lossy = true
	stored, err := m.stored()
	if err != nil {
		m.violation("the database at the power loss: %v", err)
	}
	m.returned = stored
	m.note("the power fails; left: %v", m.fs.Left())
}

// names are long, most of them: a file's records take three pages.
var names = func() []string {
	all := []string{"api.GET /a.requests", "api.requests.novels", "user.1.requests", "feature.a.used"}
	for i := range 3 {
		all = append(all, fmt.Sprintf("api.GET /%d/%s.requests", i, strings.Repeat("long/", 90)),
			fmt.Sprintf("user.%d%s.requests", i, strings.Repeat("é", 100+30*i)),
			fmt.Sprintf("feature.%d%s.used", i, strings.Repeat("x", 400)))
	}
	return all
}()

func (p *process) add(name string, n int64) {
	p.writing(fmt.Sprintf("add %d to %.12s…", n, name), func() {
		p.m.begun[name] += n
		p.store.Add(name, n)
	})
	switch {
	case p.gone:
	case p.store.live.Degraded() != "":
		p.atRisk[name] += n
		if !p.m.diskFailed {
			p.m.violation("counts are in memory only: %s", p.store.live.Degraded())
		}
	default:
		p.m.returned[name] += n
	}
}

// addAll adds to each name.
func (p *process) addAll() {
	for i, name := range names {
		if !p.gone {
			p.add(name, int64(i+1))
		}
	}
}

func (p *process) seal() { p.writing("seal", func() { p.store.outbox.Seal() }) }

// prepare is what sealLoop does besides.
func (p *process) prepare() {
	p.writing("prepare", func() {
		if p.store.live.Prepare() {
			p.store.outbox.Seal()
		}
	})
}

// reach is a turn of startLoop.
func (p *process) reach() {
	p.turn("reach the database", func() {
		if !p.store.db.Started() {
			_ = p.store.start(p.store.life.run, true)
		}
	})
}

// send is a turn of sendLoop.
func (p *process) send() { p.turn("send", func() { _, _ = p.sendNext() }) }

func (p *process) sendNext() (waits bool, err error) {
	s := p.store
	if !s.db.Started() {
		return false, nil
	}
	if head, waits := s.outbox.Head(); p.m.early && waits {
		s.spool.Remove(head)
	}
	waits, err = s.outbox.SendNext()
	p.m.checkPanic(err)
	return waits, err
}

// adopt is a turn of adoptLoop, which ends at the first error.
func (p *process) adopt() {
	p.turn("adopt", func() {
		s := p.store
		if !s.db.Started() {
			return
		}
		_ = s.spool.Adopt(s.outbox.RegisterAdopted, func(writer string, b counter.Sealed) error {
			if p.m.renamed {
				writer = database.NewID()
			}
			err := s.outbox.SendAdopted(writer, b)
			p.m.note("   %d: batch %d of %.4s with %d names: %v", p.id, b.Seq, writer, len(b.Counts), err)
			p.m.checkPanic(err)
			return err
		})
	})
}

// fold is a turn of foldLoop.
func (p *process) fold() {
	p.turn("fold", func() {
		if !p.store.db.Started() {
			return
		}
		p.store.leader.Turn()
		p.m.checkPanic(p.store.health.errs[toFold])
	})
}

func (m *model) checkPanic(err error) {
	var p database.Panic
	if errors.As(err, &p) {
		m.violation("%v", p)
	}
}

// shutdown is Shutdown while the database answers, or does not.
func (p *process) shutdown(up bool) {
	p.turn(fmt.Sprintf("shut down, with the database: %t", up), func() {
		p.failed = false
		ctx, cancel := context.WithTimeout(context.Background(), dbtest.Limit)
		defer cancel()
		err := p.store.Shutdown(&sending{Context: ctx, p: p, ended: !up || !p.store.db.Started()})
		if p.gone {
			return
		}
		p.gone = true // in order
		var lost *UndeliveredError
		errors.As(err, &lost)
		if err != nil && (lost == nil || !p.m.diskFailed) {
			p.m.violation("Shutdown: %v", err)
		}
		if left := strings.Join(p.m.fs.Left(), " "); up && !p.failed && !p.m.diskFailed && p.store.db.Started() && strings.Contains(left, p.store.life.writer) {
			p.m.violation("after Shutdown, with the database there: %s", left)
		}
		for name, n := range p.atRisk {
			p.m.returned[name] += n
		}
		if lost != nil {
			for _, c := range lost.Counts {
				p.m.returned[c.Name] -= c.N
			}
		}
	})
}

// sending is the context of a Shutdown, which waits for its end while sendLoop is at
// work. It takes the turns of sendLoop, and ends when an operation has failed.
type sending struct {
	context.Context
	p     *process
	ended bool
	calls int // of Done
}

func (c *sending) Done() <-chan struct{} {
	if c.calls++; c.calls == 1 || c.p.store.life.run.Err() != nil {
		return nil // first and last of all it waits for the disk, which takes what it takes
	}
	for waits := true; waits && c.Err() == nil; {
		waits, _ = c.p.sendNext()
	}
	if c.Err() != nil {
		return ended
	}
	return c.Context.Done()
}

func (c *sending) Err() error {
	if c.ended || c.p.failed || c.p.gone {
		return context.DeadlineExceeded
	}
	return c.Context.Err()
}

var ended = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

// stored is what the database has, by name: folded, or in the inbox.
func (m *model) stored() (map[string]int64, error) {
	counts := map[string]int64{}
	var tables int
	if err := m.base.Get(&tables, `SELECT COUNT(*) FROM sqlite_master WHERE name = 'usage_inbox'`); err != nil || tables == 0 {
		return counts, err
	}
	var totals []struct {
		Key   string
		Value int64
	}
	if err := m.base.Select(&totals, `SELECT key, value FROM usage_metrics`); err != nil {
		return nil, err
	}
	for _, t := range totals {
		counts[t.Key] = t.Value
	}
	var payloads [][]byte
	err := m.base.Select(&payloads, `SELECT payload FROM usage_inbox i WHERE seq > COALESCE((SELECT seq FROM usage_writers w WHERE w.writer = i.writer), 0)`)
	for _, payload := range payloads {
		b, err := counter.Decode(payload)
		if err != nil {
			return nil, err
		}
		for _, c := range b.Counts {
			counts[c.Name] += c.N
		}
	}
	return counts, err
}

// recover has a new process deliver all that is left, without faults.
func (m *model) recover() {
	m.chances, m.at, m.tearAt = chances{}, 0, 0
	for _, p := range slices.Clone(m.living) {
		if p.store.db.Started() && m.oneIn(2) {
			p.shutdown(true)
		} else {
			p.kill()
		}
	}
	p := m.start(false)
	if m.oneIn(2) {
		p.fold()
	}
	p.adopt()
	p.prepare()
	waiting := 1
	for folds := 0; waiting > 0 && folds < 200; folds++ {
		p.fold()
		if err := m.base.Get(&waiting, `SELECT COUNT(*) FROM usage_inbox`); err != nil {
			m.violation("the inbox: %v", err)
			break
		}
	}
	if waiting > 0 {
		m.violation("%d batches stay in the inbox", waiting)
	}
	p.shutdown(true)
	if left := m.fs.Left(); len(left) > 0 {
		m.violation("left in the spool: %v", left)
	}
	m.check()
}

// check compares what the database has with what was counted.
func (m *model) check() {
	stored, err := m.stored()
	if err != nil {
		m.violation("the database at the end: %v", err)
		return
	}
	routes := int64(0)
	for name, n := range stored {
		if group, subject, measure := naming.Split(name); group == "api" && subject != "requests" && measure == "requests" {
			routes += n
		}
	}
	if total := stored[naming.RequestsTotal]; total != routes {
		m.violation("%s is %d, the sum of the routes %d", naming.RequestsTotal, total, routes)
	}
	delete(stored, naming.RequestsTotal)
	if n := stored["usagekit.counts.dropped"]; (n > 0 || m.fs.Aside() > 0) && !m.lossy {
		m.violation("usagekit.counts.dropped is %d, %d files were set aside", n, m.fs.Aside())
	}
	delete(stored, "usagekit.counts.dropped")
	for name, n := range m.begun {
		if e := m.returned[name]; n < stored[name] || stored[name] < e {
			m.violation("%.20s…: e %d, N %d, b %d", name, e, stored[name], n)
		}
		delete(stored, name)
	}
	if len(stored) > 0 {
		m.violation("names that nobody added to: %v", stored)
	}
	for what, query := range map[string]string{
		"batches set aside": `SELECT COUNT(*) FROM usage_quarantine`,
		"totals that are not the sum of their days": `SELECT COUNT(*) FROM usage_metrics m WHERE value <>
			(SELECT SUM(value) FROM usage_history h WHERE h.key = m.key AND h.step = 2)`,
		"buckets with another number of active users than there are": `SELECT COUNT(*) FROM usage_history a WHERE key IN ('user.active.daily', 'user.active.monthly') AND value <>
			(SELECT COUNT(*) FROM usage_history h WHERE h.step = a.step AND h.bucket = a.bucket AND key LIKE 'user.%.requests')`,
	} {
		var n int
		if err := m.base.Get(&n, query); err != nil || n != 0 {
			m.violation("%s: %d, %v", what, n, err)
		}
	}
}

// run runs a schedule to its end.
func (m *model) run(script func(*model)) *model {
	defer m.base.Close()
	script(m)
	steps, tearables := m.steps, m.tearables
	m.recover()
	m.steps, m.tearables = steps, tearables
	return m
}

// lives is a schedule with all that is in the lives of three processes: folds between
// two attempts to send, and between a death and the adoption, among others.
func lives(m *model) {
	a, b := m.start(false), m.start(true)
	a.addAll()
	a.seal()
	a.send()
	b.reach()
	b.fold()
	a.send()
	a.addAll()
	a.prepare()
	a.seal()
	b.add(names[1], 1)
	a.send()
	a.add(names[0], 1)
	a.seal()
	b.fold()
	a.add(names[0], 1)
	a.kill()
	b.reach()
	b.adopt()
	b.fold()
	b.adopt()
	b.seal()
	b.send()
	b.add(names[0], 1)
	b.shutdown(true)
}

// powerLosses is a schedule of processes that deliver, and lose the power soon after:
// files of what was delivered come back, as they were once.
func powerLosses(m *model) {
	for range 4 {
		p := m.start(false)
		p.addAll()
		if m.oneIn(2) {
			m.fs.WriteBack()
		}
		p.adopt()
		p.addAll()
		p.seal()
		p.send()
		if m.oneIn(2) {
			p.fold()
		}
		m.powerLoss()
	}
}

// random is a schedule of up to three processes by chance.
func random(m *model) {
	for range 10 + m.rand.IntN(40) {
		m.someTurn()
	}
}

// someTurn lets a process do something, by chance.
func (m *model) someTurn() {
	if len(m.living) == 0 || len(m.living) < 3 && m.oneIn(12) {
		m.start(m.oneIn(4))
		return
	}
	p := m.living[m.rand.IntN(len(m.living))]
	if p.busy {
		return
	}
	switch m.rand.IntN(26) {
	case 0:
		p.kill()
	case 1:
		p.shutdown(m.oneIn(2) && p.store.db.Started())
	case 2:
		if m.powerFails > 0 && m.oneIn(3) {
			m.powerLoss()
		}
	case 3, 4:
		p.adopt()
	case 5, 6, 7:
		p.fold()
	case 8, 9:
		p.prepare()
	case 10, 11, 12:
		p.seal()
	case 13, 14, 15, 16:
		p.send()
	case 17, 18: // more than chance alone would have of what was delivered
		p.addAll()
		p.seal()
		p.send()
	case 19:
		p.reach()
	default:
		p.add(names[m.rand.IntN(len(names))], 1+m.rand.Int64N(9))
	}
}

// drawn are chances by chance: with and without errors of the disk, and power losses.
func drawn(seed uint64) chances {
	r := rand.New(rand.NewPCG(seed, 1))
	c := chances{dies: []int{8, 50}[r.IntN(2)], tears: 20 + r.IntN(100), meets: []int{0, 10, 30}[r.IntN(3)], baseFails: []int{0, 10, 40}[r.IntN(3)]}
	if r.IntN(3) == 0 {
		c.diskFails = 5 + r.IntN(20)
	}
	if r.IntN(2) == 0 {
		c.powerFails, c.writesBack = 3, []int{5, 15, 50}[r.IntN(3)]
	}
	return c
}

// Row 29 of the fault matrix: hundreds of schedules in a few seconds, or thousands in a
// minute with USAGEKIT_FAULTS=full. The same seed makes the same schedules.
func TestModel(t *testing.T) {
	limit := 1500 * time.Millisecond
	full := os.Getenv("USAGEKIT_FAULTS") == "full"
	share := uint64(3) // of the steps one in so many, which, the seed decides
	switch {
	case full:
		limit, share = time.Minute, 1
	case dbtest.Race():
		share = 20
	}
	seed := modelSeed(t)
	t.Run("every step", func(t *testing.T) {
		t.Parallel()
		runs := 0
		for at, last := uint64(1), 1; at <= uint64(last) && !t.Failed(); at++ {
			for what := range unanswered + 1 {
				if what == diesAfter { // as before the next one
					continue
				}
				if (at+seed+uint64(what))%share > 0 {
					continue
				}
				var c chances
				if what == powerFails {
					c.writesBack = 10
				}
				m := newModel(t, at, c, mistake{})
				m.at, m.what = int(at), what
				m.run(lives).verdict(t)
				last = max(last, m.steps)
				runs++
			}
		}
		t.Logf("%d schedules", runs)
	})
	t.Run("every word", func(t *testing.T) {
		t.Parallel()
		runs := 0
		whole := newModel(t, 1, chances{}, mistake{}).run(lives)
		for turn := 1; turn <= whole.tearables && !t.Failed(); turn++ {
			for keep, words := 0, 1; keep <= words; keep++ {
				if (uint64(turn+keep)+seed)%share > 0 {
					continue
				}
				m := newModel(t, 1, chances{}, mistake{})
				m.tearAt, m.tearKeep = turn, keep
				m.run(lives).verdict(t)
				words = m.torn
				runs++
			}
		}
		t.Logf("%d schedules", runs)
	})
	t.Run("by chance", func(t *testing.T) {
		t.Parallel()
		first, seed, steps := seed, seed, 0
		start := time.Now()
		for ; time.Since(start) < limit && !t.Failed(); seed++ {
			script := random
			if seed%4 == 0 {
				script = powerLosses
			}
			m := newModel(t, seed, drawn(seed), mistake{}).run(script)
			steps += m.steps
			if !m.verdict(t) {
				t.Errorf("USAGEKIT_FAULTS_SEED=%d is this schedule", seed)
			}
		}
		t.Logf("USAGEKIT_FAULTS_SEED=%d: %d schedules, %d steps in %v", first, seed-first, steps, time.Since(start).Round(time.Millisecond))
	})
}

// verdict fails the test when the schedule went wrong, and shows it.
func (m *model) verdict(t *testing.T) bool {
	t.Helper()
	if len(m.wrong) > 0 {
		t.Errorf("%s\n\n%s", strings.Join(m.schedule, "\n"), strings.Join(m.wrong, "\n"))
	}
	return len(m.wrong) == 0
}

// modelSeed is USAGEKIT_FAULTS_SEED, else a random one.
func modelSeed(t *testing.T) uint64 {
	text := os.Getenv("USAGEKIT_FAULTS_SEED")
	if text == "" {
		return rand.Uint64() >> 16
	}
	seed, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("USAGEKIT_FAULTS_SEED: %v", err)
	}
	return seed
}

// Without what the product does about it, counts go wrong, and the model sees it.
func TestModelSeesMistakes(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		mistake mistake
		chances chances
		script  func(*model)
		more    bool // N > b, else N < e
	}{
		{"no guard, and answers are lost", mistake{edit: unguarded}, chances{dies: 4, baseFails: 30}, random, true},
		{"no guard, and files come back", mistake{edit: unguarded}, chances{}, powerLosses, true},
		{"an adopted batch gets another writer's id", mistake{renamed: true}, chances{dies: 6}, random, true},
		{"a file goes before the answer is certain", mistake{early: true}, chances{dies: 6}, random, false},
		{"a living writer is adopted", mistake{unlocked: true}, chances{}, random, false},
	} {
		schedules := 0
		for seen := false; !seen; schedules++ {
			if schedules == 300 {
				t.Errorf("%s: not seen in %d schedules", c.name, schedules)
				break
			}
			for _, wrong := range newModel(t, uint64(schedules), c.chances, c.mistake).run(c.script).wrong {
				var e, n, b int64
				_, numbers, _ := strings.Cut(wrong, "…: ")
				k, _ := fmt.Sscanf(numbers, "e %d, N %d, b %d", &e, &n, &b)
				seen = seen || k == 3 && (n > b) == c.more
			}
		}
		t.Logf("%s: seen in schedule %d", c.name, schedules)
	}
}

// unguarded edits statements: guards do not advance, and the inbox is emptied all
// the same.
func unguarded(q string) string {
	q = strings.Replace(q, "SET seq = v.seq", "SET seq = w.seq", 1)
	if strings.HasPrefix(q, "DELETE FROM usage_inbox") {
		return "DELETE FROM usage_inbox"
	}
	return q
}
