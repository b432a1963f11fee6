//! From tokens and pixels to the first hidden state.

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};

use super::input::{Input, Tokens};
use super::linear::{Linear, Taps};
use super::norm::Norm;
use super::stage::{Stage, TensorSpec};
use crate::parameters::Parameters;
use crate::{Error, Result};

/// Embeds tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenEmbedding {
    /// A vector for each token.
    pub tokens: TensorSpec,
    /// A vector for each position.
    pub positions: Option<TensorSpec>,
    /// A vector for each type of text; all are of the first.
    pub types: Option<TensorSpec>,
    /// Normalises the sum.
    pub norm: Option<Norm>,
}

/// Embeds the patches of images.
#[derive(Debug, Clone, PartialEq)]
pub struct PatchEmbedding {
    /// Embeds a patch, `[out, channels, height, width]`.
    pub patch: Linear,
    /// Pixels of a side of images.
    pub image_size: usize,
    /// A vector that goes before the patches.
    pub class: Option<TensorSpec>,
    /// A vector for each position.
    pub positions: TensorSpec,
    /// Normalises the sum.
    pub norm: Option<Norm>,
}

/// The first part of a tower.
#[derive(Debug, Clone, PartialEq)]
pub enum Embedding {
    /// Of texts.
    Tokens(TokenEmbedding),
    /// Of images.
    Patches(PatchEmbedding),
}

impl Embedding {
    /// The hidden state `[batch, length, width]` that goes into the first block.
    ///
    /// # Errors
    /// If the model has no such tokens or positions, or takes other inputs.
    ///
    /// # Panics
    /// If `parameters` are not the embedding's.
    pub fn forward<B: Backend>(
        &self,
        parameters: &Parameters<B>,
        input: &Input<B>,
        device: &B::Device,
        taps: &mut dyn Taps<B>,
    ) -> Result<Tensor<B, 3>> {
        match (self, input) {
            (Self::Tokens(embedding), Input::Tokens(tokens)) => {
                embedding.forward(parameters, tokens, device, taps)
            }
            (Self::Patches(embedding), Input::Pixels(pixels)) => embedding.forward(parameters, pixels, taps),
            (Self::Tokens(_), Input::Pixels(_)) => {
                Err(Error::input("this part of the model takes texts, not images"))
            }
            (Self::Patches(_), Input::Tokens(_)) => {
                Err(Error::input("this part of the model takes images, not texts"))
            }
        }
    }
}

impl Stage for Embedding {
    fn tensors(&self) -> Vec<TensorSpec> {
        let (tables, linear, norm): (Vec<_>, _, _) = match self {
            Self::Tokens(TokenEmbedding { tokens, positions, types, norm }) => {
                (std::iter::once(tokens).chain(positions).chain(types).collect(), None, norm)
            }
            Self::Patches(PatchEmbedding { patch, class, positions, norm, .. }) => {
                (std::iter::once(positions).chain(class).collect(), Some(patch), norm)
            }
        };
        let tables = tables.into_iter().cloned();
        let linear = linear.into_iter().flat_map(Linear::tensors);
        tables.chain(linear).chain(norm.iter().flat_map(Norm::tensors)).collect()
    }

    fn groups(&self) -> Vec<Vec<&Linear>> {
        match self {
            Self::Tokens(_) => Vec::new(),
            Self::Patches(embedding) => vec![vec![&embedding.patch]],
        }
    }

    fn norms(&self) -> Vec<&Norm> {
        let (Self::Tokens(TokenEmbedding { norm, .. }) | Self::Patches(PatchEmbedding { norm, .. })) = self;
        norm.iter().collect()
    }
}

impl TokenEmbedding {
    fn forward<B: Backend>(
        &self,
        parameters: &Parameters<B>,
        tokens: &Tokens,
        device: &B::Device,
        taps: &mut dyn Taps<B>,
    ) -> Result<Tensor<B, 3>> {
        let (texts, length) = (tokens.texts(), tokens.length());
        let [vocabulary, width] = self.tokens.shape[..] else {
            unreachable!("it is made with two dimensions")
        };
        if let Some(id) = tokens.ids().iter().find(|&&id| id as usize >= vocabulary) {
            return Err(Error::input(format!("token {id} is none of the model's {vocabulary}"))
                .remedy("use the model's own tokenizer.json"));
        }
        let mut tables = vec![(&self.tokens, tokens.ids().iter().map(|&id| id as usize).collect())];
        let ids: Vec<i64> = tokens.ids().iter().copied().map(i64::from).collect();
        let ids = Tensor::<B, 1, Int>::from_data(TensorData::new(ids, [texts * length]), device);
        let mut x = parameters.get(&self.tokens.name).select(0, ids).reshape([texts, length, width]);
        if let Some(positions) = &self.positions {
            if length > positions.shape[0] {
                return Err(Error::input(format!(
                    "a text has {length} tokens, the model takes {}",
                    positions.shape[0]
                ))
                .remedy("give shorter texts"));
            }
            x = x + parameters.get(&positions.name).slice_dim(0, 0..length).unsqueeze();
            tables.push((positions, (0..length).cycle().take(texts * length).collect()));
        }
        if let Some(types) = &self.types {
            x = x + parameters.get(&types.name).slice_dim(0, 0..1).unsqueeze();
            tables.push((types, vec![0; texts * length]));
        }
        let x = taps.rows(&tables, x.reshape([texts * length, width])).reshape([texts, length, width]);
        Ok(normalised(self.norm.as_ref(), parameters, x))
    }
}

impl PatchEmbedding {
    fn forward<B: Backend>(
        &self,
        parameters: &Parameters<B>,
        pixels: &Tensor<B, 4>,
        taps: &mut dyn Taps<B>,
    ) -> Result<Tensor<B, 3>> {
        let [batch, channels, height, width] = pixels.dims();
        let &[out, of_channels, patch, _] = &self.patch.shape[..] else {
            unreachable!("it is made with four dimensions")
        };
        let size = self.image_size;
        if [channels, height, width] != [of_channels, size, size] {
            return Err(Error::input(format!(
                "images are {channels} x {height} x {width}, the model takes {of_channels} x {size} x {size}"
            ))
            .remedy("prepare images as preprocessor_config.json says"));
        }
        let side = size / patch;
        // Pixels that fill no patch are left out.
        let whole = pixels.clone().slice_dim(2, 0..side * patch).slice_dim(3, 0..side * patch);
        let patches = whole
            .reshape([batch, channels, side, patch, side, patch])
            .permute([0, 2, 4, 1, 3, 5])
            .reshape([batch * side * side, channels * patch * patch]);
        taps.inputs(&[&self.patch], &patches);
        let mut x = self.patch.apply(parameters, patches, taps).reshape([batch, side * side, out]);
        if let Some(class) = &self.class {
            let class = parameters.get(&class.name).reshape([1, 1, out]).expand([batch, 1, out]);
            x = Tensor::cat(vec![class, x], 1);
        }
        let x = x + parameters.get(&self.positions.name).unsqueeze();
        let shape @ [_, length, _] = x.dims();
        let positions = (0..length).cycle().take(batch * length).collect();
        let x = taps.rows(&[(&self.positions, positions)], x.reshape([batch * length, out])).reshape(shape);
        Ok(normalised(self.norm.as_ref(), parameters, x))
    }
}

fn normalised<B: Backend>(norm: Option<&Norm>, parameters: &Parameters<B>, x: Tensor<B, 3>) -> Tensor<B, 3> {
    let Some(norm) = norm else { return x };
    let shape @ [batch, length, width] = x.dims();
    norm.apply(parameters, x.reshape([batch * length, width])).reshape(shape)
}
