package dashboard

import (
	"context"
	"errors"
	"iter"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/usagekit/usagekit/internal/dbtest"
	"github.com/usagekit/usagekit/store"
	"github.com/usagekit/usagekit/store/storetest"
)

var server *dbtest.Server // nil: PostgreSQL is not tried

// What failed on purpose needs no log.
func TestMain(m *testing.M) {
	slog.SetDefault(slog.New(slog.DiscardHandler))
	os.Exit(dbtest.Main(m, &server))
}

// fake is a store for what no healthy one does.
type fake struct {
	zone   *time.Location
	before func(ctx context.Context, what string) error // each read
	counts []store.Count
	rows   []store.Row
	state  store.Stats
	skew   time.Duration // that the database's clock is ahead
}

func (f *fake) read(ctx context.Context, what string) error {
	if f.before == nil {
		return nil
	}
	return f.before(ctx, what)
}
func (f *fake) begin(ctx context.Context) (now, through time.Time, err error) {
	err = f.read(ctx, "Read")
	return time.Now().Add(f.skew), f.state.FoldedThrough, err
}
func (f *fake) Get(ctx context.Context, name string) (int64, error) {
	return 0, f.read(ctx, "Get "+name)
}
func (f *fake) Totals(ctx context.Context, q store.Query) ([]store.Count, error) {
	return f.counts, f.read(ctx, "Totals")
}
func (f *fake) Rows(ctx context.Context, q store.Query) ([]store.Row, error) {
	return f.rows, f.read(ctx, "Rows")
}
func (f *fake) History(ctx context.Context, q store.Query) ([]store.Count, error) {
	return f.counts, f.read(ctx, "History")
}
func (f *fake) Each(ctx context.Context, q store.Query) iter.Seq2[store.Count, error] {
	return func(yield func(store.Count, error) bool) {
		if err := f.read(ctx, "Each"); err != nil {
			yield(store.Count{}, err)
			return
		}
		for _, c := range f.counts {
			if !yield(c, nil) {
				return
			}
		}
	}
}
func (f *fake) Buckets(step store.Step, from, to time.Time) []time.Time {
	var list []time.Time
	for t := from.Truncate(time.Hour); t.Before(to); t = t.Add(map[store.Step]time.Duration{store.Hour: time.Hour, store.Day: 24 * time.Hour, store.Month: 30 * 24 * time.Hour}[step]) {
		list = append(list, t)
	}
	return list
}
func (f *fake) Stats() store.Stats       { return f.state }
func (f *fake) Location() *time.Location { return f.zone }

// filled returns a store in which names were counted.
func filled(t *testing.T, names map[string]int64) *store.Store {
	st := storetest.New(t)
	for name, n := range names {
		st.Add(name, n)
	}
	if err := st.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	return st
}

func get(h http.Handler, target string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", target, nil))
	return w
}

// open opens a store to everybody: one, or what answers like one.
func open(st any) http.Handler { return newHandler(from(st), Config{Auth: Public}) }

func from(st any) source {
	switch st := st.(type) {
	case *store.Store:
		return ofStore{st}
	case *past:
		return ofStore{st.Store}
	}
	return ofFake{st.(answers)}
}

// answers is what a source can be made of.
type answers interface {
	reader
	Each(ctx context.Context, q store.Query) iter.Seq2[store.Count, error]
	Buckets(step store.Step, from, to time.Time) []time.Time
	Stats() store.Stats
	Location() *time.Location
}

type ofFake struct{ answers }

func (o ofFake) Read(ctx context.Context, f func(ctx context.Context, r *reading) error) error {
	r := &reading{reader: o.answers, now: time.Now()}
	if b, ok := o.answers.(interface {
		begin(context.Context) (now, through time.Time, err error)
	}); ok {
		var err error
		if r.now, r.through, err = b.begin(ctx); err != nil {
			return err
		}
	}
	return f(ctx, r)
}

// every path that means something, and some that do not
var paths = []string{
	"/usage/", "/usage", "/usage/api/stats", "/usage/api/totals", "/usage/api/rows", "/usage/api/history", "/usage/api/health",
	"/usage/api/series?range=24h", "/usage/api/openapi.json", "/usage/tables.html", "/usage/assets/x/app.js", "/usage/assets/x/icon.svg", "/usage/api/nope", "/usage/nope.txt", "/usage/api/stats?limit=0",
}

func TestMounts(t *testing.T) {
	st := filled(t, nil)
	dash := New(st, Config{Auth: Public})
	mux := func(pattern string, h http.Handler) http.Handler {
		m := http.NewServeMux()
		m.Handle(pattern, h)
		return m
	}
	for name, mount := range map[string]struct {
		h    http.Handler
		at   string
		bare bool // without the slash it reaches the dashboard, not only the mux
	}{
		"root":                     {dash, "/", false},
		"root of a mux":            {mux("/", dash), "/", false},
		"direct":                   {dash, "/usage/", true},
		"nested":                   {dash, "/admin/usage/", true},
		"mux":                      {mux("GET /usage/", dash), "/usage/", false},
		"mux, both":                {mux("/usage", dash), "/usage/", true},
		"below api":                {dash, "/v1/api/", true},
		"wildcard":                 {mux("/{tenant}/usage/", dash), "/acme/usage/", false},
		"StripPrefix":              {http.StripPrefix("/usage", dash), "/usage/", true},
		"StripPrefix with a slash": {http.StripPrefix("/usage/", dash), "/usage/", false},
		"StripPrefix nested":       {http.StripPrefix("/admin", http.StripPrefix("/usage", dash)), "/admin/usage/", true},
		"StripPrefix of a part":    {http.StripPrefix("/api", dash), "/api/usage/", true},
	} {
		t.Run(name, func(t *testing.T) {
			h := mount.h
			if name == "mux, both" {
				m := mount.h.(*http.ServeMux)
				m.Handle("/usage/", dash)
			}
			for end, contentType := range map[string]string{
				"":                   "text/html; charset=utf-8",
				"api/stats":          "application/json; charset=utf-8",
				"api/totals":         "application/json; charset=utf-8",
				"api/rows":           "application/json; charset=utf-8",
				"api/history":        "application/json; charset=utf-8",
				"api/health":         "application/json; charset=utf-8",
				"tables.html":        "text/html; charset=utf-8",
				"assets/x/style.css": "text/css; charset=utf-8",
				"assets/x/app.js":    "text/javascript; charset=utf-8",
				"api/openapi.json":   "application/json; charset=utf-8",
				"assets/x/icon.svg":  "image/svg+xml",
			} {
				w := get(h, mount.at+end)
				if w.Code != 200 || w.Header().Get("Content-Type") != contentType {
					t.Errorf("%s: %d %s", mount.at+end, w.Code, w.Header().Get("Content-Type"))
				}
			}
			if w := get(h, mount.at+"api/nope"); w.Code != 404 || !strings.HasPrefix(w.Body.String(), `{"error":`) {
				t.Errorf("unknown api: %d %s", w.Code, w.Body)
			}
			if w := get(h, mount.at+"favicon.ico"); w.Code != 404 {
				t.Errorf("unknown file: %d %s", w.Code, w.Body)
			}
			if mount.bare {
				last := mount.at[strings.LastIndex(strings.TrimSuffix(mount.at, "/"), "/")+1:]
				w := get(h, strings.TrimSuffix(mount.at, "/")+"?refresh=10")
				if got := w.Header().Get("Location"); w.Code != 301 || got != last+"?refresh=10" {
					t.Errorf("redirect: %d %q, want %q", w.Code, got, last)
				}
			}
		})
	}
}

func TestRedirectStaysHere(t *testing.T) {
	for path, want := range map[string]string{
		"/usage":             "usage/",
		"/x/https:evil":      "./https:evil/",
		"/x/javascript:a(1)": "./javascript:a%281%29/",
		"//evil":             "evil/",
		`/x/\\evil`:          "%5C%5Cevil/",
		"/x/a%0d%0ab":        "a%0D%0Ab/",
		"/x/%E2%82%AC":       "%E2%82%AC/",
	} {
		r := httptest.NewRequest("GET", "http://usage.test"+path, nil)
		w := httptest.NewRecorder()
		open(&fake{}).ServeHTTP(w, r)
		if got := w.Header().Get("Location"); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
		if to, err := r.URL.Parse(w.Header().Get("Location")); err != nil || to.Host != "usage.test" {
			t.Errorf("%s leads to %v, %v", path, to, err)
		}
	}
}

// Through a real server, StripPrefix and a browser's eyes.
func TestRedirectIsFollowed(t *testing.T) {
	srv := httptest.NewServer(http.StripPrefix("/admin/usage", New(filled(t, nil), Config{Auth: Public})))
	defer srv.Close()
	res, err := http.Get(srv.URL + "/admin/usage")
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != 200 || res.Request.URL.Path != "/admin/usage/" {
		t.Errorf("%d at %s", res.StatusCode, res.Request.URL)
	}
}

func TestAuth(t *testing.T) {
	const user, password = "admin", "pass:wörd"
	for name, c := range map[string]struct {
		auth           func(http.Handler) http.Handler
		user, password string // "": no header
		want           int
	}{
		"none":              {nil, "", "", 403},
		"none, tried":       {nil, user, password, 403},
		"public":            {Public, "", "", 200},
		"right":             {BasicAuth(user, password), user, password, 200},
		"absent":            {BasicAuth(user, password), "", "", 401},
		"wrong password":    {BasicAuth(user, password), user, "x", 401},
		"wrong user":        {BasicAuth(user, password), "x", password, 401},
		"part of it":        {BasicAuth(user, password), user, password[:4], 401},
		"empty password":    {BasicAuth(user, ""), user, "", 401},
		"empty user":        {BasicAuth("", password), "", password, 401},
		"both empty":        {BasicAuth("", ""), "", "", 401},
		"empty, no header":  {BasicAuth("", ""), "-", "", 401},
		"the application's": {func(http.Handler) http.Handler { return http.NotFoundHandler() }, "", "", 404},
	} {
		t.Run(name, func(t *testing.T) {
			var reads atomic.Int64
			h := newHandler(from(&fake{before: func(context.Context, string) error { reads.Add(1); return nil }}), Config{Auth: c.auth})
			for _, path := range paths {
				for _, method := range []string{"GET", "HEAD", "POST"} {
					r := httptest.NewRequest(method, path, nil)
					if c.user != "-" && (c.user != "" || c.password != "" || name == "both empty") {
						r.SetBasicAuth(c.user, c.password)
					}
					w := httptest.NewRecorder()
					h.ServeHTTP(w, r)
					if c.want != 200 && w.Code != c.want {
						t.Errorf("%s %s: %d, want %d", method, path, w.Code, c.want)
					}
					if c.want == 200 && (w.Code == 401 || w.Code == 403) {
						t.Errorf("%s %s: %d", method, path, w.Code)
					}
					if challenge := w.Header().Get("WWW-Authenticate"); (c.want == 401) != (challenge == `Basic realm="usage", charset="UTF-8"`) {
						t.Errorf("%s %s: challenge %q", method, path, challenge)
					}
					isJSON := strings.HasPrefix(w.Header().Get("Content-Type"), "application/json")
					if (c.want == 401 || c.want == 403) && isJSON != strings.Contains(path, "/api/") {
						t.Errorf("%s %s: %s", method, path, w.Header().Get("Content-Type"))
					}
				}
			}
			if n := reads.Load(); c.want != 200 && n > 0 {
				t.Errorf("%d reads for nobody", n)
			}
		})
	}
	if w := get(newHandler(from(&fake{}), Config{}), "/usage/"); !strings.Contains(w.Body.String(), "dashboard.Config") {
		t.Errorf("does not say what to set: %s", w.Body)
	}
}

func TestHeaders(t *testing.T) {
	for _, auth := range []func(http.Handler) http.Handler{nil, Public, BasicAuth("a", "b")} {
		h := newHandler(from(&fake{}), Config{Auth: auth})
		for _, path := range paths {
			for _, method := range []string{"GET", "HEAD", "POST", "OPTIONS"} {
				w := httptest.NewRecorder()
				h.ServeHTTP(w, httptest.NewRequest(method, path, nil))
				checkHeaders(t, method+" "+path, w)
			}
		}
	}
}

// checkHeaders checks the headers that every answer has.
func checkHeaders(t *testing.T, request string, w *httptest.ResponseRecorder) {
	t.Helper()
	for name, want := range map[string]string{
		"Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
		"X-Content-Type-Options":  "nosniff",
		"X-Frame-Options":         "DENY",
		"Referrer-Policy":         "no-referrer",
	} {
		if got := w.Header().Get(name); got != want {
			t.Errorf("%s: %s: %q", request, name, got)
		}
	}
	if got := w.Header().Get("Cache-Control"); got != "no-store" && !(w.Code == 200 && got == "private, no-cache" && w.Header().Get("ETag") != "") {
		t.Errorf("%s: Cache-Control: %q", request, got)
	}
}

// In a bubble, so that as_of is the same for both.
func TestMethods(t *testing.T) { synctest.Test(t, testMethods) }

func testMethods(t *testing.T) {
	h := open(&fake{})
	for _, path := range paths {
		got := get(h, path)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("HEAD", path, nil))
		a, b := got.Header(), w.Header()
		if w.Code != got.Code || !maps.EqualFunc(a, b, slices.Equal) {
			t.Errorf("HEAD %s: %d %v, want %d %v", path, w.Code, b, got.Code, a)
		}
		if w.Body.Len() > 0 {
			t.Errorf("HEAD %s has a body", path)
		}
		for _, method := range []string{"POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "get"} {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest(method, path, nil))
			if w.Code != 405 || w.Header().Get("Allow") != "GET, HEAD" {
				t.Errorf("%s %s: %d, Allow %q", method, path, w.Code, w.Header().Get("Allow"))
			}
		}
	}
}

// What a database says stays with the log, whatever error it comes in.
func TestUnavailable(t *testing.T) {
	for _, err := range []error{
		store.ErrUnavailable,
		errors.New(`pq: password authentication failed for user "app" at postgres://app:secret@db:5432`),
		context.DeadlineExceeded,
	} {
		h := open(&fake{before: func(context.Context, string) error { return err }, state: store.Stats{Err: err}})
		for _, path := range []string{"/usage/tables.html", "/usage/api/stats", "/usage/api/totals", "/usage/api/rows", "/usage/api/history", "/usage/api/series?range=24h", "/usage/api/export", "/usage/api/export?of=rows", "/usage/api/health"} {
			w := get(h, path)
			body := w.Body.String()
			if w.Code != 503 || strings.Contains(body, "secret") || strings.Contains(body, "pq:") {
				t.Errorf("%s: %d %s", path, w.Code, body)
			}
			if strings.Contains(path, "/api/") != strings.HasPrefix(body, "{") {
				t.Errorf("%s: %s", path, body)
			}
		}
	}
}

func TestClientGone(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	w := httptest.NewRecorder()
	hang := make(chan struct{})
	defer close(hang)
	h := open(&fake{before: func(context.Context, string) error { <-hang; return nil }})
	h.ServeHTTP(w, httptest.NewRequest("GET", "/usage/api/stats", nil).WithContext(ctx))
	if w.Code != 503 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}
