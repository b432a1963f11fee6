//! Qwen3-MoE: as Qwen3, with experts in some blocks.

use serde::Deserialize;

use super::Forward;
use super::config;
use super::decoder::{self, Config, Family, GATED, LayerType};
use super::feed::{Experts, Feed, Routing};
use super::linear::{Linear, Role};
use super::weights::Weights;
use crate::Result;

#[derive(Debug, Deserialize)]
struct Mixture {
    num_experts: Option<usize>,
    /// What newer files call it.
    num_local_experts: Option<usize>,
    num_experts_per_tok: usize,
    moe_intermediate_size: usize,
    #[serde(default)]
    norm_topk_prob: bool,
    /// Of so many blocks the last one has experts.
    decoder_sparse_step: Option<usize>,
    /// Blocks without experts.
    #[serde(default)]
    mlp_only_layers: Vec<usize>,
}

/// Describes a model.
pub(super) fn forward(json: &serde_json::Value, weights: &dyn Weights) -> Result<Forward> {
    let config: Config = config::of(json)?;
    let mixture: Mixture = config::of(json)?;
    let count = mixture.num_experts.or(mixture.num_local_experts).unwrap_or(0);
    let chosen = mixture.num_experts_per_tok;
    let step = mixture.decoder_sparse_step.unwrap_or(1).max(1);
    let is_sparse = |layer: usize| {
        count > 0 && (layer + 1).is_multiple_of(step) && !mixture.mlp_only_layers.contains(&layer)
    };
    if count > 0 {
        decoder::check_experts(chosen, count)?;
    }
    let feed = |layer, name: &str| {
        let name = format!("{name}.mlp");
        if !is_sparse(layer) {
            return Feed::Dense(config.gated(&name, config.intermediate_size, GATED));
        }
        let expert = |index: usize| {
            let name = format!("{name}.experts.{index}");
            config.gated(&name, mixture.moe_intermediate_size, GATED).of_expert(index)
        };
        Feed::Sparse(Experts {
            router: Linear::new(&format!("{name}.gate"), Role::Router, count, config.hidden_size, false),
            chosen,
            routing: Routing::SoftmaxOfAll { renormalised: mixture.norm_topk_prob },
            experts: (0..count).map(expert).collect(),
        })
    };
    // Unlike Qwen3, it has a window in all blocks or in none.
    let window =
        |layer| config.window(layer, LayerType::SlidingAttention).filter(|_| config.use_sliding_window);
    let family = Family { head_norms: true, sinks: false, window: &window, feed: &feed };
    decoder::forward(&config, weights, &family)
}
