package crossing

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"

	"github.com/usagekit/usagekit/internal/calendar"
	"github.com/usagekit/usagekit/internal/clock"
	"github.com/usagekit/usagekit/internal/database"
)

const (
	tellTimeout  = 10 * time.Second // of one call of a receiver
	claimTime    = time.Minute      // for which no other instance sends the same word
	lookEvery    = time.Minute      // for what an instance that died has left
	maxPause     = 5 * time.Minute  // after errors
	longestClaim = maxPause + tellTimeout + time.Minute
	unclaimed    = 7 * 24 * time.Hour // after which a receiver is gone that no instance has
	piece        = 100                // words that are read at a time
)

// forGood is a wait that does not end.
const forGood = time.Duration(math.MaxInt64)

// Receiver is told of a crossing. An error has it told again.
type Receiver func(context.Context, Crossing) error

// Notifier tells the receivers of an instance what was crossed.
type Notifier struct {
	run      context.Context
	db       *database.DB
	log      *slog.Logger
	calendar func() calendar.Calendar
	tellers  []*teller
	names    []string    // of the receivers; none: crossings are but logged
	asleep   atomic.Bool // nothing is looked for
}

// NewNotifier returns one that tells until run ends. Where there are no receivers, and
// logs, each crossing is a line in the log.
func NewNotifier(run context.Context, db *database.DB, log *slog.Logger, cal func() calendar.Calendar, receivers map[string]Receiver, logs bool) *Notifier {
	n := &Notifier{run: run, db: db, log: log, calendar: cal, names: slices.Sorted(maps.Keys(receivers))}
	for _, name := range n.names {
		n.add(name, receivers[name])
	}
	if logs && len(receivers) == 0 {
		n.add("", n.logCrossing)
	}
	return n
}

func (n *Notifier) add(name string, tell Receiver) {
	n.tellers = append(n.tellers, &teller{n: n, name: name, tell: tell, wake: make(chan struct{}, 1), busy: make(chan struct{}, 1)})
}

// Receivers are the names of those that words are to be left for: see Watch.
func (n *Notifier) Receivers() []string { return n.names }

// Loops tell, one for each receiver; they end with run.
func (n *Notifier) Loops() []func() {
	var loops []func()
	for _, t := range n.tellers {
		loops = append(loops, t.loop)
	}
	return loops
}

// Look has all loops look for what is to be told, soon: something may have been crossed.
func (n *Notifier) Look() {
	for _, t := range n.tellers {
		t.signal()
	}
}

// Sleep has them look once more, and then no longer unless something is left to be told,
// or Look calls for it; or, with false, as before.
func (n *Notifier) Sleep(asleep bool) {
	n.asleep.Store(asleep)
	n.Look()
}

// DropUnclaimed removes words that nobody has claimed for a week, whose receivers this
// instance lacks as well; now is a time that is believed.
func (n *Notifier) DropUnclaimed(ctx context.Context, now time.Time) error {
	for after, more := (word{}), true; more; {
		dropped := map[string][]word{}
		err := n.db.Write(ctx, database.WriteTimeout, func(ctx context.Context, tx *database.Tx) error {
			list, err := allWords(ctx, tx, after, page)
			if err != nil {
				return err
			}
			if more = len(list) == page; more {
				after = list[page-1]
			}
			for _, w := range list {
				last := time.UnixMilli(max(w.Time, clock.Possible(w.Claimed, now.UnixMilli(), longestClaim)))
				if w.Receiver == "" && len(n.tellers) > 0 || slices.Contains(n.names, w.Receiver) || now.Sub(last) < unclaimed {
					continue
				}
				switch err := w.settle(ctx, tx); err {
				case nil:
					dropped[w.Receiver] = append(dropped[w.Receiver], w)
				case errClaimed:
				default:
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		for receiver, list := range dropped {
			n.log.Warn("usagekit: crossings are told to nobody: for a week no instance has had their receiver", "receiver", receiver, "crossings", len(list), "one of", list[0].Key)
		}
	}
	return nil
}

// teller tells one receiver.
type teller struct {
	n       *Notifier
	name    string // "": all
	tell    Receiver
	wake    chan struct{} // something may be told
	busy    chan struct{} // has a token while tell runs
	failing bool          // it failed last
}

func (t *teller) signal() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// loop sends word of what was crossed: soon after a fold of this instance, and of what
// others have left.
func (t *teller) loop() {
	if !t.n.db.WaitStarted(t.n.run) {
		return
	}
	for {
		wait, left := t.look()
		if !left && t.n.asleep.Load() {
			wait = forGood
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-t.wake:
		case <-t.n.run.Done():
			timer.Stop()
			return
		}
		timer.Stop()
	}
}

// look sends what is due, the oldest first, and returns when to look again, and whether
// something may be left to be sent.
func (t *teller) look() (wait time.Duration, left bool) {
	wait = lookEvery/2 + rand.N(lookEvery)
	for after := (word{}); ; {
		var all, own []word
		err := t.n.db.Glance(t.n.run, func(ctx context.Context, tx *database.Tx) (err error) {
			if t.name != "" {
				if all, err = words(ctx, tx, "", word{}, piece); err != nil {
					return err
				}
			}
			own, err = words(ctx, tx, t.name, after, piece)
			return err
		})
		if err != nil {
			return database.MaxBackoff + rand.N(database.MaxBackoff), true
		}
		read := time.Now()
		shared, claimed, err := t.n.share(all)
		switch {
		case err != nil:
			wait, left = min(wait, database.MaxBackoff), true
		case shared: // and some of them are one's own
			after = word{}
			continue
		case claimed > 0:
			wait, left = min(wait, claimed), true
		}
		for _, w := range own {
			w.Now += time.Since(read).Milliseconds()
			switch claimed := w.claimed(); {
			case claimed > 0:
				wait, left = min(wait, claimed+time.Millisecond), true
			default:
				pause, told, ok := t.notify(w)
				if !ok {
					return min(wait, database.MaxBackoff), true
				}
				wait, left = min(wait, pause), left || !told
			}
		}
		if len(own) < piece {
			return wait, left
		}
		after = own[len(own)-1]
	}
}

// claimed is for how long somebody else has the word.
func (w word) claimed() time.Duration {
	return time.Duration(clock.Possible(w.Claimed, w.Now, longestClaim)-w.Now) * time.Millisecond
}

// share shares out the words that are to all, and wakes those that they are to now; claimed
// is when the first of the others is free.
func (n *Notifier) share(all []word) (shared bool, claimed time.Duration, err error) {
	var free []word
	for _, w := range all {
		switch left := w.claimed(); {
		case left <= 0:
			free = append(free, w)
		case claimed == 0 || left < claimed:
			claimed = left
		}
	}
	if len(free) == 0 {
		return false, claimed, nil
	}
	some := false
	err = n.db.Write(n.run, database.WriteTimeout, func(ctx context.Context, tx *database.Tx) error {
		count, err := share(ctx, tx, free, n.names)
		some = count > 0
		return err
	})
	if err != nil {
		return false, claimed, err
	}
	n.Look()
	return some, claimed, nil
}

// notify claims a word, tells it, and takes note of how that went: pause is when to tell
// it again, unless it was told. ok is false when nothing can be told now.
func (t *teller) notify(w word) (pause time.Duration, told, ok bool) {
	if len(t.busy) > 0 { // an earlier call has not returned
		return 0, false, false
	}
	start, before := time.Now(), w.Tries
	claim := func(d time.Duration) error {
		return t.n.write(func(ctx context.Context, tx *database.Tx) error {
			return w.claim(ctx, tx, w.Now+d.Milliseconds(), before+1)
		})
	}
	switch err := claim(claimTime); {
	case errors.Is(err, errClaimed):
		return claimTime, false, true
	case err != nil:
		return 0, false, false
	}
	if err := t.call(w.crossing(t.n.calendar())); err != nil {
		if t.n.run.Err() == nil && !t.failing {
			t.failing = true
			t.n.log.Warn("usagekit: Config.Notify failed, and is asked again", "receiver", t.name, "name", w.Key, "at", w.Value, "error", err)
		}
		pause = min(time.Second<<min(before, 20), maxPause)
		_ = claim(time.Since(start) + pause) // else when the claim ends
		return pause, false, t.n.run.Err() == nil
	}
	if t.failing {
		t.failing = false
		t.n.log.Info("usagekit: Config.Notify works again", "receiver", t.name, "name", w.Key)
	}
	return lookEvery, true, t.n.write(w.settle) == nil
}

func (n *Notifier) write(f func(context.Context, *database.Tx) error) error {
	return n.db.Write(n.run, database.WriteTimeout, f)
}

// call calls the receiver, outside of any transaction. One that does not return in time is
// left behind, and until it returns it is not called again.
func (t *teller) call(c Crossing) error {
	ctx, cancel := context.WithTimeout(t.n.run, tellTimeout)
	defer cancel()
	t.busy <- struct{}{}
	done := make(chan error, 1)
	go func() {
		err := errors.New("it ended its goroutine")
		defer func() {
			<-t.busy
			done <- err
		}()
		err = database.Guarded(func() error { return t.tell(ctx, c) })
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// logCrossing is the receiver where there is none.
func (n *Notifier) logCrossing(_ context.Context, c Crossing) error {
	args := []any{"name", c.Name, "at", c.Value, "n", c.N}
	if c.Step != 0 {
		args = append(args, c.Step.String(), c.Start)
	}
	n.log.Warn("usagekit: a threshold was crossed", args...)
	return nil
}
