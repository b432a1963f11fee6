//! Fine-tuning of a whole tower: what coding a part of it breaks, all of it that is not coded yet makes good.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Range;
use std::time::Instant;

use burn::tensor::Tensor;
use burn::tensor::activation::log_softmax;
use burn::tensor::backend::{AutodiffBackend, Backend};
use nwc_decode_core::DType;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::block::{SLOWER, code, norms_and_biases, rounded};
use super::work::Open;
use super::{Report, Settings, StepReport, Tensors};
use crate::Result;
use crate::adam::Adam;
use crate::compress::Quantise;
use crate::forward::{Batches, NoTaps, Role, Stage, TensorSpec, Tokens, Tower, Weights, load, unit};
use crate::parameters::{Parameters, values};
use crate::progress::Progress;

/// The rate rises by this factor after training that did good, up to what it was at first.
const FASTER: f64 = 2.0;

/// A tower that is fine-tuned as a whole.
pub(super) struct TowerJob<'a, I: Backend> {
    pub(super) tower: &'a Tower,
    pub(super) original: &'a dyn Weights,
    pub(super) batches: &'a dyn Batches<I>,
    pub(super) quantise: &'a dyn Quantise,
    pub(super) settings: &'a Settings,
    pub(super) progress: &'a dyn Progress,
    pub(super) device: &'a I::Device,
}

/// What is coded at once: tensors by name, and the stage that trains next.
struct Step {
    stage: usize,
    names: Vec<String>,
}

impl<'a, I: Backend> TowerJob<'a, I> {
    /// The stages of the tower: the embedding, blocks, the head.
    fn stages(&self) -> Vec<&'a dyn Stage> {
        let blocks = self.tower.blocks.iter().map(|block| block as &dyn Stage);
        let first: &dyn Stage = &self.tower.embedding;
        std::iter::once(first).chain(blocks).chain([&self.tower.head as &dyn Stage]).collect()
    }

    /// All of its tensors.
    pub(super) fn tensors(&self) -> Vec<TensorSpec> {
        self.stages().into_iter().flat_map(Stage::tensors).collect()
    }

    /// What is coded, in order. The embedding and the output layer come first, before anything is trained: all else can make good what is lost
    /// in them.
    fn steps(&self) -> Vec<Step> {
        let mut seen = HashSet::new();
        let mut steps = Vec::new();
        for (index, stage) in self.stages().into_iter().enumerate() {
            let together = match index {
                0 => {
                    let embedding = stage.tensors().into_iter().map(|spec| spec.name);
                    let [.., output] = by_inputs(&self.tower.head);
                    vec![embedding.chain(output).collect()]
                }
                _ => by_inputs(stage).into(),
            };
            for mut names in together {
                names.retain(|name: &String| self.quantise.is_coded(name) && seen.insert(name.clone()));
                if !names.is_empty() {
                    steps.push(Step { stage: index.max(1), names });
                }
            }
        }
        steps
    }

    /// What nothing makes good that is lost in it: what is coded last.
    pub(super) fn last(&self) -> Vec<String> {
        self.steps().pop().map_or_else(Vec::new, |step| step.names)
    }

    /// Removes what a run of it leaves behind for those who go on from there.
    pub(super) fn clear(&self, work: &Open<'_>) -> Result<()> {
        (0..=self.tower.blocks.len() + 1).try_for_each(|stage| work.remove(&checkpoint(self.tower, stage)))
    }

    /// The units of progress that it makes: passes over its sequences.
    pub(super) fn passes(&self) -> u64 {
        (self.steps().len() * self.settings.epochs) as u64
    }

    /// Fine-tunes it: the tensors that change, none if it was good for nothing, and what it was good for.
    ///
    /// # Errors
    /// If a tensor or input cannot be read, weights cannot be coded, there are not two batches, or `progress` stops it.
    pub(super) fn tune<B: AutodiffBackend<InnerBackend = I, Device = I::Device>>(
        &self,
        work: Option<&Open<'_>>,
    ) -> Result<(Tensors, Report)> {
        let started = Instant::now();
        let original: Parameters<I> = load(self.tensors(), self.original, self.device)?;
        let mut trained = BTreeMap::new();
        for (index, stage) in self.stages().into_iter().enumerate().skip(1) {
            for name in norms_and_biases(stage, self.quantise) {
                let dtype = self.original.stored(&name)?.dtype;
                trained.insert(name, (index, dtype));
            }
        }
        let steps = self.steps();
        let mut untuned = original.clone();
        for step in &steps {
            self.progress.check()?;
            code(&mut untuned, &step.names, self.quantise, self.device)?;
        }
        let mut sequences = Sequences::new(self, &original, &untuned)?;
        let before = sequences.error(&untuned)?;

        let rates = Rates::new(&steps, &original, &untuned, self.settings.learning_rate);
        let stages: BTreeSet<usize> = steps.iter().map(|step| step.stage).collect();
        let name = self.tower.name.to_owned();
        let report = Report {
            name,
            before,
            after: before,
            signal: None,
            steps: Vec::new(),
            kept: false,
            seconds: 0.0,
        };
        let mut tuning =
            Tuning { job: self, steps, trained, rates, tensors: Tensors::new(), current: original, report };
        let mut finished = 0;
        if let Some((stage, state, report)) = self.state(work, &stages)? {
            tuning.resume(&state, stage, report)?;
            finished = stage;
        }
        for stage in stages {
            sequences.enter(&tuning.rounded(), stage)?;
            if stage <= finished {
                self.progress.advance(tuning.passes(stage));
                continue;
            }
            tuning.stage::<B>(&sequences, stage)?;
            if let Some(work) = work {
                work.write(&checkpoint(self.tower, stage), &tuning.state(), &tuning.report)?;
                work.remove(&checkpoint(self.tower, finished))?;
                finished = stage;
            }
        }
        let rounded = tuning.rounded();
        let mut report = tuning.report;
        // Nothing has changed since.
        let last = report.steps.last();
        report.after = last.map_or(before, |step| if step.kept { step.after } else { step.before });
        let mut tensors = Tensors::new();
        // False of what is not a number too.
        report.kept = report.after < before;
        if report.kept {
            tensors = tuning.tensors;
            tensors.extend(tuning.trained.keys().map(|name| (name.clone(), rounded.host(name))));
        }
        report.seconds = started.elapsed().as_secs_f64();
        Ok((tensors, report))
    }

    /// The last stage that somebody finished, what [`Tuning::state`] was after it, and the report up to it.
    fn state(
        &self,
        work: Option<&Open<'_>>,
        stages: &BTreeSet<usize>,
    ) -> Result<Option<(usize, Tensors, Report)>> {
        let Some(work) = work else { return Ok(None) };
        let tensors = self.tensors();
        for &stage in stages.iter().rev() {
            if let Some((state, report)) = work.read(&checkpoint(self.tower, stage), &tensors)? {
                return Ok(Some((stage, state, report)));
            }
        }
        Ok(None)
    }

    /// What comes out of a block, for these texts if it is texts.
    fn block<B: Backend<Device = I::Device>>(
        &self,
        parameters: &Parameters<B>,
        hidden: Tensor<B, 3>,
        stage: usize,
        tokens: Option<&Tokens>,
    ) -> Tensor<B, 3> {
        let padding = self.tower.padding(tokens, self.device);
        self.tower.blocks[stage - 1].forward(parameters, hidden, padding.as_ref(), &mut NoTaps)
    }

    /// From what goes into a stage to the features that the head projects.
    fn features<B: Backend<Device = I::Device>>(
        &self,
        parameters: &Parameters<B>,
        hidden: Tensor<B, 3>,
        stage: usize,
        tokens: Option<&Tokens>,
    ) -> Result<Tensor<B, 2>> {
        let blocks = stage..=self.tower.blocks.len();
        let hidden = blocks.fold(hidden, |hidden, stage| self.block(parameters, hidden, stage, tokens));
        self.tower.head.features(parameters, hidden, tokens, &mut NoTaps)
    }

    /// Logits of tokens, or embeddings of length one.
    fn outputs<B: Backend>(&self, parameters: &Parameters<B>, features: Tensor<B, 2>) -> Tensor<B, 2> {
        let outputs = self.tower.head.project(parameters, features, &mut NoTaps);
        match self.tower.head.predicts() {
            Some(_) => outputs,
            None => unit(outputs),
        }
    }
}

/// The linear maps of a stage that have the same inputs, of all experts, in the order in which they are run.
fn by_inputs(stage: &dyn Stage) -> [Vec<String>; 5] {
    let mut steps = <[Vec<String>; 5]>::default();
    for linear in stage.tuning_order() {
        let step = match linear.role {
            Role::Patch | Role::Value | Role::Query | Role::Key => 0,
            Role::Output => 1,
            Role::Router | Role::Up | Role::Gate | Role::GateUp => 2,
            Role::Down => 3,
            Role::Projection => 4,
        };
        steps[step].push(linear.tensor.clone());
    }
    steps
}

/// What the state after a stage is called in the work folder.
fn checkpoint(tower: &Tower, stage: usize) -> String {
    format!("{}.stage-{stage}", tower.name)
}

/// Peak learning rates. Adam's steps have the size of its rate however small gradients are: with one rate for all, training loses more
/// than it makes good where little is lost.
struct Rates {
    /// Of what is coded, by name.
    coded: HashMap<String, f64>,
    /// Of all else.
    others: f64,
}

impl Rates {
    /// `part` of the root mean square of what coding loses.
    fn new<B: Backend>(steps: &[Step], original: &Parameters<B>, coded: &Parameters<B>, part: f64) -> Self {
        let (mut sum, mut count) = (0.0, 0.0);
        let mut rate = |name: &String| {
            let lost = coded.get(name) - original.get(name);
            let weights = lost.dims().iter().product::<usize>() as f64;
            let square = f64::from(values(&lost.square().sum())[0]);
            (sum, count) = (sum + square, count + weights);
            (name.clone(), part * (square / weights).sqrt())
        };
        let coded = steps.iter().flat_map(|step| &step.names).map(&mut rate).collect();
        Self { coded, others: part * (sum / f64::max(count, 1.0)).sqrt() }
    }

    fn of(&self, name: &str) -> f64 {
        self.coded.get(name).copied().unwrap_or(self.others)
    }
}

/// How far a tower has come.
struct Tuning<'a, I: Backend> {
    job: &'a TowerJob<'a, I>,
    steps: Vec<Step>,
    /// Norms and biases, the stage of each, and the type in which it is stored.
    trained: BTreeMap<String, (usize, DType)>,
    rates: Rates,
    /// What is coded, as it was when it was coded.
    tensors: Tensors,
    /// Everything, coded or as trained so far.
    current: Parameters<I>,
    /// Of what was done so far.
    report: Report,
}

impl<I: Backend> Tuning<'_, I> {
    fn of_stage(&self, stage: usize) -> Range<usize> {
        let first = self.steps.partition_point(|step| step.stage < stage);
        first..self.steps.partition_point(|step| step.stage <= stage)
    }

    fn passes(&self, stage: usize) -> u64 {
        (self.of_stage(stage).len() * self.job.settings.epochs) as u64
    }

    /// Everything, norms and biases as they will be stored.
    fn rounded(&self) -> Parameters<I> {
        let types = self.trained.iter().map(|(name, (_, dtype))| (name, *dtype));
        rounded(&self.current, types, self.job.device)
    }

    /// All that the next stages need.
    fn state(&self) -> Tensors {
        let coded = self.steps.iter().flat_map(|step| &step.names);
        let names = coded.chain(self.trained.keys());
        let host = |name: &String| match self.tensors.get(name) {
            Some(tensor) => tensor.clone(),
            None => self.current.host(name),
        };
        names.map(|name| (name.clone(), host(name))).collect()
    }

    /// Goes on from what [`state`](Self::state) and the report were after a stage.
    fn resume(&mut self, state: &Tensors, stage: usize, report: Report) -> Result<()> {
        self.report = report;
        for (name, tensor) in state {
            self.current.insert(name.clone(), tensor.clone(), self.job.device);
        }
        for index in 0..self.of_stage(stage).end {
            self.code(index)?;
        }
        Ok(())
    }

    /// Codes the tensors of a step.
    fn code(&mut self, step: usize) -> Result<()> {
        let names = &self.steps[step].names;
        self.tensors.extend(names.iter().map(|name| (name.clone(), self.current.host(name))));
        code(&mut self.current, names, self.job.quantise, self.job.device)
    }

    /// Codes a stage, and trains what is not coded after each step. Training that the held-out sequences do not speak for is undone, and
    /// what comes after it is slower for a while.
    fn stage<B: AutodiffBackend<InnerBackend = I, Device = I::Device>>(
        &mut self,
        sequences: &Sequences<'_, I>,
        stage: usize,
    ) -> Result<()> {
        let Settings { epochs, seed, .. } = *self.job.settings;
        let mut order = sequences.training.clone();
        let updates = epochs * order.len();
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(stage as u64);
        for step in self.of_stage(stage) {
            self.code(step)?;
            let later = self.steps[step + 1..].iter().flat_map(|step| &step.names);
            let norms = self.trained.iter().filter(|(_, (at, _))| *at >= stage).map(|(name, _)| name);
            let open: HashSet<&str> = later.chain(norms).map(String::as_str).collect();
            let mut adam = Adam::new(&self.current, |name| open.contains(name));
            let (untrained, before) = (self.current.clone(), sequences.error(&self.rounded())?);
            let factor = |step: &StepReport| if step.kept { FASTER } else { SLOWER };
            let steps = self.report.steps.iter();
            let slower = steps.fold(1.0, |rate: f64, step| (rate * factor(step)).min(1.0));
            // What Adam's steps disturb grows with the square of their size, and must stay a part of what is lost so far.
            let slower = slower * (before / self.report.before).sqrt().min(1.0);
            let mut update = 0;
            for _ in 0..epochs {
                order.shuffle(&mut rng);
                for &batch in &order {
                    self.job.progress.check()?;
                    let tracked = Parameters::<B>::tracked_where(&self.current, |name| open.contains(name));
                    let gradients = sequences.loss(&tracked, batch)?.backward();
                    let rate = |name: &str| slower * self.rates.of(name);
                    adam.update(&mut self.current, &tracked, gradients, (update, updates), rate);
                    update += 1;
                }
                self.job.progress.advance(1);
            }
            let after = sequences.error(&self.rounded())?;
            let kept = after < before;
            if !kept {
                self.current = untrained;
            }
            let tensor = self.steps[step].names[0].clone();
            self.report.steps.push(StepReport { tensor, before, after, kept });
        }
        Ok(())
    }
}

/// Some sequences: what goes into a stage of a tower that is coded so far, and what should come out of the tower.
struct Batch<I: Backend> {
    hidden: Tensor<I, 3>,
    tokens: Option<Tokens>,
    /// Features of the original, which its head projects to logits as they are needed; or its embeddings.
    target: Tensor<I, 2>,
}

/// All sequences.
struct Sequences<'a, I: Backend> {
    job: &'a TowerJob<'a, I>,
    /// The stage that they are before.
    stage: usize,
    batches: Vec<Batch<I>>,
    /// The original's head.
    head: Parameters<I>,
    held_out: Vec<usize>,
    training: Vec<usize>,
}

impl<'a, I: Backend> Sequences<'a, I> {
    fn new(job: &'a TowerJob<'a, I>, original: &Parameters<I>, coded: &Parameters<I>) -> Result<Self> {
        let mut batches = Vec::new();
        for index in 0..job.batches.count() {
            job.progress.check()?;
            let input = job.batches.input(index, job.device)?;
            let embed = |parameters| job.tower.embedding.forward(parameters, &input, job.device, &mut NoTaps);
            let (wanted, hidden) = (embed(original)?, embed(coded)?);
            let [count, ..] = hidden.dims();
            for first in (0..count).step_by(job.settings.batch) {
                let range = first..(first + job.settings.batch).min(count);
                let tokens = job.batches.tokens(index).map(|tokens| tokens.part(range.clone()));
                let wanted = wanted.clone().slice_dim(0, range.clone());
                let features = job.features(original, wanted, 1, tokens.as_ref())?;
                let target = match job.tower.head.predicts() {
                    Some(_) => features,
                    None => job.outputs(original, features),
                };
                batches.push(Batch { hidden: hidden.clone().slice_dim(0, range), tokens, target });
            }
        }
        let (held_out, training) =
            job.settings.split((0..batches.len()).collect(), "batches of sequences")?;
        let names: HashSet<String> = job.tower.head.tensors().into_iter().map(|spec| spec.name).collect();
        let head = original.only(|name| names.contains(name));
        Ok(Self { job, stage: 1, batches, head, held_out, training })
    }

    /// Goes on to a later stage, through those before it.
    fn enter(&mut self, parameters: &Parameters<I>, stage: usize) -> Result<()> {
        for stage in self.stage..stage {
            for Batch { hidden, tokens, .. } in &mut self.batches {
                self.job.progress.check()?;
                *hidden = self.job.block(parameters, hidden.clone(), stage, tokens.as_ref());
            }
        }
        self.stage = stage;
        Ok(())
    }

    /// Something that has the gradient of a batch's mean error.
    fn loss<B: AutodiffBackend<InnerBackend = I, Device = I::Device>>(
        &self,
        parameters: &Parameters<B>,
        batch: usize,
    ) -> Result<Tensor<B, 1>> {
        let batch = &self.batches[batch];
        let hidden = Tensor::from_inner(batch.hidden.clone());
        let features = self.job.features(parameters, hidden, self.stage, batch.tokens.as_ref())?;
        let outputs = self.job.outputs(parameters, features);
        let (_, gradient) = self.compare(outputs.clone().inner(), &batch.target);
        Ok((outputs * Tensor::from_inner(gradient)).sum())
    }

    /// The mean error over what is held out.
    fn error(&self, parameters: &Parameters<I>) -> Result<f64> {
        let (mut sum, mut rows) = (0.0, 0);
        for &batch in &self.held_out {
            self.job.progress.check()?;
            let Batch { hidden, tokens, target } = &self.batches[batch];
            let features = self.job.features(parameters, hidden.clone(), self.stage, tokens.as_ref())?;
            let outputs = self.job.outputs(parameters, features);
            let errors = values(&self.compare(outputs, target).0);
            sum += errors.iter().copied().map(f64::from).sum::<f64>();
            rows += errors.len();
        }
        Ok(sum / rows as f64)
    }

    /// The error of each row of outputs `[rows, width]`, and the gradient of their mean: the divergence KL(original || outputs) of tokens in
    /// nats, or the squared distance of embeddings.
    fn compare(&self, outputs: Tensor<I, 2>, target: &Tensor<I, 2>) -> (Tensor<I, 2>, Tensor<I, 2>) {
        let scale = (outputs.dims()[0] as f64).recip();
        if self.job.tower.head.predicts().is_none() {
            let difference = outputs - target.clone();
            return (difference.clone().square().sum_dim(1), difference * (2.0 * scale));
        }
        let wanted = log_softmax(self.job.outputs(&self.head, target.clone()), 1);
        let outputs = log_softmax(outputs, 1);
        let share = wanted.clone().exp();
        let gradient = (outputs.clone().exp() - share.clone()) * scale;
        (((wanted - outputs) * share).sum_dim(1), gradient)
    }
}
