//! The same search down a single column, where each column waits for the one before it: the states lie side by side in the vectors, not the lanes.

use super::{
    Block, Instructions, LANES, MAX_WEIGHT, Quantiser, ROWS_TO_SETTLE, RateModel, Search, UNREACHED, taps,
};
use crate::coding::lanes::{Lanes, Portable, WIDTH};
use crate::coding::trellis::Taps;

/// Vectors that hold the states of one parity, at most: 128 of the largest trellis.
const MAX_VECTORS: usize = 128 / WIDTH;

/// One column.
#[derive(Debug, Clone, Copy)]
pub struct Column<'a> {
    /// Weights in units of their step.
    pub weights: &'a [f32],
    /// Its class.
    pub class: i32,
    /// What each row adds to that; empty if nothing.
    pub row_class: &'a [i32],
}

/// What is kept of every row until the best path is known.
#[derive(Debug, Default)]
pub(super) struct Path {
    /// Of 16 rows, by index mod 4: what the candidates next to each weight cost.
    metrics: Vec<[[f32; WIDTH]; 4]>,
    /// For each row, bit s of which: by which branch state s came.
    decisions: Vec<u16>,
    /// Of columns that are searched as blocks of one lane.
    weights: Vec<f32>,
    indices: Vec<i32>,
}

impl Search {
    /// Chooses the indices of a column, as [`run`](Self::run) does those of a lane.
    pub fn column(
        &mut self,
        quantiser: &Quantiser,
        rate: &RateModel,
        column: &Column<'_>,
        state: &mut u8,
        indices: &mut [i32],
    ) {
        match quantiser {
            Quantiser::Trellis(trellis) => match trellis.states() {
                32 => self.down::<32>(rate, column, state, indices),
                64 => self.down::<64>(rate, column, state, indices),
                128 => self.down::<128>(rate, column, state, indices),
                256 => self.down::<256>(rate, column, state, indices),
                _ => self.as_block(quantiser, rate, column, state, indices),
            },
            Quantiser::Scalar => self.as_block(quantiser, rate, column, state, indices),
        }
    }

    /// Where the states of one parity do not fill a vector.
    fn as_block(
        &mut self,
        quantiser: &Quantiser,
        rate: &RateModel,
        column: &Column<'_>,
        state: &mut u8,
        out: &mut [i32],
    ) {
        let Path { mut weights, mut indices, .. } = std::mem::take(&mut self.path);
        weights.resize(column.weights.len() * LANES, 0.0);
        indices.resize(weights.len(), 0);
        weights.iter_mut().step_by(LANES).zip(column.weights).for_each(|(to, from)| *to = *from);
        let (column_class, mut states) = ([column.class; LANES], [0; LANES]);
        states[0] = *state;
        let block =
            Block { weights: &weights, column_class: &column_class, row_class: column.row_class, lanes: 1 };
        self.run(quantiser, rate, &block, &mut states, &mut indices);
        *state = states[0];
        out.iter_mut().zip(indices.iter().step_by(LANES)).for_each(|(to, from)| *to = *from);
        (self.path.weights, self.path.indices) = (weights, indices);
    }

    fn down<const N: usize>(
        &mut self,
        rate: &RateModel,
        column: &Column<'_>,
        state: &mut u8,
        indices: &mut [i32],
    ) {
        let path = &mut self.path;
        path.decisions.resize(column.weights.len() * (N / WIDTH), 0);
        path.metrics.resize(column.weights.len().div_ceil(WIDTH), [[0.0; WIDTH]; 4]);
        match self.instructions {
            Instructions::Portable => down::<_, N>(Portable, rate, column, path, state, indices),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the value is the proof that the processor has the instructions.
            Instructions::Avx2(lanes) => unsafe {
                down_avx2::<N>(lanes, rate, column, path, state, indices);
            },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the value is the proof that the processor has the instructions.
            Instructions::Avx512(lanes) => unsafe {
                down_avx512::<N>(lanes, rate, column, path, state, indices);
            },
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn down_avx2<const N: usize>(
    lanes: crate::coding::lanes::Avx2,
    rate: &RateModel,
    column: &Column<'_>,
    path: &mut Path,
    state: &mut u8,
    indices: &mut [i32],
) {
    down::<_, N>(lanes, rate, column, path, state, indices);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw")]
fn down_avx512<const N: usize>(
    lanes: crate::coding::lanes::Avx512,
    rate: &RateModel,
    column: &Column<'_>,
    path: &mut Path,
    state: &mut u8,
    indices: &mut [i32],
) {
    down::<_, N>(lanes, rate, column, path, state, indices);
}

#[inline(always)]
fn down<L: Lanes, const N: usize>(
    lanes: L,
    rate: &RateModel,
    column: &Column<'_>,
    path: &mut Path,
    state: &mut u8,
    indices: &mut [i32],
) {
    // Rows side by side first: what their candidates cost does not depend on the path.
    for (part, (metrics, weights)) in path.metrics.iter_mut().zip(column.weights.chunks(WIDTH)).enumerate() {
        let mut padded = [0.0; WIDTH];
        padded[..weights.len()].copy_from_slice(weights);
        let more = |row: usize| column.row_class.get(part * WIDTH + row).copied().unwrap_or(0);
        let bases = lanes.load_int(&std::array::from_fn(|row| rate.base(column.class + more(row))));
        let weights = lanes.limit(lanes.load(&padded), MAX_WEIGHT);
        let found = lanes.metrics(weights, bases, rate.first, rate.last, &rate.costs);
        for (to, metric) in metrics.iter_mut().zip(found) {
            *to = lanes.store(metric);
        }
    }

    let Taps { parity, free } = const { taps::<N>() };
    // Which half of the states an index leads to is its parity's; the other taps say where in the half.
    let (within, free) = (usize::from(parity) % (N / 2), usize::from(free));
    let half = N / 2 / WIDTH;
    let unreached = lanes.splat(UNREACHED);
    let mut costs = [unreached; 2 * MAX_VECTORS];
    let mut start = [UNREACHED; WIDTH];
    start[usize::from(*state) % WIDTH] = 0.0;
    costs[usize::from(*state) / WIDTH] = lanes.load(&start);
    let rows = column.weights.len();
    for (row, decisions) in path.decisions.chunks_exact_mut(N / WIDTH).enumerate() {
        let metrics = &path.metrics[row / WIDTH];
        let metrics: [L::Float; 4] = [
            lanes.splat(metrics[0][row % WIDTH]),
            lanes.splat(metrics[1][row % WIDTH]),
            lanes.splat(metrics[2][row % WIDTH]),
            lanes.splat(metrics[3][row % WIDTH]),
        ];
        let (mut even, mut odd) = ([unreached; MAX_VECTORS], [unreached; MAX_VECTORS]);
        for vector in 0..half {
            (even[vector], odd[vector]) = lanes.split(costs[2 * vector], costs[2 * vector + 1]);
        }
        for vector in 0..half {
            let straight = lanes.add(even[vector], metrics[0]);
            let crossed = lanes.mirror(even[vector ^ (free / WIDTH)], free % WIDTH);
            (costs[vector], decisions[vector]) = lanes.choose(straight, lanes.add(crossed, metrics[2]));
            let straight = lanes.mirror(odd[vector ^ (within / WIDTH)], within % WIDTH);
            let both = within ^ free;
            let crossed = lanes.mirror(odd[vector ^ (both / WIDTH)], both % WIDTH);
            (costs[half + vector], decisions[half + vector]) =
                lanes.choose(lanes.add(straight, metrics[1]), lanes.add(crossed, metrics[3]));
        }
        if row % ROWS_TO_SETTLE == ROWS_TO_SETTLE - 1 {
            let mut least = costs[0];
            for &cost in &costs[1..2 * half] {
                least = lanes.choose(least, cost).0;
            }
            let least = lanes.splat(lanes.store(least).into_iter().fold(f32::MAX, f32::min));
            for cost in &mut costs[..2 * half] {
                *cost = lanes.sub(*cost, least);
            }
        }
    }

    let (mut end, mut least) = (0, f32::MAX);
    for (vector, &cost) in costs[..2 * half].iter().enumerate() {
        for (lane, cost) in lanes.store(cost).into_iter().enumerate() {
            if cost < least {
                (least, end) = (cost, vector * WIDTH + lane);
            }
        }
    }
    *state = end as u8;
    let mut current = end;
    let mut subsets = [0; WIDTH];
    for part in (0..rows.div_ceil(WIDTH)).rev() {
        let first = part * WIDTH;
        let last = rows.min(first + WIDTH);
        for row in (first..last).rev() {
            let bit =
                usize::from(path.decisions[row * (N / WIDTH) + current / WIDTH] >> (current % WIDTH) & 1);
            let odd = current / (N / 2);
            subsets[row - first] = (odd + 2 * bit) as i32;
            current = 2 * ((current % (N / 2)) ^ (odd * within) ^ (bit * free)) + odd;
        }
        let mut padded = [0.0; WIDTH];
        padded[..last - first].copy_from_slice(&column.weights[first..last]);
        let weights = lanes.limit(lanes.load(&padded), MAX_WEIGHT);
        let mut found = [0; WIDTH];
        lanes.store_int(lanes.index(weights, lanes.load_int(&subsets)), &mut found);
        indices[first..last].copy_from_slice(&found[..last - first]);
    }
}
