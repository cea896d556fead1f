package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/usagekit/usagekit/internal/dbtest"
	"github.com/usagekit/usagekit/store"
	"github.com/usagekit/usagekit/store/postgres"
)

const day = 24 * 3600 // seconds

// retention measures writers before old history is removed, meanwhile, and after.
func (s settings) retention(ctx context.Context, w io.Writer, server *dbtest.Server) (err error) {
	url := server.URL("retention")
	db, err := sqlx.Open("postgres", url) // which waits for as long as it takes to fill
	if err != nil {
		return err
	}
	defer db.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	begin := time.Now()
	if err := s.fill(ctx, db, begin); err != nil {
		return fmt.Errorf("fill: %w", err)
	}
	filled := time.Since(begin)
	m := &meter{samples: map[string][]sample{}}
	watched := make(chan error, 1)
	go func() { watched <- m.watchFolds(ctx, db) }()

	l := &load{meter: m, added: map[string]int64{}}
	const forever = -1
	var before, during, after span
	err = l.with(ctx, url, store.Retention{Hourly: forever, Daily: forever, UserDaily: forever}, func() (err error) {
		before, err = measured(ctx, s.baseline)
		return err
	})
	if err != nil {
		return err
	}
	err = l.with(ctx, url, store.Retention{}, func() (err error) {
		if during, err = s.removed(ctx, db); err != nil {
			return err
		}
		after, err = measured(ctx, s.baseline)
		return err
	})
	cancel()
	ctx = context.WithoutCancel(ctx)
	if err = errors.Join(err, <-watched); err != nil {
		return err
	}

	fmt.Fprintf(w, "\n%d rows too old and %d young ones, filled in %v; %d writers\n", s.rows, 4*(s.rows/40), filled.Round(time.Second), writers)
	t := newTable(w)
	fmt.Fprintln(t, "ms\tbefore n\tp50\tp99\tmax\tduring n\tp50\tp99\tmax\tafter n\tp50\tp99\tmax\tduring/before p50\tp99\t")
	for _, what := range []string{"freshness", "fold", "between folds", "Get", "Totals of today"} {
		fmt.Fprint(t, what)
		for _, s := range []span{before, during, after} {
			all := m.in(what, s)
			fmt.Fprintf(t, "\t%d\t%s\t%s\t%s", len(all), digits(quantile(all, 0.5)), digits(quantile(all, 0.99)), digits(quantile(all, 1)))
		}
		for _, q := range []float64{0.5, 0.99} {
			fmt.Fprintf(t, "\t%s", digits(quantile(m.in(what, during), q)/quantile(m.in(what, before), q)))
		}
		fmt.Fprintln(t, "\t")
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(w, "Removed in %v: %s rows a second. %d reads failed.\n", during.took().Round(100*time.Millisecond), digits(float64(s.rows)/during.took().Seconds()), l.failed)
	fmt.Fprint(w, `Freshness is from Add of a new name, ten a second, until Get in another instance has it; fold, from
when the fold took the lease until its COMMIT; between folds, from one COMMIT to the next.
`)
	if err := s.checkHistory(ctx, db, begin, l.added); err != nil {
		return err
	}
	fmt.Fprintf(w, "All that was added under %d names is in totals, hours and days; no old row is left, and every young one is there.\n", len(l.added))
	return nil
}

// measured lets it become warm, and then go on for a while.
func measured(ctx context.Context, d time.Duration) (s span, err error) {
	if err := sleep(ctx, min(d, 5*time.Second)); err != nil {
		return s, err
	}
	s.from = time.Now()
	err = sleep(ctx, d)
	s.to = time.Now()
	return s, err
}

// The server tells up to a second late; counting rows would be felt.
const sqlRemoved = `SELECT n_tup_del FROM pg_stat_user_tables WHERE relname = 'usage_history'`

// removed waits until all old rows are removed, and returns from when to when that was.
func (s settings) removed(ctx context.Context, db *sqlx.DB) (during span, err error) {
	for start := time.Now(); ; {
		var n int
		if err := db.GetContext(ctx, &n, sqlRemoved); err != nil {
			return during, err
		}
		if n > 0 && during.from.IsZero() {
			during.from = time.Now()
		}
		during.to = time.Now()
		switch {
		case n >= s.rows:
			return during, nil
		case time.Since(start) > s.limit:
			return during, fmt.Errorf("%d of %d rows were removed in %v", n, s.rows, s.limit)
		}
		if err := sleep(ctx, 2*lookEvery); err != nil {
			return during, err
		}
	}
}

const sqlFill = `INSERT INTO usage_history (step, bucket, key, value)
SELECT %s, CAST($1 AS BIGINT) + %s, %s, 1 + i %% 7 FROM generate_series(CAST(0 AS BIGINT), $2 - 1) AS i`

// fill makes the tables, and rows in them: the young ones, which it keeps a copy of,
// then the old ones. Names are not in the order of the rows, as they would not be.
func (s settings) fill(ctx context.Context, db *sqlx.DB, now time.Time) error {
	st, err := store.New(ctx, db, store.Config{Location: time.UTC})
	if err != nil {
		return err
	}
	if err := st.Shutdown(ctx); err != nil {
		return err
	}
	today := now.Unix() - now.Unix()%day
	hours, users := today-35*day, today-90*day
	young, quotas := int64(s.rows/40), int64(s.rows/100)
	old := (int64(s.rows) - quotas) / 2
	const copied = `CREATE TABLE young AS SELECT * FROM usage_history`
	for _, f := range []struct {
		step, bucket, key string
		from, n           int64
	}{ // two days from what is too old: a run may go over midnight
		{"1", "3600 * (i % 700)", "'api.GET /y' || i / 700 || '.requests'", hours + 2*day, young},
		{"2", "86400 * (i % 80)", "'user.y' || i / 80 || '.requests'", users + 2*day, young},
		{"2", "-86400 * (1 + i % 100)", "CASE WHEN i < 100 THEN 'user.active.daily' WHEN i < 200 THEN 'user.registrations' WHEN i % 200 < 100 THEN 'user.y' || i / 100 ELSE 'feature.y' || i / 100 || '.used' END", users, young},
		{"3", "-86400 * (1 + i % 300)", "'user.y' || i / 300 || '.requests'", users, young},
		{step: copied},
		{"1", "-3600 * (1 + i / 3000)", "'api.GET /r' || i * 1009 % 3000 || '.requests'", hours, old}, // more than one transaction removes
		{"2", "-86400 * (1 + i % 50)", "'quota.u' || i / 50 || '.tokens'", users, quotas},
		{"2", "-86400 * (1 + i / 100000)", "'user.u' || i * 48271 % 100000 || '.requests'", users, int64(s.rows) - quotas - old},
	} {
		query, args := fmt.Sprintf(sqlFill, f.step, f.bucket, f.key), []any{f.from, f.n}
		if f.step == copied {
			query, args = copied, nil
		}
		if _, err := db.ExecContext(ctx, query, args...); err != nil {
			return fmt.Errorf("%s: %w", query, err)
		}
	}
	for _, query := range []string{`VACUUM (ANALYZE)`, `CHECKPOINT`} { // the former as autovacuum does
		if _, err := db.ExecContext(ctx, query); err != nil {
			return err
		}
	}
	return nil
}

const (
	writers     = 4
	ticks       = 50 // a second
	perTick     = 10
	namesOfEach = ticks * perTick // of which four fifths are everybody's
	probeEvery  = 5               // ticks
)

// load adds to 500 names of every writer once a second. What it added is exact.
type load struct {
	meter *meter
	added map[string]int64
	at    int // ticks

	mu     sync.Mutex
	failed int // reads
}

type probe struct {
	name string
	at   time.Time
}

// with runs f while writers count that keep history so long, and returns when all
// that they counted is in the tables.
func (l *load) with(ctx context.Context, url string, r store.Retention, f func() error) (err error) {
	var all []*store.Store
	var pools []*sqlx.DB
	defer func() {
		var wg sync.WaitGroup
		errs := make([]error, len(all))
		for i, st := range all {
			wg.Go(func() { errs[i] = st.Shutdown(context.WithoutCancel(ctx)) })
		}
		wg.Wait()
		err = errors.Join(err, errors.Join(errs...))
		for _, pool := range pools {
			err = errors.Join(err, pool.Close())
		}
	}()
	for range writers {
		pool, err := postgres.Open(url)
		if err != nil {
			return err
		}
		pools = append(pools, pool)
		st, err := store.New(ctx, pool, store.Config{Location: time.UTC, Retention: r})
		if err != nil {
			return err
		}
		all = append(all, st)
	}
	stop := make(chan struct{})
	var adding, reading sync.WaitGroup
	probes := make([]chan probe, writers)
	for i := range probes {
		probes[i] = make(chan probe, 100_000)
		reading.Go(func() { l.see(ctx, all[(i+1)%writers], probes[i]) })
	}
	reading.Go(func() { l.read(ctx, all[0], stop) })
	adding.Go(func() { l.run(all, probes, stop) })
	err = f()
	close(stop)
	adding.Wait()
	reading.Wait()
	return err
}

// run adds until stop is closed.
func (l *load) run(all []*store.Store, probes []chan probe, stop chan struct{}) {
	tick := time.NewTicker(time.Second / ticks)
	defer tick.Stop()
	defer func() {
		for _, c := range probes {
			close(c)
		}
	}()
	add := func(st *store.Store, name string, n int64) {
		st.Add(name, n)
		l.added[name] += n
	}
	for ; ; l.at++ {
		select {
		case <-tick.C:
		case <-stop:
			return
		}
		for i, st := range all {
			for k := range perTick {
				name := fmt.Sprintf("feature.f%d.used", (l.at*perTick+k)%namesOfEach)
				if k%5 == 0 {
					name = fmt.Sprintf("feature.f%dof%d.used", (l.at*perTick+k)%namesOfEach, i)
				}
				add(st, name, int64(1+l.at%100))
			}
		}
		if l.at%probeEvery == 0 {
			i := l.at / probeEvery % writers
			p := probe{fmt.Sprintf("probe.p%d.seen", l.at), time.Now()} // of a group without a cap
			add(all[i], p.name, 1)
			probes[i] <- p
		}
	}
}

// see waits for each probe of one writer, which come in order.
func (l *load) see(ctx context.Context, st *store.Store, probes <-chan probe) {
	for p := range probes {
		for ctx.Err() == nil {
			start := time.Now()
			n, err := st.Get(ctx, p.name)
			l.took("Get", start, err)
			if n > 0 {
				l.meter.note("freshness", p.at, time.Since(p.at))
				break
			}
			_ = sleep(ctx, lookEvery)
		}
	}
}

// read asks for today's totals, as a dashboard does.
func (l *load) read(ctx context.Context, st *store.Store, stop <-chan struct{}) {
	for ctx.Err() == nil {
		start := time.Now()
		_, err := st.Totals(ctx, store.Query{Prefix: "feature.", From: start.UTC().Truncate(day * time.Second)})
		l.took("Totals of today", start, err)
		select {
		case <-stop:
			return
		case <-time.After(time.Second):
		}
	}
}

func (l *load) took(what string, start time.Time, err error) {
	l.meter.note(what, start, time.Since(start))
	if err != nil {
		l.mu.Lock()
		l.failed++
		l.mu.Unlock()
	}
}

// checkHistory compares the tables with what was added, and with what was filled in.
func (s settings) checkHistory(ctx context.Context, db *sqlx.DB, begin time.Time, want map[string]int64) error {
	const past = ` FROM usage_history WHERE bucket < $1`
	yesterday := begin.Unix() - begin.Unix()%day - day
	var errs []error
	for what, query := range map[string]string{
		"rows too old, or changed":   `SELECT COUNT(*) FROM (SELECT step, bucket, key, value` + past + ` EXCEPT SELECT step, bucket, key, value FROM young) AS r`,
		"rows gone that were young":  `SELECT COUNT(*) FROM (SELECT step, bucket, key, value FROM young EXCEPT SELECT step, bucket, key, value` + past + `) AS r`,
		"rows less or more in young": `SELECT COUNT(*) - ` + fmt.Sprint(4*(s.rows/40)) + ` FROM young WHERE bucket < $1`,
	} {
		var n int64
		if err := db.GetContext(ctx, &n, query, yesterday); err != nil {
			return err
		}
		if n != 0 {
			errs = append(errs, fmt.Errorf("%d %s", n, what))
		}
	}
	for what, query := range map[string]string{
		"totals": `SELECT key, value FROM usage_metrics`,
		"hours":  `SELECT key, CAST(SUM(value) AS BIGINT) AS value FROM usage_history WHERE step = 1 AND bucket >= $1 GROUP BY key`,
		"days":   `SELECT key, CAST(SUM(value) AS BIGINT) AS value FROM usage_history WHERE step = 2 AND bucket >= $1 GROUP BY key`,
	} {
		args := []any{yesterday}[:strings.Count(query, "$1")]
		var rows []count
		if err := db.SelectContext(ctx, &rows, query, args...); err != nil {
			return err
		}
		got := map[string]int64{}
		for _, r := range rows {
			got[r.Key] = r.Value
		}
		names := maps.Clone(want)
		maps.Copy(names, got)
		for _, name := range slices.Sorted(maps.Keys(names)) {
			if want[name] != got[name] && len(errs) < 10 {
				errs = append(errs, fmt.Errorf("%s: %s: %d were added, and %d are there", what, name, want[name], got[name]))
			}
		}
	}
	return errors.Join(errs...)
}

type count struct {
	Key   string
	Value int64
}
