//! `loupe index`: build, evaluate and verify part indexes.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{anyhow, ensure};
use clap::Subcommand;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use super::index_admin::{self, CompactArgs, RollbackArgs, StatsArgs, SwitchArgs};
use super::index_bench::{self, BenchArgs};
use super::pictures::{embed_all, embed_known, foreground, grown_within};
use super::{Failure, evidence};
use crate::inference::{FeatureModel, ModelManifest, ProviderPlan, Runtime};
use crate::ledger::LedgerReader;
use crate::matching::catalogue;
use crate::matching::faiss::set_threads;
use crate::matching::{
    AcceptRule, BuildOptions, Built, Centres, Embedded, Embedding, Groups, IndexBuilder, L1_BYTES_MAX_DEFAULT, Mirrors,
    Outline, Phase, Pictures, Query, RECALL_TARGET_DEFAULT, ShapesBuilder, Sizes, Template, evaluate, index_name,
    learned_view, turned_views, verify,
};
use crate::types::{Image, LearnedTemplate};

/// Share of the templates kept in memory as far as the budget goes: all of a small catalogue, whose stage 1 is then
/// exhaustive.
const L1_RATIO_CLI: f32 = 1.0;
/// Side of the square that crops are letterboxed to, px.
const INPUT_PX_DEFAULT: u32 = 160;
/// A box is grown by this share of its size on each side before it is cropped. None: the locator's boxes are tight, and
/// so are taught views; 5 % cost 13 of 132 right names on the sample belt.
const CROP_MARGIN_DEFAULT: f32 = 0.0;

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
    /// Do not look at mirrored pictures too, which an embedder that tells them apart gains from: half the time of embedding
    /// an item, fewer right names.
    #[arg(long)]
    no_mirrors: bool,
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
        no_mirrors: false,
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
                "moves": moves, "centre_count": built.centre_count, "mirror_count": built.mirror_count,
                "mirror_other_count": built.mirror_other_count })
        );
        return Ok(());
    }
    println!("built      {}", built.dir.display());
    println!("parts      {}, {} templates of {} values", manifest.part_count, manifest.template_count, manifest.dim);
    if built.centre_count > 0 {
        println!("centres    {} of these parts, as the embedder learned them", built.centre_count);
    }
    if built.mirror_count > 0 {
        println!(
            "mirrored   {} of these parts are known in a mirrored picture, {} of them as another part",
            built.mirror_count, built.mirror_other_count
        );
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
    let and_mirrored = manifest.is_mirror_sensitive() && !args.no_mirrors;
    let looks = embed_all(&mut model, &sources, area, (args.input_px, and_mirrored), &args.templates)?;
    let mirrors = if and_mirrored {
        let names: Vec<String> = rows.iter().map(|row| row.part_num.clone()).collect();
        let embedded = Embedded { pictures: &looks.embeddings, mirrored: &looks.mirrored };
        Mirrors::of_pictures(Pictures { parts: &names, embedded, dim }, &groups, &centres)
    } else {
        Mirrors::default()
    };
    let builder = IndexBuilder::new(dim, embedding, options).with_groups(groups).with_sizes(sizes);
    let mut builder = builder.with_shapes(shapes).with_centres(centres).with_mirrors(mirrors);
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
    let queries: Vec<Query<'_>> = known
        .rows
        .iter()
        .zip(&known.seen)
        .map(|(row, seen)| Query { part_id: &row.part_num, item: row.item.as_deref(), seen: seen.clone() })
        .collect();
    let rule = AcceptRule { accept_similarity: args.accept_similarity, accept_margin: args.accept_margin };
    let result = evaluate(&known.index, known.embedded(), &queries, rule)?;
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
