-- usage_metrics may be there already: a table of counters, with VARCHAR(64) keys and
-- INTEGER values, say. Its rows move into one of ours. Whatever else has the name was
-- refused before.
CREATE TABLE IF NOT EXISTS usage_metrics (key TEXT, value INTEGER);
ALTER TABLE usage_metrics RENAME TO usage_metrics_before;
CREATE TABLE usage_metrics (
    key   TEXT PRIMARY KEY,
    value INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;
INSERT INTO usage_metrics (key, value)
    SELECT key, value FROM usage_metrics_before;
DROP TABLE usage_metrics_before;

CREATE TABLE usage_history (
    step   INTEGER NOT NULL, -- 1 hour, 2 day, 3 month
    bucket INTEGER NOT NULL, -- its start in the zone, Unix seconds
    key    TEXT NOT NULL,
    value  INTEGER NOT NULL,
    PRIMARY KEY (step, bucket, key)
) STRICT, WITHOUT ROWID;

CREATE TABLE usage_inbox (
    writer  TEXT NOT NULL,
    seq     INTEGER NOT NULL,
    opened  INTEGER NOT NULL, -- Unix milliseconds
    payload BLOB NOT NULL,
    PRIMARY KEY (writer, seq)
) STRICT, WITHOUT ROWID;

CREATE TABLE usage_writers (
    writer TEXT PRIMARY KEY,
    seq    INTEGER NOT NULL, -- of its last batch that was folded
    sum    BLOB NOT NULL,    -- the checksum of that batch
    seen   INTEGER NOT NULL  -- Unix milliseconds
) STRICT, WITHOUT ROWID;

CREATE TABLE usage_meta (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;
