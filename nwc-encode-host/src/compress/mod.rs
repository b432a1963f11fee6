//! Compressing a model: what is measured, how the rate is met, and the container that comes out.
//!
//! Tensors are read one batch at a time, so memory is bounded by the largest tensor, not by the model.

mod encode;
mod plan;
mod rate;
mod view;

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};

use nwc_decode_core::{Checks, Coding, Container, DType, Limits};
use rayon::prelude::*;

pub use encode::quantiser;
pub use view::{Selection, View};

use crate::coding::search::Quantiser;
use crate::container::{CodedEntry, Entry, EntryKind, Layout, Split};
use crate::progress::Progress;
use crate::tensors::{TensorSource, all_finite, to_f32};
use crate::{Error, Result, restore};
use encode::{COLUMN_CLASS, ROW_CLASS, ROW_SCALE, TensorCoder};
use plan::{ClassSpacing, OCTAVE, TensorPlan};
use rate::{Estimate, SAMPLE_WEIGHTS, Sample, TensorSample};

/// How far below its target a rate may end, in bits a weight.
pub const RATE_WINDOW: f64 = 0.01;
/// Where in the window it is aimed at.
const AIM: f64 = 0.004;
/// Steps from 2^-7 to 2^2 of a row's deviation: about 8 bits a weight to nearly none.
const RATE_STEPS: std::ops::RangeInclusive<i32> = -7 * 512..=2 * 512;
/// Weights that are in memory at once, unless one tensor has more.
const BATCH_WEIGHTS: usize = 8 << 20;
/// Passes over the model that may be spent on landing in the window.
const MAX_PASSES: usize = 8;
/// Bytes of streams that are kept in memory before they go to a temporary file.
const SPOOL_BYTES: usize = 64 << 20;

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

/// How to compress.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The rate.
    pub target: Target,
    /// The quantiser.
    pub quantiser: Quantiser,
    /// The step of a row is proportional to its deviation to this power.
    pub row_alpha: f64,
    /// Which tensors are coded.
    pub selection: Selection,
    /// Code tensors even where that takes more bytes than they had.
    pub keep_expanding: bool,
}

impl Settings {
    /// The default settings at this rate: `trellis8`, rows normalised.
    pub fn new(target: Target) -> Self {
        let quantiser = quantiser("trellis8").expect("it is known");
        Self { target, quantiser, row_alpha: 1.0, selection: Selection::default(), keep_expanding: false }
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
}

/// What compressing came to.
#[derive(Debug, Clone)]
pub struct Report {
    /// Number of coded weights.
    pub weights: u64,
    /// Where the bytes went.
    pub split: Split,
    /// Squared error over squared weights, of all coded weights.
    pub nmse: f64,
    /// Mean of the coded tensors' nMSE.
    pub nmse_mean: f64,
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

/// Compresses `source` into `out`, an empty file that can be read too.
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
    let mut job = Job { source, settings, progress, fates: sort_out(source, settings, progress)? };
    let (layout, mut spool, entries) = loop {
        let planned = job.measure()?;
        let (entries, spool) = job.meet_target(&planned, &attachments)?;
        // A tensor that got larger is better left as it was; without it the rate has to be found again.
        let expanding: Vec<usize> = entries
            .iter()
            .enumerate()
            .filter(|(index, entry)| {
                matches!(&entry.kind, EntryKind::Coded(coded) if coded.len >= source.bytes(*index).len() as u64)
            })
            .map(|(index, _)| index)
            .collect();
        if expanding.is_empty() || settings.keep_expanding {
            break (layout(&entries, &planned, &attachments)?, spool, entries);
        }
        expanding.into_iter().for_each(|index| job.fates[index] = Fate::Raw);
    };
    let io =
        |error: std::io::Error| Error::input(format!("cannot write the container: {error}")).source(error);
    write_container(source, &layout.0, &entries, &mut spool, out).map_err(io)?;
    drop(spool);
    finish(source, entries, layout.1, attachments, progress, out)
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
    let mut seen: HashMap<(u32, DType, &[usize]), Vec<usize>> = HashMap::new();
    let mut fates = Vec::with_capacity(source.len());
    for (index, &crc) in crcs.iter().enumerate() {
        progress.check()?;
        let tensor = source.tensor(index);
        let twins = seen.entry((crc, tensor.dtype, tensor.shape)).or_default();
        // An alias costs an entry of its own, so tensors of a few bytes are simply stored again.
        const WORTH_AN_ALIAS: usize = 64;
        let bytes = source.bytes(index);
        if bytes.len() >= WORTH_AN_ALIAS
            && let Some(&twin) = twins.iter().find(|&&twin| source.bytes(twin) == bytes)
        {
            fates.push(Fate::Alias(twin));
            continue;
        }
        twins.push(index);
        fates.push(match settings.selection.view(tensor.name, tensor.dtype, tensor.shape) {
            Ok(view) if all_finite(tensor.dtype, bytes) => Fate::Code(view),
            Ok(_) => {
                progress.warn(&format!("tensor \"{}\" holds NaN or infinity: stored raw", tensor.name));
                Fate::Raw
            }
            Err(_) => Fate::Raw,
        });
    }
    Ok(fates)
}

struct Job<'a> {
    source: &'a dyn TensorSource,
    settings: &'a Settings,
    progress: &'a dyn Progress,
    fates: Vec<Fate>,
}

/// Everything about the model that does not depend on the rate.
struct Planned {
    /// Index of the tensor, and its plan.
    plans: Vec<(usize, TensorPlan)>,
    weights: u64,
    sample: Sample,
    /// Bytes that do not depend on the rate: raw tensors, header, directory (without the codecs).
    codecs: std::cell::RefCell<Vec<u8>>,
}

fn layout(entries: &[Entry], planned: &Planned, attachments: &[u8]) -> Result<(Layout, Vec<u8>)> {
    let codecs = planned.codecs.borrow().clone();
    Ok((Layout::new(entries, std::slice::from_ref(&codecs), attachments.to_vec())?, codecs))
}

impl Job<'_> {
    /// Tensors to be coded, in batches that fit in memory together.
    fn batches(&self) -> Vec<Vec<(usize, View)>> {
        let mut batches: Vec<Vec<(usize, View)>> = Vec::new();
        let mut filled = 0;
        for (index, fate) in self.fates.iter().enumerate() {
            let Fate::Code(view) = fate else { continue };
            if batches.is_empty() || filled + view.elements() > BATCH_WEIGHTS {
                batches.push(Vec::new());
                filled = 0;
            }
            filled += view.elements();
            batches.last_mut().expect("just pushed").push((index, *view));
        }
        batches
    }

    fn load(&self, index: usize) -> Vec<f32> {
        to_f32(self.source.tensor(index).dtype, self.source.bytes(index))
    }

    /// Reads the model once: row and column spreads, and the sample.
    fn measure(&self) -> Result<Planned> {
        let batches = self.batches();
        let weights: usize = batches.iter().flatten().map(|(_, view)| view.elements()).sum();
        let fraction = SAMPLE_WEIGHTS as f64 / weights.max(1) as f64;
        // Columns of few weights cannot tell their spread finely, and small models cannot pay for many tables.
        let rows = batches.iter().flatten().map(|(_, view)| view.elements() * view.rows).sum::<usize>()
            / weights.max(1);
        let spacing = ClassSpacing(if rows < 200 { 0.5 } else { 0.25 });
        self.progress.begin("measuring", weights as u64);
        let mut plans = Vec::new();
        let mut samples = Vec::new();
        for batch in batches {
            self.progress.check()?;
            let measured: Vec<_> = batch
                .par_iter()
                .map(|&(index, view)| {
                    let weights = self.load(index);
                    let plan = TensorPlan::measure(view, &weights, self.settings.row_alpha, spacing);
                    let sample = TensorSample::take(&plan, &weights, fraction);
                    self.progress.advance(weights.len() as u64);
                    (index, plan, sample)
                })
                .collect();
            for (index, plan, sample) in measured {
                plans.push((index, plan));
                samples.push(sample);
            }
        }
        let sample = Sample::new(
            self.settings.quantiser.clone(),
            &plans.iter().map(|(_, plan)| plan).collect::<Vec<_>>(),
            samples,
        );
        Ok(Planned { plans, weights: weights as u64, sample, codecs: std::cell::RefCell::default() })
    }

    /// Finds the step, codes the model, and trims the step until the rate is in its window.
    fn meet_target(&self, planned: &Planned, attachments: &[u8]) -> Result<(Vec<Entry>, Spool)> {
        let weights = planned.weights as f64;
        let estimate = |rate_step: i32| planned.sample.estimate(rate_step);
        if let Target::Step(step) = self.settings.target {
            let rate_step = (step.log2() * OCTAVE).round() as i32;
            if !step.is_finite() || step <= 0.0 || !RATE_STEPS.contains(&rate_step) {
                return Err(Error::input(format!("step {step} is out of reach"))
                    .remedy("choose a step between 0.0079 and 4"));
            }
            return self.pass(planned, &estimate(rate_step), rate_step);
        }
        // Everything but the symbols: known exactly once coded, estimated by the entries alone before.
        let fixed = |estimate: &Estimate| -> Result<f64> {
            let entries = self.entries(planned, 0);
            let codec = estimate.codec.to_bytes();
            let layout = Layout::new(&entries, &[codec], attachments.to_vec())?;
            let streams: usize = planned
                .plans
                .iter()
                .map(|(_, plan)| {
                    let tiles = plan.bands() * plan.column_blocks();
                    // Records, lane states with what the encoder's start wastes (24 of 32 bits), rounding up to 4 bytes.
                    tiles * (8 + plan.lanes * 3 + 1)
                        + if plan.has_row_streams() { plan.bands() * 12 } else { 0 }
                })
                .sum();
            Ok(self.objective(&layout) as f64 + streams as f64)
        };
        let window = RATE_WINDOW * weights / 8.0;
        let limit = match self.settings.target {
            Target::Bits(bits) => bits * weights / 8.0,
            Target::Size(bytes) => bytes as f64,
            Target::Step(_) => unreachable!("handled above"),
        };
        if planned.plans.is_empty() {
            self.progress.warn("no tensor is coded: all are small, excluded or of other types");
            let result = self.pass(planned, &estimate(0), 0)?;
            let layout = layout(&result.0, planned, attachments)?.0;
            return if matches!(self.settings.target, Target::Size(_)) && layout.file_bytes() as f64 > limit {
                Err(self.out_of_reach(layout.file_bytes() as f64, layout.file_bytes() as f64, weights))
            } else {
                Ok(result)
            };
        }
        self.progress.begin("searching the rate", 0);
        let aim = limit - AIM * weights / 8.0;
        let per_octave = weights / 8.0;
        let start = match self.settings.target {
            Target::Bits(bits) => (-(bits - 1.05) * OCTAVE) as i32,
            _ => (-((limit - attachments.len() as f64) * 8.0 / weights - 1.05) * OCTAVE) as i32,
        };
        let total = |rate_step: i32| -> Result<f64> {
            self.progress.check()?;
            let estimate = estimate(rate_step);
            Ok(estimate.symbol_bytes + fixed(&estimate)?)
        };
        let mut failure = None;
        let mut bytes = |rate_step: i32| match total(rate_step) {
            Ok(bytes) => bytes,
            Err(error) => {
                failure.get_or_insert(error);
                aim
            }
        };
        let mut rate_step =
            rate::solve(start, RATE_STEPS, aim, 0.001 * weights / 8.0, per_octave, &mut bytes);
        if let Some(error) = failure {
            return Err(error);
        }

        let mut tried: Vec<(i32, f64)> = Vec::new();
        let mut best: Option<(f64, (Vec<Entry>, Spool), Vec<u8>)> = None;
        for _ in 0..MAX_PASSES {
            let result = self.pass(planned, &estimate(rate_step), rate_step)?;
            let (layout, codecs) = layout(&result.0, planned, attachments)?;
            let here = self.objective(&layout) as f64;
            tried.push((rate_step, here));
            if here <= limit && best.as_ref().is_none_or(|(bytes, ..)| here > *bytes) {
                best = Some((here, result, codecs));
            }
            if here <= limit && here >= limit - window {
                break;
            }
            let Some(next) = next_try(&tried, aim, per_octave) else { break };
            rate_step = next;
        }
        let Some((bytes, result, codecs)) = best else {
            let lowest = tried.iter().map(|t| t.1).fold(f64::MAX, f64::min);
            let highest = total(*RATE_STEPS.start())?;
            return Err(self.out_of_reach(lowest.min(total(*RATE_STEPS.end())?), highest, weights));
        };
        if bytes < limit - window {
            let highest = total(*RATE_STEPS.start())?;
            if highest < limit - window {
                return Err(self.out_of_reach(total(*RATE_STEPS.end())?, highest, weights));
            }
            self.progress.warn(&format!(
                "the model is too small to meet the target within {RATE_WINDOW} bits a weight; the next rate below is taken"
            ));
        }
        planned.codecs.replace(codecs);
        Ok(result)
    }

    /// The bytes that the target limits.
    fn objective(&self, layout: &Layout) -> u64 {
        match self.settings.target {
            Target::Size(_) => layout.file_bytes(),
            _ => layout.counted_bytes(),
        }
    }

    fn out_of_reach(&self, lowest: f64, highest: f64, weights: f64) -> Error {
        match self.settings.target {
            Target::Size(bytes) => Error::input(format!("a size of {bytes} bytes is out of reach"))
                .remedy(format!("choose between about {lowest:.0} and {highest:.0} bytes")),
            Target::Bits(bits) => {
                let per_weight = 8.0 / weights;
                Error::input(format!("{bits} bits per weight are out of reach")).remedy(format!(
                    "choose between about {:.2} and {:.2}",
                    lowest * per_weight + RATE_WINDOW,
                    highest * per_weight
                ))
            }
            Target::Step(_) => unreachable!("a step has no target"),
        }
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
                        let coder = self.coder(planned, plan, rate_step);
                        let side = u8::from(!plan.row_scale.is_empty()) << ROW_SCALE
                            | u8::from(!plan.row_class.is_empty()) << ROW_CLASS
                            | u8::from(!plan.column_class.is_empty()) << COLUMN_CLASS;
                        EntryKind::Coded(CodedEntry {
                            transposed: view.transposed,
                            batched: view.batched,
                            codec: 0,
                            lanes: plan.lanes as u8,
                            columns_per_lane: plan.columns_per_lane as u64,
                            tile_rows: plan.tile_rows as u64,
                            step: coder.step(),
                            class_base: coder.class_base().clamp(0, 255) as u8,
                            side,
                            row_shift: if side & 1 == 0 { 0 } else { plan.row_shift as u8 },
                            column_shift: 0,
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

    fn coder<'p>(&self, planned: &Planned, plan: &'p TensorPlan, rate_step: i32) -> TensorCoder<'p> {
        TensorCoder { plan, rate_step, class_offset: planned.sample.class_offset }
    }

    /// Codes the whole model at one rate. The spool holds the items of the coded tensors back to back.
    fn pass(&self, planned: &Planned, estimate: &Estimate, rate_step: i32) -> Result<(Vec<Entry>, Spool)> {
        let codec = &estimate.codec;
        let mut entries = self.entries(planned, rate_step);
        let mut spool = BufWriter::new(tempfile::spooled_tempfile(SPOOL_BYTES));
        self.progress.begin("coding", planned.weights);
        let mut next = 0;
        for batch in self.batches() {
            let plans = &planned.plans[next..next + batch.len()];
            next += batch.len();
            let loaded: Vec<Vec<f32>> = batch.par_iter().map(|&(index, _)| self.load(index)).collect();
            let coders: Vec<_> = plans.iter().map(|(_, plan)| self.coder(planned, plan, rate_step)).collect();
            // All tiles of the batch in one list, so that small tensors keep all cores busy too.
            let tiles: Vec<(usize, usize)> = coders
                .iter()
                .enumerate()
                .flat_map(|(i, coder)| {
                    (0..coder.plan.bands() * coder.plan.column_blocks()).map(move |tile| (i, tile))
                })
                .collect();
            let streams: Vec<Result<Vec<u8>>> = tiles
                .par_iter()
                .map(|&(i, tile)| {
                    self.progress.check()?;
                    let stream = coders[i].encode_tile(codec, &estimate.rate, &loaded[i], tile);
                    let done: usize = coders[i].tile_groups(tile).map(|group| group.rows * group.lanes).sum();
                    self.progress.advance(done as u64);
                    Ok(stream)
                })
                .collect();
            let mut streams = streams.into_iter();
            for (coder, &(index, _)) in coders.iter().zip(&batch) {
                let plan = coder.plan;
                let rows = if plan.has_row_streams() { plan.bands() } else { 0 };
                let mut parts: Vec<Vec<u8>> = (0..rows).map(|band| coder.encode_rows(codec, band)).collect();
                for _ in 0..plan.bands() * plan.column_blocks() {
                    parts.push(streams.next().expect("a stream for each tile")?);
                }
                let len = write_item(&mut spool, &parts).map_err(|error| {
                    Error::input(format!("cannot write a temporary file: {error}")).source(error)
                })?;
                let EntryKind::Coded(entry) = &mut entries[index].kind else { unreachable!("it is coded") };
                entry.len = len.ok_or_else(|| {
                    Error::input("its streams come to more than 16 GiB")
                        .tensor(self.source.tensor(index).name)
                })?;
            }
        }
        planned.codecs.replace(codec.to_bytes());
        let spool = spool
            .into_inner()
            .map_err(|error| Error::input(format!("cannot write a temporary file: {error}")))?;
        Ok((entries, spool))
    }
}

type Spool = tempfile::SpooledTempFile;

/// The rate step to try after those that missed: along the line through the two results nearest to the target. `None` when it would
/// repeat itself.
fn next_try(tried: &[(i32, f64)], aim: f64, per_octave: f64) -> Option<i32> {
    let mut nearest = tried.to_vec();
    nearest.sort_by(|a, b| (a.1 - aim).abs().total_cmp(&(b.1 - aim).abs()));
    let slope = match nearest.as_slice() {
        [a, b, ..] if (a.1 - b.1) * f64::from(a.0 - b.0) < 0.0 => (a.1 - b.1) / f64::from(a.0 - b.0),
        _ => -per_octave / OCTAVE,
    };
    let (from, bytes) = nearest[0];
    let change = ((aim - bytes) / slope).clamp(-1024.0, 1024.0);
    // Move at least one step away from the wrong side.
    let change = if change.abs() < 1.0 { change.signum() } else { change.round() };
    let next = (from + change as i32).clamp(*RATE_STEPS.start(), *RATE_STEPS.end());
    (!tried.iter().any(|&(step, _)| step == next)).then_some(next)
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

/// Writes the file, content checksums still missing.
fn write_container(
    source: &dyn TensorSource,
    layout: &Layout,
    entries: &[Entry],
    spool: &mut Spool,
    out: &mut File,
) -> std::io::Result<()> {
    spool.seek(SeekFrom::Start(0))?;
    let mut items = BufReader::new(spool);
    let mut out = BufWriter::with_capacity(1 << 20, out);
    layout.write_front(&mut out)?;
    for (index, entry) in entries.iter().enumerate() {
        layout.write_gap(&mut out, index)?;
        match &entry.kind {
            EntryKind::Raw { .. } => out.write_all(source.bytes(index))?,
            EntryKind::Alias(_) => {}
            EntryKind::Coded(coded) => {
                std::io::copy(&mut items.by_ref().take(coded.len), &mut out)?;
            }
        }
    }
    layout.write_back(&mut out)?;
    out.flush()
}

/// Decodes the file that was written, tensor by tensor; measures the error on what every decoder will give; fills in the content checksums.
fn finish(
    source: &dyn TensorSource,
    mut entries: Vec<Entry>,
    codecs: Vec<u8>,
    attachments: Vec<u8>,
    progress: &dyn Progress,
    out: &mut File,
) -> Result<Report> {
    let wrap =
        |error: nwc_decode_core::Error| Error::input(format!("the new container does not decode: {error}"));
    // SAFETY: the file is ours, just created under a temporary name; nothing else writes to it while it is mapped.
    let map = unsafe { memmap2::Mmap::map(&*out) }
        .map_err(|error| Error::input(format!("cannot read the container back: {error}")).source(error))?;
    let container = Container::open(&map, &Limits::default()).map_err(wrap)?;
    let mut report = Report {
        weights: 0,
        split: Split::of(&container).map_err(wrap)?,
        nmse: 0.0,
        nmse_mean: 0.0,
        tensors: Vec::new(),
    };
    let coded = |tensor: &nwc_decode_core::Tensor<'_>| {
        if tensor.coding() == Coding::Coded { tensor.elements() } else { 0 }
    };
    progress.begin("checking", container.tensors().map(|tensor| coded(&tensor) as u64).sum());
    let (mut error, mut energy, mut count) = (0.0, 0.0, 0u32);
    for (index, tensor) in container.tensors().enumerate() {
        progress.check()?;
        let info = source.tensor(index);
        let mut line = TensorReport {
            name: info.name.to_owned(),
            shape: info.shape.to_vec(),
            coding: restore::coding_name(tensor.coding()),
            bits_per_weight: tensor.stored_bytes() as f64 * 8.0 / (tensor.elements().max(1)) as f64,
            nmse: 0.0,
        };
        match (&mut entries[index].kind, tensor.coding()) {
            (EntryKind::Raw { crc, .. }, _) => *crc = crc32fast::hash(source.bytes(index)),
            (EntryKind::Coded(entry), Coding::Coded) => {
                let bytes = restore::decode_own(&container, &tensor, Checks::SkipChecksums)
                    .map_err(|error| error.tensor(info.name))?;
                entry.content_crc = crc32fast::hash(&bytes);
                let (tensor_error, tensor_energy) = squared_error(info.dtype, source.bytes(index), &bytes);
                line.nmse = if tensor_energy > 0.0 { tensor_error / tensor_energy } else { 0.0 };
                (error, energy, count) = (error + tensor_error, energy + tensor_energy, count + 1);
                report.nmse_mean += line.nmse;
                report.weights += tensor.elements() as u64;
                progress.advance(tensor.elements() as u64);
            }
            _ => {}
        }
        report.tensors.push(line);
    }
    report.nmse = if energy > 0.0 { error / energy } else { 0.0 };
    report.nmse_mean /= f64::from(count.max(1));
    drop(map);
    let layout = Layout::new(&entries, std::slice::from_ref(&codecs), attachments)?;
    let io =
        |error: std::io::Error| Error::input(format!("cannot write the container: {error}")).source(error);
    out.seek(SeekFrom::Start(0)).map_err(io)?;
    layout.write_front(out).map_err(io)?;
    out.flush().map_err(io)?;
    Ok(report)
}

/// Sum of squared differences and sum of squared originals, on values of the tensor's dtype.
pub(crate) fn squared_error(dtype: DType, original: &[u8], decoded: &[u8]) -> (f64, f64) {
    const PART: usize = 1 << 16;
    let part = PART * dtype.size();
    let parts: Vec<(f64, f64)> = original
        .par_chunks(part)
        .zip(decoded.par_chunks(part))
        .map(|(original, decoded)| {
            let (a, b) = (to_f32(dtype, original), to_f32(dtype, decoded));
            a.iter().zip(&b).fold((0.0, 0.0), |(error, energy), (&a, &b)| {
                (error + (f64::from(a) - f64::from(b)).powi(2), energy + f64::from(a).powi(2))
            })
        })
        .collect();
    parts.into_iter().fold((0.0, 0.0), |(error, energy), part| (error + part.0, energy + part.1))
}
