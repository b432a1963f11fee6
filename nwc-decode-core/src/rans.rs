//! Streams of 16-bit words, and lanes of 32-bit states that read them (§6).

use crate::bytes::Reader;
use crate::codec::SideTable;
use crate::directory::CodedEntry;
use crate::{Error, Tables, num, scale};

/// The bottom of a lane's range; also the state in which every lane ends.
pub(crate) const LOWER_BOUND: u32 = 1 << 16;

/// Words of a stream from some place on, and how many of them have been read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Words<'a> {
    words: &'a [[u8; 2]],
    /// May pass the end within a step; [`check`](Self::check) then reports it.
    read: usize,
}

impl<'a> Words<'a> {
    pub(crate) const fn new(words: &'a [[u8; 2]]) -> Self {
        Self { words, read: 0 }
    }

    /// The next word; 0 beyond the end.
    #[inline(always)]
    fn peek(&self) -> u32 {
        self.words.get(self.read).map_or(0, |word| u32::from(u16::from_le_bytes(*word)))
    }

    /// Takes a word. Reading past the end gives 0, and an error from the next [`check`](Self::check).
    #[inline(always)]
    pub(crate) fn take(&mut self) -> u32 {
        let word = self.peek();
        self.read = self.read.wrapping_add(1);
        word
    }

    /// Brings a lane back into its range (§6.3). Past the end as with [`take`](Self::take).
    #[inline(always)]
    pub(crate) fn refill(&mut self, x: u32) -> u32 {
        if num::CHEAP_BRANCHES {
            return if x < LOWER_BOUND { (x << 16) | self.take() } else { x };
        }
        let word = self.peek();
        let low = x < LOWER_BOUND;
        self.read = self.read.wrapping_add(usize::from(low));
        if low { (x << 16) | word } else { x }
    }

    /// An error if more words were read than there are. To be called before what was read is used.
    #[inline(always)]
    pub(crate) const fn check(&self) -> Result<(), Error> {
        if self.read <= self.words.len() { Ok(()) } else { Err(Error::Overrun) }
    }

    /// Checks that the words are used up but for one zero word of padding (§5.3).
    pub(crate) fn finish(&self) -> Result<(), Error> {
        if matches!(self.words.get(self.read..), Some([] | [[0, 0]])) { Ok(()) } else { Err(Error::Trailing) }
    }

    /// Number of words read.
    pub(crate) const fn read(&self) -> usize {
        self.read
    }

    /// The words that are left.
    pub(crate) fn rest(&self) -> &'a [[u8; 2]] {
        self.words.get(self.read..).unwrap_or(&[])
    }

    /// Skips words that somebody else has read.
    pub(crate) const fn skip(&mut self, count: usize) {
        self.read = self.read.saturating_add(count);
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
            place.state = words.take() | (words.take() << 16);
            if place.state < LOWER_BOUND {
                return Err(Error::LaneState);
            }
        }
        let mut value = |table: Option<usize>| {
            let Some(table) = table else { return Ok(0) };
            let value = tables.decode(table, &mut place.state)?;
            place.state = words.refill(place.state);
            words.check()?;
            Ok(value)
        };
        // Most rows have the scale of the one before.
        let (mut code, mut known) = (i32::MIN, 0.0);
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
