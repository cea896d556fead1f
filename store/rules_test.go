package store

import (
	"testing"
	"time"
)

// Rules that were kept are those that were: whatever a zone does with its clocks.
func TestRulesAreKept(t *testing.T) {
	for _, name := range []string{"UTC", "Asia/Kathmandu", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Africa/Casablanca", "Pacific/Apia", "Asia/Almaty", "America/Santiago"} {
		zone, err := time.LoadLocation(name)
		if err != nil {
			t.Fatal(err)
		}
		text := textOf(zone)
		kept, err := zoneOf(text)
		if err != nil || kept.String() != name || !sameRules(zone, kept, firstRules, lastRules) || textOf(kept) != text {
			t.Errorf("%s: %v, %v: %d bytes\n%.200s\n%.200s", name, kept, err, len(text), text, textOf(kept))
		}
	}
	for _, text := range []string{"", "UTC", "UTC 0", "UTC x@y"} {
		if zone, err := zoneOf(text); err == nil {
			t.Errorf("%q is %v", text, zone)
		}
	}
}
