package store

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/usagekit/usagekit/internal/clock"
	"github.com/usagekit/usagekit/internal/counter"
	"github.com/usagekit/usagekit/internal/dbtest"
	"github.com/usagekit/usagekit/store/sqlite"
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
	s := &Store{clock: clock.New(nil, Retention{}.kept())}
	b.ReportMetric(float64(size)/float64(len(payloads)), "B/batch")
	b.ReportAllocs()
	for b.Loop() {
		m := merging{sums: s.newSums(time.UnixMilli(1_800_000_000_000), removal{}), now: 1_800_000_000_000, guards: map[string]*guard{}}
		for i, p := range payloads {
			if err := s.merge(b.Context(), nil, &m, waiting{Writer: fmt.Sprint(i), Seq: 1, Payload: p}); err != nil {
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
	db, err := sqlite.Open(filepath.Join(t.TempDir(), "usage.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	s, err := open(t.Context(), db, Config{Caps: map[string]int{}})
	if err != nil {
		t.Fatal(err)
	}
	s.foldNames = 100
	const writers, names = 3, 20_000 // of more than a piece
	for w := range writers {
		b := counter.Batch{Opened: time.Now().UnixMilli()}
		for i := range names {
			b.Counts = append(b.Counts, counter.Count{Name: fmt.Sprintf("feature.%x.used", sha256.Sum256([]byte{byte(w), byte(i), byte(i >> 8)})), N: 1})
		}
		p := b.Encode()
		if len(p) < pieceBytes {
			t.Fatalf("%d bytes are one piece", len(p))
		}
		db.MustExec(`INSERT INTO usage_writers VALUES (?, 0, x'', 0)`, fmt.Sprint(w))
		db.MustExec(`INSERT INTO usage_inbox VALUES (?, 1, ?, ?)`, fmt.Sprint(w), b.Opened, p)
	}
	for left := writers - 1; left >= 0; left-- {
		if f, err := s.fold(t.Context(), true); err != nil || f.batches != 1 || f.more != (left > 0) {
			t.Fatalf("%d left: %+v, %v", left, f, err)
		}
	}
	var sum, rows int
	if err := errors.Join(db.Get(&sum, `SELECT SUM(value) FROM usage_metrics`), db.Get(&rows, `SELECT COUNT(*) FROM usage_inbox`)); err != nil || sum != writers*names || rows != 0 {
		t.Errorf("%d counts, %d batches left, %v", sum, rows, err)
	}
}

// BenchmarkFoldSQLite folds batches of 100,000 names: three rows each.
func BenchmarkFoldSQLite(b *testing.B) {
	db, err := sqlite.Open(filepath.Join(b.TempDir(), "usage.db"))
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	s, err := open(b.Context(), db, Config{})
	if err != nil {
		b.Fatal(err)
	}
	const names = 100_000
	for b.Loop() {
		b.StopTimer()
		for i := range names {
			s.Add(fmt.Sprintf("feature.f%d.used", i), 1)
		}
		s.outbox.Seal()
		if _, err := s.outbox.SendNext(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		if f, err := s.fold(b.Context(), true); err != nil || f.batches != 1 {
			b.Fatal(f, err)
		}
	}
	b.ReportMetric(float64(b.N)*names/b.Elapsed().Seconds(), "names/s")
}
