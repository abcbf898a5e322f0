//! What the daemon says about itself: Prometheus metrics, samples of the machine and its GPUs, the log.
//!
//! Nothing here decides anything: the pipeline and the ledger count, this room renders. A [`Metrics`] handle is cheap
//! to clone and never blocks on I/O, so any thread may hold one; label values come from closed sets (stations of the
//! config, verdicts, reason codes, stages), which bounds the number of time series.

mod gpu;
pub mod log;
mod metrics;
mod system;
mod system_metrics;

pub use gpu::{GpuError, GpuSampler};
pub use metrics::{LedgerTotals, METRICS_CONTENT_TYPE, Metrics, ModelGauges, STAGE_BUCKETS_S, UplinkGauges};
pub use system::SystemSampler;
