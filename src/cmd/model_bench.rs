//! `loupe model bench` and `tune`: where a detector's time goes, what batching brings, and how many threads a model wants here.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use serde_json::json;

use super::model_cameras;
use crate::capture;
use crate::clock::Stopwatch;
use crate::inference::{
    Element, ModelManifest, Placement, Preprocessor, ProviderPlan, Runtime, Tuning, TuningRow, measure_threads,
};
use crate::limits::BATCH_PICTURES_MAX;
use crate::locate::{DetectorLocator, DetectorOptions};
use crate::types::{BoundingBox, Image};

/// Of one way of asking in one round.
const ROUND_SPAN: Duration = Duration::from_millis(1_500);

#[derive(Debug, clap::Args)]
pub struct BenchArgs {
    /// Folder of the model: a detector, or with --cameras any model.
    #[arg(value_name = "DIR")]
    model: PathBuf,
    /// Measure instead what batching brings to this many cameras that ask one model at once.
    #[arg(long, value_name = "N")]
    cameras: Option<usize>,
    /// With --cameras: milliseconds within which a camera wants its answer.
    #[arg(long, value_name = "MS", default_value_t = 50.0, requires = "cameras")]
    deadline_ms: f64,
    /// With --cameras: pictures in one run; as many as there are cameras if not given, at most 64.
    #[arg(long, value_name = "N", requires = "cameras")]
    batch_max: Option<usize>,
    /// With --cameras: side of the input in pixels, for models that leave it open; the manifest's if not given.
    #[arg(long, value_name = "PX", requires = "cameras")]
    input_px: Option<u32>,
    /// With --cameras: rounds, in each of which every way is measured for a second and a half.
    #[arg(long, value_name = "N", default_value_t = 5, requires = "cameras")]
    rounds: usize,
    /// Picture to run on; a synthetic one of 640x480 if not given.
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// Runs; medians are printed.
    #[arg(long, value_name = "N", default_value_t = 100)]
    runs: usize,
    /// ONNX Runtime's shared library, where it is not in the usual places.
    #[arg(long, value_name = "FILE")]
    onnxruntime: Option<PathBuf>,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub struct TuneArgs {
    /// Folder of the model.
    #[arg(value_name = "DIR")]
    model: PathBuf,
    /// What counts: inferences per second of all cores together, or the time of one inference alone.
    #[arg(long, value_name = "GOAL", value_enum, default_value = "throughput")]
    goal: Goal,
    /// Inferences for each setting.
    #[arg(long, value_name = "N", default_value_t = 30)]
    runs: usize,
    /// Measure and print only; write nothing.
    #[arg(long)]
    dry_run: bool,
    /// ONNX Runtime's shared library, where it is not in the usual places.
    #[arg(long, value_name = "FILE")]
    onnxruntime: Option<PathBuf>,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Goal {
    Throughput,
    Latency,
}

/// Measure pre-processing, model and decoding apart.
///
/// # Errors
/// When the model or the picture cannot be used.
pub fn run_bench(args: &BenchArgs) -> anyhow::Result<()> {
    let manifest = ModelManifest::load(&args.model)?;
    let runtime = Runtime::load(args.onnxruntime.as_deref())?;
    if let Some(cameras) = args.cameras {
        return run_cameras(args, cameras, &runtime, &manifest);
    }
    let image = match &args.image {
        Some(path) => capture::read_image(path)?,
        None => synthetic(640, 480, 1),
    };
    let mut locator = DetectorLocator::open(&runtime, &manifest, &ProviderPlan::default(), DetectorOptions::default())?;
    let (mut totals, mut sessions) = (Vec::new(), Vec::new());
    locator.locate(&image)?;
    for _ in 0..args.runs.max(1) {
        let before = locator.session_ms();
        let watch = Stopwatch::start();
        locator.locate(&image)?;
        totals.push(watch.elapsed().as_secs_f64() * 1_000.0);
        sessions.push(locator.session_ms() - before);
    }
    let mut overheads: Vec<f64> = totals.iter().zip(&sessions).map(|(total, session)| total - session).collect();
    let (total_ms, session_ms, overhead_ms) = (median(&mut totals), median(&mut sessions), median(&mut overheads));
    let preprocess_ms = preprocess(&manifest, &image, args.runs)?;
    let full_hd_ms = preprocess(&manifest, &synthetic(1920, 1080, 1), args.runs)?;
    let overhead_ratio = overhead_ms / session_ms.max(1e-9);
    if args.json {
        let document = json!({ "model": manifest.name(), "width_px": image.width_px(), "height_px": image.height_px(),
            "runs": args.runs, "total_ms": total_ms, "session_ms": session_ms, "overhead_ms": overhead_ms,
            "overhead_ratio": overhead_ratio, "preprocess_ms": preprocess_ms, "preprocess_full_hd_ms": full_hd_ms });
        println!("{}", serde_json::to_string(&document)?);
        return Ok(());
    }
    let [width_px, height_px] = manifest.input().size_px;
    println!("picture        {}x{}, input {width_px}x{height_px}", image.width_px(), image.height_px());
    println!("whole          {total_ms:.3} ms");
    println!("model alone    {session_ms:.3} ms");
    println!("the rest       {overhead_ms:.3} ms ({:.1} % of the model)", overhead_ratio * 100.0);
    println!("pre-processing {preprocess_ms:.3} ms; of a frame of 1920x1080 {full_hd_ms:.3} ms");
    Ok(())
}

fn run_cameras(
    args: &BenchArgs,
    cameras: usize,
    runtime: &Arc<Runtime>,
    manifest: &ModelManifest,
) -> anyhow::Result<()> {
    anyhow::ensure!((0.0..=600_000.0).contains(&args.deadline_ms), "--deadline-ms must be 0 to 600000");
    let plan = model_cameras::Plan {
        cameras,
        deadline: Duration::from_secs_f64(args.deadline_ms / 1_000.0),
        batch_max: args.batch_max.unwrap_or(cameras.min(BATCH_PICTURES_MAX)),
        input_px: args.input_px,
        rounds: args.rounds,
        span: ROUND_SPAN,
    };
    let report = model_cameras::measure(runtime, manifest, plan)?;
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        println!("{report}");
    }
    Ok(())
}

fn preprocess(manifest: &ModelManifest, image: &Image, runs: usize) -> anyhow::Result<f64> {
    let [width_px, height_px] = manifest.input().size_px;
    let placement = Placement::of(manifest.input().resize, manifest.letterbox_placement());
    let mut preprocessor = Preprocessor::new(manifest.input(), Element::F32);
    let area = BoundingBox::whole(image.width_px(), image.height_px());
    let mut times = Vec::new();
    for _ in 0..=runs.max(1) {
        let watch = Stopwatch::start();
        preprocessor.begin(1, (width_px, height_px)).map_err(anyhow::Error::msg)?;
        preprocessor.fill(0, image, &area, placement).map_err(anyhow::Error::msg)?;
        times.push(watch.elapsed().as_secs_f64() * 1_000.0);
    }
    Ok(median(&mut times[1..]))
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(0.0)
}

/// Every level in an order that no cache or branch can guess.
pub fn synthetic(width_px: u32, height_px: u32, seed: u32) -> Image {
    let count = width_px as usize * height_px as usize * 3;
    let mut state = seed;
    let bgr = (0..count).map(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    });
    let bgr: Vec<u8> = bgr.collect();
    // The length is that of the size, so this cannot fail.
    Image::from_bgr(width_px, height_px, bgr).unwrap_or_else(|error| unreachable!("{error}"))
}

/// Measure thread counts and write the best beside the model.
///
/// # Errors
/// When the model cannot be run or the file not be written.
pub fn run_tune(args: &TuneArgs) -> anyhow::Result<()> {
    let manifest = ModelManifest::load(&args.model)?;
    let runtime = Runtime::load(args.onnxruntime.as_deref())?;
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let [width_px, height_px] = manifest.input().size_px;
    let image = synthetic(width_px, height_px, 1);
    let mut rows: Vec<TuningRow> = Vec::new();
    let mut threads = 1;
    while threads <= cores {
        rows.push(measure_threads(&runtime, &manifest, &image, threads, cores, args.runs)?);
        threads *= 2;
    }
    let best = match args.goal {
        Goal::Throughput => rows.iter().max_by(|a, b| a.all_cores_per_s.total_cmp(&b.all_cores_per_s)),
        Goal::Latency => rows.iter().min_by(|a, b| a.alone_ms.total_cmp(&b.alone_ms)),
    };
    let tuning = Tuning::new(&manifest, &runtime, best.map_or(1, |row| row.intra_threads), rows);
    let path = if args.dry_run { None } else { Some(tuning.store(&manifest)?) };
    if args.json {
        println!("{}", json!({ "tuning": tuning, "file": path }));
        return Ok(());
    }
    println!("{}", tuning.machine);
    println!("{:>8} {:>14} {:>22}", "threads", "alone", "all cores at once");
    for row in &tuning.rows {
        println!("{:8} {:11.2} ms {:14.1} runs/s", row.intra_threads, row.alone_ms, row.all_cores_per_s);
    }
    match path {
        Some(path) => println!("{} threads a session, written to {}", tuning.intra_threads, path.display()),
        None => println!("{} threads a session (not written)", tuning.intra_threads),
    }
    Ok(())
}
