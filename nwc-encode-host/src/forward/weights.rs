//! Where weights come from: model folders, containers, and replacements laid over either. One tensor at a time, by name.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

use nwc_decode_core::{Checks, Container, DType};

use super::mxfp4;
use crate::latents::Latents;
use crate::model::Model;
use crate::parameters::HostTensor;
use crate::restore::{Decoder, TableMemory, damaged, inflate};
use crate::tensors::to_f32;
use crate::{Error, Result};

/// A tensor as it is stored.
#[derive(Debug, Clone)]
pub struct Stored<'a> {
    /// Type of its elements.
    pub dtype: DType,
    /// Its dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Its elements, row-major, little endian.
    pub bytes: Cow<'a, [u8]>,
}

/// Tensors by name.
pub trait Weights {
    /// Whether a tensor of this name is stored.
    fn contains(&self, name: &str) -> bool;

    /// The tensor of this name as it is stored.
    ///
    /// # Errors
    /// If there is none, or it cannot be read.
    fn stored(&self, name: &str) -> Result<Stored<'_>>;

    /// Where they are, for messages.
    fn origin(&self) -> Option<&Path>;

    /// Whether [`tensor`](Self::tensor) finds weights of this name.
    fn has(&self, name: &str) -> bool {
        self.contains(name) || self.contains(&mxfp4::blocks_name(name))
    }

    /// Weights in f32. Those that are stored in MXFP4, as blocks and scales, are found under the name that they have in other
    /// formats, with the dimensions that they have there.
    ///
    /// # Errors
    /// If there are none, they cannot be read, or they are no floating-point numbers.
    fn tensor(&self, name: &str) -> Result<HostTensor> {
        let located = |error: Error| {
            let error = error.tensor(name);
            if let Some(path) = self.origin() { error.file(path) } else { error }
        };
        let blocks = mxfp4::blocks_name(name);
        if !self.contains(name) && self.contains(&blocks) {
            let (blocks, scales) = (self.stored(&blocks)?, self.stored(&mxfp4::scales_name(name))?);
            return mxfp4::dequantise(&blocks, &scales).map_err(located);
        }
        let stored = self.stored(name).map_err(located)?;
        if !matches!(stored.dtype, DType::F32 | DType::F16 | DType::BF16) {
            return Err(located(
                Error::input(format!("{} is not a type of weights", stored.dtype.name()))
                    .remedy("give a model with weights in F32, F16, BF16 or MXFP4"),
            ));
        }
        Ok(HostTensor { values: to_f32(stored.dtype, &stored.bytes), shape: stored.shape })
    }
}

/// What is wrong where a tensor is missing.
fn missing(name: &str, origin: Option<&Path>) -> Error {
    let error = Error::input("is missing").tensor(name).remedy(
        "check that config.json and the weights belong to the same model, and that no file is missing",
    );
    if let Some(path) = origin { error.file(path) } else { error }
}

impl Weights for Model {
    fn contains(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    fn stored(&self, name: &str) -> Result<Stored<'_>> {
        let index = self.find(name).ok_or_else(|| missing(name, Some(self.root())))?;
        let tensor = &self.tensors()[index];
        let bytes = Cow::Borrowed(self.bytes(index));
        Ok(Stored { dtype: tensor.dtype, shape: tensor.shape.clone(), bytes })
    }

    fn origin(&self) -> Option<&Path> {
        Some(self.root())
    }
}

/// The weights that a container decodes to.
#[derive(Debug)]
pub struct ContainerWeights<'a> {
    container: Container<'a>,
    decoder: Decoder<'a>,
    latents: Option<Latents>,
    index: HashMap<String, usize>,
    path: PathBuf,
}

impl<'a> ContainerWeights<'a> {
    /// Expands the container's tables into `memory`; no tensor is decoded yet. `path` is where it lies.
    ///
    /// # Errors
    /// What is wrong with the container.
    pub fn new(container: Container<'a>, memory: &'a mut TableMemory<'a>, path: &Path) -> Result<Self> {
        let in_file = |error: Error| error.file(path);
        let latents = Latents::read(&container).map_err(in_file)?;
        let decoder = Decoder::new(&container, memory).map_err(in_file)?;
        let name = |index: usize| match latents.as_ref().and_then(|all| all.get(index)) {
            Some(tensor) => tensor.name.clone(),
            None => decoder.tensors()[index].name().to_string(),
        };
        let index = (0..decoder.tensors().len()).map(|index| (name(index), index)).collect();
        Ok(Self { container, decoder, latents, index, path: path.to_owned() })
    }

    /// The content of a file that travels with the weights, such as `config.json`.
    ///
    /// # Errors
    /// If there is none of this name, or it is damaged.
    pub fn attachment(&self, name: &str) -> Result<Vec<u8>> {
        let mut attachments = self.container.attachments().map_err(damaged)?;
        let attachment = attachments.find(|attachment| attachment.name == name).ok_or_else(|| {
            Error::input(format!("has no {name}"))
                .remedy("compress the whole model folder, not the weights alone")
        });
        attachment.and_then(|attachment| inflate(&attachment)).map_err(|error| error.file(&self.path))
    }
}

impl Weights for ContainerWeights<'_> {
    fn contains(&self, name: &str) -> bool {
        self.index.contains_key(name)
    }

    fn stored(&self, name: &str) -> Result<Stored<'_>> {
        let index = *self.index.get(name).ok_or_else(|| missing(name, Some(&self.path)))?;
        let located = |error: Error| error.file(&self.path).tensor(name);
        let tensor = &self.decoder.tensors()[index];
        let bytes = self.decoder.decode(tensor, Checks::All).map_err(located)?;
        if let Some((latents, weights)) = self.latents.as_ref().and_then(|all| Some((all, all.get(index)?))) {
            let bytes = latents.restore(index, &bytes, weights.dtype).map_err(located)?;
            return Ok(Stored { dtype: weights.dtype, shape: weights.shape.clone(), bytes: bytes.into() });
        }
        let shape = tensor.shape().iter().map(|&dim| dim as usize).collect();
        Ok(Stored { dtype: tensor.dtype(), shape, bytes: bytes.into() })
    }

    fn origin(&self) -> Option<&Path> {
        Some(&self.path)
    }
}

/// Weights of which some are replaced.
pub struct Overlay<'a> {
    base: &'a dyn Weights,
    replaced: HashMap<String, HostTensor>,
}

impl<'a> Overlay<'a> {
    /// Lays replacements over other weights.
    pub fn new(base: &'a dyn Weights, replaced: HashMap<String, HostTensor>) -> Self {
        Self { base, replaced }
    }

    /// Replaces one more.
    pub fn replace(&mut self, name: impl Into<String>, tensor: HostTensor) {
        self.replaced.insert(name.into(), tensor);
    }
}

impl Weights for Overlay<'_> {
    fn contains(&self, name: &str) -> bool {
        self.replaced.contains_key(name) || self.base.contains(name)
    }

    fn stored(&self, name: &str) -> Result<Stored<'_>> {
        let Some(HostTensor { shape, values }) = self.replaced.get(name) else {
            return self.base.stored(name);
        };
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Ok(Stored { dtype: DType::F32, shape: shape.clone(), bytes: Cow::Owned(bytes) })
    }

    fn origin(&self) -> Option<&Path> {
        self.base.origin()
    }
}
