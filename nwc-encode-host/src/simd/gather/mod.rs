//! The engine for AVX2, AVX-512 and NEON: tables for gathers, and which kernel runs.
//!
//! With a precision of at most 12 bits an entry holds all that a slot needs to be decoded, so a symbol is one load; with more bits one load
//! finds the symbol and another its frequency, which keeps 2^14 slots in a level-1 cache.

#[cfg(target_arch = "x86_64")]
#[allow(clippy::wildcard_imports)] // of intrinsics, dozens of them
pub(super) mod avx2;
#[cfg(target_arch = "x86_64")]
#[allow(clippy::wildcard_imports)]
pub(super) mod avx512;
#[cfg(target_arch = "aarch64")]
#[allow(clippy::wildcard_imports)]
mod neon;

use nwc_decode_core::{CHUNK_ROWS, MAX_LANES, Rows, Tables};

use super::Level;

/// A value that stands for the escape in the tables below.
const ESCAPE: i32 = -128;
/// Most bits of precision for which an entry of the slot table holds everything.
const PACKED_PRECISION: u32 = 12;
/// Entries of a table of symbols.
const SYMBOLS: usize = 256;

/// Tables, and the instructions to use them with.
#[derive(Debug)]
pub(super) struct Engine {
    /// One that the processor has, and not the plain one.
    level: Level,
    layout: Layout,
}

impl Engine {
    /// `None` if the processor does not have the level, or a value of a symbol does not fit a byte.
    pub(super) fn new(tables: &Tables<'_>, level: Level) -> Option<Self> {
        if level == Level::Plain || !Level::available().contains(&level) {
            return None;
        }
        Some(Self { level, layout: Layout::new(tables)? })
    }

    pub(super) fn level(&self) -> Level {
        self.level
    }

    /// False if a trellis state is none of the codec's: that is an error which the plain engine reports.
    pub(super) fn suits(&self, rows: &Rows<'_>) -> bool {
        rows.trellis.iter().take(rows.lanes).all(|&state| u32::from(state) < self.layout.states)
    }

    /// Decodes rows that suit; returns how many words were read, more than there are if they did not suffice.
    pub(super) fn decode_rows(&self, mut rows: Rows<'_>) -> usize {
        let layout = &self.layout;
        #[cfg(target_arch = "aarch64")]
        let kernel =
            |rows: &mut Rows<'_>, words: &[[u8; 2]], from| neon::decode_rows(layout, rows, words, from);
        #[cfg(target_arch = "x86_64")]
        let kernel = |rows: &mut Rows<'_>, words: &[[u8; 2]], from| {
            if self.level == Level::Avx512 {
                // SAFETY: the processor has the level.
                unsafe { avx512::decode_rows(layout, rows, words, from) }
            } else {
                // SAFETY: the processor has the level.
                unsafe { avx2::decode_rows(layout, rows, words, from) }
            }
        };
        run(&mut rows, kernel)
    }
}

/// A codec's tables, laid out for gathers.
///
/// Invariants that the gathers rely on: `slots` has classes * unions * 2^precision entries if `packed`, else a quarter of that and one more;
/// `symbols` has classes * unions * [`SYMBOLS`] entries unless `packed`; `next` has 2 * states entries, all below `states`.
#[derive(Debug)]
struct Layout {
    precision: u32,
    unions: u32,
    classes: u32,
    /// Entries by slot are `value << 24 | frequency << 12 | slot - start`; otherwise they are bytes, value + 128.
    packed: bool,
    slots: Vec<u32>,
    /// `start | frequency << 16` by table and value + 128.
    symbols: Vec<u32>,
    /// Next trellis states; empty for the scalar quantiser.
    next: Vec<u32>,
    /// How a trellis can do without that table.
    register: Option<ShiftRegister>,
    /// Number of trellis states; 1 for the scalar quantiser.
    states: u32,
}

/// The next state of a systematic feedback code: the state shifted down, combined with one number if its lowest bit is set and with another if
/// the branch's bit is. All trellises that the encoder uses are of this kind; computing the state is faster than a gather.
#[derive(Debug, Clone, Copy)]
struct ShiftRegister {
    feedback: u32,
    input: u32,
}

impl ShiftRegister {
    /// `None` if the table is not of this kind.
    fn of(next: &[u32]) -> Option<Self> {
        let (&input, &feedback) = (next.get(1)?, next.get(2)?);
        let matches = next.iter().zip(0u32..).all(|(&next, branch)| {
            let (state, bit) = (branch >> 1, branch & 1);
            next == (state >> 1) ^ ((state & 1) * feedback) ^ (bit * input)
        });
        matches.then_some(Self { feedback, input })
    }
}

/// How a kernel finds the next trellis state.
mod trellis {
    /// There is no trellis.
    pub(super) const NONE: u8 = 0;
    /// By a shift register.
    pub(super) const REGISTER: u8 = 1;
    /// In the table.
    pub(super) const TABLE: u8 = 2;
}

impl Layout {
    fn trellis(&self) -> u8 {
        match self.register {
            _ if self.next.is_empty() => trellis::NONE,
            Some(_) => trellis::REGISTER,
            None => trellis::TABLE,
        }
    }

    /// `None` if a value of a symbol does not fit a byte.
    fn new(tables: &Tables<'_>) -> Option<Self> {
        let precision = tables.precision();
        let (unions, classes) = (tables.unions(), tables.classes().cast_unsigned());
        let packed = precision <= PACKED_PRECISION;
        let total = 1usize << precision;
        let count = (classes * unions) as usize;
        let mut slots = vec![0u32; count * total];
        let mut symbols = vec![0u32; if packed { 0 } else { count * SYMBOLS }];
        for (number, slots) in slots.chunks_exact_mut(total).enumerate() {
            let (class, union) = (number / unions as usize, number % unions as usize);
            for (i, (value, start, frequency)) in tables.weight_symbols(class, union).enumerate() {
                let value = if i == 0 { ESCAPE } else { value };
                if i > 0 && !(ESCAPE + 1..=127).contains(&value) {
                    return None;
                }
                let byte = (value - ESCAPE).cast_unsigned();
                for offset in 0..frequency {
                    slots[(start + offset) as usize] =
                        if packed { value.cast_unsigned() << 24 | frequency << 12 | offset } else { byte };
                }
                if !packed {
                    symbols[number * SYMBOLS + byte as usize] = start | frequency << 16;
                }
            }
        }
        if !packed {
            let bytes: Vec<u8> = slots.iter().map(|&byte| byte as u8).collect();
            slots = bytes.as_chunks::<4>().0.iter().map(|four| u32::from_le_bytes(*four)).collect();
            slots.push(0); // a gather of four bytes may begin at the last
        }
        let next = tables.next_states();
        let states = (next.len() as u32 / 2).max(1);
        let next: Vec<u32> = next.iter().map(|&state| u32::from(state) % states).collect();
        let register = ShiftRegister::of(&next);
        Some(Self { precision, unions, classes, packed, slots, symbols, next, register, states })
    }
}

/// Words that a row may take: a refill and an escape for each lane.
const ROW_WORDS: usize = 2 * MAX_LANES;

/// Decodes all rows with `kernel`, which decodes those from `from` on as long as [`ROW_WORDS`] words are left, and says which row it came to and
/// how many words it took. The last words are put into a buffer with zeros behind them: who reads those is found out afterwards.
fn run(rows: &mut Rows<'_>, kernel: impl Fn(&mut Rows<'_>, &[[u8; 2]], usize) -> (usize, usize)) -> usize {
    let (row, taken) = kernel(rows, rows.words, 0);
    if row == rows.row_class.len() {
        return taken;
    }
    let rest = rows.words.get(taken..).unwrap_or(&[]);
    let rest = rest.get(..ROW_WORDS).unwrap_or(rest);
    let mut padded = [[0u8; 2]; ROW_WORDS * (CHUNK_ROWS + 1)];
    padded[..rest.len()].copy_from_slice(rest);
    taken + kernel(rows, &padded, row).1
}
