//! `loupe index stats|switch|rollback|compact`: what is on disk, which generation serves, and tidying up.

use std::path::PathBuf;

use crate::matching::PartIndex;
use crate::matching::lifecycle::{self, FitStats, GenerationStats};

/// Show the generations of an index, their tiers and sizes, and how many templates each part has.
#[derive(Debug, clap::Args)]
pub struct StatsArgs {
    /// Folder of the index.
    #[arg(long)]
    index: PathBuf,
    /// Print every template of the live generation as CSV instead (part_id, color_id, view, hot).
    #[arg(long, conflicts_with = "json")]
    templates: bool,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

/// Make another generation the live one, after every byte of it was checked. A running daemon takes it up by itself.
#[derive(Debug, clap::Args)]
pub struct SwitchArgs {
    /// Name of the generation, as `loupe index stats` shows it.
    generation: String,
    /// Folder of the index.
    #[arg(long)]
    index: PathBuf,
}

/// Go back to the generation before the live one; doing it twice leads forward again.
#[derive(Debug, clap::Args)]
pub struct RollbackArgs {
    /// Folder of the index.
    #[arg(long)]
    index: PathBuf,
}

/// Remove generations that are neither live nor previous, and what killed builds left behind.
#[derive(Debug, clap::Args)]
pub struct CompactArgs {
    /// Folder of the index.
    #[arg(long)]
    index: PathBuf,
    /// Only say what would be removed.
    #[arg(long)]
    dry_run: bool,
    /// Also remove the damaged generations that were set aside.
    #[arg(long)]
    quarantine: bool,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

/// # Errors
/// When there is no index.
pub fn stats(args: &StatsArgs) -> anyhow::Result<()> {
    if args.templates {
        PartIndex::open(&args.index)?.ids().write_csv(std::io::stdout().lock())?;
        return Ok(());
    }
    let stats = lifecycle::stats(&args.index)?;
    if args.json {
        println!("{}", serde_json::to_string(&stats)?);
        return Ok(());
    }
    stats.generations.iter().for_each(show);
    if !stats.quarantined.is_empty() {
        println!("set aside  {}, {}", stats.quarantined.join(", "), megabytes(stats.quarantined_bytes));
    }
    if let Some(known) = &stats.known {
        println!(
            "known      {} true sizes, {} shapes of mirror pairs, {} centres of the embedder, {} parts in mirrored pictures",
            known.sizes, known.shapes, known.centres, known.mirrors
        );
    }
    match (&stats.fit, &stats.fit_fault) {
        (_, Some(fault)) => println!("fit        {fault}"),
        (Some(fit), None) => println!("fit        {}", told(fit)),
        (None, None) => println!("fit        none: matches have no probability until `loupe index fit` learned one"),
    }
    let counts = stats.templates_of_part.values();
    if let (Some(least), Some(most)) = (counts.clone().min(), counts.max()) {
        println!("templates  {least} to {most} a part");
        let fewest = if least < most { 5 } else { 0 };
        for (part, count) in stats.templates_of_part.iter().filter(|(_, count)| *count == least).take(fewest) {
            println!("  fewest   {part} with {count}");
        }
    }
    Ok(())
}

fn told(fit: &FitStats) -> String {
    let percent = |ratio: f32| format!("{:.1} %", 100.0 * ratio);
    let sized = fit.sized_accepted_ratio.map_or_else(String::new, |ratio| format!(", {} with size", percent(ratio)));
    let several = fit.several.iter().map(|views| format!(", also for {views} views"));
    format!(
        "{} pictures; at a target error of {} it accepted {} of them{sized}{}",
        fit.rows,
        fit.target_error,
        percent(fit.accepted_ratio),
        several.collect::<String>()
    )
}

fn show(generation: &GenerationStats) {
    let role = match (generation.is_current, generation.is_previous) {
        (true, _) => "live",
        (false, true) => "previous",
        (false, false) => "old",
    };
    println!("{:<10} {}, {}", role, generation.name, megabytes(generation.bytes));
    if let Some(fault) = &generation.fault {
        println!("  fault    {fault}");
    }
    if let (Some(parts), Some(templates), Some(dim)) = (generation.parts, generation.templates, generation.dim) {
        println!("  parts    {parts}, {templates} templates of {dim} values");
    }
    if let Some(embedding) = &generation.embedding {
        println!("  model    {} ({}), {} px", embedding.model, embedding.model_sha256.short(), embedding.input_px);
    }
    if let Some(l1) = &generation.l1 {
        println!("  l1       {} templates in memory, {:.1} MB", l1.count, l1.bytes as f64 / 1e6);
    }
    if let Some(l2) = &generation.l2 {
        println!("  l2       {}, {} lists, {} visited, recall {:.3}", l2.kind, l2.lists, l2.nprobe, l2.measured_recall);
    }
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

/// # Errors
/// When the generation is not there or not whole; the live one is then unchanged.
pub fn switch(args: &SwitchArgs) -> anyhow::Result<()> {
    lifecycle::switch(&args.index, &args.generation)?;
    println!("live       {}", args.generation);
    Ok(())
}

/// # Errors
/// When there is no whole previous generation; the live one is then unchanged.
pub fn rollback(args: &RollbackArgs) -> anyhow::Result<()> {
    println!("live       {}", lifecycle::rollback(&args.index)?);
    Ok(())
}

/// # Errors
/// When there is no index, or something cannot be removed.
pub fn compact(args: &CompactArgs) -> anyhow::Result<()> {
    let compacted = lifecycle::compact(&args.index, args.quarantine, args.dry_run)?;
    if args.json {
        println!("{}", serde_json::to_string(&compacted)?);
        return Ok(());
    }
    let word = if args.dry_run { "would go " } else { "removed  " };
    compacted.removed.iter().for_each(|path| println!("{word}  {}", path.display()));
    println!("{}    {}", if args.dry_run { "to free" } else { "freed  " }, megabytes(compacted.bytes));
    Ok(())
}
