//! CLIP: a text and a vision tower with layer norms and biases.

use serde::Deserialize;
use serde_json::json;

use super::attention::{Attention, Mask};
use super::block::{Block, Placement};
use super::config::{self, TowerConfig};
use super::embedding::{Embedding, PatchEmbedding, TokenEmbedding};
use super::feed::{Feed, Mlp};
use super::head::{Head, Pool};
use super::linear::{Linear, Role};
use super::norm::Norm;
use super::stage::TensorSpec;
use super::tower::Tower;
use super::weights::Weights;
use super::{Forward, Similarity};
use crate::Result;

/// The end of a text where older configurations state another: they look for the largest token.
const UNTRUE_END: u32 = 2;

#[derive(Debug, Deserialize)]
struct Config {
    #[serde(default = "default_projection")]
    projection_dim: usize,
}

fn default_projection() -> usize {
    512
}

/// What CLIP's and `SigLIP`'s text towers state.
#[derive(Debug, Deserialize)]
pub(super) struct TextConfig {
    #[serde(flatten)]
    pub(super) tower: TowerConfig,
    pub(super) vocab_size: usize,
    pub(super) max_position_embeddings: usize,
    eos_token_id: Option<u32>,
    pub(super) projection_size: Option<usize>,
}

/// What CLIP's and `SigLIP`'s vision towers state.
#[derive(Debug, Deserialize)]
pub(super) struct VisionConfig {
    #[serde(flatten)]
    pub(super) tower: TowerConfig,
    pub(super) image_size: usize,
    pub(super) patch_size: usize,
    pub(super) num_channels: usize,
}

/// Describes a model.
pub(super) fn forward(config: &serde_json::Value, _: &dyn Weights) -> Result<Forward> {
    let Config { projection_dim } = config::of(config)?;
    let text = json!({
        "vocab_size": 49408, "max_position_embeddings": 77, "eos_token_id": 49407,
        "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8,
        "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
    });
    let vision = json!({
        "image_size": 224, "patch_size": 32, "num_channels": 3,
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
    });
    let text: TextConfig = config::part(config, "text_config", text)?;
    let vision: VisionConfig = config::part(config, "vision_config", vision)?;
    let projection =
        |name: &str, width| Some(Linear::new(name, Role::Projection, projection_dim, width, false));
    let text_width = text.tower.hidden_size;
    let end = text.eos_token_id.filter(|&id| id != UNTRUE_END);
    let text_tower = Tower {
        name: "text",
        blocks: blocks("text_model", &text.tower, Mask::Causal { window: None })?,
        head: Head {
            norm: Some(Norm::layer("text_model.final_layer_norm", text_width, text.tower.layer_norm_eps)),
            pool: end.map_or(Pool::LargestToken, Pool::Token),
            projection: projection("text_projection", text_width),
            activation: None,
        },
        embedding: text.embedding(),
        hides_padding: false,
    };
    let (width, epsilon) = (vision.tower.hidden_size, vision.tower.layer_norm_eps);
    let embedding = PatchEmbedding {
        class: Some(TensorSpec::new("vision_model.embeddings.class_embedding", &[width])),
        norm: Some(Norm::layer("vision_model.pre_layrnorm", width, epsilon)),
        ..vision.embedding(1, false)
    };
    let vision_tower = Tower {
        name: "vision",
        embedding: Embedding::Patches(embedding),
        blocks: blocks("vision_model", &vision.tower, Mask::Bidirectional)?,
        head: Head {
            norm: Some(Norm::layer("vision_model.post_layernorm", width, epsilon)),
            pool: Pool::First,
            projection: projection("visual_projection", width),
            activation: None,
        },
        hides_padding: false,
    };
    let scale = TensorSpec::new("logit_scale", &[]);
    Ok(Forward {
        model_type: "clip".to_owned(),
        towers: vec![text_tower, vision_tower],
        similarity: Some(Similarity { scale, bias: None }),
    })
}

impl TextConfig {
    pub(super) fn embedding(&self) -> Embedding {
        let table = |name: &str, rows| {
            TensorSpec::new(&format!("text_model.embeddings.{name}.weight"), &[rows, self.tower.hidden_size])
        };
        Embedding::Tokens(TokenEmbedding {
            tokens: table("token_embedding", self.vocab_size),
            positions: Some(table("position_embedding", self.max_position_embeddings)),
            types: None,
            norm: None,
        })
    }
}

impl VisionConfig {
    /// The embedding of patches, with this many positions besides them.
    pub(super) fn embedding(&self, others: usize, bias: bool) -> PatchEmbedding {
        let width = self.tower.hidden_size;
        let side = self.image_size / self.patch_size.max(1);
        let patch = Linear::new("vision_model.embeddings.patch_embedding", Role::Patch, width, 0, bias);
        PatchEmbedding {
            patch: Linear {
                shape: vec![width, self.num_channels, self.patch_size, self.patch_size],
                ..patch
            },
            image_size: self.image_size,
            class: None,
            positions: TensorSpec::new(
                "vision_model.embeddings.position_embedding.weight",
                &[side * side + others, width],
            ),
            norm: None,
        }
    }
}

/// The blocks of a tower of CLIP and `SigLIP`.
pub(super) fn blocks(tower: &str, config: &TowerConfig, mask: Mask) -> Result<Vec<Block>> {
    let TowerConfig { hidden_size: width, num_attention_heads: heads, .. } = *config;
    config::check_heads(width, heads, heads)?;
    let block = |index: usize| {
        let name = format!("{tower}.encoder.layers.{index}");
        let norm = |part: &str| Norm::layer(&format!("{name}.{part}"), width, config.layer_norm_eps);
        let linear =
            |part: &str, role| Linear::new(&format!("{name}.self_attn.{part}"), role, width, width, true);
        Block {
            placement: Placement::Before,
            attention_norm: norm("layer_norm1"),
            attention: Attention {
                query: linear("q_proj", Role::Query),
                key: linear("k_proj", Role::Key),
                value: linear("v_proj", Role::Value),
                output: linear("out_proj", Role::Output),
                heads,
                key_heads: heads,
                query_norm: None,
                key_norm: None,
                rotary: None,
                mask,
                sinks: None,
            },
            feed_norm: norm("layer_norm2"),
            feed: Feed::Dense(mlp(&format!("{name}.mlp"), config)),
            name,
        }
    };
    Ok((0..config.num_hidden_layers).map(block).collect())
}

/// A feed-forward network of CLIP and `SigLIP`.
pub(super) fn mlp(name: &str, config: &TowerConfig) -> Mlp {
    let (width, hidden) = (config.hidden_size, config.intermediate_size);
    Mlp::Plain {
        up: Linear::new(&format!("{name}.fc1"), Role::Up, hidden, width, true),
        activation: config.hidden_act,
        down: Linear::new(&format!("{name}.fc2"), Role::Down, width, hidden, true),
    }
}
