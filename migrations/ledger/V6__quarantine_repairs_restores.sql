-- What a repair set aside and set right, and what a restored backup began anew.

-- Entries of the outbox that cannot be sent: nothing is deleted, and a repair puts back what can be read again.
CREATE TABLE outbox_quarantine (
    seq          INTEGER NOT NULL PRIMARY KEY,                      -- its position in the outbox, never given again
    kind         TEXT NOT NULL CHECK (kind IN ('unreadable', 'missing', 'duplicate')), -- unreadable: its rows are damaged; missing: it names no row; duplicate: another entry names the same
    root_table   TEXT NOT NULL,                                     -- as in the outbox
    key_at       INTEGER NOT NULL,                                  -- as in the outbox
    key_id       BLOB NOT NULL CHECK (length(key_id) = 16),         -- as in the outbox
    row_count    INTEGER NOT NULL,                                  -- as in the outbox
    attempts     INTEGER NOT NULL,                                  -- as in the outbox
    last_error   TEXT,                                              -- as in the outbox
    enqueued_at  INTEGER NOT NULL,                                  -- as in the outbox
    reason       TEXT NOT NULL CHECK (reason <> ''),                -- why it was moved here
    moved_at     INTEGER NOT NULL                                   -- when it was moved here
) STRICT;

-- Append-only: what each repair changed of the totals, so that they can be proved afterwards.
CREATE TABLE outbox_repairs (
    id                INTEGER PRIMARY KEY AUTOINCREMENT,            -- its number
    repaired_at       INTEGER NOT NULL,                             -- when
    software_version  TEXT NOT NULL,                                -- of the program that did it
    committed_before  INTEGER NOT NULL,                             -- committed_total before
    committed_after   INTEGER NOT NULL,                             -- committed_total after
    delivered_before  INTEGER NOT NULL,                             -- delivered_total before
    delivered_after   INTEGER NOT NULL,                             -- delivered_total after
    void_seqs         INTEGER NOT NULL,                             -- positions of the outbox that belong to no commit
    void_codes        INTEGER NOT NULL                              -- code numbers that belong to no inspection stored here
) STRICT;

-- One row a restored backup. The device may have given codes that the backup does not know: those of that day and
-- earlier ones go on above a number that it cannot have reached.
CREATE TABLE restores (
    epoch              INTEGER NOT NULL PRIMARY KEY CHECK (epoch > 1), -- the epoch it began
    restored_at        INTEGER NOT NULL,                            -- when
    backup_created_at  INTEGER NOT NULL,                            -- when the backup was made
    backup_sha256      BLOB NOT NULL CHECK (length(backup_sha256) = 32), -- of the backup's manifest
    code_day           TEXT NOT NULL CHECK (length(code_day) = 8),  -- YYYYMMDD: the last day whose numbers may have been given
    code_floor         INTEGER NOT NULL CHECK (code_floor >= 0)     -- numbers of that day and earlier ones are above it from now on
) STRICT;

CREATE TABLE inspection_codes_v6 (
    day          TEXT NOT NULL PRIMARY KEY CHECK (length(day) = 8), -- YYYYMMDD in the device's time zone
    last_number  INTEGER NOT NULL CHECK (last_number >= 1),         -- highest number given that day; never given again
    skipped      INTEGER NOT NULL CHECK (skipped BETWEEN 0 AND last_number) -- numbers below it left out after a restore
) STRICT, WITHOUT ROWID;

INSERT INTO inspection_codes_v6 (day, last_number, skipped) SELECT day, last_number, 0 FROM inspection_codes;
DROP TABLE inspection_codes;
ALTER TABLE inspection_codes_v6 RENAME TO inspection_codes;
