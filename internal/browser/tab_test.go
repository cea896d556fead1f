package browser

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/chromedp/cdproto/audits"
	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"
)

// patience is how long a page may take for anything, on a busy machine.
const patience = 3 * time.Minute

// tab is a tab of the browser, and the person in front of it.
type tab struct {
	*testing.T
	*watch
	ctx context.Context
}

// open opens an empty tab, 1280 pixels wide. It is closed when the test ends, which
// fails if the watch has complaints.
func open(t *testing.T) *tab {
	t.Helper()
	if chromium == nil {
		t.Skip("no Chromium")
	}
	w := newWatch()
	ctx, cancel := chromedp.NewContext(chromium, chromedp.WithListener(w.event))
	t.Cleanup(cancel)
	p := &tab{t, w, ctx}
	if err := chromedp.Do(ctx); err != nil { // opens the tab, for as long as ctx
		t.Fatal(err)
	}
	p.do(chromedp.EmulateViewport(1280, 900))
	send(p, audits.Enable, cdp.Empty{})
	go p.dismiss()
	t.Cleanup(func() {
		for _, c := range p.complaints() {
			t.Error(c)
		}
	})
	return p
}

// dismiss closes what alert and its like open, or the page would stand still.
func (p *tab) dismiss() {
	for {
		select {
		case <-p.dialogs:
			_, _ = chromedp.Call(p.ctx, page.HandleJavaScriptDialog, page.HandleJavaScriptDialogParams{})
		case <-p.ctx.Done():
			return
		}
	}
}

// soon is the tab's context for one step, so that none hangs.
func (p *tab) soon() (context.Context, context.CancelFunc) {
	return context.WithTimeout(p.ctx, patience)
}

func (p *tab) do(steps ...chromedp.Action[chromedp.Void]) {
	p.Helper()
	ctx, cancel := p.soon()
	defer cancel()
	if err := chromedp.Do(ctx, steps...); err != nil {
		p.Fatal(err)
	}
}

// send runs a command of the browser's protocol in p.
func send[P, R any](p *tab, command cdp.Command[P, R], params P) R {
	p.Helper()
	ctx, cancel := p.soon()
	defer cancel()
	result, err := chromedp.Call(ctx, command, params)
	if err != nil {
		p.Fatalf("%s: %v", command.Method, err)
	}
	return result
}

// eval returns what a JavaScript expression gives in the page, or the promise that
// it is.
func eval[T any](p *tab, expression string) T {
	p.Helper()
	value, err := try[T](p, expression)
	if err != nil {
		p.Fatalf("%.500s: %v", expression, err)
	}
	return value
}

// try is eval of what may fail.
func try[T any](p *tab, expression string) (T, error) {
	ctx, cancel := p.soon()
	defer cancel()
	return chromedp.Run(ctx, chromedp.Evaluate[T](expression, chromedp.EvalAwaitPromise))
}

// js is a Go value as one of JavaScript.
func js[T any](value T) string {
	text, err := json.Marshal(value)
	if err != nil {
		panic(err)
	}
	return string(text)
}

// until waits until a JavaScript expression is true in the page, even if that is
// loaded anew meanwhile.
func (p *tab) until(what, expression string) {
	p.Helper()
	p.untilGo(what+": "+expression, func() bool {
		done, err := try[bool](p, `!!(`+expression+`)`)
		return done && err == nil
	})
}

// untilGo is until of a condition in Go.
func (p *tab) untilGo(what string, condition func() bool) {
	p.Helper()
	for end := time.Now().Add(patience); !condition(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			text, _ := try[string](p, `location + ', ' + document.body.dataset.state + '\n' + document.body.innerText.replace(/\s+/g, ' ').slice(0, 1000)`)
			p.Fatalf("after %v not yet: %s\n%v\n%s", patience, what, p.complaints(), text)
		}
	}
}

// visit loads the page at a URL.
func (p *tab) visit(url string) {
	p.Helper()
	p.do(chromedp.Navigate(url))
}

// settle waits until the page shows what its URL asks for.
func (p *tab) settle() {
	p.Helper()
	p.until("ready", `document.body.dataset.state === 'ready' && ![...document.querySelectorAll('[aria-busy=true]')].some(e => {
		const r = e.getBoundingClientRect() // what is not on screen is not loaded
		return e.checkVisibility() && r.bottom > 0 && r.top < innerHeight
	})`)
}

// show loads the page at a URL and waits until it shows what that asks for.
func (p *tab) show(url string) {
	p.Helper()
	p.visit(url)
	p.settle()
}

// refresh has the page read everything anew, and waits for it.
func (p *tab) refresh() {
	p.Helper()
	n := eval[int](p, `+document.body.dataset.refreshes`)
	eval[chromedp.Void](p, `void document.dispatchEvent(new Event('usagekit:refresh'))`)
	p.until("refreshed", fmt.Sprintf(`+document.body.dataset.refreshes > %d && document.body.dataset.state !== 'loading'`, n))
}

// place is a rectangle of the screen.
type place struct{ X, Y, W, H float64 }

// find scrolls to the element that a selector finds, and returns where that is. It
// must be seen there, and not something else in front of it.
func (p *tab) find(selector string) place {
	p.Helper()
	p.until("there", `document.querySelector(`+js(selector)+`)`)
	var at place
	p.untilGo("in sight: "+selector, func() bool {
		found, err := try[*place](p, `(() => {
			const e = document.querySelector(`+js(selector)+`)
			if (!e) return null
			const box = e.checkVisibility() ? e : e.closest('section') ?? e // which may not be loaded yet
			box.scrollIntoView({block: 'center', inline: 'center', behavior: 'instant'})
			const r = e.getBoundingClientRect()
			const seen = document.elementFromPoint(r.x + r.width / 2, r.y + r.height / 2)
			return seen && (e.contains(seen) || e.labels && [...e.labels].some(l => l.contains(seen))) ? {X: r.x, Y: r.y, W: r.width, H: r.height} : null
		})()`)
		if err != nil || found == nil {
			return false
		}
		at = *found
		return true
	})
	return at
}

// click clicks on what a selector finds. What has moved away meanwhile, as below a part
// of the page that was slow, it clicks on again: a click on anything else does nothing.
func (p *tab) click(selector string) {
	p.Helper()
	p.untilGo("clicked: "+selector, func() bool {
		at := p.find(selector)
		eval[chromedp.Void](p, `void addEventListener('click', window.aims = event => {
			const e = document.querySelector(`+js(selector)+`)
			window.missed = Boolean(e) && !e.contains(event.target) && ![...e.labels ?? []].some(l => l.contains(event.target))
			if (window.missed) { event.stopImmediatePropagation(); event.preventDefault() }
		}, {capture: true, once: true})`)
		p.do(chromedp.MouseClickXY(at.X+at.W/2, at.Y+at.H/2))
		missed, err := try[bool](p, `removeEventListener('click', window.aims, {capture: true}), window.missed === true`)
		return err != nil || !missed // else there is another page now
	})
}

// drag draws from one part of what a selector finds to another: 0 is its left, 1
// its right end.
func (p *tab) drag(selector string, from, to float64) {
	p.Helper()
	at := p.find(selector)
	y := at.Y + at.H/2
	p.do(
		chromedp.MouseEvent(chromedp.MouseMoved, at.X+at.W*from, y),
		chromedp.MouseEvent(chromedp.MousePressed, at.X+at.W*from, y, chromedp.ButtonLeft, chromedp.ClickCount(1)),
	)
	for i := 1.; i <= 10; i++ {
		p.do(chromedp.MouseEvent(chromedp.MouseMoved, at.X+at.W*(from+(to-from)*i/10), y, chromedp.ButtonLeft))
	}
	p.do(chromedp.MouseEvent(chromedp.MouseReleased, at.X+at.W*to, y, chromedp.ButtonLeft, chromedp.ClickCount(1)))
}

// press presses keys, one after the other, wherever the focus is.
func (p *tab) press(keys string) {
	p.Helper()
	p.do(chromedp.KeyEvent(keys))
}

// write clicks into an input and replaces what is in it.
func (p *tab) write(selector, text string) {
	p.Helper()
	p.click(selector)
	eval[chromedp.Void](p, `void document.querySelector(`+js(selector)+`).select()`)
	if text == "" {
		p.press("\b")
		return
	}
	p.press(text)
}

// choose sets an input of a date, as its picker does.
func (p *tab) choose(selector, date string) {
	p.Helper()
	p.find(selector)
	eval[chromedp.Void](p, `(() => {
		const e = document.querySelector(`+js(selector)+`)
		e.value = `+js(date)+`
		e.dispatchEvent(new Event('input', {bubbles: true}))
		e.dispatchEvent(new Event('change', {bubbles: true}))
	})()`)
}

// location is the URL's query, decoded.
func (p *tab) location() map[string]string {
	p.Helper()
	return eval[map[string]string](p, `Object.fromEntries(new URL(location).searchParams)`)
}

// prepare has every document of the tab begin with a script, which the page's
// policy does not concern.
func (p *tab) prepare(script string) {
	p.Helper()
	send(p, page.AddScriptToEvaluateOnNewDocument, page.AddScriptToEvaluateOnNewDocumentParams{Source: script})
}

// tall makes the tab's window so tall that all of the page is on screen: what is not is
// not loaded.
func (p *tab) tall() {
	p.Helper()
	p.do(chromedp.EmulateViewport(1280, 2600))
}

// narrow makes the tab one of a phone.
func (p *tab) narrow() {
	p.Helper()
	p.do(chromedp.EmulateViewport(360, 740, chromedp.EmulateMobile, chromedp.EmulateScale(2)))
}

// fits fails if the page is wider than the window.
func (p *tab) fits() {
	p.Helper()
	wide := eval[[]string](p, `(() => {
		const width = document.documentElement.clientWidth
		if (document.scrollingElement.scrollWidth <= innerWidth) return []
		const out = []
		for (const e of document.body.querySelectorAll('*')) {
			if (e.getBoundingClientRect().right > width + 1) out.push(e.tagName + '.' + e.className + ' to ' + e.getBoundingClientRect().right)
		}
		return ['the page is ' + document.scrollingElement.scrollWidth + ' wide in ' + innerWidth, ...out.slice(0, 10)]
	})()`)
	for _, w := range wide {
		p.Error(w)
	}
}

// prefers sets the colors that the person likes: light or dark.
func (p *tab) prefers(scheme string) {
	p.Helper()
	send(p, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}},
	})
}
