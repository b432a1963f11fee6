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
