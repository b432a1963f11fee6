//! The networks of each profile: analysis makes latents of chunks, synthesis chunks of latents.
//!
//! All of them begin as a uniform scalar quantiser, whose step is the best one for lambda, and learn what is better.

use std::f64::consts::LN_2;
use std::ops::Range;

use burn::tensor::Tensor;
use burn::tensor::activation::relu;
use burn::tensor::backend::Backend;
use rand::Rng;
use rand_distr::{Distribution, StandardNormal};

use super::data::Chunk;
use crate::chunks::CHUNK;
use crate::commands::train::Profile;
use crate::importance::LEVEL_COSTS;
use crate::parameters::{HostParameters, HostTensor, Parameters};

/// Latents of a chunk.
pub(crate) const LATENTS: usize = CHUNK;
/// Hidden units of the paper's networks, and their blocks.
const HIDDEN: usize = 512;
const BLOCKS: usize = 4;
/// Hidden units of the analysis of the other profiles, which only encoders need.
const ANALYSIS_HIDDEN: usize = 128;
/// Added to the variance in layer normalisation.
const EPSILON: f64 = 1e-5;
/// What blocks add at first, next to what passes by them.
const BLOCK_GAIN: f32 = 0.01;
/// Deviation of weights that a part of a network begins with that is to add nearly nothing.
const FAINT: f64 = 0.01;

/// The form of a codec's networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Network {
    /// The profile.
    pub(crate) profile: Profile,
    /// Hidden units of the compact profile's synthesis.
    pub(crate) width: usize,
}

impl Network {
    /// Whether containers can hold its synthesis.
    pub(crate) fn is_light(self) -> bool {
        self.profile != Profile::Paper
    }

    /// Levels of importance that it is conditioned on. The light profiles have one: there importance sets steps.
    pub(crate) fn levels(self) -> usize {
        if self.is_light() { 1 } else { LEVEL_COSTS.len() }
    }

    /// Multiply-adds that synthesis takes for each weight.
    pub(crate) fn multiply_adds_per_weight(self) -> f64 {
        let chunk = match self.profile {
            Profile::Paper => 2 * LATENTS * HIDDEN + BLOCKS * HIDDEN * HIDDEN,
            Profile::Linear => LATENTS * CHUNK,
            Profile::Compact => LATENTS * CHUNK + 2 * self.width * CHUNK,
        };
        chunk as f64 / CHUNK as f64
    }

    /// Parameters to begin with, the density's apart.
    pub(crate) fn initial(self, lambda: f64, rng: &mut impl Rng) -> HostParameters {
        let mut parameters = HostParameters::new();
        let steps: Vec<f64> =
            (0..self.levels()).map(|level| first_step(lambda, LEVEL_COSTS[level])).collect();
        let mut make = Maker { rng, parameters: &mut parameters };
        match self.profile {
            Profile::Paper => make.paper(&steps),
            Profile::Linear | Profile::Compact => {
                make.diagonal("analysis.linear.weight", 1.0 / steps[0]);
                make.zeros("analysis.linear.bias", LATENTS);
                make.side("analysis", ANALYSIS_HIDDEN, 1.0 / steps[0]);
                make.diagonal("synthesis.linear.weight", steps[0]);
                if self.profile == Profile::Compact {
                    make.side("synthesis", self.width, steps[0]);
                }
            }
        }
        parameters
    }

    /// Latents `[n, LATENTS]`, not rounded, of chunks `[n, CHUNK]`: as many of each of these levels, in their order.
    pub(crate) fn analysis<B: Backend>(
        self,
        parameters: &Parameters<B>,
        chunks: Tensor<B, 2>,
        levels: Range<usize>,
    ) -> Tensor<B, 2> {
        self.apply(parameters, "analysis", chunks, levels)
    }

    /// Chunks `[n, CHUNK]` of latents `[n, LATENTS]`, levels as in [`analysis`](Self::analysis).
    pub(crate) fn synthesis<B: Backend>(
        self,
        parameters: &Parameters<B>,
        latents: Tensor<B, 2>,
        levels: Range<usize>,
    ) -> Tensor<B, 2> {
        self.apply(parameters, "synthesis", latents, levels)
    }

    fn apply<B: Backend>(
        self,
        parameters: &Parameters<B>,
        net: &str,
        x: Tensor<B, 2>,
        levels: Range<usize>,
    ) -> Tensor<B, 2> {
        match self.profile {
            Profile::Paper => residual(parameters, net, x, levels),
            Profile::Linear | Profile::Compact => {
                let straight = linear(parameters, &format!("{net}.linear"), x.clone());
                if !parameters.has(&format!("{net}.up.weight")) {
                    return straight;
                }
                let hidden = relu(linear(parameters, &format!("{net}.up"), x));
                straight + linear(parameters, &format!("{net}.down"), hidden)
            }
        }
    }
}

/// Turns the matrices of a light profile, which begin as multiples of the unit matrix, to the principal axes of chunks: what neighbours have in common then is in few latents.
pub(crate) fn align(parameters: &mut HostParameters, chunks: &[Chunk]) {
    let mut covariance = [[0.0; CHUNK]; CHUNK];
    for chunk in chunks {
        for (row, &a) in covariance.iter_mut().zip(chunk) {
            row.iter_mut().zip(chunk).for_each(|(sum, &b)| *sum += f64::from(a) * f64::from(b));
        }
    }
    let axes = principal_axes(covariance);
    for (net, of_latents) in [("analysis", true), ("synthesis", false)] {
        let Some(matrix) = parameters.get_mut(&format!("{net}.linear.weight")) else { return };
        let scale = matrix.values[0];
        for (at, value) in matrix.values.iter_mut().enumerate() {
            let (row, column) = (at / CHUNK, at % CHUNK);
            *value = scale * if of_latents { axes[column][row] } else { axes[row][column] } as f32;
        }
    }
}

/// The eigenvectors of a symmetric matrix, as columns, by Jacobi's rotations.
fn principal_axes<const N: usize>(mut matrix: [[f64; N]; N]) -> [[f64; N]; N] {
    const SWEEPS: usize = 12;
    let mut axes: [[f64; N]; N] = std::array::from_fn(|i| std::array::from_fn(|j| f64::from(i == j)));
    for _ in 0..SWEEPS {
        for p in 0..N {
            for q in p + 1..N {
                if matrix[p][q] == 0.0 {
                    continue;
                }
                let half = (matrix[q][q] - matrix[p][p]) / (2.0 * matrix[p][q]);
                let tangent = half.signum() / (half.abs() + half.hypot(1.0));
                let cosine = tangent.hypot(1.0).recip();
                let sine = tangent * cosine;
                let rotate = |a: f64, b: f64| (cosine * a - sine * b, sine * a + cosine * b);
                for row in matrix.iter_mut().chain(&mut axes) {
                    (row[p], row[q]) = rotate(row[p], row[q]);
                }
                let [first, second] = matrix.get_disjoint_mut([p, q]).expect("they differ");
                for (a, b) in first.iter_mut().zip(second) {
                    (*a, *b) = rotate(*a, *b);
                }
            }
        }
    }
    axes
}

/// The step of the uniform quantiser that is best for a cost: there a bit saves as much distortion, 2 ln 2 D, as lambda says it costs.
fn first_step(lambda: f64, cost: f64) -> f64 {
    let distortion = (cost / (2.0 * LN_2 * lambda)).min(0.5);
    (12.0 * distortion).sqrt()
}

/// The paper's network: x W + b, blocks { x += ReLU(LayerNorm(x W + b)); x *= level }, x W + b.
fn residual<B: Backend>(
    parameters: &Parameters<B>,
    net: &str,
    x: Tensor<B, 2>,
    levels: Range<usize>,
) -> Tensor<B, 2> {
    let [n, _] = x.dims();
    let count = levels.len();
    let level = parameters.get("levels").slice_dim(0, levels).reshape([count, 1, HIDDEN]);
    let mut x = linear(parameters, &format!("{net}.in"), x);
    for block in 0..BLOCKS {
        let block = format!("{net}.blocks.{block}");
        let inner = linear(parameters, &format!("{block}.linear"), x.clone());
        let inner = normalised(inner) * parameters.get(&format!("{block}.norm.weight"))
            + parameters.get(&format!("{block}.norm.bias"));
        let sum = (x + relu(inner)).reshape([count, n / count, HIDDEN]);
        x = (sum * level.clone()).reshape([n, HIDDEN]);
    }
    linear(parameters, &format!("{net}.out"), x)
}

/// Each row less its mean, over its deviation.
fn normalised<B: Backend>(x: Tensor<B, 2>) -> Tensor<B, 2> {
    let x = x.clone() - x.mean_dim(1);
    let deviation = (x.clone().square().mean_dim(1) + EPSILON).sqrt();
    x * deviation.recip()
}

fn linear<B: Backend>(parameters: &Parameters<B>, name: &str, x: Tensor<B, 2>) -> Tensor<B, 2> {
    let y = x.matmul(parameters.get(&format!("{name}.weight")).transpose());
    let bias = format!("{name}.bias");
    if parameters.has(&bias) { y + parameters.get(&bias) } else { y }
}

/// Draws parameters.
struct Maker<'a, R> {
    rng: &'a mut R,
    parameters: &'a mut HostParameters,
}

impl<R: Rng> Maker<'_, R> {
    fn put(&mut self, name: &str, shape: &[usize], values: Vec<f32>) {
        self.parameters.insert(name.to_owned(), HostTensor { shape: shape.to_vec(), values });
    }

    fn zeros(&mut self, name: &str, length: usize) {
        self.put(name, &[length], vec![0.0; length]);
    }

    fn diagonal(&mut self, name: &str, value: f64) {
        let at = |i: usize| if i.is_multiple_of(CHUNK + 1) { value as f32 } else { 0.0 };
        self.put(name, &[CHUNK, CHUNK], (0..CHUNK * CHUNK).map(at).collect());
    }

    fn normal(&mut self, count: usize, deviation: f64) -> Vec<f32> {
        let mut draw = || -> f64 { StandardNormal.sample(self.rng) };
        (0..count).map(|_| (draw() * deviation) as f32).collect()
    }

    /// A hidden layer beside the matrix of a light profile; what it adds is faint next to `scale`.
    fn side(&mut self, net: &str, hidden: usize, scale: f64) {
        // Inputs of analysis have the deviation 1, those of synthesis that of latents.
        let up = self.normal(hidden * CHUNK, if net == "analysis" { 0.25 } else { 0.25 * scale });
        self.put(&format!("{net}.up.weight"), &[hidden, CHUNK], up);
        let bias = self.normal(hidden, 0.5);
        self.put(&format!("{net}.up.bias"), &[hidden], bias);
        let down = self.normal(CHUNK * hidden, FAINT * scale);
        self.put(&format!("{net}.down.weight"), &[CHUNK, hidden], down);
    }

    /// The paper's networks. Analysis reads its latents off the first half of the hidden units, synthesis its weights off the second half, and the levels' table, which both
    /// share, amplifies one by 1/step and the other by the step: so both begin as each other's inverse at each level.
    fn paper(&mut self, steps: &[f64]) {
        let half = HIDDEN / 2;
        let gains = |step: &f64| {
            let gain = step.powf(1.0 / BLOCKS as f64) as f32;
            [vec![1.0 / gain; half], vec![gain; half]].concat()
        };
        self.put("levels", &[steps.len(), HIDDEN], steps.iter().flat_map(gains).collect());
        for (net, read) in [("analysis", 0..half), ("synthesis", half..HIDDEN)] {
            let frame = self.frame(half);
            // Units that are not read yet: in synthesis they are amplified twice over, by the latents and by the levels.
            let faint = if net == "analysis" { 0.25 } else { 0.25 * steps[0] * steps[0] };
            let mut enter = self.normal(HIDDEN * CHUNK, faint);
            let mut leave = vec![0.0; CHUNK * HIDDEN];
            for unit in read.clone() {
                for i in 0..CHUNK {
                    let value = frame[(unit - read.start) * CHUNK + i];
                    enter[unit * CHUNK + i] = value;
                    leave[i * HIDDEN + unit] = value;
                }
            }
            self.put(&format!("{net}.in.weight"), &[HIDDEN, CHUNK], enter);
            self.zeros(&format!("{net}.in.bias"), HIDDEN);
            for block in 0..BLOCKS {
                let weight = self.normal(HIDDEN * HIDDEN, 1.0 / (HIDDEN as f64).sqrt());
                self.put(&format!("{net}.blocks.{block}.linear.weight"), &[HIDDEN, HIDDEN], weight);
                self.zeros(&format!("{net}.blocks.{block}.linear.bias"), HIDDEN);
                self.put(&format!("{net}.blocks.{block}.norm.weight"), &[HIDDEN], vec![BLOCK_GAIN; HIDDEN]);
                self.zeros(&format!("{net}.blocks.{block}.norm.bias"), HIDDEN);
            }
            self.put(&format!("{net}.out.weight"), &[CHUNK, HIDDEN], leave);
            self.zeros(&format!("{net}.out.bias"), CHUNK);
        }
    }

    /// A random matrix `[rows, CHUNK]` with orthonormal columns: its transpose is its inverse from the left.
    fn frame(&mut self, rows: usize) -> Vec<f32> {
        let mut columns: Vec<Vec<f64>> = Vec::new();
        while columns.len() < CHUNK {
            let mut column: Vec<f64> = (0..rows).map(|_| StandardNormal.sample(self.rng)).collect();
            for other in &columns {
                let along: f64 = column.iter().zip(other).map(|(a, b)| a * b).sum();
                column.iter_mut().zip(other).for_each(|(a, b)| *a -= along * b);
            }
            let norm = column.iter().map(|a| a * a).sum::<f64>().sqrt();
            columns.push(column.into_iter().map(|a| a / norm).collect());
        }
        (0..rows).flat_map(|row| columns.iter().map(move |column| column[row] as f32)).collect()
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use burn::backend::Flex;
    use burn::tensor::TensorData;

    use super::*;
    use crate::codec_file;
    use crate::parameters::{count, values};
    use crate::train::checkpoint::codec;

    #[test]
    fn the_papers_networks_have_its_sizes() {
        let network = Network { profile: Profile::Paper, width: 0 };
        let parameters = network.initial(100.0, &mut ChaCha8Rng::seed_from_u64(1));
        assert_eq!(count(&parameters, "analysis."), 1_071_632);
        assert_eq!(count(&parameters, "synthesis."), 1_071_632);
        assert_eq!(count(&parameters, "levels"), 4 * 512);
        assert!((network.multiply_adds_per_weight() - 66_560.0).abs() < 1e-9);
    }

    #[test]
    fn containers_networks_are_these() {
        let network = Network { profile: Profile::Paper, width: 0 };
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let mut parameters = network.initial(100.0, &mut rng);
        // As after a training: no parameter is where it began.
        for tensor in parameters.values_mut() {
            let noise = 0.3 / (*tensor.shape.last().unwrap() as f32).sqrt();
            tensor.values.iter_mut().for_each(|value| {
                let draw: f32 = StandardNormal.sample(&mut rng);
                *value += noise * draw;
            });
        }
        let codec = codec_file::residual(&codec(&parameters, &[], None, &serde_json::json!({}))).unwrap();
        let chunks: Vec<Chunk> =
            (0..4 * 20).map(|_| std::array::from_fn(|_| StandardNormal.sample(&mut rng))).collect();
        let device = burn::tensor::Device::<Flex>::default();
        let parameters = Parameters::<Flex>::new(&parameters, &device);
        let input = || {
            Tensor::<Flex, 2>::from_data(
                TensorData::new(chunks.as_flattened().to_vec(), [80, CHUNK]),
                &device,
            )
        };
        let theirs =
            [network.analysis(&parameters, input(), 0..4), network.synthesis(&parameters, input(), 0..4)];
        // The synthesis that containers carry has its parameters in F16.
        for ((ours, theirs), most) in
            [&codec.analysis, &codec.synthesis].into_iter().zip(theirs).zip([1e-4, 0.02])
        {
            let mut made = chunks.clone();
            for level in 0..4 {
                ours.apply(&mut made[20 * level..20 * (level + 1)], &[level as u8]);
            }
            let theirs = values(&theirs);
            let scale = theirs.iter().fold(1.0, |most: f32, x| most.max(x.abs()));
            let apart =
                made.as_flattened().iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(apart < most * scale, "{apart} apart, values up to {scale}");
        }
    }

    #[test]
    fn matrices_begin_at_the_principal_axes() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let mut draw = || -> f32 { StandardNormal.sample(&mut rng) };
        // All weights of a chunk share a part.
        let chunks: Vec<Chunk> = (0..4000)
            .map(|_| {
                let shared = draw();
                std::array::from_fn(|_| shared + draw())
            })
            .collect();
        let network = Network { profile: Profile::Linear, width: 32 };
        let mut parameters = network.initial(100.0, &mut ChaCha8Rng::seed_from_u64(1));
        let step = parameters["synthesis.linear.weight"].values[0];
        align(&mut parameters, &chunks);
        let synthesis = &parameters["synthesis.linear.weight"].values;
        let shared =
            |latent: usize| (0..CHUNK).map(|row| synthesis[row * CHUNK + latent] / step).sum::<f32>().abs();
        let most = (0..CHUNK).map(shared).fold(0.0, f32::max);
        assert!((most - 4.0).abs() < 0.01, "{most}");
        // One is the other's inverse.
        let analysis = &parameters["analysis.linear.weight"].values;
        for (i, j) in [(0, 0), (3, 3), (5, 9), (15, 0)] {
            let product: f32 = (0..CHUNK).map(|k| synthesis[i * CHUNK + k] * analysis[k * CHUNK + j]).sum();
            assert!((product - if i == j { 1.0 } else { 0.0 }).abs() < 1e-5, "{i} {j}: {product}");
        }
    }

    #[test]
    fn light_profiles_are_light() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let linear = Network { profile: Profile::Linear, width: 32 };
        assert_eq!(count(&linear.initial(100.0, &mut rng), "synthesis."), 256);
        assert!((linear.multiply_adds_per_weight() - 16.0).abs() < 1e-9);
        let compact = Network { profile: Profile::Compact, width: 32 };
        assert!((compact.multiply_adds_per_weight() - 80.0).abs() < 1e-9);
    }
}
