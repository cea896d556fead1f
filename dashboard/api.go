package dashboard

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/usagekit/usagekit/store"
)

// Names that the store derives, or that the dashboard always shows.
const (
	nameTotal         = "api.requests.total"
	nameToday         = "api.requests.today"
	nameActiveDaily   = "user.active.daily"
	nameActiveMonthly = "user.active.monthly"
	nameRegistrations = "user.registrations"
	nameDropped       = "usagekit.counts.dropped"
)

const (
	defaultStats  = 100 // counters of a group
	maxStats      = 1_000
	defaultNames  = 1_000
	maxNames      = 10_000
	defaultSeries = 100     // names of a history
	maxPoints     = 100_000 // of a history: names × buckets
)

// meta is in every answer.
type meta struct {
	AsOf            time.Time  `json:"as_of"`
	CompleteThrough *time.Time `json:"complete_through"` // null: nothing was read yet
	Stale           bool       `json:"stale"`            // the last answer again: the database does not answer
}

// begin makes the meta of an answer whose reads follow, and reads how many
// counts were dropped. The store learns with every read, whoever's, how far it
// is complete: asked after a first read, it tells what later ones include.
func (h *handler) begin(ctx context.Context) (m meta, dropped int64, err error) {
	dropped, err = h.store.Get(ctx, nameDropped)
	return h.meta(), dropped, err
}

func (h *handler) meta() meta {
	return meta{AsOf: *h.local(time.Now()), CompleteThrough: h.local(h.store.Stats().FoldedThrough)}
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

func (h *handler) stats(ctx context.Context, p *params) (any, error) {
	limit := p.limit(defaultStats, maxStats)
	if p.err != nil {
		return nil, p.err
	}
	s, stale, err := h.askStats(limit)(ctx)
	s.Stale = stale
	return s, err
}

func (h *handler) askStats(limit int) func(context.Context) (stats, bool, error) {
	return ask(h.answers, fmt.Sprint("stats ", limit), func(ctx context.Context) (stats, error) {
		return h.readStats(ctx, limit)
	})
}

func (h *handler) readStats(ctx context.Context, limit int) (stats, error) {
	m, dropped, err := h.begin(ctx)
	if err != nil {
		return stats{}, err
	}
	// Most groups are small: a few reads have all of them.
	api, err := h.readPart(ctx, store.Query{Prefix: "api.", Contains: ".requests", Limit: 2 * (limit + 1)})
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
		{"api", &s.API, api, []store.Query{{Prefix: "api.requests."}, {Prefix: "api.", Measure: "requests"}}, []string{nameTotal, nameToday}, []string{"api.(other).", "api.requests.(other)"}},
		{"features", &s.Features, rest, []store.Query{{Prefix: "feature."}}, nil, []string{"feature.(other)."}},
		{"users", &s.Users, part{}, []store.Query{{Prefix: "user."}}, []string{nameActiveDaily, nameActiveMonthly, nameRegistrations}, []string{"user.(other)."}},
		{"llm", &s.LLM, rest, []store.Query{{Prefix: "llm."}}, nil, []string{"llm.(other)."}},
		{"errors", &s.Errors, rest, []store.Query{{Prefix: "error."}}, nil, []string{"error.(other)."}},
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
	s.TotalRequests, s.RequestsToday = s.API[nameTotal], s.API[nameToday]
	return s, nil
}

// capped tells whether a group has counts beyond a cap: among those found, or else,
// where there are more, in the store, where they begin with one of the prefixes.
func (h *handler) capped(ctx context.Context, found map[string]int64, more bool, prefixes []string) (bool, error) {
	for name := range found {
		_, subject, measure := store.SplitName(name)
		if subject == "(other)" || subject == "requests" && measure == "(other)" {
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
		q.Limit = limit + 1
		counts, ok := p.totals(q)
		if !ok {
			var err error
			if counts, err = h.store.Totals(ctx, q); err != nil {
				return nil, false, err
			}
		}
		for _, c := range counts {
			all[c.Name] = c.N
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

func (h *handler) totals(ctx context.Context, p *params) (any, error) {
	q := p.query(defaultNames, "name", "prefix", "measure", "contains")
	if p.err != nil {
		return nil, p.err
	}
	a, stale, err := ask(h.answers, fmt.Sprintf("totals %#v", q), func(ctx context.Context) (totals, error) {
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
	})(ctx)
	a.Stale = stale
	return a, err
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

func (h *handler) rows(ctx context.Context, p *params) (any, error) {
	q := p.query(defaultNames, "prefix", "measure", "contains")
	if p.err != nil {
		return nil, p.err
	}
	a, stale, err := ask(h.answers, fmt.Sprintf("rows %#v", q), func(ctx context.Context) (rows, error) {
		m, _, err := h.begin(ctx)
		if err != nil {
			return rows{}, err
		}
		found, err := h.readRows(ctx, q)
		return rows{m, found}, err
	})(ctx)
	a.Stale = stale
	return a, err
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
		if n > 0 && strings.HasPrefix(measure, "latency_") {
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

type history struct {
	meta
	Step   string  `json:"step"`
	Counts []count `json:"counts"`
}

func (h *handler) history(ctx context.Context, p *params) (any, error) {
	q := p.query(defaultSeries, "name", "prefix", "measure", "contains", "step")
	step := cmp.Or(p.get("step"), "day") // kept, or summed, for every group
	switch step {
	case "hour":
		q.Step = store.Hour
	case "day":
		q.Step = store.Day
	case "month":
		q.Step = store.Month
	default:
		p.fail("step must be hour, day or month, not %q", short(step))
	}
	if p.err != nil {
		return nil, p.err
	}
	a, stale, err := ask(h.answers, fmt.Sprintf("history %#v", q), func(ctx context.Context) (history, error) {
		m, _, err := h.begin(ctx)
		if err != nil {
			return history{}, err
		}
		counts, err := h.store.History(ctx, q)
		if err != nil {
			return history{}, err
		}
		if len(counts) > maxPoints {
			return history{}, paramError(fmt.Sprintf("this history has %d points, at most %d are answered: shorten from to to, ask for a longer step or a smaller limit", len(counts), maxPoints))
		}
		a := history{meta: m, Step: step, Counts: make([]count, len(counts))}
		for i, c := range counts {
			a.Counts[i] = count{Name: c.Name, Start: h.local(c.Start), N: c.N}
		}
		return a, nil
	})(ctx)
	a.Stale = stale
	return a, err
}

type health struct {
	meta
	Status   string     `json:"status"`  // "ok" or "degraded"
	Reasons  []string   `json:"reasons"` // why it is not ok
	Pending  int        `json:"pending"` // names counted here and not yet in the database
	Oldest   *time.Time `json:"oldest"`  // when the first of them was counted
	Lost     int64      `json:"lost"`
	Overflow int64      `json:"overflow"`
	Invalid  int64      `json:"invalid"`
	Corrupt  int        `json:"corrupt_files"` // of the spool, set aside
}

// serveHealth asks the store itself, never the database.
func (h *handler) serveHealth(w http.ResponseWriter, r *http.Request) {
	p := h.params(r)
	if p.only(); p.err != nil {
		failRead(w, r, p.err)
		return
	}
	st := h.store.Stats()
	a := health{
		meta: h.meta(), Status: "ok", Reasons: troubles(st, time.Now()),
		Pending: st.Pending, Oldest: h.local(st.Oldest), Lost: st.Lost, Overflow: st.Overflow, Invalid: st.Invalid, Corrupt: st.Corrupt,
	}
	status := http.StatusOK
	if len(a.Reasons) > 0 {
		a.Status, status = "degraded", http.StatusServiceUnavailable
	}
	writeJSON(w, r, status, a)
}

// troubles says what is wrong with the store. A driver's own text stays in the log:
// nobody knows what it writes into it.
func troubles(st store.Stats, now time.Time) []string {
	why := []string{}
	var (
		ours  interface{ Reason() string }
		state interface{ SQLState() string }
	)
	switch {
	case st.Err == nil:
	case errors.As(st.Err, &ours):
		why = append(why, ours.Reason())
	case errors.As(st.Err, &state):
		why = append(why, fmt.Sprintf("the database refuses what is written (SQLSTATE %s); the log knows more", state.SQLState()))
	default:
		why = append(why, "the last write to the database failed; the log knows more")
	}
	if st.Err != nil && st.Pending > 0 && !st.Oldest.IsZero() {
		why = append(why, fmt.Sprintf("%d names have counts that wait for the database, the oldest for %v", st.Pending, now.Sub(st.Oldest).Round(time.Second)))
	}
	if st.Degraded != "" {
		why = append(why, st.Degraded)
	}
	if st.Corrupt > 0 {
		why = append(why, fmt.Sprintf("%d files of the spool could not be used since the start, and were set aside as *.corrupt; the log knows more", st.Corrupt))
	}
	return why
}

func (h *handler) serveJSON(w http.ResponseWriter, r *http.Request, answer func(context.Context, *params) (any, error)) {
	v, err := answer(r.Context(), h.params(r))
	if err != nil {
		failRead(w, r, err)
		return
	}
	writeJSON(w, r, http.StatusOK, v)
}

// badRequest is an error that is the caller's: what it says may be shown. The
// store's errors about a Query are such.
type badRequest interface {
	error
	InvalidQuery() string
}

type paramError string

func (e paramError) Error() string        { return "dashboard: " + string(e) }
func (e paramError) InvalidQuery() string { return string(e) }

// params reads a query string. The first mistake stays in err, and a
// parameter that nobody asked for is one: a misspelt filter must not answer
// with everything.
type params struct {
	values url.Values
	zone   *time.Location
	err    error
}

func (h *handler) params(r *http.Request) *params {
	p := &params{zone: h.zone()}
	var err error
	if p.values, err = url.ParseQuery(r.URL.RawQuery); err != nil {
		p.fail("malformed query string: %s", short(err.Error()))
	}
	return p
}

func (p *params) fail(format string, args ...any) {
	if p.err == nil {
		p.err = paramError(fmt.Sprintf(format, args...))
	}
}

// only refuses every parameter that is not one of known, or not text.
func (p *params) only(known ...string) {
	for _, name := range slices.Sorted(maps.Keys(p.values)) {
		values := p.values[name]
		switch {
		case !slices.Contains(known, name):
			p.fail("unknown parameter %q; known here: %s", short(name), cmp.Or(strings.Join(known, ", "), "none"))
		case len(values) > 1:
			p.fail("%s is given %d times", name, len(values))
		case !utf8.ValidString(values[0]):
			p.fail("%s is not valid UTF-8", name)
		case strings.ContainsFunc(values[0], unicode.IsControl):
			p.fail("%s holds a control character", name)
		case len(values[0]) > 512:
			p.fail("%s is longer than a name can be, 512 bytes", name)
		}
	}
}

func (p *params) get(name string) string { return p.values.Get(name) }

func (p *params) limit(whenAbsent, most int) int {
	p.only("limit")
	return p.number("limit", whenAbsent, 1, most)
}

func (p *params) number(name string, whenAbsent, least, most int) int {
	s := p.get(name)
	if s == "" {
		return whenAbsent
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < least || n > most {
		p.fail("%s must be a number from %d to %d, not %q", name, least, most, short(s))
	}
	return n
}

// query reads the named parameters, from, to and limit.
func (p *params) query(limit int, known ...string) store.Query {
	p.only(append(known, "from", "to", "limit")...)
	q := store.Query{
		Name: p.get("name"), Prefix: p.get("prefix"), Measure: p.get("measure"), Contains: p.get("contains"),
		From: p.instant("from", 0), To: p.instant("to", 1),
		Limit: p.number("limit", limit, 1, maxNames),
	}
	if !q.From.IsZero() && !q.To.IsZero() && !q.From.Before(q.To) {
		p.fail("from must lie before to")
	}
	return q
}

// instant is RFC 3339, or so many days after the start of a date.
func (p *params) instant(name string, days int) time.Time {
	s := p.get(name)
	if s == "" {
		return time.Time{}
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		var date time.Time
		if date, err = time.Parse(time.DateOnly, s); err == nil {
			t = startOfDay(date.AddDate(0, 0, days), p.zone)
		}
	}
	switch {
	case err != nil:
		p.fail("%s must be a date, 2006-01-31, or an instant, 2006-01-31T15:04:05Z (with %%2B for a plus), not %q", name, short(s))
	case t.Unix() < 0:
		p.fail("%s must not lie before 1970", name)
	}
	return t.In(p.zone)
}

// startOfDay returns the first instant in zone whose date is that of date, a
// midnight in UTC, or a later one. [time.Date] does not say it where the clock
// jumps over midnight, or runs through it twice. So: between two changes of
// the clock, local time is UTC and a constant.
func startOfDay(date time.Time, zone *time.Location) time.Time {
	for t := date.Add(-48 * time.Hour).In(zone); ; {
		_, offset := t.Zone()
		_, change := t.ZoneBounds()
		midnight := date.Add(-time.Duration(offset) * time.Second)
		if midnight.Before(t) {
			midnight = t
		}
		if change.IsZero() || midnight.Before(change) {
			return midnight.In(zone)
		}
		t = change
	}
}

// short keeps a message short, whatever somebody sent.
func short(s string) string {
	if len(s) > 64 {
		return strings.ToValidUTF8(s[:64], "") + "…"
	}
	return s
}
