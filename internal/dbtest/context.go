package dbtest

import (
	"context"
	"runtime"
	"testing"
	"time"
)

// Limit is what a test may wait for: what takes longer hangs. A machine may have more
// to do than this one, so none asserts less.
const Limit = 5 * time.Minute

// Context is t's own, but for a test that waits for ever: that fails, shows where
// every goroutine stands, and goes on to its end.
func Context(t testing.TB) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	limit := time.AfterFunc(Limit, func() {
		stacks := make([]byte, 1<<20)
		t.Errorf("still at work after %v:\n%s", Limit, stacks[:runtime.Stack(stacks, true)])
		cancel()
	})
	t.Cleanup(func() { limit.Stop(); cancel() })
	return ctx
}
