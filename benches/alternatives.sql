-- What the statements that a courier might use cost the server: the same 100 000 items, in batches of 2 500.
--
-- On a scratch database with Loupe's schema, as superuser, the server being able to write below /tmp:
--     psql -q -f benches/alternatives.sql DATABASE
-- A is one transaction, the others commit each batch. Parsing what arrives on the wire is part of A, C and D only.

SET loupe.site_id = '0000000a-0000-0000-0000-000000000001';

CREATE TEMPORARY TABLE source AS
SELECT n / 2500 AS batch, '0000000a-0000-0000-0000-000000000001'::uuid AS site_id,
    '0000000a-0000-0000-0000-0000000000dd'::uuid AS device_id, now() + n / 5 * interval '10 ms' AS captured_at,
    gen_random_uuid() AS id, md5((n / 5)::text)::uuid AS inspection_id, n % 5 AS ordinal, 10.25::real AS x_px,
    20.5::real AS y_px, 100.5::real AS width_px, 74.625::real AS height_px, 'part'::text AS label,
    0.9::real AS detection_confidence, '3001'::text AS part_id, '5'::text AS color_id, random()::real AS similarity,
    '3003'::text AS second_part_id, random()::real AS second_similarity, 0.1::real AS margin, 'l2'::text AS tier,
    true AS entered_stage2, false AS is_held, 0.2::real AS stage1_ms, 0.7::real AS stage2_ms,
    '[{"template":17,"part_id":"3001","similarity":0.9,"color_id":null}]'::jsonb AS top_k, 'pass'::text AS verdict,
    '{}'::text[] AS reasons
FROM generate_series(0, 99999) n;

-- As they arrive: one JSON text a batch, or one array a column; lists of codes joined by commas.
CREATE TEMPORARY TABLE arriving AS
SELECT batch, (jsonb_agg(to_jsonb(s) - 'batch'))::text AS json,
    array_agg(captured_at) AS captured_at, array_agg(id) AS id, array_agg(inspection_id) AS inspection_id,
    array_agg(ordinal) AS ordinal, array_agg(x_px) AS x_px, array_agg(y_px) AS y_px, array_agg(width_px) AS
    width_px, array_agg(height_px) AS height_px, array_agg(label) AS label, array_agg(detection_confidence) AS
    detection_confidence, array_agg(part_id) AS part_id, array_agg(color_id) AS color_id,
    array_agg(similarity) AS similarity, array_agg(second_part_id) AS second_part_id,
    array_agg(second_similarity) AS second_similarity, array_agg(margin) AS margin, array_agg(tier) AS tier,
    array_agg(entered_stage2) AS entered_stage2, array_agg(is_held) AS is_held, array_agg(stage1_ms) AS
    stage1_ms, array_agg(stage2_ms) AS stage2_ms, array_agg(top_k) AS top_k, array_agg(verdict) AS verdict,
    array_agg(array_to_string(reasons, ',')) AS reasons
FROM source s GROUP BY batch;

COPY (SELECT site_id, device_id,
    captured_at, id, inspection_id, ordinal, x_px, y_px, width_px, height_px, label, detection_confidence,
    part_id, color_id, similarity, second_part_id, second_similarity, margin, tier, entered_stage2, is_held,
    stage1_ms, stage2_ms, top_k, verdict, reasons
    FROM source) TO '/tmp/loupe-items.bin' BINARY;

\echo A. COPY into a temporary table and INSERT ... SELECT: the bare way
TRUNCATE loupe.items;
CHECKPOINT;
\timing on
DO $$
BEGIN
    CREATE TEMPORARY TABLE copied (LIKE source) ON COMMIT DROP;
    COPY copied (site_id, device_id,
    captured_at, id, inspection_id, ordinal, x_px, y_px, width_px, height_px, label, detection_confidence,
    part_id, color_id, similarity, second_part_id, second_similarity, margin, tier, entered_stage2, is_held,
    stage1_ms, stage2_ms, top_k, verdict, reasons)
        FROM '/tmp/loupe-items.bin' BINARY;
    INSERT INTO loupe.items (site_id, device_id,
    captured_at, id, inspection_id, ordinal, x_px, y_px, width_px, height_px, label, detection_confidence,
    part_id, color_id, similarity, second_part_id, second_similarity, margin, tier, entered_stage2, is_held,
    stage1_ms, stage2_ms, top_k, verdict, reasons)
    SELECT site_id, device_id,
    captured_at, id, inspection_id, ordinal, x_px, y_px, width_px, height_px, label, detection_confidence,
    part_id, color_id, similarity, second_part_id, second_similarity, margin, tier, entered_stage2, is_held,
    stage1_ms, stage2_ms, top_k, verdict, reasons
    FROM copied ON CONFLICT (site_id, captured_at, id) DO NOTHING;
END
$$;
\timing off

\echo B. unnest of one array a column: what the courier sends
TRUNCATE loupe.items;
CHECKPOINT;
\timing on
DO $$
DECLARE
    arrived record;
BEGIN
    FOR number IN 0..39 LOOP
        SELECT * INTO arrived FROM arriving WHERE batch = number;
        INSERT INTO loupe.items (site_id, device_id,
    captured_at, id, inspection_id, ordinal, x_px, y_px, width_px, height_px, label, detection_confidence,
    part_id, color_id, similarity, second_part_id, second_similarity, margin, tier, entered_stage2, is_held,
    stage1_ms, stage2_ms, top_k, verdict, reasons)
        SELECT '0000000a-0000-0000-0000-000000000001', '0000000a-0000-0000-0000-0000000000dd',
    u.captured_at, u.id, u.inspection_id, u.ordinal, u.x_px, u.y_px, u.width_px, u.height_px, u.label,
    u.detection_confidence, u.part_id, u.color_id, u.similarity, u.second_part_id, u.second_similarity,
    u.margin, u.tier, u.entered_stage2, u.is_held, u.stage1_ms, u.stage2_ms, u.top_k, u.verdict,
    string_to_array(u.reasons, ',')
        FROM unnest(
            arrived.captured_at, arrived.id, arrived.inspection_id, arrived.ordinal, arrived.x_px,
            arrived.y_px, arrived.width_px, arrived.height_px, arrived.label, arrived.detection_confidence,
            arrived.part_id, arrived.color_id, arrived.similarity, arrived.second_part_id,
            arrived.second_similarity, arrived.margin, arrived.tier, arrived.entered_stage2, arrived.is_held,
            arrived.stage1_ms, arrived.stage2_ms, arrived.top_k, arrived.verdict, arrived.reasons) AS u (
            captured_at, id, inspection_id, ordinal, x_px, y_px, width_px, height_px, label,
            detection_confidence, part_id, color_id, similarity, second_part_id, second_similarity, margin,
            tier, entered_stage2, is_held, stage1_ms, stage2_ms, top_k, verdict, reasons)
        ON CONFLICT (site_id, captured_at, id) DO NOTHING;
        COMMIT;
    END LOOP;
END
$$;
\timing off

\echo C. jsonb_populate_recordset
TRUNCATE loupe.items;
CHECKPOINT;
\timing on
DO $$
DECLARE
    arrived record;
BEGIN
    FOR number IN 0..39 LOOP
        SELECT * INTO arrived FROM arriving WHERE batch = number;
        INSERT INTO loupe.items (site_id, device_id,
    captured_at, id, inspection_id, ordinal, x_px, y_px, width_px, height_px, label, detection_confidence,
    part_id, color_id, similarity, second_part_id, second_similarity, margin, tier, entered_stage2, is_held,
    stage1_ms, stage2_ms, top_k, verdict, reasons)
        SELECT site_id, device_id,
    captured_at, id, inspection_id, ordinal, x_px, y_px, width_px, height_px, label, detection_confidence,
    part_id, color_id, similarity, second_part_id, second_similarity, margin, tier, entered_stage2, is_held,
    stage1_ms, stage2_ms, top_k, verdict, reasons
        FROM jsonb_populate_recordset(NULL::loupe.items, arrived.json::jsonb)
        ON CONFLICT (site_id, captured_at, id) DO NOTHING;
        COMMIT;
    END LOOP;
END
$$;
\timing off

\echo D. json_to_recordset with types
TRUNCATE loupe.items;
CHECKPOINT;
\timing on
DO $$
DECLARE
    arrived record;
BEGIN
    FOR number IN 0..39 LOOP
        SELECT * INTO arrived FROM arriving WHERE batch = number;
        INSERT INTO loupe.items (site_id, device_id,
    captured_at, id, inspection_id, ordinal, x_px, y_px, width_px, height_px, label, detection_confidence,
    part_id, color_id, similarity, second_part_id, second_similarity, margin, tier, entered_stage2, is_held,
    stage1_ms, stage2_ms, top_k, verdict, reasons)
        SELECT site_id, device_id,
    captured_at, id, inspection_id, ordinal, x_px, y_px, width_px, height_px, label, detection_confidence,
    part_id, color_id, similarity, second_part_id, second_similarity, margin, tier, entered_stage2, is_held,
    stage1_ms, stage2_ms, top_k, verdict, reasons
        FROM json_to_recordset(arrived.json::json) AS u (site_id uuid, device_id uuid,
            captured_at timestamptz, id uuid, inspection_id uuid, ordinal int, x_px real, y_px real, width_px
            real, height_px real, label text, detection_confidence real, part_id text, color_id text,
            similarity real, second_part_id text, second_similarity real, margin real, tier text,
            entered_stage2 boolean, is_held boolean, stage1_ms real, stage2_ms real, top_k jsonb, verdict
            text, reasons text[])
        ON CONFLICT (site_id, captured_at, id) DO NOTHING;
        COMMIT;
    END LOOP;
END
$$;
\timing off
