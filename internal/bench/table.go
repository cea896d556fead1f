package main

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"text/tabwriter"
)

// table has a row for each candidate, of each group on one core and on two.
type table struct{ *tabwriter.Writer }

func newTable(w io.Writer) table {
	t := table{tabwriter.NewWriter(w, 8, 0, 2, ' ', tabwriter.AlignRight)}
	fmt.Fprintln(t, "cores\tns/op\tmin–max\tnet of bare\tB/op\tallocs/op\tratio\tmin–max\t  candidate")
	return t
}

// add writes the rows of a group, at once, so that a run that is stopped has shown
// what it has; columns are wide enough to stay where they are. In a group with a bare handler, ratio, bytes and
// allocations are net of it.
func (t table) add(g *group, all costs) {
	if len(g.contestants) == 0 {
		return
	}
	fmt.Fprintf(t, "\t\t\t\t\t\t\t\t\n\t\t\t\t\t\t\t\t  %s\n", g.title)
	for _, cores := range coreCounts {
		base := all[cores][bare]
		reference := above(all[cores][ours], base)
		for _, c := range g.contestants {
			gross := all[cores][c.name]
			if len(gross) == 0 {
				continue
			}
			own, netNS := gross, ""
			if base != nil && c.name != bare {
				own = above(gross, base)
				netNS = digits(median(own, ns))
			}
			ratio, spread := "", ""
			if c.name != bare && len(reference) == len(own) {
				r := ratios(own, reference)
				ratio, spread = digits(middle(r)), digits(r[0])+"–"+digits(r[len(r)-1])
			}
			times := sorted(gross, ns)
			fmt.Fprintf(t, "%d\t%s\t%s–%s\t%s\t%s\t%s\t%s\t%s\t  %s\n", cores, digits(middle(times)), digits(times[0]), digits(times[len(times)-1]),
				netNS, digits(median(own, bytes)), digits(median(own, allocs)), ratio, spread, c.name)
		}
	}
	_ = t.Flush() // run's own has the error
}

// addLive writes what a name costs while it lives.
func (t table) addLive(title string, names []string, bytes map[string]float64) {
	if len(names) == 0 {
		return
	}
	fmt.Fprintf(t, "\t\t\t\t\t\t\t\t\n\t\t\t\t\t\t\t\t  %s\n", title)
	for _, name := range names {
		ratio := ""
		if bytes[ours] > 0 {
			ratio = digits(bytes[name] / bytes[ours])
		}
		fmt.Fprintf(t, "\t\t\t\t%s\t\t%s\t\t  %s\n", digits(bytes[name]), ratio, name)
	}
}

func ns(c cost) float64     { return c.ns }
func bytes(c cost) float64  { return c.bytes }
func allocs(c cost) float64 { return c.allocs }

// above takes from each round's cost what the bare handler cost in it.
func above(gross, base []cost) []cost {
	if base == nil {
		return gross
	}
	all := make([]cost, len(gross))
	for i, c := range gross {
		all[i] = cost{c.ns - base[i].ns, c.bytes - base[i].bytes, c.allocs - base[i].allocs}
	}
	return all
}

// ratios returns those of the rounds, in order.
func ratios(own, reference []cost) []float64 {
	all := make([]float64, len(own))
	for i := range own {
		all[i] = own[i].ns / reference[i].ns
	}
	slices.Sort(all)
	return all
}

func sorted(all []cost, of func(cost) float64) []float64 {
	values := make([]float64, len(all))
	for i, c := range all {
		values[i] = of(c)
	}
	slices.Sort(values)
	return values
}

func median(all []cost, of func(cost) float64) float64 { return middle(sorted(all, of)) }

// middle returns the median of sorted values.
func middle(values []float64) float64 {
	n := len(values)
	return (values[(n-1)/2] + values[n/2]) / 2
}

// digits writes a number as exactly as it is worth reading.
func digits(v float64) string {
	switch {
	case v < 0.005 && v > -0.005:
		return "0"
	case v < 9.995 && v > -9.995:
		return strconv.FormatFloat(v, 'f', 2, 64)
	case v < 99.95 && v > -99.95:
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	return thousands(int64(math.Round(v)))
}

func thousands(n int64) string {
	s := strconv.FormatInt(n, 10)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
