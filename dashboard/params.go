package dashboard

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/usagekit/usagekit/store"
)

// paramError says what is wrong with a request that no Query can be made of, or
// whose answer would be too long.
type paramError string

func (e paramError) Error() string { return "dashboard: " + string(e) }

// mistake returns what the caller got wrong, which may be shown; "": err is not the
// caller's.
func mistake(err error) string {
	param, _ := errors.AsType[paramError](err)
	query, _ := errors.AsType[store.QueryError](err)
	return cmp.Or(string(param), string(query))
}

// params reads a query string. The first mistake stays in err, and a
// parameter that nobody asked for is one: a misspelt filter must not answer
// with everything.
type params struct {
	values url.Values
	zone   *time.Location
	err    error
}

func (h *handler) params(r *http.Request) *params {
	p := &params{zone: h.zone()}
	p.parse(r.URL.RawQuery)
	return p
}

func (p *params) parse(query string) {
	var err error
	if p.values, err = url.ParseQuery(query); err != nil {
		p.fail("malformed query string: %s", short(err.Error()))
	}
}

func (p *params) fail(format string, args ...any) {
	if p.err == nil {
		p.err = paramError(fmt.Sprintf(format, args...))
	}
}

// only refuses every parameter that is not one of known, or not text.
func (p *params) only(known ...string) {
	for _, name := range slices.Sorted(maps.Keys(p.values)) {
		values := p.values[name]
		switch {
		case !slices.Contains(known, name):
			p.fail("unknown parameter %q; known here: %s", short(name), cmp.Or(strings.Join(known, ", "), "none"))
		case len(values) > 1 && name != "name" && name != "except" && name != "q":
			p.fail("%s is given %d times", name, len(values))
		case name == "except" && len(values) > maxExcept:
			p.fail("%s is given %d times, %d at most", name, len(values), maxExcept)
		case len(values) > maxNamed:
			p.fail("%s is given %d times, %d at most", name, len(values), maxNamed)
		}
		for _, v := range values {
			switch {
			case !utf8.ValidString(v):
				p.fail("%s is not valid UTF-8", name)
			case strings.ContainsFunc(v, unicode.IsControl):
				p.fail("%s holds a control character", name)
			case name == "q":
				if len(v) > maxAsked {
					p.fail("q is longer than %d bytes", maxAsked)
				}
			case len(v) > 512:
				p.fail("%s is longer than a name can be, 512 bytes", name)
			}
		}
	}
}

func (p *params) get(name string) string { return p.values.Get(name) }

func (p *params) limit(whenAbsent, most int) int {
	p.only("limit")
	return p.number("limit", whenAbsent, 1, most)
}

func (p *params) number(name string, whenAbsent, least, most int) int {
	s := p.get(name)
	if s == "" {
		return whenAbsent
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < least || n > most {
		p.fail("%s must be a number from %d to %d, not %q", name, least, most, short(s))
	}
	return n
}

// selection is a Query, and which range up to now it asks for, if it does: where that begins
// and ends, the clock of the Reading says that answers it.
type selection struct {
	store.Query
	last recent
}

// query reads the parameters that select counters, and those that are known
// besides. most is the greatest limit.
func (p *params) query(limit, most int, known ...string) selection {
	p.only(append(known, "prefix", "measure", "contains", "except", "from", "to", "range", "limit")...)
	q := selection{Query: store.Query{
		Names: p.list("name"), Prefix: p.get("prefix"), Measure: p.get("measure"), Contains: p.get("contains"), Except: p.list("except"),
		From: p.instant("from", 0), To: p.instant("to", 1),
		Limit: p.number("limit", limit, 1, most),
	}}
	if r := p.get("range"); r != "" {
		if !q.From.IsZero() || !q.To.IsZero() {
			p.fail("range stands for from and to: give it, or them")
		}
		q.last = p.recent(r)
	}
	if !q.From.IsZero() && !q.To.IsZero() && !q.From.Before(q.To) {
		p.fail("from must lie before to")
	}
	return q
}

// at is q with its range, as of r.
func (h *handler) at(q selection, r *reading) (_ store.Query, err error) {
	if q.last.n > 0 {
		q.From, q.To, err = q.last.at(h.store.Buckets, r.now)
		r.ends = q.To
	}
	return q.Query, err
}

// list is what a parameter lists that may be given several times, but for "".
func (p *params) list(name string) (list []string) {
	for _, v := range p.values[name] {
		if v != "" {
			list = append(list, v)
		}
	}
	return list
}

// step reads the parameter of that name; 0: it is not there.
func (p *params) step() store.Step {
	switch s := p.get("step"); s {
	case "":
		return 0
	case "hour":
		return store.Hour
	case "day":
		return store.Day
	case "month":
		return store.Month
	default:
		p.fail("step must be hour, day or month, not %q", short(s))
		return 0
	}
}

// recent is the last n hours, days or months of the store's zone, the one that runs
// among them: the same until the next one begins.
type recent struct {
	n    int // 0: none
	step store.Step
	long time.Duration // at most, of one
	text string
}

func (p *params) recent(s string) recent {
	r, text, most := recent{step: store.Day, long: 25 * time.Hour, text: s}, "", 1
	if s == "today" {
		text = "1"
	} else if n, ok := strings.CutSuffix(s, "h"); ok {
		text, r.step, r.long, most = n, store.Hour, time.Hour, maxDays*24
	} else if n, ok := strings.CutSuffix(s, "d"); ok {
		text, most = n, maxDays
	} else if n, ok := strings.CutSuffix(s, "mo"); ok {
		text, r.step, r.long, most = n, store.Month, 31*24*time.Hour, maxDays/30
	}
	var err error
	if r.n, err = strconv.Atoi(text); err != nil || r.n < 1 || r.n > most {
		p.fail("range must be today, or a number of hours, days or months, as in 24h, 30d, 13mo; not %q", short(s))
	}
	return r
}

// at finds where r begins and ends, as of now.
func (r recent) at(buckets func(step store.Step, from, to time.Time) []time.Time, now time.Time) (from, to time.Time, err error) {
	starts := buckets(r.step, now.Add(-time.Duration(r.n)*r.long), now.Add(2*r.long))
	for i := len(starts) - 1; i > 0; i-- {
		if !starts[i-1].After(now) { // the one that runs
			return starts[max(i-r.n, 0)], starts[i], nil
		}
	}
	return from, to, paramError(fmt.Sprintf("range %q is none here: the database's clock is wrong", r.text))
}

// instant is RFC 3339, or so many days after the start of a date.
func (p *params) instant(name string, days int) time.Time {
	s := p.get(name)
	if s == "" {
		return time.Time{}
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		var date time.Time
		if date, err = time.Parse(time.DateOnly, s); err == nil {
			t = startOfDay(date.AddDate(0, 0, days), p.zone)
		}
	}
	switch {
	case err != nil:
		p.fail("%s must be a date, 2006-01-31, or an instant, 2006-01-31T15:04:05Z (with %%2B for a plus), not %q", name, short(s))
	case t.Unix() < 0:
		p.fail("%s must not lie before 1970", name)
	case t.Year() > 9000: // JSON has years of four digits
		p.fail("%s must lie before the year 9000", name)
	}
	return t.In(p.zone)
}

// startOfDay returns the first instant in zone whose date is that of date, a
// midnight in UTC, or a later one. [time.Date] does not say it where the clock
// jumps over midnight, or runs through it twice. So: between two changes of
// the clock, local time is UTC and a constant.
func startOfDay(date time.Time, zone *time.Location) time.Time {
	for t := date.Add(-48 * time.Hour).In(zone); ; {
		_, offset := t.Zone()
		_, change := t.ZoneBounds()
		midnight := date.Add(-time.Duration(offset) * time.Second)
		if midnight.Before(t) {
			midnight = t
		}
		if change.IsZero() || midnight.Before(change) {
			return midnight.In(zone)
		}
		t = change
	}
}

// short keeps a message short, whatever somebody sent.
func short(s string) string {
	if len(s) > 64 {
		return strings.ToValidUTF8(s[:64], "") + "…"
	}
	return s
}
