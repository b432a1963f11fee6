//! Calibration: the second moments H = E[x x^T] of what goes into the linear maps of a model, by running it on samples; and perhaps how much
//! what comes out of them matters, by running it backwards.
//!
//! One stage of a tower is in memory at a time, and the hidden states of all samples. Products are summed in f32 over a few hundred
//! tokens, and these sums in f64. What each finished step gave is kept in a folder, from which an interrupted calibration goes on; the
//! file does not depend on whether it was interrupted, nor on the number of threads.

mod checkpoint;
mod collect;
mod file;
mod gradients;
pub mod layout;
mod moment;

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use burn::backend::Flex;
use burn::tensor::{Device, Tensor};
use serde::Serialize;

use crate::atomic::AtomicFile;
use crate::forward::{Batches, Stage, Stream, Tower};
use crate::progress::Progress;
use crate::samples::{Data, Limits, Samples};
use crate::subject::Subject;
use crate::{Error, ErrorKind, Result};
use checkpoint::{Checkpoint, Position};
use collect::{Collector, Rows};
use file::Moments;
use gradients::Gradients;
use layout::{Fallback, Layout, Plan};

/// How to calibrate.
#[derive(Debug, Clone, Copy, Default)]
pub struct Settings {
    /// What of the data is used.
    pub limits: Limits,
    /// Only diagonals.
    pub diagonal: bool,
    /// How much outputs matter too.
    pub outputs: bool,
}

/// Where a calibration is kept until it is finished.
#[derive(Debug, Clone)]
pub struct Work {
    /// The folder.
    pub folder: PathBuf,
    /// Go on from it.
    pub resume: bool,
    /// Start over if there is one.
    pub force: bool,
}

impl Work {
    /// Beside the output.
    pub fn beside(output: &Path) -> PathBuf {
        checkpoint::folder_of(output)
    }
}

/// What went through a tower.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TowerReport {
    /// Its name.
    pub tower: String,
    /// Sequences or images.
    pub samples: u64,
    /// Tokens or patches, those that count.
    pub tokens: u64,
}

/// What a calibration gave.
#[derive(Debug, Clone)]
pub struct Report {
    /// What went through each tower; empty after a merge.
    pub towers: Vec<TowerReport>,
    /// Towers for which there were no data.
    pub left_out: Vec<String>,
    /// Of what the file consists.
    pub layout: Layout,
    /// What is in it.
    pub plan: Plan,
    /// Its size.
    pub bytes: u64,
}

impl Report {
    /// Tensors that have moments.
    pub fn layers(&self) -> usize {
        let names = self.layout.groups.iter().flat_map(|group| &group.names);
        names.collect::<std::collections::HashSet<_>>().len()
    }

    /// Tensors of whose outputs it is known how much they matter.
    pub fn outputs(&self) -> usize {
        self.layout.sums.keys().filter(|name| name.ends_with(layout::OUTPUTS)).count()
    }

    /// Sequences and images.
    pub fn samples(&self) -> u64 {
        self.towers.iter().map(|tower| tower.samples).sum()
    }

    /// Tokens and patches.
    pub fn tokens(&self) -> u64 {
        self.towers.iter().map(|tower| tower.tokens).sum()
    }
}

/// Says what a run or a merge did not see enough of.
fn warn_of_fallbacks(fallbacks: &[Fallback], progress: &dyn Progress) {
    if let Some(Fallback { tensor, expert, inputs, tokens }) = fallbacks.first() {
        let count = fallbacks.len();
        let expert = expert.map_or_else(String::new, |expert| format!(", expert {expert}"));
        progress.warn(&format!(
            "{count} groups of experts' layers have fewer tokens than inputs and take those of their layer's mixture, {tensor:?}{expert} \
             first ({tokens} tokens, {inputs} inputs); more --data help"
        ));
    }
}

/// A CRC-32 of a file, or of the files of a folder and their names.
pub(crate) fn checksum(path: &Path) -> Result<u32> {
    fn add(path: &Path, crc: &mut crc32fast::Hasher) -> Result<()> {
        let cannot = |error| Error::io("cannot read", path, error);
        if path.is_dir() {
            let entries = fs::read_dir(path).map_err(cannot)?;
            let mut entries: Vec<PathBuf> =
                entries.map(|entry| Ok(entry.map_err(cannot)?.path())).collect::<Result<_>>()?;
            entries.sort();
            for entry in entries {
                crc.update(entry.file_name().unwrap_or_default().as_encoded_bytes());
                add(&entry, crc)?;
            }
            return Ok(());
        }
        let mut file = File::open(path).map_err(cannot)?;
        let mut buffer = vec![0; 1 << 20];
        loop {
            let read = file.read(&mut buffer).map_err(cannot)?;
            if read == 0 {
                return Ok(());
            }
            crc.update(&buffer[..read]);
        }
    }
    let mut crc = crc32fast::Hasher::new();
    add(path, &mut crc)?;
    Ok(crc.finalize())
}

/// A tower and what goes through it.
struct Part<'a> {
    tower: &'a Tower,
    samples: Samples<'a>,
    /// The rows of each batch that count.
    relevant: Vec<Option<Rows>>,
}

impl<'a> Part<'a> {
    fn new(tower: &'a Tower, samples: Samples<'a>) -> Result<Self> {
        let batches: &dyn Batches<Flex> = &samples;
        let relevant = (0..batches.count()).map(|index| {
            let Some(tokens) = batches.tokens(index) else { return Ok(None) };
            Ok(tower.relevant(tokens)?.map(|marks| Rows::new(&marks)))
        });
        let relevant = relevant.collect::<Result<_>>()?;
        Ok(Self { tower, samples, relevant })
    }

    /// Stages of the tower, its head too.
    fn stages(&self) -> usize {
        Stream::<Flex>::stages(self.tower) + 1
    }

    /// One stage of it.
    fn stage(&self, index: usize) -> &dyn Stage {
        match index.checked_sub(1) {
            None => &self.tower.embedding,
            Some(block) => self.tower.blocks.get(block).map_or(&self.tower.head, |block| block),
        }
    }

    fn batches(&self) -> usize {
        Batches::<Flex>::count(&self.samples)
    }
}

/// A calibration that runs.
struct Job<'a> {
    subject: &'a Subject<'a>,
    parts: Vec<Part<'a>>,
    settings: Settings,
    /// What tells the model from others.
    model: String,
    checkpoint: Checkpoint,
    progress: &'a dyn Progress,
}

impl Job<'_> {
    /// Steps of a tower.
    fn steps(&self, part: &Part<'_>) -> usize {
        part.stages() * if self.settings.outputs { 2 } else { 1 }
    }

    /// Steps of all towers.
    fn all_steps(&self) -> usize {
        self.parts.iter().map(|part| self.steps(part)).sum()
    }

    /// Runs what is left, and keeps what each step gave.
    fn run(&self, position: &mut Position) -> Result<()> {
        let units = |part: &Part<'_>| (self.steps(part) * part.batches()) as u64;
        self.progress.begin("calibrating", self.parts.iter().map(units).sum());
        let before = self.parts[..position.tower].iter().map(units).sum::<u64>();
        let in_tower = self.parts.get(position.tower).map_or(0, Part::batches) * position.step;
        self.progress.advance(before + in_tower as u64);
        let mut hidden = if position.done > 0 { self.checkpoint.hidden(position.done)? } else { Vec::new() };
        while let Some(part) = self.parts.get(position.tower) {
            while position.step < self.steps(part) {
                let stages = part.stages();
                // The first of the tower's steps.
                let first = position.done - position.step;
                let step = self.checkpoint.step(position.done);
                let mut forget = Vec::new();
                if position.step < stages {
                    let collector;
                    (collector, hidden) = self.forward(part, position.step, hidden)?;
                    self.keep(collector, part, &step)?;
                    if !self.settings.outputs {
                        forget.push(position.done);
                    }
                } else {
                    let stage = 2 * stages - 1 - position.step;
                    let inputs = if stage > 0 { self.checkpoint.hidden(first + stage)? } else { Vec::new() };
                    let sums;
                    (sums, hidden) =
                        gradients::back(part, stage, self.subject.weights, &inputs, &hidden, self.progress)?;
                    self.keep_gradients(sums, part, &step)?;
                    forget.extend([first + stage, position.done]);
                }
                position.step += 1;
                position.done += 1;
                self.checkpoint.write(*position, &hidden)?;
                self.checkpoint.forget(forget);
            }
            *position = Position { tower: position.tower + 1, step: 0, ..*position };
            hidden.clear();
            self.checkpoint.write(*position, &hidden)?;
        }
        Ok(())
    }

    /// Runs one stage: what was collected, and the hidden states after it; after the last one there are none.
    fn forward<'p>(
        &'p self,
        part: &'p Part<'_>,
        stage: usize,
        hidden: Vec<Tensor<Flex, 3>>,
    ) -> Result<(Collector<'p>, Vec<Tensor<Flex, 3>>)> {
        let batches: &dyn Batches<Flex> = &part.samples;
        let mut stream = Stream::new(part.tower, self.subject.weights, batches, &Device::<Flex>::default());
        stream.resume(hidden);
        let groups = part.stage(stage).groups();
        let mut collector = Collector::new(groups, self.settings.diagonal, &part.relevant, self.progress);
        if stage + 1 < part.stages() {
            stream.run(stage, &mut collector)?;
            return Ok((collector, stream.into_hidden()));
        }
        let head = stream.head()?;
        for index in 0..batches.count() {
            stream.features(&head, index, &mut collector)?;
        }
        Ok((collector, Vec::new()))
    }

    /// Writes what a stage gave.
    fn keep(&self, collector: Collector<'_>, part: &Part<'_>, path: &Path) -> Result<()> {
        let (layout, moments) = collector.finish(self.settings.diagonal, part.samples.count as u64);
        let values = |output: &layout::Output| {
            file::values(output, &layout, |sum, group| {
                sum.add_moment(&moments[group]);
                Ok(())
            })
        };
        let mut file = AtomicFile::create(path, true)?;
        file::write(&mut file, &layout, &layout.plan(), &self.model, values, |_| Vec::new())?;
        file.commit()
    }

    /// Writes what a stage gave on the way back.
    fn keep_gradients(&self, sums: Gradients, part: &Part<'_>, path: &Path) -> Result<()> {
        let (layout, mut means) = sums.finish(part.samples.count as u64);
        let mut file = AtomicFile::create(path, true)?;
        let means = |name: &str| means.remove(name).unwrap_or_default();
        file::write(&mut file, &layout, &Plan::default(), &self.model, |_| Ok(Vec::new()), means)?;
        file.commit()
    }

    /// Puts the files of all steps together.
    fn assemble(&self, left_out: Vec<String>, output: &mut AtomicFile) -> Result<Report> {
        let mut layout = Layout { diagonal: self.settings.diagonal, ..Layout::default() };
        let mut towers = Vec::new();
        let mut files = Vec::new();
        for part in &self.parts {
            let mut tokens = 0;
            for _ in 0..self.steps(part) {
                let path = self.checkpoint.step(files.len());
                let file = Moments::open(&path)?;
                if file.model != self.model {
                    return Err(Error::input("is of another model")
                        .file(path)
                        .remedy("start over with --force"));
                }
                tokens = file.layout.groups.iter().map(|group| group.tokens).fold(tokens, u64::max);
                layout.append(&file.layout);
                files.push(file);
            }
            let samples = part.samples.count as u64;
            towers.push(TowerReport { tower: part.tower.name.to_owned(), samples, tokens });
        }
        let plan = layout.plan();
        let find = |name: &str| {
            let values = files.iter().find_map(|file| file.tensor(name));
            values.expect("the plan of all steps is that of each")
        };
        let values = |output: &layout::Output| {
            self.progress.check()?;
            Ok(find(&output.name))
        };
        let bytes = file::write(output, &layout, &plan, &self.model, values, find)?;
        Ok(Report { towers, left_out, layout, plan, bytes })
    }
}

/// Calibrates a model with the data at `path`, and writes the file; what was kept until then is removed.
///
/// # Errors
/// Data that do not go with the model, a model or checkpoint that cannot be used, an interruption, or the operating system's.
pub fn calibrate(
    subject: &Subject<'_>,
    path: &Path,
    settings: Settings,
    work: &Work,
    mut output: AtomicFile,
    progress: &dyn Progress,
) -> Result<Report> {
    if checkpoint::exists(&work.folder) && !work.resume && !work.force {
        return Err(Error::input("an interrupted calibration left its checkpoint")
            .file(&work.folder)
            .remedy("add --resume to go on, or --force to start over"));
    }
    let data = Data::open(path)?;
    let mut parts = Vec::new();
    let mut left_out = Vec::new();
    for tower in &subject.forward.towers {
        let samples = Samples::new(subject, tower, &data, settings.limits).map_err(|e| e.file(path))?;
        match samples {
            Some(samples) => parts.push(Part::new(tower, samples).map_err(|e| e.file(path))?),
            None => left_out.push(tower.name.to_owned()),
        }
    }
    if parts.is_empty() {
        return Err(Error::input(format!(
            "has nothing for a model of the type {:?}",
            subject.forward.model_type
        ))
        .file(path)
        .remedy("give a text for language models, images and captions for models that compare them"));
    }
    for tower in &left_out {
        progress.warn(&format!("the {tower} part is left out: {} has nothing for it", path.display()));
    }
    let limit = |limit: Option<usize>| limit.map_or_else(|| "none".to_owned(), |limit| limit.to_string());
    let model = subject.fingerprint()?;
    let options = [
        ("MODEL", model.clone()),
        ("--data", format!("{:08x}", checksum(path)?)),
        ("--samples", limit(settings.limits.samples)),
        ("--length", limit(settings.limits.length)),
        ("--diagonal", settings.diagonal.to_string()),
        ("--outputs", settings.outputs.to_string()),
    ];
    let options = options.map(|(option, value)| (option.to_owned(), value)).to_vec();
    let checkpoint = Checkpoint::new(&work.folder, options)?;
    let mut position = if work.resume { checkpoint.read()? } else { Position::default() };
    if !work.resume {
        checkpoint.write(position, &[])?;
    }
    let job = Job { subject, parts, settings, model, checkpoint, progress };
    let steps = job.all_steps();
    let ran = job.run(&mut position).map_err(|error| match error.kind {
        // What names no file is wrong with the data: what is wrong with a model names it.
        ErrorKind::Input => error.file(path),
        ErrorKind::Check | ErrorKind::Interrupted => error,
    });
    let report = ran.and_then(|()| job.assemble(left_out, &mut output));
    let report = match report {
        Ok(report) => report,
        Err(error) if position.done == 0 => {
            // There is nothing to go on from.
            job.checkpoint.remove(0);
            return Err(error);
        }
        Err(error) if error.kind == ErrorKind::Interrupted => {
            let problem = format!("interrupted after {} of {steps} steps, which are kept", position.done);
            let mut error = Error::input(problem).file(&work.folder).remedy("add --resume to go on");
            error.kind = ErrorKind::Interrupted;
            return Err(error);
        }
        Err(error) => {
            progress.warn(&format!(
                "{}: {} of {steps} steps are kept; add --resume to go on once that is mended, or --force to start over",
                work.folder.display(),
                position.done
            ));
            return Err(error);
        }
    };
    warn_of_fallbacks(&report.plan.fallbacks, progress);
    output.commit()?;
    job.checkpoint.remove(steps);
    Ok(report)
}

/// Merges files of parts of the data, as if all of it had been one.
///
/// # Errors
/// They are not of one model and kind, cannot be read, or the operating system's.
pub fn merge(files: &[PathBuf], mut output: AtomicFile, progress: &dyn Progress) -> Result<Report> {
    let (layout, plan, bytes) = file::merge(files, &mut output, progress)?;
    warn_of_fallbacks(&plan.fallbacks, progress);
    output.commit()?;
    Ok(Report { towers: Vec::new(), left_out: Vec::new(), layout, plan, bytes })
}
