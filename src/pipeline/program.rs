//! What a station inspects by: one recipe with everything that was opened for it, exchanged between two frames.
//!
//! Each frame is stamped with the program of the moment it was captured in and is inspected by that one whole: recipe,
//! engines, levels and provenance. A worker takes its engines of a program when the program's first frame comes to it and
//! closes those of the one before; frames come in order, so no program comes back.
//!
//! Invariants: a program is complete, and its provenance on disk, before a frame can be stamped with it; a recipe that
//! cannot be opened changes nothing. Thread: made on the caller's, the lock is held for the copy of a pointer.
//! Overload: two programs' engines are open until every worker has had a frame of the newer one.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use tracing::{error, warn};

use super::engines::Engines;
use super::provenance::{Provenances, software_sha256};
use super::switching::Watched;
use super::worker::Station;
use super::{PipelineError, Shared, StationStatus};
use crate::config::{ArtifactPolicy, Recipe};
use crate::inference::Host;
use crate::ledger::{Ledger, LedgerError};
use crate::matching::LiveIndex;
use crate::notify;
use crate::types::QualityLevel;

/// Programs made by this process; the next one's number.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// One recipe of one station, opened.
#[derive(Debug)]
pub struct Program {
    number: u64,
    pub station: Station,
    /// By worker; taken when its first frame comes to it.
    engines: Mutex<Vec<Option<Engines>>>,
}

impl Program {
    /// Unlike that of every other program.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The engines of a worker, once.
    pub fn take_engines(&self, worker: usize) -> Option<Engines> {
        self.engines.lock().unwrap_or_else(PoisonError::into_inner).get_mut(worker)?.take()
    }
}

/// The program of a station's next frame; clones share it.
#[derive(Debug, Clone)]
pub struct Slot(Arc<RwLock<Arc<Program>>>);

impl Slot {
    pub fn new(program: Program) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(program))))
    }

    pub fn current(&self) -> Arc<Program> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// From the next frame on.
    pub fn exchange(&self, program: Program) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(program);
    }
}

/// What a program is made of.
#[derive(Debug)]
pub struct Making<'h> {
    pub recipe: Arc<Recipe>,
    pub artifacts: ArtifactPolicy,
    /// Where each worker's models are opened.
    pub hosts: &'h [Host],
}

/// A program, with what goes with it.
#[derive(Debug)]
pub struct Made {
    pub program: Program,
    pub status: StationStatus,
    /// Its index, where it has one.
    pub watched: Option<Watched>,
}

/// Open everything that the recipe names, once for each worker, and store the provenance.
///
/// # Errors
/// When something cannot be opened or stored.
pub fn make(
    name: &str,
    making: &Making<'_>,
    progress: &notify::Progress,
    shared: &Shared,
) -> Result<Made, PipelineError> {
    let recipe = &making.recipe;
    let index = open_index(name, recipe)?;
    let open = |host| {
        let mut engines = Engines::open(host, recipe, index.clone(), &shared.deltas)
            .map_err(|source| PipelineError::Engine { station: name.to_owned(), source: Box::new(source) })?;
        engines.warm_up();
        Ok(engines)
    };
    let mut engines = making.hosts.iter().map(open).collect::<Result<Vec<Engines>, PipelineError>>()?.into_iter();
    let first = engines.next().ok_or_else(|| PipelineError::NoWorker)?;
    if first.is_fallback {
        warn!(
            station = name,
            "a model does not run on its first choice of provider: every verdict is HOLD until it does"
        );
    }
    let software_sha256 = software_sha256().map_err(PipelineError::Software)?;
    let provenance = first.provenance(recipe, software_sha256);
    let provenance_sha256 = shared.ledger.register_provenance(&provenance.canonical_json())?;
    let provenances = Provenances::new(provenance, provenance_sha256);
    let watched = first.matcher.as_ref().map(|matcher| Watched {
        station: name.to_owned(),
        index: matcher.index.clone(),
        provenances: provenances.clone(),
    });
    let status = StationStatus {
        name: name.to_owned(),
        recipe: recipe.name.clone(),
        providers: first.providers.clone(),
        is_fallback: first.is_fallback,
        health: first.health.clone(),
    };
    let station = Station {
        name: name.to_owned(),
        recipe: Arc::clone(recipe),
        artifacts: making.artifacts,
        progress: progress.clone(),
        quality_levels: Arc::new(levels_for(recipe, &shared.ledger)?),
        provenances,
    };
    let engines = std::iter::once(first).chain(engines).map(Some).collect();
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    Ok(Made { program: Program { number, station, engines: Mutex::new(engines) }, status, watched })
}

/// Levels of the catalogue's parts, where `recipe` asks for one.
fn levels_for(recipe: &Recipe, ledger: &Ledger) -> Result<BTreeMap<String, QualityLevel>, LedgerError> {
    let asks = recipe.matching.as_ref().is_some_and(|stage| stage.min_quality_level.is_some());
    if asks { ledger.quality_levels() } else { Ok(BTreeMap::new()) }
}

/// The recipe's part index; a damaged generation that an older one stands in for is an operator's business.
fn open_index(station: &str, recipe: &Recipe) -> Result<Option<LiveIndex>, PipelineError> {
    let Some(stage) = &recipe.matching else { return Ok(None) };
    let index =
        LiveIndex::open(&stage.index).map_err(|source| PipelineError::Index { station: station.to_owned(), source })?;
    if let Some(quarantined) = index.current().quarantined() {
        error!(
            station, fault = quarantined.fault, %quarantined,
            "the newest index generation is damaged; an older one serves until the index is built again"
        );
    }
    Ok(Some(index))
}
