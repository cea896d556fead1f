package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

const differencesShown = 5

// check compares what was added with what the tables have.
func check(ctx context.Context, db *database, w way, want map[string]int64) error {
	queries := map[string]string{w.table(): `SELECT key, value FROM ` + w.table()}
	maps.Copy(queries, w.history())
	var errs []error
	for _, table := range slices.Sorted(maps.Keys(queries)) {
		var rows []struct {
			Key   string
			Value int64
		}
		if err := db.reader.SelectContext(ctx, &rows, queries[table]); err != nil {
			return fmt.Errorf("reading %s: %w", table, err)
		}
		got := map[string]int64{}
		for _, r := range rows {
			got[r.Key] = r.Value
		}
		errs = append(errs, differences(table, want, got))
	}
	return errors.Join(errs...)
}

// differences is an error that says where the two differ; nil when they do not.
func differences(table string, want, got map[string]int64) error {
	names := maps.Clone(want)
	maps.Copy(names, got)
	var all []string
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if want[name] != got[name] {
			all = append(all, fmt.Sprintf("%s: %d were added, and %d are there", name, want[name], got[name]))
		}
	}
	if len(all) == 0 {
		return nil
	}
	return fmt.Errorf("%s is wrong under %d of %d names:\n%s", table, len(all), len(names), strings.Join(all[:min(len(all), differencesShown)], "\n"))
}
