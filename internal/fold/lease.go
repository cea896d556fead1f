package fold

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/usagekit/usagekit/internal/clock"
	"github.com/usagekit/usagekit/internal/database"
)

const leaseTime = 15 * time.Second

const (
	sqlFirstLease = `INSERT INTO usage_meta (name, value) VALUES ('lease', ' 0') ON CONFLICT DO NOTHING`
	sqlLease      = `SELECT value FROM usage_meta WHERE name = 'lease'`
	sqlSetLease   = `UPDATE usage_meta SET value = ? WHERE name = 'lease'`
	sqlClearLease = `UPDATE usage_meta SET value = ' 0' WHERE name = 'lease' AND value LIKE ?`
)

// lease is how the instances agree on who folds. It saves work and is never trusted.
//
// It is its holder, a space, and when it ends: Unix milliseconds. A SQLite file has its
// instances on one host, most often one, and locks as a whole: there it is everybody's, and
// what a killed process left is folded at once.
type lease struct {
	run    context.Context
	db     *database.DB
	clock  *clock.Clock
	writer string
}

// parse returns who holds it, and until when.
func (l lease) parse(value string, now int64) (holder string, until int64) {
	if l.db.OneWriter {
		return l.writer, 0
	}
	holder, end, _ := strings.Cut(value, " ")
	until, _ = strconv.ParseInt(end, 10, 64)
	return holder, clock.Possible(until, now, leaseTime+time.Second)
}

// held is what a fold reads first.
type held struct {
	holder string
	busy   bool  // another one folds
	until  int64 // Unix ms
	now    time.Time
	pruned clock.Removal
}

// lock takes the lease's row.
func (l lease) lock(ctx context.Context, tx *database.Tx) (h held, err error) {
	if err := l.run.Err(); err != nil { // nobody would give it back
		return held{}, err
	}
	var rows []string
	if err := tx.Select(ctx, &rows, sqlLease+tx.LockLease); err != nil {
		return held{}, err
	}
	if len(rows) == 0 {
		return held{busy: true}, nil
	}
	if h.now, h.pruned, err = l.clock.Now(ctx, tx); err == nil {
		h.holder, h.until = l.parse(rows[0], h.now.UnixMilli())
	}
	return h, err
}

// set has this instance hold it from now on.
func (l lease) set(ctx context.Context, tx *database.Tx, now int64) error {
	_, err := tx.Exec(ctx, sqlSetLease, l.writer+" "+strconv.FormatInt(now+leaseTime.Milliseconds(), 10))
	return err
}

// renew keeps it over a long rest. An error does not matter.
func (l lease) renew(ctx context.Context) {
	_ = l.db.Write(ctx, database.WriteTimeout, func(ctx context.Context, tx *database.Tx) error {
		h, err := l.lock(ctx, tx)
		if err != nil || h.holder != l.writer {
			return err
		}
		return l.set(ctx, tx, h.now.UnixMilli())
	})
}

// release gives it to whoever comes next.
func (l lease) release(ctx context.Context) {
	_ = l.db.Write(ctx, database.WriteTimeout, func(ctx context.Context, tx *database.Tx) error {
		_, err := tx.Exec(ctx, sqlClearLease, l.writer+"%")
		return err
	})
}
