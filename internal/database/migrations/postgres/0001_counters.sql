-- usage_metrics may be there already: a table of counters, with VARCHAR(64) keys and
-- INTEGER values, say. It is widened in place, and its rows stay. Whatever else has
-- the name was refused before.
CREATE TABLE IF NOT EXISTS usage_metrics (
    key   TEXT COLLATE "C" PRIMARY KEY,
    value BIGINT NOT NULL DEFAULT 0
);
ALTER TABLE usage_metrics
    ALTER COLUMN key TYPE TEXT COLLATE "C",
    ALTER COLUMN key SET NOT NULL,
    ALTER COLUMN value TYPE BIGINT,
    ALTER COLUMN value SET DEFAULT 0,
    ALTER COLUMN value SET NOT NULL;
ALTER TABLE usage_metrics SET (fillfactor = 70);

CREATE TABLE usage_history (
    step   SMALLINT NOT NULL, -- 1 hour, 2 day, 3 month
    bucket BIGINT NOT NULL,   -- its start in the zone, Unix seconds
    key    TEXT COLLATE "C" NOT NULL,
    value  BIGINT NOT NULL,
    PRIMARY KEY (step, bucket, key)
) WITH (fillfactor = 70);

CREATE TABLE usage_inbox (
    writer  TEXT COLLATE "C" NOT NULL,
    seq     BIGINT NOT NULL,
    opened  BIGINT NOT NULL,  -- Unix milliseconds
    payload BYTEA NOT NULL,
    PRIMARY KEY (writer, seq)
);

CREATE TABLE usage_writers (
    writer TEXT COLLATE "C" PRIMARY KEY,
    seq    BIGINT NOT NULL,   -- of its last batch that was folded
    sum    BYTEA NOT NULL,    -- the checksum of that batch
    seen   BIGINT NOT NULL    -- Unix milliseconds
);

CREATE TABLE usage_meta (
    name  TEXT COLLATE "C" PRIMARY KEY,
    value TEXT NOT NULL
);
