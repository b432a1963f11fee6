//! Fine-tuning of one block.

use std::collections::{BTreeMap, HashSet};
use std::time::Instant;

use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};
use half::{bf16, f16};
use nwc_decode_core::DType;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::states::{Batch, Sequences};
use super::{Quantise, Report, Settings, States, Tensors};
use crate::adam::Adam;
use crate::forward::{Block, Linear, NoTaps, Role, Stage, Weights};
use crate::parameters::{HostTensor, Parameters, values};
use crate::progress::Progress;
use crate::{Error, Result};

/// The learning rate falls by this factor after training that did no good.
pub(super) const SLOWER: f64 = 0.3;

/// What is coded together, step by step: tensors by name.
fn steps(stage: &dyn Stage, quantise: &dyn Quantise) -> Vec<Vec<String>> {
    let mut steps: Vec<(Option<Role>, Vec<String>)> = Vec::new();
    let mut seen = HashSet::new();
    for linear in stage.tuning_order() {
        let name = &linear.tensor;
        if !quantise.is_coded(name) || !seen.insert(name.clone()) {
            continue;
        }
        let role = linear.expert.map(|_| linear.role);
        match steps.last_mut() {
            Some((last, names)) if role.is_some() && *last == role => names.push(name.clone()),
            _ => steps.push((role, vec![name.clone()])),
        }
    }
    steps.into_iter().map(|(_, names)| names).collect()
}

/// The norms and biases of a stage. The bias of a router that is not coded is left alone, as the router is: it decides which experts are run.
pub(super) fn norms_and_biases(stage: &dyn Stage, quantise: &dyn Quantise) -> Vec<String> {
    let norms = stage.norms().into_iter().flat_map(|norm| std::iter::once(&norm.weight).chain(&norm.bias));
    let linears = stage.groups().concat();
    let trained = |linear: &&&Linear| linear.role != Role::Router || quantise.is_coded(&linear.tensor);
    let biases = linears.iter().filter(trained).filter_map(|linear| linear.bias.as_ref());
    let mut names: Vec<String> = norms.chain(biases).cloned().collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// The units of progress that fine-tuning of a block makes: passes over its sequences.
pub fn passes(block: &Block, quantise: &dyn Quantise, settings: &Settings) -> u64 {
    (steps(block, quantise).len() * settings.epochs) as u64
}

/// Fine-tunes one block: the tensors that change, by name, and what it was good for. There are none if it was good for nothing. Advances
/// `progress` by [`passes`].
///
/// # Errors
/// If a tensor cannot be read or coded, there are not two sequences, or `progress` stops it.
pub fn tune_block<B: AutodiffBackend>(
    block: &Block,
    original: &dyn Weights,
    states: &[States<B::InnerBackend>],
    quantise: &dyn Quantise,
    settings: &Settings,
    progress: &dyn Progress,
    device: &B::Device,
) -> Result<(Tensors, Report)> {
    let started = Instant::now();
    let first: Parameters<B::InnerBackend> = block.load(original, device)?;
    let mut types = BTreeMap::new();
    for name in norms_and_biases(block, quantise) {
        let dtype = original.stored(&name)?.dtype;
        types.insert(name, dtype);
    }
    let tuning = Tuning {
        block,
        sequences: Sequences::new(block, &first, states, settings)?,
        types,
        settings,
        progress,
        device,
    };
    let steps = steps(block, quantise);
    let mut untuned = first.clone();
    for step in &steps {
        progress.check()?;
        code(&mut untuned, step, quantise, device)?;
    }
    let before = tuning.error(&untuned)?;
    let mut tensors = Tensors::new();
    let mut current = first.clone();
    let mut rate = settings.learning_rate;
    let mut rng = ChaCha8Rng::seed_from_u64(settings.seed);
    rng.set_stream(u64::from(crc32fast::hash(block.name.as_bytes())) + 1);
    for (index, step) in steps.iter().enumerate() {
        if index == 0 {
            // Nothing has been trained yet: it is coded already.
            step.iter().for_each(|name| current.set(name, untuned.get(name)));
        } else {
            tensors.extend(step.iter().map(|name| (name.clone(), current.host(name))));
            code(&mut current, step, quantise, device)?;
        }
        let open: HashSet<&str> = steps[index + 1..].iter().flatten().map(String::as_str).collect();
        let scale = if before > 0.0 { before.recip() } else { 1.0 };
        let (best, better) = tuning.train::<B>(current, &open, scale, rate, &mut rng)?;
        current = best;
        if !better {
            rate *= SLOWER;
        }
    }
    let current = tuning.rounded(&current);
    let after = tuning.error(&current)?;
    // False of what is not a number too.
    let kept = after < before;
    if kept {
        tensors.extend(tuning.types.keys().map(|name| (name.clone(), current.host(name))));
    } else {
        tensors.clear();
    }
    let signal = tuning.signal();
    let seconds = started.elapsed().as_secs_f64();
    let name = block.name.clone();
    Ok((tensors, Report { name, before, after, signal: Some(signal), steps: Vec::new(), kept, seconds }))
}

/// Puts what a decoder makes of tensors in their place.
pub(super) fn code<B: Backend>(
    parameters: &mut Parameters<B>,
    names: &[String],
    quantise: &dyn Quantise,
    device: &B::Device,
) -> Result<()> {
    let tensors: Vec<(&String, HostTensor)> =
        names.iter().map(|name| (name, parameters.host(name))).collect();
    let decoded: Vec<Result<HostTensor>> = tensors
        .into_par_iter()
        .map(|(name, HostTensor { shape, values })| {
            let decoded = quantise.quantise(name, &values).map_err(|error| error.tensor(name))?;
            if decoded.len() != values.len() {
                let problem = format!("{} weights were decoded to {}", values.len(), decoded.len());
                return Err(Error::input(problem).tensor(name));
            }
            Ok(HostTensor { shape, values: decoded })
        })
        .collect();
    for (name, decoded) in names.iter().zip(decoded) {
        parameters.insert(name.clone(), decoded?, device);
    }
    Ok(())
}

struct Tuning<'a, B: Backend> {
    block: &'a Block,
    sequences: Sequences<'a, B>,
    /// The stored types of norms and biases.
    types: BTreeMap<String, DType>,
    settings: &'a Settings,
    progress: &'a dyn Progress,
    device: &'a B::Device,
}

impl<I: Backend> Tuning<'_, I> {
    /// Trains what is open, and norms and biases; gives the best that there was, and whether it is better than at first.
    fn train<B: AutodiffBackend<InnerBackend = I, Device = I::Device>>(
        &self,
        mut current: Parameters<I>,
        open: &HashSet<&str>,
        scale: f64,
        rate: f64,
        rng: &mut ChaCha8Rng,
    ) -> Result<(Parameters<I>, bool)> {
        let epochs = self.settings.epochs;
        let trained = |name: &str| open.contains(name) || self.types.contains_key(name);
        let mut adam = Adam::new(&current, trained);
        let mut best = (self.error(&self.rounded(&current))?, current.clone());
        let first = best.0;
        let steps = epochs * self.sequences.updates();
        let mut step = 0;
        for _ in 0..epochs {
            for batch in self.sequences.pass(rng) {
                self.progress.check()?;
                let tracked = Parameters::<B>::tracked_where(&current, trained);
                let input = Tensor::from_inner(batch.input.clone());
                let padding = batch.padding.clone().map(Tensor::from_inner);
                let output = self.block.forward(&tracked, input, padding.as_ref(), &mut NoTaps);
                let (sum, count) = batch.error(output, |tensor| Tensor::from_inner(tensor.clone()));
                let gradients = (sum * (scale / count.max(1) as f64)).backward();
                adam.update(&mut current, &tracked, gradients, (step, steps), |_| rate);
                step += 1;
            }
            let error = self.error(&self.rounded(&current))?;
            if error < best.0 {
                best = (error, current.clone());
            }
            self.progress.advance(1);
        }
        Ok((best.1, best.0 < first))
    }

    /// Norms and biases as they will be stored.
    fn rounded(&self, parameters: &Parameters<I>) -> Parameters<I> {
        rounded(parameters, self.types.iter().map(|(name, dtype)| (name, *dtype)), self.device)
    }

    /// The mean squared error of the block's output over what is held out.
    fn error(&self, parameters: &Parameters<I>) -> Result<f64> {
        self.mean(|batch| {
            self.progress.check()?;
            let output =
                self.block.forward(parameters, batch.input.clone(), batch.padding.as_ref(), &mut NoTaps);
            Ok(output)
        })
    }

    /// The mean square of what the block adds.
    fn signal(&self) -> f64 {
        self.mean(|batch| Ok(batch.input.clone())).unwrap_or(f64::NAN)
    }

    fn mean(&self, output: impl Fn(&Batch<I>) -> Result<Tensor<I, 3>>) -> Result<f64> {
        let (mut sum, mut count) = (0.0, 0);
        for batch in self.sequences.held_out() {
            let (squares, numbers) = batch.error(output(&batch)?, Clone::clone);
            sum += f64::from(values(&squares)[0]);
            count += numbers;
        }
        Ok(sum / count.max(1) as f64)
    }
}

/// Parameters, those that are stored in these types as they will be stored.
pub(super) fn rounded<'n, B: Backend>(
    parameters: &Parameters<B>,
    types: impl Iterator<Item = (&'n String, DType)>,
    device: &B::Device,
) -> Parameters<B> {
    let mut rounded = parameters.clone();
    for (name, dtype) in types {
        let HostTensor { shape, mut values } = parameters.host(name);
        match dtype {
            DType::F16 => values.iter_mut().for_each(|x| *x = f16::from_f32(*x).to_f32()),
            DType::BF16 => values.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32()),
            _ => continue,
        }
        rounded.insert(name.clone(), HostTensor { shape, values }, device);
    }
    rounded
}
