-- The local ledger: what this device decided, and what of it the central side does not have yet.
--
-- Encodings: a UUID is a BLOB of 16 octets, a SHA-256 one of 32; times are INTEGER microseconds since 1970-01-01 UTC;
-- booleans are 0 or 1; `real` values are f32 stored exactly; lists and objects are JSON text.
-- Bounds of measured ratios leave 0.001 for the rounding of f32 sums. NaN becomes NULL and is refused by NOT NULL.
-- Few indexes, and children clustered by their inspection: a commit writes each page it touches, 8 KiB, to the log.
-- One writer thread in one process; every other connection only reads.

CREATE TABLE ledger_meta (
    only_row          INTEGER NOT NULL PRIMARY KEY CHECK (only_row = 1), -- there is one row
    site_id           BLOB CHECK (length(site_id) = 16),                 -- the site this ledger reports to; NULL until it first reports
    device_id         BLOB NOT NULL CHECK (length(device_id) = 16),      -- made with the ledger
    epoch             INTEGER NOT NULL CHECK (epoch >= 1),               -- rises when a backup is restored, so that sequence numbers are never reused
    created_at        INTEGER NOT NULL,                                  -- when the ledger was made
    software_version  TEXT NOT NULL,                                     -- of the program that last opened it
    clean_shutdown    INTEGER NOT NULL CHECK (clean_shutdown IN (0, 1))  -- 0 while open: found at a start, the last run was cut off
) STRICT;

CREATE TABLE provenances (
    sha256      BLOB NOT NULL PRIMARY KEY CHECK (length(sha256) = 32),      -- of `record`, octet by octet
    created_at  INTEGER NOT NULL,                                           -- when it was first used
    record      TEXT NOT NULL CHECK (json_valid(record))                    -- canonical JSON: recipe, models, bank, index, providers, software
) STRICT, WITHOUT ROWID;

-- The rowid is the order of the commits. Not WITHOUT ROWID, because `record` is long: it would spill to overflow pages.
CREATE TABLE inspections (
    id                   BLOB NOT NULL PRIMARY KEY CHECK (length(id) = 16),  -- UUIDv7
    captured_at          INTEGER NOT NULL,                                   -- when the frame was taken; part of the central key, never corrected
    code                 TEXT NOT NULL UNIQUE CHECK (code GLOB 'INS-[0-9][0-9][0-9][0-9][0-9][0-9][0-9][0-9]-[0-9][0-9][0-9][0-9]*'), -- for people: per device and local day
    station              TEXT NOT NULL,                                      -- station by name
    camera               TEXT NOT NULL,                                      -- camera by name
    recipe               TEXT NOT NULL,                                      -- recipe by name; the exact one is in the provenance
    source               TEXT NOT NULL,                                      -- file, or video#frame
    frame_seq            INTEGER NOT NULL CHECK (frame_seq >= 0),            -- position of the frame in its source
    frame_width_px       INTEGER NOT NULL CHECK (frame_width_px >= 0),       -- 0 where the frame could not be decoded
    frame_height_px      INTEGER NOT NULL CHECK (frame_height_px >= 0),      -- 0 where the frame could not be decoded
    verdict              TEXT NOT NULL CHECK (verdict IN ('pass', 'fail', 'hold')), -- what was decided
    reasons              TEXT NOT NULL CHECK (json_valid(reasons)),          -- JSON list of codes, gravest first; empty exactly for a pass
    frame_sha256         BLOB NOT NULL CHECK (length(frame_sha256) = 32),    -- of the frame
    provenance_sha256    BLOB NOT NULL REFERENCES provenances (sha256),      -- what the decision was made with
    anomaly_score_raw    REAL CHECK (anomaly_score_raw >= 0 AND anomaly_score_raw < 9e999), -- the model's own scale
    anomaly_score        REAL CHECK (anomaly_score BETWEEN 0 AND 1),         -- normalised, 0.5 = the bank's threshold
    min_similarity       REAL CHECK (min_similarity BETWEEN -1.001 AND 1.001), -- lowest cosine of the items
    min_margin           REAL CHECK (min_margin BETWEEN -0.001 AND 2.001),   -- smallest margin of the items
    item_count           INTEGER NOT NULL CHECK (item_count >= 0),           -- rows in `items`
    decided_at           INTEGER NOT NULL,                                   -- when the verdict was reached
    latency_ms           REAL NOT NULL CHECK (latency_ms >= 0 AND latency_ms < 9e999), -- from the frame's arrival to the decision
    deadline_ms          REAL CHECK (deadline_ms >= 0 AND deadline_ms < 9e999), -- the recipe's limit for it
    is_provider_fallback INTEGER NOT NULL CHECK (is_provider_fallback IN (0, 1)), -- a model did not run where the recipe wants it
    record               TEXT NOT NULL CHECK (json_valid(record)),           -- the whole decision with every raw score, for recomputation
    CONSTRAINT inspections_reasons_ck CHECK ((verdict = 'pass') = (reasons = '[]'))
) STRICT;

CREATE INDEX inspections_verdict_idx ON inspections (verdict) WHERE verdict <> 'pass';

CREATE TABLE inspection_codes (
    day          TEXT NOT NULL PRIMARY KEY CHECK (length(day) = 8), -- YYYYMMDD in the device's time zone
    last_number  INTEGER NOT NULL CHECK (last_number >= 1)          -- highest number given that day; never given again
) STRICT, WITHOUT ROWID;

CREATE TABLE items (
    captured_at           INTEGER NOT NULL,                                 -- of the inspection
    id                    BLOB NOT NULL CHECK (length(id) = 16),            -- UUIDv7
    inspection_id         BLOB NOT NULL REFERENCES inspections (id),                                    -- the inspection
    ordinal               INTEGER NOT NULL CHECK (ordinal >= 0),            -- position in the frame's list
    x_px                  REAL NOT NULL CHECK (x_px >= 0),                  -- left edge
    y_px                  REAL NOT NULL CHECK (y_px >= 0),                  -- upper edge
    width_px              REAL NOT NULL CHECK (width_px > 0),               -- width of the box
    height_px             REAL NOT NULL CHECK (height_px > 0),              -- height of the box
    label                 TEXT NOT NULL,                                    -- the detector's class
    detection_confidence  REAL NOT NULL CHECK (detection_confidence BETWEEN 0 AND 1.001), -- of the detector
    part_id               TEXT,                                             -- the accepted part; NULL while in doubt
    color_id              TEXT,                                             -- colour of the best match
    similarity            REAL CHECK (similarity BETWEEN -1.001 AND 1.001), -- cosine to the best template
    second_part_id        TEXT,                                             -- the best other part
    second_similarity     REAL CHECK (second_similarity BETWEEN -1.001 AND 1.001), -- cosine to that
    margin                REAL CHECK (margin BETWEEN -0.001 AND 2.001),     -- similarity minus that of the best other part
    tier                  TEXT CHECK (tier IN ('l1', 'l2', 'delta')),       -- tier of the index that answered
    entered_stage2        INTEGER NOT NULL CHECK (entered_stage2 IN (0, 1)), -- the cold tier was searched
    is_held               INTEGER NOT NULL CHECK (is_held IN (0, 1)),       -- the item's verdict is HOLD
    stage1_ms             REAL CHECK (stage1_ms >= 0),                      -- time in the hot tier
    stage2_ms             REAL CHECK (stage2_ms >= 0),                      -- time in the cold tier
    top_k                 TEXT CHECK (json_valid(top_k)),                   -- JSON list of candidates, kept when held or stage 2
    verdict               TEXT NOT NULL CHECK (verdict IN ('pass', 'fail', 'hold')), -- of this item
    reasons               TEXT NOT NULL CHECK (json_valid(reasons)),        -- JSON list of codes; not empty unless pass
    PRIMARY KEY (inspection_id, id),
    CONSTRAINT items_reasons_ck CHECK (verdict = 'pass' OR reasons <> '[]')
) STRICT, WITHOUT ROWID;

CREATE TABLE anomaly_maps (
    captured_at          INTEGER NOT NULL,                                   -- of the inspection
    id                   BLOB NOT NULL CHECK (length(id) = 16),              -- UUIDv7
    inspection_id        BLOB NOT NULL REFERENCES inspections (id),                                      -- the inspection
    bank_sha256          BLOB NOT NULL CHECK (length(bank_sha256) = 32),     -- the bank it was scored against
    score_raw            REAL NOT NULL CHECK (score_raw >= 0 AND score_raw < 9e999), -- the model's own scale
    score                REAL NOT NULL CHECK (score BETWEEN 0 AND 1),        -- normalised, 0.5 = the bank's threshold
    threshold            REAL NOT NULL CHECK (threshold BETWEEN 0 AND 1),    -- the one applied, on the scale of `score`
    image_threshold_raw  REAL NOT NULL,                                      -- the bank's, for the frame
    pixel_threshold_raw  REAL NOT NULL,                                      -- the bank's, for a pixel
    map_min              REAL NOT NULL,                                      -- lowest value of the map
    map_max              REAL NOT NULL,                                      -- highest value of the map
    area_above_ratio     REAL NOT NULL CHECK (area_above_ratio BETWEEN 0 AND 1.001), -- share of the map above the pixel threshold
    PRIMARY KEY (inspection_id, id)
) STRICT, WITHOUT ROWID;

CREATE TABLE frame_qa_logs (
    captured_at         INTEGER NOT NULL,                                    -- of the inspection
    id                  BLOB NOT NULL CHECK (length(id) = 16),               -- UUIDv7
    inspection_id       BLOB NOT NULL REFERENCES inspections (id),                                       -- the inspection
    camera              TEXT NOT NULL,                                       -- camera by name
    frame_seq           INTEGER NOT NULL CHECK (frame_seq >= 0),             -- position of the frame in its source
    frame_sha256        BLOB NOT NULL CHECK (length(frame_sha256) = 32),     -- of the frame
    ssim_score          REAL CHECK (ssim_score BETWEEN -1.001 AND 1.001),    -- against the recipe's reference
    sharpness           REAL NOT NULL CHECK (sharpness >= 0 AND sharpness < 9e999), -- variance of the Laplacian
    noise_level         REAL NOT NULL CHECK (noise_level >= 0 AND noise_level < 9e999), -- grey levels
    contrast_ratio      REAL NOT NULL CHECK (contrast_ratio BETWEEN 0 AND 1.001), -- standard deviation over 127.5
    brightness_ratio    REAL NOT NULL CHECK (brightness_ratio BETWEEN 0 AND 1.001), -- mean over 255
    saturation_ratio    REAL NOT NULL CHECK (saturation_ratio BETWEEN 0 AND 1.001), -- mean HSV saturation
    clipped_ratio       REAL NOT NULL CHECK (clipped_ratio BETWEEN 0 AND 1.001), -- pixels at the ends of the scale
    phash               INTEGER NOT NULL,                                    -- 64-bit perceptual hash, as a signed integer
    is_duplicate        INTEGER NOT NULL CHECK (is_duplicate IN (0, 1)),     -- too like the frame before
    duplicate_distance  INTEGER CHECK (duplicate_distance BETWEEN 0 AND 64), -- Hamming distance to the frame before
    age_ms              REAL NOT NULL CHECK (age_ms >= 0 AND age_ms < 9e999), -- from capture to the gate
    issues              TEXT NOT NULL CHECK (json_valid(issues)),            -- JSON list of codes
    status              TEXT NOT NULL CHECK (status IN ('pass', 'warn', 'fail', 'uncertain')), -- of the frame's quality
    processing_ms       REAL NOT NULL CHECK (processing_ms >= 0 AND processing_ms < 9e999), -- time of the measurement
    PRIMARY KEY (inspection_id, id)
) STRICT, WITHOUT ROWID;

CREATE TABLE artifacts (
    captured_at    INTEGER NOT NULL,                                -- of the inspection
    id             BLOB NOT NULL CHECK (length(id) = 16),           -- UUIDv7
    inspection_id  BLOB NOT NULL REFERENCES inspections (id),                                   -- the inspection
    kind           TEXT NOT NULL CHECK (kind IN ('frame', 'thumbnail', 'crop', 'heatmap', 'mask', 'overlay', 'comparison', 'video', 'measurement', 'document', 'log', 'model_output')), -- what it shows
    relative_path  TEXT NOT NULL,                                   -- below the state folder's artifacts/
    content_type   TEXT NOT NULL,                                   -- MIME type
    size_bytes     INTEGER NOT NULL CHECK (size_bytes >= 0),        -- length of the file
    sha256         BLOB NOT NULL CHECK (length(sha256) = 32),       -- of the file
    width_px       INTEGER NOT NULL CHECK (width_px >= 0),          -- of the picture
    height_px      INTEGER NOT NULL CHECK (height_px >= 0),         -- of the picture
    PRIMARY KEY (inspection_id, id)
) STRICT, WITHOUT ROWID;

CREATE TABLE refusals (
    minute   INTEGER NOT NULL,                       -- start of the minute in which it was written
    station  TEXT NOT NULL,                          -- station by name
    reason   TEXT NOT NULL,                          -- code: why the frames were not inspected
    refused  INTEGER NOT NULL CHECK (refused >= 1),  -- frames
    PRIMARY KEY (minute, station, reason)
) STRICT, WITHOUT ROWID;

-- Samples waiting for the central side: a bounded ring, oldest dropped and counted.
CREATE TABLE gpu_stats (
    seq                 INTEGER PRIMARY KEY AUTOINCREMENT,                 -- order of arrival
    recorded_at         INTEGER NOT NULL,                                  -- when it was measured
    id                  BLOB NOT NULL CHECK (length(id) = 16),             -- UUIDv7
    gpu_index           INTEGER NOT NULL CHECK (gpu_index >= 0),           -- position in NVML's list
    gpu_name            TEXT,                                              -- product name
    gpu_util_pct        REAL CHECK (gpu_util_pct BETWEEN 0 AND 100),       -- share of time with a kernel running
    memory_used_bytes   INTEGER CHECK (memory_used_bytes >= 0),            -- memory in use
    memory_total_bytes  INTEGER CHECK (memory_total_bytes >= 0),           -- memory installed
    temperature_c       REAL,                                              -- of the die
    power_usage_w       REAL CHECK (power_usage_w >= 0),                   -- drawn
    power_limit_w       REAL CHECK (power_limit_w >= 0),                   -- allowed
    fan_speed_pct       REAL CHECK (fan_speed_pct >= 0),                   -- of the highest speed
    sm_clock_mhz        INTEGER CHECK (sm_clock_mhz >= 0),                 -- of the multiprocessors
    memory_clock_mhz    INTEGER CHECK (memory_clock_mhz >= 0),             -- of the memory
    pstate              INTEGER CHECK (pstate BETWEEN 0 AND 15),           -- performance state, 0 fastest
    throttle_reasons    INTEGER,                                           -- NVML's 64-bit mask, as a signed integer
    inference_rate_hz         REAL CHECK (inference_rate_hz >= 0),          -- frames a second the pipeline finished then
    memory_bandwidth_util_pct REAL CHECK (memory_bandwidth_util_pct BETWEEN 0 AND 100), -- share of time memory was read or written
    sm_clock_max_mhz          INTEGER CHECK (sm_clock_max_mhz >= 0),        -- highest of the multiprocessors
    compute_processes_count   INTEGER CHECK (compute_processes_count >= 0), -- processes that compute on it
    pcie_replay_counter       INTEGER CHECK (pcie_replay_counter >= 0),     -- repeated PCIe transfers since the driver was loaded
    temp_slowdown_threshold_c REAL,                                         -- at which it slows down
    memory_clock_max_mhz      INTEGER CHECK (memory_clock_max_mhz >= 0),    -- highest of the memory
    pcie_link_gen             INTEGER CHECK (pcie_link_gen >= 0),           -- PCIe generation in use
    pcie_link_width           INTEGER CHECK (pcie_link_width >= 0),         -- PCIe lanes in use
    pcie_tx_kb_s              INTEGER CHECK (pcie_tx_kb_s >= 0),            -- sent over PCIe
    pcie_rx_kb_s              INTEGER CHECK (pcie_rx_kb_s >= 0),            -- received over PCIe
    encoder_util_pct          REAL CHECK (encoder_util_pct BETWEEN 0 AND 100), -- of the video encoder
    decoder_util_pct          REAL CHECK (decoder_util_pct BETWEEN 0 AND 100), -- of the video decoder
    bar1_used_bytes           INTEGER CHECK (bar1_used_bytes >= 0)          -- mapped for direct access
) STRICT;

CREATE TABLE outbox (
    seq          INTEGER PRIMARY KEY AUTOINCREMENT,                          -- order of the commits, without gaps
    root_table   TEXT NOT NULL CHECK (root_table IN ('inspections')),        -- table of the unit's first row
    key_at       INTEGER NOT NULL,                                           -- its captured_at
    key_id       BLOB NOT NULL CHECK (length(key_id) = 16),                  -- its id; the unit is every row with this inspection id
    row_count    INTEGER NOT NULL CHECK (row_count >= 1),                    -- rows of the unit that are sent
    state        TEXT NOT NULL CHECK (state IN ('pending', 'parked')),       -- parked: central refused it; still pending delivery, never deleted
    attempts     INTEGER NOT NULL CHECK (attempts >= 0),                     -- times central refused it
    last_error   TEXT,                                                       -- what central said
    enqueued_at  INTEGER NOT NULL                                            -- when it was committed
) STRICT;

CREATE INDEX outbox_parked_idx ON outbox (seq) WHERE state = 'parked';

CREATE TABLE outbox_state (
    only_row           INTEGER NOT NULL PRIMARY KEY CHECK (only_row = 1),                  -- there is one row
    committed_total    INTEGER NOT NULL CHECK (committed_total >= 0),                      -- units ever committed
    delivered_total    INTEGER NOT NULL CHECK (delivered_total BETWEEN 0 AND committed_total), -- units central acknowledged
    last_acked_seq     INTEGER NOT NULL CHECK (last_acked_seq >= 0),                       -- highest seq of the last acknowledged batch
    last_batch_sha256  BLOB CHECK (length(last_batch_sha256) = 32),                        -- what that batch sent
    dropped_samples    INTEGER NOT NULL CHECK (dropped_samples >= 0)                       -- samples that fell out of the ring
) STRICT;

INSERT INTO outbox_state VALUES (1, 0, 0, 0, NULL, 0);
