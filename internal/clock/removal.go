package clock

import (
	"context"
	"fmt"
	"time"

	"github.com/usagekit/usagekit/internal/database"
)

const (
	maxGap    = 2 * 24 * time.Hour       // between two removals, beyond which the clock is doubted, unless somebody saw it go on
	doubtTime = 7 * 24 * time.Hour       // after which it is believed
	doubtGap  = doubtTime + 24*time.Hour // between two looks at it meanwhile;
	doubtGaps = 3                        // longer ones, after which it is believed as well
)

// Removal is as of when history was removed last; and of a clock that is far from it,
// from what time on it has said so, and until, and how often it had gone on before that
// without being looked at. Unix milliseconds; 0: never, none.
//
// It stands in usage_removal. A clock that jumps takes what is stored along only where
// that was written after the jump: this is what was written before.
type Removal struct{ Last, Doubted, Seen, Gaps int64 }

// RemovalOf is what a transaction that writes knows of it: none where that was removed,
// which doubts every clock.
func RemovalOf(tx *database.Tx) Removal { return Removal{tx.Removed, tx.Doubted, tx.Seen, tx.Gaps} }

const sqlSetRemoval = `INSERT INTO usage_removal (one, last, doubted, seen, gaps) VALUES (1, ?, ?, ?, ?)
ON CONFLICT (one) DO UPDATE SET last = excluded.last, doubted = excluded.doubted, seen = excluded.seen, gaps = excluded.gaps`

func (r Removal) set(ctx context.Context, tx *database.Tx) error {
	_, err := tx.Exec(ctx, sqlSetRemoval, r.Last, r.Doubted, r.Seen, r.Gaps)
	return err
}

// at returns what r becomes when a clock says now. steady tells that somebody has seen
// it go on until then as time did, jumped that it has not.
func (r Removal) at(now int64, steady, jumped bool) Removal {
	near := func(a, b int64, gap time.Duration) bool { return max(a-b, b-a) <= gap.Milliseconds() }
	switch {
	case steady, near(r.Last, now, maxGap):
		return Removal{Last: now}
	case r.Doubted == 0 || now < r.Seen:
		return Removal{r.Last, now, now, 0}
	case jumped || !near(r.Seen, now, doubtGap):
		if r.Gaps+1 >= doubtGaps {
			return Removal{Last: now}
		}
		return Removal{r.Last, now, now, r.Gaps + 1}
	case now-r.Doubted >= doubtTime.Milliseconds():
		return Removal{Last: now}
	}
	return Removal{r.Last, r.Doubted, now, r.Gaps}
}

// Before is the earlier of now and of when history was removed last: what is too old by
// that is gone, and must not come back; what is not may be there still.
func (r Removal) Before(now time.Time) time.Time { return time.UnixMilli(min(now.UnixMilli(), r.Last)) }

// Since is the later of both: what must be kept for some time is kept from then on.
func (r Removal) Since(now int64) int64 { return max(now, r.Last) }

// Asked is what the database's clock said, when that was by ours, which does not jump,
// and since when, by the former, both have gone on alike; the zero time where it was
// believed then. Since the start.
type Asked struct{ Said, At, Since time.Time }

// next returns what comes of it when the clock says now, and by how much it has jumped.
func (was Asked) next(now time.Time) (Asked, time.Duration) {
	is := Asked{now, time.Now(), was.Since}
	jump := now.Sub(was.Said) - is.At.Sub(was.At)
	if was == (Asked{}) {
		is.Since, jump = now, 0
	} else if jump.Abs() > MaxSkew {
		is.Since = now
	}
	return is, jump
}

// steady tells whether it went on for so long that it is right.
func (a Asked) steady() bool { return a.Since.IsZero() || a.Said.Sub(a.Since) >= doubtTime }

// Believe asks the database's clock, and notes what it says as a removal that is about to be
// made. It is an error that says why while the clock is doubted: nothing may be removed then.
func (c *Clock) Believe(ctx context.Context, db *database.DB) (time.Time, error) {
	var done struct { // by an attempt that may outlast this call
		asked Asked
		r     Removal
	}
	was := c.Asked
	err := db.Write(ctx, database.WriteTimeout, func(ctx context.Context, tx *database.Tx) error {
		now := time.UnixMilli(tx.Now)
		if skew := time.Since(now); skew.Abs() > MaxSkew {
			return database.Fault("the database's clock differs from this host's by " + skew.Round(time.Second).String() + ": nothing is removed until one of them is set right")
		}
		is, jump := was.next(now)
		r := RemovalOf(tx).at(tx.Now, is.steady(), jump.Abs() > maxGap) // less is what a suspended host makes
		err := r.set(ctx, tx)
		if r.Doubted == 0 {
			is.Since = time.Time{}
		}
		done.asked, done.r = is, r
		return err
	})
	if err != nil {
		return time.Time{}, err
	}
	c.Asked = done.asked
	now := c.Asked.Said
	if last := time.UnixMilli(done.r.Last); last.Before(now) && done.r.Doubted != 0 {
		return time.Time{}, database.Fault(fmt.Sprintf("the clocks say %s, and history was removed last as of %s, so there was a long pause, or they are wrong: nothing is removed until they have said so for %d days; set them right if they are wrong",
			now.UTC().Format(time.DateTime), last.UTC().Format(time.DateTime), doubtTime/(24*time.Hour)))
	}
	return now, nil
}
