//! Probability tables, expanded for decoding (§4.3, §6.2).

use core::cell::Cell;
use core::mem::take;

use crate::codec::{Codec, Quantiser, SideTable};
use crate::{Error, Synthesis, num};

/// The largest level of a symbol in a stored table (§4.2).
pub const MAX_LEVEL: u8 = 127;

/// One table, ready for look-up.
#[derive(Debug, Clone, Copy, Default)]
pub struct Table<'s> {
    /// For the top bits of a slot, the first symbol that can own it.
    pub(crate) lookup: &'s [u8],
    /// `start | frequency << 16` of each symbol.
    pub(crate) entries: &'s [u32],
    /// Value of symbol 0.
    pub(crate) first_value: i32,
}

impl Table<'_> {
    /// Holds nothing.
    pub const EMPTY: Self = Self { lookup: &[], entries: &[], first_value: 0 };
}

/// Memory that [`Tables::expand`] works in.
#[derive(Debug)]
pub struct Scratch<'s> {
    /// At least [`ScratchSize::tables`] long; what it holds does not matter.
    pub tables: &'s mut [Table<'s>],
    /// At least [`ScratchSize::words`] long; what it holds does not matter.
    pub words: &'s mut [u32],
    /// At least [`ScratchSize::bytes`] long; what it holds does not matter.
    pub bytes: &'s mut [u8],
}

/// How much [`Scratch`] is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ScratchSize {
    /// Number of [`Table`]s.
    pub tables: usize,
    /// Number of 32-bit words.
    pub words: usize,
    /// Number of bytes.
    pub bytes: usize,
}

impl ScratchSize {
    /// Bytes in all.
    pub const fn total_bytes(&self) -> usize {
        let tables = self.tables.saturating_mul(size_of::<Table<'_>>());
        tables.saturating_add(self.words.saturating_mul(4)).saturating_add(self.bytes)
    }
}

/// A codec's tables, ready for look-up.
#[derive(Debug, Clone, Copy)]
pub struct Tables<'s> {
    /// Those of the weights first.
    all: &'s [Table<'s>],
    /// Bits of a slot that the look-up leaves out.
    spare_bits: u32,
    precision: u32,
    classes: i32,
    /// 1 if tables are split by union, else 0: masks the trellis state.
    union_mask: u32,
    /// Trellis: next states; empty for the scalar quantiser.
    next: &'s [u8],
    side: [Option<usize>; 4],
    synthesis: Synthesis,
}

/// Frequencies of levels (§4.3): calls `sink` with each symbol and its frequency, which sum to 2^precision.
///
/// `levels` is called twice for every symbol. Encoders use this too, so that both sides round alike.
pub fn frequencies(
    symbols: usize,
    precision: u32,
    levels: impl Fn(usize) -> u8,
    mut sink: impl FnMut(usize, u32),
) {
    let (mut sum, mut largest, mut largest_at) = (0u64, 0u64, 0usize);
    for symbol in 0..symbols {
        let weight = weight(levels(symbol));
        sum = sum.saturating_add(weight);
        if weight > largest {
            (largest, largest_at) = (weight, symbol);
        }
    }
    let total = 1u64 << (precision & 31);
    let spare = total.saturating_sub(u64::try_from(symbols).unwrap_or(u64::MAX));
    let share = |symbol: usize| {
        let part = weight(levels(symbol)).saturating_mul(spare).checked_div(sum).unwrap_or(0);
        part.saturating_add(1)
    };
    let given = (0..symbols).fold(0u64, |given, symbol| given.saturating_add(share(symbol)));
    let rest = total.saturating_sub(given);
    for symbol in 0..symbols {
        let frequency = share(symbol).saturating_add(if symbol == largest_at { rest } else { 0 });
        sink(symbol, num::low_u32(frequency));
    }
}

/// 2^(8 + level/8), rounded.
fn weight(level: u8) -> u64 {
    const EIGHTHS: [u64; 8] = [256, 279, 304, 332, 362, 395, 431, 470];
    EIGHTHS.get(usize::from(level & 7)).copied().unwrap_or(0) << (level >> 3)
}

impl<'s> Tables<'s> {
    /// Expands a codec's tables into the caller's memory, with a look-up of `lookup_bits` bits
    /// (see [`Codec::required_scratch`]; larger values count as the precision).
    ///
    /// # Errors
    /// [`Error::Scratch`] if the memory is smaller than required.
    #[allow(clippy::needless_pass_by_value)] // the borrows inside are given up, that they live as long as the tables
    pub fn expand<'a: 's>(codec: &Codec<'a>, lookup_bits: u32, scratch: Scratch<'s>) -> Result<Self, Error> {
        let lookup_bits = lookup_bits.min(codec.precision());
        let need = codec.required_scratch(lookup_bits);
        let tables = scratch.tables.get_mut(..need.tables).ok_or(Error::Scratch)?;
        let mut entries_left = scratch.words.get_mut(..need.words).ok_or(Error::Scratch)?;
        let mut lookup_left = scratch.bytes.get_mut(..need.bytes).ok_or(Error::Scratch)?;
        let precision = codec.precision();
        let spare_bits = precision.wrapping_sub(lookup_bits);
        codec.each_table(|number, stored| {
            let (entries, rest) = take(&mut entries_left).split_at_mut_checked(num::index(stored.symbols))?;
            entries_left = rest;
            let (lookup, rest) = take(&mut lookup_left).split_at_mut_checked(1usize << (lookup_bits & 15))?;
            lookup_left = rest;
            let first_value = stored.first_value;
            stored.levels(|symbol, level| {
                *entries.get_mut(symbol)? = u32::from(level);
                Some(())
            })?;
            expand_table(entries, precision);
            fill_lookup(lookup, entries, 1usize << (spare_bits & 15));
            *tables.get_mut(number)? = Table { lookup, entries, first_value };
            Some(())
        })?;

        let next = match codec.quantiser() {
            Quantiser::Scalar => &[],
            Quantiser::Trellis { next } => next,
        };
        Ok(Self {
            all: tables,
            spare_bits,
            precision,
            classes: i32::from(codec.classes()),
            union_mask: u32::from(codec.unions().wrapping_sub(1)),
            next,
            side: SideTable::ALL.map(|kind| codec.side_table(kind)),
            synthesis: codec.synthesis(),
        })
    }

    /// Takes a symbol off a lane's state (§6.2), without the refill, and returns its value.
    pub(crate) fn decode(&self, table: usize, x: &mut u32) -> Result<i32, Error> {
        let Table { lookup, entries, first_value } = self.all.get(table).ok_or(Error::Table)?;
        let slot = *x & (1u32 << (self.precision & 31)).wrapping_sub(1);
        let bucket = num::index(slot >> (self.spare_bits & 31));
        let mut symbol = u32::from(*lookup.get(bucket).ok_or(Error::Table)?);
        loop {
            let entry = *entries.get(num::index(symbol)).ok_or(Error::Table)?;
            let (offset, frequency) = (slot.wrapping_sub(num::low_16(entry)), entry >> 16);
            if offset < frequency {
                *x = frequency.wrapping_mul(*x >> (self.precision & 31)).wrapping_add(offset);
                return Ok(first_value.wrapping_add(symbol.cast_signed()));
            }
            symbol = symbol.wrapping_add(1);
        }
    }

    /// All tables, those of the weights first.
    #[inline(always)]
    pub(crate) const fn all(&self) -> &'s [Table<'s>] {
        self.all
    }

    /// Bits of a slot that the look-up leaves out.
    pub(crate) const fn spare_bits(&self) -> u32 {
        self.spare_bits
    }

    /// The symbols of a weight table as (value, start, frequency), the escape first, whose value is meaningless; nothing if there is no such
    /// table. For engines that look symbols up in another way.
    pub fn weight_symbols(
        &self,
        class: usize,
        union: usize,
    ) -> impl Iterator<Item = (i32, u32, u32)> + use<'s> {
        let unions = num::index(self.unions());
        let number = class.saturating_mul(unions).saturating_add(union);
        let classes = usize::try_from(self.classes).unwrap_or(0);
        let legal = class < classes && union < unions;
        let table = if legal { self.all.get(number).copied() } else { None };
        let Table { entries, first_value, .. } = table.unwrap_or_default();
        let values = (0i32..).map(move |symbol| first_value.wrapping_add(symbol));
        values.zip(entries).map(|(value, &entry)| (value, entry & 0xFFFF, entry >> 16))
    }

    /// Precision: the frequencies of a table sum to 2^precision.
    pub const fn precision(&self) -> u32 {
        self.precision
    }

    /// Number of tables a class: 2 if they are split by the parity of the trellis state, else 1.
    pub const fn unions(&self) -> u32 {
        self.union_mask.wrapping_add(1)
    }

    pub(crate) fn side(&self, kind: SideTable) -> Option<usize> {
        let [row_scale, row_class, column_scale, column_class] = self.side;
        match kind {
            SideTable::RowScale => row_scale,
            SideTable::RowClass => row_class,
            SideTable::ColumnScale => column_scale,
            SideTable::ColumnClass => column_class,
        }
    }

    /// Number of spread classes.
    pub const fn classes(&self) -> i32 {
        self.classes
    }

    pub(crate) const fn synthesis(&self) -> Synthesis {
        self.synthesis
    }

    /// Entry 2s + b is the trellis state after state s and bit b; empty for the scalar quantiser.
    pub const fn next_states(&self) -> &'s [u8] {
        self.next
    }
}

/// Turns levels into `start | frequency << 16`, in place.
fn expand_table(entries: &mut [u32], precision: u32) {
    let cells = Cell::from_mut(entries).as_slice_of_cells();
    let level = |symbol: usize| cells.get(symbol).map_or(0, |cell| num::low_u8(cell.get()));
    let mut start = 0u32;
    // A symbol's level is not read again once its frequency is known, so its place can take the entry.
    frequencies(cells.len(), precision, level, |symbol, frequency| {
        if let Some(cell) = cells.get(symbol) {
            cell.set(start | (frequency << 16));
        }
        start = start.wrapping_add(frequency);
    });
}

/// Writes for each bucket of `slots` slots the symbol that owns its first slot.
fn fill_lookup(buckets: &mut [u8], entries: &[u32], slots: usize) {
    let mut end = 0usize;
    let mut owner = 0u8;
    let mut ends = entries.iter().zip(0u8..=255).map(|(entry, symbol)| {
        let (start, frequency) = (num::index(entry & 0xFFFF), num::index(entry >> 16));
        (symbol, start.wrapping_add(frequency))
    });
    for (bucket, first_slot) in buckets.iter_mut().zip((0usize..).step_by(slots.max(1))) {
        while end <= first_slot {
            let Some(next) = ends.next() else { break };
            (owner, end) = next;
        }
        *bucket = owner;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;
    use std::vec::Vec;

    fn frequencies_of(levels: &[u8], precision: u32) -> Vec<u32> {
        let mut all = Vec::new();
        frequencies(levels.len(), precision, |i| levels[i], |_, f| all.push(f));
        all
    }

    #[test]
    fn frequencies_sum_to_the_total_and_none_is_zero() {
        for precision in 10..=14 {
            let cases: [Vec<u8>; 5] =
                [vec![0], vec![127, 0], (0..=127).collect(), vec![5; 256], vec![127; 256]];
            for levels in cases {
                let all = frequencies_of(&levels, precision);
                assert_eq!(all.iter().sum::<u32>(), 1 << precision);
                assert!(all.iter().all(|&f| f > 0));
            }
        }
    }

    #[test]
    fn the_remainder_goes_to_the_first_of_the_largest() {
        // Shares: 1 + floor(W * 1021 / S); three equal weights leave 1 over.
        assert_eq!(frequencies_of(&[64, 64, 64], 10), [342, 341, 341]);
        assert_eq!(frequencies_of(&[0, 8], 10), [341, 683]);
    }

    #[test]
    fn every_slot_finds_its_symbol_at_every_lookup_size() {
        let levels: Vec<u8> = (0..40i32).map(|i| 90 - (i - 20).unsigned_abs() as u8 * 4).collect();
        for precision in [10, 12, 14] {
            let mut entries: Vec<u32> = levels.iter().map(|&level| u32::from(level)).collect();
            expand_table(&mut entries, precision);
            for lookup_bits in [0, 3, 6, precision] {
                let slots = 1usize << (precision - lookup_bits);
                let mut lookup = vec![0; 1 << lookup_bits];
                fill_lookup(&mut lookup, &entries, slots);
                let tables = Tables {
                    all: &[Table { lookup: &lookup, entries: &entries, first_value: 0 }],
                    spare_bits: precision - lookup_bits,
                    precision,
                    classes: 1,
                    union_mask: 0,
                    next: &[],
                    side: [None; 4],
                    synthesis: Synthesis::Identity,
                };
                // Under Miri all of them would take hours.
                for slot in (0..1u32 << precision).step_by(if cfg!(miri) { 997 } else { 1 }) {
                    let mut x = (7 << precision) | slot;
                    let symbol = tables.decode(0, &mut x).unwrap();
                    let (start, frequency) =
                        (entries[symbol as usize] & 0xFFFF, entries[symbol as usize] >> 16);
                    assert!((start..start + frequency).contains(&slot));
                    assert_eq!(x, 7 * frequency + slot - start);
                }
            }
        }
    }
}
