-- A batch is compact already: trying to compress it again costs two fifths of the
-- inserts that a server takes.
ALTER TABLE usage_inbox ALTER COLUMN payload SET STORAGE EXTERNAL;
-- Its rows live for a second. Vacuum comes by their number, not by a share of a
-- table that is most often empty, and does not rest.
ALTER TABLE usage_inbox SET (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0,
    autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = -1, autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 100000,
    toast.autovacuum_vacuum_scale_factor = 0, toast.autovacuum_vacuum_threshold = 20000, toast.autovacuum_vacuum_cost_delay = 0
);
-- Of each instance that counts, a row changes with every fold: in place, if there is room.
ALTER TABLE usage_writers SET (
    fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0
);
