//! Second moments: sums of x x^T over tokens.

use burn::backend::Flex;
use burn::tensor::Tensor;
use rayon::prelude::*;

use crate::parameters::values;

/// Rows whose products are summed in f32; sums of these are f64.
const ROWS: usize = 512;
/// Numbers that one thread adds at a time.
const PART: usize = 1 << 14;

/// The sum of x x^T, or of its diagonal, over tokens.
#[derive(Debug, Clone)]
pub(crate) struct Moment {
    pub(crate) inputs: usize,
    pub(crate) diagonal: bool,
    pub(crate) tokens: u64,
    /// Empty as long as there are no tokens: most experts of a layer are not needed at the same time.
    sums: Vec<f64>,
}

impl Moment {
    pub(crate) fn new(inputs: usize, diagonal: bool) -> Self {
        Self { inputs, diagonal, tokens: 0, sums: Vec::new() }
    }

    /// Numbers of it.
    fn len(&self) -> usize {
        if self.diagonal { self.inputs } else { self.inputs * self.inputs }
    }

    /// Adds tokens `[tokens, inputs]`.
    pub(crate) fn add(&mut self, x: &Tensor<Flex, 2>) {
        let [tokens, _] = x.dims();
        for first in (0..tokens).step_by(ROWS) {
            let x = x.clone().slice_dim(0, first..(first + ROWS).min(tokens));
            let products =
                if self.diagonal { x.square().sum_dim(0) } else { x.clone().transpose().matmul(x) };
            self.add_weighted(&values(&products), 1.0);
        }
        self.tokens += tokens as u64;
    }

    /// Adds the mean over so many tokens.
    pub(crate) fn add_mean(&mut self, mean: &[f32], tokens: u64) {
        self.add_weighted(mean, tokens as f64);
        self.tokens += tokens;
    }

    /// Adds the tokens of another.
    pub(crate) fn add_moment(&mut self, other: &Self) {
        if self.sums.is_empty() {
            self.sums.clone_from(&other.sums);
        } else {
            self.sums.iter_mut().zip(&other.sums).for_each(|(sum, other)| *sum += other);
        }
        self.tokens += other.tokens;
    }

    fn add_weighted(&mut self, products: &[f32], weight: f64) {
        self.sums.resize(self.len(), 0.0);
        let add = |(sums, products): (&mut [f64], &[f32])| {
            sums.iter_mut().zip(products).for_each(|(sum, &product)| *sum += f64::from(product) * weight);
        };
        self.sums.par_chunks_mut(PART).zip(products.par_chunks(PART)).for_each(add);
    }

    /// The mean of both, weighted, over the tokens of the larger one.
    pub(crate) fn mixed(&self, weight: f64, other: &Self, other_weight: f64) -> Self {
        let tokens = self.tokens.max(other.tokens);
        let share = weight / (weight + other_weight);
        let a = share * tokens as f64 / self.tokens.max(1) as f64;
        let b = (1.0 - share) * tokens as f64 / other.tokens.max(1) as f64;
        let mut sums = vec![0.0; self.len()];
        for (moment, scale) in [(self, a), (other, b)] {
            sums.iter_mut().zip(&moment.sums).for_each(|(sum, value)| *sum += value * scale);
        }
        Self { tokens, sums, ..*self }
    }

    /// The mean over the tokens, the same in both triangles.
    pub(crate) fn mean(&self) -> Vec<f32> {
        let scale = 1.0 / self.tokens.max(1) as f64;
        if self.sums.is_empty() {
            return vec![0.0; self.len()];
        }
        if self.diagonal {
            return self.sums.iter().map(|sum| (sum * scale) as f32).collect();
        }
        let n = self.inputs;
        let mut mean = vec![0.0; n * n];
        mean.par_chunks_mut(n).enumerate().for_each(|(row, mean)| {
            for (column, value) in mean.iter_mut().enumerate() {
                let both = self.sums[row * n + column] + self.sums[column * n + row];
                *value = (both * 0.5 * scale) as f32;
            }
        });
        mean
    }
}
