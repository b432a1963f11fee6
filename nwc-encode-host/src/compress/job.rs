//! The work on one model: measuring it, finding the step that meets the target, coding it.

use std::collections::{HashMap, HashSet};
use std::io::{BufWriter, Write};
use std::ops::Range;

use rayon::prelude::*;
use tempfile::SpooledTempFile;

use super::encode::{COLUMN_CLASS, COLUMN_SCALE, Encoder, ROW_CLASS, ROW_SCALE, TensorCoder, Worker};
use super::ldlq::{Factor, Factors, Feedback};
use super::pins::{AIM, Hunt, Hunts, Pinned, RATE_STEPS, Steps, Taken};
use super::plan::{ClassSpacing, OCTAVE, TensorPlan, Trial, WantedSteps};
use super::rate::{Estimate, SAMPLE_WEIGHTS, Sample, TensorSample};
use super::tune::TunedWeights;
use super::{Fate, LdlqReport, Pin, RATE_WINDOW, Settings, Target, View};
use crate::coding::table::Tally;
use crate::coding::transform::Transform;
use crate::container::{CodedEntry, Entry, EntryKind, Layout};
use crate::progress::Progress;
use crate::tensors::{TensorSource, to_f32};
use crate::{Error, Result};

/// More bits a weight than anybody can mean.
const MOST_BITS: f64 = 100.0;
/// Weights that are in memory at once, unless one tensor has more.
const BATCH_WEIGHTS: usize = 8 << 20;
/// Rates that may be tried, on the sample and then on the model, to land in the window.
const MAX_TRIES: usize = 8;
/// Parts that the tiles of a batch are shared out in.
const PARTS: usize = 64;
/// Bits that the transforms of a model must save: about what a codec of their own takes.
const TRANSFORMS_BITS: f64 = 8192.0;
/// Octaves by which a tensor's steps may be coarser or finer than the model's on average because of how much its outputs matter. How much errors matter is told by small ones,
/// and a tensor that is coded coarsely has none of those.
const COARSER: f64 = 1.0;
const FINER: f64 = 2.0;
/// Bytes of streams that are kept in memory before they go to a temporary file.
const SPOOL_BYTES: usize = 64 << 20;

/// How far the steps of tensors that are not tuned may move to make good what tuned ones take: half an octave.
const MAX_MOVED: i32 = 256;

/// Streams of some tiles, what those with feedback lost by the index of their tensor, and the symbols in them by codec.
type Part = (Vec<Vec<u8>>, Vec<(usize, f64)>, Vec<Tally>);

/// Weights of coded tensors by their index.
type Tuned = HashMap<usize, TunedWeights>;

/// One model being compressed.
pub(super) struct Job<'a> {
    pub(super) source: &'a dyn TensorSource,
    pub(super) settings: &'a Settings,
    pub(super) progress: &'a dyn Progress,
    /// The section as it will be written.
    pub(super) attachments: Vec<u8>,
    /// What becomes of each tensor.
    pub(super) fates: Vec<Fate>,
    /// What LDLQ needs to know, if it is on.
    pub(super) factors: Option<Factors>,
    /// Weights of coded tensors that are coded in place of the source's.
    pub(super) tuned: Tuned,
}

/// Everything about the model that does not depend on the rate.
pub(super) struct Planned {
    /// Index of each coded tensor, and its plan.
    pub(super) plans: Vec<(usize, TensorPlan)>,
    /// Number of coded weights.
    weights: u64,
    /// Of each codec: the tensors that it is for.
    samples: Vec<Sample>,
    /// Those that have rates of their own.
    pinned: Vec<Pinned>,
}

impl Planned {
    /// Number of a tensor's codec: tensors with a transform have another than those without.
    pub(super) fn codec_of(&self, plan: &TensorPlan) -> usize {
        let found = self.samples.iter().position(|sample| sample.transform == plan.transform);
        found.expect("every transform has a codec")
    }

    /// Number of weights that have no rate of their own.
    fn free_weights(&self) -> usize {
        self.weights as usize - self.pinned.iter().map(|pinned| pinned.weights).sum::<usize>()
    }

    /// The codec of each tensor, and its place among those of the codec.
    fn places(&self) -> Vec<(usize, usize)> {
        let mut counts = vec![0; self.samples.len()];
        let place = |(_, plan): &(usize, TensorPlan)| {
            let codec = self.codec_of(plan);
            counts[codec] += 1;
            (codec, counts[codec] - 1)
        };
        self.plans.iter().map(place).collect()
    }

    /// Moves pinned tensors to their steps, where all others are at theirs.
    fn move_to(&mut self, settings: &Settings, steps: &Steps) {
        let spacing = self.samples[0].spacing();
        let places = self.places();
        let mut changed = false;
        for (pinned, step) in self.pinned.iter_mut().zip(&steps.pinned) {
            let (more, classes) = pinned.move_to(step - steps.free, spacing);
            changed |= more != 0;
            for &place in &pinned.members {
                self.plans[place].1.coarsen(more, classes);
                let (codec, at) = places[place];
                self.samples[codec].tensor_mut(at).coarsen(more, classes);
            }
        }
        if changed {
            for sample in &mut self.samples {
                let plans = self.plans.iter().map(|(_, plan)| plan);
                let plans: Vec<_> = plans.filter(|plan| plan.transform == sample.transform).collect();
                sample.renew(settings, &plans);
            }
        }
    }

    /// The class base of a tensor as it is stored.
    pub(super) fn class_base(&self, plan: &TensorPlan) -> i32 {
        let sample = &self.samples[self.codec_of(plan)];
        (plan.class_base + sample.class_offset).clamp(0, sample.classes as i32 - 1)
    }

    /// What each codec is at a rate.
    fn estimate(&self, rate_step: i32) -> Vec<Estimate> {
        self.samples.iter().map(|sample| sample.estimate(rate_step)).collect()
    }
}

/// The rate that meets the target.
pub(super) struct Met {
    pub(super) steps: Steps,
    /// Of each codec.
    pub(super) estimates: Vec<Estimate>,
    pub(super) coded: Coded,
}

/// The model coded at one rate.
pub(super) struct Coded {
    /// The directory, content checksums still missing.
    pub(super) entries: Vec<Entry>,
    /// The codecs' stored forms.
    pub(super) codecs: Vec<Vec<u8>>,
    /// The items of the coded tensors back to back.
    pub(super) items: SpooledTempFile,
    /// Entropy of all symbols, in bits.
    pub(super) entropy_bits: f64,
    /// Number of streams, and of their lanes.
    pub(super) streams: u64,
    pub(super) lane_states: u64,
    /// Of each tensor that was coded with feedback: `tr(E H E^T)`.
    pub(super) lost: Vec<Option<f64>>,
}

impl Coded {
    /// Bytes of a tensor's item; `None` if it is not coded.
    pub(super) fn item_bytes(&self, index: usize) -> Option<u64> {
        match &self.entries[index].kind {
            EntryKind::Coded(entry) => Some(entry.len),
            _ => None,
        }
    }
}

impl Job<'_> {
    /// Tensors to be coded.
    fn coded(&self) -> impl Iterator<Item = (usize, View)> {
        self.fates.iter().enumerate().filter_map(|(index, fate)| match fate {
            Fate::Code(view) => Some((index, *view)),
            _ => None,
        })
    }

    /// The same in batches that fit in memory together.
    fn batches(&self) -> Vec<Vec<(usize, View)>> {
        let mut batches: Vec<Vec<(usize, View)>> = Vec::new();
        let mut filled = 0;
        for (index, view) in self.coded() {
            if batches.is_empty() || filled + view.elements() > BATCH_WEIGHTS {
                batches.push(Vec::new());
                filled = 0;
            }
            filled += view.elements();
            batches.last_mut().expect("just pushed").push((index, view));
        }
        batches
    }

    fn load(&self, index: usize) -> Vec<f32> {
        if let Some(tuned) = self.tuned.get(&index) {
            return tuned.values.clone();
        }
        to_f32(self.source.tensor(index).dtype, self.source.bytes(index))
    }

    /// The name under which the importance of a coded tensor's inputs is known, if it is: its own, or that of one with the same weights.
    fn known_as(&self, index: usize) -> Option<&str> {
        let importance = self.settings.importance.as_ref()?;
        self.names(index).find(|name| importance.inputs(name).is_some())
    }

    /// The names of a tensor and of those with the same weights.
    fn names(&self, index: usize) -> impl Iterator<Item = &str> {
        let is_twin = move |twin: &usize| matches!(self.fates[*twin], Fate::Alias(of) if of == index);
        let twins = (0..self.fates.len()).filter(is_twin);
        std::iter::once(index).chain(twins).map(|index| self.source.tensor(index).name)
    }

    /// The pin that a tensor has its rate from, and its number.
    fn pin_of(&self, index: usize) -> Option<(usize, &Pin)> {
        let mut pins = self.settings.pins.iter().enumerate();
        pins.find(|(_, pin)| self.names(index).any(|name| pin.names.is_match(name)))
    }

    /// Checks that each pin has a rate, and tensors.
    pub(super) fn check_pins(&self) -> Result<()> {
        let used: HashSet<usize> =
            self.coded().filter_map(|(index, _)| Some(self.pin_of(index)?.0)).collect();
        for (number, pin) in self.settings.pins.iter().enumerate() {
            check_bits(pin.bits)?;
            if !used.contains(&number) {
                let names = pin.names.as_str();
                return Err(Error::input(format!(
                    "no coded tensor is pinned to {} bits by {names:?}",
                    pin.bits
                ))
                .remedy("name tensors that are coded, and that no pin before this one names"));
            }
        }
        Ok(())
    }

    /// How much the inputs of a coded tensor matter, if that is known.
    pub(super) fn importance(&self, index: usize) -> Result<Option<&[f32]>> {
        match (&self.settings.importance, &self.fates[index], self.known_as(index)) {
            (Some(importance), Fate::Code(view), Some(name)) => importance.diagonal(name, view.inputs()),
            _ => Ok(None),
        }
    }

    /// See [`View::weights_of_an_input`]; 1 of what is not coded.
    pub(super) fn weights_of_an_input(&self, index: usize) -> usize {
        match &self.fates[index] {
            Fate::Code(view) => view.weights_of_an_input(),
            _ => 1,
        }
    }

    /// Factors the H of all tensors that LDLQ is for.
    pub(super) fn factor(&mut self) -> Result<()> {
        let (true, Some(importance)) = (self.settings.ldlq, &self.settings.importance) else { return Ok(()) };
        let mut ids = Vec::new();
        for (index, view) in self.coded() {
            // Columns are what is coded one after the other: of an embedding those are outputs.
            let Some(name) = self.known_as(index).filter(|_| view.inputs_are_columns()) else { continue };
            ids.extend(importance.matrices(name, view.inputs(), view.batch)?);
        }
        ids.sort_unstable();
        ids.dedup();
        self.progress.begin("factoring", ids.iter().map(|id| id.inputs as u64).sum());
        let done = |inputs: usize| {
            self.progress.advance(inputs as u64);
            self.progress.check()
        };
        let factors = Factors::new(&ids, |id| importance.matrix(id), done)?;
        self.factors = Some(factors);
        Ok(())
    }

    /// The factors of the H of the inputs of a coded tensor's matrices, if LDLQ is on and those are known.
    pub(super) fn factors_of(&self, index: usize) -> Vec<Factor<'_>> {
        let find = || {
            let (factors, importance) = (self.factors.as_ref()?, self.settings.importance.as_ref()?);
            let Fate::Code(view) = &self.fates[index] else { return None };
            let ids = importance.matrices(self.known_as(index)?, view.inputs(), view.batch).ok()?;
            ids.into_iter().map(|id| factors.get(id)).collect()
        };
        find().unwrap_or_default()
    }

    /// The steps that a coded tensor is to have, where that is known.
    fn wanted_steps(&self, index: usize) -> Result<WantedSteps> {
        let (Some(importance), Some(diagonal)) = (&self.settings.importance, self.importance(index)?) else {
            return Ok(WantedSteps::default());
        };
        let factors = self.factors_of(index);
        let remaining: Vec<&[f64]> = factors.iter().map(|factor| factor.diagonal).collect();
        let Fate::Code(view) = &self.fates[index] else { return Ok(WantedSteps::default()) };
        let outputs = match self.known_as(index) {
            Some(name) => importance.outputs(name, view.outputs())?,
            None => None,
        };
        Ok(importance.steps_of(diagonal, &remaining, outputs))
    }

    /// Reads the model once: row and column spreads, and the sample. Twice, if it turns out that its transforms save too little to be worth their codec.
    pub(super) fn measure(&self) -> Result<Planned> {
        let planned = self.measure_with(&self.settings.transform)?;
        let saved: f64 = planned.plans.iter().map(|(_, plan)| plan.saved).sum();
        let transforms = planned.plans.iter().any(|(_, plan)| plan.transform != Transform::Identity);
        if transforms && saved < TRANSFORMS_BITS && !self.settings.tuning.transform_always {
            return self.measure_with(&Transform::Identity);
        }
        Ok(planned)
    }

    fn measure_with(&self, transform: &Transform) -> Result<Planned> {
        let batches = self.batches();
        let weights: usize = batches.iter().flatten().map(|(_, view)| view.elements()).sum();
        let fraction = SAMPLE_WEIGHTS as f64 / weights.max(1) as f64;
        // Columns of few weights cannot tell their spread finely, and small models cannot pay for many tables.
        let rows = batches.iter().flatten().map(|(_, view)| view.elements() * view.rows).sum::<usize>()
            / weights.max(1);
        let tuning = &self.settings.tuning;
        let spacing = tuning.class_spacing.unwrap_or(if rows < 200 { 0.5 } else { 0.25 });
        let spacing = ClassSpacing(spacing);
        let free = self.guess();
        self.progress.begin("measuring", weights as u64);
        let mut plans = Vec::new();
        let (mut samples, mut compared) = (Vec::new(), Vec::new());
        for batch in batches {
            self.progress.check()?;
            let measured: Vec<_> = batch
                .par_iter()
                .map(|&(index, view)| {
                    let weights = self.load(index);
                    let wanted = self.wanted_steps(index)?;
                    let alpha = self.settings.row_alpha;
                    let rate_step = self.pin_of(index).map_or(free, |(_, pin)| guessed(pin.bits));
                    let trial = Trial { quantiser: &self.settings.quantiser, rate_step, spacing };
                    let plan = TensorPlan::measure(view, &weights, &wanted, alpha, spacing, tuning)
                        .with_transform(transform, tuning.transform_always, &weights, &trial);
                    let sample = TensorSample::take(&plan, &weights, fraction);
                    self.progress.advance(weights.len() as u64);
                    Ok((index, plan, sample, !wanted.outputs.is_empty()))
                })
                .collect::<Result<_>>()?;
            for (index, plan, sample, known) in measured {
                plans.push((index, plan));
                samples.push(sample);
                compared.push(known);
            }
        }
        if !self.settings.exact {
            balance(&mut plans, &mut samples, &compared, spacing);
        }
        let samples = self.samples_of_codecs(&plans, samples, spacing);
        let pinned = (0..self.settings.pins.len())
            .map(|pin| {
                let is_member = |index| self.pin_of(index).is_some_and(|(number, _)| number == pin);
                let members: Vec<usize> =
                    (0..plans.len()).filter(|&place| is_member(plans[place].0)).collect();
                let weights = members.iter().map(|&place| plans[place].1.view.elements()).sum();
                Pinned::new(pin, members, weights)
            })
            .filter(|pinned| pinned.weights > 0)
            .collect();
        Ok(Planned { plans, weights: weights as u64, samples, pinned })
    }

    /// Shares tensors out to codecs: transformed ones spread otherwise, and tables that suit them would cost the others bits.
    fn samples_of_codecs(
        &self,
        plans: &[(usize, TensorPlan)],
        samples: Vec<TensorSample>,
        spacing: ClassSpacing,
    ) -> Vec<Sample> {
        let (plain, transformed): (Vec<_>, Vec<_>) = plans
            .iter()
            .map(|(_, plan)| plan)
            .zip(samples)
            .partition(|(plan, _)| plan.transform == Transform::Identity);
        let mut codecs = vec![plain, transformed];
        codecs.retain(|tensors| !tensors.is_empty());
        if codecs.is_empty() {
            // A file has a codec even if nothing is coded.
            codecs.push(Vec::new());
        }
        let sample = |tensors: Vec<_>| {
            let (plans, samples): (Vec<_>, Vec<_>) = tensors.into_iter().unzip();
            Sample::new(self.settings, &plans, samples, spacing)
        };
        codecs.into_iter().map(sample).collect()
    }

    /// Lays out a coded model.
    pub(super) fn layout(&self, coded: &Coded) -> Result<Layout<'_>> {
        Layout::new(&coded.entries, &coded.codecs, &self.attachments, self.settings.seek_rows)
    }

    /// Finds the steps, codes the model, and trims the steps until the rate is in its window, and so are those of pinned tensors.
    pub(super) fn meet_target(&self, planned: &mut Planned) -> Result<Met> {
        let weights = planned.weights as f64;
        let limit = self.limit(weights);
        let step = self.check_target()?;
        if planned.plans.is_empty() && step.is_none() {
            return self.nothing_to_code(planned, limit);
        }
        let free = planned.free_weights() as f64;
        let fixed = step.unwrap_or_else(|| self.guess());
        let mut hunts = Hunts {
            pinned: planned
                .pinned
                .iter()
                .map(|pinned| {
                    let (weights, bits) = (pinned.weights as f64, self.settings.pins[pinned.pin].bits);
                    Hunt::new(bits * weights / 8.0, weights, weights, guessed(bits))
                })
                .collect(),
            free: (step.is_none() && free > 0.0).then(|| Hunt::new(limit, weights, free, fixed)),
            fixed,
        };
        self.progress.begin("searching the rate", 0);
        let mut nearest: Option<(f64, Steps, Vec<Estimate>)> = None;
        for _ in 0..MAX_TRIES {
            let steps = hunts.steps();
            let (taken, estimates) = self.estimate(planned, &steps)?;
            let miss = hunts.miss(&taken);
            if nearest.as_ref().is_none_or(|(least, ..)| miss < *least) {
                nearest = Some((miss, steps, estimates));
            }
            if !hunts.go_on(&taken, false) {
                break;
            }
        }
        let (_, steps, mut estimates) = nearest.expect("at least one rate was tried");
        hunts.restart(&steps);

        let mut best: Option<(f64, Met)> = None;
        for _ in 0..MAX_TRIES {
            let steps = hunts.steps();
            planned.move_to(self.settings, &steps);
            let coded = self.pass(planned, steps.free, &estimates)?;
            let taken = self.taken(planned, &coded.entries, &self.layout(&coded)?);
            let below = hunts.below(&taken);
            if let Some(below) = below.filter(|below| best.as_ref().is_none_or(|(least, _)| below < least)) {
                best = Some((below, Met { steps, estimates, coded }));
            }
            if below.is_some_and(|below| below <= RATE_WINDOW) || !hunts.go_on(&taken, true) {
                break;
            }
            let steps = hunts.steps();
            planned.move_to(self.settings, &steps);
            estimates = planned.estimate(steps.free);
        }
        let met = match best {
            Some((below, met)) if below <= RATE_WINDOW => met,
            best => match (self.out_of_reach(planned, &hunts, best.is_none())?, best) {
                (None, Some((_, met))) => {
                    self.progress.warn(&format!(
                        "no step gives a rate within {RATE_WINDOW} bits per weight below the target; the next rate below is taken"
                    ));
                    met
                }
                (error, _) => {
                    return Err(error.unwrap_or_else(|| self.unreachable_target(limit, limit, weights / 8.0)));
                }
            },
        };
        planned.move_to(self.settings, &met.steps);
        if hunts.free.is_none() && step.is_none() {
            self.check_pinned_model(&met, limit, weights / 8.0)?;
        }
        Ok(met)
    }

    /// The steps of a target that is one; `None` if it is a rate.
    fn check_target(&self) -> Result<Option<i32>> {
        match self.settings.target {
            Target::Step(step) => {
                let rate_step = (step.log2() * OCTAVE).round();
                if step > 0.0 && RATE_STEPS.contains(&(rate_step as i32)) {
                    return Ok(Some(rate_step as i32));
                }
                Err(Error::input(format!("a step of {step} is out of reach"))
                    .remedy("choose a step between 0.004 and 4 deviations"))
            }
            Target::Bits(bits) => check_bits(bits).map(|()| None),
            Target::Size(_) => Ok(None),
        }
    }

    /// About the step of tensors that are not pinned. If there are none it does not depend on the target, so that what they come to does not either.
    fn guess(&self) -> i32 {
        let weights: usize = self.coded().map(|(_, view)| view.elements()).sum();
        let bits = match self.settings.target {
            Target::Bits(bits) => bits,
            Target::Size(bytes) => (bytes as f64 - self.raw_bytes() as f64) * 8.0 / weights as f64,
            Target::Step(step) => 1.05 - step.log2(),
        };
        let pinned =
            self.coded().filter_map(|(index, view)| Some((view.elements(), self.pin_of(index)?.1.bits)));
        let (mut free, mut more) = (weights, 0.0);
        for (elements, pinned) in pinned {
            free -= elements;
            more += (bits - pinned) * elements as f64;
        }
        match (self.settings.target, self.settings.pins.first()) {
            (Target::Step(_), _) => guessed(bits),
            (_, Some(pin)) if free == 0 => guessed(pin.bits),
            _ => guessed(bits + more / free.max(1) as f64),
        }
    }

    /// A container of raw tensors only.
    fn nothing_to_code(&self, planned: &Planned, limit: f64) -> Result<Met> {
        self.progress.warn("no tensor is coded: all are small, excluded or of other types");
        let estimates = planned.estimate(0);
        let coded = self.pass(planned, 0, &estimates)?;
        let bytes = self.layout(&coded)?.file_bytes() as f64;
        if matches!(self.settings.target, Target::Size(_)) && bytes > limit {
            return Err(self.unreachable_target(bytes, bytes, 1.0));
        }
        Ok(Met { steps: Steps { free: 0, pinned: Vec::new() }, estimates, coded })
    }

    /// The bytes that the target allows; none where it is a step.
    fn limit(&self, weights: f64) -> f64 {
        match self.settings.target {
            Target::Bits(bits) => bits * weights / 8.0,
            Target::Size(bytes) => bytes as f64,
            Target::Step(_) => f64::INFINITY,
        }
    }

    /// Weights that a tuner found: of coded tensors, and of those that are stored as they are.
    pub(super) fn sort_tuned(
        &self,
        found: HashMap<String, TunedWeights>,
    ) -> Result<(Tuned, HashMap<usize, Vec<f32>>)> {
        let (mut coded, mut stored) = (HashMap::new(), HashMap::new());
        for (name, tuned) in found {
            let index = (0..self.source.len()).find(|&index| self.source.tensor(index).name == name);
            let shape = index.map(|index| self.source.tensor(index).shape.iter().product::<usize>());
            let Some(index) = index.filter(|_| shape == Some(tuned.values.len())) else {
                return Err(Error::input("was tuned, but there is none of its name and size").tensor(name));
            };
            match self.fates[index] {
                Fate::Code(_) => drop(coded.insert(index, tuned)),
                Fate::Raw => drop(stored.insert(index, tuned.values)),
                Fate::Alias(_) => return Err(Error::input("was tuned, but is another's alias").tensor(name)),
            }
        }
        Ok((coded, stored))
    }

    /// Codes weights that are bound to their steps at those. What they now take more or less is made good by the others' steps; if that would take
    /// too much of those, all are coded at steps of their own.
    pub(super) fn code_tuned(&self, planned: &mut Planned, met: Met) -> Result<Met> {
        let Met { steps, estimates, .. } = met;
        let weights = planned.weights as f64;
        let (limit, per_bit) = (self.limit(weights), weights / 8.0);
        let is_bound = |index: usize| self.tuned.get(&index).is_some_and(|tuned| tuned.bound);
        let is_other = |index: usize| !is_bound(index) && self.pin_of(index).is_none();
        let others = planned.plans.iter().filter(|(index, _)| is_other(*index));
        let others: usize = others.map(|(_, plan)| plan.view.elements()).sum();
        let mut moved = 0;
        for _ in 0..MAX_TRIES {
            let coded = self.pass(planned, steps.free, &estimates)?;
            let bytes = self.objective(&self.layout(&coded)?) as f64;
            if limit.is_infinite() || (limit - RATE_WINDOW * per_bit..=limit).contains(&bytes) {
                return Ok(Met { steps, estimates, coded });
            }
            // An octave is a bit a weight.
            let octaves = (bytes - (limit - AIM * per_bit)) * 8.0 / others.max(1) as f64;
            let more = (octaves * OCTAVE).round() as i32;
            if others == 0 || (moved + more).abs() > MAX_MOVED {
                break;
            }
            moved += more;
            let plans = planned.plans.iter_mut().filter(|(index, _)| is_other(*index));
            plans.for_each(|(_, plan)| plan.step += more);
        }
        self.progress.warn(
            "the rate is met with other steps than weights were tuned for, which makes up for less of what is lost",
        );
        *planned = self.measure()?;
        self.meet_target(planned)
    }

    /// About how many bytes count at these steps, to which pinned tensors are moved, and the codecs that suit them.
    fn estimate(&self, planned: &mut Planned, steps: &Steps) -> Result<(Taken, Vec<Estimate>)> {
        self.progress.check()?;
        planned.move_to(self.settings, steps);
        let estimates = planned.estimate(steps.free);
        let mut entries = self.entries(planned, steps.free);
        let mut of_codecs: Vec<_> = estimates.iter().map(|estimate| estimate.tensor_bytes.iter()).collect();
        for (index, plan) in &planned.plans {
            let symbols =
                of_codecs[planned.codec_of(plan)].next().expect("every tensor is in its codec's sample");
            // A record, rounding up to 4 bytes, and of each lane's state the 24 bits that its start wastes.
            let tile = 8 + 1 + 3 * plan.lanes;
            let rows = if plan.has_row_streams() { 8 + 1 + 3 } else { 0 };
            let streams = plan.bands() * (plan.column_blocks() * tile + rows);
            let EntryKind::Coded(entry) = &mut entries[*index].kind else { unreachable!("it has a plan") };
            entry.len = (symbols.round() as u64 + streams as u64).next_multiple_of(4);
        }
        let layout =
            Layout::new(&entries, &codecs_of(&estimates), &self.attachments, self.settings.seek_rows)?;
        Ok((self.taken(planned, &entries, &layout), estimates))
    }

    /// The bytes that count, of the model and of pinned tensors.
    fn taken(&self, planned: &Planned, entries: &[Entry], layout: &Layout<'_>) -> Taken {
        let item = |place: &usize| match &entries[planned.plans[*place].0].kind {
            EntryKind::Coded(entry) => entry.len as f64,
            _ => 0.0,
        };
        let pinned = planned.pinned.iter().map(|pinned| pinned.members.iter().map(item).sum()).collect();
        Taken { model: self.objective(layout) as f64, pinned }
    }

    /// Bytes that no rate changes, if they count against the target.
    fn raw_bytes(&self) -> usize {
        let raw = |(index, fate): (usize, &Fate)| {
            if matches!(fate, Fate::Raw) { self.source.bytes(index).len() } else { 0 }
        };
        match self.settings.target {
            Target::Size(_) => self.attachments.len() + self.fates.iter().enumerate().map(raw).sum::<usize>(),
            _ => 0,
        }
    }

    /// The bytes that the target limits.
    fn objective(&self, layout: &Layout<'_>) -> u64 {
        match self.settings.target {
            Target::Size(_) => layout.file_bytes(),
            _ => layout.counted_bytes(),
        }
    }

    /// What is wrong with the rates that could not be met, if there is anything: which one no step meets, while all others are as they are. `above` says that they were always exceeded.
    fn out_of_reach(&self, planned: &mut Planned, hunts: &Hunts, above: bool) -> Result<Option<Error>> {
        let steps = hunts.steps();
        let mut taken_at = |change: &dyn Fn(&mut Steps, i32)| -> Result<[Taken; 2]> {
            let mut at = |end: &i32| {
                let mut steps = steps.clone();
                change(&mut steps, *end);
                Ok(self.estimate(planned, &steps)?.0)
            };
            Ok([at(RATE_STEPS.end())?, at(RATE_STEPS.start())?])
        };
        let cannot = |hunt: &Hunt, [lowest, highest]: [f64; 2]| {
            above && lowest > hunt.limit || highest < hunt.limit - RATE_WINDOW * hunt.per_bit
        };
        for (number, hunt) in hunts.pinned.iter().enumerate() {
            let ends = taken_at(&|steps, end| steps.pinned[number] = end)?.map(|taken| taken.pinned[number]);
            if cannot(hunt, ends) {
                let bits = ends.map(|bytes| bytes / hunt.per_bit);
                let Pin { names, bits: wanted } = &self.settings.pins[planned.pinned[number].pin];
                let names = names.as_str();
                let problem =
                    format!("{wanted} bits per weight are out of reach for the tensors that {names:?} pins");
                let (lowest, highest) = (bits[0] + 2.0 * RATE_WINDOW, bits[1]);
                let remedy = format!("pin them to between about {lowest:.2} and {highest:.2}");
                return Ok(Some(Error::input(problem).remedy(remedy)));
            }
        }
        let Some(hunt) = &hunts.free else { return Ok(None) };
        let ends = taken_at(&|steps, end| steps.free = end)?.map(|taken| hunts.left_to(&taken));
        Ok(cannot(hunt, ends).then(|| self.unreachable_target(ends[0], ends[1], hunt.per_bit)))
    }

    fn unreachable_target(&self, lowest: f64, highest: f64, per_bit: f64) -> Error {
        let pinned = if self.settings.pins.is_empty() { "" } else { ", as other tensors are pinned" };
        match self.settings.target {
            Target::Size(bytes) => Error::input(format!("a size of {bytes} bytes is out of reach{pinned}"))
                .remedy(format!(
                    "choose one between about {:.0} and {highest:.0} bytes",
                    lowest + 2.0 * RATE_WINDOW * per_bit
                )),
            Target::Bits(target) | Target::Step(target) => {
                Error::input(format!("{target} bits per weight are out of reach{pinned}")).remedy(format!(
                    "choose a rate between about {:.2} and {:.2}",
                    lowest / per_bit + 2.0 * RATE_WINDOW,
                    highest / per_bit
                ))
            }
        }
    }

    /// Checks that a model all of whose coded tensors are pinned meets its target.
    fn check_pinned_model(&self, met: &Met, limit: f64, per_bit: f64) -> Result<()> {
        let bytes = self.objective(&self.layout(&met.coded)?) as f64;
        if (limit - RATE_WINDOW * per_bit..=limit).contains(&bytes) {
            return Ok(());
        }
        let remedy = match self.settings.target {
            Target::Size(_) => format!("choose a size of {bytes} bytes, or pin fewer"),
            _ => format!(
                "choose {:.2} bits per weight, or pin fewer",
                (bytes / per_bit * 100.0).ceil() / 100.0
            ),
        };
        Err(Error::input("all coded tensors are pinned, and do not come to the rate of the model")
            .remedy(remedy))
    }

    /// Directory entries at a rate; lengths and checksums of coded tensors are 0.
    fn entries(&self, planned: &Planned, rate_step: i32) -> Vec<Entry> {
        let mut plans = planned.plans.iter();
        self.fates
            .iter()
            .enumerate()
            .map(|(index, fate)| {
                let tensor = self.source.tensor(index);
                let kind = match fate {
                    Fate::Raw => EntryKind::Raw { crc: 0, len: self.source.bytes(index).len() as u64 },
                    Fate::Alias(target) => EntryKind::Alias(*target),
                    Fate::Code(view) => {
                        let (_, plan) = plans.next().expect("every coded tensor has a plan");
                        let side = u8::from(!plan.row_scale.is_empty()) << ROW_SCALE
                            | u8::from(!plan.row_class.is_empty()) << ROW_CLASS
                            | u8::from(!plan.column_scale.is_empty()) << COLUMN_SCALE
                            | u8::from(!plan.column_class.is_empty()) << COLUMN_CLASS;
                        EntryKind::Coded(CodedEntry {
                            transposed: view.transposed,
                            batched: view.batched,
                            direct: false,
                            codec: planned.codec_of(plan) as u8,
                            lanes: plan.lanes as u8,
                            columns_per_lane: plan.columns_per_lane as u64,
                            tile_rows: plan.tile_rows as u64,
                            step: plan.step_at(rate_step),
                            class_base: planned.class_base(plan) as u8,
                            side,
                            row_shift: if plan.row_scale.is_empty() { 0 } else { plan.row_shift as u8 },
                            column_shift: if plan.column_scale.is_empty() {
                                0
                            } else {
                                plan.column_shift as u8
                            },
                            len: 0,
                            content_crc: 0,
                        })
                    }
                };
                Entry {
                    name: tensor.name.to_owned(),
                    dtype: tensor.dtype,
                    shape: tensor.shape.to_vec(),
                    kind,
                }
            })
            .collect()
    }

    /// A codec ready to encode with.
    pub(super) fn encoder<'e>(&self, estimate: &'e Estimate) -> Encoder<'e> {
        Encoder::new(&estimate.codec, &estimate.rate, self.settings.code_rounds)
    }

    /// Codes the whole model at one rate.
    fn pass(&self, planned: &Planned, rate_step: i32, estimates: &[Estimate]) -> Result<Coded> {
        let mut entries = self.entries(planned, rate_step);
        let mut items = BufWriter::new(tempfile::spooled_tempfile(SPOOL_BYTES));
        let encoders: Vec<_> = estimates.iter().map(|estimate| self.encoder(estimate)).collect();
        let mut tallies: Vec<_> = estimates.iter().map(|estimate| estimate.codec.tally()).collect();
        let (mut streams, mut lane_states) = (0, 0);
        let mut lost = vec![None; entries.len()];
        self.progress.begin("coding", planned.weights);
        let mut next = 0;
        for batch in self.batches() {
            let plans = &planned.plans[next..next + batch.len()];
            next += batch.len();
            let loaded: Vec<Vec<f32>> = batch.par_iter().map(|&(index, _)| self.load(index)).collect();
            let coders: Vec<_> = plans
                .par_iter()
                .map(|(_, plan)| TensorCoder::new(plan, rate_step, planned.class_base(plan)))
                .collect();
            // All tiles of the batch in one list, so that small tensors keep all cores busy too; with feedback all of a band, for each waits for those before it.
            let factors: Vec<_> = batch.iter().map(|&(index, _)| self.factors_of(index)).collect();
            let tasks: Vec<(usize, Range<usize>)> = coders
                .iter()
                .zip(&factors)
                .enumerate()
                .flat_map(|(i, (coder, factors))| {
                    let tiles = if factors.is_empty() { 1 } else { coder.plan.column_blocks() };
                    (0..coder.plan.tiles()).step_by(tiles).map(move |first| (i, first..first + tiles))
                })
                .collect();
            let parts: Vec<Result<Part>> = tasks
                .par_chunks(tasks.len().div_ceil(PARTS))
                .map(|tasks| {
                    let mut workers: Vec<_> = encoders.iter().map(Worker::new).collect();
                    let (mut streams, mut losses) = (Vec::new(), Vec::new());
                    for (i, tiles) in tasks {
                        let worker = &mut workers[planned.codec_of(coders[*i].plan)];
                        let (coder, weights, index) = (&coders[*i], &loaded[*i], batch[*i].0);
                        let band = tiles.start / coder.plan.column_blocks();
                        let mut feedback = factors[*i].get(coder.band_matrix(band)).map(|&factor| {
                            let (dtype, rows) =
                                (self.source.tensor(index).dtype, coder.band_rows(band).len());
                            Feedback::new(coder, factor, dtype, rows, true)
                        });
                        for tile in tiles.clone() {
                            self.progress.check()?;
                            streams.push(worker.encode_tile(coder, weights, tile, feedback.as_mut()));
                            let done: usize =
                                coder.tile_groups(tile).map(|group| group.rows * group.lanes).sum();
                            self.progress.advance(done as u64);
                        }
                        losses.extend(feedback.map(|feedback| (index, feedback.lost)));
                    }
                    Ok((streams, losses, workers.into_iter().map(|worker| worker.tally).collect()))
                })
                .collect();
            let mut encoded = Vec::new();
            for part in parts {
                let (part, losses, part_tallies) = part?;
                encoded.extend(part);
                losses.into_iter().for_each(|(index, more)| *lost[index].get_or_insert(0.0) += more);
                tallies.iter_mut().zip(&part_tallies).for_each(|(tally, part)| tally.merge(part));
            }
            let mut encoded = encoded.into_iter();
            for (coder, &(index, _)) in coders.iter().zip(&batch) {
                let plan = coder.plan;
                let encoder = &encoders[planned.codec_of(plan)];
                let bands = if plan.has_row_streams() { plan.bands() } else { 0 };
                let mut parts: Vec<Vec<u8>> =
                    (0..bands).map(|band| coder.encode_rows(encoder, band)).collect();
                parts.extend(encoded.by_ref().take(plan.tiles()));
                streams += parts.len() as u64;
                lane_states +=
                    (bands + (0..plan.tiles()).map(|tile| plan.tile_lanes(tile)).sum::<usize>()) as u64;
                let len = write_item(&mut items, &parts).map_err(cannot_spool)?;
                let EntryKind::Coded(entry) = &mut entries[index].kind else { unreachable!("it has a plan") };
                entry.len = len.ok_or_else(|| {
                    Error::input("its streams come to more than 16 GiB")
                        .tensor(self.source.tensor(index).name)
                })?;
            }
        }
        let items = items.into_inner().map_err(|error| cannot_spool(error.into_error()))?;
        let counts = tallies.iter().flat_map(|tally| tally.by_union(&self.settings.quantiser));
        let entropy_bits = counts.map(|counts| counts.entropy() * counts.total() as f64).sum();
        Ok(Coded { entries, codecs: codecs_of(estimates), items, entropy_bits, streams, lane_states, lost })
    }

    /// Of each tensor, what LDLQ did: what was lost, and what would have been without feedback at the same steps.
    pub(super) fn ldlq_reports(&self, planned: &Planned, met: &Met) -> Result<Vec<Option<LdlqReport>>> {
        let mut reports = vec![None; self.fates.len()];
        if self.factors.is_none() {
            return Ok(reports);
        }
        let Met { steps, estimates, coded } = met;
        let encoders: Vec<_> = estimates.iter().map(|estimate| self.encoder(estimate)).collect();
        self.progress.begin("comparing", planned.weights);
        let mut plans = planned.plans.iter();
        for batch in self.batches() {
            let plans: Vec<_> = plans.by_ref().take(batch.len()).collect();
            let found: Vec<Option<LdlqReport>> = plans
                .par_iter()
                .map(|(index, plan)| {
                    let factors = self.factors_of(*index);
                    let Some(lost) = coded.lost[*index] else { return Ok(None) };
                    let coder = TensorCoder::new(plan, steps.free, planned.class_base(plan));
                    let (weights, dtype) = (self.load(*index), self.source.tensor(*index).dtype);
                    let mut worker = Worker::new(&encoders[planned.codec_of(plan)]);
                    let mut lost_without = 0.0;
                    for band in 0..plan.bands() {
                        self.progress.check()?;
                        let rows = coder.band_rows(band).len();
                        let factor = factors[coder.band_matrix(band)];
                        let mut open = Feedback::new(&coder, factor, dtype, rows, false);
                        worker.follow(&coder, &weights, plan.band_tiles(band), &mut open);
                        lost_without += open.lost;
                    }
                    self.progress.advance(weights.len() as u64);
                    let damping = factors.iter().map(|factor| factor.damping).fold(0.0, f64::max);
                    Ok(Some(LdlqReport { lost, lost_without, damping }))
                })
                .collect::<Result<_>>()?;
            plans.iter().zip(found).for_each(|((index, _), report)| reports[*index] = report);
        }
        Ok(reports)
    }
}

/// Makes rate 0 mean a step of about one deviation, which it does not where steps do not follow deviations: among tensors whose steps are `compared` with each other, and among
/// the others.
fn balance(
    plans: &mut [(usize, TensorPlan)],
    samples: &mut [TensorSample],
    compared: &[bool],
    spacing: ClassSpacing,
) {
    for group in [false, true] {
        // How far weights spread next to their step, on average, and how many they are.
        let spread = |plan: &TensorPlan| plan.mean - f64::from(plan.step) / OCTAVE;
        let of_group = plans.iter().zip(compared).filter(|(_, compared)| **compared == group);
        let spreads: Vec<(f64, f64)> =
            of_group.map(|((_, plan), _)| (spread(plan), plan.view.elements() as f64)).collect();
        let weights: f64 = spreads.iter().map(|(_, weights)| weights).sum();
        if spreads.is_empty() {
            continue;
        }
        let limits = if group { -COARSER..=FINER } else { f64::MIN..=f64::MAX };
        let limited = |spread: f64, centre: f64| (spread - centre).clamp(*limits.start(), *limits.end());
        // With limits the mean is not what makes the rest sum to nothing: it is where this ends.
        let mut centre = 0.0;
        for _ in 0..64 {
            centre += spreads.iter().map(|&(spread, weights)| limited(spread, centre) * weights).sum::<f64>()
                / weights;
        }
        for (((_, plan), sample), _) in
            plans.iter_mut().zip(&mut *samples).zip(compared).filter(|(_, of)| **of == group)
        {
            // By whole classes.
            let classes = ((spread(plan) - limited(spread(plan), centre)) / spacing.0).round() as i32;
            let steps = (f64::from(classes) * spacing.0 * OCTAVE) as i32;
            plan.coarsen(steps, classes);
            sample.coarsen(steps, classes);
        }
    }
}

/// The stored forms of the codecs.
fn codecs_of(estimates: &[Estimate]) -> Vec<Vec<u8>> {
    estimates.iter().map(|estimate| estimate.codec.to_bytes()).collect()
}

/// About the step at which weights take so many bits: where they would be if they took one bit a weight less per octave, and 1.05 at a step of one deviation.
fn guessed(bits: f64) -> i32 {
    (((1.05 - bits) * OCTAVE) as i32).clamp(*RATE_STEPS.start(), *RATE_STEPS.end())
}

/// Checks that a number of bits a weight can be meant.
fn check_bits(bits: f64) -> Result<()> {
    if bits > 0.0 && bits < MOST_BITS {
        return Ok(());
    }
    Err(Error::input(format!("{bits} bits per weight cannot be meant")).remedy("give a number such as 4.0"))
}

pub(super) fn cannot_spool(error: std::io::Error) -> Error {
    Error::input(format!("cannot write a temporary file: {error}"))
        .source(error)
        .remedy("free some space, or set TMPDIR to a folder on a larger disk")
}

/// Writes the records and streams of a coded tensor (§5.2); returns its length, `None` if it is too long for its records.
fn write_item(out: &mut impl Write, streams: &[Vec<u8>]) -> std::io::Result<Option<u64>> {
    let mut end = 0u64;
    for stream in streams {
        end += stream.len() as u64;
        let Ok(units) = u32::try_from(end / 4) else { return Ok(None) };
        out.write_all(&units.to_le_bytes())?;
        out.write_all(&crc32fast::hash(stream).to_le_bytes())?;
    }
    for stream in streams {
        out.write_all(stream)?;
    }
    Ok(Some(end + 8 * streams.len() as u64))
}

#[cfg(test)]
mod tests {
    use nwc_decode_core::{Container, Limits, Synthesis};

    use super::super::plan::tests::of_latents;
    use super::super::{TensorReport, compress};
    use super::*;
    use crate::progress::Silent;
    use crate::synthetic::Source;
    use crate::tensors::OwnedTensors;

    #[test]
    fn tensors_without_a_transform_are_coded_as_if_there_were_no_others() {
        let mut tensors = OwnedTensors::default();
        tensors.push_f32("plain", &[256, 256], &Source::Laplace.matrix(256, 256, 1));
        // Its inputs' spreads, which are rows as coded, have classes.
        let embedding: Vec<f32> = Source::Gaussian
            .matrix(512, 64, 2)
            .into_iter()
            .enumerate()
            .map(|(place, weight)| if place % 64 < 16 { 4.0 * weight } else { weight })
            .collect();
        tensors.push_f32("embed_tokens.weight", &[512, 64], &embedding);
        let mut settings = Settings::new(Target::Step(0.25));
        settings.tuning.class_spacing = Some(0.25);
        let coded = |tensors: &OwnedTensors| {
            let mut file = tempfile::tempfile().unwrap();
            let report = compress(tensors, Vec::new(), &settings, &Silent, &mut file).unwrap();
            // SAFETY: nothing else writes to the file.
            (report, unsafe { memmap2::Mmap::map(&file) }.unwrap())
        };
        let (alone, _) = coded(&tensors);
        tensors.push_f32("transformed", &[256, 96 * 32], &of_latents(256, 96, 0.5));
        let (together, file) = coded(&tensors);
        for (a, b) in alone.tensors.iter().zip(&together.tensors) {
            let exactly = |tensor: &TensorReport| [tensor.bits_per_weight, tensor.nmse].map(f64::to_bits);
            assert_eq!(exactly(a), exactly(b), "{a:?} {b:?}");
        }
        let container = Container::open(&file, &Limits::default()).unwrap();
        let synthesis = |index: usize| {
            let tensor = container.tensor(index).unwrap();
            container.codec(tensor.coded().unwrap().codec_index()).unwrap().synthesis()
        };
        assert_eq!([0, 1, 2].map(synthesis), [Synthesis::Identity, Synthesis::Identity, Synthesis::Hadamard]);
        assert_eq!(container.codec_count(), 2);
    }
}
