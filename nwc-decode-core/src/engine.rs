//! The inner loop: symbols of rows of lanes (§8.2 step 3, §8.3, §8.4).

use crate::rans::Words;
use crate::tables::{Slots, Symbols};
use crate::tile::{CHUNK_ROWS, MAX_LANES};
use crate::{Error, Synthesis, Tables, num};

/// Decodes the symbols of rows and makes latents of them: what nearly all time goes to.
///
/// [`Tables`] are the plain engine, for every processor. A host may bring another that does the same faster; everything around it (side
/// information, groups of columns, seek points, the checks at the end of a stream) is the decoder's own, whatever the engine.
pub trait RowEngine {
    /// Decodes rows; returns how many words were read.
    ///
    /// # Errors
    /// [`Error::Overrun`] if the words do not suffice. What is in `rows` does not matter after an error.
    fn decode_rows(&self, rows: Rows<'_>) -> Result<usize, Error>;

    /// Turns the indices of a chunk's first `rows` rows into latents, as [`Synthesis::apply`] does. A host may compile that once more, for the vectors of
    /// its processor.
    #[inline(never)] // so that its arrays are not on the stack while symbols are decoded
    fn synthesise(
        &self,
        synthesis: Synthesis<'_>,
        latents: &mut [[i32; MAX_LANES]; CHUNK_ROWS],
        rows: usize,
    ) {
        synthesis.apply(latents, rows);
    }
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

/// A lane while its rows are decoded.
#[derive(Clone, Copy)]
#[repr(C)]
struct Lane<'t> {
    x: u32,
    /// Those of its class, for each parity of the trellis state; twice the same if the codec does not tell them apart.
    tables: [&'t Symbols<'t>; 2],
}

/// Marks a weight whose symbol was the escape; no value is as large.
const ESCAPED: i32 = i32::MIN;

impl RowEngine for Tables<'_> {
    fn decode_rows(&self, rows: Rows<'_>) -> Result<usize, Error> {
        let mut lanes = [Lane { x: 0, tables: self.class(0)? }; MAX_LANES];
        let lanes = lanes.get_mut(..rows.lanes).ok_or(Error::Geometry)?;
        let trellis = rows.trellis.get_mut(..rows.lanes).ok_or(Error::Geometry)?;
        for (lane, &x) in lanes.iter_mut().zip(&*rows.rans) {
            lane.x = x;
        }
        let mut words = Words::new(rows.words);
        let last = self.classes().wrapping_sub(1).max(0); // never negative, which `clamp` must see
        let mut known = None;
        for (&row_class, out) in rows.row_class.iter().zip(rows.latents) {
            if last > 0 && known != Some(row_class) {
                known = Some(row_class);
                for (lane, class) in lanes.iter_mut().zip(rows.class) {
                    let class = class.wrapping_add(row_class).clamp(0, last).cast_unsigned();
                    lane.tables = self.class(num::index(class))?;
                }
            }
            let out = out.get_mut(..rows.lanes).ok_or(Error::Geometry)?;
            let any_escapes = if self.unions() == 2 {
                symbols::<true>(self.slots(), &mut words, lanes, trellis, out)?
            } else {
                symbols::<false>(self.slots(), &mut words, lanes, trellis, out)?
            };
            if any_escapes {
                escapes(&mut words, out)?;
            }
            if !self.next_states().is_empty() {
                indices(self.next_states(), trellis, out)?;
            }
        }
        for (lane, x) in lanes.iter().zip(rows.rans) {
            *x = lane.x;
        }
        Ok(words.read())
    }
}

/// One row of symbols and refills (§6); true if there is an escape among them. `SPLIT`: the tables depend on the trellis state.
///
/// All slices are as long as there are lanes. They shorten at the end of the loop, one beside the other: so a single count of what is left serves
/// all of them, and each is a pointer that moves when it is not needed any more. That spares a small device's registers.
#[cfg_attr(any(target_arch = "arm", target_arch = "riscv32"), inline(never))]
#[cfg_attr(not(any(target_arch = "arm", target_arch = "riscv32")), inline(always))]
fn symbols<const SPLIT: bool>(
    slots: Slots,
    words: &mut Words<'_>,
    mut lanes: &mut [Lane<'_>],
    trellis: &[u8],
    out: &mut [i32],
) -> Result<bool, Error> {
    let mut states = trellis.get(..lanes.len()).ok_or(Error::Geometry)?;
    let mut out = out.get_mut(..lanes.len()).ok_or(Error::Geometry)?;
    let mut rest = words.clone();
    let mut escapes = false;
    while let (Some(lane), Some(state), Some(place)) = (lanes.first_mut(), states.first(), out.first_mut()) {
        let union = if SPLIT { usize::from(state & 1) } else { 0 };
        let table = lane.tables.get(union).ok_or(Error::Table)?;
        let (value, x) = table.decode(slots, lane.x, |_| escaped(&mut escapes))?;
        lane.x = rest.refill(x)?;
        *place = value;
        let (Some((_, lanes_left)), Some((_, states_left)), Some((_, out_left))) =
            (lanes.split_first_mut(), states.split_first(), out.split_first_mut())
        else {
            break;
        };
        (lanes, states, out) = (lanes_left, states_left, out_left);
    }
    *words = rest;
    Ok(escapes)
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
fn escapes(words: &mut Words<'_>, out: &mut [i32]) -> Result<(), Error> {
    for value in out.iter_mut().filter(|value| **value == ESCAPED) {
        *value = num::sign_extend_16(words.take()?);
    }
    Ok(())
}

/// Turns a row's values into indices, and moves the trellis states on (§8.4).
#[inline(always)]
fn indices(next_states: &[u8], trellis: &mut [u8], out: &mut [i32]) -> Result<(), Error> {
    for (state, value) in trellis.iter_mut().zip(out) {
        let branch = (usize::from(*state) << 1) | num::index(value.cast_unsigned() & 1);
        *value = value.wrapping_mul(2).wrapping_add(i32::from(*state & 1));
        *state = *next_states.get(branch).ok_or(Error::Codec)?;
    }
    Ok(())
}
