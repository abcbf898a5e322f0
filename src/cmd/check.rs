//! `loupe check`: the doctor. Everything that would stop the daemon, or make it hold, said before it starts.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use super::Failure;
use crate::config::{Config, Recipe, StationConfig, StationRecipe};
use crate::inference::Runtime;
use crate::matching::{Deltas, LiveIndex};
use crate::observe::GpuSampler;
use crate::pipeline::Engines;
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
        check_state_dir(&config.storage.state_dir, &mut findings);
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

fn check_state_dir(state_dir: &Path, findings: &mut Findings) {
    let what = "state folder";
    let probe = state_dir.join(".loupe-check");
    let written = std::fs::create_dir_all(state_dir)
        .and_then(|()| std::fs::write(&probe, b""))
        .and_then(|()| std::fs::remove_file(&probe));
    if let Err(error) = written {
        findings.add(Level::Fail, what, format!("{} cannot be written: {error}", state_dir.display()));
        return;
    }
    match crate::ledger::free_bytes(state_dir) {
        Ok(free) if free < FREE_BYTES_WARN => {
            findings.add(Level::Warn, what, format!("{} has only {} MiB free", state_dir.display(), free >> 20));
        }
        Ok(free) => findings.add(Level::Ok, what, format!("{} ({} GiB free)", state_dir.display(), free >> 30)),
        Err(error) => {
            findings.add(Level::Warn, what, format!("{}: free space is unknown: {error}", state_dir.display()))
        }
    }
}

fn check_station(station: &StationConfig, state_dir: &Path, runtime: Option<&Arc<Runtime>>, findings: &mut Findings) {
    let what = format!("station {}", station.name);
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
