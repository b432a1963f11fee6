//! A coded tensor in memory: its tiles and their streams (§5), and decoding them into the caller's memory.

use crate::directory::CodedEntry;
use crate::geometry::{Geometry, RECORD_BYTES, TilePlace, TileRegion, record};
use crate::tile::{SeekPoint, TileDecoder, write_row, write_tile};
use crate::{Crc32, DType, Element, Error, RowValue, Tables};

/// Which checksums to compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checks {
    /// All of them: no changed byte goes unnoticed.
    All,
    /// None: for callers that have compared them already, or that check by other means. Decoding stays safe, and most damage is
    /// still found by the entropy decoder.
    SkipChecksums,
}

/// A coded tensor: `batch` matrices of [out, in], cut into tiles.
#[derive(Debug, Clone, Copy)]
pub struct CodedTensor<'a> {
    geometry: Geometry,
    records: &'a [u8],
    streams: &'a [u8],
}

/// One tile of a coded tensor.
#[derive(Debug, Clone, Copy)]
pub struct Tile<'a> {
    place: TilePlace,
    stream: (&'a [u8], u32),
    row_stream: Option<(&'a [u8], u32)>,
}

impl<'a> CodedTensor<'a> {
    /// Checks the geometry (§3.7, §3.9, §5) against the item.
    pub(crate) fn new(entry: CodedEntry, dtype: DType, shape: &[u64], item: &'a [u8]) -> Result<Self, Error> {
        let geometry = Geometry::new(entry, dtype, shape, item.len())?;
        let (records, streams) = item.split_at_checked(geometry.record_bytes()).ok_or(Error::Geometry)?;
        let coded = Self { geometry, records, streams };
        let (last_end, _) = coded.record(geometry.last_stream())?;
        geometry.check_last_end(last_end)?;
        Ok(coded)
    }

    /// End and CRC of a stream (§5.2).
    fn record(&self, stream: usize) -> Result<(usize, u32), Error> {
        let (records, _) = self.records.as_chunks::<RECORD_BYTES>();
        record(*records.get(stream).ok_or(Error::Index)?)
    }

    fn stream(&self, stream: usize) -> Result<(&'a [u8], u32), Error> {
        let (end, crc) = self.record(stream)?;
        let start = match stream.checked_sub(1) {
            Some(before) => self.record(before)?.0,
            None => 0,
        };
        let range = self.geometry.stream_range(start, end)?;
        Ok((self.streams.get(range).ok_or(Error::Geometry)?, crc))
    }

    /// Shape and tiling.
    pub const fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Number of the codec that it needs.
    pub fn codec_index(&self) -> usize {
        self.geometry.codec_index()
    }

    /// [batch, out, in].
    pub const fn shape(&self) -> [usize; 3] {
        self.geometry.shape()
    }

    /// As [`Geometry::is_transposed`].
    pub const fn is_transposed(&self) -> bool {
        self.geometry.is_transposed()
    }

    /// As [`Geometry::is_direct`].
    pub const fn is_direct(&self) -> bool {
        self.geometry.is_direct()
    }

    /// Number of weights.
    pub const fn elements(&self) -> usize {
        self.geometry.elements()
    }

    /// Number of bands of rows: tiles of one band lie side by side and share their rows' values. Tile t is of band t / [`column_blocks`](Self::column_blocks).
    pub const fn bands(&self) -> usize {
        self.geometry.bands()
    }

    /// Number of tiles side by side.
    pub const fn column_blocks(&self) -> usize {
        self.geometry.column_blocks()
    }

    /// Number of tiles.
    pub const fn tiles(&self) -> usize {
        self.geometry.tiles()
    }

    /// Bytes of the row streams.
    pub fn side_bytes(&self) -> usize {
        let last = self.geometry.last_row_stream();
        last.and_then(|last| self.record(last).ok()).map_or(0, |(end, _)| end)
    }

    /// Bytes of the table of streams.
    pub const fn record_bytes(&self) -> usize {
        self.geometry.record_bytes()
    }

    /// A tile by its number (§5.1).
    ///
    /// # Errors
    /// [`Error::Index`] if there is none, [`Error::Geometry`] if its stream's record is inconsistent.
    pub fn tile(&self, number: usize) -> Result<Tile<'a>, Error> {
        let place = self.geometry.tile(number)?;
        let stream = self.stream(place.stream)?;
        let row_stream = place.row_stream.map(|stream| self.stream(stream)).transpose()?;
        Ok(Tile { place, stream, row_stream })
    }

    /// As [`Geometry::tile_of`].
    ///
    /// # Errors
    /// [`Error::Index`] if there is no such element.
    pub fn tile_of(&self, batch: usize, out: usize, input: usize) -> Result<usize, Error> {
        self.geometry.tile_of(batch, out, input)
    }

    /// Decodes the whole tensor into `out`, row-major in the tensor's own dimensions. If `T` is the tensor's own dtype the content
    /// checksum is compared as well.
    ///
    /// # Errors
    /// [`Error::Output`] if `out` is not exactly [`elements`](Self::elements) long, or what is wrong with the streams. After an error `out` holds
    /// nothing of use.
    pub fn decode<T: Element>(
        &self,
        tables: &Tables<'_>,
        checks: Checks,
        out: &mut [T],
    ) -> Result<(), Error> {
        if out.len() != self.elements() {
            return Err(Error::Output);
        }
        let [_, _, columns] = self.shape();
        for number in 0..self.tiles() {
            let tile = self.tile(number)?;
            let part = out.get_mut(self.geometry.position(&tile.region())..).ok_or(Error::Output)?;
            tile.decode_strided(tables, checks, part, columns)?;
        }
        self.geometry.check_content(checks, out)
    }

    /// Decodes row `row` of [out, in] of one matrix of the batch. Only the tiles that hold parts of it are touched, and each only until the row is
    /// complete: of a transposed tensor (an embedding) one tile, unless the rows are longer than tiles are high; of another all that lie side by side.
    ///
    /// # Errors
    /// [`Error::Index`] if there is no such row, [`Error::Output`] if `out` is not as long as a row, or what is wrong with the streams.
    pub fn decode_output_row<T: Element>(
        &self,
        tables: &Tables<'_>,
        checks: Checks,
        batch: usize,
        row: usize,
        out: &mut [T],
    ) -> Result<(), Error> {
        let tiles = self.geometry.tiles_of_row(batch, row)?;
        let [_, _, columns] = self.shape();
        if out.len() != columns {
            return Err(Error::Output);
        }
        for number in tiles {
            let tile = self.tile(number)?;
            write_row(&mut tile.decoder(tables, checks)?, &tile.place, row, out)?;
        }
        Ok(())
    }
}

impl<'a> Tile<'a> {
    /// The part of the tensor that this tile covers.
    pub fn region(&self) -> TileRegion {
        self.place.region()
    }

    /// Number of rows as coded, which are the region's columns if the tensor is transposed.
    pub const fn rows(&self) -> usize {
        self.place.shape.rows
    }

    /// Decodes the values of the tile's rows, without comparing the row stream's checksum: for
    /// [`TileDecoder::next_chunk_by`].
    ///
    /// # Errors
    /// [`Error::Output`] if there is not one value a row, or what is wrong with the row stream.
    pub fn row_values(&self, tables: &Tables<'_>, values: &mut [RowValue]) -> Result<(), Error> {
        let stream = self.row_stream.map(|(stream, _)| stream);
        crate::tile::row_values(&self.place.shape, tables, stream, values)
    }

    /// Number of weights.
    pub const fn elements(&self) -> usize {
        self.place.elements()
    }

    /// The tile's own stream, and the CRC-32 that it must have.
    pub const fn stream(&self) -> (&'a [u8], u32) {
        self.stream
    }

    /// The stream of its rows' side information, which tiles of the same rows share, and its CRC-32.
    pub const fn row_stream(&self) -> Option<(&'a [u8], u32)> {
        self.row_stream
    }

    /// A decoder at the start of the tile.
    ///
    /// # Errors
    /// [`Error::StreamChecksum`], or what is wrong with the start of its streams; [`Error::Coding`] if the tables lack a kind that
    /// the tensor needs. Another codec's tables give other weights: only the content checksum can tell.
    pub fn decoder<'t>(&self, tables: &Tables<'t>, checks: Checks) -> Result<TileDecoder<'t>, Error>
    where
        'a: 't,
    {
        if checks == Checks::All {
            let (stream, crc) = self.stream();
            let rows_differ = self.row_stream().is_some_and(|(stream, crc)| !Crc32::fits(stream, crc));
            if !Crc32::fits(stream, crc) || rows_differ {
                return Err(Error::StreamChecksum);
            }
        }
        TileDecoder::new(self.place.shape, *tables, self.stream.0, self.row_stream.map(|(stream, _)| stream))
    }

    /// A decoder at a seek point of this tile.
    ///
    /// # Errors
    /// As [`decoder`](Self::decoder), and [`Error::Index`] if the point does not lie in this tile.
    pub fn decoder_at<'t>(
        &self,
        tables: &Tables<'t>,
        checks: Checks,
        point: &SeekPoint,
    ) -> Result<TileDecoder<'t>, Error>
    where
        'a: 't,
    {
        let mut decoder = self.decoder(tables, checks)?;
        decoder.seek(point)?;
        Ok(decoder)
    }

    /// Decodes the tile into `out`, row-major [out, in] of its [`region`](Self::region).
    ///
    /// # Errors
    /// [`Error::Output`] if `out` is not exactly [`elements`](Self::elements) long, or what is wrong with its streams.
    pub fn decode<T: Element>(
        &self,
        tables: &Tables<'_>,
        checks: Checks,
        out: &mut [T],
    ) -> Result<(), Error> {
        if out.len() != self.elements() {
            return Err(Error::Output);
        }
        let width = self.region().input.len();
        self.decode_strided(tables, checks, out, width)
    }

    /// Decodes the tile so that element (o, i) of its region comes to `out[o * stride + i]`.
    ///
    /// # Errors
    /// [`Error::Output`] if `out` is too short, or what is wrong with its streams.
    pub fn decode_strided<T: Element>(
        &self,
        tables: &Tables<'_>,
        checks: Checks,
        out: &mut [T],
        stride: usize,
    ) -> Result<(), Error> {
        write_tile(&mut self.decoder(tables, checks)?, &self.place, out, stride)
    }
}
