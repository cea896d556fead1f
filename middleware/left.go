package middleware

import (
	"context"
	"net/http"
	"time"
)

// statusGone is what a request counts as whose client left before anything was handed
// on: of the client's class. (nginx logs this number.)
const statusGone = 499

// cancelled tells whether the request's context is: where it is not, nobody has left.
func (p place) cancelled() bool { return p.came.Context().Err() != nil }

// client is what is known of the one that a response is for.
type client struct {
	gone   bool // there was nobody to answer when the response started
	asked  bool // the handler has asked for CloseNotify, and so, perhaps, was told
	waited bool // for the server to say that the client left
}

// left tells whether a client has left who is answered by w, where ctx, of the request
// as it came, is cancelled: whether the connection's own is, or in HTTP/2 the stream's.
//
// The application may have derived the request's, or the server's base context, from one
// that it cancelled itself. net/http gives no cause, so any other than context.Canceled
// is the application's: a deadline, a signal. For the rest the server is asked by
// http.CloseNotifier, which knows nothing of contexts. A writer that hides that leaves no
// other witness than the context.
func (c *client) left(ctx context.Context, w http.ResponseWriter) (left bool) {
	if context.Cause(ctx) != context.Canceled {
		return false
	}
	defer func() {
		if recover() != nil { // a server's that is done with the request
			left = true
		}
	}()
	asked := c.asked
	for range maxWrapped {
		switch t := w.(type) {
		case ours:
			asked = asked || t.counts().client.asked
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
