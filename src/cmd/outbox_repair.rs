//! `loupe outbox repair`: the outbox as it should be, with every change said.

use clap::Args as ClapArgs;

use super::ledger_desk::Place;
use crate::clock::Clock;
use crate::ledger::{Listed, Repair, repair};

#[derive(Debug, ClapArgs)]
pub(super) struct RepairArgs {
    #[command(flatten)]
    place: Place,
    /// Say what would be done, and change nothing.
    #[arg(long)]
    dry_run: bool,
}

/// # Errors
/// When the daemon runs, or the ledger is damaged or missing.
pub(super) fn run(args: &RepairArgs) -> anyhow::Result<()> {
    let state = args.place.state_dir()?;
    let done = repair(&state, &Clock::system(), args.dry_run)?;
    if args.place.json {
        let mut document = serde_json::to_value(&done)?;
        document["dry_run"] = args.dry_run.into();
        println!("{}", serde_json::to_string_pretty(&document)?);
        return Ok(());
    }
    if done.is_empty() {
        println!("nothing to repair");
        return Ok(());
    }
    print_repair(&done);
    if args.dry_run {
        println!("nothing was changed: --dry-run");
    } else {
        println!("prove it by `loupe outbox verify --state {}`", state.display());
    }
    Ok(())
}

fn print_repair(done: &Repair) {
    print_list("set aside", &done.quarantined);
    print_list("put back", &done.put_back);
    print_list("enqueued", &done.enqueued);
    print_list("enqueued in case it was not delivered", &done.enqueued_in_doubt);
    if done.offered_again > 0 {
        println!("{} entries that the centre refused are offered again", done.offered_again);
    }
    for correction in &done.corrections {
        let difference = correction.after - correction.before;
        println!("{}: {} becomes {} ({difference:+})", correction.what, correction.before, correction.after);
    }
}

fn print_list(what: &str, list: &Listed) {
    for line in &list.lines {
        println!("{what}: {line}");
    }
    let unsaid = list.count - list.lines.len() as u64;
    if unsaid > 0 {
        println!("{what}: {unsaid} more");
    }
}
