//! Normalisation of hidden states.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::stage::TensorSpec;
use crate::parameters::Parameters;

/// Normalises rows, and scales them.
#[derive(Debug, Clone, PartialEq)]
pub struct Norm {
    /// Name of the scale.
    pub weight: String,
    /// Name of the bias of a layer normalisation. Without one it is by the root mean square.
    pub bias: Option<String>,
    /// Length of rows.
    pub width: usize,
    /// Added to the variance.
    pub epsilon: f64,
}

impl Norm {
    /// Layer normalisation by `{name}.weight` and `{name}.bias`.
    pub(super) fn layer(name: &str, width: usize, epsilon: f64) -> Self {
        Self { bias: Some(format!("{name}.bias")), ..Self::root_mean_square(name, width, epsilon) }
    }

    /// Normalisation by the root mean square, and by `{name}.weight`.
    pub(super) fn root_mean_square(name: &str, width: usize, epsilon: f64) -> Self {
        Self { weight: format!("{name}.weight"), bias: None, width, epsilon }
    }

    /// The tensors that it takes.
    pub(super) fn tensors(&self) -> impl Iterator<Item = TensorSpec> {
        let names = std::iter::once(&self.weight).chain(&self.bias);
        names.map(|name| TensorSpec::new(name, &[self.width]))
    }

    /// Rows `[n, width]`, normalised.
    pub(super) fn apply<B: Backend>(&self, parameters: &Parameters<B>, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let x = if self.bias.is_some() { x.clone() - x.mean_dim(1) } else { x };
        let deviation = (x.clone().square().mean_dim(1) + self.epsilon).sqrt();
        let x = x / deviation * parameters.get(&self.weight);
        match &self.bias {
            Some(bias) => x + parameters.get(bias),
            None => x,
        }
    }
}
