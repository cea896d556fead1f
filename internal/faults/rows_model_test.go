package faults

import (
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
)

// crashAtEveryStep is not a matter of processes: package store has a model of a
// disk and a database in memory, on which its real code crashes at every step.
func crashAtEveryStep(r *trial) {
	cmd := exec.CommandContext(r.ctx, "go", "test", "-count=1", "-v", "-timeout", "5m", "-run", "^TestModel", "github.com/usagekit/usagekit/store")
	cmd.Env = append(os.Environ(), "USAGEKIT_PG=", "USAGEKIT_TEST_DSN=", "USAGEKIT_FAULTS_SEED="+strconv.FormatUint(r.seed>>16, 10))
	out, err := cmd.CombinedOutput()
	if err != nil {
		r.Fatalf("%v\n%s", err, out)
	}
	schedules := 0
	for _, m := range regexp.MustCompile(`(\d+) schedules`).FindAllStringSubmatch(string(out), -1) {
		n, err := strconv.Atoi(m[1])
		r.must(err)
		schedules += n
	}
	if schedules == 0 {
		r.Fatalf("nothing was tried:\n%s", out)
	}
	r.note("%d schedules, %d mistakes seen", schedules, strings.Count(string(out), ": seen in schedule"))
}
