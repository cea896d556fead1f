package conformance

import (
	"bytes"
	"crypto/sha256"
	"database/sql/driver"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/usagekit/usagekit/internal/counter"
	"github.com/usagekit/usagekit/internal/dbtest"
	"github.com/usagekit/usagekit/internal/naming"
	"github.com/usagekit/usagekit/store"
)

func one(name string) counter.Count { return counter.Count{Name: name, N: 1} }

// The same batch again: before its fold, after it, and with other counts.
func repeatedBatches(t *testing.T, b *bench) {
	s := b.store(b.config())
	now := time.Now()
	for range 3 {
		b.batch("w", 1, now, one("feature.a.used"))
	}
	b.fold(s)
	for range 3 {
		b.batch("w", 1, now, one("feature.a.used"))
		b.fold(s)
	}
	b.want(s, map[string]int64{"feature.a.used": 1})
	if n := b.logs.count("came again"); n != 0 {
		t.Errorf("an honest repeat was reported %d times", n)
	}
	b.batch("w", 1, now, one("feature.b.used"))
	b.fold(s)
	b.want(s, map[string]int64{"feature.a.used": 1, "feature.b.used": 0})
	if n := b.reported("came again", 1); n != 1 {
		t.Errorf("a repeat with other counts was reported %d times, want 1", n)
	}
	if n := b.number(`SELECT COUNT(*) FROM usage_inbox`); n != 0 {
		t.Errorf("%d rows left in the inbox", n)
	}
}

// A batch that arrives after later ones were folded: it was folded before them.
func lateBatches(t *testing.T, b *bench) {
	s := b.store(b.config())
	now := time.Now()
	for seq := range int64(5) {
		b.batch("w", seq+1, now, one("feature.a.used"))
	}
	b.fold(s)
	for seq := range int64(4) {
		b.batch("w", seq+1, now, one("feature.a.used"))
		b.fold(s)
	}
	b.batch("w", 6, now, one("feature.a.used"))
	b.batch("w", 2, now, one("feature.a.used"))
	b.fold(s)
	b.want(s, map[string]int64{"feature.a.used": 6})
	if n := b.number(`SELECT COUNT(*) FROM usage_inbox`); n != 0 {
		t.Errorf("%d rows left in the inbox", n)
	}
}

func missingBatches(t *testing.T, b *bench) {
	s := b.store(b.config())
	b.batch("w", 1, time.Now(), one("feature.a.used"))
	b.batch("w", 4, time.Now(), one("feature.a.used"))
	b.fold(s)
	b.batch("w", 900, time.Now(), one("feature.a.used"))
	b.fold(s)
	b.want(s, map[string]int64{"feature.a.used": 3})
	if b.reported("missing", 2) != 2 || b.logs.count("from=2 to=3") != 1 || b.logs.count("from=5 to=899") != 1 {
		t.Error("the gaps were not reported")
	}
}

// A database that was restored to before it knew a writer takes what that writer
// sends from then on, and reports the gap.
func forgottenWriter(t *testing.T, b *bench) {
	s := b.store(b.config())
	for range 3 {
		s.Inc("feature.a.used")
		b.flush(s)
	}
	for _, table := range []string{"usage_writers", "usage_metrics", "usage_history"} {
		b.exec(`DELETE FROM ` + table)
	}
	s.Inc("feature.a.used")
	b.flush(s)
	b.want(s, map[string]int64{"feature.a.used": 1})
	if b.reported("missing", 1) != 1 || b.logs.count("from=1 to=3") != 1 {
		t.Error("the gap was not reported")
	}
}

// A batch that the database took and lost is not waited for.
func lostBatch(t *testing.T, b *bench) {
	faults := &dbtest.Faults{}
	s := b.storeOn(b.pool(faults), b.config())
	lost := int64(0)
	var mu sync.Mutex
	faults.Set(func(op dbtest.Op) dbtest.Fault {
		if op.Kind != dbtest.Begin {
			return dbtest.Fault{} // a transaction goes on, for which DELETE may have to wait
		}
		mu.Lock()
		defer mu.Unlock()
		if lost == 0 { // the first after its COMMIT finds it
			res, err := b.db.ExecContext(b.ctx, `DELETE FROM usage_inbox`)
			if err == nil {
				lost, err = res.RowsAffected()
			}
			if err != nil {
				t.Error(err)
			}
		}
		return dbtest.Fault{}
	})
	s.Inc("feature.a.used")
	if err := s.Flush(b.ctx); err == nil || !strings.Contains(err.Error(), "lost counts") {
		t.Errorf("Flush: %v", err)
	}
	s.Inc("feature.a.used")
	b.flush(s)
	b.want(s, map[string]int64{"feature.a.used": 1})
}

// A fold asks for the writers that were seen of late. One that counts again after
// days is, and a batch that waits for longer is found by the first fold of a start.
func quietWriters(t *testing.T, b *bench) {
	s := b.store(b.config())
	for range 2 {
		s.Inc("feature.a.used")
		b.flush(s)
		b.exec(`UPDATE usage_writers SET seen = 0`)
	}
	b.exec(`INSERT INTO usage_writers (writer, seq, sum, seen) VALUES ('old', 0, ?, 0)`, []byte{})
	now := time.Now()
	b.payload("old", 1, now, counter.Batch{Opened: now.UnixMilli(), Counts: []counter.Count{one("feature.a.used")}}.Encode())
	other := b.store(b.config())
	other.Inc("feature.b.used")
	b.flush(other)
	b.want(other, map[string]int64{"feature.a.used": 3, "feature.b.used": 1})
}

// A batch that cannot be read is set aside and counted; all others fold.
func undecodable(t *testing.T, b *bench) {
	s := b.store(b.config())
	now := time.Now()
	good := counter.Batch{Opened: now.UnixMilli(), Counts: []counter.Count{one("feature.a.used")}}.Encode()
	bad := bytes.Clone(good)
	bad[3] ^= 1
	b.payload("w", 1, now, good)
	b.payload("w", 2, now, bad)
	b.payload("w", 3, now, []byte{})
	b.payload("w", 4, now, good)
	b.payload("v", 1, now, good)
	b.fold(s)
	b.want(s, map[string]int64{"feature.a.used": 3, "usagekit.counts.dropped": 2})
	if n := b.number(`SELECT COUNT(*) FROM usage_quarantine WHERE writer = 'w' AND seq IN (2, 3)`); n != 2 {
		t.Errorf("%d of 2 bad batches are kept", n)
	}
	if n := b.reported("cannot be counted", 2); n != 2 {
		t.Errorf("reported %d times, want 2", n)
	}
	b.fold(s)
	b.want(s, map[string]int64{"feature.a.used": 3, "usagekit.counts.dropped": 2})
}

// A name that the database refuses counts under (invalid), and takes nothing along; a
// batch that is refused even so is set aside, alone.
func poisonous(t *testing.T, b *bench) {
	s := b.store(b.config())
	if sqlx.BindType(b.db.DriverName()) == sqlx.DOLLAR { // PostgreSQL, whatever the driver
		b.exec(`CREATE FUNCTION poison() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
IF NEW.key LIKE '%.poison.%' OR NEW.key = 'worse.(invalid).used' THEN RAISE EXCEPTION 'poison' USING ERRCODE = '22000'; END IF; RETURN NEW; END $$;
CREATE TRIGGER poison BEFORE INSERT ON usage_metrics FOR EACH ROW EXECUTE FUNCTION poison()`)
	} else {
		b.exec(`CREATE TRIGGER poison BEFORE INSERT ON usage_metrics WHEN NEW.key LIKE '%.poison.%' OR NEW.key = 'worse.(invalid).used' BEGIN SELECT zeroblob(3000000000); END`)
	}
	now := time.Now()
	for seq := range int64(9) {
		counts := []counter.Count{one("feature.a.used")}
		switch seq {
		case 4:
			counts = append(counts, counter.Count{Name: "worse.poison.used", N: 5})
		case 6:
			for i := range 100 {
				counts = append(counts, one(fmt.Sprintf("user.%d.requests", i)))
			}
			counts[50].Name, counts[77].Name = "feature.poison.used", "feature.poison.again"
		}
		b.batch("w", seq+1, now, counts...)
	}
	b.fold(s)
	for b.number(`SELECT COUNT(*) FROM usage_inbox`) > 0 {
		b.fold(s)
	}
	b.want(s, map[string]int64{
		"feature.a.used": 8, "feature.(invalid).used": 1, "feature.(invalid).again": 1, "user.active.daily": 98, "user.7.requests": 1,
		"usagekit.counts.dropped": 6, // batch 5
	})
	if n := b.number(`SELECT COUNT(*) FROM usage_quarantine WHERE writer = 'w' AND seq = 5`); n != 1 {
		t.Error("the batch that cannot be counted was not kept")
	}
}

// A payload that this release does not know waits, and its writer's later ones
// with it; the others fold.
func laterRelease(t *testing.T, b *bench) {
	s := b.store(b.config())
	now := time.Now()
	good := counter.Batch{Opened: now.UnixMilli(), Counts: []counter.Count{one("feature.a.used")}}.Encode()
	newer := append([]byte{99}, good[1:len(good)-counter.SumSize]...)
	sum := sha256.Sum256(newer)
	newer = append(newer, sum[:counter.SumSize]...)
	b.payload("w", 1, now, good)
	b.payload("w", 2, now, newer)
	b.payload("w", 3, now, good)
	b.payload("v", 1, now, good)
	b.fold(s)
	b.want(s, map[string]int64{"feature.a.used": 2, "usagekit.counts.dropped": 0})
	if n := b.number(`SELECT COUNT(*) FROM usage_inbox WHERE writer = 'w'`); n != 2 {
		t.Errorf("%d of 2 batches wait", n)
	}
	b.fold(s)
	if n := b.reported("later release", 1); n != 1 {
		t.Errorf("reported %d times, want 1", n)
	}
}

// What waits is not in the answer, whatever the clock of its host says.
func completeThrough(t *testing.T, b *bench) {
	s := b.store(b.config())
	b.fold(s)
	b.want(s, map[string]int64{"test.fold.asked": 1})
	folded := s.Stats().FoldedThrough
	before := b.number(`SELECT ` + map[bool]string{true: `CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)`, false: `CAST(unixepoch('subsec') * 1000 AS INTEGER)`}[b.d.Name != "sqlite"])
	b.batch("w", 1, time.Now().Add(time.Hour), one("feature.a.used"))
	b.want(s, map[string]int64{"feature.a.used": 0})
	if through := s.Stats().FoldedThrough; folded.IsZero() || through.Before(folded) || through.UnixMilli() > before {
		t.Errorf("complete through %v, then through %v, though a batch of %v waits", folded, through, time.UnixMilli(before))
	}
	b.fold(s)
	b.want(s, map[string]int64{"feature.a.used": 1})
	if through := s.Stats().FoldedThrough; through.UnixMilli() < before {
		t.Errorf("complete through %v, though all is folded", through)
	}
}

// A batch of a host whose clock is wrong counts as of now.
func future(t *testing.T, b *bench) {
	s := b.store(b.config())
	b.batch("w", 1, time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC), one("feature.a.used"))
	b.batch("w", 2, time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC), one("feature.a.used"))
	b.fold(s)
	history, err := s.History(b.ctx, store.Query{Name: "feature.a.used", Step: store.Month})
	if err != nil || len(history) != 2 || history[0].Start.Year() != 2020 || time.Since(history[1].Start).Abs() > 32*24*time.Hour {
		t.Errorf("History: %v, %v", history, err)
	}
	if b.reported("dated more than a day ahead", 1) != 1 {
		t.Error("the wrong date was not reported")
	}
}

// A holder that died does not stop Flush, nor a fold once its lease ran out.
func deadHolder(t *testing.T, b *bench) {
	s := b.store(b.config())
	b.exec(`UPDATE usage_meta SET value = ? WHERE name = 'lease'`, fmt.Sprintf("dead %d", time.Now().Add(time.Hour).UnixMilli()))
	s.Inc("feature.a.used")
	b.flush(s)
	b.want(s, map[string]int64{"feature.a.used": 1})

	b.exec(`UPDATE usage_meta SET value = ? WHERE name = 'lease'`, fmt.Sprintf("dead %d", time.Now().Add(-time.Hour).UnixMilli()))
	cfg := b.config()
	cfg.Interval = time.Millisecond
	other := b.store(cfg)
	other.Inc("feature.a.used") // no Flush: the store's own fold takes the lease
	deadline := time.Now().Add(dbtest.Limit)
	for {
		n, err := other.Get(b.ctx, "feature.a.used")
		if err == nil && n == 2 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("feature.a.used = %d, %v", n, err)
		}
	}
}

// Every operation of one flush and one fold fails in turn: before it took effect
// and after, with an error of the network and with driver.ErrBadConn. What was
// counted is in the totals once.
func everyOperationFails(t *testing.T, b *bench) {
	for _, after := range []bool{false, true} {
		for _, err := range []error{errors.New("the network is gone"), driver.ErrBadConn} {
			t.Run(fmt.Sprintf("after=%v, %v", after, err), func(t *testing.T) {
				t.Parallel()
				failInTurn(t, newBench(t, b.d), dbtest.Fault{Err: err, After: after, Break: errors.Is(err, driver.ErrBadConn)})
			})
		}
	}
}

func failInTurn(t *testing.T, b *bench, fault dbtest.Fault) {
	faults := &dbtest.Faults{}
	s := b.storeOn(b.pool(faults), b.config())
	want := map[string]int64{}
	step := func() {
		for _, name := range []string{"feature.a.used", "user.1.requests", "api.GET /x.requests"} {
			s.Inc(name)
			want[name]++
		}
		want["api.requests.total"]++
		b.flush(s)
	}
	for i := 1; ; i++ {
		var hit atomic.Pointer[dbtest.Op]
		faults.Set(func(o dbtest.Op) dbtest.Fault {
			if o.N == i && hit.CompareAndSwap(nil, &o) {
				return fault
			}
			return dbtest.Fault{}
		})
		step()
		faults.Set(nil)
		op := hit.Load()
		if op == nil { // one more than there are
			if i < 15 {
				t.Errorf("a flush and a fold are %d operations?", i-1)
			}
			break
		}
		got := b.totals(s, store.Query{Except: []string{"user.active.", "api.requests.today"}})
		if !maps.Equal(got, want) {
			t.Fatalf("%s %q failed:\n got %v\nwant %v", op.Kind, op.Query, got, want)
		}
	}
	b.want(s, map[string]int64{"user.active.daily": 1, "user.active.monthly": 1})
}

// Two stores on one database add, flush, restart, and fail at random; a map knows
// what must have been counted.
func randomOperations(t *testing.T, b *bench) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, seed))
	type instance struct {
		*store.Store
		faults *dbtest.Faults
		db     *sqlx.DB
	}
	start := func(i *instance) {
		s, err := store.New(b.ctx, i.db, b.config())
		if err != nil {
			t.Fatal(err)
		}
		i.Store = s
	}
	var instances []*instance
	for range 2 {
		i := &instance{faults: &dbtest.Faults{}}
		i.db = b.pool(i.faults)
		start(i)
		instances = append(instances, i)
	}
	names := []string{
		"api.GET /a.requests", "api.POST /b.requests", "api.(unmatched).requests", "api.requests.novels", "api.GET /a.status_2xx",
		"user.1.requests", "user.2.requests", "user.a.b.requests", "user.(other).requests", "feature.f.used", "x", "a\x00b.c", "user.\xff.requests", "..", "g.s.",
	}
	model := map[string]int64{}
	add := func(name string, n int64) {
		model[name] = min(model[name]+n, counter.Max)
		if group, subject, measure := naming.Split(name); group == "api" && subject != "requests" && naming.Summed(measure) {
			sum := "api.requests." + strings.Replace(measure, "requests", "total", 1)
			model[sum] = min(model[sum]+n, counter.Max)
		}
	}
	for step := range 150 {
		i := instances[r.IntN(len(instances))]
		switch what := r.IntN(20); {
		case what < 14:
			name, n := names[r.IntN(len(names))], r.Int64N(100)+1
			if r.IntN(50) == 0 && !strings.HasPrefix(name, "user.") { // a full one is no news
				n = counter.Max - r.Int64N(3)
			}
			i.Add(name, n)
			add(naming.Clean(name), n)
		case what < 16: // a flush, some of whose operations fail
			failures := r.IntN(3)
			at, after := 1+r.IntN(20), r.IntN(2) == 0
			i.faults.Set(func(op dbtest.Op) dbtest.Fault {
				if op.N < at || op.N >= at+failures {
					return dbtest.Fault{}
				}
				return dbtest.Fault{Err: errors.New("the network is gone"), After: after}
			})
			b.flush(i.Store)
			i.faults.Set(nil)
		case what < 17:
			if err := i.Shutdown(b.ctx); err != nil {
				t.Fatal(err)
			}
			start(i)
		default:
			b.flush(i.Store)
		}
		if step%10 < 9 {
			continue
		}
		for _, i := range instances {
			b.flush(i.Store)
		}
		got := b.totals(i.Store, store.Query{Except: []string{"user.active.", "api.requests.today"}})
		if !maps.Equal(got, model) {
			t.Fatalf("seed %d, step %d:\n got %v\nwant %v", seed, step, got, model)
		}
	}
	users := int64(0)
	for name := range model {
		if group, subject, measure := naming.Split(name); group == "user" && measure == "requests" && !naming.Reserved(subject) {
			users++
		}
	}
	b.want(instances[0].Store, map[string]int64{"user.active.daily": users, "user.active.monthly": users})
	for _, i := range instances {
		if err := i.Shutdown(b.ctx); err != nil {
			t.Error(err)
		}
	}
}
