//! Qwen3: queries and keys are normalised.

use super::Forward;
use super::config;
use super::decoder::{self, Config, Family, GATED, LayerType};
use super::feed::Feed;
use super::weights::Weights;
use crate::Result;

/// Describes a model.
pub(super) fn forward(config: &serde_json::Value, weights: &dyn Weights) -> Result<Forward> {
    let config: Config = config::of(config)?;
    let window = |layer: usize| {
        let first = config.max_window_layers.unwrap_or(usize::MAX);
        let default = if layer < first { LayerType::FullAttention } else { LayerType::SlidingAttention };
        config.window(layer, default).filter(|_| config.use_sliding_window)
    };
    let feed =
        |_, name: &str| Feed::Dense(config.gated(&format!("{name}.mlp"), config.intermediate_size, GATED));
    let family = Family { head_norms: true, sinks: false, window: &window, feed: &feed };
    decoder::forward(&config, weights, &family)
}
