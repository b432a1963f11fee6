//! Decoding a tile on the host once, to its indices.

use std::cell::RefCell;

use nwc_decode_core::{
    CHUNK_ROWS, Checks, Chunk, CodedTensor, Error, RowEngine, RowValue, Rows, Tables, TileDecoder,
};

/// What a tile holds, before its synthesis.
#[derive(Debug, Default)]
pub(crate) struct TileIndices {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// Columns that the tile's lanes go down side by side.
    pub(crate) lanes: usize,
    /// Column by column.
    pub(crate) indices: Vec<i32>,
    pub(crate) column_scales: Vec<f32>,
    /// Number of weights of each class.
    pub(crate) classes: Vec<u64>,
    pub(crate) error: Option<Error>,
}

impl TileIndices {
    /// Decodes a tile, whose rows have these values if their stream is sound. If either is damaged, what comes back has the error and nothing else that means
    /// anything.
    pub(crate) fn new(
        coded: &CodedTensor<'_>,
        number: usize,
        tables: &Tables<'_>,
        (row_values, row_outcome): &(Vec<RowValue>, Result<(), Error>),
    ) -> Result<Self, Error> {
        let tile = coded.tile(number)?;
        let region = tile.region();
        let columns = if coded.is_transposed() { region.out.len() } else { region.input.len() };
        let mut decoded = Self {
            rows: tile.rows(),
            columns,
            lanes: coded.geometry().lanes(),
            indices: vec![0; tile.rows() * columns],
            column_scales: vec![0.0; columns],
            classes: vec![0; tables.classes() as usize],
            ..Self::default()
        };
        // Checksums come first, as when the host decodes.
        let outcome = tile.decoder(tables, Checks::All).and_then(|decoder| {
            (*row_outcome)?;
            decoded.decode(decoder, tables, row_values)
        });
        decoded.error = outcome.err();
        Ok(decoded)
    }

    fn decode(
        &mut self,
        mut decoder: TileDecoder<'_>,
        tables: &Tables<'_>,
        row_values: &[RowValue],
    ) -> Result<(), Error> {
        let mut chunk = Chunk::default();
        let last_class = tables.classes() - 1;
        for first_column in (0..self.columns).step_by(self.lanes) {
            let columns = self.lanes.min(self.columns - first_column);
            for first_row in (0..self.rows).step_by(CHUNK_ROWS) {
                let rows = CHUNK_ROWS.min(self.rows - first_row);
                let listener = Listener { tables, heard: RefCell::default() };
                decoder.next_chunk_by(&listener, row_values, &mut chunk)?;
                let heard = listener.heard.into_inner();
                for lane in 0..columns {
                    let to = (first_column + lane) * self.rows + first_row;
                    for row in 0..rows {
                        self.indices[to + row] = heard.indices[row][lane];
                        let class = heard.classes[lane] + row_values[first_row + row].class;
                        self.classes[class.clamp(0, last_class) as usize] += 1;
                    }
                    self.column_scales[first_column + lane] = chunk.column_scale[lane];
                }
            }
        }
        Ok(())
    }
}

/// Decodes rows as the plain engine does, and keeps what it found.
struct Listener<'t> {
    tables: &'t Tables<'t>,
    heard: RefCell<Heard>,
}

#[derive(Default)]
struct Heard {
    indices: [[i32; nwc_decode_core::MAX_LANES]; CHUNK_ROWS],
    classes: [i32; nwc_decode_core::MAX_LANES],
}

impl RowEngine for Listener<'_> {
    fn decode_rows(&self, rows: Rows<'_>) -> Result<usize, Error> {
        let mut heard = self.heard.borrow_mut();
        heard.classes = *rows.class;
        let Rows { words, rans, trellis, class, row_class, lanes, latents } = rows;
        let inner = Rows { words, rans, trellis, class, row_class, lanes, latents: &mut *latents };
        let read = self.tables.decode_rows(inner)?;
        heard.indices = *latents;
        Ok(read)
    }
}
