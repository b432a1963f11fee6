//! A file of arbitrary bytes, as a container, once its checksums are right.
#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use nwc_tests::fuzz::{mutate, repaired, single_thread, walk};

fuzz_target!(init: single_thread(), |file: &[u8]| walk::walk(&repaired(file)));

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    mutate::container(data, size, max_size, seed, fuzzer_mutate)
});
