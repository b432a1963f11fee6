//! `SigLIP`: as CLIP, but texts look both ways, and images are pooled by attention.

use serde_json::json;

use super::attention::Mask;
use super::clip::{TextConfig, VisionConfig, blocks, mlp};
use super::config::{self, TowerConfig};
use super::embedding::Embedding;
use super::head::{Head, Pool, Probe};
use super::linear::{Linear, Part, Role};
use super::norm::Norm;
use super::stage::TensorSpec;
use super::tower::Tower;
use super::weights::Weights;
use super::{Forward, Similarity};
use crate::Result;

/// Describes a model.
pub(super) fn forward(config: &serde_json::Value, _: &dyn Weights) -> Result<Forward> {
    let text = json!({
        "vocab_size": 32000, "max_position_embeddings": 64,
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6,
    });
    let vision = json!({
        "image_size": 224, "patch_size": 16, "num_channels": 3,
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6,
    });
    let text: TextConfig = config::part(config, "text_config", text)?;
    let vision: VisionConfig = config::part(config, "vision_config", vision)?;
    let width = text.tower.hidden_size;
    let out = text.projection_size.unwrap_or(width);
    let text_tower = Tower {
        name: "text",
        embedding: text.embedding(),
        blocks: blocks("text_model", &text.tower, Mask::Bidirectional)?,
        head: Head {
            norm: Some(Norm::layer("text_model.final_layer_norm", width, text.tower.layer_norm_eps)),
            pool: Pool::Last,
            projection: Some(Linear::new("text_model.head", Role::Projection, out, width, true)),
            activation: None,
        },
        hides_padding: false,
    };
    let (width, epsilon) = (vision.tower.hidden_size, vision.tower.layer_norm_eps);
    let vision_tower = Tower {
        name: "vision",
        embedding: Embedding::Patches(vision.embedding(0, true)),
        blocks: blocks("vision_model", &vision.tower, Mask::Bidirectional)?,
        head: Head {
            norm: Some(Norm::layer("vision_model.post_layernorm", width, epsilon)),
            pool: Pool::Probe(Box::new(probe("vision_model.head", &vision.tower))),
            projection: None,
            activation: None,
        },
        hides_padding: false,
    };
    let number = |name: &str| TensorSpec::new(name, &[1]);
    Ok(Forward {
        model_type: "siglip".to_owned(),
        towers: vec![text_tower, vision_tower],
        similarity: Some(Similarity { scale: number("logit_scale"), bias: Some(number("logit_bias")) }),
    })
}

/// The pooling of images: one tensor holds queries, keys and values.
fn probe(name: &str, config: &TowerConfig) -> Probe {
    let width = config.hidden_size;
    let attention = |index: usize, role| Linear {
        tensor: format!("{name}.attention.in_proj_weight"),
        shape: vec![3 * width, width],
        part: Part::Rows(index * width..(index + 1) * width),
        bias: Some(format!("{name}.attention.in_proj_bias")),
        role,
        expert: None,
    };
    Probe {
        probe: TensorSpec::new(&format!("{name}.probe"), &[1, 1, width]),
        query: attention(0, Role::Query),
        key: attention(1, Role::Key),
        value: attention(2, Role::Value),
        output: Linear::new(&format!("{name}.attention.out_proj"), Role::Output, width, width, true),
        heads: config.num_attention_heads,
        norm: Norm::layer(&format!("{name}.layernorm"), width, config.layer_norm_eps),
        mlp: mlp(&format!("{name}.mlp"), config),
    }
}
