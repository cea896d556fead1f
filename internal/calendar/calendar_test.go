package calendar

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
		c := In(loc)
		years := []int{2026, 2040} // the latter, a leap year, by rules, as zones without tables have every year
		if zone == "Pacific/Apia" {
			years = []int{2011} // it skipped 30 December
		}
		for _, year := range years {
			checkYear(t, c, time.Date(year, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(year+1, 1, 2, 0, 0, 0, 0, time.UTC))
		}
	}
}

func checkYear(t *testing.T, c Calendar, from, to time.Time) {
	t.Helper()
	for _, step := range []Step{Hour, Day, Month} {
		start := c.Start(step, from)
		if start.After(from) {
			t.Fatalf("%v: %v starts at %v", c.Zone(), from, start)
		}
		for at := from.Add(QuarterHour); at.Before(to); at = at.Add(QuarterHour) {
			if begins(c, step, at, start) {
				if got := c.Next(step, start); !got.Equal(at) {
					t.Fatalf("%v: the %v after %v starts at %v, want %v", c.Zone(), step, start, got.In(c.Zone()), at.In(c.Zone()))
				}
				start = at
			}
			if got := c.Start(step, at.Add(7*time.Minute)); !got.Equal(start) {
				t.Fatalf("%v: the %v of %v starts at %v, want %v", c.Zone(), step, at.In(c.Zone()), got.In(c.Zone()), start.In(c.Zone()))
			}
		}
	}
}

// begins tells whether a bucket begins at the quarter hour at, when the last one
// began at start.
func begins(c Calendar, step Step, at, start time.Time) bool {
	now, was := at.In(c.Zone()), start.In(c.Zone())
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

// Rules that were kept are those that were: whatever a zone does with its clocks.
func TestRulesAreKept(t *testing.T) {
	from, to := noted()
	for _, name := range []string{"UTC", "Asia/Kathmandu", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Africa/Casablanca", "Pacific/Apia", "Asia/Almaty", "America/Santiago", "Europe/Istanbul"} {
		zone, err := time.LoadLocation(name)
		if err != nil {
			t.Fatal(err)
		}
		text := Rules(zone)
		kept, err := ParseRules(text)
		if err != nil || kept.String() != name || !Same(zone, kept, from, to) || Rules(kept) != text {
			t.Errorf("%s: %v, %v: %d bytes\n%.200s\n%.200s", name, kept, err, len(text), text, Rules(kept))
		}
		list := changesOf(zone, from, to)
		for i := range len(list) - 1 { // what has another name since, or is summer time for ever, has no other buckets
			if list[i].offset == list[i+1].offset {
				t.Errorf("%s: a change from %d s to the same at %v", name, list[i].offset, time.Unix(list[i+1].at, 0).UTC())
			}
		}
	}
	for _, text := range []string{"", "UTC", "UTC 0", "UTC x@y"} {
		if zone, err := ParseRules(text); err == nil {
			t.Errorf("%q is %v", text, zone)
		}
	}
}
