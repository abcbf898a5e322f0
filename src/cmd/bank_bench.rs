//! `loupe bank bench`: how long the model and the bank's search take, exact and fast in turns.

use std::path::PathBuf;

use clap::ValueEnum;
use serde::Serialize;

use crate::anomaly::{PatchCore, SearchMode};
use crate::capture;
use crate::inference::{ProviderPlan, Runtime};
use crate::types::Image;

/// How a bank is searched, on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SearchName {
    Exact,
    Fast,
}

impl SearchName {
    pub fn mode(self) -> SearchMode {
        match self {
            SearchName::Exact => SearchMode::Exact,
            SearchName::Fast => SearchMode::Fast,
        }
    }
}

#[derive(Debug, clap::Args)]
pub struct BenchArgs {
    /// Folder of the bank.
    #[arg(long, value_name = "DIR")]
    bank: PathBuf,
    /// Pictures to score.
    #[arg(long, value_name = "FILE", num_args = 1.., required = true)]
    images: Vec<PathBuf>,
    /// Folder of model folders.
    #[arg(long, value_name = "DIR", default_value = "models")]
    models: PathBuf,
    /// Threads of the model and of the search.
    #[arg(long, value_name = "N", default_value_t = 1)]
    threads: usize,
    /// Times each picture is scored each way.
    #[arg(long, value_name = "N", default_value_t = 15)]
    rounds: usize,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

/// What `bank bench --json` prints; others script against it. Medians, milliseconds a picture.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Report {
    vectors: usize,
    dim: usize,
    /// Of a picture.
    patches: usize,
    threads: usize,
    backbone_ms: f32,
    exact_ms: f32,
    /// Of the exact search: 2 × patches × vectors × dim in its time.
    exact_gflops: f64,
    fast_ms: f32,
    /// Largest difference between the two raw image scores.
    score_difference_max: f32,
    /// Share of the map's pixels that differ by more than a hundredth of the pixel threshold.
    map_differs_ratio: f64,
}

/// Run the command.
///
/// # Errors
/// When the bank, its model or a picture cannot be used.
pub fn run(args: &BenchArgs) -> anyhow::Result<()> {
    let runtime = Runtime::load(None)?;
    let plan = ProviderPlan { intra_threads: Some(args.threads.max(1)), ..ProviderPlan::default() };
    let open = || PatchCore::open(&args.bank, &runtime, &args.models, &plan);
    let (mut exact, mut fast) = (open()?, open()?);
    fast.set_search(SearchMode::Fast);
    let images = args.images.iter().map(|path| capture::read_image(path)).collect::<Result<Vec<Image>, _>>()?;
    let report = measure(&mut exact, &mut fast, &images, args)?;
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
        return Ok(());
    }
    println!("bank      {} vectors of {}, {} patches a picture", report.vectors, report.dim, report.patches);
    println!("backbone  {:.2} ms on {} threads", report.backbone_ms, report.threads);
    println!("exact     {:.2} ms, {:.0} GFLOP/s", report.exact_ms, report.exact_gflops);
    println!(
        "fast      {:.2} ms; image scores differ by {:e} at most, {:.2} % of the map",
        report.fast_ms,
        report.score_difference_max,
        report.map_differs_ratio * 100.0
    );
    Ok(())
}

fn measure(exact: &mut PatchCore, fast: &mut PatchCore, images: &[Image], args: &BenchArgs) -> anyhow::Result<Report> {
    let (mut backbone, mut exact_ms, mut fast_ms) = (Vec::new(), Vec::new(), Vec::new());
    let (mut score_difference_max, mut differing, mut pixels) = (0.0_f32, 0_usize, 0_usize);
    for _ in 0..args.rounds.max(1) {
        for image in images {
            let (slow, quick) = (exact.score(image)?, fast.score(image)?);
            backbone.extend([slow.backbone_ms, quick.backbone_ms]);
            exact_ms.push(slow.search_ms);
            fast_ms.push(quick.search_ms);
            let difference = (slow.evidence.score_raw - quick.evidence.score_raw).abs();
            score_difference_max = score_difference_max.max(difference);
            let limit = slow.evidence.pixel_threshold_raw / 100.0;
            differing += slow.map.data.iter().zip(&quick.map.data).filter(|(a, b)| (*a - *b).abs() > limit).count();
            pixels += slow.map.data.len();
        }
    }
    let manifest = exact.bank().manifest();
    let (vectors, dim, patches) = (exact.bank().len(), manifest.dim, manifest.grid[0] * manifest.grid[1]);
    let exact_ms = median(exact_ms);
    Ok(Report {
        vectors,
        dim,
        patches,
        threads: args.threads.max(1),
        backbone_ms: median(backbone),
        exact_ms,
        exact_gflops: 2.0 * (vectors * dim * patches) as f64 / f64::from(exact_ms) / 1e6,
        fast_ms: median(fast_ms),
        score_difference_max,
        map_differs_ratio: differing as f64 / pixels.max(1) as f64,
    })
}

fn median(mut values: Vec<f32>) -> f32 {
    values.sort_unstable_by(f32::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}
