//! Codecs in files: what `train` writes and `compress --codec` takes.
//!
//! A .safetensors file. Its tensor `network` (U8, `[bytes]`) is the stored form of a learned synthesis (docs/bitstream.md §9.3). Without one, `levels`, `analysis.*` and `synthesis.*` are the paper's
//! networks in floating point ([`crate::residual`]). What else is in it, such as the weights that a network was rounded from, is of no concern here.

use std::path::Path;

use half::f16;
use nwc_decode_core::DType;
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use crate::coding::transform::Transform;
use crate::model::{Model, SafeTensors};
use crate::residual::Residual;
use crate::tensors::TensorSource;
use crate::{Error, Result};

/// The tensor that holds the network.
pub const NETWORK: &str = "network";
/// What the names of the parameters of a network in floating point begin with.
const ANALYSIS: &str = "analysis";
pub(crate) const SYNTHESIS: &str = "synthesis";

/// What a file holds.
#[derive(Debug, Clone)]
pub enum Codec {
    /// A synthesis in integers, which every decoder computes.
    Integer(Transform),
    /// The paper's networks.
    Float(Box<FloatCodec>),
}

/// The paper's networks: containers hold the latents, and the synthesis as an attachment ([`crate::latents`]).
#[derive(Debug, Clone, PartialEq)]
pub struct FloatCodec {
    /// Latents of chunks.
    pub analysis: Residual,
    /// Chunks of latents, with the parameters that `stored` has.
    pub synthesis: Residual,
    /// The synthesis as containers carry it: a .safetensors file of F16.
    pub stored: Vec<u8>,
}

/// The codec in a file.
///
/// # Errors
/// A file that is not there, or holds no network that can be used.
pub fn open(path: &Path) -> Result<Codec> {
    if !path.is_file() {
        return Err(Error::input(format!("there is no codec \"{}\"", path.display()))
            .remedy("use default, identity, hadamard, or a file that `train` wrote"));
    }
    let model = Model::open(path)?;
    let found = (0..model.len()).find(|&index| {
        let tensor = model.tensor(index);
        tensor.name == NETWORK && tensor.dtype == DType::U8 && tensor.shape.len() == 1
    });
    let not_a_codec = |what: &str| {
        Error::input(what.to_owned()).file(path).tensor(NETWORK).remedy("use a file that `train` wrote")
    };
    let Some(index) = found else {
        let prefix = format!("{SYNTHESIS}.");
        if !model.tensors().iter().any(|tensor| tensor.name.starts_with(&prefix)) {
            return Err(not_a_codec("holds no codec: there is no such tensor of bytes"));
        }
        let file = std::fs::read(path).map_err(|error| Error::io("cannot read", path, error))?;
        let codec =
            residual(&file).map_err(|error| error.file(path).remedy("use a file that `train` wrote"))?;
        return Ok(Codec::Float(Box::new(codec)));
    };
    Transform::learned(model.bytes(index).to_vec())
        .map(Codec::Integer)
        .ok_or_else(|| not_a_codec("is no synthesis that can be undone (docs/bitstream.md 9.3)"))
}

/// The paper's networks in the bytes of a file.
///
/// # Errors
/// Names the parameter that is missing, of another type or shape, or out of range.
pub fn residual(file: &[u8]) -> Result<FloatCodec> {
    let tensors = SafeTensors::parse(file)?;
    let analysis = Residual::read(ANALYSIS, &|name| tensors.get(name))?;
    let synthesis = Residual::read(SYNTHESIS, &|name| tensors.get(name))?;
    let stored = stored(&synthesis)?;
    // What decoders will have, so that errors are measured on that.
    let synthesis = read_stored(&stored)?;
    Ok(FloatCodec { analysis, synthesis, stored })
}

/// A synthesis as containers carry it.
fn stored(synthesis: &Residual) -> Result<Vec<u8>> {
    let mut tensors = Vec::new();
    for (name, shape, values) in synthesis.parameters(SYNTHESIS) {
        let halves: Vec<f16> = values.iter().map(|&value| f16::from_f32(value)).collect();
        if !halves.iter().all(|half| half.is_finite()) {
            return Err(Error::input("is out of the range of F16").tensor(name));
        }
        let bytes: Vec<u8> = halves.iter().flat_map(|half| half.to_le_bytes()).collect();
        tensors.push((name, shape, bytes));
    }
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (name, TensorView::new(Dtype::F16, shape.clone(), bytes).expect("as many bytes as its shape says"))
    });
    Ok(safetensors::serialize(views, None).expect("tensors are legal"))
}

/// A synthesis from what a container carries.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn read_stored(file: &[u8]) -> Result<Residual> {
    let tensors = SafeTensors::parse(file)?;
    Residual::read(SYNTHESIS, &|name| tensors.get(name))
}
