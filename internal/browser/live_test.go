package browser

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/browser"
	"github.com/chromedp/chromedp"

	"github.com/usagekit/usagekit/internal/counter"
	"github.com/usagekit/usagekit/internal/dbtest"
)

// banner is what a banner says; "" when it is not there.
func (p *tab) banner(kind string) string {
	p.Helper()
	return eval[string](p, `[...document.querySelectorAll('.banner[data-kind="`+kind+`"]')].filter(b => b.checkVisibility()).map(b => b.innerText).join('\n')`)
}

// window sets the state of the tab's window: minimized, its page is hidden.
func (p *tab) window(state browser.WindowState) {
	p.Helper()
	w := send(p, browser.GetWindowForTarget, browser.GetWindowForTargetParams{})
	_, err := chromedp.CallBrowser(p.ctx, browser.SetWindowBounds, browser.SetWindowBoundsParams{WindowID: w.WindowID, Bounds: &browser.Bounds{WindowState: state}})
	if err != nil {
		p.Fatal(err)
	}
}

func TestLive(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.add(map[string]int64{"feature.first.seen": 1, "api.GET /a.requests": 1})
	p := open(t)
	p.show(s.url + "?range=24h")
	if fresh := eval[string](p, `document.querySelector('[data-fresh]').innerText`); fresh == "" {
		t.Error("it does not say how fresh it is")
	}
	s.add(map[string]int64{"feature.second.seen": 5})
	p.until("the second by itself", `document.querySelector('[data-table="features"] tr[data-name*="second"]')`)

	p.window(browser.WindowStateMinimized)
	p.until("hidden", `document.visibilityState === 'hidden'`)
	s.add(map[string]int64{"feature.third.seen": 7})
	p.sent()
	hidden := time.Now()
	p.untilGo("a refresh's time is over", func() bool { return time.Since(hidden) > 8*time.Second })
	if sent := p.sent(); len(sent) > 1 { // one may have been under way
		t.Errorf("hidden, the page asked for %d answers", len(sent))
	}
	p.window(browser.WindowStateNormal)
	shown := time.Now()
	p.until("the third once it is seen again", `document.querySelector('[data-table="features"] tr[data-name*="third"]')`)
	t.Logf("seen again, it is up to date after %v", time.Since(shown).Round(10*time.Millisecond))

	p.click(`button[data-action=live]`)
	p.until("not live", `document.querySelector('button[data-action=live]').getAttribute('aria-pressed') === 'false'`)
	p.settle()
	p.sent()
	still := time.Now()
	p.untilGo("a refresh's time is over", func() bool { return time.Since(still) > 8*time.Second })
	if sent := p.sent(); len(sent) > 0 {
		t.Errorf("not live, the page asked for %d answers", len(sent))
	}
	p.click(`button[data-action=live]`)
	s.add(map[string]int64{"feature.fourth.seen": 9})
	p.until("the fourth, live again", `document.querySelector('[data-table="features"] tr[data-name*="fourth"]')`)
}

// The database goes away, and comes back.
func TestStale(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.add(map[string]int64{"api.GET /a.requests": 12, "feature.f.used": 3})
	p := open(t)
	p.expect("503") // the answers that were never read before
	p.show(s.url + "?range=24h")
	if text := p.banner("stale"); text != "" {
		t.Errorf("a banner on a good day: %q", text)
	}
	s.faults.Set(away)
	p.until("the banner", `[...document.querySelectorAll('.banner[data-kind="stale"]')].some(b => b.checkVisibility() && b.innerText)`)
	t.Logf("%q", p.banner("stale"))
	if n := p.card("requests"); n != 12 {
		t.Errorf("%v requests, and 12 before the database went away", n)
	}
	p.fits()
	s.faults.Set(nil)
	s.add(map[string]int64{"api.GET /a.requests": 1})
	p.until("no banner", `![...document.querySelectorAll('.banner[data-kind="stale"]')].some(b => b.checkVisibility())`)
	p.until("the new number", `document.querySelector('[data-card="requests"] [data-value]').dataset.value === '13'`)
}

func TestDropped(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.add(map[string]int64{"api.GET /a.requests": 12, "usagekit.counts.dropped": 34567})
	p := open(t)
	p.show(s.url + "?range=24h")
	if text := p.banner("dropped"); !strings.Contains(text, "34,567") {
		t.Errorf("34,567 were dropped, and the banner says %q", text)
	}
	p.axe("a page with a banner")
	p.narrow()
	p.fits()
}

// What reached the database is not folded: its writer waits for a later release.
func TestIncomplete(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.add(map[string]int64{"api.GET /a.requests": 12})
	opened := time.Now().Add(-10 * time.Minute).UnixMilli()
	payload := []byte{2, 'n', 'e', 'w'}
	sum := sha256.Sum256(payload)
	payload = append(payload, sum[:counter.SumSize]...)
	if _, err := s.db.ExecContext(t.Context(), `INSERT INTO usage_writers (writer, seq, sum, seen) VALUES ('later', 0, x'', ?)`, time.Now().UnixMilli()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.db.ExecContext(t.Context(), `INSERT INTO usage_inbox (writer, seq, opened, payload) VALUES ('later', 1, ?, ?)`, opened, payload); err != nil {
		t.Fatal(err)
	}
	if _, err := s.db.ExecContext(t.Context(), `UPDATE usage_meta SET value = ? WHERE name = 'folded'`, fmt.Sprint(opened)); err != nil {
		t.Fatal(err)
	}
	p := open(t)
	p.show(s.url + "?range=24h")
	p.until("the banner", `[...document.querySelectorAll('.banner[data-kind="incomplete"]')].some(b => b.checkVisibility() && b.innerText)`)
	t.Logf("%q", p.banner("incomplete"))
}

// A store that has counted nothing tells a newcomer the next step, and shows what
// comes without a reload.
func TestEmpty(t *testing.T) {
	t.Parallel()
	s := serve(t)
	p := open(t)
	p.visit(s.url)
	p.until("empty", `document.body.dataset.state === 'empty'`)
	text := eval[string](p, `document.querySelector('main').innerText`)
	for _, want := range []string{"middleware.New", "Inc("} {
		if !strings.Contains(text, want) {
			t.Errorf("the next step has no %s: %s", want, text)
		}
	}
	if eval[bool](p, `[...document.querySelectorAll('[data-chart], [data-table]:not([data-table=other])')].some(e => e.checkVisibility())`) {
		t.Error("there are charts or tables of nothing")
	}
	p.narrow()
	p.fits()
	p.axe("an empty page")
	s.add(map[string]int64{"api.GET /a.requests": 3})
	p.until("numbers", `document.body.dataset.state === 'ready' && document.querySelector('[data-card="requests"] [data-value]').dataset.value === '3'`)
	if eval[bool](p, `document.querySelector('#empty').checkVisibility()`) {
		t.Error("the empty page stays")
	}
}

// The database is not there from the start: the page says what to do, and goes on by
// itself once it is.
func TestError(t *testing.T) {
	t.Parallel()
	s := serveFile(t, filepath.Join(t.TempDir(), "usage.db"), away)
	p := open(t)
	p.expect("503")
	p.visit(s.url)
	p.until("an error", `document.body.dataset.state === 'error'`)
	text := eval[string](p, `document.body.innerText`)
	if !strings.Contains(text, "database") || !strings.Contains(text, "log") {
		t.Errorf("it does not say what to do: %s", text)
	}
	p.fits()
	p.axe("a page without a database")
	s.faults.Set(nil)
	s.add(map[string]int64{"api.GET /a.requests": 3})
	p.until("numbers", `document.body.dataset.state === 'ready' && document.querySelector('[data-card="requests"] [data-value]').dataset.value === '3'`)
	if text := p.banner("trouble"); text != "" {
		t.Errorf("and still: %q", text)
	}
}

// away is a database that is not there.
func away(dbtest.Op) dbtest.Fault { return dbtest.Fault{Err: errors.New("no route to the disk")} }
