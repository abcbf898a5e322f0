//! `loupe model`: look at a model file, record and replay its goldens, measure it on this machine.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use clap::{Subcommand, ValueEnum};
use serde_json::json;

use super::{Failure, model_bench};
use crate::anomaly::Bank;
use crate::capture;
use crate::config::{Config, LocateStage, Recipe, StationRecipe, SurfaceSource};
use crate::inference::{
    GOLDEN_FILE, GOLDEN_FOLDER, Golden, GoldenReport, InferenceError, ModelKind, ModelManifest, ProbeReport,
    ProviderChoice, ProviderPlan, Runtime, probe,
};
use crate::locate::{DetectorLocator, DetectorOptions};
use crate::types::{Digest, Image, Provider};

/// Look at a model file, prove that it runs here as it was recorded, and measure it.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show what an ONNX file is: inputs, outputs, probable layout, provider support, and a manifest to edit.
    Probe(ProbeArgs),
    /// Replay the goldens of models on the provider that really runs them; exit code 1 when a number is too far off.
    Verify(VerifyArgs),
    /// Record what a model makes of pictures, to be replayed by `verify` and at every start of the daemon.
    Golden(GoldenArgs),
    /// Measure pre-processing, model and decoding of a detector apart.
    Bench(model_bench::BenchArgs),
    /// Measure how many threads a model wants on this machine and write it beside the model, where the runtime reads it.
    Tune(model_bench::TuneArgs),
}

#[derive(Debug, clap::Args)]
struct ProbeArgs {
    /// The ONNX file.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Make a model folder of it: the file (with its weights) and the guessed manifest; the folder must not exist.
    #[arg(long, value_name = "DIR")]
    write: Option<PathBuf>,
    /// Side in pixels for an input that leaves it open; that of its metadata, or 640, if not given.
    #[arg(long, value_name = "PX", value_parser = clap::value_parser!(u32).range(1..=16_384))]
    side_px: Option<u32>,
    /// ONNX Runtime's shared library, where it is not in the usual places.
    #[arg(long, value_name = "FILE")]
    onnxruntime: Option<PathBuf>,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct VerifyArgs {
    /// Model folders; without any, every model below the models folder that has goldens.
    #[arg(value_name = "DIR", conflicts_with = "config")]
    models: Vec<PathBuf>,
    /// Folder of model folders.
    #[arg(long = "models", value_name = "DIR", default_value = "models")]
    folder: PathBuf,
    /// Verify what the stations of this configuration use, on the providers their recipes name.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Providers to try, best first.
    #[arg(long, value_name = "NAME", value_delimiter = ',', default_value = "cpu")]
    providers: Vec<ProviderName>,
    /// ONNX Runtime's shared library, where it is not in the usual places.
    #[arg(long, value_name = "FILE")]
    onnxruntime: Option<PathBuf>,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct GoldenArgs {
    /// Folder of the model.
    #[arg(value_name = "DIR")]
    model: PathBuf,
    /// Pictures; they are copied into the golden folder, so keep them small (PNG decodes alike everywhere).
    #[arg(long, value_name = "FILE", num_args = 1.., required = true)]
    images: Vec<PathBuf>,
    /// Width and height of the model's input, pixels; the manifest's size if not given. Smaller makes smaller goldens.
    #[arg(long, value_name = "PX", num_args = 2)]
    size_px: Vec<u32>,
    /// ONNX Runtime's shared library, where it is not in the usual places.
    #[arg(long, value_name = "FILE")]
    onnxruntime: Option<PathBuf>,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

/// A provider on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ProviderName {
    Cpu,
    Cuda,
    Tensorrt,
    Openvino,
}

impl ProviderName {
    fn provider(self) -> Provider {
        match self {
            ProviderName::Cpu => Provider::Cpu,
            ProviderName::Cuda => Provider::Cuda,
            ProviderName::Tensorrt => Provider::Tensorrt,
            ProviderName::Openvino => Provider::Openvino,
        }
    }
}

/// Run the command.
///
/// # Errors
/// When a model or a picture cannot be used, or a golden differs.
pub fn run(args: Args) -> anyhow::Result<()> {
    match args.command {
        Command::Probe(args) => run_probe(&args),
        Command::Verify(args) => run_verify(&args),
        Command::Golden(args) => run_golden(&args),
        Command::Bench(args) => model_bench::run_bench(&args),
        Command::Tune(args) => model_bench::run_tune(&args),
    }
}

fn run_probe(args: &ProbeArgs) -> anyhow::Result<()> {
    let runtime = Runtime::load(args.onnxruntime.as_deref())?;
    let named = args.write.as_deref().unwrap_or(&args.file);
    let name = named.file_stem().map_or("model".to_owned(), |stem| stem.to_string_lossy().into_owned());
    let report = probe(&runtime, &args.file, &name, args.side_px)?;
    if let Some(folder) = &args.write {
        write_folder(folder, &args.file, &report)?;
    }
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
        return Ok(());
    }
    print_probe(&report);
    match (&args.write, &report.manifest) {
        (Some(folder), _) => println!("\nwritten to {}; check the lines marked `guessed`", folder.display()),
        (None, Some(manifest)) => {
            println!("\nmanifest to edit (--write DIR makes a model folder of it):\n\n{manifest}")
        }
        (None, None) => {}
    }
    Ok(())
}

fn print_probe(report: &ProbeReport) {
    let opsets: Vec<String> = report
        .opsets
        .iter()
        .map(|(domain, version)| format!("{} {version}", if domain.is_empty() { "onnx" } else { domain }))
        .collect();
    println!("file         {} bytes, sha256 {}", report.bytes, report.sha256);
    println!("made by      {}, IR {}, opset {}", report.producer, report.ir_version, opsets.join(", "));
    println!("operators    {}", report.operator_count);
    report.inputs.iter().for_each(|input| println!("input        {input}"));
    for output in &report.outputs {
        let name = output.split(' ').next().unwrap_or_default();
        let seen = report.shapes_seen.get(name).map_or(String::new(), |sides| format!("  (in a run: {sides:?})"));
        println!("output       {output}{seen}");
    }
    report.external.iter().for_each(|(file, sha256)| println!("weights      {file}, sha256 {sha256}"));
    if let Some(fault) = &report.run_fault {
        println!("run          failed: {fault}");
    }
    for support in &report.providers {
        let mark = if support.usable { "yes" } else { "no " };
        println!("{:12} {mark} {}", support.provider, support.message);
    }
    println!("layout       {}", report.layout.unwrap_or("not recognised"));
    report.why.iter().for_each(|why| println!("             {why}"));
}

fn write_folder(folder: &Path, file: &Path, report: &ProbeReport) -> anyhow::Result<()> {
    let Some(manifest) = &report.manifest else {
        anyhow::bail!("no manifest can be guessed: {}", report.why.join("; "));
    };
    if let Some(parent) = folder.parent() {
        std::fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
    }
    std::fs::create_dir(folder).with_context(|| format!("{} must be a new folder", folder.display()))?;
    let source = file.parent().unwrap_or(Path::new("."));
    let copies = report.external.iter().map(|(name, _)| (source.join(name), folder.join(name)));
    for (from, to) in copies.chain([(file.to_owned(), folder.join("model.onnx"))]) {
        std::fs::copy(&from, &to).with_context(|| format!("copying {} to {}", from.display(), to.display()))?;
    }
    let path = folder.join("manifest.toml");
    std::fs::write(&path, manifest).with_context(|| path.display().to_string())
}

/// Pixels of a golden's picture.
pub fn decode(path: &Path) -> Result<Image, String> {
    capture::read_image(path).map_err(|error| error.to_string())
}

/// A model and where it shall run.
type Use = (PathBuf, ProviderPlan);

fn run_verify(args: &VerifyArgs) -> anyhow::Result<()> {
    let runtime = Runtime::load(args.onnxruntime.as_deref())?;
    let choices =
        args.providers.iter().map(|name| ProviderChoice { provider: name.provider(), options: BTreeMap::new() });
    let plan = ProviderPlan { providers: choices.collect(), ..ProviderPlan::default() };
    let uses: Vec<Use> = if let Some(path) = &args.config {
        let config = Config::load(path).map_err(|error| Failure::config(error.into()))?;
        uses_of(recipes_in_files(&config))
    } else if args.models.is_empty() {
        model_folders(&args.folder)?.into_iter().map(|folder| (folder, plan.clone())).collect()
    } else {
        args.models.iter().map(|folder| (folder.clone(), plan.clone())).collect()
    };
    // What cannot be replayed does not keep the others from it.
    let (mut reports, mut faults) = (Vec::new(), Vec::new());
    for (folder, plan) in &uses {
        match replay(&runtime, folder, plan) {
            Ok(Some(report)) => reports.push(report),
            Ok(None) if !args.models.is_empty() => faults.push(format!(
                "{} has no goldens; record them with `loupe model golden {} --images FILE`",
                folder.display(),
                folder.display()
            )),
            Ok(None) => eprintln!("loupe: {} has no goldens and is not verified", folder.display()),
            Err(error) => faults.push(format!("{}: {error:#}", folder.display())),
        }
    }
    if args.json {
        println!("{}", serde_json::to_string(&json!({ "reports": reports, "faults": faults }))?);
    } else {
        reports.iter().for_each(print_report);
    }
    let differing = reports
        .iter()
        .filter(|report| !report.passed)
        .map(|report| format!("model `{}` on {}: {}", report.model, report.provider, report.faults()));
    let failed: Vec<String> = differing.chain(faults).collect();
    anyhow::ensure!(failed.is_empty(), "{}", failed.join("; "));
    Ok(())
}

fn print_report(report: &GoldenReport) {
    println!(
        "{} {} on {} (allowed {} + {} x |expected|; recorded on {})",
        if report.passed { "ok  " } else { "FAIL" },
        report.model,
        report.provider,
        report.tolerance.abs,
        report.tolerance.rel,
        report.recorded_on
    );
    for output in &report.outputs {
        println!(
            "     {:20} {:16} worst difference {:.3e} of {:.3e} allowed{}",
            output.image,
            output.output,
            output.difference,
            output.allowed,
            if output.passed { "" } else { "  <-- too far" }
        );
    }
}

fn model_folders(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut folders = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.join("manifest.toml").is_file() {
            folders.push(path);
        }
    }
    folders.sort();
    Ok(folders)
}

fn replay(runtime: &Arc<Runtime>, folder: &Path, plan: &ProviderPlan) -> anyhow::Result<Option<GoldenReport>> {
    let manifest = ModelManifest::load(folder)?;
    let Some(golden) = Golden::load(&manifest)? else { return Ok(None) };
    let report = golden.verify(runtime, &manifest, plan, decode)?;
    if manifest.kind() == ModelKind::Detector && report.passed {
        // The numbers are right; whether the manifest reads them as boxes only decoding shows.
        let mut locator = DetectorLocator::open(runtime, &manifest, plan, DetectorOptions::default())?;
        for picture in golden.pictures() {
            let image = decode(&picture).map_err(|message| anyhow::anyhow!("{}: {message}", picture.display()))?;
            locator.locate(&image)?;
        }
    }
    Ok(Some(report))
}

/// Recipes that the configuration names as files; what the centre sends is not known before the ledger is open.
pub fn recipes_in_files(config: &Config) -> impl Iterator<Item = &Recipe> {
    config.stations.iter().filter_map(|station| match &station.recipe {
        StationRecipe::File(recipe) => Some(recipe.as_ref()),
        StationRecipe::Central { .. } => None,
    })
}

/// Every model that these recipes use, each once a plan.
fn uses_of<'r>(recipes: impl Iterator<Item = &'r Recipe>) -> Vec<Use> {
    let mut uses: Vec<Use> = Vec::new();
    let mut add = |folder: PathBuf, plan: &ProviderPlan| {
        if !uses.iter().any(|(other, other_plan)| *other == folder && other_plan == plan) {
            uses.push((folder, plan.clone()));
        }
    };
    for recipe in recipes {
        if let LocateStage::Detector { model, providers, .. } = &recipe.locate {
            add(model.clone(), &providers.plan);
        }
        if let Some(stage) = &recipe.matching {
            add(stage.model.clone(), &stage.providers.plan);
        }
        match recipe.anomaly.as_ref().map(|stage| (&stage.source, &stage.providers.plan)) {
            Some((SurfaceSource::Bank { bank, models, .. }, plan)) => {
                if let Ok(bank) = Bank::open(bank) {
                    add(models.join(&bank.manifest().model.name), plan);
                }
            }
            Some((SurfaceSource::Graph { model }, plan)) => add(model.clone(), plan),
            None => {}
        }
    }
    uses
}

/// Replay the goldens of every model that these recipes use, on the provider that will run it. Models without goldens pass;
/// what cannot be opened at all is left to the stations, which say so in their own words.
///
/// # Errors
/// When a model gives other numbers than were recorded (with the numbers), or its goldens cannot be used.
pub fn verify_recipes<'r>(runtime: &Arc<Runtime>, recipes: impl Iterator<Item = &'r Recipe>) -> anyhow::Result<()> {
    for (folder, plan) in uses_of(recipes) {
        let Ok(manifest) = ModelManifest::load(&folder) else { continue };
        let Some(golden) = Golden::load(&manifest).map_err(|error| Failure::config(error.into()))? else {
            if let Some(option) = plan.reduced_precision() {
                let reason = anyhow::anyhow!(
                    "model `{}` shall run in less than its own precision ({option}) and has no goldens to prove it by; record \
                     them with `loupe model golden {} --images FILE`, or take the option out",
                    manifest.name(),
                    folder.display()
                );
                return Err(Failure::config(reason).into());
            }
            tracing::info!(model = manifest.name(), "no goldens: its numbers are not verified");
            continue;
        };
        let report = match golden.verify(runtime, &manifest, &plan, decode) {
            Ok(report) => report,
            Err(error @ (InferenceError::GoldenFile { .. } | InferenceError::Read { .. })) => {
                return Err(Failure::config(error.into()).into());
            }
            Err(_) => continue,
        };
        if !report.passed {
            let reason = anyhow::anyhow!(
                "model `{}` does not give on {} what was recorded: {}; use another provider or precision, or check the \
                 model with `loupe model verify`",
                report.model,
                report.provider,
                report.faults()
            );
            return Err(Failure::config(reason).into());
        }
        tracing::info!(model = report.model, provider = %report.provider, outputs = report.outputs.len(), "goldens replayed");
    }
    Ok(())
}

fn run_golden(args: &GoldenArgs) -> anyhow::Result<()> {
    let manifest = ModelManifest::load(&args.model)?;
    let runtime = Runtime::load(args.onnxruntime.as_deref())?;
    let folder = manifest.folder().join(GOLDEN_FOLDER);
    std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let mut pictures = Vec::new();
    for path in &args.images {
        let bytes = capture::read_bytes(path)?;
        let image = capture::decode_image(&bytes, &path.display().to_string())?;
        let name = path.file_name().context("a picture without a name")?.to_string_lossy().into_owned();
        let copy = folder.join(&name);
        if !copy.exists() || std::fs::read(&copy)? != bytes {
            std::fs::write(&copy, &bytes).with_context(|| copy.display().to_string())?;
        }
        pictures.push((name, Digest::of(&bytes), image));
    }
    let size_px = match args.size_px[..] {
        [width, height] => [width, height],
        _ => manifest.input().size_px,
    };
    let plan = ProviderPlan::default();
    let path = Golden::record(&runtime, &manifest, &plan, &pictures, size_px)?;
    if args.json {
        println!("{}", json!({ "golden": path, "images": pictures.len(), "size_px": size_px }));
    } else {
        println!("recorded {} pictures at {}x{} in {}", pictures.len(), size_px[0], size_px[1], path.display());
    }
    for entry in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name != GOLDEN_FILE && !pictures.iter().any(|(used, ..)| *used == name) {
            eprintln!("{} belongs to no golden any more and can be removed", folder.join(name).display());
        }
    }
    Ok(())
}
