//! A file of arbitrary bytes, as a container.
#![no_main]

libfuzzer_sys::fuzz_target!(init: nwc_fuzz::single_thread(), |file: &[u8]| nwc_fuzz::walk::walk(file));
