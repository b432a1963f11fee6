//! Stages in a row.

use burn::tensor::backend::Backend;
use burn::tensor::{Bool, Tensor};

use super::attention::Mask;
use super::block::Block;
use super::embedding::Embedding;
use super::head::Head;
use super::input::{Input, Tokens};
use super::linear::Taps;
use super::stage::Stage;
use super::weights::Weights;
use crate::Result;
use crate::parameters::Parameters;

/// An embedding, blocks and a head.
#[derive(Debug, Clone, PartialEq)]
pub struct Tower {
    /// `text`, `vision`, `decoder` or `encoder`.
    pub name: &'static str,
    /// What it begins with.
    pub embedding: Embedding,
    /// Its blocks, in their order.
    pub blocks: Vec<Block>,
    /// What it ends with.
    pub head: Head,
    /// Whether padding is hidden from the other tokens.
    pub hides_padding: bool,
}

impl Tower {
    /// What is hidden from the other tokens, for [`Block::forward`]: true for padding, `[batch, length]`.
    pub fn padding<B: Backend>(
        &self,
        tokens: Option<&Tokens>,
        device: &B::Device,
    ) -> Option<Tensor<B, 2, Bool>> {
        tokens.filter(|_| self.hides_padding)?.padding(device)
    }

    /// Which tokens of texts what the head puts out depends on, text by text; none if it is all of them. Not padding that is hidden,
    /// and not what follows the token that stands for its text where nothing looks ahead.
    ///
    /// # Errors
    /// As [`Head::forward`].
    pub fn relevant(&self, tokens: &Tokens) -> Result<Option<Vec<bool>>> {
        let (texts, length) = (tokens.texts(), tokens.length());
        if self.hides_padding {
            return Ok(tokens.seen());
        }
        let looks_ahead = |block: &Block| block.attention.mask == Mask::Bidirectional;
        if self.blocks.iter().any(looks_ahead) {
            return Ok(None);
        }
        let positions = self.head.positions(texts, length, Some(tokens))?;
        Ok(positions.map(|ends| ends.iter().flat_map(|&end| (0..length).map(move |at| at <= end)).collect()))
    }

    /// Loads all of it.
    ///
    /// # Errors
    /// As [`Stage::load`].
    pub fn load<B: Backend>(&self, weights: &dyn Weights, device: &B::Device) -> Result<Loaded<'_, B>> {
        Ok(Loaded {
            tower: self,
            embedding: self.embedding.load(weights, device)?,
            blocks: self.blocks.iter().map(|block| block.load(weights, device)).collect::<Result<_>>()?,
            head: self.head.load(weights, device)?,
        })
    }
}

/// A tower with all its tensors.
#[derive(Debug, Clone)]
pub struct Loaded<'t, B: Backend> {
    /// What it is.
    pub tower: &'t Tower,
    /// The embedding's tensors.
    pub embedding: Parameters<B>,
    /// The tensors of each block.
    pub blocks: Vec<Parameters<B>>,
    /// The head's tensors.
    pub head: Parameters<B>,
}

impl<B: Backend> Loaded<'_, B> {
    /// The last hidden state, `[batch, length, width]`: the output of the last block.
    ///
    /// # Errors
    /// As [`Embedding::forward`].
    pub fn hidden(
        &self,
        input: &Input<B>,
        device: &B::Device,
        taps: &mut dyn Taps<B>,
    ) -> Result<Tensor<B, 3>> {
        let padding = self.tower.padding(input.tokens(), device);
        let first = self.tower.embedding.forward(&self.embedding, input, device, taps)?;
        let blocks = self.tower.blocks.iter().zip(&self.blocks);
        Ok(blocks.fold(first, |x, (block, parameters)| block.forward(parameters, x, padding.as_ref(), taps)))
    }

    /// What the head puts out, `[batch, positions, out]`.
    ///
    /// # Errors
    /// As [`Embedding::forward`] and [`Head::forward`].
    pub fn run(&self, input: &Input<B>, device: &B::Device, taps: &mut dyn Taps<B>) -> Result<Tensor<B, 3>> {
        let hidden = self.hidden(input, device, taps)?;
        self.tower.head.forward(&self.head, hidden, input.tokens(), taps)
    }
}
