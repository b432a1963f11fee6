//! The block of which all these models are made.

use burn::tensor::backend::Backend;
use burn::tensor::{Bool, Tensor};

use super::attention::Attention;
use super::feed::Feed;
use super::linear::{Linear, Taps};
use super::norm::Norm;
use super::stage::{Stage, TensorSpec};
use crate::parameters::Parameters;

/// Where a block normalises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// What goes into attention and the feed-forward network: x + f(norm(x)).
    Before,
    /// The sum with what comes out of them: norm(x + f(x)).
    After,
}

/// Attention, then a feed-forward network.
#[derive(Debug, Clone, PartialEq)]
pub struct Block {
    /// What the names of its tensors begin with.
    pub name: String,
    /// Where it normalises.
    pub placement: Placement,
    /// Of attention.
    pub attention_norm: Norm,
    /// Attention.
    pub attention: Attention,
    /// Of the feed-forward network.
    pub feed_norm: Norm,
    /// The feed-forward network.
    pub feed: Feed,
}

impl Block {
    /// Outputs `[batch, length, width]` of inputs of the same dimensions. `padding` `[batch, length]` is true where nobody looks.
    ///
    /// # Panics
    /// If `parameters` are not the block's.
    pub fn forward<B: Backend>(
        &self,
        parameters: &Parameters<B>,
        x: Tensor<B, 3>,
        padding: Option<&Tensor<B, 2, Bool>>,
        taps: &mut dyn Taps<B>,
    ) -> Tensor<B, 3> {
        let shape @ [batch, length, width] = x.dims();
        let x = x.reshape([batch * length, width]);
        let x = self.add(parameters, &self.attention_norm, x, |x| {
            self.attention.forward(parameters, &x, batch, padding, taps)
        });
        let x = self.add(parameters, &self.feed_norm, x, |x| self.feed.forward(parameters, x, taps));
        x.reshape(shape)
    }

    /// Adds what a part makes of `x`, normalised before or after.
    fn add<B: Backend>(
        &self,
        parameters: &Parameters<B>,
        norm: &Norm,
        x: Tensor<B, 2>,
        part: impl FnOnce(Tensor<B, 2>) -> Tensor<B, 2>,
    ) -> Tensor<B, 2> {
        match self.placement {
            Placement::Before => x.clone() + part(norm.apply(parameters, x)),
            Placement::After => norm.apply(parameters, x.clone() + part(x)),
        }
    }
}

impl Stage for Block {
    fn tensors(&self) -> Vec<TensorSpec> {
        let norms = self.attention_norm.tensors().chain(self.feed_norm.tensors());
        norms.chain(self.attention.tensors()).chain(self.feed.tensors()).collect()
    }

    fn groups(&self) -> Vec<Vec<&Linear>> {
        self.attention.groups().into_iter().chain(self.feed.groups()).collect()
    }

    fn norms(&self) -> Vec<&Norm> {
        let own = [&self.attention_norm, &self.feed_norm].into_iter();
        own.chain(&self.attention.query_norm).chain(&self.attention.key_norm).collect()
    }
}
