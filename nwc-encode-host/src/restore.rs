//! Decoding containers on the host: tensors to bytes, several tiles at a time.

use std::fs::File;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use memmap2::Mmap;
use nwc_decode_core::{Checks, Coding, Container, DType, Element, Limits, Scratch, Tables, Tensor};
use rayon::prelude::*;

use crate::{Error, Result};

/// A container file, mapped into memory.
#[derive(Debug)]
pub struct ContainerFile {
    path: PathBuf,
    map: Mmap,
}

impl ContainerFile {
    /// Maps a file. Its contents are checked by [`container`](Self::container).
    ///
    /// # Errors
    /// The operating system's.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|error| Error::io("cannot open", path, error))?;
        let metadata = file.metadata().map_err(|error| Error::io("cannot read", path, error))?;
        if metadata.is_dir() {
            return Err(Error::input("is a folder, not an .nwc file")
                .file(path)
                .remedy("name the .nwc file in it"));
        }
        // SAFETY: as with every program that maps its input, the file must not be changed while it is read; if it is, checksums and the
        // decoder's checks turn that into errors, short of the file being cut, which the system answers with a signal.
        let map = unsafe { Mmap::map(&file) }.map_err(|error| Error::io("cannot map", path, error))?;
        Ok(Self { path: path.to_owned(), map })
    }

    /// The checked view.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn container(&self) -> Result<Container<'_>> {
        Container::open(&self.map, &Limits::default()).map_err(|error| damaged(error).file(&self.path))
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// The host's error for one of the decoder, with its code and what to do.
pub(crate) fn damaged(error: nwc_decode_core::Error) -> Error {
    use nwc_decode_core::Error as E;
    let remedy = match error {
        E::Magic => "give a file that `nwc-encode compress` wrote",
        E::Version | E::Unsupported | E::UnknownSection => {
            "use a newer nwc-encode, or compress the model again with this one"
        }
        E::Truncated => "copy or download the file again, it is not whole",
        _ => "copy or download the file again, or compress the model again",
    };
    Error::input(format!("{error} (error {})", error.code())).remedy(remedy).source(error)
}

/// The word for a coding.
pub fn coding_name(coding: Coding) -> &'static str {
    match coding {
        Coding::Raw => "raw",
        Coding::Coded => "coded",
        Coding::Alias(_) => "alias",
    }
}

/// An element type whose slices are bytes on a little-endian machine.
trait HostElement: Element + bytemuck::Pod + Send + Sync {}
impl HostElement for f32 {}
impl HostElement for f16 {}
impl HostElement for bf16 {}

/// Decodes a tensor into the bytes of its own dtype. With [`Checks::All`] every checksum is compared, that of the content too.
///
/// # Errors
/// What is wrong with the container.
pub fn decode_own(container: &Container<'_>, tensor: &Tensor<'_>, checks: Checks) -> Result<Vec<u8>> {
    let tensor = tensor.resolve(container).map_err(damaged)?;
    if tensor.coding() == Coding::Raw {
        return check_raw(&tensor, checks).map(<[u8]>::to_vec);
    }
    let bytes = decode_as(container, &tensor, tensor.dtype(), checks)?;
    if checks == Checks::All && Some(crc32fast::hash(&bytes)) != tensor.content_crc() {
        return Err(damaged(nwc_decode_core::Error::ContentChecksum));
    }
    Ok(bytes)
}

/// Decodes a coded tensor into the bytes of `dtype`, F32, F16 or BF16.
///
/// # Errors
/// What is wrong with the container.
pub fn decode_as(
    container: &Container<'_>,
    tensor: &Tensor<'_>,
    dtype: DType,
    checks: Checks,
) -> Result<Vec<u8>> {
    match dtype {
        DType::F32 => decode_typed::<f32>(container, tensor, checks),
        DType::F16 => decode_typed::<f16>(container, tensor, checks),
        DType::BF16 => decode_typed::<bf16>(container, tensor, checks),
        other => Err(Error::input(format!("weights cannot be decoded to {}", other.name()))),
    }
}

/// The bytes of a raw tensor, its checksum compared by the fastest means.
fn check_raw<'a>(tensor: &Tensor<'a>, checks: Checks) -> Result<&'a [u8]> {
    let bytes = tensor.raw(Checks::SkipChecksums).map_err(damaged)?;
    if checks == Checks::All && Some(crc32fast::hash(bytes)) != tensor.content_crc() {
        return Err(damaged(nwc_decode_core::Error::StreamChecksum));
    }
    Ok(bytes)
}

fn decode_typed<T: HostElement>(
    container: &Container<'_>,
    tensor: &Tensor<'_>,
    checks: Checks,
) -> Result<Vec<u8>> {
    let mut out = vec![T::default(); tensor.elements()];
    decode_into(container, tensor, checks, &mut out)?;
    if cfg!(target_endian = "big") {
        return Ok(bytemuck::cast_slice::<T, u8>(&out)
            .chunks_exact(size_of::<T>())
            .flat_map(|element| element.iter().rev().copied())
            .collect());
    }
    Ok(bytemuck::cast_slice(&out).to_vec())
}

/// Decodes a coded tensor, tiles in parallel.
fn decode_into<T: HostElement>(
    container: &Container<'_>,
    tensor: &Tensor<'_>,
    checks: Checks,
    out: &mut [T],
) -> Result<()> {
    let coded = tensor.coded().map_err(damaged)?;
    let codec = container.codec(coded.codec_index()).map_err(damaged)?;
    let need = codec.required_scratch(codec.precision());
    let (mut words, mut bytes) = (vec![0; need.words], vec![0; need.bytes]);
    let scratch = Scratch { words: &mut words, bytes: &mut bytes };
    let tables = Tables::expand(&codec, codec.precision(), scratch).map_err(damaged)?;
    let [_, rows, columns] = coded.shape();

    // Tiles cover rectangles, whose rows interleave in memory: they are decoded side by side, a few at a time, and copied into place.
    const AT_ONCE: usize = 64;
    for first in (0..coded.tiles()).step_by(AT_ONCE) {
        let last = (first + AT_ONCE).min(coded.tiles());
        let decoded: Vec<_> = (first..last)
            .into_par_iter()
            .map(|number| {
                let tile = coded.tile(number)?;
                if checks == Checks::All {
                    let differs = |(stream, crc): (&[u8], u32)| crc32fast::hash(stream) != crc;
                    if differs(tile.stream()) || tile.row_stream().is_some_and(differs) {
                        return Err(nwc_decode_core::Error::StreamChecksum);
                    }
                }
                let mut part = vec![T::default(); tile.elements()];
                tile.decode(&tables, Checks::SkipChecksums, &mut part)?;
                Ok((tile.region(), part))
            })
            .collect();
        for result in decoded {
            let (region, part) = result.map_err(damaged)?;
            let width = region.input.len();
            for (row, values) in region.out.clone().zip(part.chunks_exact(width)) {
                let start = (region.batch * rows + row) * columns + region.input.start;
                out[start..start + width].copy_from_slice(values);
            }
        }
    }
    Ok(())
}
