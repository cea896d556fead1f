package fold

import (
	"context"
	"errors"
	"maps"
	"time"

	"github.com/usagekit/usagekit/internal/counter"
	"github.com/usagekit/usagekit/internal/database"
	"github.com/usagekit/usagekit/internal/naming"
)

const (
	maxKept  = 100
	maxTries = 500 // to find the names of a batch that the database refuses

	sqlKept = `SELECT COUNT(*) FROM usage_quarantine`
	sqlKeep = `INSERT INTO usage_quarantine (writer, seq, payload) VALUES (?, ?, ?) ON CONFLICT DO NOTHING`
)

// errTooMany ends the search for the names of a batch that the database refuses.
const errTooMany = database.Fault("store: the database refuses too many names of one batch")

// siftOut finds the names of a batch that the database refuses. They count under
// (invalid), so that the others of their batch count. why is not nil when that is
// refused as well, and the batch cannot be counted. Where nothing at all can be
// counted it is no matter of a batch, and an error.
func (m *merging) siftOut(ctx context.Context, tx *database.Tx, w waiting) (refused map[string]error, why, err error) {
	b, err := counter.Decode(w.Payload)
	if err != nil {
		return nil, err, nil
	}
	if why, err := m.tryOut(ctx, tx, counter.Batch{Opened: m.now, Counts: []counter.Count{{Name: "usagekit.counts.dropped", N: 1}}}); why != nil || err != nil {
		return nil, nil, errors.Join(why, err)
	}
	tries := maxTries
	refused, err = m.refusedOf(ctx, tx, b, &tries)
	if len(refused) > 0 && err == nil {
		for i := range b.Counts {
			b.Counts[i].Name = instead(b.Counts[i].Name, refused)
		}
		why, err = m.tryOut(ctx, tx, b)
	}
	if errors.Is(err, errTooMany) {
		return nil, err, nil
	}
	if err != nil || why != nil {
		return nil, why, err
	}
	for name, why := range refused {
		m.report("the database refuses a name, which counts as (invalid)", "batch", w.name(), "name", name, "error", why)
	}
	return refused, nil, nil
}

// instead is the name under which one is counted: its own, unless it is refused.
func instead(name string, refused map[string]error) string {
	if len(refused) == 0 || refused[naming.Kept(name)] == nil {
		return name
	}
	group, _, measure := naming.Split(name)
	return group + "." + naming.Invalid + "." + measure
}

// tryOut counts a batch, and undoes it: why tells what the database has against it.
func (m *merging) tryOut(ctx context.Context, tx *database.Tx, b counter.Batch) (why, err error) {
	if _, err := tx.Exec(ctx, `SAVEPOINT usage_try`); err != nil {
		return nil, err
	}
	sums := m.tables.newSums(time.UnixMilli(m.now), m.pruned)
	for _, c := range b.Counts {
		sums.add(b.Opened, c.Name, c.N)
	}
	_, why = m.tables.apply(ctx, tx, sums)
	if _, err := tx.Exec(ctx, `ROLLBACK TO SAVEPOINT usage_try`); err != nil {
		return nil, errors.Join(why, err)
	}
	if why != nil && !database.Poison(why) && !database.RuledOut(why) {
		return nil, why
	}
	return why, nil
}

// refusedOf finds those names by halves, each tried and undone.
func (m *merging) refusedOf(ctx context.Context, tx *database.Tx, b counter.Batch, tries *int) (map[string]error, error) {
	if *tries--; *tries < 0 {
		return nil, errTooMany
	}
	counts := b.Counts
	why, err := m.tryOut(ctx, tx, b)
	switch {
	case err != nil || why == nil:
		return nil, err
	case len(counts) == 1:
		return map[string]error{counts[0].Name: why}, nil
	}
	refused := map[string]error{}
	for _, half := range [][]counter.Count{counts[:len(counts)/2], counts[len(counts)/2:]} {
		some, err := m.refusedOf(ctx, tx, counter.Batch{Opened: b.Opened, Counts: half}, tries)
		if err != nil {
			return nil, err
		}
		maps.Copy(refused, some)
	}
	return refused, nil
}

// quarantine keeps a batch that cannot be counted where somebody can look at it.
func (m *merging) quarantine(ctx context.Context, tx *database.Tx, w waiting, why error) error {
	var kept int
	if err := tx.Get(ctx, &kept, sqlKept); err != nil {
		return err
	}
	if kept >= maxKept {
		m.report("a batch cannot be counted, and is dropped: usage_quarantine has as many as are kept", "batch", w.name(), "error", why)
		return nil
	}
	m.report("a batch cannot be counted; it is kept in usage_quarantine", "batch", w.name(), "error", why)
	_, err := tx.Exec(ctx, sqlKeep, w.Writer, w.Seq, append([]byte{}, w.Payload...)) // none of a driver's that makes NULL of an empty one
	return err
}
