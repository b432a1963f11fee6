//! What a sum of few outer products under the quantiser would be worth: `W = a_1 b_1^T + a_2 b_2^T + ... + residual`, the factors quantised, the residual compressed as ever.

use std::path::Path;

use anyhow::Result;
use faer::Mat;
use nwc_encode_host::coding::table::Counts;
use nwc_encode_host::compress::{Selection, Settings, Target};
use nwc_encode_host::synthetic::Source;
use nwc_encode_host::tensors::{OwnedTensors, TensorSource, to_f32};
use rayon::prelude::*;
use serde_json::{Value, json};

use super::encode;
use super::preprocessing::models;

/// The most outer products of a matrix.
const MOST_RANK: usize = 32;
/// Rows and columns of the random matrix.
const SIDE: usize = 1024;

/// A matrix [out, in] in two parts.
struct Parts {
    /// What the outer products leave.
    residual: Vec<f32>,
    rank: usize,
    /// Bits of the factors' entropies, and of their steps.
    bits: f64,
}

/// Takes out the outer products that save more bits at an error of `error` a weight than they cost.
///
/// What a factor misses is left to the residual, which costs bits in proportion to what it adds to its variance. So steps are coarse: a bit more of an entry buys as much as it costs
/// where the step squared is 12 times that variance, over the number of weights that the entry is multiplied with; whatever the rate.
fn split(weights: &[f32], input: usize, error: f64) -> Parts {
    let out = weights.len() / input;
    let matrix = Mat::<f64>::from_fn(out, input, |r, c| f64::from(weights[r * input + c]));
    let mut residual: Vec<f64> = weights.iter().map(|&w| f64::from(w)).collect();
    let mut parts = Parts { residual: weights.to_vec(), rank: 0, bits: 0.0 };
    let Ok(svd) = matrix.thin_svd() else { return parts };
    let values = svd.S().column_vector();
    let count = weights.len() as f64;
    let mut energy: f64 = residual.iter().map(|w| w * w).sum();
    for j in 0..MOST_RANK.min(values.nrows()) {
        // Both factors have the same deviation, the fourth root of the product's mean square.
        let gain = (values[j] / count.sqrt()).sqrt();
        if gain == 0.0 {
            break;
        }
        let variance = (energy - values[j] * values[j]).max(0.0) / count;
        let quantise = |entry: &dyn Fn(usize) -> f64, len: usize, other: usize| {
            let step = (12.0 * variance / other as f64).sqrt() / gain;
            let mut counts = Counts::default();
            let entries: Vec<f64> = (0..len)
                .map(|i| {
                    let index = (entry(i) * gain * (len as f64).sqrt() / step).round();
                    counts.add(index as i32);
                    index * step
                })
                .collect();
            (entries, counts.entropy() * len as f64)
        };
        let (a, bits_of_a) = quantise(&|i| svd.U()[(i, j)], out, input);
        let (b, bits_of_b) = quantise(&|i| svd.V()[(i, j)], input, out);
        let left: Vec<f64> = residual
            .chunks_exact(input)
            .zip(&a)
            .flat_map(|(row, a)| row.iter().zip(&b).map(move |(weight, b)| weight - a * b))
            .collect();
        let left_energy: f64 = left.iter().map(|w| w * w).sum();
        // Two steps of 16 bits.
        let bits = bits_of_a + bits_of_b + 32.0;
        // Below the error itself there is nothing to save.
        let rate = |energy: f64| 0.5 * count * (energy / count / error).max(1.0).log2();
        if rate(energy) - rate(left_energy) <= bits {
            break;
        }
        (residual, energy) = (left, left_energy);
        (parts.rank, parts.bits) = (parts.rank + 1, parts.bits + bits);
    }
    parts.residual = residual.iter().map(|&w| w as f32).collect();
    parts
}

/// Compares models as they are with the same in two parts, at equal rates.
pub fn run(assets: Option<&Path>) -> Result<Value> {
    let mut gaussian = OwnedTensors::default();
    gaussian.push_f32("weight", &[SIDE, SIDE], &Source::Gaussian.matrix(SIDE, SIDE, 1));
    let mut sources: Vec<(String, Box<dyn TensorSource>)> = vec![("gaussian".to_owned(), Box::new(gaussian))];
    sources.extend(models(assets)?);
    let mut rows = Vec::new();
    for (name, source) in sources {
        for bits in [2.0, 3.0, 4.0] {
            let settings = Settings::new(Target::Bits(bits));
            let whole = encode(&*source, &settings)?;
            let coded: Vec<usize> =
                (0..source.len()).filter(|&index| whole.tensors[index].coding == "coded").collect();
            let split: Vec<(usize, f64, Parts)> = coded
                .par_iter()
                .map(|&index| {
                    let tensor = source.tensor(index);
                    let weights = to_f32(tensor.dtype, source.bytes(index));
                    let view = Selection::default()
                        .view(tensor.name, tensor.dtype, tensor.shape)
                        .expect("what is coded has a view");
                    let energy: f64 = weights.iter().map(|&w| f64::from(w).powi(2)).sum();
                    let error = whole.tensors[index].nmse * energy / weights.len() as f64;
                    (index, energy, split(&weights, view.inputs(), error))
                })
                .collect();
            let mut residuals = OwnedTensors::default();
            for (index, _, parts) in &split {
                let tensor = source.tensor(*index);
                residuals.push_f32(tensor.name, tensor.shape, &parts.residual);
            }
            let factors = split.iter().map(|(_, _, parts)| parts.bits).sum::<f64>() / whole.weights as f64;
            let rate = whole.bits_per_weight();
            let report = encode(&residuals, &Settings::new(Target::Bits(rate - factors)))?;
            let energy: f64 = split.iter().map(|(_, energy, _)| energy).sum();
            let left: f64 =
                split.iter().flat_map(|(_, _, parts)| &parts.residual).map(|&w| f64::from(w).powi(2)).sum();
            let nmse = report.nmse * left / energy;
            let all = report.bits_per_weight() + factors;
            let saved = 0.5 * (whole.nmse * 4f64.powf(rate) / (nmse * 4f64.powf(all))).log2();
            let ranks: usize = split.iter().map(|(_, _, parts)| parts.rank * parts.residual.len()).sum();
            let multiply_adds = ranks as f64 / whole.weights as f64;
            eprintln!(
                "{name:<12} {bits} bits: {saved:+.4} bits a weight saved, nMSE {:.3} times, factors {factors:.3} bits, {multiply_adds:.1} multiply-adds a weight",
                nmse / whole.nmse
            );
            rows.push(json!({
                "source": name,
                "bits": bits,
                "bits_per_weight": all,
                "nmse": nmse,
                "bits_per_weight_without": rate,
                "nmse_without": whole.nmse,
                "bits_saved_at_equal_nmse": saved,
                "bits_of_factors": factors,
                "multiply_adds_per_weight": multiply_adds,
                "largest_rank": split.iter().map(|(_, _, parts)| parts.rank).max(),
            }));
        }
    }
    Ok(Value::Array(rows))
}
