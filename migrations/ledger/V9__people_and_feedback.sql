-- People of this site, what they think of its inspections, and what was done about it.
--
-- A change of a person is a further version: nothing is edited, so that what somebody said years ago still names who it
-- was. Each version, each feedback and each action is a unit of the outbox, a root without children.

CREATE TABLE operators (
    seq           INTEGER PRIMARY KEY AUTOINCREMENT,                -- order of the commits
    id            BLOB NOT NULL UNIQUE CHECK (length(id) = 16),     -- UUIDv7 of this version
    operator_id   BLOB NOT NULL CHECK (length(operator_id) = 16),   -- the person: the id of the first version
    version       INTEGER NOT NULL CHECK (version >= 1),            -- first, second, ...; the highest one holds
    epoch         INTEGER NOT NULL CHECK (epoch >= 1),              -- of the ledger then: versions after a restored backup outrank those before
    changed_at    INTEGER NOT NULL,                                 -- when
    changed_by    TEXT NOT NULL CHECK (changed_by <> ''),           -- who changed it
    username      TEXT NOT NULL CHECK (length(username) BETWEEN 3 AND 100), -- what the person signs with
    username_key  TEXT NOT NULL CHECK (username_key <> ''),         -- the same in lower case, by the rules of Unicode
    full_name     TEXT CHECK (full_name <> ''),                     -- for people
    role          TEXT NOT NULL CHECK (role IN ('admin', 'manager', 'operator', 'viewer')), -- what the person is here
    is_active     INTEGER NOT NULL CHECK (is_active IN (0, 1)),     -- 0: retired, may sign nothing
    UNIQUE (operator_id, version)
) STRICT;

CREATE INDEX operators_username_idx ON operators (username_key);

-- The version of each person that holds.
CREATE VIEW current_operators AS
    SELECT o.seq, o.id, o.operator_id, o.version, o.epoch, o.changed_at, o.changed_by, o.username, o.username_key,
        o.full_name, o.role, o.is_active
    FROM operators o
    WHERE NOT EXISTS (SELECT 1 FROM operators l WHERE l.operator_id = o.operator_id AND l.version > o.version);

CREATE TABLE feedback (
    seq                INTEGER PRIMARY KEY AUTOINCREMENT,                           -- order of the commits
    id                 BLOB NOT NULL UNIQUE CHECK (length(id) = 16),                -- UUIDv7
    occurred_at        INTEGER NOT NULL,                                            -- when it was said
    subject_kind       TEXT NOT NULL CHECK (subject_kind IN ('inspection', 'item', 'site')), -- what it is about
    subject_id         BLOB CHECK (length(subject_id) = 16),                        -- id of that row; NULL for the site
    subject_at         INTEGER,                                                     -- captured_at of that row; NULL for the site
    inspection_id      BLOB REFERENCES inspections (id),                            -- the inspection; NULL for the site
    ordinal            INTEGER CHECK (ordinal >= 0),                                -- position of the item; NULL for anything else
    feedback_type      TEXT NOT NULL CHECK (feedback_type IN ('accurate', 'false_positive', 'missed_defect', 'severity_wrong', 'detection_accuracy', 'satisfaction')), -- what is said
    rating             INTEGER CHECK (rating BETWEEN 1 AND 5),                      -- 1 poor to 5 excellent
    expected_severity  INTEGER CHECK (expected_severity BETWEEN 1 AND 5),           -- what the defect should have been: 1 slight to 5 critical
    notes              TEXT CHECK (length(notes) BETWEEN 1 AND 1000),               -- the author's words
    author             TEXT NOT NULL CHECK (author <> ''),                          -- who said it
    operator_id        BLOB CHECK (length(operator_id) = 16),                       -- the person, where people are registered
    CONSTRAINT feedback_subject_ck CHECK ((subject_kind = 'site') = (inspection_id IS NULL)
        AND (subject_kind = 'site') = (subject_id IS NULL) AND (subject_kind = 'site') = (subject_at IS NULL)),
    CONSTRAINT feedback_item_ck CHECK ((subject_kind = 'item') = (ordinal IS NOT NULL)),
    CONSTRAINT feedback_site_ck CHECK (subject_kind <> 'site' OR feedback_type IN ('detection_accuracy', 'satisfaction')),
    CONSTRAINT feedback_severity_ck CHECK (expected_severity IS NULL OR feedback_type IN ('missed_defect', 'severity_wrong'))
) STRICT;

CREATE INDEX feedback_inspection_idx ON feedback (inspection_id) WHERE inspection_id IS NOT NULL;

-- What was done about an inspection. Of several the last one says how it stands.
CREATE TABLE action_logs (
    seq            INTEGER PRIMARY KEY AUTOINCREMENT,                               -- order of the commits
    id             BLOB NOT NULL UNIQUE CHECK (length(id) = 16),                    -- UUIDv7
    occurred_at    INTEGER NOT NULL,                                                -- when it was logged
    inspection_id  BLOB NOT NULL REFERENCES inspections (id),                       -- the inspection
    inspection_at  INTEGER NOT NULL,                                                -- captured_at of the inspection
    action_taken   TEXT NOT NULL CHECK (length(action_taken) BETWEEN 1 AND 200),    -- what was done
    action_result  TEXT NOT NULL CHECK (action_result IN ('resolved', 'pending', 'failed', 'deferred')), -- what came of it
    notes          TEXT CHECK (length(notes) BETWEEN 1 AND 1000),                   -- the author's words
    action_by      TEXT NOT NULL CHECK (action_by <> ''),                           -- who did it
    operator_id    BLOB CHECK (length(operator_id) = 16)                            -- the person, where people are registered
) STRICT;

CREATE INDEX action_logs_inspection_idx ON action_logs (inspection_id);

-- As delivered_reviews: what was said of an inspection goes with it, some days after both were delivered.
CREATE TABLE delivered_remarks (
    remark_id     BLOB NOT NULL PRIMARY KEY CHECK (length(remark_id) = 16), -- the feedback or action
    delivered_at  INTEGER NOT NULL                                          -- when the central side acknowledged it
) STRICT, WITHOUT ROWID;

CREATE TABLE retention_totals_v9 (
    only_row            INTEGER NOT NULL PRIMARY KEY CHECK (only_row = 1),  -- there is one row
    pruned_inspections  INTEGER NOT NULL CHECK (pruned_inspections >= 0),   -- inspections gone, all of them delivered
    pruned_reviews      INTEGER NOT NULL CHECK (pruned_reviews >= 0),       -- reviews gone with their inspections, all of them delivered
    gone_pictures       INTEGER NOT NULL CHECK (gone_pictures >= 0),        -- pictures ever removed
    gone_bytes          INTEGER NOT NULL CHECK (gone_bytes >= 0),           -- their bytes
    pruned_remarks      INTEGER NOT NULL CHECK (pruned_remarks >= 0)        -- feedback and actions gone with their inspections, all of them delivered
) STRICT;

INSERT INTO retention_totals_v9 (only_row, pruned_inspections, pruned_reviews, gone_pictures, gone_bytes, pruned_remarks)
    SELECT only_row, pruned_inspections, pruned_reviews, gone_pictures, gone_bytes, 0 FROM retention_totals;
DROP TABLE retention_totals;
ALTER TABLE retention_totals_v9 RENAME TO retention_totals;
