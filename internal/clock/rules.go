package clock

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/usagekit/usagekit/internal/calendar"
	"github.com/usagekit/usagekit/internal/database"
)

// A zone's rules are in the image of an instance, and not every instance has the same:
// images carry old ones for a year. So that all begin their buckets at the same times,
// they stand in usage_rules, too: which are in force, when an instance was seen that has
// them itself, and what they are. Rules that come
// for the first time are in force from then on; those of before, that an older image
// brings again, when nobody was seen with the others for rulesKept. Each instance that
// counts says once a day that it is there, whoever folds; and a weekend in which nobody
// counts is no reason to think that it is gone.
const (
	// Rules is a column for Follow, of a transaction that only reads.
	Rules        = `COALESCE((SELECT which FROM usage_rules WHERE in_force = 1), '') AS rules`
	sqlKeepRules = `INSERT INTO usage_rules (which, rules, seen, in_force) VALUES (?, ?, ?, 1) ON CONFLICT (which) DO UPDATE SET seen = excluded.seen, in_force = 1`
	rulesKept    = 8 * 24 * time.Hour
	rulesAnew    = 24 * time.Hour
)

// rules are those in force.
type rules struct {
	which    string
	calendar calendar.Calendar
	other    bool // this process has others
}

// settleRules decides, at a start, which rules of the database's zone are in force: own
// are this process's.
func (c *Clock) settleRules(ctx context.Context, tx *database.Tx, own *time.Location) error {
	text := calendar.Rules(own)
	which := calendar.Which(text)
	var found []struct {
		Which, Rules string
		Seen         int64
		InForce      bool `db:"in_force"`
	}
	err := tx.Select(ctx, &found, `SELECT which, rules, seen, in_force = 1 AS in_force FROM usage_rules WHERE in_force = 1 OR which = ?`, which)
	if err != nil {
		return err
	}
	known := false
	for _, r := range found {
		known = known || r.Which == which
	}
	for _, r := range found {
		if !r.InForce || r.Which == which {
			continue
		}
		if theirs, err := calendar.ParseRules(r.Rules); err == nil && theirs.String() == own.String() {
			if c.same(own, theirs) || known && tx.Now-r.Seen < rulesKept.Milliseconds() {
				return nil
			}
		}
	}
	if _, err := tx.Exec(ctx, `UPDATE usage_rules SET in_force = 0 WHERE in_force = 1 AND which <> ?`, which); err != nil {
		return err
	}
	_, err = tx.Exec(ctx, sqlKeepRules, which, text, tx.Now)
	return err
}

// Follow takes over the rules that are in force, when they are not those of before.
func (c *Clock) Follow(ctx context.Context, tx *database.Tx, which string) error {
	if r := c.rules.Load(); which == "" || r != nil && r.which == which {
		return nil
	}
	var text string
	if err := tx.Get(ctx, &text, `SELECT rules FROM usage_rules WHERE which = ?`, which); errors.Is(err, sql.ErrNoRows) {
		return nil // somebody removed it: one's own are as good
	} else if err != nil {
		return err
	}
	r := &rules{which: which}
	zone := c.own
	if calendar.Which(calendar.Rules(zone)) != which {
		theirs, err := calendar.ParseRules(text)
		if err != nil {
			return database.Fault("usage_rules: the zone's rules cannot be read: " + err.Error())
		}
		if r.other = !c.same(zone, theirs); r.other {
			zone = theirs
		}
	}
	r.calendar = calendar.In(zone)
	now, end := time.Now(), time.Unix(calendar.Endless, 0)
	days, month := now.Add(-MinKept), now.AddDate(0, 0, -36) // of which the current month is one
	steps := []Segment{{calendar.Hour, days, end}, {calendar.Day, days, end}, {calendar.Month, month, end}}
	stored, err := Stored(ctx, tx, c.Calendar(), steps)
	if err != nil {
		return err
	}
	var prepared string // what follows may want to read whole tables
	if err := tx.Get(ctx, &prepared, `SELECT {local enable_seqscan on}`); err != nil {
		return err
	}
	for i, list := range stored {
		r.calendar = r.calendar.With(steps[i].Step, list)
	}
	c.rules.Store(r)
	return nil
}

// Keep notes that an instance is there which has the rules in force itself.
func (c *Clock) Keep(ctx context.Context, tx *database.Tx) error {
	r := c.rules.Load()
	if r == nil || r.other {
		return nil
	}
	own := calendar.Rules(c.own)
	if calendar.Which(own) != r.which {
		return nil
	}
	_, err := tx.Exec(ctx, `UPDATE usage_rules SET seen = ? WHERE which = ?`, tx.Now, r.which)
	return err
}

// Due tells whether it is time for Note.
func (c *Clock) Due() bool {
	return time.Since(c.began)-time.Duration(c.noted.Load()) >= rulesAnew
}

// Note is Keep, if that is due. It has a transaction of its own: all instances write the
// same row, and none must wait for what another one waits for.
func (c *Clock) Note(ctx context.Context, db *database.DB) {
	if !c.Due() {
		return
	}
	err := db.Write(ctx, database.WriteTimeout, func(ctx context.Context, tx *database.Tx) error {
		if err := c.Follow(ctx, tx, tx.Rules); err != nil {
			return err
		}
		return c.Keep(ctx, tx)
	})
	if err == nil { // else with the next count
		c.noted.Store(int64(time.Since(c.began)))
	}
}

// Other says that this process has other rules than those in force; "": it has not.
func (c *Clock) Other() string {
	if r := c.rules.Load(); r != nil && r.other {
		return "this process has other rules of the zone " + r.calendar.Zone().String() + " than the database, and counts by the database's: bring its time zones up to date, or the other processes'"
	}
	return ""
}
