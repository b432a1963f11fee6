//! Linear maps of a model: which weights they have, and what listens to their inputs.

use std::ops::Range;

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::stage::TensorSpec;
use crate::parameters::Parameters;

/// What a linear map is for, in the order in which fine-tuning takes them: value, query, key, output, then up, gate, down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Values of attention.
    Value,
    /// Queries of attention.
    Query,
    /// Keys of attention.
    Key,
    /// What attention puts out.
    Output,
    /// Chooses experts.
    Router,
    /// Into the hidden units of a feed-forward network.
    Up,
    /// Gates hidden units.
    Gate,
    /// Gates and hidden units, interleaved.
    GateUp,
    /// Out of the hidden units.
    Down,
    /// Patches of an image.
    Patch,
    /// The last one of a tower: a projection, or the logits of tokens.
    Projection,
}

/// Which part of a tensor a linear map has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// All of `[out, in]`, or of `[out, in, kernel...]`, whose later dimensions are inputs too.
    Whole,
    /// These rows of `[out, in]`, which several maps share.
    Rows(Range<usize>),
    /// Matrix `.0` of `[experts, in, out]`.
    Stacked(usize),
}

/// A linear map y = x W^T + b.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Linear {
    /// Name of the tensor that has its weights.
    pub tensor: String,
    /// Dimensions of that tensor, all of it.
    pub shape: Vec<usize>,
    /// Which part of it they are.
    pub part: Part,
    /// Name of the tensor that has its bias, in the same part.
    pub bias: Option<String>,
    /// What it is for.
    pub role: Role,
    /// The expert that it belongs to.
    pub expert: Option<usize>,
}

impl Linear {
    /// A map with a matrix of its own, `{name}.weight` and perhaps `{name}.bias`.
    pub(super) fn new(name: &str, role: Role, outputs: usize, inputs: usize, bias: bool) -> Self {
        Self {
            tensor: format!("{name}.weight"),
            shape: vec![outputs, inputs],
            part: Part::Whole,
            bias: bias.then(|| format!("{name}.bias")),
            role,
            expert: None,
        }
    }

    /// Number of inputs.
    pub fn inputs(&self) -> usize {
        match self.part {
            Part::Stacked(_) => self.shape[1],
            Part::Whole | Part::Rows(_) => self.shape[1..].iter().product(),
        }
    }

    /// Number of outputs.
    pub fn outputs(&self) -> usize {
        match &self.part {
            Part::Whole => self.shape[0],
            Part::Rows(rows) => rows.len(),
            Part::Stacked(_) => self.shape[2],
        }
    }

    /// The dimensions of what there is one of for each output of its tensor, and where in it its own begin.
    pub(crate) fn place_of_outputs(&self) -> (Vec<usize>, usize) {
        match &self.part {
            Part::Whole => (vec![self.shape[0]], 0),
            Part::Rows(rows) => (vec![self.shape[0]], rows.start),
            Part::Stacked(index) => (vec![self.shape[0], self.shape[2]], index * self.shape[2]),
        }
    }

    /// The tensors that it takes.
    pub(super) fn tensors(&self) -> impl Iterator<Item = TensorSpec> {
        let bias = match self.part {
            Part::Whole | Part::Rows(_) => vec![self.shape[0]],
            Part::Stacked(_) => vec![self.shape[0], self.shape[2]],
        };
        let bias = self.bias.as_ref().map(|name| TensorSpec::new(name, &bias));
        std::iter::once(TensorSpec::new(&self.tensor, &self.shape)).chain(bias)
    }

    /// Outputs `[n, out]` of inputs `[n, in]`.
    pub(crate) fn apply<B: Backend>(
        &self,
        parameters: &Parameters<B>,
        x: Tensor<B, 2>,
        taps: &mut dyn Taps<B>,
    ) -> Tensor<B, 2> {
        let mut y = x.matmul(self.transposed(parameters));
        if let Some(bias) = &self.bias {
            let bias = parameters.get(bias);
            y = y + match &self.part {
                Part::Whole => bias,
                Part::Rows(rows) => bias.slice_dim(1, rows.clone()),
                Part::Stacked(index) => bias.slice_dim(0, *index..index + 1),
            };
        }
        taps.outputs(self, y)
    }

    /// What a gradient `[n, out]` with respect to outputs is with respect to inputs, `[n, in]`.
    pub(crate) fn backward<B: Backend>(&self, parameters: &Parameters<B>, dy: Tensor<B, 2>) -> Tensor<B, 2> {
        dy.matmul(self.transposed(parameters).transpose())
    }

    /// Its weights as `[in, out]`.
    fn transposed<B: Backend>(&self, parameters: &Parameters<B>) -> Tensor<B, 2> {
        let weight = parameters.get(&self.tensor);
        match &self.part {
            Part::Whole => weight.transpose(),
            Part::Rows(rows) => weight.slice_dim(0, rows.clone()).transpose(),
            Part::Stacked(index) => {
                weight.slice_dim(0, *index..index + 1).reshape([self.inputs(), self.outputs()])
            }
        }
    }
}

/// Is handed what goes into linear maps and comes out of them.
pub trait Taps<B: Backend> {
    /// `inputs` `[tokens, in]` go into these maps, which share them. An expert is handed the tokens alone that are routed to it.
    fn inputs(&mut self, linears: &[&Linear], inputs: &Tensor<B, 2>);

    /// `outputs` `[tokens, out]` come out of this map; what is returned goes on in their place.
    fn outputs(&mut self, _linear: &Linear, outputs: Tensor<B, 2>) -> Tensor<B, 2> {
        outputs
    }

    /// `sum` `[tokens, width]` is that of rows of these tables, of each the row of every token; what is returned goes on in its place.
    fn rows(&mut self, _tables: &[(&TensorSpec, Vec<usize>)], sum: Tensor<B, 2>) -> Tensor<B, 2> {
        sum
    }
}

/// Hands nothing on.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoTaps;

impl<B: Backend> Taps<B> for NoTaps {
    fn inputs(&mut self, _: &[&Linear], _: &Tensor<B, 2>) {}
}

impl<B: Backend, F: FnMut(&[&Linear], &Tensor<B, 2>)> Taps<B> for F {
    fn inputs(&mut self, linears: &[&Linear], inputs: &Tensor<B, 2>) {
        self(linears, inputs);
    }
}
