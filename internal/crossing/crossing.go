// Package crossing notices when a counter reaches a threshold, and tells whoever wants to
// know.
//
// What adds to a row learns what the row has become, so it sees which thresholds lie
// between before and after: Watch.Crossed. Each crossing is recorded in the transaction
// that counts, with the counts that made it or not at all; and once, for its record has a
// key. Beside the record the same transaction leaves a word for each receiver: that it is
// still to be told. It is not told there, because a receiver may take its time, and a
// transaction may be undone.
//
// A Notifier tells, in a loop for each receiver, so that none waits for another: it claims
// a word for a minute, by compare-and-set, calls the receiver, and removes the word. A
// process that dies in between has the claim run out, and another one tells it: at least
// once. An error has it told again, later each time. A word of which it is not said for
// whom, as an earlier release and an instance without receivers leave them, is first
// shared out among those of the instance that finds it. And one that no instance has
// claimed for a week is for a receiver that is gone: it is dropped, with a line in the log.
//
// Read crossing.go (what is watched), words.go (what is stored, and all SQL about it) and
// notifier.go (how it is told).
package crossing

import (
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/usagekit/usagekit/internal/calendar"
	"github.com/usagekit/usagekit/internal/naming"
)

// Threshold asks for word when a counter reaches Value: each counter whose name begins with
// Prefix and ends in "."+Measure, once per bucket of Step.
type Threshold struct {
	Prefix  string
	Measure string        // "": any
	Step    calendar.Step // 0: the total of all time
	Value   int64
}

// Crossing is a counter that has reached a Threshold.
type Crossing struct {
	Name  string
	Step  calendar.Step
	Start time.Time // of the bucket; zero of all time
	Value int64     // the threshold's
	N     int64     // what the counter had reached when it was seen to be past Value
	Time  time.Time // when that was
}

// Check returns what is wrong with t; "": nothing.
func (t Threshold) Check() string {
	const user = "user."
	ofUser := strings.HasPrefix(t.Prefix, user)
	mayBeUser := ofUser || strings.HasPrefix(user, t.Prefix)
	switch {
	case t.Value < 1 || t.Value > naming.Max:
		return fmt.Sprintf("Value is %d: want 1 … 2^53−1", t.Value)
	case t.Step < 0 || t.Step > calendar.Month:
		return fmt.Sprintf("Step is %d: want Hour, Day or Month, or 0 for all time", t.Step)
	case strings.Contains(t.Measure, "."):
		return fmt.Sprintf("Measure %q: want what stands after a name's last dot", t.Measure)
	case t.Prefix == naming.RequestsToday:
		return "Prefix " + naming.RequestsToday + " is the day of " + naming.RequestsTotal + ": want that, and Step Day"
	case t.Prefix == naming.ActiveDaily && t.Step != calendar.Day, t.Prefix == naming.ActiveMonthly && t.Step != calendar.Month:
		return "Prefix " + t.Prefix + " is a number of one day or month: want that Step"
	case strings.HasPrefix(t.Prefix, "quota.") && t.Measure != "refused":
		return "Prefix " + t.Prefix + ": quotas have limits of their own; want Measure refused"
	case t.Step == calendar.Hour && ofUser:
		return "Step hour is not kept for users: want Day, Month or 0"
	case t.Step == calendar.Month && !mayBeUser:
		return "Step month is kept for users alone: want Hour, Day or 0"
	case !utf8.ValidString(t.Prefix + t.Measure):
		return "Prefix or Measure is no valid UTF-8"
	}
	return ""
}

func (t Threshold) watches(step calendar.Step, name string) bool {
	return t.Step == step && strings.HasPrefix(name, t.Prefix) && (t.Measure == "" || strings.HasSuffix(name, "."+t.Measure))
}

// Watch is what an instance watches, and who is to be told.
type Watch struct {
	Thresholds []Threshold
	Receivers  []string // none: whoever finds the word tells those that it has
}

// Of tells whether a threshold is about rows of a step (0: totals) and a name.
func (w Watch) Of(step calendar.Step, name string) bool {
	return slices.ContainsFunc(w.Thresholds, func(t Threshold) bool { return t.watches(step, name) })
}

// Crossed appends what a row has crossed that n was added to, and that is at after now.
func (w Watch) Crossed(list []Crossing, step calendar.Step, bucket int64, name string, n, after int64) []Crossing {
	for _, t := range w.Thresholds {
		if after-n < t.Value && t.Value <= after && t.watches(step, name) {
			c := Crossing{Name: name, Step: step, Value: t.Value, N: after}
			if step != 0 {
				c.Start = time.Unix(bucket, 0)
			}
			list = append(list, c)
		}
	}
	return list
}
