#!/bin/bash
# Times every central view for one site and day over many items: 10 million unless ITEMS says otherwise.
#
# Starts a PostgreSQL of its own in a temporary folder (about 6 GB at 10 million), migrates it with the given loupe,
# fills it by generate_series, runs `loupe db rollup`, and prints for each view the best, median and worst of 7 runs as a
# login of loupe_ops, row-level security in force. PLANS=FILE also writes the plans there.
#
#   cargo build --release && benches/peers/central_views.sh target/release/loupe
set -euo pipefail

loupe=$(realpath "${1:?usage: central_views.sh PATH_OF_LOUPE}")
items=${ITEMS:-10000000}
plans=${PLANS:-/dev/null}
sites=5
days=50
items_per_inspection=10
inspections=$((items / items_per_inspection))
bin=$(ls -d /usr/lib/postgresql/*/bin | sort -V | tail -1)
dir=$(mktemp -d)
chmod 777 "$dir"
port=${PORT:-5998}
as_postgres=()
if [ "$(id -u)" = 0 ]; then as_postgres=(setpriv --reuid=postgres --regid=postgres --clear-groups); fi
cd /
run() { "${as_postgres[@]}" "$bin/$1" "${@:2}"; }
stop() {
    run pg_ctl -D "$dir/data" -m immediate stop >/dev/null || true
    rm -rf "$dir"
}
trap stop EXIT

run initdb -D "$dir/data" -U postgres -A trust --no-sync -E UTF8 --locale=C >/dev/null
run pg_ctl -D "$dir/data" -w -l "$dir/log" start >/dev/null -o "-p $port -c listen_addresses=127.0.0.1 \
    -c unix_socket_directories=$dir -c fsync=off -c full_page_writes=off -c wal_level=minimal -c max_wal_senders=0 \
    -c max_wal_size=1GB -c shared_buffers=512MB -c work_mem=32MB -c maintenance_work_mem=256MB -c jit=off"
export PGHOST=127.0.0.1 PGPORT=$port PGUSER=postgres PGDATABASE=central
psql -Xqc "CREATE DATABASE central" postgres
export LOUPE_DSN="postgresql://postgres@127.0.0.1:$port/central"
"$loupe" db migrate >/dev/null
# The months of the data, as retention would have made them.
psql -Xq -v ON_ERROR_STOP=1 >/dev/null <<SQL
SET timezone = 'UTC';
SELECT loupe.make_partition(t, now() - make_interval(days => d))
FROM generate_series(0, $days) d, unnest(ARRAY['inspections', 'items', 'frame_qa_logs', 'reviews', 'ingest_batches',
    'gpu_stats', 'inspection_hourly', 'item_hourly', 'frame_qa_hourly', 'gpu_hourly']) t;
CREATE ROLE viewer LOGIN IN ROLE loupe_ops;
INSERT INTO loupe.sites (id, code, name)
SELECT format('00000000-0000-7000-8000-%s', lpad(n::text, 12, '0'))::uuid, 'site-' || n, 'Site ' || n
FROM generate_series(1, $sites) n;
SQL

started=$(date +%s)
# Indexes are kept up to date while filling, as they are in service. Inspection n is of site n mod $sites.
psql -Xq -v ON_ERROR_STOP=1 <<SQL
SET timezone = 'UTC';
SET synchronous_commit = off;
CREATE TABLE public.f AS
SELECT n, format('00000000-0000-7000-8000-%s', lpad((n % $sites + 1)::text, 12, '0'))::uuid AS site_id,
    date_trunc('day', now()) - interval '$days days' + (n * (86400e6 * $days / $inspections)) * interval '1 microsecond' AS at,
    format('11111111-0000-7000-8000-%s', lpad(n::text, 12, '0'))::uuid AS id,
    CASE WHEN n / $sites % 50 = 7 THEN 'hold' WHEN n / $sites % 40 = 3 THEN 'fail' ELSE 'pass' END AS verdict
FROM generate_series(1, $inspections) n;
INSERT INTO loupe.provenances SELECT id, sha256('{}'), now(), '{}', id FROM loupe.sites;
INSERT INTO loupe.inspections (site_id, captured_at, id, code, station, camera, recipe, source, frame_seq, frame_width_px,
    frame_height_px, verdict, reasons, frame_sha256, provenance_sha256, anomaly_score, min_similarity, min_margin,
    item_count, decided_at, latency_ms, deadline_ms, is_provider_fallback, device_id, ingested_at)
SELECT site_id, at, id, format('INS-%s-%s', to_char(at, 'YYYYMMDD'), lpad(n::text, 8, '0')), 'line-' || n / $sites % 4,
    'top-' || n / $sites % 4, 'recipe-' || n / $sites % 3, 'camera', n, 1920, 1080, verdict,
    CASE verdict WHEN 'pass' THEN '{}' WHEN 'hold' THEN '{match.margin_small}' ELSE '{anomaly.above_threshold}' END::text[],
    sha256(n::text::bytea), sha256('{}'), (n % 400) / 1000.0, 0.8, 0.1, $items_per_inspection, at, 20 + n % 80, 100,
    false, site_id, at
FROM public.f;
INSERT INTO loupe.items (site_id, captured_at, id, inspection_id, ordinal, x_px, y_px, width_px, height_px, label,
    detection_confidence, part_id, color_id, similarity, margin, tier, entered_stage2, is_held, stage1_ms, verdict, reasons,
    device_id, ingested_at)
SELECT site_id, at, format('22222222-%s-7000-8000-%s', lpad(k::text, 4, '0'), lpad(n::text, 12, '0'))::uuid, id, k, 10, 10,
    50, 50, 'part', 0.9, 'part-' || (n / $sites * 7 + k * 13) % 200, 'c' || (n / $sites * 7 + k * 13) % 7, 0.8 + (n % 100) / 1000.0,
    0.05 + (k % 10) / 100.0, 'l1', k = 3, verdict = 'hold' AND k = 0, 0.2,
    CASE WHEN verdict = 'hold' AND k = 0 THEN 'hold' ELSE 'pass' END,
    CASE WHEN verdict = 'hold' AND k = 0 THEN '{match.margin_small}' ELSE '{}' END::text[], site_id, at
FROM public.f CROSS JOIN generate_series(0, $items_per_inspection - 1) k;
INSERT INTO loupe.frame_qa_logs (site_id, captured_at, id, inspection_id, camera, frame_seq, frame_sha256, ssim_score,
    sharpness, noise_level, contrast_ratio, brightness_ratio, saturation_ratio, clipped_ratio, phash, is_duplicate, age_ms,
    issues, status, processing_ms, device_id, ingested_at)
SELECT site_id, at, id, id, 'top-' || n / $sites % 4, n, sha256(n::text::bytea), 0.9, 300 + n % 200, 2, 0.4, 0.5, 0.2, 0.01,
    CASE WHEN n / $sites % 500 = 0 THEN n % 7 ELSE n END, n / $sites % 500 = 0, 5, '{}', CASE WHEN n % 90 = 0 THEN 'warn' ELSE 'pass' END,
    5.5, site_id, at
FROM public.f;
INSERT INTO loupe.reviews (site_id, occurred_at, id, subject_kind, subject_id, subject_at, inspection_id, ordinal,
    review_status, shown_part_id, corrected_part_id, reviewer, device_id, ingested_at)
SELECT site_id, at + interval '1 hour', id, 'item', format('22222222-0000-7000-8000-%s', lpad(n::text, 12, '0'))::uuid, at,
    id, 0, CASE WHEN n / 50 % 4 = 0 THEN 'rejected' ELSE 'confirmed' END, 'part-' || (n / $sites * 7) % 200,
    CASE WHEN n / 50 % 4 = 0 THEN 'part-' || (n / $sites * 7 + 1) % 200 END, 'op', site_id, at + interval '1 hour'
FROM public.f WHERE verdict = 'hold' AND n % 3 <> 0;
INSERT INTO loupe.ingest_batches (site_id, enqueued_at, id, epoch, first_seq, last_seq, unit_count, row_count,
    committed_total, delivered_total, dropped_samples, sha256, device_id, ingested_at)
SELECT site_id, at, id, 1, n, n + 99, 100, 1200, n + 99, n, 0, sha256(n::text::bytea), site_id, at
FROM public.f WHERE n % 100 < $sites;
INSERT INTO loupe.gpu_stats (site_id, recorded_at, id, gpu_index, gpu_name, gpu_util_pct, memory_used_bytes,
    memory_total_bytes, temperature_c, power_usage_w, power_limit_w, throttle_reasons, device_id, ingested_at)
SELECT s.id, date_trunc('minute', now()) - m * interval '10 seconds', gen_random_uuid(), 0, 'GPU', m % 100, 1e9::bigint,
    8e9::bigint, 60, 100, 300, 0, s.id, now() FROM loupe.sites s, generate_series(0, 60480) m;
DROP TABLE public.f;
VACUUM (ANALYZE);
SQL
echo "filled in $(($(date +%s) - started)) s: $(psql -XqAt -c 'SELECT count(*) FROM loupe.items') items," \
    "$(psql -XqAt -c 'SELECT pg_size_pretty(pg_database_size(current_database()))')"
echo "first rollup:"
"$loupe" db rollup
psql -Xqc "VACUUM (ANALYZE)"
echo "second rollup:"
"$loupe" db rollup

site=00000000-0000-7000-8000-000000000002
day=$(date -u -d "5 days ago" +%F)
next=$(date -u -d "4 days ago" +%F)
export PGUSER=viewer
: >"$plans"
time_view() {
    local sql=$2 runs=()
    for _ in 1 2 3 4 5 6 7; do
        runs+=("$(psql -XqAt -c "EXPLAIN (ANALYZE, TIMING OFF) $sql" | sed -n 's/^Execution Time: \(.*\) ms/\1/p')")
    done
    local rows
    rows=$(psql -XqAt -c "SELECT count(*) FROM ($sql) x")
    printf '%s\n' "${runs[@]}" | sort -n | awk -v name="$1" -v rows="$rows" \
        '{v[NR]=$1} END {printf "| %-24s | %6d | %8.1f | %8.1f | %8.1f |\n", name, rows, v[1], v[4], v[7]}'
    { echo "## $1"; echo; echo "$sql"; echo; psql -XqAt -c "EXPLAIN (ANALYZE, BUFFERS, COSTS OFF) $sql"; echo; } >>"$plans"
}
echo "one site, one day (ms)"
echo "| view                     |   rows |     best |   median |    worst |"
for view in v_dashboard_stats v_hold_reasons v_part_daily v_quality_trends v_quality_dashboard v_frame_qa_summary \
    v_site_performance v_gpu_trends; do
    time_view "$view" "SELECT * FROM loupe.$view WHERE site_id = '$site' AND day = '$day'"
done
time_view v_hold_queue "SELECT * FROM loupe.v_hold_queue WHERE site_id = '$site' AND captured_at >= '$day' AND captured_at < '$next'"
for view in v_recent_inspections v_part_statistics v_confusion_pairs v_duplicate_frames v_gpu_health v_delivery_health \
    v_site_health v_stock_current; do
    time_view "$view" "SELECT * FROM loupe.$view WHERE site_id = '$site'"
done
for view in v_system_overview v_user_activity v_audit_chain_breaks v_db_health v_table_sizes v_partition_health; do
    time_view "$view" "SELECT * FROM loupe.$view"
done
time_view "inspections of the day" "SELECT * FROM loupe.inspections WHERE site_id = '$site' AND captured_at >= '$day' AND captured_at < '$next'"
time_view "items of the day" "SELECT part_id, count(*), avg(similarity) FROM loupe.items WHERE site_id = '$site' AND captured_at >= '$day' AND captured_at < '$next' GROUP BY part_id"
