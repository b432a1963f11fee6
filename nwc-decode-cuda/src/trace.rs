//! Decoding a tile on the host once, to learn which lane takes which word.

use std::cell::RefCell;

use nwc_decode_core::{
    CHUNK_ROWS, Checks, Chunk, CodedTensor, Error, MAX_LANES, RowEngine, RowValue, Rows, Tables,
};
use nwc_decode_kernels::layout::{LANES, LaneRecord};

/// A part of a tile that a warp will decode: some rows of one group of columns.
#[derive(Debug, Clone)]
pub(crate) struct Piece {
    pub(crate) group: usize,
    /// First row, from the tile's first.
    pub(crate) first_row: usize,
    pub(crate) rows: usize,
    /// First column, from the tile's first.
    pub(crate) first_column: usize,
    pub(crate) columns: usize,
    /// States and first word of each lane, and the end of the last lane's words.
    pub(crate) lanes: [LaneRecord; LANES + 1],
    /// Words of all lanes, one lane after the other.
    pub(crate) words: Vec<u16>,
    pub(crate) column_scale: [f32; LANES],
    /// Class of each column, before the row's is added.
    pub(crate) column_class: [i32; LANES],
    /// Least and largest class of its weights.
    pub(crate) classes: (i32, i32),
    /// A bit for each chunk: some weight was an escape, or larger than a byte holds.
    pub(crate) escapes: Vec<u32>,
    pub(crate) error: Option<Error>,
}

/// A codec's weight tables by slot.
#[derive(Debug)]
pub(crate) struct SlotTables<'t> {
    pub(crate) tables: Tables<'t>,
    /// Value, start and frequency of each slot's symbol; the escape has no value. By class, union and slot.
    slots: Vec<(Option<i32>, u32, u32)>,
}

impl<'t> SlotTables<'t> {
    pub(crate) fn new(tables: Tables<'t>) -> Self {
        let classes = tables.classes().cast_unsigned() as usize;
        let numbers =
            (0..classes).flat_map(|class| (0..tables.unions() as usize).map(move |union| (class, union)));
        let slots = numbers.flat_map(|(class, union)| {
            tables.weight_symbols(class, union).enumerate().flat_map(|(symbol, (value, start, frequency))| {
                let value = (symbol > 0).then_some(value);
                (0..frequency).map(move |_| (value, start, frequency))
            })
        });
        Self { tables, slots: slots.collect() }
    }
}

/// Decodes rows as the plain engine does, and keeps each lane's words.
struct Tracer<'t> {
    tables: &'t SlotTables<'t>,
    trace: RefCell<Trace>,
}

#[derive(Default)]
struct Trace {
    words: [Vec<u16>; LANES],
    column_class: [i32; LANES],
    classes: Option<(i32, i32)>,
    escapes: bool,
}

impl RowEngine for Tracer<'_> {
    fn decode_rows(&self, rows: Rows<'_>) -> Result<usize, Error> {
        let tables = &self.tables.tables;
        let (precision, last_class) = (tables.precision(), tables.classes() - 1);
        let unions = tables.unions() as usize;
        let next_states = tables.next_states();
        let mut trace = self.trace.borrow_mut();
        trace.column_class = *rows.class;
        let mut words = rows.words.iter().map(|word| u16::from_le_bytes(*word));
        let mut read = 0;
        let mut take = || {
            read += 1;
            words.next().ok_or(Error::Overrun)
        };
        let mut values = [None; MAX_LANES];
        for (&row_class, latents) in rows.row_class.iter().zip(rows.latents) {
            for (lane, value_of_lane) in values.iter_mut().enumerate().take(rows.lanes) {
                let class = (rows.class[lane] + row_class).clamp(0, last_class);
                let (least, most) = trace.classes.unwrap_or((class, class));
                trace.classes = Some((least.min(class), most.max(class)));
                let union = if unions == 2 { usize::from(rows.trellis[lane] & 1) } else { 0 };
                let table = class.cast_unsigned() as usize * unions + union;
                let x = &mut rows.rans[lane];
                let slot = *x & ((1 << precision) - 1);
                let (value, start, frequency) = self.tables.slots[(table << precision) + slot as usize];
                *value_of_lane = value;
                *x = frequency * (*x >> precision) + slot - start;
                if *x < 1 << 16 {
                    let word = take()?;
                    trace.words[lane].push(word);
                    *x = *x << 16 | u32::from(word);
                }
            }
            for lane in 0..rows.lanes {
                let value = if let Some(value) = values[lane] {
                    value
                } else {
                    let word = take()?;
                    trace.words[lane].push(word);
                    trace.escapes = true;
                    i32::from(word.cast_signed())
                };
                latents[lane] = if next_states.is_empty() {
                    value
                } else {
                    let state = rows.trellis[lane];
                    rows.trellis[lane] = next_states[2 * usize::from(state) + (value & 1) as usize];
                    2 * value + i32::from(state & 1)
                };
                trace.escapes |= latents[lane].abs() > 127;
            }
        }
        Ok(read)
    }
}

/// The pieces of a tile, at most `most_rows` rows each, by group and row. If the tile is damaged they are all there all the same, with the error.
pub(crate) fn pieces(
    coded: &CodedTensor<'_>,
    number: usize,
    tables: &SlotTables<'_>,
    row_values: &[RowValue],
    most_rows: usize,
) -> Result<Vec<Piece>, Error> {
    let tile = coded.tile(number)?;
    let region = tile.region();
    let columns = if coded.is_transposed() { region.out.len() } else { region.input.len() };
    let most_lanes = coded.geometry().lanes();
    let mut pieces = Vec::new();
    for group in 0..columns.div_ceil(most_lanes) {
        for first_row in (0..tile.rows()).step_by(most_rows) {
            pieces.push(Piece {
                group,
                first_row,
                rows: most_rows.min(tile.rows() - first_row),
                first_column: group * most_lanes,
                columns: most_lanes.min(columns - group * most_lanes),
                lanes: [LaneRecord { state: 1 << 16, start_and_trellis: 0 }; LANES + 1],
                words: Vec::new(),
                column_scale: [0.0; LANES],
                column_class: [0; LANES],
                classes: (0, 0),
                escapes: vec![0; most_rows.min(tile.rows() - first_row).div_ceil(32 * CHUNK_ROWS)],
                error: None,
            });
        }
    }
    if let Err(error) = trace(coded, number, tables, row_values, &mut pieces) {
        pieces.iter_mut().for_each(|piece| piece.error = Some(error));
    }
    Ok(pieces)
}

fn trace(
    coded: &CodedTensor<'_>,
    number: usize,
    tables: &SlotTables<'_>,
    row_values: &[RowValue],
    pieces: &mut [Piece],
) -> Result<(), Error> {
    let tile = coded.tile(number)?;
    let tracer = Tracer { tables, trace: RefCell::default() };
    let mut decoder = tile.decoder(&tables.tables, Checks::All)?;
    let mut chunk = Chunk::default();
    for piece in pieces {
        let point = decoder.seek_point();
        debug_assert_eq!((point.group(), point.row()), (piece.group, piece.first_row));
        tracer.trace.take();
        for chunk_row in (0..piece.rows).step_by(CHUNK_ROWS) {
            // The states before the rows, but after the columns' side information, which a group begins with.
            let first = chunk_row == 0;
            let engine = Snapshot { tracer: &tracer, states: RefCell::default() };
            decoder.next_chunk_by(&engine, row_values, &mut chunk)?;
            if tracer.trace.borrow_mut().escapes {
                let chunk = chunk_row / CHUNK_ROWS;
                piece.escapes[chunk / 32] |= 1 << (chunk % 32);
                tracer.trace.borrow_mut().escapes = false;
            }
            if first {
                (piece.lanes, piece.column_scale) = (engine.states.into_inner().0, chunk.column_scale);
            }
        }
        let trace = tracer.trace.borrow();
        let mut start = 0;
        for (lane, words) in piece.lanes.iter_mut().zip(&trace.words) {
            lane.start_and_trellis |= start;
            start += words.len() as u32;
            piece.words.extend(words);
        }
        piece.lanes[LANES].start_and_trellis = start;
        piece.column_class = trace.column_class;
        piece.classes = trace.classes.unwrap_or((0, 0));
    }
    // What is wrong with the end of the stream shows only now.
    decoder.next_chunk_by(&tracer, row_values, &mut chunk).map(|_| ())
}

/// Keeps the states that a chunk begins with.
struct Snapshot<'t> {
    tracer: &'t Tracer<'t>,
    states: RefCell<States>,
}

struct States([LaneRecord; LANES + 1]);

impl Default for States {
    fn default() -> Self {
        Self([LaneRecord { state: 1 << 16, start_and_trellis: 0 }; LANES + 1])
    }
}

impl RowEngine for Snapshot<'_> {
    fn decode_rows(&self, rows: Rows<'_>) -> Result<usize, Error> {
        let states = rows.rans.iter().zip(&*rows.trellis);
        for (record, (&state, &trellis)) in self.states.borrow_mut().0.iter_mut().zip(states) {
            *record = LaneRecord { state, start_and_trellis: u32::from(trellis) << 24 };
        }
        self.tracer.decode_rows(rows)
    }
}
