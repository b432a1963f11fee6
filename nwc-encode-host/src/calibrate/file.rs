//! Files of second moments, and merging them.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufWriter, Write};
use std::path::Path;

use nwc_decode_core::DType;

use super::layout::{Group, Layout, Output, Plan};
use super::moment::Moment;
use crate::atomic::AtomicFile;
use crate::importance::SHARED;
use crate::model::Model;
use crate::model::write::{TensorLayout, byte_lengths, encode_header};
use crate::progress::Progress;
use crate::tensors::to_f32;
use crate::{Error, Result};

/// Keys of the metadata: what tells the model from others; names that have another tensor's moments; over how many tokens and
/// samples each tensor is a mean; what merging needs.
const MODEL: &str = "nwc.model";
const TOKENS: &str = "nwc.tokens";
const SAMPLES: &str = "nwc.samples";
const LAYOUT: &str = "nwc.layout";

/// Writes a file; `values` gives those of each tensor of the plan, `means` those of each of the layout's sums. Returns its size; the caller commits it.
///
/// # Errors
/// The operating system's, or as `values`.
pub(super) fn write(
    file: &mut AtomicFile,
    layout: &Layout,
    plan: &Plan,
    model: &str,
    mut values: impl FnMut(&Output) -> Result<Vec<f32>>,
    mut means: impl FnMut(&str) -> Vec<f32>,
) -> Result<u64> {
    let json = |value: serde_json::Result<String>| value.expect("maps with strings as keys");
    let sum = |groups: &[&Group]| groups.iter().map(|group| group.tokens).sum();
    let most = |groups: &[&Group]| groups.iter().map(|group| group.samples).max().unwrap_or(0);
    let metadata = BTreeMap::from([
        (MODEL.to_owned(), model.to_owned()),
        (SHARED.to_owned(), json(serde_json::to_string(&plan.shared))),
        (TOKENS.to_owned(), layout.counts(plan, sum).to_string()),
        (SAMPLES.to_owned(), layout.counts(plan, most).to_string()),
        (LAYOUT.to_owned(), json(serde_json::to_string(layout))),
    ]);
    let outputs = plan.outputs.iter();
    let outputs = outputs.map(|output| (output.name.as_str(), DType::F32, &output.shape[..]));
    let sums = layout.sums.iter().map(|(name, sums)| (name.as_str(), DType::F32, &sums.shape[..]));
    let tensors: Vec<TensorLayout<'_>> = outputs.chain(sums).collect();
    write_tensors(file, &metadata, &tensors, |index| match plan.outputs.get(index) {
        Some(output) => values(output),
        None => Ok(means(tensors[index].0)),
    })
}

/// Writes a .safetensors file of F32 tensors, one after the other; `values` gives those of each. Returns its size.
///
/// # Errors
/// The operating system's, or as `values`.
pub(super) fn write_tensors(
    file: &mut AtomicFile,
    metadata: &BTreeMap<String, String>,
    tensors: &[TensorLayout<'_>],
    mut values: impl FnMut(usize) -> Result<Vec<f32>>,
) -> Result<u64> {
    let path = file.target().to_owned();
    let lengths = byte_lengths(tensors).map_err(|error| error.file(&path))?;
    let header = encode_header(Some(metadata), tensors, &lengths).map_err(|error| error.file(&path))?;
    let cannot = |error| Error::io("cannot write", &path, error);
    let mut out = BufWriter::with_capacity(1 << 20, file.file());
    out.write_all(&(header.len() as u64).to_le_bytes()).map_err(cannot)?;
    out.write_all(&header).map_err(cannot)?;
    for index in 0..tensors.len() {
        for value in values(index)? {
            out.write_all(&value.to_le_bytes()).map_err(cannot)?;
        }
    }
    out.flush().map_err(cannot)?;
    Ok((8 + header.len() + lengths.iter().sum::<usize>()) as u64)
}

/// The values of a tensor: those of its parts, one after the other. `add` adds a group to a sum.
///
/// # Errors
/// As `add`.
pub(super) fn values(
    output: &Output,
    layout: &Layout,
    mut add: impl FnMut(&mut Moment, usize) -> Result<()>,
) -> Result<Vec<f32>> {
    let mut values = Vec::new();
    for part in &output.parts {
        let mut moment = Moment::new(layout.groups[part[0]].inputs, layout.diagonal);
        part.iter().try_for_each(|&group| add(&mut moment, group))?;
        values.append(&mut moment.mean());
    }
    Ok(values)
}

/// An opened file.
#[derive(Debug)]
pub(super) struct Moments {
    file: Model,
    pub(super) layout: Layout,
    /// What tells its model from others.
    pub(super) model: String,
    /// Where a group's own moments are: tensor and part.
    places: HashMap<usize, (usize, usize)>,
}

impl Moments {
    /// Opens a file that this program wrote.
    ///
    /// # Errors
    /// It is no such file, or damaged.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = Model::open(path)?;
        let bad = |problem: &str| {
            Error::input(problem).file(path).remedy("give a file that `nwc-encode calibrate` wrote")
        };
        let metadata = file.files()[0].metadata.as_ref();
        let entry = |key: &str| metadata.and_then(|all| all.get(key));
        let layout = entry(LAYOUT).and_then(|text| serde_json::from_str::<Layout>(text).ok());
        let (Some(layout), Some(model)) = (layout, entry(MODEL).cloned()) else {
            return Err(bad("does not say what its matrices are of"));
        };
        let groups = layout.groups.len();
        let mixtures = layout.mixtures.iter();
        let mut used = mixtures.flat_map(|mixture| mixture.members.iter().chain(&mixture.whole));
        let stacks =
            |group: &Group| group.stacked.is_none_or(|(index, count)| index < count && count <= groups);
        if used.any(|&group| group >= groups)
            || layout.mixtures.iter().any(|mixture| mixture.members.is_empty())
            || !layout.groups.iter().all(|group| !group.names.is_empty() && stacks(group))
        {
            return Err(bad("is damaged"));
        }
        let plan = layout.plan();
        let mut places = HashMap::new();
        let find = |name: &str, shape: &Vec<usize>| {
            file.find(name).filter(|&index| {
                let tensor = &file.tensors()[index];
                (tensor.dtype, &tensor.shape) == (DType::F32, shape)
            })
        };
        if let Some((name, _)) = layout.sums.iter().find(|(name, sums)| find(name, &sums.shape).is_none()) {
            return Err(bad("is damaged").tensor(name));
        }
        for output in &plan.outputs {
            let found = find(&output.name, &output.shape);
            let Some(found) = found.filter(|_| output.parts.iter().all(|part| !part.is_empty())) else {
                return Err(bad("is damaged").tensor(&output.name));
            };
            for (at, part) in output.parts.iter().enumerate() {
                if let [group] = part[..] {
                    places.insert(group, (found, at));
                }
            }
        }
        Ok(Self { file, layout, model, places })
    }

    /// The values of a tensor.
    pub(super) fn tensor(&self, name: &str) -> Option<Vec<f32>> {
        let index = self.file.find(name)?;
        Some(to_f32(DType::F32, self.file.bytes(index)))
    }

    /// Adds a group's own moments to a sum.
    fn add(&self, group: usize, to: &mut Moment) {
        // Without tokens there are none.
        let Some(&(tensor, part)) = self.places.get(&group) else { return };
        let Group { inputs, tokens, .. } = self.layout.groups[group];
        let size = if self.layout.diagonal { inputs } else { inputs * inputs } * DType::F32.size();
        let bytes = &self.file.bytes(tensor)[part * size..][..size];
        to.add_mean(&to_f32(DType::F32, bytes), tokens);
    }
}

/// Merges files of one model, by their tokens.
///
/// # Errors
/// They are of different models or not of the same kind, cannot be read, or the result cannot be written.
pub(super) fn merge(
    paths: &[std::path::PathBuf],
    output: &mut AtomicFile,
    progress: &dyn Progress,
) -> Result<(Layout, Plan, u64)> {
    let files: Vec<Moments> = paths.iter().map(|path| Moments::open(path)).collect::<Result<_>>()?;
    let mut layout = files[0].layout.clone();
    for (file, path) in files.iter().zip(paths).skip(1) {
        let bad = |problem: &str, remedy: &str| {
            Error::input(format!("{problem} {}", paths[0].display())).file(path).remedy(remedy)
        };
        if file.model != files[0].model {
            return Err(bad("is of another model than", "merge files of one model"));
        }
        if file.layout.diagonal != layout.diagonal {
            return Err(bad(
                "has not both diagonals or both matrices with",
                "calibrate all parts with --diagonal, or none",
            ));
        }
        if !layout.count(&file.layout) {
            return Err(bad("has not the same tensors as", "calibrate all parts with the same kind of data"));
        }
    }
    let plan = layout.plan();
    progress.begin("merging", plan.outputs.len() as u64);
    let bytes = write(
        output,
        &layout,
        &plan,
        &files[0].model,
        |tensor| {
            progress.check()?;
            progress.advance(1);
            values(tensor, &layout, |sum, group| {
                files.iter().for_each(|file| file.add(group, sum));
                Ok(())
            })
        },
        |name| {
            let samples = layout.sums[name].samples.max(1) as f64;
            let mut mean = Vec::new();
            for file in &files {
                let share = file.layout.sums[name].samples as f64 / samples;
                let values = file.tensor(name).expect("it was found when the file was opened");
                mean.resize(values.len(), 0.0);
                mean.iter_mut().zip(values).for_each(|(sum, value)| *sum += f64::from(value) * share);
            }
            mean.into_iter().map(|value| value as f32).collect()
        },
    )?;
    Ok((layout, plan, bytes))
}
