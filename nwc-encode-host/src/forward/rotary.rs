//! Rotary position embedding, plain and in the ways in which models stretch it beyond the context that they were first trained on.

use std::f64::consts::PI;

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use serde::Deserialize;

use crate::{Error, Result};

/// Rotates queries and keys by their positions.
#[derive(Debug, Clone, PartialEq)]
pub struct Rotary {
    /// Radians a position, of each pair of dimensions.
    pub frequencies: Vec<f32>,
    /// By which rotated vectors are scaled.
    pub attention_factor: f32,
}

/// As `config.json` says it: `rope_parameters`, or `rope_scaling` in older files.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct RotaryConfig {
    rope_type: Option<String>,
    /// What older files call it; some have both.
    r#type: Option<String>,
    pub(super) rope_theta: Option<f64>,
    factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    attention_factor: Option<f64>,
    beta_fast: Option<f64>,
    beta_slow: Option<f64>,
    mscale: Option<f64>,
    mscale_all_dim: Option<f64>,
    truncate: Option<bool>,
    partial_rotary_factor: Option<f64>,
}

impl RotaryConfig {
    /// The rotation of heads of this size, where `context` is what the model was made for.
    ///
    /// # Errors
    /// If it is of an unknown kind, or a number is missing.
    pub(super) fn rotary(&self, head_dim: usize, theta: f64, context: Option<f64>) -> Result<Rotary> {
        if self.partial_rotary_factor.is_some_and(|factor| factor < 1.0) {
            return Err(unknown("rotary embedding of a part of each head"));
        }
        let plain: Vec<f64> =
            (0..head_dim / 2).map(|i| theta.powf(-2.0 * i as f64 / head_dim as f64)).collect();
        let (frequencies, attention_factor) =
            match self.rope_type.as_ref().or(self.r#type.as_ref()).map_or("default", String::as_str) {
                "default" => (plain, 1.0),
                "linear" => {
                    let factor = need(self.factor, "factor")?;
                    (plain.iter().map(|frequency| frequency / factor).collect(), 1.0)
                }
                "llama3" => (self.llama3(&plain, context)?, 1.0),
                "yarn" => self.yarn(&plain, theta, context)?,
                other => return Err(unknown(&format!("rotary embedding of the type {other:?}"))),
            };
        Ok(Rotary {
            frequencies: frequencies.iter().map(|&frequency| frequency as f32).collect(),
            attention_factor: attention_factor as f32,
        })
    }

    /// Llama 3.1: waves that are longer than the first context are stretched, short ones are not, between them it goes smoothly.
    fn llama3(&self, plain: &[f64], context: Option<f64>) -> Result<Vec<f64>> {
        let factor = need(self.factor, "factor")?;
        let low = need(self.low_freq_factor, "low_freq_factor")?;
        let high = need(self.high_freq_factor, "high_freq_factor")?;
        let context =
            need(self.original_max_position_embeddings.or(context), "original_max_position_embeddings")?;
        let stretch = |frequency: f64| {
            let waves = context * frequency / (2.0 * PI);
            let share = ((waves - low) / (high - low)).clamp(0.0, 1.0);
            (1.0 - share) * frequency / factor + share * frequency
        };
        Ok(plain.iter().map(|&frequency| stretch(frequency)).collect())
    }

    /// `YaRN` (arXiv 2309.00071): a ramp over dimensions, between those that turn `beta_fast` times and `beta_slow` times in the first context.
    fn yarn(&self, plain: &[f64], theta: f64, context: Option<f64>) -> Result<(Vec<f64>, f64)> {
        let original =
            need(self.original_max_position_embeddings.or(context), "original_max_position_embeddings")?;
        let factor = need(self.factor.or_else(|| context.map(|context| context / original)), "factor")?;
        let dims = 2.0 * plain.len() as f64;
        let dimension = |turns: f64| dims * (original / (turns * 2.0 * PI)).ln() / (2.0 * theta.ln());
        let mut first = dimension(self.beta_fast.unwrap_or(32.0));
        let mut last = dimension(self.beta_slow.unwrap_or(1.0));
        if self.truncate.unwrap_or(true) {
            (first, last) = (first.floor(), last.ceil());
        }
        let (first, mut last) = (first.max(0.0), last.min(dims - 1.0));
        if last <= first {
            last = first + 0.001;
        }
        let stretch = |(i, frequency): (usize, &f64)| {
            let share = ((i as f64 - first) / (last - first)).clamp(0.0, 1.0);
            share * frequency / factor + (1.0 - share) * frequency
        };
        let scale = |by: f64| if factor <= 1.0 { 1.0 } else { 0.1 * by * factor.ln() + 1.0 };
        let inferred = match (self.mscale, self.mscale_all_dim) {
            (Some(scaled), Some(all)) if scaled != 0.0 && all != 0.0 => scale(scaled) / scale(all),
            _ => scale(1.0),
        };
        Ok((plain.iter().enumerate().map(stretch).collect(), self.attention_factor.unwrap_or(inferred)))
    }
}

fn need(value: Option<f64>, name: &str) -> Result<f64> {
    value.ok_or_else(|| {
        Error::input(format!("its rotary embedding has no {name}"))
            .remedy("take config.json from the model's publisher")
    })
}

fn unknown(what: &str) -> Error {
    Error::input(format!("{what} is not supported")).remedy("use a model with plain, linear, llama3 or yarn")
}

impl Rotary {
    /// For so many heads at so many positions.
    pub(super) fn turns<B: Backend>(&self, length: usize, heads: usize, device: &B::Device) -> Turns<B> {
        let half = self.frequencies.len();
        let [cosines, sines] = [f32::cos, f32::sin].map(|wave| {
            // Angles are rounded to f32, as where models are trained.
            let at = |position: usize| {
                let angle = move |frequency: &f32| wave(position as f32 * frequency) * self.attention_factor;
                let pairs: Vec<f32> = self.frequencies.iter().map(angle).collect();
                pairs.repeat(2 * heads)
            };
            let values: Vec<f32> = (0..length).flat_map(at).collect();
            let shape = [1, values.len()];
            Tensor::from_data(TensorData::new(values, shape), device)
        });
        let mut partners = vec![0.0_f32; 4 * half * half];
        for i in 0..half {
            partners[i * 2 * half + half + i] = 1.0;
            partners[(half + i) * 2 * half + i] = -1.0;
        }
        let partners = Tensor::from_data(TensorData::new(partners, [2 * half, 2 * half]), device);
        Turns { cosines, sines, partners }
    }
}

/// What turns heads `[batch * length * heads, dim]`: dimension i with dimension i + dim / 2.
pub(super) struct Turns<B: Backend> {
    /// Of a sequence, `[1, length * heads * dim]`.
    cosines: Tensor<B, 2>,
    sines: Tensor<B, 2>,
    /// Puts each dimension's partner in its place, with its sign. A product with this is exact, and much faster than slices.
    partners: Tensor<B, 2>,
}

impl<B: Backend> Turns<B> {
    /// Heads, turned.
    pub(super) fn apply(&self, heads: Tensor<B, 2>) -> Tensor<B, 2> {
        let shape @ [rows, dim] = heads.dims();
        let [_, sequence] = self.cosines.dims();
        let sequences = [rows * dim / sequence, sequence];
        let partners = heads.clone().matmul(self.partners.clone()).reshape(sequences);
        let turned = heads.reshape(sequences) * self.cosines.clone() + partners * self.sines.clone();
        turned.reshape(shape)
    }
}
