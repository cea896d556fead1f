package store

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/usagekit/usagekit/internal/counter"
	"github.com/usagekit/usagekit/internal/database"
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

const (
	sqlRelations = `SELECT CAST(n.nspname AS TEXT) AS schema, CAST(r.name AS TEXT) AS name, r.kind, r.plain
FROM unnest(CASE WHEN ? = '' THEN pg_catalog.current_schemas(false) ELSE ARRAY[CAST(? AS NAME)] END) WITH ORDINALITY AS p(name, nth)
JOIN pg_catalog.pg_namespace n ON n.nspname = p.name
JOIN LATERAL (
	SELECT c.relname AS name, CASE c.relkind WHEN 'r' THEN 'a table' WHEN 'p' THEN 'a partitioned table' WHEN 'v' THEN 'a view' WHEN 'm' THEN 'a materialized view'
		WHEN 'f' THEN 'a foreign table' WHEN 'S' THEN 'a sequence' WHEN 'c' THEN 'a type' ELSE 'an index' END AS kind,
	CASE c.relname
		WHEN 'usage_meta' THEN (SELECT COUNT(*) FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attname IN ('name', 'value')) = 2
		WHEN 'usage_metrics' THEN c.relnatts = 2 AND c.relchecks = 0 AND NOT c.relhastriggers AND NOT c.relhasrules
			AND EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisunique AND i.indnkeyatts = 1)
		ELSE true END AS plain
	FROM pg_catalog.pg_class c WHERE c.relnamespace = n.oid AND c.relname IN (%[1]s)
	UNION ALL SELECT typname, 'a type', false FROM pg_catalog.pg_type WHERE typnamespace = n.oid AND typrelid = 0 AND typname IN (%[1]s)
) r ON true
ORDER BY p.nth, r.name`

	sqlRelationsLite = `SELECT '' AS schema, m.name, CASE WHEN m.sql LIKE 'CREATE VIRTUAL%%' THEN 'a virtual table' WHEN m.type = 'index' THEN 'an index' ELSE 'a ' || m.type END AS kind,
CASE lower(m.name)
	WHEN 'usage_meta' THEN (SELECT COUNT(*) FROM pragma_table_info(m.name) WHERE lower(name) IN ('name', 'value')) = 2
	WHEN 'usage_metrics' THEN NOT EXISTS (SELECT 1 FROM sqlite_master WHERE instr(lower(sql), 'usage_metrics_before') > 0)
	ELSE true END AS plain
FROM sqlite_master m WHERE m.type IN ('table', 'view', 'index') AND lower(m.name) IN (%[1]s) ORDER BY m.name`
)

// relations returns what has one of some names: in Config.Schema, or in any schema of
// the search path, the first one first.
func relations(ctx context.Context, tx *database.Tx, d *database.Dialect, names []string) (list []relation, err error) {
	in := "'" + strings.Join(names, "', '") + "'"
	if d.SQLite {
		return list, tx.Catalog(ctx, &list, fmt.Sprintf(sqlRelationsLite, in))
	}
	return list, tx.Catalog(ctx, &list, fmt.Sprintf(sqlRelations, in), d.Schema, d.Schema)
}

// home is the schema that has our tables, or will have them: where the search path
// leads to a usage_meta, else where it makes tables.
func home(list []relation, first string) (string, error) {
	if i := slices.IndexFunc(list, func(r relation) bool { return r.Name == "usage_meta" }); i >= 0 {
		return list[i].Schema, nil
	}
	switch {
	case first == "":
		return "", database.Fault("no schema of the search_path is there: make one (CREATE SCHEMA), or set Config.Schema")
	case strings.HasPrefix(first, "pg_temp"):
		return "", database.Fault("the search_path makes tables in a temporary schema: set Config.Schema")
	}
	return first, nil
}

// foreign returns an error when something of other people's is in the way of the
// migrations that are to come, and nothing when usage_metrics is not there or is
// exactly a table of counters: texts of their own as keys, whole numbers that a
// counter may have, and nothing else that depends on it or that it depends on.
func foreign(ctx context.Context, tx *database.Tx, d *database.Dialect, list []relation, version int, names []string) error {
	for _, r := range list {
		if !slices.Contains(names, strings.ToLower(r.Name)) {
			continue
		}
		switch {
		case strings.ToLower(r.Name) != "usage_metrics" || version > 0:
			return refuse(d, r, "it is "+r.Kind+" that usagekit did not make")
		case r.Schema != d.Schema && !d.SQLite:
			return refuse(d, r, "a table of usagekit's in schema "+d.Schema+" would hide it")
		case r.Kind != "a table":
			return refuse(d, r, "it is "+r.Kind+", and no table of counters")
		}
		differences, err := differences(ctx, tx, d)
		if err != nil {
			return err
		}
		if len(differences) > 0 {
			return refuse(d, r, told(differences)+", so it is no table of counters")
		}
		var odd int
		if err := tx.Get(ctx, &odd, oddRows(d)); err != nil {
			return err
		}
		if odd > 0 {
			rows := "rows have"
			if odd == 1 {
				rows = "row has"
			}
			return refuse(d, r, fmt.Sprintf("%d %s no key, or a value that is no whole number in 0 … 2^53−1", odd, rows))
		}
	}
	return nil
}

// refuse is the error about what is not ours.
func refuse(d *database.Dialect, r relation, why string) error {
	if d.SQLite {
		return database.Fault(r.Name + ": " + why + ". Nothing was changed: usagekit wants a file of its own")
	}
	return database.Fault(r.Name + " in schema " + r.Schema + ": " + why + ". Nothing was changed: set Config.Schema to a schema of usagekit's own")
}

// altered says in one sentence that an earlier release took over what was another
// application's, where that can still be seen; stops tells that no fold can work.
func altered(ctx context.Context, tx *database.Tx, d *database.Dialect, list []relation) (sentence string, stops bool, err error) {
	i := slices.IndexFunc(list, func(r relation) bool {
		return strings.ToLower(r.Name) == "usage_metrics" && (d.SQLite || r.Schema == d.Schema)
	})
	if i < 0 || list[i].Plain {
		return "", false, nil
	}
	if d.SQLite {
		var named []string
		err := tx.Catalog(ctx, &named, `SELECT type || ' ' || name FROM sqlite_master WHERE instr(lower(sql), 'usage_metrics_before') > 0 ORDER BY 1`)
		return "an earlier release took over a table usage_metrics that another application used, and broke what named it: restore that application's file from a backup, and give usagekit a file of its own: " + strings.Join(named, ", "), false, err
	}
	differences, err := differences(ctx, tx, d)
	if err != nil {
		return "", false, err
	}
	differences = slices.DeleteFunc(differences, func(x difference) bool { return !x.Itself })
	if len(differences) == 0 {
		return "", false, nil
	}
	return list[i].Name + " in schema " + d.Schema + ": " + told(differences) + ": it seems that an earlier release took over a table of another application, and it may have rounded its values and made NULLs 0: restore that one from a backup, and set Config.Schema to a schema of usagekit's own",
		slices.ContainsFunc(differences, func(x difference) bool { return x.Stops }), nil
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

// oddRows counts those that are no counters.
func oddRows(d *database.Dialect) string {
	query := fmt.Sprintf(`SELECT COUNT(*) FROM usage_metrics WHERE key IS NULL OR value IS NULL OR value < 0 OR value > %d`, counter.Max)
	if d.SQLite { // a column takes values of other types
		query += ` OR typeof(key) <> 'text' OR typeof(value) <> 'integer'`
	}
	return query
}

// differences reads in the catalog how usage_metrics is not a table of counters.
func differences(ctx context.Context, tx *database.Tx, d *database.Dialect) (list []difference, err error) {
	if d.SQLite {
		return list, tx.Catalog(ctx, &list, sqlDifferencesLite)
	}
	return list, tx.Catalog(ctx, &list, sqlDifferences, d.Schema)
}

const (
	// What depends on the table or on its row type (a trigger, a rule, a policy, a
	// constraint, a view, a function, a child, a sequence) is in pg_depend with what
	// every table has: defaults, indexes and its key, which are looked at one by one.
	sqlDifferences = `WITH t AS (
	SELECT c.oid, c.reltype, c.relowner, c.relpersistence, c.relispartition, c.reloftype, c.relrowsecurity OR c.relforcerowsecurity AS secured
	FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = ? AND c.relname = 'usage_metrics'),
col AS (
	SELECT CAST(a.attname AS TEXT) AS name, a.attnum, a.atttypid, pg_catalog.format_type(a.atttypid, a.atttypmod) AS type, a.attnotnull AND NOT a.atthasdef AND a.attidentity = '' AS wanted,
		a.attgenerated <> '' OR a.attidentity <> '' AS generated, a.attacl, a.attcollation, l.collname, pg_catalog.pg_get_expr(f.adbin, f.adrelid) AS preset
	FROM t JOIN pg_catalog.pg_attribute a ON a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped
	LEFT JOIN pg_catalog.pg_attrdef f ON f.adrelid = t.oid AND f.adnum = a.attnum LEFT JOIN pg_catalog.pg_collation l ON l.oid = a.attcollation),
idx AS (
	SELECT CAST(c.relname AS TEXT) AS name, i.indisunique AND i.indisvalid AND i.indimmediate AS one,
		COALESCE(i.indnkeyatts = 1 AND i.indkey[0] = k.attnum AND i.indcollation[0] = k.attcollation AND i.indpred IS NULL, false) AS of_key
	FROM t JOIN pg_catalog.pg_index i ON i.indrelid = t.oid JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid LEFT JOIN col k ON k.name = 'key')
SELECT what, itself, stops FROM (
	SELECT 1 AS nth, 'it is a partition' AS what, true AS itself, false AS stops FROM t WHERE relispartition
	UNION ALL SELECT 2, 'it is UNLOGGED', false, false FROM t WHERE relpersistence = 'u'
	UNION ALL SELECT 3, 'it is of the type ' || pg_catalog.format_type(reloftype, NULL), true, false FROM t WHERE reloftype <> 0
	UNION ALL SELECT 4, 'it belongs to another role', false, false FROM t WHERE NOT pg_catalog.pg_has_role(relowner, 'USAGE')
	UNION ALL SELECT 5, 'it has the column ' || name, true, wanted FROM col WHERE name NOT IN ('key', 'value')
	UNION ALL SELECT 6, 'it has no column ' || w.name, true, true FROM t, (VALUES ('key'), ('value')) AS w(name) WHERE w.name NOT IN (SELECT name FROM col)
	UNION ALL SELECT 7, 'its column ' || name || ' is of type ' || type, true, false FROM col
		WHERE name = 'key' AND atttypid NOT IN (CAST('text' AS REGTYPE), CAST('varchar' AS REGTYPE)) OR name = 'value' AND atttypid NOT IN (CAST('int2' AS REGTYPE), CAST('int4' AS REGTYPE), CAST('int8' AS REGTYPE))
	UNION ALL SELECT 8, 'its column ' || name || ' is generated', true, false FROM col WHERE name IN ('key', 'value') AND generated
	UNION ALL SELECT 9, 'its column ' || name || ' has the default ' || preset, false, false FROM col
		WHERE NOT generated AND (name = 'key' AND preset IS NOT NULL OR name = 'value' AND trim(split_part(preset, '::', 1), '()''') <> '0')
	UNION ALL SELECT 10, 'its column key has the collation ' || collname, false, false FROM col WHERE name = 'key' AND collname NOT IN ('default', 'C', 'POSIX')
	UNION ALL SELECT 11, 'its column ' || name || ' has privileges of its own', false, false FROM col WHERE name IN ('key', 'value') AND attacl IS NOT NULL
	UNION ALL SELECT 12, 'it has no unique index on key alone', true, true FROM t WHERE NOT EXISTS (SELECT FROM idx WHERE one AND of_key)
	UNION ALL SELECT 13, 'it has the index ' || name, false, false FROM idx WHERE NOT of_key
	UNION ALL SELECT 14, 'it has row-level security', false, false FROM t WHERE secured
	UNION ALL SELECT 15, 'it inherits from ' || CAST(CAST(h.inhparent AS REGCLASS) AS TEXT), true, false FROM t JOIN pg_catalog.pg_inherits h ON h.inhrelid = t.oid WHERE NOT relispartition
	UNION ALL SELECT DISTINCT 16, 'there is ' || pg_catalog.pg_describe_object(d.classid, d.objid, d.objsubid),
		false, false
	FROM t JOIN pg_catalog.pg_depend d
		ON d.refclassid = CAST('pg_catalog.pg_class' AS REGCLASS) AND d.refobjid = t.oid OR d.refclassid = CAST('pg_catalog.pg_type' AS REGCLASS) AND d.refobjid = t.reltype
	LEFT JOIN pg_catalog.pg_constraint k ON d.classid = CAST('pg_catalog.pg_constraint' AS REGCLASS) AND k.oid = d.objid
	LEFT JOIN pg_catalog.pg_class c ON d.classid = CAST('pg_catalog.pg_class' AS REGCLASS) AND c.oid = d.objid
	LEFT JOIN pg_catalog.pg_trigger g ON d.classid = CAST('pg_catalog.pg_trigger' AS REGCLASS) AND g.oid = d.objid
	WHERE d.deptype IN ('n', 'a') AND d.classid NOT IN (CAST('pg_catalog.pg_attrdef' AS REGCLASS), CAST('pg_catalog.pg_statistic_ext' AS REGCLASS))
		AND NOT (d.classid = CAST('pg_catalog.pg_publication_rel' AS REGCLASS) AND d.refobjsubid = 0)
		AND k.contype IS DISTINCT FROM 'p' AND k.contype IS DISTINCT FROM 'u' AND k.contype IS DISTINCT FROM 'n'
		AND c.relkind IS DISTINCT FROM 'i' AND g.tgisinternal IS NOT TRUE
) AS found ORDER BY nth, what`

	// SQLite has no catalog of CHECKs and conflict clauses, and of what a view or a
	// trigger reads: there, the text decides.
	sqlDifferencesLite = `WITH t AS (SELECT name, sql FROM sqlite_master WHERE type = 'table' AND lower(name) = 'usage_metrics'),
col AS (SELECT lower(c.name) AS id, c.name, c.type, upper(c.type) AS kind, c.dflt_value AS preset, c.hidden FROM t, pragma_table_xinfo(t.name) c),
idx AS (SELECT i.name, i."unique" AND NOT i.partial AS one, NOT i.partial AND (SELECT COUNT(*) FROM pragma_index_xinfo(i.name) x WHERE x.key) = 1
	AND EXISTS (SELECT 1 FROM pragma_index_xinfo(i.name) x WHERE x.key AND lower(x.name) = 'key' AND x.coll = 'BINARY') AS of_key FROM t, pragma_index_list(t.name) i)
SELECT what, true AS itself, false AS stops FROM (
	SELECT 1 AS nth, 'it has the column ' || name AS what FROM col WHERE id NOT IN ('key', 'value')
	UNION ALL SELECT 2, 'it has no column ' || w.column1 FROM (VALUES ('key'), ('value')) AS w WHERE w.column1 NOT IN (SELECT id FROM col)
	UNION ALL SELECT 3, 'its column ' || name || ' is of type ' || type FROM col
		WHERE id = 'key' AND kind NOT LIKE '%CHAR%' AND kind NOT LIKE '%TEXT%' AND kind NOT LIKE '%CLOB%' OR id = 'value' AND kind NOT LIKE '%INT%'
	UNION ALL SELECT 4, 'its column ' || name || ' is generated' FROM col WHERE id IN ('key', 'value') AND hidden <> 0
	UNION ALL SELECT 5, 'its column ' || name || ' has the default ' || preset FROM col WHERE id = 'key' AND preset IS NOT NULL OR id = 'value' AND trim(preset, '()''') <> '0'
	UNION ALL SELECT 6, 'it has no unique index on key alone' FROM t WHERE NOT EXISTS (SELECT 1 FROM idx WHERE one AND of_key)
	UNION ALL SELECT 7, 'it has the index ' || name FROM idx WHERE NOT of_key
	UNION ALL SELECT 8, 'it has a CHECK' FROM t WHERE instr(upper(sql), 'CHECK') > 0
	UNION ALL SELECT 9, 'it has an ON CONFLICT clause' FROM t WHERE instr(upper(sql), 'CONFLICT') > 0
	UNION ALL SELECT 10, 'it has a foreign key' FROM t WHERE EXISTS (SELECT 1 FROM pragma_foreign_key_list(t.name))
	UNION ALL SELECT DISTINCT 11, 'a foreign key leads to it from table ' || m.name FROM sqlite_master m, pragma_foreign_key_list(m.name) f
		WHERE m.type = 'table' AND m.sql NOT LIKE 'CREATE VIRTUAL%' AND lower(f."table") = 'usage_metrics'
	UNION ALL SELECT 12, 'there is ' || type || ' ' || name FROM sqlite_master WHERE type IN ('trigger', 'view') AND (lower(tbl_name) = 'usage_metrics' OR instr(lower(sql), 'usage_metrics') > 0)
) ORDER BY nth, what`
)
