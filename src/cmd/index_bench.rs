//! `loupe index bench`: how fast, how exact and how frugal the two-tier index is at a given size.
//!
//! Vectors are made up: members of random clusters. The built index, the queries and their exact answers are cached, so a
//! second run only opens and searches. Measuring runs in a process of its own, because the memory that building took
//! would stay with the allocator and hide what opening takes.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::index::BuildProgress;
use crate::clock::Stopwatch;
use crate::matching::faiss::set_threads;
use crate::matching::{AcceptRule, BuildOptions, Embedding, IndexBuilder, LiveIndex, PartIndex, Template, tune};
use crate::types::Digest;

/// Members of a cluster lie this far from its centre, whose length is 1.
const SPREAD: f32 = 0.6;
/// Queries that the number of visited lists is chosen with; they are not among those measured.
const TUNING_QUERIES: usize = 1_000;
/// Times each query is asked of each index after the first, uncounted pass.
const ROUNDS: usize = 3;
/// Openings measured.
const OPENINGS: usize = 9;
/// Queries a second while generations are switched.
const SWITCH_QUERIES_HZ: u64 = 100;
/// A rule that nothing meets, so that every query goes through the cold tier.
const NEVER_ALONE: AcceptRule = AcceptRule { accept_similarity: f32::INFINITY, accept_margin: 0.0 };

/// Measure opening and searching on made-up clustered vectors.
#[derive(Debug, Clone, clap::Args)]
pub struct BenchArgs {
    /// Vectors in the index.
    #[arg(long, default_value_t = 1_000_000)]
    vectors: usize,
    /// Values of one vector.
    #[arg(long, default_value_t = 256)]
    dim: usize,
    /// Clusters that the vectors are members of.
    #[arg(long, default_value_t = 20_000)]
    clusters: usize,
    /// Queries measured, each by itself.
    #[arg(long, default_value_t = 1_000)]
    queries: usize,
    /// Recall that the number of visited lists is chosen for, 0 to 1.
    #[arg(long, default_value_t = 0.99)]
    nprobe_recall: f32,
    /// Inverted lists; 0 chooses by the number of vectors.
    #[arg(long, default_value_t = 0)]
    lists: usize,
    /// Folder that keeps the built indexes, 1.1 GB for a million vectors of 256 values.
    #[arg(long, default_value = "var/index-bench")]
    cache: PathBuf,
    /// Rebuild and switch generations under 100 queries a second for this many seconds instead.
    #[arg(long, value_name = "SECONDS")]
    switch: Option<u64>,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
    /// What the measuring process is started with.
    #[arg(long, hide = true)]
    child: bool,
    /// Build another generation with this seed, in a process of its own.
    #[arg(long, hide = true)]
    rebuild: Option<u64>,
}

/// # Errors
/// When the index cannot be built, opened or searched.
pub fn run(args: &BenchArgs) -> anyhow::Result<()> {
    ensure!(args.vectors > 0 && args.dim > 0 && args.clusters > 0 && args.queries > 0, "counts must be above 0");
    ensure!((0.0..=1.0).contains(&args.nprobe_recall), "--nprobe-recall must be 0 to 1");
    let folder = args.cache.join(format!(
        "{}x{}-{}clusters-{}lists-{}",
        args.vectors, args.dim, args.clusters, args.lists, args.nprobe_recall
    ));
    if let Some(seed) = args.rebuild {
        return build(args, &folder, seed, &|_, _, _| {}).map(drop);
    }
    if args.child {
        return measure(args, &folder);
    }
    if !folder.join("truth.u32").exists() {
        prepare(args, &folder)?;
    }
    let watch = Stopwatch::start();
    let mut report = match args.switch {
        Some(seconds) => switch_under_load(args, &folder, seconds)?,
        None => in_a_child(args)?,
    };
    report["wall_s"] = json!(watch.elapsed().as_secs_f64());
    if let Ok(text) = std::fs::read_to_string(folder.join("build_s")) {
        report["build_s"] = json!(text.trim().parse::<f64>().ok());
    }
    if args.json {
        println!("{report}");
        return Ok(());
    }
    for (key, value) in report.as_object().into_iter().flatten() {
        match value.as_f64() {
            Some(number) if !value.is_u64() => println!("{key:<20} {number:.4}"),
            _ => println!("{key:<20} {value}"),
        }
    }
    Ok(())
}

/// Unit vectors: members of `clusters` random clusters, the centres by one seed, the members by another.
struct Members {
    rng: fastrand::Rng,
    centres: Vec<f32>,
    dim: usize,
}

impl Members {
    fn new(args: &BenchArgs, seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(1);
        let mut centres: Vec<f32> = (0..args.clusters * args.dim).map(|_| rng.f32() - 0.5).collect();
        centres.chunks_exact_mut(args.dim).for_each(scale_to_one);
        Self { rng: fastrand::Rng::with_seed(seed), centres, dim: args.dim }
    }

    /// The next member and its cluster.
    fn next(&mut self, vector: &mut Vec<f32>) -> usize {
        let cluster = self.rng.usize(..self.centres.len() / self.dim);
        // Uniform noise of variance 1/12 a value, so a vector of it has about the length √(dim/12).
        let scale = SPREAD / (self.dim as f32 / 12.0).sqrt();
        let centre = &self.centres[cluster * self.dim..(cluster + 1) * self.dim];
        vector.clear();
        vector.extend(centre.iter().map(|value| value + scale * (self.rng.f32() - 0.5)));
        scale_to_one(vector);
        cluster
    }

    fn many(&mut self, count: usize) -> Vec<f32> {
        let (mut all, mut one) = (Vec::with_capacity(count * self.dim), Vec::new());
        for _ in 0..count {
            self.next(&mut one);
            all.extend_from_slice(&one);
        }
        all
    }
}

fn scale_to_one(vector: &mut [f32]) {
    let norm = vector.iter().map(|value| value * value).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
    vector.iter_mut().for_each(|value| *value /= norm);
}

fn build(
    args: &BenchArgs,
    folder: &Path,
    seed: u64,
    progress: crate::matching::Progress<'_>,
) -> anyhow::Result<crate::matching::Built> {
    let embedding = Embedding {
        model: "made up".to_owned(),
        model_sha256: Digest::of(b"loupe index bench"),
        input_px: 0,
        crop_margin_ratio: 0.0,
        input_sha256: None,
    };
    let options = BuildOptions { recall_target: args.nprobe_recall, lists: args.lists, ..BuildOptions::default() };
    let mut builder = IndexBuilder::new(args.dim, embedding, options);
    builder.tune_with(&Members::new(args, 3).many(TUNING_QUERIES))?;
    let (mut members, mut vector) = (Members::new(args, seed), Vec::new());
    for _ in 0..args.vectors {
        let cluster = members.next(&mut vector);
        let template = Template { part_id: format!("part-{cluster}"), color_id: None, view: String::new() };
        builder.push(template, &vector)?;
    }
    set_threads(std::thread::available_parallelism().map_or(1, std::num::NonZero::get));
    let built = builder.build_with(&folder.join("index"), progress);
    set_threads(1);
    Ok(built?)
}

/// Build the index, make the queries, find their exact answers.
fn prepare(args: &BenchArgs, folder: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("could not make {}", folder.display()))?;
    eprintln!("building the index of {} vectors in {} (once)", args.vectors, folder.display());
    let bar = BuildProgress::new()?;
    let built = build(args, folder, 2, &|phase, done, of| bar.report(phase, done, of))?;
    bar.finish();
    std::fs::write(folder.join("build_s"), format!("{}\n", f64::from(built.build_ms) / 1e3))?;
    let index = PartIndex::open(&folder.join("index"))?;
    let queries = Members::new(args, 4).many(args.queries);
    let truth = tune::nearest(index.vectors(), args.dim, &queries, |_, _| {});
    let bytes = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    std::fs::write(folder.join("queries.f32"), bytes(&queries))?;
    std::fs::write(folder.join("truth.u32"), truth.iter().flat_map(|row| row.to_le_bytes()).collect::<Vec<u8>>())?;
    Ok(())
}

fn in_a_child(args: &BenchArgs) -> anyhow::Result<Value> {
    let output = command(args)?.arg("--child").output().context("could not start the measuring process")?;
    ensure!(output.status.success(), "the measuring process failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// This program with the same sizes.
fn command(args: &BenchArgs) -> anyhow::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["index", "bench"]).arg("--cache").arg(&args.cache);
    for (name, value) in [
        ("--vectors", args.vectors.to_string()),
        ("--dim", args.dim.to_string()),
        ("--clusters", args.clusters.to_string()),
        ("--queries", args.queries.to_string()),
        ("--nprobe-recall", args.nprobe_recall.to_string()),
        ("--lists", args.lists.to_string()),
    ] {
        command.arg(name).arg(value);
    }
    Ok(command)
}

/// Anonymous memory of this process, bytes (`Anonymous:` of smaps_rollup, in kB).
fn anonymous_bytes() -> anyhow::Result<u64> {
    let rollup = std::fs::read_to_string("/proc/self/smaps_rollup")?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Anonymous:")).context("smaps_rollup says nothing")?;
    Ok(line.split_whitespace().next().context("no number")?.parse::<u64>()? << 10)
}

/// The values of a file of `[n]` 4-byte words.
fn words(path: &Path) -> anyhow::Result<Vec<[u8; 4]>> {
    let bytes = std::fs::read(path).with_context(|| format!("could not read {}", path.display()))?;
    Ok(bytes.chunks_exact(4).map(|word| [word[0], word[1], word[2], word[3]]).collect())
}

fn measure(args: &BenchArgs, folder: &Path) -> anyhow::Result<()> {
    let root = folder.join("index");
    let queries: Vec<f32> = words(&folder.join("queries.f32"))?.into_iter().map(f32::from_le_bytes).collect();
    let truth: Vec<u64> =
        words(&folder.join("truth.u32"))?.into_iter().map(|word| u64::from(u32::from_le_bytes(word))).collect();
    ensure!(queries.len() == truth.len() * args.dim, "{} is not whole; remove it", folder.display());
    // Before anything is opened: what an earlier opening gave back would hide what the next one takes.
    let before = anonymous_bytes()?;
    // The first opening after a restart of the machine reads every byte; it is not what a running line sees.
    let watch = Stopwatch::start();
    drop(PartIndex::open(&root)?);
    let open_first_ms = f64::from(watch.ms());
    let mut open_ms = Vec::new();
    for _ in 0..OPENINGS {
        let watch = Stopwatch::start();
        drop(PartIndex::open(&root)?);
        open_ms.push(watch.elapsed().as_secs_f64() * 1e3);
    }
    let index = PartIndex::open(&root)?;
    let mut found = 0;
    let first_us = ask(&index, &queries, |position, template| found += usize::from(truth[position] == template))?;
    let anonymous = anonymous_bytes()?.saturating_sub(before);

    let watch = Stopwatch::start();
    index.warm();
    let warm_ms = f64::from(watch.ms());
    let memory = PartIndex::open(&root)?.in_memory();
    ask(&memory, &queries, |_, _| {})?;
    // In turns, so that what else the machine does falls on both.
    let (mut mapped_us, mut memory_us) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        mapped_us.extend(ask(&index, &queries, |_, _| {})?);
        memory_us.extend(ask(&memory, &queries, |_, _| {})?);
    }
    let manifest = index.manifest();
    let report = json!({
        "vectors": manifest.template_count, "dim": manifest.dim, "kind": manifest.l2.kind,
        "lists": manifest.l2.lists, "nprobe": manifest.l2.nprobe, "visited": manifest.l2.visited,
        "hot": manifest.l1.count,
        "open_ms": percentile(&mut open_ms, 0.5), "open_first_ms": open_first_ms, "warm_ms": warm_ms,
        "anonymous_bytes": anonymous,
        "anonymous_ratio": anonymous as f64 / (manifest.template_count * manifest.dim * 4) as f64,
        "first_pass_p50_us": percentile(&mut first_us.clone(), 0.5),
        "p50_us": percentile(&mut mapped_us, 0.5), "p99_us": percentile(&mut mapped_us, 0.99),
        "ram_p50_us": percentile(&mut memory_us, 0.5), "ram_p99_us": percentile(&mut memory_us, 0.99),
        "ratio": percentile(&mut mapped_us, 0.5) / percentile(&mut memory_us, 0.5),
        "recall_at_1": found as f64 / truth.len() as f64,
    });
    println!("{report}");
    Ok(())
}

/// Ask each query by itself; microseconds of each. `found(position, template)` hears the answers.
fn ask(index: &PartIndex, queries: &[f32], mut found: impl FnMut(usize, u64)) -> anyhow::Result<Vec<f64>> {
    let mut times_us = Vec::with_capacity(queries.len() / index.dim());
    for (position, query) in queries.chunks_exact(index.dim()).enumerate() {
        let watch = Stopwatch::start();
        let answers = index.search(query, NEVER_ALONE)?;
        times_us.push(watch.elapsed().as_secs_f64() * 1e6);
        answers.iter().for_each(|answer| found(position, answer.template));
    }
    Ok(times_us)
}

/// The smallest value that at least `share` of them do not exceed; 0 when there are none.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a count, clamped to it")]
fn percentile(values: &mut [f64], share: f64) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let rank = (share * values.len() as f64).ceil() as usize;
    values.get(rank.clamp(1, values.len().max(1)) - 1).copied().unwrap_or(0.0)
}

/// Ask 100 queries a second of the live index while another process rebuilds and this one switches.
fn switch_under_load(args: &BenchArgs, folder: &Path, seconds: u64) -> anyhow::Result<Value> {
    let live = LiveIndex::open(&folder.join("index"))?;
    live.current().warm();
    let queries: Vec<f32> = words(&folder.join("queries.f32"))?.into_iter().map(f32::from_le_bytes).collect();
    let stop = crate::shutdown::Shutdown::new();
    let asking = {
        let (live, stop) = (live.clone(), stop.clone());
        std::thread::spawn(move || ask_steadily(&live, &queries, &stop))
    };
    let (watch, mut switches, mut builds) = (Stopwatch::start(), 0, 0_u64);
    while watch.elapsed().as_secs() < seconds {
        builds += 1;
        let mut rebuild = command(args)?.arg("--rebuild").arg((10 + builds).to_string()).spawn()?;
        loop {
            switches += usize::from(live.refresh()?.is_some());
            if let Some(status) = rebuild.try_wait()? {
                ensure!(status.success(), "a rebuild failed");
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        switches += usize::from(live.refresh()?.is_some());
    }
    stop.request();
    let (mut times_us, failed) = asking.join().map_err(|_| anyhow::anyhow!("the asking thread panicked"))?;
    // The queries' exact answers belong to the first generation.
    std::fs::remove_file(folder.join("truth.u32"))?;
    Ok(json!({
        "vectors": args.vectors, "dim": args.dim, "builds": builds, "switches": switches,
        "queries": times_us.len(), "failed": failed,
        "p50_us": percentile(&mut times_us, 0.5), "p99_us": percentile(&mut times_us, 0.99),
        "slowest_ms": percentile(&mut times_us, 1.0) / 1e3,
    }))
}

/// Microseconds of each query, and how many failed. A query's time counts from when it was due, so that one that had to
/// wait for another is not counted as fast.
fn ask_steadily(live: &LiveIndex, queries: &[f32], stop: &crate::shutdown::Shutdown) -> (Vec<f64>, usize) {
    let (watch, mut times_us, mut failed) = (Stopwatch::start(), Vec::new(), 0);
    let dim = live.current().dim();
    for (number, query) in (0_u64..).zip(queries.chunks_exact(dim).cycle()) {
        let due = std::time::Duration::from_micros(number * 1_000_000 / SWITCH_QUERIES_HZ);
        if stop.wait_timeout(due.saturating_sub(watch.elapsed())) {
            break;
        }
        failed += usize::from(live.current().search(query, NEVER_ALONE).is_err());
        times_us.push(watch.elapsed().saturating_sub(due).as_secs_f64() * 1e6);
    }
    (times_us, failed)
}
