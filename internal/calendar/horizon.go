package calendar

import "time"

// Horizon is what history reaches back to, by step and kind of name: buckets that begin
// before are not kept. Unix seconds.
type Horizon struct{ Hours, Days, Users int64 }

// Horizon is that of a time: days begin at the horizon's. A negative duration is for
// ever.
func (c Calendar) Horizon(now time.Time, hourly, daily, users time.Duration) Horizon {
	start := func(d time.Duration) int64 {
		if d < 0 {
			return Forever
		}
		return c.Start(Day, now.Add(-d)).Unix()
	}
	return Horizon{start(hourly), start(daily), start(users)}
}

// Unknown is the horizon where nobody knows what is old: nothing is.
func Unknown() Horizon { return Horizon{Forever, Forever, Forever} }

// Of is the horizon of buckets of step: of names that are personal, as a user's are, or
// of others. Months are kept for ever.
func (h Horizon) Of(step Step, personal bool) int64 {
	switch {
	case step == Hour:
		return h.Hours
	case step == Month:
		return Forever
	case personal:
		return h.Users
	}
	return h.Days
}
