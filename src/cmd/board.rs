//! The running service's counters, as the dashboard and the metrics show them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tracing::warn;

use crate::clock::{Clock, Stopwatch};
use crate::dashboard::{self, ModelRun, Snapshot, StationNote, UplinkView};
use crate::inference::ModelHealth;
use crate::ledger::{Counters, Ledger};
use crate::observe::{LedgerTotals, Metrics, ModelGauges, UplinkGauges};
use crate::pipeline::{Outcome, Progress, StationStatus};
use crate::uplink::{UplinkState, UplinkStatus};

/// Counts what the pipeline says and caches what the ledger says; cheap to clone, never blocks on the disk when read.
#[derive(Debug, Clone)]
pub struct Board(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    metrics: Metrics,
    progress: Progress,
    ledger: Ledger,
    clock: Clock,
    started: Stopwatch,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    decided: u64,
    refused: BTreeMap<String, u64>,
    counters: Counters,
    providers: Vec<ModelRun>,
    /// Of `providers`, in their order.
    health: Vec<ModelHealth>,
    /// By station.
    stations: BTreeMap<String, StationNote>,
    uplink: Option<UplinkStatus>,
    /// Finished frames at the last refresh and the rate since the one before.
    finished: u64,
    frames_per_second: f32,
    /// Age of the oldest inspection not yet delivered, seconds.
    lag_s: f64,
}

/// Weight of the newest second in the shown frame rate: settles within about five seconds.
const RATE_WEIGHT: f32 = 0.3;

impl Board {
    #[must_use]
    pub fn new(progress: Progress, ledger: Ledger, clock: Clock) -> Self {
        let state = Mutex::new(State::default());
        Self(Arc::new(Inner { metrics: Metrics::new(), progress, ledger, clock, started: Stopwatch::start(), state }))
    }

    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// What really runs the stations' models.
    pub fn set_stations(&self, stations: &[StationStatus]) {
        let (mut providers, mut healths) = (Vec::new(), Vec::new());
        for station in stations {
            for (stage, provider) in &station.providers {
                let model = format!("{}/{stage}", station.name);
                self.0.metrics.set_provider(&model, provider.as_str(), None, station.is_fallback);
                providers.push(ModelRun {
                    model,
                    provider: provider.to_string(),
                    required: None,
                    is_fallback: station.is_fallback,
                    fault: None,
                });
                healths.push(station.health.get(stage).cloned().unwrap_or_default());
            }
        }
        let mut state = self.lock();
        (state.providers, state.health) = (providers, healths);
        for station in stations {
            state.stations.entry(station.name.clone()).or_default().recipe = Some(station.recipe.clone());
        }
    }

    /// What an operator is to know of a station; `None`: nothing any more.
    pub fn set_notice(&self, station: &str, notice: Option<String>) {
        self.lock().stations.entry(station.to_owned()).or_default().notice = notice;
    }

    pub fn set_uplink(&self, status: UplinkStatus) {
        self.lock().uplink = Some(status);
    }

    /// Count one outcome.
    pub fn note(&self, outcome: &Outcome) {
        let metrics = &self.0.metrics;
        let mut state = self.lock();
        match outcome {
            Outcome::Committed(inspection) => {
                state.decided += 1;
                metrics.captured(&inspection.station);
                metrics.decided(&inspection.station, inspection.verdict);
                metrics.observe_timings(&inspection.timings_ms);
            }
            Outcome::Unstored { inspection, .. } => {
                metrics.captured(&inspection.station);
                refuse(&mut state, metrics, &inspection.station, crate::types::Reason::LedgerUnavailable.code());
            }
            Outcome::Refused { station, reason, .. } => {
                metrics.captured(station);
                refuse(&mut state, metrics, station, reason.code());
            }
        }
    }

    /// Ask the ledger for its totals; called once a second from a thread that may wait for the disk.
    pub fn refresh(&self) {
        match self.0.ledger.outbox_status() {
            Ok(status) => {
                let counters = status.counters;
                self.0.metrics.set_ledger(LedgerTotals {
                    inspections: counters.captured.saturating_sub(counters.refused),
                    committed: counters.committed,
                    delivered: counters.delivered,
                    pending: counters.pending,
                    quarantined: counters.quarantined,
                });
                let mut state = self.lock();
                state.lag_s = status.oldest_at.map_or(0.0, |at| self.0.clock.now().ms_since(at).max(0.0) / 1_000.0);
                state.counters = counters;
            }
            Err(error) => warn!(error = %error, "the ledger's totals could not be read"),
        }
        let finished = self.0.progress.finished();
        let mut state = self.lock();
        self.refresh_models(&mut state);
        let rate = finished.saturating_sub(state.finished) as f32;
        state.frames_per_second += RATE_WEIGHT * (rate - state.frames_per_second);
        state.finished = finished;
        if let Some(uplink) = &state.uplink {
            let is_connected = matches!(uplink.get(), UplinkState::Connected { .. });
            self.0.metrics.set_uplink(UplinkGauges { is_connected, lag_s: state.lag_s });
        }
    }

    /// What the models say of themselves; they are not asked to run.
    fn refresh_models(&self, state: &mut State) {
        for (run, health) in state.providers.iter_mut().zip(&state.health) {
            let (batches, requests) = health.batches();
            let is_ready = health.is_ready();
            run.fault = (!is_ready).then(|| health.last_fault());
            let gauges = ModelGauges {
                is_ready,
                faults: health.faults(),
                rebuilds: health.rebuilds(),
                failed_rebuilds: health.failed_attempts(),
                batches,
                requests,
            };
            self.0.metrics.set_model(&run.model, gauges);
        }
    }

    /// Frames finished a second, smoothed.
    #[must_use]
    pub fn frames_per_second(&self) -> f32 {
        self.lock().frames_per_second
    }

    /// Units that wait for the central side, and the age of the oldest, seconds.
    #[must_use]
    pub fn backlog(&self) -> (u64, f32) {
        let state = self.lock();
        #[expect(clippy::cast_possible_truncation, reason = "an age needs no more than seven digits")]
        let oldest_s = state.lag_s as f32;
        (state.counters.pending, oldest_s)
    }

    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let state = self.lock();
        Snapshot {
            captured: self.0.progress.captured(),
            decided: state.decided,
            refused: state.refused.clone(),
            dropped: 0,
            committed: state.counters.committed,
            delivered: state.counters.delivered,
            pending: state.counters.pending,
            quarantined: state.counters.quarantined,
            uplink: state.uplink.as_ref().map(|status| view(&status.get(), state.lag_s)).unwrap_or_default(),
            providers: state.providers.clone(),
            stations: state.stations.clone(),
            frames_per_second: f64::from(state.frames_per_second),
            uptime: self.0.started.elapsed(),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn refuse(state: &mut State, metrics: &Metrics, station: &str, reason: &str) {
    *state.refused.entry(reason.to_owned()).or_default() += 1;
    metrics.refused(station, reason, 1);
}

/// The uplink's state in words.
fn view(state: &UplinkState, lag_s: f64) -> UplinkView {
    use dashboard::UplinkState as Shown;
    let (shown, text) = match state {
        UplinkState::Connecting => (Shown::Retrying, "connecting".to_owned()),
        UplinkState::Connected { last_delivered_at: None } => (Shown::Connected, "connected".to_owned()),
        UplinkState::Connected { last_delivered_at: Some(at) } => (Shown::Connected, format!("last delivery {at}")),
        UplinkState::Waiting { error, retry_at } => (Shown::Retrying, format!("{error}; next attempt {retry_at}")),
        UplinkState::Stopped => (Shown::Retrying, "stopped".to_owned()),
    };
    UplinkView { state: shown, text, lag_s }
}
