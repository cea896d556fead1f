package database

import (
	"context"
	"fmt"
	"strings"

	"github.com/jmoiron/sqlx"
)

// Tx is a transaction. Its statements have ? for parameters, bare names of usagekit's
// tables, and in braces what each database says in its own way:
//
//	{now}                   its time, Unix milliseconds
//	{stem key}              a name without its measure, with the dot
//	{unhex sum}             the bytes of a hexadecimal column
//	{local jit off}         sets a server's setting for the rest of the transaction
//	{in bucket}             the column holds one of the next parameter, []int64 or []string
//	{v}                     a table expression v of the next parameter, a List
//	{rows}                  the same as a query of all its rows
type Tx struct {
	tx *sqlx.Tx
	*Dialect
	Opening // of one that writes; else zero
}

// Opening is what a writing transaction knows from the statement that it begins with. That
// also bounds it on the server, and makes its COMMIT durable.
type Opening struct {
	Now                          int64  // the database's time, Unix milliseconds
	Floor                        int    // the least version of the tables that may write to them
	Rules                        string // which rules of the zone are in force
	Removed, Doubted, Seen, Gaps int64  // see clock.Removal
}

const sqlOpening = `SELECT %s AS bounded, {now} AS now, CAST(COALESCE((SELECT value FROM usage_meta WHERE name = 'floor'), '0') AS INTEGER) AS floor,
COALESCE((SELECT which FROM usage_rules WHERE in_force = 1), '') AS rules,
COALESCE(r.last, 0) AS removed, COALESCE(r.doubted, 0) AS doubted, COALESCE(r.seen, 0) AS seen, COALESCE(r.gaps, 0) AS gaps
FROM (SELECT 1 AS one) AS o LEFT JOIN usage_removal r ON r.one = o.one`

// open is the first statement of a writing transaction. bounds are those of the server.
func (t *Tx) open(ctx context.Context, bounds string) error {
	var row struct {
		Bounded string
		Opening
	}
	err := t.Get(ctx, &row, fmt.Sprintf(sqlOpening, bounds))
	t.Opening = row.Opening
	return err
}

// Get reads one row; sql.ErrNoRows when there is none.
func (t *Tx) Get(ctx context.Context, dest any, query string, args ...any) error {
	text, args := t.say(query, args)
	return t.tx.GetContext(ctx, dest, text, args...)
}

// Select reads all rows, into a slice.
func (t *Tx) Select(ctx context.Context, dest any, query string, args ...any) error {
	text, args := t.say(query, args)
	return t.tx.SelectContext(ctx, dest, text, args...)
}

// inCatalog is Select for a query of the catalog, in which tables' names are but texts.
func (t *Tx) inCatalog(ctx context.Context, dest any, query string, args ...any) error {
	return t.tx.SelectContext(ctx, dest, sqlx.Rebind(t.bind, query), args...)
}

// SetMeta sets a value of usage_meta.
func (t *Tx) SetMeta(ctx context.Context, name, value string) error {
	_, err := t.Exec(ctx, `INSERT INTO usage_meta (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value`, name, value)
	return err
}

// NewMeta is SetMeta where there is none.
func (t *Tx) NewMeta(ctx context.Context, name, value string) error {
	_, err := t.Exec(ctx, `INSERT INTO usage_meta (name, value) VALUES (?, ?) ON CONFLICT DO NOTHING`, name, value)
	return err
}

// script runs several statements, as they are written for one database.
func (t *Tx) script(ctx context.Context, text string) error {
	_, err := t.tx.ExecContext(ctx, t.text(text))
	return err
}

// Exec returns how many rows it changed; -1 where a driver does not tell.
func (t *Tx) Exec(ctx context.Context, query string, args ...any) (rows int64, err error) {
	text, args := t.say(query, args)
	res, err := t.tx.ExecContext(ctx, text, args...)
	if err != nil {
		return 0, err
	}
	if rows, err = res.RowsAffected(); err != nil {
		return -1, nil
	}
	return rows, nil
}

// ExecRows runs query for the {rows} of a list. Where no network lies between (SQLite), a
// statement for each row takes half the time of one for all, which has to take JSON apart.
func (t *Tx) ExecRows(ctx context.Context, query string, columns List) error {
	if !t.rowByRow {
		_, err := t.Exec(ctx, query, columns)
		return err
	}
	row := "VALUES (?" + strings.Repeat(", ?", len(columns)-1) + ")"
	stmt, err := t.tx.PrepareContext(ctx, t.text(strings.Replace(query, "{rows}", row, 1)))
	if err != nil {
		return err
	}
	defer stmt.Close()
	ctx = context.WithoutCancel(ctx) // modernc.org/sqlite begins a goroutine for each statement of one that may be cancelled
	args := make([]any, len(columns))
	for i := range columns[0].len() {
		for j, c := range columns {
			args[j] = c.at(i)
		}
		if _, err := stmt.ExecContext(ctx, args...); err != nil {
			return err
		}
	}
	return nil
}
