//! `loupe bank`: build memory banks of good surfaces and measure how well they find defects.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Subcommand;
use indicatif::{ProgressBar, ProgressStyle};

use super::bank_bench;
use super::bank_evaluate::{EvaluateArgs, evaluate};
use super::bank_explain::{ExplainArgs, explain};
use super::bank_fit::{FitArgs, fit};
use super::bank_split::{Split, pictures_in};
use super::bank_sweep::{SweepArgs, sweep};
use super::bank_view::{ViewArgs, rule_in_words, threshold_rule, view_in_words};
use crate::anomaly::{Bank, BankBuilder, BankOptions, PatchCore, Picture, PictureNote, outliers};
use crate::capture;
use crate::inference::{FeatureModel, ModelManifest, ProviderPlan, Runtime};
use crate::types::{Digest, Image};

/// Width of the small copies of learnt pictures, pixels.
const THUMBNAIL_WIDTH_PX: u32 = 320;
/// JPEG quality of the small copies, 1 to 100.
const THUMBNAIL_QUALITY: u8 = 80;
/// Fewer learnt pictures than this are remarked upon.
const FEW_PICTURES: usize = 10;

/// Build, extend, fit and evaluate memory banks of good surfaces (PatchCore).
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Learn a bank from pictures of good parts.
    Build(BuildArgs),
    /// Learn further pictures of good parts: a new bank with those of another and these.
    Add(AddArgs),
    /// Find the thresholds of a bank again: a new bank with the same vectors.
    Fit(FitArgs),
    /// Measure a bank on pictures whose state is known.
    Evaluate(EvaluateArgs),
    /// Measure how long model and search take, for the exact and the fast search.
    Bench(bank_bench::BenchArgs),
    /// Try sizes and options and compare accuracy, bank size and time.
    Sweep(SweepArgs),
    /// Show why a picture scores as it does, beside the learnt picture that is most alike.
    Explain(ExplainArgs),
}

/// Which pictures are learnt.
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("source").required(true).args(["images", "split"])))]
pub struct PictureArgs {
    /// Folder of pictures of good parts; every picture in it is learnt.
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// JSON file whose `train` list names the pictures to learn, below --root.
    #[arg(long, value_name = "FILE", requires = "root")]
    split: Option<PathBuf>,
    /// Folder the split's file names are relative to.
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
struct BuildArgs {
    #[command(flatten)]
    pictures: PictureArgs,
    /// Folder to write the bank to; it must not exist.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Share of the patches kept in the bank, above 0 and at most 1.
    #[arg(long, value_name = "RATIO", default_value_t = BankOptions::default().coreset_ratio)]
    coreset: f64,
    /// Seconds that choosing the patches may take; the bank is then smaller than asked for. No limit if not given.
    #[arg(long, value_name = "S")]
    budget_s: Option<f32>,
    /// Name of the feature model, a folder below the models folder.
    #[arg(long, value_name = "NAME", default_value = "mobilenetv2")]
    model: String,
    /// Folder of model folders.
    #[arg(long, value_name = "DIR", default_value = "models")]
    models: PathBuf,
    /// Size in pixels that pictures (or tiles) are stretched to, one side or width and height; the model's own size if not given.
    #[arg(long, value_name = "PX", num_args = 1..=2)]
    input_px: Vec<u32>,
    /// Seed of the coreset; the same pictures and seed give the same bank.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Name these pictures, a pose or a camera angle; others follow by `bank add --group OTHER`. A picture is then compared
    /// with the group that is most alike, or with the one its recipe names.
    #[arg(long, value_name = "NAME")]
    group: Option<String>,
    /// Where good ends: `headroom` (above all good pictures) or `false-reject=RATE` (at most this share of good pictures).
    #[arg(long, value_name = "RULE", default_value = "headroom")]
    threshold: String,
    /// How sure a false-reject rate must be, such as 0.95; in the mean if not given.
    #[arg(long, value_name = "RATIO")]
    confidence: Option<f64>,
    #[command(flatten)]
    view: ViewArgs,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct AddArgs {
    /// Folder of the bank to start from; it is not changed.
    #[arg(long, value_name = "DIR")]
    bank: PathBuf,
    #[command(flatten)]
    pictures: PictureArgs,
    /// Folder to write the new bank to; it must not exist.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Group the pictures belong to, an old or a new one; not needed for a bank without named groups.
    #[arg(long, value_name = "NAME")]
    group: Option<String>,
    /// Share of the new pictures' patches that is added, above 0 and at most 1; the bank's own share if not given.
    #[arg(long, value_name = "RATIO")]
    coreset: Option<f64>,
    /// Seconds that choosing the patches may take. No limit if not given.
    #[arg(long, value_name = "S")]
    budget_s: Option<f32>,
    /// Folder of model folders.
    #[arg(long, value_name = "DIR", default_value = "models")]
    models: PathBuf,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

/// Run `loupe bank`.
///
/// # Errors
/// When pictures, models or the bank cannot be read or written.
pub fn run(args: Args) -> anyhow::Result<()> {
    match args.command {
        Command::Build(args) => build(&args),
        Command::Add(args) => add(&args),
        Command::Fit(args) => fit(&args),
        Command::Evaluate(args) => evaluate(&args),
        Command::Bench(args) => bank_bench::run(&args),
        Command::Sweep(args) => sweep(&args),
        Command::Explain(args) => explain(&args),
    }
}

/// Build a bank of every picture in `images` with the default options.
///
/// # Errors
/// When the pictures or the model cannot be read, or `out` exists or cannot be written.
pub fn build_from_folder(images: &Path, out: &Path, models: &Path, model: &str) -> anyhow::Result<Bank> {
    ensure_absent(out)?;
    let builder = BankBuilder::new(open_model(models, model)?, BankOptions::default())?;
    learn(builder, &pictures_in(images)?, out)
}

impl PictureArgs {
    /// # Errors
    /// When the list or the folder cannot be read.
    pub fn paths(&self) -> anyhow::Result<Vec<PathBuf>> {
        match (&self.images, &self.split, &self.root) {
            (Some(images), _, _) => pictures_in(images),
            (None, Some(split), Some(root)) => {
                Ok(Split::read(split)?.train.iter().map(|file| root.join(file)).collect())
            }
            _ => anyhow::bail!("name the pictures with --images, or with --split and --root"),
        }
    }
}

fn build(args: &BuildArgs) -> anyhow::Result<()> {
    ensure_absent(&args.out)?;
    let input_px = match args.input_px[..] {
        [] => None,
        [side] => Some((side, side)),
        [width, height, ..] => Some((width, height)),
    };
    let mut options = BankOptions {
        coreset_ratio: args.coreset,
        input_px,
        seed: args.seed,
        group: args.group.clone().unwrap_or_default(),
        budget_s: args.budget_s,
        threshold: threshold_rule(&args.threshold, args.confidence)?,
        ..BankOptions::default()
    };
    args.view.apply(&mut options);
    let builder = BankBuilder::new(open_model(&args.models, &args.model)?, options)?;
    let bank = learn(builder, &args.pictures.paths()?, &args.out)?;
    report(&bank, args.json)
}

fn add(args: &AddArgs) -> anyhow::Result<()> {
    ensure_absent(&args.out)?;
    let parent = Bank::open(&args.bank)?;
    let model = open_model(&args.models, &parent.manifest().model.name)?;
    let options = BankOptions {
        coreset_ratio: args.coreset.unwrap_or(parent.manifest().coreset_ratio),
        group: args.group.clone().unwrap_or_default(),
        budget_s: args.budget_s,
        ..BankOptions::default()
    };
    let builder = BankBuilder::extending(parent, model, options)?;
    let bank = learn(builder, &args.pictures.paths()?, &args.out)?;
    report(&bank, args.json)
}

fn learn(mut builder: BankBuilder, pictures: &[PathBuf], out: &Path) -> anyhow::Result<Bank> {
    let progress = progress_bar(pictures.len(), "learning");
    for (copy, first) in learn_each(&mut builder, pictures, &progress)? {
        progress.suspend(|| eprintln!("left out   {}: the same picture as {}", copy.display(), first.display()));
    }
    progress.set_message("choosing the coreset");
    progress.set_position(0);
    let bank = builder.finish_with(out, &|chosen, total| {
        progress.set_length(total as u64);
        progress.set_position(chosen as u64);
    })?;
    progress.finish_and_clear();
    Ok(bank)
}

/// Learn from every picture once. Copies are left out, and returned with the picture that they are copies of: scored by a
/// bank that knows its copy, a picture looks as if nothing good could ever differ.
///
/// # Errors
/// When a picture cannot be read or learnt.
pub fn learn_each<'p>(
    builder: &mut BankBuilder,
    pictures: &'p [PathBuf],
    progress: &ProgressBar,
) -> anyhow::Result<Vec<(&'p Path, &'p Path)>> {
    let (mut seen, mut copies) = (HashMap::new(), Vec::new());
    for path in pictures {
        let image = capture::read_image(path)?;
        let first = *seen.entry((image.width_px(), Digest::of(image.bgr()))).or_insert(path);
        if std::ptr::eq(first, path) {
            let note = note_of(path, &image)?;
            builder.add_noted(&image, note).with_context(|| format!("cannot learn `{}`", path.display()))?;
        } else {
            copies.push((path.as_path(), first.as_path()));
        }
        progress.inc(1);
    }
    Ok(copies)
}

fn note_of(path: &Path, image: &Image) -> anyhow::Result<PictureNote> {
    let small = capture::resize_to_width(image, THUMBNAIL_WIDTH_PX)?;
    let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    Ok(PictureNote { name, thumbnail: Some(capture::encode_jpeg(&small, THUMBNAIL_QUALITY)?) })
}

/// Learnt pictures that stand out: name, score, and the highest of those that do not.
fn doubtful(bank: &Bank) -> Vec<(&str, f32, f32)> {
    let of_group = |pictures: &'_ [Picture]| {
        let scores: Vec<f32> = pictures.iter().map(|picture| picture.image_score).collect();
        let found = outliers(&scores);
        let others = (0..scores.len()).filter(|at| !found.contains(at)).map(|at| scores[at]).fold(0.0, f32::max);
        (found, others)
    };
    let groups = bank.pictures().into_iter();
    let doubtful = groups.flat_map(|pictures| {
        let (found, others) = of_group(pictures);
        found.into_iter().map(move |at| (pictures[at].name.as_str(), pictures[at].image_score, others))
    });
    doubtful.collect()
}

/// Tell what was built.
///
/// # Errors
/// When it cannot be written as JSON.
pub fn report(bank: &Bank, as_json: bool) -> anyhow::Result<()> {
    let manifest = bank.manifest();
    if as_json {
        let doubtful: Vec<&str> = doubtful(bank).into_iter().map(|(name, ..)| name).collect();
        let document = serde_json::json!({ "bank": bank.folder(), "sha256": bank.sha256(), "manifest": manifest,
            "doubtful": doubtful });
        println!("{document}");
        return Ok(());
    }
    println!("bank       {}", bank.folder().display());
    println!("sha256     {}", bank.sha256());
    println!("learnt     {} pictures at {}x{} px", manifest.train_count, manifest.input_px[0], manifest.input_px[1]);
    println!("view       {}", view_in_words(&manifest.view));
    println!("vectors    {} of {} values", bank.len(), manifest.dim);
    for group in &manifest.groups {
        let (image, pixel) = (group.image_threshold_raw, group.pixel_threshold_raw);
        let name = if group.name.is_empty() { String::new() } else { format!(", group {}", group.name) };
        println!("threshold  {image:.4} (image), {pixel:.4} (pixel){name}");
        println!("           {}", rule_in_words(manifest.rule_of(group)));
    }
    if manifest.train_count < FEW_PICTURES {
        println!(
            "few        in so few pictures good parts may not differ as they do on the line; {FEW_PICTURES} or more are better"
        );
    }
    for (name, score, others) in doubtful(bank) {
        println!(
            "look at    {name}: it scores {score:.2}, the others {others:.2} at most; build without it if it is not good"
        );
    }
    Ok(())
}

/// # Errors
/// When `out` exists.
pub fn ensure_absent(out: &Path) -> anyhow::Result<()> {
    anyhow::ensure!(!out.exists(), "`{}` exists already; remove it or name another folder", out.display());
    Ok(())
}

/// # Errors
/// When the model cannot be read or run.
pub fn open_model(models: &Path, name: &str) -> anyhow::Result<FeatureModel> {
    let manifest = ModelManifest::load(&models.join(name))?;
    Ok(FeatureModel::open(&Runtime::load(None)?, &manifest, &ProviderPlan::default())?)
}

/// # Errors
/// When the bank or its model cannot be used, or it has no such group.
pub fn open_scorer(bank: &Path, models: &Path, group: Option<&str>) -> anyhow::Result<PatchCore> {
    let scorer = PatchCore::open(bank, &Runtime::load(None)?, models, &ProviderPlan::default())?;
    Ok(match group {
        Some(name) => scorer.only_group(name)?,
        None => scorer,
    })
}

/// Drawn on stderr, and only when that is a terminal.
pub fn progress_bar(steps: usize, message: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len}").unwrap_or(ProgressStyle::default_bar());
    ProgressBar::new(steps as u64).with_style(style).with_message(message)
}
