//! Any bytes as a small file of an index generation.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| loupe_fuzz::index(bytes));
