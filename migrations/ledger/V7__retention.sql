-- What may go, what must stay, and what went: retention, legal holds, removed pictures.
--
-- A row that goes leaves its count here, so that committed = delivered + pending and captured = committed + refused
-- hold for ever. Nothing that is not delivered and nothing on legal hold goes.

-- Written when an inspection leaves the outbox: it may go some days after that. No foreign key: it would cost an index
-- that every delivery writes; the row goes with its inspection.
CREATE TABLE delivered_inspections (
    number         INTEGER PRIMARY KEY,                                     -- order of the deliveries
    inspection_id  BLOB NOT NULL CHECK (length(inspection_id) = 16),        -- the inspection
    delivered_at   INTEGER NOT NULL,                                        -- when the central side acknowledged it
    is_brief       INTEGER NOT NULL CHECK (is_brief IN (0, 1))              -- its items, map and frame quality have gone
) STRICT;

CREATE INDEX delivered_inspections_whole_idx ON delivered_inspections (number) WHERE is_brief = 0;

CREATE TABLE delivered_reviews (
    review_id     BLOB NOT NULL PRIMARY KEY REFERENCES reviews (id),        -- the review
    delivered_at  INTEGER NOT NULL                                          -- when the central side acknowledged it
) STRICT, WITHOUT ROWID;

-- What was delivered before is taken as delivered now: it stays longer than it must.
INSERT INTO delivered_inspections (inspection_id, delivered_at, is_brief)
    SELECT id, CAST(strftime('%s', 'now') AS INTEGER) * 1000000, 0 FROM inspections
    WHERE id NOT IN (SELECT key_id FROM outbox WHERE root_table = 'inspections') ORDER BY rowid;
INSERT INTO delivered_reviews (review_id, delivered_at)
    SELECT id, CAST(strftime('%s', 'now') AS INTEGER) * 1000000 FROM reviews
    WHERE id NOT IN (SELECT key_id FROM outbox WHERE root_table = 'reviews');

-- A picture whose file was removed: its row moved here from `artifacts`.
CREATE TABLE gone_artifacts (
    captured_at    INTEGER NOT NULL,                                        -- of the inspection
    id             BLOB NOT NULL CHECK (length(id) = 16),                   -- of the artifact
    inspection_id  BLOB NOT NULL REFERENCES inspections (id),               -- the inspection
    kind           TEXT NOT NULL,                                           -- what it showed
    relative_path  TEXT NOT NULL,                                           -- where it was, below artifacts/
    content_type   TEXT NOT NULL,                                           -- MIME type
    size_bytes     INTEGER NOT NULL CHECK (size_bytes >= 0),                -- length of the file
    sha256         BLOB NOT NULL CHECK (length(sha256) = 32),               -- of the file
    width_px       INTEGER NOT NULL CHECK (width_px >= 0),                  -- of the picture
    height_px      INTEGER NOT NULL CHECK (height_px >= 0),                 -- of the picture
    gone_at        INTEGER NOT NULL,                                        -- when
    reason         TEXT NOT NULL CHECK (reason IN ('expired', 'pressure', 'quarantined')), -- why
    PRIMARY KEY (inspection_id, id)
) STRICT, WITHOUT ROWID;

-- What is sent of an inspection's pictures: all that were ever kept, so that its unit stays whole when a picture goes first.
CREATE VIEW sent_artifacts AS
    SELECT captured_at, id, inspection_id, kind, relative_path, content_type, size_bytes, sha256, width_px, height_px
        FROM artifacts
    UNION ALL
    SELECT captured_at, id, inspection_id, kind, relative_path, content_type, size_bytes, sha256, width_px, height_px
        FROM gone_artifacts;

-- Files that are not what the ledger says, moved to quarantine/ by a scrub. Never deleted.
CREATE TABLE quarantine (
    seq              INTEGER PRIMARY KEY AUTOINCREMENT,                     -- order of the findings
    moved_at         INTEGER NOT NULL,                                      -- when
    relative_path    TEXT NOT NULL,                                         -- where it was, below artifacts/
    quarantine_name  TEXT NOT NULL,                                         -- its name below quarantine/
    expected_sha256  BLOB CHECK (length(expected_sha256) = 32),             -- what the ledger says; NULL: no row names it
    found_sha256     BLOB CHECK (length(found_sha256) = 32),                -- what it is; NULL: not read
    reason           TEXT NOT NULL CHECK (reason IN ('changed', 'orphan'))  -- what is wrong with it
) STRICT;

-- Each criterion that is not NULL must be met. A hold with a time range also covers what is still to come in it.
CREATE TABLE legal_holds (
    id              BLOB NOT NULL PRIMARY KEY CHECK (length(id) = 16),      -- UUIDv7
    placed_at       INTEGER NOT NULL,                                       -- when
    placed_by       TEXT NOT NULL CHECK (placed_by <> ''),                  -- who
    reason          TEXT NOT NULL CHECK (reason <> ''),                     -- why
    inspection_id   BLOB CHECK (length(inspection_id) = 16),                -- this inspection
    part            TEXT CHECK (part <> ''),                                -- inspections whose record names this part, as answer or candidate
    station         TEXT CHECK (station <> ''),                             -- inspections of this station
    from_at         INTEGER,                                                -- captured at or after
    until_at        INTEGER CHECK (until_at > from_at),                     -- captured before
    released_at     INTEGER,                                                -- when it ended; NULL: it stands
    released_by     TEXT,                                                   -- who ended it
    release_reason  TEXT,                                                   -- why
    CONSTRAINT legal_holds_criterion_ck CHECK (coalesce(inspection_id, part, station, from_at, until_at) IS NOT NULL),
    CONSTRAINT legal_holds_release_ck CHECK ((released_at IS NULL) = (released_by IS NULL))
) STRICT, WITHOUT ROWID;

CREATE TABLE retention_totals (
    only_row            INTEGER NOT NULL PRIMARY KEY CHECK (only_row = 1),  -- there is one row
    pruned_inspections  INTEGER NOT NULL CHECK (pruned_inspections >= 0),   -- inspections gone, all of them delivered
    pruned_reviews      INTEGER NOT NULL CHECK (pruned_reviews >= 0),       -- reviews gone with their inspections, all of them delivered
    gone_pictures       INTEGER NOT NULL CHECK (gone_pictures >= 0),        -- pictures ever removed
    gone_bytes          INTEGER NOT NULL CHECK (gone_bytes >= 0)            -- their bytes
) STRICT;

INSERT INTO retention_totals VALUES (1, 0, 0, 0, 0);

-- An inspection that goes is looked up in each table that names inspections.
CREATE INDEX reviews_inspection_idx ON reviews (inspection_id);
CREATE INDEX reviews_undoes_idx ON reviews (undoes_id) WHERE undoes_id IS NOT NULL;
CREATE INDEX index_delta_inspection_idx ON index_delta (inspection_id);
CREATE INDEX unknown_part_logs_example_idx ON unknown_part_logs (example_inspection_id);
CREATE INDEX kit_session_trays_all_idx ON kit_session_trays (inspection_id);
