//! A small model, compressed and decoded again.
#![no_main]

use nwc_tests::fuzz::{matrices, single_thread};

libfuzzer_sys::fuzz_target!(init: single_thread(), |job: matrices::Job| job.run());
