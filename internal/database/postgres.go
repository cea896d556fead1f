package database

import (
	"database/sql"
	"strconv"
	"strings"

	"github.com/jmoiron/sqlx"
)

func postgres() *Dialect {
	set := func(name, to string) string { return "set_config('" + name + "', '" + to + "', true)" }
	bounds := func(statement, lock, idle string) string {
		return set("statement_timeout", statement) + " || " + set("lock_timeout", lock) + " || " + set("idle_in_transaction_session_timeout", idle) +
			` || set_config('synchronous_commit', CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on' ELSE current_setting('synchronous_commit') END, true)`
	}
	return &Dialect{
		Name:      "postgres",
		bind:      sqlx.DOLLAR,
		behaviour: behaviour{isolation: sql.LevelReadCommitted, snapshot: sql.LevelRepeatableRead, sessions: true},
		statements: statements{
			bounds:        bounds("10s", "5s", "15s"),
			quickBounds:   bounds("2s", "200ms", "5s"),
			migrationLock: `SELECT pg_advisory_xact_lock(7527284621038457714)`,
			describe:      `SELECT 'PostgreSQL ' || current_setting('server_version') || ': ' || current_database()`,
			// Probing for 100,000 writers that are dead took 263 ms.
			Waiting: `SELECT w.writer, w.seq AS guard, w.sum, i.seq, i.opened, i.size
FROM usage_writers w, LATERAL (
	SELECT seq, opened, length(payload) AS size FROM usage_inbox WHERE writer = w.writer AND seq >= w.seq ORDER BY seq LIMIT ?) i
WHERE w.seen >= ?
ORDER BY w.writer, i.seq`,
			LockLease: ` FOR UPDATE SKIP LOCKED`,
		},
		expressions: expressions{
			Strpos: "strpos",
			now: func() string {
				return `CAST(EXTRACT(EPOCH FROM statement_timestamp()) * 1000 AS BIGINT)` // before the statement's snapshot
			},
			stem:   "left(%[1]s, length(%[1]s) - length(split_part(%[1]s, '.', -1)))",
			unhex:  "decode(%s, 'hex')",
			suffix: "right(%s, length(CAST(? AS TEXT))) = ?",
			oneOf:  "%s = ANY(?)",
			// Left to itself it reads whole buckets, to join by hash.
			seek:    "%[1]s CROSS JOIN LATERAL (SELECT * FROM %[2]s OFFSET 0) AS h",
			set:     set,
			values:  unnested,
			numbers: arrayOfNumbers,
			texts:   arrayOfTexts,
		},
		catalog: catalog{
			server:      `SELECT %s AS bounded, current_setting('server_encoding') AS encoding, COALESCE(current_schema(), '') AS schema`,
			relations:   postgresRelations,
			differences: postgresDifferences,
			schemas:     2,
			own:         "set Config.Schema to a schema of usagekit's own",
		},
	}
}

const (
	postgresRelations = `SELECT CAST(n.nspname AS TEXT) AS schema, CAST(r.name AS TEXT) AS name, r.kind, r.plain
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

	// What depends on the table or on its row type (a trigger, a rule, a policy, a
	// constraint, a view, a function, a child, a sequence) is in pg_depend with what
	// every table has: defaults, indexes and its key, which are looked at one by one.
	postgresDifferences = `WITH t AS (
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
)

// unnested is Values.
func unnested(columns []Column) (string, []any) {
	var exprs, names []string
	var args []any
	for _, c := range columns {
		names = append(names, c.Name)
		if c.Texts != nil {
			exprs, args = append(exprs, "CAST(? AS TEXT[])"), append(args, arrayOfTexts(c.Texts))
		} else {
			exprs, args = append(exprs, "CAST(? AS BIGINT[])"), append(args, arrayOfNumbers(c.Numbers))
		}
	}
	return "unnest(" + strings.Join(exprs, ", ") + ") AS v(" + strings.Join(names, ", ") + ")", args
}

// Arrays and names are written in PostgreSQL's own notation, as text: that asks for no
// driver's types.

// arrayOfNumbers is an array (https://www.postgresql.org/docs/current/arrays.html#ARRAYS-IO).
func arrayOfNumbers(numbers []int64) string {
	list := []byte{'{'}
	for i, n := range numbers {
		if i > 0 {
			list = append(list, ',')
		}
		list = strconv.AppendInt(list, n, 10)
	}
	return string(append(list, '}'))
}

// arrayOfTexts is an array of texts, each in double quotes: then NULL, commas and braces
// are but texts.
func arrayOfTexts(texts []string) string {
	list := []byte{'{'}
	for i, text := range texts {
		if i > 0 {
			list = append(list, ',')
		}
		list = append(list, '"')
		for j := range len(text) {
			if c := text[j]; c == '"' || c == '\\' {
				list = append(list, '\\')
			}
			list = append(list, text[j])
		}
		list = append(list, '"')
	}
	return string(append(list, '}'))
}

func quoteIdentifier(name string) string {
	return `"` + strings.ReplaceAll(name, `"`, `""`) + `"`
}
