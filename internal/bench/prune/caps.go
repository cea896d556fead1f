package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/usagekit/usagekit/internal/dbtest"
	"github.com/usagekit/usagekit/store"
	"github.com/usagekit/usagekit/store/postgres"
)

// A flood is of names of one group, each added to once.
type flood struct {
	group, format string
	cap           int // by default
	names, sum    int64
}

// add adds to a random name: how much, the name tells.
func (f *flood) add(st *store.Store) {
	random := rand.Uint64()
	st.Add(fmt.Sprintf(f.format, random), amount(random))
	f.names++
	f.sum += amount(random)
}

func amount(random uint64) int64 { return int64(1 + random%7) }

// caps measures one store that gets random names.
func (s settings) caps(ctx context.Context, w io.Writer, server *dbtest.Server) (err error) {
	db, err := postgres.Open(server.URL("caps"))
	if err != nil {
		return err
	}
	defer db.Close()
	pool, err := postgres.Open(server.URL("caps"))
	if err != nil {
		return err
	}
	defer pool.Close()
	before := heap()
	st, err := store.New(ctx, pool, store.Config{Location: time.UTC})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, st.Shutdown(context.WithoutCancel(ctx))) }() // a second time is nothing
	watching, cancel := context.WithCancel(ctx)
	defer cancel()
	m := &meter{samples: map[string][]sample{}}
	watched, flushed := make(chan error, 1), make(chan error, 1)
	go func() { watched <- m.watchFolds(watching, db) }()
	stop := make(chan struct{})
	all := span{from: time.Now()}
	go func() { flushed <- m.flushes(ctx, st, stop) }()

	floods := []*flood{{group: "feature", format: "feature.%016x.used", cap: 10_000}, {group: "api", format: "api.GET /%016x.requests", cap: 5_000}}
	most := uint64(0)
	for i, looked := 0, time.Now(); i < s.names; {
		for due := min(s.names, int(float64(s.names)*time.Since(all.from).Seconds()/s.capsFor.Seconds())); i < due; i++ {
			floods[i%len(floods)].add(st)
		}
		if time.Since(looked) > time.Second/2 {
			var stats runtime.MemStats
			runtime.ReadMemStats(&stats)
			most, looked = max(most, stats.HeapAlloc), time.Now()
		}
		if err := sleep(ctx, 5*time.Millisecond); err != nil {
			return err
		}
	}
	adding := time.Since(all.from)
	close(stop)
	if err := <-flushed; err != nil {
		return fmt.Errorf("a flush: %w", err)
	}
	all.to = time.Now()
	if err := sleep(ctx, 4*lookEvery); err != nil { // the last fold is seen
		return err
	}
	cancel()
	if err := <-watched; err != nil {
		return err
	}
	after, stats := heap(), st.Stats()
	if err := st.Shutdown(ctx); err != nil {
		return err
	}
	errs, err := report(ctx, w, db, floods)
	if err != nil {
		return err
	}

	folds, flushes := m.in("fold", all), m.in("Flush", all)
	folding := time.Duration(0)
	for _, d := range folds {
		folding += d
	}
	fmt.Fprintf(w, "%d names were added in %.1f s, and in the tables %.1f s later. %d under (other) by MaxNames already.\n", s.names, adding.Seconds(), (all.took() - adding).Seconds(), stats.Overflow)
	fmt.Fprintf(w, "Flush, once a second, %d times: p50 %s ms, slowest %s ms. Fold, %d times: p50 %s ms, slowest %s ms; %s s per 100,000 names.\n",
		len(flushes), digits(quantile(flushes, 0.5)), digits(quantile(flushes, 1)), len(folds), digits(quantile(folds, 0.5)), digits(quantile(folds, 1)), digits(folding.Seconds()*1e5/float64(s.names)))
	fmt.Fprintf(w, "Heap: %.1f MiB before New, %.1f after the last Flush, both after a collection; most that was seen meanwhile: %.1f.\n", mib(before), mib(after), mib(most))
	if err := errors.Join(errs...); err != nil {
		return err
	}
	fmt.Fprintln(w, "All sums are those of what was added, in totals, hours and days, and names that were kept have their own.")
	return nil
}

// flushes flushes once a second, and at the end.
func (m *meter) flushes(ctx context.Context, st *store.Store, stop <-chan struct{}) error {
	for last := false; !last; {
		select {
		case <-stop:
			last = true
		case <-time.After(time.Second):
		}
		start := time.Now()
		if err := st.Flush(ctx); err != nil {
			return err
		}
		m.note("Flush", start, time.Since(start))
	}
	return nil
}

func heap() uint64 {
	var stats runtime.MemStats
	runtime.GC()
	runtime.GC() // what has a finalizer
	runtime.ReadMemStats(&stats)
	return stats.HeapAlloc
}

func mib(bytes uint64) float64 { return float64(bytes) / (1 << 20) }

const derivedTotal = "api.requests.total"

// report writes a table of the groups, and returns in what they are wrong.
func report(ctx context.Context, w io.Writer, db *sqlx.DB, floods []*flood) (errs []error, err error) {
	var rows []count
	if err := db.SelectContext(ctx, &rows, `SELECT key, value FROM usage_metrics`); err != nil {
		return nil, err
	}
	wrong := func(format string, args ...any) {
		if len(errs) < 10 {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	t := newTable(w)
	fmt.Fprintln(t, "\nnames\tadded\tcap\trows\tof (other)\tsum added\tsum there\tof (other)\thours\tdays\t")
	for _, f := range floods {
		var kept, others, sum, otherSum int64
		for _, r := range rows {
			group, subject, _ := store.SplitName(r.Key)
			switch {
			case group != f.group || r.Key == derivedTotal:
				continue
			case subject == "(other)":
				others++
				otherSum += r.Value
			default:
				kept++
				random, err := strconv.ParseUint(subject[strings.LastIndexByte(subject, '/')+1:], 16, 64)
				if err != nil || r.Value != amount(random) {
					wrong("%s has %d", r.Key, r.Value)
				}
			}
			sum += r.Value
		}
		var history struct{ Hours, Days int64 }
		err := db.GetContext(ctx, &history, `SELECT CAST(COALESCE(SUM(value) FILTER (WHERE step = 1), 0) AS BIGINT) AS hours, CAST(COALESCE(SUM(value) FILTER (WHERE step = 2), 0) AS BIGINT) AS days
FROM usage_history WHERE key LIKE $1 || '.%' AND key <> $2`, f.group, derivedTotal)
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(t, "%s\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t\n", f.group, f.names, f.cap, kept+others, others, f.sum, sum, otherSum, history.Hours, history.Days)
		if sum != f.sum || history.Hours != f.sum || history.Days != f.sum {
			wrong("%s: the sum is %d, of hours %d, of days %d; %d were added", f.group, sum, history.Hours, history.Days, f.sum)
		}
		if kept != min(int64(f.cap), f.names) || others > 2 {
			wrong("%s: %d names and %d of (other), want %d and a few", f.group, kept, others, min(int64(f.cap), f.names))
		}
	}
	if err := t.Flush(); err != nil {
		return nil, err
	}
	var requests struct{ Total, Hours, Days int64 }
	err = db.GetContext(ctx, &requests, `SELECT COALESCE((SELECT value FROM usage_metrics WHERE key = $1), 0) AS total,
CAST(COALESCE((SELECT SUM(value) FROM usage_history WHERE step = 1 AND key = $1), 0) AS BIGINT) AS hours,
CAST(COALESCE((SELECT SUM(value) FROM usage_history WHERE step = 2 AND key = $1), 0) AS BIGINT) AS days`, derivedTotal)
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(w, "%s: %d\n", derivedTotal, requests.Total)
	if want := floods[1].sum; requests.Total != want || requests.Hours != want || requests.Days != want {
		wrong("%s is %d, of hours %d, of days %d; %d requests were added", derivedTotal, requests.Total, requests.Hours, requests.Days, want)
	}
	return errs, nil
}
