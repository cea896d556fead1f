package main

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
)

const legend = `
wrk and the server share the CPUs, so requests/s has in it what wrk itself takes. CPU is
what a request cost the server, user and system: net/http, the kernel's TCP, and the
transactions that bring the counts into the database. Ratios are to the bare server in
the same round.
`

// table writes a row for each server; the first one is what all are compared with.
func table(w io.Writer, all []*contestant) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "requests/s\tmin–max\tratio\tmin–max\tCPU µs\tmin–max\tratio\tmin–max\tp50 µs\tp99 µs\t  server")
	for _, c := range all {
		for _, column := range []struct {
			of     func(run) float64
			digits int
		}{{perSecond, 0}, {cpu, 1}} {
			values, ratios := make([]float64, len(c.runs)), make([]float64, len(c.runs))
			for i, r := range c.runs {
				values[i] = column.of(r)
				ratios[i] = values[i] / column.of(all[0].runs[i])
			}
			fmt.Fprint(t, spread(values, column.digits), spread(ratios, 3))
		}
		var p50, p99 []float64
		for _, r := range c.runs {
			p50, p99 = append(p50, float64(r.P50)), append(p99, float64(r.P99))
		}
		fmt.Fprintf(t, "%.0f\t%.0f\t  %s\n", median(p50), median(p99), c.kind)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprint(w, legend)
	return err
}

func perSecond(r run) float64 { return float64(r.Requests) / float64(r.Microseconds) * 1e6 }
func cpu(r run) float64       { return r.cpu }

// spread returns two cells: the median, and the least and the greatest.
func spread(values []float64, digits int) string {
	return fmt.Sprintf("%.*f\t%.*f–%.*f\t", digits, median(values), digits, slices.Min(values), digits, slices.Max(values))
}

func median(values []float64) float64 {
	s, n := slices.Sorted(slices.Values(values)), len(values)
	return (s[(n-1)/2] + s[n/2]) / 2
}
