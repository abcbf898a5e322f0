//! `loupe bank`: build memory banks of good surfaces and measure how well they find defects.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Subcommand;
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};

use super::bank_bench::{self, SearchName};
use crate::anomaly::metrics::{self, PixelMetrics};
use crate::anomaly::{Bank, BankBuilder, BankOptions, PatchCore};
use crate::capture;
use crate::clock::Stopwatch;
use crate::inference::{FeatureModel, ModelManifest, ProviderPlan, Runtime};

/// Build and evaluate memory banks of good surfaces (PatchCore).
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Learn a bank from pictures of good parts.
    Build(BuildArgs),
    /// Measure a bank on pictures whose state is known.
    Evaluate(EvaluateArgs),
    /// Measure how long model and search take, for the exact and the fast search.
    Bench(bank_bench::BenchArgs),
}

#[derive(Debug, clap::Args)]
struct BuildArgs {
    /// Folder of pictures of good parts; every picture in it is learnt.
    #[arg(long, value_name = "DIR", required_unless_present = "split", conflicts_with = "split")]
    images: Option<PathBuf>,
    /// JSON file whose `train` list names the pictures to learn.
    #[arg(long, value_name = "FILE", requires = "root")]
    split: Option<PathBuf>,
    /// Folder the split's file names are relative to.
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Folder to write the bank to; it must not exist.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Share of the patches kept in the bank, above 0 and at most 1.
    #[arg(long, value_name = "RATIO", default_value_t = BankOptions::default().coreset_ratio)]
    coreset: f64,
    /// Name of the feature model, a folder below the models folder.
    #[arg(long, value_name = "NAME", default_value = "mobilenetv2")]
    model: String,
    /// Folder of model folders.
    #[arg(long, value_name = "DIR", default_value = "models")]
    models: PathBuf,
    /// Size in pixels that pictures are stretched to, one side or width and height; the model's own size if not given.
    #[arg(long, value_name = "PX", num_args = 1..=2)]
    input_px: Vec<u32>,
    /// Seed of the coreset; the same pictures and seed give the same bank.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct EvaluateArgs {
    /// Folder of the bank.
    #[arg(long, value_name = "DIR")]
    bank: PathBuf,
    /// JSON file whose `test` list names pictures, their label (0 good, 1 bad) and, if there is one, their mask.
    #[arg(long, value_name = "FILE")]
    split: PathBuf,
    /// Folder the split's file names are relative to.
    #[arg(long, value_name = "DIR")]
    root: PathBuf,
    /// Folder of model folders.
    #[arg(long, value_name = "DIR", default_value = "models")]
    models: PathBuf,
    /// How the bank is searched; the image score is the same, the map may differ.
    #[arg(long, value_enum, default_value_t = SearchName::Exact)]
    search: SearchName,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

/// Lists of pictures; other keys of the file are not for us.
#[derive(Debug, Deserialize)]
struct Split {
    #[serde(default)]
    train: Vec<PathBuf>,
    #[serde(default)]
    test: Vec<TestPicture>,
}

#[derive(Debug, Deserialize)]
struct TestPicture {
    file: PathBuf,
    label: Label,
    /// Not black where the part is bad; of any size, stretched over the picture.
    mask: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "u8")]
enum Label {
    Good,
    Bad,
}

impl TryFrom<u8> for Label {
    type Error = String;

    fn try_from(value: u8) -> Result<Self, String> {
        match value {
            0 => Ok(Label::Good),
            1 => Ok(Label::Bad),
            other => Err(format!("label {other}: it must be 0 (good) or 1 (bad)")),
        }
    }
}

/// What `bank evaluate --json` prints; others script against it.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Report {
    image_auroc: Option<f64>,
    pixel_auroc: Option<f64>,
    aupro: Option<f64>,
    f1_max: Option<f64>,
    /// The bank's image threshold on the raw scale.
    threshold: f32,
    bank_size: usize,
    ms_per_image: StageMs,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
struct StageMs {
    backbone: f32,
    search: f32,
    map: f32,
    total: f32,
}

/// Run `loupe bank`.
///
/// # Errors
/// When pictures, models or the bank cannot be read or written.
pub fn run(args: Args) -> anyhow::Result<()> {
    match args.command {
        Command::Build(args) => build(&args),
        Command::Evaluate(args) => evaluate(&args),
        Command::Bench(args) => bank_bench::run(&args),
    }
}

/// Build a bank of every picture in `images` with the default options.
///
/// # Errors
/// When the pictures or the model cannot be read, or `out` exists or cannot be written.
pub fn build_from_folder(images: &Path, out: &Path, models: &Path, model: &str) -> anyhow::Result<Bank> {
    learn(&pictures_in(images)?, out, models, model, BankOptions::default())
}

fn build(args: &BuildArgs) -> anyhow::Result<()> {
    let pictures = match (&args.images, &args.split, &args.root) {
        (Some(images), _, _) => pictures_in(images)?,
        (None, Some(split), Some(root)) => read_split(split)?.train.iter().map(|file| root.join(file)).collect(),
        _ => anyhow::bail!("name the pictures with --images, or with --split and --root"),
    };
    let input_px = match args.input_px[..] {
        [] => None,
        [side] => Some((side, side)),
        [width, height, ..] => Some((width, height)),
    };
    let options = BankOptions { coreset_ratio: args.coreset, input_px, seed: args.seed };
    let bank = learn(&pictures, &args.out, &args.models, &args.model, options)?;
    if args.json {
        let document = serde_json::json!({ "bank": args.out, "sha256": bank.sha256(), "manifest": bank.manifest() });
        println!("{document}");
    } else {
        let manifest = bank.manifest();
        println!("bank       {}", args.out.display());
        println!("sha256     {}", bank.sha256());
        println!(
            "learnt     {} pictures at {}x{} px",
            manifest.train_count, manifest.input_px[0], manifest.input_px[1]
        );
        println!("vectors    {} of {} values", bank.len(), manifest.dim);
        println!("threshold  {:.4} (image), {:.4} (pixel)", manifest.image_threshold_raw, manifest.pixel_threshold_raw);
    }
    Ok(())
}

fn learn(pictures: &[PathBuf], out: &Path, models: &Path, model: &str, options: BankOptions) -> anyhow::Result<Bank> {
    anyhow::ensure!(!out.exists(), "`{}` exists already; remove it or name another folder", out.display());
    let manifest = ModelManifest::load(&models.join(model))?;
    let runtime = Runtime::load(None)?;
    let model = FeatureModel::open(&runtime, &manifest, &ProviderPlan::default())?;
    let mut builder = BankBuilder::new(model, options)?;
    let progress = progress_bar(pictures.len(), "learning");
    for path in pictures {
        let image = capture::read_image(path)?;
        builder.add(&image).with_context(|| format!("cannot learn `{}`", path.display()))?;
        progress.inc(1);
    }
    progress.set_message("choosing the coreset");
    let bank = builder.finish(out)?;
    progress.finish_and_clear();
    Ok(bank)
}

fn evaluate(args: &EvaluateArgs) -> anyhow::Result<()> {
    let split = read_split(&args.split)?;
    anyhow::ensure!(!split.test.is_empty(), "`{}` has no `test` pictures", args.split.display());
    let mut scorer = PatchCore::open(&args.bank, &Runtime::load(None)?, &args.models, &ProviderPlan::default())?;
    scorer.set_search(args.search.mode());
    let mut tally = Tally::default();
    let progress = progress_bar(split.test.len(), "scoring");
    for picture in &split.test {
        tally.add(&mut scorer, picture, &args.root)?;
        progress.inc(1);
    }
    progress.finish_and_clear();
    let report = tally.report(scorer.bank());
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        tally.print(&report);
    }
    Ok(())
}

/// Scores so far.
#[derive(Debug, Default)]
struct Tally {
    /// Raw score, whether it is bad, whether the bank says so.
    scores: Vec<(f32, bool, bool)>,
    pixels: PixelMetrics,
    summed_ms: StageMs,
}

impl Tally {
    fn add(&mut self, scorer: &mut PatchCore, picture: &TestPicture, root: &Path) -> anyhow::Result<()> {
        let path = root.join(&picture.file);
        let image = capture::read_image(&path)?;
        let watch = Stopwatch::start();
        let result = scorer.score(&image).with_context(|| format!("cannot score `{}`", path.display()))?;
        self.summed_ms.total += watch.ms();
        self.summed_ms.backbone += result.backbone_ms;
        self.summed_ms.search += result.search_ms;
        self.summed_ms.map += result.map_ms;
        let (is_bad, evidence) = (picture.label == Label::Bad, &result.evidence);
        self.scores.push((evidence.score_raw, is_bad, evidence.score >= evidence.threshold));
        let map = &result.map;
        match &picture.mask {
            Some(mask) => {
                let mask = read_mask(&root.join(mask), map.width, map.height)?;
                self.pixels.add(&map.data, Some(&mask), map.width);
            }
            None if !is_bad => self.pixels.add(&map.data, None, map.width),
            // a bad picture without a mask says nothing about its pixels
            None => {}
        }
        Ok(())
    }

    fn report(&self, bank: &Bank) -> Report {
        let scores: Vec<(f32, bool)> = self.scores.iter().map(|(score, is_bad, _)| (*score, *is_bad)).collect();
        let count = self.scores.len().max(1) as f32;
        Report {
            image_auroc: metrics::auroc(&scores),
            pixel_auroc: self.pixels.auroc(),
            aupro: self.pixels.aupro(),
            f1_max: metrics::f1_max(&scores),
            threshold: bank.manifest().image_threshold_raw,
            bank_size: bank.len(),
            ms_per_image: StageMs {
                backbone: self.summed_ms.backbone / count,
                search: self.summed_ms.search / count,
                map: self.summed_ms.map / count,
                total: self.summed_ms.total / count,
            },
        }
    }

    fn print(&self, report: &Report) {
        let number = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.4}"));
        let called = |is_bad: bool| self.scores.iter().filter(move |(_, label, _)| *label == is_bad);
        let right = |is_bad: bool| called(is_bad).filter(|(_, _, verdict)| *verdict == is_bad).count();
        println!("image AUROC  {}", number(report.image_auroc));
        println!("pixel AUROC  {}", number(report.pixel_auroc));
        println!("AUPRO        {}", number(report.aupro));
        println!("best F1      {}", number(report.f1_max));
        println!("threshold    {:.4} (raw)", report.threshold);
        println!("  good       {} of {} below it", right(false), called(false).count());
        println!("  bad        {} of {} from it on", right(true), called(true).count());
        println!("vectors      {}", report.bank_size);
        let ms = report.ms_per_image;
        println!(
            "ms a picture {:.1} (backbone {:.1}, search {:.1}, map {:.1}), decoding not counted",
            ms.total, ms.backbone, ms.search, ms.map
        );
    }
}

/// `[height, width]`, true where the mask is not black, sampled at pixel centres.
fn read_mask(path: &Path, width: usize, height: usize) -> anyhow::Result<Vec<bool>> {
    let mask = capture::read_image(path)?;
    let (mask_width, mask_height) = (mask.width_px() as usize, mask.height_px() as usize);
    let is_bad = |index: usize| {
        let (x, y) = (index % width, index / width);
        let (mask_x, mask_y) = ((2 * x + 1) * mask_width / (2 * width), (2 * y + 1) * mask_height / (2 * height));
        mask.bgr()[(mask_y * mask_width + mask_x) * 3..][..3].iter().any(|value| *value > 0)
    };
    Ok((0..width * height).map(is_bad).collect())
}

fn read_split(path: &Path) -> anyhow::Result<Split> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read the split `{}`", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("the split `{}` is not as expected", path.display()))
}

/// Pictures of a folder, by name.
fn pictures_in(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries =
        std::fs::read_dir(folder).with_context(|| format!("cannot read the folder `{}`", folder.display()))?;
    let mut pictures = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("cannot read the folder `{}`", folder.display()))?.path();
        let extension = path.extension().and_then(|extension| extension.to_str()).map(str::to_ascii_lowercase);
        if extension.is_some_and(|extension| capture::PICTURE_EXTENSIONS.contains(&extension.as_str())) {
            pictures.push(path);
        }
    }
    anyhow::ensure!(!pictures.is_empty(), "`{}` holds no pictures", folder.display());
    pictures.sort();
    Ok(pictures)
}

/// Drawn on stderr, and only when that is a terminal.
fn progress_bar(steps: usize, message: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len}").unwrap_or(ProgressStyle::default_bar());
    ProgressBar::new(steps as u64).with_style(style).with_message(message)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{Label, Report, Split, StageMs, pictures_in, read_mask};

    #[test]
    fn a_split_may_say_more_than_we_read_but_not_another_label() {
        let text = r#"{"train": ["a.jpg"], "test": [{"file": "b.jpg", "label": 1, "mask": "m.png", "kind": "pit"}]}"#;
        let split: Split = serde_json::from_str(text).unwrap();
        assert_eq!((split.train.len(), split.test[0].label), (1, Label::Bad));
        let error = serde_json::from_str::<Split>(&text.replace(": 1", ": 2")).unwrap_err().to_string();
        assert!(error.contains("label 2"), "{error}");
    }

    #[test]
    fn the_report_keeps_its_keys_and_says_null_without_masks() {
        let report = Report {
            image_auroc: Some(1.0),
            pixel_auroc: None,
            aupro: None,
            f1_max: Some(0.5),
            threshold: 2.0,
            bank_size: 3,
            ms_per_image: StageMs::default(),
        };
        let expected = r#"{"image_auroc":1.0,"pixel_auroc":null,"aupro":null,"f1_max":0.5,"threshold":2.0,"bank_size":3,"ms_per_image":{"backbone":0.0,"search":0.0,"map":0.0,"total":0.0}}"#;
        assert_eq!(serde_json::to_string(&report).unwrap(), expected);
    }

    #[test]
    fn a_mask_is_sampled_at_pixel_centres() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mask.png");
        let bgr = [0, 255, 0, 0].into_iter().flat_map(|value: u8| [value; 3]).collect();
        let mask = crate::types::Image::from_bgr(4, 1, bgr).unwrap();
        std::fs::write(&path, crate::capture::encode_png(&mask).unwrap()).unwrap();
        assert_eq!(read_mask(&path, 4, 1).unwrap(), [false, true, false, false]);
        assert_eq!(read_mask(&path, 2, 1).unwrap(), [true, false]);
    }

    #[test]
    fn folders_without_pictures_are_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("notes.txt"), "no picture").unwrap();
        let error = pictures_in(dir.path()).unwrap_err().to_string();
        assert!(error.contains(&dir.path().display().to_string()), "{error}");
        assert!(pictures_in(Path::new("/nowhere")).is_err());
    }
}
