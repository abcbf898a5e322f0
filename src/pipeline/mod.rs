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
//! Overload: file input waits (a full queue blocks capture), so no frame of a file is ever dropped.

mod artifacts;
mod engines;
mod history;
mod housekeeping;
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
use tracing::{error, info, warn};

pub use engines::{EngineError, Engines};
pub use housekeeping::Housekeeping;
pub use provenance::{Provenance, Provenances, software_sha256};
pub use publish::Outcome;
pub use review::{ReviewError, Reviewer};
pub use worker::criteria;

use crate::capture::FrameSource;
use crate::clock::{Clock, Stopwatch};
use crate::config::{ArtifactPolicy, Recipe};
use crate::inference::{Host, ModelHealth, ModelPool, Runtime};
use crate::ledger::{Ledger, LedgerError};
use crate::limits::{CAPTURE_QUEUE_FRAMES, LEDGER_QUEUE_INSPECTIONS};
use crate::matching::{Deltas, LiveIndex, MatchError};
use crate::notify;
use crate::shutdown::Shutdown;
use crate::types::{Provider, QualityLevel};
use history::History;
use publish::Produced;
use switching::{Switching, Watched};
use worker::{Job, Station};

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
        let workers = match shared.workers {
            0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            workers => workers,
        };
        let Opened { sets: mut engine_sets, statuses, stations, watched } = open_engines(&inputs, shared, workers)?;
        let stations = Arc::new(stations);
        let histories: Arc<Vec<History>> = Arc::new(inputs.iter().map(|_| History::default()).collect());
        let (job_sender, jobs) = bounded::<Job>(CAPTURE_QUEUE_FRAMES);
        let (product_sender, products) = bounded::<Produced>(LEDGER_QUEUE_INSPECTIONS);

        let mut worker_threads = Vec::with_capacity(workers);
        for number in 0..workers {
            let engines = engine_sets.pop().unwrap_or_default();
            let worker = Worker {
                stations: Arc::clone(&stations),
                histories: Arc::clone(&histories),
                engines,
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
            capture.push(spawn(format!("capture-{}", input.name), move || {
                run_capture(station_index, input, &shared, &jobs)
            })?);
        }
        let switching = Switching::start(watched, shared.ledger.clone())?;
        Ok(Pipeline { capture, workers: worker_threads, publisher, switching, stations: statuses })
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

type EngineSets = Vec<Vec<Engines>>;

/// What [`open_engines`] opened.
struct Opened {
    sets: EngineSets,
    statuses: Vec<StationStatus>,
    stations: Vec<Station>,
    watched: Vec<Watched>,
}

/// One set of engines a worker, the stations' statuses and what the workers need to know of the stations.
fn open_engines(inputs: &[StationInput], shared: &Shared, workers: usize) -> Result<Opened, PipelineError> {
    let software_sha256 = software_sha256().map_err(PipelineError::Software)?;
    let hosts: Vec<Host> = (0..workers).map(|_| shared.models.worker()).collect();
    let mut sets: EngineSets = (0..workers).map(|_| Vec::new()).collect();
    let (mut statuses, mut stations, mut watched) = (Vec::new(), Vec::new(), Vec::new());
    shared.deltas.replace(shared.ledger.learned_templates()?);
    for input in inputs {
        let index = open_index(input)?;
        for (set, host) in sets.iter_mut().zip(&hosts) {
            let mut engines = Engines::open(host, &input.recipe, index.clone(), &shared.deltas)
                .map_err(|source| PipelineError::Engine { station: input.name.clone(), source: Box::new(source) })?;
            engines.warm_up();
            set.push(engines);
        }
        let Some(engines) = sets.first().and_then(|set| set.last()) else { continue };
        if engines.is_fallback {
            warn!(
                station = input.name,
                "a model does not run on its first choice of provider: every verdict is HOLD until it does"
            );
        }
        let provenance = engines.provenance(&input.recipe, software_sha256);
        let provenance_sha256 = shared.ledger.register_provenance(&provenance.canonical_json())?;
        let provenances = Provenances::new(provenance, provenance_sha256);
        stations.push(Station {
            name: input.name.clone(),
            recipe: Arc::clone(&input.recipe),
            artifacts: input.artifacts,
            progress: input.progress.clone(),
            quality_levels: Arc::new(levels_for(&input.recipe, &shared.ledger)?),
            provenances: provenances.clone(),
        });
        if let Some(matcher) = &engines.matcher {
            watched.push(Watched { station: input.name.clone(), index: matcher.index.clone(), provenances });
        }
        statuses.push(StationStatus {
            name: input.name.clone(),
            recipe: input.recipe.name.clone(),
            providers: engines.providers.clone(),
            is_fallback: engines.is_fallback,
            health: engines.health.clone(),
        });
    }
    Ok(Opened { sets, statuses, stations, watched })
}

/// Levels of the catalogue's parts, where `recipe` asks for one.
fn levels_for(recipe: &Recipe, ledger: &Ledger) -> Result<BTreeMap<String, QualityLevel>, LedgerError> {
    let asks = recipe.matching.as_ref().is_some_and(|stage| stage.min_quality_level.is_some());
    if asks { ledger.quality_levels() } else { Ok(BTreeMap::new()) }
}

/// The station's part index; a damaged generation that an older one stands in for is an operator's business.
fn open_index(input: &StationInput) -> Result<Option<LiveIndex>, PipelineError> {
    let Some(stage) = &input.recipe.matching else { return Ok(None) };
    let index =
        LiveIndex::open(&stage.index).map_err(|source| PipelineError::Index { station: input.name.clone(), source })?;
    if let Some(quarantined) = index.current().quarantined() {
        error!(
            station = input.name, fault = quarantined.fault, %quarantined,
            "the newest index generation is damaged; an older one serves until the index is built again"
        );
    }
    Ok(Some(index))
}

fn spawn(name: String, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, PipelineError> {
    // Linux shows 15 bytes of a thread's name.
    std::thread::Builder::new().name(name.clone()).spawn(body).map_err(|source| PipelineError::Thread { name, source })
}

/// Take frames from one source until it ends or a stop is requested.
fn run_capture(station_index: usize, input: StationInput, shared: &Shared, jobs: &Sender<Job>) {
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
        let job = Job { station_index, position, frame, arrived: Stopwatch::start() };
        if jobs.send(job).is_err() {
            return;
        }
        position += 1;
    }
}

struct Worker {
    stations: Arc<Vec<Station>>,
    histories: Arc<Vec<History>>,
    /// One a station.
    engines: Vec<Engines>,
    shared: Shared,
    jobs: Receiver<Job>,
    products: Sender<Produced>,
}

impl Worker {
    fn run(mut self) {
        crate::matching::faiss::set_threads(1);
        while let Ok(job) = self.jobs.recv() {
            let (station_index, position) = (job.station_index, job.position);
            let (Some(station), Some(engines), Some(history)) = (
                self.stations.get(station_index),
                self.engines.get_mut(station_index),
                self.histories.get(station_index),
            ) else {
                error!(station_index, "a frame of an unknown station was dropped");
                continue;
            };
            let (source, arrived) = (job.frame.source.clone(), job.arrived);
            let session_ms_before = engines.session_ms();
            let clock = &self.shared.clock;
            let product = catch_unwind(AssertUnwindSafe(|| worker::inspect(station, engines, history, clock, job)));
            let session_us = ((engines.session_ms() - session_ms_before) * 1_000.0).max(0.0);
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "microseconds of one frame, ≥ 0"
            )]
            self.shared.progress.0.session_us.fetch_add(session_us as u64, Ordering::Relaxed);
            let step = publish::submit(&self.shared.ledger, product.ok(), arrived);
            if self.products.send(Produced { station_index, position, source, step }).is_err() {
                return;
            }
        }
    }
}
