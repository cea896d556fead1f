package llm_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/usagekit/usagekit/store"
	"github.com/usagekit/usagekit/store/llm"
	"github.com/usagekit/usagekit/store/sqlite"
)

// A call of a model, as its provider reports it, and one that failed.
func Example() {
	ctx, usage, done := exampleStore()
	defer done()

	calls := llm.New(usage)
	calls.Add(llm.Call{Model: "gpt-5.1", Input: 1117, Output: 446, Cached: 1024, Reasoning: 320})
	calls.Add(llm.Call{Model: "gpt-5.1", Failed: "timeout"})

	if err := usage.Flush(ctx); err != nil {
		log.Fatal(err)
	}
	rows, err := usage.Rows(ctx, store.Query{Prefix: "llm.", Measure: "tokens"})
	if err != nil {
		log.Fatal(err)
	}
	for _, r := range rows {
		fmt.Println(r.Subject, r.Counts["calls"], r.Counts["failed"], r.Counts["tokens"], r.Counts["cached_tokens"])
	}
	// Output: gpt-5.1 2 1 1563 1024
}

// exampleStore is a store in a file of its own.
func exampleStore() (context.Context, *store.Store, func()) {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "usagekit")
	if err != nil {
		log.Fatal(err)
	}
	db, err := sqlite.Open(filepath.Join(dir, "usage.db"))
	if err != nil {
		log.Fatal(err)
	}
	usage, err := store.New(ctx, db, store.Config{})
	if err != nil {
		log.Fatal(err)
	}
	return ctx, usage, func() {
		if err := usage.Shutdown(ctx); err != nil {
			log.Print(err)
		}
		_, _ = db.Close(), os.RemoveAll(dir)
	}
}
