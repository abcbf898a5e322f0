//! One sample of one GPU, as the ledger and the central table `gpu_stats` keep it.

use serde::{Deserialize, Serialize};

/// Columns of `gpu_stats` (data model §2.8) without the row's id and time.
///
/// Every measured field is optional: NVML answers "not supported" for many of them, depending on the board, and a
/// missing value must stay missing rather than become 0. Counts that the table keeps as `bigint` are `i64` here.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct GpuStat {
    /// NVML's index, from 0.
    pub gpu_index: u32,
    pub gpu_name: Option<String>,
    /// Share of the last sample period in which a kernel ran, 0 to 100.
    pub gpu_util_pct: Option<f32>,
    pub memory_used_bytes: Option<i64>,
    pub memory_total_bytes: Option<i64>,
    pub temperature_c: Option<f32>,
    pub power_usage_w: Option<f32>,
    /// Inferences a second; NVML doesn't know it, the pipeline fills it in.
    pub inference_rate_hz: Option<f32>,
    /// 0 to 100 of the fan's maximum; passively cooled boards have none.
    pub fan_speed_pct: Option<f32>,
    pub sm_clock_mhz: Option<u32>,
    /// Share of the last sample period in which memory was read or written, 0 to 100.
    pub memory_bandwidth_util_pct: Option<f32>,
    /// Performance state, 0 (fastest) to 15.
    pub pstate: Option<u32>,
    /// NVML's 64-bit mask of reasons why the clocks are held back; the sign bit is a bit like the others.
    pub throttle_reasons: Option<i64>,
    /// The limit that is enforced now.
    pub power_limit_w: Option<f32>,
    pub sm_clock_max_mhz: Option<u32>,
    pub compute_processes_count: Option<u32>,
    pub pcie_replay_counter: Option<i64>,
    pub temp_slowdown_threshold_c: Option<f32>,
    pub memory_clock_mhz: Option<u32>,
    pub memory_clock_max_mhz: Option<u32>,
    pub pcie_link_gen: Option<u32>,
    pub pcie_link_width: Option<u32>,
    pub pcie_tx_kb_s: Option<u32>,
    pub pcie_rx_kb_s: Option<u32>,
    /// 0 to 100.
    pub encoder_util_pct: Option<f32>,
    /// 0 to 100.
    pub decoder_util_pct: Option<f32>,
    pub bar1_used_bytes: Option<i64>,
}

#[cfg(test)]
mod tests {
    use super::GpuStat;

    #[test]
    fn unknown_values_stay_null_and_names_are_the_columns() {
        let json = serde_json::to_value(GpuStat { gpu_index: 0, ..GpuStat::default() }).unwrap();
        let fields = json.as_object().unwrap();
        assert_eq!(fields.len(), 27, "the 29 columns of the data model without id and recorded_at");
        assert_eq!(fields["gpu_index"], 0);
        assert!(fields.iter().filter(|(name, _)| *name != "gpu_index").all(|(_, value)| value.is_null()));
    }
}
