//! Stations that wait for their first recipe from the centre: each begins when one is proved, beside those that run.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tracing::{error, info};

use super::central_recipe;
use super::config_record::ConfigRecorder;
use super::run::taken_before;
use crate::capture::{self, SourceSpec};
use crate::clock::Stopwatch;
use crate::config::{ArtifactPolicy, Recipe};
use crate::ledger::{Ledger, LedgerReader, ProvisionNote, RecipeOrigin};
use crate::notify;
use crate::pipeline::{Outcome, Pipeline, Recipes, Shared, StationInput, StationStatus};

/// Pause between two looks whether a recipe has come.
pub const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Pause after a start that failed.
const RETRY_INTERVAL: Duration = Duration::from_secs(60);

/// A station without a recipe.
#[derive(Debug)]
pub struct Waiting {
    pub name: String,
    /// What the recipe's relative paths are relative to.
    pub folder: PathBuf,
    pub source: SourceSpec,
    pub artifacts: ArtifactPolicy,
    pub progress: notify::Progress,
}

/// The stations that wait, and the pipelines of those that no longer do.
#[derive(Debug, Default)]
pub struct Late {
    waiting: Vec<Waiting>,
    pipelines: Vec<Pipeline>,
    failed: Option<Stopwatch>,
}

impl Late {
    #[must_use]
    pub fn new(waiting: Vec<Waiting>) -> Self {
        Self { waiting, ..Self::default() }
    }

    #[must_use]
    pub fn waiting_count(&self) -> usize {
        self.waiting.len()
    }

    /// How long to wait before [`Late::start_ready`].
    #[must_use]
    pub fn pause(&self) -> Duration {
        if self.waiting.is_empty() { Duration::from_secs(3_600) } else { LOOK_INTERVAL }
    }

    /// Start the stations whose recipe has come; their statuses. A start that fails is said and tried again later.
    pub fn start_ready(
        &mut self,
        shared: &Shared,
        sink: &(impl FnMut(Outcome) + Clone + Send + 'static),
        known: (&Recipes, &ConfigRecorder),
    ) -> Vec<StationStatus> {
        if self.failed.as_ref().is_some_and(|since| since.elapsed() < RETRY_INTERVAL) {
            return Vec::new();
        }
        self.failed = None;
        let mut started = Vec::new();
        for waiting in std::mem::take(&mut self.waiting) {
            match start(&waiting, shared, sink.clone(), known) {
                Ok(Some(pipeline)) => {
                    started.extend(pipeline.stations().iter().cloned());
                    self.pipelines.push(pipeline);
                }
                Ok(None) => self.waiting.push(waiting),
                Err(error) => {
                    error!(station = waiting.name, error = format!("{error:#}"), "the station could not begin");
                    self.failed = Some(Stopwatch::start());
                    self.waiting.push(waiting);
                }
            }
        }
        started
    }

    /// The pipelines of those that began.
    pub fn pipelines(&mut self) -> impl Iterator<Item = &mut Pipeline> {
        self.pipelines.iter_mut()
    }

    /// Wait until every frame's outcome is known, after a stop was requested.
    pub fn join(self) {
        self.pipelines.into_iter().for_each(Pipeline::join);
    }
}

fn start(
    waiting: &Waiting,
    shared: &Shared,
    sink: impl FnMut(Outcome) + Send + 'static,
    (recipes, recorder): (&Recipes, &ConfigRecorder),
) -> anyhow::Result<Option<Pipeline>> {
    // A cheap look first: proving opens every model.
    let noted = LedgerReader::open(shared.ledger.state_dir())?.station_recipes()?;
    if !noted.iter().any(|noted| noted.station == waiting.name && noted.taken_sha256.is_some()) {
        return Ok(None);
    }
    let recipe = central_recipe::at_start(&shared.runtime, &shared.ledger, &waiting.name, &waiting.folder)?;
    let recipe = Arc::new(recipe.context("the recipe that was taken cannot be used any more")?);
    let taken = taken_before(&shared.ledger, &waiting.name, &waiting.source)?;
    let source = capture::open_source(&waiting.source, taken, shared.clock.clone(), &shared.shutdown)?;
    let input = StationInput {
        name: waiting.name.clone(),
        recipe: Arc::clone(&recipe),
        source,
        artifacts: waiting.artifacts,
        progress: waiting.progress.clone(),
    };
    let pipeline = Pipeline::start(vec![input], shared, sink)?;
    note_serving(&shared.ledger, &waiting.name, &recipe, RecipeOrigin::Central)?;
    recorder.takes_up(&waiting.name, &recipe);
    recipes.add(Arc::clone(&recipe));
    info!(station = waiting.name, recipe = recipe.name, "the station begins: its recipe has come from the centre");
    Ok(Some(pipeline))
}

/// Note which recipe `station` runs by from now on.
///
/// # Errors
/// When it could not be committed.
pub fn note_serving(ledger: &Ledger, station: &str, recipe: &Recipe, origin: RecipeOrigin) -> anyhow::Result<()> {
    let (station, sha256, name) = (station.to_owned(), recipe.sha256, recipe.name.clone());
    Ok(ledger.note_provisioning(ProvisionNote::Serving { station, sha256, name, origin })?)
}
