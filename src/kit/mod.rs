//! Counting trays against a kit. Pure: no I/O, no clock, no logging.
//!
//! Invariants: the order of the trays does not matter; each accepted item is found, a spare or surplus, exactly one of
//! them; `expected = found + missing` for every line; a session is complete only when nothing is missing, nothing is
//! over and nothing is in doubt.

mod assign;
mod count;
mod settle;

pub use count::{Doubt, KitCount, Movement, SlotCount, Surplus, count};
pub use settle::settle;
