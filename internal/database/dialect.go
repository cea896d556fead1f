// Package database is how usagekit says SQL: transactions whose statements have ? for
// parameters and bare names of its tables (Tx), in what PostgreSQL and SQLite differ
// (Dialect), and what an error means: whether the same attempt may work later, whether
// what was sent is at fault, and what somebody has to do.
package database

import (
	"database/sql"
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"
)

// Dialect is in what one database differs from another: one value for each of them. SQL
// is written once, with ? for parameters and bare table names.
type Dialect struct {
	Name   string // of its migrations
	SQLite bool   // a file, which this process writes to by itself; else a server
	Schema string // where the tables are, once known; before: Config.Schema, "" for the search path

	Edit func(string) string // tests only: changes a statement

	bind   int
	tables *regexp.Regexp

	begin     string // bounds a writing transaction on the server, and makes its COMMIT durable; "": nothing
	isolation sql.IsolationLevel

	Strpos        string // the function that finds a string in another
	LockLease     string // ends the query that takes the lease: no row when another has it
	MigrationLock string // waits for its turn to change tables
	Describe      string // asks for what the log calls the database: its product, version and name
	PrepareTake   string // bounds the transaction of a Take on the server, and makes its COMMIT durable: a request waits for it

	now     func() string                // see Clock
	stem    string                       // see Stem; the column is %[1]s
	unhex   string                       // see Unhex
	suffix  string                       // see EndsWith
	oneOf   string                       // see OneOf
	seek    string                       // see Seek; the list is %[1]s, the rest %[2]s
	set     func(name, to string) string // see SetLocal
	numbers func([]int64) string
	texts   func([]string) string
}

// New returns the dialect of a driver, by the name that sqlx has for it, with its tables
// in a schema; "": where the search path leads.
func New(driverName, schema string) (*Dialect, error) {
	bind := sqlx.BindType(driverName)
	var d *Dialect
	switch {
	case bind == sqlx.DOLLAR:
		d = postgres()
		d.Schema = schema
	case bind == sqlx.QUESTION && driverName != "mysql" || driverName == "sqlite":
		d = sqlite()
		if schema != "" {
			return nil, fmt.Errorf("store: Config.Schema %q: SQLite has no schemas; leave it empty", schema)
		}
	default:
		return nil, fmt.Errorf("store: the driver %q is not known: want PostgreSQL (lib/pq, pgx) or SQLite", driverName)
	}
	d.tables = regexp.MustCompile(`\busage_(metrics|history|inbox|writers|meta|hourly|daily)\b`)
	return d, nil
}

func postgres() *Dialect {
	set := func(name, to string) string { return "set_config('" + name + "', '" + to + "', true)" }
	return &Dialect{
		Name: "postgres",
		bind: sqlx.DOLLAR,
		// One statement without parameters: one round trip.
		begin: `SET LOCAL statement_timeout = '10s'; SET LOCAL lock_timeout = '5s';
SET LOCAL idle_in_transaction_session_timeout = '15s';
SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') = 'off'`,
		isolation:     sql.LevelReadCommitted,
		Strpos:        "strpos",
		LockLease:     ` FOR UPDATE SKIP LOCKED`,
		MigrationLock: `SELECT pg_advisory_xact_lock(7527284621038457714)`,
		Describe:      `SELECT 'PostgreSQL ' || current_setting('server_version') || ': ' || current_database()`,
		PrepareTake: set("lock_timeout", "200ms") + " || " + set("statement_timeout", "2s") + " || " + set("idle_in_transaction_session_timeout", "5s") +
			` || set_config('synchronous_commit', CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on' ELSE current_setting('synchronous_commit') END, true)`,
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
		numbers: arrayOfNumbers,
		texts:   arrayOfTexts,
	}
}

func sqlite() *Dialect {
	return &Dialect{
		Name:          "sqlite",
		SQLite:        true,
		bind:          sqlx.QUESTION,
		begin:         "", // busy_timeout, and synchronous=FULL, are in the DSN
		Strpos:        "instr",
		LockLease:     "", // BEGIN IMMEDIATE has locked already
		MigrationLock: `SELECT 1`,
		Describe:      `SELECT 'SQLite ' || sqlite_version() || ': ' || file FROM pragma_database_list WHERE name = 'main'`,
		PrepareTake:   `''`,
		now:           func() string { return strconv.FormatInt(time.Now().UnixMilli(), 10) }, // it runs in this process
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
		numbers: func(n []int64) string { return jsonOf(n) },
		texts:   func(t []string) string { return jsonOf(t) },
	}
}

// text makes a statement ready for the driver.
func (d *Dialect) text(q string) string {
	if d.Edit != nil {
		q = d.Edit(q)
	}
	q = sqlx.Rebind(d.bind, q)
	if d.Schema != "" { // whose name may hold a question mark
		q = d.tables.ReplaceAllStringFunc(q, func(table string) string { return quoteIdentifier(d.Schema) + "." + table })
	}
	return q
}

// Options are those of a transaction.
func (d *Dialect) Options(write bool) *sql.TxOptions {
	return &sql.TxOptions{Isolation: d.isolation, ReadOnly: !write}
}

// Clock is an expression for the database's time, in Unix milliseconds.
func (d *Dialect) Clock() string { return d.now() }

// Unhex is an expression for the bytes that a hexadecimal column holds.
func (d *Dialect) Unhex(column string) string { return fmt.Sprintf(d.unhex, column) }

// Stem is an expression for the name in column without its measure, with the dot.
func (d *Dialect) Stem(column string) string { return fmt.Sprintf(d.stem, column) }

// EndsWith is a condition that column ends in a text, and its parameters.
func (d *Dialect) EndsWith(column, text string) (string, []any) {
	return fmt.Sprintf(d.suffix, column), []any{text, text}
}

// OneOf is a condition that column holds one of the numbers, and its parameter.
func (d *Dialect) OneOf(column string, numbers []int64) (string, any) {
	return fmt.Sprintf(d.oneOf, column), d.numbers(numbers)
}

// OneOfTexts is a condition that column holds one of the texts, and its parameter.
func (d *Dialect) OneOfTexts(column string, texts []string) (string, any) {
	return fmt.Sprintf(d.oneOf, column), d.texts(texts)
}

// Seek is from, a table h and its conditions, for each row of a list.
func (d *Dialect) Seek(list, from string) string { return fmt.Sprintf(d.seek, list, from) }

// SetLocal is an expression that changes a server's setting for the rest of the
// transaction.
func (d *Dialect) SetLocal(name, value string) string { return d.set(name, value) }

// Column is one of a list of Values: texts, or numbers.
type Column struct {
	Name    string
	Texts   []string
	Numbers []int64
}

func (c Column) len() int { return max(len(c.Texts), len(c.Numbers)) }

// at is the i-th value, as a parameter.
func (c Column) at(i int) any {
	if c.Texts != nil {
		return c.Texts[i]
	}
	return c.Numbers[i]
}

// Values is a table expression v with these columns, all of one length, and its
// parameters. One statement may so carry any number of rows.
func (d *Dialect) Values(columns ...Column) (string, []any) {
	var exprs, names []string
	var args []any
	for i, c := range columns {
		names = append(names, c.Name)
		switch {
		case d.SQLite:
			exprs = append(exprs, fmt.Sprintf("value->>%d AS %s", i, c.Name))
		case c.Texts != nil:
			exprs = append(exprs, "CAST(? AS TEXT[])")
			args = append(args, arrayOfTexts(c.Texts))
		default:
			exprs = append(exprs, "CAST(? AS BIGINT[])")
			args = append(args, arrayOfNumbers(c.Numbers))
		}
	}
	if !d.SQLite {
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

// Rows is Values as a query of all its rows.
func (d *Dialect) Rows(columns ...Column) (string, []any) {
	from, args := d.Values(columns...)
	var names []string
	for _, c := range columns {
		names = append(names, c.Name)
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

// jsonOf is a JSON array.
func jsonOf[T int64 | string](list []T) string {
	b, _ := json.Marshal(list) // of these it cannot fail
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
