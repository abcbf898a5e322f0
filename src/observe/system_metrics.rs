//! The machine's gauges. A value that is unknown has no series.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::types::SystemStat;

/// A series without labels, which a family may lack.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NoLabel {}

type Maybe = Family<NoLabel, Gauge<f64, AtomicU64>>;
/// Name, help text and value of a gauge.
type Told = (&'static str, &'static str, fn(&SystemStat) -> Option<f64>);

const GAUGES: [Told; 12] = [
    ("system_cpu_utilization_ratio", "Share of all cores in use since the sample before, 0 to 1", |s| {
        s.cpu_usage_pct.map(|pct| f64::from(pct) / 100.0)
    }),
    ("system_load1", "Runnable processes, mean of a minute", |s| s.load1.map(f64::from)),
    ("system_memory_used_bytes", "Memory of the machine in use", |s| s.memory_used_bytes.map(whole)),
    ("system_memory_total_bytes", "Memory of the machine", |s| s.memory_total_bytes.map(whole)),
    ("process_resident_memory_bytes", "Resident memory of the daemon", |s| s.process_rss_bytes.map(whole)),
    ("process_open_fds", "Files that the daemon has open", |s| s.open_fds.map(whole)),
    ("process_uptime_seconds", "Age of the daemon", |s| s.uptime_s.map(whole)),
    ("disk_used_ratio", "Used share of the file system of the state folder, 0 to 1", |s| {
        s.disk_used_pct.map(|pct| f64::from(pct) / 100.0)
    }),
    ("system_temperature_celsius", "Temperature of the hottest thermal zone", |s| s.temperature_c.map(f64::from)),
    ("system_clock_offset_seconds", "This clock minus true time", |s| {
        s.clock_offset_ms.map(|ms| f64::from(ms) / 1_000.0)
    }),
    ("ledger_commit_p99_seconds", "The ledger's commits since the sample before, 99th percentile", |s| {
        s.fsync_p99_ms.map(|ms| f64::from(ms) / 1_000.0)
    }),
    ("outbox_oldest_seconds", "Age of the oldest unit that waits", |s| s.outbox_oldest_s.map(f64::from)),
];

fn whole(count: i64) -> f64 {
    count as f64
}

/// The gauges of one registry.
#[derive(Debug, Default)]
pub(super) struct SystemGauges([Maybe; GAUGES.len()]);

impl SystemGauges {
    pub fn register(&self, registry: &mut Registry) {
        for ((name, help, _), family) in GAUGES.iter().zip(&self.0) {
            registry.register(*name, *help, family.clone());
        }
    }

    /// The latest sample.
    pub fn set(&self, stat: &SystemStat) {
        for ((_, _, value), family) in GAUGES.iter().zip(&self.0) {
            match value(stat) {
                Some(value) => drop(family.get_or_create(&NoLabel {}).set(value)),
                None => drop(family.remove(&NoLabel {})),
            }
        }
    }
}
