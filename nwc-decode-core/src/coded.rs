//! A coded tensor: its tiles and their streams (§5), and decoding them into the caller's memory.

use core::ops::Range;

use crate::codec::SideTable;
use crate::directory::CodedEntry;
use crate::tile::{Chunk, SeekPoint, TileDecoder, TileShape};
use crate::{Crc32, DType, Element, Error, RowValue, Tables, num};

const RECORD_BYTES: usize = 8;
const UNIT: usize = 4;
/// Bound of §5.4.
const MAX_ELEMENTS_PER_BYTE: usize = 1 << 15;

/// Which checksums to compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checks {
    /// All of them: no changed byte goes unnoticed.
    All,
    /// None: for callers that have compared them already, or that check by other means. Decoding stays safe, and most damage is
    /// still found by the entropy decoder.
    SkipChecksums,
}

/// The part of a tensor that a tile covers, in the tensor's own orientation [batch, out, in].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TileRegion {
    /// Which matrix of a batched tensor.
    pub batch: usize,
    /// Output rows.
    pub out: Range<usize>,
    /// Input columns.
    pub input: Range<usize>,
}

/// A coded tensor: `batch` matrices of [out, in], cut into tiles.
#[derive(Debug, Clone, Copy)]
pub struct CodedTensor<'a> {
    entry: CodedEntry,
    dtype: DType,
    batch: usize,
    /// Rows and columns as coded: exchanged against [out, in] when the view is transposed.
    rows: usize,
    columns: usize,
    row_blocks: usize,
    column_blocks: usize,
    row_streams: usize,
    records: &'a [u8],
    streams: &'a [u8],
}

/// One tile of a coded tensor.
#[derive(Debug, Clone, Copy)]
pub struct Tile<'a> {
    coded: CodedTensor<'a>,
    shape: TileShape,
    stream: &'a [u8],
    stream_crc: u32,
    row_stream: Option<&'a [u8]>,
    row_stream_crc: u32,
    batch: usize,
    first_row: usize,
    first_column: usize,
}

impl<'a> CodedTensor<'a> {
    /// Checks the geometry (§3.7, §3.9, §5) against the item's size.
    pub(crate) fn new(entry: CodedEntry, dtype: DType, shape: &[u64], item: &'a [u8]) -> Result<Self, Error> {
        let mut dims = shape.iter().map(|&dim| usize::try_from(dim).unwrap_or(usize::MAX));
        let batch = if entry.batched { dims.next().ok_or(Error::Shape)? } else { 1 };
        let out = dims.next().ok_or(Error::Shape)?;
        let input = dims.try_fold(1usize, usize::checked_mul).ok_or(Error::Shape)?;
        let (rows, columns) = if entry.transposed { (input, out) } else { (out, input) };
        if rows >= 1 << 31 || columns >= 1 << 31 {
            return Err(Error::Shape);
        }
        let lanes = num::index(entry.lanes);
        let per_lane = num::index(entry.columns_per_lane);
        let tile_rows = num::index(entry.tile_rows);
        let spare_columns =
            per_lane.checked_sub(1).and_then(|k| k.checked_mul(lanes)).ok_or(Error::Geometry)?;
        if spare_columns >= columns || !(1..=rows).contains(&tile_rows) {
            return Err(Error::Geometry);
        }
        let tile_columns = lanes.checked_mul(per_lane).filter(|&n| n > 0).ok_or(Error::Geometry)?;
        let row_blocks = rows.div_ceil(tile_rows);
        let column_blocks = columns.div_ceil(tile_columns);
        let bands = batch.checked_mul(row_blocks).ok_or(Error::Geometry)?;
        let row_streams = if entry.side & (SideTable::RowScale.mask() | SideTable::RowClass.mask()) == 0 {
            0
        } else {
            bands
        };
        let tiles = bands.checked_mul(column_blocks).ok_or(Error::Geometry)?;
        let count = tiles.checked_add(row_streams).ok_or(Error::Geometry)?;
        let record_bytes = count.checked_mul(RECORD_BYTES).ok_or(Error::Geometry)?;
        let (records, streams) = item.split_at_checked(record_bytes).ok_or(Error::Geometry)?;
        let coded = Self {
            entry,
            dtype,
            batch,
            rows,
            columns,
            row_blocks,
            column_blocks,
            row_streams,
            records,
            streams,
        };
        let (last_end, _) = coded.record(count.checked_sub(1).ok_or(Error::Geometry)?)?;
        // The memory that a caller sets aside for the weights is bounded by the bytes that are really there.
        let most_elements = item.len().saturating_mul(MAX_ELEMENTS_PER_BYTE);
        if last_end == streams.len() && coded.elements() <= most_elements {
            Ok(coded)
        } else {
            Err(Error::Geometry)
        }
    }

    /// End and CRC of a stream (§5.2).
    fn record(&self, stream: usize) -> Result<(usize, u32), Error> {
        let (records, _) = self.records.as_chunks::<RECORD_BYTES>();
        let [a, b, c, d, e, f, g, h] = *records.get(stream).ok_or(Error::Index)?;
        let end = num::index(u32::from_le_bytes([a, b, c, d])).checked_mul(UNIT).ok_or(Error::Geometry)?;
        Ok((end, u32::from_le_bytes([e, f, g, h])))
    }

    fn stream(&self, stream: usize) -> Result<(&'a [u8], u32), Error> {
        let (end, crc) = self.record(stream)?;
        let start = match stream.checked_sub(1) {
            Some(before) => self.record(before)?.0,
            None => 0,
        };
        Ok((self.streams.get(start..end).ok_or(Error::Geometry)?, crc))
    }

    /// Number of the codec that it needs.
    pub fn codec_index(&self) -> usize {
        usize::from(self.entry.codec)
    }

    /// [batch, out, in].
    pub const fn shape(&self) -> [usize; 3] {
        let (out, input) =
            if self.entry.transposed { (self.columns, self.rows) } else { (self.rows, self.columns) };
        [self.batch, out, input]
    }

    /// True when it is coded as its transpose: a tile then covers whole output rows.
    pub const fn is_transposed(&self) -> bool {
        self.entry.transposed
    }

    /// Number of weights.
    pub const fn elements(&self) -> usize {
        self.batch.saturating_mul(self.rows).saturating_mul(self.columns)
    }

    /// Number of bands of rows: tiles of one band lie side by side and share their rows' values. Tile t is of band t / [`column_blocks`](Self::column_blocks).
    pub const fn bands(&self) -> usize {
        self.batch.saturating_mul(self.row_blocks)
    }

    /// Number of tiles side by side.
    pub const fn column_blocks(&self) -> usize {
        self.column_blocks
    }

    /// Number of tiles.
    pub const fn tiles(&self) -> usize {
        self.batch.saturating_mul(self.row_blocks).saturating_mul(self.column_blocks)
    }

    /// Bytes of the row streams.
    pub fn side_bytes(&self) -> usize {
        let last = self.row_streams.checked_sub(1);
        last.and_then(|last| self.record(last).ok()).map_or(0, |(end, _)| end)
    }

    /// Bytes of the table of streams.
    pub const fn record_bytes(&self) -> usize {
        self.records.len()
    }

    /// A tile by its number (§5.1).
    ///
    /// # Errors
    /// [`Error::Index`] if there is none, [`Error::Geometry`] if its stream's record is inconsistent.
    pub fn tile(&self, number: usize) -> Result<Tile<'a>, Error> {
        if number >= self.tiles() {
            return Err(Error::Index);
        }
        let column_block = number.checked_rem(self.column_blocks).ok_or(Error::Index)?;
        let band = number.checked_div(self.column_blocks).ok_or(Error::Index)?;
        let row_block = band.checked_rem(self.row_blocks).ok_or(Error::Index)?;
        let batch = band.checked_div(self.row_blocks).ok_or(Error::Index)?;
        let tile_rows = num::index(self.entry.tile_rows);
        let tile_columns =
            num::index(self.entry.lanes).saturating_mul(num::index(self.entry.columns_per_lane));
        let first_row = row_block.saturating_mul(tile_rows);
        let first_column = column_block.saturating_mul(tile_columns);

        let (stream, stream_crc) = self.stream(self.row_streams.saturating_add(number))?;
        let (row_stream, row_stream_crc) = if self.row_streams == 0 {
            (None, 0)
        } else {
            let (stream, crc) = self.stream(band)?;
            (Some(stream), crc)
        };
        let shape = TileShape {
            entry: self.entry,
            rows: self.rows.saturating_sub(first_row).min(tile_rows),
            columns: self.columns.saturating_sub(first_column).min(tile_columns),
        };
        Ok(Tile {
            coded: *self,
            shape,
            stream,
            stream_crc,
            row_stream,
            row_stream_crc,
            batch,
            first_row,
            first_column,
        })
    }

    /// The tile that holds element (out, in) of a matrix of the batch: for looking up a row of an embedding.
    ///
    /// # Errors
    /// [`Error::Index`] if there is no such element.
    pub fn tile_of(&self, batch: usize, out: usize, input: usize) -> Result<usize, Error> {
        let (row, column) = if self.entry.transposed { (input, out) } else { (out, input) };
        if batch >= self.batch || row >= self.rows || column >= self.columns {
            return Err(Error::Index);
        }
        let tile_columns =
            num::index(self.entry.lanes).saturating_mul(num::index(self.entry.columns_per_lane));
        let row_block = row.checked_div(num::index(self.entry.tile_rows)).ok_or(Error::Index)?;
        let column_block = column.checked_div(tile_columns).ok_or(Error::Index)?;
        let band = batch.saturating_mul(self.row_blocks).saturating_add(row_block);
        Ok(band.saturating_mul(self.column_blocks).saturating_add(column_block))
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
        let [_, rows, columns] = self.shape();
        for number in 0..self.tiles() {
            let tile = self.tile(number)?;
            let region = tile.region();
            let matrix = region.batch.saturating_mul(rows).saturating_mul(columns);
            let first = matrix
                .saturating_add(region.out.start.saturating_mul(columns))
                .saturating_add(region.input.start);
            let part = out.get_mut(first..).ok_or(Error::Output)?;
            tile.decode_strided(tables, checks, part, columns)?;
        }
        if checks == Checks::All && T::DTYPE == self.dtype {
            let mut crc = Crc32::new();
            out.iter().for_each(|weight| weight.update_crc(&mut crc));
            if !crc.is(self.entry.content_crc) {
                return Err(Error::ContentChecksum);
            }
        }
        Ok(())
    }
}

impl<'a> Tile<'a> {
    /// The part of the tensor that this tile covers.
    pub fn region(&self) -> TileRegion {
        let rows = self.first_row..self.first_row.saturating_add(self.shape.rows);
        let columns = self.first_column..self.first_column.saturating_add(self.shape.columns);
        let (out, input) = if self.coded.entry.transposed { (columns, rows) } else { (rows, columns) };
        TileRegion { batch: self.batch, out, input }
    }

    /// Number of rows as coded, which are the region's columns if the tensor is transposed.
    pub const fn rows(&self) -> usize {
        self.shape.rows
    }

    /// Decodes the values of the tile's rows, without comparing the row stream's checksum: for
    /// [`TileDecoder::next_chunk_by`].
    ///
    /// # Errors
    /// [`Error::Output`] if there is not one value a row, or what is wrong with the row stream.
    pub fn row_values(&self, tables: &Tables<'_>, values: &mut [RowValue]) -> Result<(), Error> {
        crate::tile::row_values(&self.shape, tables, self.row_stream, values)
    }

    /// Number of weights.
    pub const fn elements(&self) -> usize {
        self.shape.rows.saturating_mul(self.shape.columns)
    }

    /// The tile's own stream, and the CRC-32 that it must have.
    pub const fn stream(&self) -> (&'a [u8], u32) {
        (self.stream, self.stream_crc)
    }

    /// The stream of its rows' side information, which tiles of the same rows share, and its CRC-32.
    pub fn row_stream(&self) -> Option<(&'a [u8], u32)> {
        self.row_stream.map(|stream| (stream, self.row_stream_crc))
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
        TileDecoder::new(self.shape, *tables, self.stream, self.row_stream)
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
        let (row_stride, column_stride) = if self.coded.entry.transposed { (1, stride) } else { (stride, 1) };
        let mut decoder = self.decoder(tables, checks)?;
        let mut chunk = Chunk::default();
        while decoder.next_chunk(&mut chunk)? {
            chunk.write(out, row_stride, column_stride)?;
        }
        Ok(())
    }
}
