package database

import (
	"database/sql"
	"fmt"
	"regexp"
	"strings"

	"github.com/jmoiron/sqlx"
)

// Dialect is in what one database differs from another: one value for each of them. SQL
// is written once, with ? for parameters and bare table names.
type Dialect struct {
	Name   string // of its migrations
	Schema string // where the tables are, once known; before: Config.Schema, "" for the search path

	Edit func(string) string // tests only: changes a statement

	bind   int
	tables *regexp.Regexp

	behaviour
	statements
	expressions
	catalog
}

// behaviour is how a database goes about transactions.
type behaviour struct {
	isolation, snapshot sql.IsolationLevel // of a transaction, and of one that reads one moment
	OneWriter           bool               // whoever writes locks all of it: one queue, and everybody's turn to fold
	rowByRow            bool               // a statement for each row is cheaper than a list
	sessions            bool               // one that waits in the pool may end meanwhile
}

// statements are those that each database has its own of.
type statements struct {
	bounds        string // an expression that bounds a writing transaction on the server, and makes its COMMIT durable
	quickBounds   string // the same for what a request waits for
	migrationLock string // waits for its turn to change tables
	describe      string // asks for what the log calls the database: its product, version and name
	pathOf        string // asks for the path of the database's file; "": it has none
	Waiting       string // what waits in the inbox at or above each writer's guard (at it stands a repeat): the first so many of each, of those seen since then, or of all
	LockLease     string // ends the query that takes the lease: no row when another has it
}

// expressions are said by the methods of Dialect.
type expressions struct {
	Strpos  string // the function that finds a string in another
	now     func() string
	stem    string // the column is %[1]s
	unhex   string
	suffix  string
	oneOf   string
	seek    string                       // the list is %[1]s, the rest %[2]s
	set     func(name, to string) string // a server's setting, for the rest of the transaction
	values  func(columns []Column) (from string, args []any)
	numbers func([]int64) string
	texts   func([]string) string
}

// catalog is how to find what has our names already: see adopt.go.
type catalog struct {
	server      string // asks for the encoding, and for the schema in which tables are made
	mistaken    string // what an error of that means; "": nothing else than it says
	relations   string // that have one of the names %[1]s, where ours lead; Schema twice
	differences string // by which usage_metrics is no table of counters
	odd         string // ends the condition of rows that are no counters
	schemas     int    // how often Schema is a parameter of relations; of differences, half of that
	broken      string // asks for what a release broke that took over a table it should not have; "": differences tell
	own         string // what to do where something is in the way
}

// dialectOf returns the dialect of a driver, by the name that sqlx has for it, with its tables
// in a schema; "": where the search path leads.
func dialectOf(driverName, schema string) (*Dialect, error) {
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
	d.tables = regexp.MustCompile(`\busage_(metrics|history|inbox|writers|meta|crossings|notices|quarantine|rules|removal|hourly|daily)\b`)
	return d, nil
}

// say makes a statement ready for the driver, with its parameters.
func (d *Dialect) say(q string, args []any) (string, []any) {
	if !strings.Contains(q, "{") {
		return d.text(q), args
	}
	var text strings.Builder
	var list []any
	next := func() any {
		arg := args[0]
		args = args[1:]
		return arg
	}
	for {
		i := strings.IndexAny(q, "?{")
		if i < 0 {
			text.WriteString(q)
			return d.text(text.String()), append(list, args...)
		}
		text.WriteString(q[:i])
		if q[i] == '?' {
			text.WriteByte('?')
			list, q = append(list, next()), q[i+1:]
			continue
		}
		end := i + max(strings.IndexByte(q[i:], '}'), 0)
		said, of := d.express(append(strings.Fields(q[i+1:max(end, i+1)]), "", ""), next)
		if said == "" { // a brace of the statement's own
			text.WriteByte('{')
			q = q[i+1:]
			continue
		}
		text.WriteString(said)
		list, q = append(list, of...), q[end+1:]
	}
}

// express is what stands in braces, in d's words; "": it is none of these. next takes a
// parameter.
func (d *Dialect) express(words []string, next func() any) (text string, args []any) {
	switch words[0] {
	case "now":
		return d.Clock(), nil
	case "stem":
		return d.Stem(words[1]), nil
	case "unhex":
		return fmt.Sprintf(d.unhex, words[1]), nil
	case "local":
		return d.set(words[1], words[2]), nil
	case "in":
		in, of := "", any(nil)
		switch list := next().(type) {
		case []int64:
			in, of = d.OneOf(words[1], list)
		case []string:
			in, of = d.OneOfTexts(words[1], list)
		}
		return in, []any{of}
	case "v":
		return d.Values(next().(List)...)
	case "rows":
		list := next().(List)
		from, args := d.Values(list...)
		var names []string
		for _, c := range list {
			names = append(names, c.Name)
		}
		return "SELECT " + strings.Join(names, ", ") + " FROM " + from + " WHERE true", args // which has SQLite see where it ends
	}
	return "", nil
}

// text is a statement with d's own parameters, and the tables where they are.
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

// options are those of a transaction.
func (d *Dialect) options(readOnly bool) *sql.TxOptions {
	return &sql.TxOptions{Isolation: d.isolation, ReadOnly: readOnly}
}

// Clock is an expression for the database's time, in Unix milliseconds.
func (d *Dialect) Clock() string { return d.now() }

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

// List is rows by their columns, all of one length.
type List []Column

// Column is one of a List: texts, or numbers.
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
func (d *Dialect) Values(columns ...Column) (string, []any) { return d.values(columns) }
