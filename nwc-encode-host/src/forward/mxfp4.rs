//! MXFP4, the format in which GPT-OSS publishes its experts: blocks of 32 4-bit floats that share a power of two.

use nwc_decode_core::DType;

use super::weights::Stored;
use crate::parameters::HostTensor;
use crate::{Error, Result};

/// What four bits stand for: a sign, two bits of exponent, one of mantissa.
const VALUES: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// Bytes of a block: 32 values, two a byte.
const BLOCK_BYTES: usize = 16;

/// The name under which the blocks of a tensor are stored.
pub(super) fn blocks_name(name: &str) -> String {
    format!("{name}_blocks")
}

/// The name under which the scales of its blocks are stored.
pub(super) fn scales_name(name: &str) -> String {
    format!("{name}_scales")
}

/// Weights `[experts, in, out]` of blocks `[experts, out, in / 32, 16]` and scales `[experts, out, in / 32]`.
///
/// # Errors
/// If these are not bytes of such dimensions.
pub(super) fn dequantise(blocks: &Stored<'_>, scales: &Stored<'_>) -> Result<HostTensor> {
    let [experts, outputs, groups, BLOCK_BYTES] = blocks.shape[..] else {
        return Err(unusable(blocks, scales));
    };
    if scales.shape != [experts, outputs, groups] || [blocks.dtype, scales.dtype] != [DType::U8; 2] {
        return Err(unusable(blocks, scales));
    }
    let inputs = groups * BLOCK_BYTES * 2;
    let mut values = vec![0.0; experts * inputs * outputs];
    let packed = blocks.bytes.as_chunks::<BLOCK_BYTES>().0;
    for (at, (block, &scale)) in packed.iter().zip(scales.bytes.iter()).enumerate() {
        let (row, group) = (at / groups, at % groups);
        let (expert, output) = (row / outputs, row % outputs);
        let scale = power_of_two(scale);
        // A byte has the earlier value in its lower half.
        let codes = block.iter().flat_map(|byte| [byte & 15, byte >> 4]);
        for (i, code) in codes.enumerate() {
            let input = group * BLOCK_BYTES * 2 + i;
            values[(expert * inputs + input) * outputs + output] = VALUES[usize::from(code)] * scale;
        }
    }
    Ok(HostTensor { shape: vec![experts, inputs, outputs], values })
}

/// What a byte of E8M0 stands for: 2^(byte - 127); 255 is NaN.
fn power_of_two(byte: u8) -> f32 {
    match byte {
        // Below the normal numbers: the highest bit of the mantissa alone.
        0 => f32::from_bits(1 << 22),
        255 => f32::NAN,
        _ => f32::from_bits(u32::from(byte) << 23),
    }
}

fn unusable(blocks: &Stored<'_>, scales: &Stored<'_>) -> Error {
    Error::input(format!(
        "its MXFP4 blocks are {} {:?} and its scales {} {:?}, not U8 [experts, out, in / 32, 16] and [experts, out, in / 32]",
        blocks.dtype.name(),
        blocks.shape,
        scales.dtype.name(),
        scales.shape
    ))
    .remedy("download the model again, or convert it to BF16")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(shape: &[usize], bytes: Vec<u8>) -> Stored<'static> {
        Stored { dtype: DType::U8, shape: shape.to_vec(), bytes: bytes.into() }
    }

    #[test]
    fn blocks_are_scaled_and_transposed() {
        let mut packed = vec![0; 64];
        packed[0] = 0xf1; // 0.5, -6
        packed[16] = 0x07; // 6, 0: the second group of the first output
        packed[32 + 15] = 0xa0; // 0, -1: the end of the first group of the second output
        let blocks = bytes(&[1, 2, 2, 16], packed);
        let made = dequantise(&blocks, &bytes(&[1, 2, 2], vec![127, 128, 126, 127])).unwrap();
        assert_eq!(made.shape, [1, 64, 2]);
        let others: Vec<(usize, f32)> =
            made.values.iter().copied().enumerate().filter(|(_, value)| *value != 0.0).collect();
        assert_eq!(others, [(0, 0.5), (2, -6.0), (63, -0.5), (64, 12.0)]);
    }

    #[test]
    fn scales_are_powers_of_two() {
        for (byte, value) in [(0, -127), (1, -126), (126, -1), (127, 0), (254, 127)] {
            assert_eq!(f64::from(power_of_two(byte)).to_bits(), 2.0_f64.powi(value).to_bits(), "{byte}");
        }
        assert!(power_of_two(255).is_nan());
    }

    #[test]
    fn other_dimensions_are_refused() {
        let text = dequantise(&bytes(&[1, 1, 1, 16], vec![0; 16]), &bytes(&[1, 1], vec![127])).unwrap_err();
        assert!(text.to_string().contains("U8 [1, 1, 1, 16] and its scales U8 [1, 1]"), "{text}");
    }
}
