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
		code  resultCode
	)
	switch {
	case errors.As(err, &state):
		c := class(state) // data exception, constraint violation, limit exceeded
		return c == "22" || c == "23" || c == "54"
	case errors.As(err, &code):
		c := code.Code() & 0xff // TOOBIG, CONSTRAINT, MISMATCH
		return c == 18 || c == 19 || c == 20
	}
	return errors.As(err, &p)
}

// timedOut tells whether err says that something took too long.
func timedOut(err error) bool {
	var (
		state sqlState
		code  resultCode
	)
	return errors.Is(err, context.DeadlineExceeded) ||
		errors.As(err, &state) && state.SQLState() == "57014" || // query_canceled
		errors.As(err, &code) && code.Code()&0xff == 9 // INTERRUPT
}

// siftOut finds the names of a batch that the database refuses. They count under
// (invalid), so that the others of their batch count.
func (s *Store) siftOut(tx *sqlx.Tx, m *merging, w waiting) (map[string]error, error) {
	b, err := counter.Decode(w.Payload)
	if err != nil {
		return nil, err
	}
	tries := maxTries
	refused, err := s.refusedOf(tx, m, b, &tries)
	for name, why := range refused {
		m.report("the database refuses a name, which counts as (invalid)", "batch", w.name(), "name", name, "error", why)
	}
	return refused, err
}

// refusedOf finds those names by halves, each tried and undone.
func (s *Store) refusedOf(tx *sqlx.Tx, m *merging, b counter.Batch, tries *int) (map[string]error, error) {
	if *tries--; *tries < 0 {
		return nil, errTooMany
	}
	if _, err := tx.Exec(`SAVEPOINT usage_try`); err != nil {
		return nil, err
	}
	counts := b.Counts
	sums := s.newSums(time.UnixMilli(m.now), m.pruned)
	for _, c := range counts {
		sums.add(b.Opened, c.Name, c.N)
	}
	_, why := s.apply(tx, sums)
	if _, err := tx.Exec(`ROLLBACK TO SAVEPOINT usage_try`); err != nil {
		return nil, errors.Join(why, err)
	}
	switch {
	case why == nil:
		return nil, nil
	case !poison(why):
		return nil, why
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
