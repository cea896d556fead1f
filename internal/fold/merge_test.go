package fold

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/usagekit/usagekit/internal/clock"
	"github.com/usagekit/usagekit/internal/counter"
	"github.com/usagekit/usagekit/internal/crossing"
)

// lines are the messages of what is to be logged of a fold.
func (r Result) lines() (list []string) {
	for _, line := range r.reports {
		list = append(list, line.message)
	}
	return list
}

// What arrives again counts once, whether its number was folded long ago or last; that it
// came with other counts is said, and that some are missing before it.
func TestABatchThatArrivesAgainCountsOnce(t *testing.T) {
	onEach(t, func(t *testing.T, s *instance) {
		fold := func(batches int, said string) {
			t.Helper()
			r, err := s.Fold(t.Context(), true)
			if err != nil || r.Batches != batches || len(r.lines()) > 0 != (said != "") || said != "" && !strings.Contains(r.lines()[0], said) {
				t.Errorf("%d batches, %v, %q; want %d, and %q", r.Batches, err, r.lines(), batches, said)
			}
			if n := s.waits(t, ""); n != 0 {
				t.Errorf("%d stay in the inbox", n)
			}
		}
		s.arrives(t, "w", 1, "feature.a.used")
		s.arrives(t, "w", 2, "feature.a.used")
		fold(2, "")
		var last []byte // as it was sent
		s.arrives(t, "w", 3, "feature.a.used")
		if err := s.pool.Get(&last, `SELECT payload FROM usage_inbox WHERE seq = 3`); err != nil {
			t.Fatal(err)
		}
		fold(1, "")
		s.execute(t, `INSERT INTO usage_inbox (writer, seq, opened, payload) VALUES ('w', 3, 1, ?)`, last)
		fold(0, "")
		s.arrives(t, "w", 1, "feature.a.used")
		fold(0, "")
		s.arrives(t, "w", 3, "feature.b.used")
		fold(0, "came again with other counts")
		s.arrives(t, "w", 6, "feature.a.used")
		fold(1, "batches are missing")
		if got, want := s.totals(t), (map[string]int64{"feature.a.used": 4}); !maps.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	})
}

// A fold that cannot take all takes the first batch of every writer before the second of
// any, however old that is; of one writer it takes so many at a time.
func TestAFoldIsFair(t *testing.T) {
	onEach(t, func(t *testing.T, s *instance) {
		for seq := range 2 * foldDepth {
			s.arrives(t, "a", seq+1, "feature.a.used")
		}
		time.Sleep(2 * time.Millisecond) // they are younger
		s.arrives(t, "b", 1, "feature.b.used")
		s.arrives(t, "c", 1, "feature.c.used")
		var size int
		if err := s.pool.Get(&size, `SELECT MAX(length(payload)) FROM usage_inbox`); err != nil {
			t.Fatal(err)
		}
		s.memory.size = 4 * size
		for fold, want := range [][]int{{2*foldDepth - 2, 0, 0}, {foldDepth - 2, 0, 0}, {0, 0, 0}} {
			r, err := s.Fold(t.Context(), true)
			s.memory.size = foldBytes
			if got := []int{s.waits(t, "a"), s.waits(t, "b"), s.waits(t, "c")}; err != nil || !slices.Equal(got, want) || r.More != (fold < 2) {
				t.Errorf("after fold %d %v wait, %v, want %v; others wait: %v", fold+1, got, err, want, r.More)
			}
		}
	})
}

// A batch of the future counts as of now, and one of a later release stops its writer
// alone.
func TestBatchesOfAnotherTime(t *testing.T) {
	onEach(t, func(t *testing.T, s *instance) {
		put := func(writer string, seq int, payload []byte) {
			t.Helper()
			s.execute(t, `INSERT INTO usage_writers (writer, seq, sum, seen) VALUES (?, 0, ?, 4000000000000) ON CONFLICT DO NOTHING`, writer, []byte{})
			s.execute(t, `INSERT INTO usage_inbox (writer, seq, opened, payload) VALUES (?, ?, 1, ?)`, writer, seq, payload)
		}
		batch := counter.Batch{Opened: time.Now().AddDate(1, 0, 0).UnixMilli(), Counts: []counter.Count{{Name: "feature.a.used", N: 1}}}
		put("ahead", 1, batch.Encode())
		put("later", 1, later(batch.Encode()))
		s.arrives(t, "later", 2, "feature.b.used")
		r, err := s.Fold(t.Context(), true)
		if err != nil || r.Batches != 1 || r.newer != "later/1" || len(r.lines()) != 1 || !strings.Contains(r.lines()[0], "dated more than a day ahead") {
			t.Errorf("%d batches, %v, %q is of a later release, %q", r.Batches, err, r.newer, r.lines())
		}
		if got, want := s.totals(t), (map[string]int64{"feature.a.used": 1}); !maps.Equal(got, want) || s.waits(t, "later") != 2 {
			t.Errorf("got %v, want %v; %d of 2 wait", got, want, s.waits(t, "later"))
		}
		var ahead int
		if err := s.pool.Get(&ahead, fmt.Sprintf(`SELECT COUNT(*) FROM usage_history WHERE bucket > %d`, time.Now().Unix())); err != nil || ahead > 0 {
			t.Errorf("%d rows of history lie ahead, %v", ahead, err)
		}
	})
}

// later returns a payload as a later release may write it.
func later(payload []byte) []byte {
	payload = append([]byte{99}, payload[1:len(payload)-counter.SumSize]...)
	sum := sha256.Sum256(payload)
	return append(payload, sum[:counter.SumSize]...)
}

// A clock that is far off decides nothing about what is old.
func TestFoldWithAWrongClock(t *testing.T) {
	tables := NewTables(clock.New(nil, kept400()), nil, crossing.Watch{}, nil)
	for ago, want := range map[time.Duration]int{0: 2, 500 * 24 * time.Hour: 0} {
		for _, off := range []time.Duration{0, 2 * 365 * 24 * time.Hour, -2 * 365 * 24 * time.Hour} {
			if off != 0 {
				want = 2
			}
			now := time.Now().Add(off)
			sums := tables.newSums(now, clock.Removal{Last: now.UnixMilli()})
			sums.add(time.Now().Add(-ago-time.Hour).UnixMilli(), "feature.a.used", 1)
			if _, history, _ := sums.rows(); len(history) != want {
				t.Errorf("%v old, by a clock that is %v off: %d rows of history, want %d", ago, off, len(history), want)
			}
		}
	}
}
