//! The vectors of `tests/vectors` decode to what the ledger says, in every way that the decoder offers.

use std::collections::BTreeSet;

use half::{bf16, f16};
use nwc_decode_core::{Checks, Coding, Container, Crc32, DType, Error, Limits, Scratch, Tables, Tensor};
use nwc_tests::decode::{
    FLOATS, Weight, as_dtype, attachment, by_tiles, everything, from_seek_points, whole, with_tables,
};
use nwc_tests::ledger::{Ledger, Vector, folder, read_vector};

/// Bits of the look-up: all, some, none. Larger values count as the precision.
const LOOKUPS: &[u32] = if cfg!(miri) { &[4] } else { &[32, 5, 0] };

fn vectors(small: bool) -> impl Iterator<Item = Vector> {
    Ledger::read().vectors.into_iter().filter(move |vector| vector.small || !small)
}

fn check(vector: &Vector) {
    let bytes = read_vector(&vector.file);
    match (&vector.call, vector.error) {
        (None, None) => check_valid(vector, &bytes),
        (None, Some(code)) => {
            for &lookup_bits in LOOKUPS {
                let error = everything(&bytes, lookup_bits, 0xFF).expect_err(&vector.file);
                assert_eq!((error.code(), error.is_file_fault()), (code, true), "{}: {error}", vector.file);
            }
        }
        (Some(call), Some(code)) => {
            for error in check_call(call, &bytes) {
                assert_eq!((error.code(), error.is_file_fault()), (code, false), "{call}: {error}");
            }
        }
        (Some(call), None) => panic!("{call} is there to fail"),
    }
}

fn check_valid(vector: &Vector, bytes: &[u8]) {
    let container = Container::open(bytes, &Limits::default()).expect(&vector.file);
    assert_eq!(container.len(), vector.tensors.len(), "{}", vector.file);
    for (tensor, line) in container.tensors().zip(&vector.tensors) {
        let what = format!("{}: {}", vector.file, line.name);
        assert_eq!(tensor.name().to_string(), line.name, "{what}");
        assert!(tensor.name() == *line.name.as_str());
        assert!(container.find(&line.name).is_some(), "{what}");
        let tensor = tensor.resolve(&container).expect(&what);
        let expected = |dtype: DType| {
            u32::from_str_radix(&line.crc[dtype.name()], 16).expect("the ledger has hexadecimal numbers")
        };
        if tensor.coding() == Coding::Raw {
            let raw = tensor.raw(Checks::All).expect(&what);
            assert_eq!(Crc32::of(raw), expected(tensor.dtype()), "{what}");
            assert_eq!(line.crc.len(), 1, "{what}");
            continue;
        }
        assert_eq!(line.crc.len(), FLOATS.len(), "{what}");
        for &lookup_bits in LOOKUPS {
            // One type is enough where it takes minutes.
            if !cfg!(miri) {
                check_as::<f32>(&container, &tensor, lookup_bits, expected(DType::F32), &what);
                check_as::<bf16>(&container, &tensor, lookup_bits, expected(DType::BF16), &what);
            }
            check_as::<f16>(&container, &tensor, lookup_bits, expected(DType::F16), &what);
        }
    }
    for file in container.attachments().expect(&vector.file) {
        attachment(&file).expect(&vector.file);
    }
    everything(bytes, 8, 0).expect(&vector.file);
}

fn check_as<T: Weight>(
    container: &Container<'_>,
    tensor: &Tensor<'_>,
    lookup_bits: u32,
    expected: u32,
    what: &str,
) {
    let coded = tensor.coded().expect(what);
    let codec = container.codec(coded.codec_index()).expect(what);
    let what = format!("{what} as {}, {lookup_bits} bits of look-up", T::DTYPE);
    // What was in the memory before must not matter.
    let filled = |fill: u8| {
        with_tables(&codec, lookup_bits, fill, |tables| whole::<T>(&coded, tables, Checks::All, fill))
            .expect(&what)
    };
    let weights = filled(0x00);
    assert_eq!(Crc32::of(&weights), expected, "{what}");
    assert!(weights == filled(0xFF), "{what}: it depends on what was there before");
    with_tables(&codec, lookup_bits, 0xFF, |tables| {
        assert!(weights == by_tiles::<T>(&coded, tables)?, "{what}: tile by tile");
        if T::DTYPE == DType::F32 {
            for number in 0..coded.tiles() {
                let tile = coded.tile(number)?;
                // All places of small tiles, a few of large ones.
                let places = if cfg!(miri) { 2 } else { (100_000 / tile.elements()).max(3) };
                from_seek_points(&tile, tables, places)?;
            }
        }
        Ok(())
    })
    .expect(&what);
}

/// What comes of calls that cannot be served.
fn check_call(call: &str, bytes: &[u8]) -> Vec<Error> {
    let container = Container::open(bytes, &Limits::default()).expect("the file is legal");
    let coded_at =
        container.tensors().position(|tensor| tensor.coding() == Coding::Coded).expect("a tensor is coded");
    let tensor = container.tensor(coded_at).expect("it is there");
    let coded = tensor.coded().expect("it is coded");
    let codec = container.codec(coded.codec_index()).expect("it is there");
    match call {
        "limits-tiny" => [
            Limits::default().with_tensors(container.len() as u32 - 1),
            Limits::default().with_elements(tensor.elements() as u64 - 1),
        ]
        .map(|limits| Container::open(bytes, &limits).expect_err("it is too large"))
        .to_vec(),
        "scratch-small" => {
            let need = codec.required_scratch(6);
            [(need.words - 1, need.bytes), (need.words, need.bytes - 1), (0, 0)]
                .map(|(words, bytes)| {
                    let (mut words, mut bytes) = (vec![0; words], vec![0; bytes]);
                    let scratch = Scratch { words: &mut words, bytes: &mut bytes };
                    Tables::expand(&codec, 6, scratch).expect_err("it is too small")
                })
                .to_vec()
        }
        "output-short" => with_tables(&codec, 6, 0, |tables| {
            let tile = coded.tile(0)?;
            let mut out = vec![0f32; tensor.elements() + 1];
            let long = out.len();
            Ok(vec![
                coded.decode(tables, Checks::All, &mut out).expect_err("it is too long"),
                coded.decode(tables, Checks::All, &mut out[..long - 2]).expect_err("it is too short"),
                tile.decode(tables, Checks::All, &mut out[..tile.elements() - 1])
                    .expect_err("it is too short"),
                tile.decode_strided(
                    tables,
                    Checks::All,
                    &mut out[..tile.elements() - 1],
                    tile.region().input.len(),
                )
                .expect_err("it is too short"),
            ])
        })
        .expect("tables expand"),
        "tile-out-of-range" => {
            let [batch, out, input] = coded.shape();
            vec![
                coded.tile(coded.tiles()).expect_err("there is no such tile"),
                coded.tile(usize::MAX).expect_err("there is no such tile"),
                coded.tile_of(batch, 0, 0).expect_err("there is no such matrix"),
                coded.tile_of(0, out, 0).expect_err("there is no such row"),
                coded.tile_of(0, 0, input).expect_err("there is no such column"),
                container.tensor(container.len()).expect_err("there is no such tensor"),
                container.codec(container.codec_count()).expect_err("there is no such codec"),
            ]
        }
        "raw-of-coded" => {
            let raw = container.tensors().find(|tensor| tensor.coding() == Coding::Raw);
            vec![
                tensor.raw(Checks::All).expect_err("it is coded"),
                raw.expect("a tensor is raw").coded().expect_err("it is raw"),
                as_dtype(&container, &tensor, DType::I32, (6, Checks::All, 0))
                    .expect_err("weights are floats"),
            ]
        }
        other => panic!("no call is named {other}"),
    }
}

#[test]
fn small_valid_vectors() {
    vectors(true).filter(|vector| vector.error.is_none()).for_each(|vector| check(&vector));
}

#[test]
fn small_invalid_vectors_and_calls() {
    vectors(true).filter(|vector| vector.error.is_some()).for_each(|vector| check(&vector));
}

#[test]
fn all_vectors() {
    // A change of the format breaks many vectors: name them all.
    let failed: Vec<String> = vectors(false)
        .filter(|vector| std::panic::catch_unwind(|| check(vector)).is_err())
        .map(|vector| vector.file)
        .collect();
    assert!(failed.is_empty(), "{failed:?}");
}

#[test]
fn the_ledger_names_every_file_and_every_error() {
    let ledger = Ledger::read();
    let named: BTreeSet<String> = ledger.vectors.iter().map(|vector| vector.file.clone()).collect();
    let mut there: BTreeSet<String> = std::fs::read_dir(folder())
        .expect("the folder can be read")
        .map(|entry| entry.expect("the folder can be read").file_name().to_string_lossy().into_owned())
        .collect();
    assert!(there.remove("ledger.json"));
    assert_eq!(named, there);
    let errors: BTreeSet<u8> = ledger.vectors.iter().filter_map(|vector| vector.error).collect();
    assert_eq!(errors, Error::ALL.into_iter().map(Error::code).collect());
    // Both tests of the small vectors have something to do, for every error.
    let small: BTreeSet<Option<u8>> =
        ledger.vectors.iter().filter(|vector| vector.small).map(|vector| vector.error).collect();
    assert_eq!(small.len(), Error::ALL.len() + 1);
}
