//! One file per subcommand; `main.rs` only dispatches.

pub mod bank;
mod board;
pub mod catalog;
mod central_recipe;
pub mod check;
mod console;
pub mod db;
pub mod demo;
mod duplicates;
mod evidence;
pub mod fit;
pub mod index;
mod index_admin;
mod index_bench;
pub mod inspect;
pub mod inventory;
pub mod kit;
mod late;
mod ledger_desk;
pub mod outbox;
pub mod provisioning;
pub mod publish;
pub mod review;
pub mod run;
mod signals;

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
