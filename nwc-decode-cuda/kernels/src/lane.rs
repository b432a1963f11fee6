//! Decoding down one column: the code that a thread of a warp runs, and that the tests run on the processor.
//!
//! An image has a column's indices in two parts. What decides an index's magnitude, its *coarse value* of four bits, is coded: range-coded symbols of four rows
//! each, so that a look-up gives four weights. The low bits, which little would compress, are *planes*, a bit a row. With a trellis a single plane, the path,
//! gives two bits: both are sums of path bits, as the trellis is a linear code. Everything is in plain integers, so that it gives the same wherever it runs.

use nwc_decode_core::Error;

use crate::layout::{CHUNK, GROUP, LaneRecord, RING_BYTES, TensorRecord, UNIT, synthesis};
use crate::network;
use crate::num::{byte, delayed};

/// The bottom of a lane's range, and its state at the end of an item.
pub const LOWER_BOUND: u32 = 1 << 16;

/// A lane's words.
pub trait Words {
    /// The state, brought back into its range with the next word if it is below [`LOWER_BOUND`].
    fn refill(&mut self, x: u32) -> u32;
}

/// Words of tables, by byte offset.
pub trait Memory {
    /// Four bytes at a multiple of 4.
    fn word(&self, at: u32) -> u32;
}

/// A lane between two chunks.
#[derive(Debug, Clone, Copy)]
pub struct Lane {
    /// rANS states that take turns, so that a thread has two look-ups under way.
    pub x: [u32; 2],
    /// The path of the chunk before, row r at bit 2r + 1.
    pub path: u32,
}

impl Lane {
    /// At an item's first row.
    #[inline(always)]
    pub const fn new(record: LaneRecord) -> Self {
        // The latest of eight bits belongs to row 15, bit 31.
        let mut path = 0;
        let mut bit = 0;
        while bit < 8 {
            path |= (record.path() >> bit & 1) << (31 - 2 * bit);
            bit += 1;
        }
        Self { x: record.states, path }
    }
}

/// The table of a lane.
#[derive(Debug, Clone, Copy)]
pub struct Symbols<M> {
    memory: M,
    table: u32,
    precision: u32,
    /// Bits of an address that come from the slot.
    slot_mask: u32,
}

/// Bits that the two low bits of a slot's address take.
const SLOT_SHIFT: u32 = 2;

impl<M: Memory> Symbols<M> {
    /// A tensor's table of this number, or its last one.
    #[inline(always)]
    pub fn new(memory: M, tensor: &TensorRecord, table: u32) -> Self {
        Self {
            memory,
            table: table.min(tensor.table_count - 1) << (tensor.precision + SLOT_SHIFT),
            precision: tensor.precision,
            slot_mask: ((1 << tensor.precision) - 1) << SLOT_SHIFT,
        }
    }

    /// The next four weights' coarse values, in the high half of each byte. States take turns.
    #[inline(always)]
    fn four(&self, x: &mut u32, words: &mut impl Words) -> u32 {
        let slot = self.memory.word(self.table + (*x << SLOT_SHIFT & self.slot_mask));
        *x = words.refill(byte(slot, 0) * (*x >> self.precision) + byte(slot, 1));
        (slot >> 16 & 0x0000_F0F0) | (slot << 4 & 0xF0F0_0000)
    }
}

/// Where planes that are spread have a bit: row r at 2r + 1.
const SPREAD: u32 = 0xAAAA_AAAA;

/// The planes' words for two chunks.
#[derive(Debug, Clone, Copy, Default)]
pub struct Planes {
    /// With a trellis the path, otherwise the lowest bit but one.
    pub first: u32,
    /// Without a trellis the lowest bit.
    pub lowest: u32,
    /// The highest of more than two low bits.
    pub highest: u32,
    /// The next of more than three.
    pub next: u32,
}

/// A chunk's part of a plane's word, spread.
#[inline(always)]
const fn part(word: u32, is_odd: bool) -> u32 {
    (if is_odd { word << 1 } else { word }) & SPREAD
}

/// Parity-check polynomials of the trellises that images know, of 2^3 to 2^8 states: the encoder's (Ungerboeck's codes for amplitude modulation).
///
/// The codec's trellis is their systematic form: a state's parity u and the index's second bit b with h0 u = h1 b. The path is the sequence a with b = h0 a and
/// u = h1 a: any b has one, and from it both bits follow without a loop.
pub const POLYNOMIALS: [(u32, u32); 6] =
    [(0o13, 0o04), (0o23, 0o04), (0o45, 0o10), (0o103, 0o024), (0o235, 0o126), (0o515, 0o362)];

/// The two lowest bits of a chunk's indices, row r's at 2r.
#[inline(always)]
fn two_bits<const TRELLIS: usize>(path: u32, before: u32) -> u32 {
    let (h0, h1) = const { POLYNOMIALS[TRELLIS - 3] };
    let (mut second, mut lowest) = (path, 0);
    let mut rows = 1;
    while rows <= 8 {
        if h0 >> rows & 1 == 1 {
            second ^= delayed(path, before, 2 * rows);
        }
        if h1 >> rows & 1 == 1 {
            lowest ^= delayed(path, before, 2 * rows - 1);
        }
        rows += 1;
    }
    second | lowest
}

/// An array of what an expression gives for each row of a chunk. Written out, not a loop, so that the array always lies in registers.
macro_rules! rows {
    ($row:ident => $value:expr) => {
        $crate::lane::rows!(@ $row, $value, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    (@ $row:ident, $value:expr, $($number:literal)*) => {
        [$({ const $row: usize = $number; $value }),*]
    };
}
pub(crate) use rows;

/// What symbols and up to four low bits tell of a chunk's indices: row 4j + g is byte j of word g.
///
/// The high half of a byte is the coarse value, below it are low bits: indices of up to four of them times 2^[`unit_bits`].
pub type Bytes = [u32; 4];

/// Binary logarithm of what an index is multiplied by in [`Bytes`].
#[inline(always)]
pub const fn unit_bits(low_bits: u32) -> u32 {
    4u32.saturating_sub(low_bits)
}

/// Decodes [`CHUNK`] rows of a lane.
#[inline(always)]
pub fn chunk<M: Memory>(
    symbols: &Symbols<M>,
    tensor: &TensorRecord,
    lane: &mut Lane,
    words: &mut impl Words,
    planes: Planes,
    is_odd: bool,
) -> Bytes {
    let first = part(planes.first, is_odd);
    let two = match tensor.trellis {
        3 => two_bits::<3>(first, lane.path),
        4 => two_bits::<4>(first, lane.path),
        5 => two_bits::<5>(first, lane.path),
        6 => two_bits::<6>(first, lane.path),
        7 => two_bits::<7>(first, lane.path),
        8 => two_bits::<8>(first, lane.path),
        _ => first | part(planes.lowest, is_odd) >> 1,
    };
    lane.path = first;
    // Row 0's bits go to where they are in bytes, and the others with them.
    let shift = unit_bits(tensor.low_bits);
    let two = two.rotate_left(shift);
    let highest = part(planes.highest, is_odd).rotate_left(2);
    let next = part(planes.next, is_odd).rotate_left(1);
    let low = |group: u32| {
        let two = two.rotate_right(2 * group) & 0x0303_0303 << shift;
        let three =
            if tensor.low_bits > 2 { two | (highest.rotate_right(2 * group) & 0x0808_0808) } else { two };
        if tensor.low_bits > 3 { three | (next.rotate_right(2 * group) & 0x0404_0404) } else { three }
    };
    let low = [low(0), low(1), low(2), low(3)];
    let [even, odd] = &mut lane.x;
    [
        symbols.four(even, words) | low[0],
        symbols.four(odd, words) | low[1],
        symbols.four(even, words) | low[2],
        symbols.four(odd, words) | low[3],
    ]
}

/// A chunk's indices by rows, if they have at most four low bits.
#[inline(always)]
pub fn by_rows(bytes: Bytes, low_bits: u32) -> [i32; CHUNK] {
    let shift = unit_bits(low_bits);
    rows!(ROW => crate::num::signed_byte::<{ ROW as u32 / 4 }>(bytes[ROW % 4]) >> shift)
}

/// Indices with more than four low bits, from what [`by_rows`] gave and the planes of the other bits: `plane` gives a word of one, counted from the third bit's.
#[inline(always)]
pub fn widen(indices: [i32; CHUNK], low_bits: u32, is_odd: bool, plane: impl Fn(u32) -> u32) -> [i32; CHUNK] {
    let mut wide = rows!(ROW => indices[ROW] >> 2 << (low_bits - 2) | (indices[ROW] & 3));
    let mut bit = 2;
    while bit + 2 < low_bits {
        let word = part(plane(bit - 2), is_odd);
        wide = rows!(ROW => wide[ROW] | ((word >> (2 * ROW + 1) & 1) << bit).cast_signed());
        bit += 1;
    }
    wide
}

/// The latents (§9) of a chunk's indices, in units of [`TensorRecord::latent_unit`], if its synthesis is not learned or `rows`, which are really there, are no whole chunk.
#[inline(always)]
pub fn synthesise(tensor: &TensorRecord, indices: [i32; CHUNK], rows: u32) -> [i32; CHUNK] {
    if tensor.synthesis == synthesis::IDENTITY {
        indices
    } else if rows < CHUNK as u32 {
        rows!(ROW => indices[ROW] * (1.0 / tensor.latent_unit) as i32)
    } else {
        hadamard(indices)
    }
}

/// The same of any synthesis, one lane's: slow if it is learned.
pub fn synthesise_any(
    tensor: &TensorRecord,
    tables: &impl Memory,
    indices: [i32; CHUNK],
    rows: u32,
) -> [i32; CHUNK] {
    if tensor.synthesis >= synthesis::LINEAR && rows >= CHUNK as u32 {
        network::latents(tables, tensor.network, &indices, unit_bits(tensor.low_bits))
    } else {
        synthesise(tensor, indices, rows)
    }
}

/// Whether a lane asks for its next [`GROUP`] of words before a chunk, when it has read so many bytes and asked for so many of those that it has. Both must
/// agree on this: who copies words to a lane, and who put them in order.
///
/// A chunk takes at most as much, one word for each of its symbols. So a lane has at least that much left that was asked for before the last
/// [`PENDING`] chunks, or all it has.
#[inline(always)]
pub const fn asks(read: u32, asked: u32, end: u32) -> bool {
    asked < end && asked.wrapping_sub(read) <= (RING_BYTES - GROUP) as u32
}

/// The last group of an image that has so many units, counted from the unit `words`: none beyond may be copied.
#[inline(always)]
pub const fn last_group(units: u32, words: u32) -> u32 {
    let (left, most) = (units - words, u32::MAX / GROUPS);
    (if left < most { left } else { most }) * GROUPS - 1
}

/// Groups of a unit.
const GROUPS: u32 = (UNIT / GROUP) as u32;

/// Chunks during which words may be under way.
pub const PENDING: u32 = (RING_BYTES / GROUP) as u32 - 2;

/// Compares where a lane came to with where it must: the code of what is wrong, or 0. `read` and `end` count bytes.
#[inline(always)]
pub fn end_code(read: u32, end: u32, x: [u32; 2]) -> u32 {
    if read > end {
        Error::Overrun.code().into()
    } else if read < end {
        Error::Trailing.code().into()
    } else if x != [LOWER_BOUND; 2] {
        Error::FinalState.code().into()
    } else {
        0
    }
}

/// Four times the 16-point Hadamard transform (§9.2).
#[inline(always)]
fn hadamard(indices: [i32; CHUNK]) -> [i32; CHUNK] {
    butterflies::<8>(butterflies::<4>(butterflies::<2>(butterflies::<1>(indices))))
}

/// Sums and differences of rows `APART`.
#[inline(always)]
fn butterflies<const APART: usize>(rows: [i32; CHUNK]) -> [i32; CHUNK] {
    rows!(ROW => {
        let (first, second) = (rows[ROW & !APART], rows[ROW | APART]);
        if ROW | APART == ROW { first.wrapping_sub(second) } else { first.wrapping_add(second) }
    })
}

/// A weight as §10.3 has it: the index times the product of the scales, each product limited to finite numbers.
#[inline(always)]
pub fn weight<const CAREFUL: bool>(latent: i32, unit: f32, row_scale: f32, column_scale: f32) -> f32 {
    let step = row_scale * column_scale;
    let value = latent as f32 * unit;
    if CAREFUL { (value * step.clamp(f32::MIN, f32::MAX)).clamp(f32::MIN, f32::MAX) } else { value * step }
}
