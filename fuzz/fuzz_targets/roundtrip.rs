//! A small model, compressed and decoded again.
#![no_main]

libfuzzer_sys::fuzz_target!(init: nwc_fuzz::single_thread(), |job: nwc_fuzz::matrices::Job| job.run());
