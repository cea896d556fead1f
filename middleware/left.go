package middleware

import (
	"context"
	"time"
)

// statusGone is what a request counts as whose client left before anything was handed
// on: of the client's class. (nginx logs this number.)
const statusGone = 499

// cancelled tells whether the request's context is: where it is not, nobody has left.
func (c *response) cancelled() bool { return c.came.Context().Err() != nil }

// left tells whether the client has left, where the context is cancelled: whether the
// connection's own is, or in HTTP/2 the stream's.
//
// The application may have derived the request's, or the server's base context, from one
// that it cancelled itself. net/http gives no cause, so any other than context.Canceled
// is the application's: a deadline, a signal. For the rest the server is asked by
// http.CloseNotifier, which knows nothing of contexts. A writer that hides that leaves no
// other witness than the context.
func (c *response) left() (left bool) {
	if context.Cause(c.came.Context()) != context.Canceled {
		return false
	}
	defer func() {
		if recover() != nil { // a server's that is done with the request
			left = true
		}
	}()
	asked := c.notifies // and so, perhaps, has been told
	w := c.inner.ResponseWriter
	for range maxWrapped {
		switch t := w.(type) {
		case ours:
			asked = asked || t.counts().notifies
			w = t.counts().inner.ResponseWriter
		case notifier:
			closing := t.CloseNotify()
			if !asked && !c.waited {
				c.waited = true
				await(closing)
			}
			return asked || len(closing) > 0
		case wrapper:
			w = t.Unwrap()
		default:
			return true
		}
	}
	return true
}

// await gives a CloseNotifier the time to say something, and takes that from nobody. A
// server says it right after it has cancelled the context, which may have woken us in
// between, and in HTTP/2 by a goroutine of its own. Where the application has cancelled
// the context nothing will come, and the answer stands still meanwhile: so this is
// over within a millisecond. On a machine so busy that it takes longer, a request of
// a client that left counts under what the handler said.
func await(closing <-chan bool) {
	for wait := 10 * time.Microsecond; len(closing) == 0 && wait < 500*time.Microsecond; wait *= 2 {
		time.Sleep(wait)
	}
}
