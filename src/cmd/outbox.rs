//! `loupe outbox`: what of the ledger the central side does not have yet.

use clap::{Args as ClapArgs, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use uuid::Uuid;

use super::Failure;
use super::db::DsnArgs;
use super::ledger_desk::{Place, StateFolder};
use crate::clock::Clock;
use crate::ledger::{Ledger, LedgerReader, OutboxStatus, Proof};
use crate::uplink::{Comparison, Secret, UplinkConfig, UplinkError, compare, drain};

/// Look at, prove or deliver what waits for the central database.
#[derive(Debug, ClapArgs)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Say how much was committed and delivered, and what waits. The daemon may be running.
    Status(Place),
    /// Prove that nothing is lost: totals, every waiting unit, every stored picture; with --dsn also every delivered row
    /// that is still here against the centre's. Ends with 1 and a list otherwise.
    Verify(VerifyArgs),
    /// Set aside what cannot be sent, enqueue what would never be sent, set the totals right. Nothing is deleted. The
    /// daemon must not be running.
    Repair(super::outbox_repair::RepairArgs),
    /// Write what waits into a file that another machine can push. The daemon may be running; nothing changes here.
    Export(super::outbox_file::ExportArgs),
    /// Deliver what a device exported, from any machine: exactly once in effect, also if the device delivers it too.
    Push(super::outbox_file::PushArgs),
    /// Take what a push delivered out of this device's outbox, by its receipt. The daemon must not be running.
    Settle(super::outbox_file::SettleArgs),
    /// Deliver everything that waits now, and end. The daemon must not be running: it delivers by itself.
    Drain(DrainArgs),
}

#[derive(Debug, ClapArgs)]
struct VerifyArgs {
    #[command(flatten)]
    place: Place,
    /// Also compare with the central database: a login that may read, as `postgresql://user:password@host:port/database`
    /// (a member of loupe_ops or loupe_owner; a device's own login may not).
    #[arg(long, value_name = "URL", value_parser = super::db::parse_secret)]
    dsn: Option<Secret>,
}

#[derive(Debug, ClapArgs)]
struct DrainArgs {
    #[command(flatten)]
    folder: StateFolder,
    #[command(flatten)]
    database: DsnArgs,
    /// Id of the site; needed where the login is not bound to one.
    #[arg(long, value_name = "UUID")]
    site_id: Option<Uuid>,
    /// Offer units again that the central side refused earlier.
    #[arg(long)]
    retry_parked: bool,
}

/// # Errors
/// When the ledger or the database refuses, or the proof fails.
pub fn run(args: Args) -> anyhow::Result<()> {
    match args.command {
        Command::Status(args) => status(&args),
        Command::Verify(args) => verify(&args),
        Command::Repair(args) => super::outbox_repair::run(&args),
        Command::Export(args) => super::outbox_file::run_export(&args),
        Command::Push(args) => super::outbox_file::run_push(&args),
        Command::Settle(args) => super::outbox_file::run_settle(&args),
        Command::Drain(args) => drain_outbox(&args),
    }
}

fn status(place: &Place) -> anyhow::Result<()> {
    let status = place.reader()?.outbox_status()?;
    let now = Clock::system().now();
    let oldest_age_s = status.oldest_at.map(|at| now.ms_since(at) / 1_000.0);
    if place.json {
        let mut document = serde_json::to_value(&status)?;
        document["oldest_age_s"] = oldest_age_s.into();
        println!("{}", serde_json::to_string_pretty(&document)?);
    } else {
        print_status(&status, oldest_age_s);
    }
    Ok(())
}

fn print_status(status: &OutboxStatus, oldest_age_s: Option<f64>) {
    let counters = status.counters;
    println!("committed  {:>12}", counters.committed);
    println!("delivered  {:>12}", counters.delivered);
    println!("pending    {:>12}", counters.pending);
    println!("parked     {:>12}", counters.parked);
    if counters.quarantined > 0 {
        println!("set aside  {:>12}", counters.quarantined);
    }
    println!("refused    {:>12}", counters.refused);
    if let Some(age) = oldest_age_s {
        println!("oldest     {age:>12.0} s");
    }
    if counters.dropped_samples > 0 {
        println!("dropped    {:>12} samples", counters.dropped_samples);
    }
    for unit in &status.parked_units {
        println!("parked {} (refused {} times): {}", unit.id, unit.attempts, unit.last_error);
    }
    for unit in &status.quarantined_units {
        println!("set aside {} of {}: {}", unit.id, unit.root_table, unit.reason);
    }
}

fn verify(args: &VerifyArgs) -> anyhow::Result<()> {
    let state = &args.place.state_dir()?;
    let reader = LedgerReader::open(state)?;
    let bar = progress_bar("pictures", 0);
    let proof = reader.verify(|done, total| {
        bar.set_length(total);
        bar.set_position(done);
    })?;
    bar.finish_and_clear();
    let comparison = match &args.dsn {
        None => None,
        Some(dsn) => {
            let bar = progress_bar("units compared", proof.counters.delivered);
            let comparison = compare(state, dsn, |done| bar.set_position(done));
            bar.finish_and_clear();
            Some(comparison?)
        }
    };
    if args.place.json {
        let mut document = serde_json::to_value(&proof)?;
        document["holds"] = (proof.holds() && comparison.as_ref().is_none_or(Comparison::holds)).into();
        document["centre"] = serde_json::to_value(&comparison)?;
        println!("{}", serde_json::to_string_pretty(&document)?);
    } else {
        print_proof(&proof);
        if let Some(comparison) = &comparison {
            print_comparison(comparison);
        }
    }
    anyhow::ensure!(proof.holds(), "the ledger {} does not add up: {} faults", state.display(), proof.fault_count);
    let differing = comparison.map_or(0, |comparison| comparison.fault_count);
    anyhow::ensure!(differing == 0, "the centre does not hold what {} delivered: {differing} faults", state.display());
    Ok(())
}

fn print_comparison(comparison: &Comparison) {
    for fault in &comparison.faults {
        println!("fault: {fault}");
    }
    let verdict = if comparison.holds() { "the same at the centre" } else { "NOT THE SAME at the centre" };
    println!("compared {} delivered units, {} rows: {verdict}", comparison.units, comparison.rows);
}

fn print_proof(proof: &Proof) {
    for fault in &proof.faults {
        println!("fault: {fault}");
    }
    let counters = proof.counters;
    let aside = if counters.quarantined > 0 { format!(" + set aside {}", counters.quarantined) } else { String::new() };
    println!(
        "committed {} = delivered {} + pending {}{aside}",
        counters.committed, counters.delivered, counters.pending
    );
    println!(
        "checked {} inspections, {} waiting units, {} pictures: {}",
        proof.inspections_checked,
        proof.units_checked,
        proof.artifacts_checked,
        if proof.holds() { "nothing is missing" } else { "NOT WHOLE" }
    );
}

fn drain_outbox(args: &DrainArgs) -> anyhow::Result<()> {
    let config = UplinkConfig { dsn: args.database.secret()?, site_id: args.site_id };
    // Opening for writing would make a ledger; a mistyped folder must not.
    let state = args.folder.path()?;
    drop(LedgerReader::open(&state)?);
    let ledger = Ledger::open(&state, Clock::system())?;
    if args.retry_parked {
        ledger.unpark()?;
    }
    let waiting = ledger.counters()?;
    let bar = progress_bar("units", waiting.pending - waiting.parked);
    let delivery = drain(ledger.clone(), &config, |done| bar.set_position(done.delivered + done.parked));
    bar.finish_and_clear();
    let counters = ledger.counters()?;
    ledger.close()?;
    let delivery = delivery.map_err(explain)?;
    if args.database.wants_json() {
        let mut document = serde_json::to_value(delivery)?;
        document["counters"] = serde_json::to_value(counters)?;
        println!("{}", serde_json::to_string_pretty(&document)?);
    } else {
        println!("delivered {} units, {} samples", delivery.delivered, delivery.gpu_stats + delivery.system_stats);
        println!("pending   {} ({} parked)", counters.pending, counters.parked);
    }
    Ok(())
}

/// A wrong DSN, certificate or login ends with 78: trying again cannot help.
fn explain(error: UplinkError) -> anyhow::Error {
    let needs_a_person = error.is_configuration();
    let error = anyhow::Error::from(error);
    if needs_a_person { Failure::config(error).into() } else { error }
}

/// On stderr, and only where that is a terminal.
pub(super) fn progress_bar(what: &str, length: u64) -> ProgressBar {
    let template = format!("{{wide_bar}} {{pos}}/{{len}} {what} {{eta}}");
    let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(length).with_style(style)
}
