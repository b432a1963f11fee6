//! Probability tables, expanded for decoding (§4.3, §6.2).

use core::cell::Cell;
use core::mem::take;

use crate::codec::{Codec, Quantiser, SideTable};
use crate::{Error, Synthesis, num};

/// The largest level of a symbol in a stored table (§4.2).
pub const MAX_LEVEL: u8 = 127;

/// A look-up gives one of so many symbols (§4.2).
const MAX_SYMBOLS: usize = 256;

/// Bits of all look-ups, where they are not for the caller to say: a number that the compiler knows saves instructions. With 6 bits, 5 symbols
/// in 6 are found at the first try at 4 bits a weight.
const LOOKUP_BITS: Option<u32> = if num::SMALL_DEVICE { Some(6) } else { None };

/// The most bits that a look-up has: those of a whole slot, so that nothing is left to search.
const MAX_LOOKUP_BITS: u32 = if let Some(bits) = LOOKUP_BITS { bits } else { 12 };

/// The most bytes that a look-up has.
const LOOKUP_BYTES: usize = 1 << MAX_LOOKUP_BITS;

/// One table, ready for look-up.
#[derive(Debug, Clone, Copy)]
pub struct Table<'s>(Stage<'s>);

#[derive(Debug, Clone, Copy)]
enum Stage<'s> {
    /// While the memory of all tables is written. The value is symbol 0's.
    Before(i32),
    Ready(Symbols<'s>),
}

/// Where the symbols of a table lie. Both views reach beyond the table into what lies behind, so that they are as long as any index into them can
/// be, and none is checked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Symbols<'s> {
    /// For the top bits of a slot, the last symbol that can own it.
    lookup: &'s [u8; LOOKUP_BYTES],
    /// Of each symbol, the negated start in the top `precision` bits, the frequency in the low 16: added to a slot in its top bits it carries
    /// if the slot is not before the start, and leaves how far it is behind. Nothing carries at the first symbol, whose start is 0.
    entries: &'s [u32; MAX_SYMBOLS],
    /// Value of symbol 0.
    first_value: i32,
}

impl<'s> Table<'s> {
    /// Holds nothing.
    pub const EMPTY: Self = Self(Stage::Before(0));

    #[inline(always)]
    pub(crate) const fn symbols(&self) -> Result<&Symbols<'s>, Error> {
        if let Stage::Ready(symbols) = &self.0 { Ok(symbols) } else { Err(Error::Table) }
    }
}

impl Default for Table<'_> {
    fn default() -> Self {
        Self::EMPTY
    }
}

impl<'s> Symbols<'s> {
    /// The symbol that owns the slot of a state (§6.2): its value, and the state after it, without the refill. `first` gives the value of symbol 0.
    #[inline(always)]
    pub(crate) fn decode(
        &self,
        slots: Slots,
        x: u32,
        first: impl FnOnce(i32) -> i32,
    ) -> Result<(i32, u32), Error> {
        let (above, slot) = num::split(u64::from(x).wrapping_mul(u64::from(slots.inverse)));
        let bucket_shift = LOOKUP_BITS.map_or(slots.bucket_shift, |bits| 32u32.wrapping_sub(bits));
        let bucket = num::index(slot >> (bucket_shift & 31)) & LOOKUP_BYTES.wrapping_sub(1);
        let mut symbol = *self.lookup.get(bucket).ok_or(Error::Table)?;
        let (value, behind) = loop {
            let entry = *self.entries.get(usize::from(symbol)).ok_or(Error::Table)?;
            let (behind, reached) = slot.overflowing_add(entry);
            if reached {
                break (self.first_value.wrapping_add(i32::from(symbol)), behind);
            }
            let Some(before) = symbol.checked_sub(1) else {
                break (first(self.first_value), behind);
            };
            symbol = before;
        };
        // The slot has only zeros where the entry has the frequency.
        let x = num::low_16(behind).wrapping_mul(above).wrapping_add(behind >> (slots.shift & 31));
        Ok((value, x))
    }

    /// Start and frequency of each symbol.
    fn spans(&self, precision: u32) -> impl Iterator<Item = (u32, u32)> + use<'s> {
        let mut end = 0u32;
        self.entries.iter().map_while(move |entry| {
            let (start, frequency) = (end, num::low_16(*entry));
            end = end.wrapping_add(frequency);
            (start < 1u32 << (precision & 31)).then_some((start, frequency))
        })
    }
}

/// How a state is taken apart; the same for all tables of a codec.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slots {
    /// 2^(32 - precision). The high half of its product with a state is what lies above the slot, the low half has the slot in its top bits.
    inverse: u32,
    /// 32 - precision.
    shift: u32,
    /// 32 - bits of a look-up.
    bucket_shift: u32,
}

impl Slots {
    const fn new(precision: u32, lookup_bits: u32) -> Self {
        let shift = 32u32.wrapping_sub(precision) & 31;
        Self { inverse: 1 << shift, shift, bucket_shift: 32u32.wrapping_sub(lookup_bits) }
    }
}

/// Memory that [`Tables::expand`] works in.
#[derive(Debug)]
pub struct Scratch<'s> {
    /// At least [`ScratchSize::tables`] long; what it holds does not matter.
    pub tables: &'s mut [Table<'s>],
    /// At least [`ScratchSize::words`] long; what it holds does not matter.
    pub words: &'s mut [u32],
}

/// How much [`Scratch`] is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ScratchSize {
    /// Number of [`Table`]s.
    pub tables: usize,
    /// Number of 32-bit words.
    pub words: usize,
}

impl ScratchSize {
    /// Bytes in all.
    pub const fn total_bytes(&self) -> usize {
        let tables = self.tables.saturating_mul(size_of::<Table<'_>>());
        tables.saturating_add(self.words.saturating_mul(4))
    }
}

/// What lies where in the words of [`Scratch`]: the entries of all tables, their look-ups, and room for the views of the last ones.
pub(crate) struct Layout {
    lookup_bits: u32,
    /// Symbols of all tables.
    symbols: usize,
    pub(crate) size: ScratchSize,
}

impl Layout {
    pub(crate) fn new(codec: &Codec<'_>, lookup_bits: u32) -> Self {
        let lookup_bits = LOOKUP_BITS.unwrap_or(lookup_bits).min(codec.precision()).clamp(1, MAX_LOOKUP_BITS);
        let (mut symbols, mut last, mut tables) = (0usize, 0usize, 0usize);
        // The tables were checked when the container was opened; a walk cannot fail.
        let _ = codec.each_table(|_, table| {
            (last, tables) = (symbols, tables.wrapping_add(1));
            symbols = symbols.saturating_add(num::index(table.symbols));
            table.levels(|_, _| Some(()))
        });
        let last_lookup = tables.saturating_sub(1) << (lookup_bits & 15);
        let lookups = last_lookup.saturating_add(LOOKUP_BYTES).div_ceil(size_of::<u32>());
        let words = symbols.saturating_add(lookups).max(last.saturating_add(MAX_SYMBOLS));
        Self { lookup_bits, symbols, size: ScratchSize { tables, words } }
    }
}

/// A codec's tables, ready for look-up.
#[derive(Debug, Clone, Copy)]
pub struct Tables<'s> {
    /// Those of the weights first.
    all: &'s [Table<'s>],
    slots: Slots,
    precision: u32,
    classes: i32,
    /// 1 if tables are split by union, else 0: masks the trellis state.
    union_mask: u32,
    /// Trellis: next states; empty for the scalar quantiser.
    next: &'s [u8],
    side: [Option<usize>; 4],
    synthesis: Synthesis<'s>,
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
    /// Expands a codec's tables into the caller's memory, with a look-up of `lookup_bits` bits (see [`Codec::required_scratch`]).
    ///
    /// # Errors
    /// [`Error::Scratch`] if the memory is smaller than required.
    #[allow(clippy::needless_pass_by_value)] // the borrows inside are given up, that they live as long as the tables
    pub fn expand<'a: 's>(codec: &Codec<'a>, lookup_bits: u32, scratch: Scratch<'s>) -> Result<Self, Error> {
        let Layout { lookup_bits, symbols, size } = Layout::new(codec, lookup_bits);
        let tables = scratch.tables.get_mut(..size.tables).ok_or(Error::Scratch)?;
        let words = scratch.words.get_mut(..size.words).ok_or(Error::Scratch)?;
        let precision = codec.precision();
        let slots = Slots::new(precision, lookup_bits);

        let (mut entries_left, lookups) = words.split_at_mut_checked(symbols).ok_or(Error::Scratch)?;
        let lookup_bytes = 1usize << (lookup_bits & 15);
        let mut lookups = bytemuck::cast_slice_mut(lookups).chunks_exact_mut(lookup_bytes);
        codec.each_table(|number, stored| {
            let (entries, rest) = take(&mut entries_left).split_at_mut_checked(num::index(stored.symbols))?;
            entries_left = rest;
            *tables.get_mut(number)? = Table(Stage::Before(stored.first_value));
            stored.levels(|symbol, level| {
                *entries.get_mut(symbol)? = u32::from(level);
                Some(())
            })?;
            expand_table(entries, precision);
            fill_lookup(lookups.next()?, entries, 1u32 << (precision.wrapping_sub(lookup_bits) & 31));
            Some(())
        })?;

        let words: &'s [u32] = words;
        let bytes: &'s [u8] = bytemuck::cast_slice(words);
        let (mut entries_at, mut lookup_at) = (0usize, symbols.wrapping_mul(size_of::<u32>()));
        for table in tables.iter_mut() {
            let entries = words.get(entries_at..).and_then(|rest| rest.first_chunk());
            let lookup = bytes.get(lookup_at..).and_then(|rest| rest.first_chunk());
            let (Some(entries), Some(lookup), Stage::Before(first_value)) = (entries, lookup, table.0) else {
                return Err(Error::Scratch);
            };
            let symbols = Symbols { lookup, entries, first_value };
            entries_at = entries_at.wrapping_add(symbols.spans(precision).count());
            *table = Table(Stage::Ready(symbols));
            lookup_at = lookup_at.wrapping_add(lookup_bytes);
        }

        let next = match codec.quantiser() {
            Quantiser::Scalar => &[],
            Quantiser::Trellis { next } => next,
        };
        Ok(Self {
            all: tables,
            slots,
            precision,
            classes: i32::from(codec.classes()),
            union_mask: u32::from(codec.unions().wrapping_sub(1)),
            next,
            side: SideTable::ALL.map(|kind| codec.side_table(kind)),
            synthesis: codec.synthesis(),
        })
    }

    /// Takes a symbol of a side table off a lane's state (§6.2), without the refill, and returns its value.
    pub(crate) fn decode(&self, table: usize, x: &mut u32) -> Result<i32, Error> {
        let table = self.all.get(table).ok_or(Error::Table)?;
        let (value, rest) = table.symbols()?.decode(self.slots, *x, |first| first)?;
        *x = rest;
        Ok(value)
    }

    /// The tables of a class of weights for each parity of the trellis state.
    #[inline(always)]
    pub(crate) fn class(&self, class: usize) -> Result<[&'s Symbols<'s>; 2], Error> {
        let even = class << (self.union_mask & 1);
        let odd = even | num::index(self.union_mask);
        let (Some(even), Some(odd)) = (self.all.get(even), self.all.get(odd)) else {
            return Err(Error::Table);
        };
        Ok([even.symbols()?, odd.symbols()?])
    }

    #[inline(always)]
    pub(crate) const fn slots(&self) -> Slots {
        self.slots
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
        let precision = self.precision;
        table.and_then(|table| table.symbols().ok().copied()).into_iter().flat_map(move |symbols| {
            let values = (0i32..).map(move |symbol| symbols.first_value.wrapping_add(symbol));
            values.zip(symbols.spans(precision)).map(|(value, (start, frequency))| (value, start, frequency))
        })
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

    pub(crate) const fn synthesis(&self) -> Synthesis<'s> {
        self.synthesis
    }

    /// Entry 2s + b is the trellis state after state s and bit b; empty for the scalar quantiser.
    pub const fn next_states(&self) -> &'s [u8] {
        self.next
    }
}

/// Turns levels into entries (see [`Symbols`]), in place.
fn expand_table(entries: &mut [u32], precision: u32) {
    let shift = 32u32.wrapping_sub(precision) & 31;
    let cells = Cell::from_mut(entries).as_slice_of_cells();
    let level = |symbol: usize| cells.get(symbol).map_or(0, |cell| num::low_u8(cell.get()));
    let mut start = 0u32;
    // A symbol's level is not read again once its frequency is known, so its place can take the entry.
    frequencies(cells.len(), precision, level, |symbol, frequency| {
        if let Some(cell) = cells.get(symbol) {
            cell.set((start.wrapping_neg() << shift) | frequency);
        }
        start = start.wrapping_add(frequency);
    });
}

/// Writes for each bucket of `slots` slots the symbol that owns its last slot.
fn fill_lookup(buckets: &mut [u8], entries: &[u32], slots: u32) {
    let mut symbols = (0u8..=255).zip(entries);
    let (mut owner, mut owner_end, mut bucket_end) = (0u8, 0u32, 0u32);
    for bucket in buckets {
        bucket_end = bucket_end.wrapping_add(slots);
        while owner_end < bucket_end {
            let Some((symbol, entry)) = symbols.next() else { break };
            (owner, owner_end) = (symbol, owner_end.wrapping_add(num::low_16(*entry)));
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
            let frequencies = frequencies_of(&levels, precision);
            let mut entries = [0; MAX_SYMBOLS];
            entries.iter_mut().zip(&levels).for_each(|(entry, &level)| *entry = u32::from(level));
            expand_table(&mut entries[..levels.len()], precision);
            for lookup_bits in [1, 3, 6, precision.min(MAX_LOOKUP_BITS)] {
                let mut lookup = [0; LOOKUP_BYTES];
                let slots = 1 << (precision - lookup_bits);
                fill_lookup(&mut lookup[..1 << lookup_bits], &entries[..levels.len()], slots);
                let table = Symbols { lookup: &lookup, entries: &entries, first_value: 5 };
                let symbols: Vec<_> = table.spans(precision).collect();
                assert!(symbols.iter().map(|symbol| symbol.1).eq(frequencies.iter().copied()));
                let slots = Slots::new(precision, lookup_bits);
                // Under Miri all of them would take hours.
                for slot in (0..1u32 << precision).step_by(if cfg!(miri) { 997 } else { 1 }) {
                    let (value, x) = table.decode(slots, (7 << precision) | slot, |_| -1).unwrap();
                    let symbol = if value == -1 { 0 } else { (value - 5) as usize };
                    let (start, frequency) = symbols[symbol];
                    assert!((start..start + frequency).contains(&slot));
                    assert_eq!(x, 7 * frequency + slot - start);
                }
            }
        }
    }
}
