package dashboard

import (
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/http"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/usagekit/usagekit/store"
)

// yielding is a fake with an Each of its own.
type yielding struct {
	fake
	each func(ctx context.Context, yield func(store.Count, error) bool)
}

func (y *yielding) Each(ctx context.Context, _ store.Query) iter.Seq2[store.Count, error] {
	return func(yield func(store.Count, error) bool) { y.each(ctx, yield) }
}

func numbered(i int) store.Count {
	return store.Count{Name: fmt.Sprintf("feature.%d.used", i), N: int64(i)}
}

// sheet asks for an export as CSV and returns its header and lines.
func sheet(t *testing.T, h http.Handler, query string) (header []string, lines [][]string) {
	t.Helper()
	w := get(h, "/usage/api/export?"+query)
	all, err := csv.NewReader(w.Body).ReadAll()
	if err != nil || w.Code != 200 || w.Header().Get("Content-Type") != "text/csv; charset=utf-8; header=present" || len(all) == 0 {
		t.Fatalf("%s: %d %v %v", query, w.Code, w.Header(), err)
	}
	return all[0], all[1:]
}

// exported asks for an export as JSON.
func exported[T any](t *testing.T, h http.Handler, query string) (value T) {
	t.Helper()
	w := get(h, "/usage/api/export?format=json&"+query)
	d := json.NewDecoder(w.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(&value); err != nil || d.More() || w.Code != 200 || w.Header().Get("Content-Type") != typeJSON {
		t.Fatalf("%s: %d %v %v", query, w.Code, w.Header(), err)
	}
	return value
}

// number is a cell of text.
func number(t *testing.T, cell string) int64 {
	t.Helper()
	n, err := strconv.ParseInt(cell, 10, 64)
	if err != nil {
		t.Error(err)
	}
	return n
}

// exporting is a store with much in it, now and in the past, and what may be asked of it.
func exporting(t *testing.T, users int) (*past, []string) {
	p := remembering(t, "Europe/Paris")
	now := map[string]int64{
		"api.GET /a, \"b\".requests": 100, "api.GET /a, \"b\".status_2xx": 90, "api.GET /a, \"b\".status_5xx": 10,
		"api.GET /a, \"b\".latency_10ms": 90, "api.GET /a, \"b\".latency_100ms": 5, "api.GET /a, \"b\".latency_5ms": 3, "api.GET /a, \"b\".latency_inf": 2,
		"api.GET /b.requests": 200, "llm.gpt-4.tokens": 1<<53 - 1, "llm.gpt-4.calls": 3, "plain": 1, "é.日本.ü": 4, "a.\u202e.x": 1, "a.b;c.d": 2, "a. .c": 6,
	}
	for i := range users {
		now[fmt.Sprintf("user.%d.requests", i)] = int64(i + 1)
	}
	p.add(t,
		batch{at("2025-03-29T12:00:00Z"), map[string]int64{"feature.a.used": 1, "api.GET /b.requests": 10, "user.1.requests": 7}},
		batch{at("2025-03-30T00:30:00Z"), map[string]int64{"feature.a.used": 2, "feature.b.used": 3}},
		batch{at("2025-03-30T01:30:00Z"), map[string]int64{"feature.a.used": 4}}, // two hours later there
		batch{at("2025-10-26T00:30:00Z"), map[string]int64{"feature.a.used": 5}},
		batch{at("2025-10-26T01:30:00Z"), map[string]int64{"feature.a.used": 6}}, // the same hour again
		batch{time.Now(), now},
	)
	return p, []string{
		"", "prefix=feature.", "measure=requests&prefix=api.", "contains=GPT", "except=user.&except=api.", "prefix=user.&from=2025-03-01&to=2025-03-31", "range=today", "range=13mo&except=user.",
		"from=2025-03-30&to=2025-03-30&except=user.", "from=2025-03-30T00:30:00Z&to=2025-03-30T00:45:00Z&except=user.", "to=2025-03-29&except=user.", "prefix=nothing.", "from=2030-01-01",
	}
}

// What is exported is what api/totals, api/rows and api/history answer, but for its order
// and that it is all.
func TestExport(t *testing.T) {
	p, queries := exporting(t, 1_100)
	h := open(p)
	for _, query := range append(queries, "name=plain&name=llm.gpt-4.tokens&name=nothing") {
		want := map[string]int64{}
		for _, c := range decode(t, h, "/usage/api/totals?limit=10000&"+query)["counts"].([]any) {
			c := c.(map[string]any)
			want[c["name"].(string)] = int64(c["n"].(float64))
		}
		header, lines := sheet(t, h, query)
		if !slices.Equal(header, []string{"name", "group", "subject", "measure", "n"}) {
			t.Errorf("%s: the columns are %q", query, header)
		}
		got := map[string]int64{}
		for _, l := range lines {
			group, subject, measure := store.SplitName(l[0])
			if l[1] != group || l[2] != subject || l[3] != measure {
				t.Errorf("%s: %q", query, l)
			}
			got[l[0]] = number(t, l[4])
		}
		if !maps.Equal(got, want) || len(lines) != len(want) {
			t.Errorf("%s: %d lines %.300v, want %d %.300v", query, len(lines), got, len(want), want)
		}
		a := exported[struct {
			meta
			Counts []exportedCount `json:"counts"`
		}](t, h, query)
		again := map[string]int64{}
		for i, c := range a.Counts {
			if !slices.Equal(c.fields(), lines[i]) {
				t.Errorf("%s: in JSON %q, in CSV %q", query, c.fields(), lines[i])
			}
			again[c.Name] = c.N
		}
		if !maps.Equal(again, want) || len(a.Counts) != len(want) || a.Counts == nil || a.Stale || time.Since(a.AsOf) > time.Hour || a.CompleteThrough == nil {
			t.Errorf("%s: %+v %.300v, want %.300v", query, a.meta, again, want)
		}
	}
	if _, lines := sheet(t, h, "prefix=user.&measure=requests"); len(lines) != 1_100 {
		t.Errorf("%d users, want all of 1100", len(lines))
	}
	if _, lines := sheet(t, h, "prefix=user.&measure=requests&limit=1089"); len(lines) != 1_089 {
		t.Errorf("%d users, want 1089", len(lines))
	}
}

func TestExportHistory(t *testing.T) {
	p, queries := exporting(t, 20)
	h := open(p)
	for _, step := range []string{"hour", "day", "month"} {
		for _, query := range append(queries, "name=feature.a.used&name=plain&to=2025-03-30") {
			if step == "hour" && (!strings.Contains(query, "except=user.") || !strings.Contains(query, "to=2025")) {
				continue // users have no hours, and all others too many
			}
			if step == "day" && strings.Count(query, "=") < 2 {
				continue // so that it does not take long
			}
			query += "&step=" + step
			var want [][]string
			for _, c := range decode(t, h, "/usage/api/history?limit=10000&"+query)["counts"].([]any) {
				c := c.(map[string]any)
				name, n := c["name"].(string), int64(c["n"].(float64))
				group, subject, measure := store.SplitName(name)
				want = append(want, []string{c["start"].(string), name, group, subject, measure, strconv.FormatInt(n, 10)})
			}
			header, lines := sheet(t, h, "of=history&"+query)
			if !slices.Equal(header, []string{"start", "name", "group", "subject", "measure", "n"}) {
				t.Errorf("%s: the columns are %q", query, header)
			}
			if !slices.EqualFunc(lines, want, slices.Equal) {
				t.Errorf("%s: %d lines %.300q, want %d %.300q", query, len(lines), lines, len(want), want)
			}
			a := exported[struct {
				meta
				Counts []exportedBucket `json:"counts"`
			}](t, h, "of=history&"+query)
			if len(a.Counts) != len(want) || a.Counts == nil {
				t.Errorf("%s: %d in JSON, want %d", query, len(a.Counts), len(want))
				continue
			}
			for i, c := range a.Counts {
				if !slices.Equal(c.fields(), want[i]) {
					t.Errorf("%s: in JSON %q, want %q", query, c.fields(), want[i])
				}
			}
		}
	}
	// Each hour of a day of 25 is told from the other.
	_, lines := sheet(t, h, "of=history&step=hour&name=feature.a.used&from=2025-10-26&to=2025-10-26")
	if len(lines) != 2 || lines[0][0] != "2025-10-26T02:00:00+02:00" || lines[1][0] != "2025-10-26T02:00:00+01:00" || lines[0][5] != "5" || lines[1][5] != "6" {
		t.Errorf("%q", lines)
	}
}

func TestExportRows(t *testing.T) {
	p, queries := exporting(t, 200)
	h := open(p)
	for _, query := range queries {
		var want []row
		data, err := json.Marshal(decode(t, h, "/usage/api/rows?limit=10000&"+query)["rows"])
		if err == nil {
			err = json.Unmarshal(data, &want)
		}
		if err != nil {
			t.Fatal(err)
		}
		header, lines := sheet(t, h, "of=rows&"+query)
		if len(header) < 5 || !slices.Equal(header[:5], []string{"group", "subject", "p50_ms", "p95_ms", "p99_ms"}) || len(lines) != len(want) {
			t.Errorf("%s: %q, %d lines, want %d", query, header, len(lines), len(want))
			continue
		}
		for i, l := range lines {
			got := row{Group: l[0], Subject: l[1], Counts: map[string]int64{}}
			for j, ms := range []**float64{&got.P50, &got.P95, &got.P99} {
				if l[2+j] != "" {
					f, err := strconv.ParseFloat(l[2+j], 64)
					if err != nil {
						t.Error(err)
					}
					*ms = &f
				}
			}
			for j, cell := range l[5:] {
				if n := number(t, cell); n > 0 { // 0: it has no such measure
					got.Counts[header[5+j]] = n
				}
			}
			maps.DeleteFunc(want[i].Counts, func(_ string, n int64) bool { return n == 0 })
			if !reflect.DeepEqual(got, want[i]) {
				t.Errorf("%s: %q is %+v, want %+v", query, l, got, want[i])
			}
		}
		a := exported[struct {
			meta
			rows
		}](t, h, "of=rows&"+query)
		for i := range a.Rows {
			maps.DeleteFunc(a.Rows[i].Counts, func(_ string, n int64) bool { return n == 0 })
		}
		if a.Rows == nil || len(a.Rows) != len(want) || len(want) > 0 && !reflect.DeepEqual(a.Rows, want) {
			t.Errorf("%s: in JSON %.300v, want %.300v", query, a.Rows, want)
		}
	}
	// Columns in their order, latencies last and by their bound.
	header, lines := sheet(t, h, "of=rows&prefix=api.&contains=\"b\"")
	want := [][]string{
		{"group", "subject", "p50_ms", "p95_ms", "p99_ms", "requests", "status_2xx", "status_5xx", "latency_5ms", "latency_10ms", "latency_100ms", "latency_inf"},
		{"api", `GET /a, "b"`, "7.6", "85", "10000", "100", "90", "10", "3", "90", "5", "2"},
	}
	if got := append([][]string{header}, lines...); !slices.EqualFunc(got, want, slices.Equal) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// What a spreadsheet could take for a formula is text: in every cell there is.
func TestExportIsInert(t *testing.T) {
	hostile := []string{"=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx", "\nx", "＝1+1", "＋1", "－1", "＠x", "|calc", "%0A", `=cmd|' /C calc'!A0`, `=HYPERLINK("http://evil","x")`, "=", "-", "'", "''=", `"=1"`, " =1", "\u00a0\u00a0@x", " ", "a=1", "x,=1", "", "\u202e=1"}
	var counts []store.Count
	var rows []store.Row
	for _, s := range hostile {
		counts = append(counts, store.Count{Name: s + "." + s + "." + s, N: 1}, store.Count{Name: s, N: 1})
		rows = append(rows, store.Row{Group: s, Subject: s, Counts: map[string]int64{"requests": 1}})
	}
	h := open(&fake{counts: counts, rows: rows})
	formula := regexp.MustCompile("^[ \u00a0]*[-=+@\t\r\n|%＝＋－＠]")
	check := func(query string, fields [][]string) {
		_, lines := sheet(t, h, query)
		if len(lines) != len(fields) {
			t.Fatalf("%s: %d lines, want %d", query, len(lines), len(fields))
		}
		for i, line := range lines {
			for j, cell := range line {
				if formula.MatchString(cell) {
					t.Errorf("%s: a cell is %q", query, cell)
				}
				// Nothing else is changed.
				if want := fields[i][j]; cell != want && (cell != "'"+want || want == "" || !formula.MatchString(want)) {
					t.Errorf("%s: a cell is %q, want %q", query, cell, want)
				}
			}
		}
	}
	var ofCounts, ofBuckets, ofRows [][]string
	for _, c := range counts {
		group, subject, measure := store.SplitName(c.Name)
		ofCounts = append(ofCounts, []string{c.Name, group, subject, measure, "1"})
		ofBuckets = append(ofBuckets, []string{"0001-01-01T00:00:00Z", c.Name, group, subject, measure, "1"})
	}
	for _, r := range rows {
		ofRows = append(ofRows, []string{r.Group, r.Subject, "", "", "", "1"})
	}
	check("of=totals", ofCounts)
	check("of=history&step=day", ofBuckets)
	check("of=rows", ofRows)
	// JSON is no sheet: there names are as they are.
	for i, c := range exported[struct {
		meta
		Counts []exportedCount `json:"counts"`
	}](t, h, "").Counts {
		if c.Name != counts[i].Name {
			t.Errorf("in JSON %q, want %q", c.Name, counts[i].Name)
		}
	}
}

func TestExportHeaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{zone: time.FixedZone("", 5*3600), skew: 30 * time.Minute, counts: []store.Count{numbered(1)}, rows: []store.Row{{Group: "a"}}}
		h := open(f)
		for query, want := range map[string]string{
			"":                                    "usage-totals-2000-01-01-0530.csv",
			"format=csv&of=totals":                "usage-totals-2000-01-01-0530.csv",
			"format=json":                         "usage-totals-2000-01-01-0530.json",
			"of=rows":                             "usage-rows-2000-01-01-0530.csv",
			"of=history&step=day&format=json":     "usage-history-2000-01-01-0530.json",
			"name=x%22%0d%0aEvil:x&prefix=../../": "",
		} {
			w := get(h, "/usage/api/export?"+query)
			if want == "" {
				if w.Code != 400 || w.Header().Get("Content-Disposition") != "" {
					t.Errorf("%s: %d %v", query, w.Code, w.Header())
				}
				continue
			}
			if got := w.Header().Get("Content-Disposition"); got != `attachment; filename="`+want+`"` {
				t.Errorf("%s: %s, want %s", query, got, want)
			}
			if w.Header().Get("ETag") != "" || w.Header().Get("Content-Length") != "" {
				t.Errorf("%s: %v", query, w.Header())
			}
			checkHeaders(t, query, w)
			head := getWith(h, "HEAD", "/usage/api/export?"+query)
			if head.Code != 200 || !maps.EqualFunc(head.Header(), w.Header(), slices.Equal) || head.Body.Len() > 0 {
				t.Errorf("HEAD %s: %d %v %s, want %v", query, head.Code, head.Header(), head.Body, w.Header())
			}
		}
	})
	// To know what an export would be, nothing but its beginning is read.
	n, ended := 0, false
	h := open(&yielding{each: func(_ context.Context, yield func(store.Count, error) bool) {
		defer func() { ended = true }()
		for ; n < 100 && yield(numbered(n), nil); n++ {
		}
	}})
	if w := getWith(h, "HEAD", "/usage/api/export"); w.Code != 200 || n > 1 || !ended {
		t.Errorf("%d after %d counts, ended: %v", w.Code, n, ended)
	}
}

// errSecret is what no answer may tell.
var errSecret = errors.New("pq: password authentication failed at postgres://app:secret@db")

// Every cell is quoted, those of the header too, and what follows a semicolon is inert.
func TestExportIsQuoted(t *testing.T) {
	h := open(&fake{
		counts: []store.Count{{Name: `feature.a;=1+1."b`, N: 1}},
		rows:   []store.Row{{Group: "feature", Subject: "x;=1", Counts: map[string]int64{"=HYPERLINK(1)": 1}}},
	})
	quoted := regexp.MustCompile(`^("([^"]|"")*"(,|\r\n))+$`)
	for _, query := range []string{"of=totals", "of=rows", "of=history&step=day"} {
		body := get(h, "/usage/api/export?"+query).Body.String()
		if !quoted.MatchString(body) || regexp.MustCompile(`[";]=`).MatchString(body) {
			t.Errorf("%s: %s", query, body)
		}
	}
}
