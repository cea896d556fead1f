package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/usagekit/usagekit/internal/calendar"
	"github.com/usagekit/usagekit/internal/counter"
	"github.com/usagekit/usagekit/internal/database"
	"github.com/usagekit/usagekit/internal/naming"
)

// Threshold asks for word when a counter reaches Value: each counter whose name begins
// with Prefix and ends in "."+Measure, once per bucket of Step, or once of all time.
// A sum of all routes is a counter like each of them: Prefix "api." and Measure
// "status_5xx" are about api.requests.status_5xx, too, and that Prefix is about it alone.
type Threshold struct {
	Prefix  string
	Measure string // "": any
	Step    Step   // of the buckets that are watched, one that is kept; 0: the total of all time
	Value   int64  // 1 … 2^53−1
}

// Crossing is a counter that has reached a Threshold.
type Crossing struct {
	Name  string
	Step  Step
	Start time.Time // of the bucket, in the store's zone; zero of all time
	Value int64     // the threshold's
	N     int64     // what the counter had reached when it was seen to be past Value
	Time  time.Time // when that was
}

const (
	notifyTimeout = 10 * time.Second // of one Notify
	notifyClaim   = time.Minute      // for which no other instance sends the same word
	notifyLook    = time.Minute      // for what an instance that died has left
	maxNotifyWait = 5 * time.Minute  // after errors
	longestClaim  = maxNotifyWait + notifyTimeout + time.Minute
	notifyPiece   = 100
)

const (
	// crossing/<step>/<bucket>/<at>/<name> is the record. notify/<time>/<the same> says
	// that word is still to be sent: "<until> <tries> <n>", claimed until then.
	sqlCrossed   = `INSERT INTO usage_meta (name, value) %s ON CONFLICT DO NOTHING RETURNING name`
	sqlPend      = `INSERT INTO usage_meta (name, value) %s ON CONFLICT DO NOTHING`
	sqlPending   = `SELECT name, value, %s AS now FROM usage_meta WHERE name > ? AND name < 'notify0' ORDER BY name LIMIT ?`
	sqlClaim     = `UPDATE usage_meta SET value = ? WHERE name = ? AND value = ?`
	sqlUnpending = `DELETE FROM usage_meta WHERE name = ? AND value = ?`
)

func (c Crossing) key() string {
	bucket := int64(0)
	if c.Step != 0 {
		bucket = c.Start.Unix()
	}
	return fmt.Sprintf("%d/%d/%d/%s", c.Step, bucket, c.Value, c.Name)
}

// parseCrossing is the inverse of key.
func (s *Store) parseCrossing(key string) (Crossing, error) {
	parts := strings.SplitN(key, "/", 4)
	if len(parts) < 4 {
		return Crossing{}, database.Fault("usage_meta: " + strconv.Quote(key) + " is no crossing")
	}
	var n [3]int64
	for i := range n {
		var err error
		if n[i], err = strconv.ParseInt(parts[i], 10, 64); err != nil {
			return Crossing{}, database.Fault("usage_meta: " + strconv.Quote(key) + " is no crossing")
		}
	}
	c := Crossing{Step: Step(n[0]), Value: n[2], Name: parts[3]}
	if c.Step >= Hour && c.Step <= Month {
		c.Start = time.Unix(s.calendar().Place(calendar.Step(c.Step), n[1]), 0).In(s.calendar().Zone())
	}
	return c, nil
}

// check returns what is wrong with t; "": nothing.
func (t Threshold) check() string {
	q := Query{Prefix: t.Prefix, Measure: t.Measure}
	users, plain := q.groups()
	switch {
	case t.Value < 1 || t.Value > counter.Max:
		return fmt.Sprintf("Value is %d: want 1 … 2^53−1", t.Value)
	case t.Step < 0 || t.Step > Month:
		return fmt.Sprintf("Step is %d: want Hour, Day or Month, or 0 for all time", t.Step)
	case strings.Contains(t.Measure, "."):
		return fmt.Sprintf("Measure %q: want what stands after a name's last dot", t.Measure)
	case t.Prefix == naming.RequestsToday:
		return "Prefix " + naming.RequestsToday + " is the day of " + naming.RequestsTotal + ": want that, and Step Day"
	case t.Prefix == naming.ActiveDaily && t.Step != Day, t.Prefix == naming.ActiveMonthly && t.Step != Month:
		return "Prefix " + t.Prefix + " is a number of one day or month: want that Step"
	case strings.HasPrefix(t.Prefix, "quota.") && t.Measure != "refused":
		return "Prefix " + t.Prefix + ": quotas have limits of their own; want Measure refused"
	case t.Step == Hour && !plain:
		return "Step hour is not kept for users: want Day, Month or 0"
	case t.Step == Month && !users:
		return "Step month is kept for users alone: want Hour, Day or 0"
	case !utf8.ValidString(t.Prefix + t.Measure):
		return "Prefix or Measure is no valid UTF-8"
	}
	return ""
}

// watched tells whether a threshold is about a row.
func (s *Store) watched(b bucket) bool {
	return slices.ContainsFunc(s.thresholds, func(t Threshold) bool { return t.watches(b) })
}

func (t Threshold) watches(b bucket) bool {
	return t.Step == Step(b.Step) && strings.HasPrefix(b.Key, t.Prefix) && (t.Measure == "" || strings.HasSuffix(b.Key, "."+t.Measure))
}

// crossings appends what r, now at after, has crossed.
func (s *Store) crossings(list []Crossing, r row, after int64) []Crossing {
	for _, t := range s.thresholds {
		if after-r.n < t.Value && t.Value <= after && t.watches(r.bucket) {
			c := Crossing{Name: r.Key, Step: Step(r.Step), Value: t.Value, N: after}
			if c.Step != 0 {
				c.Start = time.Unix(r.Bucket, 0)
			}
			list = append(list, c)
		}
	}
	return list
}

// recordCrossings records what is new of them, and that word is to be sent: with
// what was counted, or not at all. It returns how many those are.
func (s *Store) recordCrossings(ctx context.Context, tx *database.Tx, crossed []Crossing, now time.Time) (int, error) {
	n := 0
	slices.SortFunc(crossed, func(a, b Crossing) int { return strings.Compare(a.key(), b.key()) }) // as every other transaction does
	crossed = slices.CompactFunc(crossed, func(a, b Crossing) bool { return a.key() == b.key() })
	at := fmt.Sprintf("%013d/", now.UnixMilli())
	for list := range slices.Chunk(crossed, chunk) {
		var names, values, words, claims []string
		counts := map[string]int64{}
		for _, c := range list {
			name, value := "crossing/"+c.key(), fmt.Sprintf("%d %d", c.N, now.UnixMilli())
			names, values = append(names, name), append(values, value)
			counts[name] = c.N
		}
		rows, args := s.db.Rows(database.Column{Name: "name", Texts: names}, database.Column{Name: "value", Texts: values})
		var recorded []string
		if err := tx.Select(ctx, &recorded, strings.Replace(sqlCrossed, "%s", rows, 1), args...); err != nil {
			return 0, err
		}
		if len(recorded) == 0 {
			continue
		}
		slices.Sort(recorded)
		for _, name := range recorded {
			words = append(words, "notify/"+at+strings.TrimPrefix(name, "crossing/"))
			claims = append(claims, fmt.Sprintf("0 0 %d", counts[name]))
		}
		if err := tx.ExecRows(ctx, sqlPend, database.Column{Name: "name", Texts: words}, database.Column{Name: "value", Texts: claims}); err != nil {
			return 0, err
		}
		n += len(recorded)
	}
	return n, nil
}

// notifyLoop sends word of what was crossed: soon after a fold of its own, and of what
// others have left.
func (s *Store) notifyLoop() {
	if !s.db.WaitStarted(s.run) {
		return
	}
	for {
		wait, left := s.notifyPending()
		if !left && s.asleep.Load() {
			wait = forGood
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-s.crossed:
		case <-s.run.Done():
			timer.Stop()
			return
		}
		timer.Stop()
	}
}

// notifyPending sends what is due, the oldest first, and returns when to look again, and
// whether something may be left to be sent.
func (s *Store) notifyPending() (wait time.Duration, left bool) {
	wait = notifyLook/2 + rand.N(notifyLook)
	for last := "notify/"; ; {
		var rows []struct {
			Name, Value string
			Now         int64
		}
		err := s.db.Glance(s.run, func(ctx context.Context, tx *database.Tx) error {
			return tx.Select(ctx, &rows, strings.Replace(sqlPending, "%s", s.db.Clock(), 1), last, notifyPiece)
		})
		if err != nil {
			return database.MaxBackoff + rand.N(database.MaxBackoff), true
		}
		read := time.Now()
		for _, r := range rows {
			w, err := s.parseWord(r.Name, r.Value)
			now := r.Now + time.Since(read).Milliseconds()
			switch claimed := time.Duration(possible(w.until, now, longestClaim)-now) * time.Millisecond; {
			case err != nil:
				s.log.Error("usagekit: a crossing cannot be read, and is not told", "name", r.Name, "error", err)
				_ = s.settleWord(sqlUnpending, r.Name, r.Value)
			case claimed > 0:
				wait, left = min(wait, claimed+time.Millisecond), true
			default:
				pause, told, ok := s.notify(w, now)
				if !ok {
					return min(wait, database.MaxBackoff), true
				}
				wait, left = min(wait, pause), left || !told
			}
		}
		if len(rows) < notifyPiece {
			return wait, left
		}
		last = rows[len(rows)-1].Name
	}
}

// word is a crossing that is to be told, as it stands in usage_meta.
type word struct {
	Crossing
	name, value string
	until       int64 // Unix ms
	tries       int
}

func (s *Store) parseWord(name, value string) (w word, err error) {
	at, key, _ := strings.Cut(strings.TrimPrefix(name, "notify/"), "/")
	ms, err := strconv.ParseInt(at, 10, 64)
	if err == nil {
		w.Crossing, err = s.parseCrossing(key)
	}
	if err == nil {
		_, err = fmt.Sscan(value, &w.until, &w.tries, &w.N)
	}
	w.name, w.value, w.Time = name, value, time.UnixMilli(ms).In(s.calendar().Zone())
	return w, err
}

// notify claims a word, tells it, and takes note of how that went: pause is when to
// tell it again, unless it was told. ok is false when nothing can be told now.
func (s *Store) notify(w word, now int64) (pause time.Duration, told, ok bool) {
	if len(s.telling) > 0 { // an earlier call has not returned
		return 0, false, false
	}
	claim := func(d time.Duration) string {
		return fmt.Sprintf("%d %d %d", now+d.Milliseconds(), w.tries+1, w.N)
	}
	start, claimed := time.Now(), claim(notifyClaim)
	switch err := s.settleWord(sqlClaim, claimed, w.name, w.value); {
	case errors.Is(err, errClaimed):
		return notifyClaim, false, true
	case err != nil:
		return 0, false, false
	}
	if err := s.tell(w.Crossing); err != nil {
		if s.run.Err() == nil && !s.untold {
			s.untold = true
			s.log.Warn("usagekit: Config.Notify failed, and is asked again", "name", w.Name, "at", w.Value, "error", err)
		}
		pause = min(time.Second<<min(w.tries, 20), maxNotifyWait)
		_ = s.settleWord(sqlClaim, claim(time.Since(start)+pause), w.name, claimed) // else when the claim ends
		return pause, false, s.run.Err() == nil
	}
	if s.untold {
		s.untold = false
		s.log.Info("usagekit: Config.Notify works again", "name", w.Name)
	}
	return notifyLook, true, s.settleWord(sqlUnpending, w.name, claimed) == nil
}

// errClaimed says that another instance tells it.
const errClaimed = database.Fault("store: another instance has claimed the crossing")

func (s *Store) settleWord(query string, args ...string) error {
	return s.db.Write(s.run, database.WriteTimeout, func(ctx context.Context, tx *database.Tx) error {
		if err := tx.Begin(ctx); err != nil {
			return err
		}
		values := make([]any, len(args))
		for i, a := range args {
			values[i] = a
		}
		n, err := tx.Exec(ctx, query, values...)
		if err == nil && n == 0 {
			err = errClaimed
		}
		return err
	})
}

// tell calls Config.Notify, outside of any transaction. One that does not return in
// time is left behind, and until it returns no other is called.
func (s *Store) tell(c Crossing) error {
	ctx, cancel := context.WithTimeout(s.run, notifyTimeout)
	defer cancel()
	s.telling <- struct{}{}
	done := make(chan error, 1)
	go func() {
		err := errors.New("it ended its goroutine")
		defer func() {
			<-s.telling
			done <- err
		}()
		err = database.Guarded(func() error { return s.notifier(ctx, c) })
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// logCrossing is Config.Notify where there is none.
func (s *Store) logCrossing(_ context.Context, c Crossing) error {
	args := []any{"name", c.Name, "at", c.Value, "n", c.N}
	if c.Step != 0 {
		args = append(args, c.Step.String(), c.Start)
	}
	s.log.Warn("usagekit: a threshold was crossed", args...)
	return nil
}
