-- What devices send. Each row is written once, by one INSERT … ON CONFLICT DO NOTHING on its whole key, so that sending
-- it again changes nothing. Facts are partitioned by month (UTC) with a DEFAULT partition, so that a wrong device clock
-- cannot jam an outbox, and have no foreign keys: partitions must drop freely. Bounds of measured ratios leave 0.001
-- for the rounding of f32 sums. NaN fails every BETWEEN and every upper bound.

SET LOCAL ROLE loupe_owner;

CREATE TABLE loupe.provenances (
    site_id uuid NOT NULL,
    sha256 bytea NOT NULL
        CONSTRAINT provenances_sha256_ck CHECK (octet_length(sha256) = 32),
    created_at timestamptz NOT NULL,
    record text NOT NULL
        CONSTRAINT provenances_record_ck CHECK (record::jsonb IS NOT NULL),
    device_id uuid NOT NULL,
    ingested_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT provenances_pk PRIMARY KEY (site_id, sha256)
);
COMMENT ON TABLE loupe.provenances IS 'What decisions were made with: content-addressed, one row a site and record';
COMMENT ON COLUMN loupe.provenances.site_id IS 'The site that wrote it';
COMMENT ON COLUMN loupe.provenances.sha256 IS 'Of record, octet by octet';
COMMENT ON COLUMN loupe.provenances.created_at IS 'When the device first used it';
COMMENT ON COLUMN loupe.provenances.record IS 'Canonical JSON (text, so that its digest holds): recipe, models, bank, index, providers, software';
COMMENT ON COLUMN loupe.provenances.device_id IS 'The device that wrote it';
COMMENT ON COLUMN loupe.provenances.ingested_at IS 'When it arrived here';
GRANT SELECT (site_id, sha256) ON loupe.provenances TO loupe_device;
SELECT loupe.protect('loupe.provenances');

CREATE TABLE loupe.inspections (
    site_id uuid NOT NULL,
    captured_at timestamptz NOT NULL,
    id uuid NOT NULL,
    code text NOT NULL
        CONSTRAINT inspections_code_ck CHECK (code ~ '^INS-[0-9]{8}-[0-9]{4,}$'),
    station text NOT NULL,
    camera text NOT NULL,
    recipe text NOT NULL,
    source text NOT NULL,
    frame_seq bigint NOT NULL
        CONSTRAINT inspections_frame_seq_ck CHECK (frame_seq >= 0),
    frame_width_px int NOT NULL
        CONSTRAINT inspections_frame_width_px_ck CHECK (frame_width_px >= 0),
    frame_height_px int NOT NULL
        CONSTRAINT inspections_frame_height_px_ck CHECK (frame_height_px >= 0),
    verdict text NOT NULL
        CONSTRAINT inspections_verdict_ck CHECK (verdict IN ('pass', 'fail', 'hold')),
    reasons text[] NOT NULL
        CONSTRAINT inspections_reasons_ck CHECK (array_to_string(reasons, ',') ~ '^([a-z][a-z0-9_.]{1,63}(,[a-z][a-z0-9_.]{1,63})*)?$' AND (verdict = 'pass') = (cardinality(reasons) = 0)),
    frame_sha256 bytea NOT NULL
        CONSTRAINT inspections_frame_sha256_ck CHECK (octet_length(frame_sha256) = 32),
    provenance_sha256 bytea NOT NULL
        CONSTRAINT inspections_provenance_sha256_ck CHECK (octet_length(provenance_sha256) = 32),
    anomaly_score_raw real
        CONSTRAINT inspections_anomaly_score_raw_ck CHECK (anomaly_score_raw >= 0 AND anomaly_score_raw < 'Infinity'),
    anomaly_score real
        CONSTRAINT inspections_anomaly_score_ck CHECK (anomaly_score BETWEEN 0 AND 1),
    min_similarity real
        CONSTRAINT inspections_min_similarity_ck CHECK (min_similarity BETWEEN -1.001 AND 1.001),
    min_margin real
        CONSTRAINT inspections_min_margin_ck CHECK (min_margin BETWEEN -0.001 AND 2.001),
    item_count int NOT NULL
        CONSTRAINT inspections_item_count_ck CHECK (item_count >= 0),
    decided_at timestamptz NOT NULL,
    latency_ms real NOT NULL
        CONSTRAINT inspections_latency_ms_ck CHECK (latency_ms >= 0 AND latency_ms < 'Infinity'),
    deadline_ms real
        CONSTRAINT inspections_deadline_ms_ck CHECK (deadline_ms >= 0 AND deadline_ms < 'Infinity'),
    is_provider_fallback boolean NOT NULL,
    device_id uuid NOT NULL,
    ingested_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT inspections_pk PRIMARY KEY (site_id, captured_at, id)
) PARTITION BY RANGE (captured_at);
CREATE TABLE loupe.inspections_default PARTITION OF loupe.inspections DEFAULT;
COMMENT ON TABLE loupe.inspections IS 'One decision about one frame';
COMMENT ON COLUMN loupe.inspections.site_id IS 'The site that wrote it';
COMMENT ON COLUMN loupe.inspections.captured_at IS 'When the frame was taken; never corrected';
COMMENT ON COLUMN loupe.inspections.id IS 'UUIDv7, made on the device';
COMMENT ON COLUMN loupe.inspections.code IS 'For people: per device and local day';
COMMENT ON COLUMN loupe.inspections.station IS 'Station by name';
COMMENT ON COLUMN loupe.inspections.camera IS 'Camera by name';
COMMENT ON COLUMN loupe.inspections.recipe IS 'Recipe by name; the exact one is in the provenance';
COMMENT ON COLUMN loupe.inspections.source IS 'File, or video#frame';
COMMENT ON COLUMN loupe.inspections.frame_seq IS 'Position of the frame in its source';
COMMENT ON COLUMN loupe.inspections.frame_width_px IS 'Width of the frame; 0 where it could not be decoded';
COMMENT ON COLUMN loupe.inspections.frame_height_px IS 'Height of the frame; 0 where it could not be decoded';
COMMENT ON COLUMN loupe.inspections.verdict IS 'pass, fail or hold';
COMMENT ON COLUMN loupe.inspections.reasons IS 'Codes, gravest first; empty exactly for a pass';
COMMENT ON COLUMN loupe.inspections.frame_sha256 IS 'Of the frame';
COMMENT ON COLUMN loupe.inspections.provenance_sha256 IS 'What the decision was made with';
COMMENT ON COLUMN loupe.inspections.anomaly_score_raw IS 'The model''s own scale, 0 and up';
COMMENT ON COLUMN loupe.inspections.anomaly_score IS 'Normalised, 0 to 1; 0.5 = the bank''s threshold';
COMMENT ON COLUMN loupe.inspections.min_similarity IS 'Lowest cosine of the items, -1 to 1 and rounding';
COMMENT ON COLUMN loupe.inspections.min_margin IS 'Smallest margin of the items, 0 to 2 and rounding';
COMMENT ON COLUMN loupe.inspections.item_count IS 'Rows in items';
COMMENT ON COLUMN loupe.inspections.decided_at IS 'When the verdict was reached';
COMMENT ON COLUMN loupe.inspections.latency_ms IS 'From the frame''s arrival to the decision';
COMMENT ON COLUMN loupe.inspections.deadline_ms IS 'The recipe''s limit for it';
COMMENT ON COLUMN loupe.inspections.is_provider_fallback IS 'A model did not run where the recipe wants it';
COMMENT ON COLUMN loupe.inspections.device_id IS 'The device that wrote it';
COMMENT ON COLUMN loupe.inspections.ingested_at IS 'When it arrived here';
GRANT SELECT (site_id, captured_at, id) ON loupe.inspections TO loupe_device;
SELECT loupe.protect('loupe.inspections');

CREATE TABLE loupe.items (
    site_id uuid NOT NULL,
    captured_at timestamptz NOT NULL,
    id uuid NOT NULL,
    inspection_id uuid NOT NULL,
    ordinal int NOT NULL
        CONSTRAINT items_ordinal_ck CHECK (ordinal >= 0),
    x_px real NOT NULL
        CONSTRAINT items_x_px_ck CHECK (x_px >= 0 AND x_px < 'Infinity'),
    y_px real NOT NULL
        CONSTRAINT items_y_px_ck CHECK (y_px >= 0 AND y_px < 'Infinity'),
    width_px real NOT NULL
        CONSTRAINT items_width_px_ck CHECK (width_px > 0 AND width_px < 'Infinity'),
    height_px real NOT NULL
        CONSTRAINT items_height_px_ck CHECK (height_px > 0 AND height_px < 'Infinity'),
    label text NOT NULL,
    detection_confidence real NOT NULL
        CONSTRAINT items_detection_confidence_ck CHECK (detection_confidence BETWEEN 0 AND 1.001),
    part_id text,
    color_id text,
    similarity real
        CONSTRAINT items_similarity_ck CHECK (similarity BETWEEN -1.001 AND 1.001),
    second_part_id text,
    second_similarity real
        CONSTRAINT items_second_similarity_ck CHECK (second_similarity BETWEEN -1.001 AND 1.001),
    margin real
        CONSTRAINT items_margin_ck CHECK (margin BETWEEN -0.001 AND 2.001),
    tier text
        CONSTRAINT items_tier_ck CHECK (tier IN ('l1', 'l2', 'delta')),
    entered_stage2 boolean NOT NULL,
    is_held boolean NOT NULL,
    stage1_ms real
        CONSTRAINT items_stage1_ms_ck CHECK (stage1_ms >= 0 AND stage1_ms < 'Infinity'),
    stage2_ms real
        CONSTRAINT items_stage2_ms_ck CHECK (stage2_ms >= 0 AND stage2_ms < 'Infinity'),
    top_k jsonb
        CONSTRAINT items_top_k_ck CHECK (jsonb_typeof(top_k) = 'array'),
    verdict text NOT NULL
        CONSTRAINT items_verdict_ck CHECK (verdict IN ('pass', 'fail', 'hold')),
    reasons text[] NOT NULL
        CONSTRAINT items_reasons_ck CHECK (array_to_string(reasons, ',') ~ '^([a-z][a-z0-9_.]{1,63}(,[a-z][a-z0-9_.]{1,63})*)?$' AND (verdict = 'pass' OR cardinality(reasons) > 0)),
    device_id uuid NOT NULL,
    ingested_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT items_pk PRIMARY KEY (site_id, captured_at, id)
) PARTITION BY RANGE (captured_at);
CREATE TABLE loupe.items_default PARTITION OF loupe.items DEFAULT;
COMMENT ON TABLE loupe.items IS 'Parts located in a frame';
COMMENT ON COLUMN loupe.items.site_id IS 'The site that wrote it';
COMMENT ON COLUMN loupe.items.captured_at IS 'Of the inspection';
COMMENT ON COLUMN loupe.items.id IS 'UUIDv7, made on the device';
COMMENT ON COLUMN loupe.items.inspection_id IS 'The inspection';
COMMENT ON COLUMN loupe.items.ordinal IS 'Position in the frame''s list, from 0';
COMMENT ON COLUMN loupe.items.x_px IS 'Left edge';
COMMENT ON COLUMN loupe.items.y_px IS 'Upper edge';
COMMENT ON COLUMN loupe.items.width_px IS 'Width of the box';
COMMENT ON COLUMN loupe.items.height_px IS 'Height of the box';
COMMENT ON COLUMN loupe.items.label IS 'The detector''s class';
COMMENT ON COLUMN loupe.items.detection_confidence IS 'Of the detector, 0 to 1';
COMMENT ON COLUMN loupe.items.part_id IS 'The accepted part; NULL while in doubt';
COMMENT ON COLUMN loupe.items.color_id IS 'Colour of the best match';
COMMENT ON COLUMN loupe.items.similarity IS 'Cosine to the best template, -1 to 1 and rounding';
COMMENT ON COLUMN loupe.items.second_part_id IS 'The best other part';
COMMENT ON COLUMN loupe.items.second_similarity IS 'Cosine to that, -1 to 1 and rounding';
COMMENT ON COLUMN loupe.items.margin IS 'Similarity minus that of the best other part, 0 to 2 and rounding';
COMMENT ON COLUMN loupe.items.tier IS 'Tier of the index that answered: l1, l2 or delta';
COMMENT ON COLUMN loupe.items.entered_stage2 IS 'The cold tier was searched';
COMMENT ON COLUMN loupe.items.is_held IS 'The item''s verdict is hold';
COMMENT ON COLUMN loupe.items.stage1_ms IS 'Time in the hot tier';
COMMENT ON COLUMN loupe.items.stage2_ms IS 'Time in the cold tier';
COMMENT ON COLUMN loupe.items.top_k IS 'At most five candidates, best first: [{template, part_id, color_id, similarity}]; kept when held or stage 2';
COMMENT ON COLUMN loupe.items.verdict IS 'Of this item: pass, fail or hold';
COMMENT ON COLUMN loupe.items.reasons IS 'Codes; not empty unless pass';
COMMENT ON COLUMN loupe.items.device_id IS 'The device that wrote it';
COMMENT ON COLUMN loupe.items.ingested_at IS 'When it arrived here';
GRANT SELECT (site_id, captured_at, id) ON loupe.items TO loupe_device;
SELECT loupe.protect('loupe.items');

CREATE TABLE loupe.anomaly_maps (
    site_id uuid NOT NULL,
    captured_at timestamptz NOT NULL,
    id uuid NOT NULL,
    inspection_id uuid NOT NULL,
    bank_sha256 bytea NOT NULL
        CONSTRAINT anomaly_maps_bank_sha256_ck CHECK (octet_length(bank_sha256) = 32),
    score_raw real NOT NULL
        CONSTRAINT anomaly_maps_score_raw_ck CHECK (score_raw >= 0 AND score_raw < 'Infinity'),
    score real NOT NULL
        CONSTRAINT anomaly_maps_score_ck CHECK (score BETWEEN 0 AND 1),
    threshold real NOT NULL
        CONSTRAINT anomaly_maps_threshold_ck CHECK (threshold BETWEEN 0 AND 1),
    image_threshold_raw real NOT NULL,
    pixel_threshold_raw real NOT NULL,
    map_min real NOT NULL,
    map_max real NOT NULL,
    area_above_ratio real NOT NULL
        CONSTRAINT anomaly_maps_area_above_ratio_ck CHECK (area_above_ratio BETWEEN 0 AND 1.001),
    device_id uuid NOT NULL,
    ingested_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT anomaly_maps_pk PRIMARY KEY (site_id, captured_at, id)
) PARTITION BY RANGE (captured_at);
CREATE TABLE loupe.anomaly_maps_default PARTITION OF loupe.anomaly_maps DEFAULT;
COMMENT ON TABLE loupe.anomaly_maps IS 'What the anomaly model said of a frame';
COMMENT ON COLUMN loupe.anomaly_maps.site_id IS 'The site that wrote it';
COMMENT ON COLUMN loupe.anomaly_maps.captured_at IS 'Of the inspection';
COMMENT ON COLUMN loupe.anomaly_maps.id IS 'UUIDv7, made on the device';
COMMENT ON COLUMN loupe.anomaly_maps.inspection_id IS 'The inspection';
COMMENT ON COLUMN loupe.anomaly_maps.bank_sha256 IS 'The bank it was scored against';
COMMENT ON COLUMN loupe.anomaly_maps.score_raw IS 'The model''s own scale, 0 and up';
COMMENT ON COLUMN loupe.anomaly_maps.score IS 'Normalised, 0 to 1; 0.5 = the bank''s threshold';
COMMENT ON COLUMN loupe.anomaly_maps.threshold IS 'The one applied, on the scale of score';
COMMENT ON COLUMN loupe.anomaly_maps.image_threshold_raw IS 'The bank''s, for the frame';
COMMENT ON COLUMN loupe.anomaly_maps.pixel_threshold_raw IS 'The bank''s, for a pixel';
COMMENT ON COLUMN loupe.anomaly_maps.map_min IS 'Lowest value of the map';
COMMENT ON COLUMN loupe.anomaly_maps.map_max IS 'Highest value of the map';
COMMENT ON COLUMN loupe.anomaly_maps.area_above_ratio IS 'Share of the map above the pixel threshold, 0 to 1';
COMMENT ON COLUMN loupe.anomaly_maps.device_id IS 'The device that wrote it';
COMMENT ON COLUMN loupe.anomaly_maps.ingested_at IS 'When it arrived here';
GRANT SELECT (site_id, captured_at, id) ON loupe.anomaly_maps TO loupe_device;
SELECT loupe.protect('loupe.anomaly_maps');

CREATE TABLE loupe.frame_qa_logs (
    site_id uuid NOT NULL,
    captured_at timestamptz NOT NULL,
    id uuid NOT NULL,
    inspection_id uuid NOT NULL,
    camera text NOT NULL,
    frame_seq bigint NOT NULL
        CONSTRAINT frame_qa_logs_frame_seq_ck CHECK (frame_seq >= 0),
    frame_sha256 bytea NOT NULL
        CONSTRAINT frame_qa_logs_frame_sha256_ck CHECK (octet_length(frame_sha256) = 32),
    ssim_score real
        CONSTRAINT frame_qa_logs_ssim_score_ck CHECK (ssim_score BETWEEN -1.001 AND 1.001),
    sharpness real NOT NULL
        CONSTRAINT frame_qa_logs_sharpness_ck CHECK (sharpness >= 0 AND sharpness < 'Infinity'),
    noise_level real NOT NULL
        CONSTRAINT frame_qa_logs_noise_level_ck CHECK (noise_level >= 0 AND noise_level < 'Infinity'),
    contrast_ratio real NOT NULL
        CONSTRAINT frame_qa_logs_contrast_ratio_ck CHECK (contrast_ratio BETWEEN 0 AND 1.001),
    brightness_ratio real NOT NULL
        CONSTRAINT frame_qa_logs_brightness_ratio_ck CHECK (brightness_ratio BETWEEN 0 AND 1.001),
    saturation_ratio real NOT NULL
        CONSTRAINT frame_qa_logs_saturation_ratio_ck CHECK (saturation_ratio BETWEEN 0 AND 1.001),
    clipped_ratio real NOT NULL
        CONSTRAINT frame_qa_logs_clipped_ratio_ck CHECK (clipped_ratio BETWEEN 0 AND 1.001),
    phash bigint NOT NULL,
    is_duplicate boolean NOT NULL,
    duplicate_distance int
        CONSTRAINT frame_qa_logs_duplicate_distance_ck CHECK (duplicate_distance BETWEEN 0 AND 64),
    age_ms real NOT NULL
        CONSTRAINT frame_qa_logs_age_ms_ck CHECK (age_ms >= 0 AND age_ms < 'Infinity'),
    issues text[] NOT NULL
        CONSTRAINT frame_qa_logs_issues_ck CHECK (array_to_string(issues, ',') ~ '^([a-z][a-z0-9_.]{1,63}(,[a-z][a-z0-9_.]{1,63})*)?$'),
    status text NOT NULL
        CONSTRAINT frame_qa_logs_status_ck CHECK (status IN ('pass', 'warn', 'fail', 'uncertain')),
    processing_ms real NOT NULL
        CONSTRAINT frame_qa_logs_processing_ms_ck CHECK (processing_ms >= 0 AND processing_ms < 'Infinity'),
    device_id uuid NOT NULL,
    ingested_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT frame_qa_logs_pk PRIMARY KEY (site_id, captured_at, id)
) PARTITION BY RANGE (captured_at);
CREATE TABLE loupe.frame_qa_logs_default PARTITION OF loupe.frame_qa_logs DEFAULT;
COMMENT ON TABLE loupe.frame_qa_logs IS 'What the gate measured of a frame';
COMMENT ON COLUMN loupe.frame_qa_logs.site_id IS 'The site that wrote it';
COMMENT ON COLUMN loupe.frame_qa_logs.captured_at IS 'Of the inspection';
COMMENT ON COLUMN loupe.frame_qa_logs.id IS 'UUIDv7, made on the device';
COMMENT ON COLUMN loupe.frame_qa_logs.inspection_id IS 'The inspection';
COMMENT ON COLUMN loupe.frame_qa_logs.camera IS 'Camera by name';
COMMENT ON COLUMN loupe.frame_qa_logs.frame_seq IS 'Position of the frame in its source';
COMMENT ON COLUMN loupe.frame_qa_logs.frame_sha256 IS 'Of the frame';
COMMENT ON COLUMN loupe.frame_qa_logs.ssim_score IS 'Structural similarity to the recipe''s reference, -1 to 1';
COMMENT ON COLUMN loupe.frame_qa_logs.sharpness IS 'Variance of the Laplacian, 0 and up';
COMMENT ON COLUMN loupe.frame_qa_logs.noise_level IS 'Standard deviation of the noise in grey levels';
COMMENT ON COLUMN loupe.frame_qa_logs.contrast_ratio IS 'Standard deviation of the grey image over 127.5';
COMMENT ON COLUMN loupe.frame_qa_logs.brightness_ratio IS 'Mean of the grey image over 255';
COMMENT ON COLUMN loupe.frame_qa_logs.saturation_ratio IS 'Mean HSV saturation';
COMMENT ON COLUMN loupe.frame_qa_logs.clipped_ratio IS 'Share of pixels at the ends of the scale';
COMMENT ON COLUMN loupe.frame_qa_logs.phash IS '64-bit perceptual hash, as a signed integer';
COMMENT ON COLUMN loupe.frame_qa_logs.is_duplicate IS 'Too like the camera''s frame before';
COMMENT ON COLUMN loupe.frame_qa_logs.duplicate_distance IS 'Hamming distance to that frame, 0 to 64';
COMMENT ON COLUMN loupe.frame_qa_logs.age_ms IS 'From capture to the gate';
COMMENT ON COLUMN loupe.frame_qa_logs.issues IS 'Codes of what is wrong';
COMMENT ON COLUMN loupe.frame_qa_logs.status IS 'pass, warn, fail or uncertain';
COMMENT ON COLUMN loupe.frame_qa_logs.processing_ms IS 'Time of the measurement';
COMMENT ON COLUMN loupe.frame_qa_logs.device_id IS 'The device that wrote it';
COMMENT ON COLUMN loupe.frame_qa_logs.ingested_at IS 'When it arrived here';
GRANT SELECT (site_id, captured_at, id) ON loupe.frame_qa_logs TO loupe_device;
SELECT loupe.protect('loupe.frame_qa_logs');

CREATE TABLE loupe.gpu_stats (
    site_id uuid NOT NULL,
    recorded_at timestamptz NOT NULL,
    id uuid NOT NULL,
    gpu_index int NOT NULL
        CONSTRAINT gpu_stats_gpu_index_ck CHECK (gpu_index >= 0),
    gpu_name text,
    gpu_util_pct real
        CONSTRAINT gpu_stats_gpu_util_pct_ck CHECK (gpu_util_pct BETWEEN 0 AND 100),
    memory_used_bytes bigint
        CONSTRAINT gpu_stats_memory_used_bytes_ck CHECK (memory_used_bytes >= 0),
    memory_total_bytes bigint
        CONSTRAINT gpu_stats_memory_total_bytes_ck CHECK (memory_total_bytes >= 0),
    temperature_c real,
    power_usage_w real
        CONSTRAINT gpu_stats_power_usage_w_ck CHECK (power_usage_w >= 0),
    power_limit_w real
        CONSTRAINT gpu_stats_power_limit_w_ck CHECK (power_limit_w >= 0),
    fan_speed_pct real
        CONSTRAINT gpu_stats_fan_speed_pct_ck CHECK (fan_speed_pct >= 0),
    sm_clock_mhz int
        CONSTRAINT gpu_stats_sm_clock_mhz_ck CHECK (sm_clock_mhz >= 0),
    memory_clock_mhz int
        CONSTRAINT gpu_stats_memory_clock_mhz_ck CHECK (memory_clock_mhz >= 0),
    pstate int
        CONSTRAINT gpu_stats_pstate_ck CHECK (pstate BETWEEN 0 AND 15),
    throttle_reasons bigint,
    inference_rate_hz real
        CONSTRAINT gpu_stats_inference_rate_hz_ck CHECK (inference_rate_hz >= 0),
    memory_bandwidth_util_pct real
        CONSTRAINT gpu_stats_memory_bandwidth_util_pct_ck CHECK (memory_bandwidth_util_pct BETWEEN 0 AND 100),
    sm_clock_max_mhz int
        CONSTRAINT gpu_stats_sm_clock_max_mhz_ck CHECK (sm_clock_max_mhz >= 0),
    compute_processes_count int
        CONSTRAINT gpu_stats_compute_processes_count_ck CHECK (compute_processes_count >= 0),
    pcie_replay_counter bigint
        CONSTRAINT gpu_stats_pcie_replay_counter_ck CHECK (pcie_replay_counter >= 0),
    temp_slowdown_threshold_c real,
    memory_clock_max_mhz int
        CONSTRAINT gpu_stats_memory_clock_max_mhz_ck CHECK (memory_clock_max_mhz >= 0),
    pcie_link_gen int
        CONSTRAINT gpu_stats_pcie_link_gen_ck CHECK (pcie_link_gen >= 0),
    pcie_link_width int
        CONSTRAINT gpu_stats_pcie_link_width_ck CHECK (pcie_link_width >= 0),
    pcie_tx_kb_s int
        CONSTRAINT gpu_stats_pcie_tx_kb_s_ck CHECK (pcie_tx_kb_s >= 0),
    pcie_rx_kb_s int
        CONSTRAINT gpu_stats_pcie_rx_kb_s_ck CHECK (pcie_rx_kb_s >= 0),
    encoder_util_pct real
        CONSTRAINT gpu_stats_encoder_util_pct_ck CHECK (encoder_util_pct BETWEEN 0 AND 100),
    decoder_util_pct real
        CONSTRAINT gpu_stats_decoder_util_pct_ck CHECK (decoder_util_pct BETWEEN 0 AND 100),
    bar1_used_bytes bigint
        CONSTRAINT gpu_stats_bar1_used_bytes_ck CHECK (bar1_used_bytes >= 0),
    device_id uuid NOT NULL,
    ingested_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT gpu_stats_pk PRIMARY KEY (site_id, recorded_at, id)
) PARTITION BY RANGE (recorded_at);
CREATE TABLE loupe.gpu_stats_default PARTITION OF loupe.gpu_stats DEFAULT;
COMMENT ON TABLE loupe.gpu_stats IS 'Samples of the sites'' GPUs';
COMMENT ON COLUMN loupe.gpu_stats.site_id IS 'The site that wrote it';
COMMENT ON COLUMN loupe.gpu_stats.recorded_at IS 'When it was measured';
COMMENT ON COLUMN loupe.gpu_stats.id IS 'UUIDv7, made on the device';
COMMENT ON COLUMN loupe.gpu_stats.gpu_index IS 'Position in NVML''s list';
COMMENT ON COLUMN loupe.gpu_stats.gpu_name IS 'Product name';
COMMENT ON COLUMN loupe.gpu_stats.gpu_util_pct IS 'Share of time with a kernel running, 0 to 100';
COMMENT ON COLUMN loupe.gpu_stats.memory_used_bytes IS 'Memory in use';
COMMENT ON COLUMN loupe.gpu_stats.memory_total_bytes IS 'Memory installed';
COMMENT ON COLUMN loupe.gpu_stats.temperature_c IS 'Of the die';
COMMENT ON COLUMN loupe.gpu_stats.power_usage_w IS 'Drawn';
COMMENT ON COLUMN loupe.gpu_stats.power_limit_w IS 'Allowed';
COMMENT ON COLUMN loupe.gpu_stats.fan_speed_pct IS 'Of the highest speed';
COMMENT ON COLUMN loupe.gpu_stats.sm_clock_mhz IS 'Of the multiprocessors';
COMMENT ON COLUMN loupe.gpu_stats.memory_clock_mhz IS 'Of the memory';
COMMENT ON COLUMN loupe.gpu_stats.pstate IS 'Performance state, 0 (fastest) to 15';
COMMENT ON COLUMN loupe.gpu_stats.throttle_reasons IS 'NVML''s 64-bit mask, as a signed integer';
COMMENT ON COLUMN loupe.gpu_stats.inference_rate_hz IS 'Frames a second the pipeline finished then';
COMMENT ON COLUMN loupe.gpu_stats.memory_bandwidth_util_pct IS 'Share of time memory was read or written';
COMMENT ON COLUMN loupe.gpu_stats.sm_clock_max_mhz IS 'Highest of the multiprocessors';
COMMENT ON COLUMN loupe.gpu_stats.compute_processes_count IS 'Processes that compute on it';
COMMENT ON COLUMN loupe.gpu_stats.pcie_replay_counter IS 'Repeated PCIe transfers since the driver was loaded';
COMMENT ON COLUMN loupe.gpu_stats.temp_slowdown_threshold_c IS 'At which it slows down';
COMMENT ON COLUMN loupe.gpu_stats.memory_clock_max_mhz IS 'Highest of the memory';
COMMENT ON COLUMN loupe.gpu_stats.pcie_link_gen IS 'PCIe generation in use';
COMMENT ON COLUMN loupe.gpu_stats.pcie_link_width IS 'PCIe lanes in use';
COMMENT ON COLUMN loupe.gpu_stats.pcie_tx_kb_s IS 'Sent over PCIe';
COMMENT ON COLUMN loupe.gpu_stats.pcie_rx_kb_s IS 'Received over PCIe';
COMMENT ON COLUMN loupe.gpu_stats.encoder_util_pct IS 'Of the video encoder';
COMMENT ON COLUMN loupe.gpu_stats.decoder_util_pct IS 'Of the video decoder';
COMMENT ON COLUMN loupe.gpu_stats.bar1_used_bytes IS 'Mapped for direct access';
COMMENT ON COLUMN loupe.gpu_stats.device_id IS 'The device that wrote it';
COMMENT ON COLUMN loupe.gpu_stats.ingested_at IS 'When it arrived here';
GRANT SELECT (site_id, recorded_at, id) ON loupe.gpu_stats TO loupe_device;
SELECT loupe.protect('loupe.gpu_stats');

CREATE TABLE loupe.ingest_batches (
    site_id uuid NOT NULL,
    enqueued_at timestamptz NOT NULL,
    id uuid NOT NULL,
    epoch int NOT NULL
        CONSTRAINT ingest_batches_epoch_ck CHECK (epoch >= 1),
    first_seq bigint NOT NULL,
    last_seq bigint NOT NULL
        CONSTRAINT ingest_batches_last_seq_ck CHECK (last_seq >= first_seq),
    unit_count int NOT NULL
        CONSTRAINT ingest_batches_unit_count_ck CHECK (unit_count >= 1),
    row_count int NOT NULL
        CONSTRAINT ingest_batches_row_count_ck CHECK (row_count >= unit_count),
    committed_total bigint NOT NULL
        CONSTRAINT ingest_batches_committed_total_ck CHECK (committed_total >= 0),
    delivered_total bigint NOT NULL
        CONSTRAINT ingest_batches_delivered_total_ck CHECK (delivered_total <= committed_total),
    dropped_samples bigint NOT NULL
        CONSTRAINT ingest_batches_dropped_samples_ck CHECK (dropped_samples >= 0),
    sha256 bytea NOT NULL
        CONSTRAINT ingest_batches_sha256_ck CHECK (octet_length(sha256) = 32),
    device_id uuid NOT NULL,
    ingested_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT ingest_batches_pk PRIMARY KEY (site_id, enqueued_at, id)
) PARTITION BY RANGE (enqueued_at);
CREATE TABLE loupe.ingest_batches_default PARTITION OF loupe.ingest_batches DEFAULT;
COMMENT ON TABLE loupe.ingest_batches IS 'Batches the devices sent, each written in its own transaction';
COMMENT ON COLUMN loupe.ingest_batches.site_id IS 'The site that wrote it';
COMMENT ON COLUMN loupe.ingest_batches.enqueued_at IS 'When the batch''s oldest unit was committed on the device: the same when it is sent again';
COMMENT ON COLUMN loupe.ingest_batches.id IS 'First half of sha256: the same when it is sent again';
COMMENT ON COLUMN loupe.ingest_batches.epoch IS 'The device''s; rises when a backup is restored there';
COMMENT ON COLUMN loupe.ingest_batches.first_seq IS 'Lowest position in the device''s outbox';
COMMENT ON COLUMN loupe.ingest_batches.last_seq IS 'Highest position in the device''s outbox';
COMMENT ON COLUMN loupe.ingest_batches.unit_count IS 'Inspections in it';
COMMENT ON COLUMN loupe.ingest_batches.row_count IS 'Rows in it';
COMMENT ON COLUMN loupe.ingest_batches.committed_total IS 'Inspections the device ever committed';
COMMENT ON COLUMN loupe.ingest_batches.delivered_total IS 'Those it knew to be here before this batch';
COMMENT ON COLUMN loupe.ingest_batches.dropped_samples IS 'Samples that never left the device';
COMMENT ON COLUMN loupe.ingest_batches.sha256 IS 'Of the rows as sent';
COMMENT ON COLUMN loupe.ingest_batches.device_id IS 'The device that wrote it';
COMMENT ON COLUMN loupe.ingest_batches.ingested_at IS 'When it arrived here';
GRANT SELECT (site_id, enqueued_at, id) ON loupe.ingest_batches TO loupe_device;
SELECT loupe.protect('loupe.ingest_batches');

CREATE INDEX inspections_station_captured_at_idx ON loupe.inspections (site_id, station, captured_at DESC);
CREATE INDEX inspections_code_idx ON loupe.inspections (site_id, code);
CREATE INDEX inspections_verdict_idx ON loupe.inspections (site_id, captured_at DESC) WHERE verdict <> 'pass';
CREATE INDEX items_part_id_captured_at_idx ON loupe.items (site_id, part_id, captured_at DESC);
CREATE INDEX items_is_held_idx ON loupe.items (site_id, captured_at DESC) WHERE is_held;
CREATE INDEX frame_qa_logs_camera_captured_at_idx ON loupe.frame_qa_logs (site_id, camera, captured_at DESC);
CREATE INDEX frame_qa_logs_status_idx ON loupe.frame_qa_logs (site_id, captured_at DESC) WHERE status <> 'pass';
CREATE INDEX gpu_stats_recorded_at_idx ON loupe.gpu_stats USING brin (recorded_at);
CREATE INDEX ingest_batches_last_seq_idx ON loupe.ingest_batches (device_id, last_seq DESC);

RESET ROLE;
