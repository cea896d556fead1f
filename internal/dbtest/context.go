package dbtest

import (
	"context"
	"runtime"
	"testing"
	"time"
)

// testLimit is what one test may wait for: four times what the slowest needs on two
// cores with the race detector.
const testLimit = 3 * time.Minute

// Context is t's own, but for a test that waits for ever: that fails, shows where
// every goroutine stands, and goes on to its end.
func Context(t testing.TB) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	limit := time.AfterFunc(testLimit, func() {
		stacks := make([]byte, 1<<20)
		t.Errorf("still at work after %v:\n%s", testLimit, stacks[:runtime.Stack(stacks, true)])
		cancel()
	})
	t.Cleanup(func() { limit.Stop(); cancel() })
	return ctx
}
