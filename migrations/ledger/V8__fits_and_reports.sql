-- Fits of the centre: what was put beside the indexes here; and what the centre is to be told of recipes and fits.

CREATE TABLE central_fits (
    generation_sha256  BLOB NOT NULL PRIMARY KEY CHECK (length(generation_sha256) = 32), -- the index generation that they are for
    taken_sha256       BLOB CHECK (length(taken_sha256) = 32),          -- fit of the centre that was proved here and lies beside the index
    taken_at           INTEGER,                                         -- since when
    refused_sha256     BLOB CHECK (length(refused_sha256) = 32),        -- the last one that cannot be used here
    refused_error      TEXT,                                            -- why
    refused_at         INTEGER                                          -- when it was last tried
) STRICT, WITHOUT ROWID;

-- Until the centre has them; the state itself stands in station_recipes and central_fits.
CREATE TABLE provision_reports (
    number           INTEGER PRIMARY KEY,                               -- order
    id               BLOB NOT NULL UNIQUE CHECK (length(id) = 16),      -- UUIDv7, the key at the centre
    occurred_at      INTEGER NOT NULL,                                  -- when
    subject_kind     TEXT NOT NULL CHECK (subject_kind IN ('recipe', 'fit')), -- what it is about
    subject          TEXT NOT NULL CHECK (subject <> ''),               -- station, or index generation, by name
    sha256           BLOB NOT NULL CHECK (length(sha256) = 32),         -- the recipe or fit
    previous_sha256  BLOB CHECK (length(previous_sha256) = 32),         -- what served until then, or goes on serving
    outcome          TEXT NOT NULL CHECK (outcome IN ('serving', 'refused', 'withdrawn')), -- what became of it
    detail           TEXT                                               -- why, in a sentence
) STRICT;
