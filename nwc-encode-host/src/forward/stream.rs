//! Towers block by block, over many inputs: the tensors of one block are in memory at a time, and the hidden states of all inputs.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::input::{Input, Tokens};
use super::linear::{Linear, Taps};
use super::stage::Stage;
use super::tower::Tower;
use super::weights::Weights;
use crate::Result;
use crate::parameters::Parameters;
use crate::progress::Progress;

/// The inputs of a tower, in batches.
pub trait Batches<B: Backend> {
    /// How many batches there are.
    fn count(&self) -> usize;

    /// One of them.
    ///
    /// # Errors
    /// If it cannot be read.
    fn input(&self, index: usize, device: &B::Device) -> Result<Input<B>>;

    /// The texts of one of them, if it has texts. Asked for at every block.
    fn tokens(&self, index: usize) -> Option<&Tokens>;
}

/// Looks on while a tower runs.
pub trait Watch<B: Backend>: Taps<B> {
    /// The batch of this number is next, in a stage.
    ///
    /// # Errors
    /// To stop.
    fn batch(&mut self, index: usize) -> Result<()>;
}

/// Only says how far it is: one unit a batch and stage.
#[derive(Clone, Copy)]
pub struct Quiet<'p>(pub &'p dyn Progress);

impl<B: Backend> Taps<B> for Quiet<'_> {
    fn inputs(&mut self, _: &[&Linear], _: &Tensor<B, 2>) {}
}

impl<B: Backend> Watch<B> for Quiet<'_> {
    fn batch(&mut self, _: usize) -> Result<()> {
        self.0.check()?;
        self.0.advance(1);
        Ok(())
    }
}

/// A tower that is run.
pub struct Stream<'a, B: Backend> {
    tower: &'a Tower,
    weights: &'a dyn Weights,
    batches: &'a dyn Batches<B>,
    device: B::Device,
    /// Of each batch.
    hidden: Vec<Tensor<B, 3>>,
}

impl<'a, B: Backend> Stream<'a, B> {
    /// Before the first stage.
    pub fn new(
        tower: &'a Tower,
        weights: &'a dyn Weights,
        batches: &'a dyn Batches<B>,
        device: &B::Device,
    ) -> Self {
        Self { tower, weights, batches, device: device.clone(), hidden: Vec::new() }
    }

    /// The stages that make hidden states: the embedding, then the blocks.
    pub fn stages(tower: &Tower) -> usize {
        1 + tower.blocks.len()
    }

    /// The hidden state of each batch, after the last stage that was run.
    pub fn hidden(&self) -> &[Tensor<B, 3>] {
        &self.hidden
    }

    /// The same, given up.
    pub fn into_hidden(self) -> Vec<Tensor<B, 3>> {
        self.hidden
    }

    /// Puts hidden states in place, which an earlier stream had.
    pub fn resume(&mut self, hidden: Vec<Tensor<B, 3>>) {
        self.hidden = hidden;
    }

    /// Runs a stage; they must be run in their order.
    ///
    /// # Errors
    /// If a tensor or input cannot be read, or `watch` stops it. What is hidden is then of no use.
    pub fn run(&mut self, stage: usize, watch: &mut dyn Watch<B>) -> Result<()> {
        let Some(block) = stage.checked_sub(1).map(|index| &self.tower.blocks[index]) else {
            let parameters = self.tower.embedding.load::<B>(self.weights, &self.device)?;
            for index in 0..self.batches.count() {
                watch.batch(index)?;
                let input = self.batches.input(index, &self.device)?;
                self.hidden.push(self.tower.embedding.forward(&parameters, &input, &self.device, watch)?);
            }
            return Ok(());
        };
        let parameters = block.load::<B>(self.weights, &self.device)?;
        for (index, hidden) in self.hidden.iter_mut().enumerate() {
            watch.batch(index)?;
            let padding = self.tower.padding(self.batches.tokens(index), &self.device);
            let x = std::mem::replace(hidden, Tensor::empty([1, 1, 1], &self.device));
            *hidden = block.forward(&parameters, x, padding.as_ref(), watch);
        }
        Ok(())
    }

    /// Runs all stages.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_all(&mut self, watch: &mut dyn Watch<B>) -> Result<()> {
        (0..Self::stages(self.tower)).try_for_each(|stage| self.run(stage, watch))
    }

    /// The head's tensors.
    ///
    /// # Errors
    /// As [`Stage::load`].
    pub fn head(&self) -> Result<Parameters<B>> {
        self.tower.head.load(self.weights, &self.device)
    }

    /// What the head projects of a batch, after the last stage. Its hidden states are given up.
    ///
    /// # Errors
    /// As [`super::Head::features`].
    pub fn features(
        &mut self,
        head: &Parameters<B>,
        index: usize,
        watch: &mut dyn Watch<B>,
    ) -> Result<Tensor<B, 2>> {
        watch.batch(index)?;
        let hidden = std::mem::replace(&mut self.hidden[index], Tensor::empty([1, 1, 1], &self.device));
        self.tower.head.features(head, hidden, self.batches.tokens(index), watch)
    }
}
