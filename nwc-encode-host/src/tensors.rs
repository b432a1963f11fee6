//! Named tensors in memory, wherever they come from.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use nwc_decode_core::DType;

use crate::compress::{Selection, View};
use crate::model::Model;

/// Name, type and dimensions of a tensor.
#[derive(Debug, Clone, Copy)]
pub struct TensorInfo<'a> {
    /// Its name.
    pub name: &'a str,
    /// Type of its elements.
    pub dtype: DType,
    /// Its dimensions, outermost first.
    pub shape: &'a [usize],
}

/// A list of tensors that can be compressed.
pub trait TensorSource: Sync {
    /// Number of tensors.
    fn len(&self) -> usize;

    /// True when there is none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What the tensor at `index` is.
    fn tensor(&self, index: usize) -> TensorInfo<'_>;

    /// Its elements, row-major, little endian, not necessarily aligned.
    fn bytes(&self, index: usize) -> &[u8];

    /// The view through which it is coded.
    ///
    /// # Errors
    /// The reason for leaving it raw.
    fn view(&self, index: usize, selection: &Selection) -> Result<View, &'static str> {
        let TensorInfo { name, dtype, shape } = self.tensor(index);
        selection.view(name, dtype, shape)
    }
}

impl TensorSource for Model {
    fn len(&self) -> usize {
        self.tensors().len()
    }

    fn tensor(&self, index: usize) -> TensorInfo<'_> {
        let tensor = &self.tensors()[index];
        TensorInfo { name: &tensor.name, dtype: tensor.dtype, shape: &tensor.shape }
    }

    fn bytes(&self, index: usize) -> &[u8] {
        Self::bytes(self, index)
    }
}

/// Tensors that the program made itself.
#[derive(Debug, Clone, Default)]
pub struct OwnedTensors {
    tensors: Vec<(String, DType, Vec<usize>, Vec<u8>)>,
}

impl OwnedTensors {
    /// Adds a tensor. `bytes` are its elements, row-major, little endian.
    ///
    /// # Panics
    /// If the number of bytes does not suit the shape.
    pub fn push(&mut self, name: impl Into<String>, dtype: DType, shape: &[usize], bytes: Vec<u8>) {
        assert_eq!(bytes.len(), shape.iter().product::<usize>() * dtype.size());
        self.tensors.push((name.into(), dtype, shape.to_vec(), bytes));
    }

    /// Adds an F32 tensor.
    ///
    /// # Panics
    /// If the number of weights does not suit the shape.
    pub fn push_f32(&mut self, name: impl Into<String>, shape: &[usize], weights: &[f32]) {
        self.push(name, DType::F32, shape, weights.iter().flat_map(|weight| weight.to_le_bytes()).collect());
    }
}

impl TensorSource for OwnedTensors {
    fn len(&self) -> usize {
        self.tensors.len()
    }

    fn tensor(&self, index: usize) -> TensorInfo<'_> {
        let (name, dtype, shape, _) = &self.tensors[index];
        TensorInfo { name, dtype: *dtype, shape }
    }

    fn bytes(&self, index: usize) -> &[u8] {
        &self.tensors[index].3
    }
}

/// Elements of the dtype F32, F16 or BF16, rounded by the ordinary rules: what is too large is infinite.
pub(crate) fn from_f32(dtype: DType, values: &[f32]) -> Vec<u8> {
    match dtype {
        DType::F16 => values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect(),
        DType::BF16 => values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
    }
}

/// The elements as f32, exactly.
///
/// # Panics
/// If the dtype is not F32, F16 or BF16.
pub fn to_f32(dtype: DType, bytes: &[u8]) -> Vec<f32> {
    let mut values = vec![0.0; bytes.len() / dtype.size()];
    match dtype {
        DType::F32 => {
            for (value, bytes) in values.iter_mut().zip(bytes.as_chunks().0) {
                *value = f32::from_le_bytes(*bytes);
            }
        }
        DType::F16 => widen(bytes, &mut values, f16::from_le_bytes),
        DType::BF16 => widen(bytes, &mut values, bf16::from_le_bytes),
        other => panic!("{} is not a type of weights", other.name()),
    }
    values
}

/// Converts little-endian 16-bit floats to `f32`.
fn widen<H>(bytes: &[u8], values: &mut [f32], from_le: impl Fn([u8; 2]) -> H)
where
    H: Copy + Default,
    [H]: HalfFloatSliceExt,
{
    // Values in the file have no alignment. A block that stays in the cache gives them one, and lets the
    // conversion use the instructions that `half` finds on the processor.
    const BLOCK: usize = 2048;
    let mut aligned = [H::default(); BLOCK];
    for (halves, values) in bytes.as_chunks().0.chunks(BLOCK).zip(values.chunks_mut(BLOCK)) {
        let aligned = &mut aligned[..halves.len()];
        for (half, bytes) in aligned.iter_mut().zip(halves) {
            *half = from_le(*bytes);
        }
        aligned.convert_to_f32_slice(values);
    }
}

/// Whether no element is NaN or infinite.
///
/// # Panics
/// If the dtype is not F32, F16 or BF16.
pub fn all_finite(dtype: DType, bytes: &[u8]) -> bool {
    let halves = |exponent: u16| {
        bytes.as_chunks::<2>().0.iter().all(|pair| u16::from_le_bytes(*pair) & exponent != exponent)
    };
    match dtype {
        DType::F32 => bytes.as_chunks::<4>().0.iter().all(|four| f32::from_le_bytes(*four).is_finite()),
        DType::F16 => halves(0x7C00),
        DType::BF16 => halves(0x7F80),
        other => panic!("{} is not a type of weights", other.name()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_convert_exactly_and_non_finite_ones_are_seen() {
        // More than one block, with a remainder.
        let weights: Vec<f32> = [1.5f32, -0.0, 6e-8, 65504.0].repeat(1111);
        let half: Vec<u8> = weights.iter().flat_map(|&w| f16::from_f32(w).to_le_bytes()).collect();
        assert_eq!(
            to_f32(DType::F16, &half),
            weights.iter().map(|&w| f16::from_f32(w).to_f32()).collect::<Vec<_>>()
        );
        let brain: Vec<u8> = weights.iter().flat_map(|&w| bf16::from_f32(w).to_le_bytes()).collect();
        assert_eq!(
            to_f32(DType::BF16, &brain),
            weights.iter().map(|&w| bf16::from_f32(w).to_f32()).collect::<Vec<_>>()
        );
        assert!(all_finite(DType::F16, &half) && all_finite(DType::BF16, &brain));
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(!all_finite(DType::F32, &bad.to_le_bytes()));
            assert!(!all_finite(DType::F16, &f16::from_f32(bad).to_le_bytes()));
            assert!(!all_finite(DType::BF16, &bf16::from_f32(bad).to_le_bytes()));
        }
    }
}
