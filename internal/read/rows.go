package read

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"github.com/usagekit/usagekit/internal/naming"
)

// Rows reads one row per subject that q selects, with all its measures.
func (r *Reading) Rows(ctx context.Context, q Query) ([]Row, error) {
	if err := q.check(); err != nil || r.tx == nil {
		return nil, err
	}
	whole := q.whole()
	inSQL := q.fewSubjects() // else one look at all of the group is less than two at a part of it,
	if !inSQL {
		many, err := r.many(ctx, &whole) // unless it is large
		if err != nil {
			return nil, err
		}
		inSQL = many
	}
	if !inSQL {
		spans, err := r.summed(ctx, &whole)
		if err != nil {
			return nil, err
		}
		counts, err := r.counts(ctx, spans, condition{})
		if err != nil {
			return nil, err
		}
		return rowsOf(q.subjects(counts), counts), nil
	}
	spans, err := r.summed(ctx, &q)
	if err != nil {
		return nil, err
	}
	stems, err := r.largest(ctx, &q, spans, true)
	if err != nil {
		return nil, err
	}
	counts, err := r.measures(ctx, whole, stems)
	if err != nil {
		return nil, err
	}
	return rowsOf(stems, counts), nil
}

// many tells whether more than manyNames lie in q's ranges.
func (r *Reading) many(ctx context.Context, q *Query) (bool, error) {
	if err := r.seek(ctx, false); err != nil {
		return false, err
	}
	var n int
	names := counts(r.tx.Dialect, q.totals(), condition{})
	err := r.tx.Get(ctx, &n, "SELECT COUNT(*) FROM (SELECT key FROM "+names.text+" LIMIT ?) AS f", append(names.args, manyNames+1)...)
	return n > manyNames, err
}

// measures reads all counts of the subjects with these stems, in the range that
// whole asks for.
func (r *Reading) measures(ctx context.Context, whole Query, stems []Count) ([]Count, error) {
	var of []string
	for _, p := range stems {
		if !naming.Bare(p.Name) {
			of = append(of, p.Name)
		}
	}
	var list []Count
	if len(of) > 0 {
		q := whole
		q.Except = nil // they do not tear a subject apart
		spans, err := r.summed(ctx, &q)
		if err != nil {
			return nil, err
		}
		if list, err = r.counts(ctx, spans, measuresOf(r.tx.Dialect, of)); err != nil {
			return nil, err
		}
	}
	if len(of) < len(stems) {
		spans, err := r.summed(ctx, &whole)
		if err != nil {
			return nil, err
		}
		bare, err := r.counts(ctx, spans, alone())
		if err != nil {
			return nil, err
		}
		list = append(list, bare...)
	}
	return list, nil
}

// whole is q for all measures of the subjects that q selects, whose group may have
// others, too.
func (q *Query) whole() Query {
	group, _, dotted := strings.Cut(cmp.Or(q.Name, q.Prefix), ".")
	if n := len(q.Names); q.Name == "" && n > 0 { // in order: between two of a group are no others
		group, _, dotted = strings.Cut(q.Names[0], ".")
		dotted = dotted && strings.HasPrefix(q.Names[n-1], group+".")
	}
	w := *q
	w.Name, w.Names, w.Prefix, w.Subject, w.stems, w.Measure, w.Contains = "", nil, "", "", nil, "", ""
	if dotted {
		w.Prefix = group + "."
	}
	return w
}

// fewSubjects tells whether q selects few subjects by the way it selects them, or may take some
// of their measures away: then it wants a look of its own.
func (q *Query) fewSubjects() bool {
	tears := slices.ContainsFunc(q.Except, func(e string) bool { return !naming.Bare(e) })
	return q.Name != "" || len(q.Names) > 0 || q.Subject != "" || tears
}

// subjects returns the stems of the subjects that q selects among counts, each with its
// largest count.
func (q *Query) subjects(counts []Count) []Count {
	largest := map[string]int64{}
	for _, c := range counts {
		if q.matches(c.Name) && !naming.Current(c.Name) {
			p := naming.Stem(c.Name)
			largest[p] = max(largest[p], c.N)
		}
	}
	stems := make([]Count, 0, len(largest))
	for p, n := range largest {
		stems = append(stems, Count{Name: p, N: n})
	}
	bySize(stems)
	if q.Limit > 0 && len(stems) > q.Limit {
		stems = stems[:q.Limit]
	}
	return stems
}

// rowsOf makes the rows of the subjects with these stems, in their order, of counts
// that may be of others, too.
func rowsOf(stems, counts []Count) []Row {
	type subject struct{ group, subject string } // "x" and "other.x" share theirs
	var rows []Row
	at := map[subject]int{}
	wanted, alone := map[string]bool{}, false
	for _, p := range stems {
		wanted[p.Name], alone = true, alone || naming.Bare(p.Name)
		group, of, _ := naming.Split(p.Name)
		if p.Name == "" {
			group = "other"
		}
		key := subject{group, of}
		if _, ok := at[key]; !ok {
			at[key] = len(rows)
			rows = append(rows, Row{Group: group, Subject: of, Counts: map[string]int64{}})
		}
	}
	for _, c := range counts {
		if p := naming.Stem(c.Name); naming.Current(c.Name) || !wanted[p] && !(alone && naming.Bare(p)) {
			continue
		}
		group, of, measure := naming.Split(c.Name)
		if i, ok := at[subject{group, of}]; ok {
			rows[i].Counts[measure] = plus(rows[i].Counts[measure], c.N)
		}
	}
	return rows
}
