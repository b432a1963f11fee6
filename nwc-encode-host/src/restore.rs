//! Decoding containers on the host: tensors to bytes, several tiles at a time.

use std::fs::File;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use memmap2::Mmap;
use nwc_decode_core::{
    Checks, CodedTensor, Coding, Container, DType, Element, Limits, Scratch, Tables, Tensor, TileRegion,
};
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

/// Memory for the tables of a [`Decoder`].
#[derive(Debug, Default)]
pub struct TableMemory(Vec<(Vec<u32>, Vec<u8>)>);

/// A container with its tensors listed and its tables expanded, so that any tensor can be decoded at once.
#[derive(Debug)]
pub struct Decoder<'a> {
    tensors: Vec<Tensor<'a>>,
    tables: Vec<Tables<'a>>,
}

impl<'a> Decoder<'a> {
    /// Lists the tensors and expands the tables into `memory`.
    ///
    /// # Errors
    /// What is wrong with the container.
    pub fn new(container: &Container<'a>, memory: &'a mut TableMemory) -> Result<Self> {
        let codecs: Vec<_> = (0..container.codec_count())
            .map(|index| container.codec(index))
            .collect::<Result<_, _>>()
            .map_err(damaged)?;
        memory.0 = codecs
            .iter()
            .map(|codec| codec.required_scratch(codec.precision()))
            .map(|need| (vec![0; need.words], vec![0; need.bytes]))
            .collect();
        let tables = codecs
            .iter()
            .zip(&mut memory.0)
            .map(|(codec, (words, bytes))| Tables::expand(codec, codec.precision(), Scratch { words, bytes }))
            .collect::<Result<_, _>>()
            .map_err(damaged)?;
        Ok(Self { tensors: container.tensors().collect(), tables })
    }

    /// All tensors, in the order of the directory.
    pub fn tensors(&self) -> &[Tensor<'a>] {
        &self.tensors
    }

    /// The tensor whose data this one has: itself, or what it is an alias of.
    ///
    /// # Errors
    /// If an alias does not match its target.
    pub fn resolve(&self, tensor: &Tensor<'a>) -> Result<Tensor<'a>> {
        let Coding::Alias(target) = tensor.coding() else { return Ok(*tensor) };
        let target = self.tensors.get(target).filter(|target| {
            let same = target.dtype() == tensor.dtype() && target.shape() == tensor.shape();
            same && !matches!(target.coding(), Coding::Alias(_))
        });
        target.copied().ok_or_else(|| damaged(nwc_decode_core::Error::Directory))
    }

    /// A coded tensor and the tables that it needs.
    ///
    /// # Errors
    /// What is wrong with the container.
    pub fn coded(&self, tensor: &Tensor<'a>) -> Result<(CodedTensor<'a>, &Tables<'a>)> {
        let coded = tensor.coded().map_err(damaged)?;
        let tables =
            self.tables.get(coded.codec_index()).ok_or_else(|| damaged(nwc_decode_core::Error::Index))?;
        Ok((coded, tables))
    }

    /// Decodes a tensor into the bytes of its own dtype. With [`Checks::All`] every checksum is compared, that of the content too.
    ///
    /// # Errors
    /// What is wrong with the container.
    pub fn decode(&self, tensor: &Tensor<'a>, checks: Checks) -> Result<Vec<u8>> {
        let tensor = self.resolve(tensor)?;
        let (bytes, differs) = if tensor.coding() == Coding::Raw {
            let bytes = tensor.raw(Checks::SkipChecksums).map_err(damaged)?;
            (bytes.to_vec(), nwc_decode_core::Error::StreamChecksum)
        } else {
            (self.decode_as(&tensor, tensor.dtype(), checks)?, nwc_decode_core::Error::ContentChecksum)
        };
        if checks == Checks::All && Some(crc32fast::hash(&bytes)) != tensor.content_crc() {
            return Err(damaged(differs));
        }
        Ok(bytes)
    }

    /// Decodes a coded tensor into the bytes of `dtype`, F32, F16 or BF16.
    ///
    /// # Errors
    /// What is wrong with the container.
    pub fn decode_as(&self, tensor: &Tensor<'a>, dtype: DType, checks: Checks) -> Result<Vec<u8>> {
        match dtype {
            DType::F32 => self.decode_typed::<f32>(tensor, checks),
            DType::F16 => self.decode_typed::<f16>(tensor, checks),
            DType::BF16 => self.decode_typed::<bf16>(tensor, checks),
            other => Err(Error::input(format!("weights cannot be decoded to {}", other.name()))),
        }
    }

    /// Decodes a coded tensor, tiles in parallel.
    fn decode_typed<T: HostElement>(&self, tensor: &Tensor<'a>, checks: Checks) -> Result<Vec<u8>> {
        let (coded, tables) = self.coded(tensor)?;
        let [_, rows, columns] = coded.shape();
        let size = size_of::<T>();
        // The file may ask for far more than the machine has: that is an error, not the end of the program.
        let mut out = zeros::<u8>(tensor.elements() * size)?;
        // Tiles cover rectangles, whose rows interleave in memory: they are decoded side by side, a few at a time, and copied into place.
        let at_once = 2 * rayon::current_num_threads();
        for first in (0..coded.tiles()).step_by(at_once) {
            let last = (first + at_once).min(coded.tiles());
            let decoded: Vec<Result<(TileRegion, Vec<T>)>> = (first..last)
                .into_par_iter()
                .map(|number| decode_tile(&coded, tables, number, checks))
                .collect();
            for result in decoded {
                let (region, part) = result?;
                let width = region.input.len();
                for (row, weights) in region.out.clone().zip(part.chunks_exact(width)) {
                    let start = ((region.batch * rows + row) * columns + region.input.start) * size;
                    weights.write_le(&mut out[start..start + width * size]);
                }
            }
        }
        Ok(out)
    }
}

/// One tile's weights; its streams' checksums are compared by the fastest means.
fn decode_tile<T: HostElement>(
    coded: &CodedTensor<'_>,
    tables: &Tables<'_>,
    number: usize,
    checks: Checks,
) -> Result<(TileRegion, Vec<T>)> {
    let tile = coded.tile(number).map_err(damaged)?;
    if checks == Checks::All {
        let differs = |(stream, crc): (&[u8], u32)| crc32fast::hash(stream) != crc;
        if differs(tile.stream()) || tile.row_stream().is_some_and(differs) {
            return Err(damaged(nwc_decode_core::Error::StreamChecksum));
        }
    }
    let mut part = zeros::<T>(tile.elements())?;
    tile.decode(tables, Checks::SkipChecksums, &mut part).map_err(damaged)?;
    Ok((tile.region(), part))
}

/// Memory of a size that a file asks for.
fn zeros<T: Default + Clone>(len: usize) -> Result<Vec<T>> {
    let mut memory = Vec::new();
    memory.try_reserve_exact(len).map_err(|error| {
        Error::input(format!("needs {len} elements of memory at once"))
            .source(error)
            .remedy("use a machine with more memory, or the decoder tile by tile")
    })?;
    memory.resize(len, T::default());
    Ok(memory)
}

/// An element type whose slices can be copied as bytes.
trait HostElement: Element + bytemuck::Pod + Send + Sync {}
impl HostElement for f32 {}
impl HostElement for f16 {}
impl HostElement for bf16 {}

trait WriteLe {
    /// Copies the elements to their little-endian bytes.
    fn write_le(&self, out: &mut [u8]);
}

impl<T: HostElement> WriteLe for [T] {
    fn write_le(&self, out: &mut [u8]) {
        out.copy_from_slice(bytemuck::cast_slice(self));
        if cfg!(target_endian = "big") {
            out.chunks_exact_mut(size_of::<T>()).for_each(<[u8]>::reverse);
        }
    }
}
