//! Element types: ours for those of the safetensors crate.

use nwc_decode_core::DType;

/// Our type for one of the safetensors crate, if it is supported.
pub(super) fn from_safetensors(dtype: safetensors::Dtype) -> Option<DType> {
    use safetensors::Dtype as S;
    Some(match dtype {
        S::F32 => DType::F32,
        S::F16 => DType::F16,
        S::BF16 => DType::BF16,
        S::F64 => DType::F64,
        S::I64 => DType::I64,
        S::I32 => DType::I32,
        S::I16 => DType::I16,
        S::I8 => DType::I8,
        S::U64 => DType::U64,
        S::U32 => DType::U32,
        S::U16 => DType::U16,
        S::U8 => DType::U8,
        S::BOOL => DType::Bool,
        S::F8_E4M3 => DType::F8E4M3,
        S::F8_E5M2 => DType::F8E5M2,
        // Sub-byte, scale-only, FNUZ and complex types, and whatever a later version adds.
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_stable_and_dense() {
        for (code, dtype) in (0u8..).zip(DType::ALL) {
            assert_eq!(dtype.code(), code);
            assert_eq!(DType::from_code(code), Some(dtype));
        }
        assert_eq!(DType::from_code(15), None);
        assert_eq!(DType::from_code(255), None);
        assert_eq!(DType::BF16.code(), 2);
        assert_eq!(DType::F8E5M2.code(), 14);
    }

    #[test]
    fn names_and_sizes_agree_with_safetensors() {
        for dtype in DType::ALL {
            let theirs: safetensors::Dtype =
                serde_json::from_value(serde_json::Value::from(dtype.name())).unwrap();
            assert_eq!(from_safetensors(theirs), Some(dtype));
            assert_eq!(theirs.bitsize(), dtype.size() * 8);
        }
    }

    #[test]
    fn foreign_types_are_not_mapped() {
        for theirs in [
            safetensors::Dtype::F4,
            safetensors::Dtype::F6_E2M3,
            safetensors::Dtype::F8_E8M0,
            safetensors::Dtype::F8_E4M3FNUZ,
            safetensors::Dtype::C64,
        ] {
            assert_eq!(from_safetensors(theirs), None);
        }
    }
}
