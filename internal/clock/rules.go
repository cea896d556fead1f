package clock

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/usagekit/usagekit/internal/calendar"
	"github.com/usagekit/usagekit/internal/database"
)

// A zone's rules are in the image of an instance, and not every instance has the same:
// images carry old ones for a year. So that all begin their buckets at the same times,
// they stand in usage_meta, too: "rules" says which are in force, "rules/<which>" has
// when an instance was seen that has them itself, and what they are. Rules that come
// for the first time are in force from then on; those of before, that an older image
// brings again, when nobody was seen with the others for rulesKept. Each instance that
// counts says once a day that it is there, whoever folds; and a weekend in which nobody
// counts is no reason to think that it is gone.
const (
	// Rules is a column for Follow, of a transaction that only reads.
	Rules     = `COALESCE((SELECT r.value FROM usage_meta r WHERE r.name = 'rules'), '') AS rules`
	rulesKept = 8 * 24 * time.Hour
	rulesAnew = 24 * time.Hour
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
	var found []struct{ Name, Value string }
	err := tx.Select(ctx, &found, `SELECT name, value FROM usage_meta WHERE name IN ('rules', ?) OR name = (SELECT 'rules/' || r.value FROM usage_meta r WHERE r.name = 'rules')`, "rules/"+which)
	if err != nil {
		return err
	}
	has := map[string]string{}
	for _, m := range found {
		has[m.Name] = m.Value
	}
	var seen int64
	_, force, _ := strings.Cut(has["rules/"+has["rules"]], " ")
	_, _ = fmt.Sscan(has["rules/"+has["rules"]], &seen)
	if has["rules"] != which && has["rules"] != "" {
		if theirs, err := calendar.ParseRules(force); err == nil && theirs.String() == own.String() {
			_, known := has["rules/"+which]
			if c.same(own, theirs) || known && tx.Now-seen < rulesKept.Milliseconds() {
				return nil
			}
		}
	}
	for _, m := range [][2]string{{"rules", which}, {"rules/" + which, fmt.Sprintf("%d %s", tx.Now, text)}} {
		if _, err := tx.Exec(ctx, sqlSetMeta, m[0], m[1]); err != nil {
			return err
		}
	}
	return nil
}

// Follow takes over the rules that are in force, when they are not those of before.
func (c *Clock) Follow(ctx context.Context, tx *database.Tx, which string) error {
	if r := c.rules.Load(); which == "" || r != nil && r.which == which {
		return nil
	}
	var value string
	if err := tx.Get(ctx, &value, sqlMeta, "rules/"+which); errors.Is(err, sql.ErrNoRows) {
		return nil // somebody removed it: one's own are as good
	} else if err != nil {
		return err
	}
	_, text, _ := strings.Cut(value, " ")
	r := &rules{which: which}
	zone := c.own
	if calendar.Which(calendar.Rules(zone)) != which {
		theirs, err := calendar.ParseRules(text)
		if err != nil {
			return database.Fault("usage_meta: the zone's rules cannot be read: " + err.Error())
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
	_, err := tx.Exec(ctx, sqlSetMeta, "rules/"+r.which, fmt.Sprintf("%d %s", tx.Now, own))
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
