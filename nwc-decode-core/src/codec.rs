//! Codecs: synthesis, quantiser, and the probability tables' stored form (§4).

use crate::bytes::{BitReader, Reader, unzigzag};
use crate::tables::{Layout, ScratchSize};
use crate::{Error, Limits, Synthesis, num};

/// The largest level of a symbol in a stored table (§4.2).
const LEVEL_LIMIT: i64 = 127;
/// Bounds of a side table's values (§4.4).
const SIDE_VALUES: core::ops::RangeInclusive<i32> = -4096..=4095;

/// How indices are chosen from symbols (§8.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Quantiser<'a> {
    /// Every index by itself.
    Scalar,
    /// A trellis: entry 2s + b is the state after state s and bit b.
    Trellis {
        /// Two next states for each state.
        next: &'a [u8],
    },
}

/// The four kinds of side information (§3.7), by their bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum SideTable {
    /// Scale of a row.
    RowScale = 0,
    /// Class of a row.
    RowClass = 1,
    /// Scale of a column.
    ColumnScale = 2,
    /// Class of a column.
    ColumnClass = 3,
}

impl SideTable {
    /// All of them, in the order of their bits.
    pub const ALL: [Self; 4] = [Self::RowScale, Self::RowClass, Self::ColumnScale, Self::ColumnClass];

    /// The mask of this kind's bit.
    pub const fn mask(self) -> u8 {
        match self {
            Self::RowScale => 1,
            Self::RowClass => 2,
            Self::ColumnScale => 4,
            Self::ColumnClass => 8,
        }
    }
}

/// A checked view of one codec.
#[derive(Debug, Clone, Copy)]
pub struct Codec<'a> {
    synthesis: Synthesis<'a>,
    quantiser: Quantiser<'a>,
    precision: u32,
    unions: u8,
    classes: u8,
    side_tables: u8,
    tables: &'a [u8],
    stored_bytes: usize,
}

/// One stored table: its header, with the levels still to be read.
pub(crate) struct StoredTable<'a, 'r> {
    /// Value of symbol 0; for a weight table that of the escape is meaningless.
    pub(crate) first_value: i32,
    pub(crate) symbols: u32,
    rice: u32,
    bits: &'r mut BitReader<'a>,
}

impl<'a, 'r> StoredTable<'a, 'r> {
    fn read(bits: &'r mut BitReader<'a>, weights: bool) -> Option<Self> {
        let lo = num::sign_extend_16(bits.bits(16)?);
        let symbols = bits.bits(8)?.wrapping_add(1);
        let rice = bits.bits(3)?;
        // In a weight table symbol 1 has the value lo, symbol 0 is the escape.
        let first_value = if weights { lo.wrapping_sub(1) } else { lo };
        let last_value = first_value.wrapping_add(symbols.cast_signed()).wrapping_sub(1);
        let in_range = if weights {
            symbols >= 2 && last_value <= i32::from(i16::MAX)
        } else {
            SIDE_VALUES.contains(&lo) && SIDE_VALUES.contains(&last_value)
        };
        in_range.then_some(Self { first_value, symbols, rice, bits })
    }

    /// Gives each symbol's level (§4.2) to `sink`.
    pub(crate) fn levels(self, mut sink: impl FnMut(usize, u8) -> Option<()>) -> Option<()> {
        let (mut before, mut last) = (0i64, 0i64);
        for symbol in 0..num::index(self.symbols) {
            let prediction = match symbol {
                0 => 0,
                1 => last,
                _ => last.wrapping_mul(2).wrapping_sub(before).clamp(0, LEVEL_LIMIT),
            };
            let level = prediction.checked_add(unzigzag(u64::from(self.bits.rice(self.rice)?)))?;
            let byte = u8::try_from(level).ok().filter(|&level| i64::from(level) <= LEVEL_LIMIT)?;
            sink(symbol, byte)?;
            (before, last) = (last, level);
        }
        Some(())
    }
}

impl<'a> Codec<'a> {
    /// A codec from its stored form (§4.1). Its tables are not read yet.
    ///
    /// # Errors
    /// [`Error::Codec`] if its fields break that, [`Error::Unsupported`] if they are of a later version.
    pub fn new(stored: &'a [u8]) -> Result<Self, Error> {
        let mut reader = Reader::new(stored);
        let synthesis = Synthesis::read(&mut reader)?;
        let mut field = || reader.u8().ok_or(Error::Codec);
        let trellis = match field()? {
            0 => false,
            1 => true,
            _ => return Err(Error::Codec),
        };
        let quantiser = if trellis {
            let state_bits = field()?;
            if !(1..=8).contains(&state_bits) {
                return Err(Error::Codec);
            }
            let states = 1usize.checked_shl(u32::from(state_bits)).ok_or(Error::Codec)?;
            let next = reader.take(states.saturating_mul(2)).ok_or(Error::Codec)?;
            if next.iter().any(|&state| usize::from(state) >= states) {
                return Err(Error::Codec);
            }
            Quantiser::Trellis { next }
        } else {
            Quantiser::Scalar
        };
        let mut field = || reader.u8().ok_or(Error::Codec);
        if field()? != 0 {
            return Err(Error::Unsupported); // entropy mode
        }
        let precision = u32::from(field()?);
        let unions = field()?;
        let classes = field()?;
        let side_tables = field()?;
        let legal = (10..=14).contains(&precision)
            && (1..=if trellis { 2 } else { 1 }).contains(&unions)
            && (1..=64).contains(&classes)
            && side_tables <= 15;
        if !legal {
            return Err(Error::Codec);
        }
        let tables = reader.rest;
        let stored_bytes = stored.len();
        Ok(Self { synthesis, quantiser, precision, unions, classes, side_tables, tables, stored_bytes })
    }

    fn check_tables(&self) -> Result<(), Error> {
        let bits = self.each_table(|_, table| table.levels(|_, _| Some(())))?;
        if bits.at_end() { Ok(()) } else { Err(Error::Codec) }
    }

    /// Walks the stored tables in their order.
    pub(crate) fn each_table(
        &self,
        mut visit: impl FnMut(usize, StoredTable<'a, '_>) -> Option<()>,
    ) -> Result<BitReader<'a>, Error> {
        let mut bits = BitReader::new(self.tables);
        for number in 0..self.table_count() {
            let table =
                StoredTable::read(&mut bits, number < self.weight_table_count()).ok_or(Error::Table)?;
            visit(number, table).ok_or(Error::Table)?;
        }
        Ok(bits)
    }

    /// The synthesis transform.
    pub const fn synthesis(&self) -> Synthesis<'a> {
        self.synthesis
    }

    /// The quantiser.
    pub const fn quantiser(&self) -> Quantiser<'a> {
        self.quantiser
    }

    /// Precision of the tables: frequencies sum to 2^precision.
    pub const fn precision(&self) -> u32 {
        self.precision
    }

    /// 2 if the tables are split by trellis union, else 1.
    pub const fn unions(&self) -> u8 {
        self.unions
    }

    /// Number of spread classes.
    pub const fn classes(&self) -> u8 {
        self.classes
    }

    /// Which side tables there are, as a mask of [`SideTable::mask`].
    pub const fn side_tables(&self) -> u8 {
        self.side_tables
    }

    /// Bytes that this codec takes in the container, tables included.
    pub const fn stored_bytes(&self) -> usize {
        self.stored_bytes
    }

    /// Bytes of its stored tables.
    pub const fn table_bytes(&self) -> usize {
        self.tables.len()
    }

    /// Scratch memory that [`Tables::expand`](crate::Tables::expand) needs for a look-up of `lookup_bits` bits.
    /// With `lookup_bits` = [`precision`](Self::precision) each symbol is found in one look-up; each bit less
    /// halves the bytes and makes the search longer. Larger values count as the precision, at most 12, and 0 as 1.
    ///
    /// On ARM and RISC-V of 32 bits a look-up has 6 bits whatever is asked for: a shift by a constant is worth more there than a shorter search.
    ///
    /// Takes time proportional to the stored tables.
    pub fn required_scratch(&self, lookup_bits: u32) -> ScratchSize {
        Layout::new(self, lookup_bits).size
    }

    pub(crate) fn weight_table_count(&self) -> usize {
        usize::from(self.unions).saturating_mul(usize::from(self.classes))
    }

    pub(crate) fn table_count(&self) -> usize {
        self.weight_table_count().saturating_add(num::index(self.side_tables.count_ones()))
    }

    /// The number of a side table.
    pub(crate) fn side_table(&self, kind: SideTable) -> Option<usize> {
        if self.side_tables & kind.mask() == 0 {
            return None;
        }
        let before = self.side_tables & kind.mask().wrapping_sub(1);
        self.weight_table_count().checked_add(num::index(before.count_ones()))
    }
}

/// The number of codecs of a checked section.
pub(crate) fn count(section: &[u8]) -> usize {
    section.first().copied().map_or(0, usize::from)
}

/// The body of a codec; `None` if there is none.
fn body(section: &[u8], index: usize) -> Option<&[u8]> {
    let mut reader = Reader::new(section);
    let count = usize::from(reader.u8()?);
    for _ in 0..index {
        let len = num::index(reader.u32()?);
        reader.take(len)?;
    }
    let len = num::index(reader.u32()?);
    if index < count { reader.take(len) } else { None }
}

pub(crate) fn nth(section: &[u8], index: usize) -> Result<Codec<'_>, Error> {
    Codec::new(body(section, index).ok_or(Error::Index)?)
}

/// Checks the whole section (§4.1).
pub(crate) fn check(section: &[u8], limits: &Limits) -> Result<(), Error> {
    let mut reader = Reader::new(section);
    let count = reader.u8().ok_or(Error::Codec)?;
    for _ in 0..count {
        let len = num::index(reader.u32().ok_or(Error::Codec)?);
        let codec = Codec::new(reader.take(len).ok_or(Error::Codec)?)?;
        if codec.table_count() > num::index(limits.tables) {
            return Err(Error::Limit);
        }
        codec.check_tables()?;
    }
    if reader.rest.is_empty() { Ok(()) } else { Err(Error::Codec) }
}
