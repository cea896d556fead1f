// Package clock is the database's time: its zone, and by which rules of it hours, days and
// months begin (rules.go); whether what its clock says may be believed when something is to
// be removed for its age (removal.go); and which buckets of history there are (stored.go).
//
// Several processes count in one database, and none of them decides such a thing alone: a
// host's clock may be wrong, and its zones may be old. So all of it stands in tables,
// and each transaction that has to do with time reads it anew: see Follow.
package clock

import (
	"context"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/usagekit/usagekit/internal/calendar"
	"github.com/usagekit/usagekit/internal/database"
)

const (
	sqlSettle = `SELECT (SELECT value FROM usage_meta WHERE name = 'zone') AS zone, COALESCE((SELECT value FROM usage_meta WHERE name = 'folded'), '') AS folded,
EXISTS (SELECT 1 FROM usage_removal) AS removal`
)

// MaxSkew is how much the database's clock may differ from this host's before neither is
// believed about what is old.
const MaxSkew = time.Hour

// SeenAnew is after how long a writer that sends says that it is there.
const SeenAnew = 24 * time.Hour

// MinKept is the least that history is kept for: a batch waits over a weekend.
const MinKept = 4 * 24 * time.Hour

// Kept is how long history is kept: hours, days, and days of users; negative: for ever.
type Kept struct{ Hours, Days, Users time.Duration }

// Clock is that of one database, as one process sees it.
type Clock struct {
	kept   Kept
	wanted *time.Location // nil: the database's, whichever that is
	began  time.Time

	own   *time.Location // the database's zone, by this process's rules; known once settled
	clash error          // the database has another zone than is wanted
	rules atomic.Pointer[rules]
	noted atomic.Int64 // since began, when this instance was noted as one of its rules

	// Asked is what the database's clock said when Believe asked it last.
	Asked Asked
}

// New returns the clock of a database in which hours, days and months begin as a zone has
// it; nil: as it is in the database, or in UTC where that is new.
func New(wanted *time.Location, kept Kept) *Clock {
	c := &Clock{wanted: wanted, kept: kept, began: time.Now()}
	c.own = c.Wanted()
	return c
}

// Settle finds the database's zone, which the first start sets, which rules of it are in
// force, and whether its clock is right, as far as can be known. It is the first of a
// start; what it returns is called when that is certain.
func (c *Clock) Settle(ctx context.Context, tx *database.Tx) (settled func(), err error) {
	if err := tx.NewMeta(ctx, "zone", c.Wanted().String()); err != nil {
		return nil, err
	}
	var has struct {
		Zone, Folded string
		Removal      bool
	}
	if err := tx.Get(ctx, &has, sqlSettle); err != nil {
		return nil, err
	}
	removal := RemovalOf(tx)
	if !has.Removal {
		removal = Removal{Last: tx.Now} // nothing was removed yet; or by a release that did not note it, and folded
		if folded, err := strconv.ParseInt(has.Folded, 10, 64); err == nil {
			removal.Last = min(tx.Now, folded)
		}
		if err := removal.set(ctx, tx); err != nil {
			return nil, err
		}
	}
	own, err := time.LoadLocation(has.Zone)
	if err != nil {
		return nil, database.Fault(fmt.Sprintf("the database's zone: %v: import _ \"time/tzdata\" where the system has no zones", err))
	}
	if c.wanted != nil && c.wanted.String() == own.String() {
		own = c.wanted // which may have other rules than the system's
	}
	asked, _ := Asked{}.next(time.UnixMilli(tx.Now))
	if removal.at(tx.Now, false, false).Doubted == 0 {
		asked.Since = time.Time{}
	}
	if err := c.settleRules(ctx, tx, own); err != nil {
		return nil, err
	}
	return func() {
		c.own, c.Asked = own, asked
		if c.wanted != nil && c.wanted.String() != own.String() && !c.same(c.wanted, own) {
			c.clash = database.Fault(fmt.Sprintf("Config.Location is %s, but this database counts hours and days in %s: leave Config.Location nil, or use a database of its own", c.wanted, own))
		}
	}, nil
}

// Clash is an error when the zone that is wanted begins its hours and days at other times
// than the database's, which is the one that counts.
func (c *Clock) Clash() error { return c.clash }

// Wanted is the zone that is asked for, or UTC: what holds until the database is known.
func (c *Clock) Wanted() *time.Location {
	if c.wanted == nil {
		return time.UTC
	}
	return c.wanted
}

// Calendar is that of the database's zone, by the rules in force; once settled.
func (c *Clock) Calendar() calendar.Calendar {
	if r := c.rules.Load(); r != nil {
		return r.calendar
	}
	return calendar.In(c.own)
}

// Kept is how long history is kept.
func (c *Clock) Kept() Kept { return c.kept }

// Horizon is what is kept at a time.
func (c *Clock) Horizon(now time.Time) calendar.Horizon {
	return c.Calendar().Horizon(now, c.kept.Hours, c.kept.Days, c.kept.Users)
}

// Now is the database's time in a transaction that writes, and as of when history was
// removed last. It follows the rules of the zone that are in force.
func (c *Clock) Now(ctx context.Context, tx *database.Tx) (time.Time, Removal, error) {
	return time.UnixMilli(tx.Now), RemovalOf(tx), c.Follow(ctx, tx, tx.Rules)
}

// same tells whether two zones are one for what is kept, and for a year to come.
func (c *Clock) same(a, b *time.Location) bool {
	now := time.Now()
	var from time.Time
	if c.kept.Days > 0 {
		from = now.Add(-c.kept.Days)
	}
	return calendar.Same(a, b, from, now.AddDate(1, 0, 0))
}

// Possible is a stored time that something lasts until, and 0 where that cannot be,
// because nothing lasts for that long: the clock was ahead when it was stored.
func Possible(until, now int64, longest time.Duration) int64 {
	if until-now > longest.Milliseconds() {
		return 0
	}
	return until
}
