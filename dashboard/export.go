package dashboard

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/usagekit/usagekit/internal/naming"
	"github.com/usagekit/usagekit/store"
)

const (
	maxExports  = 2                // at a time
	exportAhead = 1_000            // lines that are written before the reader must have taken some
	exportPause = 30 * time.Second // that a reader may make
)

var errUnread = errors.New("dashboard: nobody reads the export")

// record is a line of an export: in JSON an object, in CSV its fields in order.
type record interface{ fields() []string }

type exportedCount struct {
	Name    string `json:"name"`
	Group   string `json:"group"`
	Subject string `json:"subject"`
	Measure string `json:"measure"`
	N       int64  `json:"n"`
}

func (c exportedCount) fields() []string {
	return []string{c.Name, c.Group, c.Subject, c.Measure, strconv.FormatInt(c.N, 10)}
}

type exportedBucket struct {
	Start time.Time `json:"start"`
	exportedCount
}

func (b exportedBucket) fields() []string {
	return append([]string{b.Start.Format(time.RFC3339)}, b.exportedCount.fields()...)
}

// exportedRow is a row with its measures in the order of columns.
type exportedRow struct {
	row
	columns []string
}

func (r exportedRow) fields() []string {
	f := []string{r.Group, r.Subject}
	for _, ms := range []*float64{r.P50, r.P95, r.P99} {
		if ms == nil {
			f = append(f, "")
		} else {
			f = append(f, strconv.FormatFloat(*ms, 'f', -1, 64))
		}
	}
	for _, c := range r.columns {
		f = append(f, strconv.FormatInt(r.Counts[c], 10))
	}
	return f
}

// serveExport writes as it reads, page by page: however much there is, it takes the
// memory of one, and a connection only while a page is read. What cannot be read to
// its end is cut off, so that nobody takes it for whole.
func (h *handler) serveExport(w http.ResponseWriter, r *http.Request) {
	p := h.params(r)
	q := p.query(0, 1<<31-1, "name", "step", "of", "format", "bom")
	q.Step = p.step()
	of, format := cmp.Or(p.get("of"), "totals"), cmp.Or(p.get("format"), "csv")
	switch {
	case of != "totals" && of != "rows" && of != "history":
		p.fail("of must be totals, rows or history, not %q", short(of))
	case format != "csv" && format != "json":
		p.fail("format must be csv or json, not %q", short(format))
	case p.number("bom", 0, 0, 1) == 1 && format != "csv":
		p.fail("bom is for format=csv")
	case of == "history" && q.Step == 0:
		p.fail("a history needs a step: hour, day or month")
	case of != "history" && q.Step != 0:
		p.fail("step is for of=history")
	}
	if p.err != nil {
		failRead(w, r, p.err)
		return
	}
	select {
	case h.exports <- struct{}{}:
	default:
		w.Header().Set("Retry-After", "10")
		fail(w, r, http.StatusServiceUnavailable, fmt.Sprintf("%d exports are being made, and no more at a time: try again", maxExports))
		return
	}
	// Its place is for those that get on. A reader who makes a longer pause gives it
	// away, also where no deadline reaches his connection.
	leave := sync.OnceFunc(func() { <-h.exports })
	defer leave()

	var (
		header  []string
		records iter.Seq2[record, error]
	)
	rows := of == "rows"
	type begun struct {
		store.Query // as of then
		rows        []row
	}
	m, b, err := answerOf(r.Context(), h, func(ctx context.Context, r *reading) (b begun, err error) {
		if b.Query, err = h.at(q, r); err == nil && rows {
			b.Limit = min(cmp.Or(b.Limit, maxNames), maxNames)
			b.rows, err = readRows(ctx, r, b.Query)
		}
		return b, err
	})
	switch {
	case err != nil:
	case rows:
		header, records = exportRows(b.rows)
	default:
		header, records = h.exportCounts(r.Context(), b.Query)
		records, err = first(records)
	}
	if err != nil {
		failExport(w, r, err)
		return
	}
	h.stream(w, r, m, of, format, p.get("bom") == "1", header, records, leave)
}

// failExport is failRead of what no cache has read, and so logged.
func failExport(w http.ResponseWriter, r *http.Request, err error) {
	if mistake(err) == "" && r.Context().Err() == nil {
		slog.Warn("usage dashboard: an export could not be read", "err", err)
	}
	failRead(w, r, err)
}

func exportRows(rows []row) ([]string, iter.Seq2[record, error]) {
	measures := map[string]bool{}
	for _, r := range rows {
		for m := range r.Counts {
			measures[m] = true
		}
	}
	columns := slices.SortedFunc(maps.Keys(measures), func(a, b string) int {
		return cmp.Or(cmp.Compare(bound(a), bound(b)), cmp.Compare(a, b))
	})
	return append([]string{"group", "subject", "p50_ms", "p95_ms", "p99_ms"}, columns...), func(yield func(record, error) bool) {
		for _, r := range rows {
			if !yield(exportedRow{r, columns}, nil) {
				return
			}
		}
	}
}

// bound sorts measures of latency by their bound, after all others.
func bound(measure string) int {
	text, ok := strings.CutPrefix(measure, naming.LatencyPrefix)
	if !ok {
		return -1
	}
	ms, err := strconv.Atoi(strings.TrimSuffix(text, "ms"))
	if err != nil {
		return 1 << 30 // without a bound
	}
	return ms
}

func (h *handler) exportCounts(ctx context.Context, q store.Query) ([]string, iter.Seq2[record, error]) {
	header := []string{"name", "group", "subject", "measure", "n"}
	if q.Step != 0 {
		header = append([]string{"start"}, header...)
	}
	return header, func(yield func(record, error) bool) {
		for c, err := range h.store.Each(ctx, q) {
			group, subject, measure := store.SplitName(c.Name)
			line := exportedCount{c.Name, group, subject, measure, c.N}
			var rec record = line
			if q.Step != 0 {
				rec = exportedBucket{c.Start.In(h.zone()), line}
			}
			if !yield(rec, err) {
				return
			}
		}
	}
}

// first is seq, with its first element read: an error there can still be answered.
func first(seq iter.Seq2[record, error]) (iter.Seq2[record, error], error) {
	next, stop := iter.Pull2(seq)
	rec, err, ok := next()
	if err != nil {
		stop()
		return nil, err
	}
	return func(yield func(record, error) bool) {
		defer stop()
		for ; ok; rec, err, ok = next() {
			if !yield(rec, err) {
				return
			}
		}
	}, nil
}

func (h *handler) stream(w http.ResponseWriter, r *http.Request, m meta, of, format string, bom bool, header []string, records iter.Seq2[record, error], leave func()) {
	contentType := "text/csv; charset=utf-8; header=present"
	if format == "json" {
		contentType = typeJSON
	}
	control := http.NewResponseController(w)
	tooLong := time.AfterFunc(exportPause, leave)
	defer tooLong.Stop()
	pause := func() error {
		if !tooLong.Reset(exportPause) { // it has left already
			leave()
			return errUnread
		}
		_ = control.SetWriteDeadline(time.Now().Add(exportPause)) // where it can be set
		return nil
	}
	_ = pause()
	w.Header().Set("Content-Disposition", fmt.Sprintf(`attachment; filename="usage-%s-%s.%s"`, of, m.AsOf.Format("2006-01-02-1504"), format))
	head(w, http.StatusOK, contentType)
	if r.Method == http.MethodHead {
		for range records { // they have begun, and end so
			break
		}
		return
	}
	lines := csvLines(w, bom, header)
	if format == "json" {
		lines = jsonLines(w, m, of)
	}
	err := func() error {
		n := 0
		for rec, err := range records {
			if err == nil {
				err = lines.write(rec)
			}
			if n++; err == nil && n%exportAhead == 0 {
				if err = pause(); err == nil {
					err = lines.flush()
				}
				if err == nil {
					err = flushed(control)
				}
			}
			if err != nil {
				return err
			}
		}
		if err := pause(); err != nil {
			return err
		}
		return lines.close()
	}()
	if err != nil {
		if r.Context().Err() == nil {
			slog.Warn("usage dashboard: an export broke off", "err", err)
		}
		panic(http.ErrAbortHandler) // and the connection is cut: an end would be a lie
	}
}

// flushed hands on what was written. Where nobody can flush, it goes out later.
func flushed(control *http.ResponseController) error {
	if err := control.Flush(); !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	return nil
}

// lines writes records in a format.
type lines struct {
	write        func(record) error
	flush, close func() error
}

// csvLines quotes every cell, as RFC 4180 allows. With a byte order mark it is for
// spreadsheets: without one Excel reads it in a code page of its own.
func csvLines(w io.Writer, bom bool, header []string) lines {
	b := bufio.NewWriter(w)
	if bom {
		_, _ = b.WriteString("\ufeff") // an error stays in b
	}
	line := func(fields []string) error {
		for i, f := range fields {
			if i > 0 {
				_ = b.WriteByte(',')
			}
			_, _ = b.WriteString(`"` + strings.ReplaceAll(inert(f), `"`, `""`) + `"`)
		}
		_, err := b.WriteString("\r\n")
		return err
	}
	_ = line(header)
	return lines{write: func(r record) error { return line(r.fields()) }, flush: b.Flush, close: b.Flush}
}

// inert is a cell that no spreadsheet takes for a formula: with ' in front where its
// first character, spaces aside, could begin one (OWASP, CSV Injection). So could what
// follows a semicolon, which ends a cell where commas do not.
func inert(cell string) string {
	parts := strings.Split(cell, ";")
	for i, p := range parts {
		first, _ := utf8.DecodeRuneInString(strings.TrimLeft(p, " \u00a0"))
		if p != "" && strings.ContainsRune("=+-@\t\r\n＝＋－＠|%", first) {
			parts[i] = "'" + p
		}
	}
	return strings.Join(parts, ";")
}

func jsonLines(w io.Writer, m meta, of string) lines {
	b := bufio.NewWriter(w)
	key := "counts"
	if of == "rows" {
		key = of
	}
	begin := bytes.TrimSuffix(marshal(m), []byte("}\n"))
	fmt.Fprintf(b, "%s,%q:[\n", begin, key) // an error stays in b
	first := true
	return lines{
		write: func(r record) error {
			if !first {
				_, _ = b.WriteString(",\n")
			}
			first = false
			_, err := b.Write(bytes.TrimSuffix(marshal(r), []byte("\n")))
			return err
		},
		flush: b.Flush,
		close: func() error {
			_, _ = b.WriteString("\n]}\n")
			return b.Flush()
		},
	}
}
