//! Any text as a COCO file, evaluated against itself.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| loupe_fuzz::annotations(bytes));
