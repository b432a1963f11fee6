//! Choosing indices: the scalar quantiser, and the Viterbi search over a trellis, both with the rate in the cost.
//!
//! The cost of a path is the sum of (x - i)^2 + lambda * bits, with weights x and indices i in units of the step. A block is
//! up to [`LANES`] columns side by side, one a lane; lanes are independent, so they are searched in vectors.

use super::trellis::Trellis;

/// Columns of a block.
pub const LANES: usize = nwc_decode_core::MAX_LANES;
/// Lanes that are searched together: an AVX2 register of f32.
const WIDTH: usize = 8;
/// Largest magnitude of an index that any symbol or escape can express, whatever its parity.
const MAX_INDEX: f32 = 65_530.0;
/// More than any path costs.
const UNREACHED: f32 = 1e30;

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

    /// The symbol's value for an index in a state, and the state after it.
    #[inline]
    pub fn symbol(&self, state: u8, index: i32) -> (i32, u8) {
        match self {
            Self::Scalar => (index, 0),
            Self::Trellis(trellis) => {
                let value = (index - i32::from(state & 1)) >> 1;
                let branch = usize::from(state) * 2 + (value & 1) as usize;
                (value, trellis.next()[branch])
            }
        }
    }
}

/// What symbols cost, times lambda, ready for the search.
#[derive(Debug, Clone)]
pub struct RateModel {
    classes: usize,
    /// Tables a class that the costs are kept for: 2 for a trellis (equal where the tables are merged), 1 else.
    unions: usize,
    lo: i32,
    width: usize,
    costs: Vec<f32>,
}

impl RateModel {
    /// From a function that gives the bits of a value by class and union, for values in `lo..=hi`; values outside cost as those just
    /// outside do.
    pub fn new(
        quantiser: &Quantiser,
        classes: usize,
        values: std::ops::RangeInclusive<i32>,
        bits: impl Fn(usize, usize, i32) -> f32,
    ) -> Self {
        let unions = if matches!(quantiser, Quantiser::Scalar) { 1 } else { 2 };
        let lambda = quantiser.lambda();
        let (lo, hi) = (values.start() - 1, values.end() + 1);
        let mut costs = Vec::with_capacity(classes * unions * (hi - lo + 1) as usize);
        for class in 0..classes {
            for union in 0..unions {
                costs.extend((lo..=hi).map(|value| lambda * bits(class, union, value)));
            }
        }
        Self { classes, unions, lo, width: (hi - lo + 1) as usize, costs }
    }

    fn row(&self, class: i32, union: usize) -> usize {
        let class = class.clamp(0, self.classes as i32 - 1) as usize;
        (class * self.unions + union % self.unions) * self.width
    }

    #[inline(always)]
    fn cost(&self, row: usize, value: i32) -> f32 {
        let column = (value - self.lo).clamp(0, self.width as i32 - 1) as usize;
        self.costs[row + column]
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

/// Chooses the indices of a block, `[row][LANES]`, starting from each lane's state and leaving there the state after the last row.
pub fn search(
    quantiser: &Quantiser,
    rate: &RateModel,
    block: &Block<'_>,
    states: &mut [u8; LANES],
    indices: &mut [i32],
) {
    let workspace = &mut Vec::new();
    for first in (0..block.lanes).step_by(WIDTH) {
        let states: &mut [u8; WIDTH] =
            (&mut states[first..first + WIDTH]).try_into().expect("WIDTH divides LANES");
        let group = Group { rate, block, first };
        match quantiser {
            Quantiser::Scalar => group.scalar(indices),
            Quantiser::Trellis(trellis) => {
                let predecessors = trellis.predecessors();
                match predecessors.len() {
                    8 => group.dispatch::<8>(trellis, &predecessors, states, indices, workspace),
                    16 => group.dispatch::<16>(trellis, &predecessors, states, indices, workspace),
                    32 => group.dispatch::<32>(trellis, &predecessors, states, indices, workspace),
                    64 => group.dispatch::<64>(trellis, &predecessors, states, indices, workspace),
                    128 => group.dispatch::<128>(trellis, &predecessors, states, indices, workspace),
                    _ => group.dispatch::<256>(trellis, &predecessors, states, indices, workspace),
                }
            }
        }
    }
}

/// [`WIDTH`] neighbouring lanes of a block.
struct Group<'a> {
    rate: &'a RateModel,
    block: &'a Block<'a>,
    first: usize,
}

impl Group<'_> {
    fn scalar(&self, indices: &mut [i32]) {
        let lanes = self.first..(self.first + WIDTH).min(self.block.lanes);
        for (row, out) in indices.chunks_exact_mut(LANES).enumerate() {
            for lane in lanes.clone() {
                let x = self.block.weights[row * LANES + lane].clamp(-32_767.0, 32_767.0);
                let costs = self.rate.row(self.class(row, lane), 0);
                let toward_zero = x.trunc() as i32;
                let away = toward_zero + if x < 0.0 { -1 } else { 1 };
                let cost = |i: i32| (x - i as f32).powi(2) + self.rate.cost(costs, i);
                out[lane] = [toward_zero, away, 0]
                    .into_iter()
                    .min_by(|&a, &b| cost(a).total_cmp(&cost(b)))
                    .unwrap_or(0);
            }
        }
    }

    fn class(&self, row: usize, lane: usize) -> i32 {
        self.block.column_class[lane] + self.block.row_class.get(row).copied().unwrap_or(0)
    }

    fn dispatch<const N: usize>(
        &self,
        trellis: &Trellis,
        predecessors: &[[(u8, u8); 2]],
        states: &mut [u8; WIDTH],
        indices: &mut [i32],
        workspace: &mut Vec<[u32; WIDTH]>,
    ) {
        let predecessors: &[[(u8, u8); 2]; N] = predecessors.try_into().expect("N is the number of states");
        #[cfg(target_arch = "x86_64")]
        if std::is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has AVX2. The function computes the same as the portable one: no operation is fused.
            unsafe { self.viterbi_avx2::<N>(trellis, predecessors, states, indices, workspace) };
            return;
        }
        self.viterbi::<N>(trellis, predecessors, states, indices, workspace);
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    fn viterbi_avx2<const N: usize>(
        &self,
        trellis: &Trellis,
        predecessors: &[[(u8, u8); 2]; N],
        states: &mut [u8; WIDTH],
        indices: &mut [i32],
        workspace: &mut Vec<[u32; WIDTH]>,
    ) {
        self.viterbi::<N>(trellis, predecessors, states, indices, workspace);
    }

    #[inline(always)]
    fn viterbi<const N: usize>(
        &self,
        trellis: &Trellis,
        predecessors: &[[(u8, u8); 2]; N],
        states: &mut [u8; WIDTH],
        indices: &mut [i32],
        decisions: &mut Vec<[u32; WIDTH]>,
    ) {
        let rows = indices.len() / LANES;
        let words = N.div_ceil(32);
        decisions.clear();
        decisions.resize(rows * words, [0; WIDTH]);

        let mut cost = [[UNREACHED; WIDTH]; N];
        for (lane, &state) in states.iter().enumerate() {
            cost[usize::from(state)][lane] = 0.0;
        }
        let mut cost_rows = self.cost_rows(0);
        for (row, decision) in decisions.chunks_exact_mut(words).enumerate() {
            if !self.block.row_class.is_empty() {
                cost_rows = self.cost_rows(row);
            }
            let metric = self.branch_metrics(&self.weights(row), &cost_rows);
            let before = cost;
            for (state, branches) in predecessors.iter().enumerate() {
                let [(from_a, subset_a), (from_b, subset_b)] = *branches;
                let (a, cost_a) = (&before[usize::from(from_a)], &metric[usize::from(subset_a)]);
                let (b, cost_b) = (&before[usize::from(from_b)], &metric[usize::from(subset_b)]);
                let word = &mut decision[state / 32];
                for lane in 0..WIDTH {
                    let (via_a, via_b) = (a[lane] + cost_a[lane], b[lane] + cost_b[lane]);
                    word[lane] |= u32::from(via_b < via_a) << (state % 32);
                    cost[state][lane] = if via_b < via_a { via_b } else { via_a };
                }
            }
            if row % 64 == 63 {
                // Keep the sums small, so that f32 resolves them.
                for lane in 0..WIDTH {
                    let least = cost.iter().map(|cost| cost[lane]).fold(f32::MAX, f32::min);
                    cost.iter_mut().for_each(|cost| cost[lane] -= least);
                }
            }
        }

        for lane in 0..WIDTH.min(self.block.lanes - self.first) {
            let mut state = (0..N).min_by(|&a, &b| cost[a][lane].total_cmp(&cost[b][lane])).unwrap_or(0);
            states[lane] = state as u8;
            for row in (0..rows).rev() {
                let choice = decisions[row * words + state / 32][lane] >> (state % 32) & 1;
                let (before, subset) = predecessors[state][choice as usize];
                let x = self.weights(row)[lane];
                let index = 4.0 * nearest(x, subset) + f32::from(subset);
                indices[row * LANES + self.first + lane] = index as i32;
                debug_assert_eq!(
                    usize::from(trellis.next()[usize::from(before) * 2 + usize::from(subset >> 1)]),
                    state
                );
                state = usize::from(before);
            }
        }
    }

    /// The weights of a row.
    #[inline(always)]
    fn weights(&self, row: usize) -> [f32; WIDTH] {
        let at = row * LANES + self.first;
        let weights: &[f32; WIDTH] =
            self.block.weights[at..at + WIDTH].try_into().expect("WIDTH divides LANES");
        weights.map(|x| x.clamp(-MAX_INDEX, MAX_INDEX))
    }

    /// Where the costs of each lane's tables begin, by union.
    #[inline(always)]
    fn cost_rows(&self, row: usize) -> [[usize; WIDTH]; 2] {
        [0, 1]
            .map(|union| std::array::from_fn(|lane| self.rate.row(self.class(row, self.first + lane), union)))
    }

    /// For each subset, the cost of its index next to each weight.
    #[inline(always)]
    fn branch_metrics(&self, x: &[f32; WIDTH], cost_rows: &[[usize; WIDTH]; 2]) -> [[f32; WIDTH]; 4] {
        let mut metric = [[0.0; WIDTH]; 4];
        for subset in 0..4u8 {
            let mut quarter = [0i32; WIDTH];
            for lane in 0..WIDTH {
                let q = nearest(x[lane], subset);
                let distance = x[lane] - (4.0 * q + f32::from(subset));
                metric[usize::from(subset)][lane] = distance * distance;
                quarter[lane] = q as i32;
            }
            for lane in 0..WIDTH {
                let value = 2 * quarter[lane] + i32::from(subset >> 1);
                metric[usize::from(subset)][lane] +=
                    self.rate.cost(cost_rows[usize::from(subset & 1)][lane], value);
            }
        }
        metric
    }
}

/// The q for which index 4q + subset is nearest to x.
#[inline(always)]
fn nearest(x: f32, subset: u8) -> f32 {
    // Adding and taking away 1.5 * 2^23 rounds to an integer without a call; the magnitude is at most 2^16 here.
    const ROUND: f32 = 12_582_912.0;
    ((x - f32::from(subset)) * 0.25 + ROUND) - ROUND
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn rate(quantiser: &Quantiser) -> RateModel {
        RateModel::new(quantiser, 3, -20..=20, |class, union, value| {
            1.0 + (value.abs() as f32) * (0.5 + class as f32 * 0.25) + union as f32 * 0.1
        })
    }

    fn cost_of(quantiser: &Quantiser, rate: &RateModel, weights: &[f32], class: i32, indices: &[i32]) -> f64 {
        let mut state = 0;
        let mut total = 0.0;
        for (&x, &index) in weights.iter().zip(indices) {
            let (value, next) = quantiser.symbol(state, index);
            let row = rate.row(class, usize::from(state & 1));
            total += f64::from((x - index as f32).powi(2)) + f64::from(rate.cost(row, value));
            state = next;
        }
        total
    }

    /// Every path of nearest indices, tried one by one.
    fn exhaustive(quantiser: &Quantiser, rate: &RateModel, weights: &[f32], class: i32) -> f64 {
        (0..1u32 << weights.len())
            .map(|choice| {
                let mut state = 0;
                let mut indices = Vec::new();
                for (place, &x) in weights.iter().enumerate() {
                    let subset = (state & 1) + 2 * (choice >> place & 1) as u8;
                    let index = (4.0 * nearest(x, subset)) as i32 + i32::from(subset);
                    indices.push(index);
                    state = quantiser.symbol(state, index).1;
                }
                cost_of(quantiser, rate, weights, class, &indices)
            })
            .fold(f64::MAX, f64::min)
    }

    #[test]
    fn the_search_finds_the_cheapest_path() {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        for states in [8, 16, 64] {
            let quantiser = Quantiser::Trellis(Trellis::with_states(states).unwrap());
            let rate = rate(&quantiser);
            let rows = 10;
            let weights: Vec<f32> = (0..rows * LANES).map(|_| rng.random_range(-9.0..9.0)).collect();
            let column_class = std::array::from_fn(|lane| lane as i32 % 4 - 1);
            let block = Block { weights: &weights, column_class: &column_class, row_class: &[], lanes: 11 };
            let mut indices = vec![0; rows * LANES];
            let mut ends = [0; LANES];
            search(&quantiser, &rate, &block, &mut ends, &mut indices);
            for lane in 0..block.lanes {
                let column = |all: &[f32]| (0..rows).map(|row| all[row * LANES + lane]).collect::<Vec<_>>();
                let chosen: Vec<i32> = (0..rows).map(|row| indices[row * LANES + lane]).collect();
                let found = cost_of(&quantiser, &rate, &column(&weights), column_class[lane], &chosen);
                let best = exhaustive(&quantiser, &rate, &column(&weights), column_class[lane]);
                assert!((found - best).abs() < 1e-3, "{states} states, lane {lane}: {found}, not {best}");
                let end = chosen.iter().fold(0, |state, &index| quantiser.symbol(state, index).1);
                assert_eq!(end, ends[lane]);
            }
        }
    }

    #[test]
    fn outliers_saturate_and_keep_their_parity() {
        let quantiser = Quantiser::Trellis(Trellis::with_states(8).unwrap());
        let mut weights = vec![0.0; 4 * LANES];
        (weights[0], weights[LANES]) = (1e30, -1e30);
        let block = Block { weights: &weights, column_class: &[0; LANES], row_class: &[], lanes: 1 };
        let mut indices = vec![0; 4 * LANES];
        search(&quantiser, &rate(&quantiser), &block, &mut [0; LANES], &mut indices);
        let mut state = 0;
        for row in 0..4 {
            let (value, next) = quantiser.symbol(state, indices[row * LANES]);
            assert_eq!(2 * value + i32::from(state & 1), indices[row * LANES]);
            assert!(i16::try_from(value).is_ok());
            state = next;
        }
        assert!(indices[0] > 65_000 && indices[LANES] < -65_000);
    }
}
