//! Everything that a caller can do with a container, done to one that may be hostile.

use std::fmt::Write;

use half::{bf16, f16};
use nwc_decode_core::{
    Checks, Chunk, Codec, CodedTensor, Coding, Container, Crc32, Element, Error, Limits, Scratch, SeekPoint,
    Table, Tables, Tensor, Tile,
};
use nwc_encode_host::container::Split;
use nwc_encode_host::latents::Latents;
use nwc_encode_host::restore::{Decoder, TableMemory};

use crate::decode::{Source, meaning, tensors, through_a_window};

/// Look-ups of fewer bits must find the same symbols.
const FEW_BITS: u32 = 3;
/// Places inside a tile at which decoding is taken up again.
const PLACES: usize = 8;
/// Chunks that are decoded of tensors too large for memory.
const MAX_CHUNKS: usize = 1 << 12;

/// Opens a file and, where that succeeds, uses all of it.
///
/// Every error is fine. A panic is not, nor a result that depends on what the caller's memory held before.
pub fn walk(file: &[u8]) {
    let Ok(container) = Container::open(file, &Limits::default()) else { return };
    assert_eq!(container.len(), container.tensors().count(), "the directory was checked on opening");
    assert_eq!(container.is_empty(), container.tensors().next().is_none());
    limits(&container);

    for index in 0..container.codec_count() {
        let codec = container.codec(index).expect("codecs were checked on opening");
        for bits in [0, FEW_BITS, codec.precision(), u32::MAX] {
            // Every codec that was opened expands: its tables were checked too.
            with_tables(&codec, bits, |_| ());
        }
    }
    assert_eq!(container.codec(container.codec_count()).err(), Some(Error::Index));

    if let Ok(split) = Split::of(&container) {
        assert_eq!(split.bytes(), file.len() as u64, "the parts sum to the file");
        let parts = [
            split.payload,
            split.side,
            split.tables,
            split.codec,
            split.directory,
            split.raw,
            split.attachments,
        ];
        assert!(parts.iter().all(|&part| part <= file.len() as u64), "none is larger than the whole");
    }
    if let Ok(attachments) = container.attachments() {
        let stored: usize =
            attachments.map(|attachment| attachment.name.len() + attachment.stored.len()).sum();
        assert!(stored <= file.len());
    }

    // What it says about latents is an error, or suits the directory.
    if let Ok(Some(latents)) = Latents::read(&container) {
        let restored = (0..container.len()).filter_map(|index| latents.get(index));
        restored.for_each(|tensor| assert!(tensor.elements() > 0));
    }

    let mut memory = TableMemory::default();
    let host = Decoder::new(&container, &mut memory).expect("codecs were checked on opening");
    let mut left = super::MAX_ELEMENTS;
    let mut name = String::new();
    for (index, tensor) in container.tensors().enumerate() {
        name.clear();
        write!(name, "{}", tensor.name()).expect("text can be appended to");
        assert!(tensor.name() == *name, "a name equals itself");
        // Names need not be unique, so another tensor may be found, but one always is. Looking up all of them would be quadratic.
        assert!(index > 16 || container.find(&name).is_some());
        assert!(tensor.shape().len() <= 8);
        let product: u128 = tensor.shape().iter().map(|&dim| u128::from(dim)).product();
        assert_eq!(product, tensor.elements() as u128);

        // Whether an alias suits is only known once it is followed.
        let target = tensor.resolve(&container);
        assert_eq!(target.is_ok(), host.resolve(&tensor).is_ok());
        let Ok(target) = target else { continue };
        assert!(!matches!(target.coding(), Coding::Alias(_)));
        if let Ok(bytes) = tensor.raw(Checks::SkipChecksums) {
            assert_eq!(bytes.len(), tensor.elements() * tensor.dtype().size());
            let checked = tensor.raw(Checks::All).is_ok();
            let same = cfg!(nwc_no_checksums) || tensor.content_crc() == Some(Crc32::of(bytes));
            assert_eq!(checked, same);
        }
        if tensor.coding() == Coding::Coded && tensor.elements() <= left {
            left -= tensor.elements();
            coded(&container, &tensor);
        } else if tensor.coding() == Coding::Coded {
            beginning(&container, &tensor);
        }
    }
    stored_points(&container);
    if container.tensors().map(|tensor| tensor.elements()).sum::<usize>() <= super::MAX_ELEMENTS {
        let windowed = through_a_window(&mut Source::new(file), FEW_BITS, 0xFF);
        assert!(tensors(&container, FEW_BITS, 0) == windowed, "where the bytes are must not matter");
    }
}

/// A stored seek point may lie: then decoding from it ends in an error or gives other weights.
fn stored_points(container: &Container<'_>) {
    let Ok(points) = container.seek_points() else { return };
    let mut chunk = Chunk::default();
    for (index, number, point) in points.take(PLACES) {
        let coded = container.tensor(index).and_then(|tensor| tensor.coded());
        let coded = coded.expect("points are of coded tensors");
        let codec = container.codec(coded.codec_index()).expect("codecs were checked on opening");
        with_tables(&codec, FEW_BITS, |tables| {
            let Ok(tile) = coded.tile(number) else { return };
            let Ok(mut decoder) = tile.decoder_at(tables, Checks::SkipChecksums, &point) else { return };
            for _ in 0..MAX_CHUNKS {
                if !matches!(decoder.next_chunk(&mut chunk), Ok(true)) {
                    break;
                }
            }
        });
    }
}

/// Limits refuse what is larger, and nothing else.
fn limits(container: &Container<'_>) {
    let (count, most) = (
        container.len() as u32,
        container.tensors().map(|tensor| tensor.elements() as u64).max().unwrap_or(0),
    );
    let open = |limits: Limits| Container::open(container.file(), &limits).err();
    assert_eq!(open(Limits::default().with_tensors(count).with_elements(most)), None);
    if count > 0 {
        assert_eq!(open(Limits::default().with_tensors(count - 1)), Some(Error::Limit));
    }
    if most > 0 {
        assert_eq!(open(Limits::default().with_elements(most - 1)), Some(Error::Limit));
    }
}

/// Decodes the beginning and the last tile of a tensor that may be too large for memory, which a chunk at a time needs none of.
fn beginning(container: &Container<'_>, tensor: &Tensor<'_>) {
    let coded = tensor.coded().expect("the geometry was checked on opening");
    let codec = container.codec(coded.codec_index()).expect("the index was checked on opening");
    with_tables(&codec, FEW_BITS, |tables| {
        let mut chunk = Chunk::default();
        for number in [0, coded.tiles() - 1] {
            let Ok(tile) = coded.tile(number) else { continue };
            let Ok(mut decoder) = tile.decoder(tables, Checks::SkipChecksums) else { continue };
            for _ in 0..MAX_CHUNKS {
                if !matches!(decoder.next_chunk(&mut chunk), Ok(true)) {
                    break;
                }
                assert!(chunk.rows <= chunk.latents.len() && chunk.lanes <= chunk.column_scale.len());
            }
        }
    });
}

/// Expands a codec's tables into memory that is not clean, and hands them to `then`.
fn with_tables<R>(codec: &Codec<'_>, lookup_bits: u32, then: impl FnOnce(&Tables<'_>) -> R) -> R {
    let need = codec.required_scratch(lookup_bits);
    let mut memory = vec![Table::default(); need.tables];
    let mut words = vec![!0; need.words];
    let scratch = Scratch { tables: &mut memory, words: &mut words };
    let tables = Tables::expand(codec, lookup_bits, scratch).expect("it was asked what is needed");
    then(&tables)
}

/// Decodes a coded tensor in all dtypes.
fn coded(container: &Container<'_>, tensor: &Tensor<'_>) {
    let coded = tensor.coded().expect("the geometry was checked on opening");
    let [batch, out, input] = coded.shape();
    assert_eq!(batch * out * input, coded.elements());
    let codec = container.codec(coded.codec_index()).expect("the index was checked on opening");
    with_tables(&codec, codec.precision(), |tables| {
        with_tables(&codec, FEW_BITS, |searched| {
            let weights = decode(&coded, [tables, searched], [0.0, f32::from_bits(!0)]);
            let halves = decode(&coded, [tables, searched], [f16::from_bits(0), f16::from_bits(!0)]);
            let brains = decode(&coded, [tables, searched], [bf16::from_bits(0), bf16::from_bits(!0)]);
            tiles(&coded, tables, &weights);
            match (weights, halves, brains) {
                (Ok(weights), Ok(halves), Ok(brains)) => {
                    for ((&weight, half), brain) in weights.iter().zip(halves).zip(brains) {
                        assert!(weight.is_finite());
                        let want = f16::from_f32(weight).clamp(f16::MIN, f16::MAX);
                        assert_eq!(half.to_bits(), want.to_bits(), "{weight:e}");
                        let want = bf16::from_f32(weight).clamp(bf16::MIN, bf16::MAX);
                        assert_eq!(brain.to_bits(), want.to_bits(), "{weight:e}");
                    }
                }
                (weights, halves, brains) => {
                    let error = weights.err();
                    assert!(error.is_some(), "a stream decodes in all dtypes or in none");
                    assert_eq!((error, error), (halves.err(), brains.err()));
                }
            }
        });
    });
}

/// Decodes into memory that held `before[0]` and into memory that held `before[1]`, with either set of tables.
fn decode<T: Element + std::fmt::Debug>(
    coded: &CodedTensor<'_>,
    tables: [&Tables<'_>; 2],
    before: [T; 2],
) -> Result<Vec<T>, Error> {
    let into = |tables: &Tables<'_>, checks: Checks, before: T| {
        let mut out = vec![before; coded.elements()];
        coded.decode(tables, checks, &mut out).map(|()| out)
    };
    let bits = |weights: &[T]| weights.iter().map(|weight| weight.to_f32().to_bits()).collect::<Vec<_>>();
    let first = into(tables[0], Checks::SkipChecksums, before[0]);
    let second = into(tables[1], Checks::SkipChecksums, before[1]);
    match (&first, &second) {
        (Ok(first), Ok(second)) => {
            assert!(bits(first) == bits(second), "the output depends on what was there");
        }
        (first, second) => assert_eq!(first.as_ref().err(), second.as_ref().err()),
    }
    match (&first, into(tables[0], Checks::All, before[1])) {
        (Ok(first), Ok(checked)) => assert!(bits(first) == bits(&checked), "checks change nothing"),
        (Err(_), Ok(_)) => panic!("checks only add errors"),
        (_, Err(error)) => assert!(error.is_file_fault()),
    }
    first
}

/// Decodes tile by tile, every other one from a place in the middle, and compares with the tensor as a whole.
fn tiles(coded: &CodedTensor<'_>, tables: &Tables<'_>, whole: &Result<Vec<f32>, Error>) {
    let [_, rows, columns] = coded.shape();
    let mut all_decode = true;
    // Seek points of the tile before.
    let mut elsewhere = None;
    for number in 0..coded.tiles() {
        let Ok(tile) = coded.tile(number) else {
            all_decode = false;
            continue;
        };
        let region = tile.region();
        assert_eq!(tile.elements(), region.out.len() * region.input.len());
        assert_eq!(coded.tile_of(region.batch, region.out.start, region.input.start), Ok(number));
        assert_eq!(coded.tile_of(region.batch, region.out.end - 1, region.input.end - 1), Ok(number));
        let mut part = vec![f32::NAN; tile.elements()];
        if tile.decode(tables, Checks::SkipChecksums, &mut part).is_err() {
            all_decode = false;
            continue;
        }
        if let Ok(whole) = whole {
            for (row, part) in region.out.clone().zip(part.chunks_exact(region.input.len())) {
                let start = (region.batch * rows + row) * columns;
                let whole = &whole[start + region.input.start..start + region.input.end];
                assert!(whole.iter().zip(part).all(|(a, b)| a.to_bits() == b.to_bits()));
            }
        }
        if number % 2 == 0 {
            let points = seek(&tile, tables);
            if let Some(before) = elsewhere.replace(points) {
                stray(&tile, tables, &before);
            }
        }
    }
    assert_eq!(all_decode, whole.is_ok(), "the tensor decodes if all of its tiles do");
    assert_eq!(coded.tile(coded.tiles()).err(), Some(Error::Index));
}

/// A decoder that goes on from a place inside a tile gives what the one that got there by itself gives. Returns the places.
fn seek(tile: &Tile<'_>, tables: &Tables<'_>) -> Vec<SeekPoint> {
    let mut decoder = tile.decoder(tables, Checks::SkipChecksums).expect("it did before");
    let (mut points, mut chunks, mut chunk) = (Vec::new(), Vec::new(), Chunk::default());
    loop {
        let point = decoder.seek_point();
        if !decoder.next_chunk(&mut chunk).expect("it did before") {
            let end = tile.decoder_at(tables, Checks::SkipChecksums, &point);
            assert_eq!(end.err(), Some(Error::Index), "the end is no place");
            break;
        }
        points.push(point);
        chunks.push(meaning(&chunk));
    }
    let step = points.len().div_ceil(PLACES);
    for (first, point) in points.iter().enumerate().step_by(step) {
        let mut decoder = tile.decoder_at(tables, Checks::SkipChecksums, point).expect("it is a legal place");
        for expected in chunks.iter().skip(first).take(step) {
            assert_eq!(decoder.next_chunk(&mut chunk), Ok(true));
            assert!(meaning(&chunk) == *expected, "from chunk {first}");
        }
    }
    points.into_iter().step_by(step).collect()
}

/// Places of another tile are of no use, but do no harm.
fn stray(tile: &Tile<'_>, tables: &Tables<'_>, points: &[SeekPoint]) {
    let mut chunk = Chunk::default();
    for point in points {
        let Ok(mut decoder) = tile.decoder_at(tables, Checks::SkipChecksums, point) else { continue };
        let mut left = tile.elements() + 1;
        while matches!(decoder.next_chunk(&mut chunk), Ok(true)) {
            left -= 1;
            assert!(left > 0, "a tile has no more chunks than weights");
        }
    }
}
