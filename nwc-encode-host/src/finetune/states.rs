//! The hidden states that a block is fine-tuned on, in batches of sequences of one length.

use std::collections::BTreeMap;

use burn::tensor::backend::Backend;
use burn::tensor::{Bool, Tensor, TensorData};
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::Settings;
use crate::Result;
use crate::forward::{Block, NoTaps, Tokens, Tower};
use crate::parameters::Parameters;

/// Some sequences that go into a block.
#[derive(Debug, Clone)]
pub struct States<B: Backend> {
    /// Their hidden states, `[sequences, length, width]`.
    pub hidden: Tensor<B, 3>,
    /// True where nobody looks, sequence by sequence; none if they look everywhere.
    pub padding: Option<Vec<bool>>,
    /// Positions whose output counts, sequence by sequence; none if it is all of them.
    pub counted: Option<Vec<bool>>,
}

impl<B: Backend> States<B> {
    /// The hidden states in a tower, of these texts if it is texts. What the tower's head does not depend on does not count.
    ///
    /// # Errors
    /// As [`Tower::relevant`].
    pub fn new(
        tower: &Tower,
        hidden: Tensor<B, 3>,
        tokens: Option<&Tokens>,
        device: &B::Device,
    ) -> Result<Self> {
        let padding = tower.padding::<B>(tokens, device);
        let padding = padding.map(|padding| padding.to_data().iter::<bool>().collect());
        let counted = tokens.map(|tokens| tower.relevant(tokens)).transpose()?.flatten();
        Ok(Self { hidden, padding, counted })
    }
}

/// A batch of sequences.
pub(super) struct Batch<B: Backend> {
    pub(super) input: Tensor<B, 3>,
    pub(super) target: Tensor<B, 3>,
    pub(super) padding: Option<Tensor<B, 2, Bool>>,
    /// One for each position that counts, `[sequences, length, 1]`.
    counted: Option<Tensor<B, 3>>,
    /// How many do.
    count: usize,
}

impl<B: Backend> Batch<B> {
    /// The sum of squared errors of an output, and of how many numbers it is.
    pub(super) fn error<C: Backend>(
        &self,
        output: Tensor<C, 3>,
        upload: impl Fn(&Tensor<B, 3>) -> Tensor<C, 3>,
    ) -> (Tensor<C, 1>, usize) {
        let [_, _, width] = self.target.dims();
        let mut difference = output - upload(&self.target);
        if let Some(counted) = &self.counted {
            difference = difference * upload(counted);
        }
        (difference.square().sum(), self.count * width)
    }
}

/// A sequence: which of the states, and which row of it.
type Place = (usize, usize);

/// All sequences with what should come out.
pub(super) struct Sequences<'a, B: Backend> {
    states: &'a [States<B>],
    targets: Vec<Tensor<B, 3>>,
    held_out: Vec<Vec<Place>>,
    /// By their length.
    training: BTreeMap<usize, Vec<Place>>,
    batch: usize,
}

impl<'a, B: Backend> Sequences<'a, B> {
    /// Runs the original block, and chooses the sequences that are held out.
    ///
    /// # Errors
    /// If there are not two sequences.
    pub(super) fn new(
        block: &Block,
        original: &Parameters<B>,
        states: &'a [States<B>],
        settings: &Settings,
    ) -> Result<Self> {
        let forward = |states: &States<B>| {
            let [sequences, length, _] = states.hidden.dims();
            let padding = states.padding.clone().map(|padding| {
                Tensor::from_data(TensorData::new(padding, [sequences, length]), &states.hidden.device())
            });
            block.forward(original, states.hidden.clone(), padding.as_ref(), &mut NoTaps)
        };
        let mut places: Vec<Place> = Vec::new();
        for (sample, States { hidden, .. }) in states.iter().enumerate() {
            places.extend((0..hidden.dims()[0]).map(|row| (sample, row)));
        }
        let (held_out, training) = settings.split(places, "sequences")?;
        let by_length = |places: Vec<Place>| {
            let mut lengths: BTreeMap<usize, Vec<Place>> = BTreeMap::new();
            for place in places {
                lengths.entry(states[place.0].hidden.dims()[1]).or_default().push(place);
            }
            lengths
        };
        Ok(Self {
            states,
            targets: states.iter().map(forward).collect(),
            held_out: chunks(&by_length(held_out), settings.batch),
            training: by_length(training),
            batch: settings.batch,
        })
    }

    /// The batches that are held out.
    pub(super) fn held_out(&self) -> impl Iterator<Item = Batch<B>> {
        self.held_out.iter().map(|places| self.gather(places))
    }

    /// Batches that are trained on in one pass.
    pub(super) fn updates(&self) -> usize {
        self.training.values().map(|places| places.len().div_ceil(self.batch)).sum()
    }

    /// The batches of a pass, in a new order.
    pub(super) fn pass(&self, rng: &mut ChaCha8Rng) -> impl Iterator<Item = Batch<B>> {
        let mut training = self.training.clone();
        training.values_mut().for_each(|places| places.shuffle(rng));
        let mut batches = chunks(&training, self.batch);
        batches.shuffle(rng);
        batches.into_iter().map(|places| self.gather(&places))
    }

    fn gather(&self, places: &[Place]) -> Batch<B> {
        let [_, length, _] = self.targets[places[0].0].dims();
        let rows = |of: &dyn Fn(usize) -> Tensor<B, 3>| {
            let row = |&(sample, row): &Place| of(sample).slice_dim(0, row..row + 1);
            Tensor::cat(places.iter().map(row).collect(), 0)
        };
        let input = rows(&|sample| self.states[sample].hidden.clone());
        let target = rows(&|sample| self.targets[sample].clone());
        let device = input.device();
        let marks = |of: &dyn Fn(usize) -> Option<Vec<bool>>, none: bool| {
            let row = |&(sample, row): &Place| match of(sample) {
                Some(all) => all[row * length..][..length].to_vec(),
                None => vec![none; length],
            };
            places.iter().flat_map(row).collect::<Vec<bool>>()
        };
        let hidden = marks(&|sample| self.states[sample].padding.clone(), false);
        let counted = marks(&|sample| self.states[sample].counted.clone(), true);
        let count = counted.iter().filter(|counted| **counted).count();
        let counted = (count < counted.len()).then(|| {
            let ones: Vec<f32> = counted.iter().map(|&counted| f32::from(u8::from(counted))).collect();
            Tensor::from_data(TensorData::new(ones, [places.len(), length, 1]), &device)
        });
        let padding = hidden
            .contains(&true)
            .then(|| Tensor::from_data(TensorData::new(hidden, [places.len(), length]), &device));
        Batch { input, target, padding, counted, count }
    }
}

/// Cuts sequences of each length into batches.
fn chunks(lengths: &BTreeMap<usize, Vec<Place>>, batch: usize) -> Vec<Vec<Place>> {
    lengths.values().flat_map(|places| places.chunks(batch).map(<[Place]>::to_vec)).collect()
}
