//! GPT-OSS: sinks, windows in every other block, experts in stacked tensors, in MXFP4 as published.

use serde::Deserialize;

use super::Forward;
use super::config;
use super::decoder::{self, Config, Family, LayerType};
use super::feed::{Experts, Feed, Mlp, Routing};
use super::linear::{Linear, Part, Role};
use super::weights::Weights;
use crate::Result;

#[derive(Debug, Deserialize)]
struct Mixture {
    num_local_experts: usize,
    num_experts_per_tok: usize,
    #[serde(default = "default_limit")]
    swiglu_limit: f64,
    #[serde(default = "default_gain")]
    swiglu_alpha: f64,
}

fn default_limit() -> f64 {
    7.0
}

fn default_gain() -> f64 {
    1.702
}

/// Describes a model.
pub(super) fn forward(json: &serde_json::Value, weights: &dyn Weights) -> Result<Forward> {
    let config: Config = config::of(json)?;
    let mixture: Mixture = config::of(json)?;
    let (count, chosen) = (mixture.num_local_experts, mixture.num_experts_per_tok);
    decoder::check_experts(chosen, count)?;
    let (width, hidden) = (config.hidden_size, config.intermediate_size);
    let feed = |_, name: &str| {
        let name = format!("{name}.mlp");
        let stacked = |part: &str, role, inputs, outputs, index| Linear {
            tensor: format!("{name}.experts.{part}"),
            shape: vec![count, inputs, outputs],
            part: Part::Stacked(index),
            bias: Some(format!("{name}.experts.{part}_bias")),
            role,
            expert: Some(index),
        };
        let expert = |index: usize| Mlp::Clamped {
            gate_up: stacked("gate_up_proj", Role::GateUp, width, 2 * hidden, index),
            down: stacked("down_proj", Role::Down, hidden, width, index),
            limit: mixture.swiglu_limit,
            gain: mixture.swiglu_alpha,
        };
        Feed::Sparse(Experts {
            router: Linear::new(&format!("{name}.router"), Role::Router, count, width, true),
            chosen,
            routing: Routing::SoftmaxOfChosen,
            experts: (0..count).map(expert).collect(),
        })
    };
    let window = |layer: usize| {
        let every_other = [LayerType::SlidingAttention, LayerType::FullAttention];
        config.window(layer, every_other[layer % 2])
    };
    let family = Family { head_norms: false, sinks: true, window: &window, feed: &feed };
    decoder::forward(&config, weights, &family)
}
