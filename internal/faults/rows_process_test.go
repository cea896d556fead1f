package faults

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

func terminateUnderLoad(r *trial) {
	r.start(setup{kills: true})
	p := r.programs[0]
	if status, err := p.stop(); status != 0 || err != nil {
		r.Errorf("exit status %d, %v", status, err)
	}
	r.pause(200 * time.Millisecond) // the clients go on
	r.judge(handled)
	text := must1(p.output())(r)
	if said := fmt.Sprintf("\n%d requests counted, all of them stored\n", r.last.counted[requestsTotal]); !strings.Contains(text, said) {
		r.Errorf("it does not say %q", said)
	}
}

// terminateWithoutDatabase: with a spool, what is left waits there for the next
// start; without, Shutdown says by name what is lost.
func terminateWithoutDatabase(r *trial) {
	r.start(setup{ownServer: true, kills: true})
	p := r.programs[0]
	r.must(r.server.StopImmediate())
	r.pause(r.lasts(5*time.Second, time.Second))
	status, err := p.stop()
	r.must(err)
	text := must1(p.output())(r)
	r.must(r.server.Restart())
	if r.mode.spools() {
		if status != 0 {
			r.Errorf("exit status %d, although the spool has what is left", status)
		}
		r.must(p.start())
		r.judge(handled)
		return
	}
	r.reported = notStored(text)
	r.note("%d requests reported lost", r.reported[requestsTotal])
	if status == 0 || len(r.reported) == 0 {
		r.Errorf("exit status %d, %d names were said not to be stored", status, len(r.reported))
	}
	r.load.stop() // or more is counted
	r.must(p.start())
	r.judge(bounded)
	if r.last.begun[requestsTotal] != r.last.responded[requestsTotal] {
		r.Error("a request was begun and not answered")
	}
}

var lost = regexp.MustCompile(`(?m)^not stored: (.*) (\d+)$`)

// notStored is what a program said it could not store, of the names that the
// oracle compares. The sum of the routes is derived where it arrives.
func notStored(output string) tally {
	reported := tally{}
	for _, m := range lost.FindAllStringSubmatch(output, -1) {
		n, err := strconv.ParseInt(m[2], 10, 64)
		if err != nil {
			continue
		}
		reported[m[1]] += n
		if strings.HasPrefix(m[1], "api.") && strings.HasSuffix(m[1], ".requests") {
			reported[requestsTotal] += n
		}
	}
	return reported
}

// restartKilled kills the program and starts it again.
func (r *trial) restartKilled(p *program) {
	r.Helper()
	r.must(p.kill())
	r.kills++
	r.must(p.start())
}

func killPrograms(r *trial) {
	r.start(setup{kills: true, perSecond: 600})
	r.fault(func() {
		for until := time.Now().Add(r.lasts(40*time.Second, 4*time.Second)); time.Now().Before(until); {
			every := r.lasts(3*time.Second, time.Second)
			r.pause(every/2 + time.Duration(r.rng.Int64N(int64(every)))) // anywhere between two flushes
			r.restartKilled(r.programs[0])
		}
	})
	r.note("%d kills", r.kills)
	r.judge(bounded)
	r.note("b − e = %d", r.last.begun[requestsTotal]-r.last.responded[requestsTotal])
}

func killWithoutDatabase(r *trial) {
	r.start(setup{ownServer: true, kills: true})
	r.fault(func() {
		r.must(r.server.StopImmediate())
		for range 3 {
			r.pause(r.lasts(3*time.Second, time.Second))
			r.restartKilled(r.programs[0])
		}
		r.pause(time.Second)
		r.must(r.server.Restart())
	})
	r.judge(bounded)
	r.note("b − e = %d", r.last.begun[requestsTotal]-r.last.responded[requestsTotal])
}

// killAfterCommit: the batch is in the database, and nobody was told.
func killAfterCommit(r *trial) {
	r.start(setup{proxied: true, kills: true})
	p := r.programs[0]
	r.fault(func() {
		for range int(r.lasts(10, 3)) {
			r.killAt(p, after, statement.sends)
			r.kills++
			r.must(p.start())
			r.pause(time.Duration(r.rng.Int64N(int64(time.Second))))
		}
	})
	r.judge(bounded)
	r.note("b − e = %d", r.last.begun[requestsTotal]-r.last.responded[requestsTotal])
}

// killAroundSeal kills the program when a batch is sealed and nothing of it is
// sent; and, where it does little else than seal, at any moment.
func killAroundSeal(r *trial) {
	r.killSealing()
	r.judge(bounded)
	r.note("%d kills, b − e = %d", r.kills, r.last.begun[requestsTotal]-r.last.responded[requestsTotal])
}

func (r *trial) killSealing() {
	r.Helper()
	r.start(setup{proxied: true, kills: true, interval: time.Millisecond})
	p := r.programs[0]
	r.fault(func() {
		for i := range int(r.lasts(20, 6)) {
			if i%2 == 0 {
				_, was, _ := r.load.known()
				r.eventually(hangs, func() string { // so that there is something to lose
					if _, now, _ := r.load.known(); now[requestsTotal] < was[requestsTotal]+10 {
						return "no request is answered"
					}
					return ""
				})
				r.killAt(p, before, func(s statement) bool { return strings.Contains(s.text, "SELECT seen FROM usage_writers") })
			} else {
				r.pause(time.Duration(r.rng.Int64N(int64(300 * time.Millisecond))))
				r.must(p.kill())
			}
			r.kills++
			r.must(p.start())
		}
	})
}

// Sealing by swapping the values out takes them out of the file, too: row 34 must
// see that, or it proves nothing.
func TestSwappedSealIsCaught(t *testing.T) {
	if shared.server == nil {
		t.Skip("PostgreSQL was not tried: make test does")
	}
	t.Parallel()
	b := shared
	b.binary = buildMutant(t, "../counter/counter.go", "c.word.Or(closed)", "c.word.Swap(closed)")
	r := newTrial(t, b, 34, inSpool)
	r.killSealing()
	r.load.stop()
	r.eventually(hangs, func() string { // all that is there is adopted
		if dirs, err := filepath.Glob(filepath.Join(r.spool, "usagekit-"+strings.Repeat("[0-9a-f]", 32))); len(dirs) != 1 || err != nil {
			return fmt.Sprintf("the spool holds %q, %v", dirs, err)
		}
		return ""
	})
	r.mode = inMemory // there is no use in waiting for what is gone
	r.drain()
	v, _ := r.gather()
	t.Logf("%d counted, %d answered", v.counted[requestsTotal], v.answered[requestsTotal])
	if wrong := v.check(bounded); len(wrong) == 0 || v.counted[requestsTotal] >= v.responded[requestsTotal] {
		t.Errorf("not caught: %q", wrong)
	}
}

// buildMutant builds the example with one expression of one file changed.
func buildMutant(t *testing.T, file, from, to string) (binary string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(text), from); n != 1 {
		t.Fatalf("%s has %s %d times", file, from, n)
	}
	dir := t.TempDir()
	mutant, overlay := filepath.Join(dir, "mutant.go"), filepath.Join(dir, "overlay.json")
	original, err := filepath.Abs(file)
	if err != nil {
		t.Fatal(err)
	}
	replace, err := json.Marshal(map[string]map[string]string{"Replace": {original: mutant}})
	if err != nil {
		t.Fatal(err)
	}
	for path, content := range map[string]string{mutant: strings.Replace(string(text), from, to, 1), overlay: string(replace)} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if binary, err = buildExample(dir, "-overlay", overlay); err != nil {
		t.Fatal(err)
	}
	return binary
}

// killAt kills the program when it sends such a statement, before or after the server
// has run it.
func (r *trial) killAt(p *program, when cut, such func(statement) bool) {
	r.Helper()
	killed := make(chan error, 1)
	r.proxies[0].set(func(s statement) verdict {
		if !such(s) {
			return verdict{}
		}
		return verdict{cut: when, then: func() {
			r.proxies[0].set(nil)
			killed <- p.signal(syscall.SIGKILL)
		}}
	})
	select {
	case err := <-killed:
		r.must(err)
	case <-time.After(hangs):
		r.Fatal("no such statement is sent")
	}
	_, err := p.wait(hangs)
	r.must(err)
}
