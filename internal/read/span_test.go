package read

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/usagekit/usagekit/internal/calendar"
	"github.com/usagekit/usagekit/internal/clock"
)

// Which buckets are read for a range is chosen of what is stored and kept, without a
// database: those of the example at few, and others.
func TestFew(t *testing.T) {
	const first = "2026-01-01" // from then on, every day has counts
	for _, c := range []struct {
		name, zone string
		q          Query
		want       string
		stored     func(list []int64, step calendar.Step) []int64 // nil: what the zone has
	}{
		{name: "the example", q: asks("api.", "06-10 15:30", ""), want: "hour 06-10 15:00 … 06-10 23:00, day 06-11 … 06-30"},
		{name: "to the hour", q: asks("api.", "06-10 15:30", "06-12 02:00"), want: "hour 06-10 15:00 … 06-10 23:00, day 06-11 … 06-11, hour 06-12 00:00 … 06-12 01:00"},
		{name: "within a day", q: asks("api.", "06-10 15:30", "06-10 16:30"), want: "hour 06-10 15:00 … 06-10 16:00"},
		{name: "hours of then are gone", q: asks("api.", "05-10 15:30", "06-12 02:00"), want: "day 05-10 … 06-11, hour 06-12 00:00 … 06-12 01:00"},
		{name: "users", q: asks("user.", "05-10 00:00", ""), want: "day 05-10 … 05-31, month 06 … 06"},
		{name: "users' days of then are gone", q: asks("user.", "03-10 00:00", "06-12 00:00"), want: "month 03 … 05, day 06-01 … 06-11"},

		{name: "whole days", q: asks("api.", "06-10 00:00", "06-12 00:00"), want: "day 06-10 … 06-11"},
		{name: "the day that runs", q: asks("api.", "06-30 00:00", ""), want: "day 06-30 … 06-30"},
		{name: "after all that there is", q: asks("api.", "07-02 00:00", ""), want: ""},
		{name: "before all that there is", q: asks("api.", "", "01-01 00:00"), want: ""},
		{name: "no From", q: asks("api.", "", "01-03 00:00"), want: "day 01-01 … 01-02"},
		{name: "users of a month", q: asks("user.", "05-01 00:00", "06-01 00:00"), want: "month 05 … 05"},
		{name: "users of a day", q: asks("user.", "06-10 15:30", "06-10 16:30"), want: "day 06-10 … 06-10"},
		{name: "users before their days", q: asks("user.", "02-10 00:00", "02-20 00:00"), want: "month 02 … 02"},
		{name: "users and others", q: asks("", "06-10 00:00", ""), want: "day 06-10 … 06-30; day 06-10 … 06-30"},
		{name: "one user", q: Query{Prefix: "user.", Subject: "42", From: at("05-10 00:00")}, want: "day 05-10 … 05-31, month 06 … 06"},
		{name: "by the month", q: Query{Prefix: "user.", From: at("05-10 00:00"), Step: calendar.Month}, want: "month 05 … 06"},
		{name: "half an hour from UTC", zone: "Asia/Kolkata", q: asks("api.", "06-10 15:40", ""), want: "hour 06-10 15:30 … 06-10 17:30, day 06-10 18:30 … 06-29 18:30"},

		// Days that were begun an hour later lie across the starts of others: there is no
		// cut, and where there are no hours, all is days.
		{name: "under other rules, whole days", q: asks("api.", "06-10 15:30", "06-12 02:00"), stored: late(30), want: "hour 06-10 15:00 … 06-12 01:00"},
		{name: "under other rules, until the day before", q: asks("api.", "06-10 15:30", "06-14 02:00"), stored: late(10), want: "hour 06-10 15:00 … 06-11 23:00, day 06-12 … 06-13, hour 06-14 00:00 … 06-14 01:00"},
		{name: "under other rules, and hours are gone", q: asks("api.", "05-10 15:30", "06-12 02:00"), stored: late(30), want: "day 05-10 01:00 … 06-12 01:00"},
	} {
		zone, err := time.LoadLocation(c.zone) // "": UTC
		if err != nil {
			t.Fatal(err)
		}
		cal, now := calendar.In(zone), at("06-30 12:20")
		h := cal.Horizon(now, 35*24*time.Hour, 400*24*time.Hour, 90*24*time.Hour)
		if err := c.q.check(); err != nil {
			t.Fatal(err)
		}
		start, err := time.ParseInLocation(time.DateOnly, first, zone)
		if err != nil {
			t.Fatal(err)
		}
		stored := func(segments []clock.Segment) (lists [][]int64) {
			for _, g := range segments {
				list := cal.Buckets(g.Step, cal.Start(g.Step, start), now)
				if c.stored != nil {
					list = c.stored(list, g.Step)
				}
				var of []int64
				for _, b := range list {
					if p := cal.Place(g.Step, b); p >= g.From.Unix() && p < g.To.Unix() {
						of = append(of, b)
					}
				}
				lists = append(lists, of)
			}
			return lists
		}
		var got []string
		for _, chosen := range c.q.few(cal, h, stored(c.q.extents(cal, h))) {
			spans := []span{{step: chosen.kept, buckets: chosen.coarse}}
			for i, buckets := range stored(chosen.edges) {
				spans = append(spans, span{step: chosen.edges[i].Step, buckets: buckets})
			}
			spans = slices.DeleteFunc(spans, func(sp span) bool { return len(sp.buckets) == 0 })
			slices.SortFunc(spans, func(a, b span) int { return cmp.Compare(a.buckets[0], b.buckets[0]) })
			var texts []string
			for _, sp := range spans {
				texts = append(texts, sp.listed())
			}
			got = append(got, strings.Join(texts, ", "))
		}
		if got := strings.Join(got, "; "); got != c.want {
			t.Errorf("%s:\n%s, want\n%s", c.name, got, c.want)
		}
	}
}

func asks(prefix, from, to string) Query { return Query{Prefix: prefix, From: at(from), To: at(to)} }

// at is a time of 2026, in UTC; zero: none.
func at(text string) time.Time {
	if text == "" {
		return time.Time{}
	}
	t, err := time.Parse("2006-01-02 15:04", "2026-"+text)
	if err != nil {
		panic(err)
	}
	return t
}

// late has days begin an hour later: those up to the given one of June.
func late(until int) func(list []int64, step calendar.Step) []int64 {
	return func(list []int64, step calendar.Step) (moved []int64) {
		for _, b := range list {
			if step == calendar.Day && b <= time.Date(2026, 6, until, 0, 0, 0, 0, time.UTC).Unix() {
				b += 3600
			}
			moved = append(moved, b)
		}
		return moved
	}
}

// listed says from which bucket to which sp has.
func (sp span) listed() string {
	say := func(b int64) string {
		t := time.Unix(b, 0).UTC()
		switch {
		case sp.step == calendar.Month:
			return t.Format("01")
		case sp.step == calendar.Day && t.Hour() == 0 && t.Minute() == 0:
			return t.Format("01-02")
		}
		return t.Format("01-02 15:04")
	}
	return fmt.Sprintf("%v %s … %s", sp.step, say(sp.buckets[0]), say(sp.buckets[len(sp.buckets)-1]))
}
