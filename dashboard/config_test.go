package dashboard

import (
	"bytes"
	"encoding/csv"
	"fmt"
	"html"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	"github.com/usagekit/usagekit/store"
)

// logged returns what the default logger writes while f runs.
func logged(t *testing.T, f func()) string {
	t.Helper()
	before := slog.Default()
	defer slog.SetDefault(before)
	var b bytes.Buffer
	slog.SetDefault(slog.New(slog.NewTextHandler(&b, nil)))
	f()
	return b.String()
}

// An unset variable is the usual reason why nobody gets in.
func TestBasicAuthThatLetsNobodyInSaysSo(t *testing.T) {
	for _, c := range []struct{ user, password string }{{"admin", ""}, {"", "secret"}, {"", ""}, {"admin", "secret"}} {
		var auth func(http.Handler) http.Handler
		closed := c.user == "" || c.password == ""
		log := logged(t, func() {
			auth = BasicAuth(c.user, c.password)
			for range 3 {
				w := httptest.NewRecorder()
				auth(http.NotFoundHandler()).ServeHTTP(w, httptest.NewRequest("GET", "/usage/", nil))
				if said := strings.Contains(w.Body.String(), "empty"); w.Code != 401 || said != closed {
					t.Errorf("%q: %d %s", c, w.Code, w.Body)
				}
			}
		})
		if lines := strings.Count(log, "\n"); (lines == 1) != closed || lines > 1 || strings.Contains(log, "secret") {
			t.Errorf("%q: the log has %q", c, log)
		}
	}
}

// shown is the text of an element of page and tables.
func shown(t *testing.T, h http.Handler, path, element string) string {
	t.Helper()
	found := regexp.MustCompile(`(?s)<` + element + `(?: [^>]*)?>(.*?)</` + element + `>`).FindStringSubmatch(get(h, path).Body.String())
	if found == nil {
		t.Fatalf("%s has no %s", path, element)
	}
	return html.UnescapeString(found[1])
}

func TestTitle(t *testing.T) {
	for title, want := range map[string]string{
		"": "Usage", "Novels: usage": "Novels: usage", "R&D <b>": "R&D <b>", "</title><script>alert(1)</script>": "</title><script>alert(1)</script>", "a\u202eb\n": `a\u202eb\u000a`,
	} {
		h := newHandler(from(&fake{}), Config{Auth: Public, Title: title})
		for _, path := range []string{"/usage/", "/usage/tables.html"} {
			for _, element := range []string{"title", "h1"} {
				if got := shown(t, h, path, element); got != want {
					t.Errorf("Title %q: %s has the %s %q, want %q", title, path, element, got, want)
				}
			}
			if body := get(h, path).Body.String(); strings.Contains(body, "<script>alert") {
				t.Errorf("Title %q is markup", title)
			}
		}
	}
}

// What the link leads to is an address to go to, and never a script.
func TestHome(t *testing.T) {
	links := map[string]string{
		"": "", "/": "/", "../": "../", "../admin?x=1&y=2": "../admin?x=1&y=2", "https://novels.example/": "https://novels.example/", "HTTP://novels.example": "http://novels.example", "//novels.example/a": "//novels.example/a",
		"/a b": "/a%20b", `/"><script>`: "/%22%3E%3Cscript%3E", "#top": "#top", `/\elsewhere.example`: "/%5Celsewhere.example",
	}
	for _, bad := range []string{
		"javascript:alert(1)", "JavaScript:alert(1)", " javascript:alert(1)", "java\nscript:alert(1)", "\x01javascript:alert(1)", "java\tscript:alert(1)", "data:text/html,x", "vbscript:x", "file:///etc/passwd", "mailto:a@b.example",
		"blob:https://a.example/1", "view-source:https://a.example", "about:blank", "https:", "https:a", "http://", "%zz", "a:b", "://", "http://[::1",
	} {
		links[bad] = ""
	}
	for address, want := range links {
		var h http.Handler
		log := logged(t, func() { h = newHandler(from(&fake{}), Config{Auth: Public, Home: address}) })
		for _, path := range []string{"/usage/", "/usage/tables.html"} {
			got := ""
			if found := regexp.MustCompile(`<a class="home" href="([^"]*)">`).FindStringSubmatch(get(h, path).Body.String()); found != nil {
				got = html.UnescapeString(found[1])
			}
			if got != want {
				t.Errorf("Home %q: %s links to %q, want %q", address, path, got, want)
			}
		}
		if said := strings.Contains(log, "Home"); said != (want == "" && address != "") || strings.Count(log, "\n") > 1 {
			t.Errorf("Home %q: the log has %q", address, log)
		}
	}
}

// Excel takes a file for one of its own code page, unless it begins so; programs would
// take the mark for a part of the first name.
func TestCSVForSpreadsheetsBeginsWithAByteOrderMark(t *testing.T) {
	h := open(&fake{counts: []store.Count{{Name: "feature.é.used", N: 1}}, rows: []store.Row{{Group: "feature", Subject: "é", Counts: map[string]int64{"used": 1}}}})
	for _, of := range []string{"of=totals", "of=history&step=day", "of=rows"} {
		plain := get(h, "/usage/api/export?format=csv&"+of).Body.String()
		marked := get(h, "/usage/api/export?format=csv&bom=1&"+of).Body.String()
		if _, err := csv.NewReader(strings.NewReader(plain)).ReadAll(); err != nil || !strings.Contains(plain, "é") {
			t.Errorf("%s: %v: %s", of, err, plain)
		}
		if marked != "\ufeff"+plain {
			t.Errorf("%s, for a spreadsheet: %q", of, marked)
		}
	}
	for query, code := range map[string]int{"bom=1&format=json": 400, "bom=2": 400, "bom=0": 200, "bom=": 200, "bom=yes": 400} {
		if w := get(h, "/usage/api/export?"+query); w.Code != code || code == 400 && !strings.Contains(w.Body.String(), "bom") {
			t.Error(fmt.Sprint(query, ": ", w.Code, " ", w.Body))
		}
	}
}
