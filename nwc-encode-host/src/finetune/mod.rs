//! Fine-tuning of models while they are coded (arXiv 2510.11234): what coding one linear map breaks, those that are not coded yet and
//! the norms and biases make good.
//!
//! **Blocks** are independent of each other: what goes into each, and what should come out, are the original model's hidden states. In a block
//! one linear map after the other is coded, in [`Stage::tuning_order`](crate::forward::Stage::tuning_order); those of all experts with one
//! role are coded together. From then on it is what a decoder makes of it, and the linear maps that are not coded yet, norms and biases are
//! trained on the mean squared error of the block's output; after the last one norms and biases alone. Tensors that are neither coded nor
//! norms or biases, such as a router, stay as they are. A part of the sequences is held out. Its error says after each pass which
//! parameters are kept, and in the end whether the block is: if it is not below that of coding the block untuned, nothing of it is changed.
//!
//! **Towers** are coded from the embedding to the head, linear maps that have the same inputs together; the output layer with the embedding. What
//! goes into a block is what the coded part before it puts out. All of the tower that is not coded yet is trained on what the tower is for: the divergence of its predictions
//! from the original's, or the distance of its embeddings. At low rates this is worth far more than the same for blocks, and it takes the
//! memory to train the tower. The held-out sequences say after each step whether what was trained is kept, and in the end whether the
//! tower is.

mod block;
mod model;
mod states;
mod tower;
mod work;

use std::collections::{HashMap, HashSet};

use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::compress::Quantise;
use crate::forward::{Batches, Forward, Linear, Stage, Stream, Taps, TensorSpec, Tower, Watch, Weights};
use crate::parameters::HostTensor;
use crate::progress::Progress;
use crate::{Error, Result};

pub use block::{passes, tune_block};
pub use model::FineTuning;
pub use states::States;
use tower::TowerJob;
use work::{Open, Turn};
pub use work::{Origin, STALE_AFTER, Work};

/// What is fine-tuned together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Each block for itself: for models of any size, by any number of processes.
    Block,
    /// Each tower: better, for models whose training fits into memory.
    Tower,
}

/// How models are fine-tuned.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// What is fine-tuned together.
    pub scope: Scope,
    /// Passes over the sequences that are trained on, after each step of coding.
    pub epochs: usize,
    /// Sequences of an update. Those of towers are among those that are run at once, about 2,048 tokens or 64 images.
    pub batch: usize,
    /// Peak learning rate of Adam; of towers as a part of the root mean square of what coding loses in a tensor, once all is coded. While less is
    /// lost in predictions than that loses, it is lower by the root of their ratio.
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
        Self { scope: Scope::Block, epochs: 5, batch: 4, learning_rate: 5e-4, held_out: 0.125, seed: 0 }
    }
}

impl Settings {
    /// For towers. Of rates from a half to double of this, smaller ones are worse for one model and larger ones for another (ADR 15).
    pub fn tower() -> Self {
        Self { scope: Scope::Tower, epochs: 1, batch: 32, learning_rate: 1.0 / 48.0, ..Self::default() }
    }

    /// Parts sequences, or batches of them, in those that are held out and those that are trained on. `what` they are is for the error.
    ///
    /// # Errors
    /// If there are not two.
    fn split<T>(&self, mut all: Vec<T>, what: &str) -> Result<(Vec<T>, Vec<T>)> {
        let count = all.len();
        if count < 2 {
            return Err(Error::input(format!(
                "{count} {what} are too few to train on some and hold out others"
            ))
            .remedy("give more data"));
        }
        all.shuffle(&mut ChaCha8Rng::seed_from_u64(self.seed));
        let held_out = ((count as f64 * self.held_out).round() as usize).clamp(1, count - 1);
        let training = all.split_off(held_out);
        Ok((all, training))
    }

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

/// What became of a block, or of a tower.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// What the names of a block's tensors begin with; what the tower is called.
    pub name: String,
    /// The error over the held-out sequences, coded without fine-tuning. Of a block it is the mean squared error of its output; of a tower the
    /// divergence of a predicted token from the original's in nats, or the mean squared distance of embeddings of length one.
    pub before: f64,
    /// The same, fine-tuned.
    pub after: f64,
    /// The mean square of what a block adds to its input: errors are to be held up against it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<f64>,
    /// What was coded one after the other in a tower.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<StepReport>,
    /// Whether the fine-tuned weights are used.
    pub kept: bool,
    /// Time that it took.
    pub seconds: f64,
}

/// What became of what is coded together in a tower.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    /// The first of the tensors.
    pub tensor: String,
    /// The error over the held-out sequences, as in [`Report`], once these are coded too.
    pub before: f64,
    /// The same, after training.
    pub after: f64,
    /// Whether what was trained is used.
    pub kept: bool,
}

/// Tensors by name.
pub type Tensors = HashMap<String, HostTensor>;

/// A model, fine-tuned.
#[derive(Debug, Clone, Default)]
pub struct Tuned {
    /// By name: weights that are to be coded, as they were when they were coded, in f32; norms and biases as trained, rounded to
    /// the type that they are stored in. What is not here stays as it is.
    pub tensors: Tensors,
    /// Names of tensors in which nothing makes good what is lost: those of a tower that were coded last.
    pub last: HashSet<String>,
    /// Each block, or tower, in the order of the model.
    pub report: Vec<Report>,
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

/// Blocks or towers that are finished: the tensors that change, and what it was good for.
type Done = HashMap<String, (Tensors, Report)>;

impl<B: AutodiffBackend> Job<'_, B> {
    /// Fine-tunes it. With `work` each block's or tower's result is a file, and several processes can share the work.
    ///
    /// The hidden states of all inputs are in memory, and the tensors of one block; or all of a tower, four times.
    ///
    /// # Errors
    /// If a tensor or input cannot be read, weights cannot be coded, `work` has results of something else, or `progress` stops it.
    /// What is finished is in `work` then.
    pub fn run(&self, work: Option<&Work>, progress: &dyn Progress) -> Result<Tuned> {
        self.settings.check()?;
        let mut towers = Vec::new();
        for tower in &self.forward.towers {
            let inputs = self.inputs.iter().find(|(name, _)| *name == tower.name);
            towers.extend(inputs.map(|(_, batches)| self.tower(tower, *batches, progress)));
        }
        self.inputs.iter().try_for_each(|(name, _)| self.forward.tower(name).map(drop))?;
        let open = work.map(|work| work.open(&self.settings)).transpose()?;
        let scope = self.settings.scope;
        let blocks = || towers.iter().flat_map(|tower| &tower.tower.blocks);
        let (names, passes): (Vec<&str>, u64) = match scope {
            Scope::Block => (
                blocks().map(|block| block.name.as_str()).collect(),
                blocks().map(|block| passes(block, self.quantise, &self.settings)).sum(),
            ),
            Scope::Tower => (
                towers.iter().map(|tower| tower.tower.name).collect(),
                towers.iter().map(TowerJob::passes).sum(),
            ),
        };
        progress.begin("fine-tuning", passes);
        let mut done = Done::new();
        loop {
            let known = done.len();
            for tower in &towers {
                match scope {
                    Scope::Block => self.blocks(tower, open.as_ref(), &mut done)?,
                    Scope::Tower => {
                        let piece = (tower.tower.name, tower.passes(), tower.tensors());
                        let tune = || tower.tune::<B>(open.as_ref());
                        unless_done(piece, open.as_ref(), progress, &mut done, tune)?;
                    }
                }
            }
            if done.len() == names.len() {
                break;
            }
            // Others are at the rest.
            if done.len() == known {
                progress.check()?;
                std::thread::sleep(work::POLL);
            }
        }
        let mut tuned = Tuned::default();
        for name in names {
            let (tensors, report) = done.remove(name).expect("all are done");
            tuned.tensors.extend(tensors);
            tuned.report.push(report);
        }
        if scope == Scope::Tower {
            tuned.last = towers.iter().flat_map(TowerJob::last).collect();
            open.iter().try_for_each(|work| towers.iter().try_for_each(|tower| tower.clear(work)))?;
        }
        Ok(tuned)
    }

    fn tower<'t>(
        &'t self,
        tower: &'t Tower,
        batches: &'t dyn Batches<B::InnerBackend>,
        progress: &'t dyn Progress,
    ) -> TowerJob<'t, B::InnerBackend> {
        let Self { original, quantise, settings, device, .. } = self;
        TowerJob { tower, original: *original, batches, quantise: *quantise, settings, progress, device }
    }

    /// Does the blocks of a tower that nobody has done or is at.
    fn blocks(
        &self,
        job: &TowerJob<'_, B::InnerBackend>,
        work: Option<&Open<'_>>,
        done: &mut Done,
    ) -> Result<()> {
        let TowerJob { tower, batches, progress, .. } = *job;
        let mut stream = Stream::new(tower, self.original, batches, &self.device);
        let mut stages = 0;
        for (index, block) in tower.blocks.iter().enumerate() {
            let piece = (&block.name[..], passes(block, self.quantise, &self.settings), block.tensors());
            unless_done(piece, work, progress, done, || {
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
                tune_block::<B>(block, self.original, &states, quantise, settings, progress, &self.device)
            })?;
        }
        Ok(())
    }
}

/// Fine-tunes a block or tower (its name, its passes, its tensors) with `tune`, unless that is done or somebody else is at it.
fn unless_done(
    (name, passes, tensors): (&str, u64, Vec<TensorSpec>),
    work: Option<&Open<'_>>,
    progress: &dyn Progress,
    done: &mut Done,
    tune: impl FnOnce() -> Result<(Tensors, Report)>,
) -> Result<()> {
    if done.contains_key(name) {
        return Ok(());
    }
    let claim = match work.map(|work| work.take(name, &tensors)).transpose()? {
        None => None,
        Some(Turn::Ours(claim)) => Some(claim),
        Some(Turn::Others) => return Ok(()),
        Some(Turn::Done(result)) => {
            progress.advance(passes);
            done.insert(name.to_owned(), result);
            return Ok(());
        }
    };
    let result = tune()?;
    if let Some(work) = work {
        work.write(name, &result.0, &result.1)?;
    }
    drop(claim);
    done.insert(name.to_owned(), result);
    Ok(())
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
