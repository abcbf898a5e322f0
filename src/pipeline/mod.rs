//! Station threads and bounded queues between capture and the ledger.
//!
//! ```text
//! capture-<station> ─jobs─► worker-0..n ─products─► publish ─► sink
//!                   (≤ 8)        │         (≤ 64)      │
//!                                └── ledger.submit ────┘ waits for the commit
//! ```
//!
//! Each worker owns a set of engines for every station and carries a frame from bytes to decision, so that the cores
//! are busy; stations of a worker share its sessions, and workers share one where a model is batched. The publisher waits for each commit and hands outcomes to the sink in the
//! order of each station's frames: nothing is shown that is not on disk.
//!
//! A running station takes another recipe between two frames: see `program.rs`.
//!
//! Overload: file input waits (a full queue blocks capture), so no frame of a file is ever dropped.

mod artifacts;
mod decoded;
mod engines;
mod history;
mod housekeeping;
mod identify;
mod program;
mod provenance;
mod publish;
mod review;
mod switching;
mod worker;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded};
use tracing::{error, info};

pub use engines::{EngineError, Engines};
pub use housekeeping::Housekeeping;
pub use provenance::{Provenance, Provenances, software_sha256};
pub use publish::Outcome;
pub use review::{Recipes, ReviewError, Reviewer};
pub use worker::criteria;

use crate::capture::FrameSource;
use crate::clock::{Clock, Stopwatch};
use crate::config::{ArtifactPolicy, Recipe};
use crate::failpoint;
use crate::inference::{Host, ModelHealth, ModelPool, Runtime};
use crate::ledger::{Ledger, LedgerError};
use crate::limits::{CAPTURE_QUEUE_FRAMES, LEDGER_QUEUE_INSPECTIONS};
use crate::matching::{Deltas, MatchError};
use crate::notify;
use crate::shutdown::Shutdown;
use crate::types::Provider;
use history::History;
use program::{Making, Slot};
use publish::Produced;
use switching::Switching;
use worker::Job;

/// Why the pipeline cannot start.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    #[error("station {station}: {source}")]
    Engine { station: String, source: Box<EngineError> },
    #[error("station {station}: part index: {source}")]
    Index { station: String, source: MatchError },
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error("part index: {0}")]
    Generation(#[from] MatchError),
    #[error("cannot start thread {name}: {source}")]
    Thread { name: String, source: std::io::Error },
    #[error("the pipeline has no worker")]
    NoWorker,
    #[error("the program's own file cannot be read for its digest: {0}")]
    Software(std::io::Error),
}

/// One station as the composition root hands it over.
pub struct StationInput {
    pub name: String,
    pub recipe: Arc<Recipe>,
    pub source: Box<dyn FrameSource + Send>,
    pub artifacts: ArtifactPolicy,
    /// The station's sign of life for watchdog and health check.
    pub progress: notify::Progress,
}

impl std::fmt::Debug for StationInput {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "StationInput({})", self.name)
    }
}

/// What every thread of the pipeline shares.
#[derive(Debug, Clone)]
pub struct Shared {
    pub runtime: Arc<Runtime>,
    /// Where the workers open their models.
    pub models: ModelPool,
    pub ledger: Ledger,
    pub clock: Clock,
    pub shutdown: Shutdown,
    pub progress: Progress,
    /// What was learned since the indexes were built; filled from the ledger when the pipeline starts.
    pub deltas: Deltas,
    /// 0 = one a core.
    pub workers: usize,
}

/// The whole pipeline's counters; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Progress(Arc<ProgressCounters>);

#[derive(Debug, Default)]
struct ProgressCounters {
    captured: AtomicU64,
    finished: AtomicU64,
    session_us: AtomicU64,
}

impl Progress {
    /// Frames taken from the sources.
    #[must_use]
    pub fn captured(&self) -> u64 {
        self.0.captured.load(Ordering::Relaxed)
    }

    /// Frames whose outcome is known.
    #[must_use]
    pub fn finished(&self) -> u64 {
        self.0.finished.load(Ordering::Relaxed)
    }

    fn add_session_ms(&self, ms: f64) {
        let session_us = (ms * 1_000.0).max(0.0);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "microseconds of one frame, ≥ 0")]
        self.0.session_us.fetch_add(session_us as u64, Ordering::Relaxed);
    }

    /// Milliseconds inside ONNX Runtime, summed over the workers.
    #[must_use]
    pub fn session_ms(&self) -> f64 {
        self.0.session_us.load(Ordering::Relaxed) as f64 / 1_000.0
    }
}

/// What a station runs with, for the dashboard.
#[derive(Debug, Clone)]
pub struct StationStatus {
    pub name: String,
    pub recipe: String,
    pub providers: BTreeMap<String, Provider>,
    pub is_fallback: bool,
    /// By stage, how its model is doing.
    pub health: BTreeMap<String, ModelHealth>,
}

/// The running pipeline.
#[derive(Debug)]
pub struct Pipeline {
    capture: Vec<JoinHandle<()>>,
    workers: Vec<JoinHandle<()>>,
    publisher: JoinHandle<()>,
    switching: Switching,
    stations: Vec<StationStatus>,
    /// One a station.
    slots: Vec<Slot>,
    /// One a worker.
    hosts: Vec<Host>,
    shared: Shared,
}

impl Pipeline {
    /// Open all engines, then start capture, workers and publisher. Returns when every model, index and bank is open.
    ///
    /// # Errors
    /// When a station's engines cannot be opened or a thread cannot be started.
    pub fn start(
        inputs: Vec<StationInput>,
        shared: &Shared,
        sink: impl FnMut(Outcome) + Send + 'static,
    ) -> Result<Pipeline, PipelineError> {
        let hosts: Vec<Host> = (0..worker_count(shared)).map(|_| shared.models.worker()).collect();
        shared.deltas.replace(shared.ledger.learned_templates()?);
        let (mut slots, mut stations, mut watched, mut statuses) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for input in &inputs {
            let making = Making { recipe: Arc::clone(&input.recipe), artifacts: input.artifacts, hosts: &hosts };
            let made = program::make(&input.name, &making, &input.progress, shared)?;
            stations.push(made.program.station.clone());
            slots.push(Slot::new(made.program));
            watched.extend(made.watched);
            statuses.push(made.status);
        }
        let stations = Arc::new(stations);
        let histories: Arc<Vec<History>> = Arc::new(inputs.iter().map(|_| History::default()).collect());
        let (job_sender, jobs) = bounded::<Job>(CAPTURE_QUEUE_FRAMES);
        let (product_sender, products) = bounded::<Produced>(LEDGER_QUEUE_INSPECTIONS);

        let mut worker_threads = Vec::with_capacity(hosts.len());
        for number in 0..hosts.len() {
            let worker = Worker {
                number,
                histories: Arc::clone(&histories),
                engines: slots.iter().map(|_| None).collect(),
                shared: shared.clone(),
                jobs: jobs.clone(),
                products: product_sender.clone(),
            };
            worker_threads.push(spawn(format!("worker-{number}"), move || worker.run())?);
        }
        drop((jobs, product_sender));
        let publisher = {
            let (ledger, progress, names) = (shared.ledger.clone(), shared.progress.clone(), Arc::clone(&stations));
            spawn("publish".to_owned(), move || publish::run(&products, &ledger, &progress, &names, sink))?
        };
        let mut capture = Vec::with_capacity(inputs.len());
        for (station_index, input) in inputs.into_iter().enumerate() {
            let (shared, jobs) = (shared.clone(), job_sender.clone());
            let Some(slot) = slots.get(station_index).cloned() else { continue };
            capture.push(spawn(format!("capture-{}", input.name), move || {
                run_capture(station_index, input, &slot, &shared, &jobs)
            })?);
        }
        let switching = Switching::start(watched, shared.ledger.clone())?;
        let shared = shared.clone();
        Ok(Pipeline {
            capture,
            workers: worker_threads,
            publisher,
            switching,
            stations: statuses,
            slots,
            hosts,
            shared,
        })
    }

    /// Have `station` inspect by `recipe` from its next frame on: everything it names is opened first, its provenance
    /// stored, then the frames after this moment are its. `None`: the station is not of this pipeline.
    ///
    /// # Errors
    /// When something cannot be opened or stored; the recipe before it goes on serving.
    pub fn take_up(&mut self, station: &str, recipe: Arc<Recipe>) -> Result<Option<StationStatus>, PipelineError> {
        let found = self.slots.iter().zip(&mut self.stations).find(|(_, status)| status.name == station);
        let Some((slot, status)) = found else { return Ok(None) };
        let before = slot.current();
        let making = Making { recipe, artifacts: before.station.artifacts, hosts: &self.hosts };
        let made = program::make(station, &making, &before.station.progress, &self.shared)?;
        made.watched.iter().for_each(|watched| watched.index.current().warm());
        failpoint::hit("pipeline.recipe.opened");
        self.switching.watch(station, made.watched)?;
        slot.exchange(made.program);
        failpoint::hit("pipeline.recipe.taken");
        status.clone_from(&made.status);
        Ok(Some(made.status))
    }

    /// The stations with what really runs them.
    #[must_use]
    pub fn stations(&self) -> &[StationStatus] {
        &self.stations
    }

    /// Wait until the sources have ended (or a stop was requested) and every frame's outcome is known.
    pub fn join(self) {
        for thread in self.capture.into_iter().chain(self.workers).chain([self.publisher]) {
            let name = thread.thread().name().unwrap_or("unnamed").to_owned();
            if thread.join().is_err() {
                error!(thread = name, "a pipeline thread died; its frames were not inspected");
            }
        }
        self.switching.stop();
    }
}

/// Workers of a pipeline.
fn worker_count(shared: &Shared) -> usize {
    match shared.workers {
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        workers => workers,
    }
}

fn spawn(name: String, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, PipelineError> {
    // Linux shows 15 bytes of a thread's name.
    std::thread::Builder::new().name(name.clone()).spawn(body).map_err(|source| PipelineError::Thread { name, source })
}

/// Take frames from one source until it ends or a stop is requested.
fn run_capture(station_index: usize, input: StationInput, slot: &Slot, shared: &Shared, jobs: &Sender<Job>) {
    let StationInput { name, mut source, progress, .. } = input;
    let mut position = 0;
    while !shared.shutdown.is_requested() {
        let frame = match source.next() {
            Ok(Some(frame)) => frame,
            Ok(None) => {
                info!(station = name, frames = position, "source ended");
                return;
            }
            Err(error) => {
                error!(station = name, error = %error, "source failed: this station inspects nothing more");
                return;
            }
        };
        shared.progress.0.captured.fetch_add(1, Ordering::SeqCst);
        progress.set_idle(false);
        let job = Job { station_index, position, frame, program: slot.current(), arrived: Stopwatch::start() };
        if jobs.send(job).is_err() {
            return;
        }
        position += 1;
    }
}

struct Worker {
    number: usize,
    histories: Arc<Vec<History>>,
    /// One a station, opened for the program of this number; taken when its first frame comes.
    engines: Vec<Option<(u64, Engines)>>,
    shared: Shared,
    jobs: Receiver<Job>,
    products: Sender<Produced>,
}

impl Worker {
    fn run(mut self) {
        crate::matching::faiss::set_threads(1);
        let clock = self.shared.clock.clone();
        while let Ok(job) = self.jobs.recv() {
            let (station_index, position) = (job.station_index, job.position);
            let program = Arc::clone(&job.program);
            let (source, arrived) = (job.frame.source.clone(), job.arrived);
            let history = self.histories.get(station_index).cloned();
            let product = match (self.engines_for(station_index, &program), history) {
                (Some(engines), Some(history)) => {
                    let session_ms_before = engines.session_ms();
                    let inspect = || worker::inspect(&program.station, engines, &history, &clock, job);
                    let product = catch_unwind(AssertUnwindSafe(inspect)).ok();
                    let session_ms = self.session_ms(station_index) - session_ms_before;
                    self.shared.progress.add_session_ms(session_ms);
                    product
                }
                _ => {
                    error!(station = program.station.name, "no engines are open for this frame");
                    None
                }
            };
            let step = publish::submit(&self.shared.ledger, product, arrived);
            if self.products.send(Produced { station_index, position, source, step }).is_err() {
                return;
            }
        }
    }

    /// This worker's engines for `program`; those of the program before it are closed.
    fn engines_for(&mut self, station_index: usize, program: &program::Program) -> Option<&mut Engines> {
        let slot = self.engines.get_mut(station_index)?;
        if slot.as_ref().is_none_or(|(number, _)| *number != program.number()) {
            *slot = None;
            *slot = program.take_engines(self.number).map(|engines| (program.number(), engines));
        }
        slot.as_mut().map(|(_, engines)| engines)
    }

    fn session_ms(&self, station_index: usize) -> f64 {
        self.engines.get(station_index).and_then(Option::as_ref).map_or(0.0, |(_, engines)| engines.session_ms())
    }
}
