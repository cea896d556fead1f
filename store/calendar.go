package store

import (
	"slices"
	"sync/atomic"
	"time"
)

// calendar finds the local hours, days and months of a zone. Each starts at a
// quarter hour of UTC. A day starts at the first instant whose local date is
// that day or later, whatever its clocks do at midnight; an hour ends early
// where the clock is changed within it.
type calendar struct {
	loc   *time.Location
	rules *atomic.Pointer[rules] // in force instead of loc's; nil: none
}

func (c calendar) zone() *time.Location {
	if c.rules != nil {
		if r := c.rules.Load(); r != nil {
			return r.loc
		}
	}
	return c.loc
}

// lies returns where the bucket of step is stored, or will be, that t is in: at its
// start, unless it was begun under other rules.
func (c calendar) lies(step Step, t time.Time) int64 {
	start := c.start(step, t).Unix()
	if c.rules != nil {
		if r := c.rules.Load(); r != nil {
			if at, ok := r.moved[moved{step, start}]; ok {
				return at
			}
		}
	}
	return start
}

// start returns the start of the bucket that t is in.
func (c calendar) start(step Step, t time.Time) time.Time {
	t = t.In(c.zone())
	if step == Hour {
		_, offset := t.Zone()
		unix := t.Unix() + int64(offset)
		start := time.Unix(unix-mod(unix, 3600)-int64(offset), 0).In(c.zone())
		if change, _ := t.ZoneBounds(); changes(change) && change.After(start) {
			return change
		}
		return start
	}
	y, m, d := t.Date()
	if next := c.date(y, m, d+1); !next.After(t) { // set back over midnight
		y, m, d = time.Date(y, m, d+1, 0, 0, 0, 0, time.UTC).Date()
	}
	if step == Month {
		d = 1
	}
	return c.date(y, m, d)
}

// next returns the start of the bucket after the one that t is in.
func (c calendar) next(step Step, t time.Time) time.Time {
	start := c.start(step, t)
	if step == Hour {
		end := start.Add(time.Hour)
		if _, change := start.ZoneBounds(); changes(change) && change.Before(end) {
			return change
		}
		_, offset := start.Zone()
		unix := end.Unix() + int64(offset)
		return end.Add(-time.Duration(mod(unix, 3600)) * time.Second) // after a change within the hour
	}
	y, m, d := start.Date()
	for {
		if step == Day {
			d++
		} else {
			m++
		}
		if next := c.date(y, m, d); next.After(start) { // a zone may skip a whole day
			return next
		}
	}
}

// place returns the start of the bucket of step that counts of a stored one belong to:
// itself, unless it was begun under other rules of the zone, or in another zone; then
// the one that its middle is in. Of two that are stored, the later one's place is no
// earlier.
func (c calendar) place(step Step, stored int64) int64 {
	t := time.Unix(stored, 0)
	if c.start(step, t).Equal(t) {
		return stored
	}
	half := [...]time.Duration{Hour: time.Hour / 2, Day: 12 * time.Hour, Month: 15 * 24 * time.Hour}
	return c.start(step, t.Add(half[step])).Unix()
}

// ceil returns t when a bucket starts there, else the start of the next one.
func (c calendar) ceil(step Step, t time.Time) time.Time {
	if start := c.start(step, t); start.Equal(t) {
		return start
	}
	return c.next(step, t)
}

// changes tells whether clocks are changed at t: ZoneBounds are ends of years, too,
// or nearly so, in years that a zone has no table of.
func changes(t time.Time) bool {
	_, offset := t.Zone()
	_, before := t.Add(-time.Second).Zone()
	return !t.IsZero() && offset != before
}

// date returns the first instant whose local date is y-m-d or later.
func (c calendar) date(y int, m time.Month, d int) time.Time {
	midnight := time.Date(y, m, d, 0, 0, 0, 0, time.UTC).Unix()
	t := time.Unix(midnight-36*3600, 0).In(c.zone()) // before it in every zone
	for {
		start, end := t.ZoneBounds()
		_, offset := t.Zone()
		at := time.Unix(midnight-int64(offset), 0).In(c.zone())
		if at.Before(end) || !end.After(t) { // no end, or one of a leap year's last day
			if at.Before(start) {
				return start
			}
			return at
		}
		t = end
	}
}

// buckets lists the starts of all buckets from start (a bucket's) up to end.
func (c calendar) buckets(step Step, start, end time.Time) []int64 {
	var list []int64
	for t := start; t.Before(end); t = c.next(step, t) {
		list = append(list, t.Unix())
	}
	return list
}

func mod(a, b int64) int64 { return ((a % b) + b) % b }

// change is when a zone's offset from UTC becomes another one.
type change struct {
	at     int64 // Unix seconds
	offset int   // seconds
}

// changesOf lists the offsets of a zone from one time up to another: the one that it
// has first, and each change.
func changesOf(loc *time.Location, from, to time.Time) []change {
	var list []change
	for t := from; t.Before(to); {
		_, offset := t.In(loc).Zone()
		if n := len(list); n == 0 || list[n-1].offset != offset {
			list = append(list, change{t.Unix(), offset})
		}
		_, end := t.In(loc).ZoneBounds()
		if end.IsZero() {
			break
		}
		if !end.After(t) { // one of a leap year's last day
			end = t.AddDate(0, 0, 1)
		}
		t = end
	}
	return list
}

// sameRules tells whether buckets begin at the same times in two zones, from one time
// up to another.
func sameRules(a, b *time.Location, from, to time.Time) bool {
	return slices.Equal(changesOf(a, from, to), changesOf(b, from, to))
}
