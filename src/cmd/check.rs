//! `loupe check`: the doctor. Everything that would stop the daemon, or make it hold, said before it starts.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use super::Failure;
use crate::capture;
use crate::clock::Clock;
use crate::config::{Config, MatchStage, Recipe, StationConfig, StationRecipe, StorageConfig};
use crate::dashboard;
use crate::inference::{ModelManifest, Runtime};
use crate::matching::{Deltas, LiveIndex, PartIndex};
use crate::observe::GpuSampler;
use crate::pipeline::Engines;
use crate::shutdown::Shutdown;
use crate::uplink;

/// Check a configuration and this machine before the daemon starts.
///
/// Exit code 0: the daemon can run (warnings may be printed); 78: the configuration is wrong; 1: something it names
/// cannot be used.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The daemon's configuration; without it only this machine is checked.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// One JSON document instead of lines.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Level {
    Ok,
    Warn,
    Fail,
}

#[derive(Debug, Serialize)]
struct Finding {
    level: Level,
    what: String,
    detail: String,
}

#[derive(Debug, Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, level: Level, what: &str, detail: impl Into<String>) {
        self.0.push(Finding { level, what: what.to_owned(), detail: detail.into() });
    }
}

/// Free bytes below which a state folder deserves a warning: a day of verdicts at full rate (data model §6).
const FREE_BYTES_WARN: u64 = 2 << 30;

/// Run the command.
///
/// # Errors
/// When the configuration is wrong, or anything it names cannot be used.
pub fn run(args: Args) -> anyhow::Result<()> {
    let config = match &args.config {
        None => None,
        Some(path) => Some(Config::load(path).map_err(|error| Failure::config(error.into()))?),
    };
    let mut findings = Findings::default();
    let runtime = check_runtime(config.as_ref().and_then(|config| config.onnxruntime.as_deref()), &mut findings);
    check_gpu(&mut findings);
    if let (Some(config), Some(path)) = (&config, &args.config) {
        findings.add(Level::Ok, "configuration", format!("{} stations in {}", config.stations.len(), path.display()));
        check_state_dir(&config.storage, &mut findings);
        check_dashboard(config, &mut findings);
        for station in &config.stations {
            check_station(station, &config.storage.state_dir, runtime.as_ref(), &mut findings);
        }
        check_uplink(config, &mut findings);
    }
    print(&findings, args.json)?;
    let failed = findings.0.iter().filter(|finding| finding.level == Level::Fail).count();
    anyhow::ensure!(failed == 0, "{failed} of {} checks failed", findings.0.len());
    Ok(())
}

fn print(findings: &Findings, json: bool) -> anyhow::Result<()> {
    if json {
        println!("{}", serde_json::to_string_pretty(&serde_json::json!({ "findings": findings.0 }))?);
        return Ok(());
    }
    for Finding { level, what, detail } in &findings.0 {
        let mark = match level {
            Level::Ok => "ok  ",
            Level::Warn => "warn",
            Level::Fail => "FAIL",
        };
        println!("{mark} {what:24} {detail}");
    }
    Ok(())
}

fn check_runtime(library: Option<&Path>, findings: &mut Findings) -> Option<Arc<Runtime>> {
    match Runtime::load(library) {
        Ok(runtime) => {
            findings.add(Level::Ok, "onnx runtime", format!("{} ({})", runtime.path().display(), runtime.build_info()));
            Some(runtime)
        }
        Err(error) => {
            findings.add(Level::Fail, "onnx runtime", error.to_string());
            None
        }
    }
}

fn check_gpu(findings: &mut Findings) {
    match GpuSampler::open() {
        Ok(sampler) => {
            let stats = sampler.sample();
            let names: Vec<String> = stats.iter().filter_map(|stat| stat.gpu_name.clone()).collect();
            findings.add(Level::Ok, "gpu", format!("{} found: {}", stats.len(), names.join(", ")));
        }
        Err(error) => findings.add(Level::Warn, "gpu", error.to_string()),
    }
}

fn check_state_dir(storage: &StorageConfig, findings: &mut Findings) {
    let (what, state_dir) = ("state folder", storage.state_dir.as_path());
    let probe = state_dir.join(".loupe-check");
    let written = std::fs::create_dir_all(state_dir)
        .and_then(|()| std::fs::write(&probe, b""))
        .and_then(|()| std::fs::remove_file(&probe));
    if let Err(error) = written {
        findings.add(Level::Fail, what, format!("{} cannot be written: {error}", state_dir.display()));
        return;
    }
    match crate::ledger::free_bytes(state_dir) {
        Ok(free) if free < storage.policy.free_critical_bytes => {
            let (free_mb, critical_mb) = (free >> 20, storage.policy.free_critical_bytes >> 20);
            let cure = "every inspection will be HOLD; free some, or lower it";
            let dir = state_dir.display();
            let detail = format!("{dir} has {free_mb} MiB free, less than free_critical_mb ({critical_mb}): {cure}");
            findings.add(Level::Fail, what, detail);
        }
        Ok(free) if free < FREE_BYTES_WARN => {
            findings.add(Level::Warn, what, format!("{} has only {} MiB free", state_dir.display(), free >> 20));
        }
        Ok(free) => findings.add(Level::Ok, what, format!("{} ({} GiB free)", state_dir.display(), free >> 30)),
        Err(error) => {
            findings.add(Level::Warn, what, format!("{}: free space is unknown: {error}", state_dir.display()))
        }
    }
}

fn check_dashboard(config: &Config, findings: &mut Findings) {
    let Some(dashboard) = &config.dashboard else { return };
    let (what, listen) = ("dashboard", dashboard.listen);
    match dashboard::may_listen(listen, dashboard.allow_remote).map(|()| TcpListener::bind(listen)) {
        Err(error) => findings.add(Level::Fail, what, error.to_string()),
        Ok(Ok(_)) => findings.add(Level::Ok, what, format!("can listen on {listen}")),
        Ok(Err(error)) => {
            findings.add(
                Level::Warn,
                what,
                format!("{listen}: {error}; the daemon starts only if that is its own, ending"),
            );
        }
    }
}

fn check_station(station: &StationConfig, state_dir: &Path, runtime: Option<&Arc<Runtime>>, findings: &mut Findings) {
    let what = format!("station {}", station.name);
    // Opened as the daemon opens it, and closed again before the first frame.
    if let Err(error) = capture::open_source(&station.source, Vec::new(), Clock::system(), &Shutdown::new()) {
        findings.add(Level::Fail, &what, format!("its source cannot be opened: {error}"));
    }
    match &station.recipe {
        StationRecipe::File(recipe) => check_recipe(&what, recipe, runtime, findings),
        StationRecipe::Central { folder } => match super::central_recipe::taken(state_dir, &station.name, folder) {
            Ok(Some(recipe)) => check_recipe(&what, &recipe, runtime, findings),
            Ok(None) => findings.add(
                Level::Warn,
                &what,
                "its recipe has not come from the centre yet; the station begins when it has",
            ),
            Err(error) => findings.add(Level::Fail, &what, error.to_string()),
        },
    }
}

fn check_recipe(what: &str, recipe: &Recipe, runtime: Option<&Arc<Runtime>>, findings: &mut Findings) {
    let Some(runtime) = runtime else {
        findings.add(Level::Fail, what, "its models cannot be opened without ONNX Runtime");
        return;
    };
    let index = match recipe.matching.as_ref().map(|stage| LiveIndex::open(&stage.index)).transpose() {
        Ok(index) => index,
        Err(error) => {
            findings.add(Level::Fail, what, format!("part index: {error}"));
            return;
        }
    };
    let (stage, serving) = (recipe.matching.as_ref(), index.as_ref().map(LiveIndex::current));
    if let (Some(stage), Some(serving)) = (stage, &serving) {
        check_matching(what, stage, serving, findings);
    }
    match Engines::open(runtime, recipe, index, &Deltas::default()) {
        Err(error) => findings.add(Level::Fail, what, error.to_string()),
        Ok(engines) => {
            let providers: Vec<String> =
                engines.providers.iter().map(|(stage, provider)| format!("{stage} on {provider}")).collect();
            let detail = format!("recipe {} ({}): {}", recipe.name, recipe.sha256.short(), providers.join(", "));
            if engines.is_fallback {
                findings.add(
                    Level::Warn,
                    what,
                    format!("{detail}; this is not the first choice: every verdict will be HOLD"),
                );
            } else {
                findings.add(Level::Ok, what, detail);
            }
        }
    }
}

/// What the recipe asks of its index, and the index does not hold. What is wrong with the model, the engines say.
fn check_matching(what: &str, stage: &MatchStage, index: &PartIndex, findings: &mut Findings) {
    let mut warn = |fault: &str| findings.add(Level::Warn, what, format!("index {}: {fault}", stage.index.display()));
    if stage.use_fit && index.fit_sha256().is_none() {
        warn("its live generation has no fit, so every match will be HOLD until `loupe index fit` has learned one");
    }
    if stage.px_per_mm.is_some() && index.sizes().is_empty() {
        warn(
            "it knows no true sizes, so `px_per_mm` says nothing about a part; build it with a parts file that has them",
        );
    }
    let manifest = ModelManifest::load(&stage.model).ok();
    if index.mirrors().is_empty() && manifest.as_ref().is_some_and(ModelManifest::is_mirror_sensitive) {
        warn(
            "it does not know what mirrored pictures show though its model tells them apart, and matches worse for it; \
             `loupe index build` learns it from twelve pictures a part",
        );
    }
    if index.centres().is_empty() && manifest.as_ref().is_some_and(ModelManifest::has_centres) {
        warn(
            "it holds no centres though its model has some, and matches worse for it; `loupe index build` takes them in",
        );
    }
}

/// A centre that does not answer is no reason not to inspect: the outbox waits for it.
fn check_uplink(config: &Config, findings: &mut Findings) {
    let Some(uplink) = &config.uplink else {
        findings.add(Level::Ok, "uplink", "none configured: inspections stay on this device");
        return;
    };
    match uplink::probe(&uplink.dsn) {
        Ok(server) => findings.add(Level::Ok, "uplink", server),
        Err(error) => findings.add(Level::Warn, "uplink", format!("{error}; inspections wait in the outbox")),
    }
}
