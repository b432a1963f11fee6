//! BERT: a text encoder that normalises after each part and looks both ways.

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
use super::stage::TensorSpec;
use super::tower::Tower;
use super::weights::Weights;
use crate::{Error, Result};

#[derive(Debug, Deserialize)]
struct Config {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    hidden_act: Activation,
    layer_norm_eps: f64,
    vocab_size: usize,
    max_position_embeddings: usize,
    type_vocab_size: usize,
    #[serde(default)]
    is_decoder: bool,
    position_embedding_type: Option<String>,
}

/// Describes a model. Its head is the pooler where there is one, else it puts out the last hidden state.
pub(super) fn forward(config: &serde_json::Value, weights: &dyn Weights) -> Result<Forward> {
    let config: Config = config::of(config)?;
    let relative = config.position_embedding_type.as_deref().is_some_and(|kind| kind != "absolute");
    if config.is_decoder || relative {
        return Err(Error::input("BERT as a decoder, or with relative positions, is not supported")
            .remedy("give an encoder with absolute positions"));
    }
    config::check_heads(config.hidden_size, config.num_attention_heads, config.num_attention_heads)?;
    let prefix = config::prefix(weights, &["", "bert."], "embeddings.word_embeddings.weight");
    let width = config.hidden_size;
    let table = |name: &str, rows| {
        TensorSpec::new(&format!("{prefix}embeddings.{name}_embeddings.weight"), &[rows, width])
    };
    let embedding = TokenEmbedding {
        tokens: table("word", config.vocab_size),
        positions: Some(table("position", config.max_position_embeddings)),
        types: Some(table("token_type", config.type_vocab_size)),
        norm: Some(Norm::layer(&format!("{prefix}embeddings.LayerNorm"), width, config.layer_norm_eps)),
    };
    let pooler = format!("{prefix}pooler.dense");
    let pooled = weights.has(&format!("{pooler}.weight"));
    let head = Head {
        norm: None,
        pool: if pooled { Pool::First } else { Pool::Each },
        projection: pooled.then(|| Linear::new(&pooler, Role::Projection, width, width, true)),
        activation: pooled.then_some(Activation::Tanh),
    };
    let tower = Tower {
        name: "encoder",
        embedding: Embedding::Tokens(embedding),
        blocks: (0..config.num_hidden_layers).map(|index| block(prefix, index, &config)).collect(),
        head,
        hides_padding: true,
    };
    Ok(Forward { model_type: "bert".to_owned(), towers: vec![tower], similarity: None })
}

fn block(prefix: &str, index: usize, config: &Config) -> Block {
    let name = format!("{prefix}encoder.layer.{index}");
    let (width, hidden) = (config.hidden_size, config.intermediate_size);
    let norm = |part: &str| Norm::layer(&format!("{name}.{part}.LayerNorm"), width, config.layer_norm_eps);
    let linear = |part: &str, role, outputs, inputs| {
        Linear::new(&format!("{name}.{part}"), role, outputs, inputs, true)
    };
    Block {
        placement: Placement::After,
        attention_norm: norm("attention.output"),
        attention: Attention {
            query: linear("attention.self.query", Role::Query, width, width),
            key: linear("attention.self.key", Role::Key, width, width),
            value: linear("attention.self.value", Role::Value, width, width),
            output: linear("attention.output.dense", Role::Output, width, width),
            heads: config.num_attention_heads,
            key_heads: config.num_attention_heads,
            query_norm: None,
            key_norm: None,
            rotary: None,
            mask: Mask::Bidirectional,
            sinks: None,
        },
        feed_norm: norm("output"),
        feed: Feed::Dense(Mlp::Plain {
            up: linear("intermediate.dense", Role::Up, hidden, width),
            activation: config.hidden_act,
            down: linear("output.dense", Role::Down, width, hidden),
        }),
        name,
    }
}
