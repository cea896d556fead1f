package dashboard

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/usagekit/usagekit/internal/dbtest"
	"github.com/usagekit/usagekit/internal/naming"
	"github.com/usagekit/usagekit/store"
)

// decode asks for JSON and takes out what changes from day to day.
func decode(t *testing.T, h http.Handler, target string) map[string]any {
	t.Helper()
	w := get(h, target)
	var v map[string]any
	if err := json.Unmarshal(w.Body.Bytes(), &v); err != nil || w.Code != 200 {
		t.Fatalf("%s: %d %v %s", target, w.Code, err, w.Body)
	}
	for _, key := range []string{"as_of", "complete_through"} {
		text, _ := v[key].(string)
		at, err := time.Parse(time.RFC3339, text)
		if err != nil || time.Since(at) > time.Hour || time.Until(at) > time.Hour {
			t.Errorf("%s: %s is %q", target, key, text)
		}
		delete(v, key)
	}
	return v
}

func same(t *testing.T, got map[string]any, want string) {
	t.Helper()
	var v map[string]any
	if err := json.Unmarshal([]byte(want), &v); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, v) {
		text, _ := json.Marshal(got)
		t.Errorf("got %s, want %s", text, want)
	}
}

func TestStats(t *testing.T) {
	h := open(filled(t, map[string]int64{
		"api.GET /novels/{id}.requests": 100, "api.GET /novels/{id}.status_2xx": 99, "api.GET /novels/{id}.latency_5ms": 100,
		"api.POST /outlines.requests": 20, "api.requests.novels": 100,
		"user.42.requests": 99, "user.7.5.requests": 1, "user.registrations": 2,
		"feature.outline.generated": 3, "llm.gpt-4.tokens": 812, "error.llm.timeout": 1,
		"mail.sent": 1<<53 - 1, "plain": 4, "apiary.bees": 5, "usagekit.counts.dropped": 6,
	}))
	same(t, decode(t, h, "/usage/api/stats"), `{
		"zone": "UTC", "dropped": 6, "stale": false, "total_requests": 120, "requests_today": 120,
		"api": {"api.requests.total": 120, "api.requests.today": 120, "api.requests.novels": 100,
			"api.GET /novels/{id}.requests": 100, "api.POST /outlines.requests": 20},
		"features": {"feature.outline.generated": 3},
		"users": {"user.active.daily": 2, "user.active.monthly": 2, "user.registrations": 2, "user.42.requests": 99, "user.7.5.requests": 1},
		"llm": {"llm.gpt-4.tokens": 812}, "errors": {"error.llm.timeout": 1},
		"other": {"mail.sent": 9007199254740991, "plain": 4, "apiary.bees": 5, "usagekit.counts.dropped": 6},
		"truncated": [], "capped": []}`)
	same(t, decode(t, h, "/usage/api/stats?limit=4"), `{
		"zone": "UTC", "dropped": 6, "stale": false, "total_requests": 120, "requests_today": 120,
		"api": {"api.requests.total": 120, "api.requests.today": 120, "api.requests.novels": 100, "api.GET /novels/{id}.requests": 100},
		"features": {"feature.outline.generated": 3},
		"users": {"user.active.daily": 2, "user.active.monthly": 2, "user.registrations": 2, "user.42.requests": 99},
		"llm": {"llm.gpt-4.tokens": 812}, "errors": {"error.llm.timeout": 1},
		"other": {"mail.sent": 9007199254740991, "plain": 4, "apiary.bees": 5, "usagekit.counts.dropped": 6},
		"truncated": ["api", "users"], "capped": []}`)
	same(t, decode(t, h, "/usage/api/stats?limit=1"), `{
		"zone": "UTC", "dropped": 6, "stale": false, "total_requests": 120, "requests_today": 120,
		"api": {"api.requests.total": 120, "api.requests.today": 120},
		"features": {"feature.outline.generated": 3},
		"users": {"user.active.daily": 2, "user.active.monthly": 2, "user.registrations": 2},
		"llm": {"llm.gpt-4.tokens": 812}, "errors": {"error.llm.timeout": 1},
		"other": {"mail.sent": 9007199254740991},
		"truncated": ["api", "users", "other"], "capped": []}`)
}

func TestStatsOfNothing(t *testing.T) {
	same(t, decode(t, open(filled(t, nil)), "/usage/api/stats"), `{
		"zone": "UTC", "dropped": 0, "stale": false, "total_requests": 0, "requests_today": 0,
		"api": {"api.requests.total": 0, "api.requests.today": 0}, "features": {},
		"users": {"user.active.daily": 0, "user.active.monthly": 0, "user.registrations": 0},
		"llm": {}, "errors": {}, "other": {}, "truncated": [], "capped": []}`)
}

// What was counted beyond a cap is told, wherever it stands among the largest.
func TestStatsCapped(t *testing.T) {
	counts := map[string]int64{"api.requests.(other)": 1, "feature.(other).used": 1, "user.(other).requests": 1, "llm.m.calls": 1, "error.other.used": 1, "shop.(other).sold": 1}
	for i := range 20 {
		for _, group := range []string{"api", "feature", "user"} {
			counts[fmt.Sprintf("%s.%d.requests", group, i)] = 9
		}
	}
	for _, limit := range []string{"1", "100"} {
		v := decode(t, open(filled(t, counts)), "/usage/api/stats?limit="+limit)
		if !reflect.DeepEqual(v["capped"], []any{"api", "features", "users", "other"}) {
			t.Errorf("limit %s: capped: %v", limit, v["capped"])
		}
	}
}

// Fixed names are among a group's largest although nearly everything is larger.
func TestStatsOfManyUsers(t *testing.T) {
	names := map[string]int64{"user.registrations": 1}
	for i := range 300 {
		names[fmt.Sprintf("user.%d.requests", i)] = int64(1000 + i)
	}
	v := decode(t, open(filled(t, names)), "/usage/api/stats")
	users := v["users"].(map[string]any)
	if len(users) != 100 || users["user.active.monthly"] != 300.0 || users["user.active.daily"] != 300.0 || users["user.registrations"] != 1.0 {
		t.Errorf("%d: %v", len(users), users)
	}
	if users["user.299.requests"] != 1299.0 || users["user.203.requests"] != 1203.0 || users["user.202.requests"] != nil {
		t.Errorf("not the largest: %v", users)
	}
	if !reflect.DeepEqual(v["truncated"], []any{"users"}) {
		t.Errorf("truncated: %v", v["truncated"])
	}
}

// Whatever the sizes of the groups, and however they are read, stats has the
// largest counters of each.
func TestStatsOfAnySizes(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	rounds := 20
	if dbtest.Race() { // one request after the other
		rounds = 2
	}
	for range rounds {
		names := map[string]int64{}
		for _, form := range []string{
			"api.GET /%d.requests", "api.GET /%d.status_2xx", "api.GET /a.requests/%d.status_2xx", "api.GET /b.requests.%d", "api.requests.area%d",
			"user.%d.requests", "user.%d.exports", "feature.%d", "llm.%d.tokens", "error.%d", "other%d.requests", "mail.%d", "plain%d",
		} {
			for i := range random.IntN(1 << random.IntN(7)) {
				names[fmt.Sprintf(form, i)] = 1 + random.Int64N(1000)
			}
		}
		st := filled(t, names)
		all, err := st.Totals(t.Context(), store.Query{})
		if err != nil {
			t.Fatal(err)
		}
		h := open(st)
		for _, limit := range []int{1, 2, 3, 5, 8, 13, 30, 100} {
			w := get(h, fmt.Sprintf("/usage/api/stats?limit=%d", limit))
			var got stats
			if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || w.Code != 200 {
				t.Fatalf("%d %v %s", w.Code, err, w.Body)
			}
			want := map[string]map[string]int64{
				"api":      {naming.RequestsTotal: 0, naming.RequestsToday: 0},
				"users":    {naming.ActiveDaily: 0, naming.ActiveMonthly: 0, nameRegistrations: 0},
				"features": {}, "llm": {}, "errors": {}, "other": {},
			}
			room := map[string]int{}
			for key, group := range want {
				room[key] = max(limit, len(group)) - len(group)
			}
			var truncated []string
			for _, c := range all {
				group, subject, measure := store.SplitName(c.Name)
				key := map[string]string{"api": "api", "user": "users", "feature": "features", "llm": "llm", "error": "errors"}[group]
				if key == "" {
					key = "other"
				}
				_, fixed := want[key][c.Name]
				switch {
				case naming.SumOfRoutes(c.Name), group == "api" && subject != "requests" && measure != "requests": // in rows only
				case fixed:
					want[key][c.Name] = c.N
				case room[key] > 0:
					want[key][c.Name] = c.N
					room[key]--
				case !slices.Contains(truncated, key):
					truncated = append(truncated, key)
				}
			}
			for key, group := range map[string]map[string]int64{"api": got.API, "users": got.Users, "features": got.Features, "llm": got.LLM, "errors": got.Errors, "other": got.Other} {
				if !maps.Equal(group, want[key]) {
					t.Errorf("%d of %s are %v, want %v", limit, key, group, want[key])
				}
			}
			slices.Sort(truncated)
			if slices.Sort(got.Truncated); !slices.Equal(got.Truncated, truncated) {
				t.Errorf("%d: truncated are %v, want %v", limit, got.Truncated, truncated)
			}
		}
	}
}

// noting notes what the dashboard asks of a store.
type noting struct {
	*store.Store
	what []string
}

func (n *noting) Get(ctx context.Context, name string) (int64, error) {
	n.what = append(n.what, "Get "+name)
	return n.Store.Get(ctx, name)
}
func (n *noting) Totals(ctx context.Context, q store.Query) ([]store.Count, error) {
	n.what = append(n.what, fmt.Sprintf("Totals %+v", q))
	return n.Store.Totals(ctx, q)
}

// Each read is a transaction: few make up stats, unless there is much of everything.
func TestReadsOfStats(t *testing.T) {
	few := map[string]int64{"api.GET /a.requests": 5, "api.requests.novels": 5, "user.1.requests": 5, "feature.a": 1, "llm.a.tokens": 4, "error.x": 1, "mail.sent": 1}
	users, much := maps.Clone(few), map[string]int64{}
	for i := range 300 {
		users[fmt.Sprintf("user.%d.requests", i)] = 1000
		for _, form := range []string{"api.GET /%d.requests", "api.requests.%d", "user.%d.requests", "feature.%d", "llm.%d.tokens", "error.%d", "mail.%d"} {
			much[fmt.Sprintf(form, i)] = 1000
		}
	}
	for name, c := range map[string]struct {
		names map[string]int64
		reads int
	}{"nothing": {nil, 4}, "few": {few, 4}, "many users": {users, 8}, "much of everything": {much, 17}} {
		n := &noting{Store: filled(t, c.names)}
		if get(open(n), "/usage/api/stats"); len(n.what) > c.reads {
			t.Errorf("%s: %d reads, want at most %d: %q", name, len(n.what), c.reads, n.what)
		}
	}
}

func TestTotalsRowsHistory(t *testing.T) {
	h := open(filled(t, map[string]int64{
		"api.GET /a.requests": 100, "api.GET /a.status_2xx": 90, "api.GET /a.status_5xx": 10, "api.GET /a.latency_10ms": 90, "api.GET /a.latency_100ms": 10,
		"api.GET /b.requests": 200,
		"feature.a.b":         3,
	}))
	today := time.Now().UTC().Format(time.DateOnly)
	for target, want := range map[string]string{
		"totals?measure=requests":                                     `{"stale":false,"counts":[{"name":"api.GET /b.requests","n":200},{"name":"api.GET /a.requests","n":100}]}`,
		"totals?measure=requests&limit=1":                             `{"stale":false,"counts":[{"name":"api.GET /b.requests","n":200}]}`,
		"totals?name=feature.a.b":                                     `{"stale":false,"counts":[{"name":"feature.a.b","n":3}]}`,
		"totals?prefix=feature.&contains=A.B&from=" + today:           `{"stale":false,"counts":[{"name":"feature.a.b","n":3}]}`,
		"totals?prefix=feature.&to=2020-01-01":                        `{"stale":false,"counts":[]}`,
		"totals?name=nothing":                                         `{"stale":false,"counts":[]}`,
		"totals?name=&prefix=feature.&measure=&contains=&from=&limit": `{"stale":false,"counts":[{"name":"feature.a.b","n":3}]}`,
		"rows?prefix=nothing.":                                        `{"stale":false,"rows":[]}`,
		"rows?prefix=api.&measure=requests": `{"stale":false,"rows":[
			{"group":"api","subject":"GET /b","counts":{"requests":200},"p50_ms":null,"p95_ms":null,"p99_ms":null},
			{"group":"api","subject":"GET /a","counts":{"requests":100,"status_2xx":90,"status_5xx":10,"latency_10ms":90,"latency_100ms":10},"p50_ms":7.8,"p95_ms":87.5,"p99_ms":97.5}]}`,
		"history?name=feature.a.b": `{"stale":false,"step":"day","counts":[{"name":"feature.a.b","start":"` + today + `T00:00:00Z","n":3}]}`,
		"history?prefix=feature.&step=month&from=" + today + "&to=" + today: `{"stale":false,"step":"month","counts":[{"name":"feature.a.b","start":"` + today[:8] + `01T00:00:00Z","n":3}]}`,
		"history?prefix=feature.&to=2020-01-01&step=hour":                   `{"stale":false,"step":"hour","counts":[]}`,
	} {
		t.Run(target, func(t *testing.T) { same(t, decode(t, h, "/usage/api/"+target), want) })
	}
}

func TestBadParameters(t *testing.T) {
	h := open(filled(t, nil))
	long := strings.Repeat("a", 513)
	for target, want := range map[string]string{
		"api/stats?limt=5":                          `unknown parameter "limt"; known here: limit`,
		"api/stats?limit=0":                         `limit must be a number from 1 to 1000, not "0"`,
		"api/stats?limit=1001":                      `limit must be`,
		"api/stats?limit=-1":                        `limit must be`,
		"api/stats?limit=1e2":                       `limit must be`,
		"api/stats?limit=99999999999999999999":      `limit must be`,
		"api/stats?limit=1&limit=2":                 `limit is given 2 times`,
		"api/stats?prefix=api.":                     `unknown parameter "prefix"`,
		"api/stats?limit=1;limit=2":                 `malformed query string`,
		"api/stats?%zz":                             `malformed query string`,
		"api/totals?limit=10001":                    `limit must be a number from 1 to 10000`,
		"api/totals?step=day":                       `unknown parameter "step"`,
		"api/totals?name=%ff":                       `name is not valid UTF-8`,
		"api/totals?name=a%00":                      `name holds a control character`,
		"api/totals?prefix=a%0A":                    `prefix holds a control character`,
		"api/totals?contains=" + long:               `contains is longer than`,
		"api/totals?from=yesterday":                 `from must be a date`,
		"api/totals?to=2026-02-30":                  `to must be a date`,
		"api/totals?from=2026-02-01T00:00:00":       `from must be a date`,
		"api/totals?from=2026-02-01T00:00:00+01:00": `%2B for a plus`,
		"api/totals?from=1969-12-31":                `from must not lie before 1970`,
		"api/totals?to=0001-01-01T00:00:00Z":        `to must not lie before 1970`,
		"api/totals?from=2026-02-02&to=2026-02-01":  `from must lie before to`,
		"api/totals?from=2026-02-02T00:00:00Z&to=" + url.QueryEscape("2026-02-02T01:00:00+01:00"): `from must lie before to`,
		"api/totals?" + long + "=1":                         `unknown parameter "aaaa`,
		"api/totals?%ff=1":                                  `unknown parameter "\xff"`,
		"api/totals?name=user.active.daily&from=2026-01-01": `cannot be summed`, // the store's own
		"api/rows?name=a":                                   `unknown parameter "name"`,
		"api/rows?limit=x":                                  `limit must be`,
		"api/history?step=week":                             `step must be hour, day or month, not "week"`,
		"api/history?step=hour&prefix=user.":                `hour is finer than kept`, // the store's own
		"api/health?x=":                                     `unknown parameter "x"; known here: none`,
		"api/totals?to=9999-12-31":                          `to must lie before the year 9000`,
		"api/series?step=hour&name=a.b.c&from=2090-01-01&to=8000-01-01":                                    `has too many points`,
		"api/series?step=day&from=2026-01-01&to=2027-01-01&" + strings.Repeat("name=a&", 999) + "name=b.c": `this history has`,
		"api/totals?range=1":                            `range must be today, or a number`,
		"api/totals?range=25":                           `range must be today, or a number`,
		"api/totals?range=0d":                           `range must be today, or a number`,
		"api/totals?range=401d":                         `range must be today, or a number`,
		"api/totals?range=-1mo":                         `range must be today, or a number`,
		"api/totals?range=1d&from=2026-01-01":           `range stands for from and to`,
		"api/totals?" + strings.Repeat("name=a&", 1001): `name is given 1001 times`,
		"api/rows?" + strings.Repeat("except=a&", 101):  `except is given 101 times, 100 at most`,
		"api/series":                                    `series needs a range`,
		"api/series?to=2026-01-01":                      `series needs a range`,
		"api/series?range=24h&limit=1001":               `limit must be`,
		"api/export?of=everything":                      `of must be totals, rows or history`,
		"api/export?of=history":                         `a history needs a step`,
		"api/export?step=day":                           `step is for of=history`,
		"api/export?format=xml":                         `format must be csv or json`,
		"tables.html?refresh=1":                         `refresh must be a number from 5 to 3600`,
		"tables.html?range=today":                       `unknown parameter "range"`,
	} {
		w := get(h, "/usage/"+target)
		message := w.Body.String()
		if strings.HasPrefix(target, "api/") {
			var v struct{ Error string }
			if err := json.Unmarshal(w.Body.Bytes(), &v); err != nil {
				t.Errorf("%s: %v", target, err)
			}
			message = v.Error
		}
		if w.Code != 400 || !strings.Contains(message, want) || len(message) > 250 {
			t.Errorf("%s: %d %s, want %s", target, w.Code, message, want)
		}
	}
}

func TestRange(t *testing.T) {
	zone := func(name string) *time.Location {
		loc, err := time.LoadLocation(name)
		if err != nil {
			t.Fatal(err)
		}
		return loc
	}
	for _, c := range []struct{ zone, from, to, wantFrom, wantTo string }{
		{"UTC", "2026-03-01", "2026-03-01", "2026-03-01T00:00:00Z", "2026-03-02T00:00:00Z"},
		{"UTC", "2026-02-28", "2026-12-31", "2026-02-28T00:00:00Z", "2027-01-01T00:00:00Z"},
		{"UTC", "2026-03-01T10:20:30Z", "2026-03-01T10:20:30.5Z", "2026-03-01T10:20:30Z", "2026-03-01T10:20:30.5Z"},
		{"Europe/Paris", "2026-03-29", "2026-03-29", "2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z"},                // 23 hours
		{"Europe/Paris", "2026-10-25", "2026-10-25", "2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z"},                // 25 hours
		{"Asia/Kathmandu", "2026-03-01", "2026-03-01", "2026-02-28T18:15:00Z", "2026-03-01T18:15:00Z"},              // +5:45
		{"America/Santiago", "2023-09-03", "2023-09-03", "2023-09-03T04:00:00Z", "2023-09-04T03:00:00Z"},            // no midnight
		{"Africa/Cairo", "2024-04-26", "2024-04-26", "2024-04-25T22:00:00Z", "2024-04-26T21:00:00Z"},                // no midnight
		{"America/Santiago", "2024-04-06", "2024-04-06", "2024-04-06T03:00:00Z", "2024-04-07T04:00:00Z"},            // 23:00 twice
		{"America/St_Johns", "2006-10-29", "2006-10-29", "2006-10-29T02:30:00Z", "2006-10-30T03:30:00Z"},            // 0:00 twice
		{"Pacific/Apia", "2011-12-29", "2011-12-31", "2011-12-29T10:00:00Z", "2011-12-31T10:00:00Z"},                // no 30th
		{"Pacific/Kiritimati", "2026-03-01", "2026-03-01", "2026-02-28T10:00:00Z", "2026-03-01T10:00:00Z"},          // +14
		{"Pacific/Pago_Pago", "2026-03-01T00:00:00Z", "2026-03-01", "2026-03-01T00:00:00Z", "2026-03-02T11:00:00Z"}, // −11
	} {
		p := &params{values: url.Values{"from": {c.from}, "to": {c.to}}, zone: zone(c.zone)}
		q := p.query(1, maxNames)
		from, to := q.From.UTC().Format(time.RFC3339Nano), q.To.UTC().Format(time.RFC3339Nano)
		if p.err != nil || from != c.wantFrom || to != c.wantTo {
			t.Errorf("%s %s … %s: %s … %s, %v", c.zone, c.from, c.to, from, to, p.err)
		}
	}
}

func TestZone(t *testing.T) {
	paris, err := time.LoadLocation("Europe/Paris")
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		f := &fake{zone: paris, state: store.Stats{FoldedThrough: time.Now()}, counts: []store.Count{{Name: "a.b", Start: time.Now(), N: 1}}}
		got := get(open(f), "/usage/api/history?step=hour").Body.String()
		want := `{"as_of":"2000-01-01T01:00:00+01:00","complete_through":"2000-01-01T01:00:00+01:00","stale":false,"step":"hour","counts":[{"name":"a.b","start":"2000-01-01T01:00:00+01:00","n":1}]}` + "\n"
		if got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	})
}

func TestHistoryTooLong(t *testing.T) {
	f := &fake{counts: slices.Repeat([]store.Count{{Name: "a.b", N: 1}}, maxPoints+1)}
	if w := get(open(f), "/usage/api/history"); w.Code != 400 || !strings.Contains(w.Body.String(), "100001 points") {
		t.Errorf("%d %.200s", w.Code, w.Body)
	}
}

type stateError string

func (e stateError) Error() string    { return "FATAL: password authentication failed for user app" }
func (e stateError) SQLState() string { return string(e) }

type ownError string

func (e ownError) Error() string  { return string(e) }
func (e ownError) Reason() string { return string(e) }

func TestHealth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := time.Now()
		for _, c := range []struct {
			state store.Stats
			code  int
			want  string
		}{
			{store.Stats{FoldedThrough: now}, 200,
				`{"as_of":"2000-01-01T00:00:00Z","complete_through":"2000-01-01T00:00:00Z","stale":false,"status":"ok","reasons":[],"database":[],"pending":0,"oldest":null,"lost":0,"overflow":0,"invalid":0,"corrupt_files":0}`},
			{store.Stats{Pending: 3, Oldest: now.Add(-90 * time.Second), Lost: 1, Overflow: 2, Invalid: 4, Corrupt: 5, Degraded: "the disk is full", Err: fmt.Errorf("dial postgres://app:secret@db")}, 503,
				`{"as_of":"2000-01-01T00:00:00Z","complete_through":null,"stale":false,"status":"degraded","reasons":["the last write to the database failed; the application's log says why","3 names have counts that wait for the database, the oldest for 1m30s","the disk is full","5 files of the spool could not be used since the start, and were set aside as *.corrupt; the application's log says which"],"database":["the last write to the database failed; the application's log says why","3 names have counts that wait for the database, the oldest for 1m30s"],"pending":3,"oldest":"1999-12-31T23:58:30Z","lost":1,"overflow":2,"invalid":4,"corrupt_files":5}`},
			{store.Stats{Err: fmt.Errorf("flush: %w", stateError("28P01"))}, 503,
				`{"as_of":"2000-01-01T00:00:00Z","complete_through":null,"stale":false,"status":"degraded","reasons":["the database refuses what is written (SQLSTATE 28P01); the application's log says why"],"database":["the database refuses what is written (SQLSTATE 28P01); the application's log says why"],"pending":0,"oldest":null,"lost":0,"overflow":0,"invalid":0,"corrupt_files":0}`},
			{store.Stats{Err: fmt.Errorf("fold: %w", ownError("batches wait"))}, 503,
				`{"as_of":"2000-01-01T00:00:00Z","complete_through":null,"stale":false,"status":"degraded","reasons":["batches wait"],"database":["batches wait"],"pending":0,"oldest":null,"lost":0,"overflow":0,"invalid":0,"corrupt_files":0}`},
		} {
			w := get(open(&fake{state: c.state}), "/usage/api/health")
			if w.Code != c.code || strings.TrimSpace(w.Body.String()) != c.want {
				t.Errorf("%d %s", w.Code, w.Body)
			}
		}
		// Its times are the database's, like those of every answer, as far as that is known.
		h := open(&fake{skew: 10 * time.Minute, state: store.Stats{FoldedThrough: now.Add(10 * time.Minute)}})
		get(h, "/usage/api/totals")
		if w := get(h, "/usage/api/health"); !strings.HasPrefix(w.Body.String(), `{"as_of":"2000-01-01T00:10:00Z","complete_through":"2000-01-01T00:10:00Z",`) {
			t.Errorf("%s", w.Body)
		}
	})
}
