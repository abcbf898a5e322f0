-- What `loupe db rollup` computes: hours of inspections, items, frame quality and GPUs, by site.
--
-- A row is the aggregate of every fact of its hour, computed anew whenever facts of that hour arrive; sums are kept in
-- whole millionths, so that the order of the facts changes nothing. Histograms have 64 buckets, the upper bound of
-- bucket k (from 0) is 0.05 ms × 2^(k/3); they add up over hours and stations.

SET LOCAL ROLE loupe_owner;

CREATE FUNCTION loupe.hist_bucket(value_ms double precision) RETURNS int
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    SELECT CASE WHEN value_ms <= 0.05 THEN 0
        ELSE least(63, ceil(round((3 * ln(value_ms / 0.05) / ln(2.0))::numeric, 9))::int) END
$$;
COMMENT ON FUNCTION loupe.hist_bucket(double precision) IS 'Bucket of a time in ms, 0 to 63';

CREATE FUNCTION loupe.hist_from(buckets int[], counts bigint[]) RETURNS bigint[]
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
AS $$
DECLARE
    histogram bigint[] := array_fill(0::bigint, ARRAY[64]);
BEGIN
    FOR i IN 1..cardinality(buckets) LOOP
        histogram[buckets[i] + 1] := histogram[buckets[i] + 1] + counts[i];
    END LOOP;
    RETURN histogram;
END
$$;
COMMENT ON FUNCTION loupe.hist_from(int[], bigint[]) IS 'Histogram of pairs of bucket and count';

CREATE FUNCTION loupe.hist_add(a bigint[], b bigint[]) RETURNS bigint[]
    LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
AS $$
BEGIN
    FOR i IN 1..64 LOOP
        a[i] := a[i] + b[i];
    END LOOP;
    RETURN a;
END
$$;
COMMENT ON FUNCTION loupe.hist_add(bigint[], bigint[]) IS 'Sum of two histograms';
CREATE AGGREGATE loupe.hist_sum(bigint[]) (SFUNC = loupe.hist_add, STYPE = bigint[], PARALLEL = SAFE,
    COMBINEFUNC = loupe.hist_add);
COMMENT ON AGGREGATE loupe.hist_sum(bigint[]) IS 'Sum of histograms';

CREATE FUNCTION loupe.hist_quantile(histogram bigint[], quantile double precision) RETURNS double precision
    LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
AS $$
DECLARE
    wanted double precision := 0;
    seen double precision := 0;
BEGIN
    FOR i IN 1..64 LOOP
        wanted := wanted + histogram[i];
    END LOOP;
    IF wanted = 0 THEN
        RETURN NULL;
    END IF;
    wanted := wanted * quantile;
    FOR i IN 1..64 LOOP
        IF histogram[i] > 0 AND seen + histogram[i] >= wanted THEN
            -- Within its bucket as if values were spread evenly on the logarithmic scale.
            RETURN 0.05 * power(2, (i - 2 + (wanted - seen) / histogram[i]) / 3.0);
        END IF;
        seen := seen + histogram[i];
    END LOOP;
    RETURN 0.05 * power(2, 21);
END
$$;
COMMENT ON FUNCTION loupe.hist_quantile(bigint[], double precision) IS
    'Quantile (0 to 1) of a histogram in ms, off by at most a bucket: 26 %; NULL of an empty one';

CREATE TABLE loupe.inspection_hourly (
    site_id uuid NOT NULL,
    hour timestamptz NOT NULL,
    day date NOT NULL CONSTRAINT inspection_hourly_day_ck CHECK (day = (hour AT TIME ZONE 'UTC')::date),
    station text NOT NULL,
    recipe text NOT NULL,
    verdict text NOT NULL,
    primary_reason text NOT NULL,
    inspection_count bigint NOT NULL CONSTRAINT inspection_hourly_count_ck CHECK (inspection_count >= 1),
    item_count bigint NOT NULL,
    fallback_count bigint NOT NULL,
    late_count bigint NOT NULL,
    sum_latency_us bigint NOT NULL,
    max_latency_ms real NOT NULL,
    hist_latency_ms bigint[] NOT NULL
        CONSTRAINT inspection_hourly_hist_ck CHECK (cardinality(hist_latency_ms) = 64),
    anomaly_count bigint NOT NULL,
    sum_anomaly_score_e6 bigint NOT NULL,
    first_at timestamptz NOT NULL,
    last_at timestamptz NOT NULL,
    CONSTRAINT inspection_hourly_pk PRIMARY KEY (site_id, hour, station, recipe, verdict, primary_reason)
) PARTITION BY RANGE (hour);
CREATE TABLE loupe.inspection_hourly_default PARTITION OF loupe.inspection_hourly DEFAULT;
COMMENT ON TABLE loupe.inspection_hourly IS 'Inspections by hour, station, recipe, verdict and gravest reason';
COMMENT ON COLUMN loupe.inspection_hourly.site_id IS 'The site';
COMMENT ON COLUMN loupe.inspection_hourly.hour IS 'Start of the hour of captured_at, UTC';
COMMENT ON COLUMN loupe.inspection_hourly.day IS 'Its day, UTC';
COMMENT ON COLUMN loupe.inspection_hourly.station IS 'Station by name';
COMMENT ON COLUMN loupe.inspection_hourly.recipe IS 'Recipe by name';
COMMENT ON COLUMN loupe.inspection_hourly.verdict IS 'pass, fail or hold';
COMMENT ON COLUMN loupe.inspection_hourly.primary_reason IS 'The gravest reason; empty for a pass';
COMMENT ON COLUMN loupe.inspection_hourly.inspection_count IS 'Inspections';
COMMENT ON COLUMN loupe.inspection_hourly.item_count IS 'Items in them';
COMMENT ON COLUMN loupe.inspection_hourly.fallback_count IS 'Those where a model ran elsewhere than the recipe wants';
COMMENT ON COLUMN loupe.inspection_hourly.late_count IS 'Those that took longer than their deadline';
COMMENT ON COLUMN loupe.inspection_hourly.sum_latency_us IS 'Sum of latency_ms, in µs';
COMMENT ON COLUMN loupe.inspection_hourly.max_latency_ms IS 'Longest';
COMMENT ON COLUMN loupe.inspection_hourly.hist_latency_ms IS 'Histogram of latency_ms: 64 buckets';
COMMENT ON COLUMN loupe.inspection_hourly.anomaly_count IS 'Those with an anomaly score';
COMMENT ON COLUMN loupe.inspection_hourly.sum_anomaly_score_e6 IS 'Sum of anomaly_score, in millionths';
COMMENT ON COLUMN loupe.inspection_hourly.first_at IS 'First captured_at';
COMMENT ON COLUMN loupe.inspection_hourly.last_at IS 'Last captured_at';
SELECT loupe.protect_derived('loupe.inspection_hourly', 'rollup', 'year');
CREATE INDEX inspection_hourly_day_idx ON loupe.inspection_hourly (site_id, day);

CREATE TABLE loupe.item_hourly (
    site_id uuid NOT NULL,
    hour timestamptz NOT NULL,
    day date NOT NULL CONSTRAINT item_hourly_day_ck CHECK (day = (hour AT TIME ZONE 'UTC')::date),
    part_id text NOT NULL,
    color_id text NOT NULL,
    seen_count bigint NOT NULL CONSTRAINT item_hourly_seen_ck CHECK (seen_count >= 1),
    accepted_count bigint NOT NULL,
    held_count bigint NOT NULL,
    stage2_count bigint NOT NULL,
    matched_count bigint NOT NULL,
    sum_similarity_e6 bigint NOT NULL,
    margin_count bigint NOT NULL,
    sum_margin_e6 bigint NOT NULL,
    min_margin real,
    sum_search_us bigint NOT NULL,
    last_at timestamptz NOT NULL,
    CONSTRAINT item_hourly_pk PRIMARY KEY (site_id, hour, part_id, color_id)
) PARTITION BY RANGE (hour);
CREATE TABLE loupe.item_hourly_default PARTITION OF loupe.item_hourly DEFAULT;
COMMENT ON TABLE loupe.item_hourly IS 'Items by hour and part';
COMMENT ON COLUMN loupe.item_hourly.site_id IS 'The site';
COMMENT ON COLUMN loupe.item_hourly.hour IS 'Start of the hour of captured_at, UTC';
COMMENT ON COLUMN loupe.item_hourly.day IS 'Its day, UTC';
COMMENT ON COLUMN loupe.item_hourly.part_id IS 'Part number; empty where none was accepted';
COMMENT ON COLUMN loupe.item_hourly.color_id IS 'Colour; empty where it is not known';
COMMENT ON COLUMN loupe.item_hourly.seen_count IS 'Items';
COMMENT ON COLUMN loupe.item_hourly.accepted_count IS 'Those named and not held';
COMMENT ON COLUMN loupe.item_hourly.held_count IS 'Those held';
COMMENT ON COLUMN loupe.item_hourly.stage2_count IS 'Those that needed the cold tier';
COMMENT ON COLUMN loupe.item_hourly.matched_count IS 'Those with a similarity';
COMMENT ON COLUMN loupe.item_hourly.sum_similarity_e6 IS 'Sum of similarity, in millionths';
COMMENT ON COLUMN loupe.item_hourly.margin_count IS 'Those with a margin';
COMMENT ON COLUMN loupe.item_hourly.sum_margin_e6 IS 'Sum of margin, in millionths';
COMMENT ON COLUMN loupe.item_hourly.min_margin IS 'Smallest margin';
COMMENT ON COLUMN loupe.item_hourly.sum_search_us IS 'Sum of both stages'' times, in µs';
COMMENT ON COLUMN loupe.item_hourly.last_at IS 'Last captured_at';
SELECT loupe.protect_derived('loupe.item_hourly', 'rollup', 'year');
CREATE INDEX item_hourly_day_idx ON loupe.item_hourly (site_id, day);

CREATE TABLE loupe.frame_qa_hourly (
    site_id uuid NOT NULL,
    hour timestamptz NOT NULL,
    day date NOT NULL CONSTRAINT frame_qa_hourly_day_ck CHECK (day = (hour AT TIME ZONE 'UTC')::date),
    camera text NOT NULL,
    metric text NOT NULL,
    sample_count bigint NOT NULL CONSTRAINT frame_qa_hourly_samples_ck CHECK (sample_count >= 1),
    pass_count bigint NOT NULL,
    warn_count bigint NOT NULL,
    fail_count bigint NOT NULL,
    uncertain_count bigint NOT NULL,
    duplicate_count bigint NOT NULL,
    sum_value_e6 numeric NOT NULL,
    min_value real NOT NULL,
    max_value real NOT NULL,
    sum_processing_us bigint NOT NULL,
    first_at timestamptz NOT NULL,
    last_at timestamptz NOT NULL,
    CONSTRAINT frame_qa_hourly_pk PRIMARY KEY (site_id, hour, camera, metric)
) PARTITION BY RANGE (hour);
CREATE TABLE loupe.frame_qa_hourly_default PARTITION OF loupe.frame_qa_hourly DEFAULT;
COMMENT ON TABLE loupe.frame_qa_hourly IS 'Frame quality by hour, camera and metric';
COMMENT ON COLUMN loupe.frame_qa_hourly.site_id IS 'The site';
COMMENT ON COLUMN loupe.frame_qa_hourly.hour IS 'Start of the hour of captured_at, UTC';
COMMENT ON COLUMN loupe.frame_qa_hourly.day IS 'Its day, UTC';
COMMENT ON COLUMN loupe.frame_qa_hourly.camera IS 'Camera by name';
COMMENT ON COLUMN loupe.frame_qa_hourly.metric IS 'A column of frame_qa_logs';
COMMENT ON COLUMN loupe.frame_qa_hourly.sample_count IS 'Frames with a value of it';
COMMENT ON COLUMN loupe.frame_qa_hourly.pass_count IS 'Those whose frame passed';
COMMENT ON COLUMN loupe.frame_qa_hourly.warn_count IS 'Those whose frame had a warning';
COMMENT ON COLUMN loupe.frame_qa_hourly.fail_count IS 'Those whose frame failed';
COMMENT ON COLUMN loupe.frame_qa_hourly.uncertain_count IS 'Those whose frame was uncertain';
COMMENT ON COLUMN loupe.frame_qa_hourly.duplicate_count IS 'Those whose frame repeated another';
COMMENT ON COLUMN loupe.frame_qa_hourly.sum_value_e6 IS 'Sum of the values, in millionths';
COMMENT ON COLUMN loupe.frame_qa_hourly.min_value IS 'Smallest value';
COMMENT ON COLUMN loupe.frame_qa_hourly.max_value IS 'Largest value';
COMMENT ON COLUMN loupe.frame_qa_hourly.sum_processing_us IS 'Time spent on these frames'' quality, in µs';
COMMENT ON COLUMN loupe.frame_qa_hourly.first_at IS 'First captured_at';
COMMENT ON COLUMN loupe.frame_qa_hourly.last_at IS 'Last captured_at';
SELECT loupe.protect_derived('loupe.frame_qa_hourly', 'rollup', 'year');
CREATE INDEX frame_qa_hourly_day_idx ON loupe.frame_qa_hourly (site_id, day);

CREATE TABLE loupe.gpu_hourly (
    site_id uuid NOT NULL,
    hour timestamptz NOT NULL,
    day date NOT NULL CONSTRAINT gpu_hourly_day_ck CHECK (day = (hour AT TIME ZONE 'UTC')::date),
    device_id uuid NOT NULL,
    gpu_index int NOT NULL,
    gpu_name text,
    sample_count bigint NOT NULL CONSTRAINT gpu_hourly_samples_ck CHECK (sample_count >= 1),
    util_count bigint NOT NULL,
    sum_util_pct_e6 bigint NOT NULL,
    max_util_pct real,
    max_memory_used_bytes bigint,
    memory_total_bytes bigint,
    max_temperature_c real,
    power_count bigint NOT NULL,
    sum_power_usage_w_e6 bigint NOT NULL,
    throttled_count bigint NOT NULL,
    first_at timestamptz NOT NULL,
    last_at timestamptz NOT NULL,
    CONSTRAINT gpu_hourly_pk PRIMARY KEY (site_id, hour, device_id, gpu_index)
) PARTITION BY RANGE (hour);
CREATE TABLE loupe.gpu_hourly_default PARTITION OF loupe.gpu_hourly DEFAULT;
COMMENT ON TABLE loupe.gpu_hourly IS 'GPU samples by hour, device and GPU';
COMMENT ON COLUMN loupe.gpu_hourly.site_id IS 'The site';
COMMENT ON COLUMN loupe.gpu_hourly.hour IS 'Start of the hour of recorded_at, UTC';
COMMENT ON COLUMN loupe.gpu_hourly.day IS 'Its day, UTC';
COMMENT ON COLUMN loupe.gpu_hourly.device_id IS 'The device';
COMMENT ON COLUMN loupe.gpu_hourly.gpu_index IS 'The GPU, as NVML counts';
COMMENT ON COLUMN loupe.gpu_hourly.gpu_name IS 'Product name';
COMMENT ON COLUMN loupe.gpu_hourly.sample_count IS 'Samples';
COMMENT ON COLUMN loupe.gpu_hourly.util_count IS 'Those with a utilisation';
COMMENT ON COLUMN loupe.gpu_hourly.sum_util_pct_e6 IS 'Sum of gpu_util_pct, in millionths';
COMMENT ON COLUMN loupe.gpu_hourly.max_util_pct IS 'Highest gpu_util_pct';
COMMENT ON COLUMN loupe.gpu_hourly.max_memory_used_bytes IS 'Most memory in use';
COMMENT ON COLUMN loupe.gpu_hourly.memory_total_bytes IS 'Memory there is';
COMMENT ON COLUMN loupe.gpu_hourly.max_temperature_c IS 'Highest temperature';
COMMENT ON COLUMN loupe.gpu_hourly.power_count IS 'Samples with a power draw';
COMMENT ON COLUMN loupe.gpu_hourly.sum_power_usage_w_e6 IS 'Sum of power_usage_w, in millionths';
COMMENT ON COLUMN loupe.gpu_hourly.throttled_count IS 'Samples where heat or power slowed the clock';
COMMENT ON COLUMN loupe.gpu_hourly.first_at IS 'First recorded_at';
COMMENT ON COLUMN loupe.gpu_hourly.last_at IS 'Last recorded_at';
SELECT loupe.protect_derived('loupe.gpu_hourly', 'rollup', 'year');
CREATE INDEX gpu_hourly_day_idx ON loupe.gpu_hourly (site_id, day);

CREATE TABLE loupe.rollup_state (
    rollup_name text NOT NULL CONSTRAINT rollup_state_pk PRIMARY KEY,
    rolled_to timestamptz NOT NULL,
    ran_at timestamptz NOT NULL
);
COMMENT ON TABLE loupe.rollup_state IS 'How far each rollup has read; no row: nothing yet';
COMMENT ON COLUMN loupe.rollup_state.rollup_name IS 'Table it fills';
COMMENT ON COLUMN loupe.rollup_state.rolled_to IS 'Facts with an ingested_at before it are in; an hour before it is read again';
COMMENT ON COLUMN loupe.rollup_state.ran_at IS 'When it last ran';

CREATE TABLE loupe.mv_refresh_log (
    view_name text NOT NULL CONSTRAINT mv_refresh_log_pk PRIMARY KEY,
    started_at timestamptz NOT NULL,
    finished_at timestamptz NOT NULL CONSTRAINT mv_refresh_log_finished_ck CHECK (finished_at >= started_at),
    row_count bigint NOT NULL,
    error text
);
COMMENT ON TABLE loupe.mv_refresh_log IS 'The last refresh of each materialised view';
COMMENT ON COLUMN loupe.mv_refresh_log.view_name IS 'The view';
COMMENT ON COLUMN loupe.mv_refresh_log.started_at IS 'When it began';
COMMENT ON COLUMN loupe.mv_refresh_log.finished_at IS 'When it ended';
COMMENT ON COLUMN loupe.mv_refresh_log.row_count IS 'Rows after it, of every site';
COMMENT ON COLUMN loupe.mv_refresh_log.error IS 'Why it failed; NULL: it did not';

DO $$
DECLARE
    target text;
BEGIN
    FOREACH target IN ARRAY ARRAY['rollup_state', 'mv_refresh_log'] LOOP
        EXECUTE format('ALTER TABLE loupe.%I ENABLE ROW LEVEL SECURITY', target);
        EXECUTE format('ALTER TABLE loupe.%I FORCE ROW LEVEL SECURITY', target);
        EXECUTE format('CREATE POLICY reads ON loupe.%I FOR SELECT TO PUBLIC USING ((SELECT loupe.reads_all()))', target);
        EXECUTE format('CREATE POLICY job_writes ON loupe.%I FOR ALL TO PUBLIC USING ((SELECT loupe.is_owner())) '
            'WITH CHECK ((SELECT loupe.is_owner()))', target);
        EXECUTE format('GRANT SELECT ON loupe.%I TO loupe_ops', target);
    END LOOP;
END
$$;

-- What arrived lately: rows lie in the order of their arrival, so a range index of a few pages finds them.
CREATE INDEX inspections_ingested_at_idx ON loupe.inspections USING brin (ingested_at)
    WITH (pages_per_range = 32, autosummarize = on);
CREATE INDEX items_ingested_at_idx ON loupe.items USING brin (ingested_at)
    WITH (pages_per_range = 32, autosummarize = on);
CREATE INDEX frame_qa_logs_ingested_at_idx ON loupe.frame_qa_logs USING brin (ingested_at)
    WITH (pages_per_range = 32, autosummarize = on);
CREATE INDEX gpu_stats_ingested_at_idx ON loupe.gpu_stats USING brin (ingested_at)
    WITH (pages_per_range = 32, autosummarize = on);
-- Where frames repeat, and whether a review's inspection still waits.
CREATE INDEX frame_qa_logs_is_duplicate_idx ON loupe.frame_qa_logs (site_id, captured_at DESC) WHERE is_duplicate;
CREATE INDEX reviews_inspection_id_idx ON loupe.reviews (site_id, inspection_id);

RESET ROLE;
