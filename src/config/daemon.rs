//! The daemon's configuration: site, stations, storage, runtime, dashboard, uplink.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use uuid::Uuid;

use super::recipe::read_text;
use super::{ConfigError, Document, Recipe};
use crate::capture::{SourceKind, SourceSpec};
use crate::types::{ConfigSource, StoragePolicy};
use crate::uplink::Secret;

/// A validated configuration, its recipes included.
#[derive(Debug)]
pub struct Config {
    pub site_code: String,
    pub site_name: String,
    /// The tenant at the centre; needed only where an uplink is set.
    pub site_id: Option<Uuid>,
    pub storage: StorageConfig,
    /// ONNX Runtime's shared library; `None` = the usual places.
    pub onnxruntime: Option<PathBuf>,
    /// Threads that inspect; 0 = one a core.
    pub workers: usize,
    pub dashboard: Option<DashboardConfig>,
    pub uplink: Option<UplinkConfig>,
    /// Seconds between GPU samples.
    pub gpu_interval_s: u32,
    /// Seconds between samples of the machine.
    pub system_interval_s: u32,
    pub stations: Vec<StationConfig>,
    /// What was said of the last change.
    pub change: Change,
    /// Whether it was read from a file or made of a command line.
    pub source: ConfigSource,
}

/// Who changed the configuration last, and why: a line for the history of the device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Change {
    pub by: String,
    pub reason: String,
}

#[derive(Debug, Clone)]
pub struct StorageConfig {
    pub state_dir: PathBuf,
    pub artifacts: ArtifactPolicy,
    /// How long what is kept, and what happens when the disk fills.
    pub policy: StoragePolicy,
}

/// Which inspections keep pictures. A thumbnail, an overlay and a heat map are made; the frame itself is kept for
/// what a person must look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ArtifactPolicy {
    /// Every inspection.
    All,
    /// Everything of FAIL and HOLD, a thumbnail of PASS.
    #[default]
    Exceptions,
    /// None: the verdicts alone.
    None,
}

#[derive(Debug, Clone)]
pub struct DashboardConfig {
    pub listen: SocketAddr,
    pub allow_remote: bool,
}

#[derive(Debug)]
pub struct UplinkConfig {
    pub dsn: Secret,
    /// Seconds between two looks at what the centre wants of this device.
    pub pull_interval_s: u32,
}

/// One inspection place.
#[derive(Debug)]
pub struct StationConfig {
    pub name: String,
    pub recipe: StationRecipe,
    pub source: SourceSpec,
}

/// Where a station's recipe comes from.
#[derive(Debug)]
pub enum StationRecipe {
    /// A file, read.
    File(Box<Recipe>),
    /// The centre; relative paths of such a recipe are relative to the configuration's folder.
    Central { folder: PathBuf },
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawConfig {
    site: RawSite,
    storage: RawStorage,
    runtime: RawRuntime,
    dashboard: Option<RawDashboard>,
    uplink: Option<RawUplink>,
    telemetry: RawTelemetry,
    change: Change,
    stations: Vec<RawStation>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawSite {
    code: String,
    name: String,
    id: Option<Uuid>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawStorage {
    state_dir: Option<PathBuf>,
    artifacts: ArtifactPolicy,
    verdict_days: Option<u32>,
    detail_days: Option<u32>,
    pass_picture_days: Option<u32>,
    picture_days: Option<u32>,
    free_low_mb: Option<u64>,
    free_critical_mb: Option<u64>,
    budget_mb: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawRuntime {
    onnxruntime: Option<PathBuf>,
    workers: usize,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawDashboard {
    listen: Option<SocketAddr>,
    allow_remote: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawUplink {
    dsn: Option<Secret>,
    dsn_file: Option<PathBuf>,
    pull_interval_s: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawTelemetry {
    gpu_interval_s: u32,
    system_interval_s: u32,
}

impl Default for RawTelemetry {
    fn default() -> Self {
        Self { gpu_interval_s: 60, system_interval_s: 60 }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawStation {
    name: String,
    recipe: Option<PathBuf>,
    source: RawSource,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawSource {
    kind: Option<SourceKind>,
    path: Option<PathBuf>,
    #[serde(rename = "loop")]
    repeat: bool,
    watch: bool,
    rate_hz: Option<f64>,
    every_nth: Option<u32>,
    views: Option<u32>,
}

/// Where the dashboard listens unless told otherwise.
pub const DEFAULT_LISTEN: ([u8; 4], u16) = ([127, 0, 0, 1], 8420);
/// Where the daemon keeps its state unless told otherwise; systemd's `StateDirectory=` wins.
const DEFAULT_STATE_DIR: &str = "/var/lib/loupe";
/// What a station's `recipe` says when it comes from the centre.
const CENTRAL_RECIPE: &str = "central";
/// Longest name or reason in `[change]`.
const CHANGE_CHARS_MAX: usize = 1_000;
/// More workers than this is a typing error.
const WORKERS_MAX: usize = 256;

impl Config {
    /// Read and validate the configuration at `path` and every recipe it names.
    ///
    /// # Errors
    /// With every fault of the file and of its recipes.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let text = read_text(path)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let (raw, mut document) = Document::read::<RawConfig>(path, &text);
        let config = raw.validate(&mut document, folder);
        document.finish(config)
    }
}

impl RawConfig {
    fn validate(self, document: &mut Document, folder: &Path) -> Config {
        let code = &self.site.code;
        let is_code = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if !(2..=40).contains(&code.len()) || !code.chars().all(is_code) {
            document.fault("site.code", format!("is `{code}`, must be 2 to 40 of a-z, 0-9 and -"));
        }
        if self.runtime.workers > WORKERS_MAX {
            document.fault("runtime.workers", format!("is {}, must be at most {WORKERS_MAX}", self.runtime.workers));
        }
        for (key, said) in [("change.by", &self.change.by), ("change.reason", &self.change.reason)] {
            if said.chars().count() > CHANGE_CHARS_MAX {
                document.fault(key, format!("is longer than {CHANGE_CHARS_MAX} characters"));
            }
        }
        let intervals = [("gpu", self.telemetry.gpu_interval_s), ("system", self.telemetry.system_interval_s)];
        for (name, _) in intervals.into_iter().filter(|(_, interval_s)| *interval_s == 0) {
            document.fault(&format!("telemetry.{name}_interval_s"), "is 0, must be at least 1");
        }
        if self.uplink.is_some() && self.site.id.is_none() {
            document.fault("site.id", "is missing: an uplink needs it; `loupe db provision-site` prints it");
        }
        let is_central = |station: &RawStation| station.recipe.as_deref() == Some(Path::new(CENTRAL_RECIPE));
        if self.uplink.is_none()
            && let Some(index) = self.stations.iter().position(is_central)
        {
            let message = "is to come from the centre, and there is no [uplink] to bring it";
            document.fault(&format!("stations[{index}].recipe"), message);
        }
        if self.stations.is_empty() {
            document.fault("stations", "is empty: add at least one [[stations]] with name, recipe and source");
        }
        let mut names = std::collections::BTreeSet::new();
        for (index, station) in self.stations.iter().enumerate() {
            if !names.insert(station.name.clone()) {
                document.fault(&format!("stations[{index}].name"), format!("`{}` stands twice", station.name));
            }
        }
        let policy = self.storage.policy(document);
        let stations = self
            .stations
            .into_iter()
            .enumerate()
            .filter_map(|(index, raw)| raw.validate(&format!("stations[{index}]"), document, folder))
            .collect();
        Config {
            site_name: if self.site.name.is_empty() { self.site.code.clone() } else { self.site.name },
            site_code: self.site.code,
            site_id: self.site.id,
            storage: StorageConfig {
                state_dir: state_dir(self.storage.state_dir, folder),
                artifacts: self.storage.artifacts,
                policy,
            },
            onnxruntime: self.runtime.onnxruntime.map(|path| folder.join(path)),
            workers: self.runtime.workers,
            dashboard: self.dashboard.map(|raw| DashboardConfig {
                listen: raw.listen.unwrap_or(SocketAddr::from(DEFAULT_LISTEN)),
                allow_remote: raw.allow_remote,
            }),
            uplink: self.uplink.and_then(|raw| raw.validate(document, folder)),
            gpu_interval_s: self.telemetry.gpu_interval_s,
            system_interval_s: self.telemetry.system_interval_s,
            stations,
            change: self.change,
            source: ConfigSource::File,
        }
    }
}

/// More days than this is a typing error: a century.
const DAYS_MAX: u32 = 36_500;
/// More than this is a typing error: an exbibyte.
const MEBIBYTES_MAX: u64 = 1 << 40;

impl RawStorage {
    fn policy(&self, document: &mut Document) -> StoragePolicy {
        let default = StoragePolicy::default();
        let mut days = |key: &str, given: Option<u32>, default: u32, least: u32| {
            let days = given.unwrap_or(default);
            if !(least..=DAYS_MAX).contains(&days) {
                document.fault(&format!("storage.{key}"), format!("is {days}, must be {least} to {DAYS_MAX} days"));
            }
            days
        };
        // What is decided is kept at least as long as promised; pictures may go sooner, for want of space or by law.
        let verdict_days = days("verdict_days", self.verdict_days, default.verdict_days, default.verdict_days);
        let detail_days = days("detail_days", self.detail_days, default.detail_days, default.detail_days);
        let pass_picture_days = days("pass_picture_days", self.pass_picture_days, default.pass_picture_days, 1);
        let picture_days = days("picture_days", self.picture_days, default.picture_days, 1);
        let mut bytes = |key: &str, given: Option<u64>| {
            if let Some(mebibytes) = given.filter(|mebibytes| *mebibytes > MEBIBYTES_MAX) {
                document
                    .fault(&format!("storage.{key}"), format!("is {mebibytes}, must be at most {MEBIBYTES_MAX} MiB"));
            }
            given.map(|mebibytes| mebibytes.min(MEBIBYTES_MAX) << 20)
        };
        let free_low_bytes = bytes("free_low_mb", self.free_low_mb).unwrap_or(default.free_low_bytes);
        let free_critical_bytes =
            bytes("free_critical_mb", self.free_critical_mb).unwrap_or(default.free_critical_bytes);
        let budget_bytes = bytes("budget_mb", self.budget_mb);
        if free_critical_bytes >= free_low_bytes {
            document.fault(
                "storage.free_critical_mb",
                format!("is {}, must be less than free_low_mb ({})", free_critical_bytes >> 20, free_low_bytes >> 20),
            );
        }
        StoragePolicy {
            verdict_days,
            detail_days,
            pass_picture_days,
            picture_days,
            free_low_bytes,
            free_critical_bytes,
            budget_bytes,
        }
    }
}

impl RawUplink {
    fn validate(self, document: &mut Document, folder: &Path) -> Option<UplinkConfig> {
        let pull_interval_s = self.pull_interval_s.unwrap_or(crate::limits::DOWNLINK_INTERVAL_S);
        if !(1..=86_400).contains(&pull_interval_s) {
            document.fault("uplink.pull_interval_s", format!("is {pull_interval_s}, must be 1 to 86400"));
        }
        let credential = std::env::var_os("CREDENTIALS_DIRECTORY").map(|dir| PathBuf::from(dir).join("dsn"));
        let file = match (self.dsn, self.dsn_file) {
            (Some(_), Some(_)) => {
                document.fault("uplink.dsn_file", "stands beside uplink.dsn: keep one of the two");
                return None;
            }
            (Some(dsn), None) => return Some(UplinkConfig { dsn, pull_interval_s }),
            (None, Some(file)) => folder.join(file),
            (None, None) => {
                match credential.filter(|path| path.exists()) {
                    Some(path) => path,
                    None => {
                        document.fault("uplink.dsn_file", "is missing: name a file that holds the PostgreSQL DSN, or pass the systemd credential `dsn`");
                        return None;
                    }
                }
            }
        };
        match std::fs::read_to_string(&file) {
            Ok(text) if !text.trim().is_empty() => {
                Some(UplinkConfig { dsn: Secret::new(text.trim()), pull_interval_s })
            }
            Ok(_) => {
                document.fault("uplink.dsn_file", format!("{} is empty", file.display()));
                None
            }
            Err(error) => {
                document.fault("uplink.dsn_file", format!("{} cannot be read: {error}", file.display()));
                None
            }
        }
    }
}

impl RawStation {
    fn validate(self, key_path: &str, document: &mut Document, folder: &Path) -> Option<StationConfig> {
        if self.name.trim().is_empty() {
            document.fault(&format!("{key_path}.name"), "is missing: give the station a name");
        }
        let source = self.source.validate(&format!("{key_path}.source"), document, folder);
        let Some(recipe) = self.recipe else {
            document.fault(&format!("{key_path}.recipe"), "is missing: name a recipe file");
            return None;
        };
        if recipe == Path::new(CENTRAL_RECIPE) {
            let recipe = StationRecipe::Central { folder: folder.to_owned() };
            return Some(StationConfig { name: self.name, recipe, source: source? });
        }
        match Recipe::load(&folder.join(recipe)) {
            Ok(recipe) => {
                let views = source.as_ref().and_then(|source| source.views).map(|views| views as usize);
                if let Some(fault) = recipe.fault_of_source_views(views) {
                    document.fault(&format!("{key_path}.recipe"), fault);
                }
                let recipe = StationRecipe::File(Box::new(recipe));
                Some(StationConfig { name: self.name, recipe, source: source? })
            }
            Err(error) => {
                for fault in error.faults {
                    document.fault(&format!("{key_path}.recipe"), format!("{}: {fault}", error.path));
                }
                None
            }
        }
    }
}

impl RawSource {
    fn validate(self, key_path: &str, document: &mut Document, folder: &Path) -> Option<SourceSpec> {
        if self.kind.is_none() {
            document.fault(&format!("{key_path}.kind"), "is missing: folder, list or video");
        }
        let Some(path) = self.path else {
            document.fault(&format!("{key_path}.path"), "is missing: name the folder, list or video");
            return None;
        };
        let path = folder.join(path);
        if !path.exists() {
            document.fault(&format!("{key_path}.path"), format!("{} does not exist", path.display()));
        }
        let mut spec = SourceSpec::new(self.kind?, path);
        spec.repeat = self.repeat;
        spec.watch = self.watch;
        spec.rate_hz = self.rate_hz;
        spec.every_nth = self.every_nth.unwrap_or(1);
        spec.views = self.views;
        for fault in spec.faults() {
            document.fault(key_path, fault);
        }
        Some(spec)
    }
}

fn state_dir(configured: Option<PathBuf>, folder: &Path) -> PathBuf {
    if let Some(path) = configured {
        return folder.join(path);
    }
    // systemd lists several folders separated by colons; Loupe's unit asks for one.
    let from_systemd = std::env::var("STATE_DIRECTORY").ok().and_then(|dirs| dirs.split(':').next().map(PathBuf::from));
    from_systemd.unwrap_or_else(|| PathBuf::from(DEFAULT_STATE_DIR))
}
