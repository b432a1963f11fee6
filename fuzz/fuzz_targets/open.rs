//! A file of arbitrary bytes, as a container.
#![no_main]

use nwc_tests::fuzz::{single_thread, walk};

libfuzzer_sys::fuzz_target!(init: single_thread(), |file: &[u8]| walk::walk(file));
