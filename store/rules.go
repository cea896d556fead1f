package store

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"
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
	sqlRules  = `COALESCE((SELECT r.value FROM usage_meta r WHERE r.name = 'rules'), '') AS rules`
	rulesKept = 8 * 24 * time.Hour
	rulesAnew = 24 * time.Hour
)

// firstRules and lastRules are from when on, and up to when, rules are noted.
var (
	firstRules = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)
	lastRules  = time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)
)

// rules are those in force.
type rules struct {
	which string
	loc   *time.Location
	other bool            // this process has others
	moved map[moved]int64 // where a bucket lies that was begun under others
}

type moved struct {
	step  Step
	start int64
}

// textOf is a zone's name, and its offsets from UTC in seconds, each with when it begins.
func textOf(loc *time.Location) string {
	text := loc.String()
	for _, c := range changesOf(loc, firstRules, lastRules) {
		text += fmt.Sprintf(" %d@%d", c.offset, c.at)
	}
	return text
}

func whichOf(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:8])
}

// zoneOf is the inverse of textOf.
func zoneOf(text string) (*time.Location, error) {
	fields := strings.Fields(text)
	if len(fields) < 2 {
		return nil, fault("usage_meta: the zone's rules cannot be read")
	}
	var times, kinds, types []byte // as in RFC 8536
	var offsets []int
	for _, f := range fields[1:] {
		var c change
		if _, err := fmt.Sscanf(f, "%d@%d", &c.offset, &c.at); err != nil {
			return nil, fault("usage_meta: the zone's rules cannot be read: " + f)
		}
		kind := slices.Index(offsets, c.offset)
		if kind < 0 {
			kind = len(offsets)
			offsets = append(offsets, c.offset)
			types = append(binary.BigEndian.AppendUint32(types, uint32(int32(c.offset))), 0, 0)
		}
		times, kinds = binary.BigEndian.AppendUint64(times, uint64(c.at)), append(kinds, byte(kind))
	}
	header := append([]byte("TZif2"), make([]byte, 39)...)
	data := slices.Clone(header)
	binary.BigEndian.PutUint32(header[32:], uint32(len(kinds)))
	binary.BigEndian.PutUint32(header[36:], uint32(len(offsets)))
	binary.BigEndian.PutUint32(header[40:], 1)
	data = slices.Concat(data, header, times, kinds, types, []byte("\x00\n\n"))
	return time.LoadLocationFromTZData(fields[0], data)
}

// settleRules decides, at a start, which rules of the database's zone are in force: own
// are this process's.
func (s *Store) settleRules(ctx context.Context, tx *sqlx.Tx, d dialect, own *time.Location, now int64) error {
	text := textOf(own)
	which := whichOf(text)
	var found []struct{ Name, Value string }
	err := tx.SelectContext(ctx, &found, d.text(`SELECT name, value FROM usage_meta WHERE name IN ('rules', ?) OR name = (SELECT 'rules/' || r.value FROM usage_meta r WHERE r.name = 'rules')`), "rules/"+which)
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
		if theirs, err := zoneOf(force); err == nil && theirs.String() == own.String() {
			_, known := has["rules/"+which]
			if s.same(own, theirs) || known && now-seen < rulesKept.Milliseconds() {
				return nil
			}
		}
	}
	for _, m := range [][2]string{{"rules", which}, {"rules/" + which, fmt.Sprintf("%d %s", now, text)}} {
		if _, err := tx.ExecContext(ctx, d.text(sqlSetMeta), m[0], m[1]); err != nil {
			return err
		}
	}
	return nil
}

// follow takes over the rules that are in force, when they are not those of before.
func (s *Store) follow(ctx context.Context, tx *sqlx.Tx, which string) error {
	if r := s.rules.Load(); which == "" || r != nil && r.which == which {
		return nil
	}
	var value string
	if err := tx.GetContext(ctx, &value, s.sql.text(sqlMeta), "rules/"+which); errors.Is(err, sql.ErrNoRows) {
		return nil // somebody removed it: one's own are as good
	} else if err != nil {
		return err
	}
	_, text, _ := strings.Cut(value, " ")
	r := &rules{which: which, loc: s.calendar.loc, moved: map[moved]int64{}}
	if whichOf(textOf(r.loc)) != which {
		theirs, err := zoneOf(text)
		if err != nil {
			return err
		}
		if r.other = !s.same(r.loc, theirs); r.other {
			r.loc = theirs
		}
	}
	now, end := time.Now(), time.Unix(endless, 0)
	days, month := now.Add(-minRetention), now.AddDate(0, 0, -36) // of which the current month is one
	steps := []segment{{Hour, days, end}, {Day, days, end}, {Month, month, end}}
	stored, err := s.stored(ctx, tx, steps)
	if err != nil {
		return err
	}
	c := calendar{loc: r.loc}
	for i, list := range stored {
		for _, b := range list {
			step := steps[i].step
			if at := c.place(step, b); at != b && !slices.Contains(list, at) {
				r.moved[moved{step, at}] = b
			}
		}
	}
	s.rules.Store(r)
	return nil
}

// keepRules notes that an instance is there which has the rules in force itself.
func (s *Store) keepRules(ctx context.Context, tx *sqlx.Tx, now int64) error {
	r := s.rules.Load()
	if r == nil || r.other {
		return nil
	}
	own := textOf(s.calendar.loc)
	if whichOf(own) != r.which {
		return nil
	}
	_, err := tx.ExecContext(ctx, s.sql.text(sqlSetMeta), "rules/"+r.which, fmt.Sprintf("%d %s", now, own))
	return err
}

// counted is for what counts without a batch: whoever counts is there, and has what is
// too old removed.
func (s *Store) counted() {
	signal(s.folds)
	if s.rulesDue() {
		signal(s.wake)
	}
}

func (s *Store) rulesDue() bool {
	return time.Since(s.began)-time.Duration(s.noted.Load()) >= rulesAnew
}

// noteRules is keepRules, if that is due. It has a transaction of its own: all instances
// write the same row, and none must wait for what another one waits for.
func (s *Store) noteRules() {
	if !s.rulesDue() {
		return
	}
	err := s.attempt(s.run, s.writes, sendTimeout, func(tx *sqlx.Tx) error {
		now, _, err := s.now(s.run, tx)
		if err != nil {
			return err
		}
		return s.keepRules(s.run, tx, now.UnixMilli())
	})
	if err == nil { // else with the next count
		s.noted.Store(int64(time.Since(s.began)))
	}
}

// otherRules says that this process has others than those in force; "": it has not.
func (s *Store) otherRules() string {
	if r := s.rules.Load(); r != nil && r.other {
		return "this process has other rules of the zone " + r.loc.String() + " than the database, and counts by the database's: bring its time zones up to date, or the other processes'"
	}
	return ""
}
