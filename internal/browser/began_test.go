package browser

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/usagekit/usagekit/dashboard"
	"github.com/usagekit/usagekit/store"
)

// What was before counting began is not known, and is not drawn as nothing.
func TestBeforeCountingBeganNothingIsDrawn(t *testing.T) {
	t.Parallel()
	s := serve(t)
	now := time.Now().UTC()
	var all []batch
	for d := 0; d <= 12; d++ { // counting began within the time before
		all = append(all, batch{now.AddDate(0, 0, -d), map[string]int64{"api.GET /a.requests": 100, "api.GET /a.status_2xx": 100, "llm.small.tokens": 50, "user.ada.requests": 5}})
	}
	s.past(all...)
	p := open(t)
	p.tall()
	p.prefers("light")
	p.expect("willReadFrequently")
	day := func(ago int) string { return now.AddDate(0, 0, -ago).Format(time.DateOnly) }
	at := func(chart string, bucket int) string { // what the legend says of the time before in a bucket
		eval[any](p, `void document.querySelector('[data-chart="`+chart+`"] .plot').dispatchEvent(new KeyboardEvent('keydown', {key: 'Home'}))`)
		for range bucket {
			eval[any](p, `void document.querySelector('[data-chart="`+chart+`"] .plot').dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight'}))`)
		}
		return p.legend(chart, "before")
	}
	// 9 days, and the 9 before: of those the first 5 were before counting began.
	p.show(s.url + "?compare=1&from=" + day(8) + "&to=" + day(0))
	for _, chart := range []string{"requests", "tokens"} {
		p.until("the time before", `document.querySelector('[data-chart="`+chart+`"] [data-series="before"]')`)
		if first, last := at(chart, 0), at(chart, 200); first != "–" || last == "–" {
			t.Errorf("%s before, in the first bucket %q, in the last %q: want – and a number", chart, first, last)
		}
	}
	if text := eval[string](p, `document.querySelector('[data-card="requests"] [data-change]').innerText`); text != "" {
		t.Errorf("compared with half a time: %q", text)
	}
	if text := eval[string](p, `document.querySelector('[data-span]').parentElement.innerText`); !strings.Contains(text, now.AddDate(0, 0, -12).Format("Jan 2")) {
		t.Errorf("it does not say since when there are counts: %q", text)
	}

	// All of it was before: there is nothing to compare with, and that is said.
	p.show(s.url + "?compare=1&range=30d")
	p.until("said", `document.querySelector('[data-span]').parentElement.innerText.includes('Counting began')`)
	if eval[bool](p, `!!document.querySelector('[data-series="before"]')`) {
		t.Error("the time before counting began is drawn")
	}
	// Nor is what is left of the range.
	eval[any](p, `void document.querySelector('[data-chart="requests"] .plot').dispatchEvent(new KeyboardEvent('keydown', {key: 'Home'}))`)
	p.until("the first day", `document.querySelector('[data-chart="requests"] .when').innerText`)
	if got := p.legend("requests", "status_2xx"); got != "–" {
		t.Errorf("29 days ago there were %q requests: nobody counted then", got)
	}
	if got := eval[string](p, `document.querySelector('[data-card="active_month"] .spark path:last-child').getAttribute('d')`); strings.Count(got, "L") > 1 {
		t.Errorf("active users of 13 months, of which one was counted: %s", got)
	}
}

// Quotas are kept in the steps of their windows: they are there in every range.
func TestQuotasAreInEveryRange(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.add(map[string]int64{"api.GET /a.requests": 7, "quota.42.refused": 3, "mail.sent": 1})
	for name, step := range map[string]store.Step{"quota.42.daily": store.Day, "quota.42.hourly": store.Hour, "quota.42.monthly": store.Month} {
		if _, _, ok, err := s.store.Take(t.Context(), name, 5, 10, step); err != nil || !ok {
			t.Fatal(ok, err)
		}
	}
	p := open(t)
	p.tall()
	for _, r := range []string{"today", "24h", "7d", "30d", "90d", "13mo"} {
		p.show(s.url + "?range=" + r)
		got := fmt.Sprint(p.rows("quotas"), p.column("quotas", "n"))
		if want := "[quota.42.daily quota.42.hourly quota.42.monthly quota.42.refused] [5 5 5 3]"; got != want {
			t.Errorf("%s has the quotas %s, want %s", r, got, want)
		}
		if other := p.rows("other"); fmt.Sprint(other) != "[mail.sent]" {
			t.Errorf("%s: the other names are %q", r, other)
		}
	}
}

// What was never used does not stand there empty; it is named once, with how to use it.
// Once it is, it comes by itself, and stays where it is not in the range.
func TestWhatWasNeverUsedDoesNotStandEmpty(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.add(map[string]int64{"api.GET /a.requests": 7, "api.GET /a.status_2xx": 7, "feature.a.b": 2})
	p := open(t)
	p.tall()
	p.show(s.url + "?range=24h")
	seen := func() []string {
		return eval[[]string](p, `[...document.querySelectorAll('[data-table], [data-chart], [data-card]')].filter(e => e.checkVisibility()).map(e => e.dataset.table ?? e.dataset.chart ?? e.dataset.card)`)
	}
	p.untilGo("only what is used", func() bool {
		return fmt.Sprint(seen()) == "[requests today error_rate p95 requests latency routes features]"
	})
	text := eval[string](p, `(() => { document.querySelector('#unused').open = true; return document.querySelector('#unused').innerText })()`)
	for _, want := range []string{"Areas", "Users", "Models", "Errors", "Quotas", "llm.New", "middleware.Config"} {
		if !strings.Contains(text, want) {
			t.Errorf("what is not used yet has no %s: %s", want, text)
		}
	}
	p.axe("a page of few sections")
	p.narrow()
	p.fits()
	p.tall()
	s.past(batch{time.Now().AddDate(0, 0, -20), map[string]int64{"llm.small.tokens": 40, "llm.small.calls": 2}})
	p.untilGo("the models, used but not in the range", func() bool {
		p.refresh()
		return eval[bool](p, `['[data-table="models"]', '[data-chart="tokens"]', '[data-card="tokens"]'].every(e => document.querySelector(e).checkVisibility())`)
	})
	p.until("said to be none", `document.querySelector('[data-chart="tokens"] .none').checkVisibility()`)
	s.add(map[string]int64{"api.requests.novels": 3})
	p.untilGo("the areas", func() bool { p.refresh(); return fmt.Sprint(p.rows("areas")) == "[api.requests.novels]" })
	if text := eval[string](p, `document.querySelector('#unused').innerText`); strings.Contains(text, "Areas") || strings.Contains(text, "Models") {
		t.Errorf("what is used is named still: %s", text)
	}

	// The plain tables do the same.
	h := s.mount("/usage/", dashboard.New(s.store, dashboard.Config{Auth: dashboard.Public, MaxAge: time.Nanosecond})) + "/usage/tables.html"
	p = open(t)
	p.visit(h)
	if ids := eval[[]string](p, `[...document.querySelectorAll('main section')].map(e => e.id)`); fmt.Sprint(ids) != "[routes areas features llm other unused]" {
		t.Errorf("the plain tables are %q", ids)
	}
}
