package store

import (
	"testing"
	"time"
)

// Against a reference that knows nothing but local dates: each bucket starts at
// the first quarter hour of its local hour, day or month, in zones whose clocks
// change at midnight, by half an hour, or by a whole day.
func TestCalendar(t *testing.T) {
	for _, zone := range []string{
		"UTC", "Asia/Kolkata", "Asia/Kathmandu", "Australia/Lord_Howe", "America/New_York",
		"America/Santiago", "Africa/Cairo", "Pacific/Apia",
	} {
		loc, err := time.LoadLocation(zone)
		if err != nil {
			t.Fatal(err)
		}
		c := calendar{loc}
		years := []int{2024, 2026}
		if zone == "Pacific/Apia" {
			years = []int{2011} // it skipped 30 December
		}
		for _, year := range years {
			checkYear(t, c, time.Date(year, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(year+1, 1, 2, 0, 0, 0, 0, time.UTC))
		}
	}
}

func checkYear(t *testing.T, c calendar, from, to time.Time) {
	t.Helper()
	for _, step := range []Step{Hour, Day, Month} {
		start := c.start(step, from)
		if start.After(from) {
			t.Fatalf("%v: %v starts at %v", c.loc, from, start)
		}
		for at := from.Add(quarterHour); at.Before(to); at = at.Add(quarterHour) {
			if begins(c, step, at, start) {
				if got := c.next(step, start); !got.Equal(at) {
					t.Fatalf("%v: the %v after %v starts at %v, want %v", c.loc, step, start, got.In(c.loc), at.In(c.loc))
				}
				start = at
			}
			if got := c.start(step, at.Add(7*time.Minute)); !got.Equal(start) {
				t.Fatalf("%v: the %v of %v starts at %v, want %v", c.loc, step, at.In(c.loc), got.In(c.loc), start.In(c.loc))
			}
		}
	}
}

// begins tells whether a bucket begins at the quarter hour at, when the last one
// began at start.
func begins(c calendar, step Step, at, start time.Time) bool {
	now, was := at.In(c.loc), start.In(c.loc)
	_, offset := now.Zone()
	_, before := now.Add(-time.Second).Zone()
	y, m, d := now.Date()
	wasY, wasM, wasD := was.Date()
	today, then := time.Date(y, m, d, 0, 0, 0, 0, time.UTC), time.Date(wasY, wasM, wasD, 0, 0, 0, 0, time.UTC)
	switch step {
	case Hour:
		return now.Minute() == 0 || offset != before
	case Day:
		return today.After(then)
	}
	return today.After(then) && (m != wasM || y != wasY)
}
