//! One sample of the machine, as the ledger and the central table `system_stats` keep it.

use serde::{Deserialize, Serialize};

/// Columns of `system_stats` (data model §2.8) without the row's id and time.
///
/// Every field is optional: what this machine does not say must stay missing rather than become 0. Counts that the table
/// keeps as `bigint` are `i64` here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct SystemStat {
    /// Of all cores, since the sample before, 0 to 100.
    pub cpu_usage_pct: Option<f32>,
    /// Runnable processes, mean of a minute.
    pub load1: Option<f32>,
    /// Of the machine, without what can be given back.
    pub memory_used_bytes: Option<i64>,
    pub memory_total_bytes: Option<i64>,
    /// Of the daemon.
    pub process_rss_bytes: Option<i64>,
    /// Of the file system of the state folder, 0 to 100.
    pub disk_used_pct: Option<f32>,
    pub disk_free_bytes: Option<i64>,
    /// Of the daemon.
    pub open_fds: Option<i64>,
    /// Of the hottest thermal zone.
    pub temperature_c: Option<f32>,
    /// Of the ledger's commits since the sample before.
    pub fsync_p99_ms: Option<f32>,
    /// This clock minus true time. Nothing on this machine says it for sure (a kernel that is slewed by chrony shows 0),
    /// so it is not filled in.
    pub clock_offset_ms: Option<f32>,
    /// Of the daemon.
    pub uptime_s: Option<i64>,
    /// Units that wait for the central side.
    pub outbox_pending: Option<i64>,
    /// Age of the oldest of them; 0: none waits.
    pub outbox_oldest_s: Option<f32>,
}
