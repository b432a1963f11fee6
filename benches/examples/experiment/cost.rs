//! What compression with LDLQ costs a weight, by the size of the model: CLIP ViT-B/32 with fewer blocks and words, and whole.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Result, anyhow};
use nwc_decode_core::DType;
use nwc_encode_host::compress::{Settings, Target};
use nwc_encode_host::importance::{Importance, Steps};
use nwc_encode_host::synthetic::Source;
use nwc_encode_host::tensors::{OwnedTensors, TensorSource as _};
use rayon::prelude::*;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, serialize_to_file};
use serde_json::{Value, json};

use super::encode;

/// Blocks of each tower, of twelve.
const BLOCKS: [usize; 4] = [1, 3, 6, 12];
const BITS: f64 = 3.0;
/// Directions in which inputs spread more than in all.
const DIRECTIONS: usize = 64;

/// Seconds a million weights, reading H and checking the file included. Weights and H are made up; a clock does not mind.
pub fn run() -> Result<Value> {
    let mut rows = Vec::new();
    for blocks in BLOCKS {
        let (model, inputs) = clip(blocks);
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("h.safetensors");
        let matrices: BTreeMap<String, (usize, Vec<u8>)> = inputs
            .into_par_iter()
            .enumerate()
            .map(|(seed, (name, inputs))| (name, (inputs, moments(inputs, seed as u64))))
            .collect();
        let views = matrices
            .iter()
            .map(|(name, (inputs, bytes))| {
                Ok((name, TensorView::new(Dtype::F32, vec![*inputs, *inputs], bytes)?))
            })
            .collect::<Result<Vec<_>>>()?;
        serialize_to_file(views, None, &path)?;
        drop(matrices);
        let weights: usize =
            (0..model.len()).map(|index| model.tensor(index).shape.iter().product::<usize>()).sum();
        let mut row =
            json!({ "blocks": blocks, "weights": weights, "threads": rayon::current_num_threads() });
        for ldlq in [false, true] {
            let started = Instant::now();
            let importance =
                Importance::open(&path, Steps::Continuous).map_err(|error| anyhow!("{error}"))?;
            let importance = Some(importance);
            let settings = Settings { importance, ldlq, ..Settings::new(Target::Bits(BITS)) };
            let report = encode(&model, &settings)?;
            let seconds = started.elapsed().as_secs_f64();
            let a_million = seconds * 1e6 / weights as f64;
            eprintln!(
                "{blocks:>2} blocks {weights:>9} weights, LDLQ {ldlq:<5} {:.3} bits {seconds:>6.1} s {a_million:.3} s a million",
                report.bits_per_weight()
            );
            let key = if ldlq { "ldlq" } else { "without" };
            row[key] = json!({ "bits_per_weight": report.bits_per_weight(), "seconds": seconds, "seconds_a_million": a_million });
        }
        rows.push(row);
    }
    Ok(Value::Array(rows))
}

/// Weights of CLIP ViT-B/32 with so many blocks of twelve in each tower and as large a part of its words, and the inputs of its linear maps by name.
fn clip(blocks: usize) -> (OwnedTensors, Vec<(String, usize)>) {
    let mut shapes: Vec<(String, [usize; 2])> = vec![
        ("text_model.embeddings.token_embedding.weight".to_owned(), [49408 * blocks / 12, 512]),
        ("text_model.embeddings.position_embedding.weight".to_owned(), [77, 512]),
        ("vision_model.embeddings.position_embedding.weight".to_owned(), [50, 768]),
        ("vision_model.embeddings.patch_embedding.weight".to_owned(), [768, 3072]),
        ("text_projection.weight".to_owned(), [512, 512]),
        ("visual_projection.weight".to_owned(), [512, 768]),
    ];
    for (tower, width) in [("text_model", 512), ("vision_model", 768)] {
        for block in 0..blocks {
            let name = |part: &str| format!("{tower}.encoder.layers.{block}.{part}.weight");
            for part in ["q_proj", "k_proj", "v_proj", "out_proj"] {
                shapes.push((name(&format!("self_attn.{part}")), [width, width]));
            }
            shapes.push((name("mlp.fc1"), [4 * width, width]));
            shapes.push((name("mlp.fc2"), [width, 4 * width]));
        }
    }
    let mut model = OwnedTensors::default();
    let halves = |(seed, (_, [rows, columns])): (usize, &(String, [usize; 2]))| {
        let weights = Source::Mixture.matrix(*rows, *columns, seed as u64);
        weights
            .iter()
            .flat_map(|&weight| half::f16::from_f32(0.02 * weight).to_le_bytes())
            .collect::<Vec<u8>>()
    };
    let bytes: Vec<Vec<u8>> = shapes.par_iter().enumerate().map(halves).collect();
    for ((name, shape), bytes) in shapes.iter().zip(bytes) {
        model.push(name, DType::F16, shape, bytes);
    }
    let linear = |(name, _): &(String, [usize; 2])| !name.contains("token_") && !name.contains("position_");
    let inputs = shapes.into_iter().filter(linear).map(|(name, [_, inputs])| (name, inputs)).collect();
    (model, inputs)
}

/// H `[inputs, inputs]` of inputs that spread differently, and most in a few directions.
fn moments(inputs: usize, seed: u64) -> Vec<u8> {
    let directions = Source::Gaussian.matrix(inputs, DIRECTIONS, seed);
    let spreads = Source::Gaussian.matrix(1, inputs, seed + 1);
    let rows: Vec<&[f32]> = directions.chunks(DIRECTIONS).collect();
    let mut bytes = Vec::with_capacity(4 * inputs * inputs);
    for (i, row) in rows.iter().enumerate() {
        for (j, other) in rows.iter().enumerate() {
            let shared: f32 = row.iter().zip(*other).map(|(a, b)| a * b).sum();
            let own = if i == j { spreads[i].exp2() } else { 0.0 };
            bytes.extend((own + shared / DIRECTIONS as f32).to_le_bytes());
        }
    }
    bytes
}
