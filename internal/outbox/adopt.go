package outbox

import (
	"context"
	"errors"
	"time"

	"github.com/usagekit/usagekit/internal/counter"
	"github.com/usagekit/usagekit/internal/database"
)

const adoptEvery = time.Minute

// AdoptLoop sends what dead processes left in the spool, at the start and every minute.
func (o *Outbox) AdoptLoop() {
	if !o.DB.WaitStarted(o.run) {
		return
	}
	for {
		var backoff database.Backoff
		until := func(done func() error) error {
			for {
				err := done()
				if wait := backoff.After(err); err == nil || errors.Is(err, counter.ErrForgotten) || !database.Pause(o.run, wait) {
					return err
				}
			}
		}
		_ = o.Spool.Adopt(func(writer string) error {
			return until(func() error { return o.RegisterAdopted(writer) })
		}, func(writer string, b counter.Sealed) error {
			return until(func() error { return o.SendAdopted(writer, b) })
		})
		if !database.Pause(o.run, adoptEvery) {
			return
		}
	}
}

// SendAdopted sends a batch that a dead writer left, once.
func (o *Outbox) SendAdopted(writer string, b counter.Sealed) error {
	var r receipt
	err := o.DB.Fill(o.run, o.patience(), func(ctx context.Context, tx *database.Tx) (err error) {
		r, err = send(ctx, tx, writer, sealed{b.Seq, b.Opened, len(b.Counts), b.Payload, true, b.Old})
		return err
	})
	if errors.Is(err, counter.ErrForgotten) {
		o.Adopting(nil)
		return err
	}
	o.Adopting(err)
	if err == nil {
		o.Sent(r.lease, r.now)
	}
	return err
}

// RegisterAdopted makes the database know a dead writer, once.
func (o *Outbox) RegisterAdopted(writer string) error {
	err := o.register(writer)
	o.Adopting(err)
	return err
}
