package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/usagekit/usagekit/dashboard"
	"github.com/usagekit/usagekit/store"
)

// A query is one that the dashboard answers.
type query struct {
	title string
	path  string
	bar   time.Duration // of its warm 95th percentile; 0: none
}

func queries(last time.Time) []query {
	ago := func(days int) string { return last.AddDate(0, 0, 1-days).Format(time.DateOnly) }
	named := "name=" + url.QueryEscape("api."+route(7)+".requests")
	const slow, fast = 150 * time.Millisecond, 10 * time.Millisecond
	return []query{
		{"the plain tables", "tables.html", 0},
		{"series of all requests, 24 hours", "api/series?range=24h&name=api.requests.total&name=api.requests.status_5xx", 0},
		{"series of all requests, 13 months", "api/series?range=13mo&name=api.requests.total&name=api.requests.status_5xx", 0},
		{"series of 10 routes, 24 hours", "api/series?range=24h&prefix=api.&measure=requests&limit=10", 0},
		{"stats", "api/stats", slow},
		{"rows of routes, all time", "api/rows?prefix=api.&measure=requests", slow},
		{"rows of routes, today", "api/rows?prefix=api.&measure=requests&from=" + ago(1), slow},
		{"rows of routes, 7 days", "api/rows?prefix=api.&measure=requests&from=" + ago(7), slow},
		{"rows of routes, 30 days", "api/rows?prefix=api.&measure=requests&from=" + ago(30), slow},
		{"rows of routes, 13 months", "api/rows?prefix=api.&measure=requests&from=" + ago(days), slow},
		{"rows of users, all time, 100", "api/rows?prefix=user.&measure=requests&limit=100", slow},
		{"totals of users, 30 days, 100", "api/totals?prefix=user.&measure=requests&limit=100&from=" + ago(30), 0},
		{"totals of users, 90 days, 100", "api/totals?prefix=user.&measure=requests&limit=100&from=" + ago(90), 0},
		{"totals that contain 4711", "api/totals?contains=4711", 0},
		{"history of a route, 7 days, hours", "api/history?step=hour&" + named + "&from=" + ago(7), fast},
		{"history of a route, 13 months, days", "api/history?" + named + "&from=" + ago(days), 0},
		{"history of 10 routes, 30 days, days", "api/history?prefix=api.&measure=requests&limit=10&from=" + ago(30), 0},
		{"history of a user, 90 days, days", "api/history?name=user.7.requests&from=" + ago(90), 0},
	}
}

// A result is how long a query took, as often as it was asked.
type result struct {
	query
	returned     int // counts, rows or lines
	failed       int // how often the store gave up after 5 s
	cold         time.Duration
	warm, cached []time.Duration // sorted
}

// measure asks all queries: each once after a restart, then, rounds times and in
// turn, with an empty cache and with a filled one. It also returns how long New
// took, up to the first count.
func (t target) measure(ctx context.Context, all []query, rounds int) (results []result, starts []time.Duration, err error) {
	for _, q := range all {
		if err := t.restart(); err != nil {
			return nil, nil, err
		}
		r := result{query: q}
		start, err := t.with(ctx, func(st *store.Store) (err error) {
			r.cold, err = r.ask(dashboard.New(st, dashboard.Config{Auth: dashboard.Public}))
			return err
		})
		if err != nil {
			return nil, nil, err
		}
		results, starts = append(results, r), append(starts, start)
	}
	_, err = t.with(ctx, func(st *store.Store) error {
		cached := dashboard.New(st, dashboard.Config{Auth: dashboard.Public, MaxAge: time.Hour})
		for i := range rounds + 1 {
			for j := range results {
				r := &results[j]
				h := dashboard.New(st, dashboard.Config{Auth: dashboard.Public}) // its cache is empty
				warm, err := r.ask(h)
				if err != nil {
					return err
				}
				again, err := r.ask(cached)
				if err != nil {
					return err
				}
				if i > 0 { // the first fills the caches
					r.warm, r.cached = append(r.warm, warm), append(r.cached, again)
				}
			}
		}
		return nil
	})
	for _, r := range results {
		slices.Sort(r.warm)
		slices.Sort(r.cached)
	}
	slices.Sort(starts)
	return results, starts, err
}

// with runs f with a store on a pool of its own, and returns how long it took from
// New until a first count was counted.
func (t target) with(ctx context.Context, f func(*store.Store) error) (start time.Duration, err error) {
	db, err := t.open()
	if err != nil {
		return 0, err
	}
	defer db.Close()
	begin := time.Now()
	st, err := store.New(ctx, db, store.Config{})
	if err != nil {
		return 0, err
	}
	st.Inc("feature.f1.used")
	start = time.Since(begin)
	if err := st.Flush(ctx); err != nil { // what follows is measured without a fold beside it
		return 0, err
	}
	if err := f(st); err != nil {
		return 0, err
	}
	return start, st.Shutdown(ctx)
}

// ask returns how long an answer took, and notes how much is in it.
func (r *result) ask(h http.Handler) (time.Duration, error) {
	w := httptest.NewRecorder()
	request := httptest.NewRequest(http.MethodGet, "/usage/"+r.path, nil)
	begin := time.Now()
	h.ServeHTTP(w, request)
	took := time.Since(begin)
	switch {
	case w.Code == http.StatusServiceUnavailable:
		r.failed++
		return took, nil
	case w.Code != http.StatusOK:
		return 0, fmt.Errorf("%s: %d: %s", r.title, w.Code, w.Body)
	case !strings.HasPrefix(w.Header().Get("Content-Type"), "application/json"):
		r.returned = strings.Count(w.Body.String(), "<tr")
		return took, nil
	}
	var a struct {
		API, Features, Users, LLM, Errors, Other map[string]int64
		Counts, Rows, Series                     []any
	}
	if err := json.Unmarshal(w.Body.Bytes(), &a); err != nil {
		return 0, fmt.Errorf("%s: %w", r.title, err)
	}
	r.returned = len(a.API) + len(a.Features) + len(a.Users) + len(a.LLM) + len(a.Errors) + len(a.Other) + len(a.Counts) + len(a.Rows) + len(a.Series)
	return took, nil
}
