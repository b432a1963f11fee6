//! What embeddings, blocks and heads have in common: tensors that are loaded at once, and linear maps among them.

use burn::tensor::backend::Backend;

use super::linear::Linear;
use super::norm::Norm;
use super::weights::Weights;
use crate::parameters::Parameters;
use crate::{Error, Result};

/// A tensor that a model must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name.
    pub name: String,
    /// Its dimensions.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    pub(super) fn new(name: &str, shape: &[usize]) -> Self {
        Self { name: name.to_owned(), shape: shape.to_vec() }
    }
}

/// A part of a model that is loaded and run as one.
pub trait Stage {
    /// The tensors that it takes. One that several parts share is named each time.
    fn tensors(&self) -> Vec<TensorSpec>;

    /// Its linear maps, in the order in which they are run; those of a group share their input.
    fn groups(&self) -> Vec<Vec<&Linear>>;

    /// Its norms.
    fn norms(&self) -> Vec<&Norm>;

    /// Its linear maps, in the order in which fine-tuning takes them: value, query, key, output, up, gate, down.
    fn tuning_order(&self) -> Vec<&Linear> {
        let mut linears = self.groups().concat();
        linears.sort_by_key(|linear| linear.role);
        linears
    }

    /// Brings its tensors to a device.
    ///
    /// # Errors
    /// If one is missing, cannot be read, or has other dimensions than the configuration says.
    fn load<B: Backend>(&self, weights: &dyn Weights, device: &B::Device) -> Result<Parameters<B>>
    where
        Self: Sized,
    {
        load(self.tensors(), weights, device)
    }
}

/// Brings tensors to a device.
///
/// # Errors
/// As [`Stage::load`].
pub(crate) fn load<B: Backend>(
    tensors: Vec<TensorSpec>,
    weights: &dyn Weights,
    device: &B::Device,
) -> Result<Parameters<B>> {
    let mut parameters = Parameters::default();
    for TensorSpec { name, shape } in tensors {
        if parameters.has(&name) {
            continue;
        }
        let tensor = weights.tensor(&name)?;
        if tensor.shape != shape {
            let error = Error::input(format!(
                "has the dimensions {:?}, where the configuration asks for {shape:?}",
                tensor.shape
            ))
            .tensor(name)
            .remedy("check that config.json and the weights belong to the same model");
            return Err(weights.origin().into_iter().fold(error, Error::file));
        }
        parameters.insert(name, tensor, device);
    }
    Ok(parameters)
}
