//! Attention: heads that share keys and values, windows, sinks.

use burn::tensor::activation::softmax;
use burn::tensor::backend::Backend;
use burn::tensor::{Bool, Tensor, TensorData};

use super::linear::{Linear, Taps};
use super::norm::Norm;
use super::rotary::{Rotary, rotate};
use super::stage::TensorSpec;
use crate::parameters::Parameters;

/// What a position may look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mask {
    /// All positions.
    Bidirectional,
    /// Itself and those before it; with a window that many in all.
    Causal {
        /// How many positions, itself counted.
        window: Option<usize>,
    },
}

/// Attention of a block.
#[derive(Debug, Clone, PartialEq)]
pub struct Attention {
    /// Makes queries.
    pub query: Linear,
    /// Makes keys.
    pub key: Linear,
    /// Makes values.
    pub value: Linear,
    /// Joins the heads.
    pub output: Linear,
    /// Heads of queries.
    pub heads: usize,
    /// Heads of keys and of values, each for `heads / key_heads` heads of queries.
    pub key_heads: usize,
    /// Normalises each query.
    pub query_norm: Option<Norm>,
    /// Normalises each key.
    pub key_norm: Option<Norm>,
    /// Rotates queries and keys.
    pub rotary: Option<Rotary>,
    /// What positions look at.
    pub mask: Mask,
    /// Name of a logit for each head that takes its share of attention and gives nothing.
    pub sinks: Option<String>,
}

impl Attention {
    /// The tensors that it takes.
    pub(super) fn tensors(&self) -> Vec<TensorSpec> {
        let linears = [&self.query, &self.key, &self.value, &self.output].into_iter();
        let norms = self.query_norm.iter().chain(&self.key_norm);
        let sinks = self.sinks.iter().map(|name| TensorSpec::new(name, &[self.heads]));
        linears.flat_map(Linear::tensors).chain(norms.flat_map(Norm::tensors)).chain(sinks).collect()
    }

    /// Its linear maps by what they share.
    pub(super) fn groups(&self) -> [Vec<&Linear>; 2] {
        [vec![&self.query, &self.key, &self.value], vec![&self.output]]
    }

    /// Outputs `[batch * length, width]` of inputs of the same dimensions. `padding` `[batch, length]` is true where nobody looks.
    pub(super) fn forward<B: Backend>(
        &self,
        parameters: &Parameters<B>,
        x: &Tensor<B, 2>,
        batch: usize,
        padding: Option<&Tensor<B, 2, Bool>>,
        taps: &mut dyn Taps<B>,
    ) -> Tensor<B, 2> {
        let [tokens, _] = x.dims();
        let length = tokens / batch;
        taps.inputs(&self.groups()[0], x);
        let mut heads = |linear: &Linear, count: usize, norm: Option<&Norm>| {
            let y = linear.apply(parameters, x.clone(), taps);
            let dim = linear.outputs() / count;
            let y = match norm {
                Some(norm) => norm.apply(parameters, y.reshape([tokens * count, dim])),
                None => y,
            };
            y.reshape([batch, length, count, dim]).swap_dims(1, 2)
        };
        let mut query = heads(&self.query, self.heads, self.query_norm.as_ref());
        let mut key = heads(&self.key, self.key_heads, self.key_norm.as_ref());
        let value = heads(&self.value, self.key_heads, None);
        if let Some(rotary) = &self.rotary {
            let table = rotary.table(length, &x.device());
            query = rotate(query, &table);
            key = rotate(key, &table);
        }
        let hidden = self.hidden(batch, length, padding, &x.device());
        let sinks = self.sinks.as_ref().map(|name| parameters.get(name));
        let joined = attend(query, key, value, hidden, sinks);
        taps.inputs(&self.groups()[1], &joined);
        self.output.apply(parameters, joined, taps)
    }

    /// True where a position `[batch, 1, from, to]` is not looked at; none if all are.
    fn hidden<B: Backend>(
        &self,
        batch: usize,
        length: usize,
        padding: Option<&Tensor<B, 2, Bool>>,
        device: &B::Device,
    ) -> Option<Tensor<B, 4, Bool>> {
        let shape = [batch, 1, length, length];
        let padding = padding.map(|padding| padding.clone().reshape([batch, 1, 1, length]).expand(shape));
        let Mask::Causal { window } = self.mask else { return padding };
        let window = window.unwrap_or(length);
        let hides = |from: usize, to: usize| to > from || to + window <= from;
        let causal: Vec<bool> =
            (0..length).flat_map(|from| (0..length).map(move |to| hides(from, to))).collect();
        let causal = Tensor::<B, 4, Bool>::from_data(TensorData::new(causal, [1, 1, length, length]), device);
        let causal = causal.expand(shape);
        Some(match padding {
            Some(padding) => causal.bool_or(padding),
            None => causal,
        })
    }
}

/// Attention of queries `[batch, heads, n, dim]` to keys and values `[batch, key heads, m, dim]`, as `[batch * n, heads * dim]`.
/// `hidden` `[batch, 1, n, m]` is true where nobody looks, `sinks` are `[1, heads]`.
pub(super) fn attend<B: Backend>(
    query: Tensor<B, 4>,
    key: Tensor<B, 4>,
    value: Tensor<B, 4>,
    hidden: Option<Tensor<B, 4, Bool>>,
    sinks: Option<Tensor<B, 2>>,
) -> Tensor<B, 2> {
    let [batch, heads, n, dim] = query.dims();
    let [_, key_heads, m, _] = key.dims();
    // Heads that share keys are rows of one product, so that keys need no copies.
    let rows = heads / key_heads * n;
    let query = query * (dim as f64).sqrt().recip();
    let scores = query.reshape([batch, key_heads, rows, dim]).matmul(key.swap_dims(2, 3));
    let mut scores = scores.reshape([batch, heads, n, m]);
    if let Some(hidden) = hidden {
        // The least number, not minus infinity: of a row that is hidden altogether no NaN comes.
        scores = scores.mask_fill(hidden.expand([batch, heads, n, m]), f32::MIN);
    }
    let shares = match sinks {
        Some(sinks) => {
            let sinks = sinks.reshape([1, heads, 1, 1]).expand([batch, heads, n, 1]);
            softmax(Tensor::cat(vec![scores, sinks], 3), 3).slice_dim(3, 0..m)
        }
        None => softmax(scores, 3),
    };
    let mixed = shares.reshape([batch, key_heads, rows, m]).matmul(value);
    mixed.reshape([batch, heads, n, dim]).swap_dims(1, 2).reshape([batch * n, heads * dim])
}
