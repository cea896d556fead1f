package store

import (
	"context"
	"encoding/base64"
	"errors"
	"maps"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/usagekit/usagekit/internal/counter"
)

// poison tells whether err is due to what was folded, so that trying the same
// again cannot help.
func poison(err error) bool {
	var (
		p     panicError
		state sqlState
	)
	if errors.As(err, &state) {
		c := class(state) // data exception, limit exceeded
		return c == "22" || c == "54"
	}
	switch resultCode(err) {
	case 18, 20: // TOOBIG, MISMATCH
		return true
	}
	return errors.As(err, &p)
}

// ruledOut tells whether err is due to a rule that somebody made for the tables, which
// have none that a batch could break: a constraint, a missing partition, a trigger
// that raises an error. It may be a mistake, and be undone.
func ruledOut(err error) bool {
	var state sqlState
	if errors.As(err, &state) {
		switch class(state) {
		case "09", "23", "27", "2F", "38", "39", "44", "P0":
			return true
		}
		return false
	}
	return resultCode(err) == 19 // CONSTRAINT, which RAISE gives, too
}

// stands takes note that a rule refuses batches now, and tells whether rules have done
// so for refusalPause, never resting for as long: nobody leaves a mistake in place
// for that long, so it is meant. Counts wait, whole, until it stands.
func (m *foldMemory) stands(now time.Time) bool {
	if now.Sub(m.refusedLast) >= refusalPause {
		m.refusedSince = now
	}
	m.refusedLast = now
	return now.Sub(m.refusedSince) >= refusalPause
}

// timedOut tells whether err says that something took too long.
func timedOut(err error) bool {
	var state sqlState
	return errors.Is(err, context.DeadlineExceeded) ||
		errors.As(err, &state) && state.SQLState() == "57014" || // query_canceled
		resultCode(err) == 9 // INTERRUPT
}

// siftOut finds the names of a batch that the database refuses. They count under
// (invalid), so that the others of their batch count. why is not nil when that is
// refused as well, and the batch cannot be counted. Where nothing at all can be
// counted it is no matter of a batch, and an error.
func (s *Store) siftOut(tx *sqlx.Tx, m *merging, w waiting) (refused map[string]error, why, err error) {
	b, err := counter.Decode(w.Payload)
	if err != nil {
		return nil, err, nil
	}
	if why, err := s.tryOut(tx, m, counter.Batch{Opened: m.now, Counts: []counter.Count{{Name: "usagekit.counts.dropped", N: 1}}}); why != nil || err != nil {
		return nil, nil, errors.Join(why, err)
	}
	tries := maxTries
	refused, err = s.refusedOf(tx, m, b, &tries)
	if len(refused) > 0 && err == nil {
		for i := range b.Counts {
			b.Counts[i].Name = instead(b.Counts[i].Name, refused)
		}
		why, err = s.tryOut(tx, m, b)
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
	if len(refused) == 0 || refused[counter.Kept(name)] == nil {
		return name
	}
	group, _, measure := counter.Split(name)
	return group + "." + counter.Invalid + "." + measure
}

// tryOut counts a batch, and undoes it: why tells what the database has against it.
func (s *Store) tryOut(tx *sqlx.Tx, m *merging, b counter.Batch) (why, err error) {
	if _, err := tx.Exec(`SAVEPOINT usage_try`); err != nil {
		return nil, err
	}
	sums := s.newSums(time.UnixMilli(m.now), m.pruned)
	for _, c := range b.Counts {
		sums.add(b.Opened, c.Name, c.N)
	}
	_, why = s.apply(tx, sums)
	if _, err := tx.Exec(`ROLLBACK TO SAVEPOINT usage_try`); err != nil {
		return nil, errors.Join(why, err)
	}
	if why != nil && !poison(why) && !ruledOut(why) {
		return nil, why
	}
	return why, nil
}

// refusedOf finds those names by halves, each tried and undone.
func (s *Store) refusedOf(tx *sqlx.Tx, m *merging, b counter.Batch, tries *int) (map[string]error, error) {
	if *tries--; *tries < 0 {
		return nil, errTooMany
	}
	counts := b.Counts
	why, err := s.tryOut(tx, m, b)
	switch {
	case err != nil || why == nil:
		return nil, err
	case len(counts) == 1:
		return map[string]error{counts[0].Name: why}, nil
	}
	refused := map[string]error{}
	for _, half := range [][]counter.Count{counts[:len(counts)/2], counts[len(counts)/2:]} {
		some, err := s.refusedOf(tx, m, counter.Batch{Opened: b.Opened, Counts: half}, tries)
		if err != nil {
			return nil, err
		}
		maps.Copy(refused, some)
	}
	return refused, nil
}

// setAside keeps a batch that cannot be counted where somebody can look at it.
func (s *Store) setAside(tx *sqlx.Tx, m *merging, w waiting, why error) error {
	var kept int
	if err := tx.Get(&kept, s.sql.text(sqlBadCount)); err != nil {
		return err
	}
	if kept >= badKept {
		m.report("a batch cannot be counted, and is dropped: usage_meta has as many as are kept", "batch", w.name(), "error", why)
		return nil
	}
	m.report("a batch cannot be counted; it is kept in usage_meta", "name", "bad/"+w.name(), "error", why)
	_, err := tx.Exec(s.sql.text(sqlNewMeta), "bad/"+w.name(), base64.StdEncoding.EncodeToString(w.Payload))
	return err
}
