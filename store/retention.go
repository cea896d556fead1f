package store

import (
	"time"

	"github.com/usagekit/usagekit/internal/clock"
)

// Retention is how long history is kept. Totals stay for ever, and months, which users and
// quotas by the month have. What is
// older than that is removed by the instance that folds, or counts at once: within two
// minutes of its first count, and then once an hour. A batch that comes so late counts in
// the totals alone. Each is four days at least.
//
// Nothing is removed on the word of a clock alone, for it may be wrong. A time that is
// within two days of the last removal is believed; and, however quiet the service is, one
// up to which a process has seen it go on as time does, since it was believed or for a
// week. Where there is no such process, as after a start that follows a longer pause, it
// is when it was said for a week, in which somebody looked every eight days; and where
// processes come more seldom, by the fourth after a pause. Until then the log has a line,
// and everything stays. What was counted under a clock that was ahead stays where that
// put it, in every range that covers that time, until it is old.
type Retention struct {
	Hourly    time.Duration // hours; 0: 35 days, negative: for ever
	Daily     time.Duration // days, no shorter than Hourly; 0: 400 days, negative: for ever
	UserDaily time.Duration // days of a user, and of quotas by the day; 0: 90 days, negative: for ever
}

// defaults fills in what is 0.
func (r Retention) defaults() Retention {
	const day = 24 * time.Hour
	for _, d := range []struct {
		field *time.Duration
		days  time.Duration
	}{{&r.Hourly, 35}, {&r.Daily, 400}, {&r.UserDaily, 90}} {
		if *d.field == 0 {
			*d.field = d.days * day
		}
	}
	return r
}

// kept is r as the clock has it.
func (r Retention) kept() clock.Kept {
	r = r.defaults()
	return clock.Kept{Hours: r.Hourly, Days: r.Daily, Users: r.UserDaily}
}
