//! One file per subcommand; `main.rs` only dispatches.

pub mod bank;
pub mod check;
pub mod db;
pub mod demo;
pub mod index;
pub mod inspect;
pub mod outbox;
pub mod run;
