//! Fine-tuning of blocks while they are coded (arXiv 2510.11234): what coding one linear map breaks, those that are not coded yet and
//! the norms and biases make good.
//!
//! Blocks are independent of each other: what goes into each, and what should come out, are the original model's hidden states. In a block
//! one linear map after the other is coded, in [`Stage::tuning_order`](crate::forward::Stage::tuning_order); those of all experts with one
//! role are coded together. From then on it is what a decoder makes of it, and the linear maps that are not coded yet, norms and biases are
//! trained on the mean squared error of the block's output; after the last one norms and biases alone. Tensors that are neither coded nor
//! norms or biases, such as a router, stay as they are.
//!
//! A part of the sequences is held out. Its error says after each pass which parameters are kept, and in the end whether the block is:
//! if it is not below that of coding the block untuned, nothing of it is changed.

mod block;
mod model;
mod states;
mod work;

use std::collections::HashMap;

use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};
use serde::{Deserialize, Serialize};

use crate::compress::Quantise;
use crate::forward::{Batches, Block, Forward, Linear, Stream, Taps, Tower, Watch, Weights};
use crate::parameters::HostTensor;
use crate::progress::Progress;
use crate::{Error, Result};

pub use block::{passes, tune_block};
pub use model::FineTuning;
pub use states::States;
use work::{Open, Turn};
pub use work::{Origin, STALE_AFTER, Work};

/// How blocks are fine-tuned.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Passes over the sequences that are trained on, after each step of coding.
    pub epochs: usize,
    /// Sequences of an update.
    pub batch: usize,
    /// Peak learning rate of Adam.
    pub learning_rate: f64,
    /// The part of the sequences that is held out.
    pub held_out: f64,
    /// Of the choice of those held out, and of the order of the others.
    pub seed: u64,
}

/// Chosen by measurements on two models, of half a million and of twelve million weights (`benches/results/finetune.json`): the error of held-out
/// sequences falls with the rate up to 1e-3 and above, that of the model on other data is least at 3e-4 for both but for the smaller one at
/// 2 bits, where 1e-3 is better. Rates at which training does no good are lowered while a block is tuned; for models of billions of
/// weights, of which none was measured, the paper took 3e-6.
impl Default for Settings {
    fn default() -> Self {
        Self { epochs: 5, batch: 4, learning_rate: 5e-4, held_out: 0.125, seed: 0 }
    }
}

impl Settings {
    /// Checks them.
    ///
    /// # Errors
    /// Which is out of range.
    pub fn check(&self) -> Result<()> {
        let Self { epochs, batch, learning_rate, held_out, .. } = *self;
        let bad = |what: String, remedy: &str| Err(Error::input(what).remedy(remedy));
        if epochs == 0 || batch == 0 {
            return bad(format!("{epochs} epochs of {batch} sequences an update"), "give at least 1 of each");
        }
        if !(learning_rate.is_finite() && learning_rate > 0.0) {
            return bad(format!("a learning rate of {learning_rate} is out of range"), "give one above 0");
        }
        if !(held_out > 0.0 && held_out < 1.0) {
            return bad(format!("{held_out} is no part to hold out"), "give one between 0 and 1");
        }
        Ok(())
    }
}

/// What became of a block.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BlockReport {
    /// What the names of its tensors begin with.
    pub name: String,
    /// Mean squared error of the block's output over the held-out sequences, coded without fine-tuning.
    pub before: f64,
    /// The same, fine-tuned.
    pub after: f64,
    /// The mean square of what the block adds to its input: errors are to be held up against it.
    pub signal: f64,
    /// Whether the fine-tuned weights are used.
    pub kept: bool,
    /// Time that it took.
    pub seconds: f64,
}

/// A model, fine-tuned.
#[derive(Debug, Clone, Default)]
pub struct Tuned {
    /// By name: weights that are to be coded, as they were when they were coded, in f32; norms and biases as trained, rounded to
    /// the type that they are stored in. What is not here stays as it is.
    pub tensors: HashMap<String, HostTensor>,
    /// Each block, in the order of the model.
    pub report: Vec<BlockReport>,
}

/// A model that is fine-tuned.
pub struct Job<'a, B: AutodiffBackend> {
    /// What it is.
    pub forward: &'a Forward,
    /// Its weights.
    pub original: &'a dyn Weights,
    /// By the name of a tower, what goes into it. Blocks of other towers are left alone.
    pub inputs: Vec<(&'a str, &'a dyn Batches<B::InnerBackend>)>,
    /// How its weights are coded.
    pub quantise: &'a dyn Quantise,
    /// How it is fine-tuned.
    pub settings: Settings,
    /// Where.
    pub device: B::Device,
}

/// Blocks that are finished: the tensors that change, and what it was good for.
type Done = HashMap<String, (HashMap<String, HostTensor>, BlockReport)>;

impl<B: AutodiffBackend> Job<'_, B> {
    /// Fine-tunes it. With `work` each block's result is a file, and several processes can share the work.
    ///
    /// The hidden states of all inputs are in memory, and the tensors of one block.
    ///
    /// # Errors
    /// If a tensor or input cannot be read, weights cannot be coded, `work` has results of something else, or `progress` stops it.
    /// Finished blocks are in `work` then.
    pub fn run(&self, work: Option<&Work>, progress: &dyn Progress) -> Result<Tuned> {
        self.settings.check()?;
        let mut towers = Vec::new();
        for tower in &self.forward.towers {
            let inputs = self.inputs.iter().find(|(name, _)| *name == tower.name);
            towers.extend(inputs.map(|(_, batches)| (tower, *batches)));
        }
        self.inputs.iter().try_for_each(|(name, _)| self.forward.tower(name).map(drop))?;
        let open = work.map(|work| work.open(&self.settings)).transpose()?;
        let blocks: Vec<&Block> = towers.iter().flat_map(|(tower, _)| &tower.blocks).collect();
        let units = blocks.iter().map(|block| passes(block, self.quantise, &self.settings));
        progress.begin("fine-tuning", units.sum());
        let mut done = Done::new();
        loop {
            let known = done.len();
            for (tower, batches) in &towers {
                self.tower(tower, *batches, open.as_ref(), progress, &mut done)?;
            }
            if done.len() == blocks.len() {
                break;
            }
            // Others are at the rest.
            if done.len() == known {
                progress.check()?;
                std::thread::sleep(work::POLL);
            }
        }
        let mut tuned = Tuned::default();
        for block in blocks {
            let (tensors, report) = done.remove(&block.name).expect("all blocks are done");
            tuned.tensors.extend(tensors);
            tuned.report.push(report);
        }
        Ok(tuned)
    }

    /// Does the blocks of a tower that nobody has done or is at.
    fn tower(
        &self,
        tower: &Tower,
        batches: &dyn Batches<B::InnerBackend>,
        work: Option<&Open<'_>>,
        progress: &dyn Progress,
        done: &mut Done,
    ) -> Result<()> {
        let mut stream = Stream::new(tower, self.original, batches, &self.device);
        let mut stages = 0;
        for (index, block) in tower.blocks.iter().enumerate() {
            if done.contains_key(&block.name) {
                continue;
            }
            let claim = match work.map(|work| work.take(block)).transpose()? {
                None => None,
                Some(Turn::Ours(claim)) => Some(claim),
                Some(Turn::Others) => continue,
                Some(Turn::Done(result)) => {
                    progress.advance(passes(block, self.quantise, &self.settings));
                    done.insert(block.name.clone(), result);
                    continue;
                }
            };
            while stages <= index {
                stream.run(stages, &mut Unseen(progress))?;
                stages += 1;
            }
            let states = stream.hidden().iter().enumerate();
            let states: Vec<States<B::InnerBackend>> = states
                .map(|(batch, hidden)| {
                    States::new(tower, hidden.clone(), batches.tokens(batch), &self.device)
                })
                .collect::<Result<_>>()?;
            let (quantise, settings) = (self.quantise, &self.settings);
            let result =
                tune_block::<B>(block, self.original, &states, quantise, settings, progress, &self.device)?;
            if let Some(work) = work {
                work.write(&result.0, &result.1)?;
            }
            drop(claim);
            done.insert(block.name.clone(), result);
        }
        Ok(())
    }
}

/// Stops a stream if the user wants it.
struct Unseen<'p>(&'p dyn Progress);

impl<B: Backend> Taps<B> for Unseen<'_> {
    fn inputs(&mut self, _: &[&Linear], _: &Tensor<B, 2>) {}
}

impl<B: Backend> Watch<B> for Unseen<'_> {
    fn batch(&mut self, _: usize) -> Result<()> {
        self.0.check()
    }
}
