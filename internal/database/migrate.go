package database

import (
	"context"
	cryptorand "crypto/rand"
	"database/sql"
	"embed"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

//go:embed migrations
var migrations embed.FS

const (
	sqlMeta = `SELECT value FROM usage_meta WHERE name = ?`
)

// errMoves says that what stands in the tables has to be moved, which may take longer than
// a transaction may.
var errMoves = errors.New("the tables are to be brought up to date")

// migrated is what is known of a database whose tables are up to date.
type migrated struct {
	schema  string // that has the tables
	id      string // random, of this database
	altered string // what an earlier release did to another application's table; "": nothing that can be seen
}

// migrate applies the migrations that the database has not seen, in the order of
// their names, unless they would meet what is not ours. A current database sees no
// DDL, and one of a later release is left as it is: later tables serve this release,
// too. The tables' schema is named in all later statements: neither a temporary
// table nor a search path that changes leads them elsewhere.
func (db *DB) migrate(ctx context.Context, tx *Tx, patient bool) (found migrated, settled func(), err error) {
	own := *db.Dialect // with the schema that is found
	tx = &Tx{tx: tx.tx, Dialect: &own}
	var server struct{ Bounded, Encoding, Schema string }
	switch err := tx.Get(ctx, &server, fmt.Sprintf(tx.server, tx.bounds)); {
	case err != nil && tx.mistaken != "":
		return found, nil, fmt.Errorf("%s: %w", tx.mistaken, err)
	case err != nil:
		return found, nil, err
	case server.Encoding != "UTF8": // it would refuse whole batches for one name
		return found, nil, Fault("the database's encoding is " + server.Encoding + ", want UTF8: CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0")
	}
	texts, err := migrationsOf(tx.Name)
	if err != nil {
		return found, nil, err
	}
	var list []relation
	var version int
	look := func() (err error) {
		if list, err = tx.namesakes(ctx, db.Schema, namesGiven(texts)); err != nil {
			return err
		}
		if db.Schema == "" && tx.schemas > 0 {
			if own.Schema, err = home(list, server.Schema); err != nil {
				return err
			}
		}
		version, err = tx.version(ctx, list)
		return err
	}
	if err := look(); err != nil {
		return found, nil, err
	}
	if version > 0 {
		var stops bool
		if found.altered, stops, err = tx.altered(ctx, list); err != nil {
			return found, nil, err
		}
		if stops {
			return found, nil, Fault(found.altered)
		}
	}
	if version < len(texts) && len(list) > 0 {
		if !patient {
			return found, nil, errMoves
		}
		var bounded string
		if err := tx.Get(ctx, &bounded, fmt.Sprintf("SELECT {local statement_timeout %d}", moveTimeout.Milliseconds())); err != nil {
			return found, nil, err
		}
	}
	if version < len(texts) {
		if _, err := tx.Exec(ctx, tx.migrationLock); err != nil {
			return found, nil, err
		}
		if err := look(); err != nil { // others may have been first
			return found, nil, err
		}
		if version < len(texts) {
			if err := tx.foreign(ctx, list, version, namesGiven(texts[version:])); err != nil {
				return found, nil, err
			}
		}
	}
	for ; version < len(texts); version++ {
		if err := tx.script(ctx, texts[version]); err != nil {
			return found, nil, fmt.Errorf("migration %d: %w", version+1, err)
		}
		if strings.Contains(texts[version], "CREATE TABLE usage_quarantine") {
			if err := tx.quarantine(ctx); err != nil {
				return found, nil, fmt.Errorf("migration %d: %w", version+1, err)
			}
		}
		if err := tx.SetMeta(ctx, "schema", strconv.Itoa(version+1)); err != nil {
			return found, nil, err
		}
	}
	found.schema = own.Schema
	if err := tx.NewMeta(ctx, "id", NewID()); err != nil {
		return found, nil, err
	}
	if err := tx.Get(ctx, &found.id, sqlMeta, "id"); err != nil {
		return found, nil, err
	}
	if err := tx.open(ctx, tx.bounds); err != nil {
		return found, nil, err
	}
	settled, err = db.cfg.Settle(ctx, tx, found.id)
	return found, settled, err
}

// quarantine moves batches that could not be counted out of usage_meta, where they were
// base64, which not every database can read.
func (t *Tx) quarantine(ctx context.Context) error {
	for {
		var bad struct{ Name, Value string }
		err := t.Get(ctx, &bad, `SELECT name, value FROM usage_meta WHERE name > 'bad/' AND name < 'bad0' LIMIT 1`)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		} else if err != nil {
			return err
		}
		payload, err := base64.StdEncoding.DecodeString(bad.Value)
		if err != nil {
			payload = []byte(bad.Value) // it can be looked at, as before
		}
		writer, number, _ := strings.Cut(strings.TrimPrefix(bad.Name, "bad/"), "/")
		seq, _ := strconv.ParseInt(number, 10, 64)
		if _, err := t.Exec(ctx, `INSERT INTO usage_quarantine (writer, seq, payload) VALUES (?, ?, ?) ON CONFLICT DO NOTHING`, writer, seq, payload); err != nil {
			return err
		}
		if _, err := t.Exec(ctx, `DELETE FROM usage_meta WHERE name = ?`, bad.Name); err != nil {
			return err
		}
	}
}

// migrationsOf are their texts, in the order of their names.
func migrationsOf(dialect string) (texts []string, err error) {
	files, err := migrations.ReadDir("migrations/" + dialect)
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		text, err := migrations.ReadFile("migrations/" + dialect + "/" + f.Name())
		if err != nil {
			return nil, err
		}
		texts = append(texts, string(text))
	}
	return texts, nil
}

// version is how many migrations the database has seen.
func (t *Tx) version(ctx context.Context, list []relation) (version int, err error) {
	i := slices.IndexFunc(list, func(r relation) bool {
		return strings.ToLower(r.Name) == "usage_meta" && r.Schema == t.Schema
	})
	if i < 0 {
		return 0, nil
	}
	if meta := list[i]; meta.Kind != "a table" || !meta.Plain {
		return 0, t.refuse(meta, "it is "+meta.Kind+" that usagekit did not make")
	}
	var text string
	switch err := t.Get(ctx, &text, sqlMeta, "schema"); {
	case errors.Is(err, sql.ErrNoRows):
		return 0, t.refuse(list[i], "it has no row named schema, so usagekit did not make it")
	case err != nil:
		return 0, err
	}
	if version, err = strconv.Atoi(text); err != nil || version < 1 {
		return 0, t.refuse(list[i], fmt.Sprintf("its row schema is %q, and no number of a release", text))
	}
	return version, nil
}

// NewID returns 128 random bits in hexadecimal.
func NewID() string {
	b := make([]byte, 16)
	_, _ = cryptorand.Read(b) // never fails (crypto/rand)
	return hex.EncodeToString(b)
}
