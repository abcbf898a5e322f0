//! Any bytes as an ONNX file, without a runtime.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| loupe_fuzz::graph(bytes));
