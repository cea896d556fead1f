// Package outbox is the way from what was counted to a certain answer of the database: it
// ends a generation of live counts every Interval (a sealed, numbered batch), queues it, and
// inserts it, encoded, as one row of usage_inbox. A batch is sent again, unchanged and under
// its number, until the answer is certain, and the next one not before: whatever arrives
// twice is seen by its number (package fold). What dead processes left in the spool is sent
// the same way (adopt.go).
//
// While the database does not answer, what is counted stays in one generation until a
// quarter hour ends, which every bucket of every zone begins on: a backlog is bounded by
// names and quarter hours, not by traffic.
//
// A process that is killed loses what is live and what is queued, unless there is a spool:
// there both lie in files of package counter, which are removed after the certain answer.
package outbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/usagekit/usagekit/internal/calendar"
	"github.com/usagekit/usagekit/internal/clock"
	"github.com/usagekit/usagekit/internal/counter"
	"github.com/usagekit/usagekit/internal/database"
)

// Config is what an Outbox works with.
type Config struct {
	DB       *database.DB
	Clock    *clock.Clock
	Live     *counter.Set
	Spool    *counter.Spool // nil: memory only
	Writer   string         // random, of this Outbox alone
	Interval time.Duration
	Log      *slog.Logger

	// Sent is called when a batch has reached the inbox, with what the database said of
	// the lease, and of the time (Unix ms).
	Sent func(lease string, now int64)
	// Asleep tells whether nothing looks at the database, which may be asleep, too.
	Asleep func() bool
	// Sending and Adopting hear what came of each attempt.
	Sending, Adopting func(error)
}

// Outbox has three loops, SealLoop, SendLoop and AdoptLoop, which end with run.
type Outbox struct {
	Config
	run  context.Context
	wake chan struct{} // a batch waits to be sent

	sealing sync.Mutex // from the end of a generation until its batch is in the queue; it is locked before queue
	queue   queue

	degraded string // what the log said last; of Seal
}

// queue has the batches that the database may not have yet, in the order of their numbers.
type queue struct {
	sync.Mutex
	seq     int64         // of the last sealed batch
	acked   int64         // of the last batch that the database has
	list    []sealed      // acked+1 … seq
	changed chan struct{} // closed, and made anew, when acked moves
	err     error         // of the last attempt
}

// sealed is a batch on its way: it never changes, and is sent until the
// database has it for certain.
type sealed struct {
	seq     int64
	opened  int64 // Unix ms
	names   int
	payload []byte
	spooled bool
	old     bool // see counter.MaxAge
}

// New returns an Outbox whose loops do not run yet.
func New(run context.Context, cfg Config) *Outbox {
	return &Outbox{Config: cfg, run: run, wake: make(chan struct{}, 1), queue: queue{changed: make(chan struct{})}}
}

// Wake has SendLoop look: for a batch that waits, and whether this instance has to be noted
// (clock.Note).
func (o *Outbox) Wake() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// Head is the first batch that waits.
func (o *Outbox) Head() (seq int64, waits bool) {
	o.queue.Lock()
	defer o.queue.Unlock()
	if len(o.queue.list) == 0 {
		return 0, false
	}
	return o.queue.list[0].seq, true
}

// Waiting is how many names have counts that the database has not acknowledged, and when
// the oldest of those was made; the zero time: there is none.
func (o *Outbox) Waiting() (names int, oldest time.Time) {
	o.queue.Lock()
	defer o.queue.Unlock()
	names, oldest = o.Live.Waiting()
	for _, b := range o.queue.list {
		names += b.names
	}
	if len(o.queue.list) > 0 {
		oldest = time.UnixMilli(o.queue.list[0].opened)
	}
	return names, oldest
}

// Spooled is how many batches wait that are in the spool as well.
func (o *Outbox) Spooled() (n int) {
	o.queue.Lock()
	defer o.queue.Unlock()
	for _, b := range o.queue.list {
		if b.spooled {
			n++
		}
	}
	return n
}

// SealLoop ends a generation every Interval, and at every quarter hour.
func (o *Outbox) SealLoop() {
	for database.Pause(o.run, min(o.Interval, time.Until(time.Now().Truncate(calendar.QuarterHour).Add(calendar.QuarterHour)))) {
		o.sealDue()
		if o.Live.Prepare() { // what is counted now should not stay in memory
			o.Seal()
		}
		o.reportDegraded()
	}
}

// sealDue seals, unless a batch waits and the quarter hour goes on.
func (o *Outbox) sealDue() {
	if _, waits := o.Head(); waits && o.Live.Opened().Truncate(calendar.QuarterHour).Equal(time.Now().Truncate(calendar.QuarterHour)) {
		return
	}
	o.Seal()
}

// Seal queues the current generation, if anything was counted in it.
func (o *Outbox) Seal() {
	o.sealing.Lock()
	defer o.sealing.Unlock()
	if b, ok := o.Live.Seal(); ok {
		o.enqueue(b)
	}
}

// enqueue appends a batch to the queue. The caller holds sealing, so that batches
// come in the order of their numbers.
func (o *Outbox) enqueue(b counter.Sealed) {
	o.queue.Lock()
	o.queue.seq = b.Seq
	o.queue.list = append(o.queue.list, sealed{b.Seq, b.Opened, len(b.Counts), b.Payload, b.Spooled, false})
	o.Live.Taken()
	o.queue.Unlock()
	o.Wake()
}

// Deliver waits until all that was added before is in the inbox, and returns the
// number of the last batch of it.
func (o *Outbox) Deliver(ctx context.Context) (int64, error) {
	for {
		var wait int64
		var done bool
		if err := within(ctx, func() { wait, done = o.sealAll() }); err != nil {
			return 0, err
		}
		if err := o.Acknowledged(ctx, wait); err != nil || done {
			return wait, err
		}
		if ctx.Err() != nil { // an Add has begun, and does not end
			return wait, ctx.Err()
		}
	}
}

// sealAll seals what was added, unless a batch waits already: then all that was added
// before is behind it only once that is gone. It returns the number of the last
// batch, and whether nothing is left.
func (o *Outbox) sealAll() (seq int64, done bool) {
	o.sealing.Lock()
	defer o.sealing.Unlock()
	done = o.Live.Opened().IsZero()
	if _, waits := o.Head(); !done && !waits {
		if b, ok := o.Live.Seal(); ok {
			o.enqueue(b)
			done = true
		}
	}
	o.queue.Lock()
	defer o.queue.Unlock()
	return o.queue.seq, done
}

// Acknowledged waits until the database has batch seq.
func (o *Outbox) Acknowledged(ctx context.Context, seq int64) error {
	for {
		o.queue.Lock()
		done, changed := o.queue.acked >= seq, o.queue.changed
		o.queue.Unlock()
		if done {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			o.queue.Lock()
			cause := o.queue.err
			o.queue.Unlock()
			if cause != nil {
				return fmt.Errorf("%w; the last attempt: %w", ctx.Err(), cause)
			}
			return ctx.Err()
		case <-o.run.Done():
			return errors.New("the store was shut down")
		}
	}
}

// Close seals what was counted, for the last time, and returns the number of the last
// batch. An error says that the spool's disk does not answer: what is not sealed is in its
// files, still locked.
func (o *Outbox) Close(ctx context.Context) (seq int64, err error) {
	err = within(ctx, func() {
		o.sealing.Lock()
		defer o.sealing.Unlock()
		if b, ok := o.Live.Close(); ok {
			o.enqueue(b)
		}
		o.queue.Lock()
		defer o.queue.Unlock()
		seq = o.queue.seq
	})
	return seq, err
}

// Undelivered is what is neither in the database nor in the spool once all loops have ended, which
// stopped waits for, by name. hung tells that the spool's disk does not answer, as closed
// tells that it did when the Outbox was closed.
func (o *Outbox) Undelivered(ctx context.Context, closed bool, stopped func()) (counts map[string]int64, hung bool) {
	missing := map[int64]bool{}
	looked := within(ctx, func() {
		stopped() // what the loops do ends with run, but for what a disk keeps them from
		o.queue.Lock()
		list := slices.Clone(o.queue.list)
		o.queue.Unlock()
		for _, b := range list {
			missing[b.seq] = !b.spooled || !o.Spool.Has(b.seq)
		}
		if closed {
			o.Spool.Release()
		}
	}) == nil
	o.queue.Lock()
	defer o.queue.Unlock()
	counts = map[string]int64{}
	for _, b := range o.queue.list {
		if looked && !missing[b.seq] || !looked && b.spooled {
			continue
		}
		batch, err := counter.Decode(b.payload)
		if err != nil {
			continue // it was encoded by us a moment ago
		}
		for _, c := range batch.Counts {
			counts[c.Name] = min(counts[c.Name]+c.N, counter.Max)
		}
	}
	return counts, !closed || !looked
}

// reportDegraded logs when counts began to be kept in memory although there is a
// spool, and when that ended.
func (o *Outbox) reportDegraded() {
	why := o.Live.Degraded()
	was := o.degraded
	o.degraded = why
	switch {
	case why != "" && why != was:
		o.Log.Warn("usagekit: counts are in memory only, and would not survive this process", "reason", why)
	case why == "" && was != "":
		o.Log.Info("usagekit: counts are in the spool again")
	}
}

// diskGrace is how long a disk may still take when a context has ended.
const diskGrace = 300 * time.Millisecond

// within runs f, which writes to the spool, and returns when it has ended, or a moment
// after ctx has. What f would still do then, it does for nobody.
func within(ctx context.Context, f func()) error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
	}
	select {
	case <-done:
		return nil
	case <-time.After(diskGrace):
		return ctx.Err()
	}
}
