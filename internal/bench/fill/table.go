package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/usagekit/usagekit/store"
)

const barOfStart = 100 * time.Millisecond

// writeTable has a row for each query, and one for the start.
func writeTable(w io.Writer, t target, results []result, starts []time.Duration) error {
	table := tabwriter.NewWriter(w, 8, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(table, "returned\tcold ms\tp50\tp95\tmax\tcached p95\tbar\t  "+t.name)
	for _, r := range results {
		note := ""
		if r.failed > 0 {
			note = fmt.Sprintf(" (%d times without an answer)", r.failed)
		}
		fmt.Fprintf(table, "%d\t%s\t%s\t%s\t%s\t%s\t%s\t  %s%s\n", r.returned, ms(r.cold), ms(share(r.warm, 0.5)), ms(share(r.warm, 0.95)), ms(share(r.warm, 1)),
			ms(share(r.cached, 0.95)), bar(r.bar), r.title, note)
	}
	fmt.Fprintf(table, "\t\t%s\t%s\t%s\t\t%s\t  start: from New until the first count is made\n", ms(share(starts, 0.5)), ms(share(starts, 0.95)), ms(share(starts, 1)), bar(barOfStart))
	return table.Flush()
}

// share returns the least of sorted durations that so large a share of them does
// not exceed.
func share(sorted []time.Duration, p float64) time.Duration {
	return sorted[max(0, int(p*float64(len(sorted))+0.999999)-1)]
}

// ms writes milliseconds as exactly as they are worth reading.
func ms(d time.Duration) string {
	v := float64(d) / float64(time.Millisecond)
	switch {
	case v < 9.95:
		return strconv.FormatFloat(v, 'f', 2, 64)
	case v < 99.5:
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	return thousands(int64(v + 0.5))
}

func bar(d time.Duration) string {
	if d == 0 {
		return ""
	}
	return "≤ " + thousands(d.Milliseconds())
}

func thousands(n int64) string {
	s := strconv.FormatInt(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// writeLegend says what was measured, and where.
func (s settings) writeLegend(ctx context.Context, w io.Writer, t target, written map[store.Step]int, took time.Duration) error {
	db, err := t.open()
	if err != nil {
		return err
	}
	defer db.Close()
	var about string
	if err := db.GetContext(ctx, &about, t.about); err != nil {
		return err
	}
	var sizes []struct {
		Name string
		MB   int64
	}
	if err := db.SelectContext(ctx, &sizes, t.size); err != nil {
		return err
	}
	fmt.Fprintf(w, "\n%s, %s, %s/%s, %d CPUs%s\n", time.Now().Format(time.DateOnly), runtime.Version(), runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), model())
	fmt.Fprintf(w, "%s %s\n\n%s\nScale %v: usage_metrics has %s rows; usage_history %s of hours, %s of days, %s of months.\n", t.name, about, density, s.scale,
		thousands(int64(written[0])), thousands(int64(written[store.Hour])), thousands(int64(written[store.Day])), thousands(int64(written[store.Month])))
	for i, size := range sizes {
		if i > 0 {
			fmt.Fprint(w, "; ")
		}
		fmt.Fprintf(w, "%s: %s MB", size.Name, thousands(size.MB))
	}
	fmt.Fprintf(w, ". Filled in %v.\n\n", took.Round(time.Second))
	_, err = fmt.Fprintf(w, `Milliseconds in the dashboard's handler. Cold is the first request of each query, %s.
p50, p95 and max are of %d requests, the queries in turn, each by a dashboard that has
no answer of it yet; cached, by one that has. A read that takes 5 s is given up.
`, t.cold, s.rounds)
	return err
}

// model is that of the processor, where the system tells.
func model() string {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return ""
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if name, value, ok := strings.Cut(lines.Text(), ":"); ok && strings.TrimSpace(name) == "model name" {
			return ", " + strings.TrimSpace(value)
		}
	}
	return ""
}
