-- What stood in usage_meta under names that were paths becomes rows with columns.
CREATE TABLE usage_crossings ( -- of thresholds, each once
    step   INTEGER NOT NULL, -- 0: the total of all time
    bucket INTEGER NOT NULL, -- Unix seconds; 0 of all time
    value  INTEGER NOT NULL, -- the threshold's
    key    TEXT NOT NULL,
    n      INTEGER NOT NULL, -- what the counter had reached
    time   INTEGER NOT NULL, -- Unix milliseconds
    PRIMARY KEY (step, bucket, value, key)
) STRICT, WITHOUT ROWID;
WITH a AS (SELECT substr(name, 10) AS rest, value AS told FROM usage_meta WHERE name > 'crossing/' AND name < 'crossing0'),
b AS (SELECT CAST(rest AS INTEGER) AS step, substr(rest, instr(rest, '/') + 1) AS rest, told FROM a),
c AS (SELECT step, CAST(rest AS INTEGER) AS bucket, substr(rest, instr(rest, '/') + 1) AS rest, told FROM b),
d AS (SELECT step, bucket, CAST(rest AS INTEGER) AS value, substr(rest, instr(rest, '/') + 1) AS key, told FROM c)
INSERT OR IGNORE INTO usage_crossings
    SELECT step, bucket, value, key, CAST(told AS INTEGER), CAST(substr(told, instr(told, ' ') + 1) AS INTEGER) FROM d WHERE value > 0;

CREATE TABLE usage_notices ( -- crossings that a receiver is still to be told of
    receiver TEXT NOT NULL,    -- '': all of whichever instance finds it
    time     INTEGER NOT NULL,
    step     INTEGER NOT NULL,
    bucket   INTEGER NOT NULL,
    value    INTEGER NOT NULL,
    key      TEXT NOT NULL,
    n        INTEGER NOT NULL,
    claimed  INTEGER NOT NULL, -- until when, Unix milliseconds; 0: nobody has yet
    tries    INTEGER NOT NULL,
    PRIMARY KEY (receiver, time, step, bucket, value, key)
) STRICT, WITHOUT ROWID;
WITH a AS (SELECT substr(name, 8) AS rest, value AS told FROM usage_meta WHERE name > 'notify/' AND name < 'notify0'),
b AS (SELECT CAST(rest AS INTEGER) AS time, substr(rest, instr(rest, '/') + 1) AS rest, told FROM a),
c AS (SELECT time, CAST(rest AS INTEGER) AS step, substr(rest, instr(rest, '/') + 1) AS rest, told FROM b),
d AS (SELECT time, step, CAST(rest AS INTEGER) AS bucket, substr(rest, instr(rest, '/') + 1) AS rest, told FROM c),
e AS (SELECT time, step, bucket, CAST(rest AS INTEGER) AS value, substr(rest, instr(rest, '/') + 1) AS key, told, substr(told, instr(told, ' ') + 1) AS more FROM d)
INSERT OR IGNORE INTO usage_notices
    SELECT '', time, step, bucket, value, key, CAST(substr(more, instr(more, ' ') + 1) AS INTEGER), CAST(told AS INTEGER), CAST(more AS INTEGER) FROM e WHERE value > 0;

CREATE TABLE usage_quarantine ( -- batches that could not be counted
    writer  TEXT NOT NULL,
    seq     INTEGER NOT NULL,
    payload BLOB NOT NULL,
    PRIMARY KEY (writer, seq)
) STRICT, WITHOUT ROWID;

CREATE TABLE usage_rules ( -- of the zone, as instances had them
    which    TEXT PRIMARY KEY, -- a hash of them
    rules    TEXT NOT NULL,
    seen     INTEGER NOT NULL, -- when an instance was that has them, Unix milliseconds
    in_force INTEGER NOT NULL  -- 1 of those by which is counted, 0 of others
) STRICT, WITHOUT ROWID;
INSERT INTO usage_rules
    SELECT substr(name, 7), substr(value, instr(value, ' ') + 1), CAST(value AS INTEGER), substr(name, 7) = COALESCE((SELECT r.value FROM usage_meta r WHERE r.name = 'rules'), '')
    FROM usage_meta WHERE name > 'rules/' AND name < 'rules0';

CREATE TABLE usage_removal ( -- one row: as of when history was removed last
    one     INTEGER PRIMARY KEY CHECK (one = 1),
    last    INTEGER NOT NULL, -- Unix milliseconds, as the next two
    doubted INTEGER NOT NULL, -- since when a clock that is far from that has gone on; 0: none has
    seen    INTEGER NOT NULL, -- until when
    gaps    INTEGER NOT NULL  -- how often nobody had looked for long
) STRICT, WITHOUT ROWID;
WITH a AS (SELECT CAST(value AS INTEGER) AS last, substr(value, instr(value, ' ') + 1) AS rest FROM usage_meta WHERE name = 'pruned' AND value LIKE '% % %'),
b AS (SELECT last, CAST(rest AS INTEGER) AS doubted, substr(rest, instr(rest, ' ') + 1) AS rest FROM a),
c AS (SELECT last, doubted, CAST(rest AS INTEGER) AS seen, CASE instr(rest, ' ') WHEN 0 THEN 0 ELSE CAST(substr(rest, instr(rest, ' ') + 1) AS INTEGER) END AS gaps FROM b)
INSERT INTO usage_removal SELECT 1, last, doubted, seen, gaps FROM c;

DELETE FROM usage_meta WHERE name IN ('rules', 'pruned') OR name > 'crossing/' AND name < 'crossing0' OR name > 'notify/' AND name < 'notify0' OR name > 'tell/' AND name < 'tell0' OR name > 'rules/' AND name < 'rules0';

-- A release that knows less of what the tables mean must not write to them.
INSERT INTO usage_meta (name, value) VALUES ('floor', '3');
