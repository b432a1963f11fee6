//! Which tensors are coded, and as which matrices.

use nwc_decode_core::DType;

/// A coded tensor seen as `batch` matrices of rows x columns; a lane of the coder walks down columns (docs/bitstream.md §3.9).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    /// Number of matrices.
    pub batch: usize,
    /// Rows as coded.
    pub rows: usize,
    /// Columns as coded.
    pub columns: usize,
    /// The matrices are coded as the transposes of what lies in memory.
    pub transposed: bool,
    /// The first dimension is the batch.
    pub batched: bool,
    /// Matrices lie in memory as [in, out], not as [out, in].
    pub inputs_first: bool,
}

impl View {
    /// The view of a tensor of this shape. Convolutions [out, in, k...] become [out, in * k...].
    pub fn new(shape: &[usize], batched: bool, transposed: bool) -> Self {
        let (batch, rest) = if batched { (shape[0], &shape[1..]) } else { (1, shape) };
        let out = rest[0];
        let input = rest[1..].iter().product();
        let (rows, columns) = if transposed { (input, out) } else { (out, input) };
        Self { batch, rows, columns, transposed, batched, inputs_first: false }
    }

    /// The view of matrices that lie in memory as [in, out] and are coded as [out, in], as others are.
    #[must_use]
    pub fn with_inputs_first(self) -> Self {
        let Self { rows, columns, transposed, .. } = self;
        Self { rows: columns, columns: rows, transposed: !transposed, inputs_first: true, ..self }
    }

    /// Whether the columns that are coded one after the other are inputs, as they are unless the tensor is an embedding.
    pub fn inputs_are_columns(&self) -> bool {
        self.transposed == self.inputs_first
    }

    /// Weights that lie side by side in memory and have the same input.
    pub fn weights_of_an_input(&self) -> usize {
        if self.inputs_first { self.outputs() } else { 1 }
    }

    /// Output rows of a matrix [out, in].
    pub fn outputs(&self) -> usize {
        if self.inputs_are_columns() { self.rows } else { self.columns }
    }

    /// Input columns of a matrix [out, in].
    pub fn inputs(&self) -> usize {
        if self.inputs_are_columns() { self.columns } else { self.rows }
    }

    /// Number of weights.
    pub fn elements(&self) -> usize {
        self.batch * self.rows * self.columns
    }

    /// Where an element lies in the tensor, and how far apart neighbouring rows and columns are.
    pub fn position(&self, batch: usize, row: usize, column: usize) -> usize {
        let (row_stride, column_stride) = self.strides();
        batch * self.rows * self.columns + row * row_stride + column * column_stride
    }

    /// Distance of neighbouring rows and of neighbouring columns in the tensor.
    pub fn strides(&self) -> (usize, usize) {
        if self.transposed { (1, self.rows) } else { (self.columns, 1) }
    }
}

/// Which tensors are worth coding.
#[derive(Debug, Clone)]
pub struct Selection {
    /// Tensors with fewer weights stay raw.
    pub min_weights: usize,
    /// Tensors whose matrices are narrower, either way, stay raw.
    pub min_side: usize,
    /// Only tensors whose name matches are coded.
    pub include: Option<regex::Regex>,
    /// Tensors whose name matches stay raw.
    pub exclude: Option<regex::Regex>,
}

impl Default for Selection {
    fn default() -> Self {
        Self { min_weights: 1024, min_side: 8, include: None, exclude: None }
    }
}

impl Selection {
    /// The view through which a tensor is coded, or why it stays raw.
    ///
    /// Chosen by dtype, dimensions and size, not by a suffix of the name: not every matrix is called `.weight`. The name only tells an embedding,
    /// which is coded transposed so that one token is one column and looking it up decodes one tile.
    ///
    /// # Errors
    /// The reason for leaving it raw.
    pub fn view(&self, name: &str, dtype: DType, shape: &[usize]) -> Result<View, &'static str> {
        if !matches!(dtype, DType::F32 | DType::F16 | DType::BF16) {
            return Err("not a floating-point type that is coded");
        }
        if self.include.as_ref().is_some_and(|include| !include.is_match(name)) {
            return Err("not included");
        }
        if self.exclude.as_ref().is_some_and(|exclude| exclude.is_match(name)) {
            return Err("excluded");
        }
        if shape.len() < 2 && self.min_side > 1 {
            return Err("fewer than two dimensions");
        }
        if shape.is_empty() || shape.contains(&0) {
            return Err("empty or a scalar");
        }
        // Kernels of one-dimensional convolutions are short; the last dimension of a stack of experts is not.
        const LONGEST_KERNEL: usize = 16;
        let experts = shape.len() == 3 && shape[2] > LONGEST_KERNEL;
        let embedding = shape.len() == 2 && is_embedding(name);
        let view = View::new(shape, experts, embedding);
        if view.elements() < self.min_weights || view.rows.min(view.columns) < self.min_side {
            return Err("small");
        }
        if view.rows >= 1 << 31 || view.columns >= 1 << 31 {
            return Err("a dimension of 2^31 or more");
        }
        Ok(view)
    }
}

/// Whether a name is that of an embedding table [entries, width].
fn is_embedding(name: &str) -> bool {
    name.split('.').any(|part| {
        part.ends_with("embedding")
            || part.ends_with("embeddings")
            || matches!(part, "embed_tokens" | "wte" | "wpe")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_become_matrices() {
        let view = |name: &str, shape: &[usize]| Selection::default().view(name, DType::F16, shape);
        let linear = view("layers.0.mlp.fc1.weight", &[320, 96]).unwrap();
        assert_eq!((linear.batch, linear.rows, linear.columns, linear.transposed), (1, 320, 96, false));
        let embedding = view("text_model.embeddings.token_embedding.weight", &[85, 64]).unwrap();
        assert_eq!((embedding.rows, embedding.columns, embedding.transposed), (64, 85, true));
        let convolution = view("patch.weight", &[96, 3, 4, 4]).unwrap();
        assert_eq!((convolution.batch, convolution.rows, convolution.columns), (1, 96, 48));
        let experts = view("mlp.experts.down_proj", &[4, 64, 128]).unwrap();
        assert_eq!((experts.batch, experts.rows, experts.columns, experts.batched), (4, 64, 128, true));
        assert!(!view("conv1.weight", &[256, 80, 3]).unwrap().batched);
        assert_eq!(view("norm.weight", &[4096]), Err("fewer than two dimensions"));
        assert_eq!(view("probe", &[1, 4096]), Err("small"));
        assert!(Selection::default().view("ids", DType::I64, &[512, 512]).is_err());
    }

    #[test]
    fn positions_follow_the_tensor_in_memory() {
        let plain = View::new(&[2, 3, 5], true, false);
        assert_eq!(plain.position(1, 2, 4), 29);
        let transposed = View::new(&[3, 5], false, true);
        assert_eq!((transposed.rows, transposed.columns), (5, 3));
        assert_eq!((transposed.outputs(), transposed.inputs()), (3, 5));
        assert_eq!(transposed.position(0, 4, 2), 14);
        let inputs_first = View::new(&[2, 3, 5], true, false).with_inputs_first();
        assert_eq!((inputs_first.outputs(), inputs_first.inputs(), inputs_first.columns), (5, 3, 3));
        assert_eq!(inputs_first.position(1, 4, 2), 29);
    }
}
