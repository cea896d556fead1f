package naming

import (
	"fmt"
	"testing"
	"time"
)

func TestLatencyBuckets(t *testing.T) {
	const ms = time.Millisecond
	bounds := []time.Duration{5, 10, 25, 50, 75, 100, 250, 500, 750, 1000, 2500, 5000, 7500, 10000}
	for i, b := range bounds {
		at, beyond := fmt.Sprintf("latency_%dms", b), "latency_inf"
		if i+1 < len(bounds) {
			beyond = fmt.Sprintf("latency_%dms", bounds[i+1])
		}
		if got := Measure(Latency(b * ms)); got != at {
			t.Errorf("%v: %s, want %s", b*ms, got, at)
		}
		if got := Measure(Latency(b*ms + 1)); got != beyond {
			t.Errorf("%v: %s, want %s", b*ms+1, got, beyond)
		}
	}
	for d, want := range map[time.Duration]string{-1: "latency_5ms", 0: "latency_5ms", time.Hour: "latency_inf"} {
		if got := Measure(Latency(d)); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
}
