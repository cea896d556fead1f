package browser

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// card is the number that a card shows, as it is in its attribute.
func (p *tab) card(name string) float64 {
	p.Helper()
	return eval[float64](p, `+document.querySelector('[data-card="`+name+`"] [data-value]').dataset.value`)
}

// column is what a column of a table has, from top to bottom: of those rows that are
// to be seen.
func (p *tab) column(table, column string) []float64 {
	p.Helper()
	return eval[[]float64](p, `[...document.querySelectorAll('[data-table="`+table+`"] tbody tr[data-name]')].filter(r => r.checkVisibility()).map(r => +r.querySelector('[data-col="`+column+`"]').dataset.value)`)
}

// rows are the names in a table, of those rows that are to be seen.
func (p *tab) rows(table string) []string {
	p.Helper()
	return eval[[]string](p, `[...document.querySelectorAll('[data-table="`+table+`"] tbody tr[data-name]')].filter(r => r.checkVisibility()).map(r => r.dataset.name)`)
}

// agrees fails if the cards do not show what the API counts in a range, such as
// range=7d.
func (p *tab) agrees(s *site, in string) {
	p.Helper()
	var want int64
	// The range may have moved on since the page asked.
	p.untilGo("requests as the API has them in "+in, func() bool {
		want = ask[totals](s, "totals?name=api.requests.total&"+in).of("api.requests.total")
		return p.card("requests") == float64(want)
	})
	if want == 0 {
		p.Errorf("nothing in %s: the test compares nothing", in)
	}
}

func TestRange(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.week()
	p := open(t)
	p.show(s.url)
	buckets := func(r string) []string {
		return ask[struct {
			Starts []string `json:"starts"`
		}](s, "series?name=api.requests.total&range="+r).Starts
	}
	seen := map[float64]string{}
	for _, r := range []string{"today", "24h", "7d", "30d", "90d", "13mo"} {
		p.click(`[data-range="` + r + `"]`)
		p.until("the range in the URL", `(new URL(location).searchParams.get('range') ?? '24h') === '`+r+`'`)
		p.settle()
		p.agrees(s, "range="+r)
		if pressed := eval[[]string](p, `[...document.querySelectorAll('[data-range][aria-pressed=true]')].map(b => b.dataset.range)`); !slices.Equal(pressed, []string{r}) {
			t.Errorf("%s is chosen, %v pressed", r, pressed)
		}
		// In a day's last hour, today is the last 24 hours.
		if before := seen[p.card("requests")]; before != "" && !slices.Equal(buckets(r), buckets(before)) {
			t.Errorf("%s shows what %s does", r, before)
		}
		seen[p.card("requests")] = r
	}

	day := func(ago int) string { return time.Now().UTC().AddDate(0, 0, -ago).Format(time.DateOnly) }
	from, to := day(6), day(4)
	p.click(`[data-range="custom"]`)
	p.choose(`input[type=date][name=from]`, from)
	p.choose(`input[type=date][name=to]`, to)
	p.click(`[data-apply]`)
	p.until("the dates in the URL", `new URL(location).searchParams.get('from') === '`+from+`'`)
	p.settle()
	p.agrees(s, "from="+from+"&to="+to)
	if got, want := p.location(), (map[string]string{"from": from, "to": to}); got["from"] != want["from"] || got["to"] != want["to"] || got["range"] != "" {
		t.Errorf("URL says %v, want %v", got, want)
	}
	if zone := eval[string](p, `document.body.innerText`); !strings.Contains(zone, "UTC") {
		t.Error("the zone is not to be seen")
	}
}

func TestCompare(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.week()
	p := open(t)
	day := func(ago int) string { return time.Now().UTC().AddDate(0, 0, -ago).Format(time.DateOnly) }
	in, before := "from="+day(5)+"&to="+day(3), "from="+day(8)+"&to="+day(6)
	p.show(s.url + "?" + in)
	total := func(in string) float64 {
		return float64(ask[totals](s, "totals?name=api.requests.total&"+in).of("api.requests.total"))
	}
	want := eval[string](p, fmt.Sprintf(`new Intl.NumberFormat('en-US', {style: 'percent', signDisplay: 'always', maximumFractionDigits: 0}).format(%v)`, total(in)/total(before)-1))
	p.until("a change", `document.querySelector('[data-card="requests"] [data-change]').textContent.trim()`)
	if text := eval[string](p, `document.querySelector('[data-card="requests"] [data-change]').textContent`); !strings.Contains(text, want) {
		t.Errorf("the change of %v to %v is shown as %q, want %s", total(before), total(in), text, want)
	}
	p.click(`input[type=checkbox][name=compare]`)
	p.until("compare in the URL", `new URL(location).searchParams.get('compare') === '1'`)
	p.until("the time before in the chart", `document.querySelector('[data-chart="requests"] [data-series="before"]')`)
	sum := eval[string](p, `document.querySelector('[data-chart="requests"] [data-series="before"]').innerText`)
	if ways := p.written("en-US", "requests", total(before)); !slices.ContainsFunc(ways, func(w string) bool { return strings.Contains(sum, w) }) {
		t.Errorf("the time before is shown as %q, want %q", sum, ways)
	}
	p.do(chromedp.Reload())
	p.settle()
	p.until("still compared", `document.querySelector('[data-chart="requests"] [data-series="before"]')`)
	p.click(`input[type=checkbox][name=compare]`)
	p.until("no compare in the URL", `!new URL(location).searchParams.get('compare')`)
	p.until("no time before in the chart", `!document.querySelector('[data-chart="requests"] [data-series="before"]')`)

	// Of a range that runs, a part of a bucket is compared, and still in whole numbers.
	p.show(s.url + "?range=7d&compare=1")
	p.until("the time before in the chart", `document.querySelector('[data-chart="requests"] [data-series="before"]')`)
	if text := eval[string](p, `document.querySelector('[data-chart="requests"] [data-series="before"] b').innerText`); regexp.MustCompile(`\.\d+$`).MatchString(text) {
		t.Errorf("before were %s requests", text)
	}
}

func TestSearch(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.week()
	p := open(t)
	p.tall()
	p.show(s.url + "?range=7d")
	all, users := p.rows("routes"), p.rows("users")
	p.write(`[data-table="routes"] input[type=search]`, "NOVELS")
	p.until("the search in the URL", `new URL(location).searchParams.get('q.routes') === 'NOVELS'`) // and not what was typed first
	p.until("fewer", fmt.Sprintf(`[...document.querySelectorAll('[data-table="routes"] tbody tr[data-name]')].filter(r => r.checkVisibility()).length < %d`, len(all)))
	p.settle()
	found := p.rows("routes")
	for _, name := range found {
		if !strings.Contains(name, "novels") {
			t.Errorf("a search for NOVELS found %q", name)
		}
	}
	if len(found) != 2 {
		t.Errorf("a search for NOVELS found %q", found)
	}
	if !slices.Equal(p.rows("users"), users) {
		t.Error("a search in routes changed the users")
	}

	p.do(chromedp.Reload())
	p.settle()
	if again := p.rows("routes"); !slices.Equal(again, found) {
		t.Errorf("after a reload %q, before %q", again, found)
	}
	p.write(`[data-table="routes"] input[type=search]`, "nothing has this name")
	p.until("none", `[...document.querySelectorAll('[data-table="routes"] tbody tr[data-name]')].every(r => !r.checkVisibility())`)
	p.write(`[data-table="routes"] input[type=search]`, "")
	p.until("all again", fmt.Sprintf(`[...document.querySelectorAll('[data-table="routes"] tbody tr[data-name]')].filter(r => r.checkVisibility()).length === %d`, len(all)))
	if q := p.location()["q.routes"]; q != "" {
		t.Errorf("the URL still says %q", q)
	}
}

func TestSort(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.week()
	p := open(t)
	p.tall()
	p.show(s.url + "?range=7d")
	for _, table := range []string{"routes", "users", "features", "models", "errors", "other"} {
		columns := eval[[]string](p, `[...document.querySelectorAll('[data-table="`+table+`"] th button[data-sort]')].map(b => b.dataset.sort)`)
		if len(columns) < 2 {
			t.Errorf("%s can be sorted by %q only", table, columns)
		}
		for i, column := range columns {
			button := `[data-table="` + table + `"] th button[data-sort="` + column + `"]`
			sorted := func() string {
				t.Helper()
				p.settle()
				way := eval[string](p, `document.querySelector(`+js(button)+`).closest('th').getAttribute('aria-sort')`)
				if others := eval[int](p, `document.querySelectorAll('[data-table="`+table+`"] th[aria-sort=ascending], [data-table="`+table+`"] th[aria-sort=descending]').length`); others != 1 {
					t.Errorf("%s is sorted by %d columns", table, others)
				}
				good := false
				if column == "name" {
					good = eval[bool](p, `(() => {
						const names = [...document.querySelectorAll('[data-table="`+table+`"] tbody button.name')].map(b => b.textContent)
						if ('`+way+`' === 'descending') names.reverse()
						return names.every((n, i) => !i || names[i - 1].localeCompare(n, 'en-US', {numeric: true}) <= 0)
					})()`)
				} else {
					values := p.column(table, column)
					good = way == "ascending" && slices.IsSorted(values)
					slices.Reverse(values)
					good = good || way == "descending" && slices.IsSorted(values)
				}
				if !good {
					t.Errorf("%s sorted by %s, %s: %v %v", table, column, way, p.rows(table), p.column(table, column))
				}
				return way
			}
			press := func() {
				t.Helper()
				before := eval[string](p, `document.querySelector(`+js(button)+`).closest('th').getAttribute('aria-sort') || 'none'`)
				if i%2 == 0 {
					p.click(button)
				} else {
					eval[chromedp.Void](p, `void document.querySelector(`+js(button)+`).focus()`)
					p.press(kb.Enter)
				}
				p.until("sorted", `(document.querySelector(`+js(button)+`).closest('th').getAttribute('aria-sort') || 'none') !== '`+before+`'`)
			}
			press()
			first := sorted()
			press()
			if second := sorted(); second == first {
				t.Errorf("%s sorted by %s is %s twice", table, column, first)
			}
			if focus := eval[string](p, `document.activeElement.dataset.sort || ''`); focus != column {
				t.Errorf("%s sorted by %s: the focus went to %q", table, column, focus)
			}
		}
		if by := p.location()["sort."+table]; by == "" {
			t.Errorf("the URL does not say how %s is sorted", table)
		}
	}
	routes := p.rows("routes")
	p.do(chromedp.Reload())
	p.settle()
	if again := p.rows("routes"); !slices.Equal(again, routes) {
		t.Errorf("after a reload %q, before %q", again, routes)
	}
}

func TestZoom(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.week()
	p := open(t)
	p.show(s.url + "?range=7d")
	p.drag(`[data-chart="requests"] .u-over`, 0.5, 0.9)
	p.until("from and to in the URL", `new URL(location).searchParams.get('from') && new URL(location).searchParams.get('to')`)
	p.settle()
	at := p.location()
	p.agrees(s, "from="+strings.ReplaceAll(at["from"], "+", "%2B")+"&to="+strings.ReplaceAll(at["to"], "+", "%2B"))
	p.click(`[data-range="7d"]`)
	p.settle()
	p.agrees(s, "range=7d")
}

// picture is what a chart has drawn.
func (p *tab) picture(chart string) string {
	p.Helper()
	return eval[string](p, `document.querySelector('[data-chart="`+chart+`"] canvas').toDataURL()`)
}

func TestLegend(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.week()
	p := open(t)
	p.tall()
	p.show(s.url + "?range=7d")
	for _, chart := range []string{"requests", "active", "latency", "tokens"} {
		button := `[data-chart="` + chart + `"] button[data-series]`
		p.find(`[data-chart="` + chart + `"] .u-over`)
		if n := eval[int](p, `document.querySelectorAll(`+js(button)+`).length`); n < 1 {
			t.Errorf("%s has no legend", chart)
			continue
		}
		before := p.picture(chart)
		p.click(button)
		p.until("hidden", `document.querySelector(`+js(button)+`).getAttribute('aria-pressed') === 'false'`)
		p.untilGo(chart+" drawn without it", func() bool { return p.picture(chart) != before })
		p.refresh() // and stays so
		if pressed := eval[string](p, `document.querySelector(`+js(button)+`).getAttribute('aria-pressed')`); pressed != "false" {
			t.Errorf("%s: after a refresh the hidden is %s", chart, pressed)
		}
		p.click(button)
		p.until("shown", `document.querySelector(`+js(button)+`).getAttribute('aria-pressed') === 'true'`)
	}
}

func TestRow(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.week()
	p := open(t)
	p.tall()
	p.show(s.url + "?range=7d")
	for _, table := range []string{"routes", "users", "features", "models", "errors", "other"} {
		name := p.rows(table)[0]
		row := `[data-table="` + table + `"] tbody tr[data-name=` + js(name) + `]`
		label := eval[string](p, `document.querySelector(`+js(row+` button.name`)+`).innerText`)
		p.click(row + ` td:last-child`)
		p.until("its history", `document.querySelector('dialog#detail').open && document.querySelector('dialog#detail [data-chart="detail"] canvas')`)
		if text := eval[string](p, `document.querySelector('dialog#detail').innerText`); !strings.Contains(text, label) {
			t.Errorf("the history of %q says %q", label, text)
		}
		if row := p.location()["row"]; row == "" {
			t.Error("the URL does not say which row is open")
		}
		p.press(kb.Escape)
		p.until("closed", `!document.querySelector('dialog#detail').open && !new URL(location).searchParams.get('row')`)
		if focus := eval[string](p, `document.activeElement.closest('tr')?.dataset.name || document.activeElement.tagName`); focus != name {
			t.Errorf("after the history of %q the focus is on %q", name, focus)
		}
	}
}

func TestTheme(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.week()
	p := open(t)
	color := func() string { return eval[string](p, `getComputedStyle(document.body).backgroundColor`) }
	p.prefers("light")
	p.show(s.url)
	light, drawn := color(), p.picture("requests")
	p.prefers("dark")
	p.untilGo("dark by preference", func() bool { return color() != light })
	p.untilGo("dark charts", func() bool { return p.picture("requests") != drawn })
	dark := color()
	drawn = p.picture("requests")
	p.click(`button[data-action="theme"]`)
	p.until("light by hand", `document.documentElement.dataset.theme === 'light'`)
	p.untilGo("light", func() bool { return color() == light })
	p.untilGo("light charts", func() bool { return p.picture("requests") != drawn })
	p.do(chromedp.Reload())
	p.settle()
	if got := color(); got != light {
		t.Errorf("after a reload %s, want %s", got, light)
	}
	p.click(`button[data-action="theme"]`)
	p.untilGo("dark again", func() bool { return color() == dark })
}

func TestURL(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.week()
	p := open(t)
	p.tall()
	p.show(s.url)
	p.click(`[data-range="7d"]`)
	p.until("7d", `new URL(location).searchParams.get('range') === '7d'`)
	p.settle()
	p.click(`[data-range="90d"]`)
	p.until("90d", `new URL(location).searchParams.get('range') === '90d'`)
	p.settle()
	name := p.rows("routes")[0]
	p.click(`[data-table="routes"] tbody tr[data-name=` + js(name) + `] button.name`)
	p.until("its history", `document.querySelector('dialog#detail').open`)

	p.do(chromedp.Reload())
	p.settle()
	p.until("its history after a reload", `document.querySelector('dialog#detail').open && document.querySelector('dialog#detail [data-chart="detail"] canvas')`)
	p.agrees(s, "range=90d")

	back := func() { eval[chromedp.Void](p, `void history.back()`) }
	back()
	p.until("closed by going back", `!document.querySelector('dialog#detail').open`)
	p.settle()
	back()
	p.until("7d", `document.querySelector('[data-range="7d"]').getAttribute('aria-pressed') === 'true'`)
	p.settle()
	p.agrees(s, "range=7d")
	eval[chromedp.Void](p, `void history.forward()`)
	p.until("90d", `document.querySelector('[data-range="90d"]').getAttribute('aria-pressed') === 'true'`)
	p.settle()
	p.agrees(s, "range=90d")

	// A link that somebody sent, or broke.
	for _, query := range []string{"?range=7d&compare=1&q.routes=novels&sort.routes=p95", "?range=bogus", "?from=2026-99-99&to=x", "?sort.routes=bogus&row=bogus", "?range=7d&row=%00%3Cscript%3E"} {
		p.show(s.url + query)
	}
}
