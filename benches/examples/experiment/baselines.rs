//! Quantisers to hold results up against: rounding to the nearest of 2^bits levels between the least and the largest of a group, and GPTQ
//! (arXiv 2210.17323) with the same levels.

use faer::{Mat, Side, linalg::solvers::Solve as _};
use half::f16;
use rayon::prelude::*;

/// Inputs of a group.
pub const GROUP: usize = 128;
/// What is added to H, of its mean diagonal.
const DAMPING: f64 = 0.01;

/// Bits that a row takes: a step of 16 bits and the level of zero for each group.
pub fn group_bits(inputs: usize, bits: u32) -> f64 {
    let bits = f64::from(bits);
    inputs as f64 * bits + inputs.div_ceil(GROUP) as f64 * (16.0 + bits)
}

/// Levels of a group.
#[derive(Clone, Copy, Default)]
struct Levels {
    step: f32,
    zero: f32,
    top: f32,
}

impl Levels {
    fn of(group: &[f32], bits: u32) -> Self {
        let least = group.iter().copied().fold(0.0_f32, f32::min);
        let largest = group.iter().copied().fold(0.0_f32, f32::max);
        let top = ((1u32 << bits) - 1) as f32;
        let step = f16::from_f32((largest - least) / top).to_f32().max(f32::from(f16::MIN_POSITIVE));
        Self { step, zero: (-least / step).round(), top }
    }

    fn nearest(self, weight: f32) -> f32 {
        ((weight / self.step).round() + self.zero).clamp(0.0, self.top) * self.step - self.zero * self.step
    }
}

/// Rounds each weight of rows of so many inputs.
pub fn round_to_nearest(weights: &mut [f32], inputs: usize, bits: u32) {
    for group in weights.chunks_mut(inputs).flat_map(|row| row.chunks_mut(GROUP)) {
        let levels = Levels::of(group, bits);
        group.iter_mut().for_each(|weight| *weight = levels.nearest(*weight));
    }
}

/// Rounds the inputs of each row one after the other, and adds what that lost to those that follow, by the Cholesky factor of the inverse of H
/// `[inputs, inputs]`.
pub fn gptq(weights: &mut [f32], inputs: usize, bits: u32, h: &[f32]) {
    let at = |j: usize, k: usize| f64::from(h[j * inputs + k]);
    let mean = (0..inputs).map(|k| at(k, k)).sum::<f64>() / inputs as f64;
    let h = Mat::from_fn(inputs, inputs, |j, k| at(j, k) + if j == k { DAMPING * mean } else { 0.0 });
    let inverse = h.llt(Side::Lower).expect("H is damped").solve(Mat::<f64>::identity(inputs, inputs));
    let lower = inverse.llt(Side::Lower).expect("so is its inverse");
    let lower = lower.L();
    weights.par_chunks_mut(inputs).for_each(|row| {
        let mut levels = Levels::default();
        for k in 0..inputs {
            if k % GROUP == 0 {
                levels = Levels::of(&row[k..(k + GROUP).min(inputs)], bits);
            }
            let rounded = levels.nearest(row[k]);
            let error = f64::from(row[k] - rounded) / lower[(k, k)];
            row[k] = rounded;
            for (j, weight) in row.iter_mut().enumerate().skip(k + 1) {
                *weight -= (error * lower[(j, k)]) as f32;
            }
        }
    });
}
