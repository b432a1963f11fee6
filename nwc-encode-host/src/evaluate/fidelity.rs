//! How far a model's outputs are from another's: logits, or embeddings of length one.

use burn::backend::Flex;
use burn::tensor::Device;
use rayon::prelude::*;
use serde::Serialize;

use super::{log_sum, normalise, outputs, sections, units};
use crate::forward::{Batches, NoTaps, Quiet, Stream, Tower};
use crate::progress::Progress;
use crate::samples::{Data, Limits, Samples, window};
use crate::subject::Subject;
use crate::{Error, Result};

/// Random inputs where there are no data, and the tokens of each.
const RANDOM_SAMPLES: usize = 16;
const RANDOM_LENGTH: usize = 64;

/// What came of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Fidelity {
    /// Of each tower that was run.
    pub towers: Vec<TowerFidelity>,
    /// Inputs were random numbers.
    pub random: bool,
}

/// How far the outputs of a tower are from the reference's.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TowerFidelity {
    /// Its name.
    pub tower: String,
    /// Outputs: texts, images, or tokens whose successor is predicted.
    pub n: usize,
    /// Mean cosine of an output and the reference's.
    pub cosine: f64,
    /// Length of all differences over the length of all outputs of the reference.
    pub relative_error: f64,
    /// Of language models: mean Kullback-Leibler divergence of the predictions from the reference's, in nats.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub divergence: Option<f64>,
}

impl Fidelity {
    /// Outputs of all towers.
    pub fn n(&self) -> usize {
        self.towers.iter().map(|tower| tower.n).sum()
    }

    /// Mean over all outputs.
    pub fn cosine(&self) -> f64 {
        self.mean(|tower| tower.cosine)
    }

    /// Mean over all outputs, of the squares of towers.
    pub fn relative_error(&self) -> f64 {
        self.mean(|tower| tower.relative_error * tower.relative_error).sqrt()
    }

    /// Of a language model.
    pub fn divergence(&self) -> Option<f64> {
        self.towers.iter().find_map(|tower| tower.divergence)
    }

    fn mean(&self, of: impl Fn(&TowerFidelity) -> f64) -> f64 {
        self.towers.iter().map(|tower| of(tower) * tower.n as f64).sum::<f64>() / self.n().max(1) as f64
    }
}

/// Compares the outputs of two models of one kind, on data or on random inputs.
///
/// # Errors
/// If they are not of one kind, the data have nothing for them, or as running a model.
pub fn fidelity(
    subject: &Subject<'_>,
    reference: &Subject<'_>,
    data: Option<&Data>,
    limits: Limits,
    progress: &dyn Progress,
) -> Result<Fidelity> {
    let mut work = Vec::new();
    for tower in &subject.forward.towers {
        let other = reference.forward.tower(tower.name).map_err(|error| error.file(reference.path))?;
        let samples = if let Some(data) = data {
            Samples::new(subject, tower, data, limits)?
        } else {
            let length = match limits.length {
                Some(length) => length,
                None => window(subject, tower, None)?.min(RANDOM_LENGTH),
            };
            let count = limits.samples.unwrap_or(RANDOM_SAMPLES);
            Some(Samples::random(subject, tower, count, length)?)
        };
        match samples {
            Some(samples) => work.push((tower, other, samples)),
            None => progress.warn(&format!("the {} part is left out: there are no data for it", tower.name)),
        }
    }
    if work.is_empty() {
        return Err(Error::input("has nothing for this model")
            .remedy("give a text, or images and captions, or leave --data out for random inputs"));
    }
    let all = work.iter().map(|(tower, other, samples)| units(tower, samples) + units(other, samples));
    progress.begin("comparing", all.sum());
    let unit = subject.forward.similarity.is_some();
    let towers = work.iter().map(|(tower, other, samples)| {
        compare((subject, tower), (reference, other), samples, unit, progress)
    });
    Ok(Fidelity { towers: towers.collect::<Result<_>>()?, random: data.is_none() })
}

fn compare(
    (subject, tower): (&Subject<'_>, &Tower),
    (reference, other): (&Subject<'_>, &Tower),
    samples: &Samples<'_>,
    unit: bool,
    progress: &dyn Progress,
) -> Result<TowerFidelity> {
    let device = Device::<Flex>::default();
    let (mut n, mut cosines, mut difference, mut energy) = (0, 0.0, 0.0, 0.0);
    let mut divergence = tower.head.predicts().map(|_| 0.0);
    let square = |x: f32| f64::from(x) * f64::from(x);
    for section in sections(tower, samples) {
        let mut stream = Stream::new(tower, subject.weights, &section, &device);
        let mut wanted = Stream::new(other, reference.weights, &section, &device);
        stream.run_all(&mut Quiet(progress))?;
        wanted.run_all(&mut Quiet(progress))?;
        let (head, wanted_head) = (stream.head()?, wanted.head()?);
        for index in 0..section.count() {
            let features = stream.features(&head, index, &mut Quiet(progress))?;
            let wanted = wanted.features(&wanted_head, index, &mut Quiet(progress))?;
            outputs(tower, &head, &features, |rows, out, mut found| {
                let some = wanted.clone().slice_dim(0, rows);
                let wanted = other.head.project(&wanted_head, some, &mut NoTaps);
                let mut wanted = crate::parameters::values(&wanted);
                if found.len() != wanted.len() {
                    return Err(Error::input("has outputs of other dimensions than the model")
                        .file(reference.path)
                        .remedy("give the model that the other one was made from"));
                }
                if unit {
                    normalise(&mut found, out);
                    normalise(&mut wanted, out);
                }
                if let Some(divergence) = &mut divergence {
                    let rows = found.par_chunks(out).zip(wanted.par_chunks(out));
                    let of_rows: Vec<f64> =
                        rows.map(|(found, wanted)| divergence_of(wanted, found)).collect();
                    *divergence += of_rows.iter().sum::<f64>();
                }
                for (a, b) in found.chunks(out).zip(wanted.chunks(out)) {
                    let dot: f64 = a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
                    let [of_a, of_b] = [a, b].map(|row| row.iter().map(|&x| square(x)).sum::<f64>());
                    difference += a.iter().zip(b).map(|(&a, &b)| square(a - b)).sum::<f64>();
                    energy += of_b;
                    // Two outputs of zeros are the same.
                    cosines += if of_a == 0.0 && of_b == 0.0 { 1.0 } else { dot / (of_a * of_b).sqrt() };
                    n += 1;
                }
                Ok(())
            })?;
        }
    }
    Ok(TowerFidelity {
        tower: tower.name.to_owned(),
        n,
        cosine: cosines / n as f64,
        relative_error: (difference / energy).sqrt(),
        divergence: divergence.map(|sum| sum / n as f64),
    })
}

/// The Kullback-Leibler divergence, in nats, of the predictions that have the logits `q` from those that have `p`.
fn divergence_of(p: &[f32], q: &[f32]) -> f64 {
    let ((p_largest, p_log), (q_largest, q_log)) = (log_sum(p), log_sum(q));
    let terms = p.iter().zip(q).map(|(&p, &q)| {
        let (p, q) = (f64::from(p - p_largest) - p_log, f64::from(q - q_largest) - q_log);
        p.exp() * (p - q)
    });
    terms.sum()
}
