//! Fits that come from the centre: put beside the indexes that this machine's stations search, and taken back.
//!
//! The searches take a fit up by themselves, as they take up a new generation. Runs on the uplink's thread.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::central_recipe;
use crate::config::{StationConfig, StationRecipe};
use crate::ledger::{CentralFit, generation_name};
use crate::matching::borrowed::{self, Placed};
use crate::matching::current_name;
use crate::types::Digest;
use crate::uplink::{FitOrder, KeepFit};

/// Keeps the fits of the indexes that the recipes of `stations` name.
#[must_use]
pub fn keeper(stations: &[StationConfig], state_dir: &Path) -> KeepFit {
    let (mut fixed, mut central) = (BTreeSet::new(), Vec::new());
    for station in stations {
        match &station.recipe {
            StationRecipe::File(recipe) => fixed.extend(recipe.matching.as_ref().map(|stage| stage.index.clone())),
            StationRecipe::Central { folder } => central.push((station.name.clone(), folder.clone())),
        }
    }
    let state_dir = state_dir.to_owned();
    Arc::new(move |order| {
        let mut folders = fixed.clone();
        for (station, folder) in &central {
            let recipe = central_recipe::taken(&state_dir, station, folder).map_err(|error| error.to_string())?;
            folders.extend(recipe.and_then(|recipe| recipe.matching).map(|stage| stage.index));
        }
        match order {
            FitOrder::Place { fit, ours } => place(&folders, fit, ours),
            FitOrder::GiveBack { generation_sha256, ours } => folders.iter().try_for_each(|folder| {
                let done = borrowed::give_back(folder, generation_sha256, ours);
                done.map(drop).map_err(|error| format!("{}: {error}", folder.display()))
            }),
        }
    })
}

fn place(folders: &BTreeSet<PathBuf>, fit: &CentralFit, ours: Option<Digest>) -> Result<(), String> {
    let mut is_here = false;
    for folder in folders {
        let placed = borrowed::place(folder, fit.body.as_bytes(), ours);
        let placed = placed.map_err(|error| format!("index {}: {error}", folder.display()))?;
        is_here |= placed != Placed::NoGeneration;
    }
    if is_here {
        return Ok(());
    }
    let found: Vec<String> = folders
        .iter()
        .map(|folder| match current_name(folder) {
            Ok(name) => format!("{} serves {name}", folder.display()),
            Err(error) => error.to_string(),
        })
        .collect();
    let here = if found.is_empty() { "no station here searches an index".to_owned() } else { found.join("; ") };
    Err(format!(
        "it was learned for index generation {}, which no station's index has here ({here}); copy that index here, or \
         fit the one that serves",
        generation_name(fit.generation_sha256)
    ))
}
