//! `loupe index duplicates`: templates that are nearly the same.

use std::path::PathBuf;

use anyhow::anyhow;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::Failure;
use crate::matching::PartIndex;

/// Pairs printed for people.
const PAIRS_PRINTED_MAX: usize = 50;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder of the index.
    index: PathBuf,
    /// Least cosine of a pair, -1 to 1.
    #[arg(long, default_value_t = 0.985)]
    min_similarity: f32,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

/// Run the command.
///
/// # Errors
/// When the index cannot be used.
pub fn run(args: &Args) -> anyhow::Result<()> {
    if !(-1.0..=1.0).contains(&args.min_similarity) {
        return Err(Failure::usage(anyhow!("--min-similarity is {}; it must be -1 to 1", args.min_similarity)).into());
    }
    let index = PartIndex::open(&args.index)?;
    let bar = ProgressBar::with_draw_target(Some(index.template_count() as u64), ProgressDrawTarget::stderr());
    bar.set_style(ProgressStyle::with_template("comparing {bar:40} {pos}/{len} {eta}")?);
    let found = index.duplicates(args.min_similarity, |done| bar.set_position(done as u64));
    bar.finish_and_clear();
    if args.json {
        println!("{}", serde_json::to_string(&found)?);
        return Ok(());
    }
    println!("templates        {}", found.templates);
    println!(
        "different parts  {} pairs at {} or above: these will be confused",
        found.cross_part_pairs, args.min_similarity
    );
    println!("one part         {} pairs: one of each is redundant", found.same_part_pairs);
    for pair in found.pairs.iter().take(PAIRS_PRINTED_MAX) {
        let [a, b] = &pair.part_ids;
        let [view_a, view_b] = &pair.views;
        println!("  {:.4}  {a} view {view_a}  ~  {b} view {view_b}", pair.similarity);
    }
    if found.pairs.len() > PAIRS_PRINTED_MAX {
        println!("  … the rest with --json");
    }
    Ok(())
}
