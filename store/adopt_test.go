package store_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"github.com/usagekit/usagekit/internal/dbtest"
	"github.com/usagekit/usagekit/store"
	"github.com/usagekit/usagekit/store/postgres"
	"github.com/usagekit/usagekit/store/sqlite"
)

const original = `CREATE TABLE usage_metrics (key VARCHAR(64) PRIMARY KEY, value INTEGER DEFAULT 0)`

// shape is what a database holds under names of usagekit's before the first start.
type shape struct {
	name  string
	setup string
	want  string // of the error; "": it is taken over
}

var foreignToPostgres = []shape{
	{"view", `CREATE VIEW usage_metrics AS SELECT 'a'::text AS key, 1 AS value`, "usage_metrics in schema %s: it is a view"},
	{"materialized view", `CREATE MATERIALIZED VIEW usage_metrics AS SELECT 'a'::text AS key, 1 AS value`, "it is a materialized view"},
	{"partitioned", `CREATE TABLE usage_metrics (key TEXT PRIMARY KEY, value BIGINT) PARTITION BY HASH (key)`, "it is a partitioned table"},
	{"partition", `CREATE TABLE metrics (key TEXT PRIMARY KEY, value BIGINT) PARTITION BY HASH (key); CREATE TABLE usage_metrics PARTITION OF metrics FOR VALUES WITH (MODULUS 1, REMAINDER 0)`, "it is a partition"},
	{"foreign table", `CREATE FOREIGN DATA WRAPPER nowhere; CREATE SERVER nowhere FOREIGN DATA WRAPPER nowhere; CREATE FOREIGN TABLE usage_metrics (key TEXT, value BIGINT) SERVER nowhere`, "it is a foreign table"},
	{"sequence", `CREATE SEQUENCE usage_metrics`, "it is a sequence"},
	{"composite type", `CREATE TYPE usage_metrics AS (key TEXT, value BIGINT)`, "it is a type"},
	{"enum", `CREATE TYPE usage_metrics AS ENUM ('key', 'value')`, "it is a type"},
	{"index", `CREATE TABLE t (key TEXT); CREATE INDEX usage_metrics ON t (key)`, "it is an index"},
	{"typed table", `CREATE TYPE metric AS (key TEXT, value BIGINT); CREATE TABLE usage_metrics OF metric (PRIMARY KEY (key))`, "it is of the type"},
	{"unlogged", `CREATE UNLOGGED TABLE usage_metrics (key TEXT PRIMARY KEY, value BIGINT)`, "it is UNLOGGED"},
	{"generated column", `CREATE TABLE usage_metrics (key TEXT PRIMARY KEY, value BIGINT GENERATED ALWAYS AS (7) STORED)`, "its column value is generated"},
	{"generated key", `CREATE TABLE usage_metrics (a TEXT, key TEXT GENERATED ALWAYS AS ('x' || a) STORED PRIMARY KEY, value BIGINT)`, "it has the column a"},
	{"identity", `CREATE TABLE usage_metrics (key TEXT PRIMARY KEY, value BIGINT GENERATED ALWAYS AS IDENTITY)`, "its column value is generated"},
	{"serial", `CREATE TABLE usage_metrics (key TEXT PRIMARY KEY, value SERIAL)`, "has the default"},
	{"decimals", `CREATE TABLE usage_metrics (key TEXT PRIMARY KEY, value NUMERIC(12,4) NOT NULL); INSERT INTO usage_metrics VALUES ('cost.usd', 12.3456)`, "its column value is of type numeric(12,4)"},
	{"decimals and a time", `CREATE TABLE usage_metrics (key TEXT PRIMARY KEY, value NUMERIC(12,4) NOT NULL, updated_at TIMESTAMPTZ NOT NULL); INSERT INTO usage_metrics VALUES ('cost.usd', 12.3456, '2026-01-01')`, "it has the column updated_at"},
	{"floats", `CREATE TABLE usage_metrics (key TEXT PRIMARY KEY, value DOUBLE PRECISION)`, "its column value is of type double precision"},
	{"texts", `CREATE TABLE usage_metrics (key TEXT PRIMARY KEY, value TEXT)`, "its column value is of type text"},
	{"documents", `CREATE TABLE usage_metrics (key TEXT PRIMARY KEY, value JSONB)`, "its column value is of type jsonb"},
	{"padded keys", `CREATE TABLE usage_metrics (key CHAR(8) PRIMARY KEY, value BIGINT)`, "its column key is of type character(8)"},
	{"numbers as keys", `CREATE TABLE usage_metrics (key BIGINT PRIMARY KEY, value BIGINT)`, "its column key is of type bigint"},
	{"domain of keys", `CREATE DOMAIN short AS TEXT CHECK (length(value) < 9); CREATE TABLE usage_metrics (key short PRIMARY KEY, value BIGINT)`, "its column key is of type"},
	{"domain of values", `CREATE DOMAIN small AS INTEGER CHECK (value < 100); CREATE TABLE usage_metrics (key TEXT PRIMARY KEY, value small)`, "its column value is of type"},
	{"tenants", `CREATE TABLE usage_metrics (tenant_id INT, key TEXT, value BIGINT, PRIMARY KEY (tenant_id, key))`, "it has the column tenant_id, it has no unique index on key alone"},
	{"id", `CREATE TABLE usage_metrics (id SERIAL PRIMARY KEY, key TEXT UNIQUE, value BIGINT); INSERT INTO usage_metrics (key, value) VALUES ('a', NULL)`, "it has the column id"},
	{"other columns", `CREATE TABLE usage_metrics (name TEXT PRIMARY KEY, count BIGINT)`, "it has no column key"},
	{"quoted columns", `CREATE TABLE usage_metrics ("Key" TEXT PRIMARY KEY, value BIGINT)`, "it has the column Key"},
	{"no key", `CREATE TABLE usage_metrics (key TEXT, value BIGINT)`, "it has no unique index on key alone"},
	{"key of both", `CREATE TABLE usage_metrics (key TEXT, value BIGINT, PRIMARY KEY (key, value))`, "it has no unique index on key alone"},
	{"key on value", `CREATE TABLE usage_metrics (key TEXT, value BIGINT PRIMARY KEY)`, "it has no unique index on key alone"},
	{"deferred key", `CREATE TABLE usage_metrics (key TEXT PRIMARY KEY DEFERRABLE, value BIGINT)`, "it has no unique index on key alone"},
	{"key of some", `CREATE TABLE usage_metrics (key TEXT, value BIGINT); CREATE UNIQUE INDEX ON usage_metrics (key) WHERE value > 0`, "it has no unique index on key alone"},
	{"key of lower case", `CREATE TABLE usage_metrics (key TEXT, value BIGINT); CREATE UNIQUE INDEX ON usage_metrics (lower(key))`, "it has no unique index on key alone"},
	{"unique values", `CREATE TABLE usage_metrics (key TEXT PRIMARY KEY, value BIGINT UNIQUE)`, "it has the index usage_metrics_value_key"},
	{"index of values", `CREATE TABLE usage_metrics (key TEXT PRIMARY KEY, value BIGINT); CREATE INDEX by_value ON usage_metrics (value)`, "it has the index by_value"},
	{"exclusion", `CREATE TABLE usage_metrics (key TEXT PRIMARY KEY, value INT, EXCLUDE USING btree (value WITH =))`, "it has the index usage_metrics_value_excl"},
	{"check of keys", original + `; ALTER TABLE usage_metrics ADD CONSTRAINT no_users CHECK (key NOT LIKE 'user.%%')`, "constraint no_users"},
	{"check of values", original + `; ALTER TABLE usage_metrics ADD CONSTRAINT few CHECK (value < 100)`, "constraint few"},
	{"trigger", original + `; CREATE FUNCTION noted() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'; CREATE TRIGGER noted BEFORE INSERT ON usage_metrics FOR EACH ROW EXECUTE FUNCTION noted()`, "trigger noted"},
	{"rule", original + `; CREATE RULE silent AS ON INSERT TO usage_metrics DO INSTEAD NOTHING`, "rule silent"},
	{"row-level security", original + `; ALTER TABLE usage_metrics ENABLE ROW LEVEL SECURITY`, "row-level security"},
	{"policy", original + `; CREATE POLICY mine ON usage_metrics USING (key LIKE 'mine.%%')`, "policy mine"},
	{"foreign key of others", original + `; CREATE TABLE alerts (metric VARCHAR(64) CONSTRAINT of_metric REFERENCES usage_metrics)`, "constraint of_metric"},
	{"foreign key of its own", `CREATE TABLE names (name TEXT PRIMARY KEY); CREATE TABLE usage_metrics (key TEXT PRIMARY KEY CONSTRAINT named REFERENCES names, value BIGINT)`, "constraint named"},
	{"column privileges", original + `; GRANT SELECT (key) ON usage_metrics TO PUBLIC`, "its column key has privileges of its own"},
	{"default of values", `CREATE TABLE usage_metrics (key TEXT PRIMARY KEY, value BIGINT DEFAULT 1)`, "its column value has the default 1"},
	{"default of keys", `CREATE TABLE usage_metrics (key TEXT PRIMARY KEY DEFAULT 'x', value BIGINT)`, "its column key has the default"},
	{"collation", `CREATE TABLE usage_metrics (key TEXT COLLATE "und-x-icu" PRIMARY KEY, value BIGINT)`, "its column key has the collation"},
	{"collation that ignores case", `CREATE COLLATION any_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false); CREATE TABLE usage_metrics (key TEXT COLLATE any_case PRIMARY KEY, value BIGINT)`, "its column key has the collation"},
	{"child", `CREATE TABLE parent (key TEXT, value BIGINT); CREATE TABLE usage_metrics (PRIMARY KEY (key)) INHERITS (parent)`, "it inherits from"},
	{"parent", original + `; CREATE TABLE child () INHERITS (usage_metrics)`, "table child"},
	{"view on it", original + `; CREATE VIEW top AS SELECT key FROM usage_metrics WHERE value > 9`, "view top"},
	{"function on it", original + `; CREATE FUNCTION total() RETURNS BIGINT LANGUAGE SQL BEGIN ATOMIC SELECT SUM(value) FROM usage_metrics; END`, "function total()"},
	{"column of its type", original + `; CREATE TABLE audit (was usage_metrics)`, "column was of table audit"},
	{"negative value", original + `; INSERT INTO usage_metrics VALUES ('a', 1), ('b', -1)`, "1 row has no key, or a value that is no whole number in 0 … 2^53−1"},
	{"value beyond 2^53", `CREATE TABLE usage_metrics (key TEXT PRIMARY KEY, value BIGINT); INSERT INTO usage_metrics VALUES ('a', 9007199254740992), ('b', -1)`, "2 rows have no key, or a value that is no whole number"},
	{"no value", original + `; INSERT INTO usage_metrics VALUES ('a', NULL)`, "1 row has"},
	{"null key", `CREATE TABLE usage_metrics (key TEXT UNIQUE, value BIGINT); INSERT INTO usage_metrics VALUES (NULL, 1)`, "1 row has"},
	{"history", `CREATE TABLE usage_history (id SERIAL PRIMARY KEY, at TIMESTAMPTZ, user_id INT)`, "usage_history in schema %s"},
	{"history beside the original", original + `; CREATE TABLE usage_history (id INT)`, "usage_history in schema %s"},
	{"history as a sequence", `CREATE SEQUENCE usage_history`, "usage_history in schema %s"},
	{"history as an index", `CREATE TABLE t (key TEXT); CREATE INDEX usage_history ON t (key)`, "usage_history in schema %s"},
	{"inbox", `CREATE TABLE usage_inbox (id INT)`, "usage_inbox in schema %s"},
	{"writers", `CREATE VIEW usage_writers AS SELECT 1 AS writer`, "usage_writers in schema %s"},
	{"writers as a type", `CREATE TYPE usage_writers AS ENUM ('a')`, "usage_writers in schema %s"},
	{"writers as a domain", `CREATE DOMAIN usage_writers AS TEXT`, "usage_writers in schema %s"},
	{"daily", `CREATE TABLE usage_daily (day DATE, n INT)`, "usage_daily in schema %s"},
	{"hourly", `CREATE MATERIALIZED VIEW usage_hourly AS SELECT 1 AS n`, "usage_hourly in schema %s"},
	{"meta", `CREATE TABLE usage_meta (id INT, data JSONB)`, "usage_meta in schema %s"},
	{"meta without a version", `CREATE TABLE usage_meta (name TEXT PRIMARY KEY, value TEXT)`, "usage_meta in schema %s"},
	{"meta of other versions", `CREATE TABLE usage_meta (name TEXT PRIMARY KEY, value TEXT); INSERT INTO usage_meta VALUES ('schema', 'v2')`, "usage_meta in schema %s"},
	{"meta as a view", `CREATE VIEW usage_meta AS SELECT 'schema' AS name, '1' AS value`, "usage_meta in schema %s"},
	{"meta as a type", `CREATE TYPE usage_meta AS (a INT)`, "usage_meta in schema %s"},
}

var goodOnPostgres = []shape{
	{"the original", original, ""},
	{"of the newest types", `CREATE TABLE usage_metrics (value BIGINT NOT NULL DEFAULT 0, key TEXT PRIMARY KEY)`, ""},
	{"small", `CREATE TABLE usage_metrics (key VARCHAR(8) PRIMARY KEY, value SMALLINT NOT NULL)`, ""},
	{"unique", `CREATE TABLE usage_metrics (key TEXT NOT NULL UNIQUE, value BIGINT)`, ""},
	{"indexed twice", `CREATE TABLE usage_metrics (key TEXT CONSTRAINT metrics_key PRIMARY KEY, value BIGINT); CREATE INDEX ON usage_metrics (key)`, ""},
	{"a column dropped", `CREATE TABLE usage_metrics (id INT, key TEXT PRIMARY KEY, value BIGINT); ALTER TABLE usage_metrics DROP COLUMN id`, ""},
	{"collated by bytes", `CREATE TABLE usage_metrics (key TEXT COLLATE "C" PRIMARY KEY, value BIGINT)`, ""},
	{"granted and published", original + `; GRANT SELECT ON usage_metrics TO PUBLIC; CREATE PUBLICATION metrics FOR TABLE usage_metrics`, ""},
	{"the name of its key taken", `CREATE TABLE usage_metrics (key TEXT CONSTRAINT mine PRIMARY KEY, value BIGINT); CREATE SEQUENCE usage_metrics_pkey`, ""},
}

// Whoever has a table of one of usagekit's names keeps it as it is, and is told which
// one, what is different, and the way out.
func TestForeignTablesOnPostgreSQLStayAsTheyAre(t *testing.T) {
	url := foreignDatabase(t, foreignToPostgres)
	before := store.Server.Dump(t, url)
	for i, c := range foreignToPostgres {
		t.Run(c.name, func(t *testing.T) {
			schema := fmt.Sprintf("s%d", i)
			path, cfg := schema, store.Config{}
			if i%2 == 0 {
				path, cfg.Schema = "public", schema
			}
			err := refusal(t, openPath(t, url, path), cfg)
			want := strings.ReplaceAll(c.want, "%s", schema)
			if err == nil || !strings.Contains(strings.ReplaceAll(err.Error(), schema+".", ""), want) || !strings.Contains(err.Error(), "usage_") || !strings.Contains(err.Error(), "Config.Schema") {
				t.Errorf("New: %v\nwant %q, and Config.Schema", err, want)
			}
		})
	}
	if after := store.Server.Dump(t, url); after != before {
		t.Errorf("refusing changed the database: before\n%s\nafter\n%s", before, after)
	}
}

// A table of counters is taken over, with its rows, and counted on in.
func TestCountersOnPostgreSQLAreTakenOver(t *testing.T) {
	url := foreignDatabase(t, goodOnPostgres)
	for i, c := range goodOnPostgres {
		t.Run(c.name, func(t *testing.T) {
			db := openPath(t, url, fmt.Sprintf("s%d", i))
			if _, err := db.ExecContext(t.Context(), `INSERT INTO usage_metrics (key, value) VALUES ('a.used', 5), ('b.used', 0)`); err != nil {
				t.Fatal(err)
			}
			countsOn(t, db)
		})
	}
}

// foreignDatabase makes one with a schema for each shape: s0, s1, …
func foreignDatabase(t *testing.T, shapes []shape) string {
	if store.Server == nil {
		t.Skip("PostgreSQL was not tried: make test does")
	}
	url := store.Server.NewDatabase(t)
	db, err := sqlx.Open("postgres", url)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for i, c := range shapes {
		schema := fmt.Sprintf("s%d", i)
		if _, err := db.ExecContext(t.Context(), "CREATE SCHEMA "+schema+"; SET search_path TO "+schema+"; "+strings.ReplaceAll(c.setup, "%%", "%")+"; RESET search_path"); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
	}
	return url
}

func openPath(t *testing.T, address, path string) *sqlx.DB {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	q.Set("search_path", path)
	u.RawQuery = q.Encode()
	db, err := postgres.Open(u.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// refusal is the error of New.
func refusal(t *testing.T, db *sqlx.DB, cfg store.Config) error {
	t.Helper()
	ctx := dbtest.Context(t)
	s, err := store.New(ctx, db, cfg)
	if err == nil {
		_ = s.Shutdown(ctx)
	}
	return err
}

// countsOn starts a store beside 5 of a.used, and counts another.
func countsOn(t *testing.T, db *sqlx.DB) {
	t.Helper()
	ctx := dbtest.Context(t)
	for n := range int64(2) {
		var logs bytes.Buffer
		s, err := store.New(ctx, db, store.Config{Interval: time.Hour, Logger: slog.New(slog.NewTextHandler(&logs, nil))})
		if err != nil {
			t.Fatal(err)
		}
		s.Inc("a.used")
		s.Inc("new." + strings.Repeat("x", 100) + ".used")
		if err := s.Flush(ctx); err != nil {
			t.Error(err)
		}
		for name, want := range map[string]int64{"a.used": 6 + n, "b.used": 0} {
			if got, err := s.Get(ctx, name); got != want || err != nil {
				t.Errorf("%s = %d, %v; want %d", name, got, err, want)
			}
		}
		if err := s.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		if strings.Contains(logs.String(), "another application") {
			t.Errorf("a table of its own is called foreign: %s", &logs)
		}
	}
}

// A table that an earlier release took over although it was another application's is
// told in one sentence: as an error of New where no fold can work.
func TestTablesAlteredByAnEarlierRelease(t *testing.T) {
	if store.Server == nil {
		t.Skip("PostgreSQL was not tried: make test does")
	}
	url := store.Server.NewDatabase(t)
	db := openPath(t, url, "public")
	if err := refusal(t, db, store.Config{}); err != nil { // makes the tables
		t.Fatal(err)
	}
	const altered = `key TEXT COLLATE "C", value BIGINT NOT NULL DEFAULT 0`
	for _, c := range []struct {
		columns, want string
		works         bool
	}{
		{altered + `, updated_at TIMESTAMPTZ NOT NULL, PRIMARY KEY (key)`, "it has the column updated_at", false},
		{altered + `, tenant_id INT, PRIMARY KEY (tenant_id, key)`, "it has no unique index on key alone", false},
		{altered + `, PRIMARY KEY (key, value)`, "it has no unique index on key alone", false},
		{altered + `, id SERIAL PRIMARY KEY, UNIQUE (key)`, "it has the column id", true},
	} {
		if _, err := db.ExecContext(t.Context(), `DROP TABLE usage_metrics; CREATE TABLE usage_metrics (`+c.columns+`)`); err != nil {
			t.Fatal(err)
		}
		before := store.Server.Dump(t, url)
		var logs bytes.Buffer
		err := refusal(t, db, store.Config{Logger: slog.New(slog.NewTextHandler(&logs, nil))})
		said := logs.String()
		if !c.works {
			said = fmt.Sprint(err)
		}
		if (err == nil) != c.works || !strings.Contains(said, c.want) || !strings.Contains(said, "earlier release") || !strings.Contains(said, "Config.Schema") {
			t.Errorf("%s: %v, %s", c.columns, err, &logs)
		}
		if !c.works && before != store.Server.Dump(t, url) {
			t.Errorf("%s: refusing changed the database", c.columns)
		}
	}
	// What an operator adds to a table of ours is no fault, and says nothing about where
	// it comes from.
	if _, err := db.ExecContext(t.Context(), `DROP TABLE usage_metrics; CREATE TABLE usage_metrics (`+altered+`, PRIMARY KEY (key)); INSERT INTO usage_metrics VALUES ('a.used', 5);
CREATE TABLE known (key TEXT COLLATE "C" PRIMARY KEY);
CREATE FUNCTION noted() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'`); err != nil {
		t.Fatal(err)
	}
	for _, added := range []string{
		`CREATE TRIGGER audit AFTER INSERT OR UPDATE ON usage_metrics FOR EACH ROW EXECUTE FUNCTION noted()`,
		`ALTER TABLE usage_metrics ADD CONSTRAINT no_users CHECK (key NOT LIKE 'nobody.%')`,
		`ALTER TABLE usage_metrics ADD CONSTRAINT known FOREIGN KEY (key) REFERENCES known NOT VALID; ALTER TABLE usage_metrics DISABLE TRIGGER ALL`,
		`CREATE TABLE notes (key TEXT COLLATE "C" REFERENCES usage_metrics)`,
		`ALTER TABLE usage_metrics ADD CONSTRAINT alone EXCLUDE (key WITH =)`,
		`CREATE RULE notices AS ON DELETE TO usage_metrics DO ALSO SELECT 1`,
		`ALTER TABLE usage_metrics ENABLE ROW LEVEL SECURITY; CREATE POLICY everybody ON usage_metrics USING (true)`,
		`CREATE VIEW top AS SELECT key FROM usage_metrics; CREATE INDEX ON usage_metrics (value)`,
	} {
		if _, err := db.ExecContext(t.Context(), added); err != nil {
			t.Fatal(err)
		}
		var logs bytes.Buffer
		if err := refusal(t, db, store.Config{Logger: slog.New(slog.NewTextHandler(&logs, nil))}); err != nil || strings.Contains(logs.String(), "earlier release") {
			t.Errorf("%s: %v, %s", added, err, &logs)
		}
	}
	countsOn(t, db)
}

// A name leads to one table, whatever else the search path and the session hold.
func TestNamesLeadToOneSchema(t *testing.T) {
	if store.Server == nil {
		t.Skip("PostgreSQL was not tried: make test does")
	}
	ctx := dbtest.Context(t)
	address := store.Server.NewDatabase(t)
	db := openPath(t, address, "a, b")
	if _, err := db.ExecContext(ctx, `CREATE SCHEMA a; CREATE SCHEMA b`); err != nil {
		t.Fatal(err)
	}
	t.Run("another's table would be hidden", func(t *testing.T) {
		for _, table := range []string{"usage_history (id INT)", "usage_metrics (key VARCHAR(64) PRIMARY KEY, value INT)"} {
			if _, err := db.ExecContext(ctx, `CREATE TABLE b.`+table); err != nil {
				t.Fatal(err)
			}
			name, _, _ := strings.Cut(table, " ")
			if err := refusal(t, db, store.Config{}); err == nil || !strings.Contains(err.Error(), name+" in schema b") || !strings.Contains(err.Error(), "Config.Schema") {
				t.Errorf("New: %v", err)
			}
			if err := refusal(t, db, store.Config{Schema: "a"}); err != nil { // who says so hides it
				t.Errorf("New: %v", err)
			}
			if _, err := db.ExecContext(ctx, `DROP TABLE b.`+name+`; DROP SCHEMA a CASCADE; CREATE SCHEMA a`); err != nil {
				t.Fatal(err)
			}
		}
	})
	t.Run("a temporary table hides none", func(t *testing.T) {
		one := openPath(t, address, "b")
		one.SetMaxOpenConns(1)
		one.SetMaxIdleConns(1)
		if _, err := one.ExecContext(ctx, `CREATE TEMPORARY TABLE usage_metrics (key TEXT PRIMARY KEY, value BIGINT); CREATE TEMPORARY TABLE usage_inbox (id INT)`); err != nil {
			t.Fatal(err)
		}
		s, err := store.New(ctx, one, store.Config{Interval: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		s.Inc("a.used")
		if err := s.Flush(ctx); err != nil {
			t.Error(err)
		}
		if err := s.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		var n int
		if err := one.GetContext(ctx, &n, `SELECT value FROM b.usage_metrics WHERE key = 'a.used' AND to_regclass('pg_temp.usage_inbox') IS NOT NULL`); n != 1 || err != nil {
			t.Errorf("a.used = %d, %v, on the connection with the temporary tables", n, err)
		}
	})
	t.Run("the path changes under the store", func(t *testing.T) {
		one := openPath(t, address, "b")
		one.SetMaxOpenConns(1)
		s, err := store.New(ctx, one, store.Config{Interval: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := one.ExecContext(ctx, `SET search_path TO a`); err != nil { // as applications with tenants do
			t.Fatal(err)
		}
		s.Inc("b.used")
		if err := s.Flush(ctx); err != nil {
			t.Error(err)
		}
		if n, err := s.Get(ctx, "b.used"); n != 1 || err != nil {
			t.Errorf("b.used = %d, %v", n, err)
		}
		if err := s.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		var path string
		if err := one.GetContext(ctx, &path, `SHOW search_path`); path != "a" || err != nil {
			t.Errorf("the connection was given up: its path is %s, %v", path, err)
		}
	})
	t.Run("a temporary schema holds none", func(t *testing.T) {
		one := openPath(t, address, "pg_temp, b")
		one.SetMaxOpenConns(1)
		if _, err := one.ExecContext(ctx, `CREATE TEMPORARY TABLE x (id INT)`); err != nil {
			t.Fatal(err)
		}
		if _, err := one.ExecContext(ctx, `DROP TABLE b.usage_meta`); err != nil { // so that tables are to be made
			t.Fatal(err)
		}
		if err := refusal(t, one, store.Config{}); err == nil || !strings.Contains(err.Error(), "Config.Schema") {
			t.Errorf("New: %v", err)
		}
	})
	t.Run("no schema of the path is there", func(t *testing.T) {
		if err := refusal(t, openPath(t, address, "nowhere"), store.Config{}); err == nil || !strings.Contains(err.Error(), "search_path") || !strings.Contains(err.Error(), "Config.Schema") {
			t.Errorf("New: %v", err)
		}
	})
	t.Run("a table of another role", func(t *testing.T) {
		role := "role_" + pq.QuoteIdentifier(strings.ReplaceAll(filepath.Base(address), "?", "_"))[1:20]
		for _, q := range []string{
			`CREATE SCHEMA c`, `CREATE TABLE c.usage_metrics (key TEXT PRIMARY KEY, value BIGINT)`, `CREATE ROLE ` + role + ` LOGIN`,
			`GRANT ALL ON SCHEMA c TO ` + role, `GRANT ALL ON c.usage_metrics TO ` + role,
		} {
			if _, err := db.ExecContext(ctx, q); err != nil {
				t.Fatal(err)
			}
		}
		t.Cleanup(func() {
			if _, err := db.ExecContext(context.Background(), `DROP OWNED BY `+role+`; DROP ROLE `+role); err != nil {
				t.Error(err)
			}
		})
		u, err := url.Parse(address)
		if err != nil {
			t.Fatal(err)
		}
		u.User = url.User(role)
		if err := refusal(t, openPath(t, u.String(), "c"), store.Config{}); err == nil || !strings.Contains(err.Error(), "belongs to another role") {
			t.Errorf("New: %v", err)
		}
	})
}

var foreignToSQLite = []shape{
	{"view", `CREATE VIEW usage_metrics AS SELECT 'a' AS key, 1 AS value`, "usage_metrics: it is a view"},
	{"virtual table", `CREATE VIRTUAL TABLE usage_metrics USING fts5(key, value)`, "it is a virtual table"},
	{"index", `CREATE TABLE t (key TEXT); CREATE INDEX usage_metrics ON t (key)`, "it is an index"},
	{"another case", `CREATE TABLE Usage_Metrics (name TEXT PRIMARY KEY, count INTEGER)`, "it has no column key"},
	{"tenants", `CREATE TABLE usage_metrics (tenant_id INTEGER, key TEXT, value INTEGER, PRIMARY KEY (tenant_id, key)); INSERT INTO usage_metrics VALUES (1, 'a', 1), (2, 'a', 2)`, "it has the column tenant_id"},
	{"a time", `CREATE TABLE usage_metrics (key TEXT PRIMARY KEY, value INTEGER, updated_at TEXT)`, "it has the column updated_at"},
	{"generated column", `CREATE TABLE usage_metrics (key TEXT PRIMARY KEY, value INTEGER GENERATED ALWAYS AS (7))`, "its column value is generated"},
	{"hidden column", `CREATE TABLE usage_metrics (key TEXT PRIMARY KEY, value INTEGER, twice INTEGER AS (2 * value) VIRTUAL)`, "it has the column twice"},
	{"floats", `CREATE TABLE usage_metrics (key TEXT PRIMARY KEY, value REAL)`, "its column value is of type REAL"},
	{"decimals", `CREATE TABLE usage_metrics (key TEXT PRIMARY KEY, value NUMERIC(12,4)); INSERT INTO usage_metrics VALUES ('cost.usd', 12.3456)`, "its column value is of type NUMERIC(12,4)"},
	{"no type", `CREATE TABLE usage_metrics (key PRIMARY KEY, value)`, "its column key is of type"},
	{"numbers as keys", `CREATE TABLE usage_metrics (key INTEGER PRIMARY KEY, value INTEGER)`, "its column key is of type INTEGER"},
	{"bytes as keys", `CREATE TABLE usage_metrics (key BLOB PRIMARY KEY, value INTEGER)`, "its column key is of type BLOB"},
	{"no key", `CREATE TABLE usage_metrics (key TEXT, value INTEGER); INSERT INTO usage_metrics VALUES ('a', 1), ('a', 2)`, "it has no unique index on key alone"},
	{"key of both", `CREATE TABLE usage_metrics (key TEXT, value INTEGER, PRIMARY KEY (key, value))`, "it has no unique index on key alone"},
	{"key that ignores case", `CREATE TABLE usage_metrics (key TEXT COLLATE NOCASE PRIMARY KEY, value INTEGER)`, "it has no unique index on key alone"},
	{"key of some", `CREATE TABLE usage_metrics (key TEXT, value INTEGER); CREATE UNIQUE INDEX some ON usage_metrics (key) WHERE value > 0`, "it has no unique index on key alone"},
	{"key of lower case", `CREATE TABLE usage_metrics (key TEXT, value INTEGER); CREATE UNIQUE INDEX low ON usage_metrics (lower(key))`, "it has no unique index on key alone"},
	{"index of values", `CREATE TABLE usage_metrics (key TEXT PRIMARY KEY, value INTEGER); CREATE INDEX by_value ON usage_metrics (value)`, "it has the index by_value"},
	{"unique values", `CREATE TABLE usage_metrics (key TEXT PRIMARY KEY, value INTEGER UNIQUE)`, "it has the index sqlite_autoindex_usage_metrics_2"},
	{"check", `CREATE TABLE usage_metrics (key TEXT PRIMARY KEY, value INTEGER check(value < 100))`, "it has a CHECK"},
	{"conflict clause", `CREATE TABLE usage_metrics (key TEXT PRIMARY KEY ON CONFLICT REPLACE, value INTEGER)`, "it has an ON CONFLICT clause"},
	{"default of values", `CREATE TABLE usage_metrics (key TEXT PRIMARY KEY, value INTEGER DEFAULT 1)`, "its column value has the default 1"},
	{"default of keys", `CREATE TABLE usage_metrics (key TEXT PRIMARY KEY DEFAULT 'x', value INTEGER)`, "its column key has the default"},
	{"trigger", original + `; CREATE TRIGGER noted AFTER INSERT ON usage_metrics BEGIN SELECT 1; END`, "trigger noted"},
	{"trigger of another table", original + `; CREATE TABLE t (id INTEGER); CREATE TRIGGER counted AFTER INSERT ON t BEGIN UPDATE usage_metrics SET value = value + 1 WHERE key = 'a'; END`, "trigger counted"},
	{"view on it", original + `; CREATE VIEW top AS SELECT key FROM "Usage_Metrics"`, "view top"},
	{"foreign key of others", original + `; CREATE TABLE alerts (metric TEXT REFERENCES usage_metrics (key))`, "table alerts"},
	{"foreign key of its own", `CREATE TABLE names (name TEXT PRIMARY KEY); CREATE TABLE usage_metrics (key TEXT PRIMARY KEY REFERENCES names, value INTEGER)`, "it has a foreign key"},
	{"negative value", original + `; INSERT INTO usage_metrics VALUES ('a', 1), ('b', -1)`, "1 row has no key, or a value that is no whole number in 0 … 2^53−1"},
	{"value beyond 2^53", original + `; INSERT INTO usage_metrics VALUES ('a', 9007199254740992), ('b', -1)`, "2 rows have no key, or a value"},
	{"no value", original + `; INSERT INTO usage_metrics VALUES ('a', NULL)`, "1 row has"},
	{"null key", original + `; INSERT INTO usage_metrics VALUES (NULL, 1)`, "1 row has"},
	{"text in a column of numbers", original + `; INSERT INTO usage_metrics VALUES ('a', 'many')`, "1 row has"},
	{"fraction in a column of numbers", original + `; INSERT INTO usage_metrics VALUES ('a', 1.5)`, "1 row has"},
	{"bytes in a column of texts", original + `; INSERT INTO usage_metrics VALUES (x'61', 1)`, "1 row has"},
	{"a table of the interim name", original + `; CREATE TABLE usage_metrics_before (id INTEGER)`, "usage_metrics_before"},
	{"history", `CREATE TABLE usage_history (id INTEGER PRIMARY KEY, at TEXT)`, "usage_history"},
	{"history of another case", `CREATE TABLE USAGE_HISTORY (id INTEGER PRIMARY KEY, at TEXT)`, "USAGE_HISTORY"},
	{"history beside the original", original + `; CREATE VIEW usage_history AS SELECT 1`, "usage_history"},
	{"inbox", `CREATE TABLE usage_inbox (id INTEGER)`, "usage_inbox"},
	{"writers", `CREATE TABLE t (id INTEGER); CREATE INDEX usage_writers ON t (id)`, "usage_writers"},
	{"daily", `CREATE TABLE usage_daily (day TEXT, n INTEGER)`, "usage_daily"},
	{"hourly", `CREATE VIEW usage_hourly AS SELECT 1 AS n`, "usage_hourly"},
	{"meta", `CREATE TABLE usage_meta (id INTEGER, data TEXT)`, "usage_meta"},
	{"meta of another case", `CREATE TABLE Usage_Meta (id INTEGER, data TEXT)`, "Usage_Meta"},
	{"meta without a version", `CREATE TABLE usage_meta (name TEXT PRIMARY KEY, value TEXT)`, "usage_meta"},
	{"meta as a view", `CREATE VIEW usage_meta AS SELECT 'schema' AS name, '1' AS value`, "usage_meta"},
}

var goodOnSQLite = []shape{
	{"the original", original, ""},
	{"of ours", `CREATE TABLE usage_metrics (value INTEGER NOT NULL DEFAULT 0, key TEXT PRIMARY KEY) STRICT, WITHOUT ROWID`, ""},
	{"without rowid", `CREATE TABLE usage_metrics (key TEXT PRIMARY KEY, value INTEGER) WITHOUT ROWID`, ""},
	{"unique", `CREATE TABLE "Usage_metrics" ("Key" TEXT NOT NULL, "VALUE" BIGINT DEFAULT '0', UNIQUE ("Key"))`, ""},
	{"indexed twice", `CREATE TABLE usage_metrics (key TEXT PRIMARY KEY, value INT); CREATE INDEX again ON usage_metrics (key)`, ""},
}

func TestForeignTablesOnSQLiteStayAsTheyAre(t *testing.T) {
	for _, c := range foreignToSQLite {
		t.Run(c.name, func(t *testing.T) {
			db := foreignFile(t, c.setup)
			before := schemaOf(t, db)
			err := refusal(t, db, store.Config{})
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "a file of") {
				t.Errorf("New: %v\nwant %q, and a file of its own", err, c.want)
			}
			if after := schemaOf(t, db); after != before {
				t.Errorf("refusing changed the database: before\n%s\nafter\n%s", before, after)
			}
		})
	}
}

func TestCountersOnSQLiteAreTakenOver(t *testing.T) {
	for _, c := range goodOnSQLite {
		t.Run(c.name, func(t *testing.T) {
			countsOn(t, foreignFile(t, c.setup+`; INSERT INTO usage_metrics (key, value) VALUES ('a.used', 5), ('b.used', 0)`))
		})
	}
}

// An earlier release renamed another application's table before it was dropped, and
// with it what named the table.
func TestViewsBrokenByAnEarlierReleaseAreTold(t *testing.T) {
	db := foreignFile(t, "")
	if err := refusal(t, db, store.Config{}); err != nil {
		t.Fatal(err)
	}
	if _, err := db.ExecContext(t.Context(), `CREATE VIEW top AS SELECT key FROM "usage_metrics_before"`); err != nil {
		t.Fatal(err)
	}
	var logs bytes.Buffer
	if err := refusal(t, db, store.Config{Logger: slog.New(slog.NewTextHandler(&logs, nil))}); err != nil || !strings.Contains(logs.String(), "view top") || !strings.Contains(logs.String(), "earlier release") {
		t.Errorf("New: %v, and the log says %q", err, &logs)
	}
}

func foreignFile(t *testing.T, setup string) *sqlx.DB {
	t.Helper()
	db, err := sqlite.Open(filepath.Join(t.TempDir(), "usage.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	if _, err := db.ExecContext(t.Context(), setup); err != nil {
		t.Fatal(err)
	}
	return db
}

func schemaOf(t *testing.T, db *sqlx.DB) string {
	t.Helper()
	var rows []string
	if err := db.SelectContext(t.Context(), &rows, `SELECT type || ' ' || name || ' ' || rootpage || ' ' || COALESCE(sql, '') FROM sqlite_master ORDER BY rowid`); err != nil {
		t.Fatal(err)
	}
	var n int
	if err := db.GetContext(t.Context(), &n, `PRAGMA schema_version`); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%d\n%s", n, strings.Join(rows, "\n"))
}
