//! `loupe catalog`: the device's copy of the catalogue.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{anyhow, ensure};
use clap::Subcommand;
use serde_json::json;

use super::Failure;
use super::ledger_desk::{Place, own_ledger};
use crate::catalogue::{self, CatalogueError};
use crate::ledger::{LedgerReader, QualityChange, database_path};
use crate::matching::PartIndex;
use crate::types::{Catalogue, PartCard, QualityLevel};

/// Views that a template set needs: four sides and two heights.
const VIEWS_MIN_DEFAULT: usize = 6;
/// Items of a part that people must have confirmed before it is golden.
const CONFIRMED_MIN: u64 = 3;

/// Imports and shows the catalogue: parts, colours, categories, look-alikes, kits and who may see them.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Bring the catalogue up to date from a CSV or JSON file, or a folder of them; all of it or nothing.
    Import(ImportArgs),
    /// List the parts.
    List(ListArgs),
    /// Show all that is known of a part.
    Show(ShowArgs),
    /// Move a part to a quality level, after checking what the level asks for.
    Promote(PromoteArgs),
}

#[derive(Debug, clap::Args)]
pub struct ImportArgs {
    /// A .csv or .json file, or a folder with parts.csv, colours.csv, categories.csv, near_identical_pairs.csv, policies.csv, kits.csv.
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// Say what would change and every bad row, and change nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    place: Place,
}

#[derive(Debug, clap::Args)]
struct ListArgs {
    /// Language of the names: en or ko; English where there is no other.
    #[arg(long, default_value = "en", value_parser = ["en", "ko"])]
    lang: String,
    #[command(flatten)]
    place: Place,
}

#[derive(Debug, clap::Args)]
struct ShowArgs {
    /// Part number.
    part: String,
    /// Language of the names: en or ko; English where there is no other.
    #[arg(long, default_value = "en", value_parser = ["en", "ko"])]
    lang: String,
    #[command(flatten)]
    place: Place,
}

#[derive(Debug, clap::Args)]
struct PromoteArgs {
    /// Part number.
    part: String,
    /// The level: review_needed, bronze, silver or golden; default: the next one up. Downwards needs no check.
    #[arg(long, value_parser = ["review_needed", "bronze", "silver", "golden"])]
    to: Option<String>,
    /// Who decides.
    #[arg(long)]
    by: String,
    /// Why, in a sentence.
    #[arg(long)]
    reason: String,
    /// Folder of the part index, whose views of the part are counted for silver and golden.
    #[arg(long, value_name = "DIR")]
    index: Option<PathBuf>,
    /// Least number of different views for silver.
    #[arg(long, default_value_t = VIEWS_MIN_DEFAULT)]
    views_min: usize,
    #[command(flatten)]
    place: Place,
}

/// Run the command.
///
/// # Errors
/// When a file has faults, the ledger cannot be used, or a level asks for more than there is.
pub fn run(args: Args) -> anyhow::Result<()> {
    match args.command {
        Command::Import(args) => import(&args),
        Command::List(args) => list(&args),
        Command::Show(args) => show(&args),
        Command::Promote(args) => promote(args),
    }
}

/// Import a catalogue or kits; `loupe kit import` is the same.
///
/// # Errors
/// With every fault, when there is one.
pub fn import(args: &ImportArgs) -> anyhow::Result<()> {
    let path = database_path(&args.place.state_dir()?);
    // Opened first: nobody else changes what the file is held against.
    let ledger = if args.dry_run { None } else { Some(own_ledger(&args.place)?) };
    let known = if path.exists() { args.place.reader()?.catalogue()? } else { Catalogue::default() };
    let imported = match catalogue::read(&args.path, &known) {
        Ok(imported) => imported,
        Err(error) => return refuse(args, error),
    };
    let owned = if path.exists() { args.place.reader()?.central_conflicts(&imported.batch)? } else { Vec::new() };
    ensure!(
        owned.is_empty(),
        "{} came from the centre and would change; nothing was imported: change it there with `loupe publish`",
        owned.iter().take(20).cloned().collect::<Vec<_>>().join(", ")
    );
    let summary = catalogue::diff(&known, &imported.batch);
    if let Some(ledger) = ledger {
        ledger.import_catalogue(imported.batch)?;
        ledger.close()?;
    }
    if args.place.json {
        let document = json!({ "dry_run": args.dry_run, "rows": imported.rows, "files": imported.files,
            "ignored_columns": imported.ignored, "skipped": imported.skipped, "summary": summary, "faults": [] });
        println!("{}", serde_json::to_string_pretty(&document)?);
        return Ok(());
    }
    let done = if args.dry_run { "would be " } else { "" };
    for (kind, change) in summary.kinds() {
        let (added, changed) = (change.added.len(), change.changed.len());
        if added + changed + change.unchanged > 0 {
            println!("{kind:16} {added:>6} {done}added {changed:>6} {done}changed {:>6} unchanged", change.unchanged);
        }
        for name in change.changed.iter().take(20) {
            println!("  {done}changed: {name}");
        }
    }
    for columns in &imported.ignored {
        println!("ignored columns in {columns}");
    }
    for row in &imported.skipped {
        println!("skipped {row}");
    }
    Ok(())
}

fn refuse(args: &ImportArgs, error: CatalogueError) -> anyhow::Result<()> {
    if args.place.json {
        let document = json!({ "dry_run": args.dry_run, "faults": error.faults });
        println!("{}", serde_json::to_string_pretty(&document)?);
        return Err(anyhow!("{} fault(s), nothing was imported", error.faults.len()));
    }
    Err(error.into())
}

fn name_of<'a>(card: &'a PartCard, lang: &str) -> &'a str {
    card.part.name_ko.as_deref().filter(|_| lang == "ko").unwrap_or(&card.part.name_en)
}

fn category_of<'a>(card: &'a PartCard, lang: &str) -> &'a str {
    let korean = card.category_ko.as_deref().filter(|_| lang == "ko");
    korean.or(card.category_en.as_deref()).unwrap_or("-")
}

fn list(args: &ListArgs) -> anyhow::Result<()> {
    let parts = args.place.reader()?.parts()?;
    if args.place.json {
        println!("{}", serde_json::to_string_pretty(&json!({ "parts": parts }))?);
        return Ok(());
    }
    for card in &parts {
        let (level, category) = (card.quality_level.as_str(), category_of(card, &args.lang));
        println!("{:<14} {level:<13} {category:<16} {}", card.part.part_number, name_of(card, &args.lang));
    }
    if parts.is_empty() {
        println!("the catalogue is empty; see `loupe catalog import --help`");
    }
    Ok(())
}

fn find(reader: &LedgerReader, part: &str) -> anyhow::Result<PartCard> {
    reader.part(part)?.ok_or_else(|| anyhow!("part `{part}` is not in the catalogue; see `loupe catalog list`"))
}

fn show(args: &ShowArgs) -> anyhow::Result<()> {
    let reader = args.place.reader()?;
    let card = find(&reader, &args.part)?;
    let similar = reader.similar_parts(&args.part)?;
    let (confirmed, rejected) = reader.reviewed_counts(&args.part)?;
    if args.place.json {
        let document =
            json!({ "part": card, "similar": similar, "reviews": { "confirmed": confirmed, "rejected": rejected } });
        println!("{}", serde_json::to_string_pretty(&document)?);
        return Ok(());
    }
    let size = |mm: Option<f64>| mm.map_or_else(|| "-".to_owned(), |mm| format!("{mm:.1}"));
    println!("part      {} (version {})", card.part.part_number, card.version);
    println!("name      {}", name_of(&card, &args.lang));
    println!("category  {}", category_of(&card, &args.lang));
    let (length, width, height) = (size(card.part.length_mm), size(card.part.width_mm), size(card.part.height_mm));
    println!("size      {length} × {width} × {height} mm");
    println!("level     {}", card.quality_level.as_str());
    println!("group     {}", card.part.confusion_group.as_deref().unwrap_or("-"));
    println!("reviews   {confirmed} confirmed, {rejected} rejected");
    let groups =
        if card.allowed_groups.is_empty() { "nobody named".to_owned() } else { card.allowed_groups.join(", ") };
    println!("access    {}", card.security_level.map_or_else(|| "public".to_owned(), |l| format!("{l} ({groups})")));
    for (other, similarity) in similar {
        println!("similar   {other} ({similarity:.3})");
    }
    Ok(())
}

fn promote(args: PromoteArgs) -> anyhow::Result<()> {
    if args.by.trim().is_empty() || args.reason.trim().is_empty() {
        return Err(Failure::usage(anyhow!("--by and --reason must say something")).into());
    }
    // Read first: opening for writing would make a ledger in a mistyped folder.
    let reader = args.place.reader()?;
    let ledger = own_ledger(&args.place)?;
    let before = find(&reader, &args.part)?.quality_level;
    let level = match &args.to {
        Some(text) => QualityLevel::parse(text).ok_or_else(|| anyhow!("`{text}` is no level"))?,
        None => QualityLevel::ALL.into_iter().find(|level| *level > before).unwrap_or(before),
    };
    let mut details = json!({});
    if level > before && level >= QualityLevel::Silver {
        let views = views_of(&args)?;
        details["views"] = json!(views);
        ensure!(
            views >= args.views_min,
            "part `{}` has {views} views in the index, silver needs {}: add templates and build the index again",
            args.part,
            args.views_min
        );
    }
    if level > before && level == QualityLevel::Golden {
        let (confirmed, rejected) = reader.reviewed_counts(&args.part)?;
        details["confirmed"] = json!(confirmed);
        details["rejected"] = json!(rejected);
        ensure!(
            before == QualityLevel::Silver,
            "part `{}` is {}; it must be silver before it is golden",
            args.part,
            before.as_str()
        );
        ensure!(
            confirmed >= CONFIRMED_MIN && rejected == 0,
            "part `{}` has {confirmed} confirmed and {rejected} rejected items; golden needs {CONFIRMED_MIN} confirmed \
             and none rejected: `loupe review ITEM --confirm`",
            args.part
        );
    }
    let change = QualityChange { part_number: args.part, level, by: args.by, reason: args.reason, details };
    let done = ledger.change_quality(change)?;
    ledger.close()?;
    if args.place.json {
        println!("{done}");
    } else {
        println!("{} is {} now, was {}", done["part_number"].as_str().unwrap_or("-"), level.as_str(), before.as_str());
    }
    Ok(())
}

fn views_of(args: &PromoteArgs) -> anyhow::Result<usize> {
    let Some(dir) = &args.index else {
        return Err(Failure::usage(anyhow!("--index DIR is needed: its views of the part are counted")).into());
    };
    let index = PartIndex::open(dir)?;
    let views: BTreeSet<&str> =
        index.templates().filter(|template| template.part_id == args.part).map(|t| t.view).collect();
    Ok(views.len())
}
