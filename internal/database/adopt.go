package database

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// relation is what has a name of ours where our names lead.
type relation struct {
	Schema string // "" on SQLite
	Name   string
	Kind   string // "a table", "a view", …
	Plain  bool   // at a glance, it may be as we make it
}

// difference is something by which usage_metrics is not a table of counters.
type difference struct {
	What   string
	Itself bool // the table is so, and not something about it that an operator may have added to ours
	Stops  bool // no fold can work with it
}

// namesGiven are those that migrations give to something: what has one before is not
// ours.
func namesGiven(migrations []string) []string {
	given := regexp.MustCompile(`(?:CREATE (?:TABLE|VIEW)(?: IF NOT EXISTS)?|RENAME TO) (usage_\w+)`)
	var names []string
	for _, m := range given.FindAllStringSubmatch(strings.Join(migrations, "\n"), -1) {
		names = append(names, m[1])
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// namesakes returns what has one of some names: in a schema, or where that is "" in any of
// the search path, the first one first.
func (t *Tx) namesakes(ctx context.Context, schema string, names []string) (list []relation, err error) {
	in := "'" + strings.Join(names, "', '") + "'"
	return list, t.inCatalog(ctx, &list, fmt.Sprintf(t.relations, in), slices.Repeat([]any{schema}, t.schemas)...)
}

// home is the schema that has our tables, or will have them: where the search path
// leads to a usage_meta, else where it makes tables.
func home(list []relation, first string) (string, error) {
	if i := slices.IndexFunc(list, func(r relation) bool { return r.Name == "usage_meta" }); i >= 0 {
		return list[i].Schema, nil
	}
	switch {
	case first == "":
		return "", Fault("no schema of the search_path is there: make one (CREATE SCHEMA), or set Config.Schema")
	case strings.HasPrefix(first, "pg_temp"):
		return "", Fault("the search_path makes tables in a temporary schema: set Config.Schema")
	}
	return first, nil
}

// foreign returns an error when something of other people's is in the way of the
// migrations that are to come, and nothing when usage_metrics is not there or is
// exactly a table of counters: texts of their own as keys, whole numbers that a
// counter may have, and nothing else that depends on it or that it depends on.
func (t *Tx) foreign(ctx context.Context, list []relation, version int, names []string) error {
	for _, r := range list {
		if !slices.Contains(names, strings.ToLower(r.Name)) {
			continue
		}
		switch {
		case strings.ToLower(r.Name) != "usage_metrics" || version > 0:
			return t.refuse(r, "it is "+r.Kind+" that usagekit did not make")
		case r.Schema != t.Schema:
			return t.refuse(r, "a table of usagekit's in schema "+t.Schema+" would hide it")
		case r.Kind != "a table":
			return t.refuse(r, "it is "+r.Kind+", and no table of counters")
		}
		found, err := t.deviations(ctx)
		if err != nil {
			return err
		}
		if len(found) > 0 {
			return t.refuse(r, told(found)+", so it is no table of counters")
		}
		var odd int
		if err := t.Get(ctx, &odd, fmt.Sprintf(sqlOdd, maxCount)+t.odd); err != nil {
			return err
		}
		if odd > 0 {
			rows := "rows have"
			if odd == 1 {
				rows = "row has"
			}
			return t.refuse(r, fmt.Sprintf("%d %s no key, or a value that is no whole number in 0 … 2^53−1", odd, rows))
		}
	}
	return nil
}

// refuse is the error about what is not ours.
func (t *Tx) refuse(r relation, why string) error {
	return Fault(r.String() + ": " + why + ". Nothing was changed: " + t.own)
}

func (r relation) String() string {
	if r.Schema == "" {
		return r.Name
	}
	return r.Name + " in schema " + r.Schema
}

// altered says in one sentence that an earlier release took over what was another
// application's, where that can still be seen; stops tells that no fold can work.
func (t *Tx) altered(ctx context.Context, list []relation) (sentence string, stops bool, err error) {
	i := slices.IndexFunc(list, func(r relation) bool {
		return strings.ToLower(r.Name) == "usage_metrics" && r.Schema == t.Schema
	})
	if i < 0 || list[i].Plain {
		return "", false, nil
	}
	if t.broken != "" {
		var named []string
		err := t.inCatalog(ctx, &named, t.broken)
		return "an earlier release took over a table usage_metrics that another application used, and broke what named it: restore that application's file from a backup, and give usagekit a file of its own: " + strings.Join(named, ", "), false, err
	}
	found, err := t.deviations(ctx)
	if err != nil {
		return "", false, err
	}
	found = slices.DeleteFunc(found, func(x difference) bool { return !x.Itself })
	if len(found) == 0 {
		return "", false, nil
	}
	return list[i].String() + ": " + told(found) + ": it seems that an earlier release took over a table of another application, and it may have rounded its values and made NULLs 0: restore that one from a backup, and " + t.own,
		slices.ContainsFunc(found, func(x difference) bool { return x.Stops }), nil
}

// told lists the first differences.
func told(differences []difference) string {
	var list []string
	for _, x := range differences[:min(len(differences), 4)] {
		list = append(list, x.What)
	}
	if more := len(differences) - len(list); more > 0 {
		list = append(list, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(list, ", ")
}

const (
	maxCount = 1<<53 - 1
	sqlOdd   = `SELECT COUNT(*) FROM usage_metrics WHERE key IS NULL OR value IS NULL OR value < 0 OR value > %d` // those that are no counters
)

// deviations reads in the catalog how usage_metrics is not a table of counters.
func (t *Tx) deviations(ctx context.Context) (list []difference, err error) {
	return list, t.inCatalog(ctx, &list, t.differences, slices.Repeat([]any{t.Schema}, t.schemas/2)...)
}
