//! Feed-forward networks of blocks, and mixtures of experts.

use burn::tensor::activation::{gelu, relu, sigmoid, silu, softmax};
use burn::tensor::backend::Backend;
use burn::tensor::{IndexingUpdateOp, Int, Tensor, TensorData};
use serde::Deserialize;

use super::linear::{Linear, Taps};
use super::stage::TensorSpec;
use crate::parameters::{Parameters, values};

/// What hidden units do. In configurations they have these names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// x sigmoid(1.702 x)
    QuickGelu,
    /// x times the share of normal numbers below x
    Gelu,
    /// That, by its approximation with tanh
    #[serde(rename = "gelu_pytorch_tanh", alias = "gelu_new", alias = "gelu_fast")]
    GeluTanh,
    /// max(x, 0)
    Relu,
    /// x sigmoid(x)
    #[serde(alias = "swish")]
    Silu,
    /// tanh
    Tanh,
}

impl Activation {
    pub(super) fn apply<B: Backend>(self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        match self {
            Self::QuickGelu => swish(x, 1.702),
            Self::Gelu => gelu(x),
            Self::GeluTanh => {
                let cube = x.clone().square() * x.clone();
                let inner = (x.clone() + cube * 0.044_715) * (2.0 / std::f64::consts::PI).sqrt();
                x * (inner.tanh() + 1.0) * 0.5
            }
            Self::Relu => relu(x),
            Self::Silu => silu(x),
            Self::Tanh => x.tanh(),
        }
    }
}

/// x sigmoid(gain x)
fn swish<B: Backend>(x: Tensor<B, 2>, gain: f64) -> Tensor<B, 2> {
    x.clone() * sigmoid(x * gain)
}

/// A feed-forward network.
#[derive(Debug, Clone, PartialEq)]
pub enum Mlp {
    /// down(activation(up(x)))
    Plain {
        /// Into hidden units.
        up: Linear,
        /// What they do.
        activation: Activation,
        /// Out of them.
        down: Linear,
    },
    /// down(activation(gate(x)) up(x))
    Gated {
        /// What lets hidden units through.
        gate: Linear,
        /// Into hidden units.
        up: Linear,
        /// Of the gate.
        activation: Activation,
        /// Out of hidden units.
        down: Linear,
    },
    /// That of GPT-OSS: gates and units alternate and are limited, units have one added.
    Clamped {
        /// Gates at even places, hidden units at odd ones.
        gate_up: Linear,
        /// Out of hidden units.
        down: Linear,
        /// The most that a gate may be, and a hidden unit either way.
        limit: f64,
        /// Gain inside of the gate's sigmoid.
        gain: f64,
    },
}

impl Mlp {
    /// Its linear maps by what they share.
    pub(super) fn groups(&self) -> [Vec<&Linear>; 2] {
        match self {
            Self::Plain { up, down, .. } => [vec![up], vec![down]],
            Self::Gated { gate, up, down, .. } => [vec![gate, up], vec![down]],
            Self::Clamped { gate_up, down, .. } => [vec![gate_up], vec![down]],
        }
    }

    /// As that of an expert.
    pub(super) fn of_expert(mut self, expert: usize) -> Self {
        let linears = match &mut self {
            Self::Plain { up, down, .. } => vec![up, down],
            Self::Gated { gate, up, down, .. } => vec![gate, up, down],
            Self::Clamped { gate_up, down, .. } => vec![gate_up, down],
        };
        linears.into_iter().for_each(|linear| linear.expert = Some(expert));
        self
    }

    /// Outputs of inputs `[tokens, width]`.
    pub(super) fn forward<B: Backend>(
        &self,
        parameters: &Parameters<B>,
        x: Tensor<B, 2>,
        taps: &mut dyn Taps<B>,
    ) -> Tensor<B, 2> {
        let [first, last] = self.groups();
        taps.inputs(&first, &x);
        let (hidden, down) = match self {
            Self::Plain { up, activation, down } => (activation.apply(up.apply(parameters, x, taps)), down),
            Self::Gated { gate, up, activation, down } => {
                let gates = activation.apply(gate.apply(parameters, x.clone(), taps));
                (gates * up.apply(parameters, x, taps), down)
            }
            Self::Clamped { gate_up, down, limit, gain } => {
                let both = gate_up.apply(parameters, x, taps);
                let [tokens, twice] = both.dims();
                let pairs = both.reshape([tokens, twice / 2, 2]);
                let half = |at: usize| pairs.clone().slice_dim(2, at..at + 1).reshape([tokens, twice / 2]);
                let gates = swish(half(0).clamp_max(*limit), *gain);
                (gates * (half(1).clamp(-limit, *limit) + 1.0), down)
            }
        };
        taps.inputs(&last, &hidden);
        down.apply(parameters, hidden, taps)
    }
}

/// How experts are chosen and weighed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Routing {
    /// Shares are a softmax over all experts.
    SoftmaxOfAll {
        /// Those of the chosen are scaled to a sum of one.
        renormalised: bool,
    },
    /// Shares are a softmax over the chosen.
    SoftmaxOfChosen,
}

/// A mixture of experts.
#[derive(Debug, Clone, PartialEq)]
pub struct Experts {
    /// Its outputs say how good each expert is for a token.
    pub router: Linear,
    /// How many a token is sent to.
    pub chosen: usize,
    /// How they are weighed.
    pub routing: Routing,
    /// The experts.
    pub experts: Vec<Mlp>,
}

impl Experts {
    /// Outputs of inputs `[tokens, width]`.
    fn forward<B: Backend>(
        &self,
        parameters: &Parameters<B>,
        x: &Tensor<B, 2>,
        taps: &mut dyn Taps<B>,
    ) -> Tensor<B, 2> {
        let device = x.device();
        taps.inputs(&[&self.router], x);
        let logits = self.router.apply(parameters, x.clone(), taps);
        let [tokens, count] = logits.dims();
        let routes = self.routes(&values(&logits), tokens);
        let mut chosen = vec![0.0_f32; tokens * count];
        for (expert, routed) in routes.iter().enumerate() {
            routed.iter().for_each(|&token| chosen[token as usize * count + expert] = 1.0);
        }
        let chosen = Tensor::<B, 2>::from_data(TensorData::new(chosen, [tokens, count]), &device);
        let shares = match self.routing {
            Routing::SoftmaxOfAll { renormalised } => {
                let shares = softmax(logits, 1) * chosen;
                if renormalised { shares.clone() / shares.sum_dim(1) } else { shares }
            }
            Routing::SoftmaxOfChosen => softmax(logits.mask_fill(chosen.equal_elem(0.0), f32::MIN), 1),
        };
        let mut sum = x.zeros_like();
        for (expert, (network, routed)) in self.experts.iter().zip(routes).enumerate() {
            let length = routed.len();
            if length == 0 {
                continue;
            }
            let routed = Tensor::<B, 1, Int>::from_data(TensorData::new(routed, [length]), &device);
            let y = network.forward(parameters, x.clone().select(0, routed.clone()), taps);
            let share = shares.clone().slice_dim(1, expert..expert + 1).select(0, routed.clone());
            sum = sum.select_assign(0, routed, y * share, IndexingUpdateOp::Add);
        }
        sum
    }

    /// The tokens that are sent to each expert: of each row of logits to the largest, of equal ones to the first.
    fn routes(&self, logits: &[f32], tokens: usize) -> Vec<Vec<i64>> {
        let count = self.experts.len();
        let mut routes = vec![Vec::new(); count];
        let mut order: Vec<usize> = (0..count).collect();
        for token in 0..tokens {
            let row = &logits[token * count..][..count];
            order.sort_by(|&a, &b| row[b].total_cmp(&row[a]).then(a.cmp(&b)));
            order[..self.chosen].iter().for_each(|&expert| routes[expert].push(token as i64));
        }
        routes
    }
}

/// The feed-forward part of a block.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "a model has few, and they stay where they are")]
pub enum Feed {
    /// One network.
    Dense(Mlp),
    /// Experts.
    Sparse(Experts),
}

impl Feed {
    /// Its linear maps by what they share.
    pub(super) fn groups(&self) -> Vec<Vec<&Linear>> {
        match self {
            Self::Dense(mlp) => mlp.groups().into(),
            Self::Sparse(experts) => {
                let router = std::iter::once(vec![&experts.router]);
                router.chain(experts.experts.iter().flat_map(Mlp::groups)).collect()
            }
        }
    }

    /// The tensors that it takes.
    pub(super) fn tensors(&self) -> Vec<TensorSpec> {
        self.groups().concat().into_iter().flat_map(Linear::tensors).collect()
    }

    /// Outputs of inputs `[tokens, width]`.
    pub(super) fn forward<B: Backend>(
        &self,
        parameters: &Parameters<B>,
        x: Tensor<B, 2>,
        taps: &mut dyn Taps<B>,
    ) -> Tensor<B, 2> {
        match self {
            Self::Dense(mlp) => mlp.forward(parameters, x, taps),
            Self::Sparse(experts) => experts.forward(parameters, &x, taps),
        }
    }
}
