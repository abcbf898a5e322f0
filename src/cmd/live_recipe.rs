//! Running stations that take another recipe of the centre, between two frames.
//!
//! The downlink proves a recipe and notes that it is taken; the daemon's main loop then has the station's pipeline open it
//! and exchange it. Where that fails the recipe before it goes on serving, the fault is noted, shown, and told to the
//! centre, and the downlink tries the recipe again a minute later. Thread: the main one.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tracing::{error, info};

use super::board::Board;
use super::central_recipe;
use super::config_record::ConfigRecorder;
use super::late::note_serving;
use crate::config::{Config, Recipe, StationRecipe};
use crate::ledger::{Ledger, LedgerReader, ProvisionNote, RecipeOrigin};
use crate::pipeline::{Pipeline, Recipes, StationStatus};
use crate::uplink::{HearRecipe, RecipeNews};

/// The stations that take their recipes from the centre.
#[derive(Debug)]
pub struct LiveRecipes {
    /// With what their recipes' relative paths are relative to.
    stations: Vec<(String, PathBuf)>,
    has_news: Arc<AtomicBool>,
    ledger: Ledger,
    board: Board,
    recipes: Recipes,
    recorder: ConfigRecorder,
}

impl LiveRecipes {
    /// Recipes are those that reviews learn for; the recorder hears of each that is taken up.
    #[must_use]
    pub fn new(
        config: &Config,
        ledger: &Ledger,
        board: &Board,
        (recipes, recorder): (Recipes, ConfigRecorder),
    ) -> Self {
        let central = config.stations.iter().filter_map(|station| match &station.recipe {
            StationRecipe::Central { folder } => Some((station.name.clone(), folder.clone())),
            StationRecipe::File(_) => None,
        });
        // What came while the daemon stood still, and what was refused before, is looked at once.
        let has_news = Arc::new(AtomicBool::new(true));
        let (ledger, board) = (ledger.clone(), board.clone());
        Self { stations: central.collect(), has_news, ledger, board, recipes, recorder }
    }

    /// Whether there is nothing to look for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.stations.is_empty()
    }

    /// What tells of proved and refused recipes.
    #[must_use]
    pub fn listener(&self) -> HearRecipe {
        let (has_news, board) = (Arc::clone(&self.has_news), self.board.clone());
        Arc::new(move |news| match news {
            RecipeNews::Taken { station } => {
                board.set_notice(&station, None);
                has_news.store(true, Ordering::SeqCst);
            }
            RecipeNews::Refused { station, recipe, fault } => {
                let notice =
                    format!("the centre's recipe {recipe} cannot be used here, the one before it serves: {fault}");
                board.set_notice(&station, Some(notice));
            }
        })
    }

    /// Have the running stations take up what was proved for them since the last call; the statuses of those that did.
    pub fn take_up<'p>(&self, pipelines: impl Iterator<Item = &'p mut Pipeline>) -> Vec<StationStatus> {
        if self.stations.is_empty() || !self.has_news.swap(false, Ordering::SeqCst) {
            return Vec::new();
        }
        let mut pipelines: Vec<&mut Pipeline> = pipelines.collect();
        let mut taken = Vec::new();
        for (station, folder) in &self.stations {
            match self.take_up_one(station, folder, &mut pipelines) {
                Ok(status) => taken.extend(status),
                Err(error) => {
                    error!(station, error = format!("{error:#}"), "the station could not take its new recipe up");
                    // Try again: the ledger may answer the next time.
                    self.has_news.store(true, Ordering::SeqCst);
                }
            }
        }
        taken
    }

    fn take_up_one(
        &self,
        station: &str,
        folder: &std::path::Path,
        pipelines: &mut [&mut Pipeline],
    ) -> anyhow::Result<Option<StationStatus>> {
        let state_dir = self.ledger.state_dir();
        let reader = LedgerReader::open(state_dir)?;
        let Some(noted) = central_recipe::noted(&reader, station)? else { return Ok(None) };
        if let (Some(_), Some(fault)) = (noted.refused_sha256, &noted.refused_error) {
            let notice = format!("the centre's recipe cannot be used here, the one before it serves: {fault}");
            self.board.set_notice(station, Some(notice));
        }
        let Some(sha256) = noted.taken_sha256.filter(|taken| noted.serving_sha256 != Some(*taken)) else {
            return Ok(None);
        };
        let is_running = pipelines.iter().any(|pipeline| pipeline.stations().iter().any(|s| s.name == station));
        if !is_running {
            return Ok(None);
        }
        let body = central_recipe::body_of(state_dir, &reader, sha256)?;
        let opened = body
            .ok_or_else(|| "its file is missing, and the centre has it no more".to_owned())
            .and_then(|body| central_recipe::parse(folder, &body))
            .and_then(|recipe| exchange(station, Arc::new(recipe), pipelines));
        match opened {
            Ok((recipe, status)) => {
                note_serving(&self.ledger, station, &recipe, RecipeOrigin::Central)?;
                info!(
                    station, recipe = recipe.name, version = recipe.version_label, sha256 = %sha256.short(),
                    "the running station took up the centre's recipe"
                );
                self.recorder.takes_up(station, &recipe);
                self.recipes.add(recipe);
                self.board.set_notice(station, None);
                Ok(Some(status))
            }
            Err(fault) => {
                error!(
                    station, sha256 = %sha256.short(), fault,
                    "the centre's recipe cannot be opened; the one before it goes on serving"
                );
                let notice = format!("the centre's recipe cannot be opened, the one before it serves: {fault}");
                self.board.set_notice(station, Some(notice));
                let station = station.to_owned();
                self.ledger.note_provisioning(ProvisionNote::Refused { station, sha256, error: fault })?;
                Ok(None)
            }
        }
    }
}

fn exchange(
    station: &str,
    recipe: Arc<Recipe>,
    pipelines: &mut [&mut Pipeline],
) -> Result<(Arc<Recipe>, StationStatus), String> {
    for pipeline in pipelines {
        if let Some(status) = pipeline.take_up(station, Arc::clone(&recipe)).map_err(|error| error.to_string())? {
            return Ok((recipe, status));
        }
    }
    Err("the station does not run".to_owned())
}
