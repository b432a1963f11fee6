//! Element types of tensors (§3.4).

use core::fmt;

/// The element type of a tensor, as safetensors files name it.
///
/// The numeric values are stable: they are what a container stores ([`DType::code`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum DType {
    /// IEEE 754 binary32.
    F32 = 0,
    /// IEEE 754 binary16.
    F16 = 1,
    /// bfloat16: the upper half of a binary32.
    BF16 = 2,
    /// IEEE 754 binary64.
    F64 = 3,
    /// Signed 64-bit integer.
    I64 = 4,
    /// Signed 32-bit integer.
    I32 = 5,
    /// Signed 16-bit integer.
    I16 = 6,
    /// Signed 8-bit integer.
    I8 = 7,
    /// Unsigned 64-bit integer.
    U64 = 8,
    /// Unsigned 32-bit integer.
    U32 = 9,
    /// Unsigned 16-bit integer.
    U16 = 10,
    /// Unsigned 8-bit integer.
    U8 = 11,
    /// Truth value, one byte each.
    Bool = 12,
    /// 8-bit float with 4 exponent and 3 mantissa bits, no infinities (`F8_E4M3`).
    F8E4M3 = 13,
    /// 8-bit float with 5 exponent and 2 mantissa bits (`F8_E5M2`).
    F8E5M2 = 14,
}

impl DType {
    /// Every type, in the order of the codes.
    pub const ALL: [Self; 15] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::F64,
        Self::I64,
        Self::I32,
        Self::I16,
        Self::I8,
        Self::U64,
        Self::U32,
        Self::U16,
        Self::U8,
        Self::Bool,
        Self::F8E4M3,
        Self::F8E5M2,
    ];

    /// Size of one element, in bytes.
    pub const fn size(self) -> usize {
        match self {
            Self::F64 | Self::I64 | Self::U64 => 8,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::F16 | Self::BF16 | Self::I16 | Self::U16 => 2,
            Self::I8 | Self::U8 | Self::Bool | Self::F8E4M3 | Self::F8E5M2 => 1,
        }
    }

    /// The name in safetensors headers.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::F64 => "F64",
            Self::I64 => "I64",
            Self::I32 => "I32",
            Self::I16 => "I16",
            Self::I8 => "I8",
            Self::U64 => "U64",
            Self::U32 => "U32",
            Self::U16 => "U16",
            Self::U8 => "U8",
            Self::Bool => "BOOL",
            Self::F8E4M3 => "F8_E4M3",
            Self::F8E5M2 => "F8_E5M2",
        }
    }

    /// The stable code of this type.
    pub const fn code(self) -> u8 {
        crate::num::dtype_code(self)
    }

    /// The type with this stable code, if there is one.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code)).copied()
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
