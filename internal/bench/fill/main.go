// Program fill fills a database as if a service had used it for 13 months, and
// measures what the dashboard's queries cost there.
//
//	make fill
//	make fill ARGS='-db=sqlite -scale=0.1 -rounds=50'
//
// Queries are answered by the dashboard's own handler, without a network between.
// There is no pass or fail by time; beside what has a bar, the table shows it.
//
// Read this file, then usage.go (what is filled in), fill.go, read.go (what is asked),
// target.go and table.go.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"log/slog"
	"os"
	"time"
)

type settings struct {
	scale  float64
	rounds int
}

func main() {
	log.SetFlags(0)
	slog.SetLogLoggerLevel(slog.LevelError) // the table says which reads were given up
	var s settings
	db := flag.String("db", "both", "`database`: postgres, sqlite or both; both is SQLite at a tenth of the scale")
	flag.Float64Var(&s.scale, "scale", 1, "users and requests: 1 is 1,000,000 users")
	flag.IntVar(&s.rounds, "rounds", 20, "how often everything is asked")
	flag.Parse()
	if s.scale < 0.001 || s.scale > 10 || s.rounds < 1 {
		log.Fatal("want a scale from 0.001 to 10, and a round at least")
	}
	if err := s.run(context.Background(), os.Stdout, *db); err != nil {
		log.Fatal(err)
	}
}

func (s settings) run(ctx context.Context, w io.Writer, db string) error {
	switch db {
	case "postgres":
		return s.runPostgreSQL(ctx, w)
	case "sqlite":
		return s.runSQLite(ctx, w)
	case "both":
		if err := s.runPostgreSQL(ctx, w); err != nil {
			return err
		}
		s.scale = max(s.scale/10, 0.001)
		fmt.Fprintln(w)
		return s.runSQLite(ctx, w)
	}
	return fmt.Errorf("unknown database %q: want postgres, sqlite or both", db)
}

func (s settings) runPostgreSQL(ctx context.Context, w io.Writer) (err error) {
	server, err := private(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Close()) }()
	return s.on(ctx, w, onPostgreSQL(server, server.URL("postgres")))
}

func (s settings) runSQLite(ctx context.Context, w io.Writer) error {
	dir, err := os.MkdirTemp("", "usagekit-fill-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	return s.on(ctx, w, onSQLite(dir))
}

// on fills t, reads it, and writes the table to w.
func (s settings) on(ctx context.Context, w io.Writer, t target) error {
	begin := time.Now()
	u := newUsage(s.scale, begin)
	written, err := t.fill(ctx, u)
	if err != nil {
		return err
	}
	took := time.Since(begin)
	results, starts, err := t.measure(ctx, queries(u.last), s.rounds)
	if err != nil {
		return err
	}
	if err := writeTable(w, t, results, starts); err != nil {
		return err
	}
	return s.writeLegend(ctx, w, t, written, took)
}
