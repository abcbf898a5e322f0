-- Frames that were captured and not inspected, by minute; and what is known of the pictures that stay on the devices.
-- Written as every other fact: INSERT … ON CONFLICT DO NOTHING on the whole key.

SET LOCAL ROLE loupe_owner;

CREATE TABLE loupe.refusals (
    site_id uuid NOT NULL,
    minute timestamptz NOT NULL,
    id uuid NOT NULL,
    station text NOT NULL,
    reason text NOT NULL
        CONSTRAINT refusals_reason_ck CHECK (reason ~ '^[a-z][a-z0-9_.]{1,63}$'),
    version int NOT NULL
        CONSTRAINT refusals_version_ck CHECK (version >= 1),
    refused bigint NOT NULL
        CONSTRAINT refusals_refused_ck CHECK (refused >= 1),
    device_id uuid NOT NULL,
    ingested_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT refusals_pk PRIMARY KEY (site_id, minute, id)
) PARTITION BY RANGE (minute);
CREATE TABLE loupe.refusals_default PARTITION OF loupe.refusals DEFAULT;
COMMENT ON TABLE loupe.refusals IS 'Frames captured and not inspected; captured = rows of inspections + sum(refused)';
COMMENT ON COLUMN loupe.refusals.site_id IS 'The site that wrote it';
COMMENT ON COLUMN loupe.refusals.minute IS 'Start of the minute in which the frames were refused';
COMMENT ON COLUMN loupe.refusals.id IS 'Made on the device of device, minute, station, reason and version';
COMMENT ON COLUMN loupe.refusals.station IS 'Station by name';
COMMENT ON COLUMN loupe.refusals.reason IS 'Code: why they were not inspected';
COMMENT ON COLUMN loupe.refusals.version IS 'A minute whose count grew after it was reported (the clock went back) has further versions; they add up';
COMMENT ON COLUMN loupe.refusals.refused IS 'Frames of this version';
COMMENT ON COLUMN loupe.refusals.device_id IS 'The device that wrote it';
COMMENT ON COLUMN loupe.refusals.ingested_at IS 'When it arrived here';
GRANT SELECT (site_id, minute, id) ON loupe.refusals TO loupe_device;
SELECT loupe.protect('loupe.refusals');

CREATE TABLE loupe.artifacts (
    site_id uuid NOT NULL,
    captured_at timestamptz NOT NULL,
    id uuid NOT NULL,
    inspection_id uuid NOT NULL,
    kind text NOT NULL
        CONSTRAINT artifacts_kind_ck CHECK (kind IN ('frame', 'thumbnail', 'crop', 'heatmap', 'mask', 'overlay', 'comparison', 'video', 'measurement', 'document', 'log', 'model_output')),
    relative_path text NOT NULL
        CONSTRAINT artifacts_relative_path_ck CHECK (relative_path <> '' AND relative_path !~ '(^/|(^|/)\.\.(/|$))'),
    content_type text NOT NULL,
    size_bytes bigint NOT NULL
        CONSTRAINT artifacts_size_bytes_ck CHECK (size_bytes >= 0),
    sha256 bytea NOT NULL
        CONSTRAINT artifacts_sha256_ck CHECK (octet_length(sha256) = 32),
    width_px int NOT NULL
        CONSTRAINT artifacts_width_px_ck CHECK (width_px >= 0),
    height_px int NOT NULL
        CONSTRAINT artifacts_height_px_ck CHECK (height_px >= 0),
    device_id uuid NOT NULL,
    ingested_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT artifacts_pk PRIMARY KEY (site_id, captured_at, id)
) PARTITION BY RANGE (captured_at);
CREATE TABLE loupe.artifacts_default PARTITION OF loupe.artifacts DEFAULT;
COMMENT ON TABLE loupe.artifacts IS 'Pictures and files as they were made; the bytes stay on the device, which may delete them by its retention';
COMMENT ON COLUMN loupe.artifacts.site_id IS 'The site that wrote it';
COMMENT ON COLUMN loupe.artifacts.captured_at IS 'Of the inspection';
COMMENT ON COLUMN loupe.artifacts.id IS 'UUIDv7, made on the device';
COMMENT ON COLUMN loupe.artifacts.inspection_id IS 'The inspection';
COMMENT ON COLUMN loupe.artifacts.kind IS 'What it shows';
COMMENT ON COLUMN loupe.artifacts.relative_path IS 'Below artifacts/ in the device''s state folder';
COMMENT ON COLUMN loupe.artifacts.content_type IS 'MIME type';
COMMENT ON COLUMN loupe.artifacts.size_bytes IS 'Length of the file';
COMMENT ON COLUMN loupe.artifacts.sha256 IS 'Of the file';
COMMENT ON COLUMN loupe.artifacts.width_px IS 'Width of the picture; 0 where it is none';
COMMENT ON COLUMN loupe.artifacts.height_px IS 'Height of the picture; 0 where it is none';
COMMENT ON COLUMN loupe.artifacts.device_id IS 'The device that wrote it';
COMMENT ON COLUMN loupe.artifacts.ingested_at IS 'When it arrived here';
GRANT SELECT (site_id, captured_at, id) ON loupe.artifacts TO loupe_device;
SELECT loupe.protect('loupe.artifacts');

CREATE INDEX artifacts_inspection_id_idx ON loupe.artifacts (site_id, inspection_id);
CREATE INDEX artifacts_sha256_idx ON loupe.artifacts (site_id, sha256);
CREATE INDEX refusals_station_minute_idx ON loupe.refusals (site_id, station, minute DESC);

RESET ROLE;
