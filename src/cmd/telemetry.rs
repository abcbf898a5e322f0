//! The telemetry thread of `loupe run`: the ledger's totals for the board, samples of the machine and of its GPUs.

use std::thread::JoinHandle;
use std::time::Duration;

use tracing::{info, warn};

use super::board::Board;
use crate::clock::Clock;
use crate::config::Config;
use crate::ledger::Ledger;
use crate::observe::{GpuSampler, SystemSampler};
use crate::shutdown::Shutdown;

/// Samples, and where they go.
struct Telemetry {
    board: Board,
    ledger: Ledger,
    clock: Clock,
    gpus: Option<GpuSampler>,
    machine: SystemSampler,
}

/// Once a second the ledger's totals for the board; at the configured intervals a sample of the machine and of each GPU.
///
/// # Errors
/// When the thread cannot be started.
pub fn start(
    config: &Config,
    board: &Board,
    ledger: &Ledger,
    clock: &Clock,
    stop: &Shutdown,
) -> std::io::Result<JoinHandle<()>> {
    let (gpu_interval_s, system_interval_s) = (config.gpu_interval_s, config.system_interval_s);
    let (board, ledger, clock, stop) = (board.clone(), ledger.clone(), clock.clone(), stop.clone());
    let machine = SystemSampler::new(&config.storage.state_dir);
    std::thread::Builder::new().name("loupe-telemetry".to_owned()).spawn(move || {
        let gpus = match GpuSampler::open() {
            Ok(sampler) => Some(sampler),
            Err(error) => {
                info!("{error}");
                None
            }
        };
        let mut telemetry = Telemetry { board, ledger, clock, gpus, machine };
        let mut second: u32 = 0;
        loop {
            telemetry.board.refresh();
            if second.is_multiple_of(gpu_interval_s) {
                telemetry.sample_gpus();
            }
            if second.is_multiple_of(system_interval_s) {
                telemetry.sample_machine();
            }
            second = second.wrapping_add(1);
            if stop.wait_timeout(Duration::from_secs(1)) {
                return;
            }
        }
    })
}

impl Telemetry {
    fn sample_gpus(&self) {
        let Some(sampler) = &self.gpus else { return };
        let mut samples = sampler.sample();
        let inference_rate_hz = Some(self.board.frames_per_second());
        samples.iter_mut().for_each(|sample| sample.inference_rate_hz = inference_rate_hz);
        self.board.metrics().set_gpus(&samples);
        if let Err(error) = self.ledger.record_gpu_stats(self.clock.now(), samples) {
            warn!(error = %error, "a GPU sample was not stored");
        }
    }

    fn sample_machine(&mut self) {
        let mut sample = self.machine.sample();
        let (pending, oldest_s) = self.board.backlog();
        sample.outbox_pending = i64::try_from(pending).ok();
        sample.outbox_oldest_s = Some(oldest_s);
        sample.fsync_p99_ms = self.ledger.take_commit_p99_ms();
        self.board.metrics().set_system(&sample);
        if let Err(error) = self.ledger.record_system_stat(self.clock.now(), sample) {
            warn!(error = %error, "a sample of the machine was not stored");
        }
    }
}
