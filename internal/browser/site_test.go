package browser

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/usagekit/usagekit/dashboard"
	"github.com/usagekit/usagekit/internal/counter"
	"github.com/usagekit/usagekit/internal/dbtest"
	"github.com/usagekit/usagekit/store"
	_ "github.com/usagekit/usagekit/store/sqlite" // the driver
)

// site is a service with a store of its own, and its dashboard below /usage/.
type site struct {
	*testing.T
	store   *store.Store
	db      *sqlx.DB
	faults  *dbtest.Faults // of db
	url     string         // of the page
	batches int            // of the past, so far
}

// serve starts a site that has counted nothing yet. It ends with the test.
func serve(t *testing.T) *site {
	t.Helper()
	return serveFile(t, filepath.Join(t.TempDir(), "usage.db"), nil)
}

// serveFile is serve of the store in a SQLite file, whose faults begin at once.
func serveFile(t *testing.T, file string, hook func(dbtest.Op) dbtest.Fault) *site {
	t.Helper()
	return serveIn(t, time.UTC, file, hook)
}

// serveIn is serveFile of a store in a zone. A day of UTC's that is about to end would
// leave today empty in the midst of a test.
func serveIn(t *testing.T, zone *time.Location, file string, hook func(dbtest.Op) dbtest.Fault) *site {
	t.Helper()
	if chromium == nil {
		t.Skip("no Chromium")
	}
	if now := time.Now(); now.Add(time.Minute).UTC().Day() != now.UTC().Day() {
		time.Sleep(time.Minute)
	}
	s := &site{T: t, faults: &dbtest.Faults{}}
	s.faults.Set(hook)
	// As sqlite.Open has it, but that no commit waits for the disk.
	db, err := s.faults.Open("sqlite", "file:"+file+"?_pragma=busy_timeout(5000)&_pragma=journal_mode(WAL)&_pragma=synchronous(OFF)&_txlock=immediate")
	if err != nil {
		t.Fatal(err)
	}
	s.db = sqlx.NewDb(db, "sqlite3")
	quiet := slog.New(slog.DiscardHandler)
	if s.store, err = store.New(t.Context(), s.db, store.Config{Interval: 100 * time.Millisecond, StartOffline: hook != nil, Logger: quiet, Location: zone}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.faults.Set(nil)
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := s.store.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		if err := s.db.Close(); err != nil {
			t.Error(err)
		}
	})
	s.url = s.mount("/usage/", dashboard.New(s.store, dashboard.Config{Auth: dashboard.Public, Users: names})) + "/usage/"
	return s
}

// mount starts a server of a handler below a path, and returns the server's URL.
func (s *site) mount(path string, h http.Handler) string {
	mux := http.NewServeMux()
	mux.Handle(path, h)
	srv := httptest.NewServer(mux)
	s.Cleanup(srv.Close)
	return srv.URL
}

// names knows one user.
func names(context.Context, []string) (map[string]string, error) {
	return map[string]string{"ada": "Ada Lovelace"}, nil
}

// add counts now, and returns when it is in the database.
func (s *site) add(counts map[string]int64) {
	s.Helper()
	for name, n := range counts {
		s.store.Add(name, n)
	}
	if err := s.store.Flush(s.Context()); err != nil {
		s.Fatal(err)
	}
}

// batch is what was counted in the quarter of an hour of at.
type batch struct {
	at     time.Time
	counts map[string]int64
}

// past adds batches of other instances, long gone, as those would have: the fold
// makes totals and history of them.
func (s *site) past(batches ...batch) {
	s.Helper()
	tx, err := s.db.BeginTxx(s.Context(), nil)
	if err != nil {
		s.Fatal(err)
	}
	defer tx.Rollback() // nothing, after Commit
	for _, b := range batches {
		one := counter.Batch{Opened: b.at.UnixMilli()}
		for _, name := range slices.Sorted(maps.Keys(b.counts)) {
			one.Counts = append(one.Counts, counter.Count{Name: name, N: b.counts[name]})
		}
		// One fold takes so many of a writer.
		writer, seq := fmt.Sprintf("past-%d", s.batches/50), s.batches%50+1
		s.batches++
		if _, err := tx.Exec(`INSERT INTO usage_writers (writer, seq, sum, seen) VALUES (?, 0, x'', ?) ON CONFLICT DO NOTHING`, writer, time.Now().UnixMilli()); err != nil {
			s.Fatal(err)
		}
		if _, err := tx.Exec(`INSERT INTO usage_inbox (writer, seq, opened, payload) VALUES (?, ?, ?, ?)`, writer, seq, one.Opened, one.Encode()); err != nil {
			s.Fatal(err)
		}
	}
	if err := tx.Commit(); err != nil {
		s.Fatal(err)
	}
	for waiting := 1; waiting > 0; {
		s.store.Inc("mail.sent") // a flush of something folds what waits of all
		if err := s.store.Flush(s.Context()); err != nil {
			s.Fatal(err)
		}
		if err := s.db.Get(&waiting, `SELECT COUNT(*) FROM usage_inbox`); err != nil {
			s.Fatal(err)
		}
	}
}

// ask returns the answer of the API to a query, such as stats or rows?range=7d.
func ask[T any](s *site, query string) T {
	s.Helper()
	var value T
	resp, err := http.Get(s.url + "api/" + query)
	if err != nil {
		s.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, body)
	}
	if err == nil {
		err = json.Unmarshal(body, &value)
	}
	if err != nil {
		s.Fatalf("api/%s: %v", query, err)
	}
	return value
}

// The shapes of what the API answers, as far as the tests look at it.
type (
	stats struct {
		Total int64            `json:"total_requests"`
		Today int64            `json:"requests_today"`
		API   map[string]int64 `json:"api"`
		Users map[string]int64 `json:"users"`
		LLM   map[string]int64 `json:"llm"`
	}
	rows struct {
		Rows []row `json:"rows"`
	}
	row struct {
		Group   string           `json:"group"`
		Subject string           `json:"subject"`
		Counts  map[string]int64 `json:"counts"`
		P50     *float64         `json:"p50_ms"`
		P95     *float64         `json:"p95_ms"`
		P99     *float64         `json:"p99_ms"`
	}
	totals struct {
		Counts []struct {
			Name string `json:"name"`
			N    int64  `json:"n"`
		} `json:"counts"`
	}
)

func (t totals) of(name string) int64 {
	for _, c := range t.Counts {
		if c.Name == name {
			return c.N
		}
	}
	return 0
}

// requests are n of a route, a part of which failed or took long.
func requests(counts map[string]int64, route string, n int64) {
	name := "api." + route + "."
	for measure, share := range map[string]int64{"status_2xx": n - n/10 - n/20, "status_4xx": n / 20, "status_5xx": n / 10,
		"latency_5ms": n - n/5 - n/50, "latency_50ms": n / 5, "latency_1000ms": n / 50} {
		if share > 0 {
			counts[name+measure] += share
		}
	}
	counts[name+"requests"] += n
}

// week is what a small service counted: some in every hour of the last two days, some
// on days before, and now. No two numbers of a table are the same.
func (s *site) week() {
	s.Helper()
	now := time.Now()
	hour := func(scale int64) map[string]int64 {
		c := map[string]int64{}
		requests(c, "GET /novels/{id}", 60*scale)
		requests(c, "POST /novels", 20*scale)
		requests(c, "GET /site/", 33*scale)
		requests(c, "POST /llm/complete", 7*scale)
		requests(c, "(unmatched)", 2*scale)
		maps.Copy(c, map[string]int64{
			"user.ada.requests": 31 * scale, "user.42.requests": 22 * scale, "user.42.7.requests": 11 * scale,
			"user.registrations":        scale,
			"feature.outline.generated": 5 * scale, "feature.chapter.written": 3 * scale,
			"llm.gpt-4.calls": 6 * scale, "llm.gpt-4.failed": scale, "llm.gpt-4.tokens": 4821 * scale, "llm.gpt-4.input_tokens": 4000 * scale, "llm.gpt-4.output_tokens": 821 * scale,
			"llm.small.calls": 2 * scale, "llm.small.tokens": 310 * scale, "llm.small.input_tokens": 300 * scale, "llm.small.output_tokens": 10 * scale,
			"error.llm.timeout": scale, "error.db.connection": 2 * scale,
			"mail.sent": 9 * scale,
		})
		return c
	}
	var all []batch
	for h := range 48 {
		all = append(all, batch{now.Add(-time.Duration(h) * time.Hour), hour(int64(1 + h%5))})
	}
	for d := 3; d < 9; d++ {
		all = append(all, batch{now.AddDate(0, 0, -d), hour(int64(40 + d))})
	}
	for _, d := range []int{20, 50, 80, 200, 370} {
		all = append(all, batch{now.AddDate(0, 0, -d), hour(int64(100 + d))})
	}
	s.past(all...)
}

// The site's numbers are what was added: what the page is compared with would else
// be nothing.
func TestSite(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.week()
	s.add(map[string]int64{"feature.outline.generated": 1_000_000})
	if got := ask[totals](s, "totals?name=feature.outline.generated&range=24h").of("feature.outline.generated"); got < 1_000_000+5*24 {
		t.Errorf("in 24 h %d", got)
	}
	all := int64(0)
	for h := range int64(48) {
		all += 1 + h%5
	}
	for d := int64(3); d < 9; d++ {
		all += 40 + d
	}
	all += 500 + 20 + 50 + 80 + 200 + 370
	if got := ask[stats](s, "stats").Total; got != 122*all {
		t.Errorf("%d requests, want %d", got, 122*all)
	}
}
