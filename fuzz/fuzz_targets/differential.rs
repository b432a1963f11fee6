//! A container whose checksums are right, decoded by the host and by the plain decoder.
#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use nwc_tests::fuzz::differential::differential;
use nwc_tests::fuzz::{mutate, repaired, single_thread};

fuzz_target!(init: single_thread(), |file: &[u8]| differential(&repaired(file)));

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    mutate::container(data, size, max_size, seed, fuzzer_mutate)
});
