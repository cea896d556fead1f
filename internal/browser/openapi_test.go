package browser

import (
	"context"
	"encoding/csv"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/usagekit/usagekit/dashboard"
	"github.com/usagekit/usagekit/store"
	"github.com/usagekit/usagekit/store/sqlite"
	"github.com/usagekit/usagekit/store/storetest"
)

// document is api/openapi.json, as a dashboard answers it.
type document struct {
	*testing.T
	root     any
	compiler *jsonschema.Compiler
	seen     map[string]bool // path and status
}

const documentURL = "https://usage.test/usage/api/openapi.json"

func readDocument(t *testing.T, h http.Handler) *document {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", documentURL, nil))
	root, err := jsonschema.UnmarshalJSON(w.Body)
	if err != nil || w.Code != 200 {
		t.Fatalf("%d %v", w.Code, err)
	}
	d := &document{t, root, jsonschema.NewCompiler(), map[string]bool{}}
	d.compiler.AssertFormat()
	if err := d.compiler.AddResource(documentURL, root); err != nil {
		t.Fatal(err)
	}
	return d
}

// pointer is a JSON pointer to the value that parts lead to.
func pointer(parts ...string) string {
	p := "#"
	for _, part := range parts {
		p += "/" + strings.NewReplacer("~", "~0", "/", "~1").Replace(part)
	}
	return p
}

// at returns the object at p, or the one that it refers to, and where that is; nil:
// there is none.
func (d *document) at(p string) (map[string]any, string) {
	v := d.root
	for part := range strings.SplitSeq(strings.TrimPrefix(p, "#"), "/") {
		if part == "" {
			continue
		}
		part = strings.NewReplacer("~1", "/", "~0", "~").Replace(part)
		switch in := v.(type) {
		case map[string]any:
			v = in[part]
		case []any:
			i, err := strconv.Atoi(part)
			if err != nil || i >= len(in) {
				return nil, p
			}
			v = in[i]
		}
	}
	object, _ := v.(map[string]any)
	if to, ok := object["$ref"].(string); ok && !strings.HasPrefix(p, "#/components/schemas/") {
		return d.at(to)
	}
	return object, p
}

// schema compiles the schema at p.
func (d *document) schema(p string) *jsonschema.Schema {
	d.Helper()
	// A pointer is within a URL here.
	s, err := d.compiler.Compile(documentURL + "#" + (&url.URL{Path: strings.TrimPrefix(p, "#")}).EscapedPath())
	if err != nil {
		d.Fatal(err)
	}
	return s
}

// parameter is one of an operation's.
type parameter struct {
	name   string
	at     string // in the document
	schema *jsonschema.Schema
	many   bool // it may be repeated
	number bool
}

// accepts tells whether the document allows the values.
func (p parameter) accepts(values ...string) bool {
	var v any = values[0]
	if p.many {
		list := []any{}
		for _, value := range values {
			list = append(list, value)
		}
		v = list
	} else if len(values) > 1 {
		return false
	}
	if p.number {
		n, err := strconv.ParseInt(values[0], 10, 64)
		if err != nil {
			return false
		}
		v = n
	}
	return p.schema.Validate(v) == nil
}

// parameters are those of the query string, by name.
func (d *document) parameters(path string) map[string]parameter {
	d.Helper()
	found := map[string]parameter{}
	operation, _ := d.at(pointer("paths", path, "get"))
	list, _ := operation["parameters"].([]any)
	for i := range list {
		object, at := d.at(pointer("paths", path, "get", "parameters", fmt.Sprint(i)))
		if object["in"] == "query" {
			schema, _ := d.at(at + "/schema")
			p := parameter{object["name"].(string), at, d.schema(at + "/schema"), schema["type"] == "array", schema["type"] == "integer"}
			found[p.name] = p
		}
	}
	return found
}

func (d *document) paths() []string {
	paths, _ := d.at("#/paths")
	return slices.Sorted(maps.Keys(paths))
}

// common are the headers that stand in every answer, whatever it is, or are HTTP's own.
var common = []string{"Content-Length", "Content-Type", "Content-Encoding", "Content-Security-Policy", "X-Content-Type-Options", "X-Frame-Options", "Referrer-Policy"}

// answered checks an answer to a GET of path, or a HEAD, against what the document says.
func (d *document) answered(said, path string, w *httptest.ResponseRecorder, head bool) {
	d.Helper()
	response, at := d.at(pointer("paths", path, "get", "responses", strconv.Itoa(w.Code)))
	if response == nil {
		d.Errorf("%s: %d is not in the document: %s", said, w.Code, w.Body)
		return
	}
	d.seen[path+" "+strconv.Itoa(w.Code)] = true
	documented, _ := response["headers"].(map[string]any)
	for name := range w.Header() {
		known := func(other string) bool { return http.CanonicalHeaderKey(other) == name }
		if !slices.ContainsFunc(common, known) && !slices.ContainsFunc(slices.Collect(maps.Keys(documented)), known) {
			d.Errorf("%s: the header %s is not in the document", said, name)
		}
	}
	for name := range documented {
		header, headerAt := d.at(at + pointer("headers", name)[1:])
		value := w.Header().Get(name)
		if value == "" {
			if header["required"] == true {
				d.Errorf("%s: %d without %s", said, w.Code, name)
			}
			continue
		}
		var v any = value
		if schema, _ := d.at(headerAt + "/schema"); schema["type"] == "integer" {
			v, _ = jsonschema.UnmarshalJSON(strings.NewReader(value))
		}
		if err := d.schema(headerAt + "/schema").Validate(v); err != nil {
			d.Errorf("%s: %s: %v", said, name, err)
		}
	}
	mediaType, _, _ := strings.Cut(w.Header().Get("Content-Type"), ";")
	content, _ := response["content"].(map[string]any)
	switch {
	case head || content == nil:
		if w.Body.Len() > 0 {
			d.Errorf("%s: %d with a body: %s", said, w.Code, w.Body)
		}
		if content == nil && mediaType != "" || content != nil && content[mediaType] == nil {
			d.Errorf("%s: %d is %q", said, w.Code, mediaType)
		}
	case content[mediaType] == nil:
		d.Errorf("%s: %d is %q", said, w.Code, mediaType)
	case mediaType == "text/csv":
		if _, err := csv.NewReader(strings.NewReader(strings.TrimPrefix(w.Body.String(), "\ufeff"))).ReadAll(); err != nil {
			d.Errorf("%s: %v", said, err)
		}
	default:
		body := w.Body.String()
		v, err := jsonschema.UnmarshalJSON(strings.NewReader(body))
		if err == nil {
			err = d.schema(at + pointer("content", mediaType, "schema")[1:]).Validate(v)
		}
		if err != nil {
			d.Errorf("%s: %v: %.500s", said, err, body)
		}
	}
}

// ask asks h for path, and checks the answer.
func (d *document) ask(h http.Handler, method, path string, query url.Values, header http.Header) *httptest.ResponseRecorder {
	d.Helper()
	r := httptest.NewRequest(method, "/usage/api"+path+"?"+query.Encode(), nil)
	maps.Copy(r.Header, header)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	d.answered(fmt.Sprintf("%s %s?%.100s", method, path, query.Encode()), path, w, method == "HEAD")
	return w
}

// needed is what an operation asks for, beside what is tried.
var needed = map[string]url.Values{"/series": {"range": {"7d"}}, "/batch": {"q": {"stats"}}}

// with is what is needed, and a parameter, in place of it where both cannot be.
func with(path, name string, values ...string) url.Values {
	q := maps.Clone(needed[path])
	if q == nil {
		q = url.Values{}
	}
	if name == "from" {
		delete(q, "range")
	}
	if name == "to" && q["range"] != nil {
		q = url.Values{"from": {"2020-01-01"}}
	}
	if name == "step" {
		q.Set("except", "user.") // which have no hours
		if path == "/export" {
			q.Set("of", "history")
		}
	}
	if name == "of" && values[0] == "history" {
		q.Set("step", "day")
	}
	if name == "name" && path == "/series" {
		q.Set("step", "day") // of many there may be only so many points
	}
	q[name] = values
	return q
}

// tried are values of the parameters: right ones, and wrong ones.
var tried = map[string][]string{
	"name":     {"api.requests.total", "user.ada.requests", "feature.a.b", "no such name", "=1+1", "é.ü", strings.Repeat("x", 512), strings.Repeat("x", 513), "a\x00b", "a\nb", "\u0085"},
	"prefix":   {"api.", "user.", "llm.", "f", strings.Repeat("x", 512), strings.Repeat("x", 513), "a\tb"},
	"measure":  {"requests", "tokens", "status_5xx", strings.Repeat("x", 513), "\x7f"},
	"contains": {"A", "novel", "%", strings.Repeat("x", 513), "\x1b"},
	"except":   {"user.", "api.", "api.requests.", strings.Repeat("x", 513), "\r"},
	"from":     {"2026-01-01", "2026-01-31T15:04:05Z", "2026-01-31T15:04:05.678+05:45", "1970-01-02", "1970-01-01T00:00:00Z", "yesterday", "2026-02-30", "2026-1-1", "2026-01-31T15:04:05", "2026-01-31 15:04:05Z", "1769871845"},
	"to":       {"2126-01-01", "2126-01-31T15:04:05Z", "2126-01-31T15:04:05.678-11:00", "tomorrow", "2126-13-01"},
	"range": {"today", "1h", "24h", "99h", "999h", "8999h", "9000h", "9599h", "9600h", "9601h", "9999h", "10000h", "0h", "-1h", "1d", "9d", "10d", "99d", "100d", "399d", "400d", "401d", "499d", "1000d", "0d",
		"1mo", "9mo", "10mo", "13mo", "14mo", "20mo", "99mo", "0mo", "1", "2", "d", "h", "mo", "1m", "1y", "Today", "today ", "1.5d", "24H", "now"},
	"step":   {"hour", "day", "month", "week", "Hour", "1"},
	"of":     {"totals", "rows", "history", "stats", "Rows"},
	"format": {"csv", "json", "xml", "CSV"},
	"bom":    {"0", "1", "2", "-1", "true"},
	"q":      {"stats", "health", "series?range=24h", "series", "totals?limit=0", "rows?prefix=api.&limit=3", "history?step=month&name=feature.a.b", "nope", strings.Repeat("x", 16384), strings.Repeat("x", 16385), "a\nb"},
	"limit":  {"1", "2", "100", "999", "1000", "1001", "10000", "10001", "2147483647", "2147483648", "99999999999999999999", "0", "-1", "1.5", "1e2", "all"},
}

// counted is a store with something of everything.
func counted(t *testing.T) *store.Store {
	t.Helper()
	st := storetest.New(t)
	for name, n := range map[string]int64{
		"api.GET /novels/{id}.requests": 100, "api.GET /novels/{id}.status_2xx": 99, "api.GET /novels/{id}.status_5xx": 1, "api.GET /novels/{id}.latency_5ms": 90, "api.GET /novels/{id}.latency_inf": 10,
		"api.POST /outlines.requests": 20, "api.requests.novels": 100,
		"user.ada.requests": 99, "user.7.5.requests": 1, "user.registrations": 2, "user.(other).requests": 5,
		"feature.outline.generated": 3, "feature.a.b": 1, "feature.a.=1+1": 1, "llm.gpt-4.tokens": 812, "llm.gpt-4.calls": 3, "error.llm.timeout": 1,
		"mail.sent": 1<<53 - 1, "plain": 4, "<b>.\u202e.x": 5, "usagekit.counts.dropped": 6,
	} {
		st.Add(name, n)
	}
	if err := st.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	return st
}

// The document is OpenAPI 3.1, its schemas are schemas, and leave nothing open.
func TestOpenAPIDocument(t *testing.T) {
	d := readDocument(t, dashboard.New(storetest.New(t), dashboard.Config{Auth: dashboard.Public}))
	file, err := os.Open(filepath.Join("testdata", "openapi", "schema.json"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	official, err := jsonschema.UnmarshalJSON(file)
	if err != nil {
		t.Fatal(err)
	}
	const officialURL = "https://spec.openapis.org/oas/3.1/schema"
	c := jsonschema.NewCompiler()
	if err := c.AddResource(officialURL, official); err != nil {
		t.Fatal(err)
	}
	if err := c.MustCompile(officialURL).Validate(d.root); err != nil {
		t.Error(err)
	}

	schemas, _ := d.at("#/components/schemas")
	used := map[string]int{}
	var walk func(p string, v any)
	walk = func(p string, v any) {
		switch v := v.(type) {
		case []any:
			for i, one := range v {
				walk(p+"/"+strconv.Itoa(i), one)
			}
		case map[string]any:
			if to, ok := v["$ref"].(string); ok {
				if object, _ := d.at(to); object == nil {
					t.Errorf("%s refers to nothing: %s", p, to)
				}
				used[to]++
			}
			if strings.HasSuffix(p, "/schema") || path.Dir(p) == "#/components/schemas" {
				d.schema(p)
				if whenAbsent, ok := v["default"]; ok && d.schema(p).Validate(whenAbsent) != nil {
					t.Errorf("%s: the default is %v", p, whenAbsent)
				}
			}
			properties, _ := v["properties"].(map[string]any)
			required, _ := v["required"].([]any)
			switch {
			case v["type"] != "object" || strings.Contains(p, "openapi.json"):
			case v["additionalProperties"] == nil:
				t.Errorf("%s leaves open what else it has", p)
			case properties != nil && v["additionalProperties"] != false:
				t.Errorf("%s may have more properties", p)
			}
			for name := range properties {
				if !slices.Contains([]string{"label", "slow", "etag", "took_ms", "body"}, name) && !slices.Contains(required, any(name)) {
					t.Errorf("%s: %s is not required", p, name)
				}
			}
			if operation, ok := v["get"]; ok && len(v) > 1 || ok && operation == nil {
				t.Errorf("%s: more than get", p)
			}
			for key, one := range v {
				walk(p+pointer(key)[1:], one)
			}
		}
	}
	walk("#", d.root)
	for name := range schemas {
		if used["#/components/schemas/"+name] == 0 {
			t.Errorf("nothing refers to the schema %s", name)
		}
	}
	for _, kind := range []string{"parameters", "headers", "responses"} {
		of, _ := d.at("#/components/" + kind)
		for name := range of {
			if used["#/components/"+kind+"/"+name] == 0 {
				t.Errorf("nothing refers to %s of %s", name, kind)
			}
		}
	}
}

// Its server is the dashboard that sent it, wherever that is mounted.
func TestOpenAPIServer(t *testing.T) {
	dash := dashboard.New(storetest.New(t), dashboard.Config{Auth: dashboard.Public})
	d := readDocument(t, dash)
	server, _ := d.at("#/servers/0")
	for _, mount := range []string{"/", "/usage/", "/v1/api/", "/a/b/c/"} {
		mux := http.NewServeMux()
		mux.Handle(mount, dash)
		base, err := url.Parse("http://usage.test" + mount + "api/openapi.json")
		if err != nil {
			t.Fatal(err)
		}
		if base, err = base.Parse(server["url"].(string)); err != nil {
			t.Fatal(err)
		}
		for _, path := range d.paths() {
			w := httptest.NewRecorder()
			// A path is appended as it is.
			mux.ServeHTTP(w, httptest.NewRequest("GET", base.String()+path+"?"+needed[path].Encode(), nil))
			if w.Code != 200 {
				t.Errorf("%s%s: %d", base, path, w.Code)
			}
		}
	}
}

// What the handler answers is in the document, and the reverse.
func TestOpenAPIPaths(t *testing.T) {
	source, err := os.ReadFile(filepath.Join("..", "..", "dashboard", "dashboard.go"))
	if err != nil {
		t.Fatal(err)
	}
	var routes []string
	for _, m := range regexp.MustCompile(`case "api(/[^"]+)":`).FindAllSubmatch(source, -1) {
		routes = append(routes, string(m[1]))
	}
	slices.Sort(routes)
	if got := readDocument(t, dashboard.New(storetest.New(t), dashboard.Config{Auth: dashboard.Public})).paths(); len(routes) < 8 || !slices.Equal(got, routes) {
		t.Errorf("the document has %q, the handler %q", got, routes)
	}
}

// A value is right in the document if and only if it is accepted; what is not in the
// document is refused.
func TestOpenAPIParameters(t *testing.T) {
	h := dashboard.New(counted(t), dashboard.Config{Auth: dashboard.Public})
	d := readDocument(t, h)
	for _, path := range d.paths() {
		documented := d.parameters(path)
		for name, p := range documented {
			if len(tried[name]) == 0 {
				t.Errorf("%s: %s is not tried", path, name)
			}
			right := 0
			for _, value := range tried[name] {
				want := 400
				if p.accepts(value) {
					want = 200
					right++
				}
				if w := d.ask(h, "GET", path, with(path, name, value), nil); w.Code != want {
					t.Errorf("%s: %s=%.100q: %d, and the document has it be %d: %s", path, name, value, w.Code, want, w.Body)
				}
			}
			if right < 2 || right == len(tried[name]) {
				t.Errorf("%s: of %s %d values are right, of %d", path, name, right, len(tried[name]))
			}
			for _, n := range []int{2, 3, 1000, 1001} {
				values := slices.Repeat([]string{"1"}, n)
				if !p.many {
					values = slices.Repeat(tried[name][:1], n)
				}
				want := 400
				if p.accepts(values...) {
					want = 200
				}
				if w := d.ask(h, "GET", path, with(path, name, values...), nil); w.Code != want {
					t.Errorf("%s: %s %d times: %d, and the document has it be %d: %s", path, name, n, w.Code, want, w.Body)
				}
			}
			if w := d.ask(h, "GET", path, with(path, name, ""), nil); w.Code != 200 && !(path == "/series" && (name == "range" || name == "from") || path == "/export" && name == "step" || path == "/batch") {
				t.Errorf("%s: %s without a value: %d %s", path, name, w.Code, w.Body)
			}
		}
		for name := range tried {
			if _, ok := documented[name]; ok || path == "/openapi.json" {
				continue
			}
			if w := d.ask(h, "GET", path, with(path, name, tried[name][0]), nil); w.Code != 400 {
				t.Errorf("%s: %s, of which the document has nothing: %d", path, name, w.Code)
			}
		}
		if path != "/openapi.json" {
			// The answer to one that is unknown lists those that are known.
			w := d.ask(h, "GET", path, url.Values{"x": {""}}, nil)
			_, known, _ := strings.Cut(w.Body.String(), "known here: ")
			known, _, _ = strings.Cut(known, `"`)
			names := strings.Split(strings.TrimSuffix(known, "none"), ", ")
			slices.Sort(names)
			if names = slices.DeleteFunc(names, func(name string) bool { return name == "" }); !slices.Equal(names, slices.Sorted(maps.Keys(documented))) {
				t.Errorf("%s: the document has %q, the handler %q", path, slices.Sorted(maps.Keys(documented)), names)
			}
			for _, name := range []string{"x", "Limit", "refresh", "callback", "limit[]"} {
				if w := d.ask(h, "GET", path, with(path, name, "1"), nil); w.Code != 400 {
					t.Errorf("%s: %s, of which the document has nothing: %d", path, name, w.Code)
				}
			}
		}
	}
	// What is answered without a limit is what the default of the document has.
	for _, path := range d.paths() {
		if p, ok := d.parameters(path)["limit"]; ok && path != "/export" {
			schema, _ := d.at(p.at + "/schema")
			if schema["default"] == nil {
				t.Errorf("%s: limit has no default", path)
			}
		}
	}
}

// Real answers are as the document has them, whatever is asked, and all that it has
// are seen.
func TestOpenAPIAnswers(t *testing.T) {
	st := counted(t)
	h := dashboard.New(st, dashboard.Config{Auth: dashboard.Public, Users: names})
	d := readDocument(t, h)
	random := rand.New(rand.NewPCG(7, 7))
	for _, path := range d.paths() {
		documented := d.parameters(path)
		ordered := slices.Sorted(maps.Keys(documented))
		for range 150 {
			q := maps.Clone(needed[path])
			if q == nil {
				q = url.Values{}
			}
			for _, name := range ordered {
				if random.IntN(3) > 0 {
					continue
				}
				if name == "from" || name == "to" {
					delete(q, "range")
				}
				if name == "range" && (q["from"] != nil || q["to"] != nil) {
					continue
				}
				value := tried[name][random.IntN(len(tried[name]))]
				if !documented[name].accepts(value) && random.IntN(10) > 0 {
					value = tried[name][0]
				}
				q[name] = []string{value}
				if documented[name].many && random.IntN(2) > 0 {
					q[name] = tried[name][:2]
				}
			}
			w := d.ask(h, "GET", path, q, nil)
			head := d.ask(h, "HEAD", path, q, nil)
			if head.Code != w.Code || head.Header().Get("Content-Type") != w.Header().Get("Content-Type") {
				t.Errorf("HEAD %s?%s: %d, GET %d", path, q.Encode(), head.Code, w.Code)
			}
			if tag := w.Header().Get("ETag"); tag != "" {
				for _, method := range []string{"GET", "HEAD"} {
					if again := d.ask(h, method, path, q, http.Header{"If-None-Match": {tag}}); again.Code != 304 {
						t.Errorf("%s %s?%s with its own tag: %d", method, path, q.Encode(), again.Code)
					}
				}
			}
		}
		if path != "/openapi.json" {
			d.ask(h, "GET", path, url.Values{"x": {"1"}}, nil)
		}
	}

	// Of those who may not look, and of a database that is not there.
	db, err := sqlite.Open(filepath.Join(t.TempDir(), "no", "such", "directory", "usage.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	offline, err := store.New(t.Context(), db, store.Config{StartOffline: true, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	offline.Inc("feature.a.b")
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	defer func() { _ = offline.Shutdown(gone) }()
	for _, path := range d.paths() {
		for code, h := range map[int]http.Handler{
			403: dashboard.New(st, dashboard.Config{}),
			401: dashboard.New(st, dashboard.Config{Auth: dashboard.BasicAuth("admin", "password")}),
			503: dashboard.New(offline, dashboard.Config{Auth: dashboard.Public}),
		} {
			if (path == "/openapi.json" || path == "/batch") && code == 503 {
				continue // which are always there
			}
			for _, method := range []string{"GET", "HEAD"} {
				if w := d.ask(h, method, path, needed[path], nil); w.Code != code {
					t.Errorf("%s %s: %d, want %d: %s", method, path, w.Code, code, w.Body)
				}
			}
		}
	}

	// Of an export while two are made.
	busy := &stuck{began: make(chan struct{}, 2), goOn: make(chan struct{})}
	done := make(chan struct{})
	for range 2 {
		go func() {
			defer func() { done <- struct{}{} }()
			h.ServeHTTP(busy, httptest.NewRequest("GET", "/usage/api/export?of=rows", nil))
		}()
		<-busy.began
	}
	w := d.ask(h, "GET", "/export", nil, nil)
	close(busy.goOn)
	<-done
	<-done
	if w.Code != 503 || w.Header().Get("Retry-After") == "" {
		t.Errorf("a third export: %d, Retry-After %q", w.Code, w.Header().Get("Retry-After"))
	}

	for _, path := range d.paths() {
		responses, _ := d.at(pointer("paths", path, "get", "responses"))
		for code := range responses {
			if !d.seen[path+" "+code] {
				t.Errorf("%s: %s is in the document, and was never answered", path, code)
			}
		}
	}
}

// stuck is a ResponseWriter of a reader who waits.
type stuck struct{ began, goOn chan struct{} }

func (s *stuck) Header() http.Header         { return http.Header{} }
func (s *stuck) WriteHeader(int)             { s.began <- struct{}{}; <-s.goOn }
func (s *stuck) Write(b []byte) (int, error) { return len(b), nil }
