//! The decoders for vector instructions do what the plain one does: the same bytes, the same errors.

use half::{bf16, f16};
use nwc_decode_core::{Checks, Coding, Container, Element, Error, Limits};
use nwc_encode_host::restore::{Decoder, HostElement, Restorer, TableMemory};
use nwc_encode_host::simd::Level;
use nwc_tests::builder::Rng;
use nwc_tests::ledger::{Ledger, read_vector};

/// Decodes a tensor with the plain decoder of the core and with `restorer`, and compares.
fn compare<T: HostElement + Element>(restorer: &Restorer<'_, '_>, what: &str) -> Result<(), Error> {
    let coded = restorer.tensor();
    let mut plain = vec![T::default(); coded.elements()];
    let expected = coded.decode(restorer.tables(), Checks::SkipChecksums, &mut plain);
    let expected = expected.map(|()| bytemuck::cast_slice::<T, u8>(&plain));
    for fill in [0x00, 0xFF] {
        let mut out = vec![fill; size_of_val(plain.as_slice())];
        let result = restorer.decode::<T>(Checks::SkipChecksums, &mut out);
        match (expected, result) {
            (Ok(expected), Ok(())) => assert!(out == expected, "{what} as {}", T::DTYPE),
            (expected, result) => assert_eq!(expected.map(|_| ()), result, "{what} as {}", T::DTYPE),
        }
    }
    expected.map(|_| ())
}

/// Compares every coded tensor of a file at every level; returns how many tensors decoded and how many did not.
fn compare_all(file: &[u8], what: &str) -> (usize, usize) {
    let (mut good, mut bad) = (0, 0);
    let Ok(container) = Container::open(file, &Limits::default()) else { return (0, 0) };
    for &level in Level::available() {
        let mut memory = TableMemory::default();
        let decoder = Decoder::with_level(&container, &mut memory, level).expect("the tables expand");
        for tensor in decoder.tensors().iter().filter(|tensor| tensor.coding() == Coding::Coded) {
            let restorer = decoder.coded(tensor).expect("the geometry was checked");
            let what = format!("{what}: {}, {level:?}", tensor.name());
            let results = [
                compare::<f32>(&restorer, &what),
                compare::<f16>(&restorer, &what),
                compare::<bf16>(&restorer, &what),
            ];
            assert!(results.iter().all(|result| *result == results[0]), "{what}: {results:?}");
            if results[0].is_ok() { good += 1 } else { bad += 1 }
        }
    }
    (good, bad)
}

#[test]
fn every_level_decodes_the_vectors_as_the_plain_decoder_does() {
    let (mut good, mut bad) = (0, 0);
    for vector in Ledger::read().vectors.iter().filter(|vector| vector.call.is_none()) {
        let (here, failed) = compare_all(&read_vector(&vector.file), &vector.file);
        (good, bad) = (good + here, bad + failed);
    }
    let levels = Level::available().len();
    assert!(
        good >= 50 * levels && bad >= 5 * levels,
        "{good} tensors decoded, {bad} did not: too few to tell"
    );
}

#[test]
fn every_level_finds_the_same_fault_in_damaged_streams() {
    let mut rng = Rng(11);
    let mut bad = 0;
    for vector in Ledger::read().vectors.iter().filter(|v| v.call.is_none() && v.error.is_none()) {
        let file = read_vector(&vector.file);
        for _ in 0..8 {
            // Streams lie in the last part of a file; their checksums are not compared here, so the entropy decoder sees the damage.
            let mut damaged = file.clone();
            for _ in 0..rng.within(1..4) {
                let at = damaged.len() - 1 - rng.any() as usize % (damaged.len() / 2);
                damaged[at] = rng.any() as u8;
            }
            bad += compare_all(&damaged, &vector.file).1;
        }
    }
    assert!(bad >= 50, "only {bad} tensors were damaged");
}
