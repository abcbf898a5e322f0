-- What the centre wants of this device. Its rows are kept as they came, beside what was made of them, so that one which
-- cannot be used yet is tried again, and one for all sites serves when the site's own is withdrawn.

CREATE TABLE central_rows (
    table_name  TEXT NOT NULL,                                      -- table at the centre
    id          BLOB NOT NULL CHECK (length(id) = 16),              -- of the row there
    key         TEXT NOT NULL,                                      -- part number, kit code, …; empty where the row does not say
    is_site     INTEGER NOT NULL CHECK (is_site IN (0, 1)),         -- 1: for this site, 0: for every site; the site's wins
    change_seq  INTEGER NOT NULL,                                   -- number of its last change there
    format      INTEGER NOT NULL CHECK (format >= 1),               -- its layout; a newer one than this program knows is set aside
    body        TEXT NOT NULL CHECK (json_valid(body)),             -- JSON: what it says
    state       TEXT NOT NULL CHECK (state IN ('applied', 'shadowed', 'set_aside')), -- in use, hidden by the site's own, or of no use here
    error       TEXT,                                               -- why it was set aside
    waits_for   TEXT,                                               -- table and key of the row that it names and that is not here yet
    fetched_at  INTEGER NOT NULL,                                   -- when it came
    PRIMARY KEY (table_name, id),
    CONSTRAINT central_rows_error_ck CHECK ((state = 'set_aside') = (error IS NOT NULL))
) STRICT;

CREATE INDEX central_rows_key_idx ON central_rows (table_name, key);
CREATE INDEX central_rows_waits_for_idx ON central_rows (waits_for) WHERE state = 'set_aside';

-- The cursors. One moves in the transaction that takes in the rows below it.
CREATE TABLE cache_state (
    table_name  TEXT NOT NULL PRIMARY KEY,                          -- table at the centre
    version     INTEGER NOT NULL CHECK (version >= 0),              -- highest change_seq taken in
    fetched_at  INTEGER NOT NULL                                    -- when that was
) STRICT, WITHOUT ROWID;

CREATE TABLE pull_state (
    only_row    INTEGER NOT NULL PRIMARY KEY CHECK (only_row = 1),  -- there is one row
    pulled_at   INTEGER,                                            -- when the centre was last asked and answered; noted once a minute at most
    error       TEXT,                                               -- what went wrong since; NULL: nothing
    error_at    INTEGER                                             -- when it was first seen
) STRICT;

-- Parts that the centre withdrew: kept for what refers to them, and no longer in the catalogue.
CREATE TABLE withdrawn_parts (
    part_number   TEXT NOT NULL PRIMARY KEY REFERENCES parts (part_number), -- the part
    withdrawn_at  INTEGER NOT NULL                                  -- since when
) STRICT, WITHOUT ROWID;

CREATE TABLE station_recipes (
    station          TEXT NOT NULL PRIMARY KEY,                     -- station by name
    taken_sha256     BLOB CHECK (length(taken_sha256) = 32),        -- recipe of the centre that was proved here; the next start uses it
    taken_at         INTEGER,                                       -- since when
    previous_sha256  BLOB CHECK (length(previous_sha256) = 32),     -- the one taken before it
    refused_sha256   BLOB CHECK (length(refused_sha256) = 32),      -- the last one that cannot be used here
    refused_error    TEXT,                                          -- why
    refused_at       INTEGER,                                       -- when it was last tried
    serving_sha256   BLOB CHECK (length(serving_sha256) = 32),      -- what the daemon started with
    serving_name     TEXT,                                          -- its name
    serving_origin   TEXT CHECK (serving_origin IN ('central', 'file')), -- where it came from
    serving_since    INTEGER                                        -- when it started
) STRICT, WITHOUT ROWID;
