//! [`Plan`]: which files make up a device, by its configuration.
//!
//! What a recipe names is taken as it lies on the disk; the folders of frames are the line's, not the device's, and stay
//! out. Files are listed when the plan is made; generations, banks and recipes never change, so nothing tears.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Component, Path, PathBuf};

use super::BackupError;
use crate::config::{Config, LocateStage, Recipe, StationRecipe, SurfaceSource};
use crate::ledger::{RESTORE_MARKER, placed_recipes};

/// Folders within folders looked into: more is a loop of links.
const DEPTH_MAX: usize = 16;
/// Names in the state folder that are no part of a backup, or go into it another way.
const NOT_STATE: [&str; 6] =
    ["ledger.db", "ledger.db-wal", "ledger.db-shm", "ledger.lock", "artifacts", RESTORE_MARKER];
/// The running daemon's address: no use on another day.
const ADDRESS_NAME: &str = "dashboard.addr";
/// Where a forced restore puts what was there.
pub(super) const ASIDE_PREFIX: &str = "before-restore-";
/// What stands in a copy of the configuration in place of the DSN.
const CUT_OUT: &str = "left-out-of-the-backup";
/// Keys of the configuration that name files with secrets.
const SECRET_KEYS: [&str; 5] = ["dsn_file", "key_file", "password_file", "secret_file", "token_file"];

/// What to back up.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// Absolute.
    pub state_dir: PathBuf,
    /// Absolute; `None`: the state alone.
    pub config: Option<PathBuf>,
    /// Configuration, recipes, banks, indexes, models; absolute, each once.
    pub files: Vec<PathBuf>,
    /// Files with secrets; absolute.
    pub secrets: Vec<PathBuf>,
    /// The configuration without its DSN, where it holds one.
    pub redacted_config: Option<String>,
}

impl Plan {
    /// The state folder alone.
    ///
    /// # Errors
    /// When the path has no absolute form.
    pub fn of_state(state_dir: &Path) -> Result<Self, BackupError> {
        Ok(Self { state_dir: absolute(state_dir)?, ..Self::default() })
    }

    /// All that the configuration at `path`, read as `config`, makes up.
    ///
    /// # Errors
    /// When something it names cannot be read, or its DSN cannot be cut out.
    pub fn of_config(path: &Path, config: &Config) -> Result<Self, BackupError> {
        let path = absolute(path)?;
        let folder = path.parent().unwrap_or(Path::new("/")).to_owned();
        let text = fs::read_to_string(&path).map_err(BackupError::io("read", &path))?;
        let table: toml::Table = text.parse().unwrap_or_default();
        let mut named = Files::default();
        named.add(&path)?;
        for (station, recipe) in config.stations.iter().zip(recipes_of(&table)) {
            if matches!(station.recipe, StationRecipe::File(_)) {
                named.add(&folder.join(recipe))?;
            }
        }
        for station in &config.stations {
            match &station.recipe {
                StationRecipe::File(recipe) => named.add_recipe(recipe)?,
                StationRecipe::Central { folder } => named.add_central(&config.storage.state_dir, folder)?,
            }
        }
        let mut secrets = Vec::new();
        collect_secrets(&toml::Value::Table(table.clone()), &folder, &mut secrets)?;
        secrets.retain(|secret| secret.exists());
        let dsn = table.get("uplink").and_then(|uplink| uplink.get("dsn")).and_then(toml::Value::as_str);
        let redacted_config = match dsn {
            None => None,
            Some(dsn) => {
                let cut = text.replace(dsn, CUT_OUT);
                if cut == text {
                    return Err(BackupError::SecretInConfig { path });
                }
                secrets.push(path.clone());
                Some(cut)
            }
        };
        secrets.sort();
        secrets.dedup();
        let state_dir = absolute(&config.storage.state_dir)?;
        let files = named.0.into_keys().collect();
        Ok(Self { state_dir, config: Some(path), files, secrets, redacted_config })
    }

    /// Whatever else lies in the state folder: paths below it, without those that the configuration names.
    pub(super) fn other_state(&self) -> Result<Vec<PathBuf>, BackupError> {
        let mut found = Files::default();
        let on_io = BackupError::io("list", &self.state_dir);
        for entry in fs::read_dir(&self.state_dir).map_err(&on_io)? {
            let entry = entry.map_err(&on_io)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_ours = NOT_STATE.contains(&name.as_str())
                || name == ADDRESS_NAME
                || name.starts_with(ASIDE_PREFIX)
                || name.ends_with(".partial");
            if !is_ours {
                found.add(&entry.path())?;
            }
        }
        let mut paths: Vec<PathBuf> = found.0.into_keys().collect();
        paths.retain(|path| !self.files.contains(path) && !self.secrets.contains(path));
        Ok(paths)
    }
}

/// Absolute paths of plain files; the order is that of the names.
#[derive(Debug, Default)]
struct Files(BTreeMap<PathBuf, ()>);

impl Files {
    /// A file, or every file below a folder.
    fn add(&mut self, path: &Path) -> Result<(), BackupError> {
        self.walk(&absolute(path)?, 0)
    }

    fn walk(&mut self, path: &Path, depth: usize) -> Result<(), BackupError> {
        let on_io = BackupError::io("read", path);
        let metadata = fs::metadata(path).map_err(&on_io)?;
        if metadata.is_file() {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            // Locks, and what is being written.
            if name != ".lock" && !name.ends_with(".partial") {
                self.0.insert(path.to_owned(), ());
            }
            return Ok(());
        }
        if !metadata.is_dir() {
            return Ok(());
        }
        if depth > DEPTH_MAX {
            return Err(on_io(std::io::Error::other("it holds folders within folders without end")));
        }
        for entry in fs::read_dir(path).map_err(&on_io)? {
            let entry = entry.map_err(&on_io)?;
            // A generation that is being built appears under its name when it is whole.
            if !entry.file_name().to_string_lossy().starts_with(".staged-") {
                self.walk(&entry.path(), depth + 1)?;
            }
        }
        Ok(())
    }

    /// What the recipes that came from the centre name; they lie in the state folder themselves.
    fn add_central(&mut self, state_dir: &Path, folder: &Path) -> Result<(), BackupError> {
        for body in placed_recipes(state_dir) {
            // One that is not for this machine names nothing here.
            if let Ok(recipe) = Recipe::parse(&folder.join("central.toml"), body) {
                self.add_recipe(&recipe)?;
            }
        }
        Ok(())
    }

    fn add_recipe(&mut self, recipe: &Recipe) -> Result<(), BackupError> {
        if let Some(reference) = &recipe.quality.reference {
            self.add(reference)?;
        }
        if let LocateStage::Detector { model, .. } = &recipe.locate {
            self.add(model)?;
        }
        if let Some(stage) = &recipe.matching {
            self.add(&stage.index)?;
            self.add(&stage.model)?;
            if let Some(color) = &stage.color {
                self.add(&color.table)?;
            }
        }
        match recipe.anomaly.as_ref().map(|stage| &stage.source) {
            Some(SurfaceSource::Bank { bank, models, .. }) => {
                self.add(bank)?;
                // The bank's model, not every model there is.
                match bank_model(bank) {
                    Some(name) if models.join(&name).is_dir() => self.add(&models.join(name))?,
                    _ => self.add(models)?,
                }
            }
            Some(SurfaceSource::Graph { model }) => self.add(model)?,
            None => {}
        }
        Ok(())
    }
}

fn bank_model(bank: &Path) -> Option<String> {
    let text = fs::read(bank.join("manifest.json")).ok()?;
    let manifest: serde_json::Value = serde_json::from_slice(&text).ok()?;
    manifest.get("model")?.get("name")?.as_str().map(str::to_owned)
}

fn recipes_of(table: &toml::Table) -> Vec<PathBuf> {
    let stations = table.get("stations").and_then(toml::Value::as_array);
    let named = |station: &toml::Value| station.get("recipe").and_then(toml::Value::as_str).map(PathBuf::from);
    stations.into_iter().flatten().filter_map(named).collect()
}

fn collect_secrets(value: &toml::Value, folder: &Path, found: &mut Vec<PathBuf>) -> Result<(), BackupError> {
    match value {
        toml::Value::Table(table) => {
            for (key, value) in table {
                match value.as_str() {
                    Some(path) if SECRET_KEYS.contains(&key.as_str()) => found.push(absolute(&folder.join(path))?),
                    _ => collect_secrets(value, folder, found)?,
                }
            }
        }
        toml::Value::Array(values) => {
            for value in values {
                collect_secrets(value, folder, found)?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// Absolute, without `.` and `..`, links kept: a restored file goes where the configuration says, not where a link led.
pub(super) fn absolute(path: &Path) -> Result<PathBuf, BackupError> {
    let path = std::path::absolute(path).map_err(BackupError::io("find", path))?;
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                clean.pop();
            }
            Component::CurDir => {}
            other => clean.push(other),
        }
    }
    Ok(clean)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::absolute;

    #[test]
    fn paths_lose_their_dots() {
        let clean = absolute(Path::new("/etc/loupe/../loupe/./recipes/../../x/plate.toml")).unwrap();
        assert_eq!(clean, Path::new("/etc/x/plate.toml"));
        assert!(absolute(Path::new("relative")).unwrap().is_absolute());
    }
}
