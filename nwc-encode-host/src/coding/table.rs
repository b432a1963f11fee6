//! Probability tables: fitting them to counts, storing them, and what they make a symbol cost (docs/bitstream.md §4).

use std::ops::{Range, RangeInclusive};

use nwc_decode_core::{MAX_LEVEL, frequencies};

use super::rans::Slot;
use super::search::Quantiser;

/// Symbols of a table, the escape included.
const MAX_SYMBOLS: usize = 256;
/// Bits that an escape costs besides its symbol.
const ESCAPE_BITS: f32 = 16.0;
/// Bits that a stored level takes, about.
const LEVEL_BITS: f64 = 4.0;

/// How often each value occurred.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Counts {
    lo: i32,
    counts: Vec<u64>,
}

impl Counts {
    /// Counts one occurrence of a value.
    #[inline]
    pub fn add(&mut self, value: i32) {
        if self.counts.is_empty() {
            self.lo = value - 32;
            self.counts = vec![0; 64];
        }
        let at = i64::from(value) - i64::from(self.lo);
        if at < 0 || at >= self.counts.len() as i64 {
            self.grow(value);
        }
        self.counts[(value - self.lo) as usize] += 1;
    }

    fn grow(&mut self, value: i32) {
        let hi = self.lo + self.counts.len() as i32;
        let lo = self.lo.min(value - self.counts.len() as i32 / 2);
        let hi = hi.max(value + 1 + self.counts.len() as i32 / 2);
        let mut counts = vec![0; (hi - lo) as usize];
        let shift = (self.lo - lo) as usize;
        counts[shift..shift + self.counts.len()].copy_from_slice(&self.counts);
        (self.lo, self.counts) = (lo, counts);
    }

    /// Counts some occurrences of a value.
    pub fn add_many(&mut self, value: i32, count: u64) {
        if count > 0 {
            self.add(value);
            self.counts[(value - self.lo) as usize] += count - 1;
        }
    }

    /// Adds another count.
    pub fn merge(&mut self, other: &Self) {
        other.iter().for_each(|(value, count)| self.add_many(value, count));
    }

    /// The values that occurred, in ascending order, with their counts.
    pub fn iter(&self) -> impl Iterator<Item = (i32, u64)> + '_ {
        self.counts
            .iter()
            .zip(self.lo..)
            .filter(|(count, _)| **count > 0)
            .map(|(&count, value)| (value, count))
    }

    /// How many values were counted.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Entropy of the counts, in bits an occurrence.
    pub fn entropy(&self) -> f64 {
        let total = self.total() as f64;
        self.iter().map(|(_, count)| -(count as f64 / total) * (count as f64 / total).log2()).sum()
    }
}

/// Counts of indices by class: fast for those of a range that is given beforehand, as good as all.
#[derive(Debug, Clone)]
pub struct Tally {
    range: Range<i32>,
    /// `[class][index - range.start]`.
    within: Vec<u64>,
    /// `[class]`, indices outside the range.
    beyond: Vec<Counts>,
}

impl Tally {
    /// Of so many classes, with this range of indices.
    pub fn new(classes: usize, range: Range<i32>) -> Self {
        Self { within: vec![0; classes * range.len()], range, beyond: vec![Counts::default(); classes] }
    }

    /// Counts an index; says where among all places of all classes, `None` outside the range.
    #[inline(always)]
    pub fn add(&mut self, class: usize, index: i32) -> Option<usize> {
        let off = index.wrapping_sub(self.range.start).cast_unsigned() as usize;
        if off < self.range.len() {
            let place = class * self.range.len() + off;
            self.within[place] += 1;
            return Some(place);
        }
        self.add_beyond(class, index);
        None
    }

    #[cold]
    fn add_beyond(&mut self, class: usize, index: i32) {
        self.beyond[class].add(index);
    }

    /// Class and index of each place of the range.
    pub fn places(&self) -> impl Iterator<Item = (usize, i32)> + '_ {
        (0..self.beyond.len()).flat_map(|class| self.range.clone().map(move |index| (class, index)))
    }

    /// Adds another of the same classes and range.
    pub fn merge(&mut self, other: &Self) {
        self.within.iter_mut().zip(&other.within).for_each(|(to, from)| *to += from);
        self.beyond.iter_mut().zip(&other.beyond).for_each(|(to, from)| to.merge(from));
    }

    /// The symbols' values by class * 2 + union.
    pub fn by_union(&self, quantiser: &Quantiser) -> Vec<Counts> {
        let mut all = vec![Counts::default(); self.beyond.len() * 2];
        for (class, (within, beyond)) in
            self.within.chunks_exact(self.range.len().max(1)).zip(&self.beyond).enumerate()
        {
            let within = self.range.clone().zip(within.iter().copied());
            for (index, count) in within.chain(beyond.iter()) {
                let (value, union) = quantiser.symbol(index);
                all[class * 2 + union].add_many(value, count);
            }
        }
        all
    }
}

/// First and last value of the cheapest alphabet of a weight table; `precision` and `scale` are those of [`Table::fit_weights`].
///
/// A value in the alphabet takes a slot from the others, and a level in the file; left out, it takes an escape each time. Of all alphabets that arise when
/// the values leave one by one, always the rarer end or the farther of equals, the cheapest is found without fitting a table to any.
fn alphabet(counts: &Counts, precision: u32, scale: f64) -> RangeInclusive<i32> {
    let total = counts.total().max(1) as f64;
    let shared = f64::from(1u32 << precision);
    // With a slot for each symbol and 2^precision more shared out by count, a symbol has 1 + share * 2^precision of symbols + 2^precision slots.
    let gain = |count: f64| count * (1.0 + count / total * shared).log2();
    let storable = i32::from(i16::MIN)..=i32::from(i16::MAX);
    let values: Vec<(i32, f64)> = counts
        .iter()
        .filter(|(value, _)| storable.contains(value))
        .map(|(value, count)| (value, count as f64))
        .collect();
    let mut escapes = total - values.iter().map(|(_, count)| count).sum::<f64>();
    let mut gains: f64 = values.iter().map(|(_, count)| gain(*count)).sum();
    let mut kept = values.as_slice();
    let mut cheapest = (f64::INFINITY, 0..=0);
    while let [(lo, first), ..] = *kept
        && let [.., (hi, last)] = *kept
    {
        let symbols = (hi - lo) as usize + 2;
        let coded = total * (symbols as f64 + shared).log2() - gains - gain(escapes)
            + escapes * f64::from(ESCAPE_BITS);
        let bits = coded * scale + symbols as f64 * LEVEL_BITS;
        if symbols <= MAX_SYMBOLS && bits < cheapest.0 {
            cheapest = (bits, lo..=hi);
        }
        kept = if (first, hi.abs()) < (last, lo.abs()) { &kept[1..] } else { &kept[..kept.len() - 1] };
        escapes += first.min(last);
        gains -= gain(first.min(last));
    }
    cheapest.1
}

/// A table as it is stored: a level for each symbol. Symbol 0 of a weight table is the escape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Value of the first symbol that is not the escape.
    lo: i32,
    has_escape: bool,
    precision: u32,
    rice: u32,
    levels: Vec<u8>,
    slots: Vec<Slot>,
}

impl Table {
    /// Fits a weight table (with escape). `scale` says how many symbols will be coded for each one counted.
    pub fn fit_weights(counts: &Counts, precision: u32, scale: f64) -> Self {
        Self::fit_values(counts, alphabet(counts, precision, scale), precision, scale)
    }

    /// Fits a weight table that has these values as its alphabet.
    fn fit_values(counts: &Counts, values: RangeInclusive<i32>, precision: u32, scale: f64) -> Self {
        let lo = *values.start();
        let mut wanted = vec![0u64; (values.end() - lo) as usize + 2];
        for (value, count) in counts.iter() {
            let symbol = if values.contains(&value) { (value - lo) as usize + 1 } else { 0 };
            wanted[symbol] += count;
        }
        Self::fit(lo, true, &wanted, precision, scale)
    }

    /// Fits a side table (without escape): every value that occurs is in it.
    pub fn fit_side(counts: &Counts, precision: u32) -> Self {
        let lo = counts.iter().next().map_or(0, |(value, _)| value);
        let hi = counts.iter().last().map_or(0, |(value, _)| value);
        let mut wanted = vec![0u64; (hi - lo) as usize + 1];
        counts.iter().for_each(|(value, count)| wanted[(value - lo) as usize] += count);
        Self::fit(lo, false, &wanted, precision, 1.0)
    }

    /// Chooses levels for symbols' counts, weighing the bits of a stored level against what its rounding costs the symbols.
    fn fit(lo: i32, has_escape: bool, counts: &[u64], precision: u32, scale: f64) -> Self {
        let total: u64 = counts.iter().sum::<u64>().max(1);
        let slots = f64::from(1u32 << precision);
        // One slot of each frequency is given before the weights are shared out, so the weight stands for the rest.
        let ideal: Vec<f64> = counts
            .iter()
            .map(|&count| (count as f64 / total as f64 * slots - 1.0).max(0.25).log2() * 8.0)
            .collect();
        let top = ideal.iter().copied().fold(f64::MIN, f64::max);
        let ideal: Vec<f64> =
            ideal.iter().map(|level| (level - top + f64::from(MAX_LEVEL)).max(0.0)).collect();
        (0..=5)
            .map(|rice| {
                let mut levels: Vec<u8> = Vec::with_capacity(counts.len());
                let mut cost = 0.0;
                for (&count, &ideal) in counts.iter().zip(&ideal) {
                    let prediction = predict(&levels);
                    let (level, bits) = cheapest_level(ideal, prediction, count as f64 * scale, rice);
                    levels.push(level);
                    cost += bits;
                }
                (cost, rice, levels)
            })
            .min_by(|a, b| a.0.total_cmp(&b.0))
            .map(|(_, rice, levels)| Self::from_levels(lo, has_escape, precision, rice, levels))
            .expect("there is a Rice parameter")
    }

    fn from_levels(lo: i32, has_escape: bool, precision: u32, rice: u32, levels: Vec<u8>) -> Self {
        assert!(levels.len() <= MAX_SYMBOLS, "a table of {} symbols", levels.len());
        let mut slots = Vec::with_capacity(levels.len());
        let mut start = 0;
        frequencies(
            levels.len(),
            precision,
            |symbol| levels[symbol],
            |_, frequency| {
                slots.push(Slot { start: start as u16, frequency: frequency as u16 });
                start += frequency;
            },
        );
        Self { lo, has_escape, precision, rice, levels, slots }
    }

    /// Slots of all symbols; in a weight table the first is the escape.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// Which symbol stands for a value; `None` if it needs the escape.
    pub fn symbol(&self, value: i32) -> Option<usize> {
        let symbol = i64::from(value) - i64::from(self.lo) + i64::from(self.has_escape);
        let known = symbol >= i64::from(self.has_escape) && symbol < self.slots.len() as i64;
        known.then_some(symbol as usize)
    }

    /// What a value costs, in bits.
    pub fn bits(&self, value: i32) -> f32 {
        let cost = |symbol: usize| self.precision as f32 - f32::from(self.slots[symbol].frequency).log2();
        self.symbol(value).map_or_else(|| cost(0) + ESCAPE_BITS, cost)
    }

    /// What all counted values cost, in bits.
    pub fn coded_bits(&self, counts: &Counts) -> f64 {
        counts.iter().map(|(value, count)| count as f64 * f64::from(self.bits(value))).sum()
    }

    /// The values that the table has symbols for.
    pub fn values(&self) -> RangeInclusive<i32> {
        self.lo..=self.lo + self.slots.len() as i32 - 1 - i32::from(self.has_escape)
    }

    /// Writes the table in its stored form (§4.2).
    pub fn write(&self, out: &mut BitWriter) {
        out.bits(u32::from(self.lo as i16 as u16), 16);
        out.bits(self.levels.len() as u32 - 1, 8);
        out.bits(self.rice, 3);
        for (symbol, &level) in self.levels.iter().enumerate() {
            out.rice(zigzag(i32::from(level) - predict(&self.levels[..symbol])), self.rice);
        }
    }
}

/// Prediction of the next level from those before it (§4.2).
fn predict(levels: &[u8]) -> i32 {
    match *levels {
        [] => 0,
        [only] => i32::from(only),
        [.., before, last] => (2 * i32::from(last) - i32::from(before)).clamp(0, i32::from(MAX_LEVEL)),
    }
}

/// The level between the ideal one and the predicted one with the least cost: bits to store it, plus bits that `count` symbols lose because
/// it is not ideal (to second order; the first order vanishes at the optimum).
fn cheapest_level(ideal: f64, prediction: i32, count: f64, rice: u32) -> (u8, f64) {
    let nearest = ideal.round() as i32;
    let (from, to) = (nearest.min(prediction).max(0), nearest.max(prediction).min(i32::from(MAX_LEVEL)));
    (from..=to)
        .map(|level| {
            let off = (f64::from(level) - ideal) / 8.0;
            let stored = f64::from((zigzag(level - prediction) >> rice) + 1 + rice);
            (level as u8, stored + 0.5 * std::f64::consts::LN_2 * count * off * off)
        })
        .min_by(|a, b| a.1.total_cmp(&b.1))
        .unwrap_or((nearest as u8, 0.0))
}

fn zigzag(v: i32) -> u32 {
    ((v << 1) ^ (v >> 31)).cast_unsigned()
}

/// Writes a bit string (§1.5).
#[derive(Debug, Default)]
pub struct BitWriter {
    bytes: Vec<u8>,
    used: usize,
}

impl BitWriter {
    fn bits(&mut self, value: u32, count: u32) {
        for place in 0..count {
            if self.used.is_multiple_of(8) {
                self.bytes.push(0);
            }
            self.bytes[self.used / 8] |= ((value >> place & 1) as u8) << (self.used % 8);
            self.used += 1;
        }
    }

    fn rice(&mut self, value: u32, k: u32) {
        for _ in 0..value >> k {
            self.bits(1, 1);
        }
        self.bits(0, 1);
        self.bits(value & ((1 << k) - 1), k);
    }

    /// The bytes, the last one filled up with zero bits.
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts of integers whose density is proportional to `shape` of their distance from 0, in units of `spread`.
    fn counts_of(shape: impl Fn(f64) -> f64, spread: f64, total: f64) -> Counts {
        let values = -2000..=2000;
        let density = |value: i32| shape(f64::from(value) / spread);
        let sum: f64 = values.clone().map(density).sum();
        let mut counts = Counts::default();
        values.for_each(|value| counts.add_many(value, (density(value) / sum * total).round() as u64));
        counts
    }

    fn gaussian_counts(sigma: f64, total: f64) -> Counts {
        counts_of(|x| (-0.5 * x * x).exp(), sigma, total)
    }

    #[test]
    fn a_fitted_table_costs_hardly_more_than_the_entropy() {
        for (sigma, precision, loss) in
            [(0.5, 12, 0.004), (2.0, 12, 0.004), (8.0, 12, 0.008), (30.0, 12, 0.03), (30.0, 14, 0.006)]
        {
            let counts = gaussian_counts(sigma, 1e6);
            let table = Table::fit_weights(&counts, precision, 1.0);
            let overhead = table.coded_bits(&counts) / counts.total() as f64 - counts.entropy();
            assert!((0.0..loss).contains(&overhead), "sigma {sigma}: {overhead}");
        }
    }

    #[test]
    fn no_alphabet_is_much_cheaper_than_the_one_chosen() {
        // Student's t with 5 degrees, whose rare values reach far.
        let counts = counts_of(|x| (1.0 + x * x / 5.0).powi(-3), 6.0, 4e6);
        for precision in 12..=14 {
            let overhead =
                |table: &Table| table.coded_bits(&counts) / counts.total() as f64 - counts.entropy();
            let of = |reach: i32| Table::fit_values(&counts, -reach..=reach, precision, 1.0);
            let least = (1..=127).map(|reach| overhead(&of(reach))).fold(f64::MAX, f64::min);
            let chosen = overhead(&Table::fit_weights(&counts, precision, 1.0));
            assert!(chosen < least + 1e-4, "precision {precision}: {chosen}, best {least}");
            assert!(chosen < overhead(&of(127)) - 0.003, "precision {precision}: {chosen}");
        }
    }

    #[test]
    fn an_alphabet_is_as_wide_as_the_format_can_store() {
        let mut counts = Counts::default();
        (-300..=300).for_each(|value| counts.add_many(value, 1000));
        let table = Table::fit_weights(&counts, 14, 1.0);
        assert_eq!(table.slots().len(), MAX_SYMBOLS);
        let mut beyond = Counts::default();
        [-40_000, 40_000].into_iter().for_each(|value| beyond.add_many(value, 10));
        assert_eq!(Table::fit_weights(&beyond, 12, 1.0).values(), 0..=0);
        assert_eq!(Table::fit_weights(&Counts::default(), 12, 1.0).values(), 0..=0);
    }

    #[test]
    fn few_counts_make_a_short_table() {
        let size = |total: f64| {
            let mut bits = BitWriter::default();
            Table::fit_weights(&gaussian_counts(4.0, total), 12, 1.0).write(&mut bits);
            bits.finish().len()
        };
        assert!(size(300.0) < size(1e6));
        assert!(size(1e6) < 30, "{}", size(1e6));
    }

    #[test]
    fn values_beyond_the_alphabet_need_the_escape() {
        let mut counts = gaussian_counts(40.0, 1e6);
        counts.add(30_000);
        let table = Table::fit_weights(&counts, 12, 1.0);
        assert!(table.symbol(30_000).is_none() && table.symbol(-30_000).is_none());
        assert!(table.bits(30_000) > 16.0);
        assert!(
            table.symbol(*table.values().start()).is_some()
                && table.symbol(table.values().start() - 1).is_none()
        );
        assert!(
            table.symbol(*table.values().end()).is_some() && table.symbol(table.values().end() + 1).is_none()
        );
    }

    #[test]
    fn counts_grow_both_ways() {
        let mut counts = Counts::default();
        for value in [5, -1000, 4000, 5] {
            counts.add(value);
        }
        assert_eq!(counts.iter().collect::<Vec<_>>(), [(-1000, 1), (5, 2), (4000, 1)]);
        let mut twice = counts.clone();
        twice.merge(&counts);
        assert_eq!(twice.iter().collect::<Vec<_>>(), [(-1000, 2), (5, 4), (4000, 2)]);
    }
}
