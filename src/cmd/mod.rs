//! One file per subcommand; `main.rs` only dispatches.

pub mod audit;
pub mod backup;
pub mod bank;
mod bank_bench;
mod bank_evaluate;
mod bank_explain;
mod bank_fit;
mod bank_ranks;
mod bank_split;
mod bank_sweep;
mod bank_view;
mod board;
pub mod catalog;
mod central_fit;
mod central_recipe;
pub mod check;
mod colors;
pub mod config;
mod config_record;
mod console;
pub mod db;
mod db_jobs;
pub mod demo;
pub mod detect;
mod duplicates;
mod evidence;
pub mod feedback;
pub mod fit;
pub mod index;
mod index_admin;
mod index_bench;
pub mod inspect;
pub mod inventory;
pub mod kit;
mod late;
mod ledger_desk;
mod live_recipe;
pub mod model;
mod model_bench;
mod model_cameras;
pub mod outbox;
mod outbox_file;
mod outbox_repair;
pub mod people;
mod pictures;
pub mod provisioning;
pub mod publish;
pub mod review;
pub mod run;
mod signals;
pub mod storage;
mod telemetry;

use crate::ledger::LedgerError;

use crate::uplink::UplinkError;

/// An error that ends the process with a particular exit code; any other error ends it with 1.
#[derive(Debug, thiserror::Error)]
#[error("{reason:#}")]
pub struct Failure {
    pub exit_code: u8,
    pub reason: anyhow::Error,
}

/// The configuration or a recipe is wrong (`EX_CONFIG`).
pub const EXIT_CONFIG: u8 = 78;
/// The command line is wrong (`EX_USAGE`).
pub const EXIT_USAGE: u8 = 64;

/// The exit code of `error`: its own where it has one, [`EXIT_CONFIG`] where the state folder needs an operator (in use,
/// damaged, from a newer version), since starting again cannot help; else 1.
#[must_use]
pub fn exit_code(error: &anyhow::Error) -> u8 {
    let of_uplink = error.chain().find_map(|cause| match cause.downcast_ref() {
        Some(UplinkError::Ledger(ledger)) => Some(ledger),
        _ => None,
    });
    let of_ledger = error.chain().find_map(|cause| cause.downcast_ref::<LedgerError>()).or(of_uplink);
    match error.downcast_ref::<Failure>() {
        Some(failure) => failure.exit_code,
        None if of_ledger.is_some_and(LedgerError::needs_operator) => EXIT_CONFIG,
        None => 1,
    }
}

impl Failure {
    #[must_use]
    pub fn config(reason: anyhow::Error) -> Self {
        Self { exit_code: EXIT_CONFIG, reason }
    }

    #[must_use]
    pub fn usage(reason: anyhow::Error) -> Self {
        Self { exit_code: EXIT_USAGE, reason }
    }
}
