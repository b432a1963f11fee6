//! Decoding tensors whose bytes are not in memory, through a window of fixed size: for weights in external flash.

use core::ops::Range;

use crate::geometry::{Geometry, RECORD_BYTES, TilePlace, TileRegion, record};
use crate::tile::{Chunk, Chunks, MAX_LANES, RowSource, SeekPoint, Walk, write_row, write_tile};
use crate::{Checks, Crc32, Element, Error, Tables};

/// Bytes of the window that decoding a [`RemoteTile`] needs. With fewer a chunk might not find all of its words in it.
pub const WINDOW_BYTES: usize = 4096;
/// The part of the window for the row stream, of which a chunk needs at most 72 bytes.
const ROW_WINDOW_BYTES: usize = 512;
/// Bytes of the initial states of a tile's lanes.
const STATE_BYTES: usize = 4 * MAX_LANES;

// A chunk, and the two words that the end of a stream is recognised by, must fit.
const _: () = assert!(2 * (Walk::CHUNK_ROW_WORDS + 2) <= ROW_WINDOW_BYTES);
const _: () = assert!(2 * (Walk::CHUNK_WORDS + 2) <= WINDOW_BYTES - ROW_WINDOW_BYTES);

/// A file that can be read anywhere, but is not in memory.
pub trait ReadAt {
    /// Fills `buffer` with the bytes from `offset` of the file on.
    ///
    /// # Errors
    /// [`Error::Source`] if the bytes cannot be had.
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), Error>;
}

impl ReadAt for &[u8] {
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), Error> {
        let start = usize::try_from(offset).map_err(|_| Error::Source)?;
        let stop = start.checked_add(buffer.len()).ok_or(Error::Source)?;
        buffer.copy_from_slice(self.get(start..stop).ok_or(Error::Source)?);
        Ok(())
    }
}

impl<S: ReadAt + ?Sized> ReadAt for &mut S {
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), Error> {
        (**self).read_at(offset, buffer)
    }
}

/// Reads bytes `at` bytes further than `offset`.
pub(crate) fn read(
    source: &mut impl ReadAt,
    offset: usize,
    at: usize,
    buffer: &mut [u8],
) -> Result<(), Error> {
    let offset = offset.checked_add(at).and_then(|offset| u64::try_from(offset).ok());
    source.read_at(offset.ok_or(Error::Source)?, buffer)
}

/// Compares the checksum of a range of bytes, counted from `offset`.
pub(crate) fn check(
    source: &mut impl ReadAt,
    offset: usize,
    bytes: Range<usize>,
    crc: u32,
    window: &mut [u8],
) -> Result<(), Error> {
    if window.is_empty() {
        return Err(Error::Scratch);
    }
    let mut actual = Crc32::new();
    let mut at = bytes.start;
    while at < bytes.end {
        let len = bytes.end.saturating_sub(at).min(window.len());
        let part = window.get_mut(..len).ok_or(Error::Scratch)?;
        read(source, offset, at, part)?;
        actual.update(part);
        at = at.saturating_add(len);
    }
    if actual.is(crc) { Ok(()) } else { Err(Error::StreamChecksum) }
}

/// A coded tensor that is not in memory.
#[derive(Debug, Clone, Copy)]
pub struct RemoteTensor {
    geometry: Geometry,
    /// Where its item begins in the file.
    offset: usize,
}

/// A stream that is not in memory.
#[derive(Debug, Clone, Copy)]
struct RemoteStream {
    /// Where its bytes are in the file.
    offset: usize,
    len: usize,
    crc: u32,
}

/// One tile of a coded tensor that is not in memory.
#[derive(Debug, Clone, Copy)]
pub struct RemoteTile {
    place: TilePlace,
    stream: RemoteStream,
    row_stream: Option<RemoteStream>,
}

impl RemoteTensor {
    pub(crate) fn new(geometry: Geometry, offset: usize, source: &mut impl ReadAt) -> Result<Self, Error> {
        let tensor = Self { geometry, offset };
        let (last_end, _) = tensor.record(source, geometry.last_stream())?;
        geometry.check_last_end(last_end)?;
        Ok(tensor)
    }

    /// Shape and tiling.
    pub const fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// End and CRC of a stream (§5.2).
    fn record(&self, source: &mut impl ReadAt, stream: usize) -> Result<(usize, u32), Error> {
        let mut bytes = [0; RECORD_BYTES];
        read(source, self.offset, stream.saturating_mul(RECORD_BYTES), &mut bytes)?;
        record(bytes)
    }

    fn stream(&self, source: &mut impl ReadAt, stream: usize) -> Result<RemoteStream, Error> {
        let (end, crc) = self.record(source, stream)?;
        let start = match stream.checked_sub(1) {
            Some(before) => self.record(source, before)?.0,
            None => 0,
        };
        let range = self.geometry.stream_range(start, end)?;
        let offset = self.offset.saturating_add(self.geometry.record_bytes()).saturating_add(range.start);
        Ok(RemoteStream { offset, len: range.len(), crc })
    }

    /// A tile by its number (§5.1). Reads 8 bytes up to four times.
    ///
    /// # Errors
    /// [`Error::Index`] if there is none, [`Error::Geometry`] if its stream's record is inconsistent, or the source's.
    pub fn tile(&self, source: &mut impl ReadAt, number: usize) -> Result<RemoteTile, Error> {
        let place = self.geometry.tile(number)?;
        let stream = self.stream(source, place.stream)?;
        let row_stream = place.row_stream.map(|stream| self.stream(source, stream)).transpose()?;
        Ok(RemoteTile { place, stream, row_stream })
    }

    /// As [`CodedTensor::decode`](crate::CodedTensor::decode).
    ///
    /// # Errors
    /// As there; [`Error::Scratch`] if the window is shorter than [`WINDOW_BYTES`], or the source's.
    pub fn decode<T: Element>(
        &self,
        tables: &Tables<'_>,
        checks: Checks,
        source: &mut impl ReadAt,
        window: &mut [u8],
        out: &mut [T],
    ) -> Result<(), Error> {
        if out.len() != self.geometry.elements() {
            return Err(Error::Output);
        }
        let [_, _, columns] = self.geometry.shape();
        for number in 0..self.geometry.tiles() {
            let tile = self.tile(source, number)?;
            let part = out.get_mut(self.geometry.position(&tile.region())..).ok_or(Error::Output)?;
            write_tile(&mut tile.decoder(tables, checks, &mut *source, window)?, &tile.place, part, columns)?;
        }
        self.geometry.check_content(checks, out)
    }

    /// As [`CodedTensor::decode_output_row`](crate::CodedTensor::decode_output_row).
    ///
    /// # Errors
    /// As there; [`Error::Scratch`] if the window is shorter than [`WINDOW_BYTES`], or the source's.
    #[allow(clippy::too_many_arguments)] // where from, which row, where to: none of them belongs to another
    pub fn decode_output_row<T: Element>(
        &self,
        tables: &Tables<'_>,
        checks: Checks,
        source: &mut impl ReadAt,
        window: &mut [u8],
        (batch, row): (usize, usize),
        out: &mut [T],
    ) -> Result<(), Error> {
        let tiles = self.geometry.tiles_of_row(batch, row)?;
        let [_, _, columns] = self.geometry.shape();
        if out.len() != columns {
            return Err(Error::Output);
        }
        for number in tiles {
            let tile = self.tile(source, number)?;
            write_row(&mut tile.decoder(tables, checks, &mut *source, window)?, &tile.place, row, out)?;
        }
        Ok(())
    }
}

impl RemoteTile {
    /// The part of the tensor that this tile covers.
    pub fn region(&self) -> TileRegion {
        self.place.region()
    }

    /// Number of weights.
    pub const fn elements(&self) -> usize {
        self.place.elements()
    }

    /// A decoder at the start of the tile. With [`Checks::All`] its streams are read twice: their checksums are compared before anything is decoded
    /// from them. The row stream is read again for every group of columns.
    ///
    /// # Errors
    /// As [`Tile::decoder`](crate::Tile::decoder); [`Error::Scratch`] if the window is shorter than [`WINDOW_BYTES`], or the source's.
    pub fn decoder<'t, 'w, S: ReadAt>(
        &self,
        tables: &Tables<'t>,
        checks: Checks,
        mut source: S,
        window: &'w mut [u8],
    ) -> Result<RemoteDecoder<'t, 'w, S>, Error> {
        if window.len() < WINDOW_BYTES {
            return Err(Error::Scratch);
        }
        if checks == Checks::All {
            for stream in [Some(&self.stream), self.row_stream.as_ref()].into_iter().flatten() {
                check(&mut source, stream.offset, 0..stream.len, stream.crc, window)?;
            }
        }
        let (row_window, window) = window.split_at_mut_checked(ROW_WINDOW_BYTES).ok_or(Error::Scratch)?;
        let mut states = [0; STATE_BYTES];
        let state_bytes = self.place.shape.lanes().saturating_mul(4);
        // A stream that ends within its states is refused where one in memory is.
        let states = states.get_mut(..state_bytes.min(self.stream.len)).ok_or(Error::Geometry)?;
        read(&mut source, self.stream.offset, 0, states)?;
        Ok(RemoteDecoder {
            walk: Walk::new(self.place.shape, *tables, states)?,
            words: Window::new(&self.stream, state_bytes, window),
            row_words: self
                .row_stream
                .map_or_else(|| Window::empty(&mut []), |stream| Window::new(&stream, 0, row_window)),
            source,
        })
    }

    /// A decoder at a seek point of this tile.
    ///
    /// # Errors
    /// As [`decoder`](Self::decoder), and [`Error::Index`] if the point does not lie in this tile.
    pub fn decoder_at<'t, 'w, S: ReadAt>(
        &self,
        tables: &Tables<'t>,
        checks: Checks,
        source: S,
        window: &'w mut [u8],
        point: &SeekPoint,
    ) -> Result<RemoteDecoder<'t, 'w, S>, Error> {
        let mut decoder = self.decoder(tables, checks, source, window)?;
        decoder.walk.seek(point, (decoder.words.end, decoder.row_words.end))?;
        Ok(decoder)
    }

    /// Decodes the tile into `out`, row-major [out, in] of its [`region`](Self::region).
    ///
    /// # Errors
    /// [`Error::Output`] if `out` is not exactly [`elements`](Self::elements) long, or as [`decoder`](Self::decoder).
    pub fn decode<T: Element>(
        &self,
        tables: &Tables<'_>,
        checks: Checks,
        source: &mut impl ReadAt,
        window: &mut [u8],
        out: &mut [T],
    ) -> Result<(), Error> {
        if out.len() != self.elements() {
            return Err(Error::Output);
        }
        let width = self.region().input.len();
        write_tile(&mut self.decoder(tables, checks, source, window)?, &self.place, out, width)
    }
}

/// Decodes one tile that is not in memory, a [`Chunk`] at a time. Its words come through the window, a few kilobytes at once.
#[derive(Debug)]
pub struct RemoteDecoder<'t, 'w, S> {
    walk: Walk<'t>,
    words: Window<'w>,
    row_words: Window<'w>,
    source: S,
}

impl<S: ReadAt> RemoteDecoder<'_, '_, S> {
    /// The place of the next chunk.
    pub fn seek_point(&self) -> SeekPoint {
        self.walk.place().clone()
    }

    /// Decodes the next rows into `chunk`. False when the tile had been decoded to its end before.
    ///
    /// # Errors
    /// What is wrong with the tile's stream, or the source's. Call it no more after an error.
    pub fn next_chunk(&mut self, chunk: &mut Chunk) -> Result<bool, Error> {
        let (read, row_read) = self.walk.read();
        let words = self.words.at(&mut self.source, read, Walk::CHUNK_WORDS.saturating_add(2))?;
        let rows = self.row_words.at(&mut self.source, row_read, Walk::CHUNK_ROW_WORDS.saturating_add(2))?;
        let tables = *self.walk.tables();
        self.walk.next_chunk(&tables, words, RowSource::Words(rows), chunk)
    }
}

impl<S: ReadAt> Chunks for RemoteDecoder<'_, '_, S> {
    fn next(&mut self, chunk: &mut Chunk) -> Result<bool, Error> {
        self.next_chunk(chunk)
    }
}

/// Some words of a stream in memory.
#[derive(Debug)]
struct Window<'w> {
    memory: &'w mut [[u8; 2]],
    /// Where the stream's first word is in the file.
    offset: usize,
    /// Number of words that the stream has.
    end: usize,
    /// Number of the first word in memory, and how many there are.
    first: usize,
    len: usize,
}

impl<'w> Window<'w> {
    /// On the words of a stream after `skip` bytes.
    fn new(stream: &RemoteStream, skip: usize, memory: &'w mut [u8]) -> Self {
        // Streams are multiples of 4 bytes long (§5.2).
        let end = stream.len.saturating_sub(skip) >> 1;
        let offset = stream.offset.saturating_add(skip);
        Self { offset, end, ..Self::empty(memory) }
    }

    /// On no words.
    fn empty(memory: &'w mut [u8]) -> Self {
        Self { memory: memory.as_chunks_mut().0, offset: 0, end: 0, first: 0, len: 0 }
    }

    /// The words from `word` on: at least `need`, or all that are left. `need` must not be more than fit.
    fn at(&mut self, source: &mut impl ReadAt, word: usize, need: usize) -> Result<&[[u8; 2]], Error> {
        let word = word.min(self.end);
        let left = self.end.saturating_sub(word);
        let known = self.first.saturating_add(self.len);
        if word < self.first || word > known || known.saturating_sub(word) < need.min(left) {
            self.fill(source, word, left)?;
        }
        let from = word.saturating_sub(self.first);
        self.memory.get(from..self.len).ok_or(Error::Scratch)
    }

    /// Moves the words from `word` on that are there to the front, and reads those that follow.
    fn fill(&mut self, source: &mut impl ReadAt, word: usize, left: usize) -> Result<(), Error> {
        let from = word.checked_sub(self.first).filter(|&from| from <= self.len).unwrap_or(self.len);
        let kept = self.len.saturating_sub(from);
        for to in 0..kept {
            let word = self.memory.get(from.saturating_add(to)).copied();
            if let (Some(place), Some(word)) = (self.memory.get_mut(to), word) {
                *place = word;
            }
        }
        // If the source fails there is nothing here that could be mistaken for words.
        self.len = 0;
        let len = left.min(self.memory.len());
        let new = self.memory.get_mut(kept..len).ok_or(Error::Scratch)?;
        read(source, self.offset, word.saturating_add(kept).saturating_mul(2), new.as_flattened_mut())?;
        (self.first, self.len) = (word, len);
        Ok(())
    }
}
