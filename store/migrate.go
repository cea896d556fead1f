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
	"strconv"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"
)

//go:embed migrations
var migrations embed.FS

const (
	sqlMeta    = `SELECT value FROM usage_meta WHERE name = ?`
	sqlSetMeta = `INSERT INTO usage_meta (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value`
	sqlNewMeta = `INSERT INTO usage_meta (name, value) VALUES (?, ?) ON CONFLICT DO NOTHING`
)

// firstRules is from when on the rules of zones matter: nothing was counted before.
var firstRules = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

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
		var found struct { // by this attempt
			loc          *time.Location
			id, database string
		}
		err := s.try(ctx, s.writes, sendTimeout, func(tx *sqlx.Tx) (err error) {
			if found.loc, found.id, err = s.migrate(ctx, tx); err != nil {
				return err
			}
			return tx.GetContext(ctx, &found.database, s.sql.describe())
		})
		if err == nil {
			s.calendar = calendar{found.loc}
			if s.zone != nil && s.zone.String() != found.loc.String() && !s.same(s.zone, found.loc) {
				s.clash = fault(fmt.Sprintf("Config.Location is %s, but this database counts hours and days in %s: leave Config.Location nil, or use a database of its own", s.zone, found.loc))
				if !anyZone {
					return s.clash
				}
			}
			s.spool.SetDatabase(found.id)
			s.logStart(found.database)
			return nil
		}
		if !locked(err) || time.Since(start) > startTimeout || ctx.Err() != nil {
			return err
		}
		time.Sleep(rand.N(100 * time.Millisecond))
	}
}

// same tells whether two zones are one for what is kept, and for a year to come.
func (s *Store) same(a, b *time.Location) bool {
	now := time.Now()
	from := firstRules
	if d := s.retention.Daily; d > 0 {
		from = now.Add(-d)
	}
	return sameRules(a, b, from, now.AddDate(1, 0, 0))
}

// locked tells whether another start stands in the way of this one.
func locked(err error) bool {
	var (
		state sqlState
		code  resultCode
	)
	switch {
	case errors.As(err, &state):
		return state.SQLState() == "55P03" // lock_not_available
	case errors.As(err, &code):
		return code.Code()&0xff == 5 // BUSY: at once, while another one turns the WAL on
	}
	return false
}

// migrate applies the migrations that the database has not seen, in the order of
// their names. A current database sees no DDL, and one of a later release is
// left as it is: later tables serve this release, too.
func (s *Store) migrate(ctx context.Context, tx *sqlx.Tx) (loc *time.Location, id string, err error) {
	if s.sql.sqlite {
		if _, err := tx.ExecContext(ctx, `SELECT sqlite_version()`); err != nil {
			return nil, "", fmt.Errorf("the database is not SQLite: %w", err)
		}
	}
	if err := s.sql.begin(ctx, tx); err != nil {
		return nil, "", err
	}
	if !s.sql.sqlite {
		var encoding string
		if err := tx.GetContext(ctx, &encoding, `SELECT current_setting('server_encoding')`); err != nil {
			return nil, "", err
		}
		if encoding != "UTF8" { // it would refuse whole batches for one name
			return nil, "", fault("the database's encoding is " + encoding + ", want UTF8: CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0")
		}
	}
	version, err := s.schemaVersion(ctx, tx)
	if err != nil {
		return nil, "", err
	}
	files, err := migrations.ReadDir("migrations/" + s.sql.name())
	if err != nil {
		return nil, "", err
	}
	if version < len(files) {
		if _, err := tx.ExecContext(ctx, s.sql.migrationLock()); err != nil {
			return nil, "", err
		}
		if version, err = s.schemaVersion(ctx, tx); err != nil { // others may have been first
			return nil, "", err
		}
	}
	for ; version < len(files); version++ {
		name := files[version].Name()
		text, err := migrations.ReadFile("migrations/" + s.sql.name() + "/" + name)
		if err != nil {
			return nil, "", err
		}
		if _, err := tx.ExecContext(ctx, s.sql.text(string(text))); err != nil {
			return nil, "", fmt.Errorf("migration %s: %w", name, err)
		}
		if _, err := tx.ExecContext(ctx, s.sql.text(sqlSetMeta), "schema", strconv.Itoa(version+1)); err != nil {
			return nil, "", err
		}
	}
	if loc, id, err = s.identity(ctx, tx); err != nil {
		return nil, "", err
	}
	// A file or server that cannot be written to shows it now.
	_, err = tx.ExecContext(ctx, s.sql.text(strings.Replace(sqlRegister, "?)", s.sql.clock()+")", 1)), s.writer, []byte{})
	return loc, id, err
}

// schemaVersion is how many migrations the database has seen.
func (s *Store) schemaVersion(ctx context.Context, tx *sqlx.Tx) (version int, err error) {
	if err := tx.GetContext(ctx, &version, s.sql.countMeta()); err != nil || version == 0 {
		return 0, err
	}
	var text string
	switch err := tx.GetContext(ctx, &text, s.sql.text(sqlMeta), "schema"); {
	case errors.Is(err, sql.ErrNoRows):
		return 0, fault("usage_meta has no row named schema: is this table another application's?")
	case err != nil:
		return 0, err
	}
	if version, err = strconv.Atoi(text); err != nil {
		return 0, fault(fmt.Sprintf("usage_meta: schema is %q, want a number", text))
	}
	return version, nil
}

// identity returns the database's zone, set by the first start, and its id.
func (s *Store) identity(ctx context.Context, tx *sqlx.Tx) (*time.Location, string, error) {
	zone := "UTC"
	if s.zone != nil {
		zone = s.zone.String()
	}
	var meta []struct{ Name, Value string }
	err := tx.SelectContext(ctx, &meta, s.sql.text(`SELECT name, value FROM usage_meta WHERE name IN ('id', 'zone', 'lease', 'pruned', 'folded')`))
	if err != nil {
		return nil, "", err
	}
	has := map[string]string{}
	for _, m := range meta {
		has[m.Name] = m.Value
	}
	var now int64
	if err := tx.GetContext(ctx, &now, s.sql.text("SELECT "+s.sql.clock())); err != nil {
		return nil, "", err
	}
	last := now // nothing was removed yet; or by a release that did not note it, and folded
	if folded, err := strconv.ParseInt(has["folded"], 10, 64); err == nil {
		last = min(now, folded)
	}
	for _, m := range [][2]string{{"id", newID()}, {"zone", zone}, {"lease", " 0"}, {"pruned", removal{last: last}.String()}} {
		if _, ok := has[m[0]]; ok {
			continue
		}
		if _, err := tx.ExecContext(ctx, s.sql.text(sqlNewMeta), m[0], m[1]); err != nil {
			return nil, "", err
		}
		has[m[0]] = m[1]
	}
	loc, err := time.LoadLocation(has["zone"])
	if err != nil {
		return nil, "", fault(fmt.Sprintf("the database's zone: %v: import _ \"time/tzdata\" where the system has no zones", err))
	}
	return loc, has["id"], nil
}

// newID returns 128 random bits in hexadecimal.
func newID() string {
	b := make([]byte, 16)
	_, _ = cryptorand.Read(b) // never fails (crypto/rand)
	return hex.EncodeToString(b)
}

// needsSomebody tells whether somebody has to do something before the same attempt
// can work: about a password, a right, a database or a table.
func needsSomebody(err error) bool {
	var state sqlState
	if !errors.As(err, &state) {
		return false
	}
	switch c := state.SQLState(); c {
	case "42501", "42P01", "25006":
		return true
	default:
		return class(state) == "28" || class(state) == "3D" || class(state) == "3F"
	}
}

// advice says what to do about an error that New met, where that is known.
func advice(err error) string {
	var (
		ours  fault
		state sqlState
		file  resultCode
	)
	switch {
	case errors.As(err, &ours):
		return ""
	case errors.As(err, &file):
		switch file.Code() & 0xff {
		case 8, 14: // READONLY, CANTOPEN
			return ": the file and its directory must exist and be writable"
		case 26: // NOTADB
			return ": the file is not a SQLite database"
		}
		return ""
	case !errors.As(err, &state):
		return ": is the database there, and does its address lead to it?"
	case class(state) == "28":
		return ": check the user and the password of the database's address"
	case state.SQLState() == "3D000":
		return ": make the database (CREATE DATABASE), or correct its name"
	case state.SQLState() == "3F000":
		return ": make the schema (CREATE SCHEMA), or correct Config.Schema"
	case state.SQLState() == "42P01":
		return ": a usage_ table is missing: restore it, or Config.Schema"
	case state.SQLState() == "25006":
		return ": the server is read-only: is it a standby?"
	case state.SQLState() == "0A000":
		return ": a standby cannot be written to; and a view on usage_metrics has to go (DROP VIEW) before that table can be taken over"
	case state.SQLState() == "42501":
		return ": the user needs CREATE on the schema at a release's first start, and SELECT, INSERT, UPDATE, DELETE on the usage_ tables (GRANT)"
	}
	return ""
}
