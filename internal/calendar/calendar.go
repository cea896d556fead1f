// Package calendar finds the local hours, days and months of a zone, and what of them is
// kept. Each starts at a quarter hour of UTC. A day starts at the first instant whose
// local date is that day or later, whatever its clocks do at midnight; an hour ends early
// where the clock is changed within it.
//
// A bucket that was begun under other rules of the zone, or in another zone, stays where
// it lies, and belongs to the one that its middle is in: see Place and Bucket. A zone's
// rules can be written down (Rules), so that processes with different ones agree.
package calendar

import (
	"fmt"
	"maps"
	"slices"
	"time"
)

// Step is the length of a bucket.
type Step int

const (
	Hour Step = iota + 1
	Day
	Month
)

// String returns "hour", "day" or "month".
func (s Step) String() string {
	switch s {
	case Hour:
		return "hour"
	case Day:
		return "day"
	case Month:
		return "month"
	}
	return fmt.Sprintf("Step(%d)", int(s))
}

// Before and after every bucket, as times that can be computed with: Unix seconds.
const (
	Forever = -1 << 40
	Endless = 1 << 40
)

// QuarterHour is what every bucket of every zone begins on, in UTC.
const QuarterHour = 15 * time.Minute

// Quarter is the quarter hour that a time is in; both Unix milliseconds.
func Quarter(ms int64) int64 { return ms - mod(ms, QuarterHour.Milliseconds()) }

// Calendar is that of a zone. It never changes.
type Calendar struct {
	zone  *time.Location
	moved map[bucket]int64 // where one lies that was begun under other rules
}

type bucket struct {
	step  Step
	start int64
}

// In returns the calendar of a zone.
func In(zone *time.Location) Calendar { return Calendar{zone: zone} }

// Zone is what c is the calendar of.
func (c Calendar) Zone() *time.Location { return c.zone }

// With returns c with the buckets of a step, Unix seconds, that are stored already: those
// that were begun under other rules go on where they are, unless c's own is there, too.
func (c Calendar) With(step Step, stored []int64) Calendar {
	moved := maps.Clone(c.moved)
	for _, b := range stored {
		if at := c.Place(step, b); at != b && !slices.Contains(stored, at) {
			if moved == nil {
				moved = map[bucket]int64{}
			}
			moved[bucket{step, at}] = b
		}
	}
	return Calendar{c.zone, moved}
}

// Bucket returns where the bucket of step is stored, or will be, that t is in: at its
// start, unless it was begun under other rules.
func (c Calendar) Bucket(step Step, t time.Time) int64 {
	start := c.Start(step, t).Unix()
	if at, ok := c.moved[bucket{step, start}]; ok {
		return at
	}
	return start
}

// Start returns the start of the bucket that t is in.
func (c Calendar) Start(step Step, t time.Time) time.Time {
	t = t.In(c.zone)
	if step == Hour {
		_, offset := t.Zone()
		unix := t.Unix() + int64(offset)
		start := time.Unix(unix-mod(unix, 3600)-int64(offset), 0).In(c.zone)
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

// Next returns the start of the bucket after the one that t is in.
func (c Calendar) Next(step Step, t time.Time) time.Time {
	start := c.Start(step, t)
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

// Place returns the start of the bucket of step that counts of a stored one belong to:
// itself, unless it was begun under other rules of the zone, or in another zone; then
// the one that its middle is in. Of two that are stored, the later one's place is no
// earlier.
func (c Calendar) Place(step Step, stored int64) int64 {
	t := time.Unix(stored, 0)
	if c.Start(step, t).Equal(t) {
		return stored
	}
	half := [...]time.Duration{Hour: time.Hour / 2, Day: 12 * time.Hour, Month: 15 * 24 * time.Hour}
	return c.Start(step, t.Add(half[step])).Unix()
}

// PlaceIn is Place, as a bucket of step, for a stored one of a step that is no coarser.
func (c Calendar) PlaceIn(step, of Step, stored int64) int64 {
	at := c.Place(of, stored)
	if of < step {
		at = c.Start(step, time.Unix(at, 0)).Unix()
	}
	return at
}

// Ceil returns t when a bucket starts there, else the start of the next one.
func (c Calendar) Ceil(step Step, t time.Time) time.Time {
	if start := c.Start(step, t); start.Equal(t) {
		return start
	}
	return c.Next(step, t)
}

// changes tells whether clocks are changed at t: ZoneBounds are ends of years, too,
// or nearly so, in years that a zone has no table of.
func changes(t time.Time) bool {
	_, offset := t.Zone()
	_, before := t.Add(-time.Second).Zone()
	return !t.IsZero() && offset != before
}

// date returns the first instant whose local date is y-m-d or later.
func (c Calendar) date(y int, m time.Month, d int) time.Time {
	midnight := time.Date(y, m, d, 0, 0, 0, 0, time.UTC).Unix()
	t := time.Unix(midnight-36*3600, 0).In(c.zone) // before it in every zone
	for {
		start, end := t.ZoneBounds()
		_, offset := t.Zone()
		at := time.Unix(midnight-int64(offset), 0).In(c.zone)
		if at.Before(end) || !end.After(t) { // no end, or one of a leap year's last day
			if at.Before(start) {
				return start
			}
			return at
		}
		t = end
	}
}

// Buckets lists the starts of all buckets from start (a bucket's) up to end.
func (c Calendar) Buckets(step Step, start, end time.Time) []int64 {
	var list []int64
	for t := start; t.Before(end); t = c.Next(step, t) {
		list = append(list, t.Unix())
	}
	return list
}

func mod(a, b int64) int64 { return ((a % b) + b) % b }
