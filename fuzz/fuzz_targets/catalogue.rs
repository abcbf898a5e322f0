//! Any bytes as a file of a catalogue.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| loupe_fuzz::catalogue(bytes));
