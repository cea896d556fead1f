package store

import (
	"cmp"
	"context"
	"fmt"
	"github.com/usagekit/usagekit/internal/clock"
	"log/slog"
	"strings"
	"time"
	"unicode/utf8"
)

// Config configures a Store. The zero Config is ready to use.
type Config struct {
	// Spool is a directory for counts that the database does not have yet, made
	// with mode 0700 if need be: they outlive the process there, and the next
	// start, or another running process, sends them. Processes may share it, as
	// long as they have one database; a clone of a whole disk must not be started
	// beside the original. It must be on ext4, xfs or tmpfs, or an overlay on one of
	// them, as the root of a container is (macOS: apfs, hfs): package store says what
	// outlives what there.
	// A path that is no directory, or that the process may not write to, is an
	// error of New; where writing fails later, counts stay in memory and
	// Stats.Degraded says why. Other systems than Linux and macOS have no spool.
	// What others keep in it stays as it is, and is said once in the log. What is
	// sent for the first time counts however old it is; what a process that had sent
	// before left there for more than 60 days counts as long as the database knows
	// that process, which it does for 90 days from when it saw it last, at least. After
	// that, whether it was counted cannot be told, and it is set aside as *.corrupt
	// (100 files are kept) and counted in usagekit.counts.dropped.
	// "": counts are in memory only.
	Spool string

	// Location decides where hours, days and months begin. nil: the zone that
	// the database already has, UTC when it is new. A zone in which they begin at
	// other times than in the database's, as far back as Retention.Daily and for a
	// year to come, is an error, as is one that time.LoadLocation does not know; one
	// of another name in which they do not is the same.
	Location *time.Location

	// Schema has the tables; PostgreSQL only, and it must exist. "": where the search
	// path leads when the store starts, to usagekit's tables or, where there are none,
	// to the schema that new tables are made in; later changes of the path, and
	// temporary tables, do not matter.
	//
	// What has the name of one of usagekit's tables or views and is not its own is an
	// error of New, and is left as it is. One is taken over: a table usage_metrics of
	// nothing but key, unique texts, and value, whole numbers in 0 … 2^53−1.
	Schema string

	// Interval is the time between flushes, and between folds. 0: 1 s.
	Interval time.Duration

	// MaxNames is how many new names a group may get in one generation (one
	// Interval, while the database answers). What is beyond counts under the
	// subject "(other)", so sums stay right. Routes and areas do not count together.
	// 0: 100,000.
	MaxNames int

	// StartOffline has New return at once, whether the database answers or not.
	// Counting starts, tables are made when the database comes, and until then
	// reads answer ErrUnavailable. If its zone is not Location, this store counts
	// by the database's, as all that count there do, and Stats.Err says so; AddNow and
	// Take, which answer by a zone at once, refuse.
	StartOffline bool

	// Logger gets a line per change of state, never one per request or per
	// failed attempt. nil: slog.Default().
	Logger *slog.Logger

	// Retention is how long hours and days are kept; see there.
	Retention Retention

	// Caps are how many subjects a group may have in the database, over all instances;
	// 0: any number. What is new beyond a cap counts under the subject "(other)", so
	// sums stay right; what is there already counts on. A subject that was not counted
	// for a month gives its place to a new one, and keeps its total. Measures are not
	// limited, but for (other)'s: 64, beside those that are summed over all routes. Of
	// "api" routes and areas have as many places each. nil: api 5,000, feature 10,000,
	// llm 1,000, error 1,000; a group that is not named has none.
	Caps map[string]int

	// Thresholds are watched by the fold: of the instance that folds, its own list
	// decides. Each crossing is recorded once, with the counts that made it.
	Thresholds []Threshold

	// Notify has the receivers of crossings, each under a name of its own, such as "mail".
	// Each is told of every crossing, at least once: again after an error, a panic or 10 s,
	// and after the process that was telling it is gone; whatever becomes of the others. It
	// is called outside of any transaction, for one crossing at a time. nil or empty: a line
	// in the log, with the counter's name.
	//
	// What is still to be told is kept in the database, by the names of the receivers of the
	// instance that folds: one that lacks a receiver leaves it to those that have it. So a
	// name stays when its function changes. What is for a receiver that no instance has had
	// for a week is dropped, with a line in the log. What an earlier release, or an instance
	// without receivers, has left to be told goes to all receivers of the instance that
	// finds it.
	Notify map[string]func(context.Context, Crossing) error
}

// caps are those of c, or the default ones.
func (c Config) caps() map[string]int {
	if c.Caps == nil {
		return map[string]int{"api": 5_000, "feature": 10_000, "llm": 1_000, "error": 1_000}
	}
	return c.Caps
}

func (c Config) check() error {
	if c.Interval < 0 {
		return fmt.Errorf("store: Config.Interval is %v: want a positive duration, or 0 for 1 s", c.Interval)
	}
	if c.MaxNames < 0 {
		return fmt.Errorf("store: Config.MaxNames is %d: want a positive number, or 0 for 100,000", c.MaxNames)
	}
	for i, t := range c.Thresholds {
		if wrong := t.watched().Check(); wrong != "" {
			return fmt.Errorf("store: Config.Thresholds[%d].%s", i, wrong)
		}
	}
	for name, notify := range c.Notify {
		if name == "" || len(name) > 64 || !utf8.ValidString(name) || strings.ContainsRune(name, 0) {
			return fmt.Errorf("store: Config.Notify[%q]: want a name for the receiver, valid UTF-8 of 1 … 64 bytes", name)
		}
		if notify == nil {
			return fmt.Errorf("store: Config.Notify[%q] is nil: want a function, or no such receiver", name)
		}
	}
	for group, n := range c.Caps {
		if n < 0 || group == "" || strings.Contains(group, ".") {
			return fmt.Errorf("store: Config.Caps[%q] is %d: want a group, without dots, and a positive number, or 0 for any", group, n)
		}
	}
	for _, r := range []struct {
		field string
		d     time.Duration
	}{{"Hourly", c.Retention.Hourly}, {"Daily", c.Retention.Daily}, {"UserDaily", c.Retention.UserDaily}} {
		if r.d > 0 && r.d < clock.MinKept {
			return fmt.Errorf("store: Config.Retention.%s is %v: want %v at least, 0 for the default, or a negative one for ever", r.field, r.d, clock.MinKept)
		}
	}
	if r := c.Retention.defaults(); r.Daily > 0 && (r.Hourly < 0 || r.Hourly > r.Daily) {
		return fmt.Errorf("store: Config.Retention.Hourly is %v and Daily %v: days are kept for as long as hours, at least", r.Hourly, r.Daily)
	}
	if strings.ContainsAny(c.Schema, "\"\x00?") {
		return fmt.Errorf("store: Config.Schema %q: a schema's name without quotes or question marks is wanted", c.Schema)
	}
	if c.Location != nil {
		name := c.Location.String()
		if _, err := time.LoadLocation(name); err != nil || name == "Local" || name == "" {
			return fmt.Errorf("store: Config.Location %q: want a zone that time.LoadLocation knows by its name, such as UTC or Europe/Berlin", name)
		}
	}
	return nil
}

// defaults fills in what is the zero value.
func (c Config) defaults() Config {
	c.Interval = cmp.Or(c.Interval, time.Second)
	c.MaxNames = cmp.Or(c.MaxNames, 100_000)
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return c
}
