//! `loupe provisioning`: what this device has of the centre.

use anyhow::anyhow;
use clap::Subcommand;
use uuid::Uuid;

use super::db::DsnArgs;
use super::ledger_desk::{Place, StateFolder};
use crate::clock::Clock;
use crate::ledger::{Ledger, LedgerError, LedgerReader, Provisioning, StationRecipe};
use crate::types::Digest;
use crate::uplink::{UplinkConfig, pull};

/// See and fetch what the centre wants of this device: catalogue, kits, recipes and fits.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Say how far everything has come down, what is of no use here, and which recipe each station runs and waits for.
    Status {
        #[command(flatten)]
        place: Place,
    },
    /// Fetch once, while the daemon is stopped; the daemon does so by itself, and puts recipes and fits in use when it runs.
    Pull(PullArgs),
}

#[derive(Debug, clap::Args)]
struct PullArgs {
    #[command(flatten)]
    folder: StateFolder,
    #[command(flatten)]
    database: DsnArgs,
    /// Id of the site; needed where the login is not bound to one.
    #[arg(long, value_name = "UUID")]
    site_id: Option<Uuid>,
}

/// Run the command.
///
/// # Errors
/// When the ledger cannot be used, or the centre refuses.
pub fn run(args: Args) -> anyhow::Result<()> {
    match args.command {
        Command::Status { place } => status(&place),
        Command::Pull(args) => fetch(&args),
    }
}

fn fetch(args: &PullArgs) -> anyhow::Result<()> {
    let config = UplinkConfig { dsn: args.database.secret()?, site_id: args.site_id };
    let ledger = Ledger::open(&args.folder.path()?, Clock::system()).map_err(|error| match error {
        locked @ LedgerError::Locked { .. } => {
            anyhow!(locked).context("the daemon fetches by itself; see `loupe provisioning status`")
        }
        error => error.into(),
    })?;
    let pulled = ledger.retry_central().map_err(Into::into).and_then(|_| pull(ledger.clone(), &config));
    ledger.close()?;
    let pulled = pulled?;
    if pulled.is_older {
        eprintln!("loupe: the centre has no tables for what flows down; `loupe db migrate` there adds them");
    }
    if args.database.wants_json() {
        println!("{}", serde_json::to_string_pretty(&pulled)?);
    } else {
        println!("{} rows: {} in use, {} withdrawn", pulled.rows, pulled.applied, pulled.withdrawn);
        if pulled.set_aside > 0 {
            println!("{} of no use here; see `loupe provisioning status`", pulled.set_aside);
        }
    }
    Ok(())
}

fn status(place: &Place) -> anyhow::Result<()> {
    let reader: LedgerReader = place.reader()?;
    let provisioning = reader.provisioning()?;
    let mut wanted = Vec::new();
    for station in &provisioning.stations {
        wanted.push(reader.desired_recipe(&station.station)?.map(|desired| desired.recipe.sha256));
    }
    if place.json {
        let mut document = serde_json::to_value(&provisioning)?;
        for (station, wanted) in document["stations"].as_array_mut().into_iter().flatten().zip(&wanted) {
            station["wanted_sha256"] = serde_json::to_value(wanted)?;
        }
        println!("{}", serde_json::to_string_pretty(&document)?);
        return Ok(());
    }
    print_status(&provisioning, &wanted);
    Ok(())
}

fn print_status(provisioning: &Provisioning, wanted: &[Option<Digest>]) {
    match provisioning.pulled_at {
        Some(at) => println!("last pull  {at}"),
        None => println!("last pull  never"),
    }
    if let Some(error) = &provisioning.error {
        println!("since then {error}");
    }
    for table in &provisioning.tables {
        let aside = if table.set_aside > 0 { format!(", {} set aside", table.set_aside) } else { String::new() };
        println!("{:<20} at change {:>8}, {:>6} rows{aside}", table.table, table.cursor, table.rows);
    }
    for row in &provisioning.set_aside {
        println!("set aside  {} {} (change {}): {}", row.table, row.key, row.change_seq, row.error);
    }
    for (station, wanted) in provisioning.stations.iter().zip(wanted) {
        print_station(station, *wanted);
    }
    for fit in &provisioning.fits {
        let name = fit.generation_name();
        match fit.taken_sha256 {
            Some(sha256) => println!("index {name}: its fit {} is the centre's", sha256.short()),
            None => println!("index {name}: no fit of the centre is in use"),
        }
        if let (Some(sha256), Some(error)) = (fit.refused_sha256, &fit.refused_error) {
            println!("  the centre's fit {} cannot be used here: {error}", sha256.short());
        }
    }
}

fn print_station(station: &StationRecipe, wanted: Option<Digest>) {
    let short = |sha256: Option<Digest>| sha256.map_or_else(|| "none".to_owned(), |sha256| sha256.short());
    let name = &station.station;
    match (&station.serving_name, station.serving_origin.as_deref()) {
        (Some(recipe), origin) => {
            let from = if origin == Some("central") { "the centre" } else { "a file of this device" };
            println!("station {name}: runs {recipe} ({}) from {from}", short(station.serving_sha256));
        }
        (None, _) => println!("station {name}: has not started with a recipe yet"),
    }
    if station.is_waiting {
        println!(
            "  a newer recipe ({}) is proved: a running daemon takes it up within seconds, else the next start does",
            short(station.taken_sha256)
        );
    }
    if let (Some(sha256), Some(error)) = (station.refused_sha256, &station.refused_error) {
        println!("  the centre's recipe {} cannot be used here: {error}", sha256.short());
    }
    if wanted.is_none() && station.serving_origin.as_deref() == Some("central") {
        println!("  the centre names no recipe any more; it goes on with the one it has");
    }
}
