// Package store counts, and keeps the counts in a PostgreSQL or SQLite database:
// once each, whatever fails in between.
//
//	db, err := sqlite.Open("usage.db") // or postgres.Open(url), or a pool of one's own
//	usage, err := store.New(ctx, db, store.Config{})
//	usage.Inc("feature.outline.generated")
//	n, err := usage.Get(ctx, "feature.outline.generated")
//
// # Names
//
// A counter is a dotted name with a number. What stands before the first dot is
// its group, after the last dot its measure, between them its subject, which may
// hold anything, dots too (see SplitName). A new kind of usage is a new name:
//
//	api.GET /novels/{id}.requests    of a route; also .status_2xx, .latency_5ms … (package middleware)
//	api.requests.novels              of an area of the application
//	user.42.requests                 of a user; its day buckets are the counts per user and day
//	llm.gpt-5.tokens                 of a model; also .calls, .input_tokens … (package llm)
//	quota.42.daily                   what was taken of a quota (Take); .refused: what was not
//	user.registrations, feature.chapter.written, error.llm.timeout
//	                                 whatever the application counts
//	usagekit.counts.dropped          what was in batches and files that could not be read, at least
//
// Some are derived, and refused by Add, as quotas are:
//
//	api.requests.total               of all routes: the sum of every api.<route>.requests
//	api.requests.status_2xx          the same of status_1xx … _5xx, and of latency_5ms … _10000ms and _inf
//	api.requests.today               the current day of api.requests.total
//	user.active.daily, user.active.monthly
//	                                 distinct users of the current day and month
//
// So the Row of group api and subject requests is that of all requests, with areas as
// further measures; what sums a measure over routes leaves that subject out. A sum
// begins with the first release that derives it.
//
// Names are valid UTF-8 without control characters, at most 512 bytes, group and
// measure 1 to 64 bytes. Others are cleaned, never refused: what cannot be kept becomes
// U+FFFD, and a subject that is too long keeps its beginning; either then ends in "~"
// and 16 hexadecimal digits, a hash of what it was, and so does what looks like that
// itself. So names that differ are counters that differ, but for a group or measure
// that is empty or too long, which counts under (invalid). A method that reads takes
// names as lists have them, too: one with such an end is the one that it names. Numbers are 1 … 2^53−1, and sums stay there.
//
// # Promises
//
// While the process lives, nothing is lost and nothing counted twice: not by a
// database that is down, slow or restarted, nor by a connection that breaks in
// COMMIT. Shutdown stores all, or returns what it could not store. A process that
// is killed loses what it had not delivered: one Interval, and the backlog if the
// database was away. Add takes no lock that a request could wait for, and returns
// nothing; Stats and usagekit.counts.dropped say what went wrong.
//
// With Config.Spool, a process that is killed loses nothing that Add returned for:
// the next start, or another process with the same spool, sends it, once. Shutdown
// leaves there what it could not store. A power loss costs what the kernel had not
// written yet, and doubles nothing. Where the spool cannot be used, counts are in
// memory, as without one, and Stats.Degraded says why.
//
// Where the spool lies decides what it outlives:
//
//	the root of a container (overlay on ext4 or xfs)
//	                     a kill, and a restart of the same container; not its being replaced
//	                     or rescheduled, which a volume does: mount one (Docker: a named
//	                     volume; Kubernetes: a PersistentVolumeClaim, as of a StatefulSet)
//	an emptyDir, a hostPath on ext4 or xfs
//	                     also a container of the pod that is replaced; an emptyDir ends
//	                     with its pod, a hostPath stays on its node, for who comes there next
//	a tmpfs              a kill; not a restart of the container, unless the mount is the
//	                     pod's (emptyDir, medium Memory), nor of the host
//	btrfs, ZFS, and overlays on them; NFS, 9p (gVisor), virtiofs, FUSE
//	                     not used: they do not keep what they allocated, or bring a page
//	                     when a server likes. Counts are in memory; mount ext4, xfs or tmpfs
//
// A count in a spool is a write to a page of a file, and the kernel lets it wait for as
// long as the file system is frozen (fsfreeze, snapshots of a volume) or its device stands
// still; and not the request alone, but all of the process. What a freeze of 5 s costs,
// and a kill:
//
//	no spool             requests wait 1 ms at most     a kill: one Interval, and the backlog
//	spool on a disk      up to 5.0 s                    a kill: nothing
//	spool on a tmpfs     0.6 ms                         a kill: nothing; a restart of the host: all
//	                                                    that is in it; of the container: see above
//
// Pages that are kept in memory or written to ahead do not help: freezing protects them
// again. Nor would live files on a tmpfs of our own choosing, copied to the disk when they
// are sealed (0.3 ms): that of a container ends with it, and a kill of a container's
// first process is its end.
//
// So who freezes disks under load, and would rather lose what was not delivered yet when
// the host restarts than wait, mounts a tmpfs for the spool. 16 MB is much: what is
// delivered takes no room.
//
// A Store takes two connections from its pool, one for reads and one for writes,
// and returns them after each transaction; a server that stands still may hold
// two more. On PostgreSQL, AddNow, Take, Reset and Erase use up to four of their own
// while they run: they must not wait for a fold.
//
// Two minutes after the last count anywhere nothing is asked of the database, until
// somebody counts, or calls a method that asks; but for word of a crossing that waits
// to be sent again (Config.Notify), and what failed.
//
// # Into the database exactly once
//
// Every Interval the counts since the last one are sealed as a numbered batch. A
// flush inserts that batch, encoded, as one row of usage_inbox, and repeats it
// until the answer is certain. A fold, by whichever instance has the lease, merges
// what waits into usage_metrics and usage_history. In the same transaction it
// advances each writer's row in usage_writers from the number it read, by compare
// and set: of two folds that met, one is undone. That, and not the lease, is why a
// batch counts once, however often it arrives.
//
// A constraint, a trigger or a missing partition that somebody gave the tables, and that
// refuses counts, may be a mistake: what it refuses waits, whole, with what its instance
// flushed after it (and a Flush there says so), and Stats.Err says why; those of others
// are folded meanwhile. Where it refuses some names for 15 minutes, those count under (invalid), and a
// batch of which even that is refused is kept in usage_quarantine and counts as dropped; while
// it refuses everything, nothing is given up.
//
// With a spool, each count is made in a mapped file, where the kernel keeps it
// whatever becomes of the process (an Add takes half as long again); a file is removed
// after the certain answer, and a repeat is nothing new: the guard knows its number.
//
// Updating the shared rows from every instance would be simpler, and does not
// scale: 32 writers with 500 shared names reached 24 flushes a second, waiting for
// each other's row locks; through the inbox they reached 1,313 (make scale).
//
// # Reading
//
// Totals are of all time. History has buckets of hours and days (days and months
// for the group user, what Take was told for quotas) that begin where the database's zone has it, and are kept for as
// long as Config.Retention says. See Query. A read answers within 5 s, or with
// ErrUnavailable; Each reads whatever there is, in pages of which that is true. What is
// asked of one Reading is of one moment, and says how complete it is: see Read.
//
// Read store.go, config.go and start.go, then follow what is counted through the rooms beside
// this package: internal/counter (live counts and the spool), internal/outbox (to the inbox),
// internal/fold (into the tables) and internal/crossing (thresholds). AddNow, Take and Reset
// are in now.go. query.go, read.go and each.go convert, and ask internal/read (from a Query to
// spans of the tables, to SQL, to counts); what is removed, internal/upkeep removes. start.go,
// health.go, log.go and shutdown.go are what their names say. All of them stand on
// internal/naming (the grammar of names), internal/calendar (where buckets begin),
// internal/clock (the database's time) and internal/database (the only way to the database:
// connections, the tables, SQL, and what an error means).
package store

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/usagekit/usagekit/internal/calendar"
	"github.com/usagekit/usagekit/internal/clock"
	"github.com/usagekit/usagekit/internal/counter"
	"github.com/usagekit/usagekit/internal/crossing"
	"github.com/usagekit/usagekit/internal/database"
	"github.com/usagekit/usagekit/internal/fold"
	"github.com/usagekit/usagekit/internal/naming"
	"github.com/usagekit/usagekit/internal/outbox"
	"github.com/usagekit/usagekit/internal/upkeep"
)

// Stats is a Store's state at a moment.
type Stats struct {
	Pending       int       // names with counts that the database has not acknowledged
	Oldest        time.Time // when the oldest of those counts was made; zero: there is none
	Lost          int64     // counts that came after Shutdown
	Overflow      int64     // counts under (other), because of MaxNames
	Invalid       int64     // Adds refused: n out of 1 … 2^53−1, or a derived name
	FoldedThrough time.Time // every batch that reached the database before is in what was read last; zero: nothing was read, or a clock was wrong and it is not known
	Degraded      string    // why counts are in memory only although there is a spool, or files wait in it for somebody, or that this process has other rules of the zone than the database; "": none of it
	Corrupt       int       // files of the spool that this store set aside, for somebody to look at
	Err           error     // why the last flush or fold failed, or that Config.Location is not the database's zone; nil: neither
}

// ErrUnavailable is in every error that means "the database does not answer
// now": the same call may work later.
var ErrUnavailable = database.ErrUnavailable

// UndeliveredError is what Shutdown returns when it could not bring all counts
// into the database. Counts has them by name. The last batch may have been
// stored although its answer was lost.
type UndeliveredError struct {
	Counts []Count
	Err    error
}

func (e *UndeliveredError) Error() string {
	return fmt.Sprintf("store: %d names have counts that did not reach the database: %v", len(e.Counts), e.Err)
}

func (e *UndeliveredError) Unwrap() error { return e.Err }

// Store counts, and brings the counts into its database. Its methods may be
// called from any number of goroutines. A nil *Store is one that is off: it counts
// nothing, reads zero, and lets every Take pass; what is wrong with a call is an
// error there, too.
type Store struct {
	cfg   Config // with its defaults
	life  life
	db    *database.DB
	clock *clock.Clock

	live     *counter.Set   // the counts that are not sealed yet
	spool    *counter.Spool // where live keeps them; nil: in memory only
	outbox   *outbox.Outbox // live → inbox
	leader   *fold.Leader   // whether this instance folds, and when
	folder   *fold.Folder   // inbox → tables
	notifier *crossing.Notifier
	pruner   *upkeep.Pruner

	health health
}

// life is what one Store has of its own: the name under which it sends, and goroutines.
type life struct {
	writer string          // random
	run    context.Context // ends the goroutines
	cancel context.CancelFunc
	wg     sync.WaitGroup

	stopOnce sync.Once
	stopped  chan struct{}
	stopErr  error
}

// New opens the store: it makes or updates its tables, which only a first start
// of a release does, and starts counting. ctx bounds New alone. The caller
// closes db, after Shutdown.
func New(ctx context.Context, db *sqlx.DB, cfg Config) (*Store, error) {
	s, err := open(ctx, db, cfg)
	if err != nil {
		return nil, err
	}
	s.begin()
	return s, nil
}

// begin has what goes on in the background begin.
func (s *Store) begin() {
	loops := []func(){s.outbox.SealLoop, s.outbox.SendLoop, s.leader.Run, s.pruner.Loop}
	loops = append(loops, s.notifier.Loops()...)
	loops = append(loops, func() {
		s.db.Watch(s.life.run, s.cfg.Interval, func(err error) { s.report(toWatch, err) })
	})
	if !s.db.Started() {
		loops = append(loops, s.startLoop)
	}
	if s.spool != nil {
		loops = append(loops, s.outbox.AdoptLoop)
	}
	for _, loop := range loops {
		s.life.wg.Go(func() {
			for !s.survives(loop) {
				database.Pause(s.life.run, time.Second)
			}
		})
	}
}

// survives runs a loop, and returns false when it panicked: a mistake of ours,
// or in a Logger, must not end the application.
func (s *Store) survives(loop func()) (ended bool) {
	defer func() {
		if v := recover(); v != nil {
			defer func() { _ = recover() }()
			s.cfg.Logger.Error("usagekit: a panic of its own; counting goes on", "panic", v, "stack", string(debug.Stack()))
		}
	}()
	loop()
	return true
}

// open is New without what goes on in the background.
func open(ctx context.Context, db *sqlx.DB, cfg Config) (*Store, error) {
	return openOn(ctx, db, cfg, counter.OpenDisk)
}

func openOn(ctx context.Context, db *sqlx.DB, cfg Config, openDisk func(root string) (counter.Disk, error)) (*Store, error) {
	if db == nil {
		return nil, errors.New("store: New needs a database: see postgres.Open and sqlite.Open")
	}
	if err := cfg.check(); err != nil {
		return nil, err
	}
	cfg = cfg.defaults()
	s := &Store{cfg: cfg, clock: clock.New(cfg.Location, cfg.Retention.kept())}
	s.life.writer, s.life.stopped = database.NewID(), make(chan struct{})
	s.health = health{log: cfg.Logger, safe: s.safe}
	var err error
	s.db, err = database.Open(db, database.Config{Schema: cfg.Schema, Log: cfg.Logger, Settle: s.settle, Replaced: s.replaced})
	if err != nil {
		return nil, err
	}
	if cfg.Spool != "" {
		disk, err := openDisk(cfg.Spool)
		if err != nil {
			return nil, fmt.Errorf("store: Config.Spool: %w", err)
		}
		s.spool = counter.NewSpool(disk, s.life.writer, s.spoolReport)
	}
	s.life.run, s.life.cancel = context.WithCancel(context.WithoutCancel(ctx))
	s.notifier = crossing.NewNotifier(s.life.run, s.db, s.cfg.Logger, s.clock.Calendar, cfg.receivers(), len(cfg.Thresholds) > 0)
	tables := fold.NewTables(s.clock, cfg.caps(), crossing.Watch{Thresholds: cfg.watched(), Receivers: s.notifier.Receivers()}, s.notifier.Look)
	s.folder = fold.NewFolder(s.life.run, s.db, s.clock, tables, s.life.writer, s.cfg.Logger)
	s.leader = s.newLeader(quietAfter)
	if !cfg.StartOffline {
		if err := s.start(ctx, false); err != nil {
			return nil, fmt.Errorf("store: New: %w%s", err, database.Advice(err))
		}
	}
	s.live = counter.New(cfg.MaxNames, s.refused, s.spool)
	s.pruner = upkeep.NewPruner(s.life.run, s.db, s.clock, s.notifier, s.cfg.Logger)
	s.outbox = outbox.New(s.life.run, outbox.Config{
		DB: s.db, Clock: s.clock, Live: s.live, Spool: s.spool, Writer: s.life.writer, Interval: s.cfg.Interval, Log: s.cfg.Logger, Sent: s.leader.Arrived, Asleep: s.leader.Asleep,
		Sending: func(err error) { s.report(toSend, err) }, Adopting: func(err error) { s.report(toAdopt, err) },
	})
	return s, nil
}

// quietAfter is for how long after the last count anywhere the database is looked at; with
// the last look, 100 s.
const quietAfter = 75 * time.Second

func (s *Store) newLeader(quiet time.Duration) *fold.Leader {
	return fold.NewLeader(s.folder, s.cfg.Interval, quiet, fold.Events{
		Report: func(err error) { s.report(toFold, err) },
		Folded: func() { s.pruner.Counted() },
		Sleep:  s.notifier.Sleep,
	})
}

// Add counts n, 1 … 2^53−1, under name: see the package comment. It never blocks
// on the database, fails or panics; what it cannot count is in Stats.
func (s *Store) Add(name string, n int64) {
	if s != nil {
		s.live.Add(name, n)
	}
}

// Counter returns Add for one name, in half the time, for those who count under it
// again and again. It may be kept for as long as the store.
func (s *Store) Counter(name string) func(n int64) {
	if s == nil {
		return func(int64) {}
	}
	return s.live.Counter(name)
}

// Inc counts 1 under name.
func (s *Store) Inc(name string) { s.Add(name, 1) }

// refused is told of an Add that does not count: of a derived name, or of a number that
// cannot be. The log has the first of each; of numbers that of tokens alone, where what
// a provider reports may be mapped wrongly.
func (s *Store) refused(name string, n int64) {
	name = strings.Clone(name)             // it may be a caller's buffer
	warn := func(line string, of ...any) { // a request may be waiting
		go s.survives(func() { s.cfg.Logger.Warn(line, of...) })
	}
	switch {
	case 0 < n && n <= counter.Max:
		s.health.derived.Do(func() {
			warn("usagekit: a derived counter cannot be added to; it is computed from user.<id>.requests and api.<route>.…: count those (and a quota is taken by Take)", "name", name)
		})
	case n != 0 && strings.HasPrefix(name, "llm."):
		s.health.odd.Do(func() {
			warn("usagekit: a call of a model has a number of tokens that cannot be, which is left out (below 0 if it came so, or if it is a part of less): is it mapped as the doc of llm.Call says?", "counter", name, "n", n)
		})
	}
}

// SplitName cuts a name into its group (before the first dot), measure (after
// the last dot) and subject (between them, dots included): "user.42.requests"
// is user, 42, requests; "a.b" is a, "", b; "x" is other, "", x.
func SplitName(name string) (group, subject, measure string) { return naming.Split(name) }

// Location returns the zone in which the store's hours, days and months begin: the
// database's. Before a store that started offline knows it: Config.Location, or UTC.
func (s *Store) Location() *time.Location {
	switch {
	case s == nil:
	case s.db.Started():
		return s.clock.Calendar().Zone()
	default:
		return s.clock.Wanted()
	}
	return time.UTC
}

// maxBuckets is how many Buckets lists: hours of eleven years.
const maxBuckets = 100_000

// Buckets returns the starts, in the store's zone (see Location), of the buckets of
// step that [from, to) touches, the oldest first: those that a History of that range
// may have counts of. It returns nil for a step that is none, for a range that is
// empty or open, and for one of more than 100,000 buckets. It does not ask the
// database.
func (s *Store) Buckets(step Step, from, to time.Time) []time.Time {
	if step < Hour || step > Month || from.IsZero() || to.IsZero() {
		return nil
	}
	c, of := calendar.In(s.Location()), calendar.Step(step)
	var starts []time.Time
	for t := c.Start(of, from); from.Before(to) && t.Before(to); t = c.Next(of, t) {
		if len(starts) == maxBuckets {
			return nil
		}
		starts = append(starts, t)
	}
	return starts
}

// Stats returns the store's state. It does not ask the database.
func (s *Store) Stats() Stats {
	if s == nil {
		return Stats{}
	}
	st := Stats{
		Lost:     s.live.Lost(),
		Overflow: s.live.Overflow(),
		Invalid:  s.live.Invalid(),
		Degraded: s.spool.Stuck(),
		Corrupt:  s.spool.Aside(),
	}
	if why := s.live.Degraded(); why != "" {
		st.Degraded = "counts are in memory only: " + why
	}
	if st.Degraded == "" {
		st.Degraded = s.clock.Other()
	}
	loc := s.Location()
	if ms := s.health.through.Load(); ms != 0 {
		st.FoldedThrough = time.UnixMilli(ms).In(loc)
	}
	st.Pending, st.Oldest = s.outbox.Waiting()
	if !st.Oldest.IsZero() {
		st.Oldest = st.Oldest.In(loc)
	}
	if s.db.Started() {
		st.Err = s.clock.Clash()
	}
	if err := s.health.err(); err != nil {
		st.Err = err
	}
	return st
}

// Flush brings all that was added before into the database, folded: Get,
// Totals, Rows and History see it when Flush returns nil. It tries until ctx ends
// or the store has stopped.
func (s *Store) Flush(ctx context.Context) error {
	if s == nil {
		return nil
	}
	seq, err := s.outbox.Deliver(ctx)
	if err == nil {
		err = s.folder.Through(ctx, seq)
	}
	if err != nil {
		return fmt.Errorf("store: flush: %w", err)
	}
	return nil
}

// report keeps what came of an attempt, unless it is the end that made it fail.
func (s *Store) report(of duty, err error) {
	if s.life.run.Err() == nil {
		s.health.report(of, err)
	}
}

// safe says where counts are that do not reach the tables.
func (s *Store) safe() string {
	if s.spool != nil && s.live.Degraded() == "" {
		return "they wait in the spool"
	}
	return "they wait, and nothing is lost while this process lives"
}

// spoolReport logs what happened to a file of the spool. A file that cannot be read
// is at least one count that was dropped.
func (s *Store) spoolReport(lost bool, message string, args ...any) {
	s.cfg.Logger.Error("usagekit: "+message, args...)
	if lost {
		s.live.Add("usagekit.counts.dropped", 1)
	}
}
