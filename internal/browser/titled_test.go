package browser

import (
	"strings"
	"testing"

	"github.com/usagekit/usagekit/dashboard"
)

// The page says whose it is, and leads back to it.
func TestTitleAndHome(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.add(map[string]int64{"api.GET /a.requests": 40})
	title := "A very long name of a service, " + strings.Repeat("unbreakable", 6) + " <b>&\u202e"
	url := s.mount("/deep/usage/", dashboard.New(s.store, dashboard.Config{Auth: dashboard.Public, Title: title, Home: "../"})) + "/deep/usage/"
	for _, page := range []string{"", "tables.html"} {
		p := open(t)
		p.narrow()
		if page == "" {
			p.show(url)
		} else {
			p.visit(url + page)
		}
		want := strings.Replace(title, "\u202e", `\u202e`, 1)
		if got := eval[string](p, `document.title`); got != want {
			t.Errorf("%s: the tab is %q", page, got)
		}
		if got := eval[string](p, `document.querySelector('h1').innerText`); got != want {
			t.Errorf("%s: the heading is %q", page, got)
		}
		p.fits()
		p.axe("a page with a title and a link")
		p.expect("404") // nothing is there
		p.click(`a.home`)
		p.until("home", `location.pathname === '/deep/'`)
	}
	p := open(t)
	p.show(s.url)
	if eval[bool](p, `!!document.querySelector('a.home')`) {
		t.Error("there is a link to nowhere")
	}
}
