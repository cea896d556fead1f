package fold

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/usagekit/usagekit/internal/clock"
	"github.com/usagekit/usagekit/internal/counter"
	"github.com/usagekit/usagekit/internal/database"
)

// The guard: two folds of the same batches cannot both advance it.
const sqlAdvance = `UPDATE usage_writers AS w SET seq = v.seq, sum = {unhex v.sum}, seen = ? FROM {v} WHERE w.writer = v.writer AND w.seq = v.guard`

// merging is what a fold gathers before it writes.
type merging struct {
	tables  *Tables
	sums    *sums
	now     int64 // the database's time, Unix ms
	pruned  clock.Removal
	guards  map[string]*guard
	suspect string
	panics  bool
	batches int
	newer   string
	reports []report
}

func (m *merging) report(message string, args ...any) {
	m.reports = append(m.reports, report{message, args})
}

// guard is how far a writer's batches are folded: before, and by this fold.
type guard struct {
	was, seq int64
	sum      []byte
	stopped  bool // at a payload of a later release
}

// merge adds one batch, the next of its writer.
func (m *merging) merge(ctx context.Context, tx *database.Tx, w waiting) error {
	g := m.guards[w.Writer]
	if g == nil {
		g = &guard{was: w.Guard, seq: w.Guard, sum: w.Sum}
		m.guards[w.Writer] = g
	}
	if g.stopped {
		return nil
	}
	sum := counter.Sum(w.Payload)
	if w.Seq <= g.was {
		if !bytes.Equal(sum, g.sum) {
			m.report("a batch came again with other counts, and was not counted: do two processes send the same counts?", "batch", w.name())
		}
		return nil
	}
	payload, err := openPayload(w.Payload)
	if errors.Is(err, counter.ErrVersion) {
		g.stopped, m.newer = true, w.name()
		return nil
	}
	if w.Seq > g.seq+1 {
		m.report("batches are missing: was the database restored, or failed over to a replica that was behind, or a file of the spool set aside?", "writer", w.Writer, "from", g.seq+1, "to", w.Seq-1)
	}
	g.seq, g.sum = w.Seq, sum
	m.batches++
	dropped := int64(1) // at least
	var refused map[string]error
	if err == nil && w.name() == m.suspect {
		why := errors.New("folding it panicked")
		if !m.panics {
			if refused, why, err = m.siftOut(ctx, tx, w); err != nil {
				return err
			}
		}
		if err = why; err != nil {
			dropped = 0
			for _, n := range payload.Counts() {
				dropped = addCapped(dropped, n)
			}
		}
	}
	if err != nil {
		m.sums.add(m.now, "usagekit.counts.dropped", dropped)
		return m.quarantine(ctx, tx, w, err)
	}
	at := payload.Opened
	if at > m.now+24*time.Hour.Milliseconds() {
		m.report("a batch is dated more than a day ahead, and counts as of now: check the clock of its host", "batch", w.name(), "dated", time.UnixMilli(at))
		at = m.now
	}
	for name, n := range payload.Counts() {
		m.sums.add(at, instead(name, refused), n)
	}
	return nil
}

// openPayload keeps a panic in one batch to that batch.
func openPayload(p []byte) (payload counter.Payload, err error) {
	defer func() {
		if v := recover(); v != nil {
			err = database.Panic{Value: v}
		}
	}()
	return counter.Open(p)
}

// advance moves the guards, each from where it was read: compare and set. It is
// what makes a batch count once, whoever folds, however often.
func (m *merging) advance(ctx context.Context, tx *database.Tx) error {
	var writers, sums []string
	var was, seqs []int64
	for _, w := range slices.Sorted(maps.Keys(m.guards)) {
		if g := m.guards[w]; g.seq > g.was {
			writers, sums = append(writers, w), append(sums, hex.EncodeToString(g.sum))
			was, seqs = append(was, g.was), append(seqs, g.seq)
		}
	}
	if len(writers) == 0 {
		return nil
	}
	n, err := tx.Exec(ctx, sqlAdvance, m.pruned.Since(m.now),
		database.List{{Name: "writer", Texts: writers}, {Name: "guard", Numbers: was}, {Name: "seq", Numbers: seqs}, {Name: "sum", Texts: sums}})
	if err != nil {
		return err
	}
	if n != int64(len(writers)) {
		return errConflict
	}
	return nil
}
