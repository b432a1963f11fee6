//! Evaluation: zero-shot accuracy, perplexity, and how far a model's outputs are from another's.
//!
//! Models are run stage by stage, so that no more than one block of a container is decoded at a time. Hidden states are kept for as many
//! inputs as fit into a fixed space; more inputs take the stages again.

mod fidelity;
mod perplexity;
mod zero_shot;

use std::ops::Range;

use burn::backend::Flex;
use burn::tensor::{Device, Tensor};

use crate::Result;
use crate::forward::{Batches, Embedding, Input, NoTaps, Quiet, Stream, Tokens, Tower};
use crate::parameters::{Parameters, values};
use crate::progress::Progress;
use crate::samples::Samples;
use crate::subject::Subject;

pub use fidelity::{Fidelity, TowerFidelity, fidelity};
pub use perplexity::{Perplexity, perplexity};
pub use zero_shot::{Prompts, ZeroShot, zero_shot};

/// Hidden states that are kept at once, in bytes.
const HIDDEN_BYTES: usize = 2 << 30;
/// Logits that are computed at once.
const LOGITS: usize = 1 << 25;

/// Some of the batches.
struct Section<'a> {
    all: &'a dyn Batches<Flex>,
    range: Range<usize>,
}

impl Batches<Flex> for Section<'_> {
    fn count(&self) -> usize {
        self.range.len()
    }

    fn input(&self, index: usize, device: &Device<Flex>) -> Result<Input<Flex>> {
        self.all.input(self.range.start + index, device)
    }

    fn tokens(&self, index: usize) -> Option<&Tokens> {
        self.all.tokens(self.range.start + index)
    }
}

/// Batches whose hidden states fit.
fn sections<'a>(tower: &Tower, all: &'a dyn Batches<Flex>) -> Vec<Section<'a>> {
    let width = tower.blocks.first().map_or(1, |block| block.attention_norm.width);
    let states = match &tower.embedding {
        Embedding::Patches(patches) => Samples::BATCH_IMAGES * patches.positions.shape[0],
        Embedding::Tokens(_) => (0..all.count())
            .filter_map(|index| all.tokens(index))
            .map(|tokens| tokens.ids().len())
            .max()
            .unwrap_or(1),
    };
    let size = (HIDDEN_BYTES / (states * width * size_of::<f32>()).max(1)).max(1);
    let starts = (0..all.count()).step_by(size);
    starts.map(|start| Section { all, range: start..(start + size).min(all.count()) }).collect()
}

/// Units of progress that running a tower over its batches takes.
fn units(tower: &Tower, batches: &dyn Batches<Flex>) -> u64 {
    ((Stream::<Flex>::stages(tower) + 1) * batches.count()) as u64
}

/// Runs a tower over all batches, and hands on what its head projects of each, with the head's tensors.
fn run(
    subject: &Subject<'_>,
    tower: &Tower,
    batches: &dyn Batches<Flex>,
    progress: &dyn Progress,
    mut each: impl FnMut(usize, Tensor<Flex, 2>, &Parameters<Flex>) -> Result<()>,
) -> Result<()> {
    for section in sections(tower, batches) {
        let mut stream = Stream::new(tower, subject.weights, &section, &Device::<Flex>::default());
        stream.run_all(&mut Quiet(progress))?;
        let head = stream.head()?;
        for index in 0..section.count() {
            let features = stream.features(&head, index, &mut Quiet(progress))?;
            each(section.range.start + index, features, &head)?;
        }
    }
    Ok(())
}

/// What the head puts out of features, some rows at a time.
pub(crate) fn outputs(
    tower: &Tower,
    head: &Parameters<Flex>,
    features: &Tensor<Flex, 2>,
    mut each: impl FnMut(Range<usize>, usize, Vec<f32>) -> Result<()>,
) -> Result<()> {
    let [rows, width] = features.dims();
    let out = tower.head.projection.as_ref().map_or(width, crate::forward::Linear::outputs);
    let size = (LOGITS / out).max(1);
    for first in (0..rows).step_by(size) {
        let range = first..(first + size).min(rows);
        let some = tower.head.project(head, features.clone().slice_dim(0, range.clone()), &mut NoTaps);
        each(range, out, values(&some))?;
    }
    Ok(())
}

/// The largest of logits, and the logarithm of the sum of all exponentials next to its own.
pub(crate) fn log_sum(logits: &[f32]) -> (f32, f64) {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from((logit - largest).exp())).sum();
    (largest, sum.ln())
}

/// Makes rows as long as one.
fn normalise(rows: &mut [f32], width: usize) {
    for row in rows.chunks_mut(width) {
        let length = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
        row.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
    }
}
