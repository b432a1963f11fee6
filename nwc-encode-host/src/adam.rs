//! Adam (Kingma and Ba 2015), with all gradients clipped together and a rate that warms up and then falls along a cosine.

use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};

use crate::parameters::Parameters;

/// Decay of the means of gradients and of their squares.
const DECAY: (f64, f64) = (0.9, 0.999);
const EPSILON: f64 = 1e-8;
/// The norm of all gradients together is at most this.
const CLIP: f64 = 1.0;
/// The part of all steps in which the rate rises.
const WARM_UP: f64 = 0.02;
/// The part of the rate that is left at the end.
const LAST: f64 = 0.01;

/// Its state: means of gradients and of their squares.
#[derive(Debug, Clone)]
pub(crate) struct Adam<B: Backend> {
    pub(crate) first: Parameters<B>,
    pub(crate) second: Parameters<B>,
}

impl<B: Backend> Adam<B> {
    /// Before the first step, for those parameters whose names `wanted` says.
    pub(crate) fn new(parameters: &Parameters<B>, wanted: impl Fn(&str) -> bool) -> Self {
        let zeros = parameters.zeros_where(wanted);
        Self { first: zeros.clone(), second: zeros }
    }

    /// Step number `step`, from 0, of `steps` at the peak rate of each parameter. `tracked` are the parameters that the gradients
    /// are of; those without one stay as they are, and need no state.
    pub(crate) fn update<A: AutodiffBackend<InnerBackend = B>>(
        &mut self,
        parameters: &mut Parameters<B>,
        tracked: &Parameters<A>,
        mut gradients: A::Gradients,
        (step, steps): (usize, usize),
        rate: impl Fn(&str) -> f64,
    ) {
        let mut known: Vec<(String, Tensor<B, 2>)> = Vec::new();
        let mut square: Option<Tensor<B, 1>> = None;
        for name in parameters.names() {
            if let Some(gradient) = tracked.get(&name).grad_remove(&mut gradients) {
                let sum = gradient.clone().square().sum();
                square = Some(square.map_or(sum.clone(), |all| all + sum));
                known.push((name, gradient));
            }
        }
        let Some(square) = square else { return };
        // On the device: to read the norm here would wait for it in every step.
        let factor = (square.sqrt() + EPSILON).recip().mul_scalar(CLIP).clamp_max(1.0).reshape([1, 1]);
        let part = schedule(step, steps);
        let correction = |decay: f64| 1.0 - decay.powi(step as i32 + 1);
        let (first, second) = (correction(DECAY.0), correction(DECAY.1).sqrt());
        for (name, gradient) in known {
            let gradient = gradient * factor.clone();
            let mean = self.first.get(&name) * DECAY.0 + gradient.clone() * (1.0 - DECAY.0);
            let squares = self.second.get(&name) * DECAY.1 + gradient.square() * (1.0 - DECAY.1);
            let change = mean.clone() * (rate(&name) * part * second / first)
                / (squares.clone().sqrt() + EPSILON * second);
            parameters.set(&name, parameters.get(&name) - change);
            self.first.set(&name, mean);
            self.second.set(&name, squares);
        }
    }
}

/// The part of the peak rate in a step.
fn schedule(step: usize, steps: usize) -> f64 {
    let warm = (steps as f64 * WARM_UP).max(1.0);
    let done = step as f64 + 1.0;
    if done <= warm {
        return done / warm;
    }
    let part = (done - warm) / (steps as f64 - warm).max(1.0);
    LAST + (1.0 - LAST) * 0.5 * (1.0 + (std::f64::consts::PI * part.min(1.0)).cos())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_rises_and_falls() {
        let rates: Vec<f64> = (0..1000).map(|step| schedule(step, 1000)).collect();
        let top = rates.iter().position(|rate| (rate - 1.0).abs() < 1e-12).unwrap();
        assert_eq!(top, 19);
        assert!(rates[..=top].is_sorted() && rates[top..].is_sorted_by(|a, b| a >= b));
        assert!((rates[999] - LAST).abs() < 1e-9);
        assert!((schedule(0, 1) - 1.0).abs() < 1e-12);
    }
}
