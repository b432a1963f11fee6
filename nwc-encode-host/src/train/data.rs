//! What is trained on: normalised chunks of matrices, some of which are held out.

use std::path::PathBuf;

use regex::Regex;

use crate::chunks::{CHUNK, Chunks, Normalisation};
use crate::compress::{Selection, View};
use crate::model::Model;
use crate::progress::Progress;
use crate::synthetic::Source;
use crate::tensors::{all_finite, to_f32};
use crate::{Error, Result};

/// A chunk of normalised weights.
pub(crate) type Chunk = [f32; CHUNK];

/// At most so many chunks are kept to train on, and so many to validate with: of more, each one some apart.
const MOST: (usize, usize) = (1 << 22, 1 << 16);
/// Without an expression, each so many-th tensor is held out.
const HOLD_OUT: usize = 5;
/// Rows and columns of a synthetic matrix to train on.
const SYNTHETIC: (usize, usize) = (1024, 16_384);
/// Rows of a synthetic matrix to validate with: as many as three turns of a mixture.
const SYNTHETIC_HELD_OUT: usize = 48;

/// Which weights.
#[derive(Debug, Clone)]
pub(crate) struct Origin<'a> {
    /// Models, as folders or .safetensors files.
    pub(crate) models: &'a [PathBuf],
    /// A random source too.
    pub(crate) source: Option<Source>,
    /// Its seed.
    pub(crate) seed: u64,
    /// Which tensors of the models.
    pub(crate) selection: Selection,
    /// Which of them are held out; every fifth, if not given.
    pub(crate) hold_out: Option<&'a Regex>,
}

/// Chunks.
#[derive(Debug)]
pub(crate) struct Data {
    /// To train on.
    pub(crate) training: Vec<Chunk>,
    /// To validate with.
    pub(crate) held_out: Vec<Chunk>,
}

/// A matrix of a model: which model, which tensor.
struct Place {
    model: usize,
    tensor: usize,
    view: View,
}

impl Place {
    /// Whole chunks: rows of a last block that is not full are left out.
    fn chunks(&self) -> usize {
        self.view.batch * (self.view.outputs() / CHUNK) * self.view.inputs()
    }
}

impl Data {
    /// Reads and normalises them.
    ///
    /// # Errors
    /// What is wrong with a model, no tensor to train on or none to validate with, NaN in one.
    pub(crate) fn read(origin: &Origin<'_>, progress: &dyn Progress) -> Result<Self> {
        let models: Vec<Model> =
            origin.models.iter().map(|path| crate::commands::compress::open(path)).collect::<Result<_>>()?;
        let (held_out, training) = split(origin, &models)?;
        let mut data = Self { training: Vec::new(), held_out: Vec::new() };
        if let Some(source) = origin.source {
            let (rows, columns) = SYNTHETIC;
            progress.begin("drawing", 0);
            data.training = synthetic(source, rows, columns, origin.seed, MOST.0);
            data.held_out = synthetic(source, SYNTHETIC_HELD_OUT, columns, !origin.seed, MOST.1);
        }
        let total = held_out.iter().chain(&training).map(|place| place.view.elements() as u64).sum();
        progress.begin("reading", total);
        read_all(&models, &training, MOST.0, &mut data.training, progress)?;
        read_all(&models, &held_out, MOST.1, &mut data.held_out, progress)?;
        Ok(data)
    }

    /// A check sum of what is trained on.
    pub(crate) fn checksum(&self) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        self.training.iter().for_each(|chunk| hasher.update(bytemuck::cast_slice(chunk)));
        hasher.finalize()
    }
}

/// The matrices to validate with, and those to train on.
fn split(origin: &Origin<'_>, models: &[Model]) -> Result<(Vec<Place>, Vec<Place>)> {
    let places: Vec<Place> = models
        .iter()
        .enumerate()
        .flat_map(|(model, file)| {
            file.tensors().iter().enumerate().filter_map(move |(tensor, info)| {
                let view = origin.selection.view(&info.name, info.dtype, &info.shape).ok()?;
                // Rows of an embedding are tokens, no outputs that add up inputs: linear layers only, as in the paper.
                (!view.transposed && view.outputs() >= CHUNK).then_some(Place { model, tensor, view })
            })
        })
        .collect();
    if places.is_empty() {
        return match origin.models {
            [] if origin.source.is_some() => Ok((Vec::new(), Vec::new())),
            [] => Err(Error::input("there is nothing to train on").remedy("name a model, or give --source")),
            [first, ..] => Err(Error::input("has no matrix to train on")
                .file(first)
                .remedy("give a model with matrices of at least 16 outputs as F32, F16 or BF16")),
        };
    }
    let count = places.len();
    let mut index = 0;
    let (held_out, training): (Vec<Place>, Vec<Place>) = places.into_iter().partition(|place| {
        index += 1;
        match origin.hold_out {
            Some(regex) => regex.is_match(&models[place.model].tensors()[place.tensor].name),
            None if count < HOLD_OUT => index == count && count > 1,
            None => index % HOLD_OUT == 0,
        }
    });
    let path = &origin.models[0];
    if training.is_empty() && origin.source.is_none() {
        return Err(Error::input(format!("all of its {count} matrices are held out"))
            .file(path)
            .remedy("give a --hold-out that matches fewer names"));
    }
    if held_out.is_empty() && origin.source.is_none() {
        let remedy = match origin.hold_out {
            Some(_) => "give a --hold-out that matches one of its matrices",
            None => "name another model too, or add --source",
        };
        return Err(Error::input(format!("none of its {count} matrices is held out to validate with"))
            .file(path)
            .remedy(remedy));
    }
    Ok((held_out, training))
}

fn synthetic(source: Source, rows: usize, columns: usize, seed: u64, most: usize) -> Vec<Chunk> {
    let mut chunks = Vec::new();
    take(&source.matrix(rows, columns, seed), columns, (rows / CHUNK * columns).div_ceil(most), &mut chunks);
    chunks
}

/// Appends every so many-th whole chunk of a matrix `[out, in]`.
fn take(weights: &[f32], input: usize, apart: usize, into: &mut Vec<Chunk>) {
    let chunks = Chunks::new(weights, input, Normalisation::Rows);
    let whole = weights.len() / input / CHUNK * input;
    into.extend(chunks.weights()[..whole].iter().step_by(apart));
}

fn read_all(
    models: &[Model],
    places: &[Place],
    most: usize,
    into: &mut Vec<Chunk>,
    progress: &dyn Progress,
) -> Result<()> {
    let apart = places.iter().map(Place::chunks).sum::<usize>().div_ceil(most).max(1);
    for place in places {
        progress.check()?;
        let model = &models[place.model];
        let info = &model.tensors()[place.tensor];
        let bytes = model.bytes(place.tensor);
        if !all_finite(info.dtype, bytes) {
            return Err(Error::input("holds NaN or infinity")
                .file(model.file_path(info.file))
                .tensor(&info.name)
                .remedy("leave it out with --exclude, or repair the model"));
        }
        let inputs = place.view.inputs();
        for matrix in to_f32(info.dtype, bytes).chunks_exact(place.view.outputs() * inputs) {
            take(matrix, inputs, apart, into);
        }
        progress.advance(place.view.elements() as u64);
    }
    Ok(())
}
