package store

import (
	"testing"
	"time"

	"github.com/usagekit/usagekit/internal/calendar"
)

// A month's quota is used up until the month ends where the store is, to the second,
// and begins anew with the next one; what is asked with n = 0 is what the next Take
// finds.
func TestTakeOfAMonth(t *testing.T) {
	for zone, months := range map[string][2]string{ // the first instants of one, and of the next
		"UTC":              {"2000-02-01T00:00:00Z", "2000-03-01T00:00:00Z"},
		"Asia/Kathmandu":   {"2000-02-29T18:15:00Z", "2000-03-31T18:15:00Z"},
		"America/New_York": {"2000-04-01T05:00:00Z", "2000-05-01T04:00:00Z"}, // clocks go forward on 2 April
		"Asia/Amman":       {"2016-03-31T22:00:00Z", "2016-04-30T21:00:00Z"}, // there is no midnight on 1 April
	} {
		t.Run(zone, func(t *testing.T) {
			inOneClock(t, func(t *testing.T, restart func(Config) *Store) {
				ctx := t.Context()
				loc, err := time.LoadLocation(zone)
				if err != nil {
					t.Fatal(err)
				}
				var begins [2]time.Time
				for i, text := range months {
					if begins[i], err = time.Parse(time.RFC3339, text); err != nil {
						t.Fatal(err)
					}
				}
				s := restart(Config{Location: loc})
				time.Sleep(time.Until(begins[0].Add(-time.Second)))
				const name = "quota.42.monthly"
				take := func(n, left int64, ok bool, until time.Time) {
					t.Helper()
					gotLeft, gotUntil, gotOK, err := s.Take(ctx, name, n, 10, Month)
					if err != nil || gotLeft != left || gotOK != ok || gotUntil.Sub(until).Abs() > time.Millisecond {
						t.Errorf("%v: Take of %d: %d left until %v, %v, %v; want %d until %v, %v", time.Now(), n, gotLeft, gotUntil, gotOK, err, left, until, ok)
					}
				}
				take(0, 10, true, begins[0])
				if n := s.count(t, allHistory); n != 0 {
					t.Errorf("asking has written %d rows", n)
				}
				take(7, 3, true, begins[0])
				take(4, 3, false, begins[0])
				take(0, 3, true, begins[0])
				time.Sleep(time.Second)
				take(0, 10, true, begins[1])
				take(4, 6, true, begins[1])
				time.Sleep(time.Until(begins[1].Add(-time.Second)))
				take(6, 0, true, begins[1])
				take(0, 0, true, begins[1])
				take(1, 0, false, begins[1])

				h, err := s.History(ctx, Query{Name: name, Step: Month})
				if err != nil || len(h) != 2 || h[0].N != 7 || h[1].N != 10 || !h[1].Start.Equal(begins[0]) {
					t.Errorf("History by month: %v, %v; want 7, and 10 since %v", h, err, begins[0])
				}
				if h, err = s.History(ctx, Query{Name: name, Step: Month, From: begins[0].Add(time.Hour), To: begins[0].Add(2 * time.Hour)}); err != nil || len(h) != 1 || h[0].N != 10 {
					t.Errorf("History of two hours, by month: %v, %v; want the month's 10", h, err)
				}
				// Days are summed, while they are kept; months stay.
				s.put(t, row{bucket{calendar.Day, s.clock.Calendar().Start(calendar.Day, begins[0]).Unix(), "quota.42.daily"}, 5})
				if h, err = s.History(ctx, Query{Name: "quota.42.daily", Step: Month}); err != nil || len(h) != 1 || h[0].N != 5 || !h[0].Start.Equal(begins[0]) {
					t.Errorf("History of days, by month: %v, %v; want 5", h, err)
				}
				time.Sleep(500 * 24 * time.Hour)
				if h, err = s.History(ctx, Query{Prefix: "quota.", Step: Month, From: begins[0]}); err != nil || len(h) != 1 || h[0].Name != name || h[0].N != 10 {
					t.Errorf("History by month, later: %v, %v; want the 10 of the month", h, err)
				}
			})
		})
	}
}
