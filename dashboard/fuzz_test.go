package dashboard

import (
	"context"
	"encoding/json"
	"fmt"
	"html"
	"maps"
	"mime"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/usagekit/usagekit/internal/dbtest"
	"github.com/usagekit/usagekit/internal/naming"
	"github.com/usagekit/usagekit/store"
	"github.com/usagekit/usagekit/store/postgres"
	"github.com/usagekit/usagekit/store/storetest"
)

var (
	parameters = []string{"name", "prefix", "measure", "contains", "from", "to", "step", "limit", "refresh", ""}

	// What somebody may call himself, or a thing.
	hostileNames = []string{
		"", "a", "%", "_", "%00", "a\x00b", "a\r\nSet-Cookie: x", "\x7f", "\u0085", "\xff\xfe", "\xc0\xaf", "\xed\xa0\x80", "\ufeff", "\ufffd", "\ufffe",
		"\u202egnp.exe", "\u2028", "\u2029", "\u200b", "e\u0301", "İ", "ſ", "K", "\U0010ffff", "\ud7ff", "😀", "</script><script>alert(1)</script>", "<!--", "]]>", "&lt;&#x22;",
		`"`, `'`, "`", `\`, `\u0000`, `'; DROP TABLE usage_metrics; --`, `' OR '1'='1`, "/*", "--", "$1", "?", ":name", "@p1", "{{.}}", "%!s(MISSING)", "=cmd|' /C calc'!A0",
		".", "..", "../../etc/passwd", "(other)", "requests", "null", "[]", "0", "user.", "user.active.daily", "user.active.monthly", "api.requests.total",
		strings.Repeat("é", 256), strings.Repeat("é", 257), strings.Repeat("%", 512), strings.Repeat("x", 60_000),
	}
	// What else somebody may give to a parameter.
	hostile = append([]string{
		"user", "hour", "month", "HOUR", "day;month", "5&limit=6", "-0", "1", "+5", " 5", "5 ", "5.0", "0x10", "1e3", "1_000", "٣", "NaN", "-Infinity", "10000", "10001", "9007199254740992", "9223372036854775807", "18446744073709551616",
		"now", "2026-02-30", "2026-1-1", "0000-00-00", "0000-01-01", "1969-12-31", "1970-01-01", "9999-12-31", "10000-01-01", "-2026-01-01", "2026-W01-1", "1767225600",
		"2026-06-30T23:59:60Z", "2026-01-01T24:00:00Z", "2026-01-01t00:00:00z", "2026-01-01T00:00:00+24:00", "9999-12-31T23:59:59-23:59", "0000-01-01T00:00:00+23:59",
		"2026-01-01T00:00:00." + strings.Repeat("9", 400) + "Z",
	}, hostileNames...)

	named = regexp.MustCompile(`^(malformed query string: |unknown parameter "|(name|prefix|measure|contains|except|from|to|range|step|limit|of|format|series|a history|refresh|Step|user\.active\.(daily|monthly)) )`)
)

// harmless asks, and checks what holds whatever is asked: what can be answered
// is, and what cannot is the caller's mistake, told in the form of the rest.
func harmless(t *testing.T, h http.Handler, path, query string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequest("GET", path, nil)
	r.URL.RawQuery = query
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	said := fmt.Sprintf("%s?%q", path, short(query))
	checkHeaders(t, said, w)
	if got := w.Header().Get("Content-Length"); got != strconv.Itoa(w.Body.Len()) && w.Header().Get("Content-Disposition") == "" {
		t.Errorf("%s: Content-Length %s of %d", said, got, w.Body.Len())
	}
	mediaType, _, err := mime.ParseMediaType(w.Header().Get("Content-Type"))
	isJSON := strings.Contains(path, "/api/") && mediaType != "text/csv"
	if err != nil || isJSON != (mediaType == "application/json") {
		t.Errorf("%s: Content-Type %q", said, w.Header().Get("Content-Type"))
	}
	if isJSON && !json.Valid(w.Body.Bytes()) {
		t.Errorf("%s: no JSON: %.300s", said, w.Body)
	}
	switch {
	case path == "/usage":
		if to, _, _ := strings.Cut(w.Header().Get("Location"), "?"); w.Code != 301 || to != "usage/" {
			t.Errorf("%s: %d to %q", said, w.Code, to)
		}
	case strings.HasSuffix(path, ".css"):
		if w.Code != 200 {
			t.Errorf("%s: %d", said, w.Code)
		}
	case w.Code == 400:
		message := w.Body.String()
		if isJSON {
			var v struct{ Error string }
			if err := json.Unmarshal(w.Body.Bytes(), &v); err != nil {
				t.Errorf("%s: %v", said, err)
			}
			message = v.Error
		}
		if !named.MatchString(message) || len(message) > 400 {
			t.Errorf("%s: the message names no parameter: %s", said, message)
		}
	case w.Code != 200:
		t.Errorf("%s: %d %.300s", said, w.Code, w.Body)
	}
	return w
}

var asked = []string{"/usage/tables.html", "/usage", "/usage/assets/x/style.css", "/usage/api/stats", "/usage/api/totals", "/usage/api/rows", "/usage/api/history", "/usage/api/series", "/usage/api/export", "/usage/api/health"}

// strict is a reader that is asked nothing it would have to refuse.
type strict struct {
	fake
	broken string // what was wrong with a Query
}

func (s *strict) Totals(_ context.Context, q store.Query) ([]store.Count, error) {
	return []store.Count{{Name: q.Name + q.Prefix, N: 1}}, s.check(q)
}
func (s *strict) Rows(_ context.Context, q store.Query) ([]store.Row, error) {
	return []store.Row{{Group: q.Prefix, Subject: q.Contains, Counts: map[string]int64{q.Measure: 1}}}, s.check(q)
}
func (s *strict) History(_ context.Context, q store.Query) ([]store.Count, error) {
	return []store.Count{{Name: q.Contains, Start: q.From, N: 1}}, s.check(q)
}
func (s *strict) check(q store.Query) error {
	valid := (1 <= q.Limit && q.Limit <= maxNames || q.Limit == 0 && len(q.Names) > 0) && (q.From.IsZero() || q.To.IsZero() || q.From.Before(q.To))
	for _, text := range slices.Concat([]string{q.Prefix, q.Measure, q.Contains}, q.Names, q.Except) {
		valid = valid && len(text) <= 512 && utf8.ValidString(text) && !strings.ContainsFunc(text, unicode.IsControl)
	}
	if !valid {
		s.broken = fmt.Sprintf("the store is asked for %#v", q)
	}
	return nil
}

func FuzzParameters(f *testing.F) {
	for i, v := range hostile {
		v = v[:min(len(v), 600)] // long ones fuzz slowly
		f.Add(v)
		f.Add(url.Values{parameters[i%len(parameters)]: {v}}.Encode())
	}
	f.Add("from=2026-01-01&to=2026-01-31&prefix=user.&measure=requests&contains=A&limit=5&step=month&name=user.42.requests")
	st := &strict{}
	h := open(st)
	f.Fuzz(func(t *testing.T, query string) {
		for _, path := range asked {
			if harmless(t, h, path, query); st.broken != "" {
				t.Error(path, st.broken)
			}
		}
		st.broken = ""
	})
}

// fillHostile counts under every hostile name there is.
func fillHostile(t testing.TB, st *store.Store) *store.Store {
	for _, v := range hostileNames {
		st.Inc("feature." + v + ".n")
	}
	st.Inc("user.42.requests")
	if err := st.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	return st
}

func TestHostileParameters(t *testing.T) {
	t.Parallel()
	hostileParameters(t, storetest.New(t))
}

func TestHostileParametersOnPostgreSQL(t *testing.T) {
	t.Parallel()
	if server == nil {
		t.Log("PostgreSQL was not tried: make test does")
		return
	}
	db, err := postgres.Open(server.NewDatabase(t))
	if err != nil {
		t.Fatal(err)
	}
	hostileParameters(t, newStore(t, db, store.Config{}))
}

// Every parameter of every path with every value, escaped, unescaped, and twice.
// Names are selected by what was given and nothing else, and none is harmed.
func hostileParameters(t *testing.T, st *store.Store) {
	h := open(fillHostile(t, st))
	before, err := st.Totals(t.Context(), store.Query{})
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range asked {
		for _, p := range parameters {
			values := hostile
			if slices.Contains(parameters[:4], p) {
				values = hostileNames
			}
			for i, v := range values {
				if dbtest.Race() && i%8 > 0 {
					continue // nothing here runs at once
				}
				w := harmless(t, h, path, url.Values{p: {v}}.Encode())
				if path == "/usage/api/totals" {
					if w.Code == 200 {
						checkSelection(t, w, before, p, v)
					}
					if url.QueryEscape(v) != v {
						harmless(t, h, path, p+"="+v)
					}
				}
				if w := harmless(t, h, path, url.Values{p: {v, v}}.Encode()); w.Code == 200 && p != "name" && !strings.HasSuffix(path, ".css") {
					t.Errorf("%s: %s is given twice, and answered", path, p)
				}
			}
		}
	}
	after, err := st.Totals(t.Context(), store.Query{})
	if err != nil || !slices.Equal(after, before) {
		t.Errorf("%d counters, now %d, %v", len(before), len(after), err)
	}
}

// checkSelection compares an answer of totals with what Go selects from all.
func checkSelection(t *testing.T, w *httptest.ResponseRecorder, all []store.Count, parameter, value string) {
	t.Helper()
	selects := map[string]func(name string) bool{
		"name":     func(name string) bool { return name == naming.Known(value) },
		"prefix":   func(name string) bool { return strings.HasPrefix(name, value) },
		"measure":  func(name string) bool { return strings.HasSuffix(name, "."+value) },
		"contains": func(name string) bool { return strings.Contains(asciiLower(name), asciiLower(value)) },
	}[parameter]
	if selects == nil {
		return // by time, or how many
	}
	want := map[string]int64{}
	for _, c := range all {
		if value == "" || selects(c.Name) {
			want[c.Name] = c.N
		}
	}
	var a totals
	if err := json.Unmarshal(w.Body.Bytes(), &a); err != nil {
		t.Error(err)
	}
	got := map[string]int64{}
	for _, c := range a.Counts {
		got[c.Name] = c.N
	}
	if !maps.Equal(got, want) {
		t.Errorf("%s=%s selects %d counters, want %d", parameter, short(value), len(got), len(want))
	}
}

func asciiLower(s string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			r += 'a' - 'A'
		}
		return r
	}, s)
}

// What is counted reaches JSON and the page under its clean name, the number
// exact, and is markup in neither.
func TestHostileNames(t *testing.T) {
	const most = 1<<53 - 1
	inputs, names, shown := map[string]int64{}, map[string]int64{}, map[string]bool{}
	for _, v := range hostileNames {
		for _, name := range []string{"api.GET /%.requests", "user.%.requests", "feature.%.n", "llm.%.tokens"} {
			name = strings.Replace(name, "%", v, 1)
			inputs[name] = most
			name = naming.Clean(name)
			names[name] = most
			name = strings.TrimPrefix(name, name[:strings.Index(name, ".")+1])
			shown[visible(strings.TrimSuffix(strings.TrimSuffix(name, ".requests"), ".tokens"))] = true
		}
	}
	h := open(filled(t, inputs))
	for _, path := range []string{"stats?limit=1000", "totals?limit=10000", "rows?limit=10000", "history?limit=10000"} {
		body := get(h, "/usage/api/"+path).Body.String()
		if i := strings.IndexFunc(strings.TrimSuffix(body, "\n"), func(r rune) bool { return strings.ContainsRune("<>&\u2028\u2029", r) || unicode.IsControl(r) }); i >= 0 || !utf8.ValidString(body) {
			t.Errorf("%s: not escaped: %.100q", path, body[max(i-20, 0):])
		}
		var a struct {
			Total  json.Number `json:"total_requests"`
			Counts []struct {
				Name string
				N    json.Number
			}
			Rows []struct {
				Group, Subject string
				Counts         map[string]json.Number
			}
			API, Features, Users, LLM map[string]json.Number
		}
		if err := json.Unmarshal([]byte(body), &a); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		got := map[string]json.Number{}
		for _, c := range a.Counts {
			got[c.Name] = c.N
		}
		for _, r := range a.Rows {
			for measure, n := range r.Counts {
				got[r.Group+"."+r.Subject+"."+measure] = n
			}
		}
		for _, group := range []map[string]json.Number{a.API, a.Features, a.Users, a.LLM} {
			maps.Copy(got, group)
		}
		for name := range names {
			if got[name] != "9007199254740991" {
				t.Errorf("%s: %q is %s", path, name, got[name])
			}
		}
		if a.API != nil && a.Total != "9007199254740991" {
			t.Errorf("total_requests is %s", a.Total)
		}
	}

	body := get(h, "/usage/tables.html").Body.String()
	for _, bdi := range regexp.MustCompile(`(?s)<bdi>(.*?)</bdi>`).FindAllStringSubmatch(body, -1) {
		if !shown[html.UnescapeString(bdi[1])] {
			t.Errorf("the page shows %q", bdi[1])
		}
	}
	const lines = shownRoutes + 3*shownLines
	if n := strings.Count(body, "<bdi>"); n != lines || strings.Count(body, ">9,007,199,254,740,991<") < lines || strings.Contains(body, "</script") {
		t.Errorf("%d names in the page: %s", n, body)
	}
}

// A path that means nothing is told so, or leads to the page: never to another
// host, and never to an error of ours.
func TestUnknownPaths(t *testing.T) {
	h := open(&fake{})
	for path, want := range map[string]int{
		"/usage/api/":                           200, // a page below a mount that ends so
		"/usage/api":                            301,
		"/usage/api/stats/":                     200,
		"/usage/api/stats/x":                    301,
		"/usage/api/statsx":                     404,
		"/usage/api/STATS":                      404,
		"/usage/api/stats.json":                 404,
		"/usage/api/..":                         404,
		"/usage/api/%2e%2e":                     404,
		"/usage/api/%00":                        404,
		"/usage/api/%ff":                        404,
		"/usage/api//stats":                     301,
		"/usage/style.css/":                     200,
		"/usage/style.css/x":                    301,
		"/usage/page.html":                      404,
		"/usage/dashboard.go":                   404,
		"/usage/.env":                           404,
		"/usage/%2e%2e/x%2fy.go":                404,
		"/usage/%00":                            301,
		"/usage/%ff%fe":                         301,
		"/usage/%0d%0aX:%20y":                   301,
		"//evil.test":                           404,
		"/\\evil":                               301,
		"/usage/" + strings.Repeat("x", 60_000): 301,
	} {
		r := httptest.NewRequest("GET", "http://usage.test"+path, nil)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		checkHeaders(t, path, w)
		if w.Code != want {
			t.Errorf("%.80s: %d, want %d", path, w.Code, want)
		}
		if to, err := r.URL.Parse(w.Header().Get("Location")); err != nil || to.Host != "usage.test" || to.Scheme != "http" {
			t.Errorf("%.80s leads to %v, %v", path, to, err)
		}
		if strings.HasPrefix(path, "/usage/api/") && w.Code == 404 && !json.Valid(w.Body.Bytes()) {
			t.Errorf("%s: %s", path, w.Body)
		}
	}
}
