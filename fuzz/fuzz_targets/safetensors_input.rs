//! A file of arbitrary bytes, as safetensors weights.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| nwc_tests::fuzz::safetensors::open(bytes));
