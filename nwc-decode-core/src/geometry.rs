//! How a coded tensor is cut into tiles and streams (§5.1, §5.2), whether its bytes are in memory or not.

use core::ops::Range;

use crate::codec::SideTable;
use crate::directory::CodedEntry;
use crate::tile::TileShape;
use crate::{Checks, Crc32, DType, Element, Error, num};

pub(crate) const RECORD_BYTES: usize = 8;
const UNIT: usize = 4;
/// Bound of §5.4.
const MAX_ELEMENTS_PER_BYTE: usize = 1 << 15;

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

/// A coded tensor's shape and tiling: `batch` matrices of [out, in], cut into tiles.
#[derive(Debug, Clone, Copy)]
pub struct Geometry {
    entry: CodedEntry,
    dtype: DType,
    batch: usize,
    /// Rows and columns as coded: exchanged against [out, in] when the view is transposed.
    rows: usize,
    columns: usize,
    row_blocks: usize,
    column_blocks: usize,
    row_streams: usize,
    /// Streams of rows and of tiles.
    streams: usize,
    /// Bytes of the streams, without the table of records before them.
    stream_bytes: usize,
}

/// Where a tile is, and the numbers of its streams.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TilePlace {
    pub(crate) shape: TileShape,
    pub(crate) stream: usize,
    pub(crate) row_stream: Option<usize>,
    batch: usize,
    first_row: usize,
    first_column: usize,
}

impl Geometry {
    /// Checks what can be told from the directory (§3.7, §3.9, §5.1, §5.4). The records are checked where they are read.
    pub(crate) fn new(
        entry: CodedEntry,
        dtype: DType,
        shape: &[u64],
        item_bytes: usize,
    ) -> Result<Self, Error> {
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
        let has_row_streams = entry.side & (SideTable::RowScale.mask() | SideTable::RowClass.mask()) != 0;
        let row_streams = if has_row_streams { bands } else { 0 };
        let tiles = bands.checked_mul(column_blocks).ok_or(Error::Geometry)?;
        let streams = tiles.checked_add(row_streams).ok_or(Error::Geometry)?;
        let record_bytes = streams.checked_mul(RECORD_BYTES).ok_or(Error::Geometry)?;
        let stream_bytes = item_bytes.checked_sub(record_bytes).ok_or(Error::Geometry)?;
        let geometry = Self {
            entry,
            dtype,
            batch,
            rows,
            columns,
            row_blocks,
            column_blocks,
            row_streams,
            streams,
            stream_bytes,
        };
        // The memory that a caller sets aside for the weights is bounded by the bytes that are really there.
        let most_elements = item_bytes.saturating_mul(MAX_ELEMENTS_PER_BYTE);
        if geometry.elements() <= most_elements { Ok(geometry) } else { Err(Error::Geometry) }
    }

    /// Number of bands of rows.
    pub const fn bands(&self) -> usize {
        self.batch.saturating_mul(self.row_blocks)
    }

    /// Number of tiles side by side.
    pub const fn column_blocks(&self) -> usize {
        self.column_blocks
    }

    /// Number of the codec that the tensor needs.
    pub fn codec_index(&self) -> usize {
        usize::from(self.entry.codec)
    }

    /// The most lanes that a tile has, which is the number of columns of a group (§8.1).
    pub const fn lanes(&self) -> usize {
        num::index(self.entry.lanes)
    }

    /// [batch, out, in].
    pub const fn shape(&self) -> [usize; 3] {
        let (out, input) =
            if self.entry.transposed { (self.columns, self.rows) } else { (self.rows, self.columns) };
        [self.batch, out, input]
    }

    /// True when the tensor is coded as its transpose: a tile then covers whole output rows, unless they are very long.
    pub const fn is_transposed(&self) -> bool {
        self.entry.transposed
    }

    /// Whether indices are weights, whatever the codec's synthesis.
    pub const fn is_direct(&self) -> bool {
        self.entry.direct
    }

    /// Number of weights.
    pub const fn elements(&self) -> usize {
        self.batch.saturating_mul(self.rows).saturating_mul(self.columns)
    }

    /// Number of tiles.
    pub const fn tiles(&self) -> usize {
        self.batch.saturating_mul(self.row_blocks).saturating_mul(self.column_blocks)
    }

    /// Bytes of the table of streams, with which the item begins.
    pub const fn record_bytes(&self) -> usize {
        self.streams.saturating_mul(RECORD_BYTES)
    }

    /// The tile that holds element (out, in) of a matrix of the batch.
    ///
    /// # Errors
    /// [`Error::Index`] if there is no such element.
    pub fn tile_of(&self, batch: usize, out: usize, input: usize) -> Result<usize, Error> {
        let (row, column) = if self.entry.transposed { (input, out) } else { (out, input) };
        if batch >= self.batch || row >= self.rows || column >= self.columns {
            return Err(Error::Index);
        }
        let row_block = row.checked_div(num::index(self.entry.tile_rows)).ok_or(Error::Index)?;
        let column_block = column.checked_div(self.tile_columns()).ok_or(Error::Index)?;
        let band = batch.saturating_mul(self.row_blocks).saturating_add(row_block);
        Ok(band.saturating_mul(self.column_blocks).saturating_add(column_block))
    }

    const fn tile_columns(&self) -> usize {
        num::index(self.entry.lanes).saturating_mul(num::index(self.entry.columns_per_lane))
    }

    /// The tiles that hold parts of an output row: the first, how far apart they are, and how many.
    pub(crate) fn tiles_of_row(
        &self,
        batch: usize,
        out: usize,
    ) -> Result<impl Iterator<Item = usize> + use<>, Error> {
        let first = self.tile_of(batch, out, 0)?;
        let (apart, count) = if self.entry.transposed {
            (self.column_blocks, self.row_blocks)
        } else {
            (1, self.column_blocks)
        };
        Ok((0..count).map(move |i| first.saturating_add(i.saturating_mul(apart))))
    }

    /// A tile by its number (§5.1).
    pub(crate) fn tile(&self, number: usize) -> Result<TilePlace, Error> {
        if number >= self.tiles() {
            return Err(Error::Index);
        }
        let column_block = number.checked_rem(self.column_blocks).ok_or(Error::Index)?;
        let band = number.checked_div(self.column_blocks).ok_or(Error::Index)?;
        let row_block = band.checked_rem(self.row_blocks).ok_or(Error::Index)?;
        let batch = band.checked_div(self.row_blocks).ok_or(Error::Index)?;
        let tile_rows = num::index(self.entry.tile_rows);
        let first_row = row_block.saturating_mul(tile_rows);
        let first_column = column_block.saturating_mul(self.tile_columns());
        let shape = TileShape {
            entry: self.entry,
            rows: self.rows.saturating_sub(first_row).min(tile_rows),
            columns: self.columns.saturating_sub(first_column).min(self.tile_columns()),
        };
        Ok(TilePlace {
            shape,
            stream: self.row_streams.saturating_add(number),
            row_stream: (self.row_streams > 0).then_some(band),
            batch,
            first_row,
            first_column,
        })
    }

    /// The last row stream, if there is one.
    pub(crate) const fn last_row_stream(&self) -> Option<usize> {
        self.row_streams.checked_sub(1)
    }

    /// The last stream of all; there is at least one.
    pub(crate) const fn last_stream(&self) -> usize {
        self.streams.saturating_sub(1)
    }

    /// Whether the last stream ends where the item does (§5.2).
    pub(crate) const fn check_last_end(&self, end: usize) -> Result<(), Error> {
        if end == self.stream_bytes { Ok(()) } else { Err(Error::Geometry) }
    }

    /// A stream's place among the streams' bytes, from its own end and that of the stream before.
    pub(crate) const fn stream_range(&self, start: usize, end: usize) -> Result<Range<usize>, Error> {
        if start <= end && end <= self.stream_bytes { Ok(start..end) } else { Err(Error::Geometry) }
    }

    /// Where the first element of a region comes to lie in the whole tensor.
    pub(crate) const fn position(&self, region: &TileRegion) -> usize {
        let [_, rows, columns] = self.shape();
        let row = region.batch.saturating_mul(rows).saturating_add(region.out.start);
        row.saturating_mul(columns).saturating_add(region.input.start)
    }

    /// Compares the content checksum, if all checks are wanted and `weights`, the whole tensor, are in its own dtype.
    pub(crate) fn check_content<T: Element>(&self, checks: Checks, weights: &[T]) -> Result<(), Error> {
        if checks == Checks::All && T::DTYPE == self.dtype {
            let mut crc = Crc32::new();
            weights.iter().for_each(|weight| weight.update_crc(&mut crc));
            if !crc.is(self.entry.content_crc) {
                return Err(Error::ContentChecksum);
            }
        }
        Ok(())
    }
}

/// End and CRC of a stream (§5.2).
pub(crate) fn record(bytes: [u8; RECORD_BYTES]) -> Result<(usize, u32), Error> {
    let [a, b, c, d, e, f, g, h] = bytes;
    let end = num::index(u32::from_le_bytes([a, b, c, d])).checked_mul(UNIT).ok_or(Error::Geometry)?;
    Ok((end, u32::from_le_bytes([e, f, g, h])))
}

impl TilePlace {
    /// The part of the tensor that the tile covers.
    pub(crate) const fn region(&self) -> TileRegion {
        let rows = self.first_row..self.first_row.saturating_add(self.shape.rows);
        let columns = self.first_column..self.first_column.saturating_add(self.shape.columns);
        let (out, input) = if self.is_transposed() { (columns, rows) } else { (rows, columns) };
        TileRegion { batch: self.batch, out, input }
    }

    pub(crate) const fn is_transposed(&self) -> bool {
        self.shape.entry.transposed
    }

    /// Number of weights.
    pub(crate) const fn elements(&self) -> usize {
        self.shape.rows.saturating_mul(self.shape.columns)
    }
}
