package dashboard

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/usagekit/usagekit/store"
	"github.com/usagekit/usagekit/store/sqlite"
)

// calendar is a fake with the buckets of a real store.
type calendar struct {
	fake
	of *store.Store // has no database
}

func (c *calendar) Buckets(step store.Step, from, to time.Time) []time.Time {
	return c.of.Buckets(step, from, to)
}

func calendarOf(t *testing.T, zone string) *calendar {
	t.Helper()
	location, err := time.LoadLocation(zone)
	if err != nil {
		t.Fatal(err)
	}
	db, err := sqlite.Open(filepath.Join(t.TempDir(), "no", "such", "directory", "usage.db"))
	if err != nil {
		t.Fatal(err)
	}
	st, err := store.New(t.Context(), db, store.Config{Location: location, StartOffline: true, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		db.Close()
	})
	return &calendar{fake{zone: location}, st}
}

// A range that ends now is the last so many hours, days or months of the zone, the one
// that runs among them.
func TestRecent(t *testing.T) {
	for _, c := range []struct{ zone, now, in, from, to string }{
		{"UTC", "2026-03-15T10:20:30Z", "today", "2026-03-15T00:00:00Z", "2026-03-16T00:00:00Z"},
		{"UTC", "2026-03-15T10:20:30Z", "1d", "2026-03-15T00:00:00Z", "2026-03-16T00:00:00Z"},
		{"UTC", "2026-03-15T00:00:00Z", "today", "2026-03-15T00:00:00Z", "2026-03-16T00:00:00Z"},
		{"UTC", "2026-03-14T23:59:59.999Z", "today", "2026-03-14T00:00:00Z", "2026-03-15T00:00:00Z"},
		{"UTC", "2026-03-15T10:20:30Z", "1h", "2026-03-15T10:00:00Z", "2026-03-15T11:00:00Z"},
		{"UTC", "2026-03-15T10:00:00Z", "24h", "2026-03-14T11:00:00Z", "2026-03-15T11:00:00Z"},
		{"UTC", "2026-03-15T10:20:30Z", "9600h", "2025-02-08T11:00:00Z", "2026-03-15T11:00:00Z"},
		{"UTC", "2026-03-15T10:20:30Z", "30d", "2026-02-14T00:00:00Z", "2026-03-16T00:00:00Z"},
		{"UTC", "2026-03-15T10:20:30Z", "400d", "2025-02-09T00:00:00Z", "2026-03-16T00:00:00Z"},
		{"UTC", "2026-03-15T10:20:30Z", "1mo", "2026-03-01T00:00:00Z", "2026-04-01T00:00:00Z"},
		{"UTC", "2026-03-31T23:59:59Z", "2mo", "2026-02-01T00:00:00Z", "2026-04-01T00:00:00Z"},
		{"UTC", "2026-03-15T10:20:30Z", "13mo", "2025-03-01T00:00:00Z", "2026-04-01T00:00:00Z"},
		{"Europe/Paris", "2026-03-29T00:59:59Z", "today", "2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z"}, // 23 hours
		{"Europe/Paris", "2026-03-29T21:59:59Z", "24h", "2026-03-28T22:00:00Z", "2026-03-29T22:00:00Z"},
		{"Europe/Paris", "2026-10-25T22:59:59Z", "today", "2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z"}, // 25 hours
		{"Europe/Paris", "2026-10-25T22:59:59Z", "25h", "2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z"},
		{"Europe/Paris", "2026-10-31T23:00:00Z", "7d", "2026-10-25T23:00:00Z", "2026-11-01T23:00:00Z"},
		{"Europe/Paris", "2026-10-31T22:59:59Z", "13mo", "2025-09-30T22:00:00Z", "2026-10-31T23:00:00Z"},
		{"Asia/Kathmandu", "2026-03-01T12:00:00Z", "today", "2026-02-28T18:15:00Z", "2026-03-01T18:15:00Z"},
		{"Asia/Kathmandu", "2026-03-01T12:00:00Z", "2h", "2026-03-01T10:15:00Z", "2026-03-01T12:15:00Z"},
		{"Asia/Kathmandu", "2026-03-01T12:00:00Z", "2mo", "2026-01-31T18:15:00Z", "2026-03-31T18:15:00Z"},
		{"Australia/Lord_Howe", "2025-04-05T20:00:00Z", "10h", "2025-04-05T11:00:00Z", "2025-04-05T20:30:00Z"}, // one of half an hour
		{"Pacific/Kiritimati", "2026-03-01T09:59:59Z", "today", "2026-02-28T10:00:00Z", "2026-03-01T10:00:00Z"},
	} {
		cal := calendarOf(t, c.zone)
		p := &params{zone: cal.zone}
		from, to, err := p.recent(c.in).at(cal.Buckets, at(c.now))
		if got, want := from.UTC().Format(time.RFC3339)+" … "+to.UTC().Format(time.RFC3339), c.from+" … "+c.to; p.err != nil || err != nil || got != want {
			t.Errorf("%s, %s, %s: %s, %v, %v, want %s", c.zone, c.now, c.in, got, p.err, err, want)
		}
	}
}

// A range is from and to, said otherwise.
func TestRangeIsFromTo(t *testing.T) {
	p := remembering(t, "Europe/Paris")
	var batches []batch
	for h := range 24 * 40 {
		batches = append(batches, batch{time.Now().Add(-time.Duration(h) * time.Hour), map[string]int64{"feature.a": 1, "api.GET /x.requests": 1, "user.42.requests": 1}})
	}
	p.add(t, batches...)
	h := open(p)
	for _, in := range []string{"today", "24h", "7d", "30d", "13mo"} {
		for attempt := 0; ; attempt++ {
			a := askSeries(t, h, "name=feature.a&range="+in)
			explicit := "from=" + url.QueryEscape(a.From.Format(time.RFC3339)) + "&to=" + url.QueryEscape(a.To.Format(time.RFC3339))
			wrong := ""
			for _, target := range []string{"totals?", "totals?prefix=api.&", "rows?", "history?step=day&", "series?", "series?name=feature.a&", "series?step=month&"} {
				got, want := decode(t, h, "/usage/api/"+target+"range="+in), decode(t, h, "/usage/api/"+target+explicit)
				if fmt.Sprint(got) != fmt.Sprint(want) {
					wrong += fmt.Sprintf("%srange=%s: %.300v, with %s %.300v\n", target, in, got, explicit, want)
				}
			}
			if wrong == "" {
				break
			}
			if attempt == 1 { // not only an hour that ended meanwhile
				t.Error(wrong)
				break
			}
		}
	}
}

// Ranges go by the database's clock, and are the same until the next bucket begins: one
// read is for all who ask meanwhile.
func TestRangeByTheDatabasesClock(t *testing.T) {
	cal := calendarOf(t, "Asia/Kolkata") // begins its hours at half past
	for _, skew := range []time.Duration{0, 3 * time.Hour, -40 * time.Minute, -48 * time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			var reads atomic.Int64
			c := &calendar{fake: fake{zone: cal.zone, skew: skew}, of: cal.of}
			c.before = func(_ context.Context, what string) error {
				if what == "History" {
					reads.Add(1)
				}
				return nil
			}
			h := newHandler(from(c), Config{Auth: Public, MaxAge: 100 * time.Hour})
			for in, long := range map[string]time.Duration{"24h": 24 * time.Hour, "today": 24 * time.Hour, "30d": 30 * 24 * time.Hour} {
				h.(*handler).answers = newCache(100 * time.Hour)
				reads.Store(0)
				seen := map[string]bool{}
				for range 4 * 30 {
					a := askSeries(t, h, "name=a.b&range="+in)
					now := time.Now().Add(skew)
					if now.Before(*a.From) || !now.Before(*a.To) || a.To.Sub(*a.From) != long || in == "24h" && a.To.Sub(now) > time.Hour {
						t.Errorf("%s at %v, by the database %v: %v … %v", in, time.Now(), now, a.From, a.To)
					}
					seen[a.To.String()] = true
					time.Sleep(15 * time.Minute)
				}
				most := 3
				if in == "24h" {
					most = 31
				}
				if n := reads.Load(); int(n) != len(seen) || len(seen) > most || len(seen) < 2 {
					t.Errorf("%s, skew %v: %d reads for %d ranges in 30 hours", in, skew, n, len(seen))
				}
			}
		})
	}
}

// name and except may be given several times; others not (TestBadParameters).
func TestRepeated(t *testing.T) {
	h := open(filled(t, map[string]int64{"feature.a": 1, "feature.b": 2, "feature.a,feature.b": 3, "feature.c": 4, "mail.sent": 5, "mail.sentinel": 6, "api.GET /a.requests": 7}))
	thousand := strings.Repeat("name=x&", 999)
	for query, want := range map[string]string{
		"name=feature.a":                                          "feature.a",
		"name=feature.a&name=feature.c":                           "feature.c feature.a",
		"name=feature.a&name=feature.c&name=feature.a":            "feature.c feature.a",
		"name=feature.a,feature.b":                                "feature.a,feature.b",
		"name=feature.a&name=":                                    "feature.a",
		"name=&name=&prefix=mail.":                                "mail.sentinel mail.sent",
		"name=feature.a&name=mail.sent&prefix=mail.":              "mail.sent",
		"name=feature.a&name=mail.sent&limit=1":                   "mail.sent",
		"name=feature.a&name=feature.b&name=feature.c&contains=B": "feature.b",
		"name=feature.a&name=feature.b&except=feature.a":          "feature.b",
		"name=nothing&name=at.all":                                "",
		thousand + "name=feature.a":                               "feature.a",
		"prefix=feature.&except=feature.a":                        "feature.c feature.b",
		"except=feature.&except=api.":                             "mail.sentinel mail.sent",
		"except=feature.&except=api.&except=mail.":                "",
		"except=feature.&except=&except=api.":                     "mail.sentinel mail.sent", // "" leaves nothing out
		"except=mail.sent&except=api.":                            "feature.c feature.a,feature.b feature.b feature.a",
		strings.Repeat("except=x&", 99) + "prefix=mail.":          "mail.sentinel mail.sent",
	} {
		var got []string
		a := decode(t, h, "/usage/api/totals?"+query)
		for _, c := range a["counts"].([]any) {
			if c := c.(map[string]any); c["n"].(float64) > 0 { // without active users, who are none
				got = append(got, c["name"].(string))
			}
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%.80s: %q, want %q", query, got, want)
		}
		// What it selects is selected everywhere.
		got = nil
		for _, s := range askSeries(t, h, query+"&range=today").Series {
			if s.Total != nil && *s.Total > 0 {
				got = append(got, s.Name)
			}
		}
		slices.Sort(got)
		sorted := strings.Fields(want)
		slices.Sort(sorted)
		if !slices.Equal(got, sorted) && !strings.Contains(query, "limit=1") {
			t.Errorf("series of %.80s: %q, want %q", query, got, sorted)
		}
	}
	for query, want := range map[string]string{
		"name=x&" + thousand + "name=x":               "name is given 1001 times, 1000 at most",
		strings.Repeat("except=x&", 101):              "except is given 101 times, 100 at most",
		"name=a&name=%ff":                             "name is not valid UTF-8",
		"except=a&except=%07":                         "except holds a control character",
		"except=a&except=" + strings.Repeat("x", 513): "except is longer than a name can be, 512 bytes",
		"prefix=a&prefix=b":                           "prefix is given 2 times",
		"range=1d&range=2d":                           "range is given 2 times",
	} {
		if w := get(h, "/usage/api/totals?"+query); w.Code != 400 || !strings.Contains(w.Body.String(), want) {
			t.Errorf("%.80s: %d %.300s, want %s", query, w.Code, w.Body, want)
		}
	}
}
