package middleware

import (
	"context"
	"time"
)

// statusGone is what a request counts as whose client left before anything was handed
// on: of the client's class. (nginx logs this number.)
const statusGone = 499

// left tells whether the client has left: whether the connection's own context is
// cancelled, or in HTTP/2 the stream's.
//
// The request's is not enough: the application may have derived that, or the server's
// base context, from one that it cancelled itself. net/http gives no cause, so any
// other than context.Canceled is the application's: a deadline, a signal. For the
// rest the server is asked by http.CloseNotifier, which knows nothing of contexts. A
// writer that hides that leaves no other witness than the context.
func (c *response) left() (left bool) {
	ctx := c.came.Context()
	if ctx.Err() == nil || context.Cause(ctx) != context.Canceled {
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
		case interface{ counts() *response }:
			asked = asked || t.counts().notifies
			w = t.counts().inner.ResponseWriter
		case notifier:
			return asked || notified(t.CloseNotify(), c.late)
		case wrapper:
			w = t.Unwrap()
		default:
			return true
		}
	}
	return true
}

// notified tells whether a CloseNotifier has something to say, and takes that from
// nobody. A server says it right after it has cancelled the context, which may have
// woken us in between: so there is a wait for it, where the application has cancelled
// a context in vain. It is short if that was long ago.
func notified(closing <-chan bool, longAgo bool) bool {
	limit := 100 * time.Millisecond
	if longAgo {
		limit = 500 * time.Microsecond
	}
	for wait := 10 * time.Microsecond; len(closing) == 0; wait *= 2 {
		if wait > limit {
			return false
		}
		time.Sleep(wait)
	}
	return true
}
