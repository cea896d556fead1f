package clock

import "testing"

// A clock is believed when it goes on as time does: with what was written before, and
// within a process with a clock that does not jump.
func TestRemovalAt(t *testing.T) {
	const hour, day, now = 3_600_000, 24 * 3_600_000, 1_800_000_000_000
	const steady, jumped = 1, 2
	for _, c := range []struct {
		name string
		r    Removal
		as   int
		want Removal
	}{
		{"an hour later", Removal{Last: now - hour}, 0, Removal{Last: now}},
		{"after a weekend", Removal{Last: now - 2*day}, 0, Removal{Last: now}},
		{"a little back", Removal{Last: now + hour}, 0, Removal{Last: now}},
		{"as it was before it was doubted", Removal{now - hour, now + 900*day, now + 900*day, 2}, 0, Removal{Last: now}},
		{"after a week", Removal{Last: now - 7*day}, 0, Removal{now - 7*day, now, now, 0}},
		{"after a week that somebody saw", Removal{Last: now - 7*day}, steady, Removal{Last: now}},
		{"which others doubt", Removal{now - 90*day, now - hour, now - hour, 0}, steady, Removal{Last: now}},
		{"doubted for six days", Removal{now - 90*day, now - 6*day, now - hour, 0}, 0, Removal{now - 90*day, now - 6*day, now, 0}},
		{"doubted for a week", Removal{now - 90*day, now - 7*day, now - hour, 0}, 0, Removal{Last: now}},
		{"which nobody saw", Removal{now - 90*day, now - 30*day, now - 30*day, 0}, 0, Removal{now - 90*day, now, now, 1}},
		{"twice", Removal{now - 90*day, now - 30*day, now - 30*day, 1}, 0, Removal{now - 90*day, now, now, 2}},
		{"three times", Removal{now - 90*day, now - 30*day, now - 30*day, 2}, 0, Removal{Last: now}},
		{"seen for days after the second", Removal{now - 90*day, now - 6*day, now - hour, 2}, 0, Removal{now - 90*day, now - 6*day, now, 2}},
		{"which was seen once a week", Removal{now - 90*day, now - 8*day, now - 8*day, 0}, 0, Removal{Last: now}},
		{"and jumped again", Removal{now - 90*day, now - 7*day, now - hour, 0}, jumped, Removal{now - 90*day, now, now, 1}},
		{"and went back", Removal{now - 90*day, now - 7*day, now + hour, 2}, 0, Removal{now - 90*day, now, now, 0}},
		{"behind, after it was ahead", Removal{now + 90*day, now - 900*day, now - 900*day, 0}, 0, Removal{now + 90*day, now, now, 1}},
		{"never", Removal{}, 0, Removal{0, now, now, 0}},
	} {
		if got := c.r.at(now, c.as == steady, c.as == jumped); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}
