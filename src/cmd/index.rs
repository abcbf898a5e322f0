//! `loupe index`: build, evaluate and verify part indexes.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, ensure};
use clap::Subcommand;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use super::index_admin::{self, CompactArgs, RollbackArgs, StatsArgs, SwitchArgs};
use super::index_bench::{self, BenchArgs};
use super::{Failure, evidence};
use crate::capture;
use crate::inference::{FeatureModel, Looks, ModelManifest, ProviderPlan, Runtime};
use crate::ledger::LedgerReader;
use crate::matching::catalogue::{self, CatalogueError, QueryRow};
use crate::matching::faiss::set_threads;
use crate::matching::{
    AcceptRule, BuildOptions, Built, Centres, Embedding, Groups, IndexBuilder, L1_BYTES_MAX_DEFAULT, Outline,
    PartIndex, Phase, Query, RECALL_TARGET_DEFAULT, Seen, Shape, ShapesBuilder, Sizes, Template, evaluate, index_name,
    learned_view, turned_views, verify,
};
use crate::measure;
use crate::types::{BoundingBox, Image, LearnedTemplate};

/// Share of the templates kept in memory as far as the budget goes: all of a small catalogue, whose stage 1 is then
/// exhaustive.
const L1_RATIO_CLI: f32 = 1.0;
/// Crops embedded in one call.
const EMBED_BATCH: usize = 16;
/// Side of the square that crops are letterboxed to, px.
const INPUT_PX_DEFAULT: u32 = 160;
/// A box is grown by this share of its size on each side before it is cropped. None: the locator's boxes are tight, and
/// so are taught views; 5 % cost 13 of 132 right names on the sample belt.
const CROP_MARGIN_DEFAULT: f32 = 0.0;
/// Difference of a template's pixel from its background, in any of the three colours, that makes it part of the object:
/// above JPEG noise, below the faintest edge of a white part on light grey.
const FOREGROUND_STEP: u8 = 10;

/// Builds, evaluates and verifies the index of catalogue parts that the match stage searches.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Embed the template pictures of a catalogue and write a new index generation; a running daemon takes it up by
    /// itself.
    Build(BuildArgs),
    /// Measure an index on pictures whose parts are known: hit rates, agreement with an exhaustive search, times.
    Evaluate(EvaluateArgs),
    /// Learn from pictures whose part is known how probable a match is, and how probable it must be to be accepted.
    Fit(super::fit::Args),
    /// Show the generations of an index, their tiers and sizes, and how many templates each part has.
    Stats(StatsArgs),
    /// Make another generation the live one, after every byte of it was checked.
    Switch(SwitchArgs),
    /// Go back to the generation before the live one.
    Rollback(RollbackArgs),
    /// Remove generations that are neither live nor previous, and what killed builds left behind.
    Compact(CompactArgs),
    /// Measure opening and searching on made-up clustered vectors.
    Bench(BenchArgs),
    /// Check every byte, count and dimension of the live generation and compare a probe search with an exhaustive one.
    Verify(VerifyArgs),
    /// Measure on pictures whose colour is known how often it is named right, and how clear it must be to count.
    Colors(super::colors::Args),
    /// List templates that are nearly the same: of different parts, which will be confused, and of one part.
    Duplicates(super::duplicates::Args),
}

#[derive(Debug, clap::Args)]
struct BuildArgs {
    /// CSV file of the parts; needs the column part_num.
    #[arg(long)]
    parts: PathBuf,
    /// CSV file of the template pictures; needs the columns file, part_num, color_id and view.
    #[arg(long)]
    templates: PathBuf,
    /// Folder that the file column starts from.
    #[arg(long)]
    root: PathBuf,
    /// Folder of the index; made when missing.
    #[arg(long)]
    out: PathBuf,
    /// Folder of the embedding model.
    #[arg(long, default_value = "models/mobilenetv2")]
    model: PathBuf,
    /// Side of the square that each part is scaled to, in pixels; larger sees more and takes longer.
    #[arg(long, default_value_t = INPUT_PX_DEFAULT, value_parser = clap::value_parser!(u32).range(32..=1024))]
    input_px: u32,
    /// Share of a box's size added on each side before it is cropped, 0 to 1.
    #[arg(long, default_value_t = CROP_MARGIN_DEFAULT)]
    crop_margin: f32,
    /// Share of the templates kept in memory, 0 to 1.
    #[arg(long, default_value_t = L1_RATIO_CLI)]
    l1_ratio: f32,
    /// Most memory for them, in bytes.
    #[arg(long, default_value_t = L1_BYTES_MAX_DEFAULT)]
    l1_bytes_max: usize,
    /// Least share of exact nearest templates that the memory-mapped tier must find, 0 to 1.
    #[arg(long, default_value_t = RECALL_TARGET_DEFAULT)]
    recall_target: f32,
    /// State folder whose learned templates are taken in; they are searched as before until then, and not twice after.
    #[arg(long, value_name = "STATE_DIR")]
    with_delta: Option<PathBuf>,
    /// State folder whose inspections and reviews say which templates answer, so that those are kept in memory.
    #[arg(long, value_name = "STATE_DIR")]
    evidence: Option<PathBuf>,
    /// ONNX Runtime's library; default: ORT_DYLIB_PATH, else /usr/lib/loupe/libonnxruntime.so.
    #[arg(long)]
    onnxruntime: Option<PathBuf>,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct EvaluateArgs {
    /// Folder of the index.
    #[arg(long)]
    index: PathBuf,
    /// CSV file of the query pictures; needs the columns file, part_num, x1, y1, x2 and y2 (box in pixels). Rows with the
    /// same value in a column `item` are views of one item and are also judged together.
    #[arg(long)]
    queries: PathBuf,
    /// Folder that the file column starts from.
    #[arg(long)]
    root: PathBuf,
    /// Folder of the embedding model; it must be the one the index was built with.
    #[arg(long, default_value = "models/mobilenetv2")]
    model: PathBuf,
    /// Least cosine at which the hot tier answers alone, −1 to 1.
    #[arg(long, default_value_t = 0.75)]
    accept_similarity: f32,
    /// Least distance to the best other part at which the hot tier answers alone, 0 to 2.
    #[arg(long, default_value_t = 0.05)]
    accept_margin: f32,
    /// ONNX Runtime's library; default: ORT_DYLIB_PATH, else /usr/lib/loupe/libonnxruntime.so.
    #[arg(long)]
    onnxruntime: Option<PathBuf>,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct VerifyArgs {
    /// Folder of the index.
    #[arg(long)]
    index: PathBuf,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

/// # Errors
/// When a file, the model or the index cannot be used, or verification finds a fault.
pub fn run(args: Args) -> anyhow::Result<()> {
    match args.command {
        Command::Build(args) => run_build(&args),
        Command::Evaluate(args) => run_evaluate(&args),
        Command::Fit(args) => super::fit::run(&args),
        Command::Verify(args) => run_verify(&args),
        Command::Stats(args) => index_admin::stats(&args),
        Command::Switch(args) => index_admin::switch(&args),
        Command::Rollback(args) => index_admin::rollback(&args),
        Command::Compact(args) => index_admin::compact(&args),
        Command::Bench(args) => index_bench::run(&args),
        Command::Colors(args) => super::colors::run(&args),
        Command::Duplicates(args) => super::duplicates::run(&args),
    }
}

/// Build the index of the catalogue folder `parts` (`parts.csv`, `templates.csv`, pictures) with default settings.
///
/// # Errors
/// As `loupe index build`.
pub fn build_catalogue(parts: &Path, out: &Path, model: &Path) -> anyhow::Result<Built> {
    build(&BuildArgs {
        parts: parts.join("parts.csv"),
        templates: parts.join("templates.csv"),
        root: parts.to_owned(),
        out: out.to_owned(),
        model: model.to_owned(),
        input_px: INPUT_PX_DEFAULT,
        crop_margin: CROP_MARGIN_DEFAULT,
        l1_ratio: L1_RATIO_CLI,
        l1_bytes_max: L1_BYTES_MAX_DEFAULT,
        recall_target: RECALL_TARGET_DEFAULT,
        with_delta: None,
        evidence: None,
        onnxruntime: None,
        json: false,
    })
    .map(|(built, _)| built)
}

/// What a build took from a ledger, and which templates it moved between the tiers.
#[derive(Debug, Default, serde::Serialize)]
struct Moves {
    /// Learned templates taken in.
    folded: usize,
    /// Learned templates of another model, input size or crop margin, which were not.
    left_out: usize,
    /// Searches that the choice of the hot tier rests on.
    searches: u64,
    /// Templates that were cold and are hot.
    promoted: usize,
    /// Templates that were hot and are cold.
    demoted: usize,
}

fn run_build(args: &BuildArgs) -> anyhow::Result<()> {
    for (name, value) in
        [("crop-margin", args.crop_margin), ("l1-ratio", args.l1_ratio), ("recall-target", args.recall_target)]
    {
        if !(0.0..=1.0).contains(&value) {
            return Err(Failure::usage(anyhow::anyhow!("--{name} is {value}; it must be 0 to 1")).into());
        }
    }
    let (built, moves) = build(args)?;
    let manifest = &built.manifest;
    if args.json {
        println!(
            "{}",
            json!({ "dir": built.dir, "sha256": built.sha256, "build_ms": built.build_ms, "manifest": manifest,
                "moves": moves, "centre_count": built.centre_count })
        );
        return Ok(());
    }
    println!("built      {}", built.dir.display());
    println!("parts      {}, {} templates of {} values", manifest.part_count, manifest.template_count, manifest.dim);
    if built.centre_count > 0 {
        println!("centres    {} of these parts, as the embedder learned them", built.centre_count);
    }
    println!("l1 (RAM)   {} templates, {:.1} MB", manifest.l1.count, manifest.l1.bytes as f64 / 1e6);
    let cold = &manifest.l2;
    println!(
        "l2 (disk)  {}, {} lists, {} visited, recall {:.3}",
        cold.kind, cold.lists, cold.nprobe, cold.measured_recall
    );
    if args.with_delta.is_some() {
        println!("learned    {} taken in, {} embedded in another way and left out", moves.folded, moves.left_out);
    }
    if args.evidence.is_some() {
        println!("moved      {} into memory, {} out, by {} searches", moves.promoted, moves.demoted, moves.searches);
    }
    Ok(())
}

fn build(args: &BuildArgs) -> anyhow::Result<(Built, Moves)> {
    let parts = catalogue::read_parts(&args.parts)?;
    let rows = catalogue::read_templates(&args.templates, &parts)?;
    let groups = Groups::new(catalogue::read_groups(&args.parts)?);
    let sizes = Sizes::new(catalogue::read_sizes(&args.parts)?).map_err(anyhow::Error::msg)?;
    let manifest = ModelManifest::load(&args.model)?;
    let runtime = Runtime::load(args.onnxruntime.as_deref())?;
    let mut model = FeatureModel::open(&runtime, &manifest, &ProviderPlan::default())?;
    let embedding = Embedding {
        model: manifest.name().to_owned(),
        model_sha256: manifest.sha256(),
        input_px: args.input_px,
        crop_margin_ratio: args.crop_margin,
        input_sha256: Some(manifest.input_sha256()),
    };
    let options = BuildOptions {
        l1_ratio: args.l1_ratio,
        l1_bytes_max: args.l1_bytes_max,
        recall_target: args.recall_target,
        lists: 0,
    };
    let dim = model.embedding_dim();
    let centres = match manifest.read_centres()? {
        Some(bytes) => Centres::parse(&bytes, dim)
            .map_err(|fault| anyhow!("centres of the model {}: {fault}", manifest.folder().display()))?,
        None => Centres::default(),
    };
    let mut moves = Moves::default();
    // The generation that this one follows; without one nothing was learned or counted.
    let before = Outline::of_live(&args.out).ok();
    let learned = match &args.with_delta {
        Some(state_dir) => learned_for(state_dir, &args.out, &embedding, dim, &mut moves)?,
        None => Vec::new(),
    };
    let sources: Vec<(u64, PathBuf)> = rows.iter().map(|row| (row.line, args.root.join(&row.file))).collect();
    let margin = args.crop_margin;
    let mut shapes = ShapesBuilder::default();
    let area = |at: usize, image: &Image| {
        if groups.is_of_pair(&rows[at].part_num) {
            shapes.push(&rows[at].part_num, turned_views(image));
        }
        grown_within(foreground(image), margin, image)
    };
    let looks = embed_all(&mut model, &sources, area, args.input_px, &args.templates)?;
    let builder = IndexBuilder::new(dim, embedding, options).with_groups(groups).with_sizes(sizes);
    let mut builder = builder.with_shapes(shapes).with_centres(centres);
    for (row, vector) in rows.into_iter().zip(looks.embeddings.chunks_exact(dim)) {
        builder.push(Template { part_id: row.part_num, color_id: row.color_id, view: row.view }, vector)?;
    }
    for template in learned {
        let view = learned_view(template.review_id);
        builder.push(Template { part_id: template.part_id, color_id: template.color_id, view }, &template.vector)?;
    }
    if let (Some(state_dir), Some(before)) = (&args.evidence, &before) {
        let evidence = evidence::gather(state_dir, before)?;
        moves.searches = evidence.searches();
        builder = builder.with_evidence(evidence);
    }
    set_threads(std::thread::available_parallelism().map_or(1, std::num::NonZero::get));
    let bar = BuildProgress::new()?;
    let built = builder.build_with(&args.out, &|phase, done, of| bar.report(phase, done, of));
    bar.finish();
    set_threads(1);
    let built = built?;
    let without = parts.len().saturating_sub(built.manifest.part_count);
    if without > 0 {
        eprintln!("{without} of {} parts have no template and cannot be found", parts.len());
    }
    if let Some(before) = before {
        count_moves(&before, &Outline::of_live(&args.out)?, &mut moves);
    }
    Ok((built, moves))
}

/// The learned templates of the index in `out` that were embedded as `embedding` says.
fn learned_for(
    state_dir: &Path,
    out: &Path,
    embedding: &Embedding,
    dim: usize,
    moves: &mut Moves,
) -> anyhow::Result<Vec<LearnedTemplate>> {
    let mut learned = LedgerReader::open(state_dir)?.learned_templates()?;
    let name = index_name(out);
    learned.retain(|template| template.index == name);
    let found = learned.len();
    learned.retain(|template| {
        let way = (template.model_sha256, template.input_px, template.crop_margin_ratio);
        way == (embedding.model_sha256, embedding.input_px, embedding.crop_margin_ratio) && template.vector.len() == dim
    });
    (moves.folded, moves.left_out) = (learned.len(), found - learned.len());
    Ok(learned)
}

/// Templates of both generations that changed their tier.
fn count_moves(before: &Outline, after: &Outline, moves: &mut Moves) {
    let was_hot: HashMap<Template, bool> = before.templates().collect();
    for (template, is_hot) in after.templates() {
        match (was_hot.get(&template), is_hot) {
            (Some(false), true) => moves.promoted += 1,
            (Some(true), false) => moves.demoted += 1,
            _ => {}
        }
    }
}

fn run_evaluate(args: &EvaluateArgs) -> anyhow::Result<()> {
    set_threads(1);
    let known = embed_known(&args.index, &args.queries, &args.root, &args.model, args.onnxruntime.as_deref())?;
    let Known { index, rows, vectors, seen } = known;
    let queries: Vec<Query<'_>> = rows
        .iter()
        .zip(seen)
        .map(|(row, seen)| Query { part_id: &row.part_num, item: row.item.as_deref(), seen })
        .collect();
    let rule = AcceptRule { accept_similarity: args.accept_similarity, accept_margin: args.accept_margin };
    let result = evaluate(&index, &vectors, &queries, rule)?;
    if args.json {
        println!("{}", serde_json::to_string(&result)?);
        return Ok(());
    }
    let percent = |share: f64| format!("{:.1} %", share * 100.0);
    println!("queries               {}", result.queries);
    println!("right part first      {}", percent(result.top1));
    println!("right part in five    {}", percent(result.top5));
    if let (Some(top1), Some(top5)) = (result.top1_fused, result.top5_fused) {
        println!("  with shape          {}, in five {}", percent(top1), percent(top5));
    }
    if let (Some(top1), Some(top5)) = (result.top1_sized, result.top5_sized) {
        println!("  with shape and size {}, in five {}", percent(top1), percent(top5));
    }
    if let Some(views) = &result.views {
        let figure = |share: Option<f64>| share.map_or_else(|| "not fitted".to_owned(), percent);
        println!(
            "seen in several views {} items: {}, in five {}",
            views.items,
            percent(views.top1),
            percent(views.top5)
        );
        println!("  by the fit          {}, with size {}", figure(views.top1_fused), figure(views.top1_sized));
        println!("  accepted            {}, wrong {}", figure(views.accepted_rate), figure(views.accepted_wrong));
    }
    println!("same as exhaustive    {}", percent(result.agreement_with_exact));
    println!("  of stage 1 alone    {}", result.stage1_agreement.map_or_else(|| "-".to_owned(), percent));
    println!(
        "entered stage 2       {}, {} of Zipf traffic",
        percent(result.stage2_rate),
        percent(result.stage2_rate_zipf)
    );
    let auroc = |area: Option<f64>| area.map_or_else(|| "-".to_owned(), |area| format!("{area:.3}"));
    println!(
        "unknown parts, AUROC  {} by similarity, {} by probability",
        auroc(result.unknown_auroc),
        auroc(result.unknown_auroc_probability)
    );
    println!("accepted              {}", percent(result.accepted_rate));
    println!("  of these right      {}", result.accepted_top1.map_or_else(|| "-".to_owned(), percent));
    println!("search                {:.0} µs median, {:.0} µs p99", result.p50_us, result.p99_us);
    Ok(())
}

fn run_verify(args: &VerifyArgs) -> anyhow::Result<()> {
    let report = verify(&args.index);
    let count = report.faults.len();
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        println!("generation  {}", report.generation.as_deref().unwrap_or("-"));
        if let (Some(dim), Some(parts), Some(templates)) = (report.dim, report.parts, report.templates) {
            println!("parts       {parts}, {templates} templates of {dim} values");
            println!("probes      {} compared with an exhaustive search", report.probes);
        }
        report.faults.iter().for_each(|fault| println!("fault       {fault}"));
        println!("{}", if count == 0 { "in order" } else { "NOT in order" });
    }
    ensure!(count == 0, "{} has {count} fault(s); rebuild it with `loupe index build`", args.index.display());
    Ok(())
}

/// Pictures whose part is known, embedded as the index they are compared with.
pub(super) struct Known {
    pub index: PartIndex,
    pub rows: Vec<QueryRow>,
    /// `[rows, dim]`.
    pub vectors: Vec<f32>,
    /// What else is known of each row.
    pub seen: Vec<Seen>,
}

/// Open the index in `dir` and embed the pictures of the CSV file `queries`, which start from the folder `root`.
pub(super) fn embed_known(
    dir: &Path,
    queries: &Path,
    root: &Path,
    model: &Path,
    onnxruntime: Option<&Path>,
) -> anyhow::Result<Known> {
    let rows = catalogue::read_queries(queries)?;
    let index = PartIndex::open(dir)?;
    if let Some(quarantined) = index.quarantined() {
        eprintln!("the live generation was damaged ({}); {quarantined}; the previous one serves", quarantined.fault);
    }
    let manifest = ModelManifest::load(model)?;
    let runtime = Runtime::load(onnxruntime)?;
    let mut model = FeatureModel::open(&runtime, &manifest, &ProviderPlan::default())?;
    index.require_model(model.embedding_dim(), manifest.sha256(), Some(manifest.input_sha256()))?;
    let embedding = &index.manifest().embedding;
    let sources: Vec<(u64, PathBuf)> = rows.iter().map(|row| (row.line, root.join(&row.file))).collect();
    let mut shapes = Vec::with_capacity(rows.len());
    let area = |at: usize, image: &Image| {
        shapes.push((!index.shapes().is_empty()).then(|| Shape::of(image, &rows[at].bbox)));
        grown_within(rows[at].bbox, embedding.crop_margin_ratio, image)
    };
    let looks = embed_all(&mut model, &sources, area, embedding.input_px, queries)?;
    let margin = 1.0 + 2.0 * embedding.crop_margin_ratio;
    let seen = rows.iter().zip(looks.foreshortenings).zip(shapes).map(|((row, shown), shape)| Seen {
        size_mm: row.px_per_mm.and_then(|scale| measure::measure_size(&row.bbox, scale)),
        foreshortening: shown.map(|shown| shown.of_inner(margin)),
        shape,
    });
    let seen = seen.collect();
    Ok(Known { index, rows, vectors: looks.embeddings, seen })
}

/// What a build is doing, on standard error when that is a terminal.
#[derive(Debug)]
pub struct BuildProgress(ProgressBar);

impl BuildProgress {
    /// # Errors
    /// When the bar's description is wrong, which it is not.
    pub fn new() -> anyhow::Result<Self> {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        bar.set_style(ProgressStyle::with_template("{msg:<11} {bar:40} {pos}/{len} {elapsed}")?);
        Ok(Self(bar))
    }

    pub fn report(&self, phase: Phase, done: usize, of: usize) {
        self.0.set_message(match phase {
            Phase::Clustering => "clustering",
            Phase::Tuning => "tuning",
            Phase::Writing => "writing",
            Phase::Checking => "checking",
            Phase::Switching => "switching",
        });
        self.0.set_length(of as u64);
        self.0.set_position(done as u64);
    }

    pub fn finish(&self) {
        self.0.finish_and_clear();
    }
}

/// Read and embed pictures, `area` of each; `[n, dim]`. Every unreadable one is reported with its line of `csv`.
fn embed_all(
    model: &mut FeatureModel,
    sources: &[(u64, PathBuf)],
    mut area: impl FnMut(usize, &Image) -> BoundingBox,
    input_px: u32,
    csv: &Path,
) -> anyhow::Result<Looks> {
    // A wrong folder is one fault, not one a row.
    if let Some((line, first)) = sources.first().filter(|_| sources.iter().all(|(_, path)| !path.exists())) {
        let fault = format!(
            "none of its {} pictures is there (line {line}: `{}`); --root names the folder that its paths start from",
            sources.len(),
            first.display()
        );
        return Err(CatalogueError { path: csv.to_owned(), faults: vec![fault] }.into());
    }
    let progress = ProgressBar::with_draw_target(Some(sources.len() as u64), ProgressDrawTarget::stderr());
    progress.set_style(ProgressStyle::with_template("embedding {bar:40} {pos}/{len} {eta}")?);
    let [width_px, height_px] = model.manifest().input().size_px;
    let mut looks = Looks::default();
    let mut faults = Vec::new();
    for (batch_index, batch) in sources.chunks(EMBED_BATCH).enumerate() {
        let mut images = Vec::with_capacity(batch.len());
        for (offset, (line, path)) in batch.iter().enumerate() {
            match capture::read_image(path) {
                Ok(image) => {
                    let area = area(batch_index * EMBED_BATCH + offset, &image);
                    images.push((image, area));
                }
                Err(error) => faults.push(format!("line {line}: {error}")),
            }
        }
        // After the first fault the rest is only read, to report all at once.
        if faults.is_empty() {
            let crops: Vec<(&Image, BoundingBox)> = images.iter().map(|(image, area)| (image, *area)).collect();
            let more = model.look(&crops, input_px).with_context(|| {
                format!(
                    "could not embed the pictures at {input_px} px (the model's own size is {width_px}×{height_px} px; \
                     `index build --input-px` sets it)"
                )
            })?;
            looks.embeddings.extend(more.embeddings);
            looks.foreshortenings.extend(more.foreshortenings);
        }
        progress.inc(batch.len() as u64);
    }
    progress.finish_and_clear();
    if faults.is_empty() { Ok(looks) } else { Err(CatalogueError { path: csv.to_owned(), faults }.into()) }
}

fn grown_within(bbox: BoundingBox, margin: f32, image: &Image) -> BoundingBox {
    bbox.grown(margin).clamped(image.width_px(), image.height_px())
}

/// The box of what differs from the background, which is the colour of the top left pixel; the whole image when nothing
/// does. Templates show one part on one colour; boxes of located parts are tight too, so both are framed alike.
fn foreground(image: &Image) -> BoundingBox {
    let background = &image.bgr()[..3];
    let (mut left, mut top, mut right, mut bottom) = (u32::MAX, u32::MAX, 0, 0);
    for y in 0..image.height_px() {
        for (x, pixel) in (0..).zip(image.row(y).chunks_exact(3)) {
            if pixel.iter().zip(background).any(|(a, b)| a.abs_diff(*b) > FOREGROUND_STEP) {
                (left, right) = (left.min(x), right.max(x + 1));
                (top, bottom) = (top.min(y), bottom.max(y + 1));
            }
        }
    }
    if right <= left {
        return BoundingBox::whole(image.width_px(), image.height_px());
    }
    BoundingBox::new(left as f32, top as f32, right as f32, bottom as f32)
}

#[cfg(test)]
mod tests {
    use super::foreground;
    use crate::types::{BoundingBox, Image};

    #[test]
    fn the_foreground_is_boxed_tightly_and_an_empty_picture_is_kept_whole() {
        let mut bgr = vec![200_u8; 10 * 8 * 3];
        for (x, y) in [(3, 2), (6, 5)] {
            bgr[(y * 10 + x) * 3 + 1] = 100;
        }
        let image = Image::from_bgr(10, 8, bgr).unwrap();
        assert_eq!(foreground(&image), BoundingBox::new(3.0, 2.0, 7.0, 6.0));
        let empty = Image::from_bgr(10, 8, vec![200; 240]).unwrap();
        assert_eq!(foreground(&empty), BoundingBox::whole(10, 8));
    }
}
