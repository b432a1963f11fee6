//! The host's decoder against the plain one.
//!
//! The host picks the fastest way that the machine has. Whatever that is, it gives the bytes of the plain decoder, and where that
//! one reports an error it reports the same.

use std::error::Error as _;

use half::{bf16, f16};
use nwc_decode_core::{Checks, CodedTensor, Coding, Container, DType, Error, Limits, Tables, Tensor};
use nwc_encode_host::restore::{Decoder, TableMemory};

use super::MAX_ELEMENTS;
use crate::decode::{FLOATS, Weight, to_bytes, whole, with_tables};

/// Bits of the plain decoder's look-up: few, so that it searches where the host looks up.
const LOOKUP_BITS: u32 = 3;

/// With checksums and without. Where checksums are off the two need not agree on them: the host compares by itself.
const CHECKS: &[Checks] =
    if cfg!(nwc_no_checksums) { &[Checks::SkipChecksums] } else { &[Checks::SkipChecksums, Checks::All] };

/// Decodes every tensor as every dtype, both ways.
pub fn differential(file: &[u8]) {
    let Ok(container) = Container::open(file, &Limits::default()) else { return };
    let mut memory = TableMemory::default();
    let host = Decoder::new(&container, &mut memory).expect("codecs were checked on opening");
    let mut left = MAX_ELEMENTS;
    for tensor in container.tensors() {
        if tensor.elements() > left {
            continue;
        }
        left -= tensor.elements();
        let target = tensor.resolve(&container);
        for &checks in CHECKS {
            let plain = target.and_then(|target| own_dtype(&container, &target, checks));
            same(&host.decode(&tensor, checks), &plain, &tensor, tensor.dtype());
        }
        let Some(target) = target.ok().filter(|target| target.coding() == Coding::Coded) else { continue };
        for &checks in CHECKS {
            for dtype in FLOATS {
                same(
                    &host.decode_as(&target, dtype, checks),
                    &tiles(&container, &target, dtype, checks),
                    &tensor,
                    dtype,
                );
            }
        }
    }
}

/// The same bytes, or the same error.
fn same(
    host: &nwc_encode_host::Result<Vec<u8>>,
    plain: &Result<Vec<u8>, Error>,
    tensor: &Tensor<'_>,
    dtype: DType,
) {
    let what = || format!("{} as {}", tensor.name(), dtype.name());
    match (host, plain) {
        (Ok(host), Ok(plain)) => {
            assert_eq!(host.len(), plain.len(), "{}", what());
            let differs = host.iter().zip(plain).position(|(a, b)| a != b);
            assert_eq!(differs, None, "{}: the first byte that differs", what());
        }
        (host, plain) => {
            let host = host.as_ref().err().map(code_of);
            assert_eq!(host, plain.as_ref().err().map(|error| error.code()), "{}", what());
        }
    }
}

/// The decoder's code for what went wrong on the host.
pub fn code_of(error: &nwc_encode_host::Error) -> u8 {
    let source = error.source().and_then(|source| source.downcast_ref::<Error>());
    source.unwrap_or_else(|| panic!("it is not the file's fault: {error}")).code()
}

/// A tensor that is no alias, decoded to its own dtype in one call.
fn own_dtype(container: &Container<'_>, tensor: &Tensor<'_>, checks: Checks) -> Result<Vec<u8>, Error> {
    if tensor.coding() == Coding::Raw {
        return tensor.raw(checks).map(<[u8]>::to_vec);
    }
    with_coded(container, tensor, |coded, tables| match tensor.dtype() {
        DType::F16 => whole::<f16>(coded, tables, checks, 0xFF),
        DType::BF16 => whole::<bf16>(coded, tables, checks, 0xFF),
        _ => whole::<f32>(coded, tables, checks, 0xFF),
    })
}

/// A coded tensor, decoded tile by tile; the error is that of the first tile that has one.
fn tiles(
    container: &Container<'_>,
    tensor: &Tensor<'_>,
    dtype: DType,
    checks: Checks,
) -> Result<Vec<u8>, Error> {
    with_coded(container, tensor, |coded, tables| match dtype {
        DType::F16 => by_tiles::<f16>(coded, tables, checks),
        DType::BF16 => by_tiles::<bf16>(coded, tables, checks),
        _ => by_tiles::<f32>(coded, tables, checks),
    })
}

fn with_coded(
    container: &Container<'_>,
    tensor: &Tensor<'_>,
    then: impl FnOnce(&CodedTensor<'_>, &Tables<'_>) -> Result<Vec<u8>, Error>,
) -> Result<Vec<u8>, Error> {
    let coded = tensor.coded()?;
    let codec = container.codec(coded.codec_index())?;
    with_tables(&codec, LOOKUP_BITS, 0xFF, |tables| then(&coded, tables))
}

fn by_tiles<T: Weight>(
    coded: &CodedTensor<'_>,
    tables: &Tables<'_>,
    checks: Checks,
) -> Result<Vec<u8>, Error> {
    let [_, rows, columns] = coded.shape();
    let mut out = vec![T::filled(0xFF); coded.elements()];
    for number in 0..coded.tiles() {
        let tile = coded.tile(number)?;
        let region = tile.region();
        let mut part = vec![T::filled(0xFF); tile.elements()];
        tile.decode(tables, checks, &mut part)?;
        for (row, part) in region.out.clone().zip(part.chunks_exact(region.input.len())) {
            let first = (region.batch * rows + row) * columns + region.input.start;
            out[first..first + part.len()].copy_from_slice(part);
        }
    }
    Ok(to_bytes(&out))
}
