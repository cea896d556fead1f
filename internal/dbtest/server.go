// Package dbtest gives tests a real PostgreSQL of their own, and a database
// driver that fails when told to. Only tests import it.
package dbtest

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lib/pq"
)

// Main runs the tests of a package that has some on PostgreSQL, and returns
// their exit code. With USAGEKIT_PG=require it starts a private server first;
// with USAGEKIT_TEST_DSN it uses that one. Otherwise *server stays nil, and a
// line says so.
//
// Most of the time of such tests is waiting, so more of them run at once than there are
// cores. -parallel overrides that.
func Main(m *testing.M, server **Server) int {
	atOnce := "8"
	if Race() {
		atOnce = "4"
	}
	if err := flag.Set("test.parallel", atOnce); err != nil {
		fmt.Fprintln(os.Stderr, "dbtest:", err)
		return 1
	}
	switch dsn := os.Getenv("USAGEKIT_TEST_DSN"); {
	case dsn != "":
		*server = &Server{dsn: dsn}
	case os.Getenv("USAGEKIT_PG") == "require":
		s, err := Start()
		if err != nil {
			fmt.Fprintln(os.Stderr, "dbtest:", err)
			return 1
		}
		defer s.Close()
		*server = s
	default:
		fmt.Fprintln(os.Stderr, "PostgreSQL was not tried: USAGEKIT_PG=require starts one, and so does make test")
	}
	return m.Run()
}

// Server is a PostgreSQL server.
type Server struct {
	dsn  string // of somebody else's server; "": it is private
	bin  string // directory of its programs
	dir  string
	port int
	cred *syscall.Credential // nil: the tests' own user
	cmd  *exec.Cmd
	done chan struct{} // closed when cmd has ended
}

// Start starts a private server in a temporary directory, on a free port of the
// loopback interface. It does not sync to disk: it may be killed, the machine
// may not.
func Start() (*Server, error) {
	bin, err := findPrograms()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "usagekit-postgres-")
	if err != nil {
		return nil, err
	}
	s := &Server{bin: bin, dir: dir}
	if err := s.initialize(); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	for range 5 { // another process may take the port first
		if s.port, err = freePort(); err != nil {
			break
		}
		if err = s.start(); err == nil {
			return s, nil
		}
	}
	return nil, errors.Join(err, os.RemoveAll(dir))
}

func findPrograms() (string, error) {
	if path, err := exec.LookPath("initdb"); err == nil {
		return filepath.Dir(path), nil
	}
	var found []string
	for _, pattern := range []string{"/usr/lib/postgresql/*/bin/initdb", "/usr/pgsql-*/bin/initdb", "/opt/homebrew/opt/postgresql*/bin/initdb", "/usr/local/opt/postgresql*/bin/initdb"} {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			return "", err
		}
		found = append(found, paths...)
	}
	if len(found) == 0 {
		return "", errors.New("PostgreSQL's initdb is neither on PATH nor where packages put it: install PostgreSQL 15 or later (Debian: apt-get install postgresql)")
	}
	version := regexp.MustCompile(`\d+`)
	newest := slices.MaxFunc(found, func(a, b string) int {
		va, _ := strconv.Atoi(version.FindString(a))
		vb, _ := strconv.Atoi(version.FindString(b))
		return va - vb
	})
	return filepath.Dir(newest), nil
}

func (s *Server) initialize() error {
	if os.Geteuid() == 0 { // which PostgreSQL refuses to run as
		var err error
		if s.cred, err = unprivileged(); err != nil {
			return err
		}
		if err := os.Chown(s.dir, int(s.cred.Uid), int(s.cred.Gid)); err != nil {
			return err
		}
	}
	out, err := s.command("initdb", "-D", s.data(), "-U", "postgres", "--auth=trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync").CombinedOutput()
	if err != nil { // a system without that locale
		out, err = s.command("initdb", "-D", s.data(), "-U", "postgres", "--auth=trust", "-E", "UTF8", "--locale=C", "--no-sync").CombinedOutput()
	}
	if err != nil {
		return fmt.Errorf("initdb: %w: %s", err, out)
	}
	// Everybody is trusted, but for a role whose password a test wants asked for.
	hba := filepath.Join(s.data(), "pg_hba.conf")
	rules, err := os.ReadFile(hba)
	if err != nil {
		return err
	}
	return os.WriteFile(hba, append([]byte("host all with_password 127.0.0.1/32 scram-sha-256\n"), rules...), 0o600)
}

func unprivileged() (*syscall.Credential, error) {
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
		if err := errors.Join(err1, err2); err != nil {
			return nil, err
		}
		return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
	}
	return nil, errors.New("PostgreSQL does not run as root, and there is no user postgres or nobody")
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

func (s *Server) data() string { return filepath.Join(s.dir, "data") }

func (s *Server) command(program string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(s.bin, program), args...)
	cmd.Dir = s.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.cred}
	return cmd
}

// Restart starts a stopped server again, on the same port, and waits until it
// answers. Who was killed may live for a moment yet, and keep the server's memory;
// and another may have its port, until that one connects elsewhere.
func (s *Server) Restart() error {
	for until := time.Now().Add(Limit); ; time.Sleep(100 * time.Millisecond) {
		if err := s.start(); err == nil || time.Now().After(until) {
			return err
		}
	}
}

func (s *Server) start() error {
	path := filepath.Join(s.dir, "log")
	log, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := s.command("postgres", "-D", s.data(), "-p", strconv.Itoa(s.port), "-h", "127.0.0.1", "-k", "",
		"-c", "fsync=off", "-c", "full_page_writes=off", "-c", "max_connections=200")
	cmd.Stdout, cmd.Stderr = log, log
	if s.done, err = StartTied(cmd); err != nil {
		return err
	}
	s.cmd = cmd
	if err := answers(s.URL("postgres"), s.done, Limit); err != nil {
		tail, _ := os.ReadFile(path)
		return fmt.Errorf("PostgreSQL does not answer: %w\n%s", errors.Join(err, s.stop(syscall.SIGKILL)), tail[max(0, len(tail)-2000):])
	}
	return nil
}

var errEnded = errors.New("it has ended")

// answers waits until the database at url does, or the process that should has
// ended.
func answers(url string, ended <-chan struct{}, limit time.Duration) error {
	db, err := sql.Open("postgres", url)
	if err != nil {
		return err
	}
	defer db.Close()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	for {
		if err = db.PingContext(ctx); err == nil {
			return nil
		}
		select {
		case <-ended:
			return fmt.Errorf("%w: %w", errEnded, err)
		case <-ctx.Done():
			return err
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Private tells whether the server was started by Start, and may be stopped.
func (s *Server) Private() bool { return s.dsn == "" }

// URL returns the postgres:// URL of one of its databases.
func (s *Server) URL(database string) string {
	if s.Private() {
		return fmt.Sprintf("postgres://postgres@127.0.0.1:%d/%s?sslmode=disable", s.port, database)
	}
	u, err := url.Parse(s.dsn)
	if err != nil {
		return s.dsn
	}
	u.Path = "/" + database
	return u.String()
}

// NewDatabase makes an empty database for the length of a test, with options of
// CREATE DATABASE, and returns its URL.
func (s *Server) NewDatabase(t testing.TB, options ...string) string {
	t.Helper()
	admin := s.dsn
	if s.Private() {
		admin = s.URL("postgres")
	}
	db, err := sql.Open("postgres", admin)
	if err != nil {
		t.Fatal(err)
	}
	name := "test_" + strings.ToLower(rand.Text())
	ctx, cancel := context.WithTimeout(t.Context(), Limit)
	defer cancel()
	if _, err := db.ExecContext(ctx, "CREATE DATABASE "+pq.QuoteIdentifier(name)+" "+strings.Join(options, " ")); err != nil {
		t.Fatalf("a database for the test: %v", err)
	}
	t.Cleanup(func() {
		defer db.Close()
		ctx, cancel := context.WithTimeout(context.Background(), Limit)
		defer cancel()
		if _, err := db.ExecContext(ctx, "DROP DATABASE "+pq.QuoteIdentifier(name)+" WITH (FORCE)"); err != nil {
			t.Logf("the test's database stays: %v", err)
		}
	})
	return s.URL(name)
}

// StopImmediate stops the server as pg_ctl stop -m immediate does: without a
// shutdown checkpoint, every connection cut.
func (s *Server) StopImmediate() error { return s.stop(syscall.SIGQUIT) }

func (s *Server) stop(sig syscall.Signal) error {
	if s.cmd == nil {
		return nil
	}
	if err := s.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-s.done:
		s.cmd = nil
		return nil
	case <-time.After(Limit):
		return fmt.Errorf("PostgreSQL, process %d, did not end within %v of %v", s.cmd.Process.Pid, Limit, sig)
	}
}

// Pause stops the server's processes where they stand; Resume lets them go on.
func (s *Server) Pause() error  { return s.signalAll(syscall.SIGSTOP) }
func (s *Server) Resume() error { return s.signalAll(syscall.SIGCONT) }

func (s *Server) signalAll(sig syscall.Signal) error {
	parent := strconv.Itoa(s.cmd.Process.Pid)
	if err := s.cmd.Process.Signal(sig); err != nil { // first: it makes no more children than are listed
		return err
	}
	out, err := exec.Command("ps", "-A", "-o", "pid=,ppid=").Output()
	if err != nil {
		return fmt.Errorf("ps: %w", err)
	}
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		if len(f) != 2 || f[1] != parent {
			continue
		}
		pid, err := strconv.Atoi(f[0])
		if err != nil {
			return err
		}
		if err := syscall.Kill(pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
			return err
		}
	}
	return nil
}

// Close stops a private server and removes its directory.
func (s *Server) Close() error {
	if !s.Private() {
		return nil
	}
	return errors.Join(s.stop(syscall.SIGQUIT), os.RemoveAll(s.dir))
}

// Dump is what pg_dump says of the database at url: its schema and its rows.
func (s *Server) Dump(t testing.TB, url string) string {
	t.Helper()
	program, err := exec.LookPath("pg_dump")
	if err != nil {
		bin, err := findPrograms()
		if err != nil {
			t.Fatal(err)
		}
		program = filepath.Join(bin, "pg_dump")
	}
	out, err := exec.Command(program, "--dbname", url).Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("pg_dump: %v: %s", err, exit.Stderr)
		}
		t.Fatal(err)
	}
	var dump strings.Builder
	for line := range strings.Lines(string(out)) {
		if !strings.HasPrefix(line, `\restrict `) && !strings.HasPrefix(line, `\unrestrict `) { // which are random
			dump.WriteString(line)
		}
	}
	return dump.String()
}
