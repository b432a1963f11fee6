//! Parameters of networks by name, on the device that computes and outside of it.

use std::collections::BTreeMap;

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Tensor, TensorData};

/// A parameter outside of the device.
#[derive(Debug, Clone, PartialEq)]
pub struct HostTensor {
    /// Its dimensions, as files have them.
    pub shape: Vec<usize>,
    /// Its elements, row-major.
    pub values: Vec<f32>,
}

/// Parameters outside of the device. Sorted, so that sums over all of them have one order.
pub type HostParameters = BTreeMap<String, HostTensor>;

/// Parameters on a device: matrices all of them, `[first dimension, others]`, or `[1, length]`.
#[derive(Debug, Clone)]
pub struct Parameters<B: Backend> {
    tensors: BTreeMap<String, (Vec<usize>, Tensor<B, 2>)>,
}

impl<B: Backend> Default for Parameters<B> {
    fn default() -> Self {
        Self { tensors: BTreeMap::new() }
    }
}

impl<B: Backend> Parameters<B> {
    /// Brings parameters to a device.
    pub fn new(host: &HostParameters, device: &B::Device) -> Self {
        let mut parameters = Self::default();
        host.iter().for_each(|(name, tensor)| parameters.insert(name.clone(), tensor.clone(), device));
        parameters
    }

    /// Brings one more to a device, in the place of the one of that name if there is one.
    pub fn insert(&mut self, name: String, tensor: HostTensor, device: &B::Device) {
        let HostTensor { shape, values } = tensor;
        let matrix = match shape[..] {
            [length] => [1, length],
            [first, ..] => [first, values.len() / first.max(1)],
            [] => [1, 1],
        };
        let tensor = Tensor::from_data(TensorData::new(values, matrix), device);
        self.tensors.insert(name, (shape, tensor));
    }

    /// Those whose names `wanted` says.
    #[must_use]
    pub fn only(&self, wanted: impl Fn(&str) -> bool) -> Self {
        let tensors = self.tensors.iter().filter(|(name, _)| wanted(name));
        Self { tensors: tensors.map(|(name, tensor)| (name.clone(), tensor.clone())).collect() }
    }

    /// Zeros for each of those whose names `wanted` says.
    #[must_use]
    pub fn zeros_where(&self, wanted: impl Fn(&str) -> bool) -> Self {
        self.only(wanted).map(|_, tensor| tensor.zeros_like())
    }

    /// Brings one of them back.
    ///
    /// # Panics
    /// If there is none of this name.
    pub fn host(&self, name: &str) -> HostTensor {
        let (shape, tensor) = self.tensors.get(name).unwrap_or_else(|| panic!("no parameter {name}"));
        HostTensor { shape: shape.clone(), values: values(tensor) }
    }

    /// Brings them back.
    pub fn to_host(&self) -> HostParameters {
        self.tensors.keys().map(|name| (name.clone(), self.host(name))).collect()
    }

    /// One of them.
    ///
    /// # Panics
    /// If there is none of this name.
    pub fn get(&self, name: &str) -> Tensor<B, 2> {
        self.tensors.get(name).unwrap_or_else(|| panic!("no parameter {name}")).1.clone()
    }

    /// Whether there is one of this name.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Puts another in the place of one of them.
    ///
    /// # Panics
    /// If there is none of this name.
    pub fn set(&mut self, name: &str, tensor: Tensor<B, 2>) {
        self.tensors.get_mut(name).unwrap_or_else(|| panic!("no parameter {name}")).1 = tensor;
    }

    /// All names, in order.
    pub fn names(&self) -> Vec<String> {
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
    #[must_use]
    pub fn tracked(parameters: &Parameters<B::InnerBackend>) -> Self {
        Self::tracked_where(parameters, |_| true)
    }

    /// Parameters, with gradients wanted of those whose names `wanted` says.
    #[must_use]
    pub fn tracked_where(parameters: &Parameters<B::InnerBackend>, wanted: impl Fn(&str) -> bool) -> Self {
        parameters.map(|name, tensor| {
            let tensor = Tensor::from_inner(tensor.clone());
            if wanted(name) { tensor.require_grad() } else { tensor }
        })
    }
}

/// The elements of a tensor.
///
/// # Panics
/// If the backend does not compute in f32.
pub fn values<B: Backend, const D: usize>(tensor: &Tensor<B, D>) -> Vec<f32> {
    tensor.to_data().into_vec().expect("the backend computes in f32")
}

/// How many numbers there are under a prefix.
#[cfg(feature = "train")]
pub(crate) fn count(parameters: &HostParameters, prefix: &str) -> usize {
    parameters.iter().filter(|(name, _)| name.starts_with(prefix)).map(|(_, t)| t.values.len()).sum()
}
