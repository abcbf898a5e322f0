//! What `catalog`, `kit`, `inventory` and `storage` share: which ledger, and who writes it.
//!
//! The ledger has one writer. Where the daemon runs, an order goes to its dashboard, whose address stands in
//! `dashboard.addr` of the state folder; where it does not, the command opens the ledger itself.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::anyhow;
use serde_json::{Value, json};
use tracing::warn;

use super::Failure;
use super::review::{ADDRESS_FILE, post};
use crate::clock::Clock;
use crate::config::Config;
use crate::dashboard::{KitCall, KitFn, ReviewRefusal};
use crate::ledger::{Ledger, LedgerError, LedgerReader, database_path};
use crate::types::{AccessPolicy, KitOrder, LowStock};

/// Sessions shown on the dashboard.
const SESSIONS_SHOWN_MAX: usize = 20;

/// Which state folder.
#[derive(Debug, Clone, clap::Args)]
pub struct StateFolder {
    /// The state folder; default: that of the configuration.
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// The daemon's configuration, where --state is not given.
    #[arg(long, value_name = "FILE", default_value = "/etc/loupe/loupe.toml", conflicts_with = "state")]
    config: PathBuf,
}

impl StateFolder {
    /// # Errors
    /// When the configuration that should name it is wrong.
    pub fn path(&self) -> anyhow::Result<PathBuf> {
        match &self.state {
            Some(state) => Ok(state.clone()),
            None => Ok(self.config()?.storage.state_dir),
        }
    }

    /// Whether the folder was named, so that no configuration belongs to it.
    #[must_use]
    pub fn is_named(&self) -> bool {
        self.state.is_some()
    }

    /// The daemon's configuration.
    ///
    /// # Errors
    /// When it is wrong or missing.
    pub fn config(&self) -> anyhow::Result<Config> {
        Config::load(&self.config).map_err(|error| {
            // What is stored is wanted most where something else is broken.
            Failure::config(anyhow!("{error}\n  (--state names the state folder without a configuration)")).into()
        })
    }
}

/// Which ledger, and how to answer.
#[derive(Debug, Clone, clap::Args)]
pub struct Place {
    #[command(flatten)]
    pub folder: StateFolder,
    /// Print one JSON document instead of text.
    #[arg(long)]
    pub json: bool,
}

impl Place {
    /// The state folder.
    ///
    /// # Errors
    /// When the configuration that should name it is wrong.
    pub fn state_dir(&self) -> anyhow::Result<PathBuf> {
        self.folder.path()
    }

    /// The ledger for reading.
    ///
    /// # Errors
    /// When there is none.
    pub fn reader(&self) -> anyhow::Result<LedgerReader> {
        Ok(LedgerReader::open(&self.state_dir()?)?)
    }
}

/// Who writes: this process, or the daemon whose dashboard is there.
pub(super) enum Writer {
    Here(Ledger),
    There(SocketAddr),
}

pub(super) fn open(state_dir: &Path) -> anyhow::Result<Writer> {
    let path = database_path(state_dir);
    if !path.exists() {
        return Err(LedgerError::Missing { path }.into());
    }
    match Ledger::open(state_dir, Clock::system()) {
        Ok(ledger) => Ok(Writer::Here(ledger)),
        Err(locked @ LedgerError::Locked { .. }) => {
            let address = std::fs::read_to_string(state_dir.join(ADDRESS_FILE));
            match address.ok().and_then(|text| text.trim().parse().ok()) {
                Some(address) => Ok(Writer::There(address)),
                None => Err(anyhow!(locked)
                    .context("the process that has the ledger shows no dashboard to hand this to; stop it first")),
            }
        }
        Err(error) => Err(error.into()),
    }
}

/// Have `order` done by whoever writes the ledger.
///
/// # Errors
/// When the ledger cannot be used or the order is refused.
pub fn order(place: &Place, order: KitOrder) -> anyhow::Result<Value> {
    match open(&place.state_dir()?)? {
        Writer::Here(ledger) => {
            let done = ledger.kit(order);
            ledger.close()?;
            let done = done.map_err(|error| anyhow!(in_words(&error)))?;
            warn_of_low_stock(&done);
            Ok(done)
        }
        Writer::There(address) => post(address, "/api/v1/kits", &json!(order)),
    }
}

/// The writer of `place`, for what only works while the daemon is stopped; the ledger is made where there is none.
///
/// # Errors
/// When the ledger is in use.
pub fn own_ledger(place: &Place) -> anyhow::Result<Ledger> {
    Ledger::open(&place.state_dir()?, Clock::system()).map_err(|error| match error {
        locked @ LedgerError::Locked { .. } => anyhow!(locked).context(
            "the catalogue is changed while the daemon is stopped: `systemctl stop loupe`, then start it again",
        ),
        error => error.into(),
    })
}

/// The sentence of a refusal, without what SQLite puts around it.
pub(super) fn in_words(error: &LedgerError) -> String {
    match error {
        LedgerError::Refused { source, .. } => source.to_string(),
        other => other.to_string(),
    }
}

/// A log line for each part that is low after a booking.
fn warn_of_low_stock(done: &Value) {
    let low: Vec<LowStock> = serde_json::from_value(done["low_stock"].clone()).unwrap_or_default();
    for part in low {
        warn!(part = part.part_number, quantity = part.quantity, min = part.min_quantity, "stock is low");
    }
}

/// Answers the dashboard's kit calls.
#[must_use]
pub fn desk(ledger: Ledger, state_dir: PathBuf, hides_restricted: bool, stations: Vec<String>) -> KitFn {
    Arc::new(move |call| match call {
        KitCall::Overview => {
            overview(&state_dir, hides_restricted).map_err(|error| ReviewRefusal::Machine(error.to_string()))
        }
        KitCall::Order(KitOrder::Start { station: Some(station), .. }) if !stations.contains(&station) => {
            Err(ReviewRefusal::Order(format!("there is no station `{station}`; there are {}", stations.join(", "))))
        }
        KitCall::Order(order) => match ledger.kit(order) {
            Ok(done) => {
                warn_of_low_stock(&done);
                Ok(done)
            }
            Err(error) if error.is_about_the_row() => Err(ReviewRefusal::Order(in_words(&error))),
            Err(error) => Err(ReviewRefusal::Machine(error.to_string())),
        },
    })
}

fn overview(state_dir: &Path, hides_restricted: bool) -> Result<Value, LedgerError> {
    let reader = LedgerReader::open(state_dir)?;
    let policies = reader.policies()?;
    let is_hidden = |kind: &str, subject: &str| {
        let covers = |p: &AccessPolicy| p.subject_kind == kind && p.subject == subject && p.is_restricted();
        hides_restricted && policies.iter().any(covers)
    };
    let mut sessions = Vec::new();
    for session in reader.kit_sessions(false, SESSIONS_SHOWN_MAX)? {
        let hidden = is_hidden("kit", &session.kit.kit_code)
            || session.kit.lines.iter().any(|line| is_hidden("part", &line.part_number));
        if hidden {
            sessions.push(json!({ "id": session.id, "is_restricted": true }));
            continue;
        }
        let count = reader.kit_count(&session)?;
        let trays = reader.kit_trays(session.id)?;
        sessions.push(json!({ "id": session.id, "is_restricted": false, "kit_code": session.kit.kit_code,
            "kit_name": session.kit.name, "station": session.station, "started_at": session.started_at,
            "started_by": session.started_by, "ended_at": session.ended_at, "outcome": session.outcome,
            "count": count, "trays": trays }));
    }
    let low: Vec<LowStock> =
        reader.low_stock()?.into_iter().filter(|low| !is_hidden("part", &low.part_number)).collect();
    let names: std::collections::BTreeMap<String, String> =
        reader.parts()?.into_iter().map(|card| (card.part.part_number, card.part.name_en)).collect();
    let named: std::collections::BTreeMap<&String, &String> = names
        .iter()
        .filter(|(part, _)| !is_hidden("part", part))
        .filter(|(part, _)| {
            low.iter().any(|low| low.part_number == **part)
                || sessions.iter().any(|session| session.to_string().contains(&format!("\"{part}\"")))
        })
        .collect();
    Ok(json!({ "sessions": sessions, "low_stock": low, "part_names": named }))
}
