package faults

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/usagekit/usagekit/store"
	"github.com/usagekit/usagekit/store/postgres"
	"github.com/usagekit/usagekit/store/sqlite"
)

// The race: four processes count to 100,000 together, and whoever folds is killed
// around each threshold on the way.
const (
	racers    = 4
	racerIncs = 25_000
	raced     = "feature.race.used"
	raceEvery = 10_000 // between thresholds
)

// raceThresholds come one after the other, so that each kill is near some.
func raceThresholds() (list []store.Threshold) {
	for at := int64(raceEvery); at < racers*racerIncs; at += raceEvery {
		list = append(list,
			store.Threshold{Prefix: "feature.race.", Measure: "used", Value: at},
			store.Threshold{Prefix: "feature.race.", Measure: "used", Step: store.Day, Value: at},
			store.Threshold{Prefix: "api.requests.", Measure: "total", Value: at})
	}
	return list
}

// runRacer counts racerIncs, less what its dead predecessors did, and folds and
// tells until it is asked to end. It marks each Inc that returned with a byte in a file.
func runRacer(args []string) error {
	databaseURL, spool, done, told := args[0], args[1], args[2], args[3]
	takes, err := time.ParseDuration(args[4])
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	marks, err := os.OpenFile(done, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer marks.Close()
	info, err := marks.Stat()
	if err != nil {
		return err
	}
	db, err := postgres.Open(databaseURL)
	if err != nil {
		return err
	}
	defer db.Close()
	usage, err := store.New(ctx, db, store.Config{
		Spool: spool, Interval: 20*time.Millisecond + rand.N(30*time.Millisecond), Thresholds: raceThresholds(),
		Notify: receiver(func(ctx context.Context, c store.Crossing) error {
			time.Sleep(rand.N(20 * time.Millisecond)) // here and below it may be killed
			if rand.N(5) == 0 {
				return errors.New("nobody listens")
			}
			defer time.Sleep(rand.N(20 * time.Millisecond))
			return tell(told, c)
		}),
	})
	if err != nil {
		return err
	}
	fmt.Println("serving nobody")

	var flushes sync.WaitGroup
	flushes.Go(func() { // which folds whoever has the lease, so that folds meet
		for pause(ctx, rand.N(2*time.Second)) {
			_ = usage.Flush(ctx)
		}
	})
	const tick = 10 * time.Millisecond
	route := "api.GET /" + filepath.Base(spool) + ".requests"
	for n := int(info.Size()); n < racerIncs && pause(ctx, tick); {
		for range min(rand.IntN(2*int(racerIncs*tick/takes)), racerIncs-n) {
			usage.Inc(route)
			usage.Inc(raced)
			if _, err := marks.WriteString("."); err != nil {
				return err
			}
			n++
		}
	}
	<-ctx.Done()
	flushes.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), hangs)
	defer cancel()
	return usage.Shutdown(ctx)
}

// receiver is the one of all processes.
func receiver(f func(context.Context, store.Crossing) error) map[string]func(context.Context, store.Crossing) error {
	return map[string]func(context.Context, store.Crossing) error{"file": f}
}

func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// crossingID is what the record of a crossing is named by.
func crossingID(step store.Step, bucket, at int64, name string) string {
	return fmt.Sprintf("%d/%d/%d/%s", step, bucket, at, name)
}

// tell appends a line to a file: who tells, which crossing, and its N.
func tell(path string, c store.Crossing) error {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	bucket := int64(0)
	if c.Step != 0 {
		bucket = c.Start.Unix()
	}
	_, err = fmt.Fprintf(f, "%d %d %s\n", os.Getpid(), c.N, crossingID(c.Step, bucket, c.Value, c.Name))
	return err
}

// TestThresholdsAcrossKills: each crossing is recorded once, with the counts that
// made it, and told at least once, whoever is killed when.
func TestThresholdsAcrossKills(t *testing.T) {
	if shared.server == nil {
		t.Skip("PostgreSQL was not tried: make test does")
	}
	t.Parallel()
	r := &race{trial: newTrial(t, shared, 36, inSpool), dead: map[string]bool{}}
	r.start()
	for i := 0; r.done() < racers*racerIncs; i++ {
		switch i % 3 {
		case 0:
			r.pause(time.Duration(r.rng.Int64N(int64(r.lasts(3*time.Second, 500*time.Millisecond)))))
			r.kill(nil)
		case 1: // the fold that crosses one has just been committed, and most likely nobody was told
			next := r.total()/raceEvery*raceEvery + raceEvery
			r.soon(func() bool { return r.total() >= next })
			r.kill(nil)
		case 2: // one was told, and most likely nobody knows
			was := len(r.lines())
			r.soon(func() bool { return len(r.lines()) > was })
			r.kill(r.teller())
		}
	}
	r.drainRacers()
	r.tellTheRest()
	r.check()
	t.Logf("%d kills, %d of them of the lease's holder", r.kills, r.holders)
}

// race is a trial with the racers as its programs, each with a spool of its own.
type race struct {
	*trial
	dir     string
	told    string // path
	dead    map[string]bool
	holders int // that were killed
}

func (r *race) start() {
	r.Helper()
	r.dir = r.TempDir()
	databaseURL := r.database(setup{}, r.dir)
	r.spool, r.told = filepath.Join(r.dir, "spool"), filepath.Join(r.dir, "told")
	r.must(os.Mkdir(r.spool, 0o700))
	for i := range racers {
		slot := strconv.Itoa(i)
		p := &program{binary: must1(os.Executable())(r.trial), dir: filepath.Join(r.dir, "racer-"+slot)}
		r.must(os.Mkdir(p.dir, 0o700))
		p.args = []string{"racer", databaseURL, filepath.Join(r.spool, slot), r.marks(i), r.told, r.lasts(time.Minute, 8*time.Second).String()}
		r.Cleanup(func() {
			if p.running() {
				_ = p.kill()
			}
			if r.Failed() {
				text, err := p.output()
				r.Logf("racer %d, %v\n%s", i, err, text[max(0, len(text)-5_000):])
			}
		})
		r.must(p.start())
		r.programs = append(r.programs, p)
	}
	r.spoolUsed()
}

func (r *race) marks(i int) string { return filepath.Join(r.dir, "marks-"+strconv.Itoa(i)) }

// done is how many Incs have returned.
func (r *race) done() (n int64) {
	r.Helper()
	for i := range racers {
		info, err := os.Stat(r.marks(i))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		r.must(err)
		n += info.Size()
	}
	return n
}

// soon waits until it is so, or for as long as between two thresholds.
func (r *race) soon(so func() bool) {
	r.Helper()
	for until := time.Now().Add(r.lasts(6*time.Second, time.Second)); !so() && time.Now().Before(until); {
		r.pause(time.Millisecond)
	}
}

// holder returns who has the lease, and which program that is; -1: none that lives.
func (r *race) holder() (writer string, slot int) {
	r.Helper()
	var lease string
	r.must(r.db.QueryRowContext(r.ctx, `SELECT value FROM usage_meta WHERE name = 'lease'`).Scan(&lease))
	writer, _, _ = strings.Cut(lease, " ")
	if writer == "" || r.dead[writer] {
		return writer, -1
	}
	for i := range racers {
		if slices.Contains(r.writers(i), writer) {
			return writer, i
		}
	}
	return writer, -1
}

// writers are those whose directories are in a racer's spool.
func (r *race) writers(slot int) (names []string) {
	r.Helper()
	dirs, err := os.ReadDir(filepath.Join(r.spool, strconv.Itoa(slot)))
	if !errors.Is(err, fs.ErrNotExist) {
		r.must(err)
	}
	for _, d := range dirs {
		if name, ours := strings.CutPrefix(d.Name(), "usagekit-"); ours && d.IsDir() {
			names = append(names, name)
		}
	}
	return names
}

// lines are those of the file that Notify writes to: who, N, which.
func (r *race) lines() (lines [][]string) {
	r.Helper()
	text, err := os.ReadFile(r.told)
	if !errors.Is(err, fs.ErrNotExist) {
		r.must(err)
	}
	for line := range strings.Lines(string(text)) {
		part := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 3)
		if len(part) != 3 {
			r.Fatalf("told: %q", line)
		}
		lines = append(lines, part)
	}
	return lines
}

// teller is the program that told last; nil: it is dead.
func (r *race) teller() *program {
	r.Helper()
	lines := r.lines()
	if len(lines) == 0 {
		return nil
	}
	for _, p := range r.programs {
		if strconv.Itoa(p.cmd.Process.Pid) == lines[len(lines)-1][0] {
			return p
		}
	}
	return nil
}

// kill kills p, or whoever has the lease, or anybody if nobody has, and starts its
// successor on the same spool.
func (r *race) kill(p *program) {
	r.Helper()
	writer, slot := r.holder()
	if p == nil && slot >= 0 {
		p = r.programs[slot]
	} else if p == nil {
		p = r.programs[r.rng.IntN(racers)]
	}
	r.must(p.kill())
	r.kills++
	i := slices.Index(r.programs, p)
	for _, w := range r.writers(i) {
		r.dead[w] = true
	}
	if i == slot {
		r.holders++
	}
	if r.dead[writer] && !r.full {
		// A lease lasts 15 s: here the dead one's runs out at once. The long form waits.
		_, err := r.db.ExecContext(r.ctx, `UPDATE usage_meta SET value = ' 0' WHERE name = 'lease' AND value LIKE $1`, writer+" %")
		r.must(err)
	}
	r.must(p.start())
}

// drainRacers waits until all that was counted is folded, and ends the racers.
func (r *race) drainRacers() {
	r.Helper()
	r.drained = r.eventually(hangs, func() string {
		n := r.one(`SELECT COALESCE(SUM(value), 0) FROM usage_metrics WHERE key = '` + raced + `'`)
		if n < racers*racerIncs {
			return fmt.Sprintf("%d are folded", n)
		}
		for i := range racers {
			if n := len(r.writers(i)); n != 1 {
				return fmt.Sprintf("%d writers are in spool %d", n, i)
			}
		}
		return ""
	})
	for i, p := range r.programs {
		if status, err := p.stop(); status != 0 || err != nil {
			r.Errorf("racer %d: exit status %d, %v", i, status, err)
		}
	}
	r.checkOutputs()
	r.checkSpool()
}

// tellTheRest has another process tell what the dead ones have left.
func (r *race) tellTheRest() {
	r.Helper()
	const pending = `SELECT COUNT(*) FROM usage_notices`
	r.Logf("%d told, %d left by who told them last", len(r.lines()), r.one(pending))
	if !r.full {
		// A claim lasts a minute: here it runs out at once. The long form waits.
		_, err := r.db.ExecContext(r.ctx, `UPDATE usage_notices SET claimed = 0`)
		r.must(err)
	}
	db := must1(postgres.Open(r.url))(r.trial)
	defer db.Close()
	fresh := must1(store.New(r.ctx, db, store.Config{
		Thresholds: raceThresholds(),
		Notify:     receiver(func(_ context.Context, c store.Crossing) error { return tell(r.told, c) }),
	}))(r.trial)
	r.must(fresh.Flush(r.ctx))
	took := r.eventually(hangs, func() string {
		if n := r.one(pending); n > 0 {
			return fmt.Sprintf("%d crossings are not told", n)
		}
		return ""
	})
	r.Logf("all told after %.1f s", took.Seconds())
	r.must(fresh.Shutdown(r.ctx))
}

// check compares what the tables hold with the thresholds, the records, and what was told.
func (r *race) check() {
	r.Helper()
	const least = racers * racerIncs
	most := int64(least + r.kills) // one was killed between an Inc and its mark
	want := map[string]int64{}     // by crossing: what the counter has reached in the end
	rows := must1(r.db.QueryContext(r.ctx, `SELECT 0, 0, key, value FROM usage_metrics UNION ALL SELECT step, bucket, key, value FROM usage_history`))(r.trial)
	defer rows.Close()
	for rows.Next() {
		var step store.Step
		var bucket, n int64
		var name string
		r.must(rows.Scan(&step, &bucket, &name, &n))
		if step == 0 && (name == raced || name == requestsTotal) {
			r.Logf("%s: %d", name, n)
			if n < least || n > most {
				r.Errorf("%s is %d, want %d … %d", name, n, least, most)
			}
		}
		for _, t := range raceThresholds() {
			if step == t.Step && n >= t.Value && strings.HasPrefix(name, t.Prefix) && strings.HasSuffix(name, "."+t.Measure) {
				want[crossingID(step, bucket, t.Value, name)] = n
			}
		}
	}
	r.must(rows.Err())

	recorded := r.recorded()
	if got, want := slices.Sorted(maps.Keys(recorded)), slices.Sorted(maps.Keys(want)); !slices.Equal(got, want) {
		r.Errorf("recorded %q\nwant %q", got, want)
	}
	if len(want) < 18 { // those of all time; a day may end meanwhile
		r.Errorf("only %d crossings", len(want))
	}
	for id, n := range recorded {
		at := must1(strconv.ParseInt(strings.Split(id, "/")[2], 10, 64))(r.trial)
		if n < at || n > want[id] {
			r.Errorf("%s is recorded at %d; the counter has reached %d", id, n, want[id])
		}
	}
	told := map[string]int{}
	for _, l := range r.lines() {
		told[l[2]]++
		if n := must1(strconv.ParseInt(l[1], 10, 64))(r.trial); n != recorded[l[2]] {
			r.Errorf("%s is told with N %d, and recorded with %d", l[2], n, recorded[l[2]])
		}
	}
	for id := range want {
		if told[id] == 0 {
			r.Errorf("%s is not told", id)
		}
	}
	r.Logf("%d crossings, told %d times", len(recorded), len(r.lines()))
}

// recorded are the crossings that the database knows, each with its N.
func (r *race) recorded() map[string]int64 {
	r.Helper()
	rows := must1(r.db.QueryContext(r.ctx, `SELECT step || '/' || bucket || '/' || value || '/' || key, n FROM usage_crossings`))(r.trial)
	defer rows.Close()
	all := map[string]int64{}
	for rows.Next() {
		var name string
		var n int64
		r.must(rows.Scan(&name, &n))
		all[name] = n
	}
	r.must(rows.Err())
	return all
}

// notified starts a store of this process, on a SQLite file, and counts past its one
// threshold. Notify calls f with how many calls there were before.
func notified(t *testing.T, f func(ctx context.Context, call int) error) (usage *store.Store, pending func() int) {
	t.Helper()
	db, err := sqlite.Open(filepath.Join(t.TempDir(), "usage.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	calls := make(chan int, 1) // holds how many there were
	calls <- 0
	usage, err = store.New(t.Context(), db, store.Config{
		Interval:   10 * time.Millisecond,
		Logger:     slog.New(slog.NewTextHandler(io.Discard, nil)),
		Thresholds: []store.Threshold{{Prefix: "feature.race.", Measure: "used", Value: 3}},
		Notify: receiver(func(ctx context.Context, c store.Crossing) error {
			if c.Name != raced || c.Step != 0 || c.Value != 3 || c.N != 5 {
				t.Errorf("told of %+v", c)
			}
			n := <-calls
			calls <- n + 1
			return f(ctx, n)
		}),
	})
	if err != nil {
		t.Fatal(err)
	}
	usage.Add(raced, 5)
	if err := usage.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	return usage, func() (n int) {
		t.Helper()
		if err := db.GetContext(t.Context(), &n, `SELECT COUNT(*) FROM usage_notices`); err != nil {
			t.Fatal(err)
		}
		return n
	}
}

// A Notify that fails, panics, or takes longer than its deadline is asked again until
// it returns nil, and then no more.
func TestThresholdIsToldUntilThatWorks(t *testing.T) {
	t.Parallel()
	waits := shared.all // for as long as the deadline, 10 s
	var mu sync.Mutex
	var said []string
	say := func(what string) {
		mu.Lock()
		defer mu.Unlock()
		said = append(said, what)
	}
	usage, pending := notified(t, func(ctx context.Context, call int) error {
		switch {
		case call == 0:
			say("failed")
			return errors.New("the mail server is away")
		case call == 1:
			say("panicked")
			panic("a mistake of the application")
		case call == 2 && waits:
			<-ctx.Done()
			time.Sleep(100 * time.Millisecond) // longer than allowed
			say("late")
			return nil // nobody knows
		}
		say("told")
		return nil
	})
	want := []string{"failed", "panicked", "told"}
	if waits {
		want = []string{"failed", "panicked", "late", "told"}
	}
	for until := time.Now().Add(hangs); pending() > 0 && time.Now().Before(until); {
		time.Sleep(10 * time.Millisecond)
	}
	time.Sleep(100 * time.Millisecond) // no more
	if err := usage.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if n := pending(); n != 0 {
		t.Errorf("%d are still to be told", n)
	}
	mu.Lock()
	defer mu.Unlock()
	if !slices.Equal(said, want) {
		t.Errorf("%q, want %q", said, want)
	}
}

// Shutdown does not wait for a Notify that hangs, whose context it ends; what was not
// told then stays to be told.
func TestThresholdShutdownWhileNotifyHangs(t *testing.T) {
	t.Parallel()
	for _, heeds := range []bool{true, false} {
		hanging, release, returned := make(chan struct{}), make(chan struct{}), make(chan struct{})
		usage, pending := notified(t, func(ctx context.Context, _ int) error {
			defer close(returned)
			close(hanging)
			<-ctx.Done()
			if !heeds {
				<-release
			}
			return ctx.Err()
		})
		<-hanging
		ctx, cancel := context.WithTimeout(t.Context(), hangs)
		if err := errors.Join(usage.Shutdown(ctx), ctx.Err()); err != nil {
			t.Errorf("heeds its context %t: Shutdown: %v", heeds, err)
		}
		cancel()
		if n := pending(); n != 1 {
			t.Errorf("heeds its context %t: %d are still to be told, want 1", heeds, n)
		}
		close(release)
		<-returned
	}
}
