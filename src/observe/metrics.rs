//! Prometheus metrics: names, help texts, buckets and their rendering.
//!
//! The balance of invariant 3 can be read off them: `frames_captured = inspections_decided + frames_refused` plus the
//! frames in flight, and `outbox_committed_units = outbox_delivered_units + outbox_pending_units + outbox_quarantined_units`.
//! The latter are the ledger's own durable totals, set together by [`Metrics::set_ledger`], so a restart doesn't break
//! their balance.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::system_metrics::SystemGauges;
use crate::types::{DiskLevel, GpuStat, SystemStat, Timings, Verdict};

/// What `GET /metrics` answers with.
pub const METRICS_CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Upper bounds of the stage histograms, seconds: half a millisecond (a decision) to ten seconds (a stuck disk), about
/// three a decade, which places a p99 within a factor of 2.5.
pub const STAGE_BUCKETS_S: [f64; 14] =
    [0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0];

type FloatGauge = Gauge<f64, AtomicU64>;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StationLabel {
    station: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VerdictLabels {
    station: String,
    verdict: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusedLabels {
    station: String,
    reason: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StageLabel {
    stage: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct QueueLabel {
    queue: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModelLabels {
    model: String,
    provider: String,
    required: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModelLabel {
    model: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct GpuLabel {
    gpu: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BuildLabel {
    version: &'static str,
}

/// The ledger's durable totals; of units `committed = delivered + pending + quarantined`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LedgerTotals {
    /// Inspections ever committed.
    pub inspections: u64,
    /// Units ever committed: inspections, reviews, feedback and whatever else is delivered one by one.
    pub committed: u64,
    pub delivered: u64,
    pub pending: u64,
    pub quarantined: u64,
}

/// How the uplink stands.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct UplinkGauges {
    /// The central side answered the last attempt.
    pub is_connected: bool,
    /// Age of the oldest inspection not yet delivered, seconds; 0 when none waits.
    pub lag_s: f64,
}

/// Handle to the process's metrics; cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    registry: Registry,
    captured: Family<StationLabel, Counter>,
    decided: Family<VerdictLabels, Counter>,
    refused: Family<RefusedLabels, Counter>,
    dropped: Family<QueueLabel, Counter>,
    queue_depth: Family<QueueLabel, Gauge>,
    inspections: Counter,
    committed: Counter,
    delivered: Counter,
    pending: Gauge,
    quarantined: Gauge,
    stages: Family<StageLabel, Histogram, fn() -> Histogram>,
    provider: Family<ModelLabels, Gauge>,
    fallback: Family<ModelLabel, Gauge>,
    models: ModelFamilies,
    uplink_up: Gauge,
    uplink_lag: FloatGauge,
    disk_free: Gauge,
    disk_level: Gauge,
    gpu: GpuFamilies,
    system: SystemGauges,
}

/// How a model is doing: what [`Metrics::set_model`] is told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ModelGauges {
    pub is_ready: bool,
    pub faults: u64,
    pub rebuilds: u64,
    pub failed_rebuilds: u64,
    /// Runs of a shared session, and the requests they answered.
    pub batches: u64,
    pub requests: u64,
}

#[derive(Debug, Default)]
struct ModelFamilies {
    up: Family<ModelLabel, Gauge>,
    faults: Family<ModelLabel, Counter>,
    rebuilds: Family<ModelLabel, Counter>,
    failed_rebuilds: Family<ModelLabel, Counter>,
    batches: Family<ModelLabel, Counter>,
    requests: Family<ModelLabel, Counter>,
}

#[derive(Debug, Default)]
struct GpuFamilies {
    utilization: Family<GpuLabel, FloatGauge>,
    memory: Family<GpuLabel, Gauge>,
    temperature: Family<GpuLabel, FloatGauge>,
    power: Family<GpuLabel, FloatGauge>,
}

fn stage_histogram() -> Histogram {
    Histogram::new(STAGE_BUCKETS_S)
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    #[must_use]
    pub fn new() -> Self {
        let mut inner = Inner {
            registry: Registry::with_prefix("loupe"),
            captured: Family::default(),
            decided: Family::default(),
            refused: Family::default(),
            dropped: Family::default(),
            queue_depth: Family::default(),
            inspections: Counter::default(),
            committed: Counter::default(),
            delivered: Counter::default(),
            pending: Gauge::default(),
            quarantined: Gauge::default(),
            stages: Family::new_with_constructor(stage_histogram),
            provider: Family::default(),
            fallback: Family::default(),
            models: ModelFamilies::default(),
            uplink_up: Gauge::default(),
            uplink_lag: FloatGauge::default(),
            disk_free: Gauge::default(),
            disk_level: Gauge::default(),
            gpu: GpuFamilies::default(),
            system: SystemGauges::default(),
        };
        inner.register_pipeline();
        inner.register_ledger_and_uplink();
        inner.register_machine();
        Self(Arc::new(inner))
    }

    /// A frame arrived from a source.
    pub fn captured(&self, station: &str) {
        self.0.captured.get_or_create(&StationLabel { station: station.to_owned() }).inc();
    }

    /// A frame got its verdict.
    pub fn decided(&self, station: &str, verdict: Verdict) {
        let labels = VerdictLabels { station: station.to_owned(), verdict: verdict.as_str() };
        self.0.decided.get_or_create(&labels).inc();
    }

    /// `count` frames were refused without a verdict; `reason` is a code of a closed set.
    pub fn refused(&self, station: &str, reason: &str, count: u64) {
        let labels = RefusedLabels { station: station.to_owned(), reason: reason.to_owned() };
        self.0.refused.get_or_create(&labels).inc_by(count);
    }

    /// `count` frames were thrown out of a full queue. They are refused too: count them there as well.
    pub fn dropped(&self, queue: &str, count: u64) {
        self.0.dropped.get_or_create(&QueueLabel { queue: queue.to_owned() }).inc_by(count);
    }

    /// Entries waiting in a queue now.
    pub fn set_queue_depth(&self, queue: &str, depth: usize) {
        let depth = i64::try_from(depth).unwrap_or(i64::MAX);
        self.0.queue_depth.get_or_create(&QueueLabel { queue: queue.to_owned() }).set(depth);
    }

    /// The ledger's totals, all of one moment.
    pub fn set_ledger(&self, totals: LedgerTotals) {
        self.0.inspections.inner().store(totals.inspections, Ordering::Relaxed);
        self.0.committed.inner().store(totals.committed, Ordering::Relaxed);
        self.0.delivered.inner().store(totals.delivered, Ordering::Relaxed);
        self.0.pending.set(i64::try_from(totals.pending).unwrap_or(i64::MAX));
        self.0.quarantined.set(i64::try_from(totals.quarantined).unwrap_or(i64::MAX));
    }

    /// The stages of one inspection; a stage that did not run (0 ms) is not counted.
    pub fn observe_timings(&self, timings: &Timings) {
        let stages = [
            ("decode", timings.decode),
            ("quality", timings.quality),
            ("locate", timings.locate),
            ("embed", timings.embed),
            ("match", timings.matching),
            ("anomaly", timings.anomaly),
            ("decide", timings.decide),
            ("commit", timings.commit),
            ("total", timings.total),
        ];
        for (stage, ms) in stages.into_iter().filter(|&(_, ms)| ms > 0.0) {
            self.0.stages.get_or_create(&StageLabel { stage }).observe(f64::from(ms) / 1_000.0);
        }
    }

    /// Where a model really runs, and where the recipe requires it to (`None` = anywhere).
    pub fn set_provider(&self, model: &str, provider: &str, required: Option<&str>, is_fallback: bool) {
        let labels = ModelLabels {
            model: model.to_owned(),
            provider: provider.to_owned(),
            required: required.unwrap_or("any").to_owned(),
        };
        self.0.provider.get_or_create(&labels).set(1);
        self.0.fallback.get_or_create(&ModelLabel { model: model.to_owned() }).set(i64::from(is_fallback));
    }

    /// How a station's model is doing; the counters are its totals.
    pub fn set_model(&self, model: &str, gauges: ModelGauges) {
        let (families, label) = (&self.0.models, ModelLabel { model: model.to_owned() });
        families.up.get_or_create(&label).set(i64::from(gauges.is_ready));
        for (family, total) in [
            (&families.faults, gauges.faults),
            (&families.rebuilds, gauges.rebuilds),
            (&families.failed_rebuilds, gauges.failed_rebuilds),
            (&families.batches, gauges.batches),
            (&families.requests, gauges.requests),
        ] {
            family.get_or_create(&label).inner().store(total, Ordering::Relaxed);
        }
    }

    pub fn set_uplink(&self, uplink: UplinkGauges) {
        self.0.uplink_up.set(i64::from(uplink.is_connected));
        self.0.uplink_lag.set(uplink.lag_s);
    }

    /// How the disk under the state folder stands.
    pub fn set_disk(&self, free_bytes: u64, level: DiskLevel) {
        self.0.disk_free.set(i64::try_from(free_bytes).unwrap_or(i64::MAX));
        self.0.disk_level.set(match level {
            DiskLevel::Enough => 0,
            DiskLevel::Low => 1,
            DiskLevel::Critical => 2,
        });
    }

    /// The latest sample of each GPU; unknown values leave their series out.
    pub fn set_gpus(&self, stats: &[GpuStat]) {
        let families = &self.0.gpu;
        for stat in stats {
            let label = GpuLabel { gpu: stat.gpu_index };
            if let Some(pct) = stat.gpu_util_pct {
                families.utilization.get_or_create(&label).set(f64::from(pct) / 100.0);
            }
            if let Some(bytes) = stat.memory_used_bytes {
                families.memory.get_or_create(&label).set(bytes);
            }
            if let Some(celsius) = stat.temperature_c {
                families.temperature.get_or_create(&label).set(f64::from(celsius));
            }
            if let Some(watts) = stat.power_usage_w {
                families.power.get_or_create(&label).set(f64::from(watts));
            }
        }
    }

    /// The latest sample of the machine; unknown values have no series.
    pub fn set_system(&self, stat: &SystemStat) {
        self.0.system.set(stat);
    }

    /// All metrics in OpenMetrics text, see [`METRICS_CONTENT_TYPE`].
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = String::with_capacity(8 << 10);
        if prometheus_client::encoding::text::encode(&mut text, &self.0.registry).is_err() {
            // Writing to a string cannot fail; a reader must see a broken scrape rather than half of one.
            text.clear();
            text.write_str("# EOF\n").unwrap_or_default();
        }
        text
    }
}

impl Inner {
    fn register_pipeline(&mut self) {
        let r = &mut self.registry;
        r.register("frames_captured", "Frames that arrived from a source", self.captured.clone());
        r.register("inspections_decided", "Frames that got a verdict", self.decided.clone());
        r.register("frames_refused", "Frames given up without a verdict, by reason", self.refused.clone());
        r.register(
            "frames_dropped",
            "Frames thrown out of a full queue (also counted as refused)",
            self.dropped.clone(),
        );
        r.register("queue_depth", "Entries waiting in a queue", self.queue_depth.clone());
        r.register_with_unit(
            "stage_duration",
            "Time of a stage for one inspection; total runs from arrival to commit",
            Unit::Seconds,
            self.stages.clone(),
        );
        r.register(
            "model_provider_info",
            "Execution provider that runs a model, and the required one",
            self.provider.clone(),
        );
        r.register(
            "model_provider_fallback",
            "1 when a model does not run where its plan wants it first",
            self.fallback.clone(),
        );
        let models = &self.models;
        r.register("model_up", "1 while every session of a station's model can answer", models.up.clone());
        r.register("model_faults", "Times that the device failed under a session of the model", models.faults.clone());
        r.register("model_rebuilds", "Sessions that were opened again after a fault", models.rebuilds.clone());
        r.register(
            "model_rebuild_failures",
            "Attempts to open a session again that failed",
            models.failed_rebuilds.clone(),
        );
        r.register("model_batches", "Runs of the session that workers share", models.batches.clone());
        r.register("model_batched_requests", "Requests that those runs answered", models.requests.clone());
    }

    fn register_ledger_and_uplink(&mut self) {
        let r = &mut self.registry;
        r.register("inspections_committed", "Inspections in the ledger, ever", self.inspections.clone());
        r.register(
            "outbox_committed_units",
            "Inspections, reviews, feedback and all else that is delivered one by one, ever",
            self.committed.clone(),
        );
        r.register("outbox_delivered_units", "Units the central side acknowledged, ever", self.delivered.clone());
        r.register("outbox_pending_units", "Units that wait for the central side", self.pending.clone());
        r.register("outbox_quarantined_units", "Units that a repair set aside", self.quarantined.clone());
        r.register("uplink_up", "1 when the central side answered the last attempt", self.uplink_up.clone());
        r.register_with_unit(
            "uplink_lag",
            "Age of the oldest unit not yet delivered",
            Unit::Seconds,
            self.uplink_lag.clone(),
        );
    }

    fn register_machine(&mut self) {
        let r = &mut self.registry;
        r.register_with_unit("disk_free", "Free space below the state folder", Unit::Bytes, self.disk_free.clone());
        r.register(
            "disk_level",
            "0 enough; 1 low: pictures are shed; 2 critical: nothing is committed, stations hold",
            self.disk_level.clone(),
        );
        r.register("gpu_utilization_ratio", "Share of time a kernel ran, 0 to 1", self.gpu.utilization.clone());
        r.register_with_unit("gpu_memory_used", "GPU memory in use", Unit::Bytes, self.gpu.memory.clone());
        r.register_with_unit("gpu_temperature", "GPU temperature", Unit::Celsius, self.gpu.temperature.clone());
        r.register_with_unit("gpu_power", "GPU power draw", Unit::Other("watts".to_owned()), self.gpu.power.clone());
        self.system.register(r);
        let build: Family<BuildLabel, Gauge> = Family::default();
        build.get_or_create(&BuildLabel { version: env!("CARGO_PKG_VERSION") }).set(1);
        r.register("build_info", "The running version", build);
    }
}

#[cfg(test)]
mod tests {
    use super::{GpuStat, LedgerTotals, Metrics, ModelGauges, SystemStat, Timings, UplinkGauges, Verdict};

    fn check(text: &str, line: &str) {
        assert!(text.lines().any(|l| l == line), "no line `{line}` in:\n{text}");
    }

    #[test]
    fn every_series_of_the_balance_is_rendered() {
        let metrics = Metrics::new();
        let clone = metrics.clone();
        clone.captured("tray");
        clone.captured("tray");
        clone.decided("tray", Verdict::Hold);
        clone.refused("tray", "capture.queue_full", 1);
        metrics.dropped("capture", 1);
        metrics.set_ledger(LedgerTotals { inspections: 5, committed: 8, delivered: 3, pending: 4, quarantined: 1 });
        metrics.set_uplink(UplinkGauges { is_connected: true, lag_s: 2.5 });
        let text = metrics.render();
        check(&text, "loupe_frames_captured_total{station=\"tray\"} 2");
        check(&text, "loupe_inspections_decided_total{station=\"tray\",verdict=\"hold\"} 1");
        check(&text, "loupe_frames_refused_total{station=\"tray\",reason=\"capture.queue_full\"} 1");
        check(&text, "loupe_frames_dropped_total{queue=\"capture\"} 1");
        check(&text, "loupe_inspections_committed_total 5");
        check(&text, "loupe_outbox_committed_units_total 8");
        check(&text, "loupe_outbox_delivered_units_total 3");
        check(&text, "loupe_outbox_pending_units 4");
        check(&text, "loupe_outbox_quarantined_units 1");
        check(&text, "loupe_uplink_lag_seconds 2.5");
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn a_stage_that_did_not_run_is_not_a_zero_in_its_histogram() {
        let metrics = Metrics::new();
        metrics.observe_timings(&Timings { decode: 4.0, total: 30.0, ..Timings::default() });
        let text = metrics.render();
        check(&text, "loupe_stage_duration_seconds_count{stage=\"decode\"} 1");
        check(&text, "loupe_stage_duration_seconds_bucket{le=\"0.005\",stage=\"decode\"} 1");
        check(&text, "loupe_stage_duration_seconds_bucket{le=\"0.002\",stage=\"decode\"} 0");
        assert!(!text.contains("stage=\"anomaly\""));
    }

    #[test]
    fn what_the_machine_does_not_say_any_more_has_no_series() {
        let metrics = Metrics::new();
        let stat = SystemStat { disk_used_pct: Some(25.0), temperature_c: Some(41.5), ..SystemStat::default() };
        metrics.set_system(&stat);
        let text = metrics.render();
        check(&text, "loupe_disk_used_ratio{} 0.25");
        check(&text, "loupe_system_temperature_celsius{} 41.5");
        assert!(!text.contains("loupe_system_load1{}"));
        metrics.set_system(&SystemStat { temperature_c: None, ..stat });
        assert!(!metrics.render().contains("loupe_system_temperature_celsius{}"));
    }

    #[test]
    fn hostile_label_values_are_escaped() {
        let metrics = Metrics::new();
        metrics.captured("a\"b\\c\nd");
        check(&metrics.render(), "loupe_frames_captured_total{station=\"a\\\"b\\\\c\\nd\"} 1");
    }

    #[test]
    fn providers_and_gpus_show_what_is_known_only() {
        let metrics = Metrics::new();
        metrics.set_provider("lite0", "cpu", Some("cuda"), true);
        let gauges = ModelGauges { faults: 2, batches: 3, requests: 12, ..ModelGauges::default() };
        metrics.set_model("belt/embed", gauges);
        metrics.set_gpus(&[GpuStat { gpu_index: 1, gpu_util_pct: Some(50.0), ..GpuStat::default() }]);
        let text = metrics.render();
        check(&text, "loupe_model_provider_info{model=\"lite0\",provider=\"cpu\",required=\"cuda\"} 1");
        check(&text, "loupe_model_provider_fallback{model=\"lite0\"} 1");
        check(&text, "loupe_model_up{model=\"belt/embed\"} 0");
        check(&text, "loupe_model_faults_total{model=\"belt/embed\"} 2");
        check(&text, "loupe_model_batched_requests_total{model=\"belt/embed\"} 12");
        check(&text, "loupe_gpu_utilization_ratio{gpu=\"1\"} 0.5");
        assert!(!text.contains("loupe_gpu_power_watts{"));
    }
}
