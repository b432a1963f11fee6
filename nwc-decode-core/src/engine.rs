//! The inner loop: symbols of rows of lanes (§8.2 step 3, §8.3, §8.4).

use crate::rans::{LOWER_BOUND, Words};
use crate::tile::{CHUNK_ROWS, MAX_LANES};
use crate::{Error, Tables, num};

/// Decodes the symbols of rows into latents: what nearly all time goes to.
///
/// [`Tables`] are the plain engine, for every processor. A host may bring another that does the same faster; everything around it (side
/// information, groups of columns, seek points, the checks at the end of a stream) is the decoder's own, whatever the engine.
pub trait RowEngine {
    /// Decodes rows; returns how many words were read.
    ///
    /// # Errors
    /// [`Error::Overrun`] if the words do not suffice. What is in `rows` does not matter after an error.
    fn decode_rows(&self, rows: Rows<'_>) -> Result<usize, Error>;
}

/// Rows to be decoded, and the states that change with them.
#[derive(Debug)]
pub struct Rows<'r> {
    /// The stream's words from the next one on.
    pub words: &'r [[u8; 2]],
    /// rANS state of each lane.
    pub rans: &'r mut [u32; MAX_LANES],
    /// Trellis state of each lane.
    pub trellis: &'r mut [u8; MAX_LANES],
    /// Class base + column class of each lane.
    pub class: &'r [i32; MAX_LANES],
    /// What each row adds to the classes; as long as there are rows, at most [`CHUNK_ROWS`].
    pub row_class: &'r [i32],
    /// Lanes that take part, at most [`MAX_LANES`].
    pub lanes: usize,
    /// Where the indices go, `[row][lane]`.
    pub latents: &'r mut [[i32; MAX_LANES]; CHUNK_ROWS],
}

impl RowEngine for Tables<'_> {
    fn decode_rows(&self, rows: Rows<'_>) -> Result<usize, Error> {
        if self.unions() == 2 { self.rows::<true>(rows) } else { self.rows::<false>(rows) }
    }
}

/// A lane while its rows are decoded. What belongs to the second union's table stands in the upper halves.
#[derive(Debug, Clone, Copy, Default)]
struct Lane {
    x: u32,
    state: u32,
    /// Where the look-up of the first union's table begins; the second's lies behind it.
    lookup: u32,
    /// Where the tables' entries begin.
    entries: u32,
    /// Values of the tables' symbols 1, which all fit 16 bits.
    values: u32,
}

/// Marks a weight whose symbol was the escape; no value is as large.
const ESCAPED: i32 = i32::MIN;

/// Where a branch costs little when it is not taken, and nothing predicts it, a lane that needs no word skips its refill.
const BRANCH_ON_REFILL: bool = cfg!(any(target_arch = "arm", target_arch = "riscv32"));

impl Tables<'_> {
    /// `SPLIT`: each class has a table for either parity of the trellis state.
    #[inline(never)]
    fn rows<const SPLIT: bool>(&self, rows: Rows<'_>) -> Result<usize, Error> {
        let mut words = Words::new(rows.words);
        let mut lanes = [Lane::default(); MAX_LANES];
        let lanes = lanes.get_mut(..rows.lanes).ok_or(Error::Geometry)?;
        for ((lane, &x), &state) in lanes.iter_mut().zip(&*rows.rans).zip(&*rows.trellis) {
            (lane.x, lane.state) = (x, u32::from(state));
        }
        let mut known = None;
        for (&row_class, out) in rows.row_class.iter().zip(rows.latents) {
            if known != Some(row_class) {
                known = Some(row_class);
                for (lane, class) in lanes.iter_mut().zip(rows.class) {
                    self.set_tables::<SPLIT>(lane, class.wrapping_add(row_class))?;
                }
            }
            let escapes = self.symbols::<SPLIT>(&mut words, lanes, out)?;
            if escapes {
                for value in out.iter_mut().take(rows.lanes).filter(|value| **value == ESCAPED) {
                    *value = num::sign_extend_16(words.take());
                }
            }
            words.check()?;
            if !self.next_states().is_empty() {
                indices(self.next_states(), lanes, out)?;
            }
        }
        for ((lane, x), state) in lanes.iter().zip(rows.rans).zip(rows.trellis) {
            (*x, *state) = (lane.x, num::low_u8(lane.state));
        }
        Ok(words.read())
    }

    /// Looks up the tables of a class (§8.3).
    fn set_tables<const SPLIT: bool>(&self, lane: &mut Lane, class: i32) -> Result<(), Error> {
        let last_class = self.classes().wrapping_sub(1).max(0); // never negative, which `clamp` must see
        let class = class.clamp(0, last_class).cast_unsigned();
        let table = class.wrapping_mul(self.unions());
        let (entries, value) = self.descriptor(table)?;
        (lane.entries, lane.values) = (entries, num::low_16(value.wrapping_add(1)));
        if SPLIT {
            let (entries, value) = self.descriptor(table.wrapping_add(1))?;
            lane.entries |= entries << 16;
            lane.values |= value.wrapping_add(1) << 16;
        }
        lane.lookup = table << (self.lookup_bits() & 31);
        Ok(())
    }

    /// One row of symbols and refills (§6); true if there is an escape among them.
    #[inline(always)]
    fn symbols<const SPLIT: bool>(
        &self,
        words: &mut Words<'_>,
        lanes: &mut [Lane],
        out: &mut [i32; MAX_LANES],
    ) -> Result<bool, Error> {
        let (lookup, entries) = self.lookup();
        let (precision, bits) = (self.precision() & 31, self.lookup_bits() & 31);
        let spare = precision.wrapping_sub(bits) & 31;
        let mut escapes = false;
        for (lane, out) in lanes.iter_mut().zip(out) {
            let half = if SPLIT { (lane.state & 1) << 4 } else { 0 };
            let slot = lane.x & (1u32 << precision).wrapping_sub(1);
            let mut bucket = lane.lookup.wrapping_add(slot >> spare);
            if SPLIT {
                bucket = bucket.wrapping_add((lane.state & 1) << bits);
            }
            let first = u32::from(*lookup.get(num::index(bucket)).ok_or(Error::Table)?);
            let start = num::low_16(lane.entries >> half);
            let mut at = start.wrapping_add(first);
            loop {
                let entry = *entries.get(num::index(at)).ok_or(Error::Table)?;
                let (offset, frequency) = (slot.wrapping_sub(num::low_16(entry)), entry >> 16);
                if offset < frequency {
                    lane.x = frequency.wrapping_mul(lane.x >> precision).wrapping_add(offset);
                    break;
                }
                at = at.wrapping_add(1);
            }
            if BRANCH_ON_REFILL {
                if lane.x < LOWER_BOUND {
                    lane.x = (lane.x << 16) | words.take();
                }
            } else {
                lane.x = words.refill(lane.x);
            }
            let symbol = at.wrapping_sub(start);
            escapes |= symbol == 0;
            let past_first = symbol.wrapping_sub(1).cast_signed();
            let value = num::sign_extend_16(lane.values >> half).wrapping_add(past_first);
            *out = if symbol == 0 { ESCAPED } else { value };
        }
        Ok(escapes)
    }
}

/// Turns a row's values into indices, and moves the trellis states on (§8.4).
#[inline(always)]
fn indices(next_states: &[u8], lanes: &mut [Lane], out: &mut [i32; MAX_LANES]) -> Result<(), Error> {
    for (lane, out) in lanes.iter_mut().zip(out) {
        let branch = (lane.state << 1) | (out.cast_unsigned() & 1);
        *out = out.wrapping_mul(2).wrapping_add((lane.state & 1).cast_signed());
        lane.state = u32::from(*next_states.get(num::index(branch)).ok_or(Error::Codec)?);
    }
    Ok(())
}
