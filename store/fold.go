package store

import (
	"bytes"
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/usagekit/usagekit/internal/clock"
	"github.com/usagekit/usagekit/internal/counter"
	"github.com/usagekit/usagekit/internal/database"
)

const (
	foldTimeout    = 20 * time.Second
	maxFoldTimeout = 10 * time.Minute // of one batch that took longer and longer
	foldBytes      = 32 << 20         // of payload in one fold: names that come again cost no more rows
	pieceBytes     = 1 << 20          // of payload in memory at a time
	manyFoldNames  = 150_000          // from which on a fold takes no more: three rows each, some seconds
	foldDepth      = 64               // batches of one writer in one fold
	sweepEvery     = time.Minute      // a fold asks for writers that were not seen for days
	badKept        = 100
	refusalPause   = 15 * time.Minute // for which what somebody's rule refuses waits for that to be undone
	refusedAgain   = 5 * time.Second  // after which one that was refused is tried again although others wait
	maxTries       = 500              // to find the names of a batch that the database refuses
)

const (
	// How far a writer is folded, and how many of its batches up to one wait.
	sqlOwn = `SELECT COALESCE((SELECT seq FROM usage_writers WHERE writer = ?), 0) AS guard,
	(SELECT COUNT(*) FROM usage_inbox WHERE writer = ? AND seq <= ?) AS waiting`

	// What waits at or above each writer's guard (at the guard stands a repeat), of
	// those seen since: probing for 100,000 dead ones took 263 ms.
	sqlWaiting = `SELECT w.writer, w.seq AS guard, w.sum, i.seq, i.opened, i.size
FROM usage_writers w, LATERAL (
	SELECT seq, opened, length(payload) AS size FROM usage_inbox WHERE writer = w.writer AND seq >= w.seq ORDER BY seq LIMIT ?) i
WHERE w.seen >= ?
ORDER BY w.writer, i.seq`
	sqlWaitingLite = `SELECT writer, guard, sum, seq, opened, size FROM (
	SELECT w.writer, w.seq AS guard, w.sum, i.seq, i.opened, length(i.payload) AS size, ROW_NUMBER() OVER (PARTITION BY i.writer ORDER BY i.seq) AS nth
	FROM usage_inbox i JOIN usage_writers w ON w.writer = i.writer AND i.seq >= w.seq)
WHERE nth <= ? ORDER BY writer, seq`

	sqlPayloads = `SELECT i.writer, i.seq, i.payload FROM %s JOIN usage_inbox i ON i.writer = v.writer AND i.seq = v.seq`

	// The guard: two folds of the same batches cannot both advance it.
	sqlAdvance = `UPDATE usage_writers AS w SET seq = v.seq, sum = %s, seen = ? FROM %s WHERE w.writer = v.writer AND w.seq = v.guard`
	sqlFolded  = `DELETE FROM usage_inbox WHERE (writer, seq) IN (SELECT i.writer, i.seq FROM usage_inbox i JOIN usage_writers w ON w.writer = i.writer AND i.seq <= w.seq)`

	sqlBadCount = `SELECT COUNT(*) FROM usage_meta WHERE name >= 'bad/' AND name < 'bad0'`
)

// foldMemory is what a Store remembers between its folds.
type foldMemory struct {
	size    int           // bytes of the next fold; 0: foldBytes
	limit   time.Duration // of the next fold; 0: foldTimeout
	suspect string        // the batch that made a fold of it alone fail
	panics  bool          // with a panic: set it aside; else look for the names in it that did
	newer   string        // the batch of a later release that was reported
	swept   int64         // when a fold asked for all writers; Unix ms

	refusedSince time.Time // when somebody's rule began to refuse batches
	refusedLast  time.Time // and when it did so last
}

// waiting is a batch in the inbox, and where its writer's guard stands.
type waiting struct {
	Writer  string
	Guard   int64
	Sum     []byte
	Seq     int64
	Opened  int64
	Size    int
	Payload []byte
}

func (w waiting) name() string { return w.Writer + "/" + strconv.FormatInt(w.Seq, 10) }

// foldResult is what came of a fold.
type foldResult struct {
	busy    bool          // another one folds, or has the lease
	batches int           // how many were merged
	swept   int64         // see foldMemory
	size    int           // of what was merged, when it had too many names for more; else 0
	more    bool          // others wait still, and can be folded; with an error, too
	newer   string        // a batch that waits for a later release
	refused error         // why some wait that the database refuses; nil: none do
	upserts time.Duration // what apply took
	crossed int           // thresholds
	sums    *sums         // that were written; nil: none
	reports []report      // to be logged once it is certain
}

// report is a line for the log.
type report struct {
	message string
	args    []any
}

// errConflict says that the guard of a writer moved while its batches were
// merged: another fold has counted them, and this one is undone.
const errConflict = database.Fault("store: two folds met; the guard kept one")

// errTooMany ends the search for the names of a batch that the database refuses.
const errTooMany = database.Fault("store: the database refuses too many names of one batch")

// errGone says that a batch was acknowledged and is in no table.
const errGone = database.Fault("the database lost counts that it had acknowledged: was it restored, or failed over to a replica that was behind?")

// foldThrough waits until this store's batch seq is folded, by whomever; it
// folds itself without asking for the lease.
func (s *Store) foldThrough(ctx context.Context, seq int64) error {
	if seq == 0 {
		return nil
	}
	for pause := time.Millisecond; ; pause = min(2*pause, time.Second/2) {
		var own struct{ Guard, Waiting int64 }
		err := s.db.Glance(ctx, func(ctx context.Context, tx *database.Tx) error {
			return tx.Get(ctx, &own, sqlOwn, s.writer, s.writer, seq)
		})
		switch {
		case err == nil && own.Guard >= seq:
			return nil
		case err == nil && own.Waiting == 0:
			s.log.Error("usagekit: " + string(errGone))
			return errGone
		}
		wait := time.Duration(0)
		if err == nil {
			var f foldResult
			if f, err = s.fold(ctx, true); f.busy || f.batches == 0 {
				wait = pause + rand.N(pause) // others, perhaps a thousand, wait as well
			}
		}
		if err != nil {
			if s.run.Err() != nil {
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

// fold merges what waits into totals and history, in one transaction: a batch
// is counted, its writer's guard advanced and its inbox row gone, all or
// nothing. force folds although another has the lease.
func (s *Store) fold(ctx context.Context, force bool) (foldResult, error) {
	s.mu.Lock()
	memory := s.folding
	s.mu.Unlock()
	memory.size, memory.limit = cmp.Or(memory.size, foldBytes), cmp.Or(memory.limit, foldTimeout)
	var f foldResult
	var tried atomic.Pointer[choice]
	err := s.db.Write(ctx, memory.limit, func(ctx context.Context, tx *database.Tx) (err error) {
		f, err = s.foldTx(ctx, tx, force, memory, &tried)
		return err
	})
	if err == nil && f.busy {
		return f, nil // it was another's turn: what was learned holds
	}
	more := false
	if err == nil {
		for _, r := range f.reports {
			s.log.Error("usagekit: "+r.message, r.args...)
		}
		s.applied(f.sums, f.crossed)
		memory = foldMemory{size: cmp.Or(f.size, min(2*memory.size, foldBytes)), newer: f.newer, swept: f.swept, refusedSince: memory.refusedSince, refusedLast: memory.refusedLast}
		f.refused = s.foldedAfter(tried.Load())
	} else if c := tried.Load(); c != nil && !errors.Is(err, errConflict) && ctx.Err() == nil {
		sifted := memory.suspect
		memory.suspect, memory.panics = "", false
		if !c.again {
			memory.size = 0
			for _, w := range c.list {
				memory.size += w.Size
			}
			memory.size = max(1, memory.size/2)
		}
		switch first := c.list[0]; {
		case len(c.list) > 1:
			more = !errors.Is(err, ErrUnavailable)
		case first.name() != sifted && (database.Poison(err) || database.RuledOut(err) && memory.stands(time.Now())):
			memory.suspect, memory.panics = first.name(), errors.As(err, new(database.Panic))
			more = true
		case database.TimedOut(err): // it cannot be less, so it may take longer
			memory.limit = min(2*memory.limit, maxFoldTimeout)
		case !errors.Is(err, ErrUnavailable):
			s.putBehind(first, err)
			more = c.others
		}
	}
	s.mu.Lock()
	known := memory.newer == s.folding.newer
	s.folding = memory
	s.mu.Unlock()
	if err != nil {
		return foldResult{more: more}, err
	}
	if !known && f.newer != "" {
		s.log.Warn("usagekit: a batch was written by a later release, and waits for an instance of that one", "batch", f.newer)
	}
	return f, nil
}

func (s *Store) foldTx(ctx context.Context, tx *database.Tx, force bool, memory foldMemory, tried *atomic.Pointer[choice]) (foldResult, error) {
	l, err := s.lockLease(ctx, tx)
	if err != nil {
		return foldResult{}, err
	}
	began := time.Now()
	now := l.now
	leased := l.holder != s.writer && l.until > now // to another
	if l.holder == "busy" || leased && !force {
		return foldResult{busy: true}, nil
	}
	seen := now - 2*clock.SeenAnew.Milliseconds()
	swept := memory.swept
	if now-swept >= sweepEvery.Milliseconds() || now < swept { // batches may wait for longer than that
		seen, swept = 0, now
	}
	c, err := s.choose(ctx, tx, memory, seen)
	if err != nil {
		return foldResult{}, err
	}
	list := c.list
	if c.more {
		swept = memory.swept // it left some of them
	}
	if len(list) > 0 {
		tried.Store(&c)
	}
	m := merging{sums: s.newSums(time.UnixMilli(now), l.pruned), now: now, pruned: l.pruned, guards: map[string]*guard{}, suspect: memory.suspect, panics: memory.panics}
	f := foldResult{swept: swept, more: c.more}
	for rest := list; len(rest) > 0; {
		if len(m.sums.names) >= s.foldNames {
			merged := c
			merged.list = list[:len(list)-len(rest)]
			tried.Store(&merged)
			for _, w := range merged.list { // so that the next one chooses no more than that, fairly
				f.size += w.Size
			}
			f.more, f.swept = true, memory.swept
			break
		}
		size, n := rest[0].Size, 1
		for n < len(rest) && size+rest[n].Size <= pieceBytes {
			size += rest[n].Size
			n++
		}
		piece, err := s.payloads(ctx, tx, rest[:n])
		if err != nil {
			return foldResult{}, err
		}
		for i, p := range piece {
			w := rest[i]
			w.Payload = p
			if err := s.merge(ctx, tx, &m, w); err != nil {
				return foldResult{}, err
			}
		}
		rest = rest[n:]
	}
	if err := s.advance(ctx, tx, &m); err != nil {
		return foldResult{}, err
	}
	start := time.Now()
	if f.crossed, err = s.apply(ctx, tx, m.sums); err != nil {
		return foldResult{}, err
	}
	f.sums = m.sums
	f.batches, f.newer, f.upserts, f.reports = m.batches, m.newer, time.Since(start), m.reports
	if _, err := tx.Exec(ctx, sqlFolded); err != nil {
		return foldResult{}, err
	}
	if !f.more && !c.left && f.newer == "" { // all that had arrived by now is in
		if _, err := tx.Exec(ctx, sqlSetMeta, "folded", strconv.FormatInt(now, 10)); err != nil {
			return foldResult{}, err
		}
	}
	if !leased {
		_, err = tx.Exec(ctx, sqlSetLease, s.leaseUntil(now+time.Since(began).Milliseconds()))
	}
	return f, err
}

// choice is what one fold takes: batches by writer, in order, without their payloads.
type choice struct {
	list   []waiting
	more   bool // the next fold has something to do
	others bool // the batches of other writers wait, which nothing is known against
	again  bool // it is a refused batch that is tried again, alone
	left   bool // some that are refused wait behind
}

// choose picks what one fold takes: the first batch of every writer, then the second
// of each, oldest first, up to a size in bytes but one at least. Writers whose first one
// was refused come behind (see turn).
func (s *Store) choose(ctx context.Context, tx *database.Tx, memory foldMemory, seen int64) (c choice, err error) {
	query, args := sqlWaiting, []any{foldDepth, seen}
	if s.db.SQLite { // which begins with the inbox
		query, args = sqlWaitingLite, args[:1]
	}
	var list []waiting
	if err := tx.Select(ctx, &list, query, args...); err != nil {
		return choice{}, err
	}
	c = s.turn(list, s.db.SQLite || seen == 0, memory.suspect, time.Now())
	if list = c.list; len(list) == 0 || c.again {
		return c, nil
	}
	rank, last := make([]int, len(list)), 0
	order := make([]int, len(list))
	for i := range list {
		order[i] = i
		if i > 0 && list[i].Writer == list[i-1].Writer {
			rank[i] = rank[i-1] + 1
		}
		last = max(last, rank[i]+1)
	}
	slices.SortStableFunc(order, func(a, b int) int {
		return cmp.Or(cmp.Compare(rank[a], rank[b]), cmp.Compare(list[a].Opened, list[b].Opened))
	})
	n, size := 0, memory.size
	for n < len(order) && (n == 0 || size >= list[order[n]].Size) {
		size -= list[order[n]].Size
		n++
	}
	c.more = n < len(order) || last >= foldDepth
	c.others = list[0].Writer != list[len(list)-1].Writer
	order = order[:n]
	slices.Sort(order)
	c.list = make([]waiting, n)
	for i, o := range order {
		c.list[i] = list[o]
	}
	return c, nil
}

// payloads reads those of some batches, in their order.
func (s *Store) payloads(ctx context.Context, tx *database.Tx, list []waiting) ([][]byte, error) {
	type id struct {
		writer string
		seq    int64
	}
	writers, seqs := make([]string, len(list)), make([]int64, len(list))
	at := make(map[id]int, len(list))
	for i, w := range list {
		writers[i], seqs[i] = w.Writer, w.Seq
		at[id{w.Writer, w.Seq}] = i
	}
	rows, args := s.db.Values(database.Column{Name: "writer", Texts: writers}, database.Column{Name: "seq", Numbers: seqs})
	var found []struct {
		Writer  string
		Seq     int64
		Payload []byte
	}
	if err := tx.Select(ctx, &found, strings.Replace(sqlPayloads, "%s", rows, 1), args...); err != nil {
		return nil, err
	}
	if len(found) < len(list) { // another fold, which this one overlaps, took them
		s.conflicts.Add(1)
		return nil, errConflict
	}
	payloads := make([][]byte, len(list))
	for _, f := range found {
		payloads[at[id{f.Writer, f.Seq}]] = f.Payload
	}
	return payloads, nil
}

// merging is what a fold gathers before it writes.
type merging struct {
	sums    *sums
	now     int64 // the database's time, Unix ms
	pruned  removal
	guards  map[string]*guard
	suspect string
	panics  bool
	batches int
	newer   string
	reports []report
}

func (m *merging) report(message string, args ...any) {
	m.reports = append(m.reports, report{message, args})
}

// guard is how far a writer's batches are folded: before, and by this fold.
type guard struct {
	was, seq int64
	sum      []byte
	stopped  bool // at a payload of a later release
}

// merge adds one batch, the next of its writer.
func (s *Store) merge(ctx context.Context, tx *database.Tx, m *merging, w waiting) error {
	g := m.guards[w.Writer]
	if g == nil {
		g = &guard{was: w.Guard, seq: w.Guard, sum: w.Sum}
		m.guards[w.Writer] = g
	}
	if g.stopped {
		return nil
	}
	sum := counter.Sum(w.Payload)
	if w.Seq <= g.was {
		if !bytes.Equal(sum, g.sum) {
			m.report("a batch came again with other counts, and was not counted: do two processes send the same counts?", "batch", w.name())
		}
		return nil
	}
	payload, err := openPayload(w.Payload)
	if errors.Is(err, counter.ErrVersion) {
		g.stopped, m.newer = true, w.name()
		return nil
	}
	if w.Seq > g.seq+1 {
		m.report("batches are missing: was the database restored, or failed over to a replica that was behind?", "writer", w.Writer, "from", g.seq+1, "to", w.Seq-1)
	}
	g.seq, g.sum = w.Seq, sum
	m.batches++
	dropped := int64(1) // at least
	var refused map[string]error
	if err == nil && w.name() == m.suspect {
		why := errors.New("folding it panicked")
		if !m.panics {
			if refused, why, err = s.siftOut(ctx, tx, m, w); err != nil {
				return err
			}
		}
		if err = why; err != nil {
			dropped = 0
			for _, n := range payload.Counts() {
				dropped = addCapped(dropped, n)
			}
		}
	}
	if err != nil {
		m.sums.add(m.now, "usagekit.counts.dropped", dropped)
		return s.setAside(ctx, tx, m, w, err)
	}
	at := payload.Opened
	if at > m.now+24*time.Hour.Milliseconds() {
		m.report("a batch is dated more than a day ahead, and counts as of now: check the clock of its host", "batch", w.name(), "dated", time.UnixMilli(at))
		at = m.now
	}
	for name, n := range payload.Counts() {
		m.sums.add(at, instead(name, refused), n)
	}
	return nil
}

// openPayload keeps a panic in one batch to that batch.
func openPayload(p []byte) (payload counter.Payload, err error) {
	defer func() {
		if v := recover(); v != nil {
			err = database.Panic{Value: v}
		}
	}()
	return counter.Open(p)
}

// advance moves the guards, each from where it was read: compare and set. It is
// what makes a batch count once, whoever folds, however often.
func (s *Store) advance(ctx context.Context, tx *database.Tx, m *merging) error {
	var writers, sums []string
	var was, seqs []int64
	for _, w := range slices.Sorted(maps.Keys(m.guards)) {
		if g := m.guards[w]; g.seq > g.was {
			writers, sums = append(writers, w), append(sums, hex.EncodeToString(g.sum))
			was, seqs = append(was, g.was), append(seqs, g.seq)
		}
	}
	if len(writers) == 0 {
		return nil
	}
	rows, args := s.db.Values(database.Column{Name: "writer", Texts: writers}, database.Column{Name: "guard", Numbers: was},
		database.Column{Name: "seq", Numbers: seqs}, database.Column{Name: "sum", Texts: sums})
	query := strings.Replace(strings.Replace(sqlAdvance, "%s", s.db.Unhex("v.sum"), 1), "%s", rows, 1)
	n, err := tx.Exec(ctx, query, append([]any{m.pruned.Since(m.now)}, args...)...)
	if err != nil {
		return err
	}
	if n != int64(len(writers)) {
		s.conflicts.Add(1)
		return errConflict
	}
	return nil
}
