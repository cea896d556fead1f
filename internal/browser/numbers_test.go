package browser

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"

	"github.com/usagekit/usagekit/store"
)

// cell is a number on screen: what it is, and how it is written.
type cell struct {
	Value *float64
	Text  string
}

// cells are the numbers of every table: table, row, column.
func (p *tab) cells() map[string]map[string]map[string]cell {
	p.Helper()
	return eval[map[string]map[string]map[string]cell](p, `Object.fromEntries([...document.querySelectorAll('[data-table]')].map(t => [t.dataset.table,
		Object.fromEntries([...t.querySelectorAll('tbody tr[data-name]')].map(r => [r.dataset.name,
			Object.fromEntries([...r.querySelectorAll('[data-col]')].map(c => [c.dataset.col, {Value: c.dataset.value === '' ? null : +c.dataset.value, Text: c.innerText.trim()}]))]))]))`)
}

// answers is what cells should be, by the API.
func answers(s *site, in string) map[string]map[string]map[string]float64 {
	s.Helper()
	all := map[string]map[string]map[string]float64{"routes": {}, "models": {}}
	for _, r := range ask[rows](s, "rows?prefix=api.&measure=requests&except=api.requests.&"+in).Rows {
		all["routes"][r.Subject] = map[string]float64{"requests": float64(r.Counts["requests"]), "refused": float64(r.Counts["status_4xx"]) / float64(r.Counts["requests"]), "errors": float64(r.Counts["status_5xx"]) / float64(r.Counts["requests"]), "p95": *r.P95}
	}
	for _, r := range ask[rows](s, "rows?prefix=llm.&"+in).Rows {
		all["models"][r.Subject] = map[string]float64{"calls": float64(r.Counts["calls"]), "failed": float64(r.Counts["failed"]), "tokens": float64(r.Counts["tokens"])}
	}
	for table, query := range map[string]string{
		"users": "prefix=user.&measure=requests", "features": "prefix=feature.", "errors": "prefix=error.",
		"other": "except=api.&except=user.&except=feature.&except=llm.&except=error.",
	} {
		all[table] = map[string]map[string]float64{}
		for _, c := range ask[totals](s, "totals?"+query+"&"+in).Counts {
			all[table][c.Name] = map[string]float64{"n": float64(c.N)}
		}
	}
	return all
}

// written are the ways in which a locale may write a number of a column.
func (p *tab) written(locale, column string, value float64) []string {
	p.Helper()
	format := func(options string, v float64) string {
		return fmt.Sprintf(`new Intl.NumberFormat(%s, %s).format(%v)`, js(locale), options, v)
	}
	ways := []string{format(`{}`, value)}
	switch column {
	case "refused", "errors", "error_rate":
		ways = []string{format(`{style: 'percent', maximumFractionDigits: 1}`, value), format(`{style: 'percent', maximumSignificantDigits: 2}`, value)}
	case "p95":
		ways = []string{
			format(`{style: 'unit', unit: 'millisecond', maximumFractionDigits: 0}`, value), format(`{style: 'unit', unit: 'millisecond', maximumFractionDigits: 1}`, value),
			format(`{style: 'unit', unit: 'second', maximumFractionDigits: 1}`, value/1000),
		}
		if value < 5 {
			ways = []string{`"< 5 ms"`} // and no more is known
		}
	case "requests", "tokens":
		ways = append(ways, format(`{notation: 'compact', maximumFractionDigits: 1}`, value)) // on a card
	}
	return eval[[]string](p, `[`+strings.Join(ways, ", ")+`]`)
}

// Every number on screen is the one that the API has for the same range, and is
// written as the reader writes numbers.
func TestNumbers(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.week()
	s.add(map[string]int64{"feature.most.used": 1<<53 - 1, "llm.gpt-4.tokens": 12_345_678})
	day := func(ago int) string { return time.Now().UTC().AddDate(0, 0, -ago).Format(time.DateOnly) }
	for locale, ranges := range map[string][]string{
		"en-US": {"range=today", "range=24h", "range=13mo"},
		"de-DE": {"range=7d", "range=30d", "from=" + day(8) + "&to=" + day(4)}, // whose last day is not today
	} {
		t.Run(locale, func(t *testing.T) {
			t.Parallel()
			p := open(t)
			p.tall()
			send(p, emulation.SetLocaleOverride, emulation.SetLocaleOverrideParams{Locale: locale})
			for _, in := range ranges {
				p.show(s.url + "?" + in)
				// At the hour the range moves on between the two.
				var wrong []string
				for range 3 {
					if wrong = p.compare(s, locale, in); len(wrong) == 0 {
						break
					}
					p.refresh()
				}
				for _, w := range wrong {
					t.Errorf("%s: %s", in, w)
				}
			}
		})
	}
}

// Beside the active users of today stand those of 30 days, whatever the range is.
func TestActiveUsersTodayEndTheSameLineInEveryRange(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.week()
	p := open(t)
	p.tall()
	lines := func() map[string]string {
		lines := map[string]string{}
		for _, in := range []string{"24h", "30d", "90d", "13mo"} {
			p.show(s.url + "?range=" + in)
			lines[in] = eval[string](p, `document.querySelector('[data-card="active_day"] .spark path:last-child').getAttribute('d')`)
		}
		return lines
	}
	differ := func(lines map[string]string) bool {
		for _, line := range lines {
			if line == "" || line != lines["24h"] {
				return true
			}
		}
		return false
	}
	got := lines()
	if differ(got) {
		got = lines() // a day may have begun between two of them
	}
	if differ(got) {
		t.Errorf("the lines are %q", got)
	}
}

// compare says what is not on screen as the API has it.
func (p *tab) compare(s *site, locale, in string) (wrong []string) {
	p.Helper()
	want, got := answers(s, in), p.cells()
	check := func(what, column string, c cell, n float64) {
		if c.Value == nil || math.Abs(*c.Value-n) > 1e-9*math.Abs(n) {
			wrong = append(wrong, fmt.Sprintf("%s is %v (%s), want %v", what, js(c.Value), c.Text, n))
		} else if ways := p.written(locale, column, n); !slices.Contains(ways, c.Text) {
			wrong = append(wrong, fmt.Sprintf("%s is written %q, want one of %q", what, c.Text, ways))
		}
	}
	for table, names := range want {
		if len(names) == 0 {
			wrong = append(wrong, table+" compares nothing")
		}
		if !slices.Equal(slices.Sorted(maps.Keys(names)), slices.Sorted(maps.Keys(got[table]))) {
			wrong = append(wrong, fmt.Sprintf("%s has %q, want %q", table, slices.Sorted(maps.Keys(got[table])), slices.Sorted(maps.Keys(names))))
		}
		for name, columns := range names {
			if len(columns) != len(got[table][name]) {
				wrong = append(wrong, fmt.Sprintf("%s: %s has columns %v", table, name, got[table][name]))
			}
			for column, n := range columns {
				check(fmt.Sprintf("%s of %s", column, name), column, got[table][name][column], n)
			}
		}
	}

	cards := eval[map[string]cell](p, `Object.fromEntries([...document.querySelectorAll('[data-card]')].map(c => [c.dataset.card, {Value: +c.querySelector('[data-value]').dataset.value, Text: c.querySelector('[data-value]').innerText.trim()}]))`)
	st := ask[stats](s, "stats")
	var requests, failed int64
	var tokens float64
	all := map[string]int64{}
	for _, r := range ask[rows](s, "rows?prefix=api.&measure=requests&except=api.requests.&"+in).Rows {
		requests += r.Counts["requests"]
		failed += r.Counts["status_5xx"]
		for m, n := range r.Counts {
			all[m] += n
		}
	}
	for _, m := range want["models"] {
		tokens += m["tokens"]
	}
	for name, n := range map[string]float64{
		"requests": float64(requests), "today": float64(st.Today), "active_day": float64(st.Users["user.active.daily"]), "active_month": float64(st.Users["user.active.monthly"]),
		"error_rate": float64(failed) / float64(requests), "tokens": tokens, "p95": p95(all),
	} {
		check("card "+name, name, cards[name], n)
	}
	return wrong
}

// p95 is the 95th percentile of a row with these counts, in milliseconds, as the API
// rounds it.
func p95(counts map[string]int64) float64 {
	return math.Round(float64(store.Row{Counts: counts}.Quantile(0.95))/float64(time.Millisecond/10)) / 10
}
