//! Writing the container, and decoding it again before it is given its name.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};

use nwc_decode_core::{Checks, Coding, Container, DType, Limits};
use rayon::prelude::*;

use super::job::{Coded, Job, Met, Planned};
use super::plan::OCTAVE;
use super::{Report, TensorReport, cannot_write};
use crate::container::{EntryKind, Layout, Split};
use crate::restore::{Decoder, TableMemory, coding_name};
use crate::tensors::{TensorSource, to_f32};
use crate::{Error, Result, seek};

/// Writes the file and decodes it again.
pub(super) fn write_and_check(job: &Job<'_>, planned: &Planned, met: Met, out: &mut File) -> Result<Report> {
    let ldlq = job.ldlq_reports(planned, &met)?;
    let mut coded = met.coded;
    write(job.source, &job.layout(&coded)?, &mut coded, out).map_err(cannot_write)?;
    let mut report = check(job, coded, out)?;
    report.step = (f64::from(met.steps.free) / OCTAVE).exp2();
    report.tensors.iter_mut().zip(ldlq).for_each(|(tensor, ldlq)| tensor.ldlq = ldlq);
    Ok(report)
}

/// Writes the file, content checksums still missing.
fn write(
    source: &dyn TensorSource,
    layout: &Layout<'_>,
    coded: &mut Coded,
    out: &mut File,
) -> std::io::Result<()> {
    coded.items.seek(SeekFrom::Start(0))?;
    let mut items = BufReader::new(&mut coded.items);
    let mut out = BufWriter::with_capacity(1 << 20, out);
    layout.write_front(&mut out)?;
    for (index, entry) in coded.entries.iter().enumerate() {
        layout.write_gap(&mut out, index)?;
        match &entry.kind {
            EntryKind::Raw { .. } => out.write_all(source.bytes(index))?,
            EntryKind::Alias(_) => {}
            EntryKind::Coded(entry) => {
                std::io::copy(&mut items.by_ref().take(entry.len), &mut out)?;
            }
        }
    }
    layout.write_back(&mut out)?;
    out.flush()
}

/// Decodes the file that was written, tensor by tensor; measures the error on what every decoder will give; fills in the content checksums.
fn check(job: &Job<'_>, mut coded: Coded, out: &mut File) -> Result<Report> {
    let (source, progress) = (job.source, job.progress);
    let wrap = |error: nwc_decode_core::Error| {
        Error::input(format!("the new container does not decode: {error}")).remedy("please report this")
    };
    // SAFETY: the file is ours, just created under a temporary name; nothing else writes to it while it is mapped.
    let map = unsafe { memmap2::Mmap::map(&*out) }
        .map_err(|error| Error::input(format!("cannot read the container back: {error}")).source(error))?;
    let container = Container::open(&map, &Limits::default()).map_err(wrap)?;
    let mut report = Report {
        weights: 0,
        step: 0.0,
        split: Split::of(&container).map_err(wrap)?,
        nmse: 0.0,
        nmse_mean: 0.0,
        weighted_nmse_mean: None,
        streams: coded.streams,
        lane_states: coded.lane_states,
        symbol_entropy: 0.0,
        tensors: Vec::new(),
    };
    progress.begin("checking", coded_weights(&container));
    let (mut error, mut energy) = (0.0, 0.0);
    let mut memory = TableMemory::default();
    let decoder = Decoder::new(&container, &mut memory)?;
    for (index, tensor) in decoder.tensors().iter().enumerate() {
        progress.check()?;
        let info = source.tensor(index);
        let mut line = TensorReport {
            name: info.name.to_owned(),
            shape: info.shape.to_vec(),
            coding: coding_name(tensor.coding()),
            bits_per_weight: tensor.stored_bytes() as f64 * 8.0 / (tensor.elements().max(1)) as f64,
            nmse: 0.0,
            weighted_nmse: None,
            ldlq: None,
        };
        match (&mut coded.entries[index].kind, tensor.coding()) {
            (EntryKind::Raw { crc, .. }, _) => *crc = crc32fast::hash(source.bytes(index)),
            (EntryKind::Coded(entry), Coding::Coded) => {
                let bytes =
                    decoder.decode(tensor, Checks::SkipChecksums).map_err(|error| error.tensor(info.name))?;
                entry.content_crc = crc32fast::hash(&bytes);
                let (tensor_error, tensor_energy) = squared_error(info.dtype, source.bytes(index), &bytes);
                line.nmse = if tensor_energy > 0.0 { tensor_error / tensor_energy } else { 0.0 };
                (error, energy) = (error + tensor_error, energy + tensor_energy);
                let together = job.weights_of_an_input(index);
                line.weighted_nmse = job.importance(index)?.map(|diagonal| {
                    weighted_nmse(info.dtype, source.bytes(index), &bytes, diagonal, together)
                });
                report.weights += tensor.elements() as u64;
                progress.advance(tensor.elements() as u64);
            }
            _ => {}
        }
        report.tensors.push(line);
    }
    report.sum_up(error, energy);
    report.symbol_entropy = coded.entropy_bits / report.weights.max(1) as f64;
    let seek_points = match job.settings.seek_rows {
        0 => Vec::new(),
        every => seek::section(&decoder, &coded.entries, &coded.codecs, every)?,
    };
    drop(map);
    let mut layout = job.layout(&coded)?;
    layout.set_seek_points(seek_points);
    out.seek(SeekFrom::Start(0)).map_err(cannot_write)?;
    layout.write_front(out).map_err(cannot_write)?;
    Ok(report)
}

/// Number of coded weights.
fn coded_weights(container: &Container<'_>) -> u64 {
    container
        .tensors()
        .filter(|tensor| tensor.coding() == Coding::Coded)
        .map(|tensor| tensor.elements() as u64)
        .sum()
}

/// Squared error over squared weights, each input's squares times its importance; 0 if there is nothing. So many weights of an input lie `together`.
pub(crate) fn weighted_nmse(
    dtype: DType,
    original: &[u8],
    decoded: &[u8],
    diagonal: &[f32],
    together: usize,
) -> f64 {
    let row = diagonal.len() * together * dtype.size();
    let sums = |(original, decoded): (&[u8], &[u8])| {
        let (a, b) = (to_f32(dtype, original), to_f32(dtype, decoded));
        let weights = diagonal.iter().flat_map(|weight| std::iter::repeat_n(weight, together));
        a.iter().zip(&b).zip(weights).fold((0.0, 0.0), |(error, energy), ((&a, &b), &weight)| {
            let (a, b, weight) = (f64::from(a), f64::from(b), f64::from(weight));
            (error + weight * (a - b).powi(2), energy + weight * a.powi(2))
        })
    };
    let rows: Vec<(f64, f64)> = original.par_chunks(row).zip(decoded.par_chunks(row)).map(sums).collect();
    let (error, energy) = rows.iter().fold((0.0, 0.0), |(a, b), (c, d)| (a + c, b + d));
    if energy > 0.0 { error / energy } else { 0.0 }
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

impl Report {
    /// The errors of the whole file: of squared errors and squared weights, and of its tensors' lines.
    pub(crate) fn sum_up(&mut self, error: f64, energy: f64) {
        let mean =
            |values: Vec<f64>| (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64);
        let coded = self.tensors.iter().filter(|tensor| tensor.coding == coding_name(Coding::Coded));
        self.nmse = if energy > 0.0 { error / energy } else { 0.0 };
        self.nmse_mean = mean(coded.map(|tensor| tensor.nmse).collect()).unwrap_or(0.0);
        self.weighted_nmse_mean =
            mean(self.tensors.iter().filter_map(|tensor| tensor.weighted_nmse).collect());
    }
}
