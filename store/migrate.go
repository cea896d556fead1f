package store

import (
	"context"
	cryptorand "crypto/rand"
	"database/sql"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/usagekit/usagekit/internal/calendar"
	"github.com/usagekit/usagekit/internal/database"
)

//go:embed migrations
var migrations embed.FS

const (
	sqlMeta    = `SELECT value FROM usage_meta WHERE name = ?`
	sqlSetMeta = `INSERT INTO usage_meta (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value`
	sqlNewMeta = `INSERT INTO usage_meta (name, value) VALUES (?, ?) ON CONFLICT DO NOTHING`
)

// startTimeout is how long New waits for other starts.
const startTimeout = 30 * time.Second

// startLoop reaches the database for a store that started offline.
func (s *Store) startLoop() {
	for backoff := minBackoff; ; {
		err := s.start(s.run, true)
		s.report(&s.sendErr, err)
		if err == nil {
			close(s.started)
			return
		}
		if !s.backOff(&backoff, err) {
			return
		}
	}
}

// isStarted tells whether the tables are there and the calendar is known.
func (s *Store) isStarted() bool {
	if s.started == nil {
		return true
	}
	select {
	case <-s.started:
		return true
	default:
		return false
	}
}

// waitStarted waits for that, and returns false when the store stops first.
func (s *Store) waitStarted() bool {
	if s.started == nil {
		return true
	}
	select {
	case <-s.started:
		return true
	case <-s.run.Done():
		return false
	}
}

// start brings the tables up to date, and learns the database's zone and id. A
// Config.Location with other rules is an error, unless the store has to live with it.
func (s *Store) start(ctx context.Context, anyZone bool) error {
	for start := time.Now(); ; {
		var found started // by this attempt
		err := s.try(ctx, s.writes, true, sendTimeout, func(ctx context.Context, tx *database.Tx) (err error) {
			if found, err = s.migrate(ctx, tx); err != nil {
				return err
			}
			if s.sql.SQLite {
				if found.file, err = findFile(ctx, tx, found.id); err != nil {
					return err
				}
			}
			return tx.Get(ctx, &found.database, s.sql.Describe)
		})
		if err == nil {
			s.file.Store(found.file)
			s.own, s.sql.Schema, s.asked = found.zone, found.schema, found.asked
			if found.altered != "" {
				s.log.Warn("usagekit: " + found.altered)
			}
			if s.zone != nil && s.zone.String() != found.zone.String() && !s.same(s.zone, found.zone) {
				s.clash = database.Fault(fmt.Sprintf("Config.Location is %s, but this database counts hours and days in %s: leave Config.Location nil, or use a database of its own", s.zone, found.zone))
				if !anyZone {
					return s.clash
				}
				s.log.Warn("usagekit: counts are kept in the database's zone", "error", s.clash)
			}
			s.spool.SetDatabase(found.id)
			s.logStart(found.database)
			return nil
		}
		if !database.Locked(err) || time.Since(start) > startTimeout || ctx.Err() != nil {
			return err
		}
		time.Sleep(rand.N(100 * time.Millisecond))
	}
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

// started is what a start learns of the database.
type started struct {
	schema   string // that has the tables
	zone     *time.Location
	id       string
	database string // which, for the log
	file     *sqliteFile
	asked    asked
	altered  string // what an earlier release did to another application's table; "": nothing that can be seen
}

// migrate applies the migrations that the database has not seen, in the order of
// their names, unless they would meet what is not ours. A current database sees no
// DDL, and one of a later release is left as it is: later tables serve this release,
// too. The tables' schema is named in all later statements: neither a temporary
// table nor a search path that changes leads them elsewhere.
func (s *Store) migrate(ctx context.Context, tx *database.Tx) (found started, err error) {
	own := *s.sql // with the schema that is found
	d := &own
	tx = tx.With(d)
	var first string
	if d.SQLite {
		if _, err := tx.Exec(ctx, `SELECT sqlite_version()`); err != nil {
			return found, fmt.Errorf("the database is not SQLite: %w", err)
		}
	}
	if err := tx.Begin(ctx); err != nil {
		return found, err
	}
	if !d.SQLite {
		var server struct{ Encoding, Schema string }
		if err := tx.Get(ctx, &server, `SELECT current_setting('server_encoding') AS encoding, COALESCE(current_schema(), '') AS schema`); err != nil {
			return found, err
		}
		if server.Encoding != "UTF8" { // it would refuse whole batches for one name
			return found, database.Fault("the database's encoding is " + server.Encoding + ", want UTF8: CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0")
		}
		first = server.Schema
	}
	texts, err := migrationsOf(d)
	if err != nil {
		return found, err
	}
	var list []relation
	var version int
	look := func() (err error) {
		if list, err = relations(ctx, tx, s.sql, namesGiven(texts)); err != nil {
			return err
		}
		if s.sql.Schema == "" && !d.SQLite {
			if d.Schema, err = home(list, first); err != nil {
				return err
			}
		}
		version, err = schemaVersion(ctx, tx, d, list)
		return err
	}
	if err := look(); err != nil {
		return found, err
	}
	if version > 0 {
		var stops bool
		if found.altered, stops, err = altered(ctx, tx, d, list); err != nil {
			return found, err
		}
		if stops {
			return found, database.Fault(found.altered)
		}
	}
	if version < len(texts) {
		if _, err := tx.Exec(ctx, d.MigrationLock); err != nil {
			return found, err
		}
		if err := look(); err != nil { // others may have been first
			return found, err
		}
		if version < len(texts) {
			if err := foreign(ctx, tx, d, list, version, namesGiven(texts[version:])); err != nil {
				return found, err
			}
		}
	}
	for ; version < len(texts); version++ {
		if _, err := tx.Exec(ctx, texts[version]); err != nil {
			return found, fmt.Errorf("migration %d: %w", version+1, err)
		}
		if _, err := tx.Exec(ctx, sqlSetMeta, "schema", strconv.Itoa(version+1)); err != nil {
			return found, err
		}
	}
	found.schema = d.Schema
	if err = s.identity(ctx, tx, d, &found); err != nil {
		return found, err
	}
	// A file or server that cannot be written to shows it now.
	_, err = tx.Exec(ctx, strings.Replace(sqlRegister, "?)", d.Clock()+")", 1), s.writer, []byte{})
	return found, err
}

// migrationsOf are their texts, in the order of their names.
func migrationsOf(d *database.Dialect) (texts []string, err error) {
	files, err := migrations.ReadDir("migrations/" + d.Name)
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		text, err := migrations.ReadFile("migrations/" + d.Name + "/" + f.Name())
		if err != nil {
			return nil, err
		}
		texts = append(texts, string(text))
	}
	return texts, nil
}

// schemaVersion is how many migrations the database has seen.
func schemaVersion(ctx context.Context, tx *database.Tx, d *database.Dialect, list []relation) (version int, err error) {
	i := slices.IndexFunc(list, func(r relation) bool {
		return strings.ToLower(r.Name) == "usage_meta" && (d.SQLite || r.Schema == d.Schema)
	})
	if i < 0 {
		return 0, nil
	}
	if meta := list[i]; meta.Kind != "a table" || !meta.Plain {
		return 0, refuse(d, meta, "it is "+meta.Kind+" that usagekit did not make")
	}
	var text string
	switch err := tx.Get(ctx, &text, sqlMeta, "schema"); {
	case errors.Is(err, sql.ErrNoRows):
		return 0, refuse(d, list[i], "it has no row named schema, so usagekit did not make it")
	case err != nil:
		return 0, err
	}
	if version, err = strconv.Atoi(text); err != nil || version < 1 {
		return 0, refuse(d, list[i], fmt.Sprintf("its row schema is %q, and no number of a release", text))
	}
	return version, nil
}

// identity finds the database's zone, set by the first start, its id, and whether its
// clock is right, as far as can be known.
func (s *Store) identity(ctx context.Context, tx *database.Tx, d *database.Dialect, found *started) error {
	zone := "UTC"
	if s.zone != nil {
		zone = s.zone.String()
	}
	var meta []struct{ Name, Value string }
	err := tx.Select(ctx, &meta, `SELECT name, value FROM usage_meta WHERE name IN ('id', 'zone', 'lease', 'pruned', 'folded')`)
	if err != nil {
		return err
	}
	has := map[string]string{}
	for _, m := range meta {
		has[m.Name] = m.Value
	}
	var now int64
	if err := tx.Get(ctx, &now, "SELECT "+s.sql.Clock()); err != nil {
		return err
	}
	last := now // nothing was removed yet; or by a release that did not note it, and folded
	if folded, err := strconv.ParseInt(has["folded"], 10, 64); err == nil {
		last = min(now, folded)
	}
	for _, m := range [][2]string{{"id", newID()}, {"zone", zone}, {"lease", " 0"}, {"pruned", removal{last: last}.String()}} {
		if _, ok := has[m[0]]; ok {
			continue
		}
		if _, err := tx.Exec(ctx, sqlNewMeta, m[0], m[1]); err != nil {
			return err
		}
		has[m[0]] = m[1]
	}
	loc, err := time.LoadLocation(has["zone"])
	if err != nil {
		return database.Fault(fmt.Sprintf("the database's zone: %v: import _ \"time/tzdata\" where the system has no zones", err))
	}
	if s.zone != nil && s.zone.String() == loc.String() {
		loc = s.zone // which may have other rules than the system's
	}
	found.zone, found.id = loc, has["id"]
	found.asked, _ = asked{}.next(time.UnixMilli(now))
	if parseRemoval(has["pruned"]).at(now, false, false).doubted == 0 {
		found.asked.since = time.Time{}
	}
	return s.settleRules(ctx, tx, d, loc, now)
}

// newID returns 128 random bits in hexadecimal.
func newID() string {
	b := make([]byte, 16)
	_, _ = cryptorand.Read(b) // never fails (crypto/rand)
	return hex.EncodeToString(b)
}
