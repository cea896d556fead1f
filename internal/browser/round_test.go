package browser

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/cdproto/browser"

	"github.com/usagekit/usagekit/dashboard"
	"github.com/usagekit/usagekit/internal/dbtest"
)

// asked is what of sent are the page's questions.
func (p *tab) asked() (paths []string) {
	for _, r := range p.sent() {
		if _, path, ok := strings.Cut(r.url.Path, "/api/"); ok {
			paths = append(paths, fmt.Sprintf("%s %d %s", path, r.status, r.url.RawQuery))
		}
	}
	return paths
}

// pause stops what comes by itself.
func (p *tab) pause() {
	p.Helper()
	eval[any](p, `void document.querySelector('button[data-action=live]').click()`) // a dialog may stand before it
	p.until("not live", `document.querySelector('button[data-action=live]').getAttribute('aria-pressed') === 'false'`)
	p.settle()
}

// All that is on screen is asked for at once, and nothing that is the same is sent.
func TestARoundIsOneRequest(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.week()
	p := open(t)
	p.tall()
	for _, query := range []string{"?range=today", "?range=24h&compare=1", "?range=30d", "?range=24h&row=users%3Auser.ada.requests", "?range=7d&row=routes%3APOST+%2Fnovels&q.routes=novels"} {
		p.show(s.url + query)
		p.pause()
		p.refresh() // which may ask for what it has learned to ask
		p.sent()
		// On a busy machine some of it may be slow, and come by itself.
		p.untilGo("a round of one request", func() bool {
			p.refresh()
			asked := p.asked()
			if n := len(slices.DeleteFunc(slices.Clone(asked), func(a string) bool { return !strings.HasPrefix(a, "batch ") })); n != 1 {
				t.Errorf("%s: a round asked for %q", query, asked)
			}
			if slices.Sort(asked); len(slices.Compact(slices.Clone(asked))) < len(asked) {
				t.Errorf("%s: a round asked twice for something: %q", query, asked)
			}
			return len(asked) == 1
		})
	}
}

// What is slow comes by itself, later, and the rest is not kept waiting.
func TestASlowPartComesByItself(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.week()
	slow := func(ctx context.Context, _ []string) (map[string]string, error) {
		<-ctx.Done() // after 2 s
		return nil, ctx.Err()
	}
	url := s.mount("/usage/", dashboard.New(s.store, dashboard.Config{Auth: dashboard.Public, Users: slow})) + "/usage/"
	p := open(t)
	p.tall()
	p.show(url + "?range=30d")
	p.until("the users", `document.querySelectorAll('[data-table="users"] tbody tr').length === 3`)
	asked := p.asked()
	if !slices.ContainsFunc(asked, func(a string) bool { return strings.HasPrefix(a, "batch") }) || !slices.ContainsFunc(asked, func(a string) bool { return strings.HasPrefix(a, "series") }) {
		t.Errorf("it asked for %q: want a batch, and the users' series alone", asked)
	}
}

// A page that is opened behind another asks once it is looked at.
func TestAHiddenPageAsksNothing(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.add(map[string]int64{"api.GET /a.requests": 3})
	p := open(t)
	p.window(browser.WindowStateMinimized)
	p.visit(s.url)
	p.until("hidden", `document.visibilityState === 'hidden'`)
	eval[any](p, `void document.querySelector('[data-range="7d"]').click()`)
	eval[any](p, `void document.dispatchEvent(new Event('visibilitychange'))`)
	hidden := time.Now()
	p.untilGo("a refresh's time is over", func() bool { return time.Since(hidden) > 8*time.Second })
	if asked := p.asked(); len(asked) > 0 {
		t.Errorf("hidden, the page asked for %q", asked)
	}
	p.window(browser.WindowStateNormal)
	p.settle()
	p.until("numbers", `document.querySelector('[data-card="requests"] [data-value]').dataset.value === '3'`)
}

// Cards that show the same number show it of the same moment.
func TestCardsOfOneNumberAgree(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.add(map[string]int64{"api.GET /a.requests": 3, "api.GET /a.status_2xx": 3, "user.0.requests": 1})
	// Between two reads something is counted, always.
	s.url = s.mount("/usage/", dashboard.New(s.store, dashboard.Config{Auth: dashboard.Public, MaxAge: time.Nanosecond})) + "/usage/"
	var stop atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; !stop.Load(); i++ {
			s.store.Add("api.GET /a.requests", 1)
			s.store.Add("api.GET /a.status_2xx", 1)
			s.store.Add(fmt.Sprintf("user.%d.requests", i), 1)
			_ = s.store.Flush(t.Context())
		}
	}()
	defer func() { stop.Store(true); <-done }()
	p := open(t)
	p.tall()
	for _, in := range []string{"today", "30d"} {
		p.sent()
		p.show(s.url + "?range=" + in)
		for _, r := range p.sent() { // of two questions, even in one batch, the answers may differ
			if in == "today" && slices.Contains(r.url.Query()["q"], "series?range=2d&name=api.requests.total") {
				t.Error("today's requests are asked for twice")
			}
		}
		for range 5 {
			p.refresh()
			// What the page has drawn is of one moment: so is this.
			got := eval[map[string]string](p, `(() => {
				const card = (c) => document.querySelector('[data-card="' + c + '"] [data-value]').dataset.value
				const plot = document.querySelector('[data-chart="active"] .plot')
				plot.dispatchEvent(new KeyboardEvent('keydown', {key: 'End'}))
				return {requests: card('requests'), today: card('today'), users: card('active_day')}
			})()`)
			last := eval[string](p, `document.querySelector('[data-chart="active"] [data-series="active"] b').innerText`)
			if in == "today" && got["requests"] != got["today"] {
				t.Errorf("%s requests in all of today, and %s today", got["requests"], got["today"])
			}
			if again := eval[string](p, `document.querySelector('[data-card="active_day"] [data-value]').dataset.value`); last != got["users"] && again == got["users"] {
				t.Errorf("%s: %s active users today, and %s in the chart", in, got["users"], last)
			}
		}
	}
}

// shownBanners are the kinds of those that are to be seen.
func (p *tab) shownBanners() []string {
	p.Helper()
	return eval[[]string](p, `[...document.querySelectorAll('.banner')].filter(b => b.checkVisibility()).map(b => b.dataset.kind)`)
}

// The database is away: that is one trouble, however many notice it.
func TestOneCauseIsOneBanner(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.add(map[string]int64{"api.GET /a.requests": 12})
	p := open(t)
	p.expect("503")
	p.show(s.url + "?range=24h")
	s.faults.Set(away)
	s.store.Inc("feature.a.b") // which cannot be written
	p.untilGo("a banner", func() bool { p.refresh(); return p.banner("stale") != "" })
	p.untilGo("health knows of it", func() bool { return s.store.Stats().Err != nil })
	for range 3 {
		p.refresh()
		if kinds := p.shownBanners(); !slices.Equal(kinds, []string{"stale"}) {
			t.Errorf("one cause has the banners %q", kinds)
		}
	}
	if text := p.banner("stale"); !strings.Contains(text, "does not answer") || strings.Contains(text, "knows") {
		t.Errorf("it says %q", text)
	}
	s.faults.Set(nil)
	p.untilGo("no banner", func() bool { p.refresh(); return len(p.shownBanners()) == 0 })
	s.add(map[string]int64{"usagekit.counts.dropped": 3})
	p.untilGo("a banner", func() bool { p.refresh(); return p.banner("dropped") != "" })
	if text := p.banner("dropped"); strings.Contains(text, "knows") {
		t.Errorf("it says %q", text)
	}
}

// A database that takes long is not called a dead one.
func TestASlowDatabaseIsSaidToBeSlow(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.add(map[string]int64{"api.GET /a.requests": 12})
	p := open(t)
	p.expect("503")
	p.show(s.url + "?range=24h")
	s.faults.Set(func(op dbtest.Op) dbtest.Fault {
		if op.Kind == dbtest.Query { // not what writes
			time.Sleep(2 * time.Second)
		}
		return dbtest.Fault{}
	})
	p.untilGo("a banner", func() bool { p.refresh(); return p.banner("stale") != "" })
	for range 3 {
		if text := p.banner("stale"); strings.Contains(text, "does not answer") || !strings.Contains(text, "takes long") {
			t.Errorf("a slow database has the banner %q", text)
		}
		p.refresh()
	}
	s.faults.Set(nil)
	p.untilGo("no banner", func() bool { p.refresh(); return p.banner("stale") == "" })
}
