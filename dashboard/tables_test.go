package dashboard

import (
	"context"
	"encoding/xml"
	"errors"
	"io"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/usagekit/usagekit/store"
)

// text is the page without its tags.
func text(body string) string {
	return strings.Join(strings.Fields(regexp.MustCompile(`<[^>]*>`).ReplaceAllString(body, " ")), " ")
}

func TestPage(t *testing.T) {
	h := open(filled(t, map[string]int64{
		"api.GET /novels/{id}.requests": 1234567, "api.GET /novels/{id}.status_4xx": 1000, "api.GET /novels/{id}.status_5xx": 12,
		"api.GET /novels/{id}.latency_25ms": 50, "api.GET /novels/{id}.latency_inf": 50,
		"api.POST /outlines.requests": 20, "api.requests.novels": 1234000,
		"user.42.requests": 99, "user.registrations": 2,
		"feature.outline.generated": 3, "error.llm.timeout": 1, "mail.sent": 7,
		"llm.gpt-4.tokens": 8120, "llm.gpt-4.calls": 4, "llm.gpt-5.output_tokens": 5,
		"usagekit.counts.dropped": 6,
	}))
	w := get(h, "/usage/tables.html")
	got := text(w.Body.String())
	for _, want := range []string{
		"Requests, all time 1,234,587 Requests today 1,234,587 Active users today 1 Active users this month 1 Registrations 2",
		"counts that were dropped, of all time, at least: 6",
		"Route Requests 4xx Errors p50 p95 GET /novels/{id} 1,234,567 1,000 12 25 ms ≥ 10 s POST /outlines 20 0 0 – –",
		"Area Requests novels 1,234,000",
		"User Requests 42 99",
		"Feature Count outline.generated 3",
		"Error Count llm.timeout 1",
		"Model calls tokens output tokens gpt-4 4 8,120 0 gpt-5 0 0 5",
		"Name Count mail.sent 7 usagekit.counts.dropped 6",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in %s", want, got)
		}
	}
	if w.Header().Get("Refresh") != "" {
		t.Error("refreshes unasked")
	}
	if w := get(h, "/usage/tables.html?refresh=10"); w.Header().Get("Refresh") != "10" || !strings.Contains(w.Body.String(), "Updated every 10 s") {
		t.Errorf("Refresh: %q", w.Header().Get("Refresh"))
	}
}

func TestEmptyPage(t *testing.T) {
	got := text(get(open(filled(t, nil)), "/usage/tables.html").Body.String())
	for _, want := range []string{
		"Requests, all time 0", "middleware.New(usage", "middleware.Config{Area:", "middleware.Config{User:",
		"No features counted yet. Count one: usage.Inc(&#34;feature.outline.generated&#34;)", "error.llm.timeout", "llm.gpt-4.tokens", "mail.sent",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in %s", want, got)
		}
	}
}

// The page is well-formed, whatever is counted; it needs nothing that the
// headers forbid, and every link in it leads somewhere.
func TestPageIsTidy(t *testing.T) {
	const hostile = "</td><script>alert(1)</script><img src=x onerror=alert(2)>\"'`{{.}}\u202e<b>"
	names := map[string]int64{}
	for _, name := range []string{"api.%.requests", "api.requests.%", "user.%.requests", "feature.%.a", "feature.a.%", "llm.%.calls", "llm.a.%", "error.%.a", "%.%.%", "other.%"} {
		names[strings.ReplaceAll(name, "%", hostile[:40])] = 1
		names[strings.ReplaceAll(name, "%", strings.Repeat("wide", 500))] = 1<<53 - 1
	}
	names["user."+hostile+".requests"] = 2
	h := newHandler(from(filled(t, names)), Config{Auth: Public, Users: func(_ context.Context, ids []string) (map[string]string, error) {
		return map[string]string{ids[0]: hostile}, nil
	}})
	body := get(h, "/usage/tables.html").Body.String()
	for _, bad := range []string{"<script", "<img", "<b>", "style=", "onerror=\"", "http:", "https:", "//"} {
		if strings.Contains(strings.ReplaceAll(body, "onerror=alert", ""), bad) {
			t.Errorf("%q in the page", bad)
		}
	}

	ids := map[string]bool{}
	var links, refs []string
	d := xml.NewDecoder(strings.NewReader(body))
	d.Strict, d.AutoClose, d.Entity = false, xml.HTMLAutoClose, xml.HTMLEntity
	var inside []string
	for {
		token, err := d.Token()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		switch e := token.(type) {
		case xml.StartElement:
			inside = append(inside, e.Name.Local)
			for _, a := range e.Attr {
				switch a.Name.Local {
				case "id":
					if ids[a.Value] {
						t.Errorf("two elements have id %s", a.Value)
					}
					ids[a.Value] = true
				case "href":
					links = append(links, a.Value)
				case "aria-labelledby":
					refs = append(refs, a.Value)
				}
			}
		case xml.EndElement:
			if len(inside) == 0 || inside[len(inside)-1] != e.Name.Local {
				t.Fatalf("</%s> closes %v", e.Name.Local, inside)
			}
			inside = inside[:len(inside)-1]
		case xml.CharData:
			if strings.Contains(string(e), "\u202e") && !slices.Contains(inside, "bdi") {
				t.Errorf("a name that turns the text around outside of bdi: %s", e)
			}
		}
	}
	for _, ref := range refs {
		if !ids[ref] {
			t.Errorf("nothing has id %s", ref)
		}
	}
	if len(links) < 10 {
		t.Errorf("few links: %v", links)
	}
	for _, link := range links {
		if w := get(h, "/usage/"+link); w.Code != 200 {
			t.Errorf("%s: %d %s", link, w.Code, w.Body)
		}
	}
	if len(inside) > 0 {
		t.Errorf("not closed: %v", inside)
	}
}

func TestMoreThanShown(t *testing.T) {
	names := map[string]int64{}
	for i := range 60 {
		name := string(rune('a'+i%26)) + string(rune('a'+i/26))
		names["api.GET /"+name+".requests"] = int64(i + 1)
		names["feature."+name] = int64(i + 1)
		names["llm."+name+".calls"] = int64(i + 1)
	}
	body := get(open(filled(t, names)), "/usage/tables.html").Body.String()
	if n := strings.Count(body, "GET /"); n != shownRoutes {
		t.Errorf("%d routes", n)
	}
	if got := text(body); strings.Count(got, "These are the largest 50.") != 1 || strings.Count(got, "These are the largest 15.") != 2 {
		t.Errorf("does not say that there are more: %s", got)
	}
}

func TestUsers(t *testing.T) {
	st := filled(t, map[string]int64{"user.42.requests": 9, "user.7.requests": 8, "user.(other).requests": 7, "user.42.exports": 6, "user.registrations": 5})
	var asked []string
	for name, c := range map[string]struct {
		users func(context.Context, []string) (map[string]string, error)
		want  string
	}{
		"none": {nil, "42 9 7 8"},
		"some": {func(_ context.Context, ids []string) (map[string]string, error) {
			asked = ids
			return map[string]string{"42": "Ada", "7": "", "8": "Eve"}, nil
		}, "Ada 42 9 7 8"},
		"error": {func(context.Context, []string) (map[string]string, error) {
			return map[string]string{"42": "Ada"}, errors.New("down")
		}, "42 9 7 8"},
		"panic": {func(context.Context, []string) (map[string]string, error) { panic("broken") }, "42 9 7 8"},
	} {
		got := text(get(newHandler(from(st), Config{Auth: Public, Users: c.users}), "/usage/tables.html").Body.String())
		if !strings.Contains(got, c.want) {
			t.Errorf("%s: no %q in %s", name, c.want, got)
		}
	}
	if !slices.Equal(asked, []string{"42", "7"}) {
		t.Errorf("asked for %q", asked)
	}
}

func TestUsersHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		back := make(chan struct{})
		f := &fake{counts: []store.Count{{Name: "user.42.requests", N: 9}}}
		h := newHandler(from(f), Config{Auth: Public, Users: func(context.Context, []string) (map[string]string, error) {
			<-back
			return map[string]string{"42": "Ada"}, nil
		}})
		start := time.Now()
		for range 2 * maxReads {
			w := get(h, "/usage/tables.html")
			if w.Code != 200 || !strings.Contains(text(w.Body.String()), "42 9") {
				t.Errorf("%d %s", w.Code, w.Body)
			}
		}
		if d := time.Since(start); d > 2*maxReads*namesTimeout {
			t.Errorf("took %v", d)
		}
		close(back)
		synctest.Wait()
		if w := get(h, "/usage/tables.html"); !strings.Contains(text(w.Body.String()), "Ada 42 9") {
			t.Errorf("after they came back: %s", w.Body)
		}
	})
}

func TestNumbers(t *testing.T) {
	for n, want := range map[int64]string{0: "0", 7: "7", 999: "999", 1000: "1,000", 123456: "123,456", 1234567: "1,234,567", 1<<53 - 1: "9,007,199,254,740,991"} {
		if got := digits(n); got != want {
			t.Errorf("%d: %s", n, got)
		}
	}
	if got := duration(nil); got != "–" {
		t.Errorf("nil: %s", got)
	}
	for ms, want := range map[float64]string{0: "< 5 ms", 3.14: "< 5 ms", 42.4: "42 ms", 999.4: "999 ms", 999.5: "1.0 s", 2500: "2.5 s", 10000: "≥ 10 s"} {
		if got := duration(&ms); got != want {
			t.Errorf("%v: %s", ms, got)
		}
	}
	for _, c := range [][3]int64{{0, 0, 0}, {5, 5, 1000}, {1, 3, 333}, {1<<53 - 1, 1<<53 - 1, 1000}} {
		if got := share(c[0], c[1]); int64(got) != c[2] {
			t.Errorf("%d of %d: %d", c[0], c[1], got)
		}
	}
}

// A name cannot turn the text around it, or look like another.
func TestVisible(t *testing.T) {
	for name, want := range map[string]string{
		"GET /novels/{id}":        "GET /novels/{id}",
		"a\u202egnp.exe":          `a\u202egnp.exe`,
		"a\u200bb\ufeff":          `a\u200bb\ufeff`,
		"\u2028\u2029\x07":        `\u2028\u2029\u0007`,
		"\u3164\u2800":            `\u3164\u2800`,
		"é e\u0301 \U0001F600 日本": "é e\u0301 \U0001F600 日本",
		"\U000E0041":              `\ue0041`,
	} {
		if got := visible(name); got != want {
			t.Errorf("%q is shown as %q, want %q", name, got, want)
		}
	}
}
