-- What stood in usage_meta under names that were paths becomes rows with columns.
CREATE TABLE usage_crossings ( -- of thresholds, each once
    step   SMALLINT NOT NULL, -- 0: the total of all time
    bucket BIGINT NOT NULL,   -- Unix seconds; 0 of all time
    value  BIGINT NOT NULL,   -- the threshold's
    key    TEXT COLLATE "C" NOT NULL,
    n      BIGINT NOT NULL,   -- what the counter had reached
    time   BIGINT NOT NULL,   -- Unix milliseconds
    PRIMARY KEY (step, bucket, value, key)
);
INSERT INTO usage_crossings
    SELECT CAST(split_part(name, '/', 2) AS SMALLINT), CAST(split_part(name, '/', 3) AS BIGINT), CAST(split_part(name, '/', 4) AS BIGINT),
        substr(name, length(split_part(name, '/', 2) || split_part(name, '/', 3) || split_part(name, '/', 4)) + 13),
        CAST(split_part(value, ' ', 1) AS BIGINT), CAST(split_part(value, ' ', 2) AS BIGINT)
    FROM usage_meta WHERE name ~ '^crossing/[0-3]/[-0-9]{1,18}/[0-9]{1,16}/.' AND value ~ '^[0-9]{1,18} [0-9]{1,18}$'
    ON CONFLICT DO NOTHING;

CREATE TABLE usage_notices ( -- crossings that a receiver is still to be told of
    receiver TEXT COLLATE "C" NOT NULL, -- '': all of whichever instance finds it
    time     BIGINT NOT NULL,
    step     SMALLINT NOT NULL,
    bucket   BIGINT NOT NULL,
    value    BIGINT NOT NULL,
    key      TEXT COLLATE "C" NOT NULL,
    n        BIGINT NOT NULL,
    claimed  BIGINT NOT NULL,  -- until when, Unix milliseconds; 0: nobody has yet
    tries    INTEGER NOT NULL,
    PRIMARY KEY (receiver, time, step, bucket, value, key)
);
INSERT INTO usage_notices
    SELECT '', CAST(split_part(name, '/', 2) AS BIGINT), CAST(split_part(name, '/', 3) AS SMALLINT), CAST(split_part(name, '/', 4) AS BIGINT), CAST(split_part(name, '/', 5) AS BIGINT),
        substr(name, length(split_part(name, '/', 2) || split_part(name, '/', 3) || split_part(name, '/', 4) || split_part(name, '/', 5)) + 12),
        CAST(split_part(value, ' ', 3) AS BIGINT), CAST(split_part(value, ' ', 1) AS BIGINT), CAST(split_part(value, ' ', 2) AS INTEGER)
    FROM usage_meta WHERE name ~ '^notify/[0-9]{1,18}/[0-3]/[-0-9]{1,18}/[0-9]{1,16}/.' AND value ~ '^[0-9]{1,18} [0-9]{1,9} [0-9]{1,18}$'
    ON CONFLICT DO NOTHING;

CREATE TABLE usage_quarantine ( -- batches that could not be counted
    writer  TEXT COLLATE "C" NOT NULL,
    seq     BIGINT NOT NULL,
    payload BYTEA NOT NULL,
    PRIMARY KEY (writer, seq)
);

CREATE TABLE usage_rules ( -- of the zone, as instances had them
    which    TEXT COLLATE "C" PRIMARY KEY, -- a hash of them
    rules    TEXT NOT NULL,
    seen     BIGINT NOT NULL,   -- when an instance was that has them, Unix milliseconds
    in_force SMALLINT NOT NULL  -- 1 of those by which is counted, 0 of others
);
INSERT INTO usage_rules
    SELECT substr(name, 7), substr(value, strpos(value, ' ') + 1), CAST(split_part(value, ' ', 1) AS BIGINT),
        CASE substr(name, 7) WHEN (SELECT r.value FROM usage_meta r WHERE r.name = 'rules') THEN 1 ELSE 0 END
    FROM usage_meta WHERE name LIKE 'rules/%' AND value ~ '^[0-9]{1,18} ';

CREATE TABLE usage_removal ( -- one row: as of when history was removed last
    one     SMALLINT PRIMARY KEY CHECK (one = 1),
    last    BIGINT NOT NULL, -- Unix milliseconds, as the next two
    doubted BIGINT NOT NULL, -- since when a clock that is far from that has gone on; 0: none has
    seen    BIGINT NOT NULL, -- until when
    gaps    BIGINT NOT NULL  -- how often nobody had looked for long
);
INSERT INTO usage_removal
    SELECT 1, CAST(split_part(value, ' ', 1) AS BIGINT), CAST(split_part(value, ' ', 2) AS BIGINT), CAST(split_part(value, ' ', 3) AS BIGINT), CAST('0' || split_part(value, ' ', 4) AS BIGINT)
    FROM usage_meta WHERE name = 'pruned' AND value ~ '^[-0-9]{1,18} [-0-9]{1,18} [-0-9]{1,18}( [0-9]{1,18}){0,1}$';

DELETE FROM usage_meta WHERE name IN ('rules', 'pruned') OR name ~ '^(crossing|notify|tell|rules)/';

-- A release that knows less of what the tables mean must not write to them.
INSERT INTO usage_meta (name, value) VALUES ('floor', '4');
