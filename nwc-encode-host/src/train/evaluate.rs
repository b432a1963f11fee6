//! Rate and distortion with rounded latents and integer tables.

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use serde::{Deserialize, Serialize};

use super::data::Chunk;
use super::network::{LATENTS, Network};
use crate::Result;
use crate::chunks::CHUNK;
use crate::coding::table::{Counts, Table};
use crate::importance::LEVEL_PARTS;
use crate::parameters::{Parameters, values};
use crate::progress::Progress;

/// Chunks that go through a network at once.
const BLOCK: usize = 2048;
/// Bits of the tables' frequencies: the most that containers have.
pub(crate) const PRECISION: u32 = 14;

/// Rate and distortion.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// What the latents cost by their tables, in bits a weight: a cross entropy, no bytes of a file.
    pub bits_per_weight: f64,
    /// Squared error over squared weights.
    pub nmse: f64,
}

/// Rate and distortion at each level, and of the levels in the paper's parts.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Evaluation {
    pub(crate) levels: Vec<Point>,
    pub(crate) mixture: Point,
}

/// The part of all inputs that each level has: 88.9, 10, 1 and 0.1 %, or all where there is but one.
fn parts(levels: usize) -> Vec<f64> {
    let [third, second, first] = LEVEL_PARTS;
    let parts = [1.0 - first - second - third, first, second, third];
    if levels == 1 { vec![1.0] } else { parts[..levels].to_vec() }
}

/// A table for each latent dimension, fitted to how often rounded latents of these chunks have each value, levels in the paper's parts.
pub(crate) fn tables<B: Backend>(
    network: Network,
    parameters: &Parameters<B>,
    chunks: &[Chunk],
    device: &B::Device,
    progress: &dyn Progress,
) -> Result<Vec<Table>> {
    let mut counts = vec![Counts::default(); LATENTS];
    for (level, part) in parts(network.levels()).into_iter().enumerate() {
        let weight = (part * 1000.0).round() as u64;
        for block in chunks.chunks(BLOCK) {
            progress.check()?;
            for latents in latents(network, parameters, block, level, device).chunks_exact(LATENTS) {
                counts.iter_mut().zip(latents).for_each(|(counts, &y)| counts.add_many(y as i32, weight));
            }
        }
    }
    Ok(counts.iter().map(|counts| Table::fit_weights(counts, PRECISION, 1.0)).collect())
}

/// Sends chunks through analysis, rounding and synthesis at every level.
pub(crate) fn evaluate<B: Backend>(
    network: Network,
    parameters: &Parameters<B>,
    tables: &[Table],
    chunks: &[Chunk],
    device: &B::Device,
    progress: &dyn Progress,
) -> Result<Evaluation> {
    let mut levels = Vec::new();
    for level in 0..network.levels() {
        let (mut bits, mut error, mut energy) = (0.0, 0.0, 0.0);
        for block in chunks.chunks(BLOCK) {
            progress.check()?;
            let latents = latents(network, parameters, block, level, device);
            for latents in latents.chunks_exact(LATENTS) {
                bits += latents.iter().zip(tables).map(|(&y, t)| f64::from(t.bits(y as i32))).sum::<f64>();
            }
            let latents = Tensor::<B, 2>::from_data(TensorData::new(latents, [block.len(), LATENTS]), device);
            let restored = values(&network.synthesis(parameters, latents, level..level + 1));
            for (w, r) in block.as_flattened().iter().zip(restored) {
                error += f64::from(w - r).powi(2);
                energy += f64::from(*w).powi(2);
            }
        }
        let weights = (chunks.len() * CHUNK) as f64;
        levels.push(Point { bits_per_weight: bits / weights, nmse: error / energy });
    }
    let parts = parts(levels.len());
    let mean = |value: fn(&Point) -> f64| levels.iter().zip(&parts).map(|(l, part)| value(l) * part).sum();
    let mixture =
        Point { bits_per_weight: mean(|point| point.bits_per_weight), nmse: mean(|point| point.nmse) };
    Ok(Evaluation { levels, mixture })
}

/// Rounded latents of chunks at a level, within what tables can hold.
pub(crate) fn latents<B: Backend>(
    network: Network,
    parameters: &Parameters<B>,
    chunks: &[Chunk],
    level: usize,
    device: &B::Device,
) -> Vec<f32> {
    let chunks = upload(chunks, device);
    let (least, most) = (f32::from(i16::MIN), f32::from(i16::MAX));
    let latents = values(&network.analysis(parameters, chunks, level..level + 1));
    latents.into_iter().map(|y| y.round_ties_even().clamp(least, most)).collect()
}

/// Chunks as a tensor `[n, CHUNK]`.
pub(crate) fn upload<B: Backend>(chunks: &[Chunk], device: &B::Device) -> Tensor<B, 2> {
    Tensor::from_data(TensorData::new(chunks.as_flattened().to_vec(), [chunks.len(), CHUNK]), device)
}
