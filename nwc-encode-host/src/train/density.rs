//! The density of latents: fully factorised, learned (Ballé et al. 2018, arXiv 1802.01436, appendix 6.1).
//!
//! Each latent dimension has a cumulative distribution of its own, a small network that can only rise: layers of 1, 3, 3, 3, 3 and 1 units with positive weights.

use burn::tensor::Tensor;
use burn::tensor::activation::{sigmoid, softplus};
use burn::tensor::backend::Backend;
use rand::Rng;

use crate::parameters::{HostParameters, HostTensor, Parameters};

/// Units between the latent and its logit.
const FILTERS: [usize; 4] = [3, 3, 3, 3];
/// How far the density spreads at first.
const SPREAD: f64 = 10.0;
/// No latent is held to be less likely, so that logarithms stay finite.
const LEAST: f64 = 1e-9;
/// Under this prefix are the density's parameters.
pub(crate) const PREFIX: &str = "density.";

/// Units of each layer, the latent and its logit among them.
fn widths() -> Vec<usize> {
    [&[1], &FILTERS[..], &[1]].concat()
}

/// Parameters at first, for so many latent dimensions: `density.K.matrix` `[latents, out, in]`, `.bias` and, but for the last layer, `.factor`, both `[latents, out]`.
pub(crate) fn initial(latents: usize, rng: &mut impl Rng, parameters: &mut HostParameters) {
    let widths = widths();
    let scale = SPREAD.powf(1.0 / (widths.len() - 1) as f64);
    for (layer, pair) in widths.windows(2).enumerate() {
        let (input, out) = (pair[0], pair[1]);
        let mut put = |what: &str, shape: &[usize], values: Vec<f32>| {
            parameters
                .insert(format!("{PREFIX}{layer}.{what}"), HostTensor { shape: shape.to_vec(), values });
        };
        // softplus of it is 1 / (scale * out).
        let weight = (1.0 / scale / out as f64).exp_m1().ln() as f32;
        put("matrix", &[latents, out, input], vec![weight; latents * out * input]);
        let bias = (0..latents * out).map(|_| rng.random_range(-0.5..0.5)).collect();
        put("bias", &[latents, out], bias);
        if layer < FILTERS.len() {
            put("factor", &[latents, out], vec![0.0; latents * out]);
        }
    }
}

/// Logits of the cumulative distributions at `x` `[latents, 1, n]`.
fn logits<B: Backend>(parameters: &Parameters<B>, x: Tensor<B, 3>) -> Tensor<B, 3> {
    let [latents, ..] = x.dims();
    let widths = widths();
    let mut x = x;
    for (layer, pair) in widths.windows(2).enumerate() {
        let (input, out) = (pair[0], pair[1]);
        let get = |what: &str| parameters.get(&format!("{PREFIX}{layer}.{what}"));
        let matrix = softplus(get("matrix"), 1.0).reshape([latents, out, input]);
        x = matrix.matmul(x) + get("bias").reshape([latents, out, 1]);
        if layer < FILTERS.len() {
            let factor = get("factor").tanh().reshape([latents, out, 1]);
            x = x.clone() + factor * x.tanh();
        }
    }
    x
}

/// How likely each latent is, `[n, latents]`: the mass of the interval of length 1 about it.
pub(crate) fn likelihood<B: Backend>(parameters: &Parameters<B>, latents: Tensor<B, 2>) -> Tensor<B, 2> {
    let [n, dimensions] = latents.dims();
    let x = latents.transpose().reshape([dimensions, 1, n]);
    let ends = logits(parameters, Tensor::cat(vec![x.clone() - 0.5, x + 0.5], 2));
    let (low, high) = (ends.clone().narrow(2, 0, n), ends.narrow(2, n, n));
    // Where both ends are in the upper tail, sigmoids of the negated logits keep the digits that near 1 are lost.
    let sign = (low.clone() + high.clone()).detach().greater_elem(0.0).float() * -2.0 + 1.0;
    let mass = (sigmoid(sign.clone() * high) - sigmoid(sign * low)).abs();
    mass.clamp_min(LEAST).reshape([dimensions, n]).transpose()
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;
    use burn::backend::flex::FlexDevice;
    use burn::tensor::TensorData;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::parameters::values;

    const LATENTS: usize = 5;

    /// As training might leave them: with factors, and matrices that differ.
    fn trained() -> Parameters<Flex> {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let mut host = HostParameters::new();
        initial(LATENTS, &mut rng, &mut host);
        for tensor in host.values_mut() {
            tensor.values.iter_mut().for_each(|value| *value += rng.random_range(-0.4..0.4));
        }
        Parameters::new(&host, &FlexDevice)
    }

    #[test]
    fn distributions_rise_from_nought_to_one() {
        let points: Vec<f32> = (-4000..=4000).map(|i| i as f32 / 4.0).collect();
        let data = TensorData::new(points.repeat(LATENTS), [LATENTS, 1, points.len()]);
        let cumulative = sigmoid(logits(&trained(), Tensor::from_data(data, &FlexDevice)));
        for line in values(&cumulative).chunks_exact(points.len()) {
            assert!(line.is_sorted(), "a distribution falls");
            assert!(line[0] < 1e-4 && line[line.len() - 1] > 1.0 - 1e-4, "{} to {}", line[0], line[8000]);
        }
    }

    #[test]
    fn intervals_together_have_all_the_mass() {
        let values_of = |at: usize| -> f32 { at as f32 - 1000.0 };
        let points: Vec<f32> = (0..=2000).flat_map(|at| [values_of(at); LATENTS]).collect();
        let latents = Tensor::from_data(TensorData::new(points, [2001, LATENTS]), &FlexDevice);
        let masses = values(&likelihood(&trained(), latents));
        for latent in 0..LATENTS {
            let sum: f64 = masses.iter().skip(latent).step_by(LATENTS).map(|&mass| f64::from(mass)).sum();
            assert!((sum - 1.0).abs() < 1e-3, "{sum}");
        }
    }
}
