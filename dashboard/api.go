package dashboard

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
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
)

type stats struct {
	Zone          string           `json:"zone"`
	Dropped       int64            `json:"dropped"`
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

// encodedStats are stats as they were read.
type encodedStats struct {
	stats
	encoded
}

func (h *handler) askStats(limit int) func(context.Context) (encodedStats, standing, error) {
	return ask(h.answers, fmt.Sprint("stats ", limit), func(ctx context.Context) (encodedStats, error) {
		m, s, err := answerOf(ctx, h, func(ctx context.Context, r *reading) (stats, error) { return h.readStats(ctx, r, limit) })
		if err != nil {
			return encodedStats{}, err
		}
		return encodedStats{s, h.encode(m, s)}, nil
	})
}

func (h *handler) readStats(ctx context.Context, r *reading, limit int) (stats, error) {
	dropped, err := r.Get(ctx, nameDropped)
	if err != nil {
		return stats{}, err
	}
	// Most groups are small: a few reads have all of them.
	api, err := readPart(ctx, r, store.Query{Prefix: "api.", Contains: ".requests", Limit: 2*(limit+1) + naming.Measures})
	if err != nil {
		return stats{}, err
	}
	rest, err := readPart(ctx, r, store.Query{Except: []string{"api.", "user."}, Limit: 4 * (limit + 1)})
	if err != nil {
		return stats{}, err
	}
	s := stats{Zone: h.zone().String(), Dropped: dropped, Truncated: []string{}, Capped: []string{}}
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
		counters, more, err := largest(ctx, r, limit, group.fixed, group.part, group.from...)
		if err != nil {
			return stats{}, err
		}
		*group.into = counters
		if more {
			s.Truncated = append(s.Truncated, group.key)
		}
		over, err := capped(ctx, r, counters, more, group.over)
		if err != nil {
			return stats{}, err
		}
		if over {
			s.Capped = append(s.Capped, group.key)
		}
	}
	s.TotalRequests, s.RequestsToday = s.API[naming.RequestsTotal], s.API[naming.RequestsToday]
	return s, nil
}

// capped tells whether a group has counts beyond a cap: among those found, or else,
// where there are more, in the store, where they begin with one of the prefixes.
func capped(ctx context.Context, r *reading, found map[string]int64, more bool, prefixes []string) (bool, error) {
	for name := range found {
		_, subject, measure := store.SplitName(name)
		if subject == naming.Other || subject == "requests" && measure == naming.Other {
			return true, nil
		}
	}
	for i := 0; more && i < len(prefixes); i++ {
		counts, err := r.Totals(ctx, store.Query{Prefix: prefixes[i], Limit: 1})
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

func readPart(ctx context.Context, r *reading, q store.Query) (part, error) {
	counts, err := r.Totals(ctx, q)
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
func largest(ctx context.Context, r *reading, limit int, fixed []string, p part, queries ...store.Query) (map[string]int64, bool, error) {
	limit = max(limit, len(fixed))
	all, whole := map[string]int64{}, true
	for _, q := range queries {
		q.Limit = limit + 1 + naming.Measures
		counts, ok := p.totals(q)
		if !ok {
			var err error
			if counts, err = r.Totals(ctx, q); err != nil {
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
			if n, err = r.Get(ctx, name); err != nil {
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
	Counts []count `json:"counts"`
}

func (h *handler) totals(p *params) waiting {
	q := p.query(defaultNames, maxNames, "name")
	if p.err != nil {
		return refused(p.err)
	}
	return askJSON(h, fmt.Sprintf("totals %#v", q), func(ctx context.Context, r *reading) (totals, error) {
		q, err := h.at(q, r)
		if err != nil {
			return totals{}, err
		}
		counts, err := r.Totals(ctx, q)
		if err != nil {
			return totals{}, err
		}
		a := totals{Counts: make([]count, len(counts))}
		for i, c := range counts {
			a.Counts[i] = count{Name: c.Name, N: c.N}
		}
		return a, nil
	}, nil)
}

type rows struct {
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
	return askJSON(h, fmt.Sprintf("rows %#v", q), func(ctx context.Context, r *reading) (rows, error) {
		q, err := h.at(q, r)
		if err != nil {
			return rows{}, err
		}
		found, err := readRows(ctx, r, q)
		return rows{found}, err
	}, nil)
}

func readRows(ctx context.Context, r *reading, q store.Query) ([]row, error) {
	found, err := r.Rows(ctx, q)
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
