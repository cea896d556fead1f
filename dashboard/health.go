package dashboard

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/usagekit/usagekit/store"
)

type health struct {
	Status   string     `json:"status"`   // "ok" or "degraded"
	Reasons  []string   `json:"reasons"`  // why it is not ok
	Database []string   `json:"database"` // those of the reasons that come of the database
	Pending  int        `json:"pending"`  // names counted here and not yet in the database
	Oldest   *time.Time `json:"oldest"`   // when the first of them was counted
	Lost     int64      `json:"lost"`
	Overflow int64      `json:"overflow"`
	Invalid  int64      `json:"invalid"`
	Corrupt  int        `json:"corrupt_files"` // of the spool, set aside
}

// health asks the store itself, never the database.
func (h *handler) health(p *params) waiting {
	if p.only(); p.err != nil {
		return refused(p.err)
	}
	st := h.store.Stats()
	ofDatabase, others := troubles(st, time.Now())
	a := health{
		Status: "ok", Reasons: append(slices.Clone(ofDatabase), others...), Database: ofDatabase,
		Pending: st.Pending, Oldest: h.local(st.Oldest), Lost: st.Lost, Overflow: st.Overflow, Invalid: st.Invalid, Corrupt: st.Corrupt,
	}
	if len(a.Reasons) > 0 {
		a.Status = "degraded"
	}
	now := time.Now().Add(time.Duration(h.ahead.Load())) // without asking it
	m := meta{AsOf: *h.local(now), CompleteThrough: h.local(st.FoldedThrough)}
	c := h.encode(m, a).fresh
	if len(a.Reasons) > 0 {
		c.status = http.StatusServiceUnavailable
	}
	return func(context.Context) (*content, error) { return c, nil }
}

func (h *handler) serveHealth(w http.ResponseWriter, r *http.Request) {
	c, err := h.health(h.params(r))(r.Context())
	if err != nil {
		failRead(w, r, err)
		return
	}
	write(w, r, cmp.Or(c.status, http.StatusOK), typeJSON, c.plain)
}

// troubles says what is wrong with the store: what comes of the database, and the rest.
// A driver's own text stays in the log: nobody knows what it writes into it.
func troubles(st store.Stats, now time.Time) (ofDatabase, others []string) {
	why, others := []string{}, []string{}
	var (
		ours  interface{ Reason() string }
		state interface{ SQLState() string }
	)
	switch {
	case st.Err == nil:
	case errors.As(st.Err, &ours):
		why = append(why, ours.Reason())
	case errors.As(st.Err, &state):
		why = append(why, fmt.Sprintf("the database refuses what is written (SQLSTATE %s); the application's log says why", state.SQLState()))
	default:
		why = append(why, "the last write to the database failed; the application's log says why")
	}
	if st.Err != nil && st.Pending > 0 && !st.Oldest.IsZero() {
		why = append(why, fmt.Sprintf("%d names have counts that wait for the database, the oldest for %v", st.Pending, now.Sub(st.Oldest).Round(time.Second)))
	}
	if st.Degraded != "" {
		others = append(others, st.Degraded)
	}
	if st.Corrupt > 0 {
		others = append(others, fmt.Sprintf("%d files of the spool could not be used since the start, and were set aside as *.corrupt; the application's log says which", st.Corrupt))
	}
	return why, others
}
