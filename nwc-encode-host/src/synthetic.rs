//! Random sources whose rate-distortion bounds are known.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal, StudentT};

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
    let energy: f64 = weights.iter().map(|&w| f64::from(w).powi(2)).sum();
    let deviation = (energy / weights.len() as f64).sqrt();
    let at = |step: f64| {
        let mut counts = Counts::default();
        let mut sums = std::collections::HashMap::<i32, (f64, f64, f64)>::new();
        for &weight in weights {
            let cell = (f64::from(weight) / step).round() as i32;
            counts.add(cell);
            let sum = sums.entry(cell).or_default();
            *sum = (sum.0 + 1.0, sum.1 + f64::from(weight), sum.2 + f64::from(weight).powi(2));
        }
        let error: f64 = sums.values().map(|(n, sum, squares)| squares - sum * sum / n).sum();
        (counts.entropy(), error / energy)
    };
    // The entropy falls as the step grows: bisect in the logarithm.
    let (mut low, mut high) = (-12.0f64, 4.0f64);
    for _ in 0..24 {
        let middle = f64::midpoint(low, high);
        if at(middle.exp2() * deviation).0 > bits { low = middle } else { high = middle }
    }
    at(f64::midpoint(low, high).exp2() * deviation).1
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
}
