package main

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/usagekit/usagekit/internal/counter"
	"github.com/usagekit/usagekit/internal/dbtest"
	"github.com/usagekit/usagekit/middleware"
	"github.com/usagekit/usagekit/store"
	"github.com/usagekit/usagekit/store/storetest"
)

// onDatabases runs f on a new database of each kind.
func onDatabases(t *testing.T, f func(t *testing.T, dsn string)) {
	t.Run("SQLite", func(t *testing.T) { f(t, filepath.Join(t.TempDir(), "usage.db")) })
	if server == nil {
		t.Log("PostgreSQL was not tried: make test does")
		return
	}
	t.Run("PostgreSQL", func(t *testing.T) { f(t, server.NewDatabase(t)) })
}

// newUsage starts a store on a database, until the test ends.
func newUsage(t *testing.T, dsn string) (*store.Store, *sqlx.DB) {
	t.Helper()
	db, err := open(dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	usage, err := store.New(t.Context(), db, store.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := usage.Shutdown(dbtest.Context(t)); err != nil {
			t.Error(err)
		}
	})
	return usage, db
}

// waiting is how many batches are still to be folded.
func waiting(t *testing.T, db *sqlx.DB) (n int) {
	t.Helper()
	if err := db.Get(&n, `SELECT COUNT(*) FROM usage_inbox`); err != nil {
		t.Fatal(err)
	}
	return n
}

// folded folds until none is, whoever has the lease: each Flush counts one kick.
func folded(t *testing.T, usage *store.Store, db *sqlx.DB) {
	t.Helper()
	for range 100 {
		if waiting(t, db) == 0 {
			return
		}
		usage.Inc(kick)
		if err := usage.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	t.Fatalf("%d batches wait", waiting(t, db))
}

const kick = "test.kick"

// historyTotals are what history says, as totals has them.
func historyTotals(now time.Time) tally {
	all := tally{}
	for _, b := range history(now) {
		for _, c := range b.Counts {
			name := c.Name
			if route, _, ok := strings.Cut(name, ".latency_"); ok {
				name = route + ".latency"
			}
			if c.N > 0 {
				all[name] += c.N
			}
		}
	}
	return all
}

// All of the history is counted, by each of its sums, once: however many start, again
// and at once.
func TestHistory(t *testing.T) {
	if dbtest.Race() {
		t.Log("what adds it is one goroutine, and the database keeps them apart")
		return
	}
	onDatabases(t, func(t *testing.T, dsn string) {
		usage, db := newUsage(t, dsn)
		now := time.Now().UTC()
		errs := make(chan error, 3)
		for range cap(errs) {
			go func() {
				err := addHistory(t.Context(), usage, db, now)
				for range 20 { // it gives up after 10 s, of which a busy machine's SQLite takes more
					if err != nil {
						err = addHistory(t.Context(), usage, db, now)
					}
				}
				errs <- err
			}()
		}
		for range cap(errs) {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
		folded(t, usage, db)
		t.Logf("folded %v after the start", time.Since(now).Round(time.Millisecond))

		got, want := totals(t, usage), historyTotals(now)
		total := got["api.requests.total"]
		delete(got, "api.requests.total") // the fold's own
		delete(got, kick)
		if wrong := slices.Sorted(maps.Keys(got.since(want))); !maps.Equal(got, want) {
			t.Errorf("%d names counted, %d in the history, %d of them with another number: %q", len(got), len(want), len(wrong), wrong[:min(len(wrong), 20)])
		}
		sums := tally{}
		routes := map[string]tally{}
		for name, n := range got {
			group, subject, measure := store.SplitName(name)
			switch {
			case group == "user" && measure == "requests":
				sums["users"] += n
			case group == "api" && subject != "requests":
				kind, _, _ := strings.Cut(measure, "_")
				sums[kind] += n
				if routes[subject] == nil {
					routes[subject] = tally{}
				}
				routes[subject][kind] += n
			case group == "llm" && strings.HasSuffix(measure, "put_tokens"):
				sums["tokens"] += n
			case group == "llm" && measure == "tokens":
				sums["tokens"] -= n
			}
		}
		if sums["requests"] != total || sums["status"] != total || sums["latency"] != total || sums["users"] > total || sums["users"] == 0 || sums["tokens"] != 0 {
			t.Errorf("%d requests in all, but by their parts %v", total, sums)
		}
		for route, r := range routes {
			if r["requests"] == 0 || r["status"] != r["requests"] || r["latency"] != r["requests"] {
				t.Errorf("%s: %v", route, r)
			}
		}

		today := now.Truncate(24 * time.Hour)
		for _, name := range []string{"api.requests.total", "user.active.daily", "user.registrations", "feature.chapter.written", "llm.storyteller-1.tokens"} {
			days, err := usage.History(t.Context(), store.Query{Name: name, Step: store.Day, From: today.AddDate(0, 0, -historyDays), To: today})
			least := slices.MinFunc(days, func(a, b store.Count) int { return cmp.Compare(a.N, b.N) })
			most := slices.MaxFunc(days, func(a, b store.Count) int { return cmp.Compare(a.N, b.N) })
			if err != nil || len(days) != historyDays || least.N < 1 || most.N < 3*least.N/2 {
				t.Errorf("%s: %d days, %v, want %d that differ: %v", name, len(days), err, historyDays, days)
			}
		}

		if err := addHistory(t.Context(), usage, db, now.Add(time.Hour)); err != nil {
			t.Error(err)
		}
		if n := waiting(t, db); n != 0 {
			t.Errorf("%d batches come again", n)
		}
	})
}

// The history is all in the inbox, or nothing of it.
func TestHistoryIsAddedAsAWhole(t *testing.T) {
	onDatabases(t, func(t *testing.T, dsn string) {
		usage, db := newUsage(t, dsn)
		for range 2 {
			tx, err := db.BeginTxx(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			added, err := insertHistory(tx, time.Now())
			if err := errors.Join(err, tx.Rollback()); err != nil || !added {
				t.Fatal(added, err)
			}
			if n, all := waiting(t, db), totals(t, usage); n != 0 || len(all) != 0 {
				t.Errorf("%d batches and %v are left", n, all)
			}
		}
	})
}

func TestNoHistoryWhereRequestsWereCounted(t *testing.T) {
	onDatabases(t, func(t *testing.T, dsn string) {
		usage, db := newUsage(t, dsn)
		usage.Inc("api.GET /novels/{id}.requests")
		before := totals(t, usage)
		if before["api.requests.total"] != 1 {
			t.Fatal(before)
		}
		if err := addHistory(t.Context(), usage, db, time.Now()); err != nil {
			t.Fatal(err)
		}
		if n := waiting(t, db); n != 0 {
			t.Errorf("%d batches were added to %v", n, before)
		}
	})
}

// Killed again and again, the demo has its history once: each batch is folded, or
// waits.
func TestHistoryOfAKilledDemo(t *testing.T) {
	onDatabases(t, func(t *testing.T, dsn string) {
		before := len(history(time.Now()))
		for range 4 {
			e := start(t, "-db", dsn, "-demo")
			time.Sleep(rand.N(600 * time.Millisecond)) // anywhere
			if err := e.cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			<-e.done
		}
		usage, db := newUsage(t, dsn)
		if err := addHistory(t.Context(), usage, db, time.Now()); err != nil {
			t.Fatal(err)
		}
		after := len(history(time.Now())) // an hour may have ended
		var n int
		err := db.Get(&n, `SELECT (SELECT seq FROM usage_writers WHERE writer = 'demo-history') + (SELECT COUNT(*) FROM usage_inbox WHERE writer = 'demo-history')`)
		if err != nil || n != before && n != after {
			t.Errorf("%d batches, %v, want %d", n, err, after)
		}
	})
}

// The hours before now are always the same. That of now has as much as has passed of it:
// one with less would look like an outage.
func TestHistoryReachesUpToNow(t *testing.T) {
	hour := time.Date(2026, 3, 29, 17, 0, 0, 0, time.UTC)
	hours := history(hour)
	n := historyDays*24 + 17
	if len(hours) != n || hours[n-1].Opened != hour.Add(-time.Hour).UnixMilli() {
		t.Errorf("%d hours, want %d", len(hours), n)
	}
	requests := func(b counter.Batch) (sum float64) {
		for _, c := range b.Counts {
			if _, subject, measure := store.SplitName(c.Name); measure == "requests" && subject != "" && strings.HasPrefix(c.Name, "api.") {
				sum += float64(c.N)
			}
		}
		return sum
	}
	whole := requests(history(hour.Add(time.Hour))[n])
	for _, passed := range []time.Duration{time.Second, 7 * time.Minute, 30 * time.Minute, 53 * time.Minute, time.Hour - 1} {
		now := history(hour.Add(passed).In(time.FixedZone("", 5*3600+1800)))
		if len(now) != n+1 || !reflect.DeepEqual(hours, now[:n]) {
			t.Errorf("%v later there are %d hours, and those before it are others", passed, len(now))
			continue
		}
		got, want := requests(now[n]), whole*passed.Hours()
		if now[n].Opened != hour.UnixMilli() || math.Abs(got-want) > 0.1*want+30 {
			t.Errorf("%v of the hour has %v requests, want about %v", passed, got, want)
		}
	}
	for _, b := range hours {
		names := 0
		for _, c := range b.Counts {
			if c.N < 0 {
				t.Errorf("%s: %d", c.Name, c.N)
			}
			if c.N > 0 {
				names++
			}
		}
		if names < 50 || names > 300 {
			t.Errorf("%v: %d names", time.UnixMilli(b.Opened), names)
		}
	}
}

// The history has the names that requests make, and those of the incident.
func TestHistoryHasTheNamesOfRequests(t *testing.T) {
	usage := storetest.New(t)
	app := newService(usage, 1000)
	app.novels = demoNovels
	count := middleware.New(usage, middleware.Config{User: userOf, Area: area})
	live := httptest.NewServer(count(paced(t.Context(), app.routes())))
	defer live.Close()
	for _, kind := range demoTraffic() {
		for range 3 {
			send(t.Context(), live.Client(), live.URL, kind, 0)
		}
	}
	model := regexp.MustCompile(`^llm\.(` + strings.Join(models(), "|") + `)\.`)
	user := regexp.MustCompile(`^user\.writer-\d+\.`)
	names := func(of tally) map[string]bool {
		set := map[string]bool{}
		for name := range of {
			name = user.ReplaceAllString(model.ReplaceAllString(name, "llm.model."), "user.writer.")
			if name != "error.panic" && !strings.HasSuffix(name, ".status_5xx") && !strings.HasPrefix(name, "quota.") {
				set[name] = true
			}
		}
		return set
	}
	got, want := names(historyTotals(time.Now())), names(totals(t, usage))
	got["api.requests.total"] = true // the fold's own
	if !maps.Equal(got, want) {
		t.Errorf("the history has\n%q, requests make\n%q", slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)))
	}
}

// recorded keeps what a middleware counts.
type recorded tally

func (r recorded) Add(name string, n int64) { r[name] += n }

// Requests take as long as they should, and the history has the bounds of the
// middleware.
func TestHistoryHasTheBoundsOfLatency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		live := recorded{}
		handler := middleware.New(live, middleware.Config{})(paced(t.Context(), newService(nil, 0).routes()))
		for takes := time.Millisecond; takes < 20*time.Second; takes = takes * 5 / 4 {
			r := httptest.NewRequest(http.MethodGet, "/site/", nil)
			r.Header.Set(takesHeader, takes.String())
			start := time.Now()
			handler.ServeHTTP(httptest.NewRecorder(), r)
			if took := time.Since(start); took != takes {
				t.Errorf("%v took %v", takes, took)
			}
		}
		const route = "api.GET /site/{path...}."
		past := tally{route + "requests": 1, route + "status_2xx": 1}
		addLatencies(past, route, 1_000_000, time.Second)
		got, want := slices.Sorted(maps.Keys(past)), slices.Sorted(maps.Keys(live))
		if !slices.Equal(got, want) {
			t.Errorf("the history has\n%q, the middleware\n%q", got, want)
		}
	})
}

func TestUserNames(t *testing.T) {
	ids := []string{"ann", "writer-", "writer-0", "writer-257", "writer--1", "writer-7x"}
	for n := 1; n <= 256; n++ {
		ids = append(ids, fmt.Sprintf("writer-%d", n))
	}
	names, err := userNames(t.Context(), ids)
	if err != nil || len(names) != 256 || names["writer-1"] == "" || names["writer-256"] == "" {
		t.Errorf("%d names, %v", len(names), err)
	}
	if distinct := slices.Compact(slices.Sorted(maps.Values(names))); len(distinct) != len(names) {
		t.Errorf("%d names of %d users", len(distinct), len(names))
	}
}
