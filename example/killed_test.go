package main

import (
	"fmt"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/usagekit/usagekit/internal/dbtest"
)

// A process that is killed loses what it had not delivered yet, nothing that it
// had, and nothing is counted twice.
func TestKilled(t *testing.T) {
	db := filepath.Join(t.TempDir(), "usage.db")
	requests, p := logged(t), newReplay(t)
	delivered := tally{} // at least
	for range 3 {
		e := start(t, "-db", db)
		p.mustSend(requests, e)
		for _, r := range requests {
			delivered.add(r)
		}
		var got tally
		eventually(t, limit, func() string {
			got = shownBy(e)
			for name, n := range delivered {
				if got[name] < n {
					return fmt.Sprintf("%s: counted %d, delivered %d", name, got[name], n)
				}
			}
			return ""
		})
		for name, n := range got {
			if n > p.sent[name] {
				t.Errorf("%s: counted %d, sent %d", name, n, p.sent[name])
			}
		}
		t.Logf("%d requests counted, %d answered", got[shown], p.total())
		delivered = got
		sent := make(chan error)
		go func() { sent <- p.send(requests, make(chan struct{}), e) }() // each client, until it notices
		for before := p.total(); p.total() < before+300 && !t.Failed(); {
			runtime.Gosched()
		}
		if err := e.cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
		<-e.done
		if err := <-sent; err == nil {
			t.Error("nobody noticed that it was killed")
		}
	}
}

// With a spool, a process that is killed loses nothing that was answered, although
// nothing of it was delivered.
func TestKilledWithSpool(t *testing.T) {
	dir := t.TempDir()
	args := []string{"-db", filepath.Join(dir, "usage.db"), "-spool", filepath.Join(dir, "spool")}
	requests, p := logged(t), newReplay(t)
	for range 3 {
		e := start(t, append(args, "-flush", "1h")...)
		p.mustSend(requests, e)
		if err := e.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		<-e.done
	}
	e := start(t, args...)
	p.check(e)
	if n := e.stop(syscall.SIGTERM); n != p.total() {
		t.Errorf("%d requests counted, %d answered", n, p.total())
	}
}

// With a spool, the program starts, serves and ends without its database, and what
// it counted is there when it ends with it.
func TestSpoolWithoutDatabase(t *testing.T) {
	if server == nil || !server.Private() {
		t.Log("PostgreSQL was not tried: make test does")
		return
	}
	pg, err := dbtest.Start() // the other one is not this test's to stop
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = pg.Close() })
	if err := pg.StopImmediate(); err != nil {
		t.Fatal(err)
	}
	args := []string{"-db", pg.URL("postgres"), "-spool", filepath.Join(t.TempDir(), "spool")}
	e, p := start(t, args...), newReplay(t)
	p.mustSend(logged(t), e)
	if err := e.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if status := e.wait(); status != 0 || !strings.Contains(e.output(), "waits in the spool") {
		t.Errorf("exit status %d", status)
	}
	if err := pg.Restart(); err != nil {
		t.Fatal(err)
	}
	p.check(start(t, args...))
}
