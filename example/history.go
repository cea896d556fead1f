package main

import (
	"context"
	"log/slog"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/usagekit/usagekit/internal/counter"
	"github.com/usagekit/usagekit/internal/naming"
	"github.com/usagekit/usagekit/store"
)

// What happened in the month before the demo: one evening the service panicked, and
// was slow; one day the newspapers wrote of it.
const (
	historyDays   = 30
	incidentDay   = 5 // days ago
	incidentHour  = 18
	incidentHours = 3
	launchDay     = 9
)

// runDemo makes the dashboard one of a service that has been used for a month, and
// goes on using it until ctx ends.
func runDemo(ctx context.Context, usage *store.Store, db *sqlx.DB, base string) {
	if err := addHistory(ctx, usage, db, time.Now()); err != nil && ctx.Err() == nil {
		slog.Warn("the demo has no history", "error", err)
	}
	sendTraffic(ctx, base)
}

// addHistory puts what the demo's traffic would have counted in the days before now
// into the inbox, a batch an hour, and leaves the rest to the store's fold.
// All of it, once, and only where no request was ever counted. It is no example to
// follow: an application counts with Add, which dates everything now.
func addHistory(ctx context.Context, usage *store.Store, db *sqlx.DB, now time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := usage.Flush(ctx); err != nil { // with a spool, the tables may be still to come
		return err
	}
	tx, err := db.BeginTxx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if added, err := insertHistory(tx, now); err != nil || !added {
		return err
	}
	return tx.Commit()
}

// historyWriter sends the history: that it is registered says that it was added.
const historyWriter = "demo-history"

const (
	sqlHistoryWriter = `INSERT INTO usage_writers (writer, seq, sum, seen) VALUES (?, 0, ?, ?) ON CONFLICT DO NOTHING`
	sqlEverCounted   = `SELECT COUNT(*) FROM usage_metrics WHERE key = 'api.requests.total' AND value > 0`
	sqlHistoryBatch  = `INSERT INTO usage_inbox (writer, seq, opened, payload) VALUES (:writer, :seq, :opened, :payload)`
)

// insertHistory adds the history by tx, which is to be committed if it says so.
func insertHistory(tx *sqlx.Tx, now time.Time) (added bool, err error) {
	res, err := tx.Exec(tx.Rebind(sqlHistoryWriter), historyWriter, []byte{}, now.UnixMilli())
	if err != nil {
		return false, err
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		return false, err
	}
	var counted int
	if err := tx.Get(&counted, sqlEverCounted); err != nil || counted > 0 {
		return false, err
	}
	type batch struct {
		Writer      string
		Seq, Opened int64
		Payload     []byte
	}
	var batches []batch
	for _, b := range history(now) {
		batches = append(batches, batch{historyWriter, int64(len(batches)) + 1, b.Opened, b.Encode()})
	}
	_, err = tx.NamedExec(sqlHistoryBatch, batches)
	return true, err
}

// history is every hour from the midnight (UTC) of historyDays ago to now, and of the one
// that runs what has passed of it.
func history(now time.Time) (hours []counter.Batch) {
	today := now.UTC().Truncate(24 * time.Hour)
	for hour := today.AddDate(0, 0, -historyDays); hour.Before(now); hour = hour.Add(time.Hour) {
		hours = append(hours, pastHour(hour, int(today.Sub(hour.Truncate(24*time.Hour)).Hours()/24), min(now.Sub(hour).Hours(), 1)))
	}
	return hours
}

// pastHour is what the demo's traffic would have counted in a share of an hour, the same
// each time.
func pastHour(hour time.Time, daysAgo int, share float64) counter.Batch {
	dice := rand.New(rand.NewPCG(3, uint64(hour.Unix())))
	counts := map[string]int64{}
	age := max(0, float64(daysAgo)-float64(hour.Hour())/24)
	incident := daysAgo == incidentDay && incidentHour <= hour.Hour() && hour.Hour() < incidentHour+incidentHours
	var byWriters int64
	for _, kind := range demoTraffic() {
		expected := kind.perSecond * 3600 * share * busy(hour) * growth(age)
		if daysAgo == launchDay && kind.anonymous() {
			expected *= 3
			if kind.area == "users" {
				expected *= 3
			}
		}
		n := int64(max(0, expected+math.Sqrt(expected)*dice.NormFloat64()+0.05*expected*dice.NormFloat64()))
		if !kind.anonymous() {
			byWriters += n
		}
		takes, panics := kind.takes, int64(0)
		if incident {
			takes, panics = 6*takes, n/12
		}
		route := "api." + kind.route + "."
		counts[route+"requests"] += n
		if kind.area != "" {
			counts["api.requests."+kind.area] += n
		}
		counts[route+naming.Measure(naming.Status(500))] += panics
		counts["error.panic"] += panics
		counts[route+naming.Measure(naming.Status(100*kind.status))] += n - panics
		addLatencies(counts, route, n, takes)
		switch {
		case kind.area == "llm":
			addCalls(counts, n-panics, age, kind.status == 5, dice)
		case kind.counts != "":
			counts[kind.counts] += n - panics
		}
	}
	writers := writersAt(hour, age)
	for i, id := range writers {
		counts["user."+id+".requests"] = part(byWriters, upTo(i, len(writers)), upTo(i+1, len(writers)))
	}
	b := counter.Batch{Opened: hour.UnixMilli()}
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		b.Counts = append(b.Counts, counter.Count{Name: name, N: counts[name]})
	}
	return b
}

// part is how many of n are between two shares of them: all such parts are n.
func part(n int64, from, to float64) int64 {
	return int64(math.Round(to*float64(n))) - int64(math.Round(from*float64(n)))
}

// upTo is the share of requests that are the first i of n writers': some write much,
// most of them little.
func upTo(i, n int) float64 { return math.Log(float64(i+1)) / math.Log(float64(n+1)) }

// addLatencies counts n requests by the middleware's bounds.
func addLatencies(counts map[string]int64, route string, n int64, takes time.Duration) {
	below := 0.0
	for i, bound := range naming.Bounds() {
		deviations := math.Log(bound.Seconds()/takes.Seconds()) / spread
		share := math.Erfc(-deviations/math.Sqrt2) / 2
		counts[route+naming.Measure(naming.FirstLatency+i)] += part(n, below, share)
		below = share
	}
	counts[route+naming.Measure(naming.Measures-1)] += part(n, below, 1)
}

// addCalls counts n completions as package llm does.
func addCalls(counts map[string]int64, n int64, age float64, failed bool, dice *rand.Rand) {
	below := 0.0
	for i, share := range modelsUpTo(age) {
		calls, model := part(n, below, share), "llm."+models()[i]+"."
		below = share
		counts[model+"calls"] += calls
		if failed {
			counts[model+"failed"] += calls
			counts["error.llm.timeout"] += calls
			continue
		}
		input := calls * (promptWords + 1)
		output := int64(float64(calls) * 12 * meanSentences * (1 + 0.03*dice.NormFloat64()))
		counts[model+"input_tokens"] += input
		counts[model+"output_tokens"] += output
		counts[model+"tokens"] += input + output
	}
}
