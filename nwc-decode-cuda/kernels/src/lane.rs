//! Decoding down one column: the code that a thread of a warp runs, and that the tests run on the processor.
//!
//! No lane needs to know of another, since an image has each lane's words apart. Everything here is in plain integers and floats, so that it gives the same
//! wherever it runs.

use nwc_decode_core::Error;

use crate::layout::{CHUNK, ESCAPE, INDEXED_ESCAPE, TensorRecord};
use crate::num::{byte_of, low_i8, select, sign_extend_16, xor_and};

/// The bottom of a lane's range, and its state at the end of a tile (docs/bitstream.md §6).
pub const LOWER_BOUND: u32 = 1 << 16;

/// A lane's words.
pub trait Words {
    /// The state, brought back into its range with the next word if it is below [`LOWER_BOUND`] (§6.3).
    fn refill(&mut self, x: u32) -> u32;

    /// The next word.
    fn next(&mut self) -> u32;

    /// Makes sure that half of [`CHUNK`] words can be taken.
    fn top_up(&mut self);

    /// Makes sure of the same at once, after a word that was not counted on.
    fn top_up_now(&mut self);
}

/// A lane between two rows.
#[derive(Debug, Clone, Copy)]
pub struct Lane {
    /// rANS state.
    pub x: u32,
    /// Trellis state times four, so that its parity is where addresses need it.
    pub trellis: u32,
}

impl Lane {
    /// From the states that a [`LaneRecord`](crate::layout::LaneRecord) has.
    #[inline]
    pub const fn new(x: u32, trellis: u32) -> Self {
        Self { x, trellis: trellis << 2 }
    }

    /// Takes a symbol off the state and refills it (§6.2, §6.3).
    #[inline(always)]
    fn advance(&mut self, frequency: u32, offset: u32, precision: u32, words: &mut impl Words) {
        self.x = words.refill(frequency.wrapping_mul(self.x >> precision).wrapping_add(offset));
    }
}

/// Finds symbols.
pub trait Symbols {
    /// Where a class's tables begin.
    fn class(&self, class: i32) -> u32;

    /// Decodes the next index of a lane, whose class's tables begin at `class`. `CAREFUL`: there may be escapes.
    fn step<const CAREFUL: bool>(&self, lane: &mut Lane, class: u32, words: &mut impl Words) -> i32;
}

/// Words or bytes of tables, by byte offset.
pub trait Memory {
    /// Four bytes at a multiple of 4.
    fn word(&self, at: u32) -> u32;

    /// One byte.
    fn byte(&self, at: u32) -> u32;
}

/// Tables of [`form::DIRECT`](crate::layout::form::DIRECT).
#[derive(Debug, Clone, Copy)]
pub struct Direct<M> {
    memory: M,
    precision: u32,
    /// Bits of an address that come from the slot.
    slot_mask: u32,
    last_class: i32,
    /// What the next state is combined with, in the lane's units: byte 1 if the state is odd, byte 2 if the value is, byte 3 if both are. An index's
    /// lowest bits say which: they are the parities of the state and of the value.
    taps: u32,
    trellis: bool,
}

impl<M: Memory> Direct<M> {
    /// Of a tensor's record.
    #[inline(always)]
    pub fn new(memory: M, tensor: &TensorRecord) -> Self {
        let (feedback, input) = ((tensor.taps & 0xFFFF) << 2, (tensor.taps >> 16) << 2);
        Self {
            memory,
            precision: tensor.precision,
            slot_mask: ((1 << tensor.precision) - 1) << SLOT_SHIFT,
            last_class: tensor.classes.cast_signed() - 1,
            taps: (feedback << 8) | (input << 16) | ((feedback ^ input) << 24),
            trellis: tensor.trellis != 0,
        }
    }
}

/// A slot has a word for each union.
const SLOT_SHIFT: u32 = 3;

impl<M: Memory> Symbols for Direct<M> {
    #[inline(always)]
    fn class(&self, class: i32) -> u32 {
        class.clamp(0, self.last_class).cast_unsigned() << (self.precision + SLOT_SHIFT)
    }

    #[inline(always)]
    fn step<const CAREFUL: bool>(&self, lane: &mut Lane, class: u32, words: &mut impl Words) -> i32 {
        // The bits of the state above its parity lie under the mask.
        let at = select(self.slot_mask, lane.x << SLOT_SHIFT, lane.trellis);
        let entry = self.memory.word(class.wrapping_add(at));
        lane.advance(entry >> 20, (entry >> 8) & 0xFFF, self.precision, words);
        let mut index = i32::from(low_i8(entry));
        if CAREFUL && index == i32::from(ESCAPE) {
            index = escape(words, self.trellis, lane.trellis);
        }
        lane.trellis = xor_and(lane.trellis >> 1, byte_of(self.taps, index.cast_unsigned() & 3), 0xFC);
        index
    }
}

/// The index of an escape, whose value is the next word (§8.2).
#[inline(always)]
fn escape(words: &mut impl Words, trellis: bool, state: u32) -> i32 {
    let value = sign_extend_16(words.next());
    words.top_up_now();
    if trellis { 2 * value + ((state >> 2) & 1).cast_signed() } else { value }
}

/// Tables of [`form::INDEXED`](crate::layout::form::INDEXED).
#[derive(Debug, Clone, Copy)]
pub struct Indexed<M> {
    memory: M,
    precision: u32,
    unions: u32,
    symbols: u32,
    entries: u32,
    last_class: i32,
    next: u32,
    trellis: bool,
}

impl<M: Memory> Indexed<M> {
    /// Of a tensor's record.
    #[inline(always)]
    pub fn new(memory: M, tensor: &TensorRecord) -> Self {
        Self {
            memory,
            precision: tensor.precision,
            unions: tensor.unions,
            symbols: tensor.symbols,
            entries: tensor.entries,
            last_class: tensor.classes.cast_signed() - 1,
            next: tensor.taps,
            trellis: tensor.trellis != 0,
        }
    }
}

impl<M: Memory> Symbols for Indexed<M> {
    #[inline(always)]
    fn class(&self, class: i32) -> u32 {
        class.clamp(0, self.last_class).cast_unsigned() * self.unions
    }

    #[inline(always)]
    fn step<const CAREFUL: bool>(&self, lane: &mut Lane, class: u32, words: &mut impl Words) -> i32 {
        let state = lane.trellis >> 2;
        let table = class + if self.unions == 2 { state & 1 } else { 0 };
        let slot = lane.x & ((1 << self.precision) - 1);
        let symbol = self.memory.byte((table << self.precision) + slot);
        let at = self.entries + (table * self.symbols + symbol) * 8;
        let (place, value) = (self.memory.word(at), self.memory.word(at + 4));
        lane.advance(place >> 16, slot.wrapping_sub(place & 0xFFFF), self.precision, words);
        if !self.trellis {
            return if value == INDEXED_ESCAPE { escape(words, false, 0) } else { value.cast_signed() };
        }
        let index = if value == INDEXED_ESCAPE {
            escape(words, true, lane.trellis)
        } else {
            value.wrapping_add(state & 1).cast_signed()
        };
        let branch = (index >> 1).cast_unsigned() & 1;
        lane.trellis = self.memory.byte(self.next + 2 * state + branch) << 2;
        index
    }
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

/// Decodes [`CHUNK`] rows of a lane into indices. `class_of` gives where the tables of a row's class begin. `CAREFUL`: there may be fewer rows, and escapes.
#[inline(always)]
pub fn chunk<const CAREFUL: bool>(
    symbols: &impl Symbols,
    lane: &mut Lane,
    words: &mut impl Words,
    rows: u32,
    class_of: impl Fn(u32) -> u32,
) -> [i32; CHUNK] {
    rows!(ROW => {
        if ROW == 0 || ROW == CHUNK / 2 {
            words.top_up();
        }
        if !CAREFUL || (ROW as u32) < rows {
            symbols.step::<CAREFUL>(lane, class_of(ROW as u32), words)
        } else {
            0
        }
    })
}

/// What a sink of latents gets of a chunk's indices: themselves, or with the Hadamard synthesis four times the latents (§9). `rows` are really there.
#[inline(always)]
pub fn synthesise(indices: [i32; CHUNK], with_hadamard: bool, rows: u32) -> [i32; CHUNK] {
    if !with_hadamard {
        indices
    } else if rows == CHUNK as u32 {
        hadamard(indices)
    } else {
        rows!(ROW => indices[ROW] * 4)
    }
}

/// Compares where a lane came to with where it must (§6.4): the code of what is wrong, or 0. `x` is the state, or [`LOWER_BOUND`] if it may be any.
#[inline(always)]
pub fn end_code(read: u32, end: u32, x: u32) -> u32 {
    if read > end {
        Error::Overrun.code().into()
    } else if read < end {
        Error::Trailing.code().into()
    } else if x != LOWER_BOUND {
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
