//! The running service's counters, as the dashboard and the metrics show them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tracing::warn;

use crate::clock::Stopwatch;
use crate::dashboard::{ModelRun, Snapshot};
use crate::ledger::{Counters, Ledger};
use crate::observe::{LedgerTotals, Metrics, UplinkGauges};
use crate::pipeline::{Outcome, Progress, StationStatus};
use crate::uplink::UplinkStatus;

/// Counts what the pipeline says and caches what the ledger says; cheap to clone, never blocks on the disk when read.
#[derive(Debug, Clone)]
pub struct Board(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    metrics: Metrics,
    progress: Progress,
    ledger: Ledger,
    started: Stopwatch,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    decided: u64,
    refused: BTreeMap<String, u64>,
    counters: Counters,
    providers: Vec<ModelRun>,
    uplink: Option<UplinkStatus>,
    /// Finished frames at the last refresh and the rate since the one before.
    finished: u64,
    frames_per_second: f64,
    captured_seen: u64,
}

/// Weight of the newest second in the shown frame rate: settles within about five seconds.
const RATE_WEIGHT: f64 = 0.3;

impl Board {
    #[must_use]
    pub fn new(progress: Progress, ledger: Ledger) -> Self {
        let state = Mutex::new(State::default());
        Self(Arc::new(Inner { metrics: Metrics::new(), progress, ledger, started: Stopwatch::start(), state }))
    }

    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// What really runs the stations' models.
    pub fn set_stations(&self, stations: &[StationStatus]) {
        let mut providers = Vec::new();
        for station in stations {
            for (stage, provider) in &station.providers {
                let model = format!("{}/{stage}", station.name);
                self.0.metrics.set_provider(&model, provider.as_str(), None, station.is_fallback);
                providers.push(ModelRun {
                    model,
                    provider: provider.to_string(),
                    required: None,
                    is_fallback: station.is_fallback,
                });
            }
        }
        self.lock().providers = providers;
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
        match self.0.ledger.counters() {
            Ok(counters) => {
                self.0.metrics.set_ledger(LedgerTotals {
                    committed: counters.committed,
                    delivered: counters.delivered,
                    pending: counters.pending,
                });
                self.lock().counters = counters;
            }
            Err(error) => warn!(error = %error, "the ledger's totals could not be read"),
        }
        let finished = self.0.progress.finished();
        let mut state = self.lock();
        let rate = finished.saturating_sub(state.finished) as f64;
        state.frames_per_second += RATE_WEIGHT * (rate - state.frames_per_second);
        state.finished = finished;
        state.captured_seen = self.0.progress.captured();
        if let Some(uplink) = &state.uplink {
            let view = uplink.view();
            self.0.metrics.set_uplink(UplinkGauges { is_connected: uplink.is_connected(), lag_s: view.lag_s });
        }
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
            uplink: state.uplink.as_ref().map(UplinkStatus::view).unwrap_or_default(),
            providers: state.providers.clone(),
            frames_per_second: state.frames_per_second,
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
