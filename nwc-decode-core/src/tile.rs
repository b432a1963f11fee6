//! Decoding a tile: lanes walk down columns, a row of lanes at a time (§8).

use crate::codec::{SideTable, Synthesis};
use crate::directory::CodedEntry;
use crate::rans::{LOWER_BOUND, RowPlace, RowReader, Words, start};
use crate::{Element, Error, Tables, num, scale};

/// The most lanes a tile can have.
pub const MAX_LANES: usize = 32;

/// Rows that [`TileDecoder::next_chunk`] decodes at a time; synthesis mixes no further than this.
pub const CHUNK_ROWS: usize = 16;

/// Up to [`CHUNK_ROWS`] rows of up to [`MAX_LANES`] neighbouring columns, not yet scaled.
#[derive(Debug, Clone)]
pub struct Chunk {
    /// Weights in units of their step, `[row][lane]`; only the first `rows` and `lanes` are meaningful.
    pub latents: [[i32; MAX_LANES]; CHUNK_ROWS],
    /// Step of each row.
    pub row_scale: [f32; CHUNK_ROWS],
    /// Factor of each column.
    pub column_scale: [f32; MAX_LANES],
    /// First row, from the tile's first.
    pub first_row: usize,
    /// Number of rows.
    pub rows: usize,
    /// First column, from the tile's first.
    pub first_column: usize,
    /// Number of columns.
    pub lanes: usize,
    fraction_bits: u32,
}

impl Default for Chunk {
    fn default() -> Self {
        Self {
            latents: [[0; MAX_LANES]; CHUNK_ROWS],
            row_scale: [0.0; CHUNK_ROWS],
            column_scale: [0.0; MAX_LANES],
            first_row: 0,
            rows: 0,
            first_column: 0,
            lanes: 0,
            fraction_bits: 0,
        }
    }
}

impl Chunk {
    /// Writes the weights to `out`, where row r and column c of the tile have position `r * row_stride + c * column_stride`.
    ///
    /// # Errors
    /// [`Error::Output`] if a position lies outside `out`.
    #[inline]
    pub fn write<T: Element>(
        &self,
        out: &mut [T],
        row_stride: usize,
        column_stride: usize,
    ) -> Result<(), Error> {
        // 2^-fraction_bits is exact, so taking it into the row's factor would round only where the product does anyway;
        // it is applied to the latent, which is exact too.
        let unit = num::float(1i32 << (self.fraction_bits & 15)).recip();
        let rows = self.latents.iter().zip(&self.row_scale).take(self.rows);
        for (r, (latents, &row_scale)) in rows.enumerate() {
            let weights =
                latents.iter().zip(&self.column_scale).take(self.lanes).map(|(&latent, &column_scale)| {
                    let step = saturate(row_scale * column_scale);
                    T::from_f32(saturate(num::float(latent) * unit * step))
                });
            let first = self
                .first_row
                .wrapping_add(r)
                .wrapping_mul(row_stride)
                .wrapping_add(self.first_column.wrapping_mul(column_stride));
            if column_stride == 1 {
                let stop = first.checked_add(self.lanes).ok_or(Error::Output)?;
                let row = out.get_mut(first..stop).ok_or(Error::Output)?;
                row.iter_mut().zip(weights).for_each(|(place, weight)| *place = weight);
            } else {
                for (lane, weight) in weights.enumerate() {
                    let at = first.wrapping_add(lane.wrapping_mul(column_stride));
                    *out.get_mut(at).ok_or(Error::Output)? = weight;
                }
            }
        }
        Ok(())
    }
}

/// What would be infinite becomes the largest finite number (§10.3). The inputs are finite, so NaN cannot occur.
#[inline(always)]
fn saturate(x: f32) -> f32 {
    x.clamp(f32::MIN, f32::MAX)
}

/// Marks a weight whose symbol was the escape; no index is as large.
const ESCAPED: i32 = i32::MIN;

/// The index of a value, and the trellis state after it (§8.4).
#[inline(always)]
fn step(next_states: &[u8], state: &mut u8, value: i32) -> Result<i32, Error> {
    let branch = (u32::from(*state) << 1) | (value.cast_unsigned() & 1);
    let index = value.wrapping_mul(2).wrapping_add(i32::from(*state & 1));
    *state = *next_states.get(num::index(branch)).ok_or(Error::Codec)?;
    Ok(index)
}

/// Everything that decoding a tile needs to know about its tensor and place.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TileSource<'a> {
    pub(crate) entry: CodedEntry,
    pub(crate) stream: &'a [u8],
    pub(crate) row_stream: Option<&'a [u8]>,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
}

/// A place inside a tile from which decoding can go on: the decoder's whole state between two chunks.
///
/// Made by [`TileDecoder::seek_point`], used by [`Tile::decoder_at`](crate::Tile::decoder_at). Only valid for the tile
/// that it was made from; with another, decoding ends in an error or gives other weights, but does nothing worse.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeekPoint {
    group: usize,
    row: usize,
    read: usize,
    rows: RowPlace,
    lanes: Lanes,
}

impl SeekPoint {
    /// First row of the next chunk, from the tile's first.
    pub const fn row(&self) -> usize {
        self.row
    }

    /// Group of columns of the next chunk.
    pub const fn group(&self) -> usize {
        self.group
    }
}

/// The state of every lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Lanes {
    rans: [u32; MAX_LANES],
    trellis: [u8; MAX_LANES],
    /// Class base + class of the lane's current column.
    class: [i32; MAX_LANES],
    scale: [i32; MAX_LANES],
}

/// Decodes one tile, a [`Chunk`] at a time. All of its state is in this struct.
#[derive(Debug, Clone)]
pub struct TileDecoder<'a> {
    tables: Tables<'a>,
    source: TileSource<'a>,
    words: Words<'a>,
    row_reader: RowReader<'a>,
    lanes: Lanes,
    group: usize,
    row: usize,
    /// Lanes of the current group.
    active: usize,
    column_scale: [f32; MAX_LANES],
    /// First table of each lane's class in rows of class `row_class`.
    table: [u32; MAX_LANES],
    row_class: i32,
}

impl<'a> TileDecoder<'a> {
    pub(crate) fn new(source: TileSource<'a>, tables: Tables<'a>) -> Result<Self, Error> {
        let entry = source.entry;
        let table = |kind: SideTable| {
            if entry.side & kind.mask() == 0 {
                Ok(None)
            } else {
                tables.side(kind).map(Some).ok_or(Error::Coding)
            }
        };
        let row_reader =
            RowReader::new(source.row_stream, table(SideTable::RowScale)?, table(SideTable::RowClass)?)?;
        let mut lanes = Lanes {
            rans: [LOWER_BOUND; MAX_LANES],
            trellis: [0; MAX_LANES],
            class: [0; MAX_LANES],
            scale: [0; MAX_LANES],
        };
        let count = source.columns.min(num::index(entry.lanes));
        let words = start(source.stream, lanes.rans.get_mut(..count).ok_or(Error::Geometry)?)?;
        let mut decoder = Self {
            tables,
            source,
            words,
            row_reader,
            lanes,
            group: 0,
            row: 0,
            active: 0,
            column_scale: [1.0; MAX_LANES],
            table: [0; MAX_LANES],
            row_class: 0,
        };
        decoder.start_group()?;
        Ok(decoder)
    }

    /// The place of the next chunk.
    pub const fn seek_point(&self) -> SeekPoint {
        SeekPoint {
            group: self.group,
            row: self.row,
            read: self.words.position(),
            rows: self.row_reader.place(),
            lanes: self.lanes,
        }
    }

    /// Goes to a place that [`seek_point`](Self::seek_point) gave.
    pub(crate) fn seek(&mut self, point: &SeekPoint) -> Result<(), Error> {
        let legal = point
            .group
            .checked_mul(num::index(self.source.entry.lanes))
            .is_some_and(|first| first < self.source.columns)
            && point.row < self.source.rows
            && point.row.is_multiple_of(CHUNK_ROWS);
        if !legal {
            return Err(Error::Index);
        }
        self.words.seek(point.read)?;
        self.row_reader.resume(point.rows)?;
        (self.group, self.row, self.lanes) = (point.group, point.row, point.lanes);
        self.active = self.group_lanes();
        self.set_tables(0);
        self.set_column_scale()
    }

    /// Number of columns of the current group (§8.1).
    fn group_lanes(&self) -> usize {
        let lanes = num::index(self.source.entry.lanes);
        self.source.columns.saturating_sub(self.group.saturating_mul(lanes)).min(lanes)
    }

    /// Reads the side information of the columns of the current group (§8.2, steps 1 and 2).
    fn start_group(&mut self) -> Result<(), Error> {
        self.active = self.group_lanes();
        let entry = &self.source.entry;
        for (kind, base) in
            [(SideTable::ColumnScale, 0), (SideTable::ColumnClass, i32::from(entry.class_base))]
        {
            let values = match kind {
                SideTable::ColumnScale => &mut self.lanes.scale,
                _ => &mut self.lanes.class,
            };
            if entry.side & kind.mask() == 0 {
                values.fill(base);
                continue;
            }
            let table = self.tables.side(kind).ok_or(Error::Coding)?;
            for (x, value) in self.lanes.rans.iter_mut().zip(values).take(self.active) {
                let (_, decoded) = self.tables.decode(table, x)?;
                *x = self.words.refill(*x);
                *value = base.wrapping_add(decoded);
            }
            self.words.check()?;
        }
        self.set_tables(0);
        self.set_column_scale()
    }

    /// Looks up the tables of the lanes' classes in rows of this class (§8.3).
    fn set_tables(&mut self, row_class: i32) {
        self.row_class = row_class;
        let last_class = self.tables.classes().wrapping_sub(1);
        let unions = self.tables.union_mask().wrapping_add(1);
        for (table, class) in self.table.iter_mut().zip(&self.lanes.class) {
            *table = class.wrapping_add(row_class).clamp(0, last_class).cast_unsigned().wrapping_mul(unions);
        }
    }

    fn set_column_scale(&mut self) -> Result<(), Error> {
        if self.source.entry.side & SideTable::ColumnScale.mask() == 0 {
            return Ok(()); // they stay 1
        }
        let shift = 9u32.saturating_sub(self.source.entry.column_shift);
        for (value, out) in self.lanes.scale.iter().zip(&mut self.column_scale).take(self.active) {
            *out = scale(value << (shift & 15))?;
        }
        Ok(())
    }

    /// Decodes the next rows into `chunk`. False when the tile had been decoded to its end before.
    ///
    /// # Errors
    /// What is wrong with the tile's stream. Call it no more after an error.
    pub fn next_chunk(&mut self, chunk: &mut Chunk) -> Result<bool, Error> {
        if self.active == 0 {
            return Ok(false);
        }
        let entry = self.source.entry;
        let rows = self.source.rows.saturating_sub(self.row).min(CHUNK_ROWS);
        let shift = 9u32.saturating_sub(entry.row_shift);
        let trellis = !self.tables.next_states().is_empty();
        for (latents, row_scale) in chunk.latents.iter_mut().zip(&mut chunk.row_scale).take(rows) {
            let (scale_value, class) = self.row_reader.next(&self.tables)?;
            *row_scale = scale(entry.step.wrapping_add(scale_value << (shift & 15)))?;
            if class != self.row_class {
                self.set_tables(class);
            }
            if trellis {
                self.decode_row::<true>(latents)?;
            } else {
                self.decode_row::<false>(latents)?;
            }
        }
        chunk.rows = rows;
        chunk.lanes = self.active;
        chunk.first_row = self.row;
        chunk.first_column = self.group.wrapping_mul(num::index(entry.lanes));
        chunk.column_scale = self.column_scale;
        let synthesis = Synthesis::Identity;
        synthesis.apply(&mut chunk.latents, rows, self.active);
        chunk.fraction_bits = synthesis.fraction_bits();

        self.row = self.row.wrapping_add(rows);
        if self.row == self.source.rows {
            self.end_group()?;
        }
        Ok(true)
    }

    /// Step 3 of §8.2 for one row: symbols and refills, then escapes; indices and trellis states as §8.4 says.
    #[inline]
    fn decode_row<const TRELLIS: bool>(&mut self, out: &mut [i32; MAX_LANES]) -> Result<(), Error> {
        let tables = self.tables;
        let union_mask = tables.union_mask();
        let next_states = tables.next_states();
        let mut words = self.words;
        let (Some(rans), Some(trellis), Some(table), Some(out)) = (
            self.lanes.rans.get_mut(..self.active),
            self.lanes.trellis.get_mut(..self.active),
            self.table.get(..self.active),
            out.get_mut(..self.active),
        ) else {
            return Err(Error::Geometry); // `active` is at most MAX_LANES
        };
        let mut escapes = false;
        for (((x, state), &table), out) in
            rans.iter_mut().zip(trellis.iter_mut()).zip(table).zip(out.iter_mut())
        {
            let table = table.wrapping_add(u32::from(*state) & union_mask);
            let (symbol, value) = tables.decode(num::index(table), x)?;
            *x = words.refill(*x);
            if symbol == 0 {
                escapes = true;
                *out = ESCAPED;
            } else {
                *out = if TRELLIS { step(next_states, state, value)? } else { value };
            }
        }
        if escapes {
            for (state, out) in trellis.iter_mut().zip(out).filter(|(_, out)| **out == ESCAPED) {
                let value = num::sign_extend_16(words.take());
                *out = if TRELLIS { step(next_states, state, value)? } else { value };
            }
        }
        self.words = words;
        words.check()
    }

    fn end_group(&mut self) -> Result<(), Error> {
        self.row_reader.finish()?;
        self.row = 0;
        self.group = self.group.wrapping_add(1);
        self.active = self.group_lanes();
        if self.active > 0 {
            let tables = (self.row_table(SideTable::RowScale), self.row_table(SideTable::RowClass));
            self.row_reader = RowReader::new(self.source.row_stream, tables.0, tables.1)?;
            return self.start_group();
        }
        if self.lanes.rans.iter().any(|&x| x != LOWER_BOUND) {
            return Err(Error::FinalState);
        }
        self.words.finish()
    }

    fn row_table(&self, kind: SideTable) -> Option<usize> {
        if self.source.entry.side & kind.mask() == 0 { None } else { self.tables.side(kind) }
    }
}
