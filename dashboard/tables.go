package dashboard

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/usagekit/usagekit/internal/naming"
	"github.com/usagekit/usagekit/store"
)

const (
	shownRoutes  = 50
	shownLines   = 15 // of every other table
	shownColumns = 5  // of the table of models
	namesTimeout = 2 * time.Second
)

// view is what tables.html shows.
type view struct {
	meta
	stats
	brand
	Folder   string   // of the assets
	Refresh  int      // seconds; 0: when somebody asks
	Troubles []string // of the store
	Headline []cell
	Tables   []table
	Unused   []table // without lines
}

type table struct {
	ID, Title, Caption string
	Empty, Example     string // what to do about a table without lines, in words and in Go
	JSON               string // where all of it is
	Subject            string // heads the names, as Columns do the cells
	Columns            []string
	Lines              []line
	More               bool // lines than these
}

type line struct {
	Name  string
	ID    string // what Config.Users gave the Name for
	Share int    // of the table's largest line, in thousandths
	Cells []cell
}

type cell struct {
	Label, Text string
	Bad         bool
}

func (h *handler) serveTables(w http.ResponseWriter, r *http.Request) {
	p := h.params(r)
	p.only("refresh")
	refresh := p.number("refresh", 0, 5, 3600)
	if p.err != nil {
		failRead(w, r, p.err)
		return
	}
	if refresh > 0 { // a header, for then the browser tries again after an error too
		w.Header().Set("Refresh", strconv.Itoa(refresh))
	}
	v, err := h.view(r.Context())
	if err != nil {
		failRead(w, r, err)
		return
	}
	v.Refresh, v.Folder, v.brand = refresh, h.assets.folder, h.brand
	var body bytes.Buffer
	if err := h.tables.Execute(&body, v); err != nil {
		panic(err) // tables.html is embedded, and fits view
	}
	write(w, r, http.StatusOK, "text/html; charset=utf-8", body.Bytes())
}

// pageRows is what the page shows besides stats.
type pageRows struct {
	meta
	routes, models []row
}

func (h *handler) askPageRows() func(context.Context) (pageRows, standing, error) {
	return ask(h.answers, "page", func(ctx context.Context) (pageRows, error) {
		m, rows, err := answerOf(ctx, h, func(ctx context.Context, r *reading) (rows pageRows, err error) {
			if rows.routes, err = readRows(ctx, r, store.Query{Prefix: "api.", Measure: "requests", Limit: shownRoutes + 1}); err == nil {
				rows.models, err = readRows(ctx, r, store.Query{Prefix: "llm.", Limit: shownLines + 1})
			}
			return rows, err
		})
		rows.meta = m
		return rows, err
	})
}

func (h *handler) view(ctx context.Context) (*view, error) {
	waitStats, waitRows := h.askStats(defaultStats), h.askPageRows() // both are read at once
	answer, how, err := waitStats(ctx)
	if err != nil {
		return nil, err
	}
	m, s := answer.meta, answer.stats
	r, howRows, err := waitRows(ctx)
	if err != nil {
		return nil, err
	}
	again := how != fresh || howRows != fresh
	if again && r.AsOf.Before(m.AsOf) {
		m = r.meta // of the older
	}
	ofDatabase, others := troubles(h.store.Stats(), time.Now())
	m.Stale, m.Slow = again, again && how != stale && howRows != stale && len(ofDatabase) == 0
	v := &view{meta: m, stats: s, Troubles: others}
	if !m.Stale { // which is said already
		v.Troubles = append(ofDatabase, others...)
	}
	if s.Dropped > 0 {
		v.Troubles = append(v.Troubles, "counts that were dropped, of all time, at least: "+digits(s.Dropped))
	}
	v.Headline = []cell{
		{Label: "Requests, all time", Text: digits(s.TotalRequests)},
		{Label: "Requests today", Text: digits(s.RequestsToday)},
		{Label: "Active users today", Text: digits(s.Users[naming.ActiveDaily])},
		{Label: "Active users this month", Text: digits(s.Users[naming.ActiveMonthly])},
		{Label: "Registrations", Text: digits(s.Users[nameRegistrations])},
	}
	more := func(group string) bool { return slices.Contains(s.Truncated, group) }
	users := table{
		ID: "users", Title: "Users", Caption: "Who asked most", Subject: "User", Columns: []string{"Requests"},
		JSON: "api/totals?prefix=user.&measure=requests", More: more("users"),
		Empty: "No user seen yet. Tell the middleware who asks:", Example: `middleware.Config{User: userID}`,
	}.list(s.Users, "user.", ".requests")
	h.showNames(ctx, users.Lines)
	v.Tables = []table{
		routeTable(r.routes),
		table{
			ID: "areas", Title: "Areas", Caption: "Requests by area of the application", Subject: "Area", Columns: []string{"Requests"},
			JSON: "api/totals?prefix=api.requests.", More: more("api"),
			Empty: "No areas yet. Tell the middleware which a request is for:", Example: `middleware.Config{Area: area}`,
		}.list(s.API, "api.requests.", ""),
		users,
		table{
			ID: "features", Title: "Features", Caption: "What the application did", Subject: "Feature", Columns: []string{"Count"},
			JSON: "api/totals?prefix=feature.", More: more("features"),
			Empty: "No features counted yet. Count one:", Example: `usage.Inc("feature.outline.generated")`,
		}.list(s.Features, "feature.", ""),
		table{
			ID: "errors", Title: "Errors", Caption: "What went wrong", Subject: "Error", Columns: []string{"Count"},
			JSON: "api/totals?prefix=error.", More: more("errors"),
			Empty: "No errors counted yet. Count one:", Example: `usage.Inc("error.llm.timeout")`,
		}.list(s.Errors, "error.", ""),
		modelTable(r.models),
		table{
			ID: "other", Title: "Other", Caption: "Counters of every other group", Subject: "Name", Columns: []string{"Count"},
			JSON: "api/stats", More: more("other"),
			Empty: "Nothing else counted yet. Any dotted name will do:", Example: `usage.Add("mail.sent", 3)`,
		}.list(s.Other, "", ""),
	}
	unused := func(t table) bool { return len(t.Lines) == 0 }
	for _, t := range v.Tables {
		if unused(t) {
			v.Unused = append(v.Unused, t)
		}
	}
	v.Tables = slices.DeleteFunc(v.Tables, unused)
	return v, nil
}

// list fills t with the largest counters between prefix and suffix, each named
// by what stands between them. The sums are in the headline already.
func (t table) list(counters map[string]int64, prefix, suffix string) table {
	var largest int64
	for _, key := range bySize(counters) {
		name, begins := strings.CutPrefix(key, prefix)
		name, ends := strings.CutSuffix(name, suffix)
		if !begins || !ends || key == naming.RequestsTotal || key == naming.RequestsToday {
			continue
		}
		if len(t.Lines) == shownLines {
			t.More = true
			break
		}
		n := counters[key]
		largest = max(largest, n)
		t.Lines = append(t.Lines, line{Name: name, Share: share(n, largest), Cells: []cell{{Text: digits(n)}}})
	}
	return t
}

func routeTable(rows []row) table {
	t := table{
		ID: "routes", Title: "Routes", Caption: "Of all time. Errors are answers of 500 and above; half of the requests took p50 at most, 95 of 100 p95",
		Subject: "Route", Columns: []string{"Requests", "4xx", "Errors", "p50", "p95"},
		JSON: "api/rows?prefix=api.&measure=requests", More: len(rows) > shownRoutes,
		Empty: "No requests counted yet. Wrap the application's handler:", Example: `middleware.New(usage, middleware.Config{})(mux)`,
	}
	for _, r := range rows[:min(len(rows), shownRoutes)] {
		n, failed := r.Counts["requests"], r.Counts["status_5xx"]
		t.Lines = append(t.Lines, line{Name: r.Subject, Share: share(n, rows[0].Counts["requests"]), Cells: []cell{
			{Text: digits(n)}, {Text: digits(r.Counts["status_4xx"])}, {Text: digits(failed), Bad: failed > 0 && failed >= n/100},
			{Text: duration(r.P50)}, {Text: duration(r.P95)},
		}})
	}
	return t
}

// modelTable has a column for each measure of the models: calls, then the
// largest.
func modelTable(rows []row) table {
	t := table{
		ID: "llm", Title: "LLM", Caption: "Calls and tokens by model", Subject: "Model",
		JSON: "api/rows?prefix=llm.", More: len(rows) > shownLines,
		Empty: "No LLM calls counted yet. Count their tokens:", Example: `usage.Add("llm.gpt-4.tokens", 812)`,
	}
	if len(rows) == 0 {
		return t
	}
	rows = rows[:min(len(rows), shownLines)]
	sums := map[string]int64{}
	for _, r := range rows {
		for measure, n := range r.Counts {
			sums[measure] += min(n, math.MaxInt64-sums[measure])
		}
	}
	if sums["calls"] > 0 {
		sums["calls"] = math.MaxInt64 // first
	}
	measures := bySize(sums)
	measures = measures[:min(len(measures), shownColumns)]
	for _, measure := range measures {
		t.Columns = append(t.Columns, strings.ReplaceAll(measure, "_", " "))
	}
	largest := func(r row) int64 { return slices.Max(append(slices.Collect(maps.Values(r.Counts)), 0)) }
	for _, r := range rows {
		l := line{Name: r.Subject, Share: share(largest(r), largest(rows[0]))}
		for _, measure := range measures {
			l.Cells = append(l.Cells, cell{Text: digits(r.Counts[measure])})
		}
		t.Lines = append(t.Lines, l)
	}
	return t
}

// showNames puts the names that the application has for users in place of their
// ids.
func (h *handler) showNames(ctx context.Context, lines []line) {
	ids := make([]string, len(lines))
	for i, l := range lines {
		ids[i] = l.Name
	}
	names := h.namesOf(ctx, ids)
	for i, l := range lines {
		if name := names[l.Name]; name != "" {
			lines[i].Name, lines[i].ID = name, l.Name
		}
	}
}

// visible is a name with what cannot be seen, or turns the text around it, as escapes;
// format.js does the same.
func visible(name string) string {
	hidden := func(r rune) bool {
		return unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp, unicode.Co) || strings.ContainsRune("\u115f\u1160\u2800\u3164\uffa0", r)
	}
	if !strings.ContainsFunc(name, hidden) {
		return name
	}
	var b strings.Builder
	for _, r := range name {
		if hidden(r) {
			fmt.Fprintf(&b, "\\u%04x", r)
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

func share(n, largest int64) int {
	if largest <= 0 {
		return 0
	}
	return int(math.Round(1000 * float64(n) / float64(largest)))
}

// digits writes n in groups of three.
func digits(n int64) string {
	s := strconv.FormatInt(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// duration writes milliseconds with the digits that matter; 10 s is where the
// store's measure ends.
func duration(ms *float64) string {
	switch {
	case ms == nil:
		return "–"
	case *ms < 5:
		return "< 5 ms" // nothing is measured between 0 and the first bound
	case *ms >= 10_000:
		return "≥ 10 s"
	case *ms >= 999.5:
		return strconv.FormatFloat(*ms/1000, 'f', 1, 64) + " s"
	case *ms >= 10:
		return strconv.FormatFloat(*ms, 'f', 0, 64) + " ms"
	}
	return strconv.FormatFloat(*ms, 'f', 1, 64) + " ms"
}
