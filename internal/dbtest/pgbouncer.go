package dbtest

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
)

// PgBouncer starts one for the length of a test, and returns the URL that leads
// through it to the private server's database at databaseURL: in transaction
// mode, with size connections, all else as it comes.
//
// It ends before the database does, if NewDatabase made that first. PgBouncer
// 1.18 does not survive that PostgreSQL terminates a connection on which it is
// about to cancel a statement (https://github.com/pgbouncer/pgbouncer/issues/822).
func (s *Server) PgBouncer(t testing.TB, databaseURL string, size int) string {
	t.Helper()
	program, err := exec.LookPath("pgbouncer")
	if err != nil { // Debian puts it where only root's PATH leads
		if program, err = exec.LookPath("/usr/sbin/pgbouncer"); err != nil {
			t.Fatal("there is no pgbouncer, neither on PATH nor in /usr/sbin: install it (Debian, Ubuntu: apt-get install pgbouncer; macOS: brew install pgbouncer)")
		}
	}
	dir, err := os.MkdirTemp("", "usagekit-pgbouncer-")
	if err != nil {
		t.Fatal(err)
	}
	b := pgBouncer{program: program, dir: dir, server: s, size: size}
	t.Cleanup(func() {
		if err := errors.Join(b.stop(), os.RemoveAll(dir)); err != nil {
			t.Errorf("PgBouncer: %v", err)
		}
	})
	for range 5 { // another process may take the port first, and it ends
		if err = b.start(); err == nil {
			return b.url(databaseURL)
		}
		if !errors.Is(err, errEnded) {
			break
		}
	}
	t.Fatalf("PgBouncer does not answer: %v", err)
	return ""
}

type pgBouncer struct {
	program, dir string
	server       *Server
	size, port   int
	cmd          *exec.Cmd
	done         chan struct{} // closed when cmd has ended
}

// Its clients may log in as they like: it logs in as the server's owner.
const pgBouncerSettings = `[databases]
* = host=127.0.0.1 port=%d user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = %d
`

func (b *pgBouncer) start() (err error) {
	if b.port, err = freePort(); err != nil {
		return err
	}
	settings := filepath.Join(b.dir, "pgbouncer.ini")
	if err := os.WriteFile(settings, fmt.Appendf(nil, pgBouncerSettings, b.server.port, b.port, b.size), 0o600); err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(b.dir, "log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(b.program, settings)
	cmd.Dir = b.dir
	cmd.Stdout, cmd.Stderr = log, log
	if cred := b.server.cred; cred != nil { // as PostgreSQL, it refuses to run as root
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred}
		for _, path := range []string{b.dir, settings} {
			if err := os.Chown(path, int(cred.Uid), int(cred.Gid)); err != nil {
				return err
			}
		}
	}
	if b.done, err = StartTied(cmd); err != nil {
		return err
	}
	b.cmd = cmd
	if err := answers(b.url(b.server.URL("postgres")), b.done, Limit); err != nil {
		err = errors.Join(err, b.stop())
		b.cmd = nil
		return err
	}
	return nil
}

func (b *pgBouncer) url(databaseURL string) string {
	u, err := url.Parse(databaseURL)
	if err != nil {
		return databaseURL
	}
	u.Host = "127.0.0.1:" + strconv.Itoa(b.port)
	return u.String()
}

// stop kills it: it has nothing to save, and which signal makes it end without
// waiting for its clients depends on its release. That it has ended already is an
// error.
func (b *pgBouncer) stop() error {
	if b.cmd == nil {
		return nil
	}
	select {
	case <-b.done:
		text, _ := os.ReadFile(filepath.Join(b.dir, "log"))
		return fmt.Errorf("it has ended: %v\n%s", b.cmd.ProcessState, text[max(0, len(text)-2000):])
	default:
	}
	if err := b.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-b.done
	b.cmd = nil
	return nil
}
