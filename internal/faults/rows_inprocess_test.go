package faults

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"log"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/usagekit/usagekit/internal/counter"
	"github.com/usagekit/usagekit/internal/naming"
	"github.com/usagekit/usagekit/middleware"
	"github.com/usagekit/usagekit/store"
	"github.com/usagekit/usagekit/store/postgres"
	"github.com/usagekit/usagekit/store/sqlite"
)

// laterRelease makes a payload one of a version that nobody knows yet.
func laterRelease(payload []byte) []byte {
	body := append([]byte{}, payload[:len(payload)-counter.SumSize]...)
	body[0]++
	sum := sha256.Sum256(body)
	return append(body, sum[:counter.SumSize]...)
}

// pool opens a pool on the trial's database, which it makes.
func (r *trial) pool() *sqlx.DB {
	r.Helper()
	dir := r.TempDir()
	if r.mode.spools() {
		r.spool = filepath.Join(dir, "spool")
	}
	dsn := r.database(setup{}, dir)
	open := postgres.Open
	if r.mode.sqlite() {
		open = sqlite.Open
	}
	db := must1(open(dsn))(r)
	r.Cleanup(func() { _ = db.Close() })
	return db
}

// store starts a store of this process.
func (r *trial) store(db *sqlx.DB) *store.Store {
	r.Helper()
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	return must1(store.New(r.ctx, db, store.Config{Spool: r.spool, Interval: 50 * time.Millisecond, Logger: log}))(r)
}

// same sets the evidence of requests that were all answered.
func (r *trial) same(n int64) {
	all := tally{requestsTotal: n}
	r.last = evidence{attempted: all, answered: all, begun: all, responded: all, counted: tally{requestsTotal: r.total()}}
	if got := r.total(); got != n {
		r.Errorf("%d requests counted, want %d", got, n)
	}
}

// hostileInput: whatever clients send, each request is under one route, one user
// and one area, and no batch gets stuck.
func hostileInput(r *trial) {
	long := strings.Repeat("x", 60_000)
	hostile := []string{
		"42", "...", "a.b", "a\x00b", "\xff\xfe", "\u202egnp.exe", "a\r\nSet-Cookie: x=1", `"; DROP TABLE usage_metrics; --`, `'`, `\`, "%", "_", "?", "$1", "{}",
		long + "1", long + "2", strings.Repeat("é", 400), strings.Repeat("y", 512) + "1", strings.Repeat("y", 512) + "2",
		"(other)", "(unmatched)", "(invalid)", "(error)", "requests", "total", "today", "active", "registrations",
		"=cmd|' /C calc'!A0", "<script>alert(1)</script>", "\U0010FFFF", "api.requests.total", "status_2xx", "latency_inf", " ", "\t", "NULL", "😀",
	}
	st := r.store(r.pool())
	value := func(req *http.Request) string { return req.FormValue("v") }
	count := middleware.New(st, middleware.Config{User: value, Area: value, Route: func(req *http.Request) string { return req.FormValue("route") }})
	handler := count(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") }))
	sent := int64(0)
	for until := time.Now().Add(r.lasts(5*time.Second, time.Second)); time.Now().Before(until); {
		for _, v := range hostile {
			for _, request := range []string{"GET /?v=%s", "FOO~BAR /?route=%[1]s&v=%[1]s"} {
				method, target, _ := strings.Cut(fmt.Sprintf(request, url.QueryEscape(v)), " ")
				handler.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(method, target, nil))
				sent++
			}
		}
	}
	r.must(st.Flush(r.ctx))
	sums := map[string]int64{}
	users := 0
	for _, c := range must1(st.Totals(r.ctx, store.Query{}))(r) {
		group, subject, measure := store.SplitName(c.Name)
		switch {
		case c.Name == requestsTotal:
			sums["all"] += c.N
		case naming.Derived(c.Name) && strings.HasPrefix(measure, "status_"):
			sums["all status"] += c.N
		case naming.Derived(c.Name) && strings.HasPrefix(measure, "latency_"):
			sums["all latency"] += c.N
		case c.Name == "api.requests.today":
		case group == "api" && subject == "requests":
			sums["areas"] += c.N
		case group == "api" && measure == "requests":
			sums["routes"] += c.N
		case group == "user" && measure == "requests":
			sums["users"] += c.N
			users++
		}
	}
	if want := map[string]int64{"all": sent, "all status": sent, "all latency": sent, "areas": sent / 2 /* the others have no route */, "routes": sent, "users": sent}; fmt.Sprint(sums) != fmt.Sprint(want) {
		r.Errorf("sums %v, want %v", sums, want)
	}
	if users != len(hostile) {
		r.Errorf("%d users are told apart, of %d", users, len(hostile))
	}
	if n := must1(waiting(r.ctx, r.db))(r); n != 0 {
		r.Errorf("%d batches are stuck", n)
	}
	if s := st.Stats(); s.Invalid+s.Lost+s.Overflow != 0 || s.Err != nil {
		r.Errorf("Stats: %+v", s)
	}
	r.same(sent)
	r.must(st.Shutdown(r.ctx))
	r.checkSpool()
}

// firstStarts: many instances make the tables of one empty database at once.
func firstStarts(r *trial) {
	for range int(r.lasts(20, 3)) {
		databaseURL := r.bench.server.NewDatabase(r)
		r.spool = filepath.Join(r.TempDir(), "spool")
		var starts sync.WaitGroup
		for range 20 {
			starts.Go(func() {
				db, err := postgres.Open(databaseURL)
				if err != nil {
					r.Error(err)
					return
				}
				defer db.Close()
				st, err := store.New(r.ctx, db, store.Config{Spool: r.spool, Interval: 50 * time.Millisecond})
				if err != nil {
					r.Error(err)
					return
				}
				st.Inc("api.GET /.requests")
				if err := st.Shutdown(r.ctx); err != nil {
					r.Error(err)
				}
			})
		}
		starts.Wait()
		db := must1(postgres.Open(databaseURL))(r)
		r.db = db.DB
		if schemas := r.one(`SELECT COUNT(*) FROM usage_meta WHERE name = 'schema'`); schemas != 1 {
			r.Errorf("%d rows say which schema this is", schemas)
		}
		r.eventually(hangs, func() string { return r.foldedBy(db, 20) })
		r.same(20)
		r.must(db.Close())
		r.checkSpool()
	}
}

// foldedBy starts a store, which folds what others left, until there are n.
func (r *trial) foldedBy(db *sqlx.DB, n int64) string {
	if r.total() == n {
		return ""
	}
	st, err := store.New(r.ctx, db, store.Config{})
	if err != nil {
		return err.Error()
	}
	st.Inc("feature.fold.asked")
	if err := st.Flush(r.ctx); err != nil {
		return err.Error()
	}
	r.must(st.Shutdown(r.ctx))
	return fmt.Sprintf("%d requests are folded, want %d", r.total(), n)
}

// noConnectionLeft: the application takes every connection of the pool that it
// shares with the store.
func noConnectionLeft(r *trial) {
	db := r.pool()
	db.SetMaxOpenConns(4)
	st := r.store(db)
	sent, slowest := int64(0), time.Duration(0)
	add := func(d time.Duration) {
		for until := time.Now().Add(d); time.Now().Before(until); r.pause(time.Millisecond) {
			sent++
			start := time.Now()
			st.Inc("api.GET /.requests")
			slowest = max(slowest, time.Since(start))
		}
	}
	add(time.Second)
	var held []*sqlx.Conn
	for range 4 {
		held = append(held, must1(db.Connx(r.ctx))(r))
	}
	add(r.lasts(30*time.Second, 3*time.Second))
	ctx, cancel := context.WithTimeout(r.ctx, time.Second)
	if _, err := st.Get(ctx, requestsTotal); err == nil {
		r.Error("Get answers without a connection")
	}
	cancel()
	for _, c := range held {
		r.must(c.Close())
	}
	add(time.Second)
	r.atMost(p99Slack, "an Inc took", slowest) // who waits for a connection waits for ever
	r.must(st.Flush(r.ctx))
	r.same(sent)
	r.must(st.Shutdown(r.ctx))
	r.checkSpool()
}

// millionNames: names without end count under (other) beyond a cap, and the sum
// stays right.
func millionNames(r *trial) {
	st := r.store(r.pool())
	const n = 1_000_000
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	every := r.lasts(45*time.Second, 8*time.Second) / 1000
	for i := range n {
		st.Inc(fmt.Sprintf("feature.%x.used", r.rng.Uint64()))
		if i%1000 == 999 {
			r.pause(every)
		}
	}
	r.must(st.Flush(r.ctx))
	runtime.GC()
	runtime.ReadMemStats(&after)
	grown := int64(after.HeapAlloc) - int64(before.HeapAlloc)
	r.note("heap %+d MB, %d under (other) before the database", grown>>20, st.Stats().Overflow)
	if grown > 64<<20 {
		r.Errorf("the heap has grown by %d MB", grown>>20)
	}
	sum := r.one(`SELECT SUM(value) FROM usage_metrics WHERE key LIKE 'feature.%'`)
	if sum != n {
		r.Errorf("%d of %d are counted", sum, n)
	}
	if rows := r.one(`SELECT COUNT(*) FROM usage_metrics WHERE key LIKE 'feature.%'`); rows != 10_001 {
		r.Errorf("%d names are kept, want the cap's 10,000 and (other)", rows)
	}
	r.last = evidence{attempted: tally{requestsTotal: n}, counted: tally{requestsTotal: sum}}
	r.must(st.Shutdown(r.ctx))
	r.checkSpool()
	r.eventually(hangs, func() string { // no other row is beside this one
		if stack := stacks(); strings.Contains(stack, "store.(*Store)") {
			return "goroutines are left:\n" + stack
		}
		return ""
	})
}

// stacks are those of all goroutines.
func stacks() string {
	text := make([]byte, 1<<20)
	return string(text[:runtime.Stack(text, true)])
}

// responses are handlers that answer in every way there is, by path.
func responses(file string) map[string]http.HandlerFunc {
	write := func(w io.Writer, text string) { _, _ = io.WriteString(w, text) }
	return map[string]http.HandlerFunc{
		"/plain":   func(w http.ResponseWriter, _ *http.Request) { write(w, "plain") },
		"/nothing": func(http.ResponseWriter, *http.Request) {},
		"/panic":   func(http.ResponseWriter, *http.Request) { panic("a test's") },
		"/late":    func(w http.ResponseWriter, _ *http.Request) { write(w, "late"); panic("a test's") },
		"/abort":   func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"/goexit":  func(http.ResponseWriter, *http.Request) { runtime.Goexit() },
		"/hijack": func(w http.ResponseWriter, _ *http.Request) {
			c, _, err := http.NewResponseController(w).Hijack()
			if err != nil { // HTTP/2
				w.WriteHeader(http.StatusNotImplemented)
				return
			}
			defer c.Close()
			write(c, "HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nhijack")
		},
		"/events": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			for i := range 3 {
				fmt.Fprintf(w, "data: %d\n\n", i)
				_ = http.NewResponseController(w).Flush()
			}
		},
		"/timeout": http.TimeoutHandler(http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) { <-req.Context().Done() }), 10*time.Millisecond, "timeout").ServeHTTP,
		"/empty": func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusNoContent)
			_ = http.NewResponseController(w).Flush()
		},
		"/file": func(w http.ResponseWriter, req *http.Request) { http.ServeFile(w, req, file) },
	}
}

// everyResponse: the answers are what they are without the middleware, and each
// request is counted once.
func everyResponse(r *trial) {
	file := filepath.Join(r.TempDir(), "file")
	r.must(os.WriteFile(file, bytes.Repeat([]byte("sendfile"), 100_000), 0o600))
	st := r.store(r.pool())
	mux := http.NewServeMux()
	for path, h := range responses(file) {
		mux.Handle(path, h)
	}
	count := middleware.New(st, middleware.Config{})
	sent := int64(0)
	for _, h2 := range []bool{false, true} {
		without, with := serve(mux, h2), serve(count(mux), h2)
		for path := range responses(file) {
			want := answer(r.ctx, without, path)
			for range int(r.lasts(20, 3)) {
				sent++
				if got := answer(r.ctx, with, path); got != want {
					r.Errorf("%s, HTTP/2 %v: %.200q, want %.200q", path, h2, got, want)
				}
			}
		}
		without.Close()
		with.Close() // every handler has returned, but for those that were hijacked
	}
	r.eventually(hangs, func() string {
		if err := st.Flush(r.ctx); err != nil {
			return err.Error()
		}
		if n := r.total(); n != sent {
			return fmt.Sprintf("%d of %d requests are counted", n, sent)
		}
		return ""
	})
	r.same(sent)
	r.must(st.Shutdown(r.ctx))
	r.checkSpool()
}

func serve(h http.Handler, h2 bool) *httptest.Server {
	srv := httptest.NewUnstartedServer(h)
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	if !h2 {
		srv.Start()
		return srv
	}
	srv.EnableHTTP2 = true
	srv.StartTLS()
	return srv
}

// answer is what a client sees of one: whether it came whole, its status and body.
// It is asked for with POST, so that nobody asks twice.
func answer(ctx context.Context, srv *httptest.Server, path string) string {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, srv.URL+path, strings.NewReader("x"))
	if err != nil {
		return err.Error()
	}
	resp, err := srv.Client().Do(req)
	if err != nil {
		return "no answer"
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return fmt.Sprintf("%d %v %s", resp.StatusCode, err == nil, body)
}

// otherClocks: batches of hosts whose clocks go wrong by an hour, and of the hours
// around which a zone changes. Each counts in the bucket of its time.
func otherClocks(r *trial) {
	now := time.Now()
	for zone, times := range map[string][]time.Time{
		"UTC":            {now.Add(-time.Hour), now, now.Add(time.Hour)},
		"Europe/Berlin":  aroundHour(time.Date(2025, 3, 30, 1, 0, 0, 0, time.UTC), time.Date(2025, 10, 26, 1, 0, 0, 0, time.UTC)),
		"Asia/Kathmandu": aroundHour(time.Date(2025, 5, 1, 18, 15, 0, 0, time.UTC)), // midnight there: +05:45
	} {
		db := r.pool()
		loc := must1(time.LoadLocation(zone))(r)
		st := must1(store.New(r.ctx, db, store.Config{
			Location: loc, Spool: r.spool, Interval: 50 * time.Millisecond, Retention: store.Retention{Hourly: -1, Daily: -1}, // of years ago
		}))(r)
		hours, days := map[int64]int64{}, map[int64]int64{}
		for i, t := range times {
			r.insert("elsewhere", int64(i+1), counter.Batch{Opened: t.UnixMilli(), Counts: []counter.Count{{Name: "api.GET /.requests", N: 1}}}.Encode())
			l := t.In(loc)
			hours[l.Add(-time.Duration(l.Minute())*time.Minute).Truncate(time.Minute).Unix()]++
			days[time.Date(l.Year(), l.Month(), l.Day(), 0, 0, 0, 0, loc).Unix()]++
		}
		st.Inc("feature.fold.asked")
		r.must(st.Flush(r.ctx))
		for step, want := range map[store.Step]map[int64]int64{store.Hour: hours, store.Day: days} {
			got := map[int64]int64{}
			for _, c := range must1(st.History(r.ctx, store.Query{Name: requestsTotal, Step: step}))(r) {
				got[c.Start.Unix()] = c.N
			}
			if !maps.Equal(got, want) {
				r.Errorf("%s, step %v: %v, want %v", zone, step, got, want)
			}
		}
		r.same(int64(len(times)))
		r.must(st.Shutdown(r.ctx))
		r.checkSpool()
	}
}

// aroundHour is every quarter of an hour for two hours around each of ts.
func aroundHour(ts ...time.Time) (all []time.Time) {
	for _, t := range ts {
		for q := -8; q <= 8; q++ {
			all = append(all, t.Add(time.Duration(q)*15*time.Minute))
		}
	}
	return all
}
