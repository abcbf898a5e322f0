//! What several test files share.
#![allow(dead_code, reason = "each test file uses its part of it")]

pub mod postgres;
pub mod samples;
