package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/usagekit/usagekit/internal/dbtest"
)

// limit is how long anything may take; only a failing test waits for it.
const limit = dbtest.Limit

var (
	binary string         // the program, as users run it
	server *dbtest.Server // nil: PostgreSQL is not tried
)

func TestMain(m *testing.M) { os.Exit(buildAndRun(m)) }

func buildAndRun(m *testing.M) int {
	dir, err := os.MkdirTemp("", "usagekit-example-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	binary = filepath.Join(dir, "example")
	build := exec.Command("go", "build", "-o", binary)
	if dbtest.Race() {
		build.Args = append(build.Args, "-race")
	}
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "go build: %v\n%s", err, out)
		return 1
	}
	return dbtest.Main(m, &server)
}

// example is the program, started.
type example struct {
	t    *testing.T
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	url  string
}

// launch starts the program in an empty directory. It ends with the test,
// however that ends.
func launch(t *testing.T, args ...string) *example {
	t.Helper()
	e := &example{t: t, cmd: exec.Command(binary, args...)}
	e.cmd.Dir = t.TempDir()
	e.cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0")
	output, err := os.Create(filepath.Join(e.cmd.Dir, "output"))
	if err != nil {
		t.Fatal(err)
	}
	defer output.Close()
	e.cmd.Stdout, e.cmd.Stderr = output, output
	if e.done, err = dbtest.StartTied(e.cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = e.cmd.Process.Kill() // or it has ended
		<-e.done
		if t.Failed() {
			t.Logf("example %q, %v\n%s", args, e.cmd.ProcessState, e.output())
		}
	})
	return e
}

// output is all that the program wrote so far.
func (e *example) output() string {
	e.t.Helper()
	text, err := os.ReadFile(filepath.Join(e.cmd.Dir, "output"))
	if err != nil {
		e.t.Error(err)
	}
	return string(text)
}

var serving = regexp.MustCompile(`(?m)^serving (\S+)\nusage at (\S+)/usage/\n`)

// start starts the program on a free port of the loopback interface, and waits
// until it serves. The last of two equal flags is the one that counts.
func start(t *testing.T, args ...string) *example {
	t.Helper()
	e := launch(t, append([]string{"-addr", "127.0.0.1:0", "-flush", "50ms"}, args...)...)
	eventually(t, limit, func() string {
		if said := serving.FindStringSubmatch(e.output()); said != nil && said[1] == said[2] {
			e.url = said[1]
			return ""
		}
		select {
		case <-e.done:
			t.Fatal("it ended at its start")
		default:
		}
		return "it does not say where it serves"
	})
	return e
}

// wait waits for the program's end, and returns its exit status.
func (e *example) wait() int {
	e.t.Helper()
	select {
	case <-e.done:
	case <-time.After(limit):
		e.t.Fatalf("process %d does not end", e.cmd.Process.Pid)
	}
	return e.cmd.ProcessState.ExitCode()
}

// stop ends the program with sig, and returns how many requests it says were
// counted.
func (e *example) stop(sig os.Signal) int64 {
	e.t.Helper()
	if err := e.cmd.Process.Signal(sig); err != nil {
		e.t.Fatal(err)
	}
	return e.counted()
}

var lastLine = regexp.MustCompile(`(?:^|\n)(\d+) requests counted, all of them stored\n$`)

// counted is what the last line says, once the program has ended well.
func (e *example) counted() int64 {
	e.t.Helper()
	status, last := e.wait(), lastLine.FindStringSubmatch(e.output())
	if status != 0 || last == nil { // 66 is the race detector's
		e.t.Fatalf("exit status %d", status)
	}
	n, err := strconv.ParseInt(last[1], 10, 64)
	if err != nil {
		e.t.Fatal(err)
	}
	return n
}

// client takes each answer as it is. It repeats no request, as it would on a
// connection that was kept.
var client = &http.Client{
	Timeout:       limit,
	Transport:     &http.Transport{DisableKeepAlives: true},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// get asks for path, as who: "", or a name and password as URLs have them.
func (e *example) get(who, path string) (status int, body []byte) {
	e.t.Helper()
	resp, err := client.Get(strings.Replace(e.url, "//", "//"+who, 1) + path)
	if err != nil {
		e.t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err = io.ReadAll(resp.Body); err != nil {
		e.t.Fatal(err)
	}
	return resp.StatusCode, body
}

// read reads the dashboard's JSON at path, below /usage/api/, into v.
func (e *example) read(path string, v any) error {
	e.t.Helper()
	status, body := e.get("", "/usage/api/"+path)
	if status != http.StatusOK {
		return fmt.Errorf("%s: %d %s", path, status, body)
	}
	return json.Unmarshal(body, v)
}

// eventually asks until nothing is missing.
func eventually(t *testing.T, limit time.Duration, missing func() string) {
	t.Helper()
	for deadline := time.Now().Add(limit); ; time.Sleep(10 * time.Millisecond) {
		what := missing()
		if what == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %v: %s", limit, what)
		}
	}
}
