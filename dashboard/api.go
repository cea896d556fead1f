package dashboard

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/usagekit/usagekit/internal/naming"
	"github.com/usagekit/usagekit/store"
)

// Names that the store derives, or that the dashboard always shows.
const (
	nameRegistrations = "user.registrations"
	nameDropped       = "usagekit.counts.dropped"
)

const (
	defaultStats  = 100 // counters of a group
	maxStats      = 1_000
	defaultNames  = 1_000
	maxNames      = 10_000
	defaultSeries = 100     // names of a history
	maxNamed      = 1_000   // names that are asked for one by one
	maxExcept     = 100     // prefixes that a store.Query leaves out
	maxPoints     = 100_000 // of a history: names × buckets
	maxDays       = 400     // of a range that ends now
	maxNumber     = 1<<53 - 1
)

// meta is in every answer.
type meta struct {
	AsOf            time.Time  `json:"as_of"`
	CompleteThrough *time.Time `json:"complete_through"` // null: nothing was read yet
	Stale           bool       `json:"stale"`            // the last answer again: there is no other in time
	Slow            bool       `json:"slow,omitempty"`   // of a stale one: there is no other yet, and nothing refused to answer
}

// begin makes the meta of an answer whose reads follow, and reads how many
// counts were dropped. The store learns with every read, whoever's, how far it
// is complete: asked after a first read, it tells what later ones include.
func (h *handler) begin(ctx context.Context) (m meta, dropped int64, err error) {
	dropped, err = h.store.Get(ctx, nameDropped)
	return h.meta(), dropped, err
}

// now is the time by the database's clock, as far as it is known.
func (h *handler) now() time.Time { return time.Now().Add(h.store.Stats().Skew) }

func (h *handler) meta() meta {
	return meta{AsOf: *h.local(h.now()), CompleteThrough: h.local(h.store.Stats().FoldedThrough)}
}

// local is t as answers have it; nil when it is zero.
func (h *handler) local(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.In(h.zone()).Truncate(time.Millisecond)
	return &t
}

// zone is UTC as long as the store does not know the database's.
func (h *handler) zone() *time.Location {
	if zone := h.store.Location(); zone != nil {
		return zone
	}
	return time.UTC
}

type stats struct {
	meta
	Zone          string           `json:"zone"`
	Dropped       int64            `json:"dropped"`
	Stale         bool             `json:"stale"` // meta's own, where it always stood
	TotalRequests int64            `json:"total_requests"`
	RequestsToday int64            `json:"requests_today"`
	API           map[string]int64 `json:"api"`
	Features      map[string]int64 `json:"features"`
	Users         map[string]int64 `json:"users"`
	LLM           map[string]int64 `json:"llm"`
	Errors        map[string]int64 `json:"errors"`
	Other         map[string]int64 `json:"other"`
	Truncated     []string         `json:"truncated"` // the groups with more counters than these
	Capped        []string         `json:"capped"`    // the groups of which some is counted under (other)
}

func (h *handler) stats(p *params) waiting {
	limit := p.limit(defaultStats, maxStats)
	if p.err != nil {
		return refused(p.err)
	}
	wait := h.askStats(limit)
	return func(ctx context.Context) (*content, error) {
		a, how, err := wait(ctx)
		return a.content(how), err
	}
}

type encodedStats struct {
	stats
	encoded
}

func (h *handler) askStats(limit int) func(context.Context) (encodedStats, standing, error) {
	return ask(h.answers, fmt.Sprint("stats ", limit), func(ctx context.Context) (encodedStats, error) {
		s, err := h.readStats(ctx, limit)
		if err != nil {
			return encodedStats{}, err
		}
		return encodedStats{s, h.encode(s)}, nil
	})
}

func (h *handler) readStats(ctx context.Context, limit int) (stats, error) {
	m, dropped, err := h.begin(ctx)
	if err != nil {
		return stats{}, err
	}
	// Most groups are small: a few reads have all of them.
	api, err := h.readPart(ctx, store.Query{Prefix: "api.", Contains: ".requests", Limit: 2*(limit+1) + naming.Measures})
	if err != nil {
		return stats{}, err
	}
	rest, err := h.readPart(ctx, store.Query{Except: []string{"api.", "user."}, Limit: 4 * (limit + 1)})
	if err != nil {
		return stats{}, err
	}
	s := stats{meta: m, Zone: h.zone().String(), Dropped: dropped, Truncated: []string{}, Capped: []string{}}
	for _, group := range []struct {
		key   string
		into  *map[string]int64
		part  part // which holds it, if that is whole
		from  []store.Query
		fixed []string
		over  []string // what they begin with that are beyond a cap
	}{
		{"api", &s.API, api, []store.Query{{Prefix: "api.requests."}, {Prefix: "api.", Measure: "requests"}}, []string{naming.RequestsTotal, naming.RequestsToday}, []string{"api." + naming.Other + ".", "api.requests." + naming.Other}},
		{"features", &s.Features, rest, []store.Query{{Prefix: "feature."}}, nil, []string{"feature." + naming.Other + "."}},
		{"users", &s.Users, part{}, []store.Query{{Prefix: "user."}}, []string{naming.ActiveDaily, naming.ActiveMonthly, nameRegistrations}, []string{"user." + naming.Other + "."}},
		{"llm", &s.LLM, rest, []store.Query{{Prefix: "llm."}}, nil, []string{"llm." + naming.Other + "."}},
		{"errors", &s.Errors, rest, []store.Query{{Prefix: "error."}}, nil, []string{"error." + naming.Other + "."}},
		{"other", &s.Other, rest, []store.Query{{Except: []string{"api.", "feature.", "user.", "llm.", "error."}}}, nil, nil},
	} {
		counters, more, err := h.largest(ctx, limit, group.fixed, group.part, group.from...)
		if err != nil {
			return stats{}, err
		}
		*group.into = counters
		if more {
			s.Truncated = append(s.Truncated, group.key)
		}
		capped, err := h.capped(ctx, counters, more, group.over)
		if err != nil {
			return stats{}, err
		}
		if capped {
			s.Capped = append(s.Capped, group.key)
		}
	}
	s.TotalRequests, s.RequestsToday = s.API[naming.RequestsTotal], s.API[naming.RequestsToday]
	return s, nil
}

// capped tells whether a group has counts beyond a cap: among those found, or else,
// where there are more, in the store, where they begin with one of the prefixes.
func (h *handler) capped(ctx context.Context, found map[string]int64, more bool, prefixes []string) (bool, error) {
	for name := range found {
		_, subject, measure := store.SplitName(name)
		if subject == naming.Other || subject == "requests" && measure == naming.Other {
			return true, nil
		}
	}
	for i := 0; more && i < len(prefixes); i++ {
		counts, err := h.store.Totals(ctx, store.Query{Prefix: prefixes[i], Limit: 1})
		if err != nil || len(counts) > 0 {
			return err == nil, err
		}
	}
	return false, nil
}

// part is what one query found of several groups, the largest first.
type part struct {
	counts []store.Count
	whole  bool // nothing was left out for the Limit
}

func (h *handler) readPart(ctx context.Context, q store.Query) (part, error) {
	counts, err := h.store.Totals(ctx, q)
	return part{counts, len(counts) < q.Limit}, err
}

// totals returns what q, which selects by Prefix, Measure and Except, would
// find in the store, if p has all of it.
func (p part) totals(q store.Query) (counts []store.Count, ok bool) {
	for _, c := range p.counts {
		switch {
		case !strings.HasPrefix(c.Name, q.Prefix):
		case q.Measure != "" && !strings.HasSuffix(c.Name, "."+q.Measure):
		case slices.ContainsFunc(q.Except, func(e string) bool { return strings.HasPrefix(c.Name, e) }):
		case len(counts) < q.Limit:
			counts = append(counts, c)
		}
	}
	return counts, p.whole || len(counts) == q.Limit
}

// largest finds the limit largest counters that any of the queries selects,
// in p or else in the store, and whether there are more. The fixed ones are
// always among them.
func (h *handler) largest(ctx context.Context, limit int, fixed []string, p part, queries ...store.Query) (map[string]int64, bool, error) {
	limit = max(limit, len(fixed))
	all, whole := map[string]int64{}, true
	for _, q := range queries {
		q.Limit = limit + 1 + naming.Measures
		counts, ok := p.totals(q)
		if !ok {
			var err error
			if counts, err = h.store.Totals(ctx, q); err != nil {
				return nil, false, err
			}
		}
		for _, c := range counts {
			if !naming.SumOfRoutes(c.Name) {
				all[c.Name] = c.N
			}
		}
		whole = whole && len(counts) < q.Limit
	}
	top := map[string]int64{}
	for _, name := range fixed {
		n, there := all[name]
		if !there && !whole { // a whole one lacks what was never counted
			var err error
			if n, err = h.store.Get(ctx, name); err != nil {
				return nil, false, err
			}
		}
		top[name] = n
		delete(all, name)
	}
	for _, name := range bySize(all) {
		if len(top) == limit {
			return top, true, nil
		}
		top[name] = all[name]
	}
	return top, false, nil
}

// bySize returns the names in counters, the largest first.
func bySize(counters map[string]int64) []string {
	return slices.SortedFunc(maps.Keys(counters), func(a, b string) int {
		return cmp.Or(cmp.Compare(counters[b], counters[a]), cmp.Compare(a, b))
	})
}

type count struct {
	Name  string     `json:"name"`
	Start *time.Time `json:"start,omitempty"` // of the bucket, in a history
	N     int64      `json:"n"`
}

type totals struct {
	meta
	Counts []count `json:"counts"`
}

func (h *handler) totals(p *params) waiting {
	q := p.query(defaultNames, maxNames, "name")
	if p.err != nil {
		return refused(p.err)
	}
	return askJSON(h, fmt.Sprintf("totals %#v", q), func(ctx context.Context) (totals, error) {
		m, _, err := h.begin(ctx)
		if err != nil {
			return totals{}, err
		}
		counts, err := h.store.Totals(ctx, q)
		if err != nil {
			return totals{}, err
		}
		a := totals{meta: m, Counts: make([]count, len(counts))}
		for i, c := range counts {
			a.Counts[i] = count{Name: c.Name, N: c.N}
		}
		return a, nil
	})
}

type rows struct {
	meta
	Rows []row `json:"rows"`
}

type row struct {
	Group   string           `json:"group"`
	Subject string           `json:"subject"`
	Counts  map[string]int64 `json:"counts"`
	P50     *float64         `json:"p50_ms"` // null: no latency was measured
	P95     *float64         `json:"p95_ms"`
	P99     *float64         `json:"p99_ms"`
}

func (h *handler) rows(p *params) waiting {
	q := p.query(defaultNames, maxNames)
	if p.err != nil {
		return refused(p.err)
	}
	return askJSON(h, fmt.Sprintf("rows %#v", q), func(ctx context.Context) (rows, error) {
		m, _, err := h.begin(ctx)
		if err != nil {
			return rows{}, err
		}
		found, err := h.readRows(ctx, q)
		return rows{m, found}, err
	})
}

func (h *handler) readRows(ctx context.Context, q store.Query) ([]row, error) {
	found, err := h.store.Rows(ctx, q)
	if err != nil {
		return nil, err
	}
	list := make([]row, len(found))
	for i, r := range found {
		list[i] = row{Group: r.Group, Subject: r.Subject, Counts: r.Counts}
		if measured(r) {
			list[i].P50, list[i].P95, list[i].P99 = millis(r, 0.50), millis(r, 0.95), millis(r, 0.99)
		}
	}
	return list, nil
}

func measured(r store.Row) bool {
	for measure, n := range r.Counts {
		if n > 0 && strings.HasPrefix(measure, naming.LatencyPrefix) {
			return true
		}
	}
	return false
}

// millis is a quantile to the tenth of a millisecond.
func millis(r store.Row, p float64) *float64 {
	ms := math.Round(float64(r.Quantile(p))/float64(time.Millisecond/10)) / 10
	return &ms
}

type health struct {
	meta
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
		meta: h.meta(), Status: "ok", Reasons: append(slices.Clone(ofDatabase), others...), Database: ofDatabase,
		Pending: st.Pending, Oldest: h.local(st.Oldest), Lost: st.Lost, Overflow: st.Overflow, Invalid: st.Invalid, Corrupt: st.Corrupt,
	}
	if len(a.Reasons) > 0 {
		a.Status = "degraded"
	}
	c := h.encode(a).fresh
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

// waiting waits for an answer, the reading of which has begun.
type waiting func(context.Context) (*content, error)

// refused is the answer to what cannot be read.
func refused(err error) waiting {
	return func(context.Context) (*content, error) { return nil, err }
}

// answersOf are those that may be asked for together, by their paths below api/.
func (h *handler) answersOf() map[string]func(*params) waiting {
	return map[string]func(*params) waiting{"stats": h.stats, "totals": h.totals, "rows": h.rows, "history": h.history, "series": h.series, "health": h.health}
}

func (h *handler) serveJSON(w http.ResponseWriter, r *http.Request, answer func(*params) waiting) {
	c, err := answer(h.params(r))(r.Context())
	if err != nil {
		failRead(w, r, err)
		return
	}
	w.Header().Set("Cache-Control", "private, no-cache")
	c.send(w, r, typeJSON)
}

// encoded is an answer as it is sent.
type encoded struct {
	fresh       *content
	stale, slow func() *content
}

func (e encoded) content(how standing) *content {
	switch how {
	case stale:
		return e.stale()
	case slow:
		return e.slow()
	}
	return e.fresh
}

// large tells the cache what is not worth keeping for long.
func (e encoded) large() bool { return len(e.fresh.plain) > maxLastSize }

// encode writes an answer that begins with meta. Its ETag is weak: the same while
// nothing but the times of meta is new, a quarter of an hour at most. Who reads them may
// trust that the numbers are those of now, and complete to within a minute of what its
// own complete_through says, or they would have another.
func (h *handler) encode(answer any) encoded {
	body := marshal(answer)
	_, rest, _ := bytes.Cut(body, []byte(`"complete_through":`))
	_, rest, _ = bytes.Cut(rest, []byte(","))
	behind := "never"
	if through := h.store.Stats().FoldedThrough; !through.IsZero() {
		behind = h.now().Sub(through).Truncate(time.Minute).String()
	}
	quarter := h.now().Truncate(15 * time.Minute).String() // what looks at as_of is not far behind
	tag := hash(rest, []byte(behind+quarter))
	again := func(how, said string, late bool) func() *content {
		return sync.OnceValue(func() *content {
			// No name can hold this: a quote would be escaped.
			last := bytes.Replace(body, []byte(`"stale":false`), []byte(said), 1)
			c := newContent(last, `W/"`+tag+"-"+how+`"`, gzip.BestSpeed)
			c.late = late
			return c
		})
	}
	return encoded{
		fresh: newContent(body, `W/"`+tag+`"`, gzip.BestSpeed),
		stale: again("stale", `"stale":true`, false),
		slow:  again("slow", `"stale":true,"slow":true`, true),
	}
}

// askJSON is ask of an answer that begins with meta.
func askJSON[T any](h *handler, key string, read func(context.Context) (T, error)) waiting {
	wait := ask(h.answers, key, func(ctx context.Context) (encoded, error) {
		began := time.Now()
		answer, err := read(ctx)
		if err != nil {
			return encoded{}, err
		}
		e := h.encode(answer)
		e.fresh.took = time.Since(began)
		return e, nil
	})
	return func(ctx context.Context) (*content, error) {
		e, how, err := wait(ctx)
		return e.content(how), err
	}
}
