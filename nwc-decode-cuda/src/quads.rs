//! The code of images: range-coded symbols of four weights each.

use nwc_decode_core::Tables;
use nwc_decode_kernels::lane::LOWER_BOUND;

/// The coarse values of four weights.
pub(crate) type Quad = [i32; 4];

/// The least coarse value: they have four bits.
const LEAST: i32 = -8;
/// Number of coarse values.
const VALUES: usize = 16;
/// The most that a frequency can be: a slot has a byte for it.
const MOST_FREQUENCY: u32 = 255;
/// Quads that come less often have no symbol, but patches: so rare that few chunks have any.
const RAREST: f64 = 1.0 / (1 << 21) as f64;
/// Bits of a patch.
const PATCH_BITS: f64 = 64.0;
/// Bits of a slot's number, at least and at most.
const PRECISIONS: std::ops::RangeInclusive<u32> = 8..=13;

/// How many low bits of an index are left to planes (`nwc_decode_kernels::lane`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Split {
    pub(crate) low_bits: u32,
}

impl Split {
    /// For indices of about this mean magnitude. With a trellis the two lowest bits are the path's.
    pub(crate) fn for_magnitude(mean: f64, with_trellis: bool) -> Self {
        // Coarse values that spread by about one: four of them take some eight bits, and a table tells their frequencies well.
        const MOST_COARSE: f64 = 0.95;
        let mut low_bits = if with_trellis || mean > MOST_COARSE { 2 } else { 0 };
        while mean / f64::from(1 << low_bits) > MOST_COARSE && low_bits < 16 {
            low_bits += 1;
        }
        Self { low_bits }
    }

    /// The part of an index that is coded, if it has four bits.
    pub(crate) fn coarse(self, index: i32) -> i32 {
        index >> self.low_bits
    }
}

/// The place of a coarse value, if it has four bits.
fn place(value: i32) -> Option<usize> {
    usize::try_from(value - LEAST).ok().filter(|place| *place < VALUES)
}

/// How often coarse values come.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Spread([f64; VALUES]);

impl Spread {
    /// Of the weights of a class, by the tables that a container codes them with.
    pub(crate) fn of_class(tables: &Tables<'_>, class: i32, split: Split) -> Self {
        let with_trellis = !tables.next_states().is_empty();
        let mut shares = [0.0; VALUES];
        for parity in 0..2 {
            let union = if tables.unions() == 2 { parity as usize } else { 0 };
            // The first symbol is the escape.
            for (value, _, frequency) in tables.weight_symbols(class.cast_unsigned() as usize, union).skip(1)
            {
                let index = if with_trellis { 2 * value + parity } else { value };
                if let Some(place) = place(split.coarse(index)) {
                    shares[place] += f64::from(frequency);
                }
            }
        }
        let total: f64 = shares.iter().sum();
        if total == 0.0 {
            shares[place(0).unwrap_or(0)] = 1.0;
            return Self(shares);
        }
        Self(shares.map(|share| share / total))
    }

    /// All quads that are not too rare, by number, with their shares.
    fn quads(&self) -> Vec<(u16, f64)> {
        let mut quads = vec![(0u16, 1.0)];
        for _ in 0..4 {
            let longer = quads.iter().flat_map(|&(quad, share)| {
                let with =
                    move |(value, more): (usize, &f64)| (quad * VALUES as u16 + value as u16, share * more);
                self.0.iter().enumerate().map(with).filter(|(_, share)| *share >= RAREST)
            });
            quads = longer.collect();
        }
        quads
    }
}

/// The number of a quad, if all of its values have four bits.
fn number([a, b, c, d]: Quad) -> Option<usize> {
    Some(((place(a)? * VALUES + place(b)?) * VALUES + place(c)?) * VALUES + place(d)?)
}

/// The quad of a number.
fn quad(number: usize) -> Quad {
    [12, 8, 4, 0].map(|shift| (number >> shift & 15) as i32 + LEAST)
}

/// A symbol's range.
#[derive(Debug, Clone, Copy, Default)]
struct Range {
    start: u16,
    /// 0 if the quad has no symbol.
    frequency: u8,
}

/// Frequencies of quads.
#[derive(Debug, Clone)]
pub(crate) struct QuadTable {
    precision: u32,
    /// By the quad's number.
    ranges: Vec<Range>,
    /// What is coded in place of a quad without a symbol.
    usual: Quad,
}

impl QuadTable {
    /// For quads that come so often, in slots of 2^`precision`.
    fn new(quads: &[(u16, f64)], precision: u32) -> Self {
        let slots = 1u32 << precision;
        let mut quads = quads.to_vec();
        quads.sort_by(|a, b| b.1.total_cmp(&a.1));
        quads.truncate(slots as usize / 2);
        let frequencies = |factor: f64| {
            let frequency = move |share: f64| ((share * factor).round() as u32).clamp(1, MOST_FREQUENCY);
            quads.iter().map(move |(_, share)| frequency(*share))
        };
        // The largest factor whose frequencies have room.
        let (mut low, mut high) = (0.0, 4.0 * f64::from(slots));
        for _ in 0..40 {
            let middle = f64::midpoint(low, high);
            if frequencies(middle).sum::<u32>() <= slots { low = middle } else { high = middle }
        }
        let mut ranges = vec![Range::default(); VALUES.pow(4)];
        let mut start = 0;
        for ((quad, _), frequency) in quads.iter().zip(frequencies(low)) {
            ranges[usize::from(*quad)] = Range { start, frequency: frequency as u8 };
            start += frequency as u16;
        }
        let usual = quads.first().map_or(0, |(number, _)| usize::from(*number));
        Self { precision, ranges, usual: quad(usual) }
    }

    /// What kernels look symbols up in. Slots without a symbol are harmless.
    pub(crate) fn slots(&self) -> Vec<u32> {
        let mut slots = vec![1; 1 << self.precision];
        for (number, Range { start, frequency }) in self.ranges.iter().enumerate() {
            let [a, b, c, d] = quad(number).map(|value| value.cast_unsigned() & 15);
            let values = (a << 4 | b << 12 | c | d << 8) << 16;
            for offset in 0..*frequency {
                let slot = usize::from(*start) + usize::from(offset);
                slots[slot] = values | u32::from(offset) << 8 | u32::from(*frequency);
            }
        }
        slots
    }

    fn range(&self, quad: Quad) -> Range {
        number(quad).map_or(Range::default(), |number| self.ranges[number])
    }

    /// Bits that quads take, those that patches take among them.
    pub(crate) fn cost(&self, quads: &[Quad]) -> f64 {
        quads.iter().map(|quad| self.cost_of(self.range(*quad))).sum()
    }

    fn cost_of(&self, Range { frequency, .. }: Range) -> f64 {
        if frequency == 0 { PATCH_BITS } else { f64::from(self.precision) - f64::from(frequency).log2() }
    }

    /// Bits that a weight takes, one in four in a quad, if quads come so often.
    fn mean_cost(&self, quads: &[(u16, f64)]) -> f64 {
        let cost = |(quad, share): &(u16, f64)| share * self.cost_of(self.ranges[usize::from(*quad)]);
        quads.iter().map(cost).sum::<f64>() / 4.0
    }

    /// The quad as it is coded: itself, if it has a symbol.
    pub(crate) fn coded(&self, quad: Quad) -> Quad {
        if self.range(quad).frequency == 0 { self.usual } else { quad }
    }

    /// Codes quads that have symbols, `together` to a chunk.
    pub(crate) fn encode(&self, quads: &[Quad], together: usize) -> Coded {
        let mut coded = Coded { taken: vec![0; quads.len() / together], ..Coded::default() };
        for (place, quad) in quads.iter().enumerate().rev() {
            let range = self.range(*quad);
            let (start, frequency) = (u32::from(range.start), u32::from(range.frequency));
            let x = &mut coded.states[place % 2];
            if *x >= frequency << (32 - self.precision) {
                coded.words.push(*x as u16);
                *x >>= 16;
                coded.taken[place / together] += 1;
            }
            *x = ((*x / frequency) << self.precision) + start + *x % frequency;
        }
        coded.words.reverse();
        coded
    }
}

/// A lane's part of an item.
#[derive(Debug, Clone)]
pub(crate) struct Coded {
    /// Those that decoding begins with: they take turns.
    pub(crate) states: [u32; 2],
    pub(crate) words: Vec<u16>,
    /// Words that each chunk takes.
    pub(crate) taken: Vec<u8>,
}

impl Default for Coded {
    fn default() -> Self {
        Self { states: [LOWER_BOUND; 2], words: Vec::new(), taken: Vec::new() }
    }
}

/// Tables for a tensor.
pub(crate) struct TableSet {
    pub(crate) precision: u32,
    pub(crate) tables: Vec<QuadTable>,
}

impl TableSet {
    /// Those with which weights of these spreads, so many of each, take the least, in at most `most_bytes`.
    pub(crate) fn new(spreads: &[(Spread, u64)], most_bytes: usize) -> Self {
        let quads: Vec<(Vec<(u16, f64)>, u64)> =
            spreads.iter().map(|(spread, count)| (spread.quads(), *count)).collect();
        // Nothing gains half a bit a weight, so that no table may cost as much.
        let weights: u64 = spreads.iter().map(|(_, count)| count).sum();
        let pays = |precision: &u32| precision == PRECISIONS.start() || 32 << precision <= weights / 2;
        let choices = PRECISIONS.filter(pays).map(|precision| {
            let tables: Vec<QuadTable> =
                quads.iter().map(|(quads, _)| QuadTable::new(quads, precision)).collect();
            let (picked, bits) = pick(&quads, &tables, most_bytes >> (precision + 2));
            let of_tables = (picked.len() << (precision + 5)) as f64;
            let tables = picked.into_iter().map(|place| tables[place].clone()).collect();
            (bits + of_tables, Self { precision, tables })
        });
        let best = choices.min_by(|a, b| a.0.total_cmp(&b.0));
        best.map_or(Self { precision: *PRECISIONS.start(), tables: Vec::new() }, |(_, best)| best)
    }
}

/// Of tables, one for each spread, at most so many that serve them all best, one after the other; and the bits that their weights then take.
fn pick(spreads: &[(Vec<(u16, f64)>, u64)], tables: &[QuadTable], most: usize) -> (Vec<usize>, f64) {
    let costs: Vec<Vec<f64>> = tables
        .iter()
        .map(|table| spreads.iter().map(|(quads, count)| table.mean_cost(quads) * *count as f64).collect())
        .collect();
    let mut best = vec![f64::INFINITY; spreads.len()];
    let mut picked = Vec::new();
    for _ in 0..most.min(tables.len()).max(1) {
        let with = |table: usize| -> f64 { best.iter().zip(&costs[table]).map(|(a, b)| a.min(*b)).sum() };
        let Some(next) = (0..tables.len()).min_by(|a, b| with(*a).total_cmp(&with(*b))) else { break };
        let gain = best.iter().sum::<f64>() - with(next);
        if !picked.is_empty() && gain <= f64::from(32 << tables[next].precision) {
            break;
        }
        best.iter_mut().zip(&costs[next]).for_each(|(best, cost)| *best = best.min(*cost));
        picked.push(next);
    }
    (picked, best.iter().sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(deviation: f64) -> Spread {
        let share = |place: usize| {
            let value = f64::from(place as i32 + LEAST);
            (-value * value / (2.0 * deviation * deviation)).exp()
        };
        let shares: [f64; VALUES] = std::array::from_fn(share);
        let total: f64 = shares.iter().sum();
        Spread(shares.map(|share| share / total))
    }

    #[test]
    fn quads_cost_little_more_than_their_entropy() {
        for (deviation, over) in [(0.5, 0.07), (0.75, 0.08), (1.0, 0.13)] {
            let spread = spread(deviation);
            let entropy: f64 = spread.0.iter().filter(|p| **p > 0.0).map(|p| -p * p.log2()).sum();
            let set = TableSet::new(&[(spread, 1 << 30)], 1 << 16);
            let cost = set.tables[0].mean_cost(&spread.quads());
            assert!(cost > entropy - 0.001 && cost < entropy + over, "{deviation}: {cost} for {entropy}");
        }
    }

    #[test]
    fn numbers_are_those_of_their_quads() {
        assert!((0..VALUES.pow(4)).all(|n| number(quad(n)) == Some(n)));
        assert_eq!(number([0, 0, 8, 0]), None);
        assert_eq!(number([-9, 0, 0, 0]), None);
    }

    #[test]
    fn what_is_coded_comes_back_by_the_slots() {
        let table = QuadTable::new(&spread(0.8).quads(), 10);
        let slots = table.slots();
        let values = |n: i32| [n * 7 % 5 - 2, n * 5 % 3 - 1, n % 4 - 2, n * 3 % 7 - 3];
        let quads: Vec<Quad> = (0..512).map(|n| table.coded(values(n))).collect();
        let coded = table.encode(&quads, 4);
        assert_eq!(coded.taken.iter().map(|n| usize::from(*n)).sum::<usize>(), coded.words.len());
        let (mut states, mut words) = (coded.states, coded.words.iter());
        for (place, quad) in quads.into_iter().enumerate() {
            let x = &mut states[place % 2];
            let slot = slots[(*x & 1023) as usize];
            let nibble = |shift: u32| ((slot << (28 - shift)) as i32) >> 28;
            assert_eq!([nibble(20), nibble(28), nibble(16), nibble(24)], quad);
            *x = (slot & 0xFF) * (*x >> 10) + (slot >> 8 & 0xFF);
            if *x < LOWER_BOUND {
                *x = *x << 16 | u32::from(*words.next().expect("there are enough"));
            }
        }
        assert_eq!((states, words.next()), ([LOWER_BOUND; 2], None));
    }
}
