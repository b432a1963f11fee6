//! Damaged containers: decoding ends in an error or in the right bytes, and never in a panic.

use half::{bf16, f16};
use nwc_decode_core::{Checks, Chunk, Coding, Container, DType, Error, Limits, SeekPoint, WINDOW_BYTES};
use nwc_tests::builder::{File, Seal, reseal};
use nwc_tests::decode::{FLOATS, Weight, as_dtype, everything, from_seek_points, whole, with_tables};
use nwc_tests::vectors::{small_hadamard, small_learned, small_scalar, small_sides};

/// What a byte is combined with.
const FLIPS: [u8; 3] = [0xFF, 0x01, 0x80];

fn containers() -> [File; 2] {
    [small_sides(), small_scalar()].map(File::sealed)
}

/// Every way of changing one byte: its place and the changed file.
fn flipped(bytes: &[u8]) -> impl Iterator<Item = (usize, Vec<u8>)> {
    (0..bytes.len()).flat_map(move |place| {
        FLIPS.map(|flip| {
            let mut changed = bytes.to_vec();
            changed[place] ^= flip;
            (place, changed)
        })
    })
}

#[test]
fn a_changed_byte_is_an_error_or_changes_nothing() {
    for file in containers() {
        let bytes = file.bytes();
        let right = everything(&bytes, 6, 0).expect("the container is legal");
        for (place, changed) in flipped(&bytes) {
            if let Ok(decoded) = everything(&changed, 6, 0xFF) {
                assert!(decoded == right, "byte {place} of {} is not guarded", bytes.len());
                // Only what no rule looks at may change unseen: gaps between items.
                assert!(is_gap(&file, place), "byte {place} goes unnoticed");
            }
        }
    }
}

/// Whether a byte is neither in the header nor in a section with a checksum, nor in an item.
fn is_gap(file: &File, place: usize) -> bool {
    let covered = |seal: &Seal| {
        seal.covers.iter().any(|part| part.contains(&place)) || (seal.field..seal.field + 4).contains(&place)
    };
    !file.seals().iter().any(covered)
}

#[test]
fn a_cut_container_is_an_error() {
    for file in containers() {
        let bytes = file.bytes();
        for len in 0..bytes.len() {
            assert_eq!(everything(&bytes[..len], 6, 0).err(), Some(Error::Truncated), "{len} bytes");
        }
    }
}

/// With right checksums a change is not seen for what it is; decoding must still end, and depend on the file alone.
#[test]
fn a_changed_byte_under_right_checksums_does_no_harm() {
    let (mut errors, mut decoded) = (0, 0);
    for file in containers() {
        let (bytes, seals) = (file.bytes(), file.seals());
        for (place, mut changed) in flipped(&bytes) {
            reseal(&mut changed, &seals);
            let first = results(&changed, 0x00);
            assert!(first == results(&changed, 0xFF), "byte {place}: it depends on what was there before");
            match everything(&changed, 0, 0xFF) {
                Ok(_) => decoded += 1,
                Err(error) => {
                    assert!(error.is_file_fault() || error == Error::Limit, "byte {place}: {error}");
                    errors += 1;
                }
            }
        }
    }
    assert!(errors > 1000 && decoded > 10, "{errors} errors, {decoded} decoded");
}

/// Points that lie, under right checksums: whatever a byte of theirs becomes, decoding from them ends, in an error or in weights.
#[test]
fn a_lying_seek_point_does_no_harm() {
    let (mut refused, mut errors, mut decoded) = (0, 0, 0);
    for file in [small_sides(), small_hadamard(), small_learned()] {
        let file = file.sealed().with_seek_points(1);
        let (bytes, seals) = (file.bytes(), file.seals());
        // SEEK is the third section.
        let field = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes")) as usize;
        let (offset, len) = (field(24 + 24 * 2 + 8), field(24 + 24 * 2 + 16));
        for place in offset..offset + len {
            for flip in 1..=255u8 {
                let mut changed = bytes.clone();
                changed[place] ^= flip;
                reseal(&mut changed, &seals);
                let container =
                    Container::open(&changed, &limits()).expect("points do not keep it from opening");
                let points = match container.seek_points() {
                    Ok(points) => points,
                    Err(error) => {
                        assert_eq!(error, Error::Seek, "byte {place}");
                        refused += 1;
                        continue;
                    }
                };
                for (tensor, tile, point) in points {
                    match from_lying_point(&container, tensor, tile, &point) {
                        Ok(()) => decoded += 1,
                        Err(error) => {
                            assert!(error.is_file_fault() || error == Error::Index, "byte {place}: {error}");
                            errors += 1;
                        }
                    }
                }
            }
        }
    }
    assert!(
        refused > 1000 && errors > 1000 && decoded > 1000,
        "{refused} refused, {errors} errors, {decoded} decoded"
    );
}

/// Decodes from a point, in memory and through a window, which must come to the same.
fn from_lying_point(
    container: &Container<'_>,
    tensor: usize,
    tile: usize,
    point: &SeekPoint,
) -> Result<(), Error> {
    let tensor = container.tensor(tensor).expect("points are of tensors that there are");
    let coded = tensor.coded()?;
    let codec = container.codec(coded.codec_index())?;
    with_tables(&codec, 6, 0, |tables| {
        let source = &mut container.file();
        let remote = tensor.remote(source)?.tile(source, tile)?;
        let mut window = [0; WINDOW_BYTES];
        let mut far = remote.decoder_at(tables, Checks::All, source, &mut window, point);
        let near = coded.tile(tile)?.decoder_at(tables, Checks::All, point);
        assert_eq!(near.as_ref().err(), far.as_ref().err());
        let mut near = near?;
        let (mut chunk, mut other) = (Chunk::default(), Chunk::default());
        loop {
            let step = near.next_chunk(&mut chunk);
            let far = far.as_mut().expect("both are there");
            assert_eq!(step, far.next_chunk(&mut other));
            if !step? {
                return Ok(());
            }
            assert_eq!(near.seek_point(), far.seek_point());
        }
    })
}

/// Small limits, since a changed dimension may ask for much memory.
fn limits() -> Limits {
    Limits::default().with_elements(1 << 24).with_tensors(1000)
}

/// All that comes of decoding without looking at checksums.
fn results(file: &[u8], fill: u8) -> Vec<Result<Vec<u8>, Error>> {
    let container = match Container::open(file, &limits()) {
        Ok(container) => container,
        Err(error) => return vec![Err(error)],
    };
    let mut all = Vec::new();
    for tensor in container.tensors() {
        all.push(Ok(tensor.name().to_string().into_bytes()));
        let tensor = match tensor.resolve(&container) {
            Ok(tensor) => tensor,
            Err(error) => {
                all.push(Err(error));
                continue;
            }
        };
        if tensor.coding() == Coding::Raw {
            all.push(tensor.raw(Checks::SkipChecksums).map(<[u8]>::to_vec));
            continue;
        }
        for dtype in FLOATS {
            all.push(as_dtype(&container, &tensor, dtype, (4, Checks::SkipChecksums, fill)));
        }
        all.push(tile_by_tile(&container, &tensor, fill));
    }
    match container.attachments() {
        Ok(files) => all.extend(files.map(|file| nwc_tests::decode::attachment(&file))),
        Err(error) => all.push(Err(error)),
    }
    all
}

/// Decodes each tile on its own, and from its seek points.
fn tile_by_tile(
    container: &Container<'_>,
    tensor: &nwc_decode_core::Tensor<'_>,
    fill: u8,
) -> Result<Vec<u8>, Error> {
    let coded = tensor.coded()?;
    let codec = container.codec(coded.codec_index())?;
    with_tables(&codec, 32, fill, |tables| {
        for number in 0..coded.tiles() {
            let tile = coded.tile(number)?;
            let mut out = vec![f32::filled(fill); tile.elements()];
            tile.decode(tables, Checks::SkipChecksums, &mut out)?;
            from_seek_points(&tile, tables, 3)?;
        }
        match tensor.dtype() {
            DType::F16 => whole::<f16>(&coded, tables, Checks::SkipChecksums, fill),
            DType::BF16 => whole::<bf16>(&coded, tables, Checks::SkipChecksums, fill),
            _ => whole::<f32>(&coded, tables, Checks::SkipChecksums, fill),
        }
    })
}
