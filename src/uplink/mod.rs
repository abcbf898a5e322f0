//! The uplink: from the ledger's outbox to the central PostgreSQL, exactly once in effect.
//!
//! Thread "loupe-uplink" with a single-threaded Tokio runtime, and "loupe-uplink-pack", which reads the ledger. It looks
//! once a second; on an error it waits 1 s to 5 min, longer each time, jittered, and a stop ends any wait. Overload: what
//! is not sent stays in the ledger; nothing is held in memory but three batches: one at the server, one being packed, one
//! being acknowledged. After a time-out batches are halved. This is the only room that names PostgreSQL.

mod audit;
mod batch;
mod central;
mod compare;
mod courier;
mod downlink;
mod dsn;
mod error;
mod holds;
mod migrations;
mod packer;
mod pipeline;
mod provision;
mod publish;
mod push;
mod reports;
mod retention;
mod rollup;
mod secret;
mod tls;

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::Serialize;
use tracing::{error, info, warn};
use uuid::Uuid;

pub use audit::{AuditBreak, AuditReport, BreakKind, ChainEnd, ChainReport, FactFault, FactReport};
pub use central::{Central, server_of};
pub use compare::{Comparison, compare};
pub use courier::{Courier, Delivery};
pub use downlink::{Downlink, DownlinkConfig, FitOrder, HearRecipe, KeepFit, Prove, Pulled, RecipeNews};
pub use error::UplinkError;
pub use holds::LegalHold;
pub use migrations::{MigrationReport, MigrationState, SchemaStatus};
pub use provision::{ProvisionedSite, RevokedSite};
pub use publish::{NewRecipe, PUBLISHED_KINDS, Published, SiteState};
pub use push::{Pushed, push};
pub use retention::{RetentionReport, RetentionStep, StepKind};
pub use rollup::{RefreshedView, RolledUp, RollupReport};
pub use secret::Secret;

use crate::clock::Clock;
use crate::ledger::{Ledger, LedgerError};
use crate::limits;
use crate::shutdown::Shutdown;
use crate::types::Timestamp;

/// One packs, one waits for the ledger's disk, one looks a host name up.
const BLOCKING_THREADS: usize = 3;
/// How often a delivery under way asks whether to stop.
const STOP_INTERVAL: Duration = Duration::from_millis(100);

/// Where to send, and as whom.
#[derive(Debug, Clone)]
pub struct UplinkConfig {
    pub dsn: Secret,
    /// The site; `None` where the login is bound to one.
    pub site_id: Option<Uuid>,
}

/// What the uplink is doing, for the dashboard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum UplinkState {
    Connecting,
    Connected { last_delivered_at: Option<Timestamp> },
    Waiting { error: String, retry_at: Timestamp },
    Stopped,
}

/// A look at the uplink's state from outside its thread; cheap to clone.
#[derive(Debug, Clone)]
pub struct UplinkStatus(Arc<Mutex<UplinkState>>);

impl UplinkStatus {
    #[must_use]
    pub fn get(&self) -> UplinkState {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The uplink's thread; ends after its [`Shutdown`] was requested.
#[derive(Debug)]
pub struct Uplink {
    thread: JoinHandle<()>,
    state: Arc<Mutex<UplinkState>>,
}

impl Uplink {
    /// Start delivering what `ledger` holds.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn spawn(ledger: Ledger, config: UplinkConfig, clock: Clock, shutdown: Shutdown) -> std::io::Result<Self> {
        Self::spawn_with_downlink(ledger, config, None, clock, shutdown)
    }

    /// As [`Uplink::spawn`]; after the deliveries it also fetches what the centre wants of this device.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn spawn_with_downlink(
        ledger: Ledger,
        config: UplinkConfig,
        downlink: Option<DownlinkConfig>,
        clock: Clock,
        shutdown: Shutdown,
    ) -> std::io::Result<Self> {
        let downlink = downlink.map(Downlink::new);
        let state = Arc::new(Mutex::new(UplinkState::Connecting));
        let runtime = runtime()?;
        let units_max = limits::UPLINK_UNITS_MAX;
        let state_cell = Arc::clone(&state);
        let worker = Worker { ledger, config, clock, shutdown, state: state_cell, courier: None, units_max, downlink };
        let thread = std::thread::Builder::new()
            .name("loupe-uplink".to_owned())
            .spawn(move || runtime.block_on(worker.run()))?;
        Ok(Self { thread, state })
    }

    #[must_use]
    pub fn status(&self) -> UplinkStatus {
        UplinkStatus(Arc::clone(&self.state))
    }

    /// Wait for the end of the thread, which follows a request to stop within about a tenth of a second.
    pub fn join(self) {
        if self.thread.join().is_err() {
            error!("the uplink panicked; what it did not deliver stays in the ledger");
        }
    }
}

/// Connect, deliver everything that waits now, and return: what `loupe outbox drain` does.
///
/// # Errors
/// As [`Courier::connect`] and [`Courier::deliver_all`].
pub fn drain(ledger: Ledger, config: &UplinkConfig, progress: impl FnMut(&Delivery)) -> Result<Delivery, UplinkError> {
    block_on(async {
        let mut courier = Courier::connect(ledger, &config.dsn, config.site_id).await?;
        courier.deliver_all(progress).await
    })
}

/// Connect, take in everything that the centre wants of this device, and return: what `loupe provisioning pull` does.
/// Stations take up their recipes when the daemon starts.
///
/// # Errors
/// When the server refuses, or the ledger fails.
pub fn pull(ledger: Ledger, config: &UplinkConfig) -> Result<Pulled, UplinkError> {
    block_on(async {
        let mut courier = Courier::connect(ledger.clone(), &config.dsn, config.site_id).await?;
        let (central, reader, site_id) = courier.for_downlink();
        let pulled = downlink::pull(central, &ledger, reader, site_id).await?;
        ledger.note_provisioning(crate::ledger::ProvisionNote::Pulled { error: None })?;
        Ok(pulled)
    })
}

/// Ask the central database whether it answers: `host:port/database`.
///
/// # Errors
/// When the DSN is wrong or the server refuses.
pub fn probe(dsn: &Secret) -> Result<String, UplinkError> {
    block_on(async { Central::connect(dsn).await.map(|central| central.server().to_owned()) })
}

/// Run one piece of central work on this thread.
///
/// # Errors
/// Those of the work, or of making a runtime.
pub fn block_on<T>(work: impl Future<Output = Result<T, UplinkError>>) -> Result<T, UplinkError> {
    let runtime = runtime().map_err(|error| UplinkError::Provision { detail: format!("no runtime: {error}") })?;
    runtime.block_on(work)
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_name("loupe-uplink-pack")
        .max_blocking_threads(BLOCKING_THREADS)
        .build()
}

struct Worker {
    ledger: Ledger,
    config: UplinkConfig,
    clock: Clock,
    shutdown: Shutdown,
    state: Arc<Mutex<UplinkState>>,
    courier: Option<Courier>,
    /// Units of a batch: halved after a time-out, doubled after a success.
    units_max: usize,
    downlink: Option<Downlink>,
}

impl Worker {
    async fn run(mut self) {
        let mut failures = 0_u32;
        while !self.shutdown.is_requested() {
            let shutdown = self.shutdown.clone();
            let outcome = tokio::select! {
                outcome = self.deliver() => outcome,
                () = stop_requested(&shutdown) => break,
            };
            let pause = match outcome {
                Ok(()) => {
                    failures = 0;
                    self.units_max = self.units_max.saturating_mul(2).min(limits::UPLINK_UNITS_MAX);
                    limits::UPLINK_BATCH_AGE_MAX
                }
                Err(UplinkError::Ledger(LedgerError::Stopped)) => break,
                Err(error) => {
                    self.courier = None;
                    crate::failpoint::hit("uplink.reconnect");
                    if matches!(error, UplinkError::Timeout { .. }) {
                        self.units_max = (self.units_max / 2).max(1);
                    }
                    let pause = backoff(failures, fastrand::f64());
                    failures = failures.saturating_add(1);
                    warn!(%error, retry_in_s = pause.as_secs_f32(), "nothing was delivered");
                    let pause_us = i64::try_from(pause.as_micros()).unwrap_or(i64::MAX);
                    let retry_at = Timestamp::from_micros(self.clock.now().as_micros().saturating_add(pause_us));
                    self.set_state(UplinkState::Waiting { error: error.to_string(), retry_at });
                    pause
                }
            };
            if self.shutdown.wait_timeout(pause) {
                break;
            }
        }
        self.set_state(UplinkState::Stopped);
    }

    async fn deliver(&mut self) -> Result<(), UplinkError> {
        let courier = match &mut self.courier {
            Some(courier) => courier,
            none => {
                let ledger = self.ledger.clone();
                let courier = Courier::connect(ledger, &self.config.dsn, self.config.site_id).await?;
                info!("connected to the central database");
                set(&self.state, UplinkState::Connected { last_delivered_at: None });
                none.insert(courier)
            }
        };
        courier.limit_units(self.units_max);
        let delivery = courier.deliver_all(|_| ()).await?;
        if delivery.delivered > 0 {
            info!(delivered = delivery.delivered, parked = delivery.parked, "delivered");
            set(&self.state, UplinkState::Connected { last_delivered_at: Some(self.clock.now()) });
        }
        if let Some(downlink) = &mut self.downlink {
            let (central, reader, site_id) = courier.for_downlink();
            downlink.look(central, &self.ledger, reader, site_id).await?;
        }
        Ok(())
    }

    fn set_state(&self, state: UplinkState) {
        set(&self.state, state);
    }
}

fn set(cell: &Mutex<UplinkState>, state: UplinkState) {
    *cell.lock().unwrap_or_else(PoisonError::into_inner) = state;
}

async fn stop_requested(shutdown: &Shutdown) {
    while !shutdown.is_requested() {
        tokio::time::sleep(STOP_INTERVAL).await;
    }
}

/// The pause after `failures` earlier ones: doubling, between half of it and all of it by `jitter` (0 to 1).
fn backoff(failures: u32, jitter: f64) -> Duration {
    let doubled = limits::UPLINK_BACKOFF_MIN.saturating_mul(2_u32.saturating_pow(failures.min(16)));
    doubled.min(limits::UPLINK_BACKOFF_MAX).mul_f64(0.5 + jitter / 2.0).max(limits::UPLINK_BACKOFF_MIN)
}

#[cfg(test)]
mod tests {
    use super::backoff;
    use crate::limits;

    #[test]
    fn pauses_grow_to_five_minutes_and_stay_there() {
        assert_eq!(backoff(0, 0.0), limits::UPLINK_BACKOFF_MIN);
        assert!(backoff(3, 0.5) < backoff(5, 0.5));
        for failures in 0..100 {
            for jitter in [0.0, 0.3, 0.999] {
                let pause = backoff(failures, jitter);
                assert!(pause >= limits::UPLINK_BACKOFF_MIN && pause <= limits::UPLINK_BACKOFF_MAX, "{pause:?}");
            }
        }
    }
}
