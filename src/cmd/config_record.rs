//! Keeping the history of the configuration: what the daemon works by is compared at each start, and whenever a station
//! takes another recipe.
//!
//! A history that cannot be written is no reason not to inspect: it is said, and the next comparison finds the
//! difference still there. Thread: the main one; clones share the recipes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tracing::{info, warn};

use crate::config::{Config, Recipe, RunningRecipe, effective};
use crate::ledger::{Ledger, RecipeOrigin};
use crate::types::{ConfigRecord, ConfigSource};

/// Who is named where the centre's recipe is what changed.
const CENTRE: &str = "centre";

/// By station, with where the recipe came from.
type Running = BTreeMap<String, (Arc<Recipe>, RecipeOrigin)>;

/// The configuration, and the recipes that its stations run.
#[derive(Debug, Clone)]
pub struct ConfigRecorder {
    ledger: Ledger,
    config: Arc<Config>,
    running: Arc<Mutex<Running>>,
}

impl ConfigRecorder {
    #[must_use]
    pub fn new(config: &Arc<Config>, ledger: &Ledger) -> Self {
        Self { ledger: ledger.clone(), config: Arc::clone(config), running: Arc::default() }
    }

    /// `station` runs `recipe`; not recorded yet.
    pub fn runs(&self, station: &str, recipe: &Arc<Recipe>, origin: RecipeOrigin) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.insert(station.to_owned(), (Arc::clone(recipe), origin));
    }

    /// Record what the daemon starts with.
    pub fn record_start(&self) {
        self.record(self.compose());
    }

    /// `station` has taken up `recipe`, which came from the centre: record it.
    pub fn takes_up(&self, station: &str, recipe: &Arc<Recipe>) {
        self.runs(station, recipe, RecipeOrigin::Central);
        let version = match recipe.version_label.as_str() {
            "" => recipe.sha256.short(),
            label => label.to_owned(),
        };
        self.record(ConfigRecord {
            source: ConfigSource::Bundle,
            changed_by: Some(CENTRE.to_owned()),
            change_reason: Some(format!("recipe {} {version} for station {station}", recipe.name)),
            signed_by: Vec::new(),
            ..self.compose()
        });
    }

    fn compose(&self) -> ConfigRecord {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let recipes: Vec<RunningRecipe<'_>> = running
            .iter()
            .map(|(station, (recipe, origin))| RunningRecipe {
                station,
                recipe,
                is_central: *origin == RecipeOrigin::Central,
            })
            .collect();
        effective(&self.config, &recipes, self.ledger.device_id())
    }

    fn record(&self, record: ConfigRecord) {
        let (keys, sha256) = (record.values.len(), record.sha256());
        match self.ledger.record_configuration(record) {
            Ok(0) => {}
            Ok(changed) => info!(changed, keys, sha256 = %sha256.short(), "the configuration changed"),
            Err(error) => {
                warn!(error = %error, "what changed of the configuration was not recorded; it is at the next start")
            }
        }
    }
}
