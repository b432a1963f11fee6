//! Models that are no transformers: an LSTM and an MLP, with the names of `PyTorch`, there and back.

mod common;

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use nwc_encode_host::synthetic::Source;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

/// A matrix or a bias.
struct Tensor {
    name: &'static str,
    shape: Vec<usize>,
    values: Vec<f32>,
}

impl Tensor {
    /// Weights of about the size of trained ones: 1/sqrt(in), heavier in the tails than a normal distribution, rows by up to an octave larger and smaller than others.
    fn matrix(name: &'static str, outputs: usize, inputs: usize, seed: u64) -> Self {
        let spread = Source::Gaussian.matrix(1, outputs, seed + 1000);
        let mut values = Source::Student5.matrix(outputs, inputs, seed);
        for (row, spread) in values.chunks_exact_mut(inputs).zip(spread) {
            let scale = (0.4 * spread.clamp(-2.5, 2.5)).exp2() / (inputs as f32).sqrt();
            row.iter_mut().for_each(|weight| *weight *= scale);
        }
        Self { name, shape: vec![outputs, inputs], values }
    }

    fn bias(name: &'static str, outputs: usize, seed: u64) -> Self {
        let values = Source::Gaussian.matrix(1, outputs, seed).iter().map(|value| 0.1 * value).collect();
        Self { name, shape: vec![outputs], values }
    }
}

fn lstm() -> Vec<Tensor> {
    let (inputs, hidden) = (96, 160);
    vec![
        Tensor::matrix("lstm.weight_ih_l0", 4 * hidden, inputs, 1),
        Tensor::matrix("lstm.weight_hh_l0", 4 * hidden, hidden, 2),
        Tensor::bias("lstm.bias_ih_l0", 4 * hidden, 3),
        Tensor::bias("lstm.bias_hh_l0", 4 * hidden, 4),
        Tensor::matrix("lstm.weight_ih_l1", 4 * hidden, hidden, 5),
        Tensor::matrix("lstm.weight_hh_l1", 4 * hidden, hidden, 6),
        Tensor::bias("lstm.bias_ih_l1", 4 * hidden, 7),
        Tensor::bias("lstm.bias_hh_l1", 4 * hidden, 8),
    ]
}

/// From pictures of 28 x 28 to 10 classes.
fn mlp() -> Vec<Tensor> {
    vec![
        Tensor::matrix("0.weight", 256, PIXELS, 11),
        Tensor::bias("0.bias", 256, 12),
        Tensor::matrix("2.weight", 128, 256, 13),
        Tensor::bias("2.bias", 128, 14),
        Tensor::matrix("4.weight", 10, 128, 15),
        Tensor::bias("4.bias", 10, 16),
    ]
}

const PIXELS: usize = 28 * 28;

/// Shapes and values by name.
type Restored = HashMap<String, (Vec<usize>, Vec<f32>)>;

/// Writes tensors as F32.
fn write<'a>(path: &Path, tensors: impl IntoIterator<Item = (&'a str, &'a [usize], &'a [f32])>) {
    let tensors: Vec<_> = tensors
        .into_iter()
        .map(|(name, shape, values)| {
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            (name, shape.to_vec(), bytes)
        })
        .collect();
    let views = tensors
        .iter()
        .map(|(name, shape, bytes)| (*name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

fn read(path: &Path) -> Restored {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let values = |view: &TensorView<'_>| {
        assert_eq!(view.dtype(), Dtype::F32);
        view.data().chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
    };
    file.iter().map(|(name, view)| (name.to_owned(), (view.shape().to_vec(), values(&view)))).collect()
}

/// The report of a successful call.
fn json(folder: &Path, line: &str) -> Value {
    let output = common::run(folder, &format!("{line} --json"));
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Squared differences over squares.
fn nmse<'a>(pairs: impl Iterator<Item = (&'a [f32], &'a [f32])>) -> f64 {
    let all = pairs.flat_map(|(a, b)| a.iter().zip(b));
    let (error, energy) = all.fold((0.0, 0.0), |(error, energy), (&a, &b)| {
        (error + (f64::from(a) - f64::from(b)).powi(2), energy + f64::from(a).powi(2))
    });
    error / energy
}

/// Compresses, verifies and decompresses a model, and gives what came back.
fn there_and_back(tensors: &[Tensor], folder: &Path, bits: f64, options: &str) -> (Value, Restored) {
    write(&folder.join("a.safetensors"), tensors.iter().map(|t| (t.name, &t.shape[..], &t.values[..])));
    let report = json(folder, &format!("compress a.safetensors --bits {bits} -o a.nwc --force{options}"));
    let verified = json(folder, "verify a.nwc --against a.safetensors");
    assert_eq!(verified["ok"], true);
    json(folder, "decompress a.nwc -o back --force");
    let restored = read(&folder.join("back/a.safetensors"));
    assert_eq!(restored.len(), tensors.len());

    let rate = report["bits_per_weight"].as_f64().unwrap();
    assert!((bits - 0.01..=bits).contains(&rate), "{rate}");
    for tensor in tensors {
        let (shape, values) = &restored[tensor.name];
        assert_eq!(*shape, tensor.shape, "{}", tensor.name);
        if shape.len() == 1 {
            assert_eq!(*values, tensor.values, "{}", tensor.name);
        }
    }
    let matrices = tensors.iter().filter(|tensor| tensor.shape.len() == 2);
    let found = nmse(matrices.map(|tensor| (&tensor.values[..], &restored[tensor.name].1[..])));
    let said = report["nmse"].as_f64().unwrap();
    assert!((found / said - 1.0).abs() < 1e-6, "{found}, said to be {said}");
    (report, restored)
}

#[test]
fn an_lstm_and_an_mlp_come_back_within_their_bounds() {
    for (tensors, matrices) in [(lstm(), 4), (mlp(), 3)] {
        let folder = tempfile::tempdir().unwrap();
        for bits in [2.0, 3.0, 4.0] {
            let (report, _) = there_and_back(&tensors, folder.path(), bits, "");
            let lines = report["tensors"].as_array().unwrap();
            let coded: Vec<&Value> = lines.iter().filter(|line| line["coding"] == "coded").collect();
            assert_eq!(coded.len(), matrices);
            // The best that can be had for normally distributed weights is 1; side information and tables of so few weights take some of the rate.
            let bound = 1.35 * 0.25f64.powf(bits);
            assert!(report["nmse"].as_f64().unwrap() < bound, "{report}");
            for line in coded {
                assert!(line["nmse"].as_f64().unwrap() < 1.2 * bound, "{line}");
            }
        }
    }
}

/// Pictures whose pixels go with their neighbours, and are dark at the edges.
fn pictures(count: usize) -> Vec<f32> {
    let noise = Source::Gaussian.matrix(count, PIXELS, 21);
    let mut pictures = vec![0.0; count * PIXELS];
    for (picture, noise) in pictures.chunks_exact_mut(PIXELS).zip(noise.chunks_exact(PIXELS)) {
        for (at, pixel) in picture.iter_mut().enumerate() {
            let (row, column) = (at / 28, at % 28);
            let (rows, columns) =
                (row.saturating_sub(3)..(row + 4).min(28), column.saturating_sub(3)..(column + 4).min(28));
            let sum: f32 = rows.flat_map(|r| columns.clone().map(move |c| noise[r * 28 + c])).sum();
            let edge = row.min(27 - row).min(column.min(27 - column));
            *pixel = (sum / 7.0).max(0.0) * (edge as f32 / 4.0).min(1.0);
        }
    }
    pictures
}

#[test]
fn a_hessian_made_by_hand_makes_outputs_better() {
    let folder = tempfile::tempdir().unwrap();
    let tensors = mlp();
    let pictures = pictures(1200);
    let (seen, fresh) = pictures.split_at(1000 * PIXELS);
    let mut h = vec![0f32; PIXELS * PIXELS];
    for picture in seen.chunks_exact(PIXELS) {
        for (row, a) in h.chunks_exact_mut(PIXELS).zip(picture).filter(|(_, a)| **a != 0.0) {
            row.iter_mut().zip(picture).for_each(|(sum, b)| *sum += a * b / 1000.0);
        }
    }
    write(&folder.path().join("h.safetensors"), [("0.weight", &[PIXELS, PIXELS][..], &h[..])]);
    // How far the first layer's outputs for other pictures are off.
    let off = |options: &str| {
        let (report, restored) = there_and_back(&tensors, folder.path(), 3.0, options);
        let outputs = |weights: &[f32]| -> Vec<f32> {
            let row = |picture: &[f32], row: &[f32]| row.iter().zip(picture).map(|(w, x)| w * x).sum::<f32>();
            fresh
                .chunks_exact(PIXELS)
                .flat_map(|x| weights.chunks_exact(PIXELS).map(move |w| row(x, w)))
                .collect()
        };
        let (want, got) = (outputs(&tensors[0].values), outputs(&restored["0.weight"].1));
        (nmse([(&want[..], &got[..])].into_iter()), report)
    };
    let (without, _) = off("");
    let (with, report) = off(" --hessians h.safetensors");
    assert!(with < 0.6 * without, "{with} with H, {without} without");
    let first = report["tensors"].as_array().unwrap().iter().find(|line| line["name"] == "0.weight").unwrap();
    assert!(first["ldlq"]["lost"].as_f64().unwrap() < first["ldlq"]["lost_without"].as_f64().unwrap());
}
