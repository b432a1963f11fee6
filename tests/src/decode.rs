//! Decoding whole containers in every way that the decoder offers.

use half::{bf16, f16};
use nwc_decode_core::{
    Attachment, Checks, Chunk, Codec, CodedTensor, Coding, Container, Crc32, DType, Element, Error, Limits,
    Scratch, Tables, Tensor, Tile,
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
    let mut words = vec![u32::from_ne_bytes([fill; 4]); need.words];
    let mut bytes = vec![fill; need.bytes];
    let scratch = Scratch { words: &mut words, bytes: &mut bytes };
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
    let mut all = Vec::new();
    for tensor in container.tensors() {
        let tensor = tensor.resolve(&container)?;
        all.push(if tensor.coding() == Coding::Raw {
            tensor.raw(Checks::All)?.to_vec()
        } else {
            as_dtype(&container, &tensor, tensor.dtype(), (lookup_bits, Checks::All, fill))?
        });
    }
    for file in container.attachments()? {
        all.push(attachment(&file)?);
    }
    Ok(all)
}
