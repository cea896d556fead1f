package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/usagekit/usagekit/store"
)

// fill makes the tables of a store, writes all of u into them, and returns how many
// rows of history it has of each step, and of totals, under 0.
func (t target) fill(ctx context.Context, u *usage) (map[store.Step]int, error) {
	db, err := t.open()
	if err != nil {
		return nil, err
	}
	defer db.Close()
	st, err := store.New(ctx, db, store.Config{Location: time.UTC})
	if err != nil {
		return nil, err
	}
	if err := st.Shutdown(ctx); err != nil {
		return nil, err
	}
	written := map[store.Step]int{}
	err = u.rows(func(rows []row) error {
		for _, r := range rows {
			written[r.step]++
		}
		switch {
		case len(rows) == 0:
			return nil
		case rows[0].step == 0:
			return write(ctx, db, "usage_metrics", []string{"key", "value"}, rows, func(r row) []any { return []any{r.key, r.n} })
		}
		return write(ctx, db, "usage_history", []string{"step", "bucket", "key", "value"}, rows,
			func(r row) []any { return []any{int64(r.step), r.bucket, r.key, r.n} })
	})
	if err != nil {
		return nil, fmt.Errorf("fill: %w", err)
	}
	for _, query := range t.settle {
		if _, err := db.ExecContext(ctx, query); err != nil {
			return nil, fmt.Errorf("%s: %w", query, err)
		}
	}
	return written, nil
}

// write inserts rows in one transaction: by COPY, where there is such a thing.
func write(ctx context.Context, db *sqlx.DB, table string, columns []string, rows []row, values func(row) []any) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() // nothing, after Commit
	insert := "INSERT INTO " + table + " VALUES (?" + strings.Repeat(", ?", len(columns)-1) + ")"
	copies := sqlx.BindType(db.DriverName()) == sqlx.DOLLAR
	if copies {
		insert = "COPY " + table + " (" + strings.Join(columns, ", ") + ") FROM STDIN"
	}
	stmt, err := tx.PrepareContext(ctx, insert)
	if err != nil {
		return err
	}
	for _, r := range rows {
		if _, err := stmt.ExecContext(ctx, values(r)...); err != nil {
			return err
		}
	}
	if copies {
		if _, err := stmt.ExecContext(ctx); err != nil {
			return err
		}
	}
	if err := stmt.Close(); err != nil {
		return err
	}
	return tx.Commit()
}
