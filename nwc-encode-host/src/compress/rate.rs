//! Rate control: which step meets the target, and the tables that suit it.
//!
//! The steps of a whole model move together: one number is searched, [`TensorCoder::rate_step`]. A sample of the model's columns is kept in memory in
//! units that do not depend on it, so a rate costs one search over the sample.

use std::collections::{BTreeMap, HashMap};

use rayon::prelude::*;

use super::encode::{COLUMN_CLASS, COLUMN_SCALE, Codec, ROW_CLASS, ROW_SCALE, TensorCoder};
use super::plan::{ClassSpacing, OCTAVE, TensorPlan};
use super::{Settings, Tuning};
use crate::coding::search::{Block, LANES, Quantiser, RateModel, Search};
use crate::coding::table::{BitWriter, Counts, Table, Tally};
use crate::coding::transform::Transform;

/// Weights that the sample holds at most, about; small models are sampled whole.
pub const SAMPLE_WEIGHTS: usize = 8 << 20;
/// Bins of a histogram, either side of zero, and how many go to a step of rate 0 (a row's deviation).
const BINS: usize = 2048;
const BINS_PER_UNIT: f64 = 64.0;
/// What one more bit of the tables' precision must save, in bits a symbol: it doubles a decoder's look-up tables.
const PRECISION_BITS: f64 = 0.0015;

/// A group of columns, in units of the step at rate 0.
#[derive(Debug)]
struct SampleGroup {
    weights: Vec<f32>,
    column_class: [i32; LANES],
    row_class: Vec<i32>,
    lanes: usize,
}

/// Sampled columns of one tensor.
#[derive(Debug)]
pub struct TensorSample {
    groups: Vec<SampleGroup>,
    /// Weights of the tensor for each one sampled.
    scale: f64,
    /// How much larger, in 1/512 octave, the step at rate 0 is than the one that weights are in units of, and how much lower classes are for that.
    coarser: i32,
    lower: i32,
}

impl TensorSample {
    /// Makes the step at rate 0 larger by so many 1/512 octaves, and classes lower.
    pub fn coarsen(&mut self, steps: i32, classes: i32) {
        self.coarser += steps;
        self.lower += classes;
    }

    /// What makes weights be in units of the step at rate 0.
    fn factor(&self) -> f32 {
        (-f64::from(self.coarser) / OCTAVE).exp2() as f32
    }

    /// Takes about `fraction` of a tensor's groups of columns, evenly spread.
    pub fn take(plan: &TensorPlan, weights: &[f32], fraction: f64) -> Self {
        let coder = TensorCoder::new(plan, 0, plan.class_base);
        let groups: Vec<_> =
            (0..plan.bands() * plan.column_blocks()).flat_map(|tile| coder.tile_groups(tile)).collect();
        let wanted = ((fraction * groups.len() as f64).ceil() as usize).clamp(1, groups.len());
        let taken: Vec<SampleGroup> = (0..wanted)
            .map(|i| {
                // The middle of the i-th of `wanted` equal parts.
                let group = groups[(2 * i + 1) * groups.len() / (2 * wanted)];
                let mut filled = vec![0.0; group.rows * LANES];
                coder.fill(weights, &group, &mut filled);
                let filled: Vec<f32> =
                    filled.chunks_exact(LANES).flat_map(|row| &row[..group.lanes]).copied().collect();
                SampleGroup {
                    weights: filled,
                    column_class: coder.column_class(&group),
                    row_class: coder.row_class(&group),
                    lanes: group.lanes,
                }
            })
            .collect();
        let sampled: usize = taken.iter().map(|group| group.weights.len()).sum();
        let scale = plan.view.elements() as f64 / sampled as f64;
        Self { groups: taken, scale, coarser: 0, lower: 0 }
    }
}

/// A sample of the tensors of a codec, and what its tables are made from.
#[derive(Debug)]
pub struct Sample {
    /// The transform of all of them.
    pub transform: Transform,
    quantiser: Quantiser,
    /// See [`Settings::exact`].
    exact: bool,
    tuning: Tuning,
    spacing: ClassSpacing,
    tensors: Vec<TensorSample>,
    /// Number of classes.
    pub classes: usize,
    /// Added to every class of a plan.
    pub class_offset: i32,
    /// Of each class: how often each magnitude occurs, in bins.
    histograms: Vec<Vec<u32>>,
    /// Of each class: bins that go to a step at rate 0; fewer where weights are many steps large.
    bins_per_unit: Vec<f64>,
    side: [Option<Counts>; 4],
    /// Of each tensor: how many weights each class has, and the bits of its side information.
    class_counts: Vec<Vec<f64>>,
    side_bits: Vec<f64>,
}

/// The first of the classes that get tables, and how many there are. Those further out share the tables at the ends: of a few very loud weights at most, for these would
/// take escapes, and of those that spread least, which take hardly a bit.
fn window(plans: &[&TensorPlan]) -> (i32, usize) {
    const MAX_CLASSES: i32 = 48;
    const LOUD: f64 = 1.0 / 65_536.0;
    let mut counts = BTreeMap::new();
    for (class, count) in plans.iter().flat_map(|plan| plan.class_counts()) {
        *counts.entry(class).or_insert(0u64) += count;
    }
    let total: u64 = counts.values().sum();
    let mut left = (total as f64 * LOUD) as u64;
    let largest = counts.iter().rev().find_map(|(&class, &count)| {
        let found = count > left;
        left = left.saturating_sub(count);
        found.then_some(class)
    });
    let (Some(largest), Some((&least, _))) = (largest, counts.first_key_value()) else { return (0, 1) };
    let least = least.max(largest - (MAX_CLASSES - 1));
    (least, (largest - least + 1) as usize)
}

/// What a rate costs.
#[derive(Debug)]
pub struct Estimate {
    /// The codec whose tables suit this rate.
    pub codec: Codec,
    /// Costs for the search.
    pub rate: RateModel,
    /// Bytes of the symbols of each tensor's streams.
    pub tensor_bytes: Vec<f64>,
}

impl Sample {
    /// From the samples of a codec's tensors and their plans, in the same order.
    pub fn new(
        settings: &Settings,
        plans: &[&TensorPlan],
        tensors: Vec<TensorSample>,
        spacing: ClassSpacing,
    ) -> Self {
        let (least, classes) = window(plans);
        let mut histograms = vec![vec![0u32; 2 * BINS]; classes];
        let bins_per_unit: Vec<f64> = (0..classes as i32)
            .map(|class| {
                let octaves = f64::from(class + least) * spacing.0;
                BINS_PER_UNIT * (-(octaves - 1.0).ceil().max(0.0)).exp2()
            })
            .collect();
        for (tensor, group) in
            tensors.iter().flat_map(|tensor| tensor.groups.iter().map(move |g| (tensor, g)))
        {
            let factor = tensor.factor();
            for (row, weights) in group.weights.chunks_exact(group.lanes).enumerate() {
                let row_class = group.row_class.get(row).copied().unwrap_or(0) - tensor.lower;
                for (weight, class) in weights.iter().zip(&group.column_class).take(group.lanes) {
                    let class = (class + row_class - least).clamp(0, classes as i32 - 1) as usize;
                    // Truncation of what is not negative: rounding down takes a call.
                    let place = f64::from(*weight * factor) * bins_per_unit[class] + BINS as f64;
                    histograms[class][place.clamp(0.0, 2.0 * BINS as f64 - 1.0) as usize] += 1;
                }
            }
        }
        let side_counts = |values: &dyn Fn(&TensorPlan) -> &[i16]| {
            let mut counts = Counts::default();
            plans.iter().flat_map(|plan| values(plan)).for_each(|&value| counts.add(i32::from(value)));
            (counts.total() > 0).then_some(counts)
        };
        let mut side = [None, None, None, None];
        side[ROW_SCALE] = side_counts(&|plan| &plan.row_scale);
        side[ROW_CLASS] = side_counts(&|plan| &plan.row_class);
        side[COLUMN_SCALE] = side_counts(&|plan| &plan.column_scale);
        side[COLUMN_CLASS] = side_counts(&|plan| &plan.column_class);
        let class_counts = plans
            .iter()
            .map(|plan| {
                let mut counts = vec![0.0; classes];
                for (class, count) in plan.class_counts() {
                    counts[(class - least).clamp(0, classes as i32 - 1) as usize] += count as f64;
                }
                counts
            })
            .collect();
        let information = |counts: &Option<Counts>, values: &[i16]| {
            let Some(counts) = counts else { return 0.0 };
            let (total, by_value) = (counts.total() as f64, counts.iter().collect::<HashMap<_, _>>());
            values.iter().map(|&value| (total / by_value[&i32::from(value)] as f64).log2()).sum::<f64>()
        };
        let side_bits = plans
            .iter()
            .map(|plan| {
                information(&side[ROW_SCALE], &plan.row_scale)
                    + information(&side[ROW_CLASS], &plan.row_class)
                    + information(&side[COLUMN_SCALE], &plan.column_scale)
                    + information(&side[COLUMN_CLASS], &plan.column_class)
            })
            .collect();
        let transform = plans.first().map_or(Transform::Identity, |plan| plan.transform.clone());
        Self {
            transform,
            quantiser: settings.quantiser.clone(),
            exact: settings.exact,
            tuning: settings.tuning.clone(),
            spacing,
            tensors,
            classes,
            class_offset: -least,
            histograms,
            bins_per_unit,
            side,
            class_counts,
            side_bits,
        }
    }

    /// The same after tensors were [coarsened](TensorSample::coarsen), as `plans` were.
    pub fn renew(&mut self, settings: &Settings, plans: &[&TensorPlan]) {
        *self = Self::new(settings, plans, std::mem::take(&mut self.tensors), self.spacing);
    }

    /// How classes are spaced.
    pub fn spacing(&self) -> ClassSpacing {
        self.spacing
    }

    /// The sample of one tensor.
    pub fn tensor_mut(&mut self, place: usize) -> &mut TensorSample {
        &mut self.tensors[place]
    }

    /// Costs for the search before any table is fitted: each value takes the share of its class's weights that lie nearest to it.
    fn parametric(&self, rate_step: i32) -> RateModel {
        let step = (f64::from(rate_step) / OCTAVE).exp2();
        let spacing = self.quantiser.spacing();
        let fewest = self.bins_per_unit.iter().copied().fold(BINS_PER_UNIT, f64::min);
        let reach = (f64::from(BINS as u32) / fewest / step / spacing).ceil().min(1000.0) as i32 + 1;
        let unions = if spacing > 1.0 { 2 } else { 1 };
        // Cumulative counts, read between bins by linear interpolation.
        let cumulative: Vec<Vec<f64>> = self
            .histograms
            .iter()
            .map(|bins| {
                let sum = bins.iter().scan(0.0, |sum, &count| {
                    *sum += f64::from(count);
                    Some(*sum)
                });
                std::iter::once(0.0).chain(sum).collect()
            })
            .collect();
        let below = |class: usize, x: f64| {
            let place = (x * self.bins_per_unit[class] + BINS as f64).clamp(0.0, 2.0 * BINS as f64);
            let bin = (place as usize).min(2 * BINS - 1);
            let (a, b) = (cumulative[class][bin], cumulative[class][bin + 1]);
            a + (b - a) * (place - bin as f64)
        };
        RateModel::new(&self.quantiser, self.classes, -reach..=reach, |class, union, value| {
            if self.exact {
                return 0.0;
            }
            let total = cumulative[class][2 * BINS];
            let centre = (f64::from(value) * spacing + (union % unions) as f64) * step;
            let half = spacing * step / 2.0;
            let inside = (below(class, centre + half) - below(class, centre - half)).max(0.0);
            // A tail that was not seen costs what an escape does, not infinitely much.
            (-((inside + 1e-3) / (total + 1.0)).log2()).min(28.0) as f32
        })
    }

    /// Searches the sample at one rate and fits tables to what was chosen.
    pub fn estimate(&self, rate_step: i32) -> Estimate {
        let rate = self.parametric(rate_step);
        let inverse = (-f64::from(rate_step) / OCTAVE).exp2() as f32;
        let factors: Vec<f32> = self.tensors.iter().map(TensorSample::factor).collect();
        let jobs: Vec<(usize, &SampleGroup)> = self
            .tensors
            .iter()
            .enumerate()
            .flat_map(|(t, tensor)| tensor.groups.iter().map(move |g| (t, g)))
            .collect();
        let counted: Vec<(usize, Vec<Counts>)> = jobs
            .par_chunks(jobs.len().div_ceil(256).max(1))
            .flat_map_iter(|jobs| {
                let mut search = Search::default();
                let (mut weights, mut indices) = (Vec::new(), Vec::new());
                let mut parts: Vec<(usize, Tally)> = Vec::new();
                for &(tensor, group) in jobs {
                    let places = group.weights.len() / group.lanes * LANES;
                    if places > indices.len() {
                        weights.resize(places, 0.0);
                        indices.resize(places, 0);
                    }
                    let (weights, indices) = (&mut weights[..places], &mut indices[..places]);
                    for (to, from) in
                        weights.chunks_exact_mut(LANES).zip(group.weights.chunks_exact(group.lanes))
                    {
                        to.iter_mut().zip(from).for_each(|(to, w)| *to = w * factors[tensor] * inverse);
                    }
                    let offset = self.class_offset - self.tensors[tensor].lower;
                    let column_class = group.column_class.map(|class| class + offset);
                    let block = Block {
                        weights,
                        column_class: &column_class,
                        row_class: &group.row_class,
                        lanes: group.lanes,
                    };
                    search.run(&self.quantiser, &rate, &block, &mut [0; LANES], indices);
                    if parts.last().is_none_or(|(last, _)| *last != tensor) {
                        parts.push((tensor, Tally::new(self.classes, rate.indices())));
                    }
                    let tally = &mut parts.last_mut().expect("just pushed").1;
                    for (row, indices) in indices.chunks_exact(LANES).enumerate() {
                        let more = group.row_class.get(row).copied().unwrap_or(0);
                        for (&index, class) in indices.iter().zip(&column_class).take(group.lanes) {
                            tally.add((class + more).clamp(0, self.classes as i32 - 1) as usize, index);
                        }
                    }
                }
                parts.into_iter().map(|(tensor, tally)| (tensor, tally.by_union(&self.quantiser)))
            })
            .collect();

        let mut totals = vec![Counts::default(); self.classes * 2];
        for (_, counts) in &counted {
            totals.iter_mut().zip(counts).for_each(|(total, counts)| total.merge(counts));
        }
        let sampled: u64 = totals.iter().map(Counts::total).sum();
        let all: f64 = self
            .tensors
            .iter()
            .map(|tensor| {
                let here: usize = tensor.groups.iter().map(|g| g.weights.len()).sum();
                here as f64 * tensor.scale
            })
            .sum();
        let scale = all / sampled as f64;

        let (precision, unions, weights) = self.fit_tables(&totals, scale);
        // Bits and number of the weights that were searched, by tensor and class.
        let mut searched = vec![vec![(0.0, 0.0); self.classes]; self.tensors.len()];
        for (tensor, counts) in &counted {
            for (number, counts) in counts.iter().enumerate() {
                let table = &weights[number / 2 * unions + number % 2 % unions];
                let (bits, count) = &mut searched[*tensor][number / 2];
                for (value, n) in counts.iter() {
                    *bits += n as f64 * f64::from(table.bits(value));
                    *count += n as f64;
                }
            }
        }
        let rates: Vec<f64> = (0..self.classes)
            .map(|class| {
                let all = searched.iter().map(|tensor| tensor[class]);
                let (bits, count) = all.fold((0.0, 0.0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
                if count > 0.0 { bits / count } else { 0.0 }
            })
            .collect();
        let tensor_bytes = searched
            .iter()
            .zip(&self.class_counts)
            .zip(&self.side_bits)
            .map(|((searched, counts), side_bits)| {
                // The sample has more of some classes, and less of others, than the tensor has: that the rates of classes tell.
                let bits: f64 = searched.iter().map(|(bits, _)| bits).sum();
                let expected: f64 = searched.iter().zip(&rates).map(|((_, count), rate)| count * rate).sum();
                let whole: f64 = counts.iter().zip(&rates).map(|(count, rate)| count * rate).sum();
                let factor = if expected > 0.0 { bits / expected } else { 1.0 };
                (whole * factor + side_bits) / 8.0
            })
            .collect();
        let side = self
            .side
            .each_ref()
            .map(|counts| counts.as_ref().map(|counts| Table::fit_side(counts, precision)));
        let codec = Codec {
            transform: self.transform.clone(),
            quantiser: self.quantiser.clone(),
            precision,
            unions,
            classes: self.classes,
            weights,
            side,
        };
        Estimate { codec, rate, tensor_bytes }
    }

    /// The cheapest weight tables for the counts of a sample: with which precision, and one or two (by union) for a class. `scale` says how many
    /// symbols will be coded for each one counted.
    fn fit_tables(&self, by_union: &[Counts], scale: f64) -> (u32, usize, Vec<Table>) {
        let precisions = &self.tuning.precisions;
        let merged: Vec<Counts> = by_union
            .chunks_exact(2)
            .map(|pair| {
                let mut both = pair[0].clone();
                both.merge(&pair[1]);
                both
            })
            .collect();
        let symbols: u64 = merged.iter().map(Counts::total).sum();
        let candidate = |precision: u32, unions: usize| {
            let counts = if unions == 2 { by_union } else { &merged };
            let tables: Vec<Table> =
                counts.iter().map(|counts| Table::fit_weights(counts, precision, scale)).collect();
            let mut stored = BitWriter::default();
            tables.iter().for_each(|table| table.write(&mut stored));
            let bits: f64 = tables.iter().zip(counts).map(|(table, counts)| table.coded_bits(counts)).sum();
            let penalty = PRECISION_BITS * f64::from(precision - precisions.start()) * symbols as f64;
            (stored.finish().len() as f64 * 8.0 + (bits + penalty) * scale, precision, unions, tables)
        };
        let unions = match (&self.quantiser, self.tuning.unions) {
            (Quantiser::Scalar, _) => 1..=1,
            (_, None) => 1..=2,
            (_, Some(unions)) => unions..=unions,
        };
        precisions
            .clone()
            .flat_map(|precision| unions.clone().map(move |unions| (precision, unions)))
            .map(|(precision, unions)| candidate(precision, unions))
            .min_by(|a, b| a.0.total_cmp(&b.0))
            .map(|(_, precision, unions, tables)| (precision, unions, tables))
            .expect("there are candidates")
    }
}

/// The rate step to try after those that missed: between those that came out too large and too small, or further on, at first by the rule that an octave
/// is a bit a weight, `per_bit` bytes in all. `None` when there is none left.
pub fn next_step(
    tried: &[(i32, f64)],
    target: f64,
    per_bit: f64,
    range: &std::ops::RangeInclusive<i32>,
) -> Option<i32> {
    let above = tried.iter().filter(|t| t.1 > target).max_by_key(|t| t.0);
    let below = tried.iter().filter(|t| t.1 <= target).min_by_key(|t| t.0);
    let next = match (above, below) {
        // Strictly inside the bracket, so that it always shrinks.
        (Some(&a), Some(&b)) if a.0 + 1 < b.0 => {
            // Bytes fall linearly with the step at high rates, and exponentially at low ones.
            let linear = (a.1 - target) / (a.1 - b.1);
            let exponential = (a.1 / target).ln() / (a.1 / b.1).ln();
            let part = if exponential.is_finite() { f64::midpoint(linear, exponential) } else { linear };
            a.0 + ((f64::from(b.0 - a.0) * part).round() as i32).clamp(1, b.0 - a.0 - 1)
        }
        // All on one side: go on from the nearest, as steeply as the last two were apart, and one step more so that the next is on the other side.
        (Some(&(from, bytes)), None) | (None, Some(&(from, bytes))) => {
            let rule = -per_bit / OCTAVE;
            let slope = match tried {
                [.., a, b] if a.0 != b.0 => {
                    ((b.1 - a.1) / f64::from(b.0 - a.0)).clamp(1.5 * rule, 0.02 * rule)
                }
                _ => rule,
            };
            let change = ((target - bytes) / slope).clamp(-1500.0, 1500.0) as i32;
            from + change + if bytes > target { 1 } else { -1 }
        }
        _ => return None,
    };
    let next = next.clamp(*range.start(), *range.end());
    (!tried.iter().any(|&(step, _)| step == next)).then_some(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_step_that_meets_the_target_is_found() {
        // Bytes as a function of the step, flattening at low rates as entropies do.
        let bytes = |step: i32| 1000.0 * (1.0 + (-f64::from(step) / OCTAVE * 2.0).exp2()).log2() / 2.0;
        for target in [100.0, 500.0, 2000.0, 6000.0] {
            let mut tried = vec![(-1000, bytes(-1000))];
            while let Some(next) = next_step(&tried, target, 1000.0, &(-5000..=2000)) {
                tried.push((next, bytes(next)));
                assert!(tried.len() < 12, "{target}: {tried:?}");
            }
            let best = tried.iter().map(|(_, bytes)| (bytes - target).abs()).fold(f64::MAX, f64::min);
            assert!(best < 3.0, "{target}: {tried:?}");
        }
        assert_eq!(next_step(&[(-100, 10.0)], 1e9, 1000.0, &(-100..=100)), None);
    }
}
