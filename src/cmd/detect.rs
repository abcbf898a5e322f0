//! `loupe detect`: see what a detector finds, and measure it against annotations.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Subcommand;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::json;

use super::Failure;
use crate::capture::{self, Payload};
use crate::clock::{Clock, Stopwatch};
use crate::inference::{ModelManifest, ProviderPlan, Runtime};
use crate::limits;
use crate::locate::coco::{ANY_CLASS, AveragePrecision, CocoFile, Evaluator};
use crate::locate::{BoxMask, DetectorLocator, DetectorOptions, Segment};
use crate::shutdown::Shutdown;
use crate::types::Image;

/// See what a detector finds, and measure it against annotations.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the boxes that a detector finds in pictures and videos.
    Run(RunArgs),
    /// Compute mAP50 and mAP50-95 against COCO annotations, as pycocotools computes them.
    Evaluate(EvaluateArgs),
}

/// How a detector is read.
#[derive(Debug, clap::Args)]
struct DetectorArgs {
    /// Folder of the detector, with its manifest.toml.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Overlap (IoU) beyond which two boxes of a class are one thing, 0 to 1.
    #[arg(long, value_name = "IOU", default_value_t = DetectorOptions::default().iou_max)]
    iou_max: f32,
    /// Look at squares of this side instead of the whole picture, pixels; 0 = the whole picture.
    #[arg(long, value_name = "PX", default_value_t = 0)]
    tile_px: u32,
    /// How much neighbouring tiles share at least, pixels.
    #[arg(long, value_name = "PX", default_value_t = DetectorOptions::default().tile_overlap_px)]
    tile_overlap_px: u32,
    /// ONNX Runtime threads within one operator.
    #[arg(long, value_name = "N", default_value_t = 1)]
    threads: usize,
    /// ONNX Runtime's shared library, where it is not in the usual places.
    #[arg(long, value_name = "FILE")]
    onnxruntime: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
struct RunArgs {
    #[command(flatten)]
    detector: DetectorArgs,
    /// Pictures, folders of pictures, or videos.
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Least score, 0 to 1; that of the model's manifest, or 0.3, if not given.
    #[arg(long, value_name = "SCORE")]
    score_min: Option<f32>,
    /// Boxes of different classes suppress each other too.
    #[arg(long)]
    class_agnostic: bool,
    /// One JSON object a picture instead of lines.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct EvaluateArgs {
    #[command(flatten)]
    detector: DetectorArgs,
    /// COCO annotations (JSON): images, annotations with `bbox`, categories.
    #[arg(long, value_name = "FILE")]
    coco: PathBuf,
    /// Folder that the images' file names start from.
    #[arg(long, value_name = "DIR")]
    root: PathBuf,
    /// Least score of a detection that counts, 0 to 1; low, because the curve needs the weak ones.
    #[arg(long, value_name = "SCORE", default_value_t = 0.001)]
    score_min: f32,
    /// Take all classes for one: is a thing found, whatever it is?
    #[arg(long)]
    class_agnostic: bool,
    /// Also write the detections in COCO's results format, to check with pycocotools.
    #[arg(long, value_name = "FILE")]
    results: Option<PathBuf>,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

/// Run the command.
///
/// # Errors
/// When the model, a picture or the annotations cannot be used.
pub fn run(args: Args) -> anyhow::Result<()> {
    match args.command {
        Command::Run(args) => run_paths(&args),
        Command::Evaluate(args) => evaluate(&args),
    }
}

impl DetectorArgs {
    fn open(&self, score_min: Option<f32>, class_agnostic: bool) -> anyhow::Result<DetectorLocator> {
        let options = DetectorOptions {
            score_min,
            iou_max: self.iou_max,
            class_agnostic,
            tile_px: self.tile_px,
            tile_overlap_px: self.tile_overlap_px,
            ..DetectorOptions::default()
        };
        if let Some((key, message)) = options.faults().into_iter().next() {
            return Err(Failure::usage(anyhow::anyhow!("--{} {message}", key.replace('_', "-"))).into());
        }
        if self.threads > limits::MODEL_THREADS_MAX {
            return Err(Failure::usage(anyhow::anyhow!(
                "--threads is {}, at most {} are allowed",
                self.threads,
                limits::MODEL_THREADS_MAX
            ))
            .into());
        }
        let manifest = ModelManifest::load(&self.model)?;
        let runtime = Runtime::load(self.onnxruntime.as_deref())?;
        let plan = ProviderPlan { intra_threads: Some(self.threads.max(1)), ..ProviderPlan::default() };
        Ok(DetectorLocator::open(&runtime, &manifest, &plan, options)?)
    }
}

#[derive(Debug, Serialize)]
struct FoundLine<'a> {
    source: &'a str,
    width_px: u32,
    height_px: u32,
    elapsed_ms: f32,
    detections: Vec<FoundBox<'a>>,
}

#[derive(Debug, Serialize)]
struct FoundBox<'a> {
    label: &'a str,
    confidence: f32,
    /// Left, top, right, bottom in pixels.
    bbox: [f32; 4],
    #[serde(skip_serializing_if = "Option::is_none")]
    mask: Option<FoundMask>,
}

/// A mask as run lengths, row by row, starting outside.
#[derive(Debug, Serialize)]
struct FoundMask {
    left_px: u32,
    top_px: u32,
    width: u32,
    height: u32,
    cell_px: u32,
    area_px: u64,
    runs: Vec<u32>,
}

impl FoundMask {
    fn of(mask: &BoxMask) -> Self {
        let &BoxMask { left_px, top_px, width, height, cell_px, .. } = mask;
        Self { left_px, top_px, width, height, cell_px, area_px: mask.area_px(), runs: mask.runs() }
    }
}

fn run_paths(args: &RunArgs) -> anyhow::Result<()> {
    let mut locator = args.detector.open(args.score_min, args.class_agnostic)?;
    let shutdown = Shutdown::new();
    super::signals::stop_on_signal(&shutdown)?;
    let mut source = capture::paths_source(&args.paths, None, Clock::system(), &shutdown)?;
    let mut unreadable = 0_usize;
    while let Some(frame) = source.next()? {
        let image = match frame.payload {
            Payload::Pixels(image) => Ok(image),
            Payload::Views(_) => Err(anyhow::anyhow!("{}: several pictures were not asked for", frame.source)),
            Payload::Encoded(bytes) => capture::decode_image(&bytes, &frame.source).map_err(anyhow::Error::from),
            Payload::Fault { message, .. } => Err(anyhow::anyhow!("{}: {message}", frame.source)),
        };
        match image {
            Ok(image) => print_found(&mut locator, &frame.source, &image, args.json)?,
            Err(error) => {
                eprintln!("loupe: {error:#}");
                unreadable += 1;
            }
        }
    }
    anyhow::ensure!(unreadable == 0, "{unreadable} pictures could not be read");
    Ok(())
}

fn print_found(locator: &mut DetectorLocator, source: &str, image: &Image, json: bool) -> anyhow::Result<()> {
    let watch = Stopwatch::start();
    let segments = locator.locate_segments(image).with_context(|| source.to_owned())?;
    let elapsed_ms = watch.ms();
    if json {
        let detections = segments.iter().map(|Segment { detection, mask }| FoundBox {
            label: &detection.label,
            confidence: detection.confidence,
            bbox: detection.bbox.into(),
            mask: mask.as_ref().map(FoundMask::of),
        });
        let (width_px, height_px) = (image.width_px(), image.height_px());
        let line = FoundLine { source, width_px, height_px, elapsed_ms, detections: detections.collect() };
        println!("{}", serde_json::to_string(&line)?);
        return Ok(());
    }
    println!("{source}: {} found in {elapsed_ms:.1} ms", segments.len());
    for Segment { detection, mask } in &segments {
        let [x1, y1, x2, y2] = <[f32; 4]>::from(detection.bbox);
        let mask = mask.as_ref().map_or(String::new(), |mask| format!("  mask {} px", mask.area_px()));
        println!("  {:20} {:.3}  {x1:.1} {y1:.1} {x2:.1} {y2:.1}{mask}", detection.label, detection.confidence);
    }
    Ok(())
}

fn evaluate(args: &EvaluateArgs) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(&args.coco).with_context(|| args.coco.display().to_string())?;
    let mut coco = CocoFile::parse(&text)
        .map_err(|message| Failure::config(anyhow::anyhow!("{} {message}", args.coco.display())))?;
    coco.images.sort_by_key(|image| image.id);
    let mut locator = args.detector.open(Some(args.score_min), args.class_agnostic)?;
    let categories: Vec<&str> = coco.categories.iter().map(|category| category.name.as_str()).collect();
    let known = locator.classes().iter().filter(|class| categories.contains(&class.as_str())).count();
    if known == 0 && !args.class_agnostic {
        return Err(Failure::config(anyhow::anyhow!(
            "none of the model's classes ({}) is a category of {}; name them alike in the manifest, or compare without \
             classes by --class-agnostic",
            locator.classes().join(", "),
            args.coco.display()
        ))
        .into());
    }
    let unknown: Vec<&str> =
        locator.classes().iter().map(String::as_str).filter(|class| !categories.contains(class)).collect();
    if !unknown.is_empty() && !args.class_agnostic {
        eprintln!(
            "no category of {} are {}: what the model finds of them counts nowhere",
            args.coco.display(),
            unknown.join(", ")
        );
    }
    let bar = progress(coco.images.len());
    let mut evaluator = Evaluator::default();
    let mut results = Vec::new();
    let watch = Stopwatch::start();
    for image in &coco.images {
        let path = args.root.join(&image.file_name);
        let picture = capture::read_image(&path)?;
        if let Some(fault) = image.size_fault(picture.width_px(), picture.height_px()) {
            let fault = anyhow::anyhow!("{}: {fault}", path.display());
            return Err(Failure::config(fault).into());
        }
        let mut detections = locator.locate(&picture).with_context(|| path.display().to_string())?;
        if args.class_agnostic {
            detections.iter_mut().for_each(|detection| ANY_CLASS.clone_into(&mut detection.label));
        }
        if args.results.is_some() {
            results.extend(detections.iter().map(|detection| {
                let [x1, y1, x2, y2] = <[f32; 4]>::from(detection.bbox);
                let category = coco.categories.iter().find(|category| category.name == detection.label);
                json!({ "image_id": image.id, "category_id": category.map_or(1, |category| category.id),
                    "bbox": [x1, y1, x2 - x1, y2 - y1], "score": detection.confidence })
            }));
        }
        evaluator.add(detections, coco.truths(image.id, args.class_agnostic));
        bar.inc(1);
    }
    bar.finish_and_clear();
    let elapsed_ms = f64::from(watch.ms());
    if let Some(path) = &args.results {
        write(path, &serde_json::to_string(&results)?)?;
    }
    print_precision(args, &evaluator.finish(), coco.images.len(), elapsed_ms, locator.session_ms())
}

fn print_precision(
    args: &EvaluateArgs,
    result: &AveragePrecision,
    image_count: usize,
    elapsed_ms: f64,
    session_ms: f64,
) -> anyhow::Result<()> {
    if args.json {
        let document = json!({ "model": args.detector.model, "images": image_count, "elapsed_ms": elapsed_ms,
            "session_ms": session_ms, "result": result });
        println!("{}", serde_json::to_string(&document)?);
        return Ok(());
    }
    let percent = |value: Option<f64>| value.map_or("no thing to find".to_owned(), |value| format!("{value:.4}"));
    println!("images       {image_count}, {} things, {} detections", result.truth_count, result.detection_count);
    println!("mAP50-95     {}", percent(result.map50_95));
    println!("mAP50        {}", percent(result.map50));
    println!("mAP75        {}", percent(result.map75));
    println!("mAR100       {}", percent(result.mar100));
    println!(
        "time         {:.1} ms a picture, {:.1} of them in the model",
        elapsed_ms / image_count.max(1) as f64,
        session_ms / image_count.max(1) as f64
    );
    if result.classes.len() <= 40 {
        println!("\n{:24} {:>7} {:>8} {:>8} {:>8}", "class", "things", "AP50-95", "AP50", "recall50");
        for class in &result.classes {
            println!(
                "{:24} {:7} {:8.4} {:8.4} {:8.4}",
                class.class, class.truth_count, class.ap50_95, class.ap50, class.recall50
            );
        }
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn progress(count: usize) -> ProgressBar {
    let bar = if console_is_terminal() { ProgressBar::new(count as u64) } else { ProgressBar::hidden() };
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} pictures, {eta} left") {
        bar.set_style(style);
    }
    bar
}

fn console_is_terminal() -> bool {
    std::io::IsTerminal::is_terminal(&std::io::stderr())
}
