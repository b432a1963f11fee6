//! Fine-tuning as a part of compression.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use burn::tensor::backend::AutodiffBackend;

use super::{Job, Origin, Report, Settings, Tuned, Work};
use crate::Result;
use crate::calibrate::checksum;
use crate::compress::{Quantise, TunedWeights, Tuner};
use crate::device::{Compute, Device};
use crate::forward::{Batches, Stage};
use crate::parameters::HostTensor;
use crate::progress::Progress;
use crate::samples::{Data, Limits, Samples};
use crate::subject::{Subject, with_subject};

/// A model that is fine-tuned while it is compressed.
pub struct FineTuning<'a> {
    /// The folder of the model.
    pub model: &'a Path,
    /// What it is fine-tuned with: text, token ids, or images with captions.
    pub data: &'a Path,
    /// How much of that.
    pub limits: Limits,
    /// How.
    pub settings: Settings,
    /// What trains.
    pub device: Device,
    /// Where finished blocks are kept, and whether to go on from those.
    pub work: Option<(PathBuf, bool)>,
    /// Who looks on.
    pub progress: &'a dyn Progress,
    /// What became of its blocks or towers.
    pub report: std::sync::Mutex<Vec<Report>>,
}

impl Tuner for FineTuning<'_> {
    fn tune(&self, codec: &dyn Quantise) -> Result<HashMap<String, TunedWeights>> {
        with_subject(self.model, |subject| {
            let data = Data::open(self.data)?;
            let mut inputs = Vec::new();
            for tower in &subject.forward.towers {
                // Calibration has said which towers there are no data for.
                let samples = Samples::new(subject, tower, &data, self.limits);
                inputs.extend(
                    samples.map_err(|error| error.file(self.data))?.map(|samples| (tower.name, samples)),
                );
            }
            let origin = || -> Result<Origin> {
                Ok(Origin {
                    model: subject.fingerprint()?,
                    data: format!("{:08x} {:?}", checksum(self.data)?, self.limits),
                    quantiser: format!("{:08x}", codec.fingerprint()),
                })
            };
            let work = self.work.as_ref().map(|(folder, resume)| {
                Ok(Work { folder: folder.clone(), resume: *resume, origin: origin()? })
            });
            let work = work.transpose()?;
            let tuned = self.device.compute(Run {
                tuning: self,
                subject,
                inputs: &inputs,
                quantise: codec,
                work: work.as_ref(),
            })?;
            let bind = |(name, tensor): (String, HostTensor)| {
                let bound = !tuned.last.contains(&name);
                (name, TunedWeights { values: tensor.values, bound })
            };
            let mut weights: HashMap<String, TunedWeights> = tuned.tensors.into_iter().map(bind).collect();
            // What was coded first in a block is as it was, and has to be coded as it was then: the others make up for just that.
            let kept = |name: &str| tuned.report.iter().any(|block| block.kept && block.name == name);
            let blocks = subject.forward.towers.iter().flat_map(|tower| &tower.blocks);
            for linear in blocks.filter(|block| kept(&block.name)).flat_map(Stage::tuning_order) {
                if codec.is_coded(&linear.tensor) && !weights.contains_key(&linear.tensor) {
                    let HostTensor { values, .. } = subject.weights.tensor(&linear.tensor)?;
                    weights.insert(linear.tensor.clone(), TunedWeights { values, bound: true });
                }
            }
            *self.report.lock().expect("nobody panics with it") = tuned.report;
            Ok(weights)
        })
    }
}

/// The fine-tuning on some device.
struct Run<'a> {
    tuning: &'a FineTuning<'a>,
    subject: &'a Subject<'a>,
    inputs: &'a [(&'a str, Samples<'a>)],
    quantise: &'a dyn Quantise,
    work: Option<&'a Work>,
}

impl Compute for Run<'_> {
    type Output = Tuned;

    fn on<A: AutodiffBackend>(self, device: &A::Device) -> Result<Tuned> {
        let inputs = self.inputs.iter();
        let job = Job::<A> {
            forward: &self.subject.forward,
            original: self.subject.weights,
            inputs: inputs.map(|(name, samples)| (*name, samples as &dyn Batches<A::InnerBackend>)).collect(),
            quantise: self.quantise,
            settings: self.tuning.settings.clone(),
            device: device.clone(),
        };
        job.run(self.work, self.tuning.progress)
    }
}
