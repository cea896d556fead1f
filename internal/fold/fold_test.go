package fold

import (
	"crypto/sha256"
	"fmt"
	"testing"
	"time"

	"github.com/usagekit/usagekit/internal/clock"
	"github.com/usagekit/usagekit/internal/counter"
	"github.com/usagekit/usagekit/internal/crossing"
	"github.com/usagekit/usagekit/internal/dbtest"
)

// BenchmarkMerge decodes and merges what 500 instances send in a second: 500 names
// that all of them count, and 50 of its own each.
func BenchmarkMerge(b *testing.B) {
	payloads := make([][]byte, 500)
	size := 0
	for i := range payloads {
		batch := counter.Batch{Opened: 1_800_000_000_000 + int64(i)}
		for n := range 550 {
			name := fmt.Sprintf("api.GET /resource%d/{id}.latency_50ms", n)
			if n >= 500 {
				name = fmt.Sprintf("user.%d-%d.requests", i, n)
			}
			batch.Counts = append(batch.Counts, counter.Count{Name: name, N: int64(n)*17 + 1})
		}
		payloads[i] = batch.Encode()
		size += len(payloads[i])
	}
	tables := NewTables(clock.New(nil, kept400()), nil, crossing.Watch{}, nil)
	b.ReportMetric(float64(size)/float64(len(payloads)), "B/batch")
	b.ReportAllocs()
	for b.Loop() {
		m := merging{sums: tables.newSums(time.UnixMilli(1_800_000_000_000), clock.Removal{}), now: 1_800_000_000_000, guards: map[string]*guard{}}
		for i, p := range payloads {
			if err := m.merge(b.Context(), nil, waiting{Writer: fmt.Sprint(i), Seq: 1, Payload: p}); err != nil {
				b.Fatal(err)
			}
		}
	}
}

// A fold ends when it has many names, not when it has many bytes: what is left waits
// for the next ones, which take turns among the writers.
func TestFoldOfManyNames(t *testing.T) {
	if dbtest.Race() {
		t.Log("nothing here runs at once, and SQLite, in Go, would take its time")
		return
	}
	s := instanceOn(t, pools(t, "sqlite")())
	s.names = 100
	const writers, names = 3, 20_000 // of more than a piece
	for w := range writers {
		list := make([]string, names)
		for i := range list {
			list[i] = fmt.Sprintf("feature.%x.used", sha256.Sum256([]byte{byte(w), byte(i), byte(i >> 8)}))
		}
		s.arrives(t, fmt.Sprint(w), 1, list...)
	}
	var least int
	if err := s.pool.Get(&least, `SELECT MIN(length(payload)) FROM usage_inbox`); err != nil || least < pieceBytes {
		t.Fatalf("%d bytes are one piece, %v", least, err)
	}
	for left := writers - 1; left >= 0; left-- {
		if r, err := s.Fold(t.Context(), true); err != nil || r.Batches != 1 || r.More != (left > 0) {
			t.Fatalf("%d left: %+v, %v", left, r, err)
		}
	}
	sum := int64(0)
	for _, n := range s.totals(t) {
		sum += n
	}
	if sum != writers*names || s.waits(t, "") != 0 {
		t.Errorf("%d counts, %d batches left", sum, s.waits(t, ""))
	}
}

// BenchmarkFoldSQLite folds batches of 100,000 names, of which 10,000 have a place: three
// rows each.
func BenchmarkFoldSQLite(b *testing.B) {
	s := instanceOf(b, pools(b, "sqlite")(), kept400(), map[string]int{"feature": 10_000})
	list := make([]string, 100_000)
	for i := range list {
		list[i] = fmt.Sprintf("feature.f%d.used", i)
	}
	for seq := 1; b.Loop(); seq++ {
		b.StopTimer()
		s.arrives(b, "w", seq, list...)
		b.StartTimer()
		if r, err := s.Fold(b.Context(), true); err != nil || r.Batches != 1 {
			b.Fatal(r, err)
		}
	}
	b.ReportMetric(float64(b.N)*float64(len(list))/b.Elapsed().Seconds(), "names/s")
}
