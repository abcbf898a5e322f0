-- The catalogue as this device knows it, counting sessions against kits, and the stock that follows from them.
--
-- The catalogue is keyed by the numbers people use (part number, colour id, kit code): it is a copy that an import
-- brings up to date, so ids of the central side would say nothing here.

CREATE TABLE categories (
    code         TEXT NOT NULL PRIMARY KEY CHECK (code <> ''),      -- what parts name it by
    name_en      TEXT NOT NULL CHECK (name_en <> ''),               -- name in English
    name_ko      TEXT,                                              -- name in Korean
    parent_code  TEXT REFERENCES categories (code) DEFERRABLE INITIALLY DEFERRED, -- the wider category
    version      INTEGER NOT NULL CHECK (version >= 1)              -- rises with each change
) STRICT, WITHOUT ROWID;

CREATE TABLE colors (
    color_id        INTEGER NOT NULL PRIMARY KEY,                   -- number of the colour
    name            TEXT NOT NULL CHECK (name <> ''),               -- name in English
    name_ko         TEXT,                                           -- name in Korean
    rgb             TEXT NOT NULL CHECK (length(rgb) = 6),          -- RRGGBB, hexadecimal
    is_transparent  INTEGER NOT NULL CHECK (is_transparent IN (0, 1)), -- lets light through
    version         INTEGER NOT NULL CHECK (version >= 1)           -- rises with each change
) STRICT;

CREATE TABLE confusion_groups (
    code        TEXT NOT NULL PRIMARY KEY CHECK (code <> '')        -- what parts name it by
) STRICT, WITHOUT ROWID;

CREATE TABLE parts (
    part_number      TEXT NOT NULL PRIMARY KEY CHECK (part_number <> ''), -- what templates and items name it by
    name_en          TEXT NOT NULL CHECK (name_en <> ''),           -- name in English
    name_ko          TEXT,                                          -- name in Korean
    category_code    TEXT REFERENCES categories (code),             -- its category
    length_mm        REAL CHECK (length_mm > 0 AND length_mm < 9e999), -- along x
    width_mm         REAL CHECK (width_mm > 0 AND width_mm < 9e999), -- along z
    height_mm        REAL CHECK (height_mm > 0 AND height_mm < 9e999), -- along y, upwards
    weight_g         REAL CHECK (weight_g > 0 AND weight_g < 9e999), -- of one
    quality_level    TEXT NOT NULL CHECK (quality_level IN ('bronze', 'silver', 'golden', 'review_needed')), -- how far it is prepared
    version          INTEGER NOT NULL CHECK (version >= 1)          -- rises with each change of what the files say
) STRICT, WITHOUT ROWID;

CREATE TABLE confusion_group_members (
    part_number  TEXT NOT NULL PRIMARY KEY REFERENCES parts (part_number), -- the part
    group_code   TEXT NOT NULL REFERENCES confusion_groups (code)   -- its group
) STRICT, WITHOUT ROWID;

CREATE TABLE part_relations (
    part_number          TEXT NOT NULL REFERENCES parts (part_number), -- the lesser number of the two
    related_part_number  TEXT NOT NULL REFERENCES parts (part_number), -- the greater
    kind                 TEXT NOT NULL CHECK (kind IN ('similar')), -- how they are related
    similarity           REAL NOT NULL CHECK (similarity BETWEEN -1.001 AND 1.001), -- cosine
    PRIMARY KEY (part_number, related_part_number)
) STRICT, WITHOUT ROWID;

CREATE TABLE access_policies (
    subject_kind    TEXT NOT NULL CHECK (subject_kind IN ('part', 'kit', 'product', 'recipe')), -- what it is about
    subject         TEXT NOT NULL CHECK (subject <> ''),            -- part number, kit code or name
    security_level  TEXT NOT NULL CHECK (security_level IN ('public', 'internal', 'restricted', 'secret')), -- how far it may be seen
    allowed_groups  TEXT NOT NULL CHECK (json_valid(allowed_groups)), -- JSON list of group names
    version         INTEGER NOT NULL CHECK (version >= 1),          -- rises with each change
    PRIMARY KEY (subject_kind, subject)
) STRICT, WITHOUT ROWID;

-- Append-only: who moved a part to which level, and on what evidence.
CREATE TABLE data_quality_events (
    id              BLOB NOT NULL PRIMARY KEY CHECK (length(id) = 16), -- UUIDv7
    occurred_at     INTEGER NOT NULL,                               -- when
    part_number     TEXT NOT NULL REFERENCES parts (part_number),   -- the part
    previous_level  TEXT NOT NULL,                                  -- before
    new_level       TEXT NOT NULL,                                  -- after
    triggered_by    TEXT NOT NULL CHECK (triggered_by <> ''),       -- who
    reason          TEXT NOT NULL CHECK (reason <> ''),             -- why
    details         TEXT NOT NULL CHECK (json_valid(details))       -- JSON: what was checked
) STRICT, WITHOUT ROWID;

CREATE TABLE kits (
    kit_code  TEXT NOT NULL PRIMARY KEY CHECK (kit_code <> ''),     -- what people call it by
    name      TEXT NOT NULL CHECK (name <> ''),                     -- for people
    version   INTEGER NOT NULL CHECK (version >= 1)                 -- rises with each change of its lines
) STRICT, WITHOUT ROWID;

CREATE TABLE kit_parts (
    kit_code         TEXT NOT NULL REFERENCES kits (kit_code),      -- the kit
    ordinal          INTEGER NOT NULL CHECK (ordinal >= 0),         -- position of the line
    part_number      TEXT NOT NULL REFERENCES parts (part_number),  -- what is expected
    color_id         INTEGER REFERENCES colors (color_id),          -- in this colour only; NULL: in any
    quantity         INTEGER NOT NULL CHECK (quantity >= 1),        -- how many
    is_spare         INTEGER NOT NULL CHECK (is_spare IN (0, 1)),   -- may be there and need not
    alternate_group  TEXT,                                          -- lines of one group stand in for one another
    PRIMARY KEY (kit_code, ordinal)
) STRICT, WITHOUT ROWID;

-- A row is sent when the session has ended, and does not change after that. The count is not stored before: it follows
-- from the trays.
CREATE TABLE kit_sessions (
    id              BLOB NOT NULL PRIMARY KEY CHECK (length(id) = 16), -- UUIDv7
    started_at      INTEGER NOT NULL,                               -- when
    started_by      TEXT NOT NULL CHECK (started_by <> ''),         -- who
    kit_code        TEXT NOT NULL,                                  -- which kit
    kit             TEXT NOT NULL CHECK (json_valid(kit)),          -- JSON: the kit as it was then
    station         TEXT,                                           -- whose still frames count; NULL: trays added by hand
    ended_at        INTEGER CHECK (ended_at >= started_at),         -- when; NULL while it counts
    ended_by        TEXT,                                           -- who
    outcome         TEXT CHECK (outcome IN ('finished', 'cancelled')), -- how it ended
    reason          TEXT,                                           -- why it was cancelled
    is_complete     INTEGER CHECK (is_complete IN (0, 1)),          -- nothing missing, over or in doubt
    tray_count      INTEGER CHECK (tray_count >= 0),                -- inspections counted
    expected_count  INTEGER CHECK (expected_count >= 0),            -- items the kit asks for
    found_count     INTEGER CHECK (found_count >= 0),               -- of these
    missing_count   INTEGER CHECK (missing_count >= 0),             -- expected - found
    surplus_count   INTEGER CHECK (surplus_count >= 0),             -- accepted items without a place
    doubtful_count  INTEGER CHECK (doubtful_count >= 0),            -- items and pictures in doubt
    result          TEXT CHECK (json_valid(result)),                -- JSON: the whole count
    CONSTRAINT kit_sessions_ended_ck CHECK ((ended_at IS NULL) = (outcome IS NULL) AND (ended_at IS NULL) = (result IS NULL)),
    CONSTRAINT kit_sessions_balance_ck CHECK (expected_count = found_count + missing_count)
) STRICT, WITHOUT ROWID;

-- One station counts for one session at a time.
CREATE UNIQUE INDEX kit_sessions_open_idx ON kit_sessions (station) WHERE ended_at IS NULL AND station IS NOT NULL;

CREATE TABLE kit_session_trays (
    session_id      BLOB NOT NULL REFERENCES kit_sessions (id),     -- the session
    inspection_id   BLOB NOT NULL REFERENCES inspections (id),      -- the inspection, counted once
    counted_at      INTEGER NOT NULL,                               -- when it was taken in
    removed_at      INTEGER,                                        -- since when it counts no more
    removed_by      TEXT,                                           -- who took it out
    removed_reason  TEXT,                                           -- why
    PRIMARY KEY (session_id, inspection_id)
) STRICT, WITHOUT ROWID;

-- No inspection counts in two sessions.
CREATE UNIQUE INDEX kit_session_trays_inspection_idx ON kit_session_trays (inspection_id) WHERE removed_at IS NULL;

-- Append-only. What is in stock is the sum.
CREATE TABLE stock_ledger (
    seq                INTEGER PRIMARY KEY AUTOINCREMENT,           -- order of the bookings
    id                 BLOB NOT NULL UNIQUE CHECK (length(id) = 16), -- UUIDv7
    recorded_at        INTEGER NOT NULL,                            -- when
    part_id            TEXT NOT NULL CHECK (part_id <> ''),         -- part number
    color_id           INTEGER,                                     -- where it is known
    delta              INTEGER NOT NULL CHECK (delta <> 0),         -- how many came (went)
    reason             TEXT NOT NULL CHECK (reason IN ('counted', 'adjustment')), -- why
    reference_type     TEXT NOT NULL CHECK (reference_type IN ('kit', 'manual')), -- what booked it
    reference_id       BLOB REFERENCES kit_sessions (id),           -- the session
    previous_quantity  INTEGER NOT NULL,                            -- of this part and colour before
    new_quantity       INTEGER NOT NULL CHECK (new_quantity = previous_quantity + delta), -- and after
    author             TEXT NOT NULL CHECK (author <> ''),          -- who
    note               TEXT,                                        -- the author's words
    CONSTRAINT stock_ledger_reference_ck CHECK ((reference_type = 'kit') = (reference_id IS NOT NULL))
) STRICT;

CREATE INDEX stock_ledger_part_idx ON stock_ledger (part_id, color_id, seq);
-- A session books each part and colour once.
CREATE UNIQUE INDEX stock_ledger_session_idx ON stock_ledger (reference_id, part_id, coalesce(color_id, -1)) WHERE reference_id IS NOT NULL;

CREATE TABLE stock_thresholds (
    part_number   TEXT NOT NULL PRIMARY KEY,                        -- the part, in all colours
    min_quantity  INTEGER NOT NULL CHECK (min_quantity >= 1),       -- below this it is low
    changed_at    INTEGER NOT NULL,                                 -- when it was set
    changed_by    TEXT NOT NULL CHECK (changed_by <> '')            -- who
) STRICT, WITHOUT ROWID;
