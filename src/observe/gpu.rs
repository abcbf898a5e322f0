//! NVIDIA GPUs, sampled through NVML.
//!
//! The library is loaded when it is there: a machine without NVIDIA's driver is normal, [`GpuSampler::open`] then says
//! so once at info level and the caller goes on without samples. Call [`GpuSampler::sample`] from a telemetry thread,
//! not from a station: the two PCIe counters alone make NVML wait about 20 ms each.

use nvml_wrapper::Device;
use nvml_wrapper::Nvml;
use nvml_wrapper::enum_wrappers::device::{Clock, PcieUtilCounter, TemperatureSensor, TemperatureThreshold};
use nvml_wrapper::error::{Bits, NvmlError};

use crate::types::GpuStat;

/// Why GPUs cannot be sampled.
#[derive(Debug, thiserror::Error)]
pub enum GpuError {
    #[error("no NVIDIA driver library found (libnvidia-ml.so); GPU telemetry stays off, install the driver to have it")]
    NoDriver,
    #[error("NVIDIA's driver library is here but does not answer: {source}; check `nvidia-smi` and the device files")]
    Driver { source: NvmlError },
}

/// Reads the GPUs of this machine.
#[derive(Debug)]
pub struct GpuSampler {
    nvml: Nvml,
}

impl GpuSampler {
    /// Load NVML and connect to the driver. Logs one line at info level when there is no driver; a driver that does
    /// not answer is left to the caller to report.
    ///
    /// # Errors
    /// [`GpuError::NoDriver`] on a machine without the driver's library, [`GpuError::Driver`] when it refuses.
    pub fn open() -> Result<Self, GpuError> {
        match Nvml::init() {
            Ok(nvml) => Ok(Self { nvml }),
            Err(NvmlError::LibloadingError(_) | NvmlError::LibraryNotFound) => {
                tracing::info!("{}", GpuError::NoDriver);
                Err(GpuError::NoDriver)
            }
            Err(source) => Err(GpuError::Driver { source }),
        }
    }

    /// One sample of each GPU; a GPU that has fallen off the bus is left out, a value NVML doesn't know is `None`.
    #[must_use]
    pub fn sample(&self) -> Vec<GpuStat> {
        let count = self.nvml.device_count().unwrap_or(0);
        (0..count).filter_map(|index| self.nvml.device_by_index(index).ok().map(|gpu| stat_of(index, &gpu))).collect()
    }
}

fn stat_of(index: u32, gpu: &Device<'_>) -> GpuStat {
    let utilization = gpu.utilization_rates().ok();
    let memory = gpu.memory_info().ok();
    GpuStat {
        gpu_index: index,
        gpu_name: gpu.name().ok(),
        gpu_util_pct: utilization.as_ref().map(|u| u.gpu as f32),
        memory_used_bytes: memory.as_ref().and_then(|m| i64::try_from(m.used).ok()),
        memory_total_bytes: memory.as_ref().and_then(|m| i64::try_from(m.total).ok()),
        temperature_c: gpu.temperature(TemperatureSensor::Gpu).ok().map(|c| c as f32),
        power_usage_w: gpu.power_usage().ok().map(watts),
        inference_rate_hz: None,
        fan_speed_pct: gpu.fan_speed(0).ok().map(|pct| pct as f32),
        sm_clock_mhz: gpu.clock_info(Clock::SM).ok(),
        memory_bandwidth_util_pct: utilization.as_ref().map(|u| u.memory as f32),
        pstate: gpu.performance_state().ok().map(|state| state.as_c()).filter(|&state| state <= 15),
        throttle_reasons: throttle_mask(gpu),
        power_limit_w: gpu.enforced_power_limit().ok().map(watts),
        sm_clock_max_mhz: gpu.max_clock_info(Clock::SM).ok(),
        compute_processes_count: gpu.running_compute_processes_count().ok(),
        pcie_replay_counter: gpu.pcie_replay_counter().ok().map(i64::from),
        temp_slowdown_threshold_c: gpu.temperature_threshold(TemperatureThreshold::Slowdown).ok().map(|c| c as f32),
        memory_clock_mhz: gpu.clock_info(Clock::Memory).ok(),
        memory_clock_max_mhz: gpu.max_clock_info(Clock::Memory).ok(),
        pcie_link_gen: gpu.current_pcie_link_gen().ok(),
        pcie_link_width: gpu.current_pcie_link_width().ok(),
        pcie_tx_kb_s: gpu.pcie_throughput(PcieUtilCounter::Send).ok(),
        pcie_rx_kb_s: gpu.pcie_throughput(PcieUtilCounter::Receive).ok(),
        encoder_util_pct: gpu.encoder_utilization().ok().map(|u| u.utilization as f32),
        decoder_util_pct: gpu.decoder_utilization().ok().map(|u| u.utilization as f32),
        bar1_used_bytes: gpu.bar1_memory_info().ok().and_then(|bar| i64::try_from(bar.used).ok()),
    }
}

/// NVML counts milliwatts.
fn watts(milliwatts: u32) -> f32 {
    milliwatts as f32 / 1_000.0
}

/// The whole mask, with bits that a newer driver has and the binding doesn't name.
fn throttle_mask(gpu: &Device<'_>) -> Option<i64> {
    match gpu.current_throttle_reasons_strict() {
        Ok(reasons) => Some(reasons.bits().cast_signed()),
        Err(NvmlError::IncorrectBits(Bits::U64(mask))) => Some(mask.cast_signed()),
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{GpuError, GpuSampler, watts};

    #[test]
    fn a_machine_without_the_driver_gets_a_sentence_and_one_with_it_a_plausible_sample() {
        match GpuSampler::open() {
            Err(GpuError::NoDriver) => {
                eprintln!("skipped: {}", GpuError::NoDriver);
                assert!(GpuError::NoDriver.to_string().contains("install the driver"));
            }
            Err(error) => assert!(error.to_string().contains("nvidia-smi"), "{error}"),
            Ok(sampler) => {
                for stat in sampler.sample() {
                    assert!(stat.memory_used_bytes.zip(stat.memory_total_bytes).is_none_or(|(used, all)| used <= all));
                    assert!(stat.gpu_util_pct.is_none_or(|pct| (0.0..=100.0).contains(&pct)), "{stat:?}");
                }
            }
        }
    }

    #[test]
    fn milliwatts_become_watts() {
        assert!((watts(71_500) - 71.5).abs() < f32::EPSILON);
    }
}
