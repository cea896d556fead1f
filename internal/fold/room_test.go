package fold

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/usagekit/usagekit/internal/calendar"
	"github.com/usagekit/usagekit/internal/clock"
	"github.com/usagekit/usagekit/internal/database"
	"github.com/usagekit/usagekit/internal/dbtest"
)

// roomOf is an instance of one budget, "feature", whose subjects all have a place.
type roomOf struct {
	*testing.T
	s    *instance
	next *subjects
}

func newRoom(t *testing.T, places int) *roomOf { return newRoomOf(t, places, kept400()) }

func newRoomOf(t *testing.T, places int, kept clock.Kept) *roomOf {
	t.Helper()
	if dbtest.Race() {
		t.Skip("one goroutine, on SQLite: the race detector has nothing to see, and takes ten times as long")
	}
	r := &roomOf{t, instanceOf(t, pools(t, "sqlite")(), kept, map[string]int{"feature": places}), &subjects{known: map[string]bool{}, count: map[string]int{}, other: map[string]int{}, round: map[string]lookup{}}}
	for i := range places {
		r.next.add("feature", r.subject(i))
	}
	return r
}

func (r *roomOf) subject(i int) string { return fmt.Sprintf("feature.s%04d.", i) }

// counted has a name have a count so many days ago.
func (r *roomOf) counted(name string, ago int) {
	r.Helper()
	day := r.s.Tables.clock.Calendar().Start(calendar.Day, time.Now().AddDate(0, 0, -ago)).Unix()
	r.s.execute(r.T, `INSERT INTO usage_history (step, bucket, key, value) VALUES (2, ?, ?, 1)`, day, name)
}

// look looks for idle ones, by a database whose clock is off, and returns how many are gone.
func (r *roomOf) look(off time.Duration) (gone int) {
	r.Helper()
	before := len(r.next.known)
	err := r.s.db.Write(r.Context(), time.Minute, func(ctx context.Context, tx *database.Tx) error {
		sums := r.s.Tables.newSums(time.Now().Add(off), clock.Removal{Last: time.Now().UnixMilli()})
		sums.horizon = r.s.Tables.clock.Horizon(time.Now())
		return r.s.Tables.caps.makeRoom(ctx, tx, sums, r.next, "feature")
	})
	if err != nil {
		r.Fatal(err)
	}
	if n := r.next.count["feature"]; n != len(r.next.known) {
		r.Errorf("%d have a place, and %d are known", n, len(r.next.known))
	}
	return before - len(r.next.known)
}

// Nothing is idle on the word of one clock, nor where history cannot tell: on two other
// days of the month at least something was counted, by clocks that agree.
func TestIdleSubjectsHaveWitnesses(t *testing.T) {
	for name, c := range map[string]struct {
		days  []int // ago, with counts
		off   time.Duration
		daily time.Duration // that history is kept
		gone  int
	}{
		"no day with counts":        {nil, 0, 0, 0},
		"today alone":               {[]int{0}, 0, 0, 0},
		"one day":                   {[]int{0, 1}, 0, 0, 0},
		"two days":                  {[]int{1, 2}, 0, 0, 3},
		"two days, too long ago":    {[]int{40, 41}, 0, 0, 0},
		"clocks that differ":        {[]int{1, 2}, clock.MaxSkew + time.Hour, 0, 0},
		"history of a fortnight":    {[]int{1, 2}, 0, 14 * 24 * time.Hour, 0},
		"history of a month, a day": {[]int{1, 2}, 0, idleAfter + 24*time.Hour, 3},
	} {
		t.Run(name, func(t *testing.T) {
			kept := kept400()
			if c.daily > 0 {
				kept.Days = c.daily
			}
			r := newRoomOf(t, 3, kept)
			for _, ago := range c.days {
				r.counted("user.registrations", ago)
			}
			if gone := r.look(c.off); gone != c.gone {
				t.Errorf("%d gave their place, want %d", gone, c.gone)
			}
		})
	}
}

// Any of a subject's measures keeps its place, today's, too.
func TestWhatWasCountedKeepsItsPlace(t *testing.T) {
	r := newRoom(t, 4)
	r.counted("user.registrations", 3)
	r.counted("feature.s0000.zzz", 20)
	r.counted("feature.s0001.used", 0)
	r.counted("feature.s00020.used", 1) // another one's, whose name begins so
	r.look(0)
	if got, want := slices.Sorted(maps.Keys(r.next.known)), []string{r.subject(0), r.subject(1)}; !slices.Equal(got, want) {
		t.Errorf("%q have a place, want %q", got, want)
	}
}

// A fold looks through so many, and the next one through those after them, all of them
// once in an hour: one that is idle is found, wherever it is.
func TestIdleSubjectsAreLookedForInRounds(t *testing.T) {
	const all = 2*idleChunk*idleChunks + 1
	r := newRoom(t, all)
	for i := range all - 1 {
		r.counted(r.subject(i)+"used", 1+i%2)
	}
	for fold, want := range []int{0, 0, 1, 0} {
		if gone := r.look(0); gone != want {
			t.Errorf("fold %d: %d gave their place, want %d", fold, gone, want)
		}
	}
	r.next.add("feature", r.subject(0)+"new.") // idle, and all were looked at just now
	if gone := r.look(0); gone != 0 {
		t.Errorf("%d gave their place within the hour", gone)
	}
	round := r.next.round["feature"]
	round.again = time.Now() // an hour later the next round begins with the first one
	r.next.round["feature"] = round
	if gone := r.look(0); gone != 1 {
		t.Errorf("%d gave their place after the hour, want 1", gone)
	}
	r.next.add("feature", r.subject(0)+"new.")
	for _, again := range []time.Duration{0, 2 * idleAgain} { // it is time, or a clock was ahead
		r.next.round["feature"] = lookup{again: time.Now().Add(again)}
		for range 3 {
			r.look(0)
		}
		if n := r.next.count["feature"]; n != all-1 {
			t.Errorf("%d have a place, want %d", n, all-1)
		}
		r.next.add("feature", r.subject(0)+"new.")
	}
}

// It ends with the first piece that has made room.
func TestIdleSubjectsGiveNoMoreRoomThanIsWanted(t *testing.T) {
	r := newRoom(t, 3*idleChunk)
	r.counted("user.registrations", 1)
	r.counted("user.registrations", 2)
	if gone := r.look(0); gone != idleChunk {
		t.Errorf("%d gave their place, want those of a piece, %d", gone, idleChunk)
	}
}

// A fold looks through so many, however many there are that want room.
func TestIdleSubjectsAreLookedForOnceInAFold(t *testing.T) {
	const all = idleChunk*idleChunks + 1
	r := newRoom(t, all)
	for i := range all {
		r.counted(r.subject(i)+"used", 1+i%2)
	}
	r.s.Tables.caps.known.Store(r.next)
	var round lookup
	err := r.s.db.Write(t.Context(), time.Minute, func(ctx context.Context, tx *database.Tx) error {
		now := time.Now()
		sums := r.s.Tables.newSums(now, clock.Removal{Last: now.UnixMilli()})
		for i := range 3 {
			sums.add(now.UnixMilli(), fmt.Sprintf("feature.new%d.used", i), 1)
		}
		err := r.s.Tables.caps.move(ctx, tx, sums)
		round = sums.subjects.round["feature"]
		return err
	})
	if want := r.subject(idleChunk*idleChunks - 1); err != nil || round.last != want {
		t.Errorf("it looked through those up to %q, %v; want %q", round.last, err, want)
	}
}

// A fold of names that are known asks nothing about them, and one of a new name once; nor
// does an instance ask again that another one has found more, where it knows what it needs.
func TestAFoldOfKnownNamesAsksNothing(t *testing.T) {
	s := instanceOf(t, pools(t, "sqlite")(), kept400(), map[string]int{"feature": 10})
	asked := 0
	s.db.Edit = func(q string) string {
		if strings.Contains(q, "'subjects'") {
			asked++
		}
		return q
	}
	for i, names := range [][]string{{"feature.a.used"}, {"feature.a.used", "feature.a.seen"}, {"feature.b.used"}, {"feature.a.used", "feature.b.used", "user.7.requests"}} {
		s.arrives(t, "w", i+1, names...)
		if _, err := s.Fold(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		if want := []int{1, 1, 2, 2}[i]; asked != want {
			t.Errorf("after fold %d it has asked %d times, want %d", i+1, asked, want)
		}
	}
}
