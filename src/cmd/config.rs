//! `loupe config`: what the configuration of this device was.

use clap::Subcommand;
use serde_json::Value;

use super::ledger_desk::Place;
use crate::types::ConfigChange;

/// See what the configuration of this device was, when it changed, and who says so.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List what changed, newest first: each key with its value before and after. Secrets are digests.
    ///
    /// The daemon compares its configuration, the recipes that its stations run included, at each start and whenever the
    /// centre's recipe is taken up. Name yourself and your reason under [change] in the configuration.
    History(HistoryArgs),
}

#[derive(Debug, clap::Args)]
struct HistoryArgs {
    #[command(flatten)]
    place: Place,
    /// Only this key and those below it, such as `storage` or `stations.tray.recipe.match`.
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// Keys listed at most.
    #[arg(long, value_name = "COUNT", default_value_t = 100)]
    limit: usize,
}

/// Run the command.
///
/// # Errors
/// When the ledger cannot be read.
pub fn run(args: Args) -> anyhow::Result<()> {
    let Command::History(args) = args.command;
    let changes = args.place.reader()?.config_history(args.key.as_deref(), args.limit)?;
    if args.place.json {
        println!("{}", serde_json::to_string_pretty(&serde_json::json!({ "changes": changes }))?);
        return Ok(());
    }
    if changes.is_empty() {
        println!("nothing is recorded; the daemon records its configuration when it starts");
    }
    for keys in changes.chunk_by(|a, b| a.change_id == b.change_id) {
        println!("{}", headline(&keys[0]));
        // Newest first are the changes; the keys of one are read from the first on.
        keys.iter().rev().for_each(|change| println!("  {}: {}", change.config_key, step(change)));
    }
    Ok(())
}

fn headline(change: &ConfigChange) -> String {
    let source = match change.source.as_str() {
        "bundle" => "by the centre",
        "command" => "by a command line",
        _ => "by file",
    };
    let mut line = format!("{}  {source}", change.occurred_at);
    if let Some(by) = &change.changed_by {
        line.push_str(&format!(", {by}"));
    }
    if let Some(reason) = &change.change_reason {
        line.push_str(&format!(": {reason}"));
    }
    line
}

fn step(change: &ConfigChange) -> String {
    match (&change.old_value, &change.new_value) {
        (None, Some(new)) => shown(new),
        (Some(old), None) => format!("{} → gone", shown(old)),
        (Some(old), Some(new)) => format!("{} → {}", shown(old), shown(new)),
        (None, None) => String::new(),
    }
}

/// A digest is shown by its beginning.
fn shown(value: &Value) -> String {
    match value.get("sha256").and_then(Value::as_str) {
        Some(sha256) => format!("(digest {})", sha256.get(..12).unwrap_or(sha256)),
        None => value.to_string(),
    }
}
