//! Attention: heads that share keys and values, windows, sinks.

use burn::tensor::activation::softmax;
use burn::tensor::backend::Backend;
use burn::tensor::{Bool, Tensor, TensorData};

use super::linear::{Linear, Taps};
use super::norm::Norm;
use super::rotary::Rotary;
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
        let mut heads = |linear: &Linear, count: usize, norm: Option<&Norm>, rotary: Option<&Rotary>| {
            let y = linear.apply(parameters, x.clone(), taps);
            let dim = linear.outputs() / count;
            let mut y = y.reshape([tokens * count, dim]);
            if let Some(norm) = norm {
                y = norm.apply(parameters, y);
            }
            if let Some(rotary) = rotary {
                y = rotary.turns(length, count, &x.device()).apply(y);
            }
            y.reshape([batch, length, count, dim]).swap_dims(1, 2)
        };
        let rotary = self.rotary.as_ref();
        let query = heads(&self.query, self.heads, self.query_norm.as_ref(), rotary);
        let key = heads(&self.key, self.key_heads, self.key_norm.as_ref(), rotary);
        let value = heads(&self.value, self.key_heads, None, None);
        let hidden = Hidden {
            order: self.order(length, &x.device()),
            padding: padding.map(|padding| padding.clone().reshape([batch, 1, 1, length])),
        };
        let sinks = self.sinks.as_ref().map(|name| parameters.get(name));
        let joined = attend(query, key, value, hidden, sinks);
        taps.inputs(&self.groups()[1], &joined);
        self.output.apply(parameters, joined, taps)
    }

    /// What is added to the scores of each position `[1, from * to]` because of their order; none if all look at all.
    fn order<B: Backend>(&self, length: usize, device: &B::Device) -> Option<Tensor<B, 2>> {
        let Mask::Causal { window } = self.mask else { return None };
        let window = window.unwrap_or(length);
        let hides = |from: usize, to: usize| to > from || to + window <= from;
        // Every position looks at itself, so that infinities leave something.
        let added = |from, to| if hides(from, to) { f32::NEG_INFINITY } else { 0.0 };
        let added: Vec<f32> =
            (0..length).flat_map(|from| (0..length).map(move |to| added(from, to))).collect();
        Some(Tensor::from_data(TensorData::new(added, [1, length * length]), device))
    }
}

/// What nobody looks at.
pub(super) struct Hidden<B: Backend> {
    /// Added to scores, `[1, n * m]`: minus infinity where nobody looks.
    pub(super) order: Option<Tensor<B, 2>>,
    /// True where nobody looks, `[batch, 1, 1, m]`.
    pub(super) padding: Option<Tensor<B, 4, Bool>>,
}

impl<B: Backend> Hidden<B> {
    /// All look at all.
    pub(super) fn nothing() -> Self {
        Self { order: None, padding: None }
    }
}

/// Attention of queries `[batch, heads, n, dim]` to keys and values `[batch, key heads, m, dim]`, as `[batch * n, heads * dim]`.
/// `sinks` are `[1, heads]`.
pub(super) fn attend<B: Backend>(
    query: Tensor<B, 4>,
    key: Tensor<B, 4>,
    value: Tensor<B, 4>,
    hidden: Hidden<B>,
    sinks: Option<Tensor<B, 2>>,
) -> Tensor<B, 2> {
    let [batch, heads, n, dim] = query.dims();
    let [_, key_heads, m, _] = key.dims();
    // Heads that share keys are rows of one product, so that keys need no copies.
    let rows = heads / key_heads * n;
    let query = query * (dim as f64).sqrt().recip();
    let scores = query.reshape([batch, key_heads, rows, dim]).matmul(key.swap_dims(2, 3));
    // Rows of all scores of a head: sums with one row are much faster than masks that have to be spread out.
    let scores = match hidden.order {
        Some(order) => scores.reshape([batch * heads, n * m]) + order,
        None => scores.reshape([batch * heads, n * m]),
    };
    let mut scores = scores.reshape([batch, heads, n, m]);
    if let Some(padding) = hidden.padding {
        // The least number, not minus infinity: of a row that is hidden altogether no NaN comes.
        scores = scores.mask_fill(padding.expand([batch, heads, n, m]), f32::MIN);
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
