//! Samples of the accelerators, kept until the central side has them.

use serde::{Deserialize, Serialize};

use crate::types::Timestamp;

/// What NVML said of one GPU at one time; `None` where it does not know.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GpuStat {
    pub recorded_at: Timestamp,
    pub gpu_index: u32,
    pub gpu_name: Option<String>,
    pub gpu_util_pct: Option<f32>,
    pub memory_used_bytes: Option<u64>,
    pub memory_total_bytes: Option<u64>,
    pub temperature_c: Option<f32>,
    pub power_usage_w: Option<f32>,
    pub power_limit_w: Option<f32>,
    pub fan_speed_pct: Option<f32>,
    pub sm_clock_mhz: Option<u32>,
    pub memory_clock_mhz: Option<u32>,
    /// 0 (fastest) to 15.
    pub pstate: Option<u8>,
    /// NVML's 64-bit mask.
    pub throttle_reasons: Option<u64>,
}
