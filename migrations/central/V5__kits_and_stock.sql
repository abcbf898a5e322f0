-- Counting sessions against kits, sent when they end, and the stock bookings that follow. Append-only.

SET LOCAL ROLE loupe_owner;

CREATE TABLE loupe.kit_sessions (
    site_id uuid NOT NULL,
    started_at timestamptz NOT NULL,
    id uuid NOT NULL,
    started_by text NOT NULL
        CONSTRAINT kit_sessions_started_by_ck CHECK (started_by <> ''),
    kit_code text NOT NULL,
    kit jsonb NOT NULL,
    station text,
    ended_at timestamptz NOT NULL
        CONSTRAINT kit_sessions_ended_at_ck CHECK (ended_at >= started_at),
    ended_by text NOT NULL,
    outcome text NOT NULL
        CONSTRAINT kit_sessions_outcome_ck CHECK (outcome IN ('finished', 'cancelled')),
    reason text,
    is_complete boolean NOT NULL,
    tray_count int NOT NULL
        CONSTRAINT kit_sessions_tray_count_ck CHECK (tray_count >= 0),
    expected_count int NOT NULL
        CONSTRAINT kit_sessions_expected_count_ck CHECK (expected_count >= 0),
    found_count int NOT NULL
        CONSTRAINT kit_sessions_found_count_ck CHECK (found_count >= 0),
    missing_count int NOT NULL
        CONSTRAINT kit_sessions_missing_count_ck CHECK (missing_count = expected_count - found_count),
    surplus_count int NOT NULL
        CONSTRAINT kit_sessions_surplus_count_ck CHECK (surplus_count >= 0),
    doubtful_count int NOT NULL
        CONSTRAINT kit_sessions_doubtful_count_ck CHECK (doubtful_count >= 0),
    result jsonb NOT NULL,
    device_id uuid NOT NULL,
    ingested_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT kit_sessions_pk PRIMARY KEY (site_id, started_at, id)
) PARTITION BY RANGE (started_at);
CREATE TABLE loupe.kit_sessions_default PARTITION OF loupe.kit_sessions DEFAULT;
COMMENT ON TABLE loupe.kit_sessions IS 'Counts of trays against a kit';
COMMENT ON COLUMN loupe.kit_sessions.site_id IS 'The site that wrote it';
COMMENT ON COLUMN loupe.kit_sessions.started_at IS 'When it began';
COMMENT ON COLUMN loupe.kit_sessions.id IS 'UUIDv7, made on the device';
COMMENT ON COLUMN loupe.kit_sessions.started_by IS 'Who began it';
COMMENT ON COLUMN loupe.kit_sessions.kit_code IS 'Which kit';
COMMENT ON COLUMN loupe.kit_sessions.kit IS 'The kit as it was then: kit_code, name, lines';
COMMENT ON COLUMN loupe.kit_sessions.station IS 'Whose frames counted; NULL: trays added by hand';
COMMENT ON COLUMN loupe.kit_sessions.ended_at IS 'When it ended';
COMMENT ON COLUMN loupe.kit_sessions.ended_by IS 'Who ended it';
COMMENT ON COLUMN loupe.kit_sessions.outcome IS 'finished or cancelled';
COMMENT ON COLUMN loupe.kit_sessions.reason IS 'Why it was cancelled';
COMMENT ON COLUMN loupe.kit_sessions.is_complete IS 'Nothing missing, over or in doubt';
COMMENT ON COLUMN loupe.kit_sessions.tray_count IS 'Inspections counted';
COMMENT ON COLUMN loupe.kit_sessions.expected_count IS 'Items the kit asks for';
COMMENT ON COLUMN loupe.kit_sessions.found_count IS 'Of these';
COMMENT ON COLUMN loupe.kit_sessions.missing_count IS 'Expected and not found';
COMMENT ON COLUMN loupe.kit_sessions.surplus_count IS 'Accepted items without a place';
COMMENT ON COLUMN loupe.kit_sessions.doubtful_count IS 'Items and pictures in doubt';
COMMENT ON COLUMN loupe.kit_sessions.result IS 'The whole count';
COMMENT ON COLUMN loupe.kit_sessions.device_id IS 'The device that wrote it';
COMMENT ON COLUMN loupe.kit_sessions.ingested_at IS 'When it arrived here';
GRANT SELECT (site_id, started_at, id) ON loupe.kit_sessions TO loupe_device;
SELECT loupe.protect('loupe.kit_sessions');

CREATE TABLE loupe.stock_ledger (
    site_id uuid NOT NULL,
    recorded_at timestamptz NOT NULL,
    id uuid NOT NULL,
    part_id text NOT NULL
        CONSTRAINT stock_ledger_part_id_ck CHECK (part_id <> ''),
    color_id int,
    delta bigint NOT NULL
        CONSTRAINT stock_ledger_delta_ck CHECK (delta <> 0),
    reason text NOT NULL
        CONSTRAINT stock_ledger_reason_ck CHECK (reason IN ('counted', 'adjustment')),
    reference_type text NOT NULL
        CONSTRAINT stock_ledger_reference_type_ck CHECK (reference_type IN ('kit', 'manual')),
    reference_id uuid,
    previous_quantity bigint NOT NULL,
    new_quantity bigint NOT NULL
        CONSTRAINT stock_ledger_new_quantity_ck CHECK (new_quantity = previous_quantity + delta),
    author text NOT NULL
        CONSTRAINT stock_ledger_author_ck CHECK (author <> ''),
    note text,
    device_id uuid NOT NULL,
    ingested_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT stock_ledger_pk PRIMARY KEY (site_id, recorded_at, id)
) PARTITION BY RANGE (recorded_at);
CREATE TABLE loupe.stock_ledger_default PARTITION OF loupe.stock_ledger DEFAULT;
COMMENT ON TABLE loupe.stock_ledger IS 'Stock bookings of the sites';
COMMENT ON COLUMN loupe.stock_ledger.site_id IS 'The site that wrote it';
COMMENT ON COLUMN loupe.stock_ledger.recorded_at IS 'When it was booked';
COMMENT ON COLUMN loupe.stock_ledger.id IS 'UUIDv7, made on the device';
COMMENT ON COLUMN loupe.stock_ledger.part_id IS 'Part number';
COMMENT ON COLUMN loupe.stock_ledger.color_id IS 'Colour, where it is known';
COMMENT ON COLUMN loupe.stock_ledger.delta IS 'How many came (went)';
COMMENT ON COLUMN loupe.stock_ledger.reason IS 'counted or adjustment';
COMMENT ON COLUMN loupe.stock_ledger.reference_type IS 'What booked it: kit or manual';
COMMENT ON COLUMN loupe.stock_ledger.reference_id IS 'The kit session';
COMMENT ON COLUMN loupe.stock_ledger.previous_quantity IS 'On the device, of this part and colour, before';
COMMENT ON COLUMN loupe.stock_ledger.new_quantity IS 'And after';
COMMENT ON COLUMN loupe.stock_ledger.author IS 'Who booked it';
COMMENT ON COLUMN loupe.stock_ledger.note IS 'The author''s words';
COMMENT ON COLUMN loupe.stock_ledger.device_id IS 'The device that wrote it';
COMMENT ON COLUMN loupe.stock_ledger.ingested_at IS 'When it arrived here';
GRANT SELECT (site_id, recorded_at, id) ON loupe.stock_ledger TO loupe_device;
SELECT loupe.protect('loupe.stock_ledger');

CREATE INDEX kit_sessions_kit_code_idx ON loupe.kit_sessions (site_id, kit_code, started_at DESC);
CREATE INDEX stock_ledger_part_id_idx ON loupe.stock_ledger (site_id, part_id, recorded_at DESC);

RESET ROLE;
