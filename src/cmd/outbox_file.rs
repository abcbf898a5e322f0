//! `loupe outbox export|push|settle`: what waits, carried by hand to a machine that has a network.

use std::path::{Path, PathBuf};

use clap::Args as ClapArgs;
use uuid::Uuid;

use super::db::DsnArgs;
use super::ledger_desk::Place;
use super::outbox::progress_bar;
use crate::clock::Clock;
use crate::ledger::{Exported, Ledger};
use crate::uplink::{Pushed, push};

#[derive(Debug, ClapArgs)]
pub(super) struct ExportArgs {
    /// File to write; must not be there.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    place: Place,
}

#[derive(Debug, ClapArgs)]
pub(super) struct PushArgs {
    /// What `loupe outbox export` wrote.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    database: DsnArgs,
    /// Id of the site; needed where neither the export nor the login is bound to one.
    #[arg(long, value_name = "UUID")]
    site_id: Option<Uuid>,
    /// Where to say what the centre acknowledged, for `loupe outbox settle`; default: FILE.receipt.
    #[arg(long, value_name = "FILE")]
    receipt: Option<PathBuf>,
}

#[derive(Debug, ClapArgs)]
pub(super) struct SettleArgs {
    /// What `loupe outbox push` wrote.
    #[arg(value_name = "RECEIPT")]
    receipt: PathBuf,
    #[command(flatten)]
    place: Place,
}

/// # Errors
/// When the ledger cannot be read or the file not be written.
pub(super) fn run_export(args: &ExportArgs) -> anyhow::Result<()> {
    let bar = progress_bar("units", 0);
    let exported = args.place.reader()?.export(&args.file, Clock::system().now(), |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    })?;
    bar.finish_and_clear();
    if args.place.json {
        println!("{}", serde_json::to_string_pretty(&exported)?);
    } else {
        print_exported(&exported);
    }
    Ok(())
}

fn print_exported(exported: &Exported) {
    println!("{} units of device {} in {}", exported.units, exported.header.device_id, exported.path.display());
    if exported.unreadable > 0 {
        println!("{} more cannot be sent and are only named: see `loupe outbox repair`", exported.unreadable);
    }
    println!(
        "nothing changed here; on a machine with a network: loupe outbox push {} --dsn …",
        exported.path.display()
    );
}

/// # Errors
/// When the file is damaged, the database refuses, or units were refused.
pub(super) fn run_push(args: &PushArgs) -> anyhow::Result<()> {
    let dsn = args.database.secret()?;
    let receipt = args.receipt.clone().unwrap_or_else(|| receipt_of(&args.file));
    anyhow::ensure!(!receipt.exists(), "{} is there already; name another by --receipt", receipt.display());
    let bar = progress_bar("units", 0);
    let pushed = push(&args.file, (&dsn, args.site_id), (Some(&receipt), Clock::system().now()), |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    let pushed = pushed?;
    if args.database.wants_json() {
        let mut document = serde_json::to_value(&pushed)?;
        document["receipt"] = receipt.display().to_string().into();
        println!("{}", serde_json::to_string_pretty(&document)?);
    } else {
        print_pushed(&pushed, &receipt);
    }
    anyhow::ensure!(pushed.refused == 0, "the centre refused {} units; they stay on the device", pushed.refused);
    Ok(())
}

fn print_pushed(pushed: &Pushed, receipt: &Path) {
    println!("delivered {} units, {} rows of them new", pushed.delivered, pushed.new_rows);
    for refusal in &pushed.refusals {
        println!("refused {refusal}");
    }
    if pushed.unreadable > 0 {
        println!("{} units of the file are only named: the device cannot read them", pushed.unreadable);
    }
    println!("so that the device need not send them again, there: loupe outbox settle {}", receipt.display());
}

fn receipt_of(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".receipt");
    PathBuf::from(name)
}

/// # Errors
/// When the receipt is damaged or another device's, or the daemon is running.
pub(super) fn run_settle(args: &SettleArgs) -> anyhow::Result<()> {
    // Opening for writing would make a ledger; a mistyped folder must not.
    drop(args.place.reader()?);
    let ledger = Ledger::open(&args.place.state_dir()?, Clock::system())?;
    let settled = ledger.settle(&args.receipt);
    ledger.close()?;
    let settled = settled?;
    if args.place.json {
        println!("{}", serde_json::to_string_pretty(&settled)?);
    } else {
        println!("settled {} units, {} were delivered already", settled.settled, settled.gone);
    }
    anyhow::ensure!(
        settled.different == 0,
        "{} units differ from what was pushed; they stay pending and are sent again",
        settled.different
    );
    Ok(())
}
