package store_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/usagekit/usagekit/internal/dbtest"
	"github.com/usagekit/usagekit/internal/naming"
	"github.com/usagekit/usagekit/middleware"
	"github.com/usagekit/usagekit/store"
	"github.com/usagekit/usagekit/store/storetest"
)

// Whatever clients send as user, area, route, method and path: each request is
// under one route, one status, one duration, its user and its area, and the sums
// agree with each other.
func TestHostileRequests(t *testing.T) {
	ctx := dbtest.Context(t)
	long := strings.Repeat("x", 60_000)
	hostile := []string{
		"42", ".", "..", "...", "a.b", "a\x00b", "\xff\xfe", "\u202egnp.exe", "a\r\nSet-Cookie: x=1", `'; DROP TABLE usage_metrics; --`, `"`, `\`, "%", "_", "?", "$1", "{}",
		long + "1", long + "2", strings.Repeat("é", 400), "(other)", "(unmatched)", "(invalid)", "(error)", "((other)", "(", "requests", "total", "today", "active", "registrations",
		"=cmd|' /C calc'!A0", "<script>alert(1)</script>", "\U0010FFFF", "\uE000", "api.requests.total", " ", "\t", "NULL", "😀", "requests.requests", "active.daily", "status_2xx", "latency.inf",
	}
	st := storetest.New(t)
	count := middleware.New(st, middleware.Config{
		User:  func(r *http.Request) string { return r.FormValue("v") },
		Area:  func(r *http.Request) string { return r.FormValue("v") },
		Route: func(r *http.Request) string { return r.FormValue("route") },
	})
	srv := httptest.NewServer(count(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "ok") })))
	sent := int64(0)
	send := func(method, query string) {
		t.Helper()
		req, err := http.NewRequestWithContext(ctx, method, srv.URL+"/?"+query, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := srv.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		sent++
	}
	for _, v := range hostile {
		v = url.QueryEscape(v)
		send("GET", "v="+v)
		send("FOO~BAR", "v="+v+"&route="+v)
	}
	srv.Close() // every handler has returned
	if err := st.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	counts, err := st.Totals(ctx, store.Query{})
	if err != nil {
		t.Fatal(err)
	}
	sums, users := map[string]int64{}, map[string]int64{}
	for _, c := range counts {
		group, subject, measure := store.SplitName(c.Name)
		switch {
		case c.Name == "api.requests.total", c.Name == "api.requests.today":
			sums[c.Name] = c.N
		case naming.Derived(c.Name) && strings.HasPrefix(measure, "status_"):
			sums["all status"] += c.N
		case naming.Derived(c.Name) && strings.HasPrefix(measure, "latency_"):
			sums["all latency"] += c.N
		case naming.Area(group, subject):
			sums["areas"] += c.N
		case group == "api" && measure == "requests":
			sums["routes"] += c.N
		case group == "api" && strings.HasPrefix(measure, "status_"):
			sums["status"] += c.N
		case group == "api" && strings.HasPrefix(measure, "latency_"):
			sums["latency"] += c.N
		case group == "user" && measure == "requests":
			sums["users"] += c.N
			users[subject] = c.N
		case c.Name == "user.active.daily" || c.Name == "user.active.monthly":
			sums[c.Name] = c.N
		default:
			t.Errorf("%q was counted", c.Name)
		}
	}
	want := map[string]int64{"user.active.daily": int64(len(users)), "user.active.monthly": int64(len(users))}
	for _, what := range []string{"api.requests.total", "api.requests.today", "areas", "routes", "status", "latency", "all status", "all latency", "users"} {
		want[what] = sent
	}
	want["areas"] /= 2 // the others have no route
	if fmt.Sprint(sums) != fmt.Sprint(want) {
		t.Errorf("sums %v, want %v", sums, want)
	}
	if len(users) != len(hostile) {
		t.Errorf("%d users are told apart, of %d: %v", len(users), len(hostile), users)
	}
	for user, n := range map[string]int64{"42": 2, "a.b": 2, "((other)": 2, "(((other)": 2, "requests": 2, `'; DROP TABLE usage_metrics; --`: 2, "active": 2} {
		if users[user] != n {
			t.Errorf("user %s has %d requests, want %d", user, users[user], n)
		}
	}
	for area, n := range map[string]int64{"requests_": 1, "total_": 1, "today_": 1, "status_2xx_": 1, "latency_inf_": 1, "a_b": 1, "requests_requests": 1, "((other)": 1} {
		if got, err := st.Get(ctx, "api.requests."+area); got != n || err != nil {
			t.Errorf("area %s has %d requests, %v; want %d", area, got, err, n)
		}
	}
	if s := st.Stats(); s.Invalid+s.Lost+s.Overflow != 0 || s.Err != nil {
		t.Errorf("Stats: %+v", s)
	}
}
