-- What the configuration was and when it changed; and samples of the machine beside those of its GPUs.
--
-- The outbox names its units' tables by form only (V2), so that nothing of it has to be widened here.

-- What changed at one start, or by one new recipe: the unit that is sent.
CREATE TABLE config_changes (
    id           BLOB NOT NULL PRIMARY KEY CHECK (length(id) = 16),         -- UUIDv7
    occurred_at  INTEGER NOT NULL,                                          -- when the daemon began to work by it
    key_count    INTEGER NOT NULL CHECK (key_count >= 1)                    -- rows of config_history
) STRICT, WITHOUT ROWID;

-- Append-only: the last row of a key is its value. What is secret stands here as a digest.
CREATE TABLE config_history (
    seq            INTEGER PRIMARY KEY,                                     -- order of the commits
    id             BLOB NOT NULL UNIQUE CHECK (length(id) = 16),            -- UUIDv7
    change_id      BLOB NOT NULL REFERENCES config_changes (id),            -- what changed together
    occurred_at    INTEGER NOT NULL,                                        -- of the change
    config_key     TEXT NOT NULL CHECK (config_key <> ''),                  -- section.key, stations.NAME.key
    old_value      TEXT CHECK (json_valid(old_value)),                      -- JSON; NULL: there was none
    new_value      TEXT CHECK (json_valid(new_value)),                      -- JSON; NULL: there is none any more
    config_sha256  BLOB NOT NULL CHECK (length(config_sha256) = 32),        -- of the whole configuration from then on
    source         TEXT NOT NULL CHECK (source IN ('file', 'bundle', 'command')), -- file; bundle: what the centre publishes; command: a command line
    changed_by     TEXT CHECK (changed_by <> ''),                           -- who, where it was said
    change_reason  TEXT CHECK (change_reason <> ''),                        -- why, where it was said
    CONSTRAINT config_history_value_ck CHECK (old_value IS NOT new_value)
) STRICT;

CREATE INDEX config_history_change_idx ON config_history (change_id);
CREATE INDEX config_history_key_idx ON config_history (config_key, seq);

-- Samples waiting for the central side: a bounded ring as gpu_stats.
CREATE TABLE system_stats (
    seq                 INTEGER PRIMARY KEY AUTOINCREMENT,                  -- order of arrival
    recorded_at         INTEGER NOT NULL,                                   -- when it was measured
    id                  BLOB NOT NULL CHECK (length(id) = 16),              -- UUIDv7
    cpu_usage_pct       REAL CHECK (cpu_usage_pct BETWEEN 0 AND 100),       -- of all cores, since the sample before
    load1               REAL CHECK (load1 >= 0 AND load1 < 9e999),          -- runnable processes, mean of a minute
    memory_used_bytes   INTEGER CHECK (memory_used_bytes >= 0),             -- of the machine, without what can be given back
    memory_total_bytes  INTEGER CHECK (memory_total_bytes >= 0),            -- of the machine
    process_rss_bytes   INTEGER CHECK (process_rss_bytes >= 0),             -- of the daemon
    disk_used_pct       REAL CHECK (disk_used_pct BETWEEN 0 AND 100),       -- of the file system of the state folder
    disk_free_bytes     INTEGER CHECK (disk_free_bytes >= 0),               -- free there
    open_fds            INTEGER CHECK (open_fds >= 0),                      -- of the daemon
    temperature_c       REAL CHECK (temperature_c BETWEEN -273.15 AND 1000), -- of the hottest thermal zone
    fsync_p99_ms        REAL CHECK (fsync_p99_ms >= 0 AND fsync_p99_ms < 9e999), -- of the ledger's commits since the sample before
    clock_offset_ms     REAL CHECK (abs(clock_offset_ms) < 9e999),          -- this clock minus true time, as the kernel knows it
    uptime_s            INTEGER CHECK (uptime_s >= 0),                      -- of the daemon
    outbox_pending      INTEGER CHECK (outbox_pending >= 0),                -- units that wait for the central side
    outbox_oldest_s     REAL CHECK (outbox_oldest_s >= 0 AND outbox_oldest_s < 9e999) -- age of the oldest
) STRICT;
