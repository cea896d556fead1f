package dashboard

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"html"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/usagekit/usagekit/store"
)

// getWith asks with a header: pairs of name and value.
func getWith(h http.Handler, method, target string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

var tagged = []string{"/usage/api/stats", "/usage/api/totals", "/usage/api/rows", "/usage/api/history", "/usage/api/series?range=24h"}

// An answer is not sent again while its numbers are the same, although it is read
// anew and says so; and it is when anything else is new.
func TestNotModified(t *testing.T) {
	for _, target := range tagged {
		t.Run(target, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var fails error
				n := int64(1)
				f := &fake{}
				f.before = func(context.Context, string) error {
					f.counts = []store.Count{{Name: "feature.a.b", Start: time.Now().Truncate(24 * time.Hour), N: n}}
					f.rows = []store.Row{{Group: "feature", Subject: "a", Counts: map[string]int64{"b": n}}}
					return fails
				}
				f.state.FoldedThrough = time.Now()
				h := open(f)
				first := get(h, target)
				tag := first.Header().Get("ETag")
				if first.Code != 200 || !regexp.MustCompile(`^W/"[\w-]{12}"$`).MatchString(tag) {
					t.Fatalf("%d, ETag %q", first.Code, tag)
				}
				// ask asks whether it is new, after a while.
				ask := func(after time.Duration) (code int, etag string) {
					t.Helper()
					time.Sleep(after)
					w := getWith(h, "GET", target, "If-None-Match", tag)
					head := getWith(h, "HEAD", target, "If-None-Match", tag)
					if head.Code != w.Code || head.Header().Get("ETag") != w.Header().Get("ETag") || head.Body.Len() > 0 {
						t.Errorf("GET %d %v, HEAD %d %v", w.Code, w.Header(), head.Code, head.Header())
					}
					if w.Code == 304 && (w.Body.Len() > 0 || w.Header().Get("Content-Type") != "" || w.Header().Get("Content-Length") != "" || w.Header().Get("Content-Encoding") != "" ||
						w.Header().Get("Cache-Control") != "private, no-cache" || w.Header().Get("Vary") != "Accept-Encoding" || w.Header().Get("Content-Security-Policy") != policy) {
						t.Errorf("304 %v %s", w.Header(), w.Body)
					}
					return w.Code, w.Header().Get("ETag")
				}
				expect := func(what string, after time.Duration, code int) {
					t.Helper()
					got, etag := ask(after)
					if got != code || (etag == tag) != (code == 304) {
						t.Errorf("%s: %d %s, want %d where it was %s", what, got, etag, code, tag)
					}
					if got == 200 {
						tag = etag
						expect := http.StatusNotModified
						if again, _ := ask(0); again != expect {
							t.Errorf("%s, again: %d", what, again)
						}
					}
				}
				expect("at once", 0, 304)
				f.state.FoldedThrough = time.Now().Add(2 * time.Second)
				expect("read anew", 2*time.Second, 304)
				if w := get(h, target); w.Body.String() == first.Body.String() || w.Header().Get("ETag") != tag {
					t.Errorf("as_of did not move: %s", w.Body)
				}
				n++
				expect("a new count", 2*time.Second, 200)
				n--
				expect("the old one", 2*time.Second, 200)
				if tag != first.Header().Get("ETag") {
					t.Errorf("the first numbers have the tag %s, and had %s", tag, first.Header().Get("ETag"))
				}
				expect("it lags, by seconds", 30*time.Second, 304)
				expect("it lags, by a minute", 30*time.Second, 200)
				expect("by that still", 30*time.Second, 304)
				expect("by two", 30*time.Second, 200)
				f.state.FoldedThrough = time.Now().Add(2 * time.Second)
				expect("no more", 2*time.Second, 200)
				f.skew = 10 * time.Minute // both times are the database's
				f.state.FoldedThrough = time.Now().Add(10*time.Minute + 2*time.Second)
				expect("another clock", 2*time.Second, 304)
				f.skew = 0
				fails = store.ErrUnavailable
				expect("stale", 2*time.Second, 200)
				if !strings.HasSuffix(tag, `-stale"`) {
					t.Errorf("stale: %s", tag)
				}
				expect("stale still", 2*time.Second, 304)
				fails = nil
				f.state.FoldedThrough = time.Now().Add(2 * time.Second)
				expect("fresh again", 2*time.Second, 200)
				f.state.FoldedThrough = time.Time{}
				expect("complete through nobody knows what", 2*time.Second, 200)
				time.Sleep(time.Until(time.Now().Truncate(15 * time.Minute).Add(15*time.Minute - 10*time.Second)))
				get(h, target)
				tag = get(h, target).Header().Get("ETag")
				expect("the last seconds of a quarter of an hour", 5*time.Second, 304)
				expect("the next quarter", 5*time.Second, 200)
				expect("that, still", 14*time.Minute, 304)
			})
		})
	}
}

// RFC 9110, 13.1.2: lists, and weak comparison.
func TestIfNoneMatch(t *testing.T) {
	h := open(filled(t, nil))
	for _, target := range []string{"/usage/api/totals?name=a.b", "/usage/api/openapi.json", "/usage/", "/usage/assets/x/app.js"} {
		tag := get(h, target).Header().Get("ETag")
		opaque, weak := strings.CutPrefix(tag, "W/")
		if !weak { // it is that of the compressed one, too
			t.Errorf("%s: %s", target, tag)
		}
		for header, code := range map[string]int{
			tag:                              304,
			opaque:                           304,
			"W/" + opaque:                    304,
			"*":                              304,
			`"a", ` + tag:                    304,
			`W/"a",` + tag + `,"b"`:          304,
			"\t" + tag + " ":                 304,
			`"a", W/"b"`:                     200,
			"":                               200,
			`""`:                             200,
			strings.Trim(opaque, `"`):        200,
			"w/" + opaque:                    200, // the W is one
			opaque[:len(opaque)-1]:           200,
			strings.ToUpper(opaque) + `"`:    200,
			`"` + strings.Trim(opaque, `"`):  200,
			opaque + `x`:                     200,
			strings.Repeat(`"abc", `, 5_000): 200,
		} {
			for _, method := range []string{"GET", "HEAD"} {
				w := getWith(h, method, target, "If-None-Match", header)
				if w.Code != code || w.Header().Get("ETag") != tag || (w.Body.Len() > 0) != (code == 200 && method == "GET") {
					t.Errorf("%s %s, If-None-Match: %.60s: %d %v, want %d", method, target, header, w.Code, w.Header(), code)
				}
			}
		}
	}
	// What is no answer has no tag.
	for target, code := range map[string]int{"/usage/api/totals?x=": 400, "/usage/api/nope": 404, "/usage/nope.css": 404, "/usage": 301, "/usage/api/health": 200, "/usage/api/export?of=rows": 200, "/usage/tables.html": 200} {
		if w := getWith(h, "GET", target, "If-None-Match", "*"); w.Code != code || w.Header().Get("ETag") != "" {
			t.Errorf("%s: %d, ETag %q", target, w.Code, w.Header().Get("ETag"))
		}
	}
}

// What is worth it is compressed, for those who take it, and is the same then.
func TestGzip(t *testing.T) {
	counts := make([]store.Count, 1_000)
	for i := range counts {
		counts[i] = store.Count{Name: fmt.Sprintf("feature.%d.used", i), N: int64(i)}
	}
	synctest.Test(t, func(t *testing.T) { // which as_of is the same in
		large := open(&fake{counts: counts})
		for accept, zipped := range map[string]bool{
			"gzip": true, "GZip": true, "gzip, deflate, br, zstd": true, "br;q=1.0, gzip;q=0.8, *;q=0.1": true, "gzip;q=0.001": true, "gzip ; q=1": true, "deflate,gzip;q=1.000": true,
			"": false, "identity": false, "deflate, br": false, "gzip;q=0": false, "gzip;Q=0": false, "gzip; q=0.0": false, "gzip ;q=0.000, br": false, "*": false, "xgzip": false, "gzipx": false, "br;gzip": false,
		} {
			for _, target := range []string{"/usage/api/totals", "/usage/api/history", "/usage/api/openapi.json", "/usage/", "/usage/assets/x/app.js", "/usage/assets/x/style.css"} {
				plain := getWith(large, "GET", target)
				w := getWith(large, "GET", target, "Accept-Encoding", accept)
				head := getWith(large, "HEAD", target, "Accept-Encoding", accept)
				body := w.Body.Bytes()
				if got := w.Header().Get("Content-Encoding"); (got == "gzip") != zipped || got != "" && got != "gzip" {
					t.Errorf("%s, %q: %q", target, accept, got)
				}
				if w.Header().Get("Vary") != "Accept-Encoding" || w.Header().Get("Content-Length") != strconv.Itoa(len(body)) || w.Header().Get("Content-Type") != plain.Header().Get("Content-Type") {
					t.Errorf("%s, %q: %d bytes, %v", target, accept, len(body), w.Header())
				}
				if head.Header().Get("Content-Length") != w.Header().Get("Content-Length") || head.Header().Get("Content-Encoding") != w.Header().Get("Content-Encoding") || head.Body.Len() > 0 {
					t.Errorf("%s, %q: HEAD %v, GET %v", target, accept, head.Header(), w.Header())
				}
				if zipped {
					if len(body) > plain.Body.Len()/2 {
						t.Errorf("%s: %d bytes of %d", target, len(body), plain.Body.Len())
					}
					z, err := gzip.NewReader(bytes.NewReader(body))
					if err != nil {
						t.Errorf("%s, %q: %v", target, accept, err)
						continue
					}
					if body, err = io.ReadAll(z); err != nil {
						t.Errorf("%s, %q: %v", target, accept, err)
					}
				}
				if !bytes.Equal(body, plain.Body.Bytes()) {
					t.Errorf("%s, %q: %.100s, want %.100s", target, accept, body, plain.Body)
				}
			}
		}
		// What fits into a packet is left as it is.
		small := open(&fake{counts: counts[:3]})
		for _, target := range []string{"/usage/api/totals", "/usage/api/rows", "/usage/assets/x/icon.svg", "/usage/api/totals?x=", "/usage/api/health"} {
			if w := getWith(small, "GET", target, "Accept-Encoding", "gzip"); w.Header().Get("Content-Encoding") != "" || w.Body.Len() >= least {
				t.Errorf("%s: %d bytes, %v", target, w.Body.Len(), w.Header())
			}
		}
	})
	for size, zipped := range map[int]bool{least - 1: false, least: true} {
		c := newContent(bytes.Repeat([]byte("a"), size), `"x"`, gzip.BestSpeed)
		w := getWith(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { c.send(w, r, "text/plain") }), "GET", "/", "Accept-Encoding", "gzip")
		if got := w.Header().Get("Content-Encoding") == "gzip"; got != zipped {
			t.Errorf("of %d bytes compressed: %v", size, got)
		}
	}
}

// A file may be kept for ever where its folder has the hash of all of them, and nowhere
// else; it is there under every other hash, too, as it is now.
func TestAssets(t *testing.T) {
	h := open(&fake{})
	a := h.(*handler).assets
	if !regexp.MustCompile(`^assets/[\w-]{12}/$`).MatchString(a.folder) || len(a.files) < 10 {
		t.Fatalf("folder %q of %d files", a.folder, len(a.files))
	}
	if again := newAssets(brand{}); again.folder != a.folder {
		t.Errorf("once %s, once %s", a.folder, again.folder)
	}
	for name, file := range a.files {
		for folder, kept := range map[string]bool{
			a.folder:                                 true,
			"assets/AAAAAAAAAAAA/":                   false,
			"assets/":                                false,
			"":                                       false,
			strings.ToUpper(a.folder):                false,
			"x" + a.folder:                           false,
			strings.TrimSuffix(a.folder, "/") + "x/": false,
		} {
			w := get(h, "/usage/"+folder+name)
			want := "private, no-cache"
			if kept {
				want = "private, max-age=31536000, immutable"
			}
			if w.Code != 200 || w.Header().Get("Cache-Control") != want || w.Header().Get("ETag") != file.etag || !bytes.Equal(w.Body.Bytes(), file.plain) {
				t.Errorf("%s%s: %d %v, want %s", folder, name, w.Code, w.Header(), want)
			}
		}
		want := map[string]string{".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml"}[path.Ext(name)]
		if file.contentType != want || want == "" {
			t.Errorf("%s: %q", name, file.contentType)
		}
	}
	for _, name := range []string{"page.html", "openapi.json", "assets.go", "LICENSE", "VERSION", "uplot", "nope.js", "nope.css"} {
		if w := get(h, "/usage/"+a.folder+name); w.Code == 200 && w.Body.Len() > 0 {
			t.Errorf("%s: %d %.100s", name, w.Code, w.Body)
		}
	}
	// The page changes with its files: it names their folder.
	if page := get(h, "/usage/"); page.Header().Get("Cache-Control") != "private, no-cache" || !strings.Contains(page.Body.String(), `"`+a.folder) {
		t.Errorf("the page: %v", page.Header())
	}
}

var (
	linked   = regexp.MustCompile(`\s(?:href|src)="([^"]*)"`)
	imported = regexp.MustCompile(`(?m)(?:^import\b[^"';(]*|^export\s*(?:\*|\{[^}]*\})\s*from\s*|\bimport\(\s*)["']([^"']+)["']`)
	ofCSS    = regexp.MustCompile(`(?:url\(\s*|@import\s+)["']?([^"')\s]+)`)
)

// needs lists the files that a page loads, by address: those that it names, and those
// that they do.
func needs(t *testing.T, h http.Handler, page string) (list []string) {
	t.Helper()
	base, err := url.Parse(page)
	if err != nil {
		t.Fatal(err)
	}
	var add func(from *url.URL, names [][]string)
	add = func(from *url.URL, names [][]string) {
		for _, m := range names {
			to, err := from.Parse(html.UnescapeString(m[1]))
			if err != nil || to.Host != base.Host || to.Scheme != base.Scheme {
				t.Errorf("%s leads to %s", from, m[1])
				continue
			}
			to.Fragment = ""
			if strings.HasPrefix(m[1], "#") || strings.HasPrefix(m[1], "?") || slices.Contains(list, to.String()) || to.Path == base.Path {
				continue
			}
			w := get(h, to.String())
			if w.Code != 200 {
				t.Errorf("%s names %s: %d", from, m[1], w.Code)
			}
			if !strings.Contains(to.Path, "/assets/") {
				continue // is gone to, not loaded
			}
			list = append(list, to.String())
			if !strings.Contains(w.Header().Get("Cache-Control"), "immutable") {
				t.Errorf("%s names %s: %s", from, m[1], w.Header().Get("Cache-Control"))
			}
			switch body := w.Body.String(); path.Ext(to.Path) {
			case ".js":
				add(to, imported.FindAllStringSubmatch(body, -1))
			case ".css":
				add(to, ofCSS.FindAllStringSubmatch(body, -1))
			}
		}
	}
	add(base, linked.FindAllStringSubmatch(get(h, page).Body.String(), -1))
	return list
}

// Every file that the pages name is there, and every file is named.
func TestFiles(t *testing.T) {
	h := open(&fake{})
	page, tables := needs(t, h, "http://usage.test/usage/"), needs(t, h, "http://usage.test/usage/tables.html")
	if len(page) < 10 || len(tables) < 3 {
		t.Errorf("the page needs %q, the tables %q", page, tables)
	}
	for name := range h.(*handler).assets.files {
		if !slices.ContainsFunc(slices.Concat(page, tables), func(u string) bool { return path.Base(u) == name }) {
			t.Errorf("nothing needs %s", name)
		}
	}
	// A module is asked for with the page, not when the one that imports it is there.
	text := get(h, "/usage/").Body.String()
	for _, u := range page {
		if !strings.Contains(text, `/`+path.Base(u)+`"`) {
			t.Errorf("the page does not name %s", u)
		}
	}
}

// The first visit is light.
func TestFirstPaint(t *testing.T) {
	h := open(&fake{})
	sum, plain := 0, 0
	for _, u := range append(needs(t, h, "http://usage.test/usage/"), "/usage/") {
		w := getWith(h, "GET", u, "Accept-Encoding", "gzip")
		sum += w.Body.Len()
		plain += get(h, u).Body.Len()
		t.Logf("%6d bytes %s", w.Body.Len(), u)
	}
	t.Logf("%d bytes, of %d", sum, plain)
	if sum > 120_000 || sum < 10_000 {
		t.Errorf("the page and its files are %d bytes", sum)
	}
}

// The policy allows nothing inline, and there is nothing.
func TestNothingInline(t *testing.T) {
	tag := regexp.MustCompile(`<([a-zA-Z][\w-]*)((?:\s+[^\s=>]+(?:="[^"]*")?)*)\s*/?>([^<]*)`)
	attribute := regexp.MustCompile(`([^\s=]+)(?:="([^"]*)")?`)
	h := open(filled(t, map[string]int64{"api.GET /a.requests": 1, "user.42.requests": 1, "feature.a.b": 1}))
	for _, target := range []string{"/usage/", "/usage/tables.html"} {
		body := get(h, target).Body.String()
		tags := tag.FindAllStringSubmatch(body, -1)
		if opened := len(regexp.MustCompile(`<[a-zA-Z]`).FindAllString(body, -1)); opened != len(tags) || opened < 20 {
			t.Errorf("%s: %d tags begin, %d are understood", target, opened, len(tags))
		}
		for _, m := range tags {
			if m[1] == "style" || m[1] == "base" || m[1] == "iframe" || m[1] == "object" || m[1] == "embed" {
				t.Errorf("%s: %s", target, m[0])
			}
			sourced := false
			for _, a := range attribute.FindAllStringSubmatch(m[2], -1) {
				name, value := strings.ToLower(a[1]), strings.ToLower(strings.TrimSpace(a[2]))
				sourced = sourced || name == "src" && value != ""
				if name == "style" || strings.HasPrefix(name, "on") || strings.Contains(name, ":") || strings.HasPrefix(value, "javascript:") || strings.HasPrefix(value, "data:") {
					t.Errorf("%s: %s", target, m[0])
				}
			}
			if m[1] == "script" && (!sourced || strings.TrimSpace(m[3]) != "") {
				t.Errorf("%s: a script within: %s", target, m[0])
			}
		}
	}
}
