//! `loupe db retention|rollup|hold`: what a timer runs against the central database, and what keeps it from deleting.

use anyhow::{Context as _, bail};
use clap::{Args as ClapArgs, Subcommand};
use uuid::Uuid;

use super::Failure;
use super::db::{DsnArgs, explained};
use crate::types::Timestamp;
use crate::uplink::{Central, LegalHold, RetentionReport, RollupReport, StepKind, block_on};

#[derive(Debug, ClapArgs)]
pub struct RetentionArgs {
    #[command(flatten)]
    database: DsnArgs,
    /// Only say what would be done.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, ClapArgs)]
pub struct RollupArgs {
    #[command(flatten)]
    database: DsnArgs,
    /// Compute every hour anew whose detail is still kept, not only those that changed.
    #[arg(long)]
    full: bool,
}

#[derive(Debug, ClapArgs)]
pub struct HoldArgs {
    #[command(subcommand)]
    command: HoldCommand,
}

#[derive(Debug, Subcommand)]
enum HoldCommand {
    /// Keep the rows of a stretch of time.
    Place(PlaceArgs),
    /// End a hold: its rows expire as others do.
    Release(ReleaseArgs),
    /// List the holds, the newest first.
    List(DsnArgs),
}

#[derive(Debug, ClapArgs)]
struct PlaceArgs {
    #[command(flatten)]
    database: DsnArgs,
    /// Short name of the site; default: every site.
    #[arg(long, value_name = "CODE")]
    site: Option<String>,
    /// First day or time that is kept, as 2026-11-01 or 2026-11-01T06:00:00Z (UTC).
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    from: Timestamp,
    /// First day or time that is no longer kept.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    to: Timestamp,
    /// Why.
    #[arg(long)]
    reason: String,
}

#[derive(Debug, ClapArgs)]
struct ReleaseArgs {
    #[command(flatten)]
    database: DsnArgs,
    /// The hold, as `loupe db hold list` shows it.
    #[arg(value_name = "ID")]
    id: Uuid,
}

fn parse_time(text: &str) -> Result<Timestamp, String> {
    let full = if text.len() == "2026-11-01".len() { format!("{text}T00:00:00Z") } else { text.to_owned() };
    full.parse::<jiff::Timestamp>()
        .map(|time| Timestamp::from_micros(time.as_microsecond()))
        .map_err(|_| format!("`{text}` is neither a day such as 2026-11-01 nor a time such as 2026-11-01T06:00:00Z"))
}

pub(super) fn retention(args: &RetentionArgs) -> anyhow::Result<()> {
    let dsn = args.database.secret()?;
    let report = block_on(async { Central::connect(&dsn).await?.retention(args.dry_run).await }).map_err(explained)?;
    if args.database.wants_json() {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print_retention(&report);
    }
    match report.failures() {
        0 => Ok(()),
        failures => bail!("{failures} steps failed and changed nothing; run it again"),
    }
}

fn print_retention(report: &RetentionReport) {
    for step in &report.steps {
        let (partition, rows) = (&step.partition, step.rows);
        let line = match step.kind {
            StepKind::Make => format!("make   {partition}"),
            StepKind::Move => format!("move   {partition}: {rows} rows out of DEFAULT"),
            StepKind::Drop => format!("drop   {partition}: {rows} rows have expired"),
            StepKind::Purge => format!("purge  {partition}: {rows} rows have expired, the others are on legal hold"),
            StepKind::Expire => format!("expire {partition}: {rows} rows"),
            StepKind::Hold => format!("hold   {partition}: {rows} rows have expired and are on legal hold"),
            StepKind::Stray => {
                format!("stray  {partition}: {rows} rows from {}; check the devices' clocks", step.starts_at)
            }
        };
        match &step.error {
            Some(error) => println!("{line}: FAILED, {error}"),
            None => println!("{line}"),
        }
    }
    if !report.tables_without_policy.is_empty() {
        println!("kept for ever, since they have no policy: {}", report.tables_without_policy.join(", "));
    }
    let acting = report.steps.iter().filter(|step| step.kind.acts()).count();
    let done = if report.is_dry_run { "would be done" } else { "done" };
    println!("{}: {} steps {done}", report.server, acting - report.failures());
}

pub(super) fn rollup(args: &RollupArgs) -> anyhow::Result<()> {
    let dsn = args.database.secret()?;
    let report = block_on(async { Central::connect(&dsn).await?.rollup(args.full).await }).map_err(explained)?;
    if args.database.wants_json() {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print_rollup(&report);
    }
    match report.views.iter().filter(|view| view.error.is_some()).count() {
        0 => Ok(()),
        failures => bail!("{failures} views were not refreshed; they hold what they held"),
    }
}

fn print_rollup(report: &RollupReport) {
    if report.is_skipped {
        println!("{}: another rollup is under way; nothing was done", report.server);
        return;
    }
    for rollup in &report.rollups {
        println!("{:<20} {:>8} hours {:>8} rows {:>9.0} ms", rollup.table, rollup.hours, rollup.rows, rollup.took_ms);
    }
    for view in &report.views {
        let error = view.error.as_deref().map(|error| format!("  FAILED, {error}")).unwrap_or_default();
        println!("{:<20} {:>14} {:>8} rows {:>9.0} ms{error}", view.view, "refreshed", view.rows, view.took_ms);
    }
}

pub(super) fn hold(args: HoldArgs) -> anyhow::Result<()> {
    match args.command {
        HoldCommand::Place(args) => {
            if args.from >= args.to {
                return Err(Failure::usage(anyhow::anyhow!("--from must be before --to")).into());
            }
            let dsn = args.database.secret()?;
            let hold = block_on(async {
                let mut central = Central::connect(&dsn).await?;
                central.place_hold(args.site.as_deref(), args.from, args.to, &args.reason).await
            })
            .map_err(explained)
            .context("the hold was not placed")?;
            print_holds(&[hold], args.database.wants_json())
        }
        HoldCommand::Release(args) => {
            let dsn = args.database.secret()?;
            let hold = block_on(async { Central::connect(&dsn).await?.release_hold(args.id).await })
                .map_err(explained)
                .context("the hold was not released")?;
            print_holds(&[hold], args.database.wants_json())
        }
        HoldCommand::List(database) => {
            let dsn = database.secret()?;
            let holds = block_on(async { Central::connect(&dsn).await?.holds().await }).map_err(explained)?;
            print_holds(&holds, database.wants_json())
        }
    }
}

fn print_holds(holds: &[LegalHold], as_json: bool) -> anyhow::Result<()> {
    if as_json {
        println!("{}", serde_json::to_string_pretty(holds)?);
        return Ok(());
    }
    for hold in holds {
        let site = hold.site.as_deref().unwrap_or("every site");
        let state = hold.released_at.as_deref().map_or("holds".to_owned(), |at| format!("released {at}"));
        println!("{}  {site}  {} to {}  {state}  {}", hold.id, hold.starts_at, hold.ends_at, hold.reason);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::parse_time;

    #[test]
    fn a_day_is_its_midnight_in_utc() {
        assert_eq!(parse_time("2026-11-01"), parse_time("2026-11-01T00:00:00Z"));
        assert_eq!(parse_time("2026-11-01T06:00:00+06:00"), parse_time("2026-11-01"));
        for bad in ["2026-13-01", "yesterday", ""] {
            assert!(parse_time(bad).is_err(), "{bad}");
        }
    }
}
