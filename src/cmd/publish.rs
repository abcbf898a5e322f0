//! `loupe publish`: what sites are to use, told at the centre.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, ensure};
use clap::Subcommand;
use serde_json::json;

use super::Failure;
use super::db::DsnArgs;
use crate::catalogue::{self, Summary};
use crate::config::Recipe;
use crate::ledger::generation_name;
use crate::limits::{FIT_BYTES_MAX, RECIPE_BYTES_MAX};
use crate::matching::Fit;
use crate::types::Digest;
use crate::uplink::{Central, NewRecipe, PUBLISHED_KINDS, Published, Secret, SiteState, UplinkError, block_on};

/// Tell sites what to use: catalogue, kits, recipes and fits. Their devices fetch it by themselves.
///
/// Needs a login of the central database that may publish: a member of loupe_admin or loupe_owner.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Publish parts, colours, categories, look-alikes, kits and access policies from CSV or JSON files; all or nothing.
    Catalog(FileArgs),
    /// Publish kits from a CSV or JSON file; their parts must be published.
    Kit(FileArgs),
    /// Publish a recipe and have a site's stations run it: they take it up while they run, once it is proved there.
    Recipe(RecipeArgs),
    /// Publish the fit of an index generation: how sure a match must be. Devices that have the generation use it at once.
    Fit(FitArgs),
    /// Say which recipes and fits serve at the sites, which were refused there and why.
    Status(StatusArgs),
    /// List what is published.
    List(ListArgs),
    /// Take something back. Devices drop it when they next ask; a station goes on with the recipe it has.
    Withdraw(WithdrawArgs),
}

#[derive(Debug, clap::Args)]
struct FileArgs {
    /// A .csv or .json file, or a folder of them, as `loupe catalog import` reads them.
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// Code of the site it is for; default: every site. A site's own row counts before the one for every site.
    #[arg(long, value_name = "CODE")]
    site: Option<String>,
    /// Say what would change and every bad row, and change nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    database: DsnArgs,
}

#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("scope").required(true).args(["site", "all_sites"])))]
struct RecipeArgs {
    /// The recipe. Its relative paths are those of the device: relative to the folder of the device's configuration.
    #[arg(value_name = "FILE")]
    path: PathBuf,
    /// Code of the site it is for.
    #[arg(long, value_name = "CODE")]
    site: Option<String>,
    /// For every site that has no recipe of its own.
    #[arg(long)]
    all_sites: bool,
    /// The station it is for; default: every station of the site that takes its recipe from the centre.
    #[arg(long, value_name = "NAME")]
    station: Option<String>,
    /// Why, in a sentence.
    #[arg(long, value_name = "TEXT")]
    note: Option<String>,
    /// Check the recipe and the site, and change nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    database: DsnArgs,
}

#[derive(Debug, clap::Args)]
struct FitArgs {
    /// What `loupe index fit` wrote: fits/gen-….json in the folder of the index.
    #[arg(value_name = "FILE")]
    path: PathBuf,
    /// Code of the site it is for; default: every site that has the generation.
    #[arg(long, value_name = "CODE")]
    site: Option<String>,
    /// Check the fit and the site, and change nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    database: DsnArgs,
}

#[derive(Debug, clap::Args)]
struct StatusArgs {
    /// Only this site.
    #[arg(long, value_name = "CODE")]
    site: Option<String>,
    #[command(flatten)]
    database: DsnArgs,
}

#[derive(Debug, clap::Args)]
struct ListArgs {
    /// Only what the devices of this site read.
    #[arg(long, value_name = "CODE")]
    site: Option<String>,
    /// Only this kind.
    #[arg(long, value_parser = PUBLISHED_KINDS)]
    kind: Option<String>,
    #[command(flatten)]
    database: DsnArgs,
}

#[derive(Debug, clap::Args)]
struct WithdrawArgs {
    /// What it is; a recipe is withdrawn from a station.
    #[arg(value_parser = PUBLISHED_KINDS)]
    kind: String,
    /// Part number, kit code, category, colour number, `A~B` of a pair, `kind:subject` of a policy, `gen-…` of a fit; for a recipe the station, or * for every station.
    key: String,
    /// Code of the site whose row it is; default: the row for every site.
    #[arg(long, value_name = "CODE")]
    site: Option<String>,
    #[command(flatten)]
    database: DsnArgs,
}

/// Run the command.
///
/// # Errors
/// When a file has faults, or the database refuses.
pub fn run(args: Args) -> anyhow::Result<()> {
    match args.command {
        Command::Catalog(args) | Command::Kit(args) => publish_files(&args),
        Command::Recipe(args) => publish_recipe(&args),
        Command::Fit(args) => publish_fit(&args),
        Command::Status(args) => status(&args),
        Command::List(args) => list(&args),
        Command::Withdraw(args) => withdraw(&args),
    }
}

/// Explain what an older schema or a login that may not publish answers.
fn explain(error: UplinkError) -> anyhow::Error {
    let text = error.to_string();
    let error = anyhow::Error::from(error);
    if text.contains("does not exist") && text.contains("relation") {
        return error.context("this database has no tables for publishing; run `loupe db migrate` there");
    }
    if text.contains("permission denied") || text.contains("row-level security") {
        return error.context("this login may not publish; use a member of loupe_admin");
    }
    error
}

fn at_centre<T>(dsn: &Secret, work: impl AsyncFnOnce(&mut Central) -> Result<T, UplinkError>) -> anyhow::Result<T> {
    block_on(async {
        let mut central = Central::connect(dsn).await?;
        work(&mut central).await
    })
    .map_err(explain)
}

async fn site_id(central: &Central, code: Option<&str>) -> Result<Option<uuid::Uuid>, UplinkError> {
    match code {
        None => Ok(None),
        Some(code) => central.site_of(code).await.map(Some),
    }
}

fn publish_files(args: &FileArgs) -> anyhow::Result<()> {
    let dsn = args.database.secret()?;
    let (site, known) = at_centre(&dsn, async |central| {
        let site = site_id(central, args.site.as_deref()).await?;
        Ok((site, central.published_catalogue(site).await?))
    })?;
    let imported = match catalogue::read(&args.path, &known) {
        Ok(imported) => imported,
        Err(error) if args.database.wants_json() => {
            println!("{}", serde_json::to_string_pretty(&json!({ "dry_run": args.dry_run, "faults": error.faults }))?);
            return Err(anyhow!("{} fault(s), nothing was published", error.faults.len()));
        }
        Err(error) => return Err(error.into()),
    };
    let summary = catalogue::diff(&known, &imported.batch);
    let changed = match args.dry_run {
        true => None,
        false => Some(at_centre(&dsn, async |central| central.publish_catalogue(site, &imported.batch).await)?),
    };
    if args.database.wants_json() {
        let document = json!({ "dry_run": args.dry_run, "site": args.site, "rows": imported.rows,
            "ignored_columns": imported.ignored, "skipped": imported.skipped, "summary": summary,
            "rows_changed": changed, "faults": [] });
        println!("{}", serde_json::to_string_pretty(&document)?);
        return Ok(());
    }
    print_summary(&summary, args.dry_run);
    for columns in &imported.ignored {
        println!("ignored columns in {columns}");
    }
    for row in &imported.skipped {
        println!("skipped {row}");
    }
    let to = args.site.as_ref().map_or_else(|| "every site".to_owned(), |site| format!("site {site}"));
    match changed {
        None => println!("nothing was published for {to}: --dry-run"),
        Some(changed) => println!("published for {to}: {changed} rows changed"),
    }
    Ok(())
}

fn print_summary(summary: &Summary, dry_run: bool) {
    let done = if dry_run { "would be " } else { "" };
    for (kind, change) in summary.kinds() {
        let (added, changed) = (change.added.len(), change.changed.len());
        if added + changed + change.unchanged > 0 {
            println!("{kind:16} {added:>6} {done}added {changed:>6} {done}changed {:>6} unchanged", change.unchanged);
        }
    }
}

/// The recipe at `path`, checked as the daemon checks it; models and indexes are looked for by the devices.
fn read_recipe(path: &Path) -> anyhow::Result<Recipe> {
    let recipe = Recipe::load(path).map_err(|error| Failure::config(error.into()))?;
    ensure!(
        recipe.body.len() <= RECIPE_BYTES_MAX,
        "{} has {} bytes, a recipe may have {RECIPE_BYTES_MAX}",
        path.display(),
        recipe.body.len()
    );
    Ok(recipe)
}

fn publish_recipe(args: &RecipeArgs) -> anyhow::Result<()> {
    let dsn = args.database.secret()?;
    let recipe = read_recipe(&args.path)?;
    let new = NewRecipe {
        name: recipe.name.clone(),
        version_label: recipe.version_label.clone(),
        body: recipe.body.clone(),
        station: args.station.clone(),
        note: args.note.clone(),
    };
    let is_new = at_centre(&dsn, async |central| {
        let site = site_id(central, args.site.as_deref()).await?;
        if args.dry_run { Ok(None) } else { central.publish_recipe(site, &new).await.map(Some) }
    })
    .with_context(|| format!("recipe {}", args.path.display()))?;
    if args.database.wants_json() {
        let document = json!({ "dry_run": args.dry_run, "site": args.site, "station": args.station,
            "name": recipe.name, "version_label": recipe.version_label, "sha256": recipe.sha256, "is_new": is_new });
        println!("{}", serde_json::to_string_pretty(&document)?);
        return Ok(());
    }
    let what = format!("recipe {} {} ({})", recipe.name, recipe.version_label, recipe.sha256.short());
    let site = args.site.as_ref().map_or_else(|| "every site".to_owned(), |site| format!("site {site}"));
    let station = args.station.as_ref().map_or_else(|| "every station".to_owned(), |name| format!("station {name}"));
    match is_new {
        None => println!("{what} is in order; nothing was published for {site}, {station}: --dry-run"),
        Some(true) => println!("{what} is published for {site}, {station}"),
        Some(false) => println!("{what} is published for {site}, {station} already"),
    }
    Ok(())
}

/// The fit at `path` and its text, checked as the devices check it.
fn read_fit(path: &Path) -> anyhow::Result<(Fit, String)> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    ensure!(
        bytes.len() <= FIT_BYTES_MAX,
        "{} has {} bytes, a fit may have {FIT_BYTES_MAX}",
        path.display(),
        bytes.len()
    );
    let fit = Fit::parse(&bytes, path).map_err(|error| Failure::config(error.into()))?;
    let text = String::from_utf8(bytes).with_context(|| path.display().to_string())?;
    Ok((fit, text))
}

fn publish_fit(args: &FitArgs) -> anyhow::Result<()> {
    let dsn = args.database.secret()?;
    let (fit, body) = read_fit(&args.path)?;
    let is_new = at_centre(&dsn, async |central| {
        let site = site_id(central, args.site.as_deref()).await?;
        if args.dry_run { Ok(None) } else { central.publish_fit(site, fit.generation_sha256, &body).await.map(Some) }
    })
    .with_context(|| format!("fit {}", args.path.display()))?;
    let sha256 = Digest::of(body.as_bytes());
    if args.database.wants_json() {
        let document = json!({ "dry_run": args.dry_run, "site": args.site, "sha256": sha256, "is_new": is_new,
            "generation_sha256": fit.generation_sha256 });
        println!("{}", serde_json::to_string_pretty(&document)?);
        return Ok(());
    }
    let what = format!("fit {} of generation {}", sha256.short(), generation_name(fit.generation_sha256));
    let site = args.site.as_ref().map_or_else(|| "every site".to_owned(), |site| format!("site {site}"));
    match is_new {
        None => println!("{what} is in order; nothing was published for {site}: --dry-run"),
        Some(true) => println!("{what} is published for {site}"),
        Some(false) => println!("{what} is published for {site} already"),
    }
    Ok(())
}

fn status(args: &StatusArgs) -> anyhow::Result<()> {
    let dsn = args.database.secret()?;
    let states = at_centre(&dsn, async |central| {
        let site = site_id(central, args.site.as_deref()).await?;
        central.provisioning_state(site).await
    })?;
    if args.database.wants_json() {
        println!("{}", serde_json::to_string_pretty(&json!({ "sites": states }))?);
        return Ok(());
    }
    let short = |sha256: &str| sha256.get(..12).unwrap_or(sha256).to_owned();
    for state in &states {
        let SiteState { site, subject_kind, subject, outcome, occurred_at, .. } = state;
        let stands = match (state.is_as_wanted, &state.wanted_sha256) {
            (true, _) => "as published".to_owned(),
            (false, None) => "nothing is published for it".to_owned(),
            (false, Some(wanted)) => format!("published is {}", short(wanted)),
        };
        println!(
            "{site:<16} {subject_kind:<6} {subject:<20} {outcome:<9} {} since {occurred_at}; {stands}",
            short(&state.sha256)
        );
        if let Some(detail) = &state.detail {
            println!("{:<16} {detail}", "");
        }
    }
    if states.is_empty() {
        println!("no device has said anything yet");
    }
    Ok(())
}

fn list(args: &ListArgs) -> anyhow::Result<()> {
    let dsn = args.database.secret()?;
    let rows: Vec<Published> = at_centre(&dsn, async |central| {
        let site = site_id(central, args.site.as_deref()).await?;
        central.published(site, args.kind.as_deref()).await
    })?;
    if args.database.wants_json() {
        println!("{}", serde_json::to_string_pretty(&json!({ "published": rows }))?);
        return Ok(());
    }
    for row in &rows {
        let site = row.site.as_deref().unwrap_or("every site");
        println!("{:<9} {:<20} {site:<16} {}  {}  {}", row.kind, row.key, row.updated_at, row.updated_by, row.name);
    }
    if rows.is_empty() {
        println!("nothing is published; see `loupe publish --help`");
    }
    Ok(())
}

fn withdraw(args: &WithdrawArgs) -> anyhow::Result<()> {
    let dsn = args.database.secret()?;
    at_centre(&dsn, async |central| {
        let site = site_id(central, args.site.as_deref()).await?;
        central.withdraw(&args.kind, &args.key, site).await
    })?;
    if args.database.wants_json() {
        println!("{}", json!({ "withdrawn": { "kind": args.kind, "key": args.key, "site": args.site } }));
    } else {
        let site = args.site.as_ref().map_or_else(|| "every site".to_owned(), |site| format!("site {site}"));
        println!("{} {} is withdrawn from {site}", args.kind, args.key);
    }
    Ok(())
}
