//! From a tile's indices to items of an image.

use std::ops::Range;

use nwc_decode_kernels::lane::{POLYNOMIALS, asks};
use nwc_decode_kernels::layout::{CHUNK, GROUP, LANES, LaneRecord, Patch, RING_BYTES};

use crate::indices::TileIndices;
use crate::quads::{Coded, Quad, Split, TableSet};

/// Words of a group.
const GROUP_WORDS: usize = GROUP / 2;
/// Rows that a word of a plane has bits for.
const PLANE_ROWS: usize = 2 * CHUNK;

/// A trellis whose indices' two lowest bits follow from a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PathCode {
    /// Binary logarithm of its states.
    pub(crate) order: u32,
    h0: u32,
    h1: u32,
}

impl PathCode {
    /// That of a table of next states, if it is one that kernels know.
    pub(crate) fn of(next: &[u8]) -> Option<Self> {
        let order = (next.len() / 2).checked_ilog2()?;
        let (h0, h1) = *POLYNOMIALS.get(order.checked_sub(3)? as usize)?;
        let step = |state: usize, bit: usize| {
            let (parity, free) = (state & 1, bit);
            (state >> 1) ^ (parity * (h0 >> 1) as usize) ^ (free * (h1 >> 1) as usize)
        };
        let is_it = next.iter().enumerate().all(|(place, &next)| step(place >> 1, place & 1) == next.into());
        (is_it && next.len() == 2 << order).then_some(Self { order, h0, h1 })
    }

    /// The path's next bit, after those in `before`, the latest lowest.
    fn next(self, before: u8, index: i32) -> u8 {
        let parity = |polynomial: u32| (u32::from(before) & polynomial >> 1).count_ones() & 1;
        debug_assert_eq!(parity(self.h1), index.cast_unsigned() & 1, "the index is not of the trellis");
        (parity(self.h0) ^ (index.cast_unsigned() >> 1 & 1)) as u8
    }
}

/// The paths of a tile's columns.
struct Paths {
    /// Eight bits before each column's first row.
    before: Vec<u8>,
    /// A bit a row, column by column.
    bits: Vec<u8>,
}

impl Paths {
    fn new(tile: &TileIndices, code: PathCode) -> Self {
        let mut lanes = vec![0u8; tile.lanes];
        let (mut before, mut bits) = (Vec::new(), Vec::with_capacity(tile.indices.len()));
        for (column, indices) in tile.indices.chunks_exact(tile.rows.max(1)).enumerate() {
            // Lanes carry their states from one of their columns to the next.
            let lane = &mut lanes[column % tile.lanes];
            before.push(*lane);
            for &index in indices {
                let bit = code.next(*lane, index);
                *lane = *lane << 1 | bit;
                bits.push(bit);
            }
        }
        Self { before, bits }
    }

    /// The eight bits before a row of a column.
    fn before(&self, column: usize, rows: usize, row: usize) -> u8 {
        let known = self.bits[column * rows..][..row].iter();
        known.skip(row.saturating_sub(8)).fold(self.before[column], |before, bit| before << 1 | bit)
    }
}

/// What a warp will decode: some rows of up to [`LANES`] columns.
#[derive(Debug, Clone)]
pub(crate) struct Piece {
    /// From the tile's first.
    pub(crate) rows: Range<usize>,
    /// From the tile's first.
    pub(crate) columns: Range<usize>,
    pub(crate) lanes: [LaneRecord; LANES],
    pub(crate) words: Vec<[u16; GROUP_WORDS]>,
    pub(crate) planes: Vec<u32>,
    pub(crate) patches: Vec<Patch>,
    /// A bit for each chunk.
    pub(crate) patched: Vec<u32>,
}

/// How a tensor's indices are coded.
pub(crate) struct Recoder {
    pub(crate) split: Split,
    pub(crate) path: Option<PathCode>,
    pub(crate) set: TableSet,
}

impl Recoder {
    /// Planes of an item.
    pub(crate) fn planes(&self) -> u32 {
        self.split.low_bits - u32::from(self.path.is_some())
    }

    /// Which bit of an index each plane has; with a path, that is the first plane.
    fn bits(&self) -> Vec<u32> {
        let low_bits = self.split.low_bits;
        let first = if self.path.is_some() { 0..0 } else { 0..low_bits.min(2) };
        let highest = (2..low_bits).rev().take(2);
        first.rev().chain(highest).chain(2..low_bits.saturating_sub(2).max(2)).collect()
    }

    /// The pieces of a tile, of at most `most_rows` rows each: those of the first columns first. A tile with an error has pieces too, with nothing in them.
    pub(crate) fn pieces(&self, tile: &TileIndices, most_rows: usize) -> Vec<Piece> {
        let paths = self.path.filter(|_| tile.error.is_none()).map(|code| Paths::new(tile, code));
        let columns = (0..tile.columns).step_by(LANES).map(|first| first..tile.columns.min(first + LANES));
        let pieces = columns.flat_map(|columns| {
            let rows = (0..tile.rows).step_by(most_rows).map(|first| first..tile.rows.min(first + most_rows));
            rows.map(move |rows| (columns.clone(), rows))
        });
        pieces.map(|(columns, rows)| self.piece(tile, paths.as_ref(), columns, rows)).collect()
    }

    fn piece(
        &self,
        tile: &TileIndices,
        paths: Option<&Paths>,
        columns: Range<usize>,
        rows: Range<usize>,
    ) -> Piece {
        let chunks = rows.len().div_ceil(CHUNK);
        let mut piece = Piece {
            lanes: [LaneRecord::new(Coded::default().states, 0, 0, 0); LANES],
            words: Vec::new(),
            planes: vec![0; rows.len().div_ceil(PLANE_ROWS) * self.planes() as usize * LANES],
            patches: Vec::new(),
            patched: vec![0; chunks.div_ceil(32)],
            rows,
            columns,
        };
        if tile.error.is_some() {
            return piece;
        }
        let mut lanes: [Coded; LANES] = std::array::from_fn(|_| Coded::default());
        for (lane, column) in piece.columns.clone().enumerate() {
            let indices = &tile.indices[column * tile.rows..][piece.rows.clone()];
            let (table, coded) = self.code(indices, lane, &mut piece.patches);
            let before = paths.map_or(0, |paths| paths.before(column, tile.rows, piece.rows.start));
            debug_assert!(u16::try_from(coded.words.len()).is_ok(), "items have at most 2^16 rows");
            piece.lanes[lane] = LaneRecord::new(coded.states, coded.words.len() as u16, before, table);
            lanes[lane] = coded;
            let mut plane = 0;
            if let Some(paths) = paths {
                let bits = &paths.bits[column * tile.rows..][piece.rows.clone()];
                self.put_plane(&mut piece.planes, plane, lane, bits.iter().map(|bit| u32::from(*bit)));
                plane += 1;
            }
            for bit in self.bits() {
                let bits = indices.iter().map(|index| index.cast_unsigned() >> bit & 1);
                self.put_plane(&mut piece.planes, plane, lane, bits);
                plane += 1;
            }
        }
        piece.words = in_order(&lanes, chunks);
        piece.patches.sort_by_key(|patch| patch.place);
        for patch in &piece.patches {
            let chunk = patch.place as usize / LANES / CHUNK;
            piece.patched[chunk / 32] |= 1 << (chunk % 32);
        }
        piece.patches.push(Patch::END);
        piece
    }

    fn put_plane(&self, planes: &mut [u32], plane: usize, lane: usize, bits: impl Iterator<Item = u32>) {
        for (row, bit) in bits.enumerate() {
            let word = (row / PLANE_ROWS * self.planes() as usize + plane) * LANES + lane;
            let place = 2 * (row % CHUNK) + usize::from(row % PLANE_ROWS < CHUNK);
            planes[word] |= bit << place;
        }
    }

    /// Codes a lane with the table that suits it best; gives that table's number too.
    fn code(&self, indices: &[i32], lane: usize, patches: &mut Vec<Patch>) -> (u8, Coded) {
        let coarse = |row: usize| self.split.coarse(indices.get(row).copied().unwrap_or(0));
        // The bytes of the words of a chunk (`lane::Bytes`).
        let firsts = (0..indices.len()).step_by(CHUNK).flat_map(|chunk| chunk..chunk + CHUNK / 4);
        let rows: Vec<[usize; 4]> = firsts.map(|first| [0, 1, 2, 3].map(|j| first + j * CHUNK / 4)).collect();
        let mut quads: Vec<Quad> = rows.iter().map(|rows| rows.map(coarse)).collect();
        let cost = |table: &usize| self.set.tables[*table].cost(&quads);
        let best = (0..self.set.tables.len()).min_by(|a, b| cost(a).total_cmp(&cost(b))).unwrap_or(0);
        let table = &self.set.tables[best];
        for (quad, rows) in quads.iter_mut().zip(rows) {
            let coded = table.coded(*quad);
            for ((row, coarse), coded) in rows.into_iter().zip(*quad).zip(coded) {
                if let Some(&index) = indices.get(row).filter(|_| coarse != coded) {
                    patches.push(Patch { place: (row * LANES + lane) as u32, index });
                }
            }
            *quad = coded;
        }
        (best as u8, table.encode(&quads, CHUNK / 4))
    }
}

/// The words of an item's lanes, in the order in which they ask for them.
fn in_order(lanes: &[Coded; LANES], chunks: usize) -> Vec<[u16; GROUP_WORDS]> {
    let mut groups = Vec::new();
    let (mut read, mut asked) = ([0; LANES], [0; LANES]);
    let mut ask = |read: &[u32; LANES]| {
        for ((lane, read), asked) in lanes.iter().zip(read).zip(&mut asked) {
            if asks(*read, *asked, 2 * lane.words.len() as u32) {
                let mut group = [0; GROUP_WORDS];
                let words = lane.words[*asked as usize / 2..].iter();
                group.iter_mut().zip(words).for_each(|(place, word)| *place = *word);
                groups.push(group);
                *asked += GROUP as u32;
            }
        }
    };
    for _ in 0..RING_BYTES / GROUP {
        ask(&read);
    }
    for chunk in 0..chunks {
        ask(&read);
        for (lane, read) in lanes.iter().zip(&mut read) {
            *read += 2 * u32::from(lane.taken.get(chunk).copied().unwrap_or(0));
        }
    }
    groups
}
