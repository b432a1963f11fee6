//! The inner loop: symbols of rows of lanes (§8.2 step 3, §8.3, §8.4).

use crate::rans::Words;
use crate::tables::Table;
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
        if self.unions() == 2 { self.rows::<2>(rows) } else { self.rows::<1>(rows) }
    }
}

/// A lane while its rows are decoded. `UNIONS`: tables that its class has, one for each parity of the trellis state if there are two.
#[derive(Debug, Clone, Copy)]
struct Lane<'t, const UNIONS: usize> {
    x: u32,
    state: u32,
    /// Of the last symbol.
    value: i32,
    tables: &'t [Table<'t>; UNIONS],
}

/// Marks a weight whose symbol was the escape; no value is as large.
const ESCAPED: i32 = i32::MIN;

impl<'s> Tables<'s> {
    #[inline(never)]
    fn rows<const UNIONS: usize>(&self, rows: Rows<'_>) -> Result<usize, Error> {
        let (classes, _) = self.all().as_chunks::<UNIONS>();
        let tables = classes.first().ok_or(Error::Table)?;
        let mut words = Words::new(rows.words);
        let mut lanes = [Lane { x: 0, state: 0, value: 0, tables }; MAX_LANES];
        let lanes = lanes.get_mut(..rows.lanes).ok_or(Error::Geometry)?;
        for ((lane, &x), &state) in lanes.iter_mut().zip(&*rows.rans).zip(&*rows.trellis) {
            (lane.x, lane.state) = (x, u32::from(state));
        }
        let mut known = None;
        for (&row_class, out) in rows.row_class.iter().zip(rows.latents) {
            if known != Some(row_class) {
                known = Some(row_class);
                let last = self.classes().wrapping_sub(1).max(0); // never negative, which `clamp` must see
                for (lane, class) in lanes.iter_mut().zip(rows.class) {
                    let class = class.wrapping_add(row_class).clamp(0, last).cast_unsigned();
                    lane.tables = classes.get(num::index(class)).ok_or(Error::Table)?;
                }
            }
            if self.symbols(&mut words, lanes)? {
                escapes(&mut words, lanes);
            }
            words.check()?;
            if self.next_states().is_empty() {
                lanes.iter().zip(out).for_each(|(lane, out)| *out = lane.value);
            } else {
                indices(self.next_states(), lanes, out)?;
            }
        }
        for ((lane, x), state) in lanes.iter().zip(rows.rans).zip(rows.trellis) {
            (*x, *state) = (lane.x, num::low_u8(lane.state));
        }
        Ok(words.read())
    }

    /// One row of symbols and refills (§6); true if there is an escape among them.
    #[cfg_attr(any(target_arch = "arm", target_arch = "riscv32"), inline(never))]
    #[cfg_attr(not(any(target_arch = "arm", target_arch = "riscv32")), inline(always))]
    fn symbols<const UNIONS: usize>(
        &self,
        words: &mut Words<'_>,
        lanes: &mut [Lane<'s, UNIONS>],
    ) -> Result<bool, Error> {
        let (precision, spare) = (self.precision() & 31, self.spare_bits() & 31);
        let mask = (1u32 << precision).wrapping_sub(1);
        let mut escapes = false;
        for lane in lanes {
            let union = if UNIONS == 2 { num::index(lane.state & 1) } else { 0 };
            let table = lane.tables.get(union).ok_or(Error::Table)?;
            let slot = lane.x & mask;
            let first = table.lookup.get(num::index(slot >> spare)).ok_or(Error::Table)?;
            let mut symbol = u32::from(*first);
            let (start, offset, frequency) = loop {
                let entry = *table.entries.get(num::index(symbol)).ok_or(Error::Table)?;
                let (start, frequency) = (num::low_16(entry), entry >> 16);
                let offset = slot.wrapping_sub(start);
                if offset < frequency {
                    break (start, offset, frequency);
                }
                symbol = symbol.wrapping_add(1);
            };
            let x = frequency.wrapping_mul(lane.x >> precision).wrapping_add(offset);
            lane.x = words.refill(x);
            lane.value = table.first_value.wrapping_add(symbol.cast_signed());
            // Nothing but the escape, the first symbol, begins at slot 0.
            if num::CHEAP_BRANCHES {
                if start == 0 {
                    lane.value = escaped(&mut escapes);
                }
            } else {
                escapes |= start == 0;
                lane.value = if start == 0 { ESCAPED } else { lane.value };
            }
        }
        Ok(escapes)
    }
}

/// A call keeps what is rare out of the loop's registers.
#[cold]
#[inline(never)]
fn escaped(escapes: &mut bool) -> i32 {
    *escapes = true;
    ESCAPED
}

/// Reads the values of a row's escapes (§8.2).
#[cold]
#[inline(never)]
fn escapes<const UNIONS: usize>(words: &mut Words<'_>, lanes: &mut [Lane<'_, UNIONS>]) {
    for lane in lanes.iter_mut().filter(|lane| lane.value == ESCAPED) {
        lane.value = num::sign_extend_16(words.take());
    }
}

/// Turns a row's values into indices, and moves the trellis states on (§8.4).
#[inline(always)]
fn indices<const UNIONS: usize>(
    next_states: &[u8],
    lanes: &mut [Lane<'_, UNIONS>],
    out: &mut [i32; MAX_LANES],
) -> Result<(), Error> {
    for (lane, out) in lanes.iter_mut().zip(out) {
        let branch = (lane.state << 1) | (lane.value.cast_unsigned() & 1);
        *out = lane.value.wrapping_mul(2).wrapping_add((lane.state & 1).cast_signed());
        lane.state = u32::from(*next_states.get(num::index(branch)).ok_or(Error::Codec)?);
    }
    Ok(())
}
