-- What people say of decisions, the templates learned from it, and the parts that the catalogue lacks.
--
-- The outbox carries units of other roots than inspections from now on: a unit is named by its table and its row's id.

CREATE TABLE outbox_v2 (
    seq          INTEGER PRIMARY KEY AUTOINCREMENT,                          -- order of the commits, without gaps
    root_table   TEXT NOT NULL CHECK (root_table GLOB '[a-z]*'),             -- table of the unit's first row
    key_at       INTEGER NOT NULL,                                           -- its time: captured_at, occurred_at
    key_id       BLOB NOT NULL CHECK (length(key_id) = 16),                  -- its id
    row_count    INTEGER NOT NULL CHECK (row_count >= 1),                    -- rows of the unit that are sent
    state        TEXT NOT NULL CHECK (state IN ('pending', 'parked')),       -- parked: central refused it; still pending delivery, never deleted
    attempts     INTEGER NOT NULL CHECK (attempts >= 0),                     -- times central refused it
    last_error   TEXT,                                                       -- what central said
    enqueued_at  INTEGER NOT NULL                                            -- when it was committed
) STRICT;

INSERT INTO outbox_v2 SELECT * FROM outbox;
-- Numbers are never given twice, also where the outbox is empty now.
DELETE FROM sqlite_sequence WHERE name = 'outbox_v2';
INSERT INTO sqlite_sequence (name, seq) SELECT 'outbox_v2', seq FROM sqlite_sequence WHERE name = 'outbox';
DROP TABLE outbox;
ALTER TABLE outbox_v2 RENAME TO outbox;
CREATE INDEX outbox_parked_idx ON outbox (seq) WHERE state = 'parked';

-- Append-only: an undo is a further row. Of several rows of one subject the last one wins.
CREATE TABLE reviews (
    seq                 INTEGER PRIMARY KEY AUTOINCREMENT,                        -- order of the commits
    id                  BLOB NOT NULL UNIQUE CHECK (length(id) = 16),             -- UUIDv7
    occurred_at         INTEGER NOT NULL,                                         -- when it was said
    subject_kind        TEXT NOT NULL CHECK (subject_kind IN ('inspection', 'item')), -- what it is about
    subject_id          BLOB NOT NULL CHECK (length(subject_id) = 16),            -- id of that row
    subject_at          INTEGER NOT NULL,                                         -- captured_at of that row
    inspection_id       BLOB NOT NULL REFERENCES inspections (id),                -- the inspection
    ordinal             INTEGER CHECK (ordinal >= 0),                             -- position of the item; NULL for the inspection
    review_status       TEXT NOT NULL CHECK (review_status IN ('pending', 'confirmed', 'rejected', 'needs_review', 'false_positive')), -- how it leaves the subject; pending: taken back
    shown_part_id       TEXT,                                                     -- what the search had put first
    corrected_part_id   TEXT,                                                     -- what it is; NULL when rejected: none of the catalogue
    corrected_color_id  TEXT,                                                     -- its colour
    undoes_id           BLOB REFERENCES reviews (id),                             -- the review that this one takes back
    reviewer            TEXT NOT NULL CHECK (reviewer <> ''),                     -- who said it
    reason              TEXT,                                                     -- why
    CONSTRAINT reviews_item_ck CHECK ((subject_kind = 'item') = (ordinal IS NOT NULL)),
    CONSTRAINT reviews_undo_ck CHECK ((review_status = 'pending') = (undoes_id IS NOT NULL)),
    CONSTRAINT reviews_part_ck CHECK (corrected_part_id IS NULL OR review_status = 'rejected')
) STRICT;

CREATE INDEX reviews_subject_idx ON reviews (subject_id, seq);

-- A template is searched while its review is the last of its subject and the index's generation does not hold it.
CREATE TABLE index_delta (
    id                      INTEGER PRIMARY KEY AUTOINCREMENT,                      -- its number; never given twice
    review_id               BLOB NOT NULL UNIQUE REFERENCES reviews (id),           -- what taught it: author, reason, time
    index_name              TEXT NOT NULL,                                          -- folder of the index it belongs to
    part_id                 TEXT NOT NULL CHECK (part_id <> ''),                    -- what it shows
    color_id                TEXT,                                                   -- in which colour
    embedding_model_sha256  BLOB NOT NULL CHECK (length(embedding_model_sha256) = 32), -- of the model's file
    input_px                INTEGER NOT NULL CHECK (input_px >= 1),                 -- side of the square the crop was scaled to
    crop_margin_ratio       REAL NOT NULL CHECK (crop_margin_ratio BETWEEN 0 AND 1), -- added to the box on each side before cropping
    embedding               BLOB NOT NULL CHECK (length(embedding) >= 4 AND length(embedding) % 4 = 0), -- f32, little-endian
    inspection_id           BLOB NOT NULL REFERENCES inspections (id),              -- where it was seen
    ordinal                 INTEGER NOT NULL CHECK (ordinal >= 0),                  -- position of the item there
    frame_sha256            BLOB NOT NULL CHECK (length(frame_sha256) = 32),        -- of the inspection's frame
    artifact                TEXT NOT NULL,                                          -- the kept frame, below artifacts/
    crop                    TEXT NOT NULL CHECK (json_valid(crop))                  -- JSON [x1, y1, x2, y2] in it, pixels
) STRICT;

-- Counted with each commit of an item that is decided to be unknown.
CREATE TABLE unknown_part_logs (
    best_part_id           TEXT NOT NULL PRIMARY KEY,                               -- the catalogue part it looks like
    detected_count         INTEGER NOT NULL CHECK (detected_count >= 1),            -- items
    nearest_similarity     REAL NOT NULL CHECK (nearest_similarity BETWEEN -1.001 AND 1.001), -- highest cosine to that part
    first_detected_at      INTEGER NOT NULL,                                        -- captured_at of the first
    last_detected_at       INTEGER NOT NULL,                                        -- captured_at of the newest
    example_inspection_id  BLOB NOT NULL REFERENCES inspections (id),               -- the newest example
    example_ordinal        INTEGER NOT NULL CHECK (example_ordinal >= 0)            -- position of the item there
) STRICT, WITHOUT ROWID;
