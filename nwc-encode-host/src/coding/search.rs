//! Choosing indices: the scalar quantiser, and the Viterbi search over a trellis, both with the rate in the cost.
//!
//! The cost of a path is the sum of (x - i)^2 + lambda * bits, with weights x and indices i in units of the step. A block is
//! up to [`LANES`] columns side by side, one a lane; lanes are independent, so they are searched in vectors.

mod column;

pub use column::Column;

use super::lanes::{CONSTANTS, Candidates, Lanes, Portable, WIDTH, subset_at};
use super::trellis::{Taps, Trellis};

/// Columns of a block.
pub const LANES: usize = nwc_decode_core::MAX_LANES;
/// Largest magnitudes of weights that are searched for: the values of the indices next to them fit an i16.
const MAX_WEIGHT: f32 = 65_530.0;
const MAX_WEIGHT_SCALAR: f32 = 32_760.0;
/// More than any path costs.
const UNREACHED: f32 = 1e30;
/// Rows after which path costs are made small again, so that f32 resolves them.
const ROWS_TO_SETTLE: usize = 64;

/// How indices are chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Quantiser {
    /// Each weight by itself; i is coded as it is.
    Scalar,
    /// Along the paths of a trellis; i is coded as (i - parity of the state) / 2.
    Trellis(Trellis),
}

impl Quantiser {
    /// The lambda that suits all rates, in squared steps a bit: 0.1 of the squared spacing of the values that a symbol can choose from.
    pub fn lambda(&self) -> f32 {
        match self {
            Self::Scalar => 0.1,
            Self::Trellis(_) => 0.4,
        }
    }

    /// The spacing of the values that a symbol can choose from, in steps.
    pub fn spacing(&self) -> f64 {
        match self {
            Self::Scalar => 1.0,
            Self::Trellis(_) => 2.0,
        }
    }

    /// The symbol's value for an index, and its union: with a trellis an index tells the parity of the state that allowed it.
    #[inline]
    pub fn symbol(&self, index: i32) -> (i32, usize) {
        match self {
            Self::Scalar => (index, 0),
            Self::Trellis(_) => (index >> 1, (index & 1) as usize),
        }
    }

    /// The index of a value in a union: what [`symbol`](Self::symbol) takes apart.
    #[inline]
    pub fn index(&self, value: i32, union: usize) -> i32 {
        match self {
            Self::Scalar => value,
            Self::Trellis(_) => 2 * value + union as i32,
        }
    }
}

/// What symbols cost, times lambda, ready for the search.
#[derive(Debug, Clone)]
pub struct RateModel {
    classes: usize,
    /// Floors of weights that have costs of their own: from a multiple of 4 to one below a multiple of 4.
    first: i32,
    last: i32,
    /// For each class and floor, what the four indices around it cost, by index mod 4, with the constant part of their squared distances.
    costs: Vec<Candidates>,
}

impl RateModel {
    /// From a function that gives the bits of a value by class and union, for values in `values`; values outside cost as those just
    /// outside do.
    pub fn new(
        quantiser: &Quantiser,
        classes: usize,
        values: std::ops::RangeInclusive<i32>,
        bits: impl Fn(usize, usize, i32) -> f32,
    ) -> Self {
        let lambda = quantiser.lambda();
        let (lo, hi) = (*values.start() - 1, *values.end() + 1);
        let first = (quantiser.index(lo, 0) - 2) & !3;
        let last = (quantiser.index(hi, 1) + 2) | 3;
        let mut costs = Vec::with_capacity(classes * (last - first + 1) as usize);
        for class in 0..classes {
            let cost = |index: i32| {
                let (value, union) = quantiser.symbol(index);
                lambda * bits(class, union, value.clamp(lo, hi))
            };
            // Each index is a candidate of four floors: what it costs is asked once.
            let by_index: Vec<f32> = (first - 1..=last + 2).map(cost).collect();
            costs.extend((first..=last).zip(by_index.windows(4)).map(|(floor, around)| {
                let mut candidates = [0.0; 4];
                for (place, cost) in around.iter().enumerate() {
                    candidates[subset_at(floor, place)] = CONSTANTS[place] + cost;
                }
                candidates
            }));
        }
        Self { classes, first, last, costs }
    }

    /// The indices that have costs of their own, about.
    pub fn indices(&self) -> std::ops::Range<i32> {
        self.first..self.last + 1
    }

    /// What an index costs by its rate alone.
    #[inline]
    pub fn cost(&self, class: i32, index: i32) -> f32 {
        let phase = index & 3;
        // As [`Lanes::metrics`] limits floors. The candidate at the floor itself has no distance.
        let floor = index.min(self.last & !3 | phase).max(self.first & !3 | phase);
        self.costs[(self.base(class) + floor) as usize][phase as usize] - CONSTANTS[1]
    }

    /// Place of a class's costs for a floor of 0.
    #[inline(always)]
    fn base(&self, class: i32) -> i32 {
        class.clamp(0, self.classes as i32 - 1) * (self.last - self.first + 1) - self.first
    }
}

/// Up to [`LANES`] columns side by side.
#[derive(Debug)]
pub struct Block<'a> {
    /// Weights in units of their step, `[row][LANES]`.
    pub weights: &'a [f32],
    /// Class of each column.
    pub column_class: &'a [i32; LANES],
    /// What each row adds to its columns' classes; empty if nothing.
    pub row_class: &'a [i32],
    /// Columns that are there.
    pub lanes: usize,
}

impl Block<'_> {
    /// The weights of [`WIDTH`] lanes of a row.
    #[inline(always)]
    fn weights(&self, row: usize, first: usize) -> &[f32; WIDTH] {
        self.weights[row * LANES + first..].first_chunk().expect("WIDTH divides LANES")
    }

    /// Where the costs of [`WIDTH`] lanes begin in a row.
    #[inline(always)]
    fn bases(&self, rate: &RateModel, row: usize, first: usize) -> [i32; WIDTH] {
        let more = self.row_class.get(row).copied().unwrap_or(0);
        std::array::from_fn(|lane| rate.base(self.column_class[first + lane] + more))
    }
}

/// The instructions that a search uses. What it finds does not depend on them.
#[derive(Debug, Clone, Copy)]
enum Instructions {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2(super::lanes::Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(super::lanes::Avx512),
}

impl Instructions {
    /// All that this processor has, the fastest last.
    fn available() -> Vec<Self> {
        let all = std::iter::once(Self::Portable);
        #[cfg(target_arch = "x86_64")]
        let all = all
            .chain(super::lanes::Avx2::detect().map(Self::Avx2))
            .chain(super::lanes::Avx512::detect().map(Self::Avx512));
        all.collect()
    }
}

/// Searches blocks, one after the other in the same memory.
#[derive(Debug)]
pub struct Search {
    instructions: Instructions,
    /// For each row and state which branch each lane came by, as bits.
    decisions: Vec<u16>,
    path: column::Path,
}

impl Default for Search {
    fn default() -> Self {
        let instructions = Instructions::available().pop().expect("there are portable ones");
        Self::new(instructions)
    }
}

impl Search {
    fn new(instructions: Instructions) -> Self {
        Self { instructions, decisions: Vec::new(), path: column::Path::default() }
    }

    /// Chooses the indices of a block, `[row][LANES]`, starting from each lane's state and leaving there the state after the last row. Lanes
    /// that are not there get indices without meaning.
    pub fn run(
        &mut self,
        quantiser: &Quantiser,
        rate: &RateModel,
        block: &Block<'_>,
        states: &mut [u8; LANES],
        indices: &mut [i32],
    ) {
        for first in (0..block.lanes).step_by(WIDTH) {
            let states = states[first..].first_chunk_mut().expect("WIDTH divides LANES");
            let group = Group { rate, block, first };
            match quantiser {
                Quantiser::Scalar => self.dispatch::<1>(&group, states, indices),
                Quantiser::Trellis(trellis) => match trellis.states() {
                    8 => self.dispatch::<8>(&group, states, indices),
                    16 => self.dispatch::<16>(&group, states, indices),
                    32 => self.dispatch::<32>(&group, states, indices),
                    64 => self.dispatch::<64>(&group, states, indices),
                    128 => self.dispatch::<128>(&group, states, indices),
                    _ => self.dispatch::<256>(&group, states, indices),
                },
            }
        }
    }

    /// A trellis of `N` states; one state stands for the scalar quantiser.
    fn dispatch<const N: usize>(&mut self, group: &Group<'_>, states: &mut [u8; WIDTH], indices: &mut [i32]) {
        let words = indices.len() / LANES * N;
        if self.decisions.len() < words {
            self.decisions.resize(words, 0);
        }
        let decisions = self.decisions[..words].as_chunks_mut::<N>().0;
        match self.instructions {
            Instructions::Portable => group.search(Portable, states, indices, decisions),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the value is the proof that the processor has the instructions.
            Instructions::Avx2(lanes) => unsafe { search_avx2(lanes, group, states, indices, decisions) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the value is the proof that the processor has the instructions.
            Instructions::Avx512(lanes) => unsafe {
                search_avx512(lanes, group, states, indices, decisions);
            },
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn search_avx2<const N: usize>(
    lanes: super::lanes::Avx2,
    group: &Group<'_>,
    states: &mut [u8; WIDTH],
    indices: &mut [i32],
    decisions: &mut [[u16; N]],
) {
    group.search(lanes, states, indices, decisions);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw")]
fn search_avx512<const N: usize>(
    lanes: super::lanes::Avx512,
    group: &Group<'_>,
    states: &mut [u8; WIDTH],
    indices: &mut [i32],
    decisions: &mut [[u16; N]],
) {
    group.search(lanes, states, indices, decisions);
}

/// [`WIDTH`] neighbouring lanes of a block.
struct Group<'a> {
    rate: &'a RateModel,
    block: &'a Block<'a>,
    first: usize,
}

impl Group<'_> {
    #[inline(always)]
    fn search<L: Lanes, const N: usize>(
        &self,
        lanes: L,
        states: &mut [u8; WIDTH],
        indices: &mut [i32],
        decisions: &mut [[u16; N]],
    ) {
        if N == 1 {
            self.scalar(lanes, indices);
        } else {
            self.viterbi(lanes, states, indices, decisions);
        }
    }

    /// Each weight by itself.
    #[inline(always)]
    fn scalar<L: Lanes>(&self, lanes: L, indices: &mut [i32]) {
        let mut bases = lanes.load_int(&self.block.bases(self.rate, 0, self.first));
        for (row, out) in indices.chunks_exact_mut(LANES).enumerate() {
            if !self.block.row_class.is_empty() {
                bases = lanes.load_int(&self.block.bases(self.rate, row, self.first));
            }
            let weights = self.weights(lanes, row, MAX_WEIGHT_SCALAR);
            let metrics = lanes.metrics(weights, bases, self.rate.first, self.rate.last, &self.rate.costs);
            let out = out[self.first..].first_chunk_mut().expect("WIDTH divides LANES");
            lanes.store_int(lanes.index(weights, lanes.cheapest(&metrics)), out);
        }
    }

    #[inline(always)]
    fn viterbi<L: Lanes, const N: usize>(
        &self,
        lanes: L,
        states: &mut [u8; WIDTH],
        indices: &mut [i32],
        decisions: &mut [[u16; N]],
    ) {
        // No closures on what holds registers, here and below: they would not be compiled for the processor's instructions.
        let mut costs = [lanes.load(&[UNREACHED; WIDTH]); N];
        for (state, cost) in costs.iter_mut().enumerate() {
            let start = |lane: usize| if usize::from(states[lane]) == state { 0.0 } else { UNREACHED };
            *cost = lanes.load(&std::array::from_fn(start));
        }
        let mut after = costs;
        let (mut costs, mut after) = (&mut costs, &mut after);
        let mut bases = lanes.load_int(&self.block.bases(self.rate, 0, self.first));
        for (row, decisions) in decisions.iter_mut().enumerate() {
            if !self.block.row_class.is_empty() {
                bases = lanes.load_int(&self.block.bases(self.rate, row, self.first));
            }
            let metrics = lanes.metrics(
                self.weights(lanes, row, MAX_WEIGHT),
                bases,
                self.rate.first,
                self.rate.last,
                &self.rate.costs,
            );
            advance(lanes, costs, &metrics, after, decisions);
            std::mem::swap(&mut costs, &mut after);
            if row % ROWS_TO_SETTLE == ROWS_TO_SETTLE - 1 {
                let mut least = costs[0];
                for &cost in &*costs {
                    least = lanes.choose(least, cost).0;
                }
                for cost in &mut *costs {
                    *cost = lanes.sub(*cost, least);
                }
            }
        }

        let mut ends = [0; WIDTH];
        let mut least = [f32::MAX; WIDTH];
        for (state, &cost) in costs.iter().enumerate() {
            let cost = lanes.store(cost);
            for lane in 0..WIDTH {
                if cost[lane] < least[lane] {
                    (least[lane], ends[lane]) = (cost[lane], state as i32);
                }
            }
        }
        *states = ends.map(|state| state as u8);
        let mut current = lanes.load_int(&ends);
        let Taps { parity, free } = const { taps::<N>() };
        for (row, decisions) in decisions.iter().enumerate().rev() {
            let (before, subsets) = lanes.back(decisions, current, (parity, free));
            let out = indices[row * LANES + self.first..].first_chunk_mut().expect("WIDTH divides LANES");
            lanes.store_int(lanes.index(self.weights(lanes, row, MAX_WEIGHT), subsets), out);
            current = before;
        }
    }

    #[inline(always)]
    fn weights<L: Lanes>(&self, lanes: L, row: usize, most: f32) -> L::Float {
        lanes.limit(lanes.load(self.block.weights(row, self.first)), most)
    }
}

/// The taps of the trellis with this number of states; any of the scalar quantiser, whose code does not run them.
const fn taps<const N: usize>() -> Taps {
    match Taps::of(if N == 1 { 8 } else { N }) {
        Some(taps) => taps,
        None => panic!("there is no trellis of so many states"),
    }
}

/// Costs of the best paths into each state one row on, and by which branch they came: that of the index's second bit.
///
/// States 2a + p and 2b + p, with b = a ^ free, lead to the same two states, a ^ (p * parity) and the same ^ free: a butterfly.
#[inline(always)]
fn advance<L: Lanes, const N: usize>(
    lanes: L,
    costs: &[L::Float; N],
    metrics: &[L::Float; 4],
    after: &mut [L::Float; N],
    decisions: &mut [u16; N],
) {
    let Taps { parity, free } = const { taps::<N>() };
    let (parity, free) = (usize::from(parity), usize::from(free));
    // One of each pair is the one without the highest bit of `free`.
    let low = (1 << free.ilog2()) - 1;
    for p in 0..2 {
        for pair in 0..N / 4 {
            let a = (pair & low) | (pair & !low) << 1;
            let from_a = costs[(2 * a + p) % N];
            let from_b = costs[(2 * (a ^ free) + p) % N];
            let to = (a ^ (p * parity)) % N;
            let (straight, crossed) = (metrics[p], metrics[p + 2]);
            (after[to], decisions[to]) =
                lanes.choose(lanes.add(from_a, straight), lanes.add(from_b, crossed));
            let to = (to ^ free) % N;
            (after[to], decisions[to]) =
                lanes.choose(lanes.add(from_b, straight), lanes.add(from_a, crossed));
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    const STATES: [usize; 6] = [8, 16, 32, 64, 128, 256];

    fn trellis(states: usize) -> (Trellis, Quantiser) {
        let trellis = Trellis::with_states(states).unwrap();
        (trellis.clone(), Quantiser::Trellis(trellis))
    }

    fn bits(class: usize, union: usize, value: i32) -> f32 {
        1.0 + value.abs() as f32 * (0.5 + class as f32 * 0.25) + union as f32 * 0.1
    }

    fn rate(quantiser: &Quantiser) -> RateModel {
        RateModel::new(quantiser, 3, -20..=20, bits)
    }

    fn cost_of(quantiser: &Quantiser, weights: &[f32], class: usize, indices: &[i32]) -> f64 {
        let cost = |(&x, &index): (&f32, &i32)| {
            let (value, union) = quantiser.symbol(index);
            f64::from((x - index as f32).powi(2)) + f64::from(quantiser.lambda() * bits(class, union, value))
        };
        weights.iter().zip(indices).map(cost).sum()
    }

    /// The state after an index, which the state must allow.
    fn step(trellis: &Trellis, state: u8, index: i32) -> u8 {
        assert_eq!(index & 1, i32::from(state & 1), "an index of the state's parity");
        trellis.next()[usize::from(state) * 2 + (index >> 1 & 1) as usize]
    }

    /// Every path of nearest indices, tried one by one.
    fn exhaustive(trellis: &Trellis, quantiser: &Quantiser, weights: &[f32], class: usize) -> f64 {
        (0..1u32 << weights.len())
            .map(|choice| {
                let mut state = 0;
                let mut indices = Vec::new();
                for (place, &x) in weights.iter().enumerate() {
                    let subset = f32::from(state & 1) + 2.0 * (choice >> place & 1) as f32;
                    let index = (4.0 * ((x - subset) / 4.0).round() + subset) as i32;
                    indices.push(index);
                    state = step(trellis, state, index);
                }
                cost_of(quantiser, weights, class, &indices)
            })
            .fold(f64::MAX, f64::min)
    }

    #[test]
    fn the_search_finds_the_cheapest_path() {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        for states in STATES {
            let (trellis, quantiser) = trellis(states);
            let rate = rate(&quantiser);
            let rows = 10;
            let weights: Vec<f32> = (0..rows * LANES).map(|_| rng.random_range(-9.0..9.0)).collect();
            let column_class = std::array::from_fn(|lane| lane as i32 % 4 - 1);
            let block = Block { weights: &weights, column_class: &column_class, row_class: &[], lanes: 20 };
            let mut indices = vec![0; rows * LANES];
            let mut ends = [0; LANES];
            Search::default().run(&quantiser, &rate, &block, &mut ends, &mut indices);
            for lane in 0..block.lanes {
                let column: Vec<f32> = weights.iter().skip(lane).step_by(LANES).copied().collect();
                let chosen: Vec<i32> = indices.iter().skip(lane).step_by(LANES).copied().collect();
                let class = column_class[lane].clamp(0, 2) as usize;
                let found = cost_of(&quantiser, &column, class, &chosen);
                let best = exhaustive(&trellis, &quantiser, &column, class);
                assert!((found - best).abs() < 1e-3, "{states} states, lane {lane}: {found}, not {best}");
                let end = chosen.iter().fold(0, |state, &index| step(&trellis, state, index));
                assert_eq!(end, ends[lane]);
            }
        }
    }

    #[test]
    fn every_processor_finds_the_same() {
        let mut rng = ChaCha8Rng::seed_from_u64(8);
        for (states, lanes, rows) in STATES
            .into_iter()
            .zip([1, 16, 17, 32, 31, 5])
            .zip([70, 1, 130, 64, 257, 99])
            .map(|((states, lanes), rows)| (states, lanes, rows))
        {
            let (trellis, quantiser) = trellis(states);
            let rate = rate(&quantiser);
            // Ties, outliers and indices outside the table too.
            let weights: Vec<f32> = (0..rows * LANES)
                .map(|_| match rng.random_range(0..10) {
                    0 => rng.random_range(-8..8) as f32 / 2.0,
                    1 => rng.random_range(-1e6..1e6),
                    2 => 1e38,
                    _ => rng.random_range(-20.0..20.0),
                })
                .collect();
            let row_class: Vec<i32> = (0..rows).map(|_| rng.random_range(-2..3)).collect();
            let column_class = std::array::from_fn(|lane| lane as i32 % 4 - 1);
            for row_class in [&row_class[..], &[]] {
                let block = Block { weights: &weights, column_class: &column_class, row_class, lanes };
                let starts = std::array::from_fn(|lane| (lane * 7 % states) as u8);
                let found = Instructions::available().into_iter().map(|instructions| {
                    let mut search = Search::new(instructions);
                    let (mut ends, mut indices) = (starts, vec![0; rows * LANES]);
                    search.run(&quantiser, &rate, &block, &mut ends, &mut indices);
                    let there = |row: &[i32]| row[..lanes].to_vec();
                    (ends[..lanes].to_vec(), indices.chunks(LANES).flat_map(there).collect::<Vec<_>>())
                });
                let found: Vec<_> = found.collect();
                for other in &found[1..] {
                    assert!(*other == found[0], "{states} states");
                }
                for instructions in Instructions::available() {
                    let mut search = Search::new(instructions);
                    for lane in 0..lanes {
                        let column: Vec<f32> = weights.iter().skip(lane).step_by(LANES).copied().collect();
                        let column = Column { weights: &column, class: column_class[lane], row_class };
                        let (mut end, mut indices) = (starts[lane], vec![0; rows]);
                        search.column(&quantiser, &rate, &column, &mut end, &mut indices);
                        let of_block = found[0].1.iter().skip(lane).step_by(lanes);
                        assert!(
                            end == found[0].0[lane] && indices.iter().eq(of_block),
                            "{states} states, lane {lane} by itself, {instructions:?}"
                        );
                    }
                }
                for (lane, (&start, &found_end)) in starts.iter().zip(&found[0].0).enumerate() {
                    let chosen = found[0].1.iter().skip(lane).step_by(lanes);
                    let end = chosen.fold(start, |state, &index| step(&trellis, state, index));
                    assert_eq!(end, found_end);
                }
            }
        }
    }

    #[test]
    fn outliers_saturate_and_keep_their_parity() {
        let (trellis, quantiser) = trellis(8);
        let mut weights = vec![0.0; 4 * LANES];
        (weights[0], weights[LANES]) = (1e30, -1e30);
        let block = Block { weights: &weights, column_class: &[0; LANES], row_class: &[], lanes: 1 };
        let mut indices = vec![0; 4 * LANES];
        Search::default().run(&quantiser, &rate(&quantiser), &block, &mut [0; LANES], &mut indices);
        let mut state = 0;
        for row in 0..4 {
            let (value, _) = quantiser.symbol(indices[row * LANES]);
            assert!(i16::try_from(value).is_ok());
            state = step(&trellis, state, indices[row * LANES]);
        }
        assert!(indices[0] > 65_000 && indices[LANES] < -65_000);
    }

    #[test]
    fn the_scalar_quantiser_takes_the_cheapest_of_the_nearest() {
        let quantiser = Quantiser::Scalar;
        let rate = rate(&quantiser);
        let weights: Vec<f32> = (0..8 * LANES).map(|i| (i as f32 - 128.0) / 5.0).collect();
        let block = Block { weights: &weights, column_class: &[1; LANES], row_class: &[], lanes: LANES };
        for instructions in Instructions::available() {
            let mut indices = vec![0; weights.len()];
            let mut search = Search::new(instructions);
            search.run(&quantiser, &rate, &block, &mut [0; LANES], &mut indices);
            for (&x, &index) in weights.iter().zip(&indices) {
                let cost = |index: f32| cost_of(&quantiser, &[x], 1, &[index as i32]);
                let near = [-1.0, 0.0, 1.0, 2.0].map(|more| cost(x.floor() + more));
                let best = near.into_iter().fold(f64::MAX, f64::min);
                assert!((cost(index as f32) - best).abs() < 1e-4, "{x}: {index}, {instructions:?}");
            }
        }
    }
}
