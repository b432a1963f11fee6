//! Llama.

use super::Forward;
use super::config;
use super::decoder::{self, Config, Family, GATED};
use super::feed::Feed;
use super::weights::Weights;
use crate::Result;

/// Describes a model.
pub(super) fn forward(config: &serde_json::Value, weights: &dyn Weights) -> Result<Forward> {
    let config: Config = config::of(config)?;
    let feed =
        |_, name: &str| Feed::Dense(config.gated(&format!("{name}.mlp"), config.intermediate_size, GATED));
    let family = Family { head_norms: false, sinks: false, window: &|_| None, feed: &feed };
    decoder::forward(&config, weights, &family)
}
