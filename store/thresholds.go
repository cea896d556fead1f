package store

import (
	"context"
	"time"

	"github.com/usagekit/usagekit/internal/calendar"
	"github.com/usagekit/usagekit/internal/crossing"
)

// Threshold asks for word when a counter reaches Value: each counter whose name begins
// with Prefix and ends in "."+Measure, once per bucket of Step, or once of all time.
// A sum of all routes is a counter like each of them: Prefix "api." and Measure
// "status_5xx" are about api.requests.status_5xx, too, and that Prefix is about it alone.
type Threshold struct {
	Prefix  string
	Measure string // "": any
	Step    Step   // of the buckets that are watched, one that is kept; 0: the total of all time
	Value   int64  // 1 … 2^53−1
}

// Crossing is a counter that has reached a Threshold.
type Crossing struct {
	Name  string
	Step  Step
	Start time.Time // of the bucket, in the store's zone; zero of all time
	Value int64     // the threshold's
	N     int64     // what the counter had reached when it was seen to be past Value
	Time  time.Time // when that was
}

func (t Threshold) watched() crossing.Threshold {
	return crossing.Threshold{Prefix: t.Prefix, Measure: t.Measure, Step: calendar.Step(t.Step), Value: t.Value}
}

// watched are the thresholds of c.
func (c Config) watched() []crossing.Threshold {
	var list []crossing.Threshold
	for _, t := range c.Thresholds {
		list = append(list, t.watched())
	}
	return list
}

// receivers are those of c.
func (c Config) receivers() map[string]crossing.Receiver {
	receivers := map[string]crossing.Receiver{}
	for name, notify := range c.Notify {
		receivers[name] = func(ctx context.Context, of crossing.Crossing) error {
			return notify(ctx, Crossing{Name: of.Name, Step: Step(of.Step), Start: of.Start, Value: of.Value, N: of.N, Time: of.Time})
		}
	}
	return receivers
}
