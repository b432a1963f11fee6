//! Decoding with the vector instructions of x86-64, chosen when the program runs.
//!
//! [`SimdEngine`] decodes the symbols of a tile's rows, [`Level::write`] turns a chunk of latents into weights. Both give the bytes that the
//! plain decoder gives; everything around them is `nwc-decode-core`'s.
//!
//! Tables are laid out for gathers: with a precision of at most 12 bits an entry holds all that a slot needs to be decoded, so a symbol is
//! one load; with more bits one load finds the symbol and another its frequency, which keeps 2^14 slots in a level-1 cache.

#[cfg(target_arch = "x86_64")]
#[allow(clippy::wildcard_imports)] // of intrinsics, dozens of them
mod avx2;
#[cfg(target_arch = "x86_64")]
#[allow(clippy::wildcard_imports)]
mod avx512;

use nwc_decode_core::{CHUNK_ROWS, Chunk, Element, Error, MAX_LANES, RowEngine, Rows, Tables};

/// Instruction sets with a decoder of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Level {
    /// What every processor of the compiler's target has: the plain decoder.
    Plain,
    /// AVX2 and F16C.
    Avx2,
    /// AVX-512 (F, BW, DQ, VL).
    Avx512,
}

impl Level {
    /// The best that this processor has.
    pub fn best() -> Self {
        Self::available().last().copied().unwrap_or(Self::Plain)
    }

    /// All that this processor has, the slowest first.
    pub fn available() -> &'static [Self] {
        #[cfg(target_arch = "x86_64")]
        if std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("f16c") {
            let wide = std::is_x86_feature_detected!("avx512f")
                && std::is_x86_feature_detected!("avx512bw")
                && std::is_x86_feature_detected!("avx512dq")
                && std::is_x86_feature_detected!("avx512vl");
            return if wide { &[Self::Plain, Self::Avx2, Self::Avx512] } else { &[Self::Plain, Self::Avx2] };
        }
        &[Self::Plain]
    }

    /// Rounds a chunk's weights to `T` as [`Chunk::write`] does, and hands them to `put` in runs of neighbours: with the position of the first,
    /// where row r and column c of the tile have position `r * row_stride + c * column_stride`.
    ///
    /// # Errors
    /// Those of `put`.
    pub fn write<T: SimdElement>(
        self,
        chunk: &Chunk,
        row_stride: usize,
        column_stride: usize,
        mut put: impl FnMut(usize, &[T]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut weights = [[T::default(); MAX_LANES]; CHUNK_ROWS];
        let (rows, lanes) = (chunk.rows.min(CHUNK_ROWS), chunk.lanes.min(MAX_LANES));
        if self == Self::Plain || !Self::available().contains(&self) {
            let place = Chunk { first_row: 0, first_column: 0, ..chunk.clone() };
            place.write(weights.as_flattened_mut(), MAX_LANES, 1)?;
        } else {
            T::scale(self, chunk, &mut weights);
        }
        let first = chunk.first_row * row_stride + chunk.first_column * column_stride;
        if column_stride == 1 {
            for (row, weights) in weights[..rows].iter().enumerate() {
                put(first + row * row_stride, &weights[..lanes])?;
            }
            return Ok(());
        }
        (0..lanes).try_for_each(|lane| {
            let column: [T; CHUNK_ROWS] = std::array::from_fn(|row| weights[row][lane]);
            let start = first + lane * column_stride;
            if row_stride == 1 {
                return put(start, &column[..rows]);
            }
            let mut places = column[..rows].iter().enumerate();
            places.try_for_each(|(row, weight)| put(start + row * row_stride, std::slice::from_ref(weight)))
        })
    }
}

/// Number types that [`Level::write`] writes.
pub trait SimdElement: Element + private::Scale {}
impl SimdElement for f32 {}
impl SimdElement for half::f16 {}
impl SimdElement for half::bf16 {}

mod private {
    use super::{CHUNK_ROWS, Chunk, Level, MAX_LANES};

    pub trait Scale: Sized {
        /// The weights of a chunk; `level` is one that the processor has, and not the plain one.
        fn scale(level: Level, chunk: &Chunk, weights: &mut [[Self; MAX_LANES]; CHUNK_ROWS]);
    }
}

macro_rules! impl_scale {
    ($($type:ty => $name:ident),*) => {$(
        impl private::Scale for $type {
            #[cfg(target_arch = "x86_64")]
            fn scale(level: Level, chunk: &Chunk, weights: &mut [[Self; MAX_LANES]; CHUNK_ROWS]) {
                if level == Level::Avx512 {
                    // SAFETY: the caller vouches for the level.
                    unsafe { avx512::$name(chunk, weights) }
                } else {
                    // SAFETY: as above.
                    unsafe { avx2::$name(chunk, weights) }
                }
            }

            #[cfg(not(target_arch = "x86_64"))]
            fn scale(_: Level, _: &Chunk, _: &mut [[Self; MAX_LANES]; CHUNK_ROWS]) {
                unreachable!("there is only the plain level")
            }
        }
    )*};
}
impl_scale!(f32 => scale_f32, half::f16 => scale_f16, half::bf16 => scale_bf16);

/// A value that stands for the escape in the tables below.
const ESCAPE: i32 = -128;
/// Most bits of precision for which an entry of the slot table holds everything.
const PACKED_PRECISION: u32 = 12;
/// Entries of a table of symbols.
const SYMBOLS: usize = 256;

/// Decodes symbols with gathers; or plainly, where the processor or the tables do not suit.
#[derive(Debug)]
pub struct SimdEngine<'t> {
    plain: Tables<'t>,
    level: Level,
    layout: Layout,
}

/// A codec's tables, laid out for gathers.
///
/// Invariants that the gathers rely on: `slots` has classes * unions * 2^precision entries if `packed`, else a quarter of that and one more;
/// `symbols` has classes * unions * [`SYMBOLS`] entries unless `packed`; `next` has 2 * states entries, all below `states`.
#[derive(Debug, Default)]
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

impl<'t> SimdEngine<'t> {
    /// An engine of this level for these tables; a plain one if the processor does not have the level, or a value of a symbol does not fit a byte.
    pub fn new(tables: &Tables<'t>, level: Level) -> Self {
        let level = if Level::available().contains(&level) { level } else { Level::Plain };
        let layout = if level == Level::Plain { None } else { Layout::new(tables) };
        let level = if layout.is_some() { level } else { Level::Plain };
        Self { plain: *tables, level, layout: layout.unwrap_or_default() }
    }

    /// The level that is used.
    pub fn level(&self) -> Level {
        self.level
    }
}

impl RowEngine for SimdEngine<'_> {
    fn decode_rows(&self, rows: Rows<'_>) -> Result<usize, Error> {
        #[cfg(target_arch = "x86_64")]
        if self.level != Level::Plain {
            // A seek point may hold any state: one that the trellis does not have is an error of the plain engine too.
            let lanes = rows.lanes.min(MAX_LANES);
            if rows.trellis[..lanes].iter().any(|&state| u32::from(state) >= self.layout.states.max(1)) {
                return self.plain.decode_rows(rows);
            }
            let run = if self.level == Level::Avx512 { run_avx512 } else { run_avx2 };
            return Ok(run(&self.layout, rows));
        }
        self.plain.decode_rows(rows)
    }
}

/// Words that a row may take: a refill and an escape for each lane.
const ROW_WORDS: usize = 2 * MAX_LANES;

/// Decodes all rows with `kernel`, which decodes those from `from` on as long as [`ROW_WORDS`] words are left, and says which row it came to and
/// how many words it took. The last words are put into a buffer with zeros behind them: who reads those is found out afterwards.
#[cfg(target_arch = "x86_64")]
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

#[cfg(target_arch = "x86_64")]
fn run_avx512(layout: &Layout, mut rows: Rows<'_>) -> usize {
    // SAFETY: an engine has this level only where the processor has it.
    run(&mut rows, |rows, words, from| unsafe { avx512::decode_rows(layout, rows, words, from) })
}

#[cfg(target_arch = "x86_64")]
fn run_avx2(layout: &Layout, mut rows: Rows<'_>) -> usize {
    // SAFETY: an engine has this level only where the processor has it.
    run(&mut rows, |rows, words, from| unsafe { avx2::decode_rows(layout, rows, words, from) })
}
