package store

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/usagekit/usagekit/internal/calendar"
	"github.com/usagekit/usagekit/internal/database"
)

const (
	sqlMeta    = `SELECT value FROM usage_meta WHERE name = ?`
	sqlSetMeta = `INSERT INTO usage_meta (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value`
	sqlNewMeta = `INSERT INTO usage_meta (name, value) VALUES (?, ?) ON CONFLICT DO NOTHING`
)

// startLoop reaches the database for a store that started offline.
func (s *Store) startLoop() {
	for backoff := (database.Backoff{}); ; {
		err := s.start(s.run, true)
		s.report(&s.sendErr, err)
		if err == nil || !s.pause(backoff.After(err)) {
			return
		}
	}
}

// start brings the tables up to date, and learns the database's zone and id. A
// Config.Location with other rules is an error, unless the store has to live with it.
func (s *Store) start(ctx context.Context, anyZone bool) error {
	name, err := s.db.Start(ctx)
	if err != nil {
		return err
	}
	if s.clash != nil {
		if !anyZone {
			return s.clash
		}
		s.log.Warn("usagekit: counts are kept in the database's zone", "error", s.clash)
	}
	s.logStart(name)
	return nil
}

// settle finds the database's zone, set by the first start, and whether its clock is
// right, as far as can be known.
func (s *Store) settle(ctx context.Context, tx *database.Tx, id string) (settled func(), err error) {
	zone := "UTC"
	if s.zone != nil {
		zone = s.zone.String()
	}
	var meta []struct{ Name, Value string }
	if err := tx.Select(ctx, &meta, `SELECT name, value FROM usage_meta WHERE name IN ('zone', 'lease', 'pruned', 'folded')`); err != nil {
		return nil, err
	}
	has := map[string]string{}
	for _, m := range meta {
		has[m.Name] = m.Value
	}
	var now int64
	if err := tx.Get(ctx, &now, "SELECT "+tx.Clock()); err != nil {
		return nil, err
	}
	last := now // nothing was removed yet; or by a release that did not note it, and folded
	if folded, err := strconv.ParseInt(has["folded"], 10, 64); err == nil {
		last = min(now, folded)
	}
	for _, m := range [][2]string{{"zone", zone}, {"lease", " 0"}, {"pruned", removal{last: last}.String()}} {
		if _, ok := has[m[0]]; ok {
			continue
		}
		if _, err := tx.Exec(ctx, sqlNewMeta, m[0], m[1]); err != nil {
			return nil, err
		}
		has[m[0]] = m[1]
	}
	loc, err := time.LoadLocation(has["zone"])
	if err != nil {
		return nil, database.Fault(fmt.Sprintf("the database's zone: %v: import _ \"time/tzdata\" where the system has no zones", err))
	}
	if s.zone != nil && s.zone.String() == loc.String() {
		loc = s.zone // which may have other rules than the system's
	}
	first, _ := asked{}.next(time.UnixMilli(now))
	if parseRemoval(has["pruned"]).at(now, false, false).doubted == 0 {
		first.since = time.Time{}
	}
	if err := s.settleRules(ctx, tx, loc, now); err != nil {
		return nil, err
	}
	// A file or server that cannot be written to shows it now.
	if _, err := tx.Exec(ctx, strings.Replace(sqlRegister, "?)", tx.Clock()+")", 1), s.writer, []byte{}); err != nil {
		return nil, err
	}
	return func() {
		s.own, s.asked = loc, first
		if s.zone != nil && s.zone.String() != loc.String() && !s.same(s.zone, loc) {
			s.clash = database.Fault(fmt.Sprintf("Config.Location is %s, but this database counts hours and days in %s: leave Config.Location nil, or use a database of its own", s.zone, loc))
		}
		s.spool.SetDatabase(id)
	}, nil
}

// same tells whether two zones are one for what is kept, and for a year to come.
func (s *Store) same(a, b *time.Location) bool {
	now := time.Now()
	var from time.Time
	if d := s.retention.Daily; d > 0 {
		from = now.Add(-d)
	}
	return calendar.Same(a, b, from, now.AddDate(1, 0, 0))
}

// replaced has what is known of the tables asked for again: another file stands there.
func (s *Store) replaced() {
	s.subjects.Store(nil)
	s.sent(true) // something may wait in it
}
