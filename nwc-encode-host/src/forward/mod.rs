//! Runs transformer models, in f32: for calibration, fine-tuning and evaluation.
//!
//! A model is described by data: a [`Tower`] is an [`Embedding`], [`Block`]s that differ in their [`Attention`], [`Feed`] and [`Norm`]s alone,
//! and a [`Head`]. One file a family reads `config.json` and says which tensors make up each of them. Each of these is a [`Stage`]: it lists
//! its linear maps, loads its tensors into a map by name, and is run with such a map, so that a tensor can be replaced or tracked, and
//! no more than one block need be in memory. [`Weights`] come from a model folder, a container, or replacements over either.
//!
//! ```
//! use burn::backend::Flex;
//! use nwc_encode_host::forward::{Forward, NoTaps, Stage, Tokens};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let folder = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/clip-mini"));
//! let (model, weights) = Forward::open(folder)?;
//! let device = Default::default();
//!
//! // Block by block, with one block's tensors in memory.
//! let text = model.tower("text")?;
//! let tokens = Tokens::new(vec![2, 4, 12, 84], 4)?;
//! let embedding = text.embedding.load::<Flex>(&weights, &device)?;
//! let mut hidden = text.embedding.forward(&embedding, &tokens.clone().into(), &device, &mut NoTaps)?;
//! for block in &text.blocks {
//!     let parameters = block.load(&weights, &device)?;
//!     hidden = block.forward(&parameters, hidden, None, &mut NoTaps);
//! }
//!
//! // All at once.
//! let embeds = model.load::<Flex>(&weights, &device)?.text_embeds(tokens)?;
//! assert_eq!(embeds.dims(), [1, 64]);
//! # Ok(())
//! # }
//! ```

mod attention;
mod bert;
mod block;
mod clip;
mod config;
mod decoder;
mod embedding;
mod feed;
mod gpt_oss;
mod head;
mod input;
mod linear;
mod llama;
mod mixtral;
mod mxfp4;
mod norm;
pub mod preprocess;
mod qwen3;
mod qwen3_moe;
mod resize;
mod rotary;
mod siglip;
mod stage;
mod stream;
pub mod tokenizer;
mod tower;
mod weights;

use std::path::Path;

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use crate::model::Model;
use crate::parameters::{HostTensor, Parameters};
use crate::{Error, Result};

pub use attention::{Attention, Mask};
pub use block::{Block, Placement};
pub use embedding::{Embedding, PatchEmbedding, TokenEmbedding};
pub use feed::{Activation, Experts, Feed, Mlp, Routing};
pub(crate) use head::unit;
pub use head::{Head, Pool, Probe};
pub use input::{Input, Tokens};
pub use linear::{Linear, NoTaps, Part, Role, Taps};
pub use norm::Norm;
pub use rotary::Rotary;
pub(crate) use stage::load;
pub use stage::{Stage, TensorSpec};
pub use stream::{Batches, Quiet, Stream, Watch};
pub use tower::{Loaded, Tower};
pub use weights::{ContainerWeights, Overlay, Stored, Weights};

/// A model, described.
#[derive(Debug, Clone, PartialEq)]
pub struct Forward {
    /// What `config.json` calls its family.
    pub model_type: String,
    /// `text` and `vision`; `decoder` of a language model; `encoder` of a text encoder.
    pub towers: Vec<Tower>,
    /// How images and texts are compared.
    pub similarity: Option<Similarity>,
}

/// How the cosines of images and texts become logits: times e^scale, plus bias.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Similarity {
    /// Name of the scale's logarithm.
    pub scale: TensorSpec,
    /// Name of the bias.
    pub bias: Option<TensorSpec>,
}

/// Reads the rest of a configuration, of a family.
type Family = fn(&serde_json::Value, &dyn Weights) -> Result<Forward>;

/// The families by their `model_type`.
const FAMILIES: [(&str, Family); 8] = [
    ("bert", bert::forward),
    ("clip", clip::forward),
    ("gpt_oss", gpt_oss::forward),
    ("llama", llama::forward),
    ("mixtral", mixtral::forward),
    ("qwen3", qwen3::forward),
    ("qwen3_moe", qwen3_moe::forward),
    ("siglip", siglip::forward),
];

impl Forward {
    /// Opens a model folder.
    ///
    /// # Errors
    /// As [`Model::open`] and [`read`](Self::read).
    pub fn open(folder: &Path) -> Result<(Self, Model)> {
        let model = Model::open(folder)?;
        let path = folder.join("config.json");
        let config = std::fs::read(&path).map_err(|error| Error::io("cannot read", &path, error))?;
        let forward = Self::read(&config, &model).map_err(|error| error.file(path))?;
        Ok((forward, model))
    }

    /// Reads `config.json`. Of the weights only names are looked at: some configurations leave open which tensors there are.
    ///
    /// # Errors
    /// If it is no such file, of another family, or asks for what is not supported.
    pub fn read(config: &[u8], weights: &dyn Weights) -> Result<Self> {
        let config: serde_json::Value = config::parse(config)?;
        let model_type = config.get("model_type").and_then(serde_json::Value::as_str).unwrap_or_default();
        let Some((_, family)) = FAMILIES.iter().find(|(name, _)| *name == model_type) else {
            let known: Vec<&str> = FAMILIES.iter().map(|(name, _)| *name).collect();
            return Err(Error::input(format!("models of the type {model_type:?} cannot be run"))
                .remedy(format!("give one of the types {}", known.join(", "))));
        };
        config::check_sizes(&config)?;
        family(&config, weights)
    }

    /// The tower of this name.
    ///
    /// # Errors
    /// If there is none.
    pub fn tower(&self, name: &str) -> Result<&Tower> {
        self.towers.iter().find(|tower| tower.name == name).ok_or_else(|| {
            let names: Vec<&str> = self.towers.iter().map(|tower| tower.name).collect();
            Error::input(format!("models of the type {:?} have no {name} part", self.model_type))
                .remedy(format!("use one of: {}", names.join(", ")))
        })
    }

    /// Loads all of it: for models that are small for the device.
    ///
    /// # Errors
    /// As [`Stage::load`].
    pub fn load<B: Backend>(&self, weights: &dyn Weights, device: &B::Device) -> Result<Whole<'_, B>> {
        let towers: Result<_> = self.towers.iter().map(|tower| tower.load(weights, device)).collect();
        let mut similarity = Parameters::default();
        for spec in self
            .similarity
            .iter()
            .flat_map(|similarity| std::iter::once(&similarity.scale).chain(&similarity.bias))
        {
            // One number, with or without a dimension.
            let HostTensor { values, .. } = weights.tensor(&spec.name)?;
            if values.len() != 1 {
                return Err(Error::input(format!("has {} numbers, not one", values.len())).tensor(&spec.name));
            }
            similarity.insert(spec.name.clone(), HostTensor { shape: vec![1], values }, device);
        }
        Ok(Whole { forward: self, towers: towers?, similarity, device: device.clone() })
    }
}

/// A model with all its tensors.
#[derive(Debug, Clone)]
pub struct Whole<'f, B: Backend> {
    forward: &'f Forward,
    /// Its towers, in their order.
    pub towers: Vec<Loaded<'f, B>>,
    similarity: Parameters<B>,
    device: B::Device,
}

impl<B: Backend> Whole<'_, B> {
    /// The tower of this name.
    ///
    /// # Errors
    /// If there is none.
    pub fn tower(&self, name: &str) -> Result<&Loaded<'_, B>> {
        self.forward.tower(name)?;
        Ok(self.towers.iter().find(|loaded| loaded.tower.name == name).expect("all towers are loaded"))
    }

    /// Embeddings `[batch, out]` of length one, of images `[batch, channels, height, width]`.
    ///
    /// # Errors
    /// If the model takes no images, or none of this size.
    pub fn image_embeds(&self, pixels: Tensor<B, 4>) -> Result<Tensor<B, 2>> {
        self.embeds("vision", &pixels.into())
    }

    /// Embeddings `[texts, out]` of length one, of texts.
    ///
    /// # Errors
    /// If the model makes no embeddings of texts, or these are too long.
    pub fn text_embeds(&self, tokens: Tokens) -> Result<Tensor<B, 2>> {
        self.embeds("text", &tokens.into())
    }

    /// Logits `[texts, length, vocabulary]` of the token after each.
    ///
    /// # Errors
    /// If it is no language model.
    pub fn logits(&self, tokens: Tokens) -> Result<Tensor<B, 3>> {
        self.tower("decoder")?.run(&tokens.into(), &self.device, &mut NoTaps)
    }

    /// Logits `[images, texts]` of embeddings.
    ///
    /// # Errors
    /// If the model does not compare images and texts.
    pub fn logits_per_image(&self, images: Tensor<B, 2>, texts: Tensor<B, 2>) -> Result<Tensor<B, 2>> {
        let Some(Similarity { scale, bias }) = &self.forward.similarity else {
            return Err(Error::input(format!(
                "models of the type {:?} do not compare images and texts",
                self.forward.model_type
            )));
        };
        let logits = images.matmul(texts.transpose()) * self.similarity.get(&scale.name).exp();
        Ok(match bias {
            Some(bias) => logits + self.similarity.get(&bias.name),
            None => logits,
        })
    }

    fn embeds(&self, tower: &str, input: &Input<B>) -> Result<Tensor<B, 2>> {
        let x = self.tower(tower)?.run(input, &self.device, &mut NoTaps)?;
        let [batch, positions, out] = x.dims();
        Ok(unit(x.reshape([batch * positions, out])))
    }
}
