package main

import (
	"fmt"
	"path/filepath"
	"testing"
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
		err := p.during(func() {
			for before := p.total(); p.total() < before+300 && !t.Failed(); {
			}
			if err := e.cmd.Process.Kill(); err != nil {
				t.Error(err)
			}
			<-e.done
		}, requests, e)
		if err == nil {
			t.Error("nobody noticed that it was killed")
		}
	}
}
