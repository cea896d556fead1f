package faults

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/usagekit/usagekit/internal/dbtest"
)

// buildExample builds the example program into dir, with the race detector if the
// tests have it, and with flags of go build.
func buildExample(dir string, flags ...string) (binary string, err error) {
	binary = filepath.Join(dir, "example")
	build := exec.Command("go", append([]string{"build", "-o", binary}, flags...)...)
	if dbtest.Race() {
		build.Args = append(build.Args, "-race")
	}
	build.Args = append(build.Args, "github.com/usagekit/usagekit/example")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return binary, nil
}

// program is an instance of the example that may be started many times, each time
// with the same arguments, and at another port.
type program struct {
	binary string
	dir    string // where it runs, and leaves its output
	args   []string
	limit  int                    // on the size of its files, in KiB; 0: none
	url    atomic.Pointer[string] // where it serves; nil: it does not

	mu   sync.Mutex
	runs int
	cmd  *exec.Cmd
	done chan struct{} // closed when cmd has ended
}

var serving = regexp.MustCompile(`(?m)^serving (\S+)\n`)

// start starts the program, and returns when it serves.
func (p *program) start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.runs++
	output, err := os.Create(p.outputFile(p.runs))
	if err != nil {
		return err
	}
	defer output.Close()
	cmd := exec.Command(p.binary, p.args...)
	if p.limit > 0 {
		script := fmt.Sprintf(`ulimit -f %d && exec "$0" "$@"`, 2*p.limit) // POSIX: units of 512 bytes
		cmd = exec.Command("sh", append([]string{"-c", script, p.binary}, p.args...)...)
	}
	cmd.Dir = p.dir
	cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0")
	cmd.Stdout, cmd.Stderr = output, output
	done, err := dbtest.StartTied(cmd)
	if err != nil {
		return err
	}
	p.cmd, p.done = cmd, done
	for deadline := time.Now().Add(hangs); ; {
		text, err := os.ReadFile(p.outputFile(p.runs))
		if err != nil {
			return err
		}
		if said := serving.FindSubmatch(text); said != nil {
			url := string(said[1])
			p.url.Store(&url)
			return nil
		}
		select {
		case <-done:
			return fmt.Errorf("the program ended at its start: %v\n%s", cmd.ProcessState, text)
		case <-time.After(5 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the program does not serve after %v\n%s", hangs, text)
		}
	}
}

func (p *program) outputFile(run int) string {
	return filepath.Join(p.dir, fmt.Sprintf("output-%d", run))
}

// running tells whether the program was started and has not ended.
func (p *program) running() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return false
	}
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// signal signals the program.
func (p *program) signal(sig syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return errors.New("the program was not started")
	}
	return p.cmd.Process.Signal(sig)
}

// kill ends the program as kill -9 does.
func (p *program) kill() error {
	if err := p.signal(syscall.SIGKILL); err != nil {
		return err
	}
	_, err := p.wait(hangs)
	return err
}

// stop asks the program to end, and returns its exit status.
func (p *program) stop() (int, error) {
	if err := p.signal(syscall.SIGTERM); err != nil {
		return 0, err
	}
	return p.wait(hangs)
}

// wait waits for the program's end, and returns its exit status.
func (p *program) wait(limit time.Duration) (int, error) {
	p.mu.Lock()
	cmd, done := p.cmd, p.done
	p.mu.Unlock()
	select {
	case <-done:
		p.url.Store(nil) // another may get its port
		return cmd.ProcessState.ExitCode(), nil
	case <-time.After(limit):
		return 0, fmt.Errorf("process %d does not end within %v", cmd.Process.Pid, limit)
	}
}

// output is all that the program wrote, in all its runs.
func (p *program) output() (string, error) {
	p.mu.Lock()
	runs := p.runs
	p.mu.Unlock()
	var all []byte
	for run := range runs {
		text, err := os.ReadFile(p.outputFile(run + 1))
		if err != nil {
			return "", err
		}
		all = append(all, text...)
	}
	return string(all), nil
}

// health is what the dashboard says of the store.
type health struct {
	Pending int       // names that have counts which the database does not have yet
	Reasons []string  // why it is not well
	Through time.Time `json:"complete_through"`
}

func (p *program) health() (h health, err error) {
	url := p.url.Load()
	if url == nil {
		return h, errors.New("the program does not serve")
	}
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(*url + "/usage/api/health")
	if err != nil {
		return h, err
	}
	defer resp.Body.Close()
	err = json.NewDecoder(resp.Body).Decode(&h)
	return h, err
}

// ask asks the program's dashboard, and returns how long the answer took.
func (p *program) ask(target string) (took time.Duration, err error) {
	url := p.url.Load()
	if url == nil {
		return 0, errors.New("the program does not serve")
	}
	start := time.Now()
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(*url + "/usage/" + target)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %d %s", target, resp.StatusCode, body)
	}
	return time.Since(start), err
}
