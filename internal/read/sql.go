package read

import (
	"slices"
	"strconv"
	"strings"

	"github.com/usagekit/usagekit/internal/database"
	"github.com/usagekit/usagekit/internal/naming"
)

// condition selects names of a span further: by where, on h.key, and by a list v.
type condition struct {
	list     string // "": none
	listArgs []any
	least    int64 // of totals
	where    []string
	args     []any
}

// and adds to what c selects.
func (c *condition) and(text string, args ...any) {
	c.where = append(c.where, text)
	c.args = append(c.args, args...)
}

// table is the text of a table expression, and its parameters.
type table struct {
	text    string
	args    []any
	history bool // else totals
}

// counts is the table of key and n of the names that c selects in spans: one row
// per name.
func counts(d *database.Dialect, spans []span, c condition) table {
	t := table{history: spans[0].step != 0}
	for i, sp := range spans {
		text, args := sp.query(d, c, "h.key AS key, h.value AS n")
		if i > 0 {
			t.text += " UNION ALL "
		}
		t.text, t.args = t.text+text, append(t.args, args...)
	}
	if t.history {
		largest := strconv.Itoa(naming.Max)
		t.text = "SELECT key, CAST(CASE WHEN SUM(n) > " + largest + " THEN " + largest + " ELSE SUM(n) END AS BIGINT) AS n FROM (" +
			t.text + ") AS u GROUP BY key"
	}
	t.text = "(" + t.text + ") AS t"
	return t
}

// query is that for what of sp's rows c selects.
func (sp span) query(d *database.Dialect, c condition, columns string) (string, []any) {
	var where []string
	args := slices.Clone(c.listArgs)
	and := func(text string, values ...any) {
		where, args = append(where, text), append(args, values...)
	}
	table := "usage_metrics"
	if sp.step != 0 {
		table = "usage_history"
		in, list := d.OneOf("h.bucket", sp.buckets)
		and("h.step = ?", int(sp.step))
		and(in, list)
	} else if c.least > 0 {
		and("h.value >= ?", c.least) // first: it is the cheapest, and leaves the fewest
	}
	key := "h.key"
	if c.list != "" {
		key = "v.lo" // SQLite seeks by one pair of bounds: the list's own are closer
	}
	if sp.nameRange == only(sp.lo) {
		and(key+" = ?", sp.lo)
	} else if and(key+" >= ?", sp.lo); sp.hi != "" {
		and(key+" < ?", sp.hi)
	}
	where, args = append(where, c.where...), append(args, c.args...)
	from := table + " AS h WHERE " + strings.Join(where, " AND ")
	if c.list != "" {
		from = d.Seek(c.list, from)
	}
	return "SELECT " + columns + " FROM " + from, args
}

// condition selects what q does, of names within its ranges. User text is data
// only: never part of the statement, nor a pattern.
func (q *Query) condition(d *database.Dialect) condition {
	var c condition
	if len(q.Names) > 0 {
		c = oneOf(d, q.Names)
	}
	if q.Subject != "" {
		of, stems := d.OneOfTexts(d.Stem("h.key"), q.stems)
		c.and(of, stems)
		c.and("h.key NOT IN ('" + naming.ActiveDaily + "', '" + naming.ActiveMonthly + "')")
	}
	if q.Measure != "" {
		end, args := d.EndsWith("h.key", "."+q.Measure)
		c.and(end, args...)
	}
	if q.Contains != "" {
		c.and(d.Strpos+"(lower(h.key), ?) > 0", lower(q.Contains))
	}
	return c
}

// oneOf selects names by a list, each of which is sought.
func oneOf(d *database.Dialect, names []string) condition {
	list, args := d.Values(database.Column{Name: "lo", Texts: names})
	c := condition{list: list, listArgs: args}
	c.and("h.key = v.lo")
	return c
}

// summed is condition without what belongs to the current bucket alone: it is in
// no sum, nor is what an adopted table has under those names.
func (q *Query) summed(d *database.Dialect) condition {
	c := q.condition(d)
	c.and("h.key NOT IN ('" + naming.RequestsToday + "', '" + naming.ActiveDaily + "', '" + naming.ActiveMonthly + "')")
	return c
}

// measuresOf selects all measures of the subjects with these stems.
func measuresOf(d *database.Dialect, stems []string) condition {
	// A condition that stem(key) is lo would have PostgreSQL compute the stems
	// of a whole table, to join by them.
	highs := make([]string, len(stems))
	for i, stem := range stems {
		highs[i] = naming.After(stem)
	}
	list, args := d.Values(database.Column{Name: "lo", Texts: stems}, database.Column{Name: "hi", Texts: highs})
	c := condition{list: list, listArgs: args}
	c.and("h.key >= v.lo AND h.key < v.hi AND " + d.Strpos + "(substr(h.key, length(v.lo) + 1), '.') = 0")
	return c
}

// alone selects the names that have no subject.
func alone() (c condition) {
	c.and("length(h.key) - length(replace(h.key, '.', '')) < 2")
	return c
}
