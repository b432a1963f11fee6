//! The inner loop: symbols of rows of lanes (§8.2 step 3, §8.3, §8.4).

use crate::rans::Words;
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

/// Marks a weight whose symbol was the escape; no index is as large.
const ESCAPED: i32 = i32::MIN;

impl RowEngine for Tables<'_> {
    fn decode_rows(&self, rows: Rows<'_>) -> Result<usize, Error> {
        if self.next_states().is_empty() { self.rows::<false>(rows) } else { self.rows::<true>(rows) }
    }
}

impl Tables<'_> {
    #[inline]
    fn rows<const TRELLIS: bool>(&self, rows: Rows<'_>) -> Result<usize, Error> {
        let mut words = Words::new(rows.words);
        let mut known = None;
        let mut tables = [0; MAX_LANES];
        for (&row_class, out) in rows.row_class.iter().zip(rows.latents) {
            if known != Some(row_class) {
                tables = self.lane_tables(rows.class, row_class);
                known = Some(row_class);
            }
            let (Some(rans), Some(trellis), Some(tables), Some(out)) = (
                rows.rans.get_mut(..rows.lanes),
                rows.trellis.get_mut(..rows.lanes),
                tables.get(..rows.lanes),
                out.get_mut(..rows.lanes),
            ) else {
                return Err(Error::Geometry);
            };
            self.row::<TRELLIS>(&mut words, rans, trellis, tables, out)?;
        }
        Ok(words.read())
    }

    /// The first table of each lane's class in rows of this class (§8.3).
    fn lane_tables(&self, class: &[i32; MAX_LANES], row_class: i32) -> [u32; MAX_LANES] {
        let last_class = self.classes().wrapping_sub(1);
        let unions = self.union_mask().wrapping_add(1);
        class.map(|class| {
            class.wrapping_add(row_class).clamp(0, last_class).cast_unsigned().wrapping_mul(unions)
        })
    }

    /// One row: symbols and refills, then escapes.
    #[inline(always)]
    fn row<const TRELLIS: bool>(
        &self,
        words: &mut Words<'_>,
        rans: &mut [u32],
        trellis: &mut [u8],
        tables: &[u32],
        out: &mut [i32],
    ) -> Result<(), Error> {
        let union_mask = self.union_mask();
        let next_states = self.next_states();
        let mut escapes = false;
        for (((x, state), &table), out) in
            rans.iter_mut().zip(trellis.iter_mut()).zip(tables).zip(out.iter_mut())
        {
            let table = table.wrapping_add(u32::from(*state) & union_mask);
            let (symbol, value) = self.decode(num::index(table), x)?;
            *x = words.refill(*x);
            if symbol == 0 {
                escapes = true;
                *out = ESCAPED;
            } else {
                *out = if TRELLIS { step(next_states, state, value)? } else { value };
            }
        }
        if escapes {
            for (state, out) in trellis.iter_mut().zip(out).filter(|(_, out)| **out == ESCAPED) {
                let value = num::sign_extend_16(words.take());
                *out = if TRELLIS { step(next_states, state, value)? } else { value };
            }
        }
        words.check()
    }
}

/// The index of a value, and the trellis state after it (§8.4).
#[inline(always)]
fn step(next_states: &[u8], state: &mut u8, value: i32) -> Result<i32, Error> {
    let branch = (u32::from(*state) << 1) | (value.cast_unsigned() & 1);
    let index = value.wrapping_mul(2).wrapping_add(i32::from(*state & 1));
    *state = *next_states.get(num::index(branch)).ok_or(Error::Codec)?;
    Ok(index)
}
