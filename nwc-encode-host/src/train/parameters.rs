//! Parameters by name, on the device that trains and outside of it.

use std::collections::BTreeMap;

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Tensor, TensorData};

/// A parameter outside of the device.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct HostTensor {
    /// Its dimensions, as files have them.
    pub(crate) shape: Vec<usize>,
    /// Its elements, row-major.
    pub(crate) values: Vec<f32>,
}

/// Parameters outside of the device. Sorted, so that sums over all of them have one order.
pub(crate) type HostParameters = BTreeMap<String, HostTensor>;

/// Parameters on a device: matrices all of them, `[first dimension, others]`, or `[1, length]`.
#[derive(Debug, Clone)]
pub(crate) struct Parameters<B: Backend> {
    tensors: BTreeMap<String, (Vec<usize>, Tensor<B, 2>)>,
}

impl<B: Backend> Parameters<B> {
    /// Brings parameters to a device.
    pub(crate) fn new(host: &HostParameters, device: &B::Device) -> Self {
        let upload = |tensor: &HostTensor| {
            let matrix = match tensor.shape[..] {
                [length] => [1, length],
                [first, ..] => [first, tensor.values.len() / first],
                [] => [1, 1],
            };
            let data = TensorData::new(tensor.values.clone(), matrix);
            (tensor.shape.clone(), Tensor::from_data(data, device))
        };
        Self { tensors: host.iter().map(|(name, tensor)| (name.clone(), upload(tensor))).collect() }
    }

    /// Zeros for each of them.
    pub(crate) fn zeros_like(&self) -> Self {
        self.map(|_, tensor| tensor.zeros_like())
    }

    /// Brings them back.
    pub(crate) fn to_host(&self) -> HostParameters {
        let download = |(shape, tensor): &(Vec<usize>, Tensor<B, 2>)| HostTensor {
            shape: shape.clone(),
            values: values(tensor),
        };
        self.tensors.iter().map(|(name, tensor)| (name.clone(), download(tensor))).collect()
    }

    /// One of them.
    ///
    /// # Panics
    /// If there is none of this name.
    pub(crate) fn get(&self, name: &str) -> Tensor<B, 2> {
        self.tensors.get(name).unwrap_or_else(|| panic!("no parameter {name}")).1.clone()
    }

    /// Whether there is one of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Puts another in the place of one of them.
    ///
    /// # Panics
    /// If there is none of this name.
    pub(crate) fn set(&mut self, name: &str, tensor: Tensor<B, 2>) {
        self.tensors.get_mut(name).unwrap_or_else(|| panic!("no parameter {name}")).1 = tensor;
    }

    /// All names, in order.
    pub(crate) fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    fn map<C: Backend>(&self, f: impl Fn(&str, &Tensor<B, 2>) -> Tensor<C, 2>) -> Parameters<C> {
        let tensors = self.tensors.iter();
        Parameters {
            tensors: tensors
                .map(|(name, (shape, tensor))| (name.clone(), (shape.clone(), f(name, tensor))))
                .collect(),
        }
    }
}

impl<B: AutodiffBackend> Parameters<B> {
    /// Parameters whose gradients are wanted.
    pub(crate) fn tracked(parameters: &Parameters<B::InnerBackend>) -> Self {
        parameters.map(|_, tensor| Tensor::from_inner(tensor.clone()).require_grad())
    }
}

/// The elements of a tensor.
pub(crate) fn values<B: Backend, const D: usize>(tensor: &Tensor<B, D>) -> Vec<f32> {
    tensor.to_data().into_vec().expect("training is in f32")
}

/// How many numbers there are under a prefix.
pub(crate) fn count(parameters: &HostParameters, prefix: &str) -> usize {
    parameters.iter().filter(|(name, _)| name.starts_with(prefix)).map(|(_, t)| t.values.len()).sum()
}
