//! Decoding a tile: lanes walk down columns, a row of lanes at a time (§8).

use crate::codec::SideTable;
use crate::directory::CodedEntry;
use crate::engine::{RowEngine, Rows};
use crate::geometry::TilePlace;
use crate::rans::{LOWER_BOUND, RowPlace, RowTables, RowValue, Words, start};
use crate::{Element, Error, Synthesis, Tables, num, scale};

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
    /// Binary places of the latents after the point.
    pub fraction_bits: u32,
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
        let unit = self.unit();
        let columns = self.column_scale.get(..self.lanes).ok_or(Error::Output)?;
        let small_columns = columns.iter().all(|scale| scale.abs() <= SMALL);
        let rows = self.latents.iter().zip(&self.row_scale).take(self.rows);
        for (r, (latents, &row_scale)) in rows.enumerate() {
            let small = small_columns && row_scale.abs() <= SMALL;
            let weights = latents.iter().zip(columns).map(|(&latent, &column_scale)| {
                if small {
                    T::from_f32(num::float(latent) * unit * (row_scale * column_scale))
                } else {
                    weight(latent, unit, row_scale, column_scale)
                }
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

    /// The weight of a latent of 1. A power of two, applied to the latent, which stays exact.
    #[inline(always)]
    fn unit(&self) -> f32 {
        num::float(1i32 << (self.fraction_bits & 15)).recip()
    }

    /// Writes the chunk's part of a line, a column of the tile if it is transposed, else a row, to where it belongs in the whole line. Returns how many
    /// weights that is.
    fn write_line<T: Element>(&self, line: usize, transposed: bool, out: &mut [T]) -> Result<usize, Error> {
        let (first, count) =
            if transposed { (self.first_column, self.lanes) } else { (self.first_row, self.rows) };
        let Some(at) = line.checked_sub(first).filter(|&at| at < count) else { return Ok(0) };
        let (start, len) =
            if transposed { (self.first_row, self.rows) } else { (self.first_column, self.lanes) };
        let stop = start.checked_add(len).ok_or(Error::Output)?;
        let unit = self.unit();
        for (i, place) in out.get_mut(start..stop).ok_or(Error::Output)?.iter_mut().enumerate() {
            let (row, lane) = if transposed { (i, at) } else { (at, i) };
            let latent = self.latents.get(row).and_then(|latents| latents.get(lane));
            let (Some(&latent), Some(&row_scale), Some(&column_scale)) =
                (latent, self.row_scale.get(row), self.column_scale.get(lane))
            else {
                return Err(Error::Output);
            };
            *place = weight(latent, unit, row_scale, column_scale);
        }
        Ok(len)
    }
}

/// §10.3 and §10.4.
#[inline(always)]
fn weight<T: Element>(latent: i32, unit: f32, row_scale: f32, column_scale: f32) -> T {
    let step = saturate(row_scale * column_scale);
    T::from_f32(saturate(num::float(latent) * unit * step))
}

/// Gives the chunks of a tile, in memory or not.
pub(crate) trait Chunks {
    /// The next chunk; false when there is none.
    fn next(&mut self, chunk: &mut Chunk) -> Result<bool, Error>;
}

/// Decodes a tile so that element (o, i) of its region comes to `out[o * stride + i]`.
#[inline]
pub(crate) fn write_tile<T: Element>(
    chunks: &mut impl Chunks,
    place: &TilePlace,
    out: &mut [T],
    stride: usize,
) -> Result<(), Error> {
    let (row_stride, column_stride) = if place.is_transposed() { (1, stride) } else { (stride, 1) };
    let mut chunk = Chunk::default();
    while chunks.next(&mut chunk)? {
        chunk.write(out, row_stride, column_stride)?;
    }
    Ok(())
}

/// Decodes a tile until its part of an output row is complete, which comes to its place in `out`, the whole row.
pub(crate) fn write_row<T: Element>(
    chunks: &mut impl Chunks,
    place: &TilePlace,
    row: usize,
    out: &mut [T],
) -> Result<(), Error> {
    let region = place.region();
    let line = row.checked_sub(region.out.start).ok_or(Error::Index)?;
    let part = out.get_mut(region.input).ok_or(Error::Output)?;
    let mut left = part.len();
    let mut chunk = Chunk::default();
    while left > 0 && chunks.next(&mut chunk)? {
        left = left.saturating_sub(chunk.write_line(line, place.is_transposed(), part)?);
    }
    Ok(())
}

/// Neither the product of two scales up to this, nor that of the result and a latent, can be infinite: latents are 32 bits wide.
const SMALL: f32 = 1e14;

/// What would be infinite becomes the largest finite number (§10.3). The inputs are finite, so NaN cannot occur.
#[inline(always)]
fn saturate(x: f32) -> f32 {
    x.clamp(f32::MIN, f32::MAX)
}

/// The part of a tensor that a tile is, without its streams.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TileShape {
    pub(crate) entry: CodedEntry,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
}

impl TileShape {
    /// Number of lanes that the tile's stream has (§5.3).
    pub(crate) fn lanes(&self) -> usize {
        self.columns.min(num::index(self.entry.lanes))
    }

    /// Number of columns of a group (§8.1).
    pub(crate) fn group_lanes(&self, group: usize) -> usize {
        let lanes = num::index(self.entry.lanes);
        self.columns.saturating_sub(group.saturating_mul(lanes)).min(lanes)
    }
}

/// A place inside a tile from which decoding can go on: the decoder's whole state between two chunks.
///
/// Made by [`TileDecoder::seek_point`] or read from a container ([`Container::seek_points`](crate::Container::seek_points)), used by
/// [`Tile::decoder_at`](crate::Tile::decoder_at). Only valid for the tile that it was made from; with another, decoding ends in an error or gives
/// other weights, but does nothing worse. What the methods give is what other decoders, on a GPU for one, start from; entries of lanes that the
/// tile or the group does not have mean nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeekPoint {
    pub(crate) group: usize,
    pub(crate) row: usize,
    /// Words of the tile's stream that were read.
    pub(crate) read: usize,
    pub(crate) rows: RowPlace,
    pub(crate) lanes: Lanes,
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

    /// Words of the tile's stream that were read, those of the lanes' first states not counted.
    pub const fn words(&self) -> usize {
        self.read
    }

    /// Words of the row stream that were read, the two of its first state counted; 0 at row 0. Only known to decoders that read it:
    /// a point that [`TileDecoder::next_chunk_by`] came to has 0, and is good for that method only.
    pub const fn row_words(&self) -> usize {
        self.rows.read
    }

    /// rANS state of the row stream; 0 at row 0.
    pub const fn row_state(&self) -> u32 {
        self.rows.state
    }

    /// rANS state of each lane.
    pub const fn rans(&self) -> &[u32; MAX_LANES] {
        &self.lanes.rans
    }

    /// Trellis state of each lane.
    pub const fn trellis(&self) -> &[u8; MAX_LANES] {
        &self.lanes.trellis
    }

    /// Class base + class value of each lane's column; 0 at row 0, where they are yet to be read.
    pub const fn column_class(&self) -> &[i32; MAX_LANES] {
        &self.lanes.class
    }

    /// Scale value of each lane's column; 0 at row 0, where they are yet to be read.
    pub const fn column_scale(&self) -> &[i32; MAX_LANES] {
        &self.lanes.scale
    }
}

/// The state of every lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lanes {
    pub(crate) rans: [u32; MAX_LANES],
    pub(crate) trellis: [u8; MAX_LANES],
    /// Class base + class of the lane's current column; 0 between two groups.
    pub(crate) class: [i32; MAX_LANES],
    /// Scale value of the lane's current column; 0 between two groups.
    pub(crate) scale: [i32; MAX_LANES],
}

impl Default for Lanes {
    fn default() -> Self {
        Self {
            rans: [LOWER_BOUND; MAX_LANES],
            trellis: [0; MAX_LANES],
            class: [0; MAX_LANES],
            scale: [0; MAX_LANES],
        }
    }
}

/// Where the values of rows come from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum RowSource<'r> {
    /// The words of the row stream from the current place on; none if the tensor has no row side information.
    Words(&'r [[u8; 2]]),
    /// Values that were decoded before, of all rows of the tile.
    Values(&'r [RowValue]),
}

/// Decodes a tile whose words somebody else provides: a slice in memory, or a window on a slower source.
#[derive(Debug, Clone)]
pub(crate) struct Walk<'t> {
    tables: Tables<'t>,
    row_tables: RowTables,
    shape: TileShape,
    place: SeekPoint,
    /// Lanes of the current group.
    active: usize,
    column_scale: [f32; MAX_LANES],
}

impl<'t> Walk<'t> {
    /// The most words of the tile's stream that a chunk reads: side information of the columns twice, and for each weight a refill and an escape.
    pub(crate) const CHUNK_WORDS: usize = 2 * MAX_LANES + 2 * CHUNK_ROWS * MAX_LANES;
    /// The most words of the row stream that a chunk reads: the state, and two values a row.
    pub(crate) const CHUNK_ROW_WORDS: usize = 2 + 2 * CHUNK_ROWS;

    /// At the start of a tile. `states` begins with the initial states of its lanes.
    #[inline(always)]
    pub(crate) fn new(shape: TileShape, tables: Tables<'t>, states: &[u8]) -> Result<Self, Error> {
        let row_tables = RowTables::new(&shape.entry, &tables)?;
        let mut rans = [LOWER_BOUND; MAX_LANES];
        start(states, rans.get_mut(..shape.lanes()).ok_or(Error::Geometry)?)?;
        // In one piece after all that can fail, so that it is built where it stays.
        Ok(Self {
            tables,
            row_tables,
            shape,
            place: SeekPoint {
                group: 0,
                row: 0,
                read: 0,
                rows: RowPlace::default(),
                lanes: Lanes { rans, trellis: [0; MAX_LANES], class: [0; MAX_LANES], scale: [0; MAX_LANES] },
            },
            active: shape.lanes(),
            column_scale: [1.0; MAX_LANES],
        })
    }

    /// The place of the next chunk.
    pub(crate) const fn place(&self) -> &SeekPoint {
        &self.place
    }

    /// How many words of the tile's stream and of the row stream were read before the next chunk.
    pub(crate) const fn read(&self) -> (usize, usize) {
        (self.place.read, self.place.rows.read)
    }

    pub(crate) const fn tables(&self) -> &Tables<'t> {
        &self.tables
    }

    /// Goes to a place. `words` says how many words the tile's stream and the row stream have.
    pub(crate) fn seek(&mut self, point: &SeekPoint, words: (usize, usize)) -> Result<(), Error> {
        // A trellis state of another codec must not leave this one's trellis, whatever the engine.
        let states = self.tables.next_states().len() >> 1;
        let legal = self.shape.group_lanes(point.group) > 0
            && point.row < self.shape.rows
            && point.row.is_multiple_of(CHUNK_ROWS)
            && point.read <= words.0
            && point.rows.read <= words.1
            && (states == 0 || point.lanes.trellis.iter().all(|&state| usize::from(state) < states));
        if !legal {
            return Err(Error::Index);
        }
        self.place = point.clone();
        self.active = self.group_lanes();
        self.set_column_scale()
    }

    fn group_lanes(&self) -> usize {
        self.shape.group_lanes(self.place.group)
    }

    /// Reads the side information of the columns of the current group (§8.2, steps 1 and 2).
    fn start_group(&mut self, words: &mut Words<'_>) -> Result<(), Error> {
        let entry = &self.shape.entry;
        let lanes = &mut self.place.lanes;
        for (kind, base, values) in [
            (SideTable::ColumnScale, 0, &mut lanes.scale),
            (SideTable::ColumnClass, i32::from(entry.class_base), &mut lanes.class),
        ] {
            values.fill(base);
            let Some(table) = entry.table(kind, &self.tables)? else { continue };
            for (x, value) in lanes.rans.iter_mut().zip(values).take(self.active) {
                let decoded = self.tables.decode(table, x)?;
                *x = words.refill(*x)?;
                *value = base.wrapping_add(decoded);
            }
        }
        self.set_column_scale()
    }

    fn set_column_scale(&mut self) -> Result<(), Error> {
        if self.shape.entry.side & SideTable::ColumnScale.mask() == 0 {
            return Ok(()); // they stay 1
        }
        let shift = 9u32.saturating_sub(self.shape.entry.column_shift);
        for (value, out) in self.place.lanes.scale.iter().zip(&mut self.column_scale).take(self.active) {
            *out = scale(value << (shift & 15))?;
        }
        Ok(())
    }

    /// Decodes the next rows into `chunk`. False when the tile had been decoded to its end before.
    ///
    /// `words` are those of the tile's stream from [`read`](Self::read) on, at least [`CHUNK_WORDS`](Self::CHUNK_WORDS) and two more, or
    /// all that are left; so with the row stream's.
    pub(crate) fn next_chunk(
        &mut self,
        engine: &impl RowEngine,
        words: &[[u8; 2]],
        row_source: RowSource<'_>,
        chunk: &mut Chunk,
    ) -> Result<bool, Error> {
        if self.active == 0 {
            return Ok(false);
        }
        let mut words = Words::new(words);
        if self.place.row == 0 {
            self.start_group(&mut words)?;
        }
        let rows = self.shape.rows.saturating_sub(self.place.row).min(CHUNK_ROWS);
        let mut row_class = [0; CHUNK_ROWS];
        let mut row_words = Words::new(&[]);
        let values = row_class.iter_mut().zip(&mut chunk.row_scale).take(rows);
        match row_source {
            RowSource::Words(source) => {
                row_words = Words::new(source);
                self.row_tables.fill(&self.tables, &mut self.place.rows, &mut row_words, values)?;
            }
            RowSource::Values(known) => {
                let known = known.get(self.place.row..).unwrap_or(&[]);
                if known.len() < rows {
                    return Err(Error::Index);
                }
                for ((class, row_scale), value) in values.zip(known) {
                    (*class, *row_scale) = (value.class, value.scale);
                }
            }
        }

        let lanes = &mut self.place.lanes;
        let read = engine.decode_rows(Rows {
            words: words.rest(),
            rans: &mut lanes.rans,
            trellis: &mut lanes.trellis,
            class: &lanes.class,
            row_class: row_class.get(..rows).unwrap_or(&[]),
            lanes: self.active,
            latents: &mut chunk.latents,
        })?;
        words.skip(read)?;
        chunk.rows = rows;
        chunk.lanes = self.active;
        chunk.first_row = self.place.row;
        chunk.first_column = self.place.group.wrapping_mul(num::index(self.shape.entry.lanes));
        chunk.column_scale = self.column_scale;
        let direct = self.shape.entry.direct;
        let synthesis = if direct { Synthesis::Identity } else { self.tables.synthesis() };
        engine.synthesise(synthesis, &mut chunk.latents, rows);
        chunk.fraction_bits = synthesis.fraction_bits();

        self.place.read = self.place.read.wrapping_add(words.read());
        self.place.row = self.place.row.wrapping_add(rows);
        if self.place.row == self.shape.rows {
            if let RowSource::Words(_) = row_source {
                self.row_tables.finish(&mut self.place.rows, &row_words)?;
            }
            self.end_group(&words)?;
        }
        Ok(true)
    }

    fn end_group(&mut self, words: &Words<'_>) -> Result<(), Error> {
        self.place.row = 0;
        self.place.group = self.place.group.wrapping_add(1);
        // The next columns bring their own; so that equal places are equal points.
        self.place.lanes.class = [0; MAX_LANES];
        self.place.lanes.scale = [0; MAX_LANES];
        self.active = self.group_lanes();
        if self.active > 0 {
            return Ok(());
        }
        if self.place.lanes.rans.iter().any(|&x| x != LOWER_BOUND) {
            return Err(Error::FinalState);
        }
        words.finish()
    }
}

/// Decodes the values of all rows of a tile (§7).
pub(crate) fn row_values(
    shape: &TileShape,
    tables: &Tables<'_>,
    row_stream: Option<&[u8]>,
    values: &mut [RowValue],
) -> Result<(), Error> {
    if values.len() != shape.rows {
        return Err(Error::Output);
    }
    let row_tables = RowTables::new(&shape.entry, tables)?;
    let mut words = Words::new(as_words(row_stream.unwrap_or(&[])));
    let mut place = RowPlace::default();
    let values = values.iter_mut().map(|value| (&mut value.class, &mut value.scale));
    row_tables.fill(tables, &mut place, &mut words, values)?;
    row_tables.finish(&mut place, &words)
}

/// The words of bytes; streams are multiples of 4 bytes long (§5.2).
fn as_words(bytes: &[u8]) -> &[[u8; 2]] {
    bytes.as_chunks::<2>().0
}

impl Chunks for TileDecoder<'_> {
    fn next(&mut self, chunk: &mut Chunk) -> Result<bool, Error> {
        self.next_chunk(chunk)
    }
}

/// Decodes one tile, a [`Chunk`] at a time. All of its state is in this struct.
#[derive(Debug, Clone)]
pub struct TileDecoder<'a> {
    walk: Walk<'a>,
    words: &'a [[u8; 2]],
    row_words: &'a [[u8; 2]],
}

impl<'a> TileDecoder<'a> {
    #[inline(always)]
    pub(crate) fn new(
        shape: TileShape,
        tables: Tables<'a>,
        stream: &'a [u8],
        row_stream: Option<&'a [u8]>,
    ) -> Result<Self, Error> {
        let states = shape.lanes().saturating_mul(4);
        let words = as_words(stream.get(states..).ok_or(Error::Geometry)?);
        let row_words = as_words(row_stream.unwrap_or(&[]));
        Ok(Self { walk: Walk::new(shape, tables, stream)?, words, row_words })
    }

    /// The place of the next chunk.
    pub fn seek_point(&self) -> SeekPoint {
        self.walk.place().clone()
    }

    /// Goes to a place that [`seek_point`](Self::seek_point) gave.
    pub(crate) fn seek(&mut self, point: &SeekPoint) -> Result<(), Error> {
        self.walk.seek(point, (self.words.len(), self.row_words.len()))
    }

    /// Decodes the next rows into `chunk`. False when the tile had been decoded to its end before.
    ///
    /// # Errors
    /// What is wrong with the tile's stream. Call it no more after an error.
    pub fn next_chunk(&mut self, chunk: &mut Chunk) -> Result<bool, Error> {
        let tables = self.walk.tables;
        let (read, row_read) = self.walk.read();
        let rows = RowSource::Words(self.row_words.get(row_read..).unwrap_or(&[]));
        self.walk.next_chunk(&tables, self.words.get(read..).unwrap_or(&[]), rows, chunk)
    }

    /// As [`next_chunk`](Self::next_chunk), with another engine for the symbols, and with the values of the tile's rows as
    /// [`Tile::row_values`](crate::Tile::row_values) gave them, so that the row stream is not decoded again for each group of columns. A
    /// decoder uses either this or the other to its end: their seek points differ.
    ///
    /// # Errors
    /// As there; [`Error::Index`] if there are fewer values than rows.
    pub fn next_chunk_by(
        &mut self,
        engine: &impl RowEngine,
        rows: &[RowValue],
        chunk: &mut Chunk,
    ) -> Result<bool, Error> {
        let (read, _) = self.walk.read();
        let words = self.words.get(read..).unwrap_or(&[]);
        self.walk.next_chunk(engine, words, RowSource::Values(rows), chunk)
    }
}
