package browser

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// hostile are subjects that somebody else chose.
func hostile() []string {
	return []string{
		`<img src=x onerror=alert(1)>`,
		`"><script>alert(1)</script>`,
		`javascript:alert(1)`,
		`</td></tr></table><h1>owned</h1>`,
		`{{.}} ${alert(1)} &lt;b&gt; %3Cb%3E`,
		`'";--`,
		`__proto__`,
		`constructor`,
		"right\u202eto left",
		"isolated\u2066\u2069",
		"zero\u200bwidth\ufeff\u2060",
		"soft\u00adhyphen, line\u2028separator",
		"Z\u0335\u0321a\u0300\u0301\u0302\u0303l\u0315g\u031bo\u0322\u0323\u0324",
		"👩\u200d👩\u200d👧 🏳️\u200d🌈",
		"=1+1",
		"+cmd|' /C calc'!A0",
		"@SUM(1)",
		"a, \"b\"; c",
		"שלום עולם",
		" leading and trailing ",
		strings.Repeat("x", 480),
		strings.Repeat("long ", 90),
		strings.Repeat("語", 150),
		"GET /" + strings.Repeat("a/", 200),
	}
}

// hostileSite counts every hostile subject as a route, a user, a feature, a model, an
// error and something else, and one of them as often as there are numbers.
func hostileSite(t *testing.T) *site {
	t.Helper()
	s := serve(t)
	counts := map[string]int64{}
	for i, subject := range hostile() {
		n := int64(i + 1)
		for _, name := range []string{"api.%s.requests", "api.%s.status_2xx", "api.%s.latency_5ms", "user.%s.requests", "feature.%s.used", "llm.%s.calls", "llm.%s.tokens", "error.%s.seen", "thing.%s.done"} {
			counts[fmt.Sprintf(name, subject)] = n
		}
	}
	counts["feature.huge.used"] = 1<<53 - 1
	counts["user.huge.requests"] = 1<<53 - 1
	s.add(counts)
	return s
}

func TestHostileNames(t *testing.T) {
	t.Parallel()
	s := hostileSite(t)
	p := open(t)
	p.tall()
	// Whatever is made of a name is one of these.
	p.prepare(`window.owned = []; addEventListener('error', e => { if (e.target !== window) owned.push(e.target.outerHTML) }, true)`)
	p.show(s.url + "?range=7d&more.routes=100&more.users=100&more.features=100&more.models=100&more.errors=100&more.other=100")
	shown := func() {
		t.Helper()
		body := eval[string](p, `document.body.innerText`)
		for _, bad := range []string{"\u202e", "\u2066", "\u200b", "\ufeff", "\u00ad", "\u2028"} {
			if strings.Contains(body, bad) {
				t.Errorf("%+q is on the page as it is", bad)
			}
		}
		if odd := eval[[]string](p, `[...owned, ...[...document.querySelectorAll('script:not([src]), img, iframe, object, embed, [onerror], [onclick], h1 ~ h1, a[href^="javascript"]')].map(e => e.outerHTML)]`); len(odd) > 0 {
			t.Errorf("elements made of names: %q", odd)
		}
		if links := eval[[]string](p, `[...document.querySelectorAll('a[href]')].filter(a => new URL(a.href).host !== location.host || !new URL(a.href).pathname.startsWith('/usage/')).map(a => a.outerHTML)`); len(links) > 0 {
			t.Errorf("links elsewhere: %q", links)
		}
		if eval[string](p, `typeof ({}).requests + typeof ({}).n`) != "undefinedundefined" {
			t.Error("Object.prototype was written to")
		}
	}
	shown()
	for _, table := range []string{"routes", "users", "features", "models", "errors", "other"} {
		names := eval[map[string]string](p, `Object.fromEntries([...document.querySelectorAll('[data-table="`+table+`"] tbody tr[data-name]')].map(r => ['_' + r.dataset.name, r.querySelector('button.name').textContent]))`)
		if len(names) < 10 {
			t.Errorf("%s has %d rows", table, len(names))
		}
		for name, text := range names {
			name = name[1:]
			want := name
			for _, affix := range []string{"user.", "feature.", "error."} {
				want = strings.TrimPrefix(want, affix)
			}
			if table == "users" {
				want = strings.TrimSuffix(want, ".requests")
			}
			if unescaped(text) != want {
				t.Errorf("%s: %q is shown as %q", table, name, text)
			}
			for _, r := range name {
				if want := fmt.Sprintf(`\u%04x`, r); escaped(r) && !strings.Contains(text, want) {
					t.Errorf("%s: %+q is shown as %+q, without %s", table, name, text, want)
				}
			}
		}
	}
	if got := eval[string](p, `document.querySelector('[data-table="features"] tr[data-name*="huge"] [data-col][data-value="9007199254740991"]')?.textContent || ''`); got != "9,007,199,254,740,991" {
		t.Errorf("2^53-1 is shown as %q", got)
	}
	p.narrow()
	p.refresh()
	p.fits()
	shown()
	for i, name := range p.rows("features") {
		p.click(`[data-table="features"] tbody tr[data-name=` + js(name) + `] button.name`)
		p.until("its history", `document.querySelector('dialog#detail').open && document.querySelector('dialog#detail canvas')`)
		p.fits()
		shown()
		p.press(kb.Escape)
		p.until("closed", `!document.querySelector('dialog#detail').open`)
		if i == 8 {
			break
		}
	}
	// In the URL, too.
	for _, subject := range hostile()[:5] {
		p.write(`[data-table="routes"] input[type=search]`, subject)
		found := `[...document.querySelectorAll('[data-table="routes"] tbody tr[data-name]')].map(r => r.dataset.name).join() === ` + js(subject)
		p.until("found", found)
		p.until("in the URL", `new URL(location).searchParams.get('q.routes') === `+js(subject))
		p.do(chromedp.Reload())
		p.until("found again", found)
		shown()
	}
}

// escaped tells whether a rune must not reach the screen as it is.
func escaped(r rune) bool {
	switch {
	case r == 0x00ad, r == 0x061c, r == 0xfeff:
		return true
	case 0x200b <= r && r <= 0x200f && r != 0x200d: // a joiner makes one emoji of several
		return true
	case 0x2028 <= r && r <= 0x202e, 0x2060 <= r && r <= 0x2069:
		return true
	}
	return false
}

// unescaped undoes the escapes of a name on screen.
func unescaped(text string) string {
	return regexp.MustCompile(`\\u[0-9a-f]{4,6}`).ReplaceAllStringFunc(text, func(e string) string {
		r, err := strconv.ParseInt(e[2:], 16, 32)
		if err != nil {
			panic(err)
		}
		return string(rune(r))
	})
}
