//! From a decision to what the world may see of it: only what the ledger holds.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crossbeam_channel::Receiver;
use tracing::error;

use super::Progress;
use super::worker::{Product, Station};
use crate::clock::Stopwatch;
use crate::failpoint;
use crate::ledger::{Ledger, Pending};
use crate::types::{Inspection, Reason, Verdict};

/// What became of one frame.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// Decided and on disk.
    Committed(Arc<Inspection>),
    /// Decided, but the ledger could not store it: whatever was decided, it is a HOLD.
    Unstored { inspection: Arc<Inspection>, message: String },
    /// Not an inspection; counted.
    Refused { station: String, source: String, reason: Reason },
}

/// One frame's place in line.
pub(super) struct Produced {
    pub station_index: usize,
    pub position: u64,
    pub source: String,
    pub step: Step,
}

/// How far a frame came in its worker.
pub(super) enum Step {
    Submitted {
        pending: Pending,
        inspection: Box<Inspection>,
        watch: Stopwatch,
    },
    Refused(Reason),
    NotSubmitted {
        inspection: Box<Inspection>,
        message: String,
    },
    /// The worker's code failed on this frame.
    Crashed,
}

/// Hand a product to the ledger without waiting for its disk.
pub(super) fn submit(ledger: &Ledger, product: Option<Product>, arrived: Stopwatch) -> Step {
    match product {
        None => Step::Crashed,
        Some(Product::Ignored { reason }) => Step::Refused(reason),
        Some(Product::Decided { mut inspection, artifacts, watched }) => {
            let watch = Stopwatch::start();
            inspection.timings_ms.total = arrived.ms();
            failpoint::hit("pipeline.decided");
            match ledger.submit_watched((*inspection).clone(), artifacts, watched) {
                Ok(pending) => {
                    failpoint::hit("pipeline.submitted");
                    Step::Submitted { pending, inspection, watch }
                }
                Err(error) => Step::NotSubmitted { inspection, message: error.to_string() },
            }
        }
    }
}

/// Wait for commits and hand outcomes to `sink`, in the order of each station's frames.
pub(super) fn run(
    products: &Receiver<Produced>,
    ledger: &Ledger,
    progress: &Progress,
    stations: &[Station],
    mut sink: impl FnMut(Outcome),
) {
    let mut next: Vec<u64> = vec![0; stations.len()];
    let mut waiting: BTreeMap<(usize, u64), Produced> = BTreeMap::new();
    while let Ok(produced) = products.recv() {
        let station_index = produced.station_index;
        waiting.insert((station_index, produced.position), produced);
        while let Some(produced) = waiting.remove(&(station_index, next[station_index])) {
            next[station_index] += 1;
            let outcome = finish(produced, ledger, &stations[station_index]);
            sink(outcome);
            stations[station_index].progress.advance();
            let finished = progress.0.finished.fetch_add(1, Ordering::SeqCst) + 1;
            rest(stations, || finished >= progress.captured());
        }
    }
}

/// Nothing under way is no stall: silence then means that no frame came.
fn rest(stations: &[Station], is_idle: impl Fn() -> bool) {
    if !is_idle() {
        return;
    }
    stations.iter().for_each(|station| station.progress.set_idle(true));
    // A frame captured meanwhile ends the rest again.
    if !is_idle() {
        stations.iter().for_each(|station| station.progress.set_idle(false));
    }
}

fn finish(produced: Produced, ledger: &Ledger, station: &Station) -> Outcome {
    let Produced { source, step, .. } = produced;
    match step {
        Step::Submitted { pending, inspection, watch } => match pending.wait() {
            Ok(mut committed) => {
                failpoint::hit("pipeline.committed");
                committed.timings_ms.commit = watch.ms();
                committed.timings_ms.total = inspection.timings_ms.total + watch.ms();
                Outcome::Committed(Arc::new(committed))
            }
            Err(error) => unstored(ledger, *inspection, error.to_string()),
        },
        Step::NotSubmitted { inspection, message } => unstored(ledger, *inspection, message),
        Step::Refused(reason) => refuse(ledger, station, source, reason),
        Step::Crashed => {
            error!(station = station.name, source, "inspecting this frame crashed; it was not inspected");
            refuse(ledger, station, source, Reason::ModelError)
        }
    }
}

fn refuse(ledger: &Ledger, station: &Station, source: String, reason: Reason) -> Outcome {
    if let Err(error) = ledger.refused(&station.name, reason, 1) {
        error!(station = station.name, error = %error, "a refused frame could not be counted");
    }
    Outcome::Refused { station: station.name.clone(), source, reason }
}

fn unstored(ledger: &Ledger, mut inspection: Inspection, message: String) -> Outcome {
    error!(
        station = inspection.station,
        source = inspection.source,
        error = message,
        "inspection held: it could not be stored"
    );
    inspection.verdict = Verdict::Hold;
    if !inspection.reasons.contains(&Reason::LedgerUnavailable) {
        inspection.reasons.insert(0, Reason::LedgerUnavailable);
    }
    // The ledger may be able to count what it could not store; if not, the log has it.
    if let Err(error) = ledger.refused(&inspection.station, Reason::LedgerUnavailable, 1) {
        error!(station = inspection.station, error = %error, "an unstored inspection could not be counted");
    }
    Outcome::Unstored { inspection: Arc::new(inspection), message }
}
