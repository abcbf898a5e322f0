-- What each device's configuration was and when it changed; how the machines do.
-- Written as every other fact and sample: INSERT … ON CONFLICT DO NOTHING on the whole key.

SET LOCAL ROLE loupe_owner;

CREATE TABLE loupe.config_history (
    site_id uuid NOT NULL,
    occurred_at timestamptz NOT NULL,
    id uuid NOT NULL,
    change_id uuid NOT NULL,
    config_key text NOT NULL
        CONSTRAINT config_history_config_key_ck CHECK (config_key <> ''),
    old_value jsonb,
    new_value jsonb,
    config_sha256 bytea NOT NULL
        CONSTRAINT config_history_config_sha256_ck CHECK (octet_length(config_sha256) = 32),
    source text NOT NULL
        CONSTRAINT config_history_source_ck CHECK (source ~ '^[a-z][a-z0-9_.]{1,63}$'),
    changed_by text
        CONSTRAINT config_history_changed_by_ck CHECK (changed_by <> ''),
    change_reason text
        CONSTRAINT config_history_change_reason_ck CHECK (change_reason <> ''),
    device_id uuid NOT NULL,
    ingested_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT config_history_pk PRIMARY KEY (site_id, occurred_at, id)
) PARTITION BY RANGE (occurred_at);
CREATE TABLE loupe.config_history_default PARTITION OF loupe.config_history DEFAULT;
COMMENT ON TABLE loupe.config_history IS 'What changed of the devices'' configurations; the last row of a key is its value';
COMMENT ON COLUMN loupe.config_history.site_id IS 'The site that wrote it';
COMMENT ON COLUMN loupe.config_history.occurred_at IS 'When the device began to work by it';
COMMENT ON COLUMN loupe.config_history.id IS 'UUIDv7, made on the device';
COMMENT ON COLUMN loupe.config_history.change_id IS 'What changed together: one start, or one new recipe';
COMMENT ON COLUMN loupe.config_history.config_key IS 'section.key; of a station stations.NAME.key, of its recipe stations.NAME.recipe.section.key';
COMMENT ON COLUMN loupe.config_history.old_value IS 'Before; NULL: there was none. Of a secret an object with its salted sha256';
COMMENT ON COLUMN loupe.config_history.new_value IS 'From then on; NULL: there is none any more. Of a secret an object with its salted sha256';
COMMENT ON COLUMN loupe.config_history.config_sha256 IS 'Of the device''s whole configuration from then on';
COMMENT ON COLUMN loupe.config_history.source IS 'file; bundle: what the centre publishes; command: a command line';
COMMENT ON COLUMN loupe.config_history.changed_by IS 'Who, where it was said';
COMMENT ON COLUMN loupe.config_history.change_reason IS 'Why, where it was said';
COMMENT ON COLUMN loupe.config_history.device_id IS 'The device that wrote it';
COMMENT ON COLUMN loupe.config_history.ingested_at IS 'When it arrived here';
GRANT SELECT (site_id, occurred_at, id) ON loupe.config_history TO loupe_device;
SELECT loupe.register('loupe.config_history', 'audit', 'year');
SELECT loupe.protect('loupe.config_history');
CREATE INDEX config_history_config_key_idx
    ON loupe.config_history (site_id, device_id, config_key, occurred_at DESC, id DESC);

CREATE TABLE loupe.system_stats (
    site_id uuid NOT NULL,
    recorded_at timestamptz NOT NULL,
    id uuid NOT NULL,
    cpu_usage_pct real
        CONSTRAINT system_stats_cpu_usage_pct_ck CHECK (cpu_usage_pct BETWEEN 0 AND 100),
    load1 real
        CONSTRAINT system_stats_load1_ck CHECK (load1 >= 0 AND load1 < 'Infinity'),
    memory_used_bytes bigint
        CONSTRAINT system_stats_memory_used_bytes_ck CHECK (memory_used_bytes >= 0),
    memory_total_bytes bigint
        CONSTRAINT system_stats_memory_total_bytes_ck CHECK (memory_total_bytes >= 0),
    process_rss_bytes bigint
        CONSTRAINT system_stats_process_rss_bytes_ck CHECK (process_rss_bytes >= 0),
    disk_used_pct real
        CONSTRAINT system_stats_disk_used_pct_ck CHECK (disk_used_pct BETWEEN 0 AND 100),
    disk_free_bytes bigint
        CONSTRAINT system_stats_disk_free_bytes_ck CHECK (disk_free_bytes >= 0),
    open_fds bigint
        CONSTRAINT system_stats_open_fds_ck CHECK (open_fds >= 0),
    temperature_c real
        CONSTRAINT system_stats_temperature_c_ck CHECK (temperature_c BETWEEN -273.15 AND 1000),
    fsync_p99_ms real
        CONSTRAINT system_stats_fsync_p99_ms_ck CHECK (fsync_p99_ms >= 0 AND fsync_p99_ms < 'Infinity'),
    clock_offset_ms real
        CONSTRAINT system_stats_clock_offset_ms_ck CHECK (abs(clock_offset_ms) < 'Infinity'),
    uptime_s bigint
        CONSTRAINT system_stats_uptime_s_ck CHECK (uptime_s >= 0),
    outbox_pending bigint
        CONSTRAINT system_stats_outbox_pending_ck CHECK (outbox_pending >= 0),
    outbox_oldest_s real
        CONSTRAINT system_stats_outbox_oldest_s_ck CHECK (outbox_oldest_s >= 0 AND outbox_oldest_s < 'Infinity'),
    device_id uuid NOT NULL,
    ingested_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT system_stats_pk PRIMARY KEY (site_id, recorded_at, id)
) PARTITION BY RANGE (recorded_at);
CREATE TABLE loupe.system_stats_default PARTITION OF loupe.system_stats DEFAULT;
COMMENT ON TABLE loupe.system_stats IS 'Samples of the sites'' machines; a NULL is not known there';
COMMENT ON COLUMN loupe.system_stats.site_id IS 'The site that wrote it';
COMMENT ON COLUMN loupe.system_stats.recorded_at IS 'When it was measured';
COMMENT ON COLUMN loupe.system_stats.id IS 'UUIDv7, made on the device';
COMMENT ON COLUMN loupe.system_stats.cpu_usage_pct IS 'Of all cores, since the sample before, 0 to 100';
COMMENT ON COLUMN loupe.system_stats.load1 IS 'Runnable processes, mean of a minute';
COMMENT ON COLUMN loupe.system_stats.memory_used_bytes IS 'Of the machine, without what can be given back';
COMMENT ON COLUMN loupe.system_stats.memory_total_bytes IS 'Of the machine';
COMMENT ON COLUMN loupe.system_stats.process_rss_bytes IS 'Resident memory of the daemon';
COMMENT ON COLUMN loupe.system_stats.disk_used_pct IS 'Of the file system of the state folder, 0 to 100';
COMMENT ON COLUMN loupe.system_stats.disk_free_bytes IS 'Free there';
COMMENT ON COLUMN loupe.system_stats.open_fds IS 'Files that the daemon has open';
COMMENT ON COLUMN loupe.system_stats.temperature_c IS 'Of the hottest thermal zone';
COMMENT ON COLUMN loupe.system_stats.fsync_p99_ms IS 'Of the ledger''s commits since the sample before';
COMMENT ON COLUMN loupe.system_stats.clock_offset_ms IS 'The device''s clock minus true time, where its kernel knows it';
COMMENT ON COLUMN loupe.system_stats.uptime_s IS 'Of the daemon';
COMMENT ON COLUMN loupe.system_stats.outbox_pending IS 'Units that waited there';
COMMENT ON COLUMN loupe.system_stats.outbox_oldest_s IS 'Age of the oldest of them; 0: none waited';
COMMENT ON COLUMN loupe.system_stats.device_id IS 'The device that wrote it';
COMMENT ON COLUMN loupe.system_stats.ingested_at IS 'When it arrived here';
GRANT SELECT (site_id, recorded_at, id) ON loupe.system_stats TO loupe_device;
SELECT loupe.register('loupe.system_stats', 'telemetry', 'month');
SELECT loupe.protect('loupe.system_stats');
CREATE INDEX system_stats_recorded_at_idx ON loupe.system_stats USING brin (recorded_at);

CREATE VIEW loupe.v_config_changes WITH (security_barrier) AS
SELECT h.site_id, s.code AS site_code, h.device_id, h.occurred_at, h.config_key, h.old_value, h.new_value, h.source,
    h.changed_by, h.change_reason, h.change_id, h.config_sha256
FROM loupe.config_history h
LEFT JOIN loupe.sites s ON s.id = h.site_id
-- What a device says at its first start is no change.
WHERE h.old_value IS NOT NULL OR EXISTS (
    SELECT FROM loupe.config_history e
    WHERE e.site_id = h.site_id AND e.device_id = h.device_id AND e.occurred_at < h.occurred_at
);
COMMENT ON VIEW loupe.v_config_changes IS 'What changed at a site, when, and who says so? First values of a new device are left out';
COMMENT ON COLUMN loupe.v_config_changes.site_id IS 'The site';
COMMENT ON COLUMN loupe.v_config_changes.site_code IS 'Its code';
COMMENT ON COLUMN loupe.v_config_changes.device_id IS 'The device';
COMMENT ON COLUMN loupe.v_config_changes.occurred_at IS 'When the device began to work by it';
COMMENT ON COLUMN loupe.v_config_changes.config_key IS 'What changed';
COMMENT ON COLUMN loupe.v_config_changes.old_value IS 'Before; NULL: there was none';
COMMENT ON COLUMN loupe.v_config_changes.new_value IS 'From then on; NULL: there is none any more';
COMMENT ON COLUMN loupe.v_config_changes.source IS 'file; bundle: what the centre publishes; command: a command line';
COMMENT ON COLUMN loupe.v_config_changes.changed_by IS 'Who, where it was said';
COMMENT ON COLUMN loupe.v_config_changes.change_reason IS 'Why, where it was said';
COMMENT ON COLUMN loupe.v_config_changes.change_id IS 'What changed together';
COMMENT ON COLUMN loupe.v_config_changes.config_sha256 IS 'Of the whole configuration from then on';
GRANT SELECT ON loupe.v_config_changes TO loupe_ops;

CREATE VIEW loupe.v_config_drift WITH (security_barrier) AS
WITH now_set AS (
    SELECT DISTINCT ON (site_id, device_id, config_key) site_id, device_id, config_key, new_value, occurred_at
    FROM loupe.config_history
    ORDER BY site_id, device_id, config_key, occurred_at DESC, id DESC
), comparable AS (
    SELECT * FROM now_set
    WHERE new_value IS NOT NULL
        -- Who and where a device is differs by nature; digests are salted with the device.
        AND config_key !~ '^(site|change)\.' AND config_key NOT IN ('storage.state_dir', 'uplink.server')
        AND config_key !~ '\.source\.path$'
        AND NOT (jsonb_typeof(new_value) = 'object' AND new_value ? 'sha256')
), fleet AS (
    SELECT config_key, mode() WITHIN GROUP (ORDER BY new_value) AS common_value, count(*) AS device_count,
        count(DISTINCT new_value) AS value_count
    FROM comparable
    GROUP BY config_key
    HAVING count(DISTINCT new_value) > 1
)
SELECT c.site_id, c.device_id, c.config_key, c.new_value AS value, f.common_value, f.device_count, f.value_count,
    c.occurred_at AS since
FROM comparable c
JOIN fleet f USING (config_key)
WHERE c.new_value <> f.common_value;
COMMENT ON VIEW loupe.v_config_drift IS 'Which devices are set otherwise than most that have the key? By their last rows; secrets and what names a device aside';
COMMENT ON COLUMN loupe.v_config_drift.site_id IS 'The site';
COMMENT ON COLUMN loupe.v_config_drift.device_id IS 'The device that differs';
COMMENT ON COLUMN loupe.v_config_drift.config_key IS 'In what';
COMMENT ON COLUMN loupe.v_config_drift.value IS 'Its value';
COMMENT ON COLUMN loupe.v_config_drift.common_value IS 'The most frequent value of the devices seen; of two as frequent the lesser';
COMMENT ON COLUMN loupe.v_config_drift.device_count IS 'Devices that have the key';
COMMENT ON COLUMN loupe.v_config_drift.value_count IS 'Different values among them';
COMMENT ON COLUMN loupe.v_config_drift.since IS 'Since when it has its value';
GRANT SELECT ON loupe.v_config_drift TO loupe_ops;

CREATE VIEW loupe.v_system_health WITH (security_barrier) AS
SELECT DISTINCT ON (site_id, device_id) site_id, device_id, cpu_usage_pct, load1,
    memory_used_bytes / NULLIF(memory_total_bytes, 0)::double precision AS memory_used_ratio, process_rss_bytes,
    disk_used_pct, disk_free_bytes, open_fds, temperature_c, fsync_p99_ms, clock_offset_ms, uptime_s, outbox_pending,
    outbox_oldest_s, recorded_at, extract(epoch FROM now() - recorded_at)::double precision AS age_s
FROM loupe.system_stats
WHERE recorded_at >= now() - interval '7 days'
ORDER BY site_id, device_id, recorded_at DESC, id DESC;
COMMENT ON VIEW loupe.v_system_health IS 'How does each machine do? The last sample of each device within 7 days';
COMMENT ON COLUMN loupe.v_system_health.site_id IS 'The site';
COMMENT ON COLUMN loupe.v_system_health.device_id IS 'The device';
COMMENT ON COLUMN loupe.v_system_health.cpu_usage_pct IS 'Of all cores, 0 to 100';
COMMENT ON COLUMN loupe.v_system_health.load1 IS 'Runnable processes, mean of a minute';
COMMENT ON COLUMN loupe.v_system_health.memory_used_ratio IS 'Share of the machine''s memory in use';
COMMENT ON COLUMN loupe.v_system_health.process_rss_bytes IS 'Resident memory of the daemon';
COMMENT ON COLUMN loupe.v_system_health.disk_used_pct IS 'Of the file system of the state folder, 0 to 100';
COMMENT ON COLUMN loupe.v_system_health.disk_free_bytes IS 'Free there';
COMMENT ON COLUMN loupe.v_system_health.open_fds IS 'Files that the daemon has open';
COMMENT ON COLUMN loupe.v_system_health.temperature_c IS 'Of the hottest thermal zone';
COMMENT ON COLUMN loupe.v_system_health.fsync_p99_ms IS 'Of the ledger''s commits';
COMMENT ON COLUMN loupe.v_system_health.clock_offset_ms IS 'The device''s clock minus true time, where its kernel knows it';
COMMENT ON COLUMN loupe.v_system_health.uptime_s IS 'Of the daemon';
COMMENT ON COLUMN loupe.v_system_health.outbox_pending IS 'Units that waited there';
COMMENT ON COLUMN loupe.v_system_health.outbox_oldest_s IS 'Age of the oldest of them; 0: none waited';
COMMENT ON COLUMN loupe.v_system_health.recorded_at IS 'When it was measured';
COMMENT ON COLUMN loupe.v_system_health.age_s IS 'How long ago that is; a device that is off or offline grows old';
GRANT SELECT ON loupe.v_system_health TO loupe_ops;

RESET ROLE;
