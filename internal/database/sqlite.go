package database

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"
)

func sqlite() *Dialect {
	return &Dialect{
		Name: "sqlite",
		bind: sqlx.QUESTION,
		// A transaction that reads is of one moment by itself (WAL): no isolation is asked for.
		behaviour: behaviour{OneWriter: true, rowByRow: true},
		statements: statements{
			bounds:        `''`, // busy_timeout, and synchronous=FULL, are in the DSN
			quickBounds:   `''`,
			migrationLock: `SELECT 1`,
			describe:      `SELECT 'SQLite ' || sqlite_version() || ': ' || file FROM pragma_database_list WHERE name = 'main'`,
			pathOf:        `SELECT file FROM pragma_database_list WHERE name = 'main'`,
			// It begins with the inbox, so it has all writers.
			Waiting: `SELECT writer, guard, sum, seq, opened, size FROM (
	SELECT w.writer, w.seq AS guard, w.sum, i.seq, i.opened, length(i.payload) AS size, ROW_NUMBER() OVER (PARTITION BY i.writer ORDER BY i.seq) AS nth
	FROM usage_inbox i JOIN usage_writers w ON w.writer = i.writer AND i.seq >= w.seq)
WHERE nth <= ? AND ? IS NOT NULL ORDER BY writer, seq`,
			LockLease: "", // BEGIN IMMEDIATE has locked already
		},
		expressions: expressions{
			Strpos: "instr",
			now:    func() string { return strconv.FormatInt(time.Now().UnixMilli(), 10) }, // it runs in this process
			// rtrim takes off what follows the last dot: it stops at the first character
			// that is not in the set, and only the dot is not.
			stem:   "rtrim(%[1]s, replace(%[1]s, '.', ''))",
			unhex:  "unhex(%s)",
			suffix: "substr(%s, -length(?)) = ?",
			oneOf:  "%s IN (SELECT value FROM json_each(?))",
			// Left to itself it reads the list anew for every row of the table (500
			// subjects in a range took 4 s, and take 16 ms).
			seek:    "%[1]s CROSS JOIN %[2]s",
			set:     func(string, string) string { return `''` },
			values:  ofJSON,
			numbers: func(n []int64) string { return jsonOf(n) },
			texts:   func(t []string) string { return jsonOf(t) },
		},
		catalog: catalog{
			server:      `SELECT %s AS bounded, 'UTF8' AS encoding, substr(sqlite_version(), 1, 0) AS schema`,
			mistaken:    "the database is not SQLite",
			relations:   sqliteRelations,
			differences: sqliteDifferences,
			odd:         ` OR typeof(key) <> 'text' OR typeof(value) <> 'integer'`, // a column takes values of other types
			broken:      `SELECT type || ' ' || name FROM sqlite_master WHERE instr(lower(sql), 'usage_metrics_before') > 0 ORDER BY 1`,
			own:         "usagekit wants a file of its own",
		},
	}
}

const (
	sqliteRelations = `SELECT '' AS schema, m.name, CASE WHEN m.sql LIKE 'CREATE VIRTUAL%%' THEN 'a virtual table' WHEN m.type = 'index' THEN 'an index' ELSE 'a ' || m.type END AS kind,
CASE lower(m.name)
	WHEN 'usage_meta' THEN (SELECT COUNT(*) FROM pragma_table_info(m.name) WHERE lower(name) IN ('name', 'value')) = 2
	WHEN 'usage_metrics' THEN NOT EXISTS (SELECT 1 FROM sqlite_master WHERE instr(lower(sql), 'usage_metrics_before') > 0)
	ELSE true END AS plain
FROM sqlite_master m WHERE m.type IN ('table', 'view', 'index') AND lower(m.name) IN (%[1]s) ORDER BY m.name`

	// SQLite has no catalog of CHECKs and conflict clauses, and of what a view or a
	// trigger reads: there, the text decides.
	sqliteDifferences = `WITH t AS (SELECT name, sql FROM sqlite_master WHERE type = 'table' AND lower(name) = 'usage_metrics'),
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

// ofJSON is Values.
func ofJSON(columns []Column) (string, []any) {
	var exprs []string
	for i, c := range columns {
		exprs = append(exprs, fmt.Sprintf("value->>%d AS %s", i, c.Name))
	}
	list := []byte{'['}
	for i := range columns[0].len() {
		if i > 0 {
			list = append(list, ',')
		}
		row := byte('[')
		for _, c := range columns {
			list = append(list, row)
			row = ','
			if c.Texts != nil {
				list = appendJSON(list, c.Texts[i])
			} else {
				list = strconv.AppendInt(list, c.Numbers[i], 10)
			}
		}
		list = append(list, ']')
	}
	list = append(list, ']')
	return "(SELECT " + strings.Join(exprs, ", ") + " FROM json_each(?)) AS v", []any{string(list)}
}

// appendJSON appends s as JSON.
func appendJSON(list []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			b, _ := json.Marshal(s) // of a string: it cannot fail
			return append(list, b...)
		}
	}
	return append(append(append(list, '"'), s...), '"')
}

// jsonOf is a JSON array.
func jsonOf[T int64 | string](list []T) string {
	b, _ := json.Marshal(list) // of these it cannot fail
	return string(b)
}
