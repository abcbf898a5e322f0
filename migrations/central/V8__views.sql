-- What people ask. Views over rollups and bounded stretches of detail; materialised ones with a barrier view in front,
-- since those have no row-level security. All but the last group have site_id; a login that chose a site sees that one.

SET LOCAL ROLE loupe_owner;

-- A session that sees one site, or none, would leave a materialised view with these rows only, without an error.
CREATE FUNCTION loupe.must_read_all() RETURNS boolean
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF NOT loupe.reads_all() THEN
        RAISE EXCEPTION 'this session does not read every site: materialised views would lose rows'
            USING ERRCODE = 'insufficient_privilege',
                HINT = 'refresh as a login in loupe_job, without loupe.site_id';
    END IF;
    RETURN true;
END
$$;
COMMENT ON FUNCTION loupe.must_read_all() IS 'True, or an error where the session does not read every site';

-- --------------------------------------------------------------------------------------------- materialised

CREATE MATERIALIZED VIEW loupe.mv_site_daily AS
SELECT h.site_id, h.day, h.inspection_count, h.pass_count, h.fail_count, h.hold_count, h.item_count, h.late_count,
    h.fallback_count, h.sum_latency_us, h.hist_latency_ms, h.first_at, h.last_at,
    coalesce(r.reviewed_count, 0) AS reviewed_count, coalesce(r.correct_count, 0) AS correct_count
FROM (
    SELECT site_id, day, sum(inspection_count)::bigint AS inspection_count,
        coalesce(sum(inspection_count) FILTER (WHERE verdict = 'pass'), 0)::bigint AS pass_count,
        coalesce(sum(inspection_count) FILTER (WHERE verdict = 'fail'), 0)::bigint AS fail_count,
        coalesce(sum(inspection_count) FILTER (WHERE verdict = 'hold'), 0)::bigint AS hold_count,
        sum(item_count)::bigint AS item_count, sum(late_count)::bigint AS late_count,
        sum(fallback_count)::bigint AS fallback_count, sum(sum_latency_us)::bigint AS sum_latency_us,
        loupe.hist_sum(hist_latency_ms) AS hist_latency_ms, min(first_at) AS first_at, max(last_at) AS last_at
    FROM loupe.inspection_hourly
    WHERE hour >= date_trunc('day', now(), 'UTC') - interval '90 days'
    GROUP BY site_id, day
) h
LEFT JOIN (
    SELECT site_id, (subject_at AT TIME ZONE 'UTC')::date AS day,
        count(*) FILTER (WHERE review_status IN ('confirmed', 'rejected', 'false_positive')) AS reviewed_count,
        count(*) FILTER (WHERE review_status = 'confirmed') AS correct_count
    FROM (
        SELECT DISTINCT ON (site_id, subject_id) site_id, subject_at, review_status
        FROM loupe.reviews WHERE occurred_at >= now() - interval '91 days'
        ORDER BY site_id, subject_id, occurred_at DESC, id DESC
    ) last_said
    GROUP BY 1, 2
) r ON r.site_id = h.site_id AND r.day = h.day
WHERE (SELECT loupe.must_read_all());
CREATE UNIQUE INDEX mv_site_daily_uq ON loupe.mv_site_daily (site_id, day);

CREATE MATERIALIZED VIEW loupe.mv_part_statistics AS
SELECT s.site_id, s.part_id, s.seen_count, s.accepted_count, s.held_count, s.stage2_count, s.avg_similarity,
    s.avg_margin, s.min_margin, s.success_ratio, r.right_count / NULLIF(r.shown_count, 0)::double precision AS precision_ratio,
    r.right_count / NULLIF(r.right_count + r.missed_count, 0)::double precision AS recall_ratio,
    coalesce(r.shown_count, 0) / s.seen_count::double precision AS review_ratio, s.last_at
FROM (
    SELECT site_id, part_id, sum(seen_count)::bigint AS seen_count, sum(accepted_count)::bigint AS accepted_count,
        sum(held_count)::bigint AS held_count, sum(stage2_count)::bigint AS stage2_count,
        (sum(sum_similarity_e6) / NULLIF(sum(matched_count), 0) / 1e6)::double precision AS avg_similarity,
        (sum(sum_margin_e6) / NULLIF(sum(margin_count), 0) / 1e6)::double precision AS avg_margin,
        min(min_margin) AS min_margin, (sum(accepted_count) / sum(seen_count))::double precision AS success_ratio,
        max(last_at) AS last_at
    FROM loupe.item_hourly
    WHERE hour >= date_trunc('day', now(), 'UTC') - interval '90 days'
    GROUP BY site_id, part_id
) s
LEFT JOIN (
    SELECT site_id, part_id, sum(shown) AS shown_count, sum(is_right) AS right_count, sum(missed) AS missed_count
    FROM (
        SELECT DISTINCT ON (site_id, subject_id) site_id, review_status, shown_part_id, corrected_part_id
        FROM loupe.reviews WHERE subject_kind = 'item' AND occurred_at >= now() - interval '91 days'
        ORDER BY site_id, subject_id, occurred_at DESC, id DESC
    ) l
    CROSS JOIN LATERAL (VALUES
        (l.shown_part_id, 1, (l.review_status = 'confirmed')::int, 0),
        (CASE WHEN l.review_status <> 'confirmed' THEN l.corrected_part_id END, 0, 0, 1)
    ) AS v (part_id, shown, is_right, missed)
    WHERE l.review_status IN ('confirmed', 'rejected', 'false_positive') AND v.part_id IS NOT NULL
    GROUP BY 1, 2
) r ON r.site_id = s.site_id AND r.part_id = s.part_id
WHERE (SELECT loupe.must_read_all());
CREATE UNIQUE INDEX mv_part_statistics_uq ON loupe.mv_part_statistics (site_id, part_id);

CREATE MATERIALIZED VIEW loupe.mv_confusion_pairs AS
SELECT c.site_id, c.true_part_id AS part_id, c.shown_part_id AS confused_with_id, a.reviewed_count, c.confused_count,
    c.confused_count / a.reviewed_count::double precision AS confusion_ratio, c.median_margin, c.suggested_min_margin
FROM (
    SELECT l.site_id, l.corrected_part_id AS true_part_id, l.shown_part_id, count(*) AS confused_count,
        percentile_cont(0.5) WITHIN GROUP (ORDER BY i.margin) AS median_margin,
        percentile_cont(0.95) WITHIN GROUP (ORDER BY i.margin) AS suggested_min_margin
    FROM (
        SELECT DISTINCT ON (site_id, subject_id) site_id, subject_id, subject_at, review_status, shown_part_id,
            corrected_part_id
        FROM loupe.reviews WHERE subject_kind = 'item' AND occurred_at >= now() - interval '400 days'
        ORDER BY site_id, subject_id, occurred_at DESC, id DESC
    ) l
    LEFT JOIN loupe.items i ON i.site_id = l.site_id AND i.captured_at = l.subject_at AND i.id = l.subject_id
    WHERE l.review_status = 'rejected' AND l.corrected_part_id <> l.shown_part_id
    GROUP BY 1, 2, 3
) c
JOIN (
    SELECT site_id, coalesce(corrected_part_id, shown_part_id) AS true_part_id, count(*) AS reviewed_count
    FROM (
        SELECT DISTINCT ON (site_id, subject_id) site_id, review_status, shown_part_id, corrected_part_id
        FROM loupe.reviews WHERE subject_kind = 'item' AND occurred_at >= now() - interval '400 days'
        ORDER BY site_id, subject_id, occurred_at DESC, id DESC
    ) l
    WHERE review_status = 'confirmed' OR (review_status = 'rejected' AND corrected_part_id IS NOT NULL)
    GROUP BY 1, 2
) a ON a.site_id = c.site_id AND a.true_part_id = c.true_part_id
WHERE (SELECT loupe.must_read_all());
CREATE UNIQUE INDEX mv_confusion_pairs_uq ON loupe.mv_confusion_pairs (site_id, part_id, confused_with_id);

CREATE MATERIALIZED VIEW loupe.mv_stock_current AS
SELECT site_id, part_id, coalesce(color_id, -1) AS color_id, sum(delta)::bigint AS quantity,
    count(*) AS booking_count, max(recorded_at) AS last_changed_at
FROM loupe.stock_ledger
WHERE (SELECT loupe.must_read_all())
GROUP BY 1, 2, 3;
CREATE UNIQUE INDEX mv_stock_current_uq ON loupe.mv_stock_current (site_id, part_id, color_id);

CREATE VIEW loupe.v_site_performance WITH (security_barrier) AS
SELECT m.site_id, m.day, m.inspection_count, m.pass_count, m.fail_count, m.hold_count, m.item_count,
    m.hold_count / m.inspection_count::double precision AS hold_ratio,
    m.correct_count / NULLIF(m.reviewed_count, 0)::double precision AS accuracy_ratio, m.reviewed_count,
    m.sum_latency_us / 1000.0 / m.inspection_count::double precision AS avg_latency_ms,
    loupe.hist_quantile(m.hist_latency_ms, 0.99) AS p99_latency_ms,
    m.inspection_count / greatest(1, extract(epoch FROM m.last_at - m.first_at))::double precision AS avg_rate_hz,
    m.late_count, m.fallback_count,
    (1 - m.hold_count / m.inspection_count::double precision)
        * coalesce(m.correct_count / NULLIF(m.reviewed_count, 0)::double precision, 1)
        * (1 - m.late_count / m.inspection_count::double precision) AS performance_score
FROM loupe.mv_site_daily m
WHERE (SELECT loupe.reads_all()) OR m.site_id = (SELECT loupe.current_site());
COMMENT ON VIEW loupe.v_site_performance IS 'Which site lags? Days of 90; as fresh as the last `loupe db rollup`';

CREATE VIEW loupe.v_part_statistics WITH (security_barrier) AS
SELECT m.site_id, NULLIF(m.part_id, '') AS part_id, m.seen_count, m.accepted_count, m.held_count, m.stage2_count,
    m.avg_similarity, m.avg_margin, m.min_margin, m.success_ratio, m.precision_ratio, m.recall_ratio, m.review_ratio,
    m.last_at
FROM loupe.mv_part_statistics m
WHERE (SELECT loupe.reads_all()) OR m.site_id = (SELECT loupe.current_site());
COMMENT ON VIEW loupe.v_part_statistics IS 'How is each part recognised, over 90 days, and how often were reviewers of its opinion?';

CREATE VIEW loupe.v_confusion_pairs WITH (security_barrier) AS
SELECT m.site_id, m.part_id, m.confused_with_id, m.reviewed_count, m.confused_count, m.confusion_ratio,
    m.median_margin, m.suggested_min_margin
FROM loupe.mv_confusion_pairs m
WHERE (SELECT loupe.reads_all()) OR m.site_id = (SELECT loupe.current_site());
COMMENT ON VIEW loupe.v_confusion_pairs IS 'What is mistaken for what, and which margin would have held 95 % of it?';

CREATE VIEW loupe.v_stock_current WITH (security_barrier) AS
SELECT m.site_id, m.part_id, NULLIF(m.color_id, -1) AS color_id, m.quantity, m.booking_count, m.last_changed_at
FROM loupe.mv_stock_current m
WHERE (SELECT loupe.reads_all()) OR m.site_id = (SELECT loupe.current_site());
COMMENT ON VIEW loupe.v_stock_current IS 'How many of each part and colour are there?';

-- -------------------------------------------------------------------------------------------- over rollups

CREATE VIEW loupe.v_dashboard_stats AS
SELECT site_id, day, recipe, sum(inspection_count)::bigint AS inspection_count,
    coalesce(sum(inspection_count) FILTER (WHERE verdict = 'pass'), 0)::bigint AS pass_count,
    coalesce(sum(inspection_count) FILTER (WHERE verdict = 'fail'), 0)::bigint AS fail_count,
    coalesce(sum(inspection_count) FILTER (WHERE verdict = 'hold'), 0)::bigint AS hold_count,
    sum(item_count)::bigint AS item_count, sum(late_count)::bigint AS late_count,
    sum(sum_latency_us) / 1000.0 / sum(inspection_count)::double precision AS avg_latency_ms,
    loupe.hist_quantile(loupe.hist_sum(hist_latency_ms), 0.99) AS p99_latency_ms,
    sum(sum_anomaly_score_e6) / NULLIF(sum(anomaly_count), 0)::double precision / 1e6 AS avg_anomaly_score,
    min(first_at) AS first_at, max(last_at) AS last_at
FROM loupe.inspection_hourly
GROUP BY site_id, day, recipe;
COMMENT ON VIEW loupe.v_dashboard_stats IS 'How does each product (recipe) stand, day by day?';

CREATE VIEW loupe.v_hold_reasons AS
SELECT site_id, day, station, verdict, primary_reason, sum(inspection_count)::bigint AS inspection_count,
    sum(item_count)::bigint AS item_count, max(last_at) AS last_at
FROM loupe.inspection_hourly
WHERE verdict <> 'pass'
GROUP BY site_id, day, station, verdict, primary_reason;
COMMENT ON VIEW loupe.v_hold_reasons IS 'Why was it not a pass, station by station?';

CREATE VIEW loupe.v_part_daily AS
SELECT site_id, day, NULLIF(part_id, '') AS part_id, NULLIF(color_id, '') AS color_id,
    sum(seen_count)::bigint AS seen_count, sum(accepted_count)::bigint AS accepted_count,
    sum(held_count)::bigint AS held_count, sum(stage2_count)::bigint AS stage2_count,
    (sum(sum_similarity_e6) / NULLIF(sum(matched_count), 0) / 1e6)::double precision AS avg_similarity,
    (sum(sum_margin_e6) / NULLIF(sum(margin_count), 0) / 1e6)::double precision AS avg_margin,
    min(min_margin) AS min_margin,
    sum(sum_search_us) / 1000.0 / sum(seen_count)::double precision AS avg_search_ms, max(last_at) AS last_at
FROM loupe.item_hourly
GROUP BY site_id, day, part_id, color_id;
COMMENT ON VIEW loupe.v_part_daily IS 'How is each part recognised, day by day?';

CREATE VIEW loupe.v_quality_trends AS
SELECT site_id, day, hour, camera, metric, sample_count,
    (sum_value_e6 / sample_count / 1e6)::double precision AS avg_value, min_value, max_value,
    pass_count / sample_count::double precision AS pass_ratio, duplicate_count,
    sum_processing_us / 1000.0 / sample_count::double precision AS avg_processing_ms
FROM loupe.frame_qa_hourly;
COMMENT ON VIEW loupe.v_quality_trends IS 'Are the frames better or worse, hour by hour?';

CREATE VIEW loupe.v_quality_dashboard AS
SELECT site_id, day, metric, sum(sample_count)::bigint AS sample_count,
    (sum(sum_value_e6) / sum(sample_count) / 1e6)::double precision AS avg_value, min(min_value) AS min_value,
    max(max_value) AS max_value, sum(pass_count)::bigint AS pass_count,
    (sum(pass_count) / sum(sample_count))::double precision AS pass_ratio
FROM loupe.frame_qa_hourly
GROUP BY site_id, day, metric;
COMMENT ON VIEW loupe.v_quality_dashboard IS 'Which metric of the frames fails?';

CREATE VIEW loupe.v_frame_qa_summary AS
SELECT site_id, day, camera,
    -- Every frame has a sharpness: its row counts the frames.
    coalesce(sum(sample_count) FILTER (WHERE metric = 'sharpness'), 0)::bigint AS sample_count,
    coalesce(sum(pass_count) FILTER (WHERE metric = 'sharpness'), 0)::bigint AS pass_count,
    coalesce(sum(warn_count) FILTER (WHERE metric = 'sharpness'), 0)::bigint AS warn_count,
    coalesce(sum(fail_count) FILTER (WHERE metric = 'sharpness'), 0)::bigint AS fail_count,
    coalesce(sum(uncertain_count) FILTER (WHERE metric = 'sharpness'), 0)::bigint AS uncertain_count,
    coalesce(sum(duplicate_count) FILTER (WHERE metric = 'sharpness'), 0)::bigint AS duplicate_count,
    (sum(sum_value_e6) FILTER (WHERE metric = 'sharpness')
        / sum(sample_count) FILTER (WHERE metric = 'sharpness') / 1e6)::double precision AS avg_sharpness,
    (sum(sum_value_e6) FILTER (WHERE metric = 'noise_level')
        / sum(sample_count) FILTER (WHERE metric = 'noise_level') / 1e6)::double precision AS avg_noise_level,
    (sum(sum_value_e6) FILTER (WHERE metric = 'brightness_ratio')
        / sum(sample_count) FILTER (WHERE metric = 'brightness_ratio') / 1e6)::double precision AS avg_brightness_ratio,
    (sum(sum_value_e6) FILTER (WHERE metric = 'ssim_score')
        / sum(sample_count) FILTER (WHERE metric = 'ssim_score') / 1e6)::double precision AS avg_ssim_score,
    min(first_at) AS first_at, max(last_at) AS last_at
FROM loupe.frame_qa_hourly
GROUP BY site_id, day, camera;
COMMENT ON VIEW loupe.v_frame_qa_summary IS 'Which camera needs a hand?';

CREATE VIEW loupe.v_gpu_trends AS
SELECT site_id, day, hour, device_id, gpu_index, gpu_name, sample_count,
    sum_util_pct_e6 / NULLIF(util_count, 0)::double precision / 1e6 AS avg_util_pct, max_util_pct,
    max_memory_used_bytes / NULLIF(memory_total_bytes, 0)::double precision AS max_memory_used_ratio,
    max_temperature_c, sum_power_usage_w_e6 / NULLIF(power_count, 0)::double precision / 1e6 AS avg_power_usage_w,
    throttled_count / sample_count::double precision AS throttled_ratio
FROM loupe.gpu_hourly;
COMMENT ON VIEW loupe.v_gpu_trends IS 'How busy and how hot were the GPUs, hour by hour?';

-- ------------------------------------------------------------------------------- over bounded detail, live

CREATE VIEW loupe.v_recent_inspections AS
SELECT r.*
FROM loupe.sites s
CROSS JOIN LATERAL (
    SELECT i.site_id, i.id AS inspection_id, i.code, i.captured_at, i.station, i.camera, i.recipe, i.verdict,
        i.reasons[1] AS primary_reason, i.item_count, i.anomaly_score, i.min_margin, i.latency_ms,
        CASE WHEN i.verdict = 'pass' THEN 'none'
            WHEN EXISTS (
                SELECT FROM loupe.reviews w
                WHERE w.site_id = i.site_id AND w.inspection_id = i.id AND w.review_status <> 'pending'
                    AND NOT EXISTS (SELECT FROM loupe.reviews u WHERE u.site_id = w.site_id
                        AND u.inspection_id = w.inspection_id AND u.undoes_id = w.id)
            ) THEN 'resolved' ELSE 'open' END AS action_status
    FROM loupe.inspections i
    WHERE i.site_id = s.id
    ORDER BY i.captured_at DESC
    LIMIT 100
) r;
COMMENT ON VIEW loupe.v_recent_inspections IS 'What just happened, was it dealt with? The last 100 of each site';

CREATE VIEW loupe.v_hold_queue AS
SELECT i.site_id, i.id AS inspection_id, i.code, i.captured_at, i.station, i.recipe, i.reasons, i.item_count,
    extract(epoch FROM now() - i.captured_at)::double precision AS age_s
FROM loupe.inspections i
WHERE i.verdict <> 'pass' AND i.verdict = 'hold' AND i.captured_at >= now() - interval '30 days'
    AND NOT EXISTS (
        SELECT FROM loupe.reviews w
        WHERE w.site_id = i.site_id AND w.inspection_id = i.id AND w.review_status <> 'pending'
            AND NOT EXISTS (SELECT FROM loupe.reviews u WHERE u.site_id = w.site_id
                AND u.inspection_id = w.inspection_id AND u.undoes_id = w.id)
    );
COMMENT ON VIEW loupe.v_hold_queue IS 'What of the last 30 days waits for a person?';

CREATE VIEW loupe.v_duplicate_frames AS
SELECT site_id, phash, count(*) AS duplicate_count, array_agg(DISTINCT camera) AS cameras,
    min(captured_at) AS first_at, max(captured_at) AS last_at
FROM loupe.frame_qa_logs
WHERE is_duplicate AND captured_at >= now() - interval '7 days'
GROUP BY site_id, phash;
COMMENT ON VIEW loupe.v_duplicate_frames IS 'Is a camera frozen? Repeated frames of the last 7 days';

CREATE VIEW loupe.v_gpu_health AS
SELECT DISTINCT ON (site_id, device_id, gpu_index) site_id, device_id, gpu_index, gpu_name, gpu_util_pct,
    memory_used_bytes / NULLIF(memory_total_bytes, 0)::double precision AS memory_used_ratio, temperature_c,
    temp_slowdown_threshold_c - temperature_c AS margin_to_slowdown_c,
    array_remove(ARRAY[
        CASE WHEN throttle_reasons & 1 <> 0 THEN 'idle' END,
        CASE WHEN throttle_reasons & 4 <> 0 THEN 'power_cap' END,
        CASE WHEN throttle_reasons & 8 <> 0 THEN 'hardware_slowdown' END,
        CASE WHEN throttle_reasons & 32 <> 0 THEN 'thermal' END,
        CASE WHEN throttle_reasons & 64 <> 0 THEN 'hardware_thermal' END,
        CASE WHEN throttle_reasons & 128 <> 0 THEN 'power_brake' END
    ], NULL) AS throttle_reasons,
    power_usage_w / NULLIF(power_limit_w, 0) AS power_ratio, recorded_at
FROM loupe.gpu_stats
WHERE recorded_at >= now() - interval '1 hour'
ORDER BY site_id, device_id, gpu_index, recorded_at DESC;
COMMENT ON VIEW loupe.v_gpu_health IS 'Hot, throttled? The last sample of each GPU within the hour';

CREATE VIEW loupe.v_delivery_health AS
SELECT site_id, device_id, epoch, max(last_seq) AS last_seq, sum(missing)::bigint AS missing_seq_count,
    max(committed_total) AS committed_total, max(delivered_total) AS delivered_total,
    max(dropped_samples) AS dropped_samples, count(*) AS batch_count, sum(unit_count)::bigint AS unit_count,
    max(ingested_at) AS last_batch_at
FROM (
    SELECT site_id, device_id, epoch, last_seq, unit_count, committed_total, delivered_total, dropped_samples,
        ingested_at, greatest(0, first_seq - 1 - max(last_seq) OVER (
            PARTITION BY site_id, device_id, epoch ORDER BY first_seq, last_seq
            ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)) AS missing
    FROM loupe.ingest_batches
    WHERE enqueued_at >= now() - interval '31 days'
) b
GROUP BY site_id, device_id, epoch;
COMMENT ON VIEW loupe.v_delivery_health IS 'Do the counters balance? Batches of 31 days; a missing position is pending, parked or lost';

CREATE VIEW loupe.v_site_health AS
SELECT site_id, device_id, last_batch_at AS last_seen_at,
    extract(epoch FROM now() - last_batch_at)::double precision AS lag_s,
    greatest(0, committed_total - delivered_total) AS outbox_pending_count,
    CASE WHEN last_batch_at < now() - interval '1 day' THEN 'down'
        WHEN last_batch_at < now() - interval '1 hour' OR committed_total - delivered_total > 10000 THEN 'warn'
        ELSE 'ok' END AS health
FROM (
    SELECT DISTINCT ON (site_id, device_id) site_id, device_id, last_batch_at, committed_total, delivered_total
    FROM loupe.v_delivery_health
    ORDER BY site_id, device_id, epoch DESC
) d;
COMMENT ON VIEW loupe.v_site_health IS 'Which site needs help? By what its devices delivered last';

CREATE VIEW loupe.v_system_overview AS
SELECT (SELECT count(*) FROM loupe.sites WHERE is_active) AS active_site_count,
    (SELECT count(*) FROM loupe.v_site_health WHERE health = 'down') AS silent_device_count,
    coalesce(h.inspection_count, 0) AS inspection_count, coalesce(h.item_count, 0) AS item_count,
    h.hold_count / NULLIF(h.inspection_count, 0)::double precision AS hold_ratio
FROM (
    SELECT sum(inspection_count)::bigint AS inspection_count, sum(item_count)::bigint AS item_count,
        coalesce(sum(inspection_count) FILTER (WHERE verdict = 'hold'), 0)::bigint AS hold_count
    FROM loupe.inspection_hourly WHERE hour >= date_trunc('hour', now()) - interval '24 hours'
) h;
COMMENT ON VIEW loupe.v_system_overview IS 'Is the fleet well? The last 24 hours';

-- ------------------------------------------------------------------------------------- audit and database

CREATE VIEW loupe.v_user_activity AS
SELECT site_id, actor_name, actor_id, count(*) AS action_count,
    count(*) FILTER (WHERE status = 'failure') AS failure_count,
    count(*) FILTER (WHERE status = 'success') / count(*)::double precision AS success_ratio,
    min(occurred_at) AS first_at, max(occurred_at) AS last_at
FROM loupe.audit_log
GROUP BY site_id, actor_name, actor_id;
COMMENT ON VIEW loupe.v_user_activity IS 'Who did how much?';

CREATE VIEW loupe.v_audit_chain_breaks AS
SELECT site_id, chain, chain_seq, id, occurred_at,
    CASE WHEN chain_seq = last_seq THEN 'fork' WHEN chain_seq <> last_seq + 1 THEN 'gap'
        WHEN prev_sha256 <> last_sha256 THEN 'link' ELSE 'hash' END AS kind
FROM (
    SELECT a.site_id, a.chain, a.chain_seq, a.id, a.occurred_at, a.prev_sha256, a.row_sha256,
        sha256(a.prev_sha256 || convert_to(loupe.audit_text(a), 'UTF8')) AS true_sha256,
        coalesce(lag(a.chain_seq) OVER w, n.last_seq, 0) AS last_seq,
        coalesce(lag(a.row_sha256) OVER w, n.last_sha256, decode(repeat('00', 32), 'hex')) AS last_sha256
    FROM loupe.audit_log a
    LEFT JOIN LATERAL (
        SELECT last_seq, last_sha256 FROM loupe.audit_anchors n
        WHERE n.chain = a.chain ORDER BY n.last_seq DESC LIMIT 1
    ) n ON true
    WINDOW w AS (PARTITION BY a.chain ORDER BY a.chain_seq, a.id)
) c
WHERE chain_seq <> last_seq + 1 OR prev_sha256 <> last_sha256 OR row_sha256 <> true_sha256;
COMMENT ON VIEW loupe.v_audit_chain_breaks IS
    'Was the audit touched? `loupe audit verify` recomputes the digests itself and also sees a cut end';

CREATE VIEW loupe.v_db_health AS
SELECT d.datname::text AS database_name, d.numbackends AS connection_count,
    current_setting('max_connections')::int AS connection_count_max,
    d.blks_hit / NULLIF(d.blks_hit + d.blks_read, 0)::double precision AS cache_hit_ratio,
    d.xact_commit AS commit_count, d.xact_rollback AS rollback_count, d.deadlocks AS deadlock_count,
    d.temp_bytes, pg_database_size(d.datid) AS size_bytes
FROM pg_stat_database d WHERE d.datname = current_database();
COMMENT ON VIEW loupe.v_db_health IS 'Is the database well?';

CREATE VIEW loupe.v_long_running_queries AS
SELECT pid, usename::text AS login, state, extract(epoch FROM now() - query_start)::double precision AS duration_s,
    extract(epoch FROM now() - xact_start)::double precision AS transaction_s, wait_event_type
FROM pg_stat_activity
WHERE datname = current_database() AND state <> 'idle' AND pid <> pg_backend_pid()
    AND query_start < now() - interval '30 seconds';
COMMENT ON VIEW loupe.v_long_running_queries IS 'What runs longer than 30 s? Other logins'' only for pg_read_all_stats';

CREATE VIEW loupe.v_table_sizes AS
SELECT p.relname::text AS table_name, count(*) AS partition_count,
    sum(greatest(c.reltuples, 0))::bigint AS row_count_estimate, sum(pg_table_size(c.oid))::bigint AS heap_bytes,
    sum(pg_indexes_size(c.oid))::bigint AS index_bytes,
    max(greatest(s.last_vacuum, s.last_autovacuum)) AS last_vacuum_at,
    max(greatest(s.last_analyze, s.last_autoanalyze)) AS last_analyze_at
FROM pg_class p
CROSS JOIN LATERAL (SELECT relid FROM pg_partition_tree(p.oid) WHERE isleaf
    UNION SELECT p.oid WHERE p.relkind <> 'p') t
JOIN pg_class c ON c.oid = t.relid
LEFT JOIN pg_stat_all_tables s ON s.relid = c.oid
WHERE p.relnamespace = 'loupe'::regnamespace AND p.relkind IN ('r', 'p', 'm') AND NOT p.relispartition
GROUP BY p.relname;
COMMENT ON VIEW loupe.v_table_sizes IS 'What takes the room?';

CREATE FUNCTION loupe.rows_in_default(of_table text) RETURNS bigint
    LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    default_name text;
    found bigint;
BEGIN
    SELECT d.relname INTO STRICT default_name
    FROM pg_class p JOIN pg_partitioned_table t ON t.partrelid = p.oid JOIN pg_class d ON d.oid = t.partdefid
    WHERE p.relnamespace = 'loupe'::regnamespace AND p.relname = of_table;
    EXECUTE format('SELECT count(*) FROM (SELECT FROM loupe.%I LIMIT 1000) x', default_name) INTO found;
    RETURN found;
END
$$;
COMMENT ON FUNCTION loupe.rows_in_default(text) IS 'Rows that lie in no month, at most 1,000 counted';
REVOKE EXECUTE ON FUNCTION loupe.rows_in_default(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION loupe.rows_in_default(text) TO loupe_ops;

CREATE VIEW loupe.v_partition_health AS
SELECT b.table_name, coalesce(max(p.unit), 'month') AS unit, count(*) FILTER (WHERE NOT b.is_default) AS partition_count,
    min(b.starts_at) AS starts_at, max(b.ends_at) AS ends_at,
    count(*) FILTER (WHERE b.starts_at > now()) AS ahead_count, loupe.rows_in_default(b.table_name) AS default_row_count
FROM loupe.partition_bounds() b
LEFT JOIN loupe.partition_policies p ON p.table_name = b.table_name
GROUP BY b.table_name;
COMMENT ON VIEW loupe.v_partition_health IS 'Do partitions stand ready, and does anything lie outside them?';

COMMENT ON MATERIALIZED VIEW loupe.mv_site_daily IS 'Behind v_site_performance';
COMMENT ON MATERIALIZED VIEW loupe.mv_part_statistics IS 'Behind v_part_statistics';
COMMENT ON MATERIALIZED VIEW loupe.mv_confusion_pairs IS 'Behind v_confusion_pairs';
COMMENT ON MATERIALIZED VIEW loupe.mv_stock_current IS 'Behind v_stock_current';

DO $$
DECLARE
    view_name text;
BEGIN
    FOR view_name IN SELECT relname FROM pg_class
        WHERE relnamespace = 'loupe'::regnamespace AND relkind = 'v'
    LOOP
        EXECUTE format('GRANT SELECT ON loupe.%I TO loupe_ops', view_name);
    END LOOP;
END
$$;

-- One name means one thing in every view.
DO $$
DECLARE
    bare record;
BEGIN
    FOR bare IN
        SELECT c.relname, a.attname, w.words
        FROM pg_class c
        JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        JOIN (VALUES
    ('accepted_count', 'Items named and not held'),
    ('accuracy_ratio', 'Share of the reviewed that was right; NULL: none reviewed'),
    ('action_count', 'Audited actions'),
    ('action_status', 'none (a pass), open or resolved (reviewed)'),
    ('active_site_count', 'Sites whose devices may deliver'),
    ('actor_id', 'The person behind the login, where the session says'),
    ('actor_name', 'The login'),
    ('age_s', 'Seconds since it was captured'),
    ('ahead_count', 'Partitions beyond the present one'),
    ('anomaly_score', 'Normalised, 0 to 1; 0.5 = the threshold'),
    ('avg_anomaly_score', 'Mean anomaly score, 0 to 1'),
    ('avg_brightness_ratio', 'Mean brightness, 0 to 1'),
    ('avg_latency_ms', 'Mean time from arrival to decision'),
    ('avg_margin', 'Mean margin to the best other part'),
    ('avg_noise_level', 'Mean noise'),
    ('avg_power_usage_w', 'Mean power draw'),
    ('avg_processing_ms', 'Mean time spent on the quality of a frame'),
    ('avg_rate_hz', 'Inspections a second between the first and the last of the day'),
    ('avg_search_ms', 'Mean time of both stages of the search'),
    ('avg_sharpness', 'Mean sharpness'),
    ('avg_similarity', 'Mean cosine with the best template'),
    ('avg_ssim_score', 'Mean structural similarity with the reference'),
    ('avg_util_pct', 'Mean utilisation'),
    ('avg_value', 'Mean of the metric'),
    ('batch_count', 'Batches received'),
    ('booking_count', 'Bookings behind it'),
    ('cache_hit_ratio', 'Share of blocks found in memory'),
    ('camera', 'Camera by name'),
    ('cameras', 'Cameras by name'),
    ('captured_at', 'When the frame was taken'),
    ('chain', 'The chain'),
    ('chain_seq', 'Position in it'),
    ('code', 'Code for people'),
    ('color_id', 'Colour; NULL: not known'),
    ('commit_count', 'Transactions committed'),
    ('committed_total', 'Units the device ever committed'),
    ('confused_count', 'Reviews that say so'),
    ('confused_with_id', 'What the search showed instead'),
    ('confusion_ratio', 'Share of the reviewed items of this part'),
    ('connection_count', 'Sessions now'),
    ('connection_count_max', 'Sessions at most'),
    ('correct_count', 'Reviews that confirm'),
    ('database_name', 'The database'),
    ('day', 'Day, UTC'),
    ('deadlock_count', 'Deadlocks'),
    ('default_row_count', 'Rows in DEFAULT, at most 1,000 counted'),
    ('delivered_total', 'Units the device knew to be here'),
    ('device_id', 'The device'),
    ('dropped_samples', 'Samples that never left the device'),
    ('duplicate_count', 'Frames that repeat another'),
    ('duration_s', 'Seconds since the statement began'),
    ('ends_at', 'End of the last partition'),
    ('epoch', 'Rises when a backup is restored on the device'),
    ('fail_count', 'Those that failed'),
    ('failure_count', 'Failed actions'),
    ('fallback_count', 'Inspections where a model ran elsewhere than the recipe wants'),
    ('first_at', 'The first'),
    ('gpu_index', 'The GPU, as NVML counts'),
    ('gpu_name', 'Product name'),
    ('gpu_util_pct', 'Utilisation'),
    ('heap_bytes', 'Bytes of rows, with TOAST'),
    ('health', 'ok, warn (an hour silent, or 10,000 pending) or down (a day silent)'),
    ('held_count', 'Items held'),
    ('hist_latency_ms', 'Histogram of latencies'),
    ('hold_count', 'Those held'),
    ('hold_ratio', 'Share that was held'),
    ('hour', 'Start of the hour, UTC'),
    ('id', 'The row'),
    ('index_bytes', 'Bytes of indexes'),
    ('inspection_count', 'Inspections'),
    ('inspection_id', 'The inspection'),
    ('item_count', 'Items'),
    ('kind', 'gap, fork, link or hash'),
    ('lag_s', 'Seconds since the last batch'),
    ('last_analyze_at', 'When statistics were last gathered'),
    ('last_at', 'The last'),
    ('last_batch_at', 'When the last batch arrived'),
    ('last_changed_at', 'The last booking'),
    ('last_seen_at', 'When the device last delivered'),
    ('last_seq', 'Highest outbox position received'),
    ('last_vacuum_at', 'When it was last vacuumed'),
    ('late_count', 'Inspections over their deadline'),
    ('latency_ms', 'From the frame''s arrival to the decision'),
    ('login', 'Who runs it'),
    ('margin_to_slowdown_c', 'Degrees below the temperature at which it slows down'),
    ('max_memory_used_ratio', 'Most memory in use, share of all'),
    ('max_temperature_c', 'Highest temperature'),
    ('max_util_pct', 'Highest utilisation'),
    ('max_value', 'Largest value'),
    ('median_margin', 'Median margin of the confused items'),
    ('memory_used_ratio', 'Memory in use, share of all'),
    ('metric', 'A column of frame_qa_logs'),
    ('min_margin', 'Smallest margin'),
    ('min_value', 'Smallest value'),
    ('missing_seq_count', 'Outbox positions between batches that never came'),
    ('occurred_at', 'When it was done'),
    ('outbox_pending_count', 'Units not yet here when the last batch was sent'),
    ('p99_latency_ms', '99th percentile of the latency, to a bucket'),
    ('part_id', 'Part number; NULL: none was accepted'),
    ('partition_count', 'Partitions; 1 for a plain table'),
    ('pass_count', 'Those that passed'),
    ('pass_ratio', 'Share whose frame passed'),
    ('performance_score', '0 to 1: share not held × share right of the reviewed × share in time'),
    ('phash', 'Perceptual hash'),
    ('pid', 'Process on the server'),
    ('power_ratio', 'Power draw, share of its limit'),
    ('precision_ratio', 'Of the reviewed items shown as this part, the share that is'),
    ('primary_reason', 'The gravest reason'),
    ('quantity', 'How many there are'),
    ('reasons', 'Codes, gravest first'),
    ('recall_ratio', 'Of the reviewed items of this part, the share shown as it'),
    ('recipe', 'Recipe by name'),
    ('recorded_at', 'When it was sampled'),
    ('review_ratio', 'Share that was reviewed'),
    ('reviewed_count', 'Those that a person judged'),
    ('rollback_count', 'Transactions rolled back'),
    ('row_count_estimate', 'Rows, as the planner believes'),
    ('sample_count', 'Samples'),
    ('seen_count', 'Items'),
    ('silent_device_count', 'Devices silent for a day'),
    ('site_id', 'The site'),
    ('size_bytes', 'Bytes on disk'),
    ('stage2_count', 'Items that needed the cold tier'),
    ('starts_at', 'Start of the first partition'),
    ('state', 'What the session does'),
    ('station', 'Station by name'),
    ('success_ratio', 'Share that succeeded'),
    ('suggested_min_margin', 'Margin that would have held 95 % of them'),
    ('sum_latency_us', 'Sum of latencies, in µs'),
    ('table_name', 'The table'),
    ('temp_bytes', 'Bytes spilled to disk by queries'),
    ('temperature_c', 'Temperature'),
    ('throttle_reasons', 'What slows it down'),
    ('throttled_ratio', 'Share of samples slowed down by heat or power'),
    ('transaction_s', 'Seconds since the transaction began'),
    ('uncertain_count', 'Those that were uncertain'),
    ('unit', 'Length of a partition'),
    ('unit_count', 'Units in these batches'),
    ('verdict', 'pass, fail or hold'),
    ('wait_event_type', 'What it waits for'),
    ('warn_count', 'Those with a warning')
        ) AS w (name, words) ON w.name = a.attname
        WHERE c.relnamespace = 'loupe'::regnamespace AND c.relkind IN ('v', 'm')
    LOOP
        EXECUTE format('COMMENT ON COLUMN loupe.%I.%I IS %L', bare.relname, bare.attname, bare.words);
    END LOOP;
END
$$;

RESET ROLE;
