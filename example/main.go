// Command example is a small service for people who write novels, with its usage
// counted. It shows a whole program: open the database, start the store, wrap
// the server, mount the dashboard, and stop in the right order.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/usagekit/usagekit/dashboard"
	"github.com/usagekit/usagekit/middleware"
	"github.com/usagekit/usagekit/store"
	"github.com/usagekit/usagekit/store/postgres"
	"github.com/usagekit/usagekit/store/sqlite"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "example:", err)
		os.Exit(1)
	}
}

// run serves until ctx ends, then stores what is left and says how much it was.
func run(ctx context.Context, args []string, out io.Writer) (err error) {
	flags := flag.NewFlagSet("example", flag.ContinueOnError)
	addr := flags.String("addr", "127.0.0.1:8080", "`address` to listen on")
	dsn := flags.String("db", "usage.db", "SQLite `file`, or a postgres:// URL")
	flush := flags.Duration("flush", time.Second, "time between flushes")
	spool := flags.String("spool", "", "`directory` for counts that the database does not have yet; with it, no start waits for the database")
	demo := flags.Bool("demo", false, "show a month of invented usage in a new database, and send varied traffic to itself")
	password := flags.String("password", "", "of the dashboard, for the user admin")
	completions := flags.Int64("completions", 10_000, "`number` of completions that a user may ask for in a day")
	ledgerFile := flags.String("ledger", "", "`file` in which every request leaves two marks, for tests that kill this program")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		// Not shown: it may be the database's URL, with its password.
		return errors.New("an argument without a flag: see -help")
	}
	auth, err := dashboardAuth(*addr, *password)
	if err != nil {
		return err
	}

	listener, err := net.Listen("tcp", *addr)
	if err != nil {
		return err
	}
	defer listener.Close()
	db, err := open(*dsn)
	if err != nil {
		return err
	}
	defer db.Close()
	usage, err := store.New(ctx, db, store.Config{
		Interval: *flush, Spool: *spool, StartOffline: *spool != "",
		// Without Notify, a line in the log.
		Thresholds: []store.Threshold{{Prefix: "llm.", Measure: "tokens", Step: store.Day, Value: 10_000_000}},
	})
	if err != nil {
		return err
	}
	defer func() {
		if stopErr := shutdown(usage, out); err == nil {
			err = stopErr
		}
	}()
	usage.Inc("app.starts")

	app := newService(usage, *completions)
	if *demo {
		app.novels = demoNovels
	}
	mux := app.routes()
	mux.Handle("GET /usage/", dashboard.New(usage, dashboard.Config{Auth: auth, Users: userNames}))
	count := middleware.New(usage, middleware.Config{
		User: userOf,
		Area: area,
		Skip: []string{"/usage/"},
	})
	handler := count(mux)
	if *demo {
		handler = count(paced(ctx, mux))
	}
	if *ledgerFile != "" {
		l, err := openLedger(*ledgerFile)
		if err != nil {
			return err
		}
		defer l.file.Close()
		handler = l.wrap(handler)
	}
	srv := &http.Server{Handler: handler, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute}

	url := "http://" + listener.Addr().String()
	fmt.Fprintf(out, "serving %s\nusage at %s/usage/\n", url, url)
	served := make(chan error, 1)
	go func() { served <- srv.Serve(listener) }()
	if *demo {
		go runDemo(ctx, usage, db, url)
	}
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if err := srv.Shutdown(last); err != nil {
		slog.Warn("some requests did not end in time", "error", err)
		return srv.Close()
	}
	return nil
}

// dashboardAuth is how the dashboard is protected: not on loopback, where only
// this machine's users come; with a password on every other address.
func dashboardAuth(addr, password string) (func(http.Handler) http.Handler, error) {
	if password != "" {
		return dashboard.BasicAuth("admin", password), nil
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("-addr %q: %w", addr, err)
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return nil, fmt.Errorf("-addr %s can be reached from outside: give the dashboard a -password", addr)
	}
	return dashboard.Public, nil
}

func open(dsn string) (*sqlx.DB, error) {
	if strings.HasPrefix(dsn, "postgres://") || strings.HasPrefix(dsn, "postgresql://") {
		return postgres.Open(dsn)
	}
	return sqlite.Open(dsn)
}

// shutdown stores what is left, and reports it.
func shutdown(usage *store.Store, out io.Writer) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := usage.Shutdown(ctx); err != nil {
		var lost *store.UndeliveredError
		if errors.As(err, &lost) {
			for _, c := range lost.Counts {
				fmt.Fprintf(out, "not stored: %s %d\n", c.Name, c.N)
			}
		}
		return err
	}
	total, err := usage.Get(ctx, "api.requests.total")
	if errors.Is(err, store.ErrUnavailable) { // and so there is a spool, or Shutdown would have told
		fmt.Fprintln(out, "the database does not answer: what it does not have waits in the spool")
		return nil
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "%d requests counted, all of them stored\n", total)
	return nil
}

// area is the part of the service that a request is for: the first segment of
// its path, or the one after /site/.
func area(r *http.Request) string {
	first, rest, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	if first == "site" {
		first, _, _ = strings.Cut(rest, "/")
	}
	return first
}
