//! How much outputs matter: mean squares of the gradient of a loss with respect to what comes out of linear maps, from the last stage of a
//! tower back to the first.
//!
//! The loss is that of the model on what it says itself: of language models the tokens are drawn from their own predictions, embeddings are
//! seen through normal noise. Then the mean of squared gradients is the diagonal of the Fisher information, which tells how fast the
//! outputs move away from what they were. A sample counts with the sum over its positions, whatever their number, so that maps with few
//! of them, such as experts, can be held up against others.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use burn::backend::{Autodiff, Flex};
use burn::tensor::{Device, Tensor, TensorData};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use rayon::prelude::*;

use super::Part;
use super::layout::{COLUMNS, Layout, OUTPUTS, ROWS, Sums};
use crate::Result;
use crate::evaluate::{log_sum, outputs};
use crate::forward::{Batches, Linear, Taps, TensorSpec, Weights, load, unit};
use crate::parameters::{Parameters, values};
use crate::progress::Progress;

/// Computes gradients.
type Tracking = Autodiff<Flex>;

/// Sums of squared gradients in a stage, by what they are called in the file.
#[derive(Default)]
pub(super) struct Gradients {
    sums: BTreeMap<String, (Vec<usize>, Vec<f64>)>,
}

impl Gradients {
    /// Adds squares to some of the numbers of an entry.
    fn add(&mut self, name: String, shape: Vec<usize>, first: usize, squares: impl IntoIterator<Item = f64>) {
        let (_, sums) = match self.sums.entry(name) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let zeros = vec![0.0; shape.iter().product()];
                entry.insert((shape, zeros))
            }
        };
        sums[first..].iter_mut().zip(squares).for_each(|(sum, square)| *sum += square);
    }

    /// Adds squares of the outputs of a linear map.
    fn add_outputs(&mut self, linear: &Linear, squares: impl IntoIterator<Item = f64>) {
        let (shape, first) = linear.place_of_outputs();
        self.add(format!("{}{OUTPUTS}", linear.tensor), shape, first, squares);
    }

    /// The means over so many samples.
    pub(super) fn finish(self, samples: u64) -> (Layout, BTreeMap<String, Vec<f32>>) {
        let mut layout = Layout::default();
        let mut means = BTreeMap::new();
        for (name, (shape, sums)) in self.sums {
            means.insert(name.clone(), sums.iter().map(|sum| (sum / samples as f64) as f32).collect());
            layout.sums.insert(name, Sums { shape, samples });
        }
        (layout, means)
    }

    /// Takes a batch back through a stage: from the gradients of its outputs, none of the last stage, to those of its inputs, none of the first.
    ///
    /// # Errors
    /// If an input cannot be read.
    fn batch(
        &mut self,
        part: &Part<'_>,
        stage: usize,
        index: usize,
        parameters: &Parameters<Flex>,
        hidden: Option<&Tensor<Flex, 3>>,
        gradient: Option<&Tensor<Flex, 3>>,
    ) -> Result<Option<Tensor<Flex, 3>>> {
        let batches: &dyn Batches<Tracking> = &part.samples;
        let device = Device::<Flex>::default();
        let tracked = Parameters::<Tracking>::tracked_where(parameters, |_| false);
        let x = hidden.map(|hidden| Tensor::<Tracking, 3>::from_inner(hidden.clone()).require_grad());
        let mut sites = Sites::default();
        let tokens = batches.tokens(index);
        let loss = match (&x, gradient) {
            (Some(x), None) => {
                let seed = crc32fast::hash(part.tower.name.as_bytes());
                let mut rng = ChaCha8Rng::seed_from_u64(u64::from(seed));
                rng.set_stream(index as u64);
                let features = part.tower.head.features(&tracked, x.clone(), tokens, &mut sites)?;
                if let Some(projection) = part.tower.head.predicts() {
                    let counted = tokens.map(|tokens| part.tower.relevant(tokens)).transpose()?.flatten();
                    let inner = features.clone().inner();
                    let g =
                        self.predictions(part, projection, parameters, &inner, counted.as_deref(), &mut rng)?;
                    (features * Tensor::from_inner(g)).sum()
                } else {
                    let y = part.tower.head.project(&tracked, features, &mut sites);
                    let noise: Vec<f32> =
                        (0..y.dims().iter().product()).map(|_| StandardNormal.sample(&mut rng)).collect();
                    let noise = Tensor::from_data(TensorData::new(noise, y.dims()), &device);
                    (unit(y) * noise).sum()
                }
            }
            (Some(x), Some(gradient)) => {
                let padding = part.tower.padding(tokens, &device);
                let y =
                    part.tower.blocks[stage - 1].forward(&tracked, x.clone(), padding.as_ref(), &mut sites);
                (y * Tensor::from_inner(gradient.clone())).sum()
            }
            (None, Some(gradient)) => {
                let input = batches.input(index, &device)?;
                let y = part.tower.embedding.forward(&tracked, &input, &device, &mut sites)?;
                (y * Tensor::from_inner(gradient.clone())).sum()
            }
            (None, None) => unreachable!("a tower has more than one stage"),
        };
        let gradients = loss.backward();
        for Site { place, leaf } in sites.0 {
            let Some(gradient) = leaf.grad(&gradients) else { continue };
            let [_, width] = gradient.dims();
            let squares = gradient.square();
            let columns = values(&squares.clone().sum_dim(0)).into_iter().map(f64::from);
            match place {
                Place::Outputs(linear) => self.add_outputs(&linear, columns),
                Place::Rows(tables) => {
                    let columns: Vec<f64> = columns.collect();
                    let squares = values(&squares.sum_dim(1));
                    for (table, rows) in tables {
                        let mut by_row = vec![0.0; table.shape[0]];
                        rows.iter()
                            .zip(&squares)
                            .for_each(|(&row, square)| by_row[row] += f64::from(*square));
                        let name = &table.name;
                        self.add(format!("{name}{ROWS}"), vec![table.shape[0]], 0, by_row);
                        self.add(format!("{name}{COLUMNS}"), vec![width], 0, columns.iter().copied());
                    }
                }
            }
        }
        Ok(x.and_then(|x| x.grad(&gradients)))
    }

    /// Gradients `[rows, width]` with respect to features from which tokens are predicted, of the likelihood of tokens that are drawn from the
    /// predictions. Of the logits' own squared gradients p - 1 and p the mean over all draws is added, p (1 - p).
    fn predictions(
        &mut self,
        part: &Part<'_>,
        projection: &Linear,
        parameters: &Parameters<Flex>,
        features: &Tensor<Flex, 2>,
        counted: Option<&[bool]>,
        rng: &mut ChaCha8Rng,
    ) -> Result<Tensor<Flex, 2>> {
        let [rows, _] = features.dims();
        let draws: Vec<f64> = (0..rows).map(|_| rng.random()).collect();
        let mut gradients = Vec::new();
        outputs(part.tower, parameters, features, |range, vocabulary, mut logits| {
            // Shares of what counts, zeros of the rest.
            let shares = |(logits, row): (&mut [f32], usize)| {
                if counted.is_some_and(|counted| !counted[row]) {
                    logits.fill(0.0);
                    return;
                }
                let (largest, log) = log_sum(logits);
                logits.iter_mut().for_each(|logit| *logit = (f64::from(*logit - largest) - log).exp() as f32);
            };
            logits.par_chunks_mut(vocabulary).zip(range.clone()).for_each(shares);
            let mut squares = vec![0.0; vocabulary];
            for row in logits.chunks(vocabulary) {
                squares.iter_mut().zip(row).for_each(|(sum, &p)| *sum += f64::from(p) * f64::from(1.0 - p));
            }
            self.add_outputs(projection, squares);
            for (row, &draw) in logits.chunks_mut(vocabulary).zip(&draws[range.clone()]) {
                if row.iter().all(|&p| p == 0.0) {
                    continue;
                }
                let mut below = 0.0;
                let drawn = row.iter().position(|&p| {
                    below += f64::from(p);
                    draw < below
                });
                row[drawn.unwrap_or(vocabulary - 1)] -= 1.0;
            }
            let data = TensorData::new(logits, [range.len(), vocabulary]);
            gradients.push(projection.backward(parameters, Tensor::from_data(data, &features.device())));
            Ok(())
        })?;
        Ok(Tensor::cat(gradients, 0))
    }
}

/// Takes all batches of a tower back through a stage. `hidden` are the stage's inputs, none of the first; `gradients` those of its outputs, none of the
/// last. Returns those of its inputs.
///
/// # Errors
/// If a tensor or input cannot be read, or `progress` stops it.
pub(super) fn back(
    part: &Part<'_>,
    stage: usize,
    weights: &dyn Weights,
    hidden: &[Tensor<Flex, 3>],
    gradients: &[Tensor<Flex, 3>],
    progress: &dyn Progress,
) -> Result<(Gradients, Vec<Tensor<Flex, 3>>)> {
    let device = Device::<Flex>::default();
    let parameters = load::<Flex>(part.stage(stage).tensors(), weights, &device)?;
    let mut sums = Gradients::default();
    let mut inputs = Vec::new();
    for index in 0..part.batches() {
        progress.check()?;
        progress.advance(1);
        inputs.extend(sums.batch(
            part,
            stage,
            index,
            &parameters,
            hidden.get(index),
            gradients.get(index),
        )?);
    }
    Ok((sums, inputs))
}

/// Where a gradient is wanted.
enum Place {
    Outputs(Linear),
    Rows(Vec<(TensorSpec, Vec<usize>)>),
}

/// Zeros that were added there: their gradient is that of the sum.
struct Site {
    place: Place,
    leaf: Tensor<Tracking, 2>,
}

/// All of them.
#[derive(Default)]
struct Sites(Vec<Site>);

impl Sites {
    fn watch(&mut self, place: Place, y: Tensor<Tracking, 2>) -> Tensor<Tracking, 2> {
        let leaf = Tensor::zeros(y.dims(), &y.device()).require_grad();
        self.0.push(Site { place, leaf: leaf.clone() });
        y + leaf
    }
}

impl Taps<Tracking> for Sites {
    fn inputs(&mut self, _: &[&Linear], _: &Tensor<Tracking, 2>) {}

    fn outputs(&mut self, linear: &Linear, outputs: Tensor<Tracking, 2>) -> Tensor<Tracking, 2> {
        self.watch(Place::Outputs(linear.clone()), outputs)
    }

    fn rows(
        &mut self,
        tables: &[(&TensorSpec, Vec<usize>)],
        sum: Tensor<Tracking, 2>,
    ) -> Tensor<Tracking, 2> {
        let tables = tables.iter().map(|(table, rows)| ((*table).clone(), rows.clone())).collect();
        self.watch(Place::Rows(tables), sum)
    }
}
