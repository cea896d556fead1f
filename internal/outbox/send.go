package outbox

import (
	"context"
	"time"

	"github.com/usagekit/usagekit/internal/clock"
	"github.com/usagekit/usagekit/internal/counter"
	"github.com/usagekit/usagekit/internal/database"
)

const wakeTimeout = time.Minute // see patience

const (
	// When a writer was seen last, if ever, and who has the lease.
	sqlKnown = `SELECT COALESCE((SELECT seen FROM usage_writers WHERE writer = ?), -1) AS seen, COALESCE((SELECT value FROM usage_meta WHERE name = 'lease'), '') AS lease`
	// Only when it is needed: it waits for a fold that moves this writer's guard.
	sqlRegister = `INSERT INTO usage_writers AS w (writer, seq, sum, seen) VALUES (?, 0, ?, ?) ON CONFLICT (writer) DO UPDATE SET seen = excluded.seen`
	sqlSeen     = `UPDATE usage_writers SET seen = ? WHERE writer = ?`
	sqlSend     = `INSERT INTO usage_inbox (writer, seq, opened, payload) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING`
)

// SendLoop brings the queue into the inbox, one batch after the other: the next
// one is not sent before a certain answer for the last.
func (o *Outbox) SendLoop() {
	if !o.DB.WaitStarted(o.run) {
		return
	}
	for backoff := (database.Backoff{}); ; {
		waits, err := o.SendNext()
		wait := backoff.After(err)
		switch {
		case err != nil:
			if !database.Pause(o.run, wait) {
				return
			}
		case !waits:
			o.Clock.Note(o.run, o.DB)
			select {
			case <-o.wake:
			case <-o.run.Done():
				return
			}
		}
	}
}

// SendNext sends the first batch of the queue; waits is false when there is none.
func (o *Outbox) SendNext() (waits bool, err error) {
	o.queue.Lock()
	var head sealed
	if waits = len(o.queue.list) > 0; waits {
		head = o.queue.list[0]
	}
	o.queue.Unlock()
	if !waits {
		return false, nil
	}
	if o.Spool.Unsent() { // from now on, files of this writer are sent only to a database that knows it
		if err := o.register(o.Writer); err != nil {
			o.noted(err)
			return true, err
		}
		o.Spool.Sent()
	}
	var r receipt
	err = o.DB.Fill(o.run, o.patience(), func(ctx context.Context, tx *database.Tx) (err error) {
		r, err = send(ctx, tx, o.Writer, head)
		return err
	})
	o.noted(err)
	if err != nil {
		return true, err
	}
	o.Spool.Remove(head.seq)
	o.queue.Lock()
	o.queue.acked = head.seq
	o.queue.list[0] = sealed{}
	o.queue.list = o.queue.list[1:]
	close(o.queue.changed)
	o.queue.changed = make(chan struct{})
	o.queue.Unlock()
	o.Sent(r.lease, r.now)
	return true, nil
}

// noted takes note of what came of the last attempt.
func (o *Outbox) noted(err error) {
	if o.run.Err() == nil { // else it is the end that made it fail
		o.queue.Lock()
		o.queue.err = err
		o.queue.Unlock()
	}
	o.Sending(err)
}

// receipt is what the database said when it got a batch: so an instance that counts learns
// of a lease that ran out without asking for it.
type receipt struct {
	lease string
	now   int64 // Unix ms
}

// send writes a batch. With every batch it is looked whether the writer is known: a database
// that was restored, or failed over to a replica that was behind, may have forgotten it, and
// folds what it knows.
func send(ctx context.Context, tx *database.Tx, writer string, b sealed) (receipt, error) {
	var known struct {
		Seen  int64
		Lease string
	}
	err := tx.Get(ctx, &known, sqlKnown, writer)
	switch {
	case err != nil:
	case b.old: // the writer must not be forgotten while an old batch of it is on its way
		n := int64(0)
		if n, err = tx.Exec(ctx, sqlSeen, seenNow(tx), writer); err == nil && n == 0 {
			err = counter.ErrForgotten
		}
	case max(known.Seen-tx.Now, tx.Now-known.Seen) > clock.SeenAnew.Milliseconds(): // a clock may have been ahead
		err = Register(ctx, tx, writer)
	}
	if err == nil {
		_, err = tx.Exec(ctx, sqlSend, writer, b.seq, b.opened, b.payload)
	}
	return receipt{known.Lease, tx.Now}, err
}

// Register makes the database know a writer, of which it may have nothing yet.
func Register(ctx context.Context, tx *database.Tx, writer string) error {
	_, err := tx.Exec(ctx, sqlRegister, writer, []byte{}, seenNow(tx))
	return err
}

// seenNow is when a writer that is seen now was seen.
func seenNow(tx *database.Tx) int64 { return clock.RemovalOf(tx).Since(tx.Now) }

func (o *Outbox) register(writer string) error {
	return o.DB.Fill(o.run, o.patience(), func(ctx context.Context, tx *database.Tx) error {
		return Register(ctx, tx, writer)
	})
}

// patience is how long an attempt to send may take: longer after a pause, for the
// database may be asleep, too.
func (o *Outbox) patience() time.Duration {
	if o.Asleep() {
		return wakeTimeout
	}
	return database.WriteTimeout
}
