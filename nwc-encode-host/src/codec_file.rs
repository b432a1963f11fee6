//! Codecs in files: what `train` writes and `compress --codec` takes.
//!
//! A .safetensors file whose tensor `network` (U8, `[bytes]`) is the stored form of a learned synthesis (docs/bitstream.md §9.3). What else is in it, such as the weights it was rounded from, is of no
//! concern here.

use std::path::Path;

use nwc_decode_core::DType;

use crate::coding::transform::Transform;
use crate::model::Model;
use crate::tensors::TensorSource;
use crate::{Error, Result};

/// The tensor that holds the network.
pub const NETWORK: &str = "network";

/// The transform of a codec in a file.
///
/// # Errors
/// A file that is not there, or holds no network that can be used.
pub fn open(path: &Path) -> Result<Transform> {
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
    let index = found.ok_or_else(|| not_a_codec("holds no codec: there is no such tensor of bytes"))?;
    Transform::learned(model.bytes(index).to_vec())
        .ok_or_else(|| not_a_codec("is no synthesis that can be undone (docs/bitstream.md 9.3)"))
}
