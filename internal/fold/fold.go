// Package fold brings what arrived in the inbox into the tables: totals and history, each
// batch exactly once.
//
// Every instance of a service puts its batches into the inbox, a row each, numbered by
// whoever wrote them. One of the instances at a time, the leader, merges what waits and
// adds the sums to the tables: 32 instances that each updated the shared rows themselves
// waited for each other's locks, and reached 24 flushes a second where the inbox took 1,313.
//
// What makes a batch count once is its writer's guard, the number of its last batch that
// was folded. In one transaction (Folder.Fold) the sums are added, the guards move, each
// by compare-and-set from where it was read, and the inbox's rows go. Two folds that have
// merged the same batches cannot both move the guard, so one of them is undone, whole; a
// batch that arrives again is below it; a crash leaves all or nothing. The lease only saves
// work: it keeps the other instances from merging what would be undone. It is never
// trusted, for clocks jump, processes stand still, and Flush folds whoever has it. Nor is the
// lock of its row, which on PostgreSQL a fold takes for as long as it lasts and others pass by
// (SKIP LOCKED): it is the rule that one folds at a time, and not the proof.
//
// One name, or one batch, that the database refuses must not keep all others waiting. A
// fold that fails is tried with half of the batches, until one is left that fails alone: it
// is the suspect. What somebody's rule refuses (a constraint, a trigger) waits, its own
// writer's later batches behind it, and 15 minutes later (of one instance that folds: another begins anew), since nobody leaves a
// mistake in place for that long, its names are found by halves, each tried and undone, and count under
// (invalid). What makes a fold panic, or cannot be read, is set aside.
//
// A leader rests ten times as long as its upserts took, so that an open snapshot elsewhere
// does not have dead row versions pile up: 5 to 494 ms per fold in 17 minutes. When nobody
// has counted for 75 seconds, nothing looks at the database any more: who counts next, folds.
//
// Read fold.go (what one fold does) with choose.go (which batches), merge.go (what a batch
// adds, and the guard), sums.go and tables.go (into the tables; AddNow comes in there), caps.go
// and room.go (which subjects have a place); then refused.go and poison.go (what the database
// refuses), and leader.go with lease.go (who folds, and when).
package fold

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/usagekit/usagekit/internal/clock"
	"github.com/usagekit/usagekit/internal/database"
)

const (
	foldTimeout    = 20 * time.Second
	maxFoldTimeout = 10 * time.Minute // of one batch that took longer and longer
	pieceBytes     = 1 << 20          // of payload in memory at a time
	manyNames      = 150_000          // from which on a fold takes no more: three rows each, some seconds
)

const (
	// How far a writer is folded, and how many of its batches up to one wait.
	sqlOwn = `SELECT COALESCE((SELECT seq FROM usage_writers WHERE writer = ?), 0) AS guard,
	(SELECT COUNT(*) FROM usage_inbox WHERE writer = ? AND seq <= ?) AS waiting`

	sqlRemove = `DELETE FROM usage_inbox WHERE (writer, seq) IN (SELECT i.writer, i.seq FROM usage_inbox i JOIN usage_writers w ON w.writer = i.writer AND i.seq <= w.seq)`
)

// errConflict says that the guard of a writer moved while its batches were
// merged: another fold has counted them, and this one is undone.
const errConflict = database.Fault("store: two folds met; the guard kept one")

// ErrGone says that a batch was acknowledged and is in no table.
const ErrGone = database.Fault("the database lost counts that it had acknowledged: was it restored, or failed over to a replica that was behind?")

// Folder folds, for one instance.
type Folder struct {
	db      *database.DB
	Tables  *Tables
	lease   lease
	log     *slog.Logger
	names   int // manyNames; tests have less
	refused refusals

	mu     sync.Mutex
	memory memory
}

// NewFolder returns one whose transactions begin until run ends. writer is the instance's
// id, under which its own batches arrive.
func NewFolder(run context.Context, db *database.DB, c *clock.Clock, tables *Tables, writer string, log *slog.Logger) *Folder {
	return &Folder{db: db, Tables: tables, lease: lease{run, db, c, writer}, log: log, names: manyNames}
}

// Settle is the Folder's part of a start: without the lease's row nobody folds.
func (f *Folder) Settle(ctx context.Context, tx *database.Tx) error {
	_, err := tx.Exec(ctx, sqlFirstLease)
	return err
}

// memory is what a Folder remembers between its folds.
type memory struct {
	size    int           // bytes of the next fold; 0: foldBytes
	limit   time.Duration // of the next fold; 0: foldTimeout
	suspect string        // the batch that made a fold of it alone fail
	panics  bool          // with a panic: set it aside; else look for the names in it that did
	newer   string        // the batch of a later release that was reported
	swept   int64         // when a fold asked for all writers; Unix ms
	rule    rule          // that refuses batches
}

// Result is what came of a fold.
type Result struct {
	Busy    bool // another one folds, or has the lease
	Batches int  // how many were merged
	More    bool // others wait still, and can be folded; with an error, too

	newer   string        // a batch that waits for a later release
	refused error         // why some wait that the database refuses; nil: none do
	upserts time.Duration // what apply took
	after   memory        // what it has learned, once it is certain
	written Written
	reports []report // to be logged then
}

// report is a line for the log.
type report struct {
	message string
	args    []any
}

// Through waits until this instance's batch seq is folded, by whomever; it folds itself
// without asking for the lease.
func (f *Folder) Through(ctx context.Context, seq int64) error {
	if seq == 0 {
		return nil
	}
	for pause := time.Millisecond; ; pause = min(2*pause, time.Second/2) {
		var own struct{ Guard, Waiting int64 }
		err := f.db.Glance(ctx, func(ctx context.Context, tx *database.Tx) error {
			return tx.Get(ctx, &own, sqlOwn, f.lease.writer, f.lease.writer, seq)
		})
		switch {
		case err == nil && own.Guard >= seq:
			return nil
		case err == nil && own.Waiting == 0:
			f.log.Error("usagekit: " + string(ErrGone))
			return ErrGone
		}
		wait := time.Duration(0)
		if err == nil {
			var r Result
			if r, err = f.Fold(ctx, true); r.Busy || r.Batches == 0 {
				wait = pause + rand.N(pause) // others, perhaps a thousand, wait as well
			}
		}
		if err != nil {
			if f.lease.run.Err() != nil {
				return err // there is no later
			}
			wait = rand.N(database.MinBackoff) + database.MinBackoff
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			if err != nil {
				return err
			}
			return ctx.Err()
		}
	}
}

// Fold merges what waits into totals and history, in one transaction: a batch is counted,
// its writer's guard advanced and its inbox row gone, all or nothing. force folds although
// the lease is another's, but not while another fold is at work, which has its row.
func (f *Folder) Fold(ctx context.Context, force bool) (Result, error) {
	f.mu.Lock()
	m := f.memory
	f.mu.Unlock()
	m.size, m.limit = cmp.Or(m.size, foldBytes), cmp.Or(m.limit, foldTimeout)
	var r Result
	var tried atomic.Pointer[choice]
	err := f.db.Write(ctx, m.limit, func(ctx context.Context, tx *database.Tx) (err error) {
		r, err = f.fold(ctx, tx, force, m, &tried)
		return err
	})
	if err == nil && r.Busy {
		return r, nil // it was another's turn: what was learned holds
	}
	more := false
	if err == nil {
		for _, line := range r.reports {
			f.log.Error("usagekit: "+line.message, line.args...)
		}
		f.Tables.Applied(r.written)
		m = r.after
		r.refused = f.refused.folded(tried.Load())
	} else if c := tried.Load(); c != nil && !errors.Is(err, errConflict) && ctx.Err() == nil {
		more = f.failed(&m, c, err)
	}
	f.mu.Lock()
	known := m.newer == f.memory.newer
	f.memory = m
	f.mu.Unlock()
	if err != nil {
		return Result{More: more}, err
	}
	if !known && r.newer != "" {
		f.log.Warn("usagekit: a batch was written by a later release, and waits for an instance of that one", "batch", r.newer)
	}
	return r, nil
}

// failed learns from a fold of c that failed with err: the next one takes half of it, or
// what failed alone is the suspect, gets more time, or waits behind that of others. It
// returns whether others can be folded at once.
func (f *Folder) failed(m *memory, c *choice, err error) (more bool) {
	sifted := m.suspect
	m.suspect, m.panics = "", false
	if !c.again {
		m.size = 0
		for _, w := range c.list {
			m.size += w.Size
		}
		m.size = max(1, m.size/2)
	}
	switch first := c.list[0]; {
	case len(c.list) > 1:
		return !errors.Is(err, database.ErrUnavailable)
	case first.name() != sifted && (database.Poison(err) || database.RuledOut(err) && m.rule.stands(time.Now())):
		m.suspect, m.panics = first.name(), errors.As(err, new(database.Panic))
		return true
	case database.TimedOut(err): // it cannot be less, so it may take longer
		m.limit = min(2*m.limit, maxFoldTimeout)
	case !errors.Is(err, database.ErrUnavailable):
		f.refused.putBehind(first, err)
		return c.others
	}
	return false
}

// fold is the transaction of Fold. It notes in tried what it is about to merge, for this may
// be what makes it fail.
func (f *Folder) fold(ctx context.Context, tx *database.Tx, force bool, m memory, tried *atomic.Pointer[choice]) (Result, error) {
	held, err := f.lease.lock(ctx, tx)
	if err != nil {
		return Result{}, err
	}
	began := time.Now()
	now := held.now.UnixMilli()
	leased := held.holder != f.lease.writer && held.until > now // to another
	if held.busy || leased && !force {
		return Result{Busy: true}, nil
	}
	seen := now - 2*clock.SeenAnew.Milliseconds()
	swept := m.swept
	if now-swept >= sweepEvery.Milliseconds() || now < swept { // batches may wait for longer than that
		seen, swept = 0, now
	}
	c, err := f.choose(ctx, tx, m, seen)
	if err != nil {
		return Result{}, err
	}
	more := c.more
	if more {
		swept = m.swept // it left some of them
	}
	if len(c.list) > 0 {
		tried.Store(&c)
	}
	g := merging{tables: f.Tables, sums: f.Tables.newSums(held.now, held.pruned), now: now, pruned: held.pruned, guards: map[string]*guard{}, suspect: m.suspect, panics: m.panics}
	merged, err := f.mergeAll(ctx, tx, &g, c.list)
	if err != nil {
		return Result{}, err
	}
	size := min(2*m.size, foldBytes) // of the next one
	if merged < len(c.list) {
		some := c
		some.list = c.list[:merged]
		tried.Store(&some)
		size = 0
		for _, w := range some.list { // so that it chooses no more than that, fairly
			size += w.Size
		}
		more, swept = true, m.swept
	}
	if err := g.advance(ctx, tx); err != nil {
		return Result{}, err
	}
	start := time.Now()
	written, err := f.Tables.apply(ctx, tx, g.sums)
	if err != nil {
		return Result{}, err
	}
	r := Result{Batches: g.batches, More: more, newer: g.newer, upserts: time.Since(start), written: written, reports: g.reports}
	r.after = memory{size: size, newer: g.newer, swept: swept, rule: m.rule}
	if _, err := tx.Exec(ctx, sqlRemove); err != nil {
		return Result{}, err
	}
	if !more && !c.left && g.newer == "" { // all that had arrived by now is in
		if err := tx.SetMeta(ctx, "folded", strconv.FormatInt(now, 10)); err != nil {
			return Result{}, err
		}
	}
	if !leased {
		err = f.lease.set(ctx, tx, now+time.Since(began).Milliseconds())
	}
	return r, err
}

// mergeAll merges batches, some at a time, until there are many names. It returns how many
// it took.
func (f *Folder) mergeAll(ctx context.Context, tx *database.Tx, g *merging, list []waiting) (merged int, err error) {
	for rest := list; len(rest) > 0; {
		if len(g.sums.names) >= f.names {
			return len(list) - len(rest), nil
		}
		size, n := rest[0].Size, 1
		for n < len(rest) && size+rest[n].Size <= pieceBytes {
			size += rest[n].Size
			n++
		}
		piece, err := payloads(ctx, tx, rest[:n])
		if err != nil {
			return 0, err
		}
		for i, p := range piece {
			w := rest[i]
			w.Payload = p
			if err := g.merge(ctx, tx, w); err != nil {
				return 0, err
			}
		}
		rest = rest[n:]
	}
	return len(list), nil
}
