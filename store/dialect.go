package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"
)

// dialect is all in which PostgreSQL and SQLite differ here. The SQL beside the
// methods is written once, with ? for parameters and bare table names.
type dialect struct {
	sqlite bool
	bind   int
	schema string // where the tables are, once started; before: Config.Schema, "" for the search path
	tables *regexp.Regexp
	edit   func(string) string // tests only: changes a statement
}

func newDialect(driverName, schema string) (dialect, error) {
	d := dialect{bind: sqlx.BindType(driverName), tables: regexp.MustCompile(`\busage_(metrics|history|inbox|writers|meta|hourly|daily)\b`)}
	switch {
	case d.bind == sqlx.DOLLAR:
		d.schema = schema
	case d.bind == sqlx.QUESTION && driverName != "mysql" || driverName == "sqlite":
		d.sqlite, d.bind = true, sqlx.QUESTION
		if schema != "" {
			return d, fmt.Errorf("store: Config.Schema %q: SQLite has no schemas; leave it empty", schema)
		}
	default:
		return d, fmt.Errorf("store: the driver %q is not known: want PostgreSQL (lib/pq, pgx) or SQLite", driverName)
	}
	return d, nil
}

// text makes a statement ready for the driver.
func (d dialect) text(q string) string {
	if d.edit != nil {
		q = d.edit(q)
	}
	q = sqlx.Rebind(d.bind, q)
	if d.schema != "" { // whose name may hold a question mark
		q = d.tables.ReplaceAllStringFunc(q, func(table string) string { return quoteIdentifier(d.schema) + "." + table })
	}
	return q
}

func (d dialect) txOptions(write bool) *sql.TxOptions {
	if d.sqlite {
		return &sql.TxOptions{ReadOnly: !write}
	}
	return &sql.TxOptions{Isolation: sql.LevelReadCommitted, ReadOnly: !write}
}

// begin bounds a writing transaction on the server, and makes its COMMIT
// durable. One statement without parameters: one round trip.
func (d dialect) begin(ctx context.Context, tx *sqlx.Tx) error {
	if d.sqlite {
		return nil // busy_timeout, and synchronous=FULL, are in the DSN
	}
	_, err := tx.ExecContext(ctx, `SET LOCAL statement_timeout = '10s'; SET LOCAL lock_timeout = '5s';
SET LOCAL idle_in_transaction_session_timeout = '15s';
SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') = 'off'`)
	return err
}

// clock is an expression for the database's time, in Unix milliseconds.
func (d dialect) clock() string {
	if d.sqlite {
		return strconv.FormatInt(time.Now().UnixMilli(), 10) // it runs in this process
	}
	return `CAST(EXTRACT(EPOCH FROM statement_timestamp()) * 1000 AS BIGINT)` // before the statement's snapshot
}

// lockLease ends the query that takes the lease: no row when another has it.
// BEGIN IMMEDIATE has locked already.
func (d dialect) lockLease() string {
	if d.sqlite {
		return ""
	}
	return ` FOR UPDATE SKIP LOCKED`
}

// migrationLock waits for its turn to change tables.
func (d dialect) migrationLock() string {
	if d.sqlite {
		return `SELECT 1`
	}
	return `SELECT pg_advisory_xact_lock(7527284621038457714)`
}

func (d dialect) name() string {
	if d.sqlite {
		return "sqlite"
	}
	return "postgres"
}

// describe is a query for what the log calls the database: its product, version and name.
func (d dialect) describe() string {
	if d.sqlite {
		return `SELECT 'SQLite ' || sqlite_version() || ': ' || file FROM pragma_database_list WHERE name = 'main'`
	}
	return `SELECT 'PostgreSQL ' || current_setting('server_version') || ': ' || current_database()`
}

// strpos is the function that finds a string in another.
func (d dialect) strpos() string {
	if d.sqlite {
		return "instr"
	}
	return "strpos"
}

// unhex is an expression for the bytes that a hexadecimal column holds.
func (d dialect) unhex(column string) string {
	if d.sqlite {
		return "unhex(" + column + ")"
	}
	return "decode(" + column + ", 'hex')"
}

// oneOf is a condition that column holds one of the numbers, and its parameter.
func (d dialect) oneOf(column string, numbers []int64) (string, any) {
	if d.sqlite {
		return column + ` IN (SELECT value FROM json_each(?))`, arrayOf(numbers)
	}
	return column + ` = ANY(?)`, arrayOfNumbers(numbers)
}

// oneOfTexts is a condition that column holds one of the texts, and its parameter.
func (d dialect) oneOfTexts(column string, texts []string) (string, any) {
	if d.sqlite {
		b, _ := json.Marshal(texts) // strings: nothing that can fail
		return column + " IN (SELECT value FROM json_each(?))", string(b)
	}
	return column + " = ANY(?)", arrayOfTexts(texts)
}

// seek is from, a table and its conditions, for each row of a list. Left to
// themselves, SQLite reads the list anew for every row of the table (500 subjects in a
// range took 4 s, and take 16 ms), and PostgreSQL reads whole buckets, to join by hash.
func (d dialect) seek(list, from string) string {
	if d.sqlite {
		return list + " CROSS JOIN " + from
	}
	return list + " CROSS JOIN LATERAL (SELECT * FROM " + from + " OFFSET 0) AS h"
}

// stem is an expression for the name in column without its measure, with the dot.
// (SQLite's rtrim takes off what follows the last dot: it stops at the first
// character that is not in the set, and only the dot is not.)
func (d dialect) stem(column string) string {
	if d.sqlite {
		return fmt.Sprintf("rtrim(%s, replace(%[1]s, '.', ''))", column)
	}
	return fmt.Sprintf("left(%s, length(%[1]s) - length(split_part(%[1]s, '.', -1)))", column)
}

// setLocal is an expression that changes a setting for the rest of the transaction.
func (d dialect) setLocal(name, value string) string {
	if d.sqlite {
		return `''`
	}
	return `set_config('` + name + `', '` + value + `', true)`
}

// prepareTake is an expression that bounds the transaction of a Take on the server,
// and makes its COMMIT durable, as begin does: a request waits for it.
func (d dialect) prepareTake() string {
	if d.sqlite {
		return `''`
	}
	return d.setLocal("lock_timeout", "200ms") + " || " + d.setLocal("statement_timeout", "2s") + " || " + d.setLocal("idle_in_transaction_session_timeout", "5s") +
		` || set_config('synchronous_commit', CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on' ELSE current_setting('synchronous_commit') END, true)`
}

// column is one of a values list: texts, or numbers.
type column struct {
	name    string
	texts   []string
	numbers []int64
}

func (c column) len() int { return max(len(c.texts), len(c.numbers)) }

// at is the i-th value, as a parameter.
func (c column) at(i int) any {
	if c.texts != nil {
		return c.texts[i]
	}
	return c.numbers[i]
}

// values is a table expression v with these columns, all of one length, and its
// parameters. One statement may so carry any number of rows.
func (d dialect) values(columns ...column) (string, []any) {
	var exprs, names []string
	var args []any
	for i, c := range columns {
		names = append(names, c.name)
		switch {
		case d.sqlite:
			exprs = append(exprs, fmt.Sprintf("value->>%d AS %s", i, c.name))
		case c.texts != nil:
			exprs = append(exprs, "CAST(? AS TEXT[])")
			args = append(args, arrayOfTexts(c.texts))
		default:
			exprs = append(exprs, "CAST(? AS BIGINT[])")
			args = append(args, arrayOfNumbers(c.numbers))
		}
	}
	if !d.sqlite {
		return "unnest(" + strings.Join(exprs, ", ") + ") AS v(" + strings.Join(names, ", ") + ")", args
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
			if c.texts != nil {
				list = appendJSON(list, c.texts[i])
			} else {
				list = strconv.AppendInt(list, c.numbers[i], 10)
			}
		}
		list = append(list, ']')
	}
	list = append(list, ']')
	return "(SELECT " + strings.Join(exprs, ", ") + " FROM json_each(?)) AS v", []any{string(list)}
}

// rows is values as a query of all its rows.
func (d dialect) rows(columns ...column) (string, []any) {
	from, args := d.values(columns...)
	var names []string
	for _, c := range columns {
		names = append(names, c.name)
	}
	return "SELECT " + strings.Join(names, ", ") + " FROM " + from + " WHERE true", args // which has SQLite see where it ends
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

// arrayOf is a JSON array.
func arrayOf(numbers []int64) string {
	b, _ := json.Marshal(numbers) // of numbers: it cannot fail
	return string(b)
}

// What follows is PostgreSQL's own notation, as text: it asks for no driver's types.

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
