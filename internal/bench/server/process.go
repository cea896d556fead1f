package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/usagekit/usagekit/middleware"
	"github.com/usagekit/usagekit/store"
	"github.com/usagekit/usagekit/store/sqlite"
)

const (
	routeCount = 100
	userHeader = "X-User"
)

// The kinds of servers.
const (
	bare   = "bare server" // an http.ServeMux and nothing else
	memory = "usagekit, memory"
	spool  = "usagekit, spool"
)

// serveCommand is the first argument of a process that is a server; its kind and
// its directory follow.
const serveCommand = "serve"

// patience is how long a server may take to stop, and a database to answer.
const patience = 30 * time.Second

// report is what a server says of itself when the database has all that it counted.
type report struct {
	Served   int64         // requests that its handlers answered
	CPU      time.Duration // user and system, since it started
	Degraded string        // why counts are in memory only, although there is a spool
}

// serve is a server: it writes its URL, and a report for each line that it reads.
// On SIGTERM, or when nobody is left to write lines, it stops as a service should,
// the server before the store, and writes the last report.
func serve(kind, dir string, in io.Reader, out io.Writer) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	var served atomic.Int64
	handler := http.Handler(routes(&served))
	flush, shutdown := func() (degraded string, err error) { return "", nil }, func() error { return nil }
	if kind != bare {
		usage, closeStore, err := openStore(ctx, kind, dir)
		if err != nil {
			return err
		}
		handler = middleware.New(usage, middleware.Config{
			User: func(r *http.Request) string { return r.Header.Get(userHeader) },
		})(handler)
		flush, shutdown = func() (string, error) { return usage.Stats().Degraded, usage.Flush(ctx) }, closeStore
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return errors.Join(err, shutdown())
	}
	say := json.NewEncoder(out)
	if err := say.Encode("http://" + listener.Addr().String()); err != nil {
		return errors.Join(err, shutdown())
	}
	srv := &http.Server{Handler: handler}
	ended := make(chan error, 2)
	go func() { ended <- srv.Serve(listener) }()
	go func() {
		for lines := bufio.NewScanner(in); lines.Scan(); {
			degraded, err := flush()
			if err == nil {
				err = say.Encode(report{served.Load(), spent(), degraded})
			}
			if err != nil {
				ended <- err
				return
			}
		}
		ended <- nil
	}()
	select {
	case <-ctx.Done():
	case err = <-ended:
	}
	soon, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := errors.Join(err, srv.Shutdown(soon), shutdown()); err != nil {
		return err
	}
	return say.Encode(report{Served: served.Load(), CPU: spent()})
}

// routes returns a ServeMux whose handlers answer with 200 and a small body, and
// count that themselves.
func routes(served *atomic.Int64) *http.ServeMux {
	mux := http.NewServeMux()
	for i := range routeCount {
		mux.HandleFunc(fmt.Sprintf("GET /r%d/{id}", i), func(w http.ResponseWriter, _ *http.Request) {
			served.Add(1)
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, `{"ok":true}`)
		})
	}
	return mux
}

// openStore returns the store of a server, and what closes it and its database.
func openStore(ctx context.Context, kind, dir string) (*store.Store, func() error, error) {
	var cfg store.Config
	if kind == spool {
		cfg.Spool = filepath.Join(dir, "spool")
	}
	db, err := sqlite.Open(filepath.Join(dir, "usage.db"))
	if err != nil {
		return nil, nil, err
	}
	usage, err := store.New(ctx, db, cfg)
	if err != nil {
		return nil, nil, errors.Join(err, db.Close())
	}
	return usage, func() error {
		soon, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		return errors.Join(usage.Shutdown(soon), db.Close())
	}, nil
}

// spent returns the CPU time of this process.
func spent() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u) // never fails for oneself
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// process is a server in a process of its own.
type process struct {
	kind, dir, url string
	cmd            *exec.Cmd
	in             io.Writer
	out            *json.Decoder
}

// start starts this program again, as a server whose database is in dir.
func start(kind, dir string) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	cmd := exec.Command(self, serveCommand, kind, dir)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{kind: kind, dir: dir, cmd: cmd, in: in, out: json.NewDecoder(out)}
	if err := p.out.Decode(&p.url); err != nil {
		return nil, fmt.Errorf("no URL: %w", errors.Join(err, cmd.Wait()))
	}
	return p, nil
}

// report asks for one, which takes the flush before it.
func (p *process) report() (r report, err error) {
	if _, err := io.WriteString(p.in, "\n"); err != nil {
		return r, fmt.Errorf("no report: %w", err)
	}
	if err := p.out.Decode(&r); err != nil {
		return r, fmt.Errorf("no report: %w", err)
	}
	return r, nil
}

// stop stops it with SIGTERM.
func (p *process) stop() (last report, err error) {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return last, fmt.Errorf("SIGTERM: %w", err)
	}
	err = p.out.Decode(&last)
	if err := errors.Join(err, p.cmd.Wait()); err != nil {
		return last, fmt.Errorf("SIGTERM: %w", err)
	}
	return last, nil
}

// kill ends it, if it has not ended.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

// counted returns what the database of a process that has stopped says.
func (p *process) counted(ctx context.Context) (n int64, err error) {
	usage, closeStore, err := openStore(ctx, p.kind, p.dir)
	if err != nil {
		return 0, err
	}
	n, err = usage.Get(ctx, "api.requests.total")
	return n, errors.Join(err, closeStore())
}
