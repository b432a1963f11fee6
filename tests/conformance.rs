//! The vectors of `tests/vectors` decode to what the ledger says, in every way that the decoder offers.

use std::collections::BTreeSet;

use half::{bf16, f16};
use nwc_decode_core::{
    Checks, Coding, Container, Crc32, DType, Error, Limits, Scratch, SectionKind, Tables, Tensor,
    WINDOW_BYTES,
};
use nwc_tests::builder::{Codec, Coded, File, Rng, Table, trellis};
use nwc_tests::decode::{
    FLOATS, Source, Weight, as_dtype, attachment, by_rows, by_tiles, everything, from_seek_points,
    from_stored_points, through_a_window, tile_through_a_window, whole, with_tables,
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
            check_through_a_window(vector, &bytes);
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
    let points = from_stored_points(&container).expect(&vector.file);
    assert_eq!(points > 0, container.section_bytes(SectionKind::Seek) > 4, "{}", vector.file);
    everything(bytes, 8, 0).expect(&vector.file);
    check_through_a_window(vector, bytes);
}

/// Where the bytes are does not matter: neither for what is decoded nor for what goes wrong.
fn check_through_a_window(vector: &Vector, bytes: &[u8]) {
    let in_memory = Container::open(bytes, &Limits::default())
        .and_then(|container| nwc_tests::decode::tensors(&container, 8, 0));
    let mut source = Source::new(bytes);
    let through_a_window = through_a_window(&mut source, 8, 0xFF);
    assert!(in_memory == through_a_window, "{}: {:?}", vector.file, through_a_window.err());
    assert!(source.longest <= WINDOW_BYTES, "{}: {} bytes at once", vector.file, source.longest);
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
                tile_through_a_window(container.file(), tensor, number, tables, places.min(9))?;
            }
            by_rows(container.file(), tensor, tables, coded.shape()[1].div_ceil(20))?;
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
            [(need.tables, need.words - 1), (need.tables - 1, need.words), (0, 0)]
                .map(|(tables, words)| {
                    let mut memory = vec![nwc_decode_core::Table::default(); tables];
                    let mut words = vec![0; words];
                    let scratch = Scratch { tables: &mut memory, words: &mut words };
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
        "not-in-memory" => {
            let front =
                Container::front_bytes(&bytes[..Container::HEADER_BYTES]).expect("the header is legal");
            let small =
                Container::open_front(&bytes[..front], None, &Limits::default()).expect("it is enough");
            let at = |coding| {
                let mut tensors = small.tensors();
                tensors.find(|tensor| tensor.coding() == coding).expect("there is one")
            };
            let (coded, raw) = (at(Coding::Coded), at(Coding::Raw));
            // The file ends in the attachments, so a source that lacks a byte fails only at the end of DATA.
            let end = raw.offset() + raw.stored_bytes();
            vec![
                Container::open_front(&bytes[..front - 1], None, &Limits::default())
                    .expect_err("a byte is missing"),
                coded.coded().expect_err("it is not in memory"),
                raw.raw(Checks::SkipChecksums).expect_err("it is not in memory"),
                small.attachments().expect_err("they are not in memory"),
                small.tensor(0).and_then(|tensor| tensor.coded()).expect_err("it is not in memory"),
                coded.remote(&mut &bytes[..coded.offset()]).expect_err("the source is too short"),
                raw.check_raw(&mut &bytes[..end - 1], &mut [0; 7]).expect_err("the source is too short"),
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
fn a_source_that_fails_is_an_error_wherever_it_fails() {
    let bytes = read_vector("small-sides.nwc");
    let mut source = Source::new(&bytes);
    through_a_window(&mut source, 8, 0).expect("the source delivers");
    assert!(source.reads > 20);
    for fails in 1..=source.reads {
        let mut source = Source { fails: Some(fails), ..Source::new(&bytes) };
        assert_eq!(through_a_window(&mut source, 8, 0), Err(Error::Source), "read {fails}");
    }
}

#[test]
fn a_row_of_an_embedding_touches_one_tile() {
    let tables = [3, 5, 8, 4, 12, 20].map(|reach| Table::weights(reach, 40 / reach, 1));
    let codec = Codec::trellis(trellis(8), 12, 2, tables.to_vec()).with_side(
        [Table::side(-9, 20), Table::side(-3, 7), Table::side(-40, 60), Table::side(-4, 9)].map(Some),
    );
    let mut file = File { codecs: vec![codec], ..File::default() };
    let coded =
        Coded { view: 1, lanes: 4, per_lane: 2, side: 15, class_base: 1, step: -900, ..Coded::plain(21, 43) };
    file.random("embedding", 1, &[43, 21], coded, 15, &mut Rng(31));
    let file = file.sealed();
    // The row stream comes first: all tiles share it.
    let streams: Vec<_> =
        file.seals().into_iter().skip(1).take(6).map(|seal| seal.covers[0].clone()).collect();
    let bytes = file.bytes();
    let row_of = |bytes: &[u8], row: usize, through_a_window: bool| {
        let container = Container::open(bytes, &Limits::default()).expect("the front is not damaged");
        let tensor = container.tensor(0).expect("it is there");
        let coded = tensor.coded().expect("it is coded");
        assert_eq!(coded.tiles(), streams.len());
        let codec = container.codec(0).expect("it is there");
        with_tables(&codec, 6, 0, |tables| {
            let mut out = vec![f16::ZERO; 21];
            if through_a_window {
                let source = &mut &bytes[..];
                let remote = tensor.remote(source)?;
                remote.decode_output_row(
                    tables,
                    Checks::All,
                    source,
                    &mut [0; WINDOW_BYTES],
                    (0, row),
                    &mut out,
                )?;
            } else {
                coded.decode_output_row(tables, Checks::All, 0, row, &mut out)?;
            }
            Ok(out)
        })
    };
    for (row, through_a_window) in (0..43).flat_map(|row| [(row, false), (row, true)]) {
        let right = row_of(&bytes, row, through_a_window).expect("nothing is damaged");
        let damaged = |damage: &dyn Fn(usize) -> bool| {
            let mut bytes = bytes.clone();
            streams.iter().enumerate().filter(|(tile, _)| damage(*tile)).for_each(|(_, range)| {
                bytes[range.clone()].iter_mut().for_each(|byte| *byte ^= 0x5A);
            });
            row_of(&bytes, row, through_a_window)
        };
        assert_eq!(damaged(&|tile| tile != row / 8), Ok(right), "row {row}");
        assert_eq!(damaged(&|tile| tile == row / 8), Err(Error::StreamChecksum), "row {row}");
    }
}

#[test]
fn the_ledger_names_every_file_and_every_error() {
    let ledger = Ledger::read();
    let named: BTreeSet<String> = ledger.vectors.iter().map(|vector| vector.file.clone()).collect();
    let mut there: BTreeSet<String> = std::fs::read_dir(folder())
        .expect("the folder can be read")
        .map(|entry| entry.expect("the folder can be read").file_name().to_string_lossy().into_owned())
        .collect();
    assert!(there.remove("ledger.json") && there.remove("frozen.txt"));
    assert_eq!(named, there);
    let errors: BTreeSet<u8> = ledger.vectors.iter().filter_map(|vector| vector.error).collect();
    assert_eq!(errors, Error::ALL.into_iter().map(Error::code).collect());
    // Both tests of the small vectors have something to do, for every error.
    let small: BTreeSet<Option<u8>> =
        ledger.vectors.iter().filter(|vector| vector.small).map(|vector| vector.error).collect();
    assert_eq!(small.len(), Error::ALL.len() + 1);
}
