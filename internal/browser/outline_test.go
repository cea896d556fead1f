package browser

import (
	"testing"
	"time"
)

// stretch is how far a color goes through the last part of a chart's plot, the widest
// of its rows of pixels: 0 … 1.
func (p *tab) stretch(chart, color string, part float64) float64 {
	p.Helper()
	return eval[float64](p, `(() => {
		const c = document.querySelector('[data-chart="`+chart+`"] canvas'), over = document.querySelector('[data-chart="`+chart+`"] .u-over')
		const box = c.getBoundingClientRect(), plot = over.getBoundingClientRect(), scale = c.width / box.width
		const probe = document.createElement('span')
		probe.style.color = 'var(--`+color+`)'
		document.body.append(probe)
		const want = getComputedStyle(probe).color.match(/\d+/g).map(Number)
		probe.remove()
		const from = Math.round((plot.right - box.left - plot.width * `+js(part)+`) * scale), width = Math.floor(plot.width * `+js(part)+` * scale)
		const top = Math.round((plot.top - box.top) * scale), height = Math.round(plot.height * scale)
		const d = c.getContext('2d').getImageData(from, top, width, height).data
		let most = 0
		for (let y = 0; y < height; y++) {
			let first = -1, last = -1
			for (let x = 0; x < width; x++) {
				const i = 4 * (y * width + x)
				if (want.every((v, k) => Math.abs(d[i + k] - v) < 12)) { if (first < 0) first = x; last = x }
			}
			most = Math.max(most, (last - first) / width)
		}
		return most
	})()`)
}

// A step lasts as long as its bucket, the last one too.
func TestOutlineOfTheTimeBeforeEndsWithTheRange(t *testing.T) {
	t.Parallel()
	s := serve(t)
	now := time.Now().UTC()
	var all []batch
	for d := 3; d <= 22; d++ {
		n := int64(100)
		if d == 13 { // the last day of the time before
			n = 300
		}
		all = append(all, batch{now.AddDate(0, 0, -d), map[string]int64{"api.GET /a.requests": n, "api.GET /a.status_2xx": n, "user.ada.requests": n, "llm.small.tokens": n, "user.registrations": 3}})
	}
	all = append(all, batch{now.AddDate(0, 0, -60), map[string]int64{"mail.sent": 1, "api.GET /a.requests": 1}})
	s.past(all...)
	p := open(t)
	p.tall()
	p.prefers("light")
	p.expect("willReadFrequently") // a hint to who reads pixels
	day := func(ago int) string { return now.AddDate(0, 0, -ago).Format(time.DateOnly) }
	p.show(s.url + "?compare=1&from=" + day(12) + "&to=" + day(3))
	for _, chart := range []string{"requests", "tokens"} {
		p.until("the time before", `document.querySelector('[data-chart="`+chart+`"] [data-series="before"]')`)
		if got := p.stretch(chart, "before", 0.1); got < 0.7 {
			t.Errorf("%s: in the last bucket the outline of the time before is %.2f of it wide", chart, got)
		}
	}
	// So is what else is drawn as steps.
	p.click(`[data-chart="active"] [data-series="registrations"]`)
	p.until("registrations", `document.querySelector('[data-chart="active"] [data-series="registrations"]').getAttribute('aria-pressed') === 'true'`)
	p.untilGo("the line of registrations through the last bucket", func() bool { return p.stretch("active", "line-3", 0.1) > 0.7 })
}
