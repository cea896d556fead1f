package fold

import (
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/usagekit/usagekit/internal/database"
)

// What refuses one name, and whether it is a rule that may be meant to stay.
var refuseOne = map[string]struct {
	on, off string
	rule    bool
}{
	"sqlite/a trigger": {`CREATE TRIGGER never BEFORE INSERT ON usage_metrics WHEN NEW.key = 'feature.bad.used' BEGIN SELECT RAISE(ABORT, 'never'); END`,
		`DROP TRIGGER never`, true},
	"sqlite/a trigger with a mistake": {`CREATE TRIGGER never BEFORE INSERT ON usage_metrics WHEN NEW.key = 'feature.bad.used' BEGIN SELECT json('{'); END`,
		`DROP TRIGGER never`, false},
	"postgres/a CHECK":                      {`ALTER TABLE usage_metrics ADD CONSTRAINT never CHECK (key <> 'feature.bad.used')`, `ALTER TABLE usage_metrics DROP CONSTRAINT never`, true},
	"postgres/a trigger":                    raisesOne("P0001", true),
	"postgres/a trigger that lacks a right": raisesOne("42501", false),
	"postgres/a trigger with a mistake":     raisesOne("XX000", false),
}

func raisesOne(code string, rule bool) struct {
	on, off string
	rule    bool
} {
	return struct {
		on, off string
		rule    bool
	}{`CREATE FUNCTION never() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'never' USING ERRCODE = '` + code + `'; END $$;
CREATE TRIGGER never BEFORE INSERT ON usage_metrics FOR EACH ROW WHEN (NEW.key = 'feature.bad.used') EXECUTE FUNCTION never()`,
		`DROP TRIGGER never ON usage_metrics; DROP FUNCTION never`, rule}
}

// One name that the database refuses keeps its own writer's batches waiting, in their
// order; those of others are folded, and it is said what waits. Once it is undone, or
// has stood for as long as no mistake does, all are in, once.
func TestARefusedNameKeepsOnlyItsOwnWriterWaiting(t *testing.T) {
	for name, c := range refuseOne {
		for _, stays := range []bool{false, true} {
			if stays && !c.rule {
				continue // nobody means that
			}
			t.Run(name+map[bool]string{true: "/stays", false: "/is undone"}[stays], func(t *testing.T) {
				kind, _, _ := strings.Cut(name, "/")
				s := instanceOn(t, pools(t, kind)())
				opened := time.Now()
				seqs := map[string]int{}
				arrives := func(writer string, names ...string) {
					t.Helper()
					seqs[writer]++
					s.arrives(t, writer, seqs[writer], names...)
				}
				waiting := func(writer string) int { return s.waits(t, writer) }
				s.execute(t, c.on)
				arrives("a", "feature.bad.used", "feature.a.used")
				arrives("a", "feature.a.used")
				for range 2 {
					arrives("b", "feature.b.used")
					arrives("c", "feature.c.used")
				}
				var err error
				for range 12 {
					if _, err = s.Fold(t.Context(), true); waiting("b")+waiting("c") == 0 {
						break
					}
				}
				if n := waiting("b") + waiting("c"); n > 0 || waiting("a") != 2 {
					t.Fatalf("%d batches of others wait, and %d of 2 of its own writer, after 12 folds: %v", n, waiting("a"), err)
				}
				arrives("b", "feature.b.used") // a later one does not wait at all
				s.leader.Turn()
				if waiting("b") > 0 {
					t.Error("one that came later waits")
				}
				if err := s.err; err == nil || !strings.Contains(err.Error(), "refuses") {
					t.Errorf("a batch is refused, and its error is %v", err)
				}
				want := map[string]int64{"feature.b.used": 3, "feature.c.used": 2}
				if got := s.totals(t); !maps.Equal(got, want) {
					t.Errorf("got %v\nwant %v", got, want)
				}
				var through int64
				if err := s.pool.GetContext(t.Context(), &through, `SELECT COALESCE((SELECT CAST(value AS BIGINT) FROM usage_meta WHERE name = 'folded'), 0)`); err != nil || through > opened.UnixMilli() {
					t.Errorf("complete through %v, %v, and a batch of %v waits", through, err, opened)
				}
				want["feature.a.used"], want["feature.bad.used"] = 2, 1
				if stays {
					_, _ = s.Fold(t.Context(), true)
					s.stood()
					delete(want, "feature.bad.used")
					want["feature.(invalid).used"] = 1
				} else {
					s.execute(t, c.off)
					arrives("b", "feature.b.used")
					want["feature.b.used"]++
					s.refusedLongAgo()
					if _, err := s.Fold(t.Context(), true); waiting("a") > 1 {
						t.Errorf("after its pause it was not tried again, for others wait: %v", err)
					}
				}
				for range 30 {
					if _, err = s.Fold(t.Context(), true); waiting("a")+waiting("b") == 0 {
						break
					}
				}
				if got := s.totals(t); !maps.Equal(got, want) {
					t.Errorf("in the end: got %v, %v\nwant %v", got, err, want)
				}
				if s.leader.Turn(); s.err != nil {
					t.Errorf("in the end: its error is %v", s.err)
				}
			})
		}
	}
}

// What is refused slows no fold of others: when it is tried again and refused again, they
// are folded together as before; and once one is folded, so are all others at once.
func TestWhatIsRefusedSlowsNoFold(t *testing.T) {
	for kind, which := range map[string]string{"sqlite": "a trigger with a mistake", "postgres": "a trigger that lacks a right"} {
		t.Run(kind, func(t *testing.T) {
			s := instanceOn(t, pools(t, kind)())
			arrive := func(name string, writers ...string) {
				t.Helper()
				for _, writer := range writers {
					s.arrives(t, writer, 1, name)
				}
			}
			refusedAre := func() int { s.refused.mu.Lock(); defer s.refused.mu.Unlock(); return len(s.refused.of) }
			folds := func(want int) {
				t.Helper()
				if f, err := s.Fold(t.Context(), true); err != nil || f.Batches != want {
					t.Errorf("a fold has %d batches, %v; want %d", f.Batches, err, want)
				}
			}
			c := refuseOne[kind+"/"+which]
			s.execute(t, c.on)
			arrive("feature.bad.used", "a", "b", "c")
			for n := 0; refusedAre() < 3; n++ {
				if _, err := s.Fold(t.Context(), true); err == nil || n == 20 {
					t.Fatalf("%d are refused after %d folds: %v", refusedAre(), n+1, err)
				}
			}
			s.memory.size = 0 // as it is after some more folds
			arrive("feature.d.used", "d", "e", "f")
			s.refusedLongAgo()
			if f, err := s.Fold(t.Context(), true); err == nil {
				t.Fatalf("nothing that is refused was tried again: %+v", f)
			}
			folds(3)
			s.execute(t, c.off)
			folds(1)
			folds(2)
		})
	}
}

// Where even the count of what was dropped is refused beside a name, so that its batch
// can be neither counted nor set aside, the others are folded; at once, where they wait;
// and nothing is said any more when another instance has folded it.
func TestWhatCannotBeSetAsideKeepsOnlyItsOwnWriterWaiting(t *testing.T) {
	for kind, c := range map[string]struct{ on, off string }{
		"sqlite": {`CREATE TRIGGER never BEFORE INSERT ON usage_metrics WHEN NEW.key IN ('feature.bad.used', 'usagekit.counts.dropped') BEGIN SELECT RAISE(ABORT, 'never'); END`,
			`DROP TRIGGER never`},
		"postgres": {`ALTER TABLE usage_metrics ADD CONSTRAINT never CHECK (key NOT IN ('feature.bad.used', 'usagekit.counts.dropped'))`,
			`ALTER TABLE usage_metrics DROP CONSTRAINT never`},
	} {
		t.Run(kind, func(t *testing.T) {
			open := pools(t, kind)
			s, other := instanceOn(t, open()), instanceOn(t, open())
			arrives := func(writer string, seq int, name string) { t.Helper(); s.arrives(t, writer, seq, name) }
			s.execute(t, c.on)
			arrives("a", 1, "feature.bad.used")
			if _, err := s.Fold(t.Context(), true); err == nil {
				t.Fatal("it is folded")
			}
			s.stood()
			for seq := range 8 {
				arrives("b", seq+1, "feature.b.used")
				before := int64(seq)
				for n := 0; s.totals(t)["feature.b.used"] == before; n++ {
					s.execute(t, `UPDATE usage_meta SET value = ' 0' WHERE name = 'lease'`)
					wait, _ := s.leader.Turn()
					if folded := s.totals(t)["feature.b.used"] > before; n == 4 || !folded && wait > database.MinBackoff/2 {
						t.Fatalf("batch %d of another writer waits for another %v after %d folds: %v", seq+1, wait, n+1, s.err)
					}
				}
				if s.err == nil {
					t.Error("a batch is refused, and its error is nil")
				}
				if seq%2 == 1 { // it is tried again although others wait
					s.refusedLongAgo()
				}
			}
			s.execute(t, c.off)
			other.foldAll(t)
			arrives("b", 9, "feature.b.used")
			s.execute(t, `UPDATE usage_meta SET value = ' 0' WHERE name = 'lease'`)
			s.memory.swept = 0 // sweepEvery later
			if s.leader.Turn(); s.err != nil {
				t.Errorf("another instance has folded it: %v", s.err)
			}
			if got, want := s.totals(t), (map[string]int64{"feature.bad.used": 1, "feature.b.used": 9}); !maps.Equal(got, want) {
				t.Errorf("got %v\nwant %v", got, want)
			}
		})
	}
}
