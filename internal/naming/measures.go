package naming

import "time"

// What is counted of a request under its route, by number. Measures that are classes
// of status and of latency follow one another.
const (
	Requests     = 0
	statusOther  = 5 // of a status that is none: the server's fault
	FirstLatency = 6 // the first of Latencies measures, the last of which has no bound
	Latencies    = 15
	Measures     = FirstLatency + Latencies
)

// LatencyPrefix begins each measure of latency.
const LatencyPrefix = "latency_"

// Measure returns the i-th measure's name.
func Measure(i int) string {
	return [Measures]string{
		"requests", "status_1xx", "status_2xx", "status_3xx", "status_4xx", "status_5xx",
		"latency_5ms", "latency_10ms", "latency_25ms", "latency_50ms", "latency_75ms", "latency_100ms", "latency_250ms", "latency_500ms",
		"latency_750ms", "latency_1000ms", "latency_2500ms", "latency_5000ms", "latency_7500ms", "latency_10000ms", "latency_inf",
	}[i]
}

// Bounds are those of latency, of each measure but the last: those of OpenTelemetry's
// http.server.request.duration. What is counted up to one is above the one before.
func Bounds() [Latencies - 1]time.Duration {
	const ms = time.Millisecond
	return [...]time.Duration{5 * ms, 10 * ms, 25 * ms, 50 * ms, 75 * ms, 100 * ms, 250 * ms, 500 * ms,
		750 * ms, 1000 * ms, 2500 * ms, 5000 * ms, 7500 * ms, 10000 * ms}
}

// Status returns the measure of a status: its class.
func Status(code int) int {
	if class := code / 100; 1 <= class && class <= 5 {
		return class
	}
	return statusOther
}

// Latency returns the measure of a duration.
func Latency(d time.Duration) int {
	if d <= 5*time.Millisecond { // what most take
		return FirstLatency
	}
	for i, bound := range Bounds() {
		if d <= bound {
			return FirstLatency + i
		}
	}
	return Measures - 1
}

// Summed tells whether a measure of the routes is summed over all of them: see TotalOf.
func Summed(measure string) bool {
	for i := range Measures {
		if Measure(i) == measure {
			return true
		}
	}
	return false
}
