//! A file of arbitrary bytes, as a container, once its checksums are right.
#![no_main]

libfuzzer_sys::fuzz_target!(init: nwc_fuzz::single_thread(), |file: &[u8]| {
    let mut file = file.to_vec();
    nwc_fuzz::checksums::repair(&mut file);
    nwc_fuzz::walk::walk(&file);
});
