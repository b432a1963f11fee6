//! Decoding containers on the host: tensors to bytes, on all cores, with the processor's vector instructions.

use std::fs::File;
use std::io::Read;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use flate2::read::ZlibDecoder;
use half::{bf16, f16};
use memmap2::Mmap;
use nwc_decode_core::{
    Attachment, Checks, Chunk, CodedTensor, Coding, Container, DType, Limits, RowValue, Scratch, Table,
    Tables, Tensor, Tile,
};
use rayon::prelude::*;

use crate::simd::{Level, SimdElement, SimdEngine};
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
pub struct TableMemory<'a>(Vec<(Vec<Table<'a>>, Vec<u32>)>);

/// A container with its tensors listed and its tables expanded, so that any tensor can be decoded at once.
#[derive(Debug)]
pub struct Decoder<'a> {
    tensors: Vec<Tensor<'a>>,
    codecs: Vec<ExpandedCodec<'a>>,
}

/// A codec's tables, for the plain decoder and for the vector engine.
#[derive(Debug)]
pub struct ExpandedCodec<'a> {
    tables: Tables<'a>,
    engine: SimdEngine<'a>,
}

impl<'a> Decoder<'a> {
    /// Lists the tensors and expands the tables into `memory`, for the best instructions that the processor has.
    ///
    /// # Errors
    /// What is wrong with the container.
    pub fn new(container: &Container<'a>, memory: &'a mut TableMemory<'a>) -> Result<Self> {
        Self::with_level(container, memory, Level::best())
    }

    /// As [`new`](Self::new), with instructions of the caller's choice. The weights are the same.
    ///
    /// # Errors
    /// What is wrong with the container.
    pub fn with_level(
        container: &Container<'a>,
        memory: &'a mut TableMemory<'a>,
        level: Level,
    ) -> Result<Self> {
        let codecs: Vec<_> = (0..container.codec_count())
            .map(|index| container.codec(index))
            .collect::<Result<_, _>>()
            .map_err(damaged)?;
        memory.0 = codecs
            .iter()
            .map(|codec| codec.required_scratch(codec.precision()))
            .map(|need| (vec![Table::default(); need.tables], vec![0; need.words]))
            .collect();
        let codecs = codecs
            .iter()
            .zip(&mut memory.0)
            .map(|(codec, (tables, words))| {
                let tables = Tables::expand(codec, codec.precision(), Scratch { tables, words })?;
                Ok(ExpandedCodec { tables, engine: SimdEngine::new(&tables, level) })
            })
            .collect::<Result<_, _>>()
            .map_err(damaged)?;
        Ok(Self { tensors: container.tensors().collect(), codecs })
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

    /// A coded tensor, with what decodes its tiles.
    ///
    /// # Errors
    /// What is wrong with the container.
    pub fn coded(&self, tensor: &Tensor<'a>) -> Result<Restorer<'a, '_>> {
        let coded = tensor.coded().map_err(damaged)?;
        let codec = self.codecs.get(coded.codec_index());
        Ok(Restorer { coded, codec: codec.ok_or_else(|| damaged(nwc_decode_core::Error::Index))? })
    }

    /// Decodes a tensor into the bytes of its own dtype. With [`Checks::All`] every checksum is compared, that of the content too.
    ///
    /// # Errors
    /// What is wrong with the container.
    pub fn decode(&self, tensor: &Tensor<'a>, checks: Checks) -> Result<Vec<u8>> {
        let tensor = self.resolve(tensor)?;
        let bytes = if tensor.coding() == Coding::Raw {
            tensor.raw(Checks::SkipChecksums).map_err(damaged)?.to_vec()
        } else {
            self.decode_as(&tensor, tensor.dtype(), checks)?
        };
        if checks == Checks::All {
            check_content(&tensor, &bytes)?;
        }
        Ok(bytes)
    }

    /// Decodes tensors a few at a time, so that small ones keep all cores busy too, and hands each result to `then`, in order: `decode` says what
    /// to do with a tensor.
    ///
    /// # Errors
    /// Those of `then`.
    pub fn in_batches<T: Send>(
        &self,
        indices: impl IntoIterator<Item = usize>,
        decode: impl Fn(usize, &Tensor<'a>) -> T + Sync,
        mut then: impl FnMut(usize, T) -> Result<()>,
    ) -> Result<()> {
        /// Elements that are decoded at once, unless one tensor has more.
        const BATCH: usize = 8 << 20;
        let mut indices = indices.into_iter().peekable();
        while indices.peek().is_some() {
            let mut batch = Vec::new();
            let mut elements = 0;
            while let Some(index) = indices
                .next_if(|&index| batch.is_empty() || elements + self.tensors[index].elements() <= BATCH)
            {
                elements += self.tensors[index].elements();
                batch.push(index);
            }
            let decoded: Vec<T> =
                batch.par_iter().map(|&index| decode(index, &self.tensors[index])).collect();
            for (index, result) in batch.into_iter().zip(decoded) {
                then(index, result)?;
            }
        }
        Ok(())
    }

    /// Decodes a coded tensor into the bytes of `dtype`, F32, F16 or BF16.
    ///
    /// # Errors
    /// What is wrong with the container.
    pub fn decode_as(&self, tensor: &Tensor<'a>, dtype: DType, checks: Checks) -> Result<Vec<u8>> {
        let restorer = self.coded(tensor)?;
        // The file may ask for far more than the machine has: that is an error, not the end of the program.
        let mut out = zeros(tensor.elements() * dtype.size())?;
        match dtype {
            DType::F32 => restorer.decode::<f32>(checks, &mut out),
            DType::F16 => restorer.decode::<f16>(checks, &mut out),
            DType::BF16 => restorer.decode::<bf16>(checks, &mut out),
            other => return Err(Error::input(format!("weights cannot be decoded to {}", other.name()))),
        }
        .map_err(damaged)?;
        Ok(out)
    }
}

/// Decodes the tiles of one coded tensor.
#[derive(Debug, Clone, Copy)]
pub struct Restorer<'a, 'd> {
    coded: CodedTensor<'a>,
    codec: &'d ExpandedCodec<'a>,
}

impl<'a> Restorer<'a, '_> {
    /// The tensor.
    pub fn tensor(&self) -> &CodedTensor<'a> {
        &self.coded
    }

    /// The plain decoder's tables.
    pub fn tables(&self) -> &Tables<'a> {
        &self.codec.tables
    }

    /// Decodes all tiles, in parallel, into `out`: row-major in the tensor's own dimensions, little endian.
    ///
    /// # Errors
    /// What is wrong with the streams; of several tiles, the first one's.
    ///
    /// # Panics
    /// If `out` does not have the size of the tensor.
    pub fn decode<T: HostElement>(
        &self,
        checks: Checks,
        out: &mut [u8],
    ) -> Result<(), nwc_decode_core::Error> {
        assert_eq!(out.len(), self.coded.elements() * size_of::<T>());
        let canvas = Canvas::new(out);
        let [_, rows, columns] = self.coded.shape();
        let (row_stride, column_stride) =
            if self.coded.is_transposed() { (1, columns) } else { (columns, 1) };
        let level = self.codec.engine.level();
        self.each_chunk(checks, |tile, chunk| {
            let region = tile.region();
            let origin = (region.batch * rows + region.out.start) * columns + region.input.start;
            level.write(chunk, row_stride, column_stride, |start, weights: &[T]| {
                // SAFETY: tiles do not overlap (docs/bitstream.md §5.1), and each is decoded by one thread.
                unsafe { canvas.put(origin + start, weights) };
                Ok(())
            })
        })
    }

    /// Decodes all symbols, in parallel, and does nothing with them: what the entropy stage alone costs.
    ///
    /// # Errors
    /// What is wrong with the streams.
    pub fn decode_symbols(&self) -> Result<(), nwc_decode_core::Error> {
        self.each_chunk(Checks::SkipChecksums, |_, chunk| {
            std::hint::black_box(chunk);
            Ok(())
        })
    }

    /// Decodes all tiles, in parallel, and hands each chunk to `work`.
    fn each_chunk(
        &self,
        checks: Checks,
        work: impl Fn(&Tile<'a>, &Chunk) -> Result<(), nwc_decode_core::Error> + Sync,
    ) -> Result<(), nwc_decode_core::Error> {
        let coded = &self.coded;
        // Tiles side by side share the values of their rows: whoever comes first decodes them.
        let bands: Vec<OnceLock<Result<Vec<RowValue>, nwc_decode_core::Error>>> =
            (0..coded.bands()).map(|_| OnceLock::new()).collect();
        let decode_tile = |number: usize| {
            let tile = coded.tile(number)?;
            let rows = bands[number / coded.column_blocks()].get_or_init(|| self.row_values(&tile, checks));
            if checks == Checks::All {
                check_stream(tile.stream())?;
            }
            if *rows == Err(nwc_decode_core::Error::StreamChecksum) {
                return Err(nwc_decode_core::Error::StreamChecksum);
            }
            let mut decoder = tile.decoder(&self.codec.tables, Checks::SkipChecksums)?;
            let mut chunk = Chunk::default();
            while match rows {
                Ok(rows) => decoder.next_chunk_by(&self.codec.engine, rows, &mut chunk)?,
                // Which of a row stream's and a tile's faults is found first is for the plain decoder to say.
                Err(_) => decoder.next_chunk(&mut chunk)?,
            } {
                work(&tile, &chunk)?;
            }
            Ok(())
        };
        let results: Vec<_> = (0..coded.tiles()).into_par_iter().map(decode_tile).collect();
        results.into_iter().collect()
    }

    /// The values of a tile's rows.
    fn row_values(&self, tile: &Tile<'a>, checks: Checks) -> Result<Vec<RowValue>, nwc_decode_core::Error> {
        if checks == Checks::All {
            tile.row_stream().map_or(Ok(()), check_stream)?;
        }
        let mut values = vec![RowValue::default(); tile.rows()];
        tile.row_values(&self.codec.tables, &mut values)?;
        Ok(values)
    }
}

/// The content of an attachment, checked.
pub(crate) fn inflate(attachment: &Attachment<'_>) -> Result<Vec<u8>> {
    let bad = || damaged(nwc_decode_core::Error::Attachment);
    let content = if attachment.zlib {
        let mut decoder = ZlibDecoder::new(attachment.stored);
        let mut content = Vec::new();
        decoder.by_ref().take(attachment.len + 1).read_to_end(&mut content).map_err(|_| bad())?;
        if decoder.total_in() != attachment.stored.len() as u64 {
            return Err(bad());
        }
        content
    } else {
        attachment.stored.to_vec()
    };
    if content.len() as u64 != attachment.len || crc32fast::hash(&content) != attachment.crc {
        return Err(bad());
    }
    Ok(content)
}

/// Compares a tensor's bytes, of its own dtype, with the checksum of its content.
pub(crate) fn check_content(tensor: &Tensor<'_>, bytes: &[u8]) -> Result<()> {
    if Some(crc(bytes)) == tensor.content_crc() {
        return Ok(());
    }
    Err(damaged(if tensor.coding() == Coding::Raw {
        nwc_decode_core::Error::StreamChecksum
    } else {
        nwc_decode_core::Error::ContentChecksum
    }))
}

/// Compares a stream with its CRC-32, by the fastest means.
fn check_stream((stream, expected): (&[u8], u32)) -> Result<(), nwc_decode_core::Error> {
    if crc32fast::hash(stream) == expected { Ok(()) } else { Err(nwc_decode_core::Error::StreamChecksum) }
}

/// The CRC-32 of bytes, on all cores.
fn crc(bytes: &[u8]) -> u32 {
    const PART: usize = 1 << 20;
    let hash = |part: &[u8]| {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(part);
        hasher
    };
    let parts: Vec<_> = bytes.par_chunks(PART).map(hash).collect();
    let mut whole = crc32fast::Hasher::new();
    parts.iter().for_each(|part| whole.combine(part));
    whole.finalize()
}

/// Memory that several threads write to, each in places of its own.
struct Canvas<'o> {
    start: *mut u8,
    len: usize,
    borrow: PhantomData<&'o mut [u8]>,
}

// SAFETY: the memory is borrowed for as long as the canvas is there; who writes to it at once is up to the callers of `put`.
unsafe impl Sync for Canvas<'_> {}

impl<'o> Canvas<'o> {
    fn new(out: &'o mut [u8]) -> Self {
        Self { start: out.as_mut_ptr(), len: out.len(), borrow: PhantomData }
    }

    /// Writes weights from position `first` on.
    ///
    /// # Safety
    /// Nobody else writes to these positions at the same time.
    ///
    /// # Panics
    /// If they do not all lie inside.
    unsafe fn put<T: HostElement>(&self, first: usize, weights: &[T]) {
        let bytes: &[u8] = bytemuck::cast_slice(weights);
        let at = first * size_of::<T>();
        assert!(at + bytes.len() <= self.len);
        // SAFETY: the place lies inside, and is the caller's alone.
        let place = unsafe { std::slice::from_raw_parts_mut(self.start.add(at), bytes.len()) };
        // Nearly all runs are 32 halves of a row, or 16 of a column: a call is too much for so little.
        if !(copy_exactly::<64>(place, bytes) || copy_exactly::<32>(place, bytes)) {
            place.copy_from_slice(bytes);
        }
        if cfg!(target_endian = "big") {
            place.chunks_exact_mut(size_of::<T>()).for_each(<[u8]>::reverse);
        }
    }
}

/// Copies `N` bytes, if there are so many, without a call.
#[inline(always)]
fn copy_exactly<const N: usize>(to: &mut [u8], from: &[u8]) -> bool {
    match (<&mut [u8; N]>::try_from(to), <&[u8; N]>::try_from(from)) {
        (Ok(to), Ok(from)) => {
            *to = *from;
            true
        }
        _ => false,
    }
}

/// Memory of a size that a file asks for.
pub(crate) fn zeros(len: usize) -> Result<Vec<u8>> {
    let mut memory = Vec::new();
    memory.try_reserve_exact(len).map_err(|error| {
        Error::input(format!("needs {len} bytes of memory at once"))
            .source(error)
            .remedy("use a machine with more memory, or the decoder tile by tile")
    })?;
    memory.resize(len, 0);
    Ok(memory)
}

/// An element type whose slices can be copied as bytes.
pub trait HostElement: SimdElement + bytemuck::Pod + Send + Sync {}
impl HostElement for f32 {}
impl HostElement for f16 {}
impl HostElement for bf16 {}
