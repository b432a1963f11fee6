//! Streams of 16-bit words, and lanes of 32-bit states that read them (§6).

use core::slice::Iter;

use crate::bytes::Reader;
use crate::codec::SideTable;
use crate::directory::CodedEntry;
use crate::{Error, Tables, num, scale};

/// The bottom of a lane's range; also the state in which every lane ends.
pub(crate) const LOWER_BOUND: u32 = 1 << 16;

/// Words of a stream from some place on.
#[derive(Debug, Clone)]
pub(crate) struct Words<'a> {
    rest: Iter<'a, [u8; 2]>,
    /// How many there were.
    count: usize,
}

impl<'a> Words<'a> {
    pub(crate) fn new(words: &'a [[u8; 2]]) -> Self {
        Self { rest: words.iter(), count: words.len() }
    }

    /// Takes a word.
    ///
    /// # Errors
    /// [`Error::Overrun`] if none is left.
    #[inline(always)]
    pub(crate) fn take(&mut self) -> Result<u32, Error> {
        self.rest.next().map(|word| u32::from(u16::from_le_bytes(*word))).ok_or(Error::Overrun)
    }

    /// Brings a lane back into its range (§6.3).
    ///
    /// # Errors
    /// As [`take`](Self::take).
    #[inline(always)]
    pub(crate) fn refill(&mut self, x: u32) -> Result<u32, Error> {
        let low = x < LOWER_BOUND;
        if num::SMALL_DEVICE {
            return if low { Ok((x << 16) | self.take()?) } else { Ok(x) };
        }
        // Whether a word is taken is a matter of chance: computed, since a branch would be mispredicted.
        let rest = self.rest();
        let Some(word) = rest.first() else { return if low { Err(Error::Overrun) } else { Ok(x) } };
        self.rest = rest.get(usize::from(low)..).unwrap_or(&[]).iter();
        let refilled = (x << 16) | u32::from(u16::from_le_bytes(*word));
        Ok(if low { refilled } else { x })
    }

    /// Checks that the words are used up but for one zero word of padding (§5.3).
    pub(crate) fn finish(&self) -> Result<(), Error> {
        if matches!(self.rest(), [] | [[0, 0]]) { Ok(()) } else { Err(Error::Trailing) }
    }

    /// Number of words read.
    pub(crate) fn read(&self) -> usize {
        self.count.saturating_sub(self.rest.len())
    }

    /// The words that are left.
    pub(crate) fn rest(&self) -> &'a [[u8; 2]] {
        self.rest.as_slice()
    }

    /// Skips words that somebody else has read.
    ///
    /// # Errors
    /// [`Error::Overrun`] if there are not as many.
    pub(crate) fn skip(&mut self, count: usize) -> Result<(), Error> {
        self.rest = self.rest().get(count..).ok_or(Error::Overrun)?.iter();
        Ok(())
    }
}

/// Reads the initial states of a stream's lanes (§5.3, §6.1) from its first bytes.
pub(crate) fn start(stream: &[u8], lanes: &mut [u32]) -> Result<(), Error> {
    let mut reader = Reader::new(stream);
    for lane in lanes {
        *lane = reader.u32().ok_or(Error::Geometry)?;
        if *lane < LOWER_BOUND {
            return Err(Error::LaneState);
        }
    }
    Ok(())
}

/// Scale and class of a row.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct RowValue {
    /// The row's step: scale(q + ...) of §10.2.
    pub scale: f32,
    /// What the row adds to the class of its weights (§8.3).
    pub class: i32,
}

/// Decodes the scales and classes of rows from a row stream (§7).
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowTables {
    scale: Option<usize>,
    class: Option<usize>,
    step: i32,
    /// Scale values are shifted by this to become codes.
    shift: u32,
}

/// A place in a row stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct RowPlace {
    pub(crate) state: u32,
    /// Words read, the two of the initial state included; 0 before the first row.
    pub(crate) read: usize,
}

impl RowTables {
    /// # Errors
    /// [`Error::Coding`] if the tables lack a kind that the tensor needs.
    pub(crate) fn new(entry: &CodedEntry, tables: &Tables<'_>) -> Result<Self, Error> {
        Ok(Self {
            scale: entry.table(SideTable::RowScale, tables)?,
            class: entry.table(SideTable::RowClass, tables)?,
            step: entry.step,
            shift: 9u32.saturating_sub(entry.row_shift) & 15,
        })
    }

    /// Class and scale of the next rows. At place 0 the stream's state is read first; without row side information no word is.
    pub(crate) fn fill<'v>(
        &self,
        tables: &Tables<'_>,
        place: &mut RowPlace,
        words: &mut Words<'_>,
        rows: impl Iterator<Item = (&'v mut i32, &'v mut f32)>,
    ) -> Result<(), Error> {
        let before = words.read();
        if place.read == 0 && (self.scale.is_some() || self.class.is_some()) {
            if words.rest().len() < 2 {
                return Err(Error::Geometry);
            }
            place.state = words.take()? | (words.take()? << 16);
            if place.state < LOWER_BOUND {
                return Err(Error::LaneState);
            }
        }
        // Most rows have the scale of the one before.
        let (mut code, mut known) = (i32::MIN, 0.0);
        let mut value =
            |table: Option<usize>| table.map_or(Ok(0), |table| value(tables, table, place, words));
        for (class, row_scale) in rows {
            let next_code = self.step.wrapping_add(value(self.scale)? << self.shift);
            if next_code != code {
                (code, known) = (next_code, scale(next_code)?);
            }
            (*class, *row_scale) = (value(self.class)?, known);
        }
        place.read = place.read.wrapping_add(words.read().wrapping_sub(before));
        Ok(())
    }

    /// Checks that the stream ended as it must (§6.4), and goes back to its start.
    pub(crate) fn finish(&self, place: &mut RowPlace, words: &Words<'_>) -> Result<(), Error> {
        if (self.scale.is_some() || self.class.is_some()) && place.state != LOWER_BOUND {
            return Err(Error::FinalState);
        }
        *place = RowPlace::default();
        words.finish()
    }
}

/// The next value of a kind of row side information.
#[cfg_attr(any(target_arch = "arm", target_arch = "riscv32"), inline(never))]
fn value(
    tables: &Tables<'_>,
    table: usize,
    place: &mut RowPlace,
    words: &mut Words<'_>,
) -> Result<i32, Error> {
    let value = tables.decode(table, &mut place.state)?;
    place.state = words.refill(place.state)?;
    Ok(value)
}
