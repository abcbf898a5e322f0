//! Any shapes and any numbers as the outputs of each layout.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| loupe_fuzz::decoders(bytes));
