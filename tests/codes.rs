//! The host's decoder and its program report the same errors as the plain decoder, vector by vector and byte by byte.
//! (`cargo xtask reference` holds a third decoder, in Python, to the same ledger.)

use std::path::PathBuf;

use nwc_encode_host::commands::verify::{self, VerifyArgs};
use nwc_encode_host::progress::Silent;
use nwc_tests::builder::reseal;
use nwc_tests::fuzz::differential::differential;
use nwc_tests::ledger::{Ledger, Vector, folder, read_vector};
use nwc_tests::vectors::{small_scalar, small_sides};

/// Vectors that are decoded as they are, without a call that must fail.
fn vectors() -> impl Iterator<Item = Vector> {
    Ledger::read().vectors.into_iter().filter(|vector| vector.call.is_none())
}

/// The codes in the errors that `verify` lists, such as 15 for "data checksum differs (error 15)".
fn verified(path: PathBuf) -> (bool, Vec<u8>) {
    let outcome =
        verify::run(&VerifyArgs { file: path, against: None }, &Silent).expect("the file can be read");
    let errors = outcome.json["errors"].as_array().expect("it lists errors");
    let code = |line: &str| -> Option<u8> { line.split("(error ").nth(1)?.split(')').next()?.parse().ok() };
    let codes = errors.iter().map(|line| {
        let line = line.as_str().expect("errors are lines");
        code(line).unwrap_or_else(|| panic!("no code in: {line}"))
    });
    (outcome.ok, codes.collect())
}

#[test]
fn verify_reports_the_code_of_the_ledger() {
    let mut seen = 0;
    for vector in vectors() {
        let (ok, mut codes) = verified(folder().join(&vector.file));
        codes.dedup();
        assert_eq!(ok, vector.error.is_none(), "{}", vector.file);
        assert!(codes.iter().copied().eq(vector.error), "{}: {codes:?}", vector.file);
        seen += usize::from(!ok);
    }
    assert!(seen > 100, "{seen} vectors are wrong in some way");
}

#[test]
fn host_and_plain_decoder_agree_on_every_vector() {
    vectors().for_each(|vector| differential(&read_vector(&vector.file)));
}

#[test]
fn host_and_plain_decoder_agree_on_changed_bytes() {
    for file in [small_sides(), small_scalar()].map(nwc_tests::builder::File::sealed) {
        let (bytes, seals) = (file.bytes(), file.seals());
        for place in 0..bytes.len() {
            for flip in [0xFF, 0x01, 0x80] {
                let mut changed = bytes.clone();
                changed[place] ^= flip;
                reseal(&mut changed, &seals);
                differential(&changed);
            }
        }
    }
}
