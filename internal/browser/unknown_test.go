package browser

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
)

// legend is the number that the legend of a chart has for a series.
func (p *tab) legend(chart, series string) string {
	p.Helper()
	return eval[string](p, `document.querySelector('[data-chart="`+chart+`"] [data-series="`+series+`"] b')?.innerText ?? ''`)
}

// A zone in which the day has begun an hour or two ago.
func justBegun() string {
	offset := 1 - time.Now().UTC().Hour()
	if offset < -12 {
		offset += 24
	}
	return fmt.Sprintf("Etc/GMT%+d", -offset) // which counts to the west
}

func zone(t *testing.T, name string) *time.Location {
	t.Helper()
	zone, err := time.LoadLocation(name)
	if err != nil {
		t.Fatal(err)
	}
	return zone
}

// In the first quarter of the first day there is no other bucket.
func TestLatencyOfTheRunningBucketAloneIsShown(t *testing.T) {
	t.Parallel()
	s := serveIn(t, zone(t, justBegun()), filepath.Join(t.TempDir(), "usage.db"), nil)
	s.add(map[string]int64{"api.GET /a.requests": 40, "api.GET /a.status_2xx": 40, "api.GET /a.latency_25ms": 40})
	p := open(t)
	p.tall()
	p.show(s.url + "?range=30d")
	p.until("latency", `document.querySelector('[data-chart="latency"] [data-series="p95"]')`)
	if text := eval[string](p, `document.querySelector('[data-chart="latency"] .none:not([hidden])')?.innerText ?? ''`); text != "" {
		t.Errorf("a p95 of %v ms, and the chart says %q", p.card("p95"), text)
	}
	p.show(s.url + "?range=30d&row=routes%3AGET+%2Fa")
	p.until("its history", `document.querySelector('dialog#detail [data-chart="detail"] canvas')`)
	if text := eval[string](p, `document.querySelector('[data-chart="detail-latency"] .none:not([hidden])')?.innerText ?? ''`); text != "" {
		t.Errorf("of the route the chart says %q", text)
	}
}

// Older numbers, and a service's own, may have no status classes.
func TestRequestsWithoutAClassAreRequests(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.add(map[string]int64{"api.GET /a.requests": 40, "api.GET /b.requests": 10, "api.GET /b.status_2xx": 7})
	p := open(t)
	p.show(s.url + "?range=24h")
	if got := p.legend("requests", "2xx") + p.legend("requests", "status_2xx") + " " + p.legend("requests", "unknown"); got != "7 43" {
		t.Errorf("of 50 requests the chart has %s", got)
	}
	p.show(s.url + "?range=24h&row=routes%3AGET+%2Fb")
	p.until("its history", `document.querySelector('dialog#detail [data-chart="detail"] canvas')`)
	if got := p.legend("detail", "unknown"); got != "3" {
		t.Errorf("of the route's 10 requests %q are of no class", got)
	}
}

// Below the first bound nothing is known but that.
func TestFasterThanTheFirstBoundIsSaidSo(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.add(map[string]int64{"api.GET /a.requests": 40, "api.GET /a.status_2xx": 40, "api.GET /a.latency_5ms": 40})
	p := open(t)
	p.tall()
	p.show(s.url + "?range=24h")
	for what, element := range map[string]string{
		"the table": `[data-table="routes"] [data-col="p95"]`, "the card": `[data-card="p95"] [data-value]`, "the chart": `[data-chart="latency"] [data-series="p50"] b`,
	} {
		if text := eval[string](p, `document.querySelector(`+js(element)+`).innerText`); text != "< 5 ms" {
			t.Errorf("%s says %q", what, text)
		}
	}
	send(p, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true})
	p.visit(s.url + "tables.html")
	send(p, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{})
	if text := eval[string](p, `document.querySelector('#routes tbody').innerText`); strings.Count(text, "< 5 ms") != 2 || strings.Contains(text, "4.8") {
		t.Errorf("the plain table says %q", text)
	}
}

// What was asked wrongly is no error of the service, and is seen.
func TestRefusedRequestsHaveAColumn(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.add(map[string]int64{
		"api.(unmatched).requests": 30, "api.(unmatched).status_4xx": 30,
		"api.GET /a.requests": 40, "api.GET /a.status_2xx": 30, "api.GET /a.status_4xx": 8, "api.GET /a.status_5xx": 2,
		"api.GET /b.requests": 50, "api.GET /b.status_2xx": 50,
	})
	p := open(t)
	p.tall()
	p.show(s.url + "?range=24h")
	for route, want := range map[string]string{"(unmatched)": "100% 0%", "GET /a": "20% 5%", "GET /b": "0% 0%"} {
		row := `[data-table="routes"] tr[data-name=` + js(route) + `]`
		if got := eval[string](p, `['refused', 'errors'].map(c => document.querySelector(`+js(row)+` + ' [data-col=' + c + ']')?.innerText).join(' ')`); got != want {
			t.Errorf("%s has 4xx and errors of %s, want %s", route, got, want)
		}
	}
	p.click(`[data-table="routes"] th button[data-sort="refused"]`)
	p.until("sorted", `document.querySelector('[data-table="routes"] th button[data-sort="refused"]').closest('th').ariaSort === 'descending'`)
	p.settle()
	// As with errors: only those that have any, the most of them first.
	if rows := p.rows("routes"); len(rows) != 2 || rows[0] != "(unmatched)" {
		t.Errorf("the most refused are %q", rows)
	}
	p.narrow()
	p.fits()
}

// Another Intl than the server has: it does not know the store's zone, or has other
// rules for it.
const (
	unknownZone = `(() => {
		const Format = Intl.DateTimeFormat, locale = Date.prototype.toLocaleString
		const check = (o) => { if (o?.timeZone === 'Asia/Kathmandu') throw new RangeError('Invalid time zone specified: Asia/Kathmandu') }
		Intl.DateTimeFormat = function (l, o) { check(o); return new Format(l, o) }
		Date.prototype.toLocaleString = function (l, o) { check(o); return locale.call(this, l, o) }
	})()`
	otherRules = `(() => {
		const Format = Intl.DateTimeFormat, locale = Date.prototype.toLocaleString
		const other = (o) => o?.timeZone === 'Asia/Kathmandu' ? {...o, timeZone: 'America/Lima'} : o
		Intl.DateTimeFormat = function (l, o) { return new Format(l, other(o)) }
		Date.prototype.toLocaleString = function (l, o) { return locale.call(this, l, other(o)) }
	})()`
)

// What is written as a day is the server's day, whatever the browser knows of its zone.
func TestDaysAreTheStoresWhateverTheBrowserKnows(t *testing.T) {
	t.Parallel()
	kathmandu := zone(t, "Asia/Kathmandu")
	s := serveIn(t, kathmandu, filepath.Join(t.TempDir(), "usage.db"), nil)
	s.add(map[string]int64{"api.GET /a.requests": 40, "user.ada.requests": 4})
	today := time.Now().In(kathmandu)
	s.past(batch{today.AddDate(0, 0, -3), map[string]int64{"api.GET /a.requests": 7}})
	for name, script := range map[string]string{"the browser does not know it": unknownZone, "the browser has other rules": otherRules, "both agree": ""} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := open(t)
			if script != "" {
				p.prepare(script)
			}
			p.show(s.url + "?range=30d")
			first, last := today.AddDate(0, 0, -29).Format("Jan 2"), today.Format("Jan 2")
			if span := eval[string](p, `document.querySelector('[data-span]').innerText`); !strings.Contains(span, first) || !strings.Contains(span, last) {
				t.Errorf("the range is %q, want %s to %s", span, first, last)
			}
			if text := eval[string](p, `document.querySelector('[data-zone]').innerText`); !strings.Contains(text, "Kathmandu") {
				t.Errorf("the zone is %q", text)
			}
			eval[chromedp.Void](p, `void document.querySelector('[data-chart="requests"] .plot').dispatchEvent(new KeyboardEvent('keydown', {key: 'End'}))`)
			p.until("the last day's numbers", `document.querySelector('[data-chart="requests"] .when').innerText`)
			if when := eval[string](p, `document.querySelector('[data-chart="requests"] .when').innerText`); !strings.Contains(when, last) {
				t.Errorf("the last day is %q, want %s", when, last)
			}

			// An hour of today, as a drag over the chart asks for it.
			from := time.Date(today.Year(), today.Month(), today.Day(), 0, 0, 0, 0, kathmandu).UTC()
			p.show(s.url + "?from=" + from.Format("2006-01-02T15:04:05Z") + "&to=" + from.Add(time.Hour).Format("2006-01-02T15:04:05Z"))
			for _, input := range []string{"from", "to"} {
				if date := eval[string](p, `document.querySelector('#custom [name=`+input+`]').value`); date != today.Format(time.DateOnly) {
					t.Errorf("%s is %q, want %s", input, date, today.Format(time.DateOnly))
				}
			}
			if span := eval[string](p, `document.querySelector('[data-span]').innerText`); !strings.Contains(span, last) || !strings.Contains(span, "12:00") {
				t.Errorf("the hour is %q, want midnight of %s", span, last)
			}
		})
	}
}
