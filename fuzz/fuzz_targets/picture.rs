//! Any bytes as a picture file.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| loupe_fuzz::picture(bytes));
