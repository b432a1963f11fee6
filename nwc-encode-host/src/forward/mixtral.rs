//! Mixtral: experts in every block.

use serde::Deserialize;

use super::Forward;
use super::config;
use super::decoder::{self, Config, Family, LayerType};
use super::feed::{Experts, Feed, Routing};
use super::linear::{Linear, Role};
use super::weights::Weights;
use crate::Result;

#[derive(Debug, Deserialize)]
struct Mixture {
    num_local_experts: usize,
    num_experts_per_tok: usize,
}

/// Describes a model.
pub(super) fn forward(json: &serde_json::Value, weights: &dyn Weights) -> Result<Forward> {
    let config: Config = config::of(json)?;
    let Mixture { num_local_experts: count, num_experts_per_tok: chosen } = config::of(json)?;
    decoder::check_experts(chosen, count)?;
    let feed = |_, name: &str| {
        let name = format!("{name}.block_sparse_moe");
        let expert = |index: usize| {
            let name = format!("{name}.experts.{index}");
            config.gated(&name, config.intermediate_size, ["w1", "w3", "w2"]).of_expert(index)
        };
        Feed::Sparse(Experts {
            router: Linear::new(&format!("{name}.gate"), Role::Router, count, config.hidden_size, false),
            chosen,
            routing: Routing::SoftmaxOfAll { renormalised: true },
            experts: (0..count).map(expert).collect(),
        })
    };
    let window = |layer| config.window(layer, LayerType::SlidingAttention);
    let family = Family { head_norms: false, sinks: false, window: &window, feed: &feed };
    decoder::forward(&config, weights, &family)
}
