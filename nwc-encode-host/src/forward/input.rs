//! What goes into models.

use std::ops::Range;

use burn::tensor::backend::Backend;
use burn::tensor::{Bool, Tensor, TensorData};

use crate::{Error, Result};

/// Texts of one length, as tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tokens {
    ids: Vec<u32>,
    length: usize,
    padding: Option<Vec<bool>>,
}

impl Tokens {
    /// Texts of `length` tokens each, one after the other.
    ///
    /// # Errors
    /// If there are none, or the last one is shorter.
    pub fn new(ids: Vec<u32>, length: usize) -> Result<Self> {
        if ids.is_empty() || length == 0 || !ids.len().is_multiple_of(length) {
            return Err(Error::input(format!("{} tokens are no texts of {length} tokens each", ids.len()))
                .remedy("give whole texts of one length"));
        }
        Ok(Self { ids, length, padding: None })
    }

    /// Says which tokens are only there for the length; most models take no notice.
    ///
    /// # Errors
    /// If these are not as many as tokens.
    pub fn with_padding(self, padding: Vec<bool>) -> Result<Self> {
        if padding.len() != self.ids.len() {
            return Err(Error::input(format!("{} marks for {} tokens", padding.len(), self.ids.len())));
        }
        Ok(Self { padding: Some(padding), ..self })
    }

    /// Some of the texts, in their order.
    ///
    /// # Panics
    /// If there are not so many, or none are wanted.
    #[must_use]
    pub fn part(&self, texts: Range<usize>) -> Self {
        let range = texts.start * self.length..texts.end * self.length;
        assert!(!range.is_empty(), "some texts");
        let padding = self.padding.as_ref().map(|padding| padding[range.clone()].to_vec());
        Self { ids: self.ids[range].to_vec(), length: self.length, padding }
    }

    /// All tokens, text by text.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Tokens of a text.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Number of texts.
    pub fn texts(&self) -> usize {
        self.ids.len() / self.length
    }

    /// Which tokens are no padding, if any is padding.
    pub(super) fn seen(&self) -> Option<Vec<bool>> {
        let padding = self.padding.as_ref().filter(|padding| padding.contains(&true))?;
        Some(padding.iter().map(|padding| !padding).collect())
    }

    /// Which tokens are padding, if any is, as `[texts, length]`.
    pub(super) fn padding<B: Backend>(&self, device: &B::Device) -> Option<Tensor<B, 2, Bool>> {
        let padding = self.padding.as_ref().filter(|padding| padding.contains(&true))?;
        let shape = [self.texts(), self.length];
        Some(Tensor::from_data(TensorData::new(padding.clone(), shape), device))
    }
}

/// What goes into a tower.
#[derive(Debug, Clone)]
pub enum Input<B: Backend> {
    /// Texts.
    Tokens(Tokens),
    /// Images `[batch, channels, height, width]`, normalised.
    Pixels(Tensor<B, 4>),
}

impl<B: Backend> Input<B> {
    /// The texts, if it is texts.
    pub(super) fn tokens(&self) -> Option<&Tokens> {
        match self {
            Self::Tokens(tokens) => Some(tokens),
            Self::Pixels(_) => None,
        }
    }
}

impl<B: Backend> From<Tokens> for Input<B> {
    fn from(tokens: Tokens) -> Self {
        Self::Tokens(tokens)
    }
}

impl<B: Backend> From<Tensor<B, 4>> for Input<B> {
    fn from(pixels: Tensor<B, 4>) -> Self {
        Self::Pixels(pixels)
    }
}
