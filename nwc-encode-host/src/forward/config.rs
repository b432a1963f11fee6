//! Reading `config.json`.

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::feed::Activation;
use super::weights::Weights;
use crate::{Error, Result};

/// Reads JSON from bytes.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(unreadable)
}

/// Reads what a family wants of a configuration.
pub(super) fn of<T: DeserializeOwned>(config: &serde_json::Value) -> Result<T> {
    T::deserialize(config).map_err(unreadable)
}

/// Reads what a family wants of a part of a configuration, in which files leave out what is as these defaults.
pub(super) fn part<T: DeserializeOwned>(
    config: &serde_json::Value,
    name: &str,
    mut defaults: serde_json::Value,
) -> Result<T> {
    let stated = config.get(name).and_then(serde_json::Value::as_object);
    for (key, value) in stated.into_iter().flatten() {
        defaults[key] = value.clone();
    }
    of(&defaults)
}

/// The most blocks, heads or experts of a model.
const MOST_PARTS: u64 = 1024;
/// What counts them.
const COUNTS: [&str; 7] = [
    "num_attention_heads",
    "num_channels",
    "num_experts",
    "num_experts_per_tok",
    "num_hidden_layers",
    "num_key_value_heads",
    "num_local_experts",
];

/// The longest dimension of a tensor.
const LONGEST: u64 = 1 << 24;
/// What states dimensions.
const SIZES: [&str; 11] = [
    "head_dim",
    "hidden_size",
    "image_size",
    "intermediate_size",
    "max_position_embeddings",
    "moe_intermediate_size",
    "patch_size",
    "projection_dim",
    "projection_size",
    "type_vocab_size",
    "vocab_size",
];

/// Checks counts and sizes, everywhere in a configuration: a model is described, and its dimensions are multiplied, before its weights are looked at.
///
/// # Errors
/// If one is beyond what any model has, or a size is zero.
pub(super) fn check_sizes(config: &serde_json::Value) -> Result<()> {
    for (key, value) in config.as_object().into_iter().flatten() {
        let allowed = if COUNTS.contains(&key.as_str()) {
            0..=MOST_PARTS
        } else if SIZES.contains(&key.as_str()) {
            1..=LONGEST
        } else {
            check_sizes(value)?;
            continue;
        };
        if value.as_u64().is_some_and(|value| !allowed.contains(&value)) {
            return Err(Error::input(format!(
                "{key} is {value}, which is not between {} and {}",
                allowed.start(),
                allowed.end()
            ))
            .remedy("take the file from the model's publisher"));
        }
    }
    Ok(())
}

fn unreadable(error: serde_json::Error) -> Error {
    Error::input(format!("cannot be used as a configuration: {error}"))
        .remedy("take the file from the model's publisher")
        .source(error)
}

/// What `config.json` says of a tower of CLIP and `SigLIP`.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct TowerConfig {
    pub(super) hidden_size: usize,
    pub(super) intermediate_size: usize,
    pub(super) num_hidden_layers: usize,
    pub(super) num_attention_heads: usize,
    pub(super) hidden_act: Activation,
    pub(super) layer_norm_eps: f64,
}

/// Checks that heads share keys and widths evenly.
///
/// # Errors
/// If not.
pub(super) fn check_heads(width: usize, heads: usize, key_heads: usize) -> Result<()> {
    if heads == 0 || key_heads == 0 || !width.is_multiple_of(heads) || !heads.is_multiple_of(key_heads) {
        return Err(Error::input(format!(
            "a width of {width}, {heads} heads and {key_heads} heads of keys do not go together"
        ))
        .remedy("take the configuration from the model's publisher"));
    }
    Ok(())
}

/// The first of these prefixes that, before `name`, is a tensor's name: models are published with and without the name of an outer module.
pub(super) fn prefix<'p>(weights: &dyn Weights, prefixes: &[&'p str], name: &str) -> &'p str {
    let found = prefixes.iter().find(|prefix| weights.has(&format!("{prefix}{name}")));
    found.unwrap_or(&prefixes[0])
}
