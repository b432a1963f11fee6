//! Random sources whose rate-distortion bounds are known.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal, StudentT};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use crate::chunks::CHUNK;
use crate::coding::table::Counts;

/// A source of weights of unit variance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Source {
    /// Independent standard normal.
    Gaussian,
    /// Independent Laplace.
    Laplace,
    /// Independent Student-t with five degrees of freedom.
    Student5,
    /// Normal, with the deviation of each row log-normal (sigma 0.5).
    LognormalRows,
    /// The first three by turns, 16 rows each.
    Mixture,
}

impl Source {
    /// A matrix [rows, columns], row-major.
    pub fn matrix(self, rows: usize, columns: usize, seed: u64) -> Vec<f32> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let student = StudentT::new(5.0).expect("five degrees of freedom are legal");
        let mut weights = Vec::with_capacity(rows * columns);
        for row in 0..rows {
            let source = match self {
                Self::Mixture => [Self::Gaussian, Self::Laplace, Self::Student5][row / CHUNK % 3],
                one => one,
            };
            let spread: f64 = match source {
                Self::LognormalRows => {
                    let normal: f64 = StandardNormal.sample(&mut rng);
                    (0.5 * normal).exp()
                }
                _ => 1.0,
            };
            for _ in 0..columns {
                let weight: f64 = match source {
                    Self::Gaussian | Self::LognormalRows | Self::Mixture => StandardNormal.sample(&mut rng),
                    Self::Laplace => {
                        let u: f64 = rng.random_range(-0.5..0.5);
                        -u.signum()
                            * (1.0 - 2.0 * u.abs()).max(f64::MIN_POSITIVE).ln()
                            * std::f64::consts::FRAC_1_SQRT_2
                    }
                    // The variance of t5 is 5/3.
                    Self::Student5 => student.sample(&mut rng) * 0.6f64.sqrt(),
                };
                weights.push((weight * spread) as f32);
            }
        }
        weights
    }
}

/// nMSE of ideal entropy-coded scalar quantisation of these weights at `bits` bits a weight: a uniform quantiser with the mean of each cell as its value, coded at the
/// empirical entropy of its indices, nothing else counted. Rows are taken as they are.
pub fn ideal_ecsq_nmse(weights: &[f32], bits: f64) -> f64 {
    ideal_ecsq_nmse_of_rows(weights, weights.len(), bits)
}

/// The same where each row of `width` weights is divided by its deviation first, which is not counted either. The error is that of the weights as they were, and the value of a cell is
/// what makes it least.
pub fn ideal_ecsq_nmse_of_rows(weights: &[f32], width: usize, bits: f64) -> f64 {
    let rows: Vec<Row<'_>> = weights.chunks_exact(width).map(Row::new).collect();
    // The entropy falls as the step grows: bisect in the logarithm.
    let (mut low, mut high) = (-12.0f64, 4.0f64);
    for _ in 0..24 {
        let middle = f64::midpoint(low, high);
        if count(&rows, middle.exp2()).entropy() > bits { low = middle } else { high = middle }
    }
    squared_error(&rows, f64::midpoint(low, high).exp2()) / energy(weights)
}

/// Weights that are divided by their deviation.
struct Row<'a> {
    weights: &'a [f32],
    deviation: f64,
}

impl<'a> Row<'a> {
    fn new(weights: &'a [f32]) -> Self {
        Self { weights, deviation: (energy(weights) / weights.len() as f64).sqrt() }
    }

    /// The weights in steps of the quantiser. A row of zeros may be divided by anything.
    fn in_steps(&self, step: f64) -> impl Iterator<Item = f64> {
        let inverse = 1.0 / (step * self.deviation.max(f64::MIN_POSITIVE.sqrt()));
        self.weights.iter().map(move |&weight| f64::from(weight) * inverse)
    }
}

fn energy(weights: &[f32]) -> f64 {
    weights.iter().map(|&w| f64::from(w).powi(2)).sum()
}

/// The cell of a weight in steps.
fn cell(in_steps: f64) -> i32 {
    in_steps.round() as i32
}

/// How many weights lie in each cell.
fn count(rows: &[Row<'_>], step: f64) -> Counts {
    let mut counts = Counts::default();
    rows.iter().flat_map(|row| row.in_steps(step)).for_each(|weight| counts.add(cell(weight)));
    counts
}

/// The squared error if each cell has the best value.
fn squared_error(rows: &[Row<'_>], step: f64) -> f64 {
    let cells: Vec<i32> = count(rows, step).iter().map(|(cell, _)| cell).collect();
    let (Some(first), Some(last)) = (cells.first(), cells.last()) else { return 0.0 };
    // Of each cell: sums of 1, of weights and of their squares, in steps; a row counts as its own step's square.
    let mut sums = vec![(0.0, 0.0, 0.0); (last - first + 1) as usize];
    for row in rows {
        let unit = (row.deviation * step).powi(2);
        for weight in row.in_steps(step) {
            let sum: &mut (f64, f64, f64) = &mut sums[(cell(weight) - first) as usize];
            *sum = (sum.0 + unit, sum.1 + unit * weight, sum.2 + unit * weight * weight);
        }
    }
    sums.iter().filter(|sum| sum.0 > 0.0).map(|(all, sum, squares)| squares - sum * sum / all).sum()
}

/// The stored form (docs/bitstream.md §9.3) of a synthesis that nobody trained: the cosine transform in 7 binary places, and hidden layers of these widths that add a little to it. For measurements
/// and tests that need any synthesis.
pub fn network(widths: &[u8]) -> Vec<u8> {
    let mut seed = 1u32;
    let mut any = |most: u32| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 16) as i32 % (most as i32 + 1)
    };
    let cosine = |j: usize, k: usize| {
        let norm = if k == 0 { 1.0 } else { 2f64.sqrt() } / 4.0;
        norm * (std::f64::consts::PI * (j as f64 + 0.5) * k as f64 / 16.0).cos()
    };
    let mut bytes = vec![7];
    bytes.extend((0..256).map(|at| ((cosine(at / 16, at % 16) * 128.0).round() as i8).cast_unsigned()));
    bytes.push(widths.len() as u8);
    let mut inputs = 16;
    for &width in widths {
        bytes.extend([width, 6]);
        bytes.extend((0..width).flat_map(|_| (any(1000) as i16 - 500).to_le_bytes()));
        bytes.extend((0..usize::from(width) * inputs).map(|_| any(255) as u8));
        inputs = usize::from(width);
    }
    if !widths.is_empty() {
        bytes.extend((0..16 * inputs).map(|_| (any(2) as i8 - 1).cast_unsigned()));
    }
    bytes
}

/// A codec file of the paper's form that nobody trained, of hidden layers of `width` units: with 32 or more about a scalar quantiser, whose step is half a deviation at level 0 and finer at each further of
/// its `levels`. For tests that need any codec.
pub fn residual_codec(width: usize, blocks: usize, levels: usize) -> Vec<u8> {
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    let mut tensors: Vec<(String, Vec<usize>, Vec<f32>)> = Vec::new();
    let mut put = |name: String, shape: &[usize], value: &dyn Fn(usize) -> f64, noise: f64| {
        let mut any = || -> f64 { StandardNormal.sample(&mut rng) };
        let values = (0..shape.iter().product()).map(|i| (value(i) + noise * any()) as f32).collect();
        tensors.push((name, shape.to_vec(), values));
    };
    // The first 16 units pass the chunk on to latents, the next 16 latents to the chunk, and levels amplify the ones as much as they damp the others.
    let step = |level: usize| 0.5 * 0.8f64.powi(level as i32);
    let gain = |i: usize| match i % width {
        0..CHUNK => step(i / width).recip().powf(1.0 / blocks as f64),
        unit if unit < 2 * CHUNK => step(i / width).powf(1.0 / blocks as f64),
        _ => 1.0,
    };
    put("levels".to_owned(), &[levels, width], &gain, 0.0);
    for (net, first) in [("analysis", 0), ("synthesis", CHUNK)] {
        let enter = |i: usize| f64::from(i / CHUNK == i % CHUNK + first);
        let leave = |i: usize| f64::from(i / width + first == i % width);
        put(format!("{net}.in.weight"), &[width, CHUNK], &enter, 0.001);
        put(format!("{net}.in.bias"), &[width], &|_| 0.0, 0.001);
        for block in 0..blocks {
            let name = format!("{net}.blocks.{block}");
            put(format!("{name}.linear.weight"), &[width, width], &|_| 0.0, 0.2);
            put(format!("{name}.linear.bias"), &[width], &|_| 0.0, 0.1);
            put(format!("{name}.norm.weight"), &[width], &|_| 0.01, 0.01);
            put(format!("{name}.norm.bias"), &[width], &|_| 0.0, 0.001);
        }
        put(format!("{net}.out.weight"), &[CHUNK, width], &leave, 0.001);
        put(format!("{net}.out.bias"), &[CHUNK], &|_| 0.0, 0.001);
    }
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(.., values)| values.iter().flat_map(|value| value.to_le_bytes()).collect())
        .collect();
    let views = tensors.iter().zip(&bytes).map(|((name, shape, _), bytes)| {
        (name, TensorView::new(Dtype::F32, shape.clone(), bytes).expect("as many bytes as its shape says"))
    });
    safetensors::serialize(views, None).expect("tensors are legal")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_have_unit_variance() {
        for source in [Source::Gaussian, Source::Laplace, Source::Student5, Source::Mixture] {
            let weights = source.matrix(500, 1000, 1);
            let variance = weights.iter().map(|&w| f64::from(w).powi(2)).sum::<f64>() / weights.len() as f64;
            assert!((variance - 1.0).abs() < 0.03, "{source:?}: {variance}");
        }
    }

    #[test]
    fn ideal_scalar_quantisation_of_a_gaussian_is_1_42_above_shannon() {
        let weights = Source::Gaussian.matrix(300, 1000, 2);
        let factor = ideal_ecsq_nmse(&weights, 4.0) * 4f64.powi(4);
        assert!((factor - 1.42).abs() < 0.02, "{factor}");
    }

    #[test]
    fn rows_of_any_spread_are_quantised_alike() {
        let mut weights = Source::Gaussian.matrix(300, 1000, 2);
        for (row, spread) in weights.chunks_exact_mut(1000).zip([0.25, 1.0, 8.0].into_iter().cycle()) {
            row.iter_mut().for_each(|weight| *weight *= spread);
        }
        let alike = ideal_ecsq_nmse_of_rows(&weights, 1000, 4.0);
        let factor = alike * 4f64.powi(4);
        assert!((factor - 1.42).abs() < 0.02, "{factor}");
        // Rows of zeros leave their bits to the others.
        weights.resize(600_000, 0.0);
        assert!(ideal_ecsq_nmse_of_rows(&weights, 1000, 4.0) < 0.1 * alike);
    }
}
