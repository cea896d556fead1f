package store

import (
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/usagekit/usagekit/internal/database"
)

// duty is what a store has to get done; each may fail by itself.
type duty int

const (
	toFold duty = iota
	toAdopt
	toSend
	toWatch // the SQLite file
	duties
)

// health is what came of the last attempt of each duty. It logs when they went from working
// to failing or back, or when somebody has to do something else about it.
type health struct {
	log  *slog.Logger
	safe func() string // where counts are that do not reach the tables

	derived, odd sync.Once    // of the lines about what cannot be counted
	through      atomic.Int64 // what the last read was complete through, Unix ms; 0: not known

	mu      sync.Mutex
	errs    [duties]error
	failing time.Time // since when; zero: all works
	advised string    // what the log said last
}

// report keeps what came of an attempt.
func (h *health) report(of duty, err error) {
	what := ""
	if database.NeedsSomebody(err) {
		what = database.Advice(err)
	}
	h.mu.Lock()
	h.errs[of] = err
	now := slices.ContainsFunc(h.errs[:], func(err error) bool { return err != nil })
	since := h.failing
	news := now && since.IsZero() || what != "" && what != h.advised
	switch {
	case now && since.IsZero():
		h.failing = time.Now()
	case !now:
		h.failing, h.advised = time.Time{}, ""
	}
	if what != "" {
		h.advised = what
	}
	h.mu.Unlock()
	switch {
	case news:
		h.log.Warn("usagekit: counts do not reach the tables; "+h.safe()+what, "error", err)
	case !now && !since.IsZero():
		h.log.Info("usagekit: counts reach the tables again", "after", time.Since(since).Round(time.Millisecond))
	}
}

// err is why the last attempt at a duty failed, that of the last one which did; nil: none.
func (h *health) err() (err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range h.errs {
		if e != nil {
			err = e
		}
	}
	return err
}
