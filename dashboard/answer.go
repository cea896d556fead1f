package dashboard

import (
	"compress/gzip"
	"context"
	"iter"
	"net/http"
	"sync"
	"time"

	"github.com/usagekit/usagekit/store"
)

// source is what the dashboard asks of a *store.Store.
type source interface {
	Read(ctx context.Context, f func(ctx context.Context, r *reading) error) error
	Each(ctx context.Context, q store.Query) iter.Seq2[store.Count, error]
	Buckets(step store.Step, from, to time.Time) []time.Time
	Stats() store.Stats
	Location() *time.Location
}

// reading is a *store.Reading: what an answer is made of.
type reading struct {
	reader
	now, through time.Time
	ends         time.Time // of what is asked for up to now, which is another range then; zero: it is not
}

// reader is what is asked of one.
type reader interface {
	Get(ctx context.Context, name string) (int64, error)
	Totals(ctx context.Context, q store.Query) ([]store.Count, error)
	Rows(ctx context.Context, q store.Query) ([]store.Row, error)
	History(ctx context.Context, q store.Query) ([]store.Count, error)
}

// ofStore is a store as a source.
type ofStore struct{ *store.Store }

func (s ofStore) Read(ctx context.Context, f func(ctx context.Context, r *reading) error) error {
	return s.Store.Read(ctx, func(ctx context.Context, r *store.Reading) error {
		return f(ctx, &reading{reader: r, now: r.Now, through: r.FoldedThrough})
	})
}

// meta is in every answer.
type meta struct {
	AsOf            time.Time  `json:"as_of"`
	CompleteThrough *time.Time `json:"complete_through"` // null: it is not known
	Stale           bool       `json:"stale"`            // the last answer again: there is no other in time
	Slow            bool       `json:"slow,omitempty"`   // of a stale one: there is no other yet, and nothing refused to answer

	ends time.Time // when the range up to now is another one; zero: it is none
}

func (h *handler) meta(r *reading) meta {
	return meta{AsOf: *h.local(r.now), CompleteThrough: h.local(r.through)}
}

// local is t as answers have it; nil when it is zero.
func (h *handler) local(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.In(h.zone()).Truncate(time.Millisecond)
	return &t
}

// zone is UTC as long as the store does not know the database's.
func (h *handler) zone() *time.Location {
	if zone := h.store.Location(); zone != nil {
		return zone
	}
	return time.UTC
}

// waiting waits for an answer, the reading of which has begun.
type waiting func(context.Context) (*content, error)

// refused is the answer to what cannot be read.
func refused(err error) waiting {
	return func(context.Context) (*content, error) { return nil, err }
}

// answersOf are those that may be asked for together, by their paths below api/.
func (h *handler) answersOf() map[string]func(*params) waiting {
	return map[string]func(*params) waiting{"stats": h.stats, "totals": h.totals, "rows": h.rows, "history": h.history, "series": h.series, "health": h.health}
}

func (h *handler) serveJSON(w http.ResponseWriter, r *http.Request, answer func(*params) waiting) {
	c, err := answer(h.params(r))(r.Context())
	if err != nil {
		failRead(w, r, err)
		return
	}
	w.Header().Set("Cache-Control", "private, no-cache")
	c.send(w, r, typeJSON)
}

// encoded is an answer as it is sent.
type encoded struct {
	fresh       *content
	stale, slow func() *content
	meta        meta
}

func (e encoded) content(how standing) *content {
	switch how {
	case stale:
		return e.stale()
	case slow:
		return e.slow()
	}
	return e.fresh
}

// large tells the cache what is not worth keeping for long.
func (e encoded) large() bool { return len(e.fresh.plain) > maxLastSize }

// holds tells the cache how long its range is that up to now; 0: it has no such range.
func (e encoded) holds() time.Duration {
	if e.meta.ends.IsZero() {
		return 0
	}
	return e.meta.ends.Sub(e.meta.AsOf)
}

// encode writes an answer: its numbers, with m beside them. Its ETag is weak: the same
// while nothing but the times of m is new, a quarter of an hour at most. Who reads them
// may trust that the numbers are those of now, and complete to within a minute of what
// its own complete_through says, or they would have another.
func (h *handler) encode(m meta, answer any) encoded {
	numbers := marshal(answer)
	behind := "never"
	if m.CompleteThrough != nil {
		behind = m.AsOf.Sub(*m.CompleteThrough).Truncate(time.Minute).String()
	}
	quarter := m.AsOf.Truncate(15 * time.Minute).UTC().String() // what looks at as_of is not far behind
	tag := hash(numbers, []byte(behind+quarter))
	m.Stale, m.Slow = false, false
	body := beside(m, numbers[1:])
	rest := body[len(body)-len(numbers)+1:] // which is kept, and numbers is not
	again := func(how string, late bool) func() *content {
		return sync.OnceValue(func() *content {
			of := m
			of.Stale, of.Slow = true, late
			c := newContent(beside(of, rest), `W/"`+tag+"-"+how+`"`, gzip.BestSpeed)
			c.late = late
			return c
		})
	}
	return encoded{fresh: newContent(body, `W/"`+tag+`"`, gzip.BestSpeed), stale: again("stale", false), slow: again("slow", true), meta: m}
}

// beside is an object of what m has, and of the rest of another after its brace.
func beside(m meta, rest []byte) []byte {
	body := marshal(m)
	body[len(body)-2] = ',' // in place of its end
	return append(body[:len(body)-1], rest...)
}

// answerOf reads an answer, and what is said of it.
func answerOf[T any](ctx context.Context, h *handler, from func(context.Context, *reading) (T, error)) (m meta, answer T, err error) {
	var done struct { // by a read that may outlast this call
		meta   meta
		answer T
	}
	err = h.store.Read(ctx, func(ctx context.Context, r *reading) (err error) {
		done.meta = h.meta(r)
		h.ahead.Store(int64(time.Until(r.now)))
		done.answer, err = from(ctx, r)
		done.meta.ends = r.ends
		return err
	})
	if err != nil {
		return m, answer, err
	}
	return done.meta, done.answer, nil
}

// askJSON is ask of an answer that is read at once. then is what is added to it that is
// not the store's; nil: nothing.
func askJSON[T any](h *handler, key string, from func(context.Context, *reading) (T, error), then func(context.Context, T)) waiting {
	wait := ask(h.answers, key, func(ctx context.Context) (encoded, error) {
		began := time.Now()
		m, answer, err := answerOf(ctx, h, from)
		if err != nil {
			return encoded{}, err
		}
		if then != nil {
			then(ctx, answer)
		}
		e := h.encode(m, answer)
		e.fresh.took = time.Since(began)
		return e, nil
	})
	return func(ctx context.Context) (*content, error) {
		e, how, err := wait(ctx)
		return e.content(how), err
	}
}
