//! What the language models have in common: normalisation by the root mean square, rotary embedding, heads that share keys.

use serde::Deserialize;

use super::Forward;
use super::attention::{Attention, Mask};
use super::block::{Block, Placement};
use super::config;
use super::embedding::{Embedding, TokenEmbedding};
use super::feed::{Activation, Feed, Mlp};
use super::head::{Head, Pool};
use super::linear::{Linear, Role};
use super::norm::Norm;
use super::rotary::RotaryConfig;
use super::stage::TensorSpec;
use super::tower::Tower;
use super::weights::Weights;
use crate::{Error, Result};

/// What `config.json` says of a language model.
#[derive(Debug, Clone, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "as the file has them")]
pub(super) struct Config {
    pub(super) model_type: String,
    pub(super) hidden_size: usize,
    pub(super) intermediate_size: usize,
    pub(super) num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    pub(super) hidden_act: Activation,
    rms_norm_eps: f64,
    vocab_size: usize,
    max_position_embeddings: Option<f64>,
    rope_theta: Option<f64>,
    rope_parameters: Option<RotaryConfig>,
    /// What older files call it.
    rope_scaling: Option<RotaryConfig>,
    #[serde(default)]
    pub(super) attention_bias: bool,
    #[serde(default)]
    pub(super) mlp_bias: bool,
    #[serde(default)]
    tie_word_embeddings: bool,
    pub(super) sliding_window: Option<usize>,
    #[serde(default)]
    pub(super) use_sliding_window: bool,
    pub(super) max_window_layers: Option<usize>,
    layer_types: Option<Vec<LayerType>>,
}

/// What a layer looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum LayerType {
    /// All that was before.
    FullAttention,
    /// A window.
    SlidingAttention,
}

impl Config {
    /// The window of a layer. `default` says which layers have it where the configuration does not.
    pub(super) fn window(&self, layer: usize, default: LayerType) -> Option<usize> {
        let stated = self.layer_types.as_ref().and_then(|types| types.get(layer));
        let sliding = *stated.unwrap_or(&default) == LayerType::SlidingAttention;
        self.sliding_window.filter(|_| sliding)
    }

    /// A network `{name}.gate_proj`, `up_proj` and `down_proj`.
    pub(super) fn gated(&self, name: &str, hidden: usize, parts: [&str; 3]) -> Mlp {
        let width = self.hidden_size;
        let linear = |part: &str, role, outputs, inputs| {
            Linear::new(&format!("{name}.{part}"), role, outputs, inputs, self.mlp_bias)
        };
        Mlp::Gated {
            gate: linear(parts[0], Role::Gate, hidden, width),
            up: linear(parts[1], Role::Up, hidden, width),
            activation: self.hidden_act,
            down: linear(parts[2], Role::Down, width, hidden),
        }
    }
}

/// The names of a gated network's parts, as most families have them.
pub(super) const GATED: [&str; 3] = ["gate_proj", "up_proj", "down_proj"];

/// What tells one family from another.
pub(super) struct Family<'f> {
    /// Queries and keys are normalised.
    pub(super) head_norms: bool,
    /// Heads have a sink.
    pub(super) sinks: bool,
    /// The window of a layer.
    pub(super) window: &'f dyn Fn(usize) -> Option<usize>,
    /// The feed-forward part of a layer, whose name is given too.
    pub(super) feed: &'f dyn Fn(usize, &str) -> Feed,
}

/// Describes a model.
pub(super) fn forward(config: &Config, weights: &dyn Weights, family: &Family<'_>) -> Result<Forward> {
    let width = config.hidden_size;
    let heads = config.num_attention_heads;
    let key_heads = config.num_key_value_heads.unwrap_or(heads);
    let head_dim = match config.head_dim {
        Some(dim) => dim,
        None => width / heads.max(1),
    };
    config::check_heads(heads * head_dim, heads, key_heads)?;
    if head_dim == 0 || !head_dim.is_multiple_of(2) {
        return Err(Error::input(format!("heads of {head_dim} dimensions cannot be rotated"))
            .remedy("take the configuration from the model's publisher"));
    }
    let rotary =
        config.rope_parameters.as_ref().or(config.rope_scaling.as_ref()).cloned().unwrap_or_default();
    let theta = rotary.rope_theta.or(config.rope_theta).unwrap_or(10_000.0);
    let rotary = rotary.rotary(head_dim, theta, config.max_position_embeddings)?;
    let norm = |name: &str, width| Norm::root_mean_square(name, width, config.rms_norm_eps);

    let block = |index: usize| {
        let name = format!("model.layers.{index}");
        let attention = format!("{name}.self_attn");
        let linear = |part: &str, role, outputs, inputs| {
            Linear::new(&format!("{attention}.{part}"), role, outputs, inputs, config.attention_bias)
        };
        let head_norm =
            |part: &str| family.head_norms.then(|| norm(&format!("{attention}.{part}"), head_dim));
        Block {
            placement: Placement::Before,
            attention_norm: norm(&format!("{name}.input_layernorm"), width),
            attention: Attention {
                query: linear("q_proj", Role::Query, heads * head_dim, width),
                key: linear("k_proj", Role::Key, key_heads * head_dim, width),
                value: linear("v_proj", Role::Value, key_heads * head_dim, width),
                output: linear("o_proj", Role::Output, width, heads * head_dim),
                heads,
                key_heads,
                query_norm: head_norm("q_norm"),
                key_norm: head_norm("k_norm"),
                rotary: Some(rotary.clone()),
                mask: Mask::Causal { window: (family.window)(index) },
                sinks: family.sinks.then(|| format!("{attention}.sinks")),
            },
            feed_norm: norm(&format!("{name}.post_attention_layernorm"), width),
            feed: (family.feed)(index, &name),
            name,
        }
    };
    let tokens = TensorSpec::new("model.embed_tokens.weight", &[config.vocab_size, width]);
    let mut projection = Linear::new("lm_head", Role::Projection, config.vocab_size, width, false);
    // Older configurations do not state that the output layer is the embedding, and leave it out.
    if config.tie_word_embeddings || !weights.has(&projection.tensor) {
        projection.tensor.clone_from(&tokens.name);
    }
    let tower = Tower {
        name: "decoder",
        embedding: Embedding::Tokens(TokenEmbedding { tokens, positions: None, types: None, norm: None }),
        blocks: (0..config.num_hidden_layers).map(block).collect(),
        head: Head {
            norm: Some(norm("model.norm", width)),
            pool: Pool::Each,
            projection: Some(projection),
            activation: None,
        },
        hides_padding: false,
    };
    Ok(Forward { model_type: config.model_type.clone(), towers: vec![tower], similarity: None })
}

/// Checks the number of experts that a token is sent to.
///
/// # Errors
/// If there are not so many.
pub(super) fn check_experts(chosen: usize, experts: usize) -> Result<()> {
    if chosen == 0 || chosen > experts {
        return Err(Error::input(format!("a token cannot be sent to {chosen} of {experts} experts"))
            .remedy("take the configuration from the model's publisher"));
    }
    Ok(())
}
