//! Decoding whole containers in every way that the decoder offers.

use half::{bf16, f16};
use nwc_decode_core::{
    Attachment, Checks, Chunk, Codec, CodedTensor, Coding, Container, Crc32, DType, Element, Error, Limits,
    ReadAt, Scratch, Table, Tables, Tensor, Tile, WINDOW_BYTES,
};

use crate::inflate;

/// The types that weights decode to.
pub const FLOATS: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

/// An element whose bits can be set and seen.
pub trait Weight: Element {
    /// All bytes of it are `byte`.
    fn filled(byte: u8) -> Self;
    /// Its bytes, little endian.
    fn append(self, out: &mut Vec<u8>);
}

impl Weight for f32 {
    fn filled(byte: u8) -> Self {
        Self::from_le_bytes([byte; 4])
    }

    fn append(self, out: &mut Vec<u8>) {
        out.extend(self.to_le_bytes());
    }
}

impl Weight for f16 {
    fn filled(byte: u8) -> Self {
        Self::from_le_bytes([byte; 2])
    }

    fn append(self, out: &mut Vec<u8>) {
        out.extend(self.to_le_bytes());
    }
}

impl Weight for bf16 {
    fn filled(byte: u8) -> Self {
        Self::from_le_bytes([byte; 2])
    }

    fn append(self, out: &mut Vec<u8>) {
        out.extend(self.to_le_bytes());
    }
}

/// The bytes of weights.
pub fn to_bytes<T: Weight>(weights: &[T]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(size_of_val(weights));
    weights.iter().for_each(|weight| weight.append(&mut bytes));
    bytes
}

/// Gives the tables of a codec to `then`. The memory that they are expanded into holds `fill` before.
///
/// # Errors
/// Those of [`Tables::expand`] and of `then`.
pub fn with_tables<R>(
    codec: &Codec<'_>,
    lookup_bits: u32,
    fill: u8,
    then: impl FnOnce(&Tables<'_>) -> Result<R, Error>,
) -> Result<R, Error> {
    let need = codec.required_scratch(lookup_bits);
    let mut memory = vec![Table::default(); need.tables];
    let mut words = vec![u32::from_ne_bytes([fill; 4]); need.words];
    let scratch = Scratch { tables: &mut memory, words: &mut words };
    then(&Tables::expand(codec, lookup_bits, scratch)?)
}

/// Decodes a whole tensor into memory that holds `fill` before.
///
/// # Errors
/// Those of the decoder.
pub fn whole<T: Weight>(
    coded: &CodedTensor<'_>,
    tables: &Tables<'_>,
    checks: Checks,
    fill: u8,
) -> Result<Vec<u8>, Error> {
    let mut out = vec![T::filled(fill); coded.elements()];
    coded.decode(tables, checks, &mut out)?;
    Ok(to_bytes(&out))
}

/// Decodes a tensor tile by tile.
///
/// # Errors
/// Those of the decoder.
pub fn by_tiles<T: Weight>(coded: &CodedTensor<'_>, tables: &Tables<'_>) -> Result<Vec<u8>, Error> {
    let [_, rows, columns] = coded.shape();
    let mut out = vec![T::filled(0xFF); coded.elements()];
    // Backwards, since tiles must not depend on one another.
    for number in (0..coded.tiles()).rev() {
        let tile = coded.tile(number)?;
        let mut part = vec![T::filled(0xFF); tile.elements()];
        tile.decode(tables, Checks::All, &mut part)?;
        let region = tile.region();
        for (row, part) in region.out.clone().zip(part.chunks_exact(region.input.len())) {
            let first = (region.batch * rows + row) * columns;
            out[first + region.input.start..first + region.input.end].copy_from_slice(part);
        }
        assert_eq!(coded.tile_of(region.batch, region.out.start, region.input.end - 1), Ok(number));
    }
    Ok(to_bytes(&out))
}

/// All that is meaningful in a chunk.
pub fn meaning(chunk: &Chunk) -> Vec<u32> {
    let mut all =
        [chunk.first_row, chunk.rows, chunk.first_column, chunk.lanes].map(|place| place as u32).to_vec();
    for (latents, row_scale) in chunk.latents.iter().zip(&chunk.row_scale).take(chunk.rows) {
        all.push(row_scale.to_bits());
        all.extend(latents[..chunk.lanes].iter().map(|latent| latent.cast_unsigned()));
    }
    all.extend(chunk.column_scale[..chunk.lanes].iter().map(|scale| scale.to_bits()));
    all
}

/// Starts in the middle of a tile, at about `most` of its chunks, and compares what follows with decoding from the start.
///
/// # Errors
/// Those of the decoder.
pub fn from_seek_points(tile: &Tile<'_>, tables: &Tables<'_>, most: usize) -> Result<(), Error> {
    let mut chunk = Chunk::default();
    let mut decoder = tile.decoder(tables, Checks::All)?;
    let mut points = vec![decoder.seek_point()];
    let mut chunks = Vec::new();
    while decoder.next_chunk(&mut chunk)? {
        chunks.push(meaning(&chunk));
        points.push(decoder.seek_point());
    }
    let end = points.pop().expect("a tile has a chunk");
    assert_eq!(tile.decoder_at(tables, Checks::All, &end).err(), Some(Error::Index), "the end is no place");
    for (first, point) in points.iter().enumerate().step_by(points.len().div_ceil(most)) {
        let mut decoder = tile.decoder_at(tables, Checks::All, point)?;
        assert_eq!(decoder.seek_point(), *point);
        for (number, expected) in chunks.iter().enumerate().skip(first) {
            assert!(decoder.next_chunk(&mut chunk)?);
            assert_eq!(meaning(&chunk), *expected, "chunk {number} from chunk {first}");
        }
        assert!(!decoder.next_chunk(&mut chunk)?);
    }
    Ok(())
}

/// Decodes a coded tensor as `dtype`.
///
/// # Errors
/// Those of the decoder.
pub fn as_dtype(
    container: &Container<'_>,
    tensor: &Tensor<'_>,
    dtype: DType,
    (lookup_bits, checks, fill): (u32, Checks, u8),
) -> Result<Vec<u8>, Error> {
    let coded = tensor.coded()?;
    let codec = container.codec(coded.codec_index())?;
    with_tables(&codec, lookup_bits, fill, |tables| match dtype {
        DType::F32 => whole::<f32>(&coded, tables, checks, fill),
        DType::F16 => whole::<f16>(&coded, tables, checks, fill),
        DType::BF16 => whole::<bf16>(&coded, tables, checks, fill),
        _ => Err(Error::Coding),
    })
}

/// The content of an attachment, checked (§11.1).
///
/// # Errors
/// [`Error::Attachment`].
pub fn attachment(attachment: &Attachment<'_>) -> Result<Vec<u8>, Error> {
    let content = if attachment.zlib {
        let most = 1032 * attachment.stored.len() as u64;
        if attachment.len > most {
            return Err(Error::Attachment);
        }
        inflate::zlib(attachment.stored, attachment.len as usize).ok_or(Error::Attachment)?
    } else {
        attachment.stored.to_vec()
    };
    let right = content.len() as u64 == attachment.len && Crc32::of(&content) == attachment.crc;
    if right { Ok(content) } else { Err(Error::Attachment) }
}

/// Opens a container and decodes all that is in it, every checksum compared: the tensors in their own dtypes, then the attachments.
///
/// # Errors
/// The first that comes.
pub fn everything(file: &[u8], lookup_bits: u32, fill: u8) -> Result<Vec<Vec<u8>>, Error> {
    let container = Container::open(file, &Limits::default())?;
    let mut all = tensors(&container, lookup_bits, fill)?;
    container.seek_points()?;
    for file in container.attachments()? {
        all.push(attachment(&file)?);
    }
    Ok(all)
}

/// Decodes all tensors of a container in memory to their own dtypes, every checksum compared.
///
/// # Errors
/// The first that comes.
pub fn tensors(container: &Container<'_>, lookup_bits: u32, fill: u8) -> Result<Vec<Vec<u8>>, Error> {
    let mut all = Vec::new();
    for tensor in container.tensors() {
        let tensor = tensor.resolve(container)?;
        all.push(if tensor.coding() == Coding::Raw {
            tensor.raw(Checks::All)?.to_vec()
        } else {
            as_dtype(container, &tensor, tensor.dtype(), (lookup_bits, Checks::All, fill))?
        });
    }
    Ok(all)
}

/// A file that is read in parts, and what was asked of it.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// All of its bytes.
    pub file: &'a [u8],
    /// Reads so far.
    pub reads: usize,
    /// Bytes of the longest.
    pub longest: usize,
    /// The read that fails.
    pub fails: Option<usize>,
}

impl<'a> Source<'a> {
    /// One that delivers.
    pub fn new(file: &'a [u8]) -> Self {
        Self { file, reads: 0, longest: 0, fails: None }
    }
}

impl ReadAt for Source<'_> {
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), Error> {
        self.reads += 1;
        self.longest = self.longest.max(buffer.len());
        if self.fails == Some(self.reads) {
            buffer.fill(0xA5); // what comes of a failed read must not matter
            return Err(Error::Source);
        }
        self.file.read_at(offset, buffer)
    }
}

/// As [`tensors`], with only the front of the file in memory, and the smallest window.
///
/// # Errors
/// The first that comes.
pub fn through_a_window(source: &mut Source<'_>, lookup_bits: u32, fill: u8) -> Result<Vec<Vec<u8>>, Error> {
    let file = source.file;
    let front = Container::front_bytes(&file[..file.len().min(Container::HEADER_BYTES)])?;
    let container = Container::open_front(
        file.get(..front).unwrap_or(file),
        u64::try_from(file.len()).ok(),
        &Limits::default(),
    )?;
    let window = &mut vec![fill; WINDOW_BYTES];
    let mut all = Vec::new();
    for tensor in container.tensors() {
        let tensor = tensor.resolve(&container)?;
        if tensor.coding() == Coding::Raw {
            tensor.check_raw(source, window)?;
            let mut bytes = vec![fill; tensor.stored_bytes()];
            for (number, part) in bytes.chunks_mut(100).enumerate() {
                tensor.read_raw(source, 100 * number, part)?;
            }
            all.push(bytes);
            continue;
        }
        all.push(match tensor.dtype() {
            DType::F32 => remote::<f32>(&container, &tensor, source, window, (lookup_bits, fill)),
            DType::F16 => remote::<f16>(&container, &tensor, source, window, (lookup_bits, fill)),
            _ => remote::<bf16>(&container, &tensor, source, window, (lookup_bits, fill)),
        }?);
    }
    Ok(all)
}

fn remote<T: Weight>(
    container: &Container<'_>,
    tensor: &Tensor<'_>,
    source: &mut Source<'_>,
    window: &mut [u8],
    (lookup_bits, fill): (u32, u8),
) -> Result<Vec<u8>, Error> {
    let coded = tensor.remote(source)?;
    let codec = container.codec(coded.geometry().codec_index())?;
    with_tables(&codec, lookup_bits, fill, |tables| {
        let mut out = vec![T::filled(fill); coded.geometry().elements()];
        coded.decode(tables, Checks::All, source, window, &mut out)?;
        Ok(to_bytes(&out))
    })
}

/// Compares a tile that is read through a window with the same in memory, from about `most` places in it.
///
/// # Errors
/// Those of the decoder.
pub fn tile_through_a_window(
    file: &[u8],
    tensor: &Tensor<'_>,
    number: usize,
    tables: &Tables<'_>,
    most: usize,
) -> Result<(), Error> {
    let source = &mut Source::new(file);
    let tile = tensor.coded()?.tile(number)?;
    let remote = tensor.remote(source)?.tile(source, number)?;
    assert_eq!((remote.region(), remote.elements()), (tile.region(), tile.elements()));
    let mut out = [vec![f32::filled(0xFF); tile.elements()], vec![f32::filled(0); tile.elements()]];
    let window = &mut vec![0xFF; WINDOW_BYTES];
    tile.decode(tables, Checks::All, &mut out[0])?;
    remote.decode(tables, Checks::All, source, window, &mut out[1])?;
    assert!(to_bytes(&out[0]) == to_bytes(&out[1]));
    let mut points = Vec::new();
    let mut chunk = Chunk::default();
    let mut decoder = tile.decoder(tables, Checks::SkipChecksums)?;
    while decoder.next_chunk(&mut chunk)? {
        points.push(decoder.seek_point());
    }
    points.pop();
    for point in points.iter().step_by(points.len().div_ceil(most).max(1)) {
        let mut near = tile.decoder_at(tables, Checks::All, point)?;
        let mut far = remote.decoder_at(tables, Checks::All, &mut *source, window, point)?;
        let mut other = Chunk::default();
        while near.next_chunk(&mut chunk)? {
            assert!(far.next_chunk(&mut other)?);
            assert_eq!(meaning(&chunk), meaning(&other));
            assert_eq!(near.seek_point(), far.seek_point());
        }
        assert!(!far.next_chunk(&mut other)?);
    }
    assert!(source.longest <= WINDOW_BYTES);
    Ok(())
}

/// Decodes from every stored seek point of a container and compares with decoding from the start; returns how many there are.
///
/// # Errors
/// Those of the decoder.
pub fn from_stored_points(container: &Container<'_>) -> Result<usize, Error> {
    let mut count = 0;
    for (index, number, point) in container.seek_points()? {
        let coded = container.tensor(index)?.coded()?;
        let codec = container.codec(coded.codec_index())?;
        with_tables(&codec, 8, 0, |tables| {
            let tile = coded.tile(number)?;
            let (mut chunk, mut other) = (Chunk::default(), Chunk::default());
            let mut from_start = tile.decoder(tables, Checks::SkipChecksums)?;
            while from_start.seek_point() != point {
                assert!(
                    from_start.next_chunk(&mut chunk)?,
                    "{index}, {number}: the decoder never comes to {point:?}"
                );
            }
            let mut from_point = tile.decoder_at(tables, Checks::All, &point)?;
            while from_start.next_chunk(&mut chunk)? {
                assert!(from_point.next_chunk(&mut other)?);
                assert_eq!(meaning(&chunk), meaning(&other));
            }
            assert!(!from_point.next_chunk(&mut other)?);
            Ok(())
        })?;
        count += 1;
    }
    Ok(count)
}

/// Decodes each output row of a tensor by itself, which must give the same as decoding it whole.
///
/// # Errors
/// Those of the decoder.
pub fn by_rows(file: &[u8], tensor: &Tensor<'_>, tables: &Tables<'_>, every: usize) -> Result<(), Error> {
    let coded = tensor.coded()?;
    let source = &mut Source::new(file);
    let remote = tensor.remote(source)?;
    let window = &mut vec![0; WINDOW_BYTES];
    let [batch, rows, columns] = coded.shape();
    let mut whole = vec![0f32; coded.elements()];
    coded.decode(tables, Checks::All, &mut whole)?;
    let whole: Vec<&[f32]> = whole.chunks_exact(columns).collect();
    for number in (0..batch * rows).step_by(every) {
        let mut row = vec![f32::filled(0xFF); columns];
        coded.decode_output_row(tables, Checks::All, number / rows, number % rows, &mut row)?;
        assert!(to_bytes(&row) == to_bytes(whole[number]), "row {number}");
        row.fill(f32::filled(0xFF));
        let place = (number / rows, number % rows);
        remote.decode_output_row(tables, Checks::All, source, window, place, &mut row)?;
        assert!(to_bytes(&row) == to_bytes(whole[number]), "row {number} through a window");
    }
    Ok(())
}
