//! The conversions between number types that the decoder needs, and the exact rounding of its output (§10.4).
//!
//! This is the only module with `as` conversions.
#![allow(clippy::as_conversions)]

use half::{bf16, f16};

// Every supported target has pointers of at least 32 bits, so a u32 always fits a usize.
const _: () = assert!(usize::BITS >= u32::BITS);

/// A microcontroller. There nothing predicts branches, and skipping work by one costs little; elsewhere what is a matter of chance is better
/// computed in any case. And memory is short.
pub(crate) const SMALL_DEVICE: bool = cfg!(any(target_arch = "arm", target_arch = "riscv32"));

/// A u32 as an index.
pub(crate) const fn index(x: u32) -> usize {
    x as usize
}

/// The discriminant of an error.
pub(crate) const fn error_code(error: crate::Error) -> u8 {
    error as u8
}

/// The discriminant of a dtype.
pub(crate) const fn dtype_code(dtype: crate::DType) -> u8 {
    dtype as u8
}

/// The low eight bits.
pub(crate) const fn low_u8(x: u32) -> u8 {
    (x & 0xFF) as u8
}

/// The low 32 bits.
pub(crate) const fn low_u32(x: u64) -> u32 {
    (x & 0xFFFF_FFFF) as u32
}

/// The high and the low half.
#[inline(always)]
pub(crate) const fn split(x: u64) -> (u32, u32) {
    ((x >> 32) as u32, low_u32(x))
}

/// The low 16 bits.
#[inline(always)]
pub(crate) const fn low_16(x: u32) -> u32 {
    x & 0xFFFF
}

/// The low 16 bits as a two's complement number.
pub(crate) const fn sign_extend_16(x: u32) -> i32 {
    (x & 0xFFFF) as u16 as i16 as i32
}

/// A byte as a two's complement number.
#[inline(always)]
pub(crate) const fn sign_extend_8(x: u8) -> i32 {
    x.cast_signed() as i32
}

/// The nearest binary32 to an integer, ties to even; exact below 2^24 in magnitude.
pub(crate) const fn float(x: i32) -> f32 {
    x as f32
}

/// Rounds to binary16, ties to even; what would be infinite becomes the largest finite number.
#[inline]
pub(crate) fn f16_bits(x: f32) -> u16 {
    const OVERFLOW: u32 = 0x477F_F000; // 65520, the first value that rounds to infinity
    const SMALLEST_NORMAL: u32 = 0x3880_0000; // 2^-14
    let bits = x.to_bits();
    let sign = (bits >> 16) & 0x8000;
    let magnitude = bits & 0x7FFF_FFFF;
    let rounded = magnitude.wrapping_add(0xFFF).wrapping_add((magnitude >> 13) & 1) >> 13;
    let normal = rounded.wrapping_sub(112 << 10);
    if SMALL_DEVICE && (SMALLEST_NORMAL..OVERFLOW).contains(&magnitude) {
        return (sign | normal) as u16;
    }
    // The spacing of binary32 in [0.5, 1) is 2^-24, that of binary16 subnormals: adding 0.5 rounds to it.
    let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0x3F00_0000);
    let finite = if magnitude < SMALLEST_NORMAL { subnormal } else { normal };
    let result = if magnitude >= OVERFLOW { 0x7BFF } else { finite };
    (sign | result) as u16
}

/// Rounds to bfloat16, ties to even; what would be infinite becomes the largest finite number.
#[inline]
pub(crate) fn bf16_bits(x: f32) -> u16 {
    let bits = x.to_bits();
    let sign = (bits >> 16) & 0x8000;
    let magnitude = bits & 0x7FFF_FFFF;
    let rounded = magnitude.wrapping_add(0x7FFF).wrapping_add((magnitude >> 16) & 1) >> 16;
    (sign | rounded.min(0x7F7F)) as u16
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::f16 {}
    impl Sealed for half::bf16 {}
}

/// A number type that weights can be decoded to: `f32`, [`half::f16`] or [`half::bf16`].
pub trait Element: Copy + Default + sealed::Sealed + 'static {
    /// The dtype of this type.
    const DTYPE: crate::DType;

    /// Rounds a finite value as §10.4 says.
    fn from_f32(x: f32) -> Self;

    /// The value as binary32; exact.
    fn to_f32(self) -> f32;

    /// Adds the little-endian bytes of this value to a checksum.
    fn update_crc(self, crc: &mut crate::Crc32);
}

impl Element for f32 {
    const DTYPE: crate::DType = crate::DType::F32;

    #[inline]
    fn from_f32(x: f32) -> Self {
        x
    }

    fn to_f32(self) -> f32 {
        self
    }

    fn update_crc(self, crc: &mut crate::Crc32) {
        crc.update(&self.to_le_bytes());
    }
}

impl Element for f16 {
    const DTYPE: crate::DType = crate::DType::F16;

    #[inline]
    fn from_f32(x: f32) -> Self {
        Self::from_bits(f16_bits(x))
    }

    fn to_f32(self) -> f32 {
        Self::to_f32(self)
    }

    fn update_crc(self, crc: &mut crate::Crc32) {
        crc.update(&self.to_le_bytes());
    }
}

impl Element for bf16 {
    const DTYPE: crate::DType = crate::DType::BF16;

    #[inline]
    fn from_f32(x: f32) -> Self {
        Self::from_bits(bf16_bits(x))
    }

    fn to_f32(self) -> f32 {
        Self::to_f32(self)
    }

    fn update_crc(self, crc: &mut crate::Crc32) {
        crc.update(&self.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values around every binary16 and bfloat16 boundary: the neighbourhoods of all halves and their midpoints.
    fn probes() -> impl Iterator<Item = f32> {
        // Under Miri all of them would take hours.
        (0..=u16::MAX).step_by(if cfg!(miri) { 1999 } else { 1 }).flat_map(|h| {
            [f16::from_bits(h).to_f32(), bf16::from_bits(h).to_f32()]
                .into_iter()
                .filter(|x| x.is_finite())
                .flat_map(|x| {
                    [-0x1001i32, -0x1000, -0xFFF, -1, 0, 1, 0xFFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001]
                        .map(|d| f32::from_bits(x.to_bits().wrapping_add(d.cast_unsigned())))
                })
                .filter(|x| x.is_finite())
        })
    }

    #[test]
    fn rounding_agrees_with_half_and_saturates() {
        for x in probes() {
            let want = f16::from_f32(x);
            let want = if want.is_infinite() { f16::MAX.copysign(want) } else { want };
            assert_eq!(f16_bits(x), want.to_bits(), "f16 of {x:e}");
            let want = bf16::from_f32(x);
            let want = if want.is_infinite() { bf16::MAX.copysign(want) } else { want };
            assert_eq!(bf16_bits(x), want.to_bits(), "bf16 of {x:e}");
        }
        assert_eq!(f16_bits(f32::MAX), 0x7BFF);
        assert_eq!(bf16_bits(-f32::MAX), 0xFF7F);
    }
}
