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
		"America/Santiago", "Africa/Cairo", "Pacific/Chatham", "Pacific/Apia",
	} {
		loc, err := time.LoadLocation(zone)
		if err != nil {
			t.Fatal(err)
		}
		c := calendar{loc: loc}
		years := []int{2026, 2040} // the latter, a leap year, by rules, as zones without tables have every year
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

// Buckets are listed as far as a range touches them, in the store's zone: the day on
// which clocks change has 23 hours, or 25.
func TestBuckets(t *testing.T) {
	zone, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	at := func(text string) time.Time {
		at, err := time.ParseInLocation("2006-01-02 15:04", text, zone)
		if err != nil {
			t.Fatal(err)
		}
		return at
	}
	s := &Store{calendar: calendar{loc: zone}, started: make(chan struct{})}
	close(s.started)
	for _, c := range []struct {
		step        Step
		from, to    time.Time
		n           int
		first, last string
	}{
		{Hour, at("2026-03-29 00:00"), at("2026-03-30 00:00"), 23, "2026-03-29T00:00:00+01:00", "2026-03-29T23:00:00+02:00"},
		{Hour, at("2026-10-25 00:00"), at("2026-10-26 00:00"), 25, "2026-10-25T00:00:00+02:00", "2026-10-25T23:00:00+01:00"},
		{Hour, at("2026-05-01 10:59").UTC(), at("2026-05-01 12:01").UTC(), 3, "2026-05-01T10:00:00+02:00", "2026-05-01T12:00:00+02:00"},
		{Day, at("2026-03-28 12:00"), at("2026-03-31 00:00"), 3, "2026-03-28T00:00:00+01:00", "2026-03-30T00:00:00+02:00"},
		{Day, at("2026-03-28 12:00"), at("2026-03-28 12:00").Add(1), 1, "2026-03-28T00:00:00+01:00", "2026-03-28T00:00:00+01:00"},
		{Month, at("2025-12-31 23:59"), at("2027-01-01 00:00"), 13, "2025-12-01T00:00:00+01:00", "2026-12-01T00:00:00+01:00"},
		{Hour, at("2026-01-01 00:00"), at("2026-01-01 00:00").Add(maxBuckets * time.Hour), maxBuckets, "2026-01-01T00:00:00+01:00", ""},
		{Hour, at("2026-01-01 00:00"), at("2026-01-01 00:00").Add(maxBuckets*time.Hour + 1), 0, "", ""},
		{Month, at("0001-01-02 00:00"), at("9999-01-01 00:00"), 0, "", ""},
		{Day, at("2026-03-28 12:00"), at("2026-03-28 12:00"), 0, "", ""},
		{Day, at("2026-03-28 12:00"), at("2026-03-28 11:00"), 0, "", ""},
		{Day, time.Time{}, at("2026-03-28 12:00"), 0, "", ""},
		{Day, at("2026-03-28 12:00"), time.Time{}, 0, "", ""},
		{0, at("2026-03-28 12:00"), at("2026-03-29 12:00"), 0, "", ""},
		{4, at("2026-03-28 12:00"), at("2026-03-29 12:00"), 0, "", ""},
		{-1, at("2026-03-28 12:00"), at("2026-03-29 12:00"), 0, "", ""},
	} {
		got := s.Buckets(c.step, c.from, c.to)
		if len(got) != c.n {
			t.Errorf("%v from %v to %v: %d, want %d", c.step, c.from, c.to, len(got), c.n)
			continue
		}
		if c.n == 0 {
			if got != nil {
				t.Errorf("%v from %v to %v: %v, want nil", c.step, c.from, c.to, got)
			}
			continue
		}
		if first, last := got[0].Format(time.RFC3339), got[c.n-1].Format(time.RFC3339); first != c.first || c.last != "" && last != c.last {
			t.Errorf("%v from %v to %v: %s … %s, want %s … %s", c.step, c.from, c.to, first, last, c.first, c.last)
		}
		for i, start := range s.calendar.buckets(c.step, got[0], c.to) {
			if got[i].Unix() != start {
				t.Fatalf("%v: bucket %d is %v", c.step, i, got[i])
			}
		}
	}
	offline := &Store{started: make(chan struct{})}
	if got := offline.Buckets(Day, at("2026-03-28 12:00"), at("2026-03-28 13:00")); len(got) != 1 || got[0].String() != "2026-03-28 00:00:00 +0000 UTC" {
		t.Errorf("before the zone is known: %v", got)
	}
}
