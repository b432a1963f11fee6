//! Weights that change while a model is coded: what is coded later can make good what was lost before, beyond what LDLQ does within a tensor.

use std::collections::HashMap;

use super::encode::{TensorCoder, Worker};
use super::job::{Job, Met, Planned};
use super::plan::TensorPlan;
use super::{Selection, View};
use crate::tensors::{TensorInfo, TensorSource, from_f32};
use crate::{Error, Result};

/// The codec at the rate that was found, one tensor at a time.
pub trait Quantise: Sync {
    /// Whether a tensor is coded.
    fn is_coded(&self, name: &str) -> bool;

    /// What a decoder makes of a coded tensor with these weights, in the tensor's own order.
    ///
    /// # Errors
    /// The tensor is not coded, or has another number of weights.
    fn quantise(&self, name: &str, weights: &[f32]) -> Result<Vec<f32>>;

    /// What tells this codec from others that make other weights.
    fn fingerprint(&self) -> u32;
}

/// Weights that a tuner found for a tensor, in the tensor's own order: as they are to be coded, or stored if the tensor is not coded.
#[derive(Debug, Clone, PartialEq)]
pub struct TunedWeights {
    /// They.
    pub values: Vec<f32>,
    /// Whether they are to be coded at just the steps that the tuner saw, because other weights make good what is lost there. The rate is
    /// met with the steps of the others.
    pub bound: bool,
}

/// Finds better weights.
pub trait Tuner: Sync {
    /// New weights of some tensors, by name.
    ///
    /// # Errors
    /// Whatever keeps it from finding any.
    fn tune(&self, codec: &dyn Quantise) -> Result<HashMap<String, TunedWeights>>;
}

/// A job at its rate.
pub(super) struct AtRate<'a> {
    pub(super) job: &'a Job<'a>,
    pub(super) planned: &'a Planned,
    pub(super) met: &'a Met,
}

impl AtRate<'_> {
    fn plan(&self, name: &str) -> Option<(usize, &TensorPlan)> {
        let mut plans = self.planned.plans.iter();
        let found = plans.find(|(index, _)| self.job.source.tensor(*index).name == name)?;
        Some((found.0, &found.1))
    }
}

impl Quantise for AtRate<'_> {
    fn is_coded(&self, name: &str) -> bool {
        self.plan(name).is_some()
    }

    fn quantise(&self, name: &str, weights: &[f32]) -> Result<Vec<f32>> {
        let (index, plan) = self
            .plan(name)
            .filter(|(_, plan)| plan.view.elements() == weights.len())
            .ok_or_else(|| Error::input("is not coded, or has another shape").tensor(name))?;
        let encoder = self.job.encoder(&self.met.estimates[self.planned.codec_of(plan)]);
        let coder = TensorCoder::new(plan, self.met.steps.free, self.planned.class_base(plan));
        let dtype = self.job.source.tensor(index).dtype;
        Ok(Worker::new(&encoder).restore(&coder, weights, dtype, &self.job.factors_of(index)))
    }

    fn fingerprint(&self) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&self.met.steps.free.to_le_bytes());
        self.met.coded.codecs.iter().for_each(|codec| hasher.update(codec));
        for (_, plan) in &self.planned.plans {
            hasher.update(&plan.step.to_le_bytes());
            for values in [&plan.row_scale, &plan.column_scale, &plan.row_class, &plan.column_class] {
                hasher.update(bytemuck::cast_slice(values));
            }
        }
        hasher.finalize()
    }
}

/// A model some of whose stored tensors have other values.
pub(super) struct Replaced<'a> {
    source: &'a dyn TensorSource,
    bytes: HashMap<usize, Vec<u8>>,
}

impl<'a> Replaced<'a> {
    pub(super) fn new(source: &'a dyn TensorSource, values: HashMap<usize, Vec<f32>>) -> Self {
        let bytes = values
            .into_iter()
            .map(|(index, values)| (index, from_f32(source.tensor(index).dtype, &values)))
            .collect();
        Self { source, bytes }
    }
}

impl TensorSource for Replaced<'_> {
    fn len(&self) -> usize {
        self.source.len()
    }

    fn tensor(&self, index: usize) -> TensorInfo<'_> {
        self.source.tensor(index)
    }

    fn bytes(&self, index: usize) -> &[u8] {
        self.bytes.get(&index).map_or_else(|| self.source.bytes(index), Vec::as_slice)
    }

    fn view(&self, index: usize, selection: &Selection) -> Result<View, &'static str> {
        self.source.view(index, selection)
    }
}

#[cfg(test)]
mod tests {
    use nwc_decode_core::{Checks, Container, DType, Limits};

    use super::super::{RATE_WINDOW, Settings, Target, compress_tuned};
    use super::*;
    use crate::progress::Silent;
    use crate::restore::{Decoder, TableMemory};
    use crate::synthetic::Source;
    use crate::tensors::{OwnedTensors, to_f32};

    /// Makes weights twice as large, so that they take a bit more, and remembers what a decoder is to make of them.
    struct Twice {
        weights: Vec<f32>,
        /// Weights of the embedding whose steps may move.
        embedding: Option<Vec<f32>>,
        expected: std::sync::Mutex<Vec<f32>>,
    }

    impl Tuner for Twice {
        fn tune(&self, codec: &dyn Quantise) -> Result<HashMap<String, TunedWeights>> {
            assert!(codec.is_coded("linear") && !codec.is_coded("norm") && !codec.is_coded("none"));
            assert!(codec.quantise("norm", &[1.0]).is_err() && codec.quantise("linear", &[1.0]).is_err());
            assert_eq!(codec.fingerprint(), codec.fingerprint());
            *self.expected.lock().unwrap() = codec.quantise("linear", &self.weights)?;
            let linear = TunedWeights { values: self.weights.clone(), bound: true };
            let norm = TunedWeights { values: vec![3.0; 64], bound: false };
            let embedding = self.embedding.clone().map(|values| TunedWeights { values, bound: false });
            let embedding = embedding.map(|embedding| ("embed_tokens.weight".to_owned(), embedding));
            let found = [("linear".to_owned(), linear), ("norm".to_owned(), norm)];
            Ok(found.into_iter().chain(embedding).collect())
        }
    }

    #[test]
    fn tuned_weights_come_back_as_the_tuner_saw_them_and_the_rate_is_met() {
        let (rows, columns) = (96, 192);
        let mut tensors = OwnedTensors::default();
        let linear = Source::Gaussian.matrix(rows, columns, 1);
        tensors.push_f32("linear", &[rows, columns], &linear);
        let embedding = Source::Laplace.matrix(900, 128, 2);
        tensors.push_f32("embed_tokens.weight", &[900, 128], &embedding);
        tensors.push_f32("norm", &[64], &[1.0; 64]);
        let times = |factor: f32, weights: &[f32]| weights.iter().map(|w| factor * w).collect::<Vec<f32>>();
        let larger = times(1.1, &embedding);
        for tuned in [None, Some(larger.clone())] {
            let tuner = Twice {
                weights: times(2.0, &linear),
                embedding: tuned.clone(),
                expected: std::sync::Mutex::default(),
            };
            let mut file = tempfile::tempfile().unwrap();
            let settings = Settings::new(Target::Bits(4.0));
            let report =
                compress_tuned(&tensors, Vec::new(), &settings, Some(&tuner), &Silent, &mut file).unwrap();
            assert!(
                (4.0 - RATE_WINDOW..=4.0).contains(&report.bits_per_weight()),
                "{}",
                report.bits_per_weight()
            );
            // SAFETY: nothing else writes to the file.
            let map = unsafe { memmap2::Mmap::map(&file) }.unwrap();
            let container = Container::open(&map, &Limits::default()).unwrap();
            let mut memory = TableMemory::default();
            let decoder = Decoder::new(&container, &mut memory).unwrap();
            let restored = |index: usize| {
                let bytes = decoder.decode(&decoder.tensors()[index], Checks::All).unwrap();
                to_f32(DType::F32, &bytes)
            };
            assert_eq!(restored(0), *tuner.expected.lock().unwrap());
            assert_eq!(restored(2), [3.0; 64]);
            // Coded as they were found, at other steps.
            let distance = |weights: &[f32]| -> f32 {
                restored(1).iter().zip(weights).map(|(a, b)| (a - b) * (a - b)).sum()
            };
            let distances = (distance(&embedding), distance(&larger));
            assert_eq!(tuned.is_some(), distances.1 < distances.0, "{distances:?}");
        }
    }

    /// Twice as large weights take a bit more at the same steps, and there is nothing else to make that good.
    #[test]
    fn the_rate_is_met_with_other_steps_where_all_are_bound() {
        let linear = Source::Gaussian.matrix(256, 192, 1);
        let mut tensors = OwnedTensors::default();
        tensors.push_f32("linear", &[256, 192], &linear);
        tensors.push_f32("norm", &[64], &[1.0; 64]);
        let tuner = Twice {
            weights: linear.iter().map(|w| 2.0 * w).collect(),
            embedding: None,
            expected: std::sync::Mutex::default(),
        };
        for bits in [2.0, 4.0] {
            let mut file = tempfile::tempfile().unwrap();
            let settings = Settings::new(Target::Bits(bits));
            let report =
                compress_tuned(&tensors, Vec::new(), &settings, Some(&tuner), &Silent, &mut file).unwrap();
            let found = report.bits_per_weight();
            assert!((bits - RATE_WINDOW..=bits).contains(&found), "{found} of {bits}");
        }
    }
}
