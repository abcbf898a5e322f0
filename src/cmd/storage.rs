//! `loupe storage`: what this device keeps, what goes next, what is held, and whether the pictures are as they were.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, ensure};
use clap::Subcommand;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use uuid::Uuid;

use super::ledger_desk::{Place, Writer, in_words, open};
use super::review::post;
use crate::clock::Clock;
use crate::dashboard::{GoneFn, HoldFn, ReviewRefusal};
use crate::ledger::{Amount, Class, GoneReason, Ledger, LedgerReader, Planned, Scrub, StorageStatus, Sweep, Swept};
use crate::types::{DiskLevel, HoldOrder, HoldScope, InspectionId, LegalHold, StoragePolicy, Timestamp};

/// Shows what this device stores and keeps it within bounds.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show sizes, free space, marks, what is held, and what would go next, in order. The daemon may be running.
    Status {
        #[command(flatten)]
        place: Place,
    },
    /// Take out what is over age, and pictures where the disk is low. The daemon does this by itself: stop it first.
    Prune {
        /// Only say what would go.
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        place: Place,
    },
    /// Place, list and release legal holds: what they cover never expires and is never shed.
    Hold {
        #[command(subcommand)]
        command: HoldCommand,
    },
    /// Compare every picture with the ledger. A changed file and one that no row names are moved to quarantine/, never
    /// deleted. While the daemon runs this only looks: the daemon scrubs by itself, slowly. Ends with 1 when it finds a fault.
    Scrub {
        /// Only look; move nothing.
        #[arg(long)]
        check_only: bool,
        #[command(flatten)]
        place: Place,
    },
}

#[derive(Debug, Subcommand)]
enum HoldCommand {
    /// Place a hold on the inspections that meet every criterion given, now and later.
    Add {
        /// One inspection: its code (INS-…) or id.
        #[arg(long, value_name = "CODE")]
        inspection: Option<String>,
        /// Inspections whose record names this part, as answer or as candidate.
        #[arg(long)]
        part: Option<String>,
        /// Inspections of this station.
        #[arg(long)]
        station: Option<String>,
        /// Captured at or after this time, RFC 3339, e.g. 2026-11-21T06:00:00Z.
        #[arg(long, value_name = "TIME", value_parser = parse_time)]
        from: Option<Timestamp>,
        /// Captured before this time, RFC 3339; may lie in the future.
        #[arg(long, value_name = "TIME", value_parser = parse_time)]
        until: Option<Timestamp>,
        /// Who places it.
        #[arg(long, value_name = "NAME")]
        by: String,
        /// Why.
        #[arg(long, value_name = "TEXT")]
        reason: String,
        #[command(flatten)]
        place: Place,
    },
    /// List the holds that stand.
    List {
        /// Also those that were released.
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        place: Place,
    },
    /// Release a hold: what it alone covered may expire again. The hold itself stays on record.
    Release {
        /// Id of the hold.
        id: Uuid,
        /// Who releases it.
        #[arg(long, value_name = "NAME")]
        by: String,
        /// Why.
        #[arg(long, value_name = "TEXT")]
        reason: String,
        #[command(flatten)]
        place: Place,
    },
}

fn parse_time(text: &str) -> Result<Timestamp, String> {
    serde_json::from_value(Value::from(text)).map_err(|error| format!("{error}; write 2026-11-21T06:00:00Z"))
}

/// # Errors
/// When the ledger cannot be used, an order is refused, or a scrub finds a fault.
pub fn run(args: Args) -> anyhow::Result<()> {
    match args.command {
        Command::Status { place } => status(&place),
        Command::Prune { dry_run: true, place } => plan(&place),
        Command::Prune { dry_run: false, place } => prune(&place),
        Command::Scrub { check_only, place } => scrub(&place, check_only),
        Command::Hold { command } => hold(command),
    }
}

/// The policy of the configuration; where --state is given, that of the defaults.
fn policy(place: &Place) -> anyhow::Result<StoragePolicy> {
    if place.folder.is_named() {
        return Ok(StoragePolicy::default());
    }
    Ok(place.folder.config()?.storage.policy)
}

fn look(place: &Place) -> anyhow::Result<StorageStatus> {
    Ok(place.reader()?.storage_status(&policy(place)?, Clock::system().now())?)
}

fn status(place: &Place) -> anyhow::Result<()> {
    let status = look(place)?;
    if place.json {
        println!("{}", serde_json::to_string_pretty(&status)?);
        return Ok(());
    }
    let policy = &status.policy;
    println!(
        "disk         {:>12} free: {} (pictures go below {}, commits stop below {})",
        size(status.free_bytes),
        status.level.as_str(),
        size(policy.free_low_bytes),
        size(policy.free_critical_bytes)
    );
    if let Some(budget) = policy.budget_bytes {
        println!("budget       {:>12} for pictures", size(budget));
    }
    println!(
        "ledger       {:>12} ({} of it reusable), log {}",
        size(status.ledger_bytes),
        size(status.reusable_bytes),
        size(status.log_bytes)
    );
    println!(
        "pictures     {:>12} in {} files, oldest {}",
        size(status.pictures.bytes),
        status.pictures.count,
        at(status.oldest_picture_at)
    );
    println!("inspections  {:>12}, oldest {}", status.inspections, at(status.oldest_inspection_at));
    println!("undelivered  {:>12} (never removed)", status.undelivered);
    println!("samples      {:>12} waiting", status.samples);
    println!(
        "held         {:>12} inspections by {} legal holds, with {}",
        status.held_inspections,
        status.holds,
        amount(status.held_pictures)
    );
    println!("learned from {:>12} pictures, kept with their templates", status.taught_pictures.count);
    println!("gone so far  {:>12} inspections, {}", status.expired_inspections, amount(status.gone_pictures));
    if status.quarantined_files > 0 {
        println!("quarantined  {:>12} files", status.quarantined_files);
    }
    print_plan(&status);
    Ok(())
}

fn print_plan(status: &StorageStatus) {
    println!("over age, goes with the next pass:");
    status.expired.iter().for_each(print_planned);
    println!("goes when the disk is low, in this order (verdicts never):");
    status.under_pressure.iter().for_each(print_planned);
}

fn print_planned(planned: &Planned) {
    let what = match planned.class {
        Class::PassPictures => "pictures of PASS",
        Class::OtherPictures => "pictures of FAIL and HOLD",
        Class::Detail => "detail rows of inspections",
        Class::Verdicts => "delivered inspections",
        Class::Samples => "samples of GPUs and machine",
    };
    let bytes = if planned.amount.bytes > 0 { format!(", {}", size(planned.amount.bytes)) } else { String::new() };
    let oldest = planned.oldest_at.map(|at| format!(", oldest {at}")).unwrap_or_default();
    println!("  {:>10} {what}{bytes}{oldest}", planned.amount.count);
}

fn plan(place: &Place) -> anyhow::Result<()> {
    let status = look(place)?;
    if place.json {
        let plan = json!({ "level": status.level, "expired": status.expired, "under_pressure": status.under_pressure });
        println!("{}", serde_json::to_string_pretty(&plan)?);
    } else {
        println!("disk: {}, {} free; nothing was removed", status.level.as_str(), size(status.free_bytes));
        print_plan(&status);
    }
    Ok(())
}

fn prune(place: &Place) -> anyhow::Result<()> {
    let policy = policy(place)?;
    let state_dir = place.state_dir()?;
    // Opening for writing would make a ledger; a mistyped folder must not.
    drop(LedgerReader::open(&state_dir)?);
    let ledger = Ledger::open(&state_dir, Clock::system())?;
    let outcome = sweep(&ledger, policy);
    ledger.close()?;
    let (swept, level) = outcome?;
    if place.json {
        println!("{}", serde_json::to_string_pretty(&json!({ "level": level, "removed": swept }))?);
        return Ok(());
    }
    println!(
        "removed {} pictures of PASS, {} other pictures ({}), the detail of {} inspections, {} inspections, {} samples",
        swept.pass_pictures,
        swept.other_pictures,
        size(swept.picture_bytes),
        swept.detail,
        swept.inspections,
        swept.samples
    );
    println!("disk: {}", level.as_str());
    Ok(())
}

fn sweep(ledger: &Ledger, policy: StoragePolicy) -> anyhow::Result<(Swept, DiskLevel)> {
    let mut sweep = Sweep::new(ledger.clone(), policy, Clock::system())?;
    let bar = ProgressBar::new_spinner();
    let mut pace = |_: Duration| {
        bar.inc(1);
        true
    };
    let mut swept = sweep.expire(&mut pace)?;
    if sweep.level()?.0 != DiskLevel::Enough {
        let shed = sweep.relieve(&mut pace)?;
        swept.pass_pictures += shed.pass_pictures;
        swept.other_pictures += shed.other_pictures;
        swept.picture_bytes += shed.picture_bytes;
        swept.samples += shed.samples;
    }
    bar.finish_and_clear();
    let level = sweep.level()?.0;
    Ok((swept, level))
}

fn scrub(place: &Place, check_only: bool) -> anyhow::Result<()> {
    let state_dir = place.state_dir()?;
    let rows = LedgerReader::open(&state_dir)?.storage_status(&policy(place)?, Clock::system().now())?.pictures.count;
    let ledger = if check_only {
        None
    } else {
        match open(&state_dir)? {
            Writer::Here(ledger) => Some(ledger),
            Writer::There(_) => {
                eprintln!("the daemon has the ledger and moves what is wrong by itself; this only looks");
                None
            }
        }
    };
    let template = "{wide_bar} {pos}/{len} pictures {eta}";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(rows).with_style(style);
    let outcome = Scrub::new(&state_dir, ledger.clone(), Clock::system()).and_then(|scrub| {
        scrub.run(&mut |_| {
            bar.inc(1);
            true
        })
    });
    bar.finish_and_clear();
    ledger.map_or(Ok(()), Ledger::close)?;
    let report = outcome?;
    if place.json {
        let mut document = serde_json::to_value(&report)?;
        document["is_clean"] = report.is_clean().into();
        println!("{}", serde_json::to_string_pretty(&document)?);
    } else {
        report.faults.iter().for_each(|fault| println!("fault: {fault}"));
        println!(
            "checked {} rows and {} files: {} missing, {} changed, {} outside the folder, {} without a row, {} links; moved {} to quarantine/",
            report.rows_checked,
            report.files_checked,
            report.missing,
            report.changed,
            report.outside,
            report.orphans,
            report.links,
            report.quarantined
        );
    }
    ensure!(report.is_clean(), "the pictures below {} are not as they were written", state_dir.display());
    Ok(())
}

fn hold(command: HoldCommand) -> anyhow::Result<()> {
    match command {
        HoldCommand::Add { inspection, part, station, from, until, by, reason, place } => {
            let inspection = inspection.map(|name| find(&place, &name)).transpose()?;
            let scope = HoldScope { inspection, part, station, from, until };
            let done = order(&place, HoldOrder::Place { scope, by, reason })?;
            print_done(&place, &done, |done| {
                format!("hold {} covers {} inspections now", text(&done["id"]), done["covered_now"])
            })
        }
        HoldCommand::Release { id, by, reason, place } => {
            let done = order(&place, HoldOrder::Release { id, by, reason })?;
            print_done(&place, &done, |done| format!("hold {} is released", text(&done["id"])))
        }
        HoldCommand::List { all, place } => {
            let holds = place.reader()?.legal_holds(all)?;
            if place.json {
                println!("{}", serde_json::to_string_pretty(&json!({ "holds": holds }))?);
                return Ok(());
            }
            holds.iter().for_each(print_hold);
            if holds.is_empty() {
                println!("no holds");
            }
            Ok(())
        }
    }
}

fn print_done(place: &Place, done: &Value, words: impl Fn(&Value) -> String) -> anyhow::Result<()> {
    if place.json {
        println!("{}", serde_json::to_string_pretty(done)?);
    } else {
        println!("{}", words(done));
    }
    Ok(())
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn print_hold(hold: &LegalHold) {
    let scope = &hold.scope;
    let criteria: Vec<String> = [
        scope.inspection.map(|id| format!("inspection {id}")),
        scope.part.as_ref().map(|part| format!("part {part}")),
        scope.station.as_ref().map(|station| format!("station {station}")),
        scope.from.map(|from| format!("from {from}")),
        scope.until.map(|until| format!("until {until}")),
    ]
    .into_iter()
    .flatten()
    .collect();
    println!("{}  {}  {}: by {}, {}", hold.id, hold.placed_at, criteria.join(", "), hold.placed_by, hold.reason);
    if let (Some(released_at), Some(by)) = (hold.released_at, &hold.released_by) {
        println!("    released {released_at} by {by}: {}", hold.release_reason.as_deref().unwrap_or("-"));
    }
}

/// The inspection called `name`, by code or id.
fn find(place: &Place, name: &str) -> anyhow::Result<InspectionId> {
    if let Ok(id) = name.parse::<Uuid>() {
        return Ok(InspectionId(id));
    }
    place.reader()?.id_of_code(name)?.with_context(|| format!("there is no inspection {name}; it may have expired"))
}

/// Have `order` done by whoever writes the ledger.
fn order(place: &Place, order: HoldOrder) -> anyhow::Result<Value> {
    match open(&place.state_dir()?)? {
        Writer::Here(ledger) => {
            let done = ledger.hold(order);
            ledger.close()?;
            done.map_err(|error| anyhow!(in_words(&error)))
        }
        Writer::There(address) => post(address, "/api/v1/holds", &json!(order)),
    }
}

/// Says of a picture that is gone why it is.
#[must_use]
pub fn gone(state_dir: PathBuf, policy: StoragePolicy) -> GoneFn {
    Arc::new(move |relative_path| {
        let found = LedgerReader::open(&state_dir).and_then(|reader| reader.gone_picture(relative_path));
        let found = found.unwrap_or_else(|error| {
            tracing::warn!(relative_path, %error, "what became of a picture could not be read");
            None
        })?;
        let day = found.gone_at.to_string().chars().take(10).collect::<String>();
        Some(match found.reason {
            GoneReason::Expired => {
                let (what, days) = match found.is_pass {
                    true => ("a PASS", policy.pass_picture_days),
                    false => ("a FAIL or HOLD", policy.picture_days),
                };
                format!("This picture is gone since {day}: by policy those of {what} are kept for {days} days.")
            }
            GoneReason::Pressure => format!("This picture is gone since {day}: it was shed because the disk was low."),
            GoneReason::Quarantined => {
                format!("This picture was set aside on {day}: its file was not what the ledger says.")
            }
        })
    })
}

/// Answers the dashboard's hold orders.
#[must_use]
pub fn desk(ledger: Ledger) -> HoldFn {
    Arc::new(move |order| match ledger.hold(order) {
        Ok(done) => Ok(done),
        Err(error) if error.is_about_the_row() => Err(ReviewRefusal::Order(in_words(&error))),
        Err(error) => Err(ReviewRefusal::Machine(error.to_string())),
    })
}

fn amount(amount: Amount) -> String {
    format!("{} pictures ({})", amount.count, size(amount.bytes))
}

fn at(time: Option<Timestamp>) -> String {
    time.map_or_else(|| "-".to_owned(), |at| at.to_string())
}

/// Bytes for people, in binary units.
fn size(bytes: u64) -> String {
    match bytes {
        0..1_024 => format!("{bytes} B"),
        1_024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1_024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
        _ => format!("{:.1} GiB", bytes as f64 / 1_073_741_824.0),
    }
}
