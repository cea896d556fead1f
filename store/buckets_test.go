package store

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/usagekit/usagekit/internal/calendar"
	"github.com/usagekit/usagekit/store/sqlite"
)

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
	db, err := sqlite.Open(filepath.Join(t.TempDir(), "usage.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	s, err := open(t.Context(), db, Config{Location: zone})
	if err != nil {
		t.Fatal(err)
	}
	defer s.life.cancel()
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
		for i, start := range s.clock.Calendar().Buckets(calendar.Step(c.step), got[0], c.to) {
			if got[i].Unix() != start {
				t.Fatalf("%v: bucket %d is %v", c.step, i, got[i])
			}
		}
	}
	offline, err := open(t.Context(), db, Config{StartOffline: true})
	if err != nil {
		t.Fatal(err)
	}
	defer offline.life.cancel()
	if got := offline.Buckets(Day, at("2026-03-28 12:00"), at("2026-03-28 13:00")); len(got) != 1 || got[0].String() != "2026-03-28 00:00:00 +0000 UTC" {
		t.Errorf("before the zone is known: %v", got)
	}
}
