//! `loupe db rollup`: hours of detail added up, and the materialised views refreshed.
//!
//! Which hours: those of facts that arrived since the last run, an hour of overlap included, since a delivery may commit
//! after a later one (a device's transaction rests 5 minutes at most). Such an hour is computed anew from all of its
//! facts, so running again, or rows that come a month late, lead to the same rows. Hours whose detail may have expired
//! are left as they are. One run at a time.

use serde::Serialize;
use tokio_postgres::types::Type;

use super::UplinkError;
use super::central::Central;
use crate::clock::Stopwatch;

/// One table that is filled from another.
struct Rollup {
    /// The table it fills.
    name: &'static str,
    source: &'static str,
    /// Time of the fact.
    key_time: &'static str,
    /// What makes a row, besides site and hour.
    key: &'static [&'static str],
    /// What is computed, in the order of `select`.
    values: &'static [&'static str],
    /// SELECT of `key` and `values` from `{facts}`: the facts of one site and hour.
    select: &'static str,
}

const ROLLUPS: [Rollup; 4] = [
    Rollup {
        name: "inspection_hourly",
        source: "inspections",
        key_time: "captured_at",
        key: &["station", "recipe", "verdict", "primary_reason"],
        values: &[
            "inspection_count",
            "item_count",
            "fallback_count",
            "late_count",
            "sum_latency_us",
            "max_latency_ms",
            "hist_latency_ms",
            "anomaly_count",
            "sum_anomaly_score_e6",
            "first_at",
            "last_at",
        ],
        select: "SELECT station, recipe, verdict, primary_reason, sum(n)::bigint, sum(items)::bigint,
                sum(fallbacks)::bigint, sum(late)::bigint, sum(latency_us)::bigint, max(latency_max),
                loupe.hist_from(array_agg(bucket), array_agg(n)), sum(anomalies)::bigint, sum(anomaly_e6)::bigint,
                min(first_at), max(last_at)
            FROM (
                SELECT f.station, f.recipe, f.verdict, coalesce(f.reasons[1], '') AS primary_reason,
                    loupe.hist_bucket(f.latency_ms) AS bucket, count(*) AS n, sum(f.item_count) AS items,
                    count(*) FILTER (WHERE f.is_provider_fallback) AS fallbacks,
                    count(*) FILTER (WHERE f.latency_ms > f.deadline_ms) AS late,
                    sum(round(least(f.latency_ms, 1e9)::float8 * 1e3)::bigint) AS latency_us,
                    max(f.latency_ms) AS latency_max, count(f.anomaly_score) AS anomalies,
                    coalesce(sum(round(f.anomaly_score::float8 * 1e6)::bigint), 0) AS anomaly_e6,
                    min(f.captured_at) AS first_at, max(f.captured_at) AS last_at
                FROM {facts} GROUP BY 1, 2, 3, 4, 5
            ) b GROUP BY 1, 2, 3, 4",
    },
    Rollup {
        name: "item_hourly",
        source: "items",
        key_time: "captured_at",
        key: &["part_id", "color_id"],
        values: &[
            "seen_count",
            "accepted_count",
            "held_count",
            "stage2_count",
            "matched_count",
            "sum_similarity_e6",
            "margin_count",
            "sum_margin_e6",
            "min_margin",
            "sum_search_us",
            "last_at",
        ],
        select: "SELECT coalesce(f.part_id, ''), coalesce(f.color_id, ''), count(*),
                count(*) FILTER (WHERE f.part_id IS NOT NULL AND NOT f.is_held), count(*) FILTER (WHERE f.is_held),
                count(*) FILTER (WHERE f.entered_stage2), count(f.similarity),
                coalesce(sum(round(f.similarity::float8 * 1e6)::bigint), 0)::bigint, count(f.margin),
                coalesce(sum(round(f.margin::float8 * 1e6)::bigint), 0)::bigint, min(f.margin),
                coalesce(sum(round(least(f.stage1_ms, 1e9)::float8 * 1e3)::bigint), 0)::bigint
                    + coalesce(sum(round(least(f.stage2_ms, 1e9)::float8 * 1e3)::bigint), 0)::bigint,
                max(f.captured_at)
            FROM {facts} GROUP BY 1, 2",
    },
    Rollup {
        name: "frame_qa_hourly",
        source: "frame_qa_logs",
        key_time: "captured_at",
        key: &["camera", "metric"],
        values: &[
            "sample_count",
            "pass_count",
            "warn_count",
            "fail_count",
            "uncertain_count",
            "duplicate_count",
            "sum_value_e6",
            "min_value",
            "max_value",
            "sum_processing_us",
            "first_at",
            "last_at",
        ],
        select: "SELECT f.camera, m.metric, count(*), count(*) FILTER (WHERE f.status = 'pass'),
                count(*) FILTER (WHERE f.status = 'warn'), count(*) FILTER (WHERE f.status = 'fail'),
                count(*) FILTER (WHERE f.status = 'uncertain'), count(*) FILTER (WHERE f.is_duplicate),
                sum(round(least(m.value, 1e9)::float8 * 1e6)::bigint), min(m.value), max(m.value),
                sum(round(least(f.processing_ms, 1e9)::float8 * 1e3)::bigint)::bigint, min(f.captured_at),
                max(f.captured_at)
            FROM {facts}
            CROSS JOIN LATERAL (VALUES ('sharpness', f.sharpness), ('noise_level', f.noise_level),
                ('contrast_ratio', f.contrast_ratio), ('brightness_ratio', f.brightness_ratio),
                ('saturation_ratio', f.saturation_ratio), ('clipped_ratio', f.clipped_ratio),
                ('ssim_score', f.ssim_score), ('age_ms', f.age_ms)) AS m (metric, value)
            WHERE m.value IS NOT NULL GROUP BY 1, 2",
    },
    Rollup {
        name: "gpu_hourly",
        source: "gpu_stats",
        key_time: "recorded_at",
        key: &["device_id", "gpu_index"],
        values: &[
            "gpu_name",
            "sample_count",
            "util_count",
            "sum_util_pct_e6",
            "max_util_pct",
            "max_memory_used_bytes",
            "memory_total_bytes",
            "max_temperature_c",
            "power_count",
            "sum_power_usage_w_e6",
            "throttled_count",
            "first_at",
            "last_at",
        ],
        // 236: power cap, hardware slowdown, both thermal bits and the power brake of NVML's mask.
        select: "SELECT f.device_id, f.gpu_index, max(f.gpu_name), count(*), count(f.gpu_util_pct),
                coalesce(sum(round(f.gpu_util_pct::float8 * 1e6)::bigint), 0)::bigint, max(f.gpu_util_pct),
                max(f.memory_used_bytes), max(f.memory_total_bytes), max(f.temperature_c), count(f.power_usage_w),
                coalesce(sum(round(least(f.power_usage_w, 1e6)::float8 * 1e6)::bigint), 0)::bigint,
                count(*) FILTER (WHERE f.throttle_reasons & 236 <> 0), min(f.recorded_at), max(f.recorded_at)
            FROM {facts} GROUP BY 1, 2",
    },
];

/// What a run computed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RollupReport {
    /// `host:port/database`.
    pub server: String,
    /// Another run is under way; nothing was done.
    pub is_skipped: bool,
    pub rollups: Vec<RolledUp>,
    pub views: Vec<RefreshedView>,
}

/// One table that was brought up to date.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RolledUp {
    pub table: String,
    /// Hours of sites that were computed anew.
    pub hours: i64,
    /// Rows that are new or differ from before.
    pub rows: i64,
    pub took_ms: f32,
}

/// One materialised view that was refreshed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RefreshedView {
    pub view: String,
    /// Rows after it.
    pub rows: i64,
    pub took_ms: f32,
    /// Why it was not; the view holds what it held.
    pub error: Option<String>,
}

impl Rollup {
    /// One statement: find the hours that changed and replace their rows; answers with (hours, rows).
    fn sql(&self, is_full: bool) -> String {
        let Self { name, source, key_time, .. } = self;
        let (key, values) = (self.key.join(", "), self.values.join(", "));
        let since = if is_full {
            "true".to_owned()
        } else {
            format!(
                "s.ingested_at >= coalesce((SELECT rolled_to FROM loupe.rollup_state WHERE rollup_name = '{name}'),
                    '-infinity') - interval '1 hour'"
            )
        };
        let set: Vec<String> = self.values.iter().map(|value| format!("{value} = excluded.{value}")).collect();
        // The lateral sub-select keeps the planner at one index range an hour.
        let facts = format!(
            "(SELECT * FROM loupe.{source} x WHERE x.site_id = d.site_id AND x.{key_time} >= d.hour
                AND x.{key_time} < d.hour + interval '1 hour') f"
        );
        let select = self.select.replace("{facts}", &facts);
        format!(
            "WITH kept AS (
                SELECT coalesce((SELECT date_trunc('hour', now() - make_interval(days => keep_days)) + interval '1 hour'
                    FROM loupe.retention_policies WHERE table_name = '{source}'), '-infinity') AS since
            ), dirty AS MATERIALIZED (
                SELECT DISTINCT s.site_id, date_trunc('hour', s.{key_time}) AS hour
                FROM loupe.{source} s
                WHERE {since} AND s.{key_time} >= (SELECT since FROM kept)
            ), written AS (
                INSERT INTO loupe.{name} AS r (site_id, hour, day, {key}, {values})
                SELECT d.site_id, d.hour, d.hour::date, a.* FROM dirty d CROSS JOIN LATERAL ({select}) a
                ON CONFLICT (site_id, hour, {key}) DO UPDATE SET {set}
                WHERE (r.*) IS DISTINCT FROM (excluded.*)
                RETURNING 1
            )
            SELECT (SELECT count(*) FROM dirty), (SELECT count(*) FROM written)",
            set = set.join(", "),
        )
    }
}

impl Central {
    /// Bring the rollups up to date and refresh the materialised views; `is_full`: all hours whose detail is kept.
    ///
    /// # Errors
    /// When the login does not read every site, or a rollup fails. A view that fails is in the report.
    pub async fn rollup(&mut self, is_full: bool) -> Result<RollupReport, UplinkError> {
        self.check_same_schema().await?;
        self.must_read_all().await?;
        let server = self.server.clone();
        if !self.exists("SELECT pg_try_advisory_lock(hashtext('loupe.rollup'))").await? {
            return Ok(RollupReport { server, is_skipped: true, rollups: Vec::new(), views: Vec::new() });
        }
        let mut rollups = Vec::new();
        for rollup in &ROLLUPS {
            rollups.push(self.roll_up(rollup, is_full).await?);
        }
        let views = self.refresh().await?;
        self.exists("SELECT pg_advisory_unlock(hashtext('loupe.rollup'))").await?;
        Ok(RollupReport { server, is_skipped: false, rollups, views })
    }

    async fn roll_up(&mut self, rollup: &Rollup, is_full: bool) -> Result<RolledUp, UplinkError> {
        let stopwatch = Stopwatch::start();
        let on_statement = UplinkError::statement(&self.server);
        let transaction = self.client.transaction().await.map_err(&on_statement)?;
        transaction
            .batch_execute("SET LOCAL timezone = 'UTC'; SET LOCAL ROLE loupe_owner")
            .await
            .map_err(&on_statement)?;
        let written = transaction.query_typed(&rollup.sql(is_full), &[]).await.map_err(&on_statement)?;
        // now(): the start of this transaction, before its first look.
        let watermark = "INSERT INTO loupe.rollup_state VALUES ($1, now(), clock_timestamp())
            ON CONFLICT (rollup_name) DO UPDATE SET rolled_to = excluded.rolled_to, ran_at = excluded.ran_at";
        transaction.execute_typed(watermark, &[(&rollup.name, Type::TEXT)]).await.map_err(&on_statement)?;
        transaction.commit().await.map_err(&on_statement)?;
        let (hours, rows) = written.first().map_or((0, 0), |row| (row.get(0), row.get(1)));
        Ok(RolledUp { table: rollup.name.to_owned(), hours, rows, took_ms: stopwatch.ms() })
    }

    /// Refresh every materialised view, readers undisturbed.
    async fn refresh(&self) -> Result<Vec<RefreshedView>, UplinkError> {
        let on_statement = UplinkError::statement(&self.server);
        let sql = "SELECT relname::text, quote_ident(relname), relispopulated FROM pg_class
            WHERE relnamespace = 'loupe'::regnamespace AND relkind = 'm' ORDER BY relname";
        let mut refreshed = Vec::new();
        for row in self.client.query_typed(sql, &[]).await.map_err(&on_statement)? {
            let (view, quoted, is_populated): (String, String, bool) = (row.get(0), row.get(1), row.get(2));
            let stopwatch = Stopwatch::start();
            let concurrently = if is_populated { "CONCURRENTLY" } else { "" };
            let outcome =
                self.client.batch_execute(&format!("REFRESH MATERIALIZED VIEW {concurrently} loupe.{quoted}")).await;
            let took_ms = stopwatch.ms();
            let error = outcome.err().map(|source| on_statement(source).to_string());
            let count = format!("SELECT count(*) FROM loupe.{quoted}");
            let rows = self.client.query_typed(&count, &[]).await.map_err(&on_statement)?;
            let rows: i64 = rows.first().map_or(0, |row| row.get(0));
            let log = "INSERT INTO loupe.mv_refresh_log
                VALUES ($1, clock_timestamp() - $2 * interval '1 millisecond', clock_timestamp(), $3, $4)
                ON CONFLICT (view_name) DO UPDATE SET started_at = excluded.started_at,
                    finished_at = excluded.finished_at, row_count = excluded.row_count, error = excluded.error";
            let milliseconds = f64::from(took_ms);
            self.client
                .execute_typed(
                    log,
                    &[(&view, Type::TEXT), (&milliseconds, Type::FLOAT8), (&rows, Type::INT8), (&error, Type::TEXT)],
                )
                .await
                .map_err(&on_statement)?;
            refreshed.push(RefreshedView { view, rows, took_ms, error });
        }
        Ok(refreshed)
    }
}

#[cfg(test)]
mod tests {
    use super::ROLLUPS;

    #[test]
    fn every_rollup_selects_its_key_and_values_from_one_hour() {
        for rollup in &ROLLUPS {
            let sql = rollup.sql(false);
            assert!(!sql.contains("{facts}") && sql.contains("d.hour + interval '1 hour'"), "{sql}");
            assert!(sql.contains("rolled_to") && !rollup.sql(true).contains("rolled_to"), "{sql}");
        }
    }
}
