//! Recipes that come from the centre: read from the state folder, proved on this machine before they are used.

use std::path::Path;
use std::sync::Arc;

use tracing::{error, warn};

use crate::config::Recipe;
use crate::inference::Runtime;
use crate::ledger::{Ledger, LedgerError, LedgerReader, ProvisionNote, StationRecipe, place_recipe, placed_recipe};
use crate::matching::{Deltas, LiveIndex};
use crate::pipeline::Engines;
use crate::types::Digest;
use crate::uplink::Prove;

/// Read a recipe's text; its relative paths are relative to `folder`, that of the daemon's configuration.
///
/// # Errors
/// With every fault, in one line.
pub fn parse(folder: &Path, body: &str) -> Result<Recipe, String> {
    let name = format!("central-{}.toml", Digest::of(body.as_bytes()).short());
    Recipe::parse(&folder.join(name), body.to_owned()).map_err(|error| error.to_string())
}

/// Read a recipe's text, open everything it names, as a station would, and replay the goldens of its models.
///
/// # Errors
/// With what is wrong with it on this machine.
pub fn prove(runtime: &Arc<Runtime>, folder: &Path, body: &str) -> Result<Recipe, String> {
    let recipe = parse(folder, body)?;
    let index = recipe.matching.as_ref().map(|stage| LiveIndex::open(&stage.index)).transpose();
    let index = index.map_err(|error| format!("part index: {error}"))?;
    Engines::open(runtime, &recipe, index, &Deltas::default()).map_err(|error| error.to_string())?;
    super::model::verify_recipes(runtime, std::iter::once(&recipe)).map_err(|error| format!("{error:#}"))?;
    Ok(recipe)
}

/// [`prove`] for the downlink.
#[must_use]
pub fn prover(runtime: Arc<Runtime>, folder: &Path) -> Prove {
    let folder = folder.to_owned();
    Arc::new(move |body| prove(&runtime, &folder, body).map(drop))
}

/// The text of the recipe of this digest: the file of the state folder, or, where that is gone, the row of the centre.
pub(super) fn body_of(state_dir: &Path, reader: &LedgerReader, sha256: Digest) -> Result<Option<String>, LedgerError> {
    if let Some(body) = placed_recipe(state_dir, sha256) {
        return Ok(Some(body));
    }
    Ok(reader.central_recipe(sha256)?.map(|recipe| recipe.body))
}

pub(super) fn noted(reader: &LedgerReader, station: &str) -> Result<Option<StationRecipe>, LedgerError> {
    Ok(reader.station_recipes()?.into_iter().find(|noted| noted.station == station))
}

/// The recipe that `station` would start with, not proved; `None`: none has come yet.
///
/// # Errors
/// When the ledger cannot be read.
pub fn taken(state_dir: &Path, station: &str, folder: &Path) -> Result<Option<Recipe>, LedgerError> {
    let reader = match LedgerReader::open(state_dir) {
        Ok(reader) => reader,
        Err(LedgerError::Missing { .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    let Some(sha256) = noted(&reader, station)?.and_then(|noted| noted.taken_sha256) else { return Ok(None) };
    let body = body_of(state_dir, &reader, sha256)?;
    Ok(body.and_then(|body| parse(folder, &body).ok()))
}

/// The recipe to start `station` with: the one taken last, or the one before it where that cannot be used any more.
///
/// # Errors
/// When the ledger cannot be read or written.
pub fn at_start(
    runtime: &Arc<Runtime>,
    ledger: &Ledger,
    station: &str,
    folder: &Path,
) -> Result<Option<Recipe>, LedgerError> {
    let state_dir = ledger.state_dir();
    let reader = LedgerReader::open(state_dir)?;
    let Some(noted) = noted(&reader, station)? else { return Ok(None) };
    for sha256 in [noted.taken_sha256, noted.previous_sha256].into_iter().flatten() {
        let proved = match body_of(state_dir, &reader, sha256)? {
            None => Err("its file is missing or was changed, and the centre has it no more".to_owned()),
            Some(body) => {
                place_recipe(state_dir, &body)?;
                prove(runtime, folder, &body)
            }
        };
        match proved {
            Ok(recipe) => return Ok(Some(recipe)),
            Err(fault) => {
                error!(station, sha256 = %sha256.short(), fault, "a recipe of the centre cannot be used any more");
                let note = ProvisionNote::Refused { station: station.to_owned(), sha256, error: fault };
                ledger.note_provisioning(note)?;
            }
        }
    }
    warn!(station, "no recipe of the centre can be used here; the station waits for another");
    Ok(None)
}
