package dashboard

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/usagekit/usagekit/store"
)

// Whoever hears that the database does not answer looks for a dead one: a read that
// takes long, while others are answered, is said to be slow.
func TestASlowReadIsNoDeadDatabase(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var before atomic.Pointer[func(ctx context.Context, what string) error] // reads go on while it changes
		h := open(&fake{before: func(ctx context.Context, what string) error {
			if f := before.Load(); f != nil {
				return (*f)(ctx, what)
			}
			return nil
		}})
		said := func() string {
			t.Helper()
			w := get(h, "/usage/api/history")
			body := w.Body.String()
			switch {
			case w.Code != 200:
				return fmt.Sprint(w.Code)
			case strings.Contains(body, `"stale":true,"slow":true`):
				return "slow"
			case strings.Contains(body, `"stale":true`):
				return "stale"
			}
			return "fresh"
		}
		expect := func(what, want string) {
			t.Helper()
			if got := said(); got != want {
				t.Errorf("%s: %s, want %s", what, got, want)
			}
		}
		history := func(of func(context.Context) error) {
			f := func(ctx context.Context, what string) error {
				if what != "History" {
					return nil
				}
				return of(ctx)
			}
			before.Store(&f)
		}
		all := func(of func(context.Context) error) {
			f := func(ctx context.Context, _ string) error { return of(ctx) }
			before.Store(&f)
		}
		hang := func(ctx context.Context) error {
			<-ctx.Done()
			return fmt.Errorf("store: read: %w: %w", store.ErrUnavailable, ctx.Err())
		}
		refuse := func(context.Context) error { return fmt.Errorf("store: read: %w", store.ErrUnavailable) }
		others := func() { get(h, "/usage/api/totals?limit=7") }

		expect("at first", "fresh")
		time.Sleep(2 * time.Second)
		history(func(context.Context) error { time.Sleep(3 * time.Second); return nil })
		expect("a read that takes 3 s", "slow")
		time.Sleep(3 * time.Second)
		expect("once it is there", "fresh")
		time.Sleep(2 * time.Second)
		history(hang)
		expect("no answer yet", "slow")
		time.Sleep(4*time.Second + 200*time.Millisecond)
		expect("none in 5 s: it may be slow", "slow")
		before.Store(nil)
		time.Sleep(7 * time.Second)
		expect("all is well", "fresh")
		time.Sleep(2 * time.Second)
		history(refuse)
		expect("one is refused", "stale")
		time.Sleep(100 * time.Millisecond)
		others()
		expect("one is refused, and others are answered", "slow")
		before.Store(nil)
		time.Sleep(2 * time.Second)
		expect("a quick one", "fresh")
		time.Sleep(2 * time.Second)
		history(hang)
		expect("one that gets no answer", "slow")
		time.Sleep(time.Second)
		others()
		time.Sleep(4 * time.Second)
		expect("in its time, while others do", "slow")
		time.Sleep(2 * time.Second)
		others()
		expect("and again", "slow")
		before.Store(nil)
		time.Sleep(10 * time.Second)
		expect("all is well", "fresh")

		time.Sleep(2 * time.Second)
		all(refuse)
		expect("no connection", "stale")
		time.Sleep(2 * time.Second)
		expect("none, still", "stale")
		before.Store(nil)
		time.Sleep(2 * time.Second)
		expect("all is well", "fresh")
		time.Sleep(2 * time.Second)
		all(hang)
		expect("nobody knows yet", "slow")
		time.Sleep(5 * time.Second)
		expect("nothing was answered in 5 s: it may be slow", "slow")
		time.Sleep(2 * time.Second)
		expect("nor later", "slow")
		time.Sleep(10 * time.Second)
	})
}

// The plain tables say the same.
func TestPlainTablesSayThatTheDatabaseIsSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{}
		h := open(f)
		get(h, "/usage/tables.html")
		time.Sleep(2 * time.Second)
		f.before = func(_ context.Context, what string) error {
			if what == "Rows" {
				time.Sleep(3 * time.Second)
			}
			return nil
		}
		if text := get(h, "/usage/tables.html").Body.String(); !strings.Contains(text, "The database takes long to answer") || strings.Contains(text, "does not answer") {
			t.Errorf("they say %s", text)
		}
		time.Sleep(5 * time.Second)
	})
}

// An error says what happened, and of the log only where something is in it.
func TestErrorsSayWhatHappened(t *testing.T) {
	for _, c := range []struct {
		err             error
		says, saysNotSo string
	}{
		{fmt.Errorf("store: read: %w", store.ErrUnavailable), "the database does not answer", "within"},
		{fmt.Errorf("store: read: %w: %w", store.ErrUnavailable, context.DeadlineExceeded), "gave no answer within 5s", "log"},
		{errTimeout, "gave no answer within 5s", "log"},
		{errBusy, "too many", "database"},
		{errPanic, "log", "database"},
		{errors.New("pq: relation does not exist"), "log", "answer within"},
	} {
		w := httptest.NewRecorder()
		failRead(w, httptest.NewRequest("GET", "/usage/api/totals", nil), c.err)
		if text := w.Body.String(); w.Code != http.StatusServiceUnavailable || !strings.Contains(text, c.says) || strings.Contains(text, c.saysNotSo) || strings.Contains(text, "knows") || strings.Contains(text, "relation") {
			t.Errorf("%v: %d %s", c.err, w.Code, text)
		}
	}
}
