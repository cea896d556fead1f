package main

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"text/tabwriter"
	"time"
)

// Each row is written when it is there, so columns are wide enough to stay where
// they are.
func newWriter(w io.Writer) *tabwriter.Writer {
	return tabwriter.NewWriter(w, 10, 0, 1, ' ', tabwriter.AlignRight)
}

// header writes the names of the columns before the first row only.
type header struct {
	*tabwriter.Writer
	text string
}

func (h *header) once() {
	if h.text != "" {
		fmt.Fprintln(h, h.text)
	}
	h.text = ""
}

type instancesRow struct {
	way              string
	instances, share int
	used             usage
	adds             int64
	took             []time.Duration // of the markers
	unseen           int             // of them: took is how long they waited in vain
	rows, bytes      []int64
	batchBytes       float64 // 0: as rows and bytes have it
	late, end        time.Duration
	givenUp          bool // Shutdown was, after end
	said             string
}

type instancesTable struct {
	header
	out io.Writer
}

func newInstancesTable(w io.Writer) *instancesTable {
	return &instancesTable{out: w, header: header{newWriter(w), "\n\tinstances\ta pool\tadds/s\tbatches/s\tp50 s\tp99 s\tmax s\twaiting\tmost\tKiB\tmost\tB/batch\tdb\town\tothers\tms/batch\ttx/s\tundone\tdeadlocks\t"}}
}

func (t *instancesTable) add(r instancesRow) error {
	t.once()
	slices.Sort(r.took)
	if r.batchBytes == 0 {
		r.batchBytes = sum(r.bytes) / sum(r.rows)
	}
	u := r.used
	fmt.Fprintf(t, "%s\t%d\t%d", r.way, r.instances, r.share)
	for _, v := range []float64{
		float64(r.adds) / u.seconds, float64(u.batches) / u.seconds,
		quantile(r.took, 0.5).Seconds(), quantile(r.took, 0.99).Seconds(), quantile(r.took, 1).Seconds(),
		median(r.rows), most(r.rows), median(r.bytes) / 1024, most(r.bytes) / 1024, r.batchBytes,
		u.server / u.seconds, u.own / u.seconds, u.others() / u.seconds, u.perBatch() * 1000,
		float64(u.transactions) / u.seconds, float64(u.undone), float64(u.deadlocks),
	} {
		fmt.Fprint(t, "\t", digits(v))
	}
	fmt.Fprintln(t, "\t")
	if err := t.Flush(); err != nil {
		return err
	}
	if r.unseen > 0 {
		fmt.Fprintf(t.out, "    %d of %d markers were not seen in the time that there was: they took longer\n", r.unseen, len(r.took))
	}
	if r.late > time.Second {
		fmt.Fprintf(t.out, "    what adds was behind by up to %v\n", r.late.Round(time.Millisecond))
	}
	switch end := r.end.Round(time.Millisecond); {
	case r.givenUp:
		fmt.Fprintf(t.out, "    Shutdown of all at once was given up after %v: the counts were not checked\n", end)
	case end > time.Second:
		fmt.Fprintf(t.out, "    Shutdown of all at once took %v\n", end)
	}
	_, err := io.WriteString(t.out, r.said)
	return err
}

type writersRow struct {
	way     string
	writers int
	used    usage
	rest    time.Duration // from the last Add to the end
	said    string
}

type writersTable struct {
	header
	out  io.Writer
	ours float64 // batches a second of the first row
}

func newWritersTable(w io.Writer) *writersTable {
	return &writersTable{out: w, header: header{newWriter(w), "\n\twriters\tnames\tbatches\tseconds\tof them at\tbatches/s\tdb\town\tothers\tms/batch\ttx/s\tundone\tdeadlocks\t\n\t\t\t\t\tthe end"}}
}

func (t *writersTable) add(r writersRow) error {
	t.once()
	u := r.used
	rate := float64(u.batches) / u.seconds
	fmt.Fprintf(t, "%s\t%d\t%d\t%d", r.way, r.writers, sharedNames, u.batches)
	for _, v := range []float64{u.seconds, r.rest.Seconds(), rate, u.server / u.seconds, u.own / u.seconds, u.others() / u.seconds, u.perBatch() * 1000, float64(u.transactions) / u.seconds, float64(u.undone), float64(u.deadlocks)} {
		fmt.Fprint(t, "\t", digits(v))
	}
	fmt.Fprintln(t, "\t")
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := io.WriteString(t.out, r.said)
	if t.ours > 0 && err == nil {
		_, err = fmt.Fprintf(t.out, "usagekit stores %s times as many batches a second as the upsert.\n", digits(t.ours/rate))
	}
	t.ours = rate
	return err
}

type liteTable struct{ *tabwriter.Writer }

func newLiteTable(w io.Writer) liteTable {
	t := liteTable{newWriter(w)}
	fmt.Fprintln(t, "\nSQLite\tnames\tfold ms\tnames/s\tFlush ms\tnames/s\t")
	return t
}

func (t liteTable) add(what string, names int, f flushed) {
	fmt.Fprintf(t, "%s\t%d", what, names)
	for _, d := range []time.Duration{f.fold, f.all} {
		fmt.Fprintf(t, "\t%s\t%s", digits(float64(d)/1e6), digits(float64(names)/d.Seconds()))
	}
	fmt.Fprintln(t, "\t")
}

// quantile returns that of sorted values; NaN has no Duration, so it is 0 of none.
func quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[int(math.Ceil(q*float64(len(sorted))))-1]
}

func median(values []int64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(values))
	return float64(sorted[(len(sorted)-1)/2]+sorted[len(sorted)/2]) / 2
}

func most(values []int64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	return float64(slices.Max(values))
}

func sum(values []int64) (s float64) {
	for _, v := range values {
		s += float64(v)
	}
	return s
}

// digits writes a number as exactly as it is worth reading; – for one that there
// is not.
func digits(v float64) string {
	switch {
	case math.IsNaN(v) || math.IsInf(v, 0):
		return "–"
	case v == math.Trunc(v) || v >= 99.95:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case v >= 9.995:
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	return strconv.FormatFloat(v, 'f', 2, 64)
}
