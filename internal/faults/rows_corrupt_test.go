package faults

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/usagekit/usagekit/internal/counter"
)

// corruptSpool damages what a dead program left, in a thousand ways. The next start
// must be quick, count no sealed batch that is not whole, and say what it set aside.
func corruptSpool(r *trial) {
	aside, sent := 0, 0
	var slowest time.Duration
	for range int(r.lasts(1000, 100)) {
		dir := filepath.Join(r.TempDir(), "spool")
		left := r.leaveSpool(dir)
		for _, file := range r.filesOf(dir) {
			if r.rng.IntN(3) > 0 {
				r.must(damage(r.rng, file))
			}
		}
		start := time.Now()
		n, gone := r.adopt(dir, left)
		slowest = max(slowest, time.Since(start))
		sent += n
		aside += gone
		r.must(os.RemoveAll(dir))
	}
	r.note("%d batches sent, %d files set aside", sent, aside)
	r.atMost(2*time.Second, "a start took", slowest)
}

const sealedBatches = 2 // the third of a dead program is not

// leaveSpool leaves three batches, by the name of each counter.
func (r *trial) leaveSpool(dir string) (left map[int64]map[string]int64) {
	r.Helper()
	spool := counter.NewSpool(must1(counter.OpenDisk(dir))(r), strings.Repeat("a", 32), func(bool, string, ...any) {})
	set := counter.New(1000, func(string, int64) {}, spool)
	left = map[int64]map[string]int64{}
	for seq := int64(1); seq <= sealedBatches+1; seq++ {
		left[seq] = map[string]int64{}
		for i := range 1 + r.rng.IntN(50) {
			name, n := fmt.Sprintf("user.%d.requests", i), 1+r.rng.Int64N(1000)
			set.Add(name, n)
			left[seq][name] = n
		}
		if seq <= sealedBatches {
			if b, ok := set.Seal(); !ok || !b.Spooled {
				r.notRun("the temporary directory cannot hold a spool")
			}
		}
	}
	spool.Release()
	return left
}

// filesOf are the files below dir.
func (r *trial) filesOf(dir string) []string {
	r.Helper()
	return must1(filepath.Glob(filepath.Join(dir, "*", "*.counts")))(r)
}

// damage changes a part of a file: most often where something stands.
func damage(rng *rand.Rand, file string) error {
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	at := rng.Int64N(4096)
	part := make([]byte, 1+rng.IntN(64))
	switch rng.IntN(4) {
	case 0: // one bit
		part = part[:1]
		if _, err := f.ReadAt(part, at); err != nil {
			return err
		}
		part[0] ^= 1 << rng.IntN(8)
	case 1:
		for i := range part {
			part[i] = byte(rng.Uint32())
		}
	case 2: // zeros, as after a power loss
	case 3:
		return f.Truncate(at)
	}
	_, err = f.WriteAt(part, at)
	return err
}

// adopt starts as the next program does, and returns how many batches were sent
// and how many files set aside.
func (r *trial) adopt(dir string, left map[int64]map[string]int64) (sent, aside int) {
	r.Helper()
	spool := counter.NewSpool(must1(counter.OpenDisk(dir))(r), strings.Repeat("b", 32), func(bool, string, ...any) {})
	r.must(spool.Adopt(func(string) error { return nil }, func(_ string, b counter.Sealed) error {
		sent++
		for _, c := range b.Counts {
			switch {
			case b.Seq > sealedBatches:
				if c.N < 1 || c.N > counter.Max {
					r.Errorf("batch %d, not sealed: %s %d", b.Seq, c.Name, c.N)
				}
			case c.N > left[b.Seq][c.Name]:
				r.Errorf("batch %d, sealed: %s %d, more than the %d that were counted", b.Seq, c.Name, c.N, left[b.Seq][c.Name])
			}
		}
		return nil
	}))
	return sent, spool.Aside()
}
