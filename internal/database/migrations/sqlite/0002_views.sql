-- For people and their charts: hours of all but users, and days, each named by the
-- time (UTC) at which it begins. What is summed from them is right for every counter
-- but user.active.daily, which is of its day.
CREATE VIEW usage_hourly AS
    SELECT strftime('%Y-%m-%dT%H:%M:%SZ', bucket, 'unixepoch') AS time, key, value FROM usage_history WHERE step = 1;
CREATE VIEW usage_daily AS
    SELECT strftime('%Y-%m-%dT%H:%M:%SZ', bucket, 'unixepoch') AS time, key, value FROM usage_history WHERE step = 2;
