//! Tiles of a sound container with arbitrary streams.
#![no_main]

use nwc_tests::fuzz::{single_thread, tile};

libfuzzer_sys::fuzz_target!(init: single_thread(), |job: tile::Job| job.run());
