package browser

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// violation is what axe-core finds.
type violation struct {
	ID     string   `json:"id"`
	Impact string   `json:"impact"`
	Help   string   `json:"help"`
	Nodes  []string `json:"nodes"`
}

// violations returns what axe-core finds in the page as it is.
func (p *tab) violations() []violation {
	p.Helper()
	// By the protocol, which the page's policy does not concern.
	if eval[bool](p, `!window.axe`) {
		source, err := os.ReadFile("testdata/axe/axe.min.js")
		if err != nil {
			p.Fatal(err)
		}
		eval[chromedp.Void](p, string(source)+"\n;0")
	}
	return eval[[]violation](p, `axe.run(document, {resultTypes: ['violations']}).then(r => r.violations.map(v =>
		({id: v.id, impact: v.impact, help: v.help, nodes: v.nodes.map(n => n.target.join(' ') + ': ' + n.failureSummary.replace(/\s+/g, ' '))})))`)
}

// axe fails for what axe-core finds to be serious or critical, and logs the rest.
func (p *tab) axe(what string) {
	p.Helper()
	for _, v := range p.violations() {
		text := fmt.Sprintf("%s: %s (%s): %s\n\t%s", what, v.ID, v.Impact, v.Help, strings.Join(v.Nodes[:min(len(v.Nodes), 5)], "\n\t"))
		if v.Impact == "serious" || v.Impact == "critical" {
			p.Error(text)
		} else {
			p.Log(text)
		}
	}
}

func TestAccessible(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.week()
	for name, set := range map[string]func(*tab){
		"light": func(p *tab) { p.prefers("light") },
		"dark":  func(p *tab) { p.prefers("dark") },
		"phone": func(p *tab) { p.prefers("light"); p.narrow() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := open(t)
			set(p)
			p.show(s.url + "?range=7d&compare=1")
			p.fits()
			p.click(`[data-range="custom"]`)
			p.write(`[data-table="routes"] input[type=search]`, "nothing has this name")
			p.until("none", `[...document.querySelectorAll('[data-table="routes"] tbody tr[data-name]')].every(r => !r.checkVisibility())`)
			p.find(`[data-table="other"] h2`)
			p.find(`[data-table="other"] tbody tr`)
			p.axe("the page")
			p.click(`[data-table="features"] tbody tr button.name`)
			p.until("a history", `document.querySelector('dialog#detail').open && document.querySelector('dialog#detail canvas')`)
			p.axe("a row's history")
			p.fits()
		})
	}
}

// What finds nothing must be able to find something.
func TestAxe(t *testing.T) {
	t.Parallel()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `<!doctype html><html lang="en"><link rel="icon" href="data:,"><title>Bad</title><main><h1>Bad</h1><button></button><p style="color: #eee">pale</p>`)
	}))
	t.Cleanup(srv.Close)
	p := open(t)
	p.visit(srv.URL)
	var ids []string
	for _, v := range p.violations() {
		ids = append(ids, v.ID)
	}
	if slices.Sort(ids); !slices.Equal(ids, []string{"button-name", "color-contrast"}) {
		t.Errorf("axe found %v", ids)
	}
}

func TestWithoutJavaScript(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.week()
	for name, set := range map[string]func(*tab){
		"light": func(p *tab) { p.prefers("light") },
		"dark":  func(p *tab) { p.prefers("dark") },
		"phone": func(p *tab) { p.prefers("light"); p.narrow() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := open(t)
			set(p)
			send(p, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true})
			p.visit(s.url)
			p.until("the tables", `document.readyState === 'complete' && document.querySelector('main table tbody tr')`)
			text := eval[string](p, `document.body.innerText.replace(/\s+/g, ' ')`)
			st := ask[stats](s, "stats")
			for _, n := range []int64{st.Total, st.Today, st.API["api.GET /novels/{id}.requests"], st.LLM["llm.gpt-4.tokens"], st.Users["user.ada.requests"], st.Users["user.active.daily"]} {
				if want := grouped(n); n == 0 || !strings.Contains(text, want) {
					t.Errorf("%s is not there: %s", want, text)
				}
			}
			for _, want := range []string{"GET /novels/{id}", "outline.generated", "Ada Lovelace", "42.7", "gpt-4", "llm.timeout", "mail.sent"} {
				if !strings.Contains(text, want) {
					t.Errorf("%s is not there", want)
				}
			}
			p.fits()
			send(p, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{}) // for axe
			p.axe("the tables")
		})
	}
}

// grouped is n as English groups its digits.
func grouped(n int64) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// All that a mouse can do, a keyboard can.
func TestKeyboard(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.week()
	p := open(t)
	p.show(s.url + "?range=7d")
	// tabTo presses Tab until the focus is on what a selector finds, which must be to
	// be seen there.
	tabTo := func(selector string) {
		t.Helper()
		for range 200 {
			p.press(kb.Tab)
			if eval[bool](p, `document.activeElement.matches(`+js(selector)+`)`) {
				if !eval[bool](p, `(() => {
					const e = document.activeElement, r = e.getBoundingClientRect(), style = getComputedStyle(e)
					return r.bottom > 0 && r.top < innerHeight && (style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) > 0 || style.boxShadow !== 'none')
				})()`) {
					t.Errorf("the focus on %s is not to be seen", selector)
				}
				return
			}
		}
		t.Fatalf("200 times Tab did not reach %s", selector)
	}
	tabTo(`a[href="#main"]`)
	tabTo(`[data-range="30d"]`)
	p.press(kb.Enter)
	p.until("30d", `new URL(location).searchParams.get('range') === '30d'`)
	p.settle()
	if !eval[bool](p, `document.activeElement.matches('[data-range="30d"]')`) {
		t.Error("the focus left the range")
	}
	tabTo(`input[name=compare]`)
	p.press(" ")
	p.until("compared", `new URL(location).searchParams.get('compare') === '1'`)
	tabTo(`button[data-action=theme]`)
	tabTo(`[data-chart="requests"] button[data-series]`)
	p.press(" ")
	p.until("hidden", `document.activeElement.getAttribute('aria-pressed') === 'false'`)
	p.press(" ")
	tabTo(`[data-table="routes"] input[type=search]`)
	p.press("novels")
	p.until("found", `[...document.querySelectorAll('[data-table="routes"] tbody tr[data-name]')].filter(r => r.checkVisibility()).length === 2`)
	tabTo(`[data-table="routes"] th button[data-sort]`)
	p.press(kb.Enter)
	p.until("sorted", `document.activeElement.closest('th[aria-sort]')`)
	tabTo(`[data-table="routes"] tbody button.name`)
	p.refresh() // which must not take the focus away
	if !eval[bool](p, `document.activeElement.matches('[data-table="routes"] tbody button.name')`) {
		t.Error("a refresh took the focus away")
	}
	name := eval[string](p, `document.activeElement.closest('tr').dataset.name`)
	p.press(kb.Enter)
	p.until("its history", `document.querySelector('dialog#detail').open && document.querySelector('dialog#detail canvas')`)
	for range 10 { // it stays inside, or in the browser's own
		p.press(kb.Tab)
		if !eval[bool](p, `document.activeElement === document.body || !!document.activeElement.closest('dialog')`) {
			t.Error("Tab leaves the dialog for ", eval[string](p, `document.activeElement.outerHTML`))
		}
	}
	p.press(kb.Escape)
	p.until("closed", `!document.querySelector('dialog#detail').open`)
	if focus := eval[string](p, `document.activeElement.closest('tr')?.dataset.name || ''`); focus != name {
		t.Errorf("the focus is on %q, not back on %q", focus, name)
	}
}
