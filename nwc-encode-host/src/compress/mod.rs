//! Compressing a model: what is measured, how the rate is met, and the container that comes out.
//!
//! Tensors are read one batch at a time, so memory is bounded by the largest tensor, not by the model.

mod encode;
mod finish;
mod job;
mod ldlq;
mod pins;
mod plan;
mod rate;
mod tune;
mod view;

use std::collections::HashMap;
use std::fs::File;

use nwc_decode_core::DType;
use rayon::prelude::*;

pub use encode::quantiser;
pub(crate) use finish::{squared_error, weighted_nmse};
pub use pins::Pin;
pub(crate) use plan::WantedSteps;
pub use tune::{Quantise, TunedWeights, Tuner};
pub use view::{Selection, View};

use crate::coding::search::Quantiser;
use crate::coding::transform::Transform;
use crate::container::Split;
use crate::importance::Importance;
use crate::progress::Progress;
use crate::tensors::{TensorSource, all_finite};
use crate::{Error, Result};
use job::Job;
use tune::{AtRate, Replaced};

/// How far below its target a rate may end, in bits a weight.
pub const RATE_WINDOW: f64 = 0.01;
/// The quantiser of [`Settings::new`] and of the program (docs/adr/0006-default-trellis.md).
pub const DEFAULT_QUANTISER: &str = "trellis64";

/// What the result should be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Target {
    /// Bits a coded weight, everything counted that decoding them needs; reached within [`RATE_WINDOW`], never exceeded.
    Bits(f64),
    /// Bytes of the whole file; reached within [`RATE_WINDOW`] bits a coded weight, never exceeded.
    Size(u64),
    /// The quantisation step, as a multiple of each row's deviation (to the power of [`Settings::row_alpha`]).
    Step(f64),
}

/// Choices that have good defaults: for experiments, which measure what each is worth (`cargo xtask experiment overhead`).
#[derive(Debug, Clone, PartialEq)]
pub struct Tuning {
    /// Precisions of tables to choose from, between 10 and 14 bits.
    pub precisions: std::ops::RangeInclusive<u32>,
    /// Weight tables a class: 1 or 2 (by union); chosen by cost if not given.
    pub unions: Option<usize>,
    /// Symbols that a lane should code: columns are added to it up to here.
    pub lane_symbols: usize,
    /// The same where a lane's columns are looked up one by one (embeddings).
    pub lookup_lane_symbols: usize,
    /// A tensor gives a lane at least this many symbols, or has fewer lanes.
    pub min_lane_symbols: usize,
    /// Scales are this power of two of steps an octave apart; chosen by cost for each tensor if not given.
    pub scale_shift: Option<u32>,
    /// Whether inputs have classes where they save more than they cost.
    pub input_classes: bool,
    /// Spacing of classes in octaves; chosen by the model's size if not given.
    pub class_spacing: Option<f64>,
    /// Whether all tensors are transformed, not only those where it saves bits.
    pub transform_always: bool,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            precisions: 12..=14,
            unions: None,
            lane_symbols: 8192,
            lookup_lane_symbols: 4096,
            min_lane_symbols: 4096,
            scale_shift: None,
            input_classes: true,
            class_spacing: None,
            transform_always: false,
        }
    }
}

/// How to compress.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The rate.
    pub target: Target,
    /// Tensors with rates of their own; the others then meet the target.
    pub pins: Vec<Pin>,
    /// The quantiser.
    pub quantiser: Quantiser,
    /// What is done to weights before they are quantised, where it saves bits.
    pub transform: Transform,
    /// The step of a row, [out, in], is proportional to its deviation to this power: of a token, if the tensor is an embedding.
    pub row_alpha: f64,
    /// What the inputs of its tensors matter, if their steps are to follow that.
    pub importance: Option<Importance>,
    /// Whether what a column lost is made good by those after it, where the whole H of a tensor's inputs is known.
    pub ldlq: bool,
    /// Times that indices are chosen anew, after what a decoder would make of them.
    pub code_rounds: usize,
    /// A seek point is stored at least every so many rows of a group of columns; 0 for none.
    pub seek_rows: usize,
    /// Which tensors are coded.
    pub selection: Selection,
    /// Code tensors even where that takes more bytes than they had: for tests that need tiny coded tensors.
    pub keep_expanding: bool,
    /// Indices are those nearest to weights, whatever they cost, and with a `row_alpha` of 0 [`Target::Step`] is the step itself: weights that are whole steps come back as they were.
    pub exact: bool,
    /// Leave it as it is unless you measure.
    pub tuning: Tuning,
}

impl Settings {
    /// The default settings at this rate: [`DEFAULT_QUANTISER`], the Hadamard transform where it saves bits, rows normalised.
    pub fn new(target: Target) -> Self {
        let quantiser = quantiser(DEFAULT_QUANTISER).expect("it is known");
        Self {
            target,
            pins: Vec::new(),
            quantiser,
            transform: Transform::Hadamard,
            row_alpha: 1.0,
            importance: None,
            ldlq: false,
            code_rounds: 0,
            seek_rows: 0,
            selection: Selection::default(),
            keep_expanding: false,
            exact: false,
            tuning: Tuning::default(),
        }
    }
}

/// One tensor of a [`Report`].
#[derive(Debug, Clone)]
pub struct TensorReport {
    /// Its name.
    pub name: String,
    /// Its dimensions.
    pub shape: Vec<usize>,
    /// `raw`, `coded` or `alias`.
    pub coding: &'static str,
    /// Bits a weight of its data (directory entry and shared tables apart).
    pub bits_per_weight: f64,
    /// Squared error over squared weights; 0 if it is not coded.
    pub nmse: f64,
    /// The same with each input's squares times its importance; `None` if that is not known.
    pub weighted_nmse: Option<f64>,
    /// What LDLQ did; `None` where it is off or H is not known.
    pub ldlq: Option<LdlqReport>,
}

/// What LDLQ did to one tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LdlqReport {
    /// `tr(E H E^T)` of the tensor's error, H as it was factored.
    pub lost: f64,
    /// The same of the weights coded with the same steps and without feedback.
    pub lost_without: f64,
    /// The part of the mean of H's diagonal that was added to it.
    pub damping: f64,
}

/// What compressing came to.
#[derive(Debug, Clone)]
pub struct Report {
    /// Number of coded weights.
    pub weights: u64,
    /// The quantisation step that met the target, as of [`Target::Step`].
    pub step: f64,
    /// Where the bytes went.
    pub split: Split,
    /// Squared error over squared weights, of all coded weights.
    pub nmse: f64,
    /// Entropy of the coded weights' symbols, given their class and the parity of the trellis state, in bits a weight: what an ideal coder with
    /// free tables would need.
    pub symbol_entropy: f64,
    /// Mean of the coded tensors' nMSE.
    pub nmse_mean: f64,
    /// Mean of the weighted nMSE of the tensors whose inputs' importance is known; `None` if there is none.
    pub weighted_nmse_mean: Option<f64>,
    /// Number of streams, and of the lanes of all of them.
    pub streams: u64,
    /// Each begins with a state, of whose 32 bits about 24 carry nothing.
    pub lane_states: u64,
    /// Every tensor.
    pub tensors: Vec<TensorReport>,
}

impl Report {
    /// Bits a coded weight: everything that decoding them needs.
    pub fn bits_per_weight(&self) -> f64 {
        if self.weights == 0 { 0.0 } else { self.split.counted() as f64 * 8.0 / self.weights as f64 }
    }
}

/// What becomes of one tensor.
#[derive(Debug, Clone)]
enum Fate {
    Raw,
    Alias(usize),
    Code(View),
}

/// Compresses `source` into `out`, an empty file that can be read too. `attachments` is the section of that name
/// ([`crate::container::attachments_section`]).
///
/// The container's bytes depend on the tensors, the settings and the attachments only, not on the number of threads.
///
/// # Errors
/// Bad input, a target out of reach, or the operating system's.
pub fn compress(
    source: &dyn TensorSource,
    attachments: Vec<u8>,
    settings: &Settings,
    progress: &dyn Progress,
    out: &mut File,
) -> Result<Report> {
    compress_tuned(source, attachments, settings, None, progress, out)
}

/// [`compress`], with weights that a tuner finds once it is known how all are coded. The rate is met by the tensors that it leaves alone.
///
/// # Errors
/// As [`compress`], or the tuner's.
pub fn compress_tuned(
    source: &dyn TensorSource,
    attachments: Vec<u8>,
    settings: &Settings,
    tuner: Option<&dyn Tuner>,
    progress: &dyn Progress,
    out: &mut File,
) -> Result<Report> {
    let fates = sort_out(source, settings, progress)?;
    let tuned = HashMap::new();
    let mut job = Job { source, settings, progress, attachments, fates, factors: None, tuned };
    if let Some(importance) = &settings.importance {
        importance.warn_of_strangers((0..source.len()).map(|index| source.tensor(index).name), progress);
    }
    job.check_pins()?;
    job.factor()?;
    loop {
        let mut planned = job.measure()?;
        let met = job.meet_target(&mut planned)?;
        // A tensor that got larger is better left as it was; without it the rate has to be found again.
        let expanding: Vec<usize> = (0..source.len())
            .filter(|&index| met.coded.item_bytes(index) >= Some(source.bytes(index).len() as u64))
            .collect();
        if !expanding.is_empty() && !settings.keep_expanding {
            expanding.into_iter().for_each(|index| job.fates[index] = Fate::Raw);
            continue;
        }
        let Some(tuner) = tuner else { return finish::write_and_check(&job, &planned, met, out) };
        let found = tuner.tune(&AtRate { job: &job, planned: &planned, met: &met })?;
        let (tuned, stored) = job.sort_tuned(found)?;
        let source = Replaced::new(source, stored);
        let job = Job { source: &source, tuned, ..job };
        let met = job.code_tuned(&mut planned, met)?;
        return finish::write_and_check(&job, &planned, met, out);
    }
}

fn cannot_write(error: std::io::Error) -> Error {
    Error::input(format!("cannot write the container: {error}"))
        .source(error)
        .remedy("free some space or choose another disk")
}

/// Decides which tensors are coded, which are stored raw, and which are the same as another.
fn sort_out(source: &dyn TensorSource, settings: &Settings, progress: &dyn Progress) -> Result<Vec<Fate>> {
    progress.begin("reading", (0..source.len()).map(|index| source.bytes(index).len() as u64).sum());
    let crcs: Vec<u32> = (0..source.len())
        .into_par_iter()
        .map(|index| {
            let crc = crc32fast::hash(source.bytes(index));
            progress.advance(source.bytes(index).len() as u64);
            crc
        })
        .collect();
    // Tensors with the same bytes; the first of them is stored.
    let mut twins: Vec<Vec<usize>> = Vec::new();
    let mut seen: HashMap<(u32, DType, &[usize]), Vec<usize>> = HashMap::new();
    for (index, &crc) in crcs.iter().enumerate() {
        progress.check()?;
        let tensor = source.tensor(index);
        check_shape(tensor.name, tensor.shape)?;
        // An alias costs an entry of its own, so tensors of a few bytes are simply stored again.
        const WORTH_AN_ALIAS: usize = 64;
        let bytes = source.bytes(index);
        let candidates = seen.entry((crc, tensor.dtype, tensor.shape)).or_default();
        let same = |group: &&usize| bytes.len() >= WORTH_AN_ALIAS && source.bytes(twins[**group][0]) == bytes;
        if let Some(&group) = candidates.iter().find(same) {
            twins[group].push(index);
        } else {
            candidates.push(twins.len());
            twins.push(vec![index]);
        }
    }
    let mut fates = vec![Fate::Raw; source.len()];
    for group in twins {
        let (first, rest) = group.split_first().expect("a group has a tensor");
        rest.iter().for_each(|&index| fates[index] = Fate::Alias(*first));
        // An embedding that an output layer shares is coded as an embedding, whichever comes first.
        let view = group
            .iter()
            .filter_map(|&index| source.view(index, &settings.selection).ok())
            .max_by_key(|view| view.transposed);
        let Some(view) = view else { continue };
        let tensor = source.tensor(*first);
        if all_finite(tensor.dtype, source.bytes(*first)) {
            fates[*first] = Fate::Code(view);
        } else {
            progress.warn(&format!("tensor {:?} holds NaN or infinity: stored raw", tensor.name));
        }
    }
    if let Some(importance) = &settings.importance {
        turn_stacks(source, importance, &mut fates);
    }
    Ok(fates)
}

/// Some families stack experts as [batch, in, out]. How many inputs their importance is of tells, and for stacks of square matrices the others of the model do: they are coded as the transposes of
/// what lies in memory, so that inputs are columns, which errors are fed back along.
fn turn_stacks(source: &dyn TensorSource, importance: &Importance, fates: &mut [Fate]) {
    let inputs_first = |(index, fate): (usize, &Fate)| match fate {
        Fate::Code(view) if view.batched && view.rows != view.columns => {
            let inputs = importance.inputs(source.tensor(index).name)?;
            [view.rows, view.columns].contains(&inputs).then_some(inputs == view.rows)
        }
        _ => None,
    };
    let told: Vec<Option<bool>> = fates.iter().enumerate().map(inputs_first).collect();
    let all = told.contains(&Some(true)) && !told.contains(&Some(false));
    for (fate, told) in fates.iter_mut().zip(told) {
        match fate {
            Fate::Code(view) if view.batched && told.unwrap_or(all) => *view = view.with_inputs_first(),
            _ => {}
        }
    }
}

/// What the directory can hold (docs/bitstream.md §3.3).
fn check_shape(name: &str, shape: &[usize]) -> Result<()> {
    const MAX_ELEMENTS: u128 = 1 << 40;
    if shape.len() > 8 {
        return Err(Error::input(format!("has {} dimensions, at most 8 can be stored", shape.len()))
            .tensor(name)
            .remedy("reshape it, or leave it out of the model"));
    }
    if shape.iter().map(|&dim| dim.max(1) as u128).product::<u128>() > MAX_ELEMENTS {
        return Err(Error::input("has more than 2^40 elements")
            .tensor(name)
            .remedy("split it, or leave it out of the model"));
    }
    Ok(())
}
