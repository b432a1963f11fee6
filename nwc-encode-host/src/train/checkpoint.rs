//! Files of parameters: checkpoints, from which a training goes on as if it had never stopped, and trained codecs.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use burn::tensor::backend::Backend;
use nwc_decode_core::DType;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde::{Deserialize, Serialize};

use super::evaluate::PRECISION;
use super::{CurvePoint, Settings};
use crate::adam::Adam;
use crate::atomic::AtomicFile;
use crate::codec_file::NETWORK;
use crate::coding::table::Table;
use crate::model::Model;
use crate::parameters::{HostParameters, HostTensor, Parameters};
use crate::tensors::to_f32;
use crate::{Error, Result};

/// The key of a checkpoint's metadata, and that of a codec's.
const CHECKPOINT_KEY: &str = "nwc:checkpoint";
const CODEC_KEY: &str = "nwc:codec";
/// What the names of the three kinds of tensors begin with.
const KINDS: [&str; 3] = ["parameter:", "first:", "second:"];

/// Where a training is. There is no state of a random generator: what a step draws depends on the seed and its number.
#[derive(Debug, Clone)]
pub(crate) struct State<B: Backend> {
    pub(crate) parameters: Parameters<B>,
    pub(crate) adam: Adam<B>,
    pub(crate) progress: Done,
}

/// What has been done so far.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Done {
    pub(crate) step: usize,
    pub(crate) seconds: f64,
    pub(crate) curve: Vec<CurvePoint>,
}

/// The metadata of a checkpoint.
#[derive(Serialize, Deserialize)]
struct Metadata {
    /// What must be the same to go on, by option.
    options: Vec<(String, String)>,
    checksum: u32,
    done: Done,
}

/// The checkpoint of a codec that will be at `output`.
pub(crate) fn path_of(output: &Path) -> PathBuf {
    output.with_extension("checkpoint.safetensors")
}

/// Writes one; another in its place is overwritten.
///
/// # Errors
/// The operating system's.
pub(crate) fn write<B: Backend>(
    path: &Path,
    settings: &Settings,
    checksum: u32,
    state: &State<B>,
) -> Result<()> {
    let metadata = Metadata { options: settings.options(), checksum, done: state.progress.clone() };
    let text = serde_json::to_string(&metadata).expect("numbers and strings");
    let mut all = HostParameters::new();
    for (kind, parameters) in KINDS.iter().zip([&state.parameters, &state.adam.first, &state.adam.second]) {
        all.extend(parameters.to_host().into_iter().map(|(name, tensor)| (format!("{kind}{name}"), tensor)));
    }
    let mut file = AtomicFile::create(path, true)?;
    file.file()
        .write_all(&serialize(&all, &[], None, CHECKPOINT_KEY, text))
        .map_err(|error| Error::io("cannot write the checkpoint", path, error))?;
    file.commit()
}

/// Reads one.
///
/// # Errors
/// There is none, it is damaged, or it is of a training with other options, of which the first is named, or with other weights.
pub(crate) fn read<B: Backend>(
    path: &Path,
    settings: &Settings,
    checksum: u32,
    device: &B::Device,
) -> Result<State<B>> {
    let start_over = "leave --resume out to start over";
    let bad = |problem: String, remedy: &str| Error::input(problem).file(path).remedy(remedy);
    if !path.exists() {
        return Err(bad("there is no checkpoint to resume from".to_owned(), start_over));
    }
    let model = Model::open(path)?;
    let text = model.files()[0].metadata.as_ref().and_then(|metadata| metadata.get(CHECKPOINT_KEY));
    let damaged = |_| bad("is no checkpoint of this program".to_owned(), start_over);
    let metadata: Metadata = serde_json::from_str(text.map_or("", String::as_str)).map_err(damaged)?;
    for ((option, now), (_, then)) in settings.options().iter().zip(&metadata.options) {
        if now != then {
            return Err(bad(
                format!("was written with {option} {then}, now it is {now}"),
                "give the same options, or start over without --resume",
            ));
        }
    }
    if metadata.checksum != checksum {
        return Err(bad(
            "was written with other weights to train on".to_owned(),
            "give the same models, or start over without --resume",
        ));
    }
    let mut kinds: [HostParameters; 3] = Default::default();
    for (index, tensor) in model.tensors().iter().enumerate() {
        let kind = KINDS.iter().position(|kind| tensor.name.starts_with(kind));
        let (Some(kind), DType::F32) = (kind, tensor.dtype) else { continue };
        let values = to_f32(tensor.dtype, model.bytes(index));
        let name = tensor.name[KINDS[kind].len()..].to_owned();
        kinds[kind].insert(name, HostTensor { shape: tensor.shape.clone(), values });
    }
    let expected = settings.initial();
    for (kind, tensors) in KINDS.iter().zip(&kinds) {
        for (name, tensor) in &expected {
            if tensors.get(name).is_none_or(|found| found.shape != tensor.shape) {
                return Err(bad("is damaged".to_owned(), start_over).tensor(format!("{kind}{name}")));
            }
        }
    }
    let [parameters, first, second] = kinds.map(|tensors| Parameters::new(&tensors, device));
    Ok(State { parameters, adam: Adam { first, second }, progress: metadata.done })
}

/// The bytes of a trained codec: its parameters, the tables of its latents, and what it is.
///
/// `network` is what `compress` takes: the synthesis as containers have it, if they can.
/// `tables.frequencies` `[latents, symbols]` are those of the escape, then of the values from `tables.first` `[latents]` on; each row sums to 2^14.
pub(crate) fn codec(
    parameters: &HostParameters,
    tables: &[Table],
    network: Option<&[u8]>,
    description: &serde_json::Value,
) -> Vec<u8> {
    let symbols = tables.iter().map(|table| table.slots().len()).max().unwrap_or(0);
    let row = |table: &Table| {
        let mut row: Vec<i32> = table.slots().iter().map(|slot| i32::from(slot.frequency)).collect();
        row.resize(symbols, 0);
        row
    };
    let frequencies: Vec<i32> = tables.iter().flat_map(row).collect();
    let first: Vec<i32> = tables.iter().map(|table| *table.values().start()).collect();
    let mut description = description.clone();
    description["table_precision"] = PRECISION.into();
    let integers = [
        ("tables.first", vec![tables.len()], first),
        ("tables.frequencies", vec![tables.len(), symbols], frequencies),
    ];
    serialize(parameters, &integers, network, CODEC_KEY, description.to_string())
}

fn serialize(
    parameters: &HostParameters,
    integers: &[(&str, Vec<usize>, Vec<i32>)],
    network: Option<&[u8]>,
    key: &str,
    text: String,
) -> Vec<u8> {
    let floats = parameters.iter().map(|(name, tensor)| {
        let bytes: Vec<u8> = tensor.values.iter().flat_map(|value| value.to_le_bytes()).collect();
        (name.as_str(), Dtype::F32, tensor.shape.clone(), bytes)
    });
    let integers = integers.iter().map(|(name, shape, values)| {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        (*name, Dtype::I32, shape.clone(), bytes)
    });
    let network = network.map(|bytes| (NETWORK, Dtype::U8, vec![bytes.len()], bytes.to_vec()));
    let tensors: Vec<_> = floats.chain(integers).chain(network).collect();
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        (*name, TensorView::new(*dtype, shape.clone(), bytes).expect("as many bytes as its shape says"))
    });
    safetensors::serialize(views, Some(HashMap::from([(key.to_owned(), text)]))).expect("tensors are legal")
}
